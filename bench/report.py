"""Tables and sentences about a run: on the terminal, in docs/bench/README.md, and in short in the README."""

from collections.abc import Iterable, Sequence
from typing import Any

from .labels import contender

Run = dict[str, Any]
Case = dict[str, Any]

BEGIN, END = "<!-- bench report begins -->", "<!-- bench report ends -->"
NOT_YET = "## How fast\n\nNot yet run: `make bench` measures, and writes what it found here."
JOBS = {"elbo": "ELBO of a VAE", "gmm": "Gaussian mixtures", "regression": "Linear regression"}
WHAT = {  # by how the names of cases begin
    "elbo": "value and gradients for a batch of N x D, L latent elements, x_hat given, float32",
    "sample + KL": "noise, sampling, KL and their gradients for N x L, with a decoder that costs nothing",
    "reparameterize, KL": "the same in two calls",
    "training step": "one whole step of the VAE of `make train`, Adam included",
    "em": "one EM iteration on N x D, K components, float64",
    "fit": "a whole fit, from k-means to convergence or 50 iterations",
    "mixtures": "whole fits of B problems of N x D; scikit-learn loops over 20 of them, with all threads over 5",
    "regressions": "B problems of N x P; fastvae returns standard errors, likelihoods and more, the others coefficients"
    " (statsmodels: and standard errors)",
    "tall": "one regression of N x P, likewise; `NumPy X.T @ X alone` is a single matrix product",
}
PEAKS = {"copy": "memory copy", "dgemm": "matrix product"}  # of the machine, measured when the run begins
UNITS = ((1e6, "s"), (1e3, "ms"), (1, "us"))
NOTABLE = 0.1  # a change between runs, relative


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown whose columns line up on a terminal as well."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def duration(us: float) -> str:
    """Three digits and a unit."""
    size, unit = next((size, unit) for size, unit in UNITS if us >= size or size == 1)
    return f"{us / size:.3g} {unit}"


def figure(value: float) -> str:
    """Two or three digits, without an exponent."""
    decimals = next((d for d, least in ((0, 99.95), (1, 9.995), (2, 0.0995)) if value >= least), 3)
    return f"{value:.{decimals}f}"


def spread(quartiles: Sequence[float]) -> str:
    """Median, and quartiles in brackets."""
    low, median, high = map(figure, quartiles)
    return f"{median} ({low} - {high})"


def durations(quartiles: Sequence[float]) -> str:
    """Median and quartiles in the unit of the median."""
    size, unit = next((size, unit) for size, unit in UNITS if quartiles[1] >= size or size == 1)
    return f"{spread([q / size for q in quartiles])} {unit}"


def share(case: Case, run: Run) -> tuple[float, str] | None:
    """Our part of what the measured peaks allow, and the peak that binds; None where nothing is counted."""
    memory = case["bytes"] / (1e3 * run["peaks"]["copy GB/s"])
    arithmetic = case["flops"] / (1e3 * run["peaks"]["dgemm GFLOP/s"])
    if not memory and not arithmetic:
        return None
    return max(memory, arithmetic) / case["us"][case["ours"]][1], "copy" if memory >= arithmetic else "dgemm"


def one_line(case: Case) -> str:
    """The result of a case, printed as soon as it was measured."""
    others = [f"{name} {figure(ratio[1])}x" for name, ratio in case["ratio"].items()]
    others += [f"{name} not installed" for name in case["missing"]]
    return f"{duration(case['us'][case['ours']][1])}; " + ", ".join(others)


def heading(run: Run) -> str:
    """Machine, date, commit, peaks."""
    machine, dirty = run["machine"], " with changes" if run["dirty"] else ""
    flags = f" ({', '.join(machine['flags'])})" if machine["flags"] else ""
    peaks = ", ".join(f"{name.split()[0]} {value:g} {name.split()[1]}" for name, value in run["peaks"].items())
    commit = f"commit {run['commit'] or 'unknown'}{dirty}"
    threads = f"{machine['cores']} cores, {machine['threads']} threads"
    return f"{machine['cpu']}{flags}, {threads}; {run['date'][:10]}; {commit}; measured peaks: {peaks}"


def versions(run: Run) -> str:
    """Of what is installed."""
    return ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version)


def missing(run: Run) -> list[str]:
    """Other libraries that were not installed."""
    return sorted({contender(name).label for case in run["cases"] for name in case["missing"]})


def cases_of(run: Run, job: str) -> list[Case]:
    """In the order they ran."""
    return [case for case in run["cases"] if case["job"] == job]


def names(cases: Sequence[Case], kind: str) -> list[str]:
    """Of all contenders of that kind, without repetition."""
    found = [name for case in cases for name in case[kind]]
    if kind == "rivals":
        found += [name for case in cases for name in case["missing"]]
    return list(dict.fromkeys(found))


