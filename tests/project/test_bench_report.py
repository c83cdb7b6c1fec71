"""The README's figures are what the report makes of the last run, of these kernels; and how the report is made."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import charts, conftest, history, measure, report
from bench.__main__ import main

ROOT = Path(__file__).parents[2]
RUNS: list[dict[str, Any]] = history.read()


def test_the_readme_says_what_the_report_says():
    text = report.between((ROOT / "README.md").read_text(encoding="utf-8"))
    assert text == report.section(RUNS[-1] if RUNS else None), "renew it: python -m bench report"
    assert not RUNS or f"commit {RUNS[-1]['commit']}" in text


@pytest.mark.skipif(not RUNS, reason="no run of `make bench` is committed")
def test_tables_and_charts_are_those_of_the_last_run():
    folder = ROOT / "docs" / "bench"
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert page == report.page(RUNS[-1], history.last_before(RUNS)), "renew it: python -m bench report"
    for chart in ("overview", "limits", *report.JOBS):
        assert charts.mark(RUNS[-1]) in (folder / f"{chart}.svg").read_text(encoding="utf-8")


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
    assert "- elbo 128x784 L=20: `compile` takes 0.50 (0.45 - 0.55) of our time" in report.losses_text(run)
    assert "faster in 1 of 3 comparisons" in report.section(run)


def test_tables(run):
    _, _, row = report.rivals_table(run["cases"][:1])
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        *("elbo 128x784 L=20", "100 (90.0 - 110) us", "3.00 (2.70 - 3.30)", "0.50 (0.45 - 0.55)")
    ]
    assert report.share(run["cases"][0], run) == (pytest.approx(0.1), "copy")  # 10 us of copying, of 100
    assert "| 10 % of copy" in "\n".join(report.limits_table(run, run["cases"]))
    for text in (report.section(run), report.page(run, None)):
        assert all(fact in text for fact in ("a CPU", "2026-01-02", "commit abc", "numpy 2.0", "em full 1000x2 K=4"))


def test_what_is_missing_is_said(run):
    first = run["cases"][0]
    first["rivals"].remove("eager")
    del first["ratio"]["eager"]
    first["missing"] = ["eager"]
    assert "Not installed: eager." in report.section(run)
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
    charts_there = {path.name for path in (tmp_path / "docs" / "bench").glob("*.svg")}
    assert charts_there == {"overview.svg", "limits.svg", "elbo.svg", "gmm.svg"}
    assert charts.mark(run) in (tmp_path / "docs" / "bench" / "overview.svg").read_text()


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


def test_the_report_says_whether_kernels_have_changed_since(monkeypatch):
    run = {"commit": "abc", "stamp": history.stamp()}
    assert history.since(run) == "The kernels are those of this run."
    run["stamp"] = "another"
    monkeypatch.setattr(history, "git", lambda *arguments: "3" if "abc..HEAD" in arguments else "")
    assert history.since(run) == "The kernels have changed since this run, by 3 commits."
    monkeypatch.setattr(history, "git", lambda *arguments: "")
    assert history.since(run) == "The kernels have changed since this run."


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
    times, _ = measure.take_turns(contenders, settle=0.0, budget=0.6)
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
