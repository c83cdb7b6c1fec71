"""How kernels find the rows of a tensor: which dims stand how in memory, for every backend."""

import math
from typing import Any

import torch
from torch import Tensor


def compute_dtype(*values: Any) -> torch.dtype:
    """Float64 where one of the tensors is, else float32."""
    for value in values:
        if isinstance(value, Tensor) and value.dtype is torch.float64:
            return torch.float64
    return torch.float32


class Rows:
    """How a kernel finds the rows of all tensors of one layout: each dense in memory, a fixed stride from the next.

    ``order`` are the event dims from the slowest in memory to the fastest, where they do not stand so: channels_last
    needs no copy. ``draws`` says that there are K leading blocks of rows.
    """

    __slots__ = ("as_it_is", "dense", "dtype", "order", "stride")

    def __init__(self, t: Tensor, dtype: torch.dtype, order: tuple[int, ...] | None = None, draws: bool = False):
        self.dtype, self.order = dtype, order
        rows = in_order(t, order)
        if draws and rows.shape[0] > 1 and rows.stride(0) != rows.shape[1] * rows.stride(1):
            self.dense = False
        else:
            one = rows[(0,) * (1 + draws)] if rows.numel() else rows
            self.dense = one.is_contiguous()
        self.as_it_is = self.dense and t.dtype in (dtype, torch.bool)
        width = math.prod(rows.shape[1 + draws :])
        self.stride = rows.stride(int(draws)) if self.as_it_is and t.dim() > draws else width

    def of(self, t: Tensor) -> Tensor:
        """The tensor itself, or a copy whose rows are dense; its address is what the kernel takes."""
        if self.as_it_is:
            return t
        return in_order(t.to(self.dtype), self.order).contiguous()


def memory_order(t: Tensor, event_dims: int) -> tuple[int, ...] | None:
    """The last ``event_dims`` dims from the slowest in memory to the fastest; None if they stand so, as mostly."""
    if t.is_contiguous():
        return None
    strides = t.stride()[t.dim() - event_dims :]
    order = tuple(sorted(range(event_dims), key=lambda i: -strides[i]))
    return None if order == tuple(range(event_dims)) else order


def in_order(t: Tensor, order: tuple[int, ...] | None, *, back: bool = False) -> Tensor:
    """A view of t with its event dims in that order, or back from it."""
    if order is None:
        return t
    if back:
        order = tuple(sorted(range(len(order)), key=order.__getitem__))
    lead = t.dim() - len(order)
    return t.permute(*range(lead), *(lead + i for i in order))
