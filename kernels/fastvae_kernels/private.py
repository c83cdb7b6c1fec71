"""The private names of torch, Triton and Numba that fastvae relies on, and the fallback where one is missing.

Any release may remove a private name. The table below lists every one that is used; a test checks that it is complete.
Where a name is missing, a slower path is taken, and no result changes. `fastvae.show_config` prints the missing names.

    find("torch._C._len_torch_dispatch_stack", instead)    # the object of that name, or ``instead`` if there is none
    missing("numba")                                       # the names of the table that the package does not have
"""

import importlib
from functools import cache
from typing import Any

import torch

from .undisturbed import undisturbed

NO_TRACE_CHECK = "fastvae cannot tell whether a call is traced: every call takes the reference"
NO_REUSE = "memory of large results is not reused: each call maps it anew"
NO_KERNELS = "the Numba kernels cannot be compiled: CPU tensors take the reference"

# name: the consequence if it is missing
NAMES = {
    "torch._C._len_torch_dispatch_stack": NO_TRACE_CHECK,
    "torch._C._functorch.peek_interpreter_stack": NO_TRACE_CHECK,
    "torch.autograd.forward_ad._current_level": NO_TRACE_CHECK,
    "torch._C._functorch.is_batchedtensor": "gradients of the ELBO are those of the reference, in plain torch",
    "torch._C._functorch.is_legacy_batchedtensor": "gradients of the ELBO are those of the reference, in plain torch",
    "torch._C._autograd._top_saved_tensors_default_hooks": "gradients are not formed in the forward pass",
    "torch._C._FunctionBase.apply": "autograd Functions are called by their own apply, 2 us slower",
    "torch.Tensor._is_zerotensor": "a tensor of torch._efficientzerotensor, which has no memory, ends the process",
    "torch._C._storage_Use_Count": NO_REUSE,
    "torch.UntypedStorage._cdata": NO_REUSE,
    "torch.UntypedStorage._weak_ref": NO_REUSE,
    "torch._C.__file__": "torch's OpenMP team is not found: threads of our own, 70 us a call",
    "torch._C._cuda_getCurrentRawStream": "the stream is asked for by torch.cuda.current_stream, 2 us slower",
    "triton.knobs.runtime.interpret": "the type of a kernel says whether it is interpreted",
    "triton.knobs.runtime.launch_enter_hook": "profilers do not see launches after a kernel's first",
    "triton.compiler.CompiledKernel.run": "each launch looks for its kernel anew, 10 to 20 us",
    "numba.core.ccallback.CFunc": NO_KERNELS,
    "numba.core.cgutils.alloca_once": NO_KERNELS,
    "numba.core.cgutils.for_range_slice": NO_KERNELS,
    "numba.core.cgutils.get_or_insert_function": NO_KERNELS,
    "numba.core.cgutils.pack_array": NO_KERNELS,
    "numba.core.codegen.JITCodeLibrary": NO_KERNELS,
    "numba.core.compiler.Compiler": NO_KERNELS,
    "numba.core.imputils.lower_getattr_generic": NO_KERNELS,
    "numba.core.registry.cpu_target": NO_KERNELS,
    "numba.core.typing.templates.AbstractTemplate": NO_KERNELS,
    "numba.core.typing.templates.AttributeTemplate": NO_KERNELS,
    "numba.core.typing.templates.infer_getattr": NO_KERNELS,
    "numba.core.typing.templates.infer_global": NO_KERNELS,
    "numba.core.typing.templates.signature": NO_KERNELS,
    "numba.np.arrayobj.populate_array": NO_KERNELS,
}
_NOTHING = object()


def look(name: str) -> Any:
    """Return the object of a dotted name, or `_NOTHING` if it does not exist."""
    package, *rest = name.split(".")
    found: Any = importlib.import_module(package)
    for i, part in enumerate(rest, 1):
        member = getattr(found, part, _NOTHING)
        if member is _NOTHING:
            try:
                member = importlib.import_module(".".join([package, *rest[:i]]))
            except ImportError:
                return _NOTHING
        found = member
    return found


def find(name: str, instead: Any = None) -> Any:
    """Return the object of a name in the table, or ``instead`` if it does not exist."""
    assert name in NAMES, f"{name} is not in the table of private names"
    found = look(name)
    return instead if found is _NOTHING else found


@cache
def missing(package: str) -> tuple[str, ...]:
    """Return the names of the table that a package lacks. The package is imported.

    Names of CUDA are not reported for a build of torch without CUDA.
    """
    try:
        with undisturbed():
            names = [name for name in NAMES if name.startswith(f"{package}.") and look(name) is _NOTHING]
    except Exception:  # the package cannot be imported, see `unusable`
        return ()
    return tuple(name for name in names if "_cuda_" not in name or torch.version.cuda)


@cache
def unusable(backend: str) -> str | None:
    """Return why the installed version of a backend's compiler cannot compile the kernels, or None if it can."""
    try:
        with undisturbed():
            importlib.import_module(backend)
    except Exception as error:  # Numba rejects a NumPy that is too new for it, Triton an unknown machine
        return f"{backend} cannot be imported: {error}"
    names = [name for name in missing(backend) if NAMES[name] is NO_KERNELS]
    return f"this version of {backend} has no {names[0]}" if names else None
