"""The README's figures are those of the last run in the history; and how the report and its charts are made."""

import copy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import charts, conftest, history, labels, measure, report
from bench.__main__ import main

ROOT = Path(__file__).parents[2]
RUNS: list[dict[str, Any]] = history.read()


def test_the_readme_says_what_the_report_says():
    text = report.between((ROOT / "README.md").read_text(encoding="utf-8"))
    assert text == report.section(RUNS[-1] if RUNS else None), "renew it: python -m bench report"
    assert not RUNS or f"commit {RUNS[-1]['commit']}" in text


@pytest.mark.skipif(not RUNS, reason="no run of `make bench` is committed")
def test_the_tables_are_those_of_the_last_run():
    page = (ROOT / "docs" / "bench" / "README.md").read_text(encoding="utf-8")
    assert page == report.page(RUNS[-1], history.last_before(RUNS)), "renew it: python -m bench report"


@pytest.mark.skipif(not RUNS, reason="no run of `make bench` is committed")
def test_the_charts_are_of_one_run_in_the_history():
    """Not always the last: they are drawn for releases, by python -m bench report --charts."""
    drawn = [(ROOT / "docs" / "bench" / f"{name}.svg").read_text() for name in ("overview", "limits", *report.JOBS)]
    assert any(all(charts.mark(run) in chart and run["commit"] in chart for chart in drawn) for run in RUNS)


def case(job, name, ours, **ratios):
    """Ours takes so many microseconds, the others so many times as long; quartiles lie a tenth to each side."""
    about = {"job": job, "name": name, "shown": True, "elements": 1000, "ours": "fastvae", "bytes": 10_000, "flops": 0}
    kinds = {"rivals": [r for r in ratios if r != "floor"], "variants": [], "limits": ["floor"], "missing": []}
    us = {"fastvae": ours, **{rival: ours * ratio for rival, ratio in ratios.items()}}
    spread = {key: [0.9 * value, value, 1.1 * value] for key, value in us.items()}
    ratio = {key: [0.9 * value, value, 1.1 * value] for key, value in ratios.items()}
    return {**about, **kinds, "us": spread, "ratio": ratio, "rounds": {}, "memory": {"fastvae": 2_000_000}}


@pytest.fixture
def run():
    first = case("elbo", "elbo 128x784 L=20", 100.0, eager=3.0, compile=0.5, floor=0.25)
    second = case("gmm", "em full 1000x2 K=4", 2500.0, **{"scikit-learn": 40.0, "floor": 0.01})
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "commit": "abc",
        "dirty": False,
        "stamp": "0",
        "quick": False,
        "machine": {"cpu": "a CPU", "cores": 2, "threads": 2, "flags": ["avx2"], "system": "Linux"},
        "seconds": 600,
        "versions": {"python": "3.11", "numpy": "2.0"},
        "peaks": {"copy GB/s": 1.0, "dgemm GFLOP/s": 10.0},
        "cases": [first, second],
        "first calls": {"elbo": {"cold": 5.0, "warm": 0.5}},
        "notes": {},
        "failed": [],
    }


def test_losses_are_rivals_below_one_and_no_limits(run):
    assert [(name, rival) for name, rival, _ in report.losses(run)] == [("elbo 128x784 L=20", "compile")]
    line = "- elbo 128x784 L=20: torch.compile takes 0.50 (0.45 - 0.55) times as long as fastvae"
    assert line in report.losses_text(run)
    assert "Another library was faster in 1 of 3 comparisons" in report.section(run)
    del run["cases"][0]["ratio"]["compile"]
    run["cases"][0]["rivals"].remove("compile")
    assert "fastvae was faster in all 2 comparisons" in report.section(run)


