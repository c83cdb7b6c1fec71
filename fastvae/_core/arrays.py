"""NumPy arrays and torch tensors, for functions that accept both and return the type they were given."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastvae_kernels.private import find

from .checks import check_dense, check_device, describe

FLOATS = (torch.float32, torch.float64)
is_zero = find("torch.Tensor._is_zerotensor", lambda _: False)


def is_lazy(t: Tensor) -> bool:
    """Whether a tensor's memory does not hold its values: torch has deferred a negation, or the filling with zeros."""
    return t.is_neg() or is_zero(t)


def materialize(t: Any) -> Any:
    """A tensor whose memory holds its values; anything else is returned unchanged."""
    return t.clone() if isinstance(t, Tensor) and is_lazy(t) else t


def as_tensor(name: str, value: Any) -> Tensor:
    """A tensor that shares the memory of a NumPy array, memory-mapped and read-only ones included; or the tensor."""
    if isinstance(value, Tensor):
        check_dense(name, value)
        return materialize(value)
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array or a torch.Tensor, got {describe(value)}")
    if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
        raise TypeError(f"{name} must be an array of real numbers, got one of dtype {value.dtype}")
    if not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    if not value.flags.aligned or any(s < 0 or s % value.itemsize for s in value.strides):
        value = np.ascontiguousarray(value)  # torch does not support such strides
    if not value.flags.writeable:
        value = np.asarray(_Writeable(value))
    return torch.from_numpy(value)


def as_floating(name: str, value: Any) -> Tensor:
    """`as_tensor` in float32 or float64; integers and bools become float64."""
    t = as_tensor(name, value)
    if t.dtype in FLOATS:
        return t
    if t.is_floating_point() or t.is_complex() or t.is_quantized:
        raise TypeError(f"{name} must be float32, float64, integer or bool, got {describe(t)}")
    return t.to(torch.float64)


def as_operand(name: str, value: Any, device: torch.device, of: str) -> Tensor:
    """`as_tensor` in float64, checked to be on the device of the argument named ``of``."""
    t = as_floating(name, value)
    check_device(name, t, device, of)
    return t.to(torch.float64)


def as_output(t: Tensor, numpy: bool) -> Any:
    """The tensor, or a NumPy array that shares its memory; a NumPy scalar if it is 0-d."""
    return t.numpy()[()] if numpy else t


class _Writeable:
    """Present a read-only array as writeable: torch warns otherwise, and nothing here writes to its arguments."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array  # kept alive
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}
