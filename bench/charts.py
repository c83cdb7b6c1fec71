"""The report's pictures: SVG without a background, in greys and colours that are seen on white and on black alike."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from .report import JOBS, Case, Run, cases_of, share

GREY = "#808080"
# contrast of at least 3 with white and with GitHub's black
ORANGE, BLUE, GREEN, PURPLE = "#d9730d", "#3b82d0", "#2e9e5b", "#a864d8"
RED, OLIVE, TEAL = "#d6457a", "#8a8a1e", "#149aa0"
COLOURS = {
    "eager": ORANGE,
    "compile": BLUE,
    "reference": GREEN,
    "scikit-learn": PURPLE,
    "scikit-learn (1 thread)": OLIVE,
    "oneDAL": RED,
    "numpy": TEAL,
    "bmm": OLIVE,
    "lstsq": ORANGE,
    "statsmodels": BLUE,
    "BLAS X'X": RED,
}
MARKERS = "osD^vPX*h"
STYLE = {
    **dict.fromkeys(["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"], GREY),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 11,
    "legend.frameon": False,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.8,
    "svg.hashsalt": "fastvae",
}
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


@contextmanager
def picture(run: Run, path: Path, height: float, **panels: Any) -> Iterator[Any]:
    """Axes; saved with the run's date and commit in it, from which a test knows it."""
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(9, height), layout="constrained", **panels)
        yield axes
        about = {"Description": mark(run), "Date": None}
        figure.savefig(path, transparent=True, metadata=about)
        pyplot.close(figure)


def mark(run: Run) -> str:
    """What a picture is known by."""
    return f"{run['date']} {run['commit']}"


def logarithmic(axis: Any, formatter: Any) -> None:
    """With few numbers, none in powers of ten."""
    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
    axis.set_major_formatter(formatter)
    axis.set_minor_formatter(NullFormatter())


def legend(axes: Any, handles: dict[str, Any]) -> None:
    """To the right."""
    where = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "handletextpad": 0.3, "borderaxespad": 0.8}
    axes.legend(handles.values(), handles.keys(), **where)


def label_rows(axes: Any, labels: Sequence[str]) -> None:
    """From the top down, as a table reads."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def overview(run: Run, path: Path) -> None:
    """A row for each case that the README shows, a dot for each rival; left of 1 is a loss."""
    shown = {job: [case for case in cases_of(run, job) if case["shown"]] for job in JOBS}
    shown = {job: cases for job, cases in shown.items() if cases}
    sizes = [len(cases) + 0.2 for cases in shown.values()]
    with picture(
        run, path, 1 + 0.4 * sum(sizes), nrows=len(shown), sharex=True, squeeze=False, height_ratios=sizes
    ) as panels:
        for axes, cases in zip(panels[:, 0], shown.values(), strict=True):
            handles: dict[str, Any] = {}
            for y, case in enumerate(cases):
                for name in case["rivals"]:
                    low, median, high = case["ratio"][name]
                    axes.plot([low, high], [y, y], color=COLOURS.get(name, GREY), lw=2, alpha=0.5)
                    (handles[name],) = axes.plot([median], [y], "o", color=COLOURS.get(name, GREY), ms=8)
            logarithmic(axes.xaxis, PLAIN)
            axes.axvline(1, color=GREY, lw=1.5)
            label_rows(axes, [case["name"] for case in cases])
            axes.grid()
            legend(axes, handles)
        panels[-1, 0].set_xlabel("time of a rival as a multiple of fastvae's; left of 1 it is faster")


def family(case: Case) -> str:
    """What cases of a job differ in besides their size: the words before the numbers."""
    words = case["name"].split()
    return " ".join(words[: next((i for i, word in enumerate(words) if word[0].isdigit()), len(words))]).rstrip(",")


def over_size(run: Run, job: str, path: Path) -> None:
    """Ratios over the number of elements; colour tells the rival, the shape of a point the kind of case."""
    cases = cases_of(run, job)
    families = list(dict.fromkeys(map(family, cases)))
    marker = {kind: MARKERS[i % len(MARKERS)] for i, kind in enumerate(families)}
    handles: dict[str, Any] = {}
    with picture(run, path, 4.8) as axes:
        for case in cases:
            x = case["elements"]
            for name in case["rivals"]:
                (low, median, high), colour = case["ratio"][name], COLOURS.get(name, GREY)
                axes.vlines(x, low, high, color=colour, lw=2, alpha=0.4)
                axes.plot([x], [median], marker[family(case)], color=colour, ms=7, alpha=0.9)
                (handles[name],) = axes.plot([], [], "o", color=colour, ms=7)
        for kind in families if len(families) > 1 else []:
            (handles[kind],) = axes.plot([], [], marker[kind], color=GREY, ms=7, mfc="none", ls="")
        logarithmic(axes.xaxis, EngFormatter(sep=""))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        logarithmic(axes.yaxis, PLAIN)
        axes.axhline(1, color=GREY, lw=1.5)
        axes.grid()
        axes.set_xlabel("elements of the data")
        axes.set_ylabel("time as a multiple of fastvae's")
        legend(axes, handles)


def limits(run: Run, path: Path) -> None:
    """The share of the peak that binds, case by case."""
    found = [(case["name"], share(case, run)) for case in run["cases"]]
    bars = [(name, *part) for name, part in found if part]
    colour, handles = {"copy": BLUE, "dgemm": ORANGE}, {}
    says = {"copy": "of a copy's\nbandwidth", "dgemm": "of the speed of\na matrix product"}
    with picture(run, path, 1.2 + 0.27 * len(bars)) as axes:
        for y, (_, part, peak) in enumerate(bars):
            handles[says[peak]] = axes.barh(y, 100 * part, 0.7, color=colour[peak])
        axes.axvline(100, color=GREY, lw=1.5)
        label_rows(axes, [f"{name}   {100 * part:>4.0f} %" for name, part, _ in bars])
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel("share of the measured peak, %; beyond 100 the data lay in a cache")
        legend(axes, handles)


def draw(run: Run, folder: Path) -> list[Path]:
    """All of them."""
    paths = [folder / "overview.svg", folder / "limits.svg"]
    overview(run, paths[0])
    limits(run, paths[1])
    for job in JOBS:
        if cases_of(run, job):
            paths.append(folder / f"{job}.svg")
            over_size(run, job, paths[-1])
    return paths
