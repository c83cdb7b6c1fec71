"""Tensors as kernels see them: addresses, strides and dtype codes, for unboxing an int is far cheaper than an array.

A kernel is compiled for dtype codes that it holds as constants, and makes its 1-D arrays itself:

    x = array_at(x_address, length, X)      # float32, float64, uint16 (the bits of bfloat16) or uint8 elements
    value = as_float(x[i])                  # float32 or float64
    store(x, i, value)                      # rounded to the element's dtype
"""

import ctypes
import mmap
import threading
from collections.abc import Sequence
from typing import Any

import torch
from numba import carray, types
from numba.extending import intrinsic, overload
from torch import Tensor

from ._jit import math_jit
from ._math import bf16_to_f32, f32_to_bf16, like

F32, F64, BF16, U8 = range(4)
CODES = {torch.float32: F32, torch.float64: F64, torch.bfloat16: BF16, torch.uint8: U8, torch.bool: U8}
ITEM_SIZES = {F32: 4, F64: 8, BF16: 2, U8: 1}


@intrinsic
def _f32_pointer(context: Any, address: Any) -> Any:
    return _pointer(types.float32, address)


@intrinsic
def _f64_pointer(context: Any, address: Any) -> Any:
    return _pointer(types.float64, address)


@intrinsic
def _u16_pointer(context: Any, address: Any) -> Any:
    return _pointer(types.uint16, address)


@intrinsic
def _u8_pointer(context: Any, address: Any) -> Any:
    return _pointer(types.uint8, address)


def _pointer(dtype: Any, address: Any) -> Any:
    signature = types.CPointer(dtype)(address)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


def array_at(address: int, length: int, code: int) -> Any:
    """The 1-D array of ``length`` elements at ``address``, of the dtype ``code``, a constant of the kernel."""
    raise NotImplementedError("for compiled code")


@overload(array_at, prefer_literal=True)
def _array_at(address, length, code):
    if not isinstance(code, types.IntegerLiteral):
        return None
    return {
        F32: lambda address, length, code: carray(_f32_pointer(address), length),
        F64: lambda address, length, code: carray(_f64_pointer(address), length),
        BF16: lambda address, length, code: carray(_u16_pointer(address), length),
        U8: lambda address, length, code: carray(_u8_pointer(address), length),
    }[code.literal_value]


def as_float(value: Any) -> Any:
    """An element as a number to compute with: float64 stays, everything else becomes float32."""
    raise NotImplementedError("for compiled code")


@overload(as_float)
def _as_float(value):
    if value == types.uint16:
        return lambda value: bf16_to_f32(value)
    if value == types.uint8:
        return lambda value: types.float32(value)
    return lambda value: value


def store(array: Any, i: int, value: Any) -> None:
    """array[i] = value, rounded to nearest even where the elements are bfloat16."""
    raise NotImplementedError("for compiled code")


@overload(store)
def _store(array, i, value):
    if array.dtype == types.uint16:

        def store_bf16(array, i, value):
            array[i] = f32_to_bf16(types.float32(value))

        return store_bf16

    def store_float(array, i, value):
        array[i] = value

    return store_float


@math_jit
def gather(scratch, width, address, first_row, rows, stride, first, length, item_bytes, code):
    """Copy ``rows`` pieces of ``length`` elements into a scratch of ``width`` a row, zeros behind them."""
    zero = like(scratch[0], 0)
    base = address + (first_row * stride + first) * item_bytes
    if stride == width and length == width:  # rows side by side, here and there: one long loop
        rows, length = 1, rows * length
    for i in range(rows):
        source = array_at(base + i * stride * item_bytes, length, code)
        target = scratch[i * width : i * width + length]
        for j in range(length):
            target[j] = as_float(source[j])
        for j in range(i * width + length, (i + 1) * width):
            scratch[j] = zero


