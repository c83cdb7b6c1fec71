"""Timing: events on a GPU, medians over rounds in which rivals take turns, graphs of many launches.

On a CPU, for dry runs, the clock replaces events, and repeated calls replace graphs.
"""

import os
import statistics
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from . import interpreter

DEVICE = os.environ.get("FASTVAE_GPU_DEVICE", "cuda")
ON_GPU = DEVICE == "cuda"
FLUSH = (1 << 28) if ON_GPU else 1000  # bytes written between calls: larger than any cache
CALLS = 1e-3 if ON_GPU else 0.0  # total seconds of the calls between two events
WARM_UP, ROUNDS = (3, 5) if ON_GPU else (1, 1)
if not ON_GPU:
    interpreter.patch_once()

Run = Callable[..., Any]


def elapsed(run: Run, calls: int) -> float:
    """Seconds of the given number of calls."""
    if not ON_GPU:
        began = time.perf_counter()
        for _ in range(calls):
            run()
        return time.perf_counter() - began
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


class CaptureFailed(RuntimeError):
    """A graph capture failed; torch is left on the stream of the capture, so this process is no longer usable."""


def race(contenders: dict[str, Run], seconds: float, *, rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds per call of each contender. Caches are flushed before each turn; rivals that fail are dropped."""
    flush = torch.empty(FLUSH, dtype=torch.uint8, device=DEVICE)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    calls = {}
    for name, run in contenders.items():
        try:
            for _ in range(WARM_UP):
                run()
            calls[name] = max(1, round(CALLS / elapsed(run, 1)))
        except Exception as error:
            if name in ("fastvae", "copy") or isinstance(error, CaptureFailed) or not still_answers():
                raise
            traceback.print_exc()
            print(f"{name} failed and is left out", flush=True)
            del times[name]
    contenders = {name: run for name, run in contenders.items() if name in times}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(next(iter(times.values()))) < rounds:
        for name, run in contenders.items():
            flush.zero_()
            times[name].append(elapsed(run, calls[name]) / calls[name])
    return {name: statistics.median(values) for name, values in times.items()}


def copies(read: int, written: int) -> Run:
    """A device copy with the same traffic in bytes."""
    source = torch.randint(256, ((read + written) // 2,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def compiled(function: Run) -> Any:
    """The function compiled by `torch.compile`; on a CPU without code generation."""
    return torch.compile(function, dynamic=False, backend="inductor" if ON_GPU else "eager")


class Calls:
    """A replacement for a graph on a CPU: a replay is a call."""

    def __init__(self, run: Run) -> None:
        self.replay = run


def captured(run: Run) -> Any:
    """A CUDA graph of a call, captured after a warm-up: kernels are loaded at first launch, which capture forbids."""
    if not ON_GPU:
        run()
        return Calls(run)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except Exception as error:
        raise CaptureFailed(f"{type(error).__name__}: {error}") from error
    return graph


def replays(run: Run) -> Run:
    """A function that replays a graph of ``run``, captured at its first call."""
    graphs: list[Any] = []

    def replay() -> None:
        if not graphs:
            graphs.append(captured(run))
        graphs[0].replay()

    return replay


def still_answers() -> bool:
    """Whether the GPU still works in this process, which it does not after an illegal access."""
    try:
        if ON_GPU:
            torch.cuda.synchronize()
            torch.zeros(1, device=DEVICE).add_(1).item()
    except RuntimeError:
        return False
    return True
