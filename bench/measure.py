"""Timing of contenders, in turn, each as often as its speed allows, and their peak memory."""

import itertools
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from fastvae_kernels.numba.language import buffers

MIN_ROUND = 2e-3  # minimum seconds of a timed round; shorter calls are repeated
SLOW = 0.3  # seconds of a call above which there are three rounds, and no warm-up except the first call
SHORT = 0.1  # seconds of a call below which a turn starts with calls that are not timed
WARM = 20e-3  # seconds of these, or a single one if it takes longer
LONG = 1.0  # seconds of a call above which its memory is not traced
MOST_ROUNDS = 200


def clock(function: Callable[[], object], calls: int = 1) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def warm_up(function: Callable[[], object]) -> float:
    """Call a function until compilers and caches are warm; returns the seconds that a call then takes."""
    known = getattr(function, "seconds", None)  # if it was timed before
    if known is not None and known > SLOW:
        return known
    clock(function)
    seconds = clock(function)
    return seconds if seconds > SLOW else clock(function, 2)


def number_of_rounds(seconds: float, rest: float, budget: float, ours: bool) -> int:
    """Number of rounds of a contender within its budget; at least 7, or 5 or 3 if it is slow."""
    fewest = 7 if seconds < SLOW / 6 else 5 if seconds < SLOW or ours else 3
    cost = max(seconds, MIN_ROUND) + rest + max(seconds, WARM) * (seconds < SHORT)
    return min(MOST_ROUNDS, max(fewest, round(budget / cost)))


def take_turns(
    contenders: dict[str, Callable[[], object]], rest: float, budget: float
) -> tuple[dict[str, list[float | None]], dict[str, float]]:
    """Seconds of each round, and of a call after warm-up. The first contender takes part in every round.

    A contender with fewer rounds skips some, evenly spread: None. The turn of a short contender starts with calls that
    are not timed, so that it runs as in its own loop: after the temporaries of eager torch, `x + x_hat` of 4096 x 784
    takes 0.9 ms at first and 0.4 from the 15th call on. `rest` is a pause in seconds before each turn: threads of
    BLAS keep spinning for that long after their last product, and the next contender would have one core less. The
    attribute `parts` of a contender says how many times it does the work of the others.
    """
    ours = next(iter(contenders))
    seconds = {name: warm_up(function) for name, function in contenders.items()}
    most = number_of_rounds(seconds[ours], rest, budget, True)
    rounds = {name: min(most, number_of_rounds(s, rest, budget, name == ours)) for name, s in seconds.items()}
    calls = {name: max(1, round(MIN_ROUND / s)) for name, s in seconds.items()}
    times: dict[str, list[float | None]] = {name: [] for name in contenders}
    for i in range(most):
        for name, function in contenders.items():
            turn = (i + 1) * rounds[name] // most > i * rounds[name] // most
            if turn:
                time.sleep(rest)
                start = time.perf_counter()
                while seconds[name] < SHORT and time.perf_counter() - start < WARM:
                    function()
            times[name].append(clock(function, calls[name]) / getattr(function, "parts", 1) if turn else None)
    return times, seconds


def quartiles(values: Sequence[float]) -> list[float]:
    """Quartiles, to four digits."""
    found = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return [float(f"{q:.4g}") for q in found]


def summary(times: dict[str, list[float | None]]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Quartiles of the microseconds, and of the ratio of each contender to ours in the same round."""
    ours, *others = times
    microseconds = {name: quartiles([1e6 * t for t in taken if t is not None]) for name, taken in times.items()}
    ratios = {}
    for name in others:
        pairs = zip(times[name], times[ours], strict=True)
        ratios[name] = quartiles([t / o for t, o in pairs if t is not None and o is not None])
    return microseconds, ratios


def peak_memory(function: Callable[[], object]) -> int:
    """Peak memory that torch and NumPy allocated during a call, in bytes; reused buffers count."""
    function()
    buffers.forget()
    tracemalloc.start()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            function()
            numpy = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # one per allocation
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return numpy + max(itertools.accumulate(sizes, initial=0))


def machine_peaks() -> dict[str, float]:
    """Peak memory bandwidth and arithmetic of this machine now, by torch on all threads: the best of several runs."""
    source, target = torch.ones(1 << 25), torch.ones(1 << 25)  # 134 MB each
    square = torch.ones(1536, 1536, dtype=torch.float64)
    copying = min(clock(lambda: target.copy_(source)) for _ in range(12))
    product = min(clock(lambda: square @ square) for _ in range(6))
    return {
        "copy GB/s": round(2 * source.nbytes / copying / 1e9, 2),
        "dgemm GFLOP/s": round(2 * 1536**3 / product / 1e9, 1),
    }


def dgemm_of(flops: float) -> Callable[[], object]:
    """A matrix product by BLAS with about as many operations, in favourable shapes."""
    A, B = np.ones((max(1, round(flops / (2 * 512**2))), 512)), np.ones((512, 512))
    return lambda: A @ B
