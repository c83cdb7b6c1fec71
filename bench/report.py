"""What a run says, in words and tables: on the terminal, in docs/bench/README.md, and in short in the README."""

from collections.abc import Iterable, Sequence
from typing import Any

Run = dict[str, Any]
Case = dict[str, Any]

BEGIN, END = "<!-- bench report begins -->", "<!-- bench report ends -->"
NOT_YET = "## How fast\n\nNot yet run: `make bench` measures, and writes what it found here."
JOBS = {"elbo": "ELBO of a VAE", "gmm": "Gaussian mixtures", "regression": "Linear regression"}
WHAT = {  # by how the names of cases begin
    "elbo": "value and gradients for a batch N x D, L latent elements, x_hat given, float32",
    "sample + KL": "noise, sampling, KL and their gradients, N x L, around a decoder that costs nothing",
    "reparameterize, KL": "the same as two calls",
    "training step": "a whole step of the network of `make train`, Adam included",
    "em": "one iteration of EM on N x D, K components, float64",
    "fit": "a whole fit, from k-means to convergence or 50 iterations",
    "mixtures": "whole fits of B problems of N x D; of scikit-learn's loop, 20 problems are timed, as installed 5",
    "regressions": "B problems of N x P, ours with standard errors, likelihood and more, rivals coefficients alone",
    "tall": "one regression of N x P; rivals as above, `BLAS X'X` a single product",
}
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
    """What is said as soon as a case was measured."""
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
    """Rivals that were not installed."""
    return sorted({name for case in run["cases"] for name in case["missing"]})


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
    return table(["case", "fastvae", *rivals], rows)


def limits_table(run: Run, cases: Sequence[Case]) -> list[str]:
    """How near the machine's limits, how our variants compare, and memory."""
    others, rivals = names(cases, "limits") + names(cases, "variants"), names(cases, "rivals")
    rows = []
    for case in cases:
        us, found = case["us"][case["ours"]][1], share(case, run)
        rates = [f"{case['bytes'] / us / 1e3:.1f}", f"{case['flops'] / us / 1e3:.1f}"]
        rates = [rate if float(rate) else "" for rate in rates]
        part = f"{100 * found[0]:.0f} % of {found[1]}" if found else ""
        ratios = [spread(case["ratio"][name]) if name in case["ratio"] else "" for name in others]
        memory = {name: f"{case['memory'][name] / 1e6:.1f}" for name in rivals if name in case["memory"]}
        ours = f"{case['memory'][case['ours']] / 1e6:.1f}" if case["ours"] in case["memory"] else ""
        rows.append([case["name"], *rates, part, *ratios, ours, ", ".join(" ".join(pair) for pair in memory.items())])
    return table(["case", "GB/s", "GFLOP/s", "share of peak", *others, "MB", "MB of rivals"], rows)


def losses(run: Run) -> list[tuple[str, str, list[float]]]:
    """Case, rival and ratio wherever a rival's median is below ours, the worst first."""
    found = [(case["name"], name, case["ratio"][name]) for case in run["cases"] for name in case["rivals"]]
    return sorted((loss for loss in found if loss[2][1] < 1), key=lambda loss: loss[2][1])


