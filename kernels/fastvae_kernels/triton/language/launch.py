"""How Triton kernels are launched: on the tensors' device and torch's current stream, bound at the first launch.

Triton finds the compiled kernel of a call anew each time, at 10 to 20 us. Here the kernel is kept under what it was
compiled for: dtypes, alignment of addresses, constants. All integers and floats of a kernel are typed in its signature
and not specialised, so that there is nothing else to know. What divides them is said by a constant, V: rows are passed
in units of V elements.

    launch(kernel, programs, tensors, numbers, constants)
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ...private import find


@triton.jit
def nothing():
    """Do nothing: its type says what `triton.jit` makes here."""


RUNTIME = getattr(getattr(triton, "knobs", None), "runtime", None)
INTERPRET = bool(find("triton.knobs.runtime.interpret", type(nothing).__name__ == "InterpretedFunction"))
current_stream = find("torch._C._cuda_getCurrentRawStream", lambda index: torch.cuda.current_stream(index).cuda_stream)
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}
ALIGNMENT = 16  # bytes of the widest access
BIND = torch.version.hip is None  # there a kernel is compiled for the sizes of storages as well
BOUND = "run", "function", "packed_metadata"  # what is taken from a compiled kernel

_bound: dict[Any, Any] = {}


def launch(
    kernel: Any,
    programs: int,
    tensors: Sequence[Tensor | None],
    numbers: Sequence[int | float],
    constants: Sequence[Any],
) -> None:
    """Run a kernel whose parameters are pointers, then numbers, then constants."""
    global BIND
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
        compiled = kernel[(programs,)](*args, **options(torch.cuda.get_device_capability(device)))
        if all(hasattr(compiled, name) for name in BOUND):
            _bound[key] = compiled
        return
    stream = current_stream(device.index)
    try:
        bound.run(programs, 1, 1, stream, bound.function, bound.packed_metadata, None, None, None, *args)
    except TypeError:  # it takes other arguments than in Triton 3.6 to 3.9: nothing was launched
        BIND = False
        launch(kernel, programs, tensors, numbers, constants)


def options(capability: tuple[int, int]) -> dict[str, Any]:
    """The compiler's. On an A100 it would put numbers aside to have a sixth block, which nobody needs there."""
    return {**OPTIONS, "maxnreg": 128} if capability == (8, 0) else OPTIONS


def profiled() -> bool:
    """Whether a profiler wants to know of launches: it is told by Triton's own way to a kernel."""
    hook = getattr(RUNTIME, "launch_enter_hook", None)  # set, or not, when a profiler begins
    return bool(getattr(hook, "calls", hook))


def as_pointer(value: Any, device: torch.device) -> tuple[Tensor | None, float]:
    """A tensor there and 1, or nothing and a number, whose product is the value: nobody waits for the GPU."""
    if isinstance(value, Tensor) and value.device == device:
        return value, 1.0
    return None, float(value)
