"""The KL of one latent element to the prior, its sums over rows and over the batch, and its upstream.

    kl_nl = 1/2 ((mu - mu_p)^2 e^-logvar_p + phi(logvar - logvar_p))            columns[l] = sum_n kl_nl

Free bits want the sums over the rows first. Traffic of these, elements: mu and logvar are read once, 2 N L. Layout: as
in `reparameterize.py`. Work unit: COLUMNS latent elements of all rows, added in order in float64.
Specification: fastvae/reference/elbo/formulas.py (kl_elements, kl_penalty)
"""

from functools import cache

from ..language.jit import Kernel, kernel, loop_jit, math_jit, outlined, unpack
from ..language.math import expm1, fma, half_exponentials, inverse_parts, like, times
from ..language.memory import F64, array_at, gather, item_size, number, on_stack, read, vector, weight_at, write
from ..language.threads import take, worker
from ..language.vector import lanes

COLUMNS = 64  # whole vectors
LATENT = "13q"  # four addresses, four strides between rows, N, L, K, rows of a unit, elements of a piece
COLUMN_SUMS = f"{LATENT} 1q"


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


@loop_jit
def fill_upstream(g, mask_s, width, n, rows, mask, kept, kept_row, kept_factor, raw, raw_row, raw_factor, T):
    """The upstream of each latent element's KL: that of the raw KL, and, where kept, that of the bound's term."""
    outlined()
    for i in range(rows):
        weight_kept = weight_at(kept, (n + i) * kept_row, kept_factor, T)
        weight_raw = weight_at(raw, (n + i) * raw_row, raw_factor, T)
        for j in range(i * width, (i + 1) * width):
            g[j] = weight_raw + (weight_kept if not mask or mask_s[j] != 0 else number(T))


@loop_jit
def finish(sums, kept_sums, neg_kl, kl, N, pieces, beta, floor, mean, per_row, T):
    """Add up the pieces of each row in index order, and the rows; ``floor`` is what free bits hold constant, or -1.

    Where only the sum over the batch is asked for, whole units take the place of rows.
    """
    outlined()
    raw, kept, size = array_at(sums, N * pieces, F64), array_at(kept_sums, N * pieces, F64), item_size(T)
    total, weighed = 0.0, 0.0
    for n in range(N):
        row, row_kept = 0.0, floor
        for piece in range(pieces):
            row += raw[n * pieces + piece]
            if floor >= 0:
                row_kept += kept[n * pieces + piece]
        if floor < 0:
            row_kept = row
        total += row
        weighed += row_kept
        if per_row:
            if kl:
                array_at(kl + n * size, 1, T)[0] = row
            array_at(neg_kl + n * size, 1, T)[0] = -beta * row_kept if beta != 0 else 0.0  # not 0 * inf
    if not per_row:
        if kl:
            array_at(kl, 1, T)[0] = total * mean
        array_at(neg_kl, 1, T)[0] = -beta * weighed * mean if beta != 0 else 0.0


@cache
def make_columns(M: int, T: int) -> Kernel:
    """The kernel that sums kl_nl over the rows, in order, for free bits: ``[L]`` in float64. Unit: some columns."""

    @kernel(COLUMN_SUMS)
    def kl_columns(block):
        (
            mu, logvar, mu_p, logvar_p, mu_row, logvar_row, mu_p_row, logvar_p_row, N, L, _k, _group, _piece, sums,
        ) = unpack(block, COLUMN_SUMS)  # fmt: skip
        v = vector(T)
        mu_s, logvar_s, mu_p_s, logvar_p_s = (
            on_stack(COLUMNS, T),
            on_stack(COLUMNS, T),
            on_stack(COLUMNS, T),
            on_stack(COLUMNS, T),
        )
        me = worker(block)
        start, stop = take(block, me)
        while start < stop:
            for unit in range(start, stop):
                first = unit * COLUMNS
                length = min(COLUMNS, L - first)
                total = array_at(sums + 8 * first, length, F64)
                for j in range(length):
                    total[j] = 0
                for n in range(N):
                    gather(mu_s, COLUMNS, mu, n, 1, mu_row, first, length, M, v)
                    gather(logvar_s, COLUMNS, logvar, n, 1, logvar_row, first, length, M, v)
                    if mu_p:
                        gather(mu_p_s, COLUMNS, mu_p, n, 1, mu_p_row, first, length, T, v)
                        gather(logvar_p_s, COLUMNS, logvar_p, n, 1, logvar_p_row, first, length, T, v)
                    for i in range(0, length, lanes(v)):
                        m, s = read(mu_s, i, v), read(logvar_s, i, v)
                        if mu_p:
                            write(mu_s, i, kl_element_to(m, s, read(mu_p_s, i, v), read(logvar_p_s, i, v)))
                        else:
                            write(mu_s, i, kl_element(m, half_exponentials(s)[2]))
                    for j in range(length):
                        total[j] += mu_s[j]
            start, stop = take(block, me)

    return kl_columns
