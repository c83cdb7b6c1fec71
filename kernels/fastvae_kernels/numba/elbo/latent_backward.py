"""The way back through draws and the KL: Numba.

    dmu     = sum_k dz + g (mu - mu_p) e^-logvar_p
    dlogvar = 1/2 e^(logvar/2) sum_k dz eps + g/2 expm1(logvar - logvar_p)          g[n, l] the upstream of kl_nl

Traffic, elements: reads mu, logvar and dz and writes two gradients, (4 + K) N L; the noise eps is made again. Floor: a
copy of as many bytes. Layout and work unit: as in `pieces.py`, noise block by block as in `sample_pass.py`.
Specification: fastvae/reference/elbo/formulas.py (reparameterize, kl_elements), fastvae/reference/elbo/noise.py
"""

from functools import cache

from ..language.jit import Kernel, by_constant, kernel, math_jit
from ..language.layout import Layout
from ..language.math import fma, half_exponentials, like, select
from ..language.memory import (
    I64,
    U32,
    array_at,
    item_size,
    on_stack,
    prefetch,
    read,
    scatter,
    vector,
    wide_vector,
    write,
)
from ..language.noise import BLOCK, KEYS, count, fill_keys, fill_noise
from ..language.threads import take, worker
from ..language.vector import lanes
from .kl import begin_upstream, kl_slopes_to, load_upstream
from .pieces import (
    INPUTS,
    NO_KL,
    NOISE,
    PIECE,
    PRIOR,
    SIZES,
    STANDARD,
    load,
    load_posterior,
    load_prior,
    place,
    store,
    unit_at,
)
from .upstream import UPSTREAM

COUNTERS = PIECE // 4
LINE = 64  # bytes of a cache

# Draws: none, one, or several, whose sums are kept from one to the next. A constant of the kernel.
NONE, ONE, MANY = range(3)
BACKWARD = Layout(
    "dz dmu dlogvar dmu_p dlogvar_p mask", kept=UPSTREAM, raw=UPSTREAM, noise=NOISE, inputs=INPUTS, sizes=SIZES
)


@math_jit
def through_draws_alone(g, prior, i, m, s, half_excess, dm, ds):
    """There is no upstream of the KL."""
    return dm, ds


@math_jit
def through_kl_to_standard(g, prior, i, m, s, half_excess, dm, ds):
    """Of the KL to N(0, 1)."""
    weight, none = read(g, i, m), like(m, 0)
    through_mu = select(weight != none, weight * m, none)  # not 0 * inf
    through_logvar = select(weight != none, weight * half_excess, none)
    return dm + through_mu, ds + through_logvar


@math_jit
def through_kl_to_prior(g, prior, i, m, s, half_excess, dm, ds):
    """Of the KL to a prior, whose own gradients take the place of its elements."""
    weight, none, (mu_p, logvar_p) = read(g, i, m), like(m, 0), prior
    slope, half_excess, half_square = kl_slopes_to(m - read(mu_p, i, m), s, read(logvar_p, i, m))
    through_mu = select(weight != none, weight * slope, none)  # not 0 * inf
    through_logvar = select(weight != none, weight * half_excess, none)
    write(mu_p, i, -through_mu)
    write(logvar_p, i, -select(weight != none, fma(weight, half_square, through_logvar), none))
    return dm + through_mu, ds + through_logvar


through_kl = by_constant({NO_KL: through_draws_alone, STANDARD: through_kl_to_standard, PRIOR: through_kl_to_prior})


@math_jit
def no_earlier_draw(f, dz, eps, dmu_s, dlogvar_s, b, stop):
    """There is but one."""


@math_jit
def add_earlier_draw(f, dz, eps, dmu_s, dlogvar_s, b, stop):
    """Add elements b to stop of a draw that is not the last to the sums."""
    v = wide_vector(f.T)
    for i in range(b, stop, lanes(v)):
        d = read(dz, i, v)
        write(dmu_s, i, read(dmu_s, i, v) + d)
        write(dlogvar_s, i, fma(d, read(eps, i - b, v), read(dlogvar_s, i, v)))


@math_jit
def begin_nothing(dmu_s, dlogvar_s, size, v):
    """Of one draw there are no sums."""


@math_jit
def begin_with_zeros(dmu_s, dlogvar_s, size, v):
    """The sums of no draw yet."""
    for i in range(0, size, lanes(v)):
        write(dmu_s, i, like(v, 0))
        write(dlogvar_s, i, like(v, 0))


@math_jit
def no_sums(dmu_s, dlogvar_s, i, v):
    """There was no draw before."""
    return like(v, 0), like(v, 0)


@math_jit
def kept_sums(dmu_s, dlogvar_s, i, v):
    """Those of the draws before."""
    return read(dmu_s, i, v), read(dlogvar_s, i, v)


begin_sums = by_constant({ONE: begin_nothing, MANY: begin_with_zeros})
add_draw = by_constant({ONE: no_earlier_draw, MANY: add_earlier_draw})
sums_before = by_constant({ONE: no_sums, MANY: kept_sums})


@math_jit
def last_draw(f, dz, eps, dmu_s, dlogvar_s, mu, logvar, dmu, dlogvar, g, prior, b, stop):
    """Add elements b to stop of the last draw, and write the gradients of mu and logvar."""
    v = wide_vector(f.T)
    for i in range(b, stop, lanes(v)):
        dm, ds = sums_before(f.draws, dmu_s, dlogvar_s, i, v)
        d, m, s = read(dz, i, v), read(mu, i, v), read(logvar, i, v)
        dm, ds = dm + d, fma(d, read(eps, i - b, v), ds)
        half_root, half_excess, _ = half_exponentials(s)
        dm, ds = through_kl(f.kl_form, g, prior, i, m, s, half_excess, dm, half_root * ds)
        write(dmu, i, dm)
        write(dlogvar, i, ds)


