"""Bernoulli with logit a: log p(x) for x = 0 or 1, and minus the cross-entropy for x between them.

s(a) = 1 / (1 + e^-a)        log s(a) = min(a, 0) - log1p(e^-|a|)
value = x log s(a) + (1 - x) log s(-a)        d/da = x - s(a)
"""

import triton
import triton.language as tl

from ...language.math import exp, log1p, number, sigmoid


@triton.jit
def bernoulli(x, a):
    """The log density and its derivative in a; there is neither a link nor a scale."""
    zero = number(a, 0.0)
    low, high = tl.where(a < zero, a, zero), tl.where(a > zero, -a, zero)
    value = x * low + (number(a, 1.0) - x) * high - log1p(exp(-tl.abs(a)))
    return value, x - sigmoid(a), zero
