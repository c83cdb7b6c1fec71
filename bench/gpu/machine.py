"""Print versions, the GPU, and the available tools of this machine."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path

from . import NO_GPU

PACKAGES = ("torch", "triton", "numpy", "numba", "pytest", "pytest-xdist", "hypothesis", "mpmath")
TOOLS = ("git", "gcc", "nvidia-smi", "compute-sanitizer", "ncu")
FIELDS = "name,compute_mode,driver_version,memory.total,clocks.sm,clocks.max.sm,temperature.gpu,power.draw"


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def main() -> int:
    print(f"python {platform.python_version()} on {platform.platform()}")
    print(", ".join(f"{package} {version(package)}" for package in PACKAGES))
    for tool in TOOLS:
        print(f"{tool}: {shutil.which(tool) or 'not here'}")
    if shutil.which("nvidia-smi"):
        subprocess.run(["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv"], check=False, timeout=10)
    headers = Path(sysconfig.get_paths()["include"], "Python.h").exists()
    print(f"Python.h, with which Triton compiles its launcher: {'here' if headers else 'not here'}", flush=True)
    if os.environ["FASTVAE_GPU_DEVICE"] != "cuda":
        return 0
    import torch  # last, since it is slow from a cold disk

    if not torch.cuda.is_available():
        print("torch sees no CUDA GPU")
        return NO_GPU
    of = torch.cuda.get_device_properties(0)
    print(f"{of.name}: compute capability {of.major}.{of.minor}, {of.multi_processor_count} multiprocessors, "
          f"L2 {of.L2_cache_size >> 20} MB, {of.total_memory >> 30} GiB")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
