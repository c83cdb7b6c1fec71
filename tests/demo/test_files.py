"""Altered or truncated checkpoints, full disks, and numbers that are too large give an error of one line."""

import resource
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvae.__main__ import main
from fastvae.demo import data as demo_data
from fastvae.demo import pictures, storage, training

from .runs import SMALL, assert_same_run, error_of, finished_run, line_of, save, state_of, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(pictures, "draw_run", lambda *_: [])


without_pictures = pytest.mark.usefixtures("no_pictures")


def sample(path, *args):
    return main(["sample", str(path), *map(str, args)])


MOST = str(2**31 - 1)


def flip(content, place, bit=0):
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


@pytest.mark.parametrize("part", ["model", "optimizer", "history"])
def test_an_altered_checkpoint_is_refused(run, tmp_path, capsys, part):
    state = state_of(run)
    if part == "history":
        state["history"][1]["test"]["kl"] += 1e-9
    else:
        state["optimizer"]["state"][1]["exp_avg"][3, 5] += 1e-6 if part == "optimizer" else 0
        state["model"]["decoder.0.weight"][1, 2] *= 1 + 1e-6 if part == "model" else 1
    torch.save(state, tmp_path / "checkpoint.pt")
    expected = f"{tmp_path / 'checkpoint.pt'} is damaged: its contents do not match its checksum"
    assert expected in error_of(capsys, sample(tmp_path / "checkpoint.pt"))
    assert expected in error_of(capsys, train(tmp_path, "--resume", "--epochs", "4"))


def test_a_flipped_bit_in_the_weights_is_detected(run, tmp_path, capsys):
    content = (run / "checkpoint.pt").read_bytes()
    weights = state_of(run)["model"]["decoder.2.weight"].numpy().tobytes()
    path = tmp_path / "checkpoint.pt"
    for byte in (0, len(weights) // 2, len(weights) - 1):
        path.write_bytes(flip(content, content.index(weights) + byte, 6))
        assert "is damaged: its contents do not match its checksum" in error_of(capsys, sample(path))


@settings(max_examples=60)
@given(st.data())
def test_a_corrupted_checkpoint_is_refused_or_intact(run, tmp_path, capsys, data):
    content = (run / "checkpoint.pt").read_bytes()
    if data.draw(st.booleans()):
        mutilated = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        places = st.integers(0, len(content) - 1) | st.integers(len(content) - 4000, len(content) - 1)
        mutilated = flip(content, data.draw(places), data.draw(st.integers(0, 7)))
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(mutilated)
    code = sample(path, "--num", 1, "--out", tmp_path / "x.npy")
    capsys_of = capsys.readouterr()
    if code == 0:  # the change is between the entries of the archive
        assert storage.load_checkpoint(path)["step"] == 9
        weights, expected = (state_of(out)["model"] for out in (tmp_path, run))
        assert all(torch.equal(weights[k], expected[k]) for k in expected)
    else:
        assert code == 2
        assert "checkpoint" in line_of(capsys_of.err)


@settings(max_examples=60)
@given(st.data())
def test_a_corrupted_data_file_is_read_or_refused(tmp_path, data):
    x = np.random.default_rng(0).standard_normal((12, 3))
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "b.npz", x=x, y=np.array(["a", "b"] * 6))
    np.savez_compressed(tmp_path / "c.npz", x=x, y=np.arange(12))
    np.savetxt(tmp_path / "d.csv", x, delimiter=",", header="a,b,c", comments="")
    name = data.draw(st.sampled_from(["a.npy", "b.npz", "c.npz", "d.csv"]))
    content = (tmp_path / name).read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        content = flip(content, data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7)))
    (tmp_path / name).write_bytes(content[: data.draw(st.integers(0, 2 * len(content)))])
    read, said = load(str(tmp_path / name))
    assert read is None or bool(read.x.isfinite().all())
    assert read is not None or (name in said and "\n" not in said)


def load(path):
    """The data, or the error message."""
    try:
        return demo_data.load_data(path, "gaussian"), ""
    except storage.CommandError as error:
        return None, str(error)


class Unhelpful(Exception):
    """An error of a reader, with an empty message or one of several lines."""


@pytest.mark.parametrize("error", [EOFError(), MemoryError(), zlib.error("Error -3"), Unhelpful("\n\none\ntwo")])
def test_any_error_of_a_reader_is_one_line(run, tmp_path, capsys, monkeypatch, error):
    def fail(*_, **__):
        raise error

    path = save(tmp_path / "x.npy", np.zeros((20, 2)))
    monkeypatch.setattr(np, "load", fail)
    monkeypatch.setattr(torch, "load", fail)
    assert "x.npy: malformed: " in error_of(capsys, train(tmp_path / "new", "--data", path))
    assert "is not a fastvae checkpoint" in error_of(capsys, sample(run / "checkpoint.pt"))


