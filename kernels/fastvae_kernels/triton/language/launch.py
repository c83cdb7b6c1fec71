"""Launches of Triton kernels: on the tensors' device and torch's current stream, bound at the first launch.

Triton looks up the compiled kernel of each call, which takes 10 to 20 us. Here a compiled kernel is stored under the
properties that it was compiled for: dtypes, alignment of addresses, constants. All integers and floats of a kernel are
typed in its signature and not specialized, so nothing else matters. Divisibility of row lengths is expressed by a
constant, V: they are passed in units of V elements.

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
    """Do nothing; the type of this object tells whether `triton.jit` compiles or interprets."""


RUNTIME = getattr(getattr(triton, "knobs", None), "runtime", None)
INTERPRET = bool(find("triton.knobs.runtime.interpret", type(nothing).__name__ == "InterpretedFunction"))
current_stream = find("torch._C._cuda_getCurrentRawStream", lambda index: torch.cuda.current_stream(index).cuda_stream)
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}
ALIGNMENT = 16  # bytes of the widest access
BIND = torch.version.hip is None  # on HIP, kernels are specialized on the sizes of storages as well
BOUND = "run", "function", "packed_metadata"  # the attributes of a compiled kernel that a bound launch uses

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
    except TypeError:  # `run` takes other arguments than in Triton 3.6 to 3.9: nothing was launched
        BIND = False
        launch(kernel, programs, tensors, numbers, constants)


def options(capability: tuple[int, int]) -> dict[str, Any]:
    """Return the compiler options.

    On an A100 the compiler would otherwise spill registers to fit a sixth block, which is not needed there.
    """
    return {**OPTIONS, "maxnreg": 128} if capability == (8, 0) else OPTIONS


def profiled() -> bool:
    """Return whether a profiler observes launches: only Triton's own launch path notifies it."""
    hook = getattr(RUNTIME, "launch_enter_hook", None)  # may change when a profiler starts
    return bool(getattr(hook, "calls", hook))


def as_pointer(value: Any, device: torch.device) -> tuple[Tensor | None, float]:
    """Return the value as a tensor on the device and the factor 1, or as None and a number, without synchronization."""
    if isinstance(value, Tensor) and value.device == device:
        return value, 1.0
    return None, float(value)
