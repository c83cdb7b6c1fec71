"""Tiles of R rows by C columns: how rows are split and read, and how the sums of programs are added.

R and C follow from the row length and the dtype alone, so that a row is always split at the same places.

    partial sums    each program writes its own and increments a counter; the last one adds them in index order, in
                    float64, and resets the counter to zero

One counter per stream therefore serves all launches on it. While a CUDA graph is captured, each launch gets its own
counter, zeroed in the graph.
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
    """Load elements first + cols of the int64 rows n, which are ``row`` elements apart: [R, C] in the dtype T."""
    return tl.load(pointer + ((n * row)[:, None] + first + cols[None, :]), mask=mask, other=0).to(T)


@triton.jit
def total_of(partial, count):
    """Return the sum of ``count`` numbers that other programs wrote, in a fixed order, in float64."""
    o = tl.arange(0, FINISH)
    acc = tl.zeros([FINISH], tl.float64)
    for start in range(0, count, FINISH):
        i = start + o
        acc += tl.load(partial + i, mask=i < count, other=0.0, cache_modifier=".cg").to(tl.float64)
    return tl.sum(acc, 0)


def counters(like: Tensor, count: int = 1) -> Tensor:
    """Return at least ``count`` int32 zeros on the device of a tensor for one launch, which must leave them at zero."""
    on_gpu = like.device.type == "cuda"
    if on_gpu and torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=like.device)
    key = like.device, current_stream(like.device.index) if on_gpu else 0
    known = _counters.get(key)
    if known is None or known.numel() < count:
        known = _counters[key] = torch.zeros(max(count, 1024), dtype=torch.int32, device=like.device)
    return known


def vector_width(sizes: Sequence[int]) -> int:
    """Return V, the largest power of two, at most 16, that divides all sizes."""
    width = 16
    while any(size % width for size in sizes):
        width //= 2
    return width


def tile(length: int, elements: int) -> tuple[int, int, int]:
    """Return ``(R, C, chunks)``: tiles of R rows and C columns, and the number of tiles along a row of that length."""
    if length >= 2**31:
        raise ValueError(f"a row has {length} elements; the Triton kernels take rows of fewer than 2^31")
    columns = min(triton.next_power_of_2(max(length, 16)), elements)
    return elements // columns, columns, max(1, -(-length // columns))