@pytest.fixture
def full_disk():
    """A context in which no file grows beyond a few bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def call(function):
        def limited(*args, **kwargs):
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
            try:
                return function(*args, **kwargs)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

        return limited

    return call


@without_pictures
def test_a_full_disk_is_one_line_and_the_old_checkpoint_stays(run, tmp_path, capsys, monkeypatch, full_disk):
    for name in ("checkpoint.pt", "history.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(training, "save_checkpoint", full_disk(training.save_checkpoint))
    code = train(tmp_path, "--resume", "--epochs", "4")
    assert error_of(capsys, code) == f"fastvae: error: cannot write {tmp_path / 'checkpoint.pt'}: File too large"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["x.png", "x.npy", "x.csv"])
@without_pictures
def test_a_full_disk_leaves_no_partial_file(tmp_path, capsys, monkeypatch, full_disk, name):
    path = save(tmp_path / "data.npy", np.random.default_rng(0).standard_normal((20, 4)))
    assert train(tmp_path / "run", "--data", path, *SMALL) == 0
    capsys.readouterr()
    monkeypatch.setattr(storage, "write_whole", full_disk(storage.write_whole))
    monkeypatch.setattr(pictures, "write_whole", full_disk(storage.write_whole))
    code = sample(tmp_path / "run" / "checkpoint.pt", "--out", tmp_path / "new" / name)
    assert f"cannot write {tmp_path / 'new' / name}: " in error_of(capsys, code)
    assert list((tmp_path / "new").iterdir()) == []


@without_pictures
def test_two_runs_into_one_folder_leave_the_last_one_complete(run, tmp_path, monkeypatch):
    take_step = training.Run.take_step
    begun: list[int] = []

    def take_step_beside_another(self, x):
        if self.step == 4 and not begun:
            begun.append(1)
            self.save()
            assert train(tmp_path, *SMALL, "--seed", "5", "--overwrite") == 0
        take_step(self, x)

    monkeypatch.setattr(training.Run, "take_step", take_step_beside_another)
    assert train(tmp_path, *SMALL) == 0
    assert_same_run(tmp_path, run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "history.json"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--num", 10**12), "argument --num: expected an integer of at most 2147483647, got '1000000000000'"),
        (("--num", "9" * 5000), "argument --num: expected an integer of at least 1"),
        (("--seed", 2**31), "argument --seed: expected an integer from 0 to 2147483647"),
    ],
)
def test_numbers_that_are_too_large_are_refused_by_name(run, capsys, args, message):
    with pytest.raises(SystemExit, match=r"^2$"):
        sample(run / "checkpoint.pt", *args)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("device", ["meta", "cuda:99999999999999999999", "", "hpu", "vulkan"])
def test_devices_whose_numbers_cannot_be_read_are_refused(tmp_path, capsys, device):
    with pytest.raises(SystemExit, match=r"^2$"):
        train(tmp_path / "run", "--device", device)
    assert f"argument --device: '{device}' cannot be used here: " in capsys.readouterr().err


def test_what_does_not_fit_in_memory_is_one_line(run, tmp_path, capsys):
    before = resource.getrlimit(resource.RLIMIT_AS)
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + (4 << 30), before[1]))  # some systems overcommit memory
    try:
        code = sample(run / "checkpoint.pt", "--num", MOST, "--out", tmp_path / "x.npy")
        assert error_of(capsys, code).startswith("fastvae: error: not enough memory: ")
        code = train(tmp_path / "run", "--hidden", MOST)
        assert error_of(capsys, code).startswith("fastvae: error: not enough memory: ")
        code = train(tmp_path / "run", "--hidden", MOST, "--latent", MOST)
        assert error_of(capsys, code).startswith("fastvae: error: not enough memory: ")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert not (tmp_path / "x.npy").exists()
    assert not (tmp_path / "run").exists()


def test_the_number_of_draws_in_a_picture_is_limited(run, capsys):
    code = sample(run / "checkpoint.pt", "--num", 10**6)
    assert "a picture has room for 10000 draws; for more, use --out FILE.npy" in error_of(capsys, code)


@pytest.mark.parametrize("path", [".", "..", "/"])
def test_a_folder_is_not_a_checkpoint(tmp_path, capsys, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    assert "Is a directory" in error_of(capsys, sample(path))


def test_a_path_that_is_too_long_is_one_line(run, tmp_path, capsys):
    long = tmp_path / ("x" * 300)
    assert "File name too long" in error_of(capsys, train(long, *SMALL))
    assert "File name too long" in error_of(capsys, train(tmp_path / "run", "--data", f"{long}.npy"))
    assert "File name too long" in error_of(capsys, sample(long))
    assert "File name too long" in error_of(capsys, sample(run / "checkpoint.pt", "--out", f"{long}.npy"))


def test_sampling_to_a_picture_mentions_mean(run, tmp_path, capsys):
    for args, hinted in (((), True), (("--mean",), False)):
        assert sample(run / "checkpoint.pt", "--num", 4, "--out", tmp_path / "x.png", *args) == 0
        assert ("use --mean for E[x|z], without it" in capsys.readouterr().out) == hinted
