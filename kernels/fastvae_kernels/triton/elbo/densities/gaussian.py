"""Gaussian: log N(x; m, scale^2) with m = link(a).

r = (x - m) / scale        value = -r^2 / 2 - log_scale        d/dm = r / scale        d/dlog_scale = r^2 - 1
"""

import triton
import triton.language as tl

from ...language.math import number
from .links import link_at


@triton.jit
def gaussian(x, a, inverse, rest, log_scale, LINK: tl.constexpr):
    """The log density and its derivatives in a and log_scale."""
    m, dm = link_at(a, LINK)
    d = x - m
    inverse, rest = tl.where(d == 0.0, d, inverse), tl.where(d == 0.0, d, rest)  # not 0 * inf
    r = d * inverse * rest
    return number(r, -0.5) * (r * r) - log_scale, r * inverse * rest * dm, r * r - number(r, 1.0)