@math_jit
def put(scratch, width, address, first_row, rows, stride, first, length, item_bytes, code):
    """Copy a scratch back: the reverse of `gather`."""
    base = address + (first_row * stride + first) * item_bytes
    if stride == width and length == width:
        rows, length = 1, rows * length
    for i in range(rows):
        target = array_at(base + i * stride * item_bytes, length, code)
        source = scratch[i * width : i * width + length]
        for j in range(length):
            store(target, j, source[j])


def weight_at(address: int, i: int, factor: float, code: int) -> Any:
    """``factor`` times element i of the upstream gradient at ``address``; at address 0 stands a 1."""
    raise NotImplementedError("for compiled code")


@overload(weight_at, prefer_literal=True)
def _weight_at(address, i, factor, code):
    if not isinstance(code, types.IntegerLiteral):
        return None
    dtype, item_bytes = (types.float64, 8) if code.literal_value == F64 else (types.float32, 4)

    def load(address, i, factor, code):
        return dtype(factor) * array_at(address + i * item_bytes, 1, code)[0] if address else dtype(factor)

    return load


LARGE = 4 << 20  # bytes, two huge pages and more
PAGE = mmap.PAGESIZE
_madvise = getattr(ctypes.CDLL(None), "madvise", None) if hasattr(mmap, "MADV_HUGEPAGE") else None


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """``torch.empty`` on the CPU, on huge pages where it is large and the system has them.

    Fresh memory is mapped at its first touch, page by page: that takes longer than to fill it, three times longer than
    the whole of a kernel that streams from memory.
    """
    t = torch.empty(shape, dtype=dtype)
    size = t.numel() * t.element_size()
    if size >= LARGE and _madvise is not None:
        start = -(-t.data_ptr() // PAGE) * PAGE
        _madvise(
            ctypes.c_void_p(start), ctypes.c_size_t(t.data_ptr() + size - start), mmap.MADV_HUGEPAGE
        )  # advice only
    return t


class _Scratch(threading.local):
    """Room for the partial sums of one call at a time in each thread, kept from call to call."""

    def __init__(self) -> None:
        self.room = torch.empty(4096, dtype=torch.float64)


_scratch = _Scratch()


def scratch(length: int) -> int:
    """The address of ``length`` float64 numbers that the next call in this thread may overwrite."""
    if _scratch.room.numel() < length:
        _scratch.room = torch.empty(length, dtype=torch.float64)
    return _scratch.room.data_ptr()


def compute_dtype(*values: Any) -> torch.dtype:
    """Float64 where one of the tensors is, else float32."""
    for value in values:
        if isinstance(value, Tensor) and value.dtype is torch.float64:
            return torch.float64
    return torch.float32


def dense_rows(t: Tensor, rows: int) -> tuple[Tensor, int]:
    """T with the elements of each row side by side in memory, copied only if need be, and the stride between rows."""
    if t.is_contiguous():
        return t, t.numel() // rows if rows else 0
    if t.dim() > 1 and rows and t[0].is_contiguous():
        return t, t.stride(0)
    t = t.contiguous()
    return t, t.numel() // rows if rows else 0


def memory_order(t: Tensor, event_dims: int) -> tuple[int, ...] | None:
    """The last ``event_dims`` dims from the slowest in memory to the fastest; None if they stand so, as mostly."""
    if t.is_contiguous():
        return None
    strides = t.stride()[t.dim() - event_dims :]
    order = tuple(sorted(range(event_dims), key=lambda i: -strides[i]))
    return None if order == tuple(range(event_dims)) else order


def in_order(t: Tensor, order: tuple[int, ...] | None, *, back: bool = False) -> Tensor:
    """A view of t with its event dims in that order, or back from it, so that channels_last needs no copy."""
    if order is None:
        return t
    if back:
        order = tuple(sorted(range(len(order)), key=order.__getitem__))
    lead = t.dim() - len(order)
    return t.permute(*range(lead), *(lead + i for i in order))