@math_jit
def fetch(f, address, b):
    """Ask for the elements of a block before its noise is made."""
    for at in range(b * item_size(f.T), (b + BLOCK) * item_size(f.T), LINE):
        prefetch(address + at)


@math_jit
def from_draws(f, where, noise, rooms, mu_at, logvar_at, dmu, dlogvar, g, prior):
    """The gradients of a unit, draw by draw."""
    v, u, N, K = wide_vector(f.T), vector(f.T), f.sizes.N, f.sizes.K
    (first, n, _, rows), (blocks, rows_of, keys), (dmu_s, dlogvar_s, dz_s, eps) = where, noise, rooms
    size = rows * f.sizes.width
    mu, logvar = array_at(mu_at, size, f.T), array_at(logvar_at, size, f.T)
    begin_sums(f.draws, dmu_s, dlogvar_s, size, v)
    for k in range(K):
        dz_at = load(f, dz_s, f.dz, f.sizes.L, k * N + n, where, v)
        dz, last = array_at(dz_at, size, f.T), f.draws == ONE or k == K - 1
        for b in range(0, size, BLOCK):
            fetch(f, dz_at, b)
            if last:
                fetch(f, mu_at, b)
                fetch(f, logvar_at, b)
            fill_noise(eps, blocks, rows_of, b // 4, first // 4, f.noise.first_row + n, k, keys, u)
            stop = min(b + BLOCK, size)
            if last:
                last_draw(f, dz, eps, dmu_s, dlogvar_s, mu, logvar, dmu, dlogvar, g, prior, b, stop)
            else:
                add_draw(f.draws, f, dz, eps, dmu_s, dlogvar_s, b, stop)


@math_jit
def from_kl_alone(f, where, noise, rooms, mu_at, logvar_at, dmu, dlogvar, g, prior):
    """The gradients of a unit of which nothing was drawn."""
    v, size = wide_vector(f.T), where[3] * f.sizes.width
    mu, logvar, none = array_at(mu_at, size, f.T), array_at(logvar_at, size, f.T), like(v, -0.0)  # -0 + -0 is -0
    for i in range(0, size, lanes(v)):
        m, s = read(mu, i, v), read(logvar, i, v)
        dm, ds = through_kl(f.kl_form, g, prior, i, m, s, half_exponentials(s)[1], none, none)
        write(dmu, i, dm)
        write(dlogvar, i, ds)


gradients_of = by_constant({NONE: from_kl_alone, ONE: from_draws, MANY: from_draws})


@math_jit
def nothing_drawn(f, noise):
    """No noise is needed."""


@math_jit
def prepare_noise(f, noise):
    """What all units have in common."""
    blocks, rows, keys = noise
    fill_keys(keys, f.noise.seed)
    count(blocks, rows, f.sizes.width // 4, f.sizes.group)


begin_noise = by_constant({NONE: nothing_drawn, ONE: prepare_noise, MANY: prepare_noise})


@math_jit
def store_prior_alone(f, prior, where):
    """No gradients of a prior are requested."""


@math_jit
def put_prior(f, prior, where):
    """Write the gradients of the prior."""
    first, n, length, rows = where
    scatter(prior[0], f.sizes.width, f.dmu_p, n, rows, f.sizes.L, first, length, f.T, vector(f.T))
    scatter(prior[1], f.sizes.width, f.dlogvar_p, n, rows, f.sizes.L, first, length, f.T, vector(f.T))


store_prior = by_constant({NO_KL: store_prior_alone, STANDARD: store_prior_alone, PRIOR: put_prior})


@cache
def make_backward(M: int, T: int, kl_form: int, draws: int, upstream: int) -> Kernel:
    """The kernel of all gradients, of the prior's too where there is one, for the codes of `make_sample`."""

    @kernel(BACKWARD, M=M, T=T, kl_form=kl_form, draws=draws, upstream=upstream)
    def latent_backward(f):
        v, mu_s, logvar_s, g = wide_vector(f.T), on_stack(PIECE, f.T), on_stack(PIECE, f.T), on_stack(PIECE, f.T)
        rooms = dmu_s, dlogvar_s, _dz, _eps = (
            on_stack(PIECE, f.T), on_stack(PIECE, f.T), on_stack(PIECE, f.T), on_stack(BLOCK, f.T),
        )  # fmt: skip
        prior, mask = (on_stack(PIECE, f.T), on_stack(PIECE, f.T)), on_stack(PIECE, f.T)
        noise = on_stack(COUNTERS, U32), on_stack(COUNTERS, U32), on_stack(KEYS, I64)
        begin_noise(f.draws, f, noise)
        begin_upstream(f.upstream, f, g)
        me = worker(f.header)
        start, stop = take(f.header, me)
        while start < stop:
            for unit in range(start, stop):
                where = unit_at(f, unit)
                size = where[3] * f.sizes.width
                mu, logvar = load_posterior(f, mu_s, logvar_s, where, v)
                load_prior(f.kl_form, f, prior, where, v)
                load_upstream(f.upstream, f, g, mask, where)
                dmu = array_at(place(f, dmu_s, f.dmu, where[1], where, v), size, f.T)
                dlogvar = array_at(place(f, dlogvar_s, f.dlogvar, where[1], where, v), size, f.T)
                gradients_of(f.draws, f, where, noise, rooms, mu, logvar, dmu, dlogvar, g, prior)
                store(f, dmu_s, f.dmu, where[1], where, v)
                store(f, dlogvar_s, f.dlogvar, where[1], where, v)
                store_prior(f.kl_form, f, prior, where)
            start, stop = take(f.header, me)

    return latent_backward
