"""The KL of one latent element to the prior, and its upstream; noise. For the kernels of latents. Triton.

    kl_nl = 1/2 ((mu - mu_p)^2 e^-logvar_p + phi(logvar - logvar_p))

Specification: fastvae/reference/elbo/formulas.py (kl_elements, kl_penalty), noise.py
"""

import triton
import triton.language as tl

from ..language.math import exp, inverse_parts, normal4, number, phi, times
from ..language.tiles import load_rows


@triton.jit
def kl_element(mu, logvar, mu_p, logvar_p, PRIOR: tl.constexpr):
    """KL of one latent element to the prior's, or to N(0, 1)."""
    if PRIOR:
        root = exp(number(mu, -0.25) * logvar_p)  # twice: the whole may overflow; `inverse_parts` spills on one GPU
        r = times(times(mu - mu_p, root), root)
        return number(mu, 0.5) * (r * r + phi(logvar - logvar_p))
    else:
        return number(mu, 0.5) * (mu * mu + phi(logvar))


@triton.jit
def kl_slopes(m, s, mu_p, logvar_p, n, mu_p_row, logvar_p_row, first, cols, mask, T: tl.constexpr, PRIOR: tl.constexpr):
    """The derivative of kl_nl in mu; the t of that in logvar, expm1(t) / 2; and, with a prior, half the square of the
    difference of the means in the prior's deviations.
    """
    t, slope, half_square = s, m, m
    if PRIOR:
        m_p = load_rows(mu_p, n, mu_p_row, first, cols, mask, T)
        s_p = load_rows(logvar_p, n, logvar_p_row, first, cols, mask, T)
        t = s - s_p
        one, two = inverse_parts(s_p * number(s, 0.5))  # two factors of 1 / the prior's deviation
        r = times(times(m - m_p, one), two)
        slope, half_square = times(times(r, one), two), r * r * 0.5
    return slope, t, half_square


@triton.jit
def weight_of(beta, beta_number):
    """Beta: a number, times what a tensor holds."""
    value = tl.full((), beta_number, tl.float64)
    if beta is not None:
        value *= tl.load(beta).to(tl.float64)
    return value


@triton.jit
def noise(seed, n, first, k, R: tl.constexpr, C: tl.constexpr, T: tl.constexpr):
    """Standard normals [R, C] of int64 rows n, from latent element ``first`` on."""
    block = first // 4 + tl.arange(0, C // 4)
    row = n[:, None] + tl.zeros([R, C // 4], tl.int64)
    block = block[None, :] + tl.zeros([R, C // 4], tl.int32)
    draw = k + tl.zeros([R, C // 4], tl.int32)
    e0, e1, e2, e3 = normal4(seed, block, draw, row, T)
    return tl.interleave(tl.interleave(e0, e2), tl.interleave(e1, e3))
