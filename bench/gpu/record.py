"""A plugin of pytest: each test's outcome goes to OUT/tests.jsonl as soon as it is known, its error with it.

pytest writes its own reports when all is over, which never comes where the machine is taken away.
"""

import json
import os
from pathlib import Path

import pytest

PATH = Path(os.environ["FASTVAE_GPU_OUT"]) / "tests.jsonl"


def pytest_runtest_setup(item):
    """After an illegal access a process has lost its GPU: what comes later in it is no failure of its own."""
    import torch

    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        pytest.skip("an earlier test of this process lost the GPU")


def pytest_runtest_logreport(report):
    """Of the call, and of what failed or was skipped before it; with xdist, in the process that collects."""
    if "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and report.passed):
        return
    line = {
        "stage": os.environ.get("FASTVAE_GPU_STAGE", ""),
        "test": report.nodeid,
        "outcome": report.outcome,
        "seconds": round(report.duration, 3),
    }
    if report.failed:
        line["error"] = report.longreprtext
    with PATH.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
