"""The number of lanes per register follows the target of Numba, not this machine."""

import os
import platform
import subprocess
import sys

import pytest
from llvmlite.binding import get_host_cpu_features

CODE = "from fastvae_kernels.numba.language import target as _target; print(_target.LANES_REGISTER)"


def lanes(**settings):
    """The number of lanes in a new process: Numba reads its environment when it is imported."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_CPU")}
    run = subprocess.run([sys.executable, "-c", CODE], env=kept | settings, capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="another processor")
def test_lanes_follow_the_target():
    wide = bool(get_host_cpu_features().get("avx512f"))
    assert lanes() == (8 if wide else 4)
    assert lanes(NUMBA_CPU_NAME="x86-64-v3", NUMBA_CPU_FEATURES="") == 4
    assert lanes(NUMBA_CPU_NAME="x86-64-v4", NUMBA_CPU_FEATURES="") == 8
    assert lanes(NUMBA_CPU_FEATURES="+avx2,+fma,+avx512f,+avx512vl") == 8
    # Numba uses the features of the host if none are given, whatever the name
    assert lanes(NUMBA_CPU_NAME="x86-64-v3") == (8 if wide else 4)
