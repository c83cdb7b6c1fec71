"""How contenders are timed: in turn, each as often as its speed allows, and what they hold in memory meanwhile."""

import itertools
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from fastvae_kernels.numba.language import buffers

MIN_ROUND = 2e-3  # seconds of one timed round: calls are repeated up to it
SLOW = 0.3  # seconds of a call from which on three rounds do, and no warming up beyond the first call
SHORT = 0.1  # seconds of a call up to which a turn begins with calls that are not timed
WARM = 20e-3  # seconds of these, or a single one that takes longer
LONG = 1.0  # seconds of a call from which on its memory is not traced
MOST_ROUNDS = 200


def clock(function: Callable[[], object], calls: int = 1) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def warm_up(function: Callable[[], object]) -> float:
    """Call it until compilers and caches have settled, and say how long it then takes."""
    known = getattr(function, "seconds", None)  # of one that was tried out already
    if known is not None and known > SLOW:
        return known
    clock(function)
    seconds = clock(function)
    return seconds if seconds > SLOW else clock(function, 2)


def number_of_rounds(seconds: float, settle: float, budget: float, ours: bool) -> int:
    """How often a contender's turn comes within its budget; at least 7 times, 5 or 3 if it is slow."""
    fewest = 7 if seconds < SLOW / 6 else 5 if seconds < SLOW or ours else 3
    cost = max(seconds, MIN_ROUND) + settle + max(seconds, WARM) * (seconds < SHORT)
    return min(MOST_ROUNDS, max(fewest, round(budget / cost)))


def take_turns(
    contenders: dict[str, Callable[[], object]], settle: float, budget: float
) -> tuple[dict[str, list[float | None]], dict[str, float]]:
    """Seconds of each round, and of a call as first tried. The first contender has a turn in every round.

    Whoever has fewer rounds sits some out, evenly spread: None. A short contender's turn begins with calls that are not
    timed, to be as in a loop of its own: after eager's temporaries, `x + x_hat` of 4096 x 784 takes 0.9 ms at first and
    0.4 from the 15th call on. `settle` are seconds of rest before: threads of BLAS go on spinning for as long after
    their last product, and whoever comes next has one core less. An attribute `parts` of a contender says how many
    times it does what the others do.
    """
    ours = next(iter(contenders))
    seconds = {name: warm_up(function) for name, function in contenders.items()}
    most = number_of_rounds(seconds[ours], settle, budget, True)
    rounds = {name: min(most, number_of_rounds(s, settle, budget, name == ours)) for name, s in seconds.items()}
    calls = {name: max(1, round(MIN_ROUND / s)) for name, s in seconds.items()}
    times: dict[str, list[float | None]] = {name: [] for name in contenders}
    for i in range(most):
        for name, function in contenders.items():
            turn = (i + 1) * rounds[name] // most > i * rounds[name] // most
            if turn:
                time.sleep(settle)
                start = time.perf_counter()
                while seconds[name] < SHORT and time.perf_counter() - start < WARM:
                    function()
            times[name].append(clock(function, calls[name]) / getattr(function, "parts", 1) if turn else None)
    return times, seconds


def quartiles(values: Sequence[float]) -> list[float]:
    """To four digits."""
    found = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return [float(f"{q:.4g}") for q in found]


def summary(times: dict[str, list[float | None]]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Quartiles of microseconds, and of each contender's multiple of ours in the same round."""
    ours, *others = times
    microseconds = {name: quartiles([1e6 * t for t in taken if t is not None]) for name, taken in times.items()}
    ratios = {}
    for name in others:
        pairs = zip(times[name], times[ours], strict=True)
        ratios[name] = quartiles([t / o for t, o in pairs if t is not None and o is not None])
    return microseconds, ratios


def peak_memory(function: Callable[[], object]) -> int:
    """The most bytes that torch and NumPy held during a call, beyond what was there; buffers kept from others count."""
    function()
    buffers.forget()
    tracemalloc.start()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            function()
            numpy = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # each an allocation
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return numpy + max(itertools.accumulate(sizes, initial=0))


def machine_peaks() -> dict[str, float]:
    """What this machine can do now, by torch on all its threads: the best of some tries."""
    source, target = torch.ones(1 << 25), torch.ones(1 << 25)  # 134 MB each
    square = torch.ones(1536, 1536, dtype=torch.float64)
    copying = min(clock(lambda: target.copy_(source)) for _ in range(12))
    product = min(clock(lambda: square @ square) for _ in range(6))
    return {
        "copy GB/s": round(2 * source.nbytes / copying / 1e9, 2),
        "dgemm GFLOP/s": round(2 * 1536**3 / product / 1e9, 1),
    }


def dgemm_of(flops: float) -> Callable[[], object]:
    """A product of BLAS of about as many operations, in shapes that suit it."""
    A, B = np.ones((max(1, round(flops / (2 * 512**2))), 512)), np.ones((512, 512))
    return lambda: A @ B