def rivals_table(cases: Sequence[Case]) -> list[str]:
    """Our time, and each rival's as a multiple of it."""
    rivals = names(cases, "rivals")

    def cell(case: Case, name: str) -> str:
        return (
            "not installed" if name in case["missing"] else spread(case["ratio"][name]) if name in case["ratio"] else ""
        )

    rows = [
        [case["name"], durations(case["us"][case["ours"]]), *(cell(case, name) for name in rivals)] for case in cases
    ]
    return table(["case", "fastvae", *(contender(name).label for name in rivals)], rows)


def limits_table(run: Run, cases: Sequence[Case]) -> list[str]:
    """Speeds and their share of the machine's limit, variants of ours, and memory."""
    others, rivals = names(cases, "limits") + names(cases, "variants"), names(cases, "rivals")
    rows = []
    for case in cases:
        us, found = case["us"][case["ours"]][1], share(case, run)
        rates = [f"{case['bytes'] / us / 1e3:.1f}", f"{case['flops'] / us / 1e3:.1f}"]
        rates = [rate if float(rate) else "" for rate in rates]
        part = f"{100 * found[0]:.0f} % of {PEAKS[found[1]]}" if found else ""
        ratios = [spread(case["ratio"][name]) if name in case["ratio"] else "" for name in others]
        memory = {name: f"{case['memory'][name] / 1e6:.1f}" for name in rivals if name in case["memory"]}
        ours = f"{case['memory'][case['ours']] / 1e6:.1f}" if case["ours"] in case["memory"] else ""
        rows.append(
            [
                case["name"],
                *rates,
                part,
                *ratios,
                ours,
                ", ".join(f"{contender(name).label} {m}" for name, m in memory.items()),
            ]
        )
    return table(["case", "GB/s", "GFLOP/s", "share of the limit", *others, "MB", "MB of others"], rows)


def losses(run: Run) -> list[tuple[str, str, list[float]]]:
    """Case, rival and ratio wherever a rival's median is below ours, the largest loss first."""
    found = [(case["name"], name, case["ratio"][name]) for case in run["cases"] for name in case["rivals"]]
    return sorted((loss for loss in found if loss[2][1] < 1), key=lambda loss: loss[2][1])


def losses_text(run: Run) -> list[str]:
    """A line for each case in which another library was faster, and the libraries that were not installed."""
    lines = []
    for case, name, ratio in losses(run):
        near = ", within the spread of rounds" if ratio[2] >= 1 else ""
        lines.append(f"- {case}: {contender(name).label} takes {spread(ratio)} times as long as fastvae{near}")
    lines = lines or ["fastvae was the fastest in every case."]
    if missing(run):
        lines += ["", f"Not installed, and not timed: {', '.join(missing(run))}."]
    return lines


def changes(run: Run, before: Run | None) -> list[str]:
    """Cases whose time differs by more than a tenth, and by more than the spread of either run."""
    if before is None:
        return ["No earlier run on a machine like this one."]
    earlier = {case["name"]: case["us"][case["ours"]] for case in before["cases"]}
    now = {case["name"]: case["us"][case["ours"]] for case in run["cases"]}
    rows = []
    for name in [name for name in now if name in earlier]:
        (low, median, high), (was_low, was, was_high) = now[name], earlier[name]
        if abs(median / was - 1) > NOTABLE and (low > was_high or high < was_low):
            rows.append([name, duration(was), duration(median), figure(median / was)])
    common = sum(name in earlier for name in now)
    peaks = ", ".join(f"{name} {before['peaks'][name]:g} then, {value:g} now" for name, value in run["peaks"].items())
    first = (
        f"Against {before['date'][:10]}, commit {before['commit'] or 'unknown'}: {common - len(rows)} of {common} cases"
    )
    text = [f"{first} within {NOTABLE:.0%} or the spread of their quartiles. Peaks: {peaks}."]
    text += [f"New: {', '.join(name for name in now if name not in earlier)}."] if len(now) > common else []
    gone = [name for name in earlier if name not in now]
    text += [f"Removed: {', '.join(gone)}."] if gone else []
    updated = [f"{name} {before['versions'].get(name)} to {v}" for name, v in run["versions"].items()]
    updated = [text for text, name in zip(updated, run["versions"], strict=True) if differs(run, before, name)]
    text += [f"Versions: {', '.join(updated)}."] if updated else []
    return [*text, "", *table(["case", "before", "now", "now / before"], rows)] if rows else text


def differs(run: Run, before: Run, package: str) -> bool:
    """Whether another version was installed."""
    return run["versions"].get(package) != before["versions"].get(package)


def first_calls(run: Run) -> list[str]:
    """Seconds of the first call of a process."""
    rows = [
        [name, *(f"{seconds[when]:.2f} s" for when in ("cold", "warm"))] for name, seconds in run["first calls"].items()
    ]
    lines = table(["first call of a process", "compiling", "from the disk cache"], rows) if rows else []
    notes = [f"{name}: {value:g}" for figures in run["notes"].values() for name, value in figures.items()]
    return [*lines, "", *notes] if notes else lines


