"""Races: rivals timed in turn in one run, so that a ratio holds on a machine whose speed drifts.

The first contender of a race is ours; pytest-benchmark keeps its rounds, and in ``extra_info`` every contender's
quartiles in microseconds and its peak memory: the most bytes that torch held at once beyond what was there. A table of
all races is printed at the end. ``make bench`` writes it all to a JSON file.
"""

import itertools
import statistics
import time
from collections.abc import Callable

import pytest
from torch.profiler import ProfilerActivity, profile

from fastvae_kernels.numba import _buffers

MIN_ROUND = 2e-3  # seconds of one timed round: calls are repeated up to it
SECONDS = 1.5  # of one race, for each contender
FEWEST_ROUNDS = 7

RACES: list[tuple[str, dict[str, list[float]], dict]] = []


@pytest.fixture
def race(benchmark, request):
    """Call ``race(ours=..., eager=..., ...)`` with functions of no argument.

    An attribute ``parts`` of one says how many times it does what the others do. ``settle`` are seconds of rest, and a
    call that is not timed, before each round: threads of BLAS go on spinning for as long after their last product, and
    whoever comes next has one core less.
    """

    def run(settle: float = 0.0, **contenders: Callable[[], object]) -> None:
        calls = {}
        for name, function in contenders.items():
            for _ in range(3):  # compilation, caches
                function()
            start = time.perf_counter()
            function()
            calls[name] = max(1, round(MIN_ROUND / (time.perf_counter() - start)))
        times: dict[str, list[float]] = {name: [] for name in contenders}
        stop = time.perf_counter() + SECONDS * len(contenders)
        while time.perf_counter() < stop or len(next(iter(times.values()))) < FEWEST_ROUNDS:
            for name, function in contenders.items():
                if settle:
                    time.sleep(settle)
                    function()
                start = time.perf_counter()
                for _ in range(calls[name]):
                    function()
                parts = calls[name] * getattr(function, "parts", 1)
                times[name].append((time.perf_counter() - start) / parts)
        ours = next(iter(contenders))
        benchmark.pedantic(contenders[ours], rounds=FEWEST_ROUNDS, iterations=calls[ours])
        for name, values in times.items():
            quartiles = [round(1e6 * q, 2) for q in statistics.quantiles(values, n=4)]
            benchmark.extra_info[name] = {"quartiles": quartiles, "peak": peak(contenders[name])}
        RACES.append((request.node.name.removeprefix("bench_"), times, benchmark.extra_info))

    return run


def peak(function: Callable[[], object]) -> int:
    """The most bytes that torch held at once during a call, beyond what was there; buffers kept from others count."""
    function()
    _buffers.forget()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # each an allocation
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(sizes, initial=0))


def pytest_terminal_summary(terminalreporter):
    """Medians in microseconds, how many times ours each rival takes, and peak memory."""
    for title, times, info in RACES:
        ours, *rivals = times
        medians = {name: 1e6 * statistics.median(values) for name, values in times.items()}
        line = f"{title:<40} {ours} {medians[ours]:>8.0f} us {info[ours]['peak'] / 1e6:>6.1f} MB"
        for name in rivals:
            line += f"  {name} {medians[name]:>8.0f} ({medians[name] / medians[ours]:>5.2f}x)"
        terminalreporter.write_line(line)
