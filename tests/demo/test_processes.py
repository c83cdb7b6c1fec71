"""Tests in their own processes: help without torch, streams that are closed, full or not read, kill -9."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tqdm

import fastvae
from fastvae.__main__ import LIKELIHOODS
from fastvae.demo import pictures, training
from fastvae.likelihoods import LIKELIHOODS as ALL_LIKELIHOODS

from ..children import in_python
from .runs import SMALL, assert_same_run, state_of, train, write

USAGES = [
    ["--help"],
    ["--version"],
    ["train", "--help"],
    ["sample", "--help"],
    [],
    ["trian"],
    ["train", "--epochs", "0"],
    ["train", "--device", "cpu", "--likelihood", "cauchy"],
    ["sample"],
]


def test_help_version_and_usage_errors_do_not_import_torch():
    code = f"""
import contextlib, io, sys
sys.argv[0] = "/bin/fastvae"  # the command, not the library
from fastvae.__main__ import main
statuses = []
for argv in {USAGES}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main(argv)
        except SystemExit as exit:
            statuses.append(exit.code)
print(*statuses, *set("torch numpy numba matplotlib sklearn tqdm".split()).intersection(sys.modules))
"""
    assert in_python(code) == 4 * ["0"] + 5 * ["2"]


def test_the_command_line_loads_public_names_on_access(ended):
    here = {name: getattr(fastvae, name) for name in fastvae.__all__}
    assert ended.names == [f"{n}:{getattr(v, '__module__', getattr(v, '__name__', ''))}" for n, v in here.items()]
    with pytest.raises(AttributeError, match=r"^module 'fastvae' has no attribute 'elbow'"):
        fastvae.elbow  # noqa: B018


def test_the_command_line_has_the_likelihoods_of_the_library():
    assert tuple(ALL_LIKELIHOODS) == LIKELIHOODS


CASES = {
    # name: (stdout, stderr, arguments); each runs in a fork of a process that has torch
    "help, full": ("full", "file", ["--help"]),
    "version, full": ("full", "file", ["--version"]),
    "info, full": ("full", "file", ["info"]),
    "info, closed": ("closed", "file", ["info"]),
    "info, not read": ("pipe", "file", ["info"]),
    "help, not read": ("pipe", "file", ["--help"]),
    "sample, full": ("full", "file", ["sample", "run/checkpoint.pt", "--out", "full.npy"]),
    "sample, not read": ("pipe", "file", ["sample", "run/checkpoint.pt", "--out", "pipe.npy"]),
    "sample, nobody hears": ("file", "closed", ["sample", "run/checkpoint.pt", "--out", "closed.npy"]),
    "train, full bar": ("file", "full", ["train", "--out", "full", *SMALL]),
    "train, bar not read": ("file", "pipe", ["train", "--out", "pipe", *SMALL]),
    "train, bar closed": ("file", "closed", ["train", "--out", "closed", *SMALL]),
    "train, full": ("full", "file", ["train", "--out", "stdout", *SMALL]),
    "error, full": ("file", "full", ["sample", "absent.pt"]),
    "error, not read": ("file", "pipe", ["sample", "absent.pt"]),
    "error, closed": ("file", "closed", ["sample", "absent.pt"]),
    "usage, full": ("file", "full", ["sample"]),
    "name, not UTF-8": ("file", "file", ["sample", "run/checkpoint.pt", "--out", "\udcff.npy"]),
    "killed": ("file", "file", ["train", "--out", "killed", *SMALL]),
}
FORKS = """
import contextlib, io, json, os, signal, sys
sys.argv[0] = "fastvae"
import fastvae

assert "torch" not in sys.modules
assert {*fastvae.__all__} <= {*dir(fastvae)}
from fastvae import *
assert all(vars(fastvae)[name] is globals()[name] for name in fastvae.__all__)
values = ((name, globals()[name]) for name in fastvae.__all__)
names = [f"{name}:{getattr(v, '__module__', getattr(v, '__name__', ''))}" for name, v in values]

import torch
from fastvae.__main__ import main
from fastvae.demo import pictures, training

torch.set_num_threads(1)
pictures.draw_run = lambda *_: []
cases = json.loads(sys.argv[1])
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    main(["train", "--out", "run", *cases["killed"][2][3:]])  # all that the forks import and compile is there now

