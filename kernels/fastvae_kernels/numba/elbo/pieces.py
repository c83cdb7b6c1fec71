"""What the kernels of latents share: the numbers of a launch, and how the rows of a work unit are read and written.

A unit is a group of short rows, or a fixed piece of a long one: ``where = first, n, length, rows``, its first latent
element and its first row, and how many there are of each. Loops run over whole vectors of dense arrays in the compute
dtype, in which a row takes ``width`` elements, whole blocks of noise: where a tensor is not like that, a scratch stands
in its place.
"""

from ..language.jit import by_constant, math_jit
from ..language.layout import Layout
from ..language.memory import copy_back, gather, read_address, vector, write_address
from ..language.vector import lanes

PIECE = 1024  # the most elements of a unit, those between short rows included; whole blocks of noise and wide vectors

# Constants of the kernels. The KL: none, to N(0, I), or to a prior. Its sums: over the batch alone, or over each row,
# of all elements, or also of those that free bits keep.
NO_KL, STANDARD, PRIOR = range(3)
NO_SUMS, BATCH, ROWS, KEPT = range(4)

# Addresses are 0 where there is nothing; *_row are strides in elements, 0 of a prior that all rows share.
SIZES = Layout(  # of all calls of one layout; mean: 0 for a value of each row
    "N L K group piece width pieces mu_row logvar_row mu_p_row logvar_p_row mean:float"
)
INPUTS = Layout("mu logvar mu_p logvar_p")
NOISE = Layout("seed first_row")
VALUES = Layout("neg_kl kl partial mask beta:float floor:float")  # floor: what free bits hold constant
FORWARD = Layout("z dmu dlogvar", noise=NOISE, values=VALUES, inputs=INPUTS, sizes=SIZES)  # with draws and without


@math_jit
def unit_at(f, unit):
    """Where a unit lies."""
    sizes = f.sizes
    first, n = unit % sizes.pieces * sizes.piece, unit // sizes.pieces * sizes.group
    return first, n, min(sizes.piece, sizes.L - first), min(sizes.group, sizes.N - n)


@math_jit
def load(f, room, address, stride, row, where, v):
    """The address of the elements of a unit from ``row`` on: their own, or that of a copy in a room."""
    first, _, length, rows = where
    return read_address(room, f.sizes.width, address, row, rows, stride, first, length, f.M, f.T, v)


@math_jit
def place(f, room, address, row, where, v):
    """The address to write such elements to, in rows side by side; then `store` is to be called."""
    first, _, length, rows = where
    return write_address(room, f.sizes.width, address, row, rows, f.sizes.L, first, length, f.M, f.T, v)


@math_jit
def store(f, room, address, row, where, v):
    """Bring what was written to where it belongs, if `place` gave the room."""
    first, _, length, rows = where
    copy_back(room, f.sizes.width, address, row, rows, f.sizes.L, first, length, f.M, f.T, v)


@math_jit
def clear(room, size, v):
    """Zeros behind the ``size`` elements of a room, up to a whole vector."""
    for j in range(size, -(-size // lanes(v)) * lanes(v)):
        room[j] = 0


@math_jit
def load_posterior(f, mu, logvar, where, v):
    """The addresses of a unit's elements of mu and logvar; rooms for copies are given."""
    size = where[3] * f.sizes.width
    clear(mu, size, v)  # if there is anything to clear, the elements will be in the rooms
    clear(logvar, size, v)
    return (
        load(f, mu, f.inputs.mu, f.sizes.mu_row, where[1], where, v),
        load(f, logvar, f.inputs.logvar, f.sizes.logvar_row, where[1], where, v),
    )


@math_jit
def no_prior(f, prior, where, v):
    """There is none, or its elements are 0."""


@math_jit
def copy_prior(f, prior, where, v):
    """Copy a unit's elements of the prior to two rooms."""
    first, n, length, rows = where
    (mu_p, logvar_p), sizes, u = prior, f.sizes, vector(f.T)
    gather(mu_p, sizes.width, f.inputs.mu_p, n, rows, sizes.mu_p_row, first, length, f.T, u)
    gather(logvar_p, sizes.width, f.inputs.logvar_p, n, rows, sizes.logvar_p_row, first, length, f.T, u)
    clear(mu_p, rows * sizes.width, v)
    clear(logvar_p, rows * sizes.width, v)


load_prior = by_constant({NO_KL: no_prior, STANDARD: no_prior, PRIOR: copy_prior})
