"""Links: the mean of x as a function of the decoder's output a, and its derivative.

m, dm = link_at(f.link, a)
"""

from typing import Any

from ....plans import LINKS
from ...language.jit import by_constant, math_jit
from ...language.math import like, sigmoid, tanh


@math_jit
def identity_link(a: Any) -> Any:
    """The mean is a itself."""
    return a, like(a, 1)


@math_jit
def sigmoid_link(a: Any) -> Any:
    """The mean is in (0, 1)."""
    m = sigmoid(a)
    return m, m * (like(a, 1) - m)


@math_jit
def tanh_link(a: Any) -> Any:
    """The mean is in (-1, 1)."""
    m = tanh(a)
    return m, like(a, 1) - m * m


link_at = by_constant({LINKS["identity"]: identity_link, LINKS["sigmoid"]: sigmoid_link, LINKS["tanh"]: tanh_link})
