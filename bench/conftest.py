"""Races: rivals are timed in turn in one run, so that ratios are meaningful even if the speed of the machine drifts.

`make bench` runs all cases, `make bench-quick` those marked `quick`. A line is printed after each case, then tables. A
JSON line is added to bench/history/runs.jsonl, or to partial.jsonl for a quick or partial run.
"""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import history, measure, report

collect_ignore = ["gpu"]  # the scripts of `make gpu`, run on their own
BUDGET, QUICK_BUDGET = 1.0, 0.5  # seconds of timing per contender; at least three calls of a slow one
RUN, BEGAN = pytest.StashKey[dict[str, Any]](), pytest.StashKey[float]()


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="only the cases marked quick, with fewer rounds")


def pytest_configure(config):
    config.addinivalue_line("markers", "quick: one of the cases that --quick runs and the README shows")
    config.stash[RUN] = {"cases": [], "first calls": {}, "notes": {}}


def pytest_collection_modifyitems(config, items):
    if config.getoption("--quick"):
        left = [item for item in items if not item.get_closest_marker("quick")]
        items[:] = [item for item in items if item not in left]
        config.hook.pytest_deselected(items=left)


def pytest_collection_finish(session):
    """Record machine, versions and commit of the run, and measure the machine's peaks before anything else runs."""
    config = session.config
    config.stash[BEGAN] = time.perf_counter()
    if config.option.collectonly or not session.items:
        return
    torch.manual_seed(0)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    start = {"date": now, **history.commit(), "stamp": history.stamp(), "quick": config.getoption("--quick")}
    about = {"machine": history.machine(), "versions": history.versions(), "peaks": measure.machine_peaks()}
    config.stash[RUN] = {**start, **about, **config.stash[RUN]}
    reporter = config.pluginmanager.getplugin("terminalreporter")
    reporter.ensure_newline()
    reporter.write_line(report.heading(config.stash[RUN]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Print a line for each case: its number, the time since the start, its name, and then the results."""
    reporter = item.config.pluginmanager.getplugin("terminalreporter")
    session = item.session
    elapsed = int(time.perf_counter() - item.config.stash[BEGAN])
    number = f"{session.items.index(item) + 1:>{len(str(len(session.items)))}}/{len(session.items)}"
    reporter.write(f"[{number} {elapsed // 60}:{elapsed % 60:02}] {title(item)}: ", flush=True)
    item.user_properties.append(("said", "failed: not timed"))
    result = yield
    reporter.write_line(item.user_properties[-1][1])
    return result


def pytest_report_teststatus(report):
    """No dots between these lines."""
    return ("passed" if report.when == "call" else "", "", "") if report.passed else None


def title(item: Any) -> str:
    """The name of a case: the text in brackets, or the name of the function."""
    if hasattr(item, "callspec"):
        return item.callspec.id
    return item.name.removeprefix("bench_").replace("_", " ")


def race_of(request):
    """Call ``race({"fastvae": ..., "eager": ...}, check=..., limits=["floor"], bytes=...)``: the first is ours.

    `check` is called first, and raises if a result is wrong; then nothing is timed. A contender that is None is listed
    as missing. `variants` are contenders by fastvae, `limits` are contenders that do only what every implementation
    must, `opaque` are contenders whose memory is allocated by neither torch nor NumPy. `bytes` and `flops` are the
    traffic and arithmetic of the job, `elements` its size on the axis of charts. For `rest` see `measure.take_turns`.
    Returns the measurements, which are added to the history.
    """

    def run(
        contenders: dict[str, Callable[[], object] | None],
        *,
        check: Callable[[], object],
        elements: int,
        bytes: int = 0,
        flops: int = 0,
        limits: Iterable[str] = (),
        variants: Iterable[str] = (),
        opaque: Iterable[str] = (),
        rest: float = 0.0,
    ) -> dict[str, Any]:
        check()
        present = {name: function for name, function in contenders.items() if function is not None}
        budget = QUICK_BUDGET if request.config.getoption("--quick") else BUDGET
        times, seconds = measure.take_turns(present, rest, budget)
        ours, *others = present
        rivals = [name for name in others if name not in {*limits, *variants}]
        request.getfixturevalue("benchmark").pedantic(
            present[ours], rounds=3
        )  # for users of the options of pytest-benchmark
        microseconds, ratios = measure.summary(times)
        traced = [name for name in (ours, *rivals) if seconds[name] < measure.LONG and name not in opaque]
        case = {
            "job": request.node.path.stem.removeprefix("bench_"),
            "name": title(request.node),
            "shown": request.node.get_closest_marker("quick") is not None,
            "elements": elements,
            "bytes": bytes,
            "flops": flops,
            "ours": ours,
            "rivals": rivals,
            "variants": list(variants),
            "limits": [name for name in limits if name in present],
            "missing": [name for name in contenders if name not in present],
            "us": microseconds,
            "ratio": ratios,
            "rounds": {name: sum(t is not None for t in taken) for name, taken in times.items()},
            "memory": {name: measure.peak_memory(present[name]) for name in traced},
        }
        request.config.stash[RUN]["cases"].append(case)
        request.node.user_properties[-1] = ("said", report.one_line(case))
        return case

    return run


race = pytest.fixture(race_of, name="race")


@pytest.fixture
def note(request):
    """Call ``note("first calls" or "notes", {...})`` for measurements outside a race."""

    def run(kind: str, figures: dict[str, Any]) -> None:
        request.config.stash[RUN][kind][title(request.node)] = figures
        said = ", ".join(f"{name} {value:g}" for name, value in figures.items())
        request.node.user_properties[-1] = ("said", said)

    return run


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """Print the tables, and add a line to the history."""
    run = config.stash[RUN]
    if "date" not in run or not run["cases"]:
        return
    run["seconds"] = round(time.perf_counter() - config.stash[BEGAN])
    failed = terminalreporter.stats.get("failed", []) + terminalreporter.stats.get("error", [])
    run["failed"] = sorted({entry.nodeid for entry in failed})
    everything = [Path(argument).resolve() for argument in config.args] == [Path(__file__).parent]
    full = everything and exitstatus == 0 and not terminalreporter.stats.get("deselected")
    path = history.FULL if full else history.PARTIAL
    history.append(run, path)
    terminalreporter.write_line("")
    for line in report.tables(run):
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"{run['seconds']} s; added to {path.relative_to(history.ROOT)}")
