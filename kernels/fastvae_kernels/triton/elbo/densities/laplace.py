"""Laplace: log (e^(-|x - m| / scale) / (2 scale)) with m = link(a).

r = (x - m) / scale        value = -|r| - log_scale        d/dm = sign(r) / scale        d/dlog_scale = |r| - 1
"""

import triton
import triton.language as tl

from ...language.math import number, times
from .links import link_at


@triton.jit
def laplace(x, a, inverse, rest, log_scale, LINK: tl.constexpr):
    """The log density and its derivatives in a, 0 where x is m and NaN for NaN, and in log_scale."""
    m, dm = link_at(a, LINK)
    r = times(times(x - m, inverse), rest)
    size = tl.abs(r)
    slope = tl.where(size > 0, inverse * rest, size)  # this way round no GPU spills registers
    return -size - log_scale, tl.where(r < 0, -slope, slope) * dm, size - number(r, 1.0)