def test_tables(run):
    _, _, row = report.rivals_table(run["cases"][:1])
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        *("elbo 128x784 L=20", "100 (90.0 - 110) us", "3.00 (2.70 - 3.30)", "0.50 (0.45 - 0.55)")
    ]
    assert report.share(run["cases"][0], run) == (pytest.approx(0.1), "copy")  # 10 us of copying, of 100
    assert "| 10 % of memory copy" in "\n".join(report.limits_table(run, run["cases"]))
    for text in (report.section(run), report.page(run, None)):
        assert all(fact in text for fact in ("a CPU", "2026-01-02", "commit abc", "numpy 2.0", "em full 1000x2 K=4"))


def test_what_is_missing_is_said(run):
    first = run["cases"][0]
    first["rivals"].remove("eager")
    del first["ratio"]["eager"]
    first["missing"] = ["eager"]
    assert "Not installed: PyTorch eager." in report.section(run)
    assert "not installed" in "\n".join(report.rivals_table(run["cases"]))
    assert "eager not installed" in report.one_line(first)


def test_changes_are_beyond_a_tenth_and_the_spread(run):
    before = copy.deepcopy(run)
    before["versions"]["numpy"] = "1.9"
    before["cases"][0]["us"]["fastvae"] = [180.0, 200.0, 220.0]
    before["cases"][1]["us"]["fastvae"] = [2000.0, 2100.0, 2400.0]  # within the spread
    text = "\n".join(report.changes(run, before))
    assert "1 of 2 cases within 10%" in text
    assert "numpy 1.9 to 2.0" in text
    rows = [line for line in text.splitlines() if line.startswith(("| elbo", "| em"))]
    assert [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows] == [
        ["elbo 128x784 L=20", "200 us", "100 us", "0.50"]
    ]
    assert report.changes(run, None) == ["No earlier run on a machine like this one."]


def test_the_run_before_is_of_such_a_machine(run):
    other: dict[str, Any] = {**run, "machine": {**run["machine"], "cores": 64}}
    assert history.last_before([run, other, run]) == run
    assert history.last_before([other, run]) is None


def test_from_history_to_readme(run, tmp_path, capsys):
    line, readme = tmp_path / "runs.jsonl", tmp_path / "README.md"
    readme.write_text(f"before\n\n{report.BEGIN}\n\n{report.NOT_YET}\n\n{report.END}\n\nafter\n")
    arguments = ["report", "--history", str(line), "--root", str(tmp_path)]
    main(arguments)
    assert "no run in runs.jsonl yet" in capsys.readouterr().out
    history.append(run, line)
    for _ in range(2):  # a second time changes nothing
        main(arguments)
        text = readme.read_text()
        assert text.startswith("before\n\n<!--")
        assert text.endswith("-->\n\nafter\n")
        assert report.between(text) == report.section(run)
    folder = tmp_path / "docs" / "bench"
    assert [path.name for path in folder.iterdir()] == ["README.md"]
    drawn = []
    for _ in range(2):
        main([*arguments, "--charts"])
        drawn.append({path.name: path.read_text() for path in folder.glob("*.svg")})
    assert set(drawn[0]) == {"overview.svg", "limits.svg", "elbo.svg", "gmm.svg"}
    assert drawn[0] == drawn[1]
    for name, chart in drawn[0].items():
        assert charts.mark(run) in chart
        assert "commit abc" in chart
        assert ("torch.compile" in chart) == (name in ("overview.svg", "elbo.svg"))


def test_a_colour_is_a_library_in_all_charts():
    """What is called in a library has a marker of its own; and the charts know all that was ever timed."""
    known = labels.CONTENDERS.values()
    assert len(set(labels.COLOURS.values())) == len(labels.COLOURS)
    for run in RUNS:
        assert {labels.family(case["name"]) for case in run["cases"]} <= set(labels.FAMILIES)
        for job in report.JOBS:
            rivals = charts.rivals_of(report.cases_of(run, job))
            assert set(rivals) <= set(labels.CONTENDERS)
            assert len({(labels.colour(name), labels.contender(name).marker) for name in rivals}) == len(rivals)
    assert labels.contender("unknown").label == "unknown"
    assert labels.colour("unknown") not in [labels.COLOURS[entry.library] for entry in known]


