"""Rivals at their best, and what a fresh process prints."""

import os
import subprocess
import sys
import time
from typing import Any

from threadpoolctl import threadpool_limits


def best_threads(function: Any) -> int | None:
    """The number of threads that it is fastest with: 1, or None for all."""
    seconds = {}
    for limit in (1, None):
        with threadpool_limits(limit):
            function()
            begin = time.perf_counter()
            function()
            seconds[limit] = time.perf_counter() - begin
    return min(seconds, key=seconds.__getitem__)


class Parts:
    """A function that does so many times what its rivals do."""

    def __init__(self, function: Any, parts: float) -> None:
        self.function, self.parts = function, parts

    def __call__(self) -> None:
        self.function()


def limited(function: Any) -> Any:
    """The function at its best number of threads."""
    limit = best_threads(function)

    def run() -> None:
        with threadpool_limits(limit):
            function()

    return run


def output(code: str, **environment: str) -> float:
    """What a fresh process prints."""
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, check=True)
    return float(run.stdout)
