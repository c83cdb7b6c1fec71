"""Draws from q(z|x) = N(mu, e^logvar), its KL to the prior, or both in one pass: Triton.

    z[k, n, l] = mu + e^(logvar/2) eps        kl_nl = 1/2 ((mu - mu_p)^2 e^-logvar_p + phi(logvar - logvar_p))

Traffic, elements: reads mu and logvar and writes z, (2 + K) N L. The noise is a function of (seed, row, draw, element)
and never stored. Floor: a device copy of as many bytes.
Layout and work unit: tiles, as in `likelihood_pass.py`; a Philox block is four neighbours in a row.
Specification: fastvae/reference/elbo/formulas.py (reparameterize, kl_elements, kl_penalty), noise.py
"""

import triton
import triton.language as tl

from ..language.math import exp, expm1, number, to_element
from ..language.tiles import load_rows, total_of
from .kl import kl_element, noise, weight_of

UNTYPED = ["N", "K", "LV", "chunks", "mu_row", "logvar_row", "mu_p_row", "logvar_p_row", "first_row", "rows"]


@triton.jit
def draw_tile(
    z, seed, m, s, n, N, K, LV, first_row, first, cols, mask,
    R: tl.constexpr, C: tl.constexpr, V: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Write all draws of a tile."""
    scale = exp(s * number(s, 0.5))
    word = tl.load(seed)
    for k in range(K):
        eps = noise(word, n + first_row, first, k, R, C, T)
        o = ((k * N + n) * LV * V)[:, None] + first + cols[None, :]
        tl.store(z + o, to_element(tl.fma(scale, eps, m), z), mask=mask)


@triton.jit
def kl_tile(
    m, s, mu_p, logvar_p, n, mu_p_row, logvar_p_row, first, cols, mask, T: tl.constexpr, PRIOR: tl.constexpr
):  # fmt: skip
    """The KL of each element of a tile, [R, C], 0 outside."""
    m_p, s_p = m, s
    if PRIOR:
        m_p = load_rows(mu_p, n, mu_p_row, first, cols, mask, T)
        s_p = load_rows(logvar_p, n, logvar_p_row, first, cols, mask, T)
    return tl.where(mask, kl_element(m, s, m_p, s_p, PRIOR), 0.0)


@triton.jit
def gradient_tile(
    dmu, dlogvar, m, s, n, LV, weight, mean, first, cols, mask, V: tl.constexpr, T: tl.constexpr, EACH: tl.constexpr
):  # fmt: skip
    """Write the gradients of minus the KL term, in final units, for the KL to N(0, I)."""
    g = weight.to(T)
    if not EACH:
        g = g * tl.full((), mean, T)
    o = (n * LV * V)[:, None] + first + cols[None, :]
    g_m, g_s = tl.where(g != 0, g * m, 0.0), tl.where(g != 0, g * expm1(s) * 0.5, 0.0)
    tl.store(dmu + o, to_element(g_m, dmu), mask=mask)
    tl.store(dlogvar + o, to_element(g_s, dlogvar), mask=mask)


@triton.jit
def put_rows(kl, neg_kl, n, raw, in_bound, weight, constant, live):
    """The KL of rows n, and the ELBO's term of it, where one tile holds a whole row."""
    if kl is not None:
        tl.store(kl + n, to_element(raw, kl), mask=live)
    bound = in_bound.to(tl.float64) + constant
    bound = tl.where(weight != 0.0, -weight * bound, 0.0)
    tl.store(neg_kl + n, to_element(bound, neg_kl), mask=live)


@triton.jit
def finish_tiles(
    kl, neg_kl, partial, counter, b, N, rows, chunks, weight, constant, mean, KEPT: tl.constexpr, EACH: tl.constexpr
):  # fmt: skip
    """The KL of row b, or of the batch, and the ELBO's term of it, by the last of its tiles to arrive."""
    tl.debug_barrier()
    count = rows * chunks
    if EACH:  # R is 1: the chunks of this row
        place, start, tiles, unit, constants = b, b * chunks, chunks, tl.full((), 1.0, tl.float64), constant
    else:
        place, start, tiles, unit, constants = 0, 0, count, tl.full((), mean, tl.float64), constant * N
    there = place < N if EACH else True  # an empty batch has one block and no row
    if tl.atomic_add(counter + place, 1) == tiles - 1:
        value = total_of(partial + start, tiles)
        if kl is not None:
            tl.store(kl + place, to_element(value * unit, kl), mask=there)
        if KEPT:
            value = total_of(partial + count + start, tiles) + constants
        value = tl.where(weight != 0.0, -weight * value * unit, 0.0)
        tl.store(neg_kl + place, to_element(value, neg_kl), mask=there)
        tl.store(counter + place, 0)


@triton.jit(do_not_specialize=UNTYPED)
def reparameterize_fwd_kernel(
    mu, logvar, mu_p, logvar_p, seed, beta, kept, floor, z, dmu, dlogvar, neg_kl, kl, partial, counter,
    N: tl.int64, K: tl.int32, LV: tl.int32, chunks: tl.int32,
    mu_row: tl.int64, logvar_row: tl.int64, mu_p_row: tl.int64, logvar_p_row: tl.int64, first_row: tl.int64,
    rows: tl.int64, beta_number: tl.float64, mean: tl.float64,
    R: tl.constexpr, C: tl.constexpr, V: tl.constexpr, T: tl.constexpr, PRIOR: tl.constexpr, SAMPLE: tl.constexpr,
    KL: tl.constexpr, KEPT: tl.constexpr, GRADIENT: tl.constexpr, EACH: tl.constexpr, CHUNKED: tl.constexpr,
):  # fmt: skip
    """Rows in units of V elements; ``rows`` is how many blocks of rows there are. EACH: a value for each row."""
    pid = tl.program_id(0)
    chunk, b = pid % chunks, (pid // chunks).to(tl.int64)
    first, L = chunk * C, LV * V
    cols = tl.arange(0, C)
    n = b * R + tl.arange(0, R).to(tl.int64)  # [R]
    live = n < N
    mask = live[:, None] & (first + cols < L)[None, :]  # [R, C]
    m = load_rows(mu, n, mu_row * V, first, cols, mask, T)
    s = load_rows(logvar, n, logvar_row * V, first, cols, mask, T)
    if SAMPLE:
        draw_tile(z, seed, m, s, n, N, K, LV, first_row, first, cols, mask, R, C, V, T)
    if KL:
        value = kl_tile(m, s, mu_p, logvar_p, n, mu_p_row * V, logvar_p_row * V, first, cols, mask, T, PRIOR)
        raw = tl.sum(value, 1)  # [R]
        weight, constant = weight_of(beta, beta_number), tl.full((), 0.0, tl.float64)
        in_bound = raw
        if KEPT:
            keep = tl.load(kept + first + cols, mask=first + cols < L, other=0) != 0
            in_bound = tl.sum(tl.where(keep[None, :], value, 0.0), 1)
            constant += tl.load(floor)
        if GRADIENT:
            gradient_tile(dmu, dlogvar, m, s, n, LV, weight, mean, first, cols, mask, V, T, EACH)
        if EACH and not CHUNKED:
            put_rows(kl, neg_kl, n, raw, in_bound, weight, constant, live)
        else:
            tl.store(partial + pid, tl.sum(raw, 0))
            if KEPT:
                tl.store(partial + rows * chunks + pid, tl.sum(in_bound, 0))
            finish_tiles(kl, neg_kl, partial, counter, b, N, rows, chunks, weight, constant, mean, KEPT, EACH)
