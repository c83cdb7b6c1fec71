"""Which backend answers a call: the one place that decides, and the only one that reads the environment.

    auto        CUDA tensors take Triton, CPU tensors take Numba, where a kernel serves the call; all else the reference
    triton, numba, reference    that one, or `BackendError` with the reason: never a silent change

``FASTVAE_BACKEND`` in the environment, read at import, replaces ``auto``. A kernel is plugged in by its place,
``fastvae_kernels/<backend>/<kernel>``, and nothing of it is imported before the first call that takes it.
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
KERNELS = {  # what an op needs of a backend
    "elbo": ("elbo.reparameterize", "elbo.log_likelihood"),
    "reparameterize": ("elbo.reparameterize",),
    "kl_divergence": ("elbo.reparameterize",),
    "gmm": ("gmm",),
    "regression": ("regression",),
}
DEVICES = {"triton": "cuda", "numba": "cpu"}  # where each kernel backend runs

DEFAULT = os.environ.get("FASTVAE_BACKEND", "auto")  # to look for a name that is not there takes 10 us of a call of 150

# Looked up once, here: in every call it would cost 90 us, and Dynamo warns of a functools.cache it has to look through.
INSTALLED = {b: find_spec(b) is not None for b in DEVICES}
HAS_KERNEL = {
    (op, b): all(find_spec(f"fastvae_kernels.{b}.{kernel}") for kernel in kernels)
    for op, kernels in KERNELS.items()
    for b in DEVICES
}

LAUNCHERS: dict[str, ModuleType] = {}

# Where torch has these no more, what cannot be told is taken to be so: see `fastvae_kernels.private`.
dispatch_modes = find("torch._C._len_torch_dispatch_stack", lambda: 1)
transform = find("torch._C._functorch.peek_interpreter_stack", lambda: "unknown")
TRACED = "the call is being traced"


class BackendError(RuntimeError):
    """The backend named in the call cannot serve it."""


def requested(backend: str) -> str:
    """The backend asked for: the argument, or the environment's where that is ``"auto"``."""
    if backend == "auto":
        backend = DEFAULT
        if backend not in BACKENDS:
            raise ValueError(f"FASTVAE_BACKEND must be one of {', '.join(BACKENDS)}, got {backend!r}")
    elif backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    return backend


def choose(op: str, backend: str, device: torch.device, unserved: str | None = None) -> str:
    """The backend that answers a call of ``op``: of the `requested` ``backend``, never ``"auto"``.

    ``unserved`` is the reason why no kernel can take this very call, if there is one.
    """
    if backend == "auto":
        natural = (b for b in DEVICES if DEVICES[b] == device.type and not unserved)  # the interpreter is asked for
        return next((b for b in natural if why_not(op, b, device) is None), "reference")
    if backend != "reference" and (reason := why_not(op, backend, device) or unserved):
        raise BackendError(f"backend={backend!r} cannot serve {op}: {reason}")
    return backend


def why_not(op: str, backend: str, device: torch.device) -> str | None:
    """Why a kernel backend cannot serve an op on a device, in a few words; None if it can."""
    if device.type != DEVICES[backend] and not (backend == "triton" and device.type == "cpu" and interpreted()):
        return f"it runs on {DEVICES[backend]} tensors, these are on {device.type}"
    if not INSTALLED[backend]:
        return f"{backend} is not installed"
    if not torch.compiler.is_compiling() and (reason := unusable(backend)):  # imports it, as the call would
        return reason
    if not HAS_KERNEL[op, backend]:
        return "it has no kernel for this yet"
    return None


def unserved_state() -> str | None:
    """Why kernels cannot take a call as things stand, in a few words; None if they can."""
    if torch.compiler.is_compiling() or dispatch_modes():
        return TRACED
    if transform() is not None:
        return "the call is under a torch.func transform"
    if getattr(torch.autograd.forward_ad, "_current_level", 0) >= 0:
        return "forward-mode AD is active"
    return None


def interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on the CPU: to test them where there is no GPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def launcher(kernel: str, backend: str) -> ModuleType:
    """The module with a kernel's launchers, imported on first use."""
    name = f"fastvae_kernels.{backend}.{kernel}"
    if name not in LAUNCHERS:
        with undisturbed():
            LAUNCHERS[name] = importlib.import_module(name)
    return LAUNCHERS[name]


def show_config() -> None:
    """Print versions, devices, threads, and which backend each op takes here, and why.

    Equivalent to ``numpy.show_config`` and ``sklearn.show_versions``; `python -m fastvae info` prints the same. Paste
    it into a bug report.

    Examples
    --------
    >>> import fastvae
    >>> fastvae.show_config()
    fastvae ...
    """
    devices = [torch.device("cpu")] + [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    rows = [("fastvae", package_version("fastvae-kernels"))]
    rows += [("torch", torch.__version__)]  # with the kind of build
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
            reasons = [f"{b}: {why_not(op, b, device)}" for b in DEVICES if why_not(op, b, device)]
            chosen = choose(op, "auto", device)
            print(f"  {op:<16} {chosen:<10}" + (f" ({'; '.join(reasons)})" if chosen == "reference" else ""))


def package_version(package: str) -> str:
    """The installed version of a distribution, without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
