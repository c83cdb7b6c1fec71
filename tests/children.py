"""Run code in a separate Python process, so that forks, exits and interrupts do not affect this one."""

import os
import subprocess
import sys
from pathlib import Path

import fastvae
import fastvae_kernels


def in_python(code, timeout=300, **environment):
    """The words printed by the code; a deadlock is stopped after five minutes."""
    path = [str(Path(m.__file__).parents[1]) for m in (fastvae, fastvae_kernels) if m.__file__]
    path.append(str(Path(__file__).parents[1]))  # for modules shared by the tests
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import sys\nsys.path[:0] = {path}\n{code}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.split()
