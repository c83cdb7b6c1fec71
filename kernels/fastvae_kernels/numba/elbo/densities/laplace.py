"""Laplace: log (e^(-|x - m| / scale) / (2 scale)) with m = link(a).

r = (x - m) / scale        value = -|r| - log_scale        d/dm = sign(r) / scale        d/dlog_scale = |r| - 1
"""

from typing import Any

from ...language.jit import math_jit
from ...language.math import like, select, times
from .links import link_at


@math_jit
def laplace(f: Any, x: Any, a: Any, scale: Any) -> Any:
    """The log density and its derivatives in a, 0 where x is m and NaN for NaN, and in log_scale."""
    m, dm = link_at(f.link, a)
    inverse, rest, log_scale = scale
    r = times(times(x - m, inverse), rest)
    size, zero = abs(r), like(r, 0)
    slope = select(size > zero, inverse * rest, size)
    return -size - log_scale, select(r < zero, -slope, slope) * dm, size - like(r, 1)