def tables(run: Run) -> list[str]:
    """All of a run for the terminal."""
    lines = []
    for job in JOBS:
        if cases := cases_of(run, job):
            lines += [f"{JOBS[job]}: {MULTIPLES}", *rivals_table(cases), ""]
            lines += ["Share of the machine's limit", *limits_table(run, cases), ""]
    return [*lines, *first_calls(run), "", "Where another library is faster:", *losses_text(run)]


def legend(cases: Sequence[Case]) -> list[str]:
    """What the cases do, one line for each kind of them."""
    return [f"- `{start}`: {what}" for start, what in WHAT.items() if any(c["name"].startswith(start) for c in cases)]


def section(run: Run | None) -> str:
    """What the README says between its markers."""
    if run is None:
        return NOT_YET
    shown = [case for case in run["cases"] if case["shown"]]
    rows = []
    for case in shown:
        ratios = [f"{contender(name).label} {figure(case['ratio'][name][1])}" for name in case["rivals"]]
        found = share(case, run)
        part = f"{100 * found[0]:.0f} % of {PEAKS[found[1]]}" if found else ""
        rows.append([case["name"], duration(case["us"][case["ours"]][1]), ", ".join(ratios), part])
    lost, races = losses(run), sum(len(case["rivals"]) for case in run["cases"])
    where = f"Another library was faster in {len(lost)} of {races}" if lost else f"fastvae was faster in all {races}"
    absent = f" Not installed: {', '.join(missing(run))}." if missing(run) else ""
    lines = [
        *["## How fast", "", INTRODUCTION, "", f"![{OVERVIEW}](docs/bench/overview.svg)", ""],
        *table(["case", "fastvae", "others, as multiples of fastvae's time", "share of the limit"], rows),
        *["", *legend(shown), ""],
        f"{where} comparisons on this machine: [all cases, with quartiles, memory and method](docs/bench/README.md)."
        f"{absent}",
        *["", f"{heading(run)}; {versions(run)}."],
    ]
    return "\n".join(lines)


def page(run: Run, before: Run | None) -> str:
    """docs/bench/README.md."""
    lines = [
        "# How fast",
        "",
        "Written by `python -m bench report` from the last line of `bench/history/runs.jsonl`. The charts are drawn for"
        " releases, by `python -m bench report --charts`, and say of which commit they are.",
        "",
    ]
    lines += [f"{heading(run)}; {versions(run)}. The run took {run['seconds']} s.", ""]
    lines += ["## Where another library is faster", "", *losses_text(run), ""]
    lines += ["## Method, and the limits of the machine", "", METHOD, "", f"![{LIMITS}](limits.svg)", ""]
    for job, title in JOBS.items():
        if cases := cases_of(run, job):
            lines += [f"## {title}", "", f"![{title}: {MULTIPLES}]({job}.svg)", "", *legend(cases), ""]
            lines += [f"{MULTIPLES[0].upper()}{MULTIPLES[1:]}, median (quartiles):", "", *rivals_table(cases), ""]
            lines += [f"{VARIANTS}:", "", *limits_table(run, cases), ""]
    lines += ["## First calls", "", *first_calls(run), ""]
    lines += ["## Since the last run on a machine like this one", "", *changes(run, before), ""]
    return "\n".join(lines)


OVERVIEW = "Time of other libraries relative to fastvae, by job"
LIMITS = "Share of the machine's limit that fastvae reaches, case by case"
MULTIPLES = "time of other libraries, as a multiple of fastvae's"
VARIANTS = "Share of the machine's limit; times of limits and variants as multiples of fastvae's; peak memory"

INTRODUCTION = """\
Times of other libraries as multiples of fastvae's, measured in turn in one run: 3 is three times as long, below 1 is
faster than fastvae. Each result is compared with a reference before it is timed. The share of the limit is relative to
the speed at which this machine copies memory, or multiplies matrices."""

METHOD = """\
Each result is compared with a reference before it is timed. The contenders take turns within one run, and a ratio is
that of two times of the same round, so that a drift of the machine's speed favours none of them. A turn of calls below
0.1 s begins with 20 ms that are not timed: caches are as warm as in a loop of that call alone. Fast calls are repeated
for 2 ms a round; calls of more than 0.3 s have at least three rounds, those of fastvae at least five. scikit-learn and
`torch.linalg.lstsq` run on one thread or on all, whichever is faster.

The share of the limit is the least time that a case could take, over the time it takes: its bytes at the bandwidth of a
large copy, or its operations at the speed of a matrix product, both measured at the start of the run. Above 100 % the
data move faster than in that copy, as they can where some of them stay in a cache. `floor`, `read` and `dgemm` take
turns with the others: they move the same data (read both arrays and write one; read the rows) or compute as many
products, and do nothing else. Memory is the most that torch and NumPy allocated during a call; other allocators, such
as oneDAL's, are not seen, and calls of more than a second are not traced."""


def replace(text: str, new: str) -> str:
    """Put it between the markers."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{new}\n\n{END}{rest.partition(END)[2]}"


def between(text: str) -> str:
    """What stands between the markers."""
    return text.partition(BEGIN)[2].partition(END)[0].strip()
