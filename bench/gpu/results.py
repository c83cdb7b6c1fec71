"""The results of a run on a GPU: results.json, and tables.md made from it, rewritten after every case.

    {"about": {...}, "bench": [line, ...], "step": [...], "tuning": [...]}

A line names its case and has either ``seconds``, a dict of medians by contender, or ``error``. A stage that is started
again continues after the cases that have results.
"""

import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import triton

from .. import history
from . import CONTEXT_LOST
from .timing import ON_GPU, CaptureFailed, still_answers

FOLDER = Path(os.environ.get("FASTVAE_GPU_OUT", "runs/gpu"))
MARGIN = 8 if ON_GPU else 0  # seconds for a case that is already running
IN_CACHES = 60e6  # bytes: with less traffic, repeated calls read from the GPU's cache
HEADS = {
    "bench": "| case | us | eager | compile | TB/s | of copy |\n|---|---|---|---|---|---|",
    "step": "| training step | us | eager | compile | captured | eager, captured |\n|---|---|---|---|---|---|",
    "tuning": "| row | dtype | warps | tile bytes | programs | us | of copy |\n|---|---|---|---|---|---|---|",
}
NOTES = {
    "bench": "`us` is fastvae's time; `eager` and `compile` are multiples of it. TB/s counts x and x_hat read and, "
    "with the backward pass, the gradient written; `of copy` compares with a device copy of as many bytes. "
    "What fits into the GPU's cache has neither.",
    "step": "`us` is fastvae's time outside a graph; the others are multiples of it.",
    "tuning": "The log-likelihood and its gradient, 64 million elements, graph replay, the fastest first. "
    "A launch in a graph has a counter of its own, and the 2 us of setting it to zero are in.",
}


def read(path: Path | None = None) -> dict[str, Any]:
    """All results so far."""
    path = FOLDER / "results.json" if path is None else path
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(path: Path, text: str) -> None:
    """Replace a file atomically: a process that is stopped meanwhile leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def about() -> dict[str, Any]:
    """The facts that times depend on."""
    return {
        "device": torch.cuda.get_device_name() if ON_GPU else "CPU, tiny sizes: these times mean nothing",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": history.git("rev-parse", "--short=10", "HEAD") or "unknown",
        "stamp": history.stamp(),
        "date": time.strftime("%Y-%m-%d"),
    }


def add(kind: str, line: dict[str, Any]) -> None:
    """Add a line to the results, and print it."""
    results = read()
    if "about" not in results:
        results["about"] = about()
    results.setdefault(kind, []).append(line)
    write(FOLDER / "results.json", json.dumps(results, indent=1))
    write(FOLDER / "tables.md", tables(results))
    print(row(kind, line), flush=True)


def run(kind: str, cases: Iterable[tuple[str, Callable[[], dict[str, Any]]]], seconds: float) -> int:
    """Run named cases until time is up; returns an exit code. Failures are recorded, and the other cases run."""
    until = float(os.environ.get("FASTVAE_GPU_STOP", "inf")) - MARGIN  # when the stage will be stopped
    stop, failed = time.perf_counter() + min(seconds, until - time.time()), []
    done = {line["case"] for line in read().get(kind, [])}
    print(HEADS[kind])
    for name, case in cases:
        if name in done:
            continue
        if time.perf_counter() > stop:
            add(kind, {"case": name, "error": "not reached: the time was over"})
            continue
        lost = False
        try:
            line = {"case": name, **case()}
        except Exception as error:  # the other cases run after any error
            traceback.print_exc()
            line = {"case": name, "error": f"{type(error).__name__}: {error}".strip().split("\n")[0]}
            failed.append(name)
            lost = isinstance(error, CaptureFailed)
        add(kind, line)
        if "error" in line and (lost or not still_answers()):
            print(f"the GPU does not answer after {name}", flush=True)
            return CONTEXT_LOST
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def row(kind: str, line: dict[str, Any]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(cells(kind, line)) + " |"


def cells(kind: str, line: dict[str, Any]) -> list[str]:
    """The cells of a row."""
    columns = HEADS[kind].split("\n")[0].count("|") - 1
    if "error" in line:
        return [line["case"], line["error"].replace("|", "/"), *[""] * (columns - 2)]
    times, ours = line["seconds"], line["seconds"]["fastvae"]
    us = f"{1e6 * ours:.1f}"
    if kind == "tuning":
        return [*map(str, line["point"]), us, f"{100 * times['copy'] / ours:.0f} %"]
    rivals = ("eager", "compile") if kind == "bench" else ("eager", "compile", "captured", "eager, captured")
    found = [f"{times[name] / ours:.2f}" if name in times else "" for name in rivals]
    if kind == "step":
        return [line["case"], us, *found]
    if line["bytes"] < IN_CACHES:
        return [line["case"], us, *found, "", ""]
    return [line["case"], us, *found, f"{line['bytes'] / ours / 1e12:.2f}", f"{100 * times['copy'] / ours:.0f} %"]


def table(kind: str, results: dict[str, Any]) -> list[str]:
    """Lines of Markdown; the points of a tuning by row, dtype and time."""
    lines = results[kind]
    if kind == "tuning":
        lines = sorted(lines, key=lambda line: (*line.get("point", ())[:2], line.get("seconds", {}).get("fastvae", 9)))
    return [NOTES[kind], "", HEADS[kind], *(row(kind, line) for line in lines), ""]


def tables(results: dict[str, Any], kinds: Iterable[str] = HEADS) -> str:
    """All tables with rows, preceded by the machine they were measured on."""
    of = results["about"]
    machine = f"{of['device']}, torch {of['torch']}, triton {of['triton']}, commit {of['commit']}, {of['date']}."
    return "\n".join([machine, "", *(text for kind in kinds if results.get(kind) for text in table(kind, results))])