@pytest.mark.parametrize(
    ("case", "size", "short"),
    [
        ("elbo 128x20000 L=10", "128 × 20k, L = 10", "ELBO 128 × 20k, L = 10"),
        ("sample + KL 4096x512", "4096, L = 512", "sample + KL 4096, L = 512"),
        ("training step 8x8", "8 × 8 images", "training step 8 × 8 images"),
        ("em diag 1000000x4 K=8", "1M × 4, K = 8", "EM diag 1M × 4, K = 8"),
        ("mixtures 10000x200x2 K=3", "10k of 200 × 2, K = 3", "10k fits 200 × 2, K = 3"),
        ("tall 1500000x4", "1500k × 4", "regression 1500k × 4"),
        ("something new", "", "something new"),
    ],
)
def test_rows_are_named_in_words(case, size, short):
    assert labels.size(case) == size
    assert labels.short(case).strip() == short


def test_the_stamp_is_of_code_alone(tmp_path):
    file = tmp_path / "kernel.py"
    stamps = []
    for code in (
        '"""Doc."""\nx = 1\n',
        "# why\nx   = 1\n",
        "def f():\n    return 1\n",
        'def f():\n    "Doc."\n    return 1',
    ):
        file.write_text(code)
        stamps.append(history.stamp.__wrapped__(tmp_path))  # which keeps what it said
    assert stamps[0] == stamps[1] != stamps[2] == stamps[3]


def test_the_report_counts_the_commits_that_touched_kernels_since(monkeypatch):
    run = {"commit": "abc", "stamp": history.stamp()}
    monkeypatch.setattr(
        history, "git", lambda *arguments: "3" if arguments[2:] == ("abc..HEAD", "--", "kernels") else ""
    )
    counted = " (3 commits since this run have touched kernels/)."
    assert history.since(run) == f"The kernels' code is that of this run{counted}"
    run["stamp"] = "another"
    assert history.since(run) == f"The kernels' code has changed since this run{counted}"
    monkeypatch.setattr(history, "git", lambda *arguments: "1")
    assert history.since(run).endswith("(1 commit since this run has touched kernels/).")
    monkeypatch.setattr(history, "git", lambda *arguments: "")
    assert history.since(run) == "The kernels' code has changed since this run."


def test_turns_are_taken_and_ratios_are_of_the_same_round(monkeypatch):
    now, last, began = 0.0, 0.0, 0.0

    def sleeping(seconds):
        def run():
            nonlocal now, last, began
            if seconds != last:
                last, began = seconds, now
            warm = seconds == 2.0 or now - began > 0.9 * measure.WARM
            now += seconds if warm else 2 * seconds  # the first of a turn find their caches cold

        return run

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now)
    contenders = {"fastvae": sleeping(0.01), "slow": sleeping(2.0), "fast": sleeping(0.001)}
    times, _ = measure.take_turns(contenders, rest=0.0, budget=0.6)
    assert [sum(t is not None for t in taken) for taken in times.values()] == [20, 3, 20]
    assert times["slow"][-1] is not None
    microseconds, ratios = measure.summary(times)
    assert microseconds["fastvae"] == pytest.approx([1e4] * 3)
    assert ratios == {"slow": pytest.approx([200.0] * 3), "fast": pytest.approx([0.1] * 3)}


def test_a_wrong_result_is_not_timed():
    def wrong():
        raise AssertionError("wrong")

    called = []
    race = conftest.race_of(SimpleNamespace())
    with pytest.raises(AssertionError, match="wrong"):
        race({"fastvae": lambda: called.append(1)}, check=wrong, elements=1)
    assert not called


def test_the_benchmarks_are_collected():
    command = [sys.executable, "-m", "pytest", "bench", "--collect-only", "--quiet", "--quick", "-p", "no:xdist"]
    found = subprocess.run(command, cwd=history.ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    assert "bench_fit" in found.stdout