def losses_text(run: Run) -> list[str]:
    """A sentence for each, and for rivals that were not there."""
    lines = []
    for case, name, ratio in losses(run):
        near = ", which is within the spread of rounds" if ratio[2] >= 1 else ""
        lines.append(f"- {case}: `{name}` takes {spread(ratio)} of our time{near}")
    lines = lines or ["In no case was a rival faster."]
    if missing(run):
        lines += ["", f"Not installed, so not raced: {', '.join(missing(run))}."]
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
    text += [f"No longer there: {', '.join(gone)}."] if gone else []
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
            lines += [f"{JOBS[job]}: rivals' times as multiples of ours", *rivals_table(cases), ""]
            lines += ["Against the limits", *limits_table(run, cases), ""]
    return [*lines, *first_calls(run), "", "Where a rival is faster:", *losses_text(run)]


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
        ratios = [f"{name} {figure(case['ratio'][name][1])}" for name in case["rivals"]]
        found = share(case, run)
        part = f"{100 * found[0]:.0f} % of {found[1]}" if found else ""
        rows.append([case["name"], duration(case["us"][case["ours"]][1]), ", ".join(ratios), part])
    lost, races = losses(run), sum(len(case["rivals"]) for case in run["cases"])
    where = (
        f"A rival is faster in {len(lost)} of {races} comparisons" if lost else f"None of {races} comparisons is lost"
    )
    absent = f" Not installed: {', '.join(missing(run))}." if missing(run) else ""
    lines = [
        *["## How fast", "", INTRODUCTION, "", "![How many times as long rivals take](docs/bench/overview.svg)", ""],
        *table(["case", "fastvae", "rivals' times, as multiples", "of measured peak"], rows),
        *["", *legend(shown), ""],
        f"{where}: [which, and all cases with quartiles, memory and method](docs/bench/README.md).{absent}",
        *["", f"{heading(run)}; {versions(run)}."],
    ]
    return "\n".join(lines)


def page(run: Run, before: Run | None) -> str:
    """docs/bench/README.md."""
    lines = [
        "# How fast",
        "",
        "Written by `python -m bench report` from the last line of `bench/history/runs.jsonl`.",
        "",
    ]
    lines += [f"{heading(run)}; {versions(run)}. The run took {run['seconds']} s.", ""]
    lines += ["## Where not to use it: a rival is faster", "", *losses_text(run), ""]
    lines += ["## How near the limits", "", "![Share of the measured peak](limits.svg)", "", METHOD, ""]
    for job, title in JOBS.items():
        if cases := cases_of(run, job):
            lines += [f"## {title}", "", f"![Ratio over size]({job}.svg)", "", *legend(cases), ""]
            lines += ["Rivals' times as multiples of ours, median (quartiles):", "", *rivals_table(cases), ""]
            lines += ["Limits, variants of ours as multiples of ours, peak memory:", "", *limits_table(run, cases), ""]
    lines += ["## First calls", "", *first_calls(run), ""]
    lines += ["## Since the last run on such a machine", "", *changes(run, before), ""]
    return "\n".join(lines)


INTRODUCTION = """\
Times of rivals as multiples of ours, all taken in turn in one run: at 3 a rival takes three times as long, below 1 it
is faster. No case is timed before its result agrees with a reference. `of measured peak` compares with the machine's
own copy of memory or product of matrices."""

METHOD = """\
Each result is compared with a reference before it is timed. Contenders take turns within one run; a ratio is that of
two times of the same round, so that a machine whose speed drifts favours nobody. A turn of calls below 0.1 s begins
with 20 ms that are not timed: what stays in a cache from call to call is there, as in a loop of its own, and not what a
rival left. Fast calls are repeated to 2 ms a round; what takes longer than 0.3 s has at least three rounds, ours at
least five. scikit-learn and `lstsq` run on one thread or on all, whichever is faster. The share of peak is the least
time that the case's bytes at the bandwidth of a copy, or its operations at the speed of a matrix product (both measured
at the start of the run), would take, over our time; beyond 100 % the data lay in a cache. `floor`, `read` and `dgemm`
took part in the race: they move the same data (read both arrays and write one; read the rows) or compute as many
products, and do nothing else. Memory is what torch and NumPy held at most beyond what was there; other allocators,
oneDAL's among them, are not seen, and calls of more than a second are not traced."""


def replace(text: str, new: str) -> str:
    """Put it between the markers."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{new}\n\n{END}{rest.partition(END)[2]}"


def between(text: str) -> str:
    """What stands between the markers."""
    return text.partition(BEGIN)[2].partition(END)[0].strip()
