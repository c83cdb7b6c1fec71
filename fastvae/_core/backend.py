"""The choice of backend for a call. No other module chooses one, or reads the environment.

    auto        Triton for CUDA tensors, Numba for CPU tensors, if a kernel supports the call; otherwise the reference
    triton, numba, reference    that backend, or `BackendError` with the reason: never silently another one

``FASTVAE_BACKEND`` in the environment, read at import, replaces ``auto``. A kernel is found by its path,
``fastvae_kernels/<backend>/<kernel>``, and is imported by the first call that uses it.
"""

import importlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

import torch

import fastvae_kernels.openmp  # noqa: F401 (its fork hook)
from fastvae_kernels.private import NAMES, find, missing, unusable
from fastvae_kernels.undisturbed import undisturbed

BACKENDS = ("auto", "triton", "numba", "reference")
KERNELS = {  # the kernel modules that each operation needs
    "elbo": ("elbo.reparameterize", "elbo.log_likelihood"),
    "reparameterize": ("elbo.reparameterize",),
    "kl_divergence": ("elbo.reparameterize",),
    "gmm": ("gmm",),
    "regression": ("regression",),
}
DEVICES = {"triton": "cuda", "numba": "cpu"}  # the device of each kernel backend

DEFAULT = os.environ.get("FASTVAE_BACKEND", "auto")  # read once: looking up an unset name takes 10 us

# Looked up once, here: in every call it would cost 90 us, and Dynamo warns when it traces into a functools.cache.
INSTALLED = {b: find_spec(b) is not None for b in DEVICES}
HAS_KERNEL = {
    (op, b): all(find_spec(f"fastvae_kernels.{b}.{kernel}") for kernel in kernels)
    for op, kernels in KERNELS.items()
    for b in DEVICES
}

MODULES: dict[str, ModuleType] = {}

# If torch no longer has these, the conservative answer is assumed: see `fastvae_kernels.private`.
num_dispatch_modes = find("torch._C._len_torch_dispatch_stack", lambda: 1)
active_transform = find("torch._C._functorch.peek_interpreter_stack", lambda: "unknown")
TRACED = "the call is being traced"


class BackendError(RuntimeError):
    """The requested backend does not support the call."""


def requested(backend: str) -> str:
    """The requested backend: the argument, or that of the environment if the argument is ``"auto"``."""
    if backend == "auto":
        backend = DEFAULT
        if backend not in BACKENDS:
            raise ValueError(f"FASTVAE_BACKEND must be one of {', '.join(BACKENDS)}, got {backend!r}")
    elif backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    return backend


def choose(op: str, backend: str, device: torch.device, unsupported: str | None = None) -> str:
    """The backend that computes a call of ``op``; never ``"auto"``.

    ``backend`` is the result of `requested`. ``unsupported`` is the reason why no kernel supports this particular call,
    or None.
    """
    if backend == "auto":
        # By device alone: Triton's interpreter is used only if requested.
        candidates = (b for b in DEVICES if DEVICES[b] == device.type and not unsupported)
        return next((b for b in candidates if unsupported_reason(op, b, device) is None), "reference")
    if backend != "reference" and (reason := unsupported_reason(op, backend, device) or unsupported):
        raise BackendError(f"backend={backend!r} does not support {op}: {reason}")
    return backend


def unsupported_reason(op: str, backend: str, device: torch.device) -> str | None:
    """Why a kernel backend does not support an operation on a device, in a few words; None if it does."""
    if device.type != DEVICES[backend] and not (backend == "triton" and device.type == "cpu" and is_interpreted()):
        return f"it runs on {DEVICES[backend]} tensors, these are on {device.type}"
    if not INSTALLED[backend]:
        return f"{backend} is not installed"
    if not torch.compiler.is_compiling() and (reason := unusable(backend)):  # imports it, as the call would
        return reason
    if not HAS_KERNEL[op, backend]:
        return "it has no kernel for this yet"
    return None


def unsupported_state() -> str | None:
    """Why kernels cannot run in the current state of torch, in a few words; None if they can."""
    if torch.compiler.is_compiling() or num_dispatch_modes():
        return TRACED
    if active_transform() is not None:
        return "the call is under a torch.func transform"
    if getattr(torch.autograd.forward_ad, "_current_level", 0) >= 0:
        return "forward-mode AD is active"
    return None


def is_interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on the CPU, as in tests without a GPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def kernel_module(kernel: str, backend: str) -> ModuleType:
    """The module of a kernel, imported on first use."""
    name = f"fastvae_kernels.{backend}.{kernel}"
    if name not in MODULES:
        with undisturbed():
            MODULES[name] = importlib.import_module(name)
    return MODULES[name]


def show_config() -> None:
    """Print versions, devices, threads, and which backend each operation uses on this machine, and why.

    Please include the output in bug reports. ``python -m fastvae info`` prints the same.

    Notes
    -----
    Equivalent to ``numpy.show_config`` and ``sklearn.show_versions``.

    Examples
    --------
    >>> import fastvae
    >>> fastvae.show_config()
    fastvae ...
    """
    devices = [torch.device("cpu")] + [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    rows = [("fastvae", package_version("fastvae-kernels"))]
    rows += [("torch", torch.__version__)]  # unlike the distribution's version, it names the build (CPU or CUDA)
    rows += [(package, package_version(package)) for package in ("numpy", "numba", "triton")]
    rows += [
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("threads", f"{torch.get_num_threads()} (torch.get_num_threads())"),
        ("FASTVAE_BACKEND", DEFAULT),
    ]
    rows += [(str(d), torch.cuda.get_device_name(d)) for d in devices if d.type == "cuda"]
    packages = ("torch", *(b for b in INSTALLED if INSTALLED[b]))
    rows += [(name, f"not there: {NAMES[name]}") for package in packages for name in missing(package)]
    print("\n".join(f"{name:<16} {value}" for name, value in rows))
    for device in devices:
        print(f'\nbackend="auto" on {device}:')
        for op in KERNELS:
            reasons = [
                f"{b}: {unsupported_reason(op, b, device)}" for b in DEVICES if unsupported_reason(op, b, device)
            ]
            chosen = choose(op, "auto", device)
            print(f"  {op:<16} {chosen:<10}" + (f" ({'; '.join(reasons)})" if chosen == "reference" else ""))


def package_version(package: str) -> str:
    """The installed version of a distribution, without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
