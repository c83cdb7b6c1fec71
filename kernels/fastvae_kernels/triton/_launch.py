"""How Triton kernels are launched: on the tensors' device and torch's current stream, bound at the first launch.

Triton finds the compiled kernel of a call anew each time, at 10 to 20 us. Here the kernel is kept under what it was
compiled for: dtypes, alignment of addresses, constants. All integers and floats of a kernel are typed in its signature
and not specialised, so that there is nothing else to know. What divides them is said by a constant, V: rows are passed
in units of V elements.

    launch(kernel, programs, tensors, numbers, constants)

Counters: a kernel whose programs count themselves in at the end leaves its counter at zero, so that one of each stream
serves all launches there. While a CUDA graph is captured each launch gets one of its own, zeroed in the graph.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

INTERPRET = triton.knobs.runtime.interpret
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}
ALIGNMENT = 16  # bytes of the widest access
BIND = torch.version.hip is None  # there a kernel is compiled for the sizes of storages as well

_bound: dict[Any, Any] = {}
_counters: dict[Any, Tensor] = {}


def launch(
    kernel: Any,
    programs: int,
    tensors: Sequence[Tensor | None],
    numbers: Sequence[int | float],
    constants: Sequence[Any],
) -> None:
    """Run a kernel whose parameters are pointers, then numbers, then constants."""
    args = (*tensors, *numbers, *constants)
    if INTERPRET:
        kernel[(programs,)](*args)
        return
    device = next(t.device for t in tensors if t is not None)
    if device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            launch(kernel, programs, tensors, numbers, constants)
        return
    kinds = tuple([None if t is None else (t.dtype, t.data_ptr() % ALIGNMENT == 0) for t in tensors])
    key = kernel, device.index, kinds, tuple(constants)
    bound = _bound.get(key)
    if bound is None or not BIND or profiled():
        _bound[key] = kernel[(programs,)](*args, **options(torch.cuda.get_device_capability(device)))
        return
    stream = torch._C._cuda_getCurrentRawStream(device.index)
    bound.run(programs, 1, 1, stream, bound.function, bound.packed_metadata, None, None, None, *args)


def options(capability: tuple[int, int]) -> dict[str, Any]:
    """The compiler's. On an A100 it would put numbers aside to have a sixth block, which nobody needs there."""
    return {**OPTIONS, "maxnreg": 128} if capability == (8, 0) else OPTIONS


def profiled() -> bool:
    """Whether a profiler wants to know of launches: it is told by Triton's own way to a kernel."""
    hook = triton.knobs.runtime.launch_enter_hook
    return bool(getattr(hook, "calls", hook))


def counters(like: Tensor, count: int = 1) -> Tensor:
    """At least ``count`` int32 zeros on the device of a tensor, for one launch, which must leave them at zero."""
    if like.device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=like.device)
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=like.device)
    key = like.device.index, torch._C._cuda_getCurrentRawStream(like.device.index)
    known = _counters.get(key)
    if known is None or known.numel() < count:
        known = _counters[key] = torch.zeros(max(count, 1024), dtype=torch.int32, device=like.device)
    return known


def vector_width(sizes: Sequence[int], most: int = 16) -> int:
    """V: the largest power of two, at most 16, that divides all of them."""
    width = most
    while any(size % width for size in sizes):
        width //= 2
    return width


def tile(length: int, elements: int) -> tuple[int, int, int]:
    """``(R, C, chunks)``: tiles of R rows and C columns for rows of that length, which decides alone."""
    columns = min(triton.next_power_of_2(max(length, 16)), elements)
    return elements // columns, columns, max(1, -(-length // columns))
