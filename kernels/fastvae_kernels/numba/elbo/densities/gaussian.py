"""Gaussian: log N(x; m, scale^2) with m = link(a).

r = (x - m) / scale        value = -r^2 / 2 - log_scale        d/dm = r / scale        d/dlog_scale = r^2 - 1
"""

from typing import Any

from ...language.jit import math_jit
from ...language.math import like, select
from .links import link_at


@math_jit
def gaussian(f: Any, x: Any, a: Any, scale: Any) -> Any:
    """The log density and its derivatives in a and log_scale."""
    m, dm = link_at(f.link, a)
    inverse, rest, log_scale = scale
    d = x - m
    zero = d == like(d, 0)  # not 0 * inf
    inverse, rest = select(zero, d, inverse), select(zero, d, rest)
    r = d * inverse * rest
    return like(r, -0.5) * (r * r) - log_scale, r * inverse * rest * dm, r * r - like(r, 1)
