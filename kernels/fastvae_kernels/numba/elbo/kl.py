"""The KL of one latent element to the prior, its derivatives, and its sums over rows and over the batch.

    kl_nl = 1/2 ((mu - mu_p)^2 e^-logvar_p + phi(logvar - logvar_p))

For `kl_pass.py`, `sample_pass.py` and `latent_backward.py`, which say what they move.
Specification: fastvae/reference/elbo/formulas.py (kl_elements, kl_penalty)
"""

from ..language.jit import by_constant, loop_jit, math_jit, outlined
from ..language.math import expm1, fma, half_exponentials, inverse_parts, like, select, times
from ..language.memory import F64, U8, array_at, gather, number, read, sum_of, vector, write
from ..language.vector import lanes, total
from .pieces import BATCH, KEPT, NO_KL, NO_SUMS, PIECE, PRIOR, ROWS, STANDARD
from .upstream import upstream_at


@math_jit
def kl_element(d, half_phi):
    """kl_nl, with d the difference of the means in the prior's deviations."""
    return fma(like(d, 0.5) * d, d, half_phi)


@math_jit
def kl_element_to(mu, logvar, mu_p, logvar_p):
    """kl_nl to a prior."""
    first, second = inverse_parts(like(mu, 0.5) * logvar_p)
    return kl_element(times(times(mu - mu_p, first), second), half_exponentials(logvar - logvar_p)[2])


@math_jit
def kl_slopes_to(d, logvar, logvar_p):
    """The derivatives of kl_nl to a prior in mu and in logvar, and half the square of d in the prior's deviations; d is
    the difference of the means.
    """
    (first, second), half = inverse_parts(like(d, 0.5) * logvar_p), like(d, 0.5)
    r = times(times(d, first), second)
    return times(times(r, first), second), half * expm1(logvar - logvar_p), half * r * r


@math_jit
def keep_nothing(kl, i, value):
    """Of the batch alone, a sum in registers is enough."""


@math_jit
def keep(kl, i, value):
    """For the sums over rows."""
    write(kl, i, value)


keep_kl = by_constant({BATCH: keep_nothing, ROWS: keep, KEPT: keep})


@math_jit
def without_kl(f, kl, prior, i, m, s, half_phi, sum_):
    """Draws alone need no phi, a fifth of their time."""
    return sum_


@math_jit
def with_kl_to_standard(f, kl, prior, i, m, s, half_phi, sum_):
    """kl_nl to N(0, 1)."""
    value = kl_element(m, half_phi)
    keep_kl(f.sums, kl, i, value)
    return sum_ + value


@math_jit
def with_kl_to_prior(f, kl, prior, i, m, s, half_phi, sum_):
    """kl_nl to N(mu_p, e^logvar_p)."""
    value = kl_element_to(m, s, read(prior[0], i, m), read(prior[1], i, m))
    keep_kl(f.sums, kl, i, value)
    return sum_ + value


# Keep the KL of elements i, i + 1, ... for the sums over rows, and give the sum over the unit with it added.
add_kl = by_constant({NO_KL: without_kl, STANDARD: with_kl_to_standard, PRIOR: with_kl_to_prior})


@math_jit
def sum_nothing(f, unit, where, kl, mask, sum_):
    """There is no KL."""


@math_jit
def sum_whole(f, unit, where, kl, mask, sum_):
    """Write the sum over the unit: between short rows stand zeros, and behind the last one."""
    array_at(f.values.partial, unit + 1, F64)[unit] = total(sum_)


@loop_jit
def sum_rows(f, unit, where, kl, mask, sum_):
    """Write the sums over each row of the unit."""
    outlined()
    _, n, length, rows = where
    pieces = f.sizes.pieces
    sums, at = array_at(f.values.partial, f.sizes.N * pieces, F64), n * pieces + unit % pieces
    for i in range(rows):
        sums[at + i * pieces] = sum_of(kl, i * f.sizes.width, length, vector(f.T))


