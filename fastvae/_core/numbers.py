"""What counts as a number among arguments, those of Python and of NumPy, but no bool; and what as a bool."""

from numbers import Integral, Real
from typing import Any

import numpy as np


def is_flag(value: Any) -> bool:
    """True or False."""
    return isinstance(value, bool | np.bool_)


def is_real(value: Any) -> bool:
    """A real number, an integer included."""
    return type(value) in (float, int) or (isinstance(value, Real) and not isinstance(value, bool))


def is_integer(value: Any) -> bool:
    """An integer."""
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))
