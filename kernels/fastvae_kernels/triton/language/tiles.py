"""Tiles of R rows by C columns: how they are cut and read, and how programs' sums are added up.

R and C follow from the length of a row and the dtype alone, so that a row is always cut at the same places.

    partial sums    each program writes its own and counts itself in; the last to arrive adds them in index order, in
                    float64, and sets the counter back to zero

So one counter of each stream serves all launches there. While a CUDA graph is captured each launch gets one of its own,
zeroed in the graph.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import current_stream

TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
FINISH = tl.constexpr(1024)

_counters: dict[Any, Tensor] = {}


@triton.jit
def load_rows(pointer, n, row, first, cols, mask, T: tl.constexpr):
    """Elements first + cols of the int64 rows n, which lie ``row`` elements apart, [R, C] in the dtype T."""
    return tl.load(pointer + ((n * row)[:, None] + first + cols[None, :]), mask=mask, other=0).to(T)


@triton.jit
def total_of(partial, count):
    """The sum of ``count`` numbers that other programs wrote, in a fixed order, in float64."""
    o = tl.arange(0, FINISH)
    acc = tl.zeros([FINISH], tl.float64)
    for start in range(0, count, FINISH):
        i = start + o
        acc += tl.load(partial + i, mask=i < count, other=0.0, cache_modifier=".cg").to(tl.float64)
    return tl.sum(acc, 0)


def counters(like: Tensor, count: int = 1) -> Tensor:
    """At least ``count`` int32 zeros on the device of a tensor, for one launch, which must leave them at zero."""
    on_gpu = like.device.type == "cuda"
    if on_gpu and torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=like.device)
    key = like.device, current_stream(like.device.index) if on_gpu else 0
    known = _counters.get(key)
    if known is None or known.numel() < count:
        known = _counters[key] = torch.zeros(max(count, 1024), dtype=torch.int32, device=like.device)
    return known


def vector_width(sizes: Sequence[int]) -> int:
    """V: the largest power of two, at most 16, that divides all of them."""
    width = 16
    while any(size % width for size in sizes):
        width //= 2
    return width


def tile(length: int, elements: int) -> tuple[int, int, int]:
    """``(R, C, chunks)``: tiles of R rows and C columns for rows of that length, which decides alone."""
    if length >= 2**31:
        raise ValueError(f"a row has {length} elements; the Triton kernels take rows of fewer than 2^31")
    columns = min(triton.next_power_of_2(max(length, 16)), elements)
    return elements // columns, columns, max(1, -(-length // columns))
