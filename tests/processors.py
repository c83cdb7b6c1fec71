"""Run the numerical tests of the kernels as on other processors: `make test-processors`.

    v3    AVX2: registers of 4 float64, by Numba for x86-64-v3
    v4    AVX-512: registers of 8, by Numba for x86-64-v4; only where this machine has them
    8     sums in 8 lanes, as AVX-512 has them, in two registers of AVX2 each

    python tests/processors.py [target ...]

A kernel sums in as many lanes as a register holds, so an error budget that holds on one processor may fail on another.
The default is the kind that this machine is not: v3 on a machine with AVX-512, 8 on any other. Each has its own cache.
"""

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

from llvmlite.binding import get_host_cpu_features

ROOT = Path(__file__).parents[1]
TARGETS = {
    "v3": {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": ""},
    "v4": {"NUMBA_CPU_NAME": "x86-64-v4", "NUMBA_CPU_FEATURES": ""},
    "8": {"FASTVAE_TEST_LANES": "8"},  # read in conftest.py
}
# Of the ELBO only the noise and the bits: its sums have 16 lanes of float32 or 8 of float64 on every processor.
NUMERICS = (
    *("elbo/test_bits", "gmm", "regression", "project/test_docs"),
    *(f"kernels/test_{name}" for name in ("noise", "math", "vector", "double", "transpose")),
)
NOT_OURS = "not triton and not made_anew"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="target", help=", ".join(TARGETS))
    wide, x86 = bool(get_host_cpu_features().get("avx512f")), platform.machine() in ("x86_64", "AMD64")
    targets = parser.parse_args().targets or ["v3" if wide else "8"]
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"a target is one of {', '.join(TARGETS)}, got {', '.join(sorted(unknown))}")
    if not x86 and {"v3", "v4"} & set(targets):
        parser.error("v3 and v4 need a processor of x86-64; 8 sums in as many lanes anywhere")
    if "v4" in targets and not wide:
        parser.error("v4 needs a machine with AVX-512; 8 sums in as many lanes anywhere")
    files = ["tests/" + name + (".py" if "/" in name else "") for name in NUMERICS]
    failed = []
    for target in targets:
        print(f"=== the kernels' numerics for {target}: {TARGETS[target]}", flush=True)
        settings = {**TARGETS[target], "NUMBA_CACHE_DIR": str(ROOT / ".numba_cache" / target)}
        options = ["-n", "auto", "--maxprocesses", "8", "--dist", "loadgroup", "-q", "-k", NOT_OURS]
        command = [sys.executable, "-m", "pytest", *options, *files]
        if subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, check=False).returncode:
            failed.append(target)
    print(f"failed for: {', '.join(failed)}" if failed else f"passed for: {', '.join(targets)}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
