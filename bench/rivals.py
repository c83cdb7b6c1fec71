"""Rivals in their best setting, or None if missing; the parametrization of cases; output of a new process."""

import contextlib
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from .measure import SLOW, clock

try:
    from threadpoolctl import threadpool_limits
except ImportError:  # installed with scikit-learn, whose threads it limits
    threadpool_limits = contextlib.nullcontext


def optional(module: str) -> Any:
    """A rival's module, or None if it is not installed. A race lists a contender that is None as missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def cases(sizes: Iterable[Any], quick: Iterable[Any], name: str) -> pytest.MarkDecorator:
    """Parametrize `case`; those in `quick` are run by `--quick` and shown in the README."""
    quick = list(quick)
    marks = {size: [pytest.mark.quick] if size in quick else [] for size in sizes}
    return pytest.mark.parametrize(
        "case", [pytest.param(size, marks=marks[size], id=name.format(*size)) for size in marks]
    )


class Parts:
    """A function that does `parts` times the work of its rivals."""

    def __init__(self, function: Any, parts: float) -> None:
        self.function, self.parts, self.seconds = function, parts, getattr(function, "seconds", None)

    def __call__(self) -> None:
        self.function()


class Limited:
    """A function with its best number of threads: 1, or None for all."""

    def __init__(self, function: Callable[[], object], choices: Iterable[int | None] = (1, None)) -> None:
        self.function = function
        tried = {}
        for self.limit in choices:
            seconds = clock(self)
            tried[self.limit] = seconds if seconds > SLOW else clock(self)
        self.limit = min(tried, key=tried.__getitem__)
        self.seconds = tried[self.limit]

    def __call__(self) -> None:
        with threadpool_limits(self.limit):
            self.function()


def compiled(function: Callable) -> Callable | None:
    """The function compiled by `torch.compile` for static shapes; None if there is no compiler."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(4))
    except Exception:  # anything the toolchain raises
        return None
    return torch.compile(function, dynamic=False)


def output(code: str, **environment: str) -> float:
    """The number that code prints in a new process."""
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, check=True)
    return float(run.stdout)


def first_call(setup: str, call: str, cache: Path) -> dict[str, float]:
    """Seconds of the first call in a process: with compilation of its kernels, and with these in the cache."""
    code = f"import time\n{setup}\nstart = time.perf_counter()\n{call}\nprint(time.perf_counter() - start)"
    return {when: round(output(code, NUMBA_CACHE_DIR=str(cache)), 3) for when in ("cold", "warm")}
