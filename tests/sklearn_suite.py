"""Run scikit-learn's own tests with a class replaced by ours, through a pytest plugin."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch


def run_sklearn_tests(folder, plugin, modules, least, skipped):
    """Check that more than `least` tests of the modules pass in a separate process, and none fails."""
    (folder / "swap.py").write_text(plugin)
    (folder / "pytest.ini").write_text("[pytest]\n")
    options = ["-p", "swap", "-p", "no:cacheprovider", "-c", "pytest.ini", "-rs", "--tb=short", "--pyargs"]
    settings = {"SKLEARN_RUN_FLOAT32_TESTS": "1", "SCIPY_ARRAY_API": "1", "PYTHONPATH": str(folder)}
    # a CUDA build of torch without a GPU: these tests check whether CUDA was built, not whether it works
    cuda = ["-k", "not cuda"] if torch.version.cuda and not torch.cuda.is_available() else []
    command = [sys.executable, "-m", "pytest", *options, *cuda, *modules]
    run = subprocess.run(command, cwd=folder, env=os.environ | settings, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    passed = sum(map(int, re.findall(r"(\d+) passed", run.stdout)))
    assert passed > least, passed
    # importing the modules would add their marks
    source = "".join(Path(getattr(find_spec(module), "origin", "")).read_text(encoding="utf-8") for module in modules)
    known = {pattern.split("\\[")[0].removesuffix(".*"): reason for pattern, reason in skipped.items()}
    there = [reason for name, reason in known.items() if f"def {name}(" in source]  # an older version has fewer
    assert all(reason in run.stdout for reason in there)
