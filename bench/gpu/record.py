"""A pytest plugin that writes the outcome and error of each test to OUT/tests.jsonl immediately.

pytest writes its own reports only at the end, which is not reached if the machine is taken away.
"""

import json
import os
from pathlib import Path

import pytest

PATH = Path(os.environ["FASTVAE_GPU_OUT"]) / "tests.jsonl"


def pytest_runtest_setup(item):
    """Skip tests after an illegal access, which makes the GPU unusable for the rest of the process."""
    import torch

    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        pytest.skip("an earlier test of this process lost the GPU")


def pytest_runtest_logreport(report):
    """Record the outcome of the call, or of a setup that failed or skipped; with xdist, in the controlling process."""
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
