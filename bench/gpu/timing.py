"""How time is taken: events on a GPU, medians over rounds in which rivals take turns, graphs of many launches.

On a CPU, where this can only be tried, the clock takes the place of events, and calling again that of a graph.
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
FLUSH = (1 << 28) if ON_GPU else 1000  # bytes written between calls: more than any cache holds
CALLS = 1e-3 if ON_GPU else 0.0  # seconds that the calls between two events take together
WARM_UP, ROUNDS = (3, 5) if ON_GPU else (1, 1)
if not ON_GPU:
    interpreter.patch_once()

Run = Callable[..., Any]


def elapsed(run: Run, calls: int) -> float:
    """Seconds of so many calls."""
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
    """A graph was not captured; torch is left on the stream of the capture, and this process is of no more use."""


def race(contenders: dict[str, Run], seconds: float, *, rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of a call of each; a write that clears the caches comes before each turn. A rival that fails is
    left out.
    """
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
    """A device copy that moves as many bytes."""
    source = torch.randint(256, ((read + written) // 2,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def compiled(function: Run) -> Any:
    """By `torch.compile`; on a CPU by its front end alone."""
    return torch.compile(function, dynamic=False, backend="inductor" if ON_GPU else "eager")


class Calls:
    """Stands in for a graph on a CPU: a replay calls."""

    def __init__(self, run: Run) -> None:
        self.replay = run


def captured(run: Run) -> Any:
    """A CUDA graph of a call, warmed up before: the first launch of a kernel loads it, which no capture allows."""
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
    """Calls that replay a graph of ``run``, captured at the first of them."""
    graphs: list[Any] = []

    def replay() -> None:
        if not graphs:
            graphs.append(captured(run))
        graphs[0].replay()

    return replay


def still_answers() -> bool:
    """Whether the GPU takes work: after an illegal access, nothing in that process does."""
    try:
        if ON_GPU:
            torch.cuda.synchronize()
            torch.zeros(1, device=DEVICE).add_(1).item()
    except RuntimeError:
        return False
    return True
