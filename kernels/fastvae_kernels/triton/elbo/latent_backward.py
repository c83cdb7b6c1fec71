"""The way back through draws and the KL: Triton.

    dmu = sum_k dz + g (mu - mu_p) e^-logvar_p          g[n, l] is the upstream of kl_nl: of its part in the bound,
    dlogvar = 1/2 e^(logvar/2) sum_k dz eps + 1/2 g expm1(logvar - logvar_p)        where free bits keep it, and raw

Traffic, elements: reads mu, logvar and dz and writes two gradients, (4 + K) N L; the noise is made again. Floor: a
device copy of as many bytes. Layout and work unit: tiles, as in `likelihood_pass.py`.
Specification: fastvae/reference/elbo/formulas.py (reparameterize, kl_elements, kl_penalty), noise.py
"""

import triton
import triton.language as tl

from ..language.math import exp, expm1, number, to_element
from ..language.tiles import load_rows
from .kl import kl_slopes, noise, weight_of
from .sample_pass import UNTYPED

UNTYPED_BACK = [*UNTYPED, "kept_row", "raw_row"]


@triton.jit
def through_draws(
    dz, seed, s, n, N, K, L, first_row, first, cols, mask, R: tl.constexpr, C: tl.constexpr, T: tl.constexpr
):  # fmt: skip
    """The gradients of a tile from those of its draws."""
    g_m, g_s = tl.zeros([R, C], T), tl.zeros([R, C], T)
    word = tl.load(seed)
    for k in range(K):
        eps = noise(word, n + first_row, first, k, R, C, T)
        d = load_rows(dz, k * N + n, L, first, cols, mask, T)
        g_m += d
        g_s = tl.fma(d, eps, g_s)
    return g_m, g_s * exp(s * number(s, 0.5)) * 0.5


@triton.jit
def upstream_tile(
    dneg_kl, dkl, beta, kept, n, L, kept_row, raw_row, beta_number, mean, first, cols, live,
    R: tl.constexpr, C: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """The upstream of each element's KL: that of the bound's term, where kept, and that of the raw KL."""
    g = tl.zeros([R, C], T)
    if dneg_kl is not None:
        unit = -weight_of(beta, beta_number) * tl.full((), mean, tl.float64)
        w = tl.load(dneg_kl + n * kept_row, mask=live, other=0.0).to(T) * unit.to(T)
        g += w[:, None]
        if kept is not None:
            keep = tl.load(kept + first + cols, mask=first + cols < L, other=0) != 0
            g = tl.where(keep[None, :], g, 0.0)
    if dkl is not None:
        g += (tl.load(dkl + n * raw_row, mask=live, other=0.0).to(T) * tl.full((), mean, T))[:, None]
    return g


@triton.jit(do_not_specialize=UNTYPED_BACK)
def reparameterize_bwd_kernel(
    mu, logvar, mu_p, logvar_p, seed, beta, kept, dz, dneg_kl, dkl, dmu, dlogvar, dmu_p, dlogvar_p,
    N: tl.int64, K: tl.int32, LV: tl.int32, chunks: tl.int32,
    mu_row: tl.int64, logvar_row: tl.int64, mu_p_row: tl.int64, logvar_p_row: tl.int64, first_row: tl.int64,
    kept_row: tl.int32, raw_row: tl.int32, beta_number: tl.float64, mean: tl.float64,
    R: tl.constexpr, C: tl.constexpr, V: tl.constexpr, T: tl.constexpr, PRIOR: tl.constexpr,
):  # fmt: skip
    """What there is no upstream of is None. Rows in units of V elements."""
    pid = tl.program_id(0)
    chunk, b = pid % chunks, (pid // chunks).to(tl.int64)
    first, L = chunk * C, LV * V
    cols = tl.arange(0, C)
    n = b * R + tl.arange(0, R).to(tl.int64)  # [R]
    live = n < N
    mask = live[:, None] & (first + cols < L)[None, :]  # [R, C]
    m = load_rows(mu, n, mu_row * V, first, cols, mask, T)
    s = load_rows(logvar, n, logvar_row * V, first, cols, mask, T)
    out = (n * LV * V)[:, None] + first + cols[None, :]
    g_m, g_s = tl.zeros([R, C], T), tl.zeros([R, C], T)
    if dz is not None:
        g_m, g_s = through_draws(dz, seed, s, n, N, K, L, first_row, first, cols, mask, R, C, T)
    if dneg_kl is not None or dkl is not None:
        g = upstream_tile(
            dneg_kl, dkl, beta, kept, n, L, kept_row, raw_row, beta_number, mean, first, cols, live, R, C, T
        )
        slope, t, half_square = kl_slopes(
            m, s, mu_p, logvar_p, n, mu_p_row * V, logvar_p_row * V, first, cols, mask, T, PRIOR
        )
        through_mu = tl.where(g != 0.0, g * slope, 0.0)  # not 0 * inf
        through_logvar = tl.where(g != 0.0, g * expm1(t) * 0.5, 0.0)
        g_m += through_mu
        g_s += through_logvar
        if PRIOR:
            tl.store(dmu_p + out, -through_mu, mask=mask)
            through_square = tl.where(g != 0.0, g * half_square, 0.0)
            tl.store(dlogvar_p + out, -(through_square + through_logvar), mask=mask)
    elif PRIOR:
        tl.store(dmu_p + out, tl.zeros([R, C], T), mask=mask)
        tl.store(dlogvar_p + out, tl.zeros([R, C], T), mask=mask)
    tl.store(dmu + out, to_element(g_m, dmu), mask=mask)
    tl.store(dlogvar + out, to_element(g_s, dlogvar), mask=mask)
