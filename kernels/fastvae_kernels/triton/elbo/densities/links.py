"""Links: the mean of x as a function of the decoder's output a, and its derivative."""

import triton
import triton.language as tl

from ....plans import LINKS
from ...language.math import number, sigmoid, tanh

SIGMOID, TANH = tl.constexpr(LINKS["sigmoid"]), tl.constexpr(LINKS["tanh"])  # what is left is the identity


@triton.jit
def link_at(a, LINK: tl.constexpr):
    """The mean at a, and its derivative."""
    if LINK == SIGMOID:
        m = sigmoid(a)
        return m, m * (number(a, 1.0) - m)
    elif LINK == TANH:
        m = tanh(a)
        return m, number(a, 1.0) - m * m
    else:
        return a, number(a, 1.0)
