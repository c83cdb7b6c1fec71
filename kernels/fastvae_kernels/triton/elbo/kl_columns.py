"""Sums of the KL over the rows, for free bits: Triton.

    columns[l] = sum_n kl_nl        kept[l] = columns[l] / N > lambda        floor = lambda (L - sum_l kept[l])

Traffic, elements: mu and logvar are read once, 2 N L. Work unit: a program takes tiles of R rows by C columns; the last
to arrive adds the programs' sums in index order, in float64.
Specification: fastvae/reference/elbo/formulas.py (kl_elements, kl_penalty)
"""

import triton
import triton.language as tl

from ..language.tiles import load_rows
from .kl import kl_element

COLUMN_ROWS, COLUMNS, ROW_BLOCKS = 16, 64, 64  # of a tile of column sums; how many sums a column at most


@triton.jit
def sum_tile(
    mu, logvar, mu_p, logvar_p, n, N, L, mu_row, logvar_row, mu_p_row, logvar_p_row, first, cols,
    T: tl.constexpr, PRIOR: tl.constexpr,
):  # fmt: skip
    """The sums of a tile over its rows n, [C]."""
    mask = (n < N)[:, None] & (first + cols < L)[None, :]
    m = load_rows(mu, n, mu_row, first, cols, mask, T)
    s = load_rows(logvar, n, logvar_row, first, cols, mask, T)
    m_p, s_p = m, s
    if PRIOR:
        m_p = load_rows(mu_p, n, mu_p_row, first, cols, mask, T)
        s_p = load_rows(logvar_p, n, logvar_p_row, first, cols, mask, T)
    return tl.sum(tl.where(mask, kl_element(m, s, m_p, s_p, PRIOR), 0.0).to(tl.float64), 0)


@triton.jit
def finish_columns(sums, kept, floor, blocks, columns, N, L, level, C: tl.constexpr):
    """Which latent elements have a batch mean above ``level``, and the level times how many have not."""
    below = tl.full((), 0.0, tl.float64)
    for j in range(columns):
        o = j * C + tl.arange(0, C)
        column = tl.zeros([C], tl.float64)
        for other in range(blocks):
            column += tl.load(sums + other * L + o, mask=o < L, other=0.0, cache_modifier=".cg")
        constant = (column / tl.maximum(N, 1) <= level) & (o < L)  # this way round NaN stays visible
        tl.store(kept + o, 1 - constant.to(tl.int8), mask=o < L)
        below += tl.sum(tl.where(constant, 1.0, 0.0).to(tl.float64), 0)
    tl.store(floor, level * below)


@triton.jit(do_not_specialize=["N", "L", "mu_row", "logvar_row", "mu_p_row", "logvar_p_row", "per"])
def kl_columns_kernel(
    mu, logvar, mu_p, logvar_p, lambda_, sums, kept, floor, counter,
    N: tl.int64, L: tl.int32,
    mu_row: tl.int64, logvar_row: tl.int64, mu_p_row: tl.int64, logvar_p_row: tl.int64, per: tl.int64,
    lambda_number: tl.float64, R: tl.constexpr, C: tl.constexpr, T: tl.constexpr, PRIOR: tl.constexpr,
):  # fmt: skip
    """The sums, and, by the last program to arrive, what free bits keep and hold constant."""
    columns = tl.maximum(tl.cdiv(L, C), 1)
    pid = tl.program_id(0)
    block, first, cols = pid // columns, (pid % columns) * C, tl.arange(0, C)
    acc = tl.zeros([C], tl.float64)
    for i in range(per):
        n = (block * per + i) * R + tl.arange(0, R).to(tl.int64)
        acc += sum_tile(
            mu, logvar, mu_p, logvar_p, n, N, L, mu_row, logvar_row, mu_p_row, logvar_p_row, first, cols, T, PRIOR
        )
    tl.store(sums + block * L + first + cols, acc, mask=first + cols < L)
    tl.debug_barrier()
    if tl.atomic_add(counter, 1) == tl.num_programs(0) - 1:
        level = tl.full((), lambda_number, tl.float64)
        if lambda_ is not None:
            level *= tl.load(lambda_).to(tl.float64)
        finish_columns(sums, kept, floor, tl.num_programs(0) // columns, columns, N, L, level, C)
        tl.store(counter, 0)