def kill_with_half_a_file():
    training.SAVE_SECONDS = -1.0  # at the end of each epoch
    saved, replace = [], os.replace

    def stand_in(source, target):
        saved.append(target.name)
        if saved.count("checkpoint.pt") == 2:
            os.truncate(source, os.path.getsize(source) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = stand_in

report = os.dup(1)
statuses = {}
for name, (out, err, argv) in cases.items():
    if (pid := os.fork()) == 0:
        os.close(report)
        for number, kind in ((1, out), (2, err)):
            if kind == "closed":
                os.close(number)
                setattr(sys, ("stdout", "stderr")[number - 1], None)
                continue
            if kind == "pipe":
                read, target = os.pipe()
                os.close(read)
            else:
                target = os.open("/dev/full" if kind == "full" else f"{name}.{number}", os.O_WRONLY | os.O_CREAT)
            os.dup2(target, number)
            os.close(target)
        if name == "killed":
            kill_with_half_a_file()
        try:
            status = main(argv)
        except SystemExit as exit:
            status = exit.code
        try:  # as Python does when it ends, which takes a second with all that is loaded
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        except OSError:
            status = 120
        os._exit(status)
    statuses[name] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
os.write(report, json.dumps([names, statuses]).encode())
"""


@dataclass
class Ended:
    """The results of the cases: the folder they ran in, exit statuses, and the output on stdout and stderr."""

    folder: Path
    names: list[str]
    statuses: dict[str, int]

    def __getitem__(self, name):
        files = [self.folder / f"{name}.{number}" for number in (1, 2)]
        return self.statuses[name], *(file.read_text() if file.exists() else "" for file in files)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | {"PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", FORKS, json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return Ended(folder, *json.loads(done.stdout))


@pytest.mark.parametrize(
    ("redirected", "status", "said"),
    [
        ("--help > /dev/full", 2, "fastvae: error: cannot write to stdout: No space left on device\n"),
        ("--help >&-", 2, "fastvae: error: stdout is closed; to print nothing, use > /dev/null\n"),
        ("--help >&- 2>&-", 2, ""),
        ("sample 2> /dev/full", 2, ""),
        ("sample 2>&-", 2, ""),
    ],
)
def test_started_from_a_shell(tmp_path, redirected, status, said):
    command = ["sh", "-c", f'exec "$0" -m fastvae {redirected}', sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)


@pytest.mark.parametrize("name", ["help, full", "version, full", "info, full", "sample, full"])
def test_a_full_stdout_is_one_line(ended, name):
    assert ended[name] == (2, "", "fastvae: error: cannot write to stdout: No space left on device\n")


def test_a_closed_stdout_is_one_line(ended):
    assert ended["info, closed"] == (2, "", "fastvae: error: stdout is closed; to print nothing, use > /dev/null\n")


@pytest.mark.parametrize("name", ["info, not read", "help, not read", "sample, not read"])
def test_a_pipe_that_is_not_read_ends_silently(ended, name):
    assert ended[name] == (128 + signal.SIGPIPE, "", "")


@pytest.mark.parametrize("name", ["full", "pipe", "closed", "stdout"])
def test_a_run_whose_bar_or_report_cannot_be_written_is_trained_and_saved(ended, name):
    case = {"full": "full bar", "pipe": "bar not read", "closed": "bar closed", "stdout": "full"}[name]
    status, out, err = ended[f"train, {case}"]
    assert status == (2 if name == "stdout" else 0)
    assert ("test ELBO" in out) == (name != "stdout")
    assert ("cannot write to stdout" in err) == (name == "stdout")
    assert_same_run(ended.folder / name, ended.folder / "run")


@pytest.mark.parametrize("name", ["error, full", "error, not read", "error, closed", "usage, full"])
def test_an_error_that_cannot_be_printed_is_still_exit_code_2(ended, name):
    assert ended[name] == (2, "", "")


def test_draws_are_written_if_stdout_cannot_be(ended):
    assert ended["sample, nobody hears"] == (0, "  closed.npy\n", "")
    contents = {(ended.folder / name).read_bytes() for name in ("full.npy", "pipe.npy", "closed.npy")}
    assert len(contents) == 1
    assert contents.pop().startswith(b"\x93NUMPY")


def test_a_file_name_that_is_not_utf_8_is_printed_escaped(ended):
    assert ended["name, not UTF-8"] == (0, "  \\udcff.npy\n", "")
    assert (ended.folder / "\udcff.npy").exists()


def test_a_run_killed_while_saving_resumes_to_match_an_uninterrupted_one(ended, monkeypatch):
    monkeypatch.setattr(pictures, "draw_run", lambda *_: [])
    assert ended["killed"][0] == -signal.SIGKILL
    out = ended.folder / "killed"
    assert state_of(out)["step"] == 3
    assert train(out, "--resume") == 0
    assert_same_run(out, ended.folder / "run")


@pytest.mark.parametrize("disabled", [False, True])
def test_the_bar_shows_compilation_and_does_not_count_it(tmp_path, capsys, monkeypatch, disabled):
    now, take_step, evaluate = [1e6], training.Run.take_step, training.Run.evaluate

    def step(self, x):  # the first takes 198 s for compilation, the others 10 ms
        now[0] += 198 if self.step == 0 else 0.01
        take_step(self, x)

    def evaluation(self):
        now[0] += 99 if self.epoch == 1 else 0
        return evaluate(self)

    monkeypatch.setattr(training.Run, "take_step", step)
    monkeypatch.setattr(training.Run, "evaluate", evaluation)
    monkeypatch.setattr(training.time, "time", lambda: now[0])
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    monkeypatch.setattr(training, "tqdm", functools.partial(tqdm.tqdm, disable=disabled))
    monkeypatch.setattr(pictures, "draw_run", lambda *_: [])
    assert train(tmp_path, *SMALL, "--batch-size", "32", "--epochs", "2") == 0
    bars = [bar for bar in re.split(r"[\r\n]", capsys.readouterr().err) if bar.strip()]
    if disabled:
        assert bars == []
        return
    assert sum(bar.startswith("digits: compiling kernels: ") for bar in bars) == 2
    assert bars[-1].startswith("digits: 100%|")
    assert "?step/s" in bars[0]
    rates = [float(rate) for bar in bars for rate in re.findall(r"([\d.]+)step/s", bar)]
    assert len(rates) > 3
    assert rates == pytest.approx([100.0] * len(rates), rel=0.02)
    assert not any("s/step" in bar for bar in bars)


def test_the_bar_of_a_file_with_any_name(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pictures, "draw_run", lambda *_: [])
    path = write(tmp_path / "a{b}%s.csv", "1,2\n3,5\n" * 10)
    assert train(tmp_path / "run", "--data", path, *SMALL, "--latent", "1") == 0
    assert "a{b}%s.csv: 100%|" in capsys.readouterr().err
