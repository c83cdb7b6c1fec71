"""The memory layout of the rows of a tensor: the order of its dims and the stride between rows, for all backends."""

import math
from typing import Any

import torch
from torch import Tensor


def compute_dtype(*values: Any) -> torch.dtype:
    """Return float64 if any of the tensors is float64, else float32."""
    for value in values:
        if isinstance(value, Tensor) and value.dtype is torch.float64:
            return torch.float64
    return torch.float32


class Rows:
    """Location of the rows of all tensors of one layout: each row is dense in memory, at a fixed stride from the next.

    ``order`` gives the event dims from the slowest-varying in memory to the fastest, or None if they already are in
    this order; so channels_last needs no copy. With ``draws`` there are K leading blocks of rows.
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
        """Return the tensor itself, or a copy with dense rows. The kernel takes the address of the result."""
        if self.as_it_is:
            return t
        return in_order(t.to(self.dtype), self.order).contiguous()


def memory_order(t: Tensor, event_dims: int) -> tuple[int, ...] | None:
    """Return the last ``event_dims`` dims from the slowest-varying in memory to the fastest.

    Return None if they are already in that order, the usual case.
    """
    if t.is_contiguous():
        return None
    strides = t.stride()[t.dim() - event_dims :]
    order = tuple(sorted(range(event_dims), key=lambda i: -strides[i]))
    return None if order == tuple(range(event_dims)) else order


def in_order(t: Tensor, order: tuple[int, ...] | None, *, back: bool = False) -> Tensor:
    """Return a view of t with its event dims in the given order; with ``back``, undo that order."""
    if order is None:
        return t
    if back:
        order = tuple(sorted(range(len(order)), key=order.__getitem__))
    lead = t.dim() - len(order)
    return t.permute(*range(lead), *(lead + i for i in order))
