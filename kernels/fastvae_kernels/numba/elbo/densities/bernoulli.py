"""Bernoulli with logit a: log p(x) for x = 0 or 1, and minus the cross-entropy for x between them.

s(a) = 1 / (1 + e^-a)        log s(a) = min(a, 0) - log1p(e^-|a|)
value = x log s(a) + (1 - x) log s(-a)        d/da = x - s(a)
"""

from typing import Any

from ...language.jit import math_jit
from ...language.math import exp, like, log1p, select, sigmoid


@math_jit
def bernoulli(f: Any, x: Any, a: Any, scale: Any) -> Any:
    """The log density and its derivative in a; there is neither a link nor a scale."""
    zero = like(a, 0)
    low, high = select(a < zero, a, zero), select(a > zero, -a, zero)
    value = x * low + (like(a, 1) - x) * high - log1p(exp(-abs(a)))
    return value, x - sigmoid(a), zero
