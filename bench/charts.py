"""The report's charts: SVG on white, narrow enough for a phone, whose rows are understood without a caption."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from .labels import GREY, INK, SHAPES, colour, contender, family, heading, order, short, size
from .report import JOBS, PEAKS, Case, Run, cases_of, duration, share

PANEL, BEYOND = "#f0f2f4", "#6e7781"
WIDTH, LINE = 5.0, 0.185  # inches: of a chart, and of a row
NAMES, RIGHT, EDGE = 1.55, 0.78, 0.08  # inches: for the names of rows, for figures, and of the border
TOP, BOTTOM, GAP = 2.7, 3.1, 0.6  # rows above, below and between the panels
KEYS = 3  # explanations of markers in a line
STYLE = {
    **dict.fromkeys(["text.color", "axes.labelcolor", "xtick.color"], INK),
    "font.size": 8.5,
    # text stays text, in a font of the reader's: a third of the bytes. DejaVu Sans comes with matplotlib, and is wide
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans"],
    "svg.hashsalt": "fastvae",
}


@dataclass(frozen=True)
class Block:
    """A panel: a title with a note to its right, what its markers mean, and a row for each case."""

    title: str
    note: str = ""
    cases: list[Case] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    @property
    def above(self) -> int:
        """Lines above the rows."""
        return bool(self.title) + -(-len(self.keys) // KEYS)


def mark(run: Run) -> str:
    """What tells the run of a chart, in its metadata."""
    return f"{run['date']} {run['commit']}"


@contextmanager
def sheet(run: Run, path: Path, title: str, blocks: Sequence[Block], shown: str, left: float = NAMES) -> Iterator[Any]:
    """Axes in which y counts lines from the top; a title above, and below what is ``shown``, and of which run."""
    lines = sum(block.above + len(block.cases) + GAP for block in blocks) - GAP
    height = LINE * (lines + TOP + BOTTOM)
    with matplotlib.rc_context(STYLE):
        figure = pyplot.figure(figsize=(WIDTH, height), facecolor="white")
        sides = {"left": left / WIDTH, "right": 1 - RIGHT / WIDTH}
        figure.subplots_adjust(**sides, top=1 - LINE * TOP / height, bottom=LINE * BOTTOM / height)
        axes = figure.add_subplot(facecolor="none")
        axes.set_ylim(lines, 0)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.tick_params(axis="x", which="both", length=0, pad=3, labeltop=True)
        write(axes, 0.9 - TOP, title, weight="bold", size=10)
        machine = run["machine"]
        about = f"{shown}; {machine['cores']} cores of {machine['cpu']}, {run['date'][:10]}, commit {run['commit']}"
        write(axes, lines + BOTTOM - 0.6, about, color=GREY, size=7.5)
        yield axes
        figure.savefig(path, metadata={"Title": title, "Description": mark(run), "Date": None})
        pyplot.close(figure)


def write(axes: Any, line: float, text: str, right: bool = False, **style: Any) -> None:
    """Text in the middle of a line, at the left border or at the right one."""
    place = blended_transform_factory(axes.figure.dpi_scale_trans, axes.transData)
    style = {"ha": "right" if right else "left", "va": "center_baseline", "parse_math": False, **style}
    axes.text(WIDTH - EDGE if right else EDGE, line, text, transform=place, **style)


def panels(axes: Any, blocks: Sequence[Block], ticks: Sequence[float], strong: float) -> Iterator[tuple[Case, float]]:
    """Draw grounds, titles and keys, with lines at the ticks; yield each case with the middle of its row."""
    line, note = 0.0, ""
    for block in blocks:
        first, last = line + block.above, line + block.above + len(block.cases)
        if block.cases:
            axes.axhspan(first, last, color=PANEL, lw=0)
            axes.vlines(ticks, first, last, color="white", lw=1, zorder=1)
            axes.vlines(strong, first, last, color=INK, lw=1.2, zorder=1)
        write(axes, line + 0.5, block.title, weight="bold")
        if block.note != note:
            write(axes, line + 0.5, block.note, right=True, color=GREY, size=7.5)
        note = block.note
        draw_keys(axes, line + bool(block.title), block.keys)
        yield from ((case, first + 0.5 + i) for i, case in enumerate(block.cases))
        line = last + GAP


def draw_keys(axes: Any, line: float, names: Sequence[str]) -> None:
    """Markers and what they stand for, from left to right and then down."""
    for i, name in enumerate(names):
        place = blended_transform_factory(axes.figure.dpi_scale_trans, axes.transData)
        x, y = EDGE + i % KEYS * (WIDTH - 2 * EDGE) / KEYS, line + i // KEYS + 0.5
        shape = SHAPES[contender(name).marker]
        axes.add_line(Line2D([x + 0.05], [y], ls="", color=colour(name), transform=place, clip_on=False, **shape))
        axes.text(x + 0.15, y, contender(name).label, va="center_baseline", transform=place)


def rivals_of(cases: Sequence[Case]) -> list[str]:
    """Names of the contenders that were timed in some of these cases, those of a library side by side."""
    return sorted({name for case in cases for name in case["rivals"]}, key=order)


def multiples(run: Run, path: Path, title: str, blocks: Sequence[Block], name_of: Any, left: float = NAMES) -> None:
    """In the row of a case a marker for each rival: its time as a multiple of ours, and a line between quartiles."""
    values = [q for block in blocks for case in block.cases for name in case["rivals"] for q in case["ratio"][name]]
    low, high = min(0.8, *(v / 1.25 for v in values)), max(10.0, *(1.25 * v for v in values))
    steps = (1, 3) if high < 300 * low else (1,)
    ticks = [step * 10.0**power for power in range(-3, 6) for step in steps if low <= step * 10.0**power <= high]
    with sheet(run, path, title, blocks, "median and quartiles", left) as axes:
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("multiple of fastvae's time (log scale)", labelpad=2)
        write(axes, -0.7, "fastvae", right=True)
        for case, middle in panels(axes, blocks, ticks, 1):
            write(axes, middle, name_of(case["name"]))
            write(axes, middle, duration(case["us"][case["ours"]][1]), right=True)
            for name in case["rivals"]:
                first, median, third = case["ratio"][name]
                axes.hlines(middle, first, third, color=colour(name), lw=1.5, alpha=0.6, clip_on=False)
                shape = SHAPES[contender(name).marker]
                axes.plot([median], [middle], color=colour(name), clip_on=False, **shape)


def overview(run: Run, path: Path) -> None:
    """The cases that the README shows, a panel for each job."""
    blocks = []
    for job, title in JOBS.items():
        if cases := [case for case in cases_of(run, job) if case["shown"]]:
            blocks.append(Block(title, heading(cases[0]["name"])[1], cases, rivals_of(cases)))
    multiples(run, path, "Time of other libraries relative to fastvae", blocks, short, left=1.86)


def job_chart(run: Run, job: str, path: Path) -> None:
    """All cases of a job, a panel for each kind of them."""
    cases = cases_of(run, job)
    blocks = [Block(*heading(some[0]["name"]), some) for some in by_family(cases)]
    keys = Block("", keys=rivals_of(cases))
    multiples(run, path, f"{JOBS[job]}, time relative to fastvae", [keys, *blocks], size)


def by_family(cases: Sequence[Case]) -> list[list[Case]]:
    """Cases of a kind, which follow each other."""
    return [list(some) for _, some in groupby(cases, key=lambda case: family(case["name"]))]


def limits(run: Run, path: Path) -> None:
    """What share of the machine's limit is reached: of memory, or of arithmetic."""
    limit = {}
    for name, value in run["peaks"].items():
        peak, unit = name.split()
        limit[peak] = f"100 % = {PEAKS[peak]}, {value:.0f} {unit}"
    shares = {case["name"]: found for case in run["cases"] if (found := share(case, run))}
    blocks = []
    for peak, note in limit.items():
        bound = [case for case in run["cases"] if case["name"] in shares and shares[case["name"]][1] == peak]
        blocks += [Block(heading(some[0]["name"])[0], note, some) for some in by_family(bound)]
    high = max(100.0, *(100 * part for part, _ in shares.values()))
    ticks = range(0, int(high) + 1, 100 if high > 200 else 50)
    with sheet(run, path, "Share of the machine's limit that fastvae reaches", blocks, "medians") as axes:
        axes.set_xlim(0, high)
        axes.set_xticks(ticks, [f"{tick} %" for tick in ticks])
        axes.set_xlabel("share of the limit", labelpad=2)
        for case, middle in panels(axes, blocks, ticks, 100):
            part, peak = 100 * shares[case["name"]][0], shares[case["name"]][1]
            write(axes, middle, size(case["name"]))
            write(axes, middle, f"{part:.0f} %", right=True)
            axes.barh(middle, part, 0.66, color=BEYOND if part > 100 else INK, zorder=2)
            if part > 100:
                text = f"faster than a {PEAKS[peak].split()[-1]}"
                axes.text(0.01 * high, middle, text, color="white", va="center_baseline", size=7)


def draw(run: Run, folder: Path) -> list[Path]:
    """All of them."""
    paths = [folder / "overview.svg", folder / "limits.svg"]
    overview(run, paths[0])
    limits(run, paths[1])
    for job in JOBS:
        if cases_of(run, job):
            paths.append(folder / f"{job}.svg")
            job_chart(run, job, paths[-1])
    return paths
