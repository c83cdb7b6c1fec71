"""`make gpu` from end to end on a CPU, at tiny sizes, so that no time on a GPU is lost to a misspelt name."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.gpu import __main__ as command
from bench.gpu import elbo, results, step, timing

ROOT = Path(__file__).parents[2]
STAGES = ["machine", "tests", "capture", "step", "bench", "tuning", "sanitizer"]


def start(out, *arguments, device="cpu"):
    line = [sys.executable, "-m", "bench.gpu", "--device", device, "--out", str(out), *arguments]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_whole_command(tmp_path):
    process = start(tmp_path)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    verdicts = load(tmp_path / "stages.json")
    assert list(verdicts) == STAGES
    assert all(v.startswith("skipped" if name == "sanitizer" else "passed") for name, v in verdicts.items())
    tests = [json.loads(line) for line in (tmp_path / "tests.jsonl").read_text().splitlines()]
    assert {"passed", "skipped"} == {test["outcome"] for test in tests}  # those that need a GPU
    assert "<testcase" in (tmp_path / "tests.xml").read_text()
    assert "<testcase" in (tmp_path / "capture.xml").read_text()
    found, tables = load(tmp_path / "results.json"), (tmp_path / "tables.md").read_text()
    for kind, count in {"bench": 4, "step": 1, "tuning": 4}.items():
        assert len(found[kind]) == count
        assert all(results.row(kind, line) in tables and "seconds" in line for line in found[kind])
    contenders = {"fastvae", "eager", "compile", "captured", "eager, captured"}
    assert set(found["step"][0]["seconds"]) == contenders
    assert (tmp_path / "log.txt").read_text().splitlines() == output.splitlines()


def test_terminated_from_outside_it_leaves_its_results(tmp_path):
    process = start(tmp_path, "--stages", "machine", "tuning")
    while not (tmp_path / "tables.md").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 143
    assert load(tmp_path / "results.json")["tuning"][0]["seconds"]["fastvae"] > 0
    verdicts = load(tmp_path / "stages.json")
    assert verdicts["machine"].startswith("passed")
    assert verdicts["tuning"] == "ended from outside"
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout
    assert str(tmp_path) not in running


def test_without_a_gpu_it_reports_that_and_keeps_an_earlier_run(tmp_path):
    out = tmp_path / "gpu"
    out.mkdir()
    (out / "results.json").write_text("{}")
    process = start(out, device="cuda")
    output = process.communicate()[0]
    assert process.returncode == 1
    assert output.endswith("no CUDA GPU here, nothing else is run; DEVICE=cpu tries all of it at tiny sizes\n")
    (stage, verdict) = load(out / "stages.json").popitem()
    assert (stage, verdict.split(",")[0]) == ("machine", "failed: torch sees no CUDA GPU")
    assert [path.read_text() for path in tmp_path.glob("gpu.2*/results.json")] == ["{}"]


@pytest.fixture
def log(tmp_path):
    return command.Log(tmp_path / "log.txt")


def python(code, limit=60.0):
    return command.Stage(limit, [sys.executable, "-c", code])


def test_each_stage_has_its_own_verdict(log):
    assert command.run(python("print(1)"), log).startswith("passed, ")
    assert command.run(python("raise SystemExit(2)"), log).startswith("failed, exit code 2, ")
    assert command.run(python("raise SystemExit(77)"), log).startswith("skipped")
    assert command.run(python("import time; time.sleep(60)", 0.5), log) == "stopped at its limit of 0 s"


def test_a_stage_that_ignores_interrupts_is_killed(log, monkeypatch):
    monkeypatch.setattr(command, "GRACE", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
    began = time.monotonic()
    assert command.run(python(deaf, 1.0), log) == "stopped at its limit of 1 s"
    assert time.monotonic() - began < 300


def test_if_the_gpu_stops_responding_the_stage_continues_in_a_new_process(log, tmp_path):
    code = f"""
