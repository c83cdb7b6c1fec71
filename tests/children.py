"""Code in a Python of its own: what forks, exits or is interrupted there leaves this process alone."""

import os
import subprocess
import sys
from pathlib import Path

import fastvae
import fastvae_kernels


def in_python(code, timeout=300, **environment):
    """The words that the code prints; a deadlock ends after five minutes."""
    path = [str(Path(m.__file__).parents[1]) for m in (fastvae, fastvae_kernels) if m.__file__]
    path.append(str(Path(__file__).parents[1]))  # for what the tests share
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import sys\nsys.path[:0] = {path}\n{code}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.split()
