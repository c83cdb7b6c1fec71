"""Type tests of arguments: numbers of Python and NumPy, bools excluded, and bools."""

from numbers import Integral, Real
from typing import Any

import numpy as np


def is_flag(value: Any) -> bool:
    """Whether the value is True or False."""
    return isinstance(value, bool | np.bool_)


def is_real(value: Any) -> bool:
    """Whether the value is a real number, integers included."""
    return type(value) in (float, int) or (isinstance(value, Real) and not isinstance(value, bool))


def is_integer(value: Any) -> bool:
    """Whether the value is an integer."""
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))