from pathlib import Path
path = Path({str(tmp_path)!r}) / "been here"
lost = not path.exists()
path.touch()
raise SystemExit(75 if lost else 0)
"""
    assert command.run(python(code), log).startswith("passed")
    assert (tmp_path / "log.txt").read_text().count("$ ") == 2


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return tmp_path


TIMES = {"seconds": {"fastvae": 1e-3, "eager": 3e-3, "compile": 2e-3, "copy": 9e-4}, "bytes": 10**9}


def test_a_case_that_fails_is_named_and_the_others_run(folder, capsys):
    def bad():
        raise AssertionError("not close\nat all")

    assert results.run("bench", [("one", lambda: TIMES), ("two", bad), ("three", lambda: TIMES)], 60) == 1
    assert "failed: two" in capsys.readouterr().out
    text = (folder / "tables.md").read_text()
    assert "| one | 1000.0 | 3.00 | 2.00 | 1.00 | 90 % |" in text
    assert "| two | AssertionError: not close |" in text
    assert "| three | 1000.0 |" in text
    # a second start continues where the first stopped
    assert results.run("bench", [("one", bad), ("four", lambda: TIMES)], 60) == 0
    assert [line["case"] for line in load(folder / "results.json")["bench"]] == ["one", "two", "three", "four"]


def test_cases_that_are_not_reached_are_named(folder, monkeypatch):
    assert results.run("bench", [("one", lambda: TIMES)], -1) == 0
    monkeypatch.setenv("FASTVAE_GPU_STOP", str(time.time()))  # the stage is about to be stopped
    assert results.run("bench", [("two", lambda: TIMES)], 60) == 0
    assert all("not reached" in line["error"] for line in load(folder / "results.json")["bench"])


def test_a_competitor_that_fails_is_left_out_and_ours_is_timed():
    def bad():
        raise RuntimeError("out of memory")

    assert set(timing.race({"fastvae": lambda: 0, "compile": bad, "eager": lambda: 0}, 0)) == {"fastvae", "eager"}
    with pytest.raises(RuntimeError):
        timing.race({"fastvae": bad, "eager": lambda: 0}, 0)


def test_a_capture_that_fails_ends_the_process(folder):
    def bad():
        raise timing.CaptureFailed("operation not permitted when stream is capturing")

    assert results.run("step", [("one", bad), ("two", lambda: TIMES)], 60) == command.CONTEXT_LOST


def test_a_captured_step_with_other_results_is_not_timed(monkeypatch):
    class Wrong:
        def __init__(self, run):
            self.run = run

        def replay(self):
            self.run()
            self.run()

    monkeypatch.setattr(step, "captured", Wrong)
    monkeypatch.setattr(step, "race", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(AssertionError, match="replayed steps end"):
        step.case(step.SIZES[0], 0)


def test_a_gpu_that_does_not_respond_ends_the_process(folder, monkeypatch):
    def bad():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(results, "still_answers", lambda: False)
    assert results.run("bench", [("one", bad), ("two", lambda: TIMES)], 60) == command.CONTEXT_LOST
    assert results.run("bench", [("one", bad), ("two", lambda: TIMES)], 60) == 0


def test_a_wrong_result_is_not_timed(monkeypatch):
    def wrong(likelihood):
        return lambda x, x_hat, mu, logvar: (x_hat * mu.sum() * logvar.sum()).sum()

    monkeypatch.setattr(elbo, "fused", wrong)
    monkeypatch.setattr(elbo, "race", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(AssertionError):
        elbo.case((64, 32, 4), "fp32", "gaussian", True, 0)


def test_results_are_published(folder, monkeypatch):
    about = results.about()
    monkeypatch.setattr(results, "about", lambda: {**about, "device": "NVIDIA H200"})
    results.run("bench", [("one", lambda: TIMES)], 60)
    readme, history = folder / "README.md", folder / "history" / "gpu.json"
    readme.write_text(f"before\n{command.BEGIN}\nold\n{command.END}\nafter\n")
    command.publish(folder, readme, history)
    text = readme.read_text()
    assert text.startswith(f"before\n{command.BEGIN}\n")
    assert text.endswith(f"{command.END}\nafter\n")
    assert "old" not in text
    assert "| one | 1000.0 |" in text
    assert load(history) == load(folder / "results.json")
    dry = load(history)
    dry["about"]["device"] = about["device"]
    (folder / "dry").mkdir()
    (folder / "dry" / "results.json").write_text(json.dumps(dry))
    with pytest.raises(SystemExit, match="holds no timings of a GPU"):
        command.publish(folder / "dry", readme, history)
    readme.write_text("no place")
    with pytest.raises(SystemExit, match="no place for a table"):
        command.publish(folder, readme, history)
    assert command.BEGIN in command.README.read_text()


def test_a_missing_stage_or_package_is_named(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        command.main(["--device", "cpu", "--stages", "bensch"])
    assert "--stages must be among machine, tests" in capsys.readouterr().err
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        command.main(["--device", "cpu"])
    assert "has no torch, triton, pytest: make gpu PYTHON=..." in capsys.readouterr().err