@loop_jit
def sum_kept_rows(f, unit, where, kl, mask, sum_):
    """The same, and besides the sums of what free bits keep of each row."""
    outlined()
    first, n, length, rows = where
    width, pieces, v = f.sizes.width, f.sizes.pieces, vector(f.T)
    count, at = f.sizes.N * pieces, n * pieces + unit % pieces
    sums = array_at(f.values.partial, 2 * count, F64)
    for i in range(rows):
        sums[at + i * pieces] = sum_of(kl, i * width, length, v)
    gather(mask, width, f.values.mask, 0, rows, 0, first, length, U8, v)
    for i in range(0, rows * width, lanes(v)):
        write(kl, i, select(read(mask, i, v) != like(v, 0), read(kl, i, v), like(v, 0)))
    for i in range(rows):
        sums[count + at + i * pieces] = sum_of(kl, i * width, length, v)


sum_unit = by_constant({NO_SUMS: sum_nothing, BATCH: sum_whole, ROWS: sum_rows, KEPT: sum_kept_rows})


@math_jit
def sum_in_order(sums, first, count, start):
    """``start`` and so many sums, in index order."""
    for i in range(first, first + count):
        start += sums[i]
    return start


@math_jit
def finish_nothing(f):
    """There is no KL."""


@math_jit
def put_batch(f, kl, kept):
    """The KL of the batch, and the ELBO's term of it."""
    mean, beta = f.sizes.mean, f.values.beta
    if f.values.kl:
        array_at(f.values.kl, 1, f.T)[0] = kl * mean
    array_at(f.values.neg_kl, 1, f.T)[0] = -beta * kept * mean if beta != 0 else 0.0  # not 0 * inf


@loop_jit
def finish_batch(f):
    """Add up the units in index order."""
    outlined()
    units = max(1, -(-f.sizes.N // f.sizes.group)) * f.sizes.pieces
    of_all = sum_in_order(array_at(f.values.partial, units, F64), 0, units, 0.0)
    put_batch(f, of_all, of_all)


@loop_jit
def finish_rows(f):
    """Add up the pieces of each row in index order, and the rows."""
    outlined()
    N, pieces, beta = f.sizes.N, f.sizes.pieces, f.values.beta
    sums, of_all, kept_of_all = array_at(f.values.partial, 2 * N * pieces, F64), 0.0, 0.0
    kl, neg_kl = array_at(f.values.kl, N, f.T), array_at(f.values.neg_kl, N, f.T)
    for n in range(N):
        row = sum_in_order(sums, n * pieces, pieces, 0.0)
        kept = sum_in_order(sums, (N + n) * pieces, pieces, f.values.floor) if f.sums == KEPT else row
        of_all += row
        kept_of_all += kept
        if f.sizes.mean == 0:
            if f.values.kl:
                kl[n] = row
            neg_kl[n] = -beta * kept if beta != 0 else 0.0
    if f.sizes.mean != 0:
        put_batch(f, of_all, kept_of_all)


finish = by_constant({NO_SUMS: finish_nothing, BATCH: finish_batch, ROWS: finish_rows, KEPT: finish_rows})


# Upstreams of the KL: none, one number for all elements, or one of each row, or where free bits keep the element.
NO_UPSTREAM, NUMBER, EACH = range(3)


@math_jit
def no_number(f, g):
    """The upstream is none, or follows unit by unit."""


@math_jit
def one_number(f, g):
    """The upstream of every element: that of the raw KL and that of the bound's term."""
    weight = upstream_at(f, f.raw, 0) + upstream_at(f, f.kept, 0)
    for j in range(PIECE):
        g[j] = weight


@math_jit
def loaded(f, g, mask, where):
    """The upstream is none, or there already."""


@loop_jit
def of_each_element(f, g, mask, where):
    """The upstream of each element of a unit: that of the raw KL, and, where kept, that of the bound's term."""
    outlined()
    first, n, length, rows = where
    width = f.sizes.width
    if f.mask:
        gather(mask, width, f.mask, 0, rows, 0, first, length, U8, vector(f.T))
    for i in range(rows):
        weight_kept, weight_raw = upstream_at(f, f.kept, n + i), upstream_at(f, f.raw, n + i)
        for j in range(i * width, (i + 1) * width):
            g[j] = weight_raw + (weight_kept if not f.mask or mask[j] != 0 else number(f.T))


begin_upstream = by_constant({NO_UPSTREAM: no_number, NUMBER: one_number, EACH: no_number})
load_upstream = by_constant({NO_UPSTREAM: loaded, NUMBER: loaded, EACH: of_each_element})
