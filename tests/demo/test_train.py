"""The command line: `python -m fastvae train | sample | info`, end to end on small runs, and its errors."""

import json
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from tqdm import tqdm

from fastvae.__main__ import main
from fastvae.demo import data, pictures, training

from .runs import SMALL, assert_same_run, error_of, save, state_of, train, write

PICTURES = ("elbo.png", "samples.png", "reconstructions.png", "latents.png")
format_dict = tqdm.format_dict.fget


@pytest.fixture
def no_pictures(monkeypatch):
    """Skip the pictures, which take longer than training."""
    monkeypatch.setattr(pictures, "draw_run", lambda *_: [])


without_pictures = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One small finished run on the digits, shared by the tests that only read it."""
    out = tmp_path_factory.mktemp("run")
    assert train(out, *SMALL) == 0
    return out


def test_train_writes_pictures_history_and_checkpoint(run):
    for name in PICTURES:
        assert (run / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    history = json.loads((run / "history.json").read_text())
    assert [entry["epoch"] for entry in history["epochs"]] == [1, 2, 3]
    for entry in history["epochs"]:
        for part in (entry["train"], entry["test"]):
            assert part["elbo"] == pytest.approx(part["log_likelihood"] - part["kl"])
    assert state_of(run)["step"] == 9
    assert sorted(path.name for path in run.iterdir()) == sorted((*PICTURES, "history.json", "checkpoint.pt"))


@without_pictures
def test_the_test_elbo_of_the_digits_rises(tmp_path):
    assert train(tmp_path, "--epochs", "12", "--lr", "0.01") == 0
    elbos = [entry["test"]["elbo"] for entry in state_of(tmp_path)["history"]]
    # predicting the training mean with the best scale gives about -14 nats per row: the model must be better
    x = data.load_data(None, "gaussian")
    train_rows, test_rows = x.split(0)
    mean, scale = x.x[train_rows].mean(0), (x.x[train_rows] - x.x[train_rows].mean(0)).square().mean().sqrt()
    baseline = torch.distributions.Normal(mean, scale).log_prob(x.x[test_rows]).sum((1, 2)).mean()
    assert elbos[-1] > float(baseline) + 10
    assert elbos[-1] > elbos[0] + 50


# in the midst of an epoch, at its very end, in the last epoch
@pytest.mark.parametrize("stop_at", [*(pytest.param(n, marks=pytest.mark.long) for n in (2, 3)), 7])
def test_a_resumed_run_matches_an_uninterrupted_one(run, tmp_path, monkeypatch, capsys, stop_at):
    take_step, before = training.Run.take_step, signal.getsignal(signal.SIGINT)  # ignored in background jobs of a shell

    def take_step_then_press_ctrl_c(self, x):
        take_step(self, x)
        if self.step == stop_at:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(training.Run, "take_step", take_step_then_press_ctrl_c)
    assert train(tmp_path, *SMALL) == 130
    assert f"train --out {tmp_path} --resume" in capsys.readouterr().out
    assert state_of(tmp_path)["step"] == stop_at
    monkeypatch.undo()
    assert train(tmp_path, "--resume") == 0
    assert_same_run(tmp_path, run)
    assert signal.getsignal(signal.SIGINT) is before


@without_pictures
def test_resume_continues_to_more_epochs(run, tmp_path):
    assert train(tmp_path, *SMALL, "--epochs", "2") == 0
    assert train(tmp_path, "--resume", "--epochs", "3") == 0
    assert_same_run(tmp_path, run)


@without_pictures
def test_the_seed_determines_the_run(run, tmp_path):
    assert train(tmp_path, *SMALL, "--seed", "1") == 0
    assert state_of(tmp_path)["history"] != state_of(run)["history"]


@without_pictures
def test_beta_weights_the_kl_in_training_but_not_the_reported_bound(run, tmp_path):
    assert train(tmp_path, *SMALL, "--beta", "50") == 0
    heavy, light = (state_of(out)["history"][-1]["test"] for out in (tmp_path, run))
    assert heavy["kl"] < light["kl"]
    assert heavy["elbo"] == pytest.approx(heavy["log_likelihood"] - heavy["kl"])


@pytest.mark.parametrize(
    ("name", "array", "args"),
    [
        ("binary.npy", lambda rng: rng.random((40, 1, 8, 8)) < 0.3, ["--likelihood", "bernoulli"]),  # bool, a channel
        ("pixels.npy", lambda rng: rng.integers(0, 256, (40, 6, 5, 3)).astype(np.uint8), ["--scale", "0.2"]),  # colour
        ("table.csv", lambda rng: rng.standard_normal((40, 5)), ["--latent", "1", "--likelihood", "laplace"]),  # curves
        ("labelled.npz", lambda rng: rng.standard_normal((40, 64)), ["--latent", "2", "--scale", "1"]),  # flat images
    ],
)
def test_user_data(tmp_path, name, array, args):
    path, array = tmp_path / name, array(np.random.default_rng(0))
    if name.endswith("csv"):
        np.savetxt(path, array, delimiter=",", header="a,b,c,d,e", comments="")
    elif name.endswith("npz"):
        np.savez(path, x=array, y=np.arange(40) % 3)
    else:
        np.save(path, array)
    x = data.load_data(str(path), "gaussian").x
    assert x.shape == array.shape
    expected = array / 255 if array.dtype == np.uint8 else array
    assert torch.allclose(x, torch.as_tensor(expected, dtype=torch.float32))
    out = tmp_path / "run"
    assert train(out, "--data", str(path), *SMALL, *args) == 0
    assert all((out / picture).exists() for picture in PICTURES)
    assert main(["sample", str(out / "checkpoint.pt"), "--num", "5"]) == 0
    assert (out / "draws.png").exists()


def test_sample_draws_from_the_model(run, tmp_path):
    def draw(*args):
        path = tmp_path / "new" / "x.npy"
        assert main(["sample", str(run / "checkpoint.pt"), "--num", "7", "--out", str(path), *args]) == 0
        return np.load(path)

    x = draw()
    assert x.shape == (7, 8, 8)
    assert np.array_equal(x, draw())
    assert not np.array_equal(x, draw("--seed", "1"))
    noise = x - draw("--mean")
    scale = float(state_of(run)["model"]["log_scale"].exp())
    assert np.std(noise) == pytest.approx(scale, rel=4 / np.sqrt(2 * noise.size))


def test_info_names_the_backends(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert torch.__version__ in out
    assert "reference" in out or "numba" in out


def zipped(path, member, text):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(member, text)
    return str(path)


X = np.random.default_rng(0).standard_normal((20, 4))
with_nan = X.copy()
with_nan[3, 2] = np.nan

BAD_DATA = {
    "no such file": lambda d: str(d / "absent.npy"),
    "expected a .npy, .npz or .csv": lambda d: write(d / "x.txt", "1"),
    "malformed: its member 'x' is not an array": lambda d: zipped(d / "x.npz", "x.npy", "1"),
    "malformed: could not convert string 'two'": lambda d: write(d / "x.csv", "a,b\n1,2\n1,two\n"),
    "malformed: the number of columns changed": lambda d: write(d / "x.csv", "1,2\n" * 12 + "1\n"),
    "no rows of numbers": lambda d: write(d / "x.csv", "a,b\n"),
    "malformed": lambda d: write(d / "x.npy", "not an array"),
    "malformed: Object arrays": lambda d: save(d / "x.npy", np.array([{}] * 12, dtype=object)),
    "1 values are NaN or infinite, the first at [3, 2]": lambda d: save(d / "x.npy", with_nan),
    "expected [N, ...] with N >= 10 rows, found [20]": lambda d: save(d / "x.npy", X[:, 0]),
    "found [9, 4]": lambda d: save(d / "x.npy", X[:9]),
    "found [20, 0]": lambda d: save(d / "x.npy", X[:, :0]),
    "expected numbers": lambda d: save(d / "x.npy", X.astype(complex)),
    "do not fit in float32": lambda d: save(d / "x.npy", X * 1e300),
}


@pytest.mark.parametrize("message", BAD_DATA)
def test_bad_data_is_one_line_and_exit_code_2(tmp_path, capsys, message):
    path = BAD_DATA[message](tmp_path)
    assert message in error_of(capsys, train(tmp_path / "run", "--data", path))
    assert not (tmp_path / "run").exists()


def test_bernoulli_needs_data_between_0_and_1(tmp_path, capsys):
    code = train(tmp_path / "run", "--data", save(tmp_path / "x.npy", X), "--likelihood", "bernoulli")
    assert "x.npy: a Bernoulli likelihood needs values in [0, 1]" in error_of(capsys, code)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--epochs", "0"], "argument --epochs: expected an integer of at least 1, got '0'"),
        (["--latent", "2.5"], "argument --latent: expected an integer of at least 1, got '2.5'"),
        (["--scale", "0"], "argument --scale: expected a positive number or 'learned', got '0'"),
        (["--lr", "nan"], "argument --lr: expected a positive number, got 'nan'"),
        (["--lr", "1e300"], "argument --lr: expected a number of at most 1e30, got '1e300'"),
        (["--beta", "-1"], "argument --beta: expected a nonnegative number"),
        (["--seed", "-1"], "argument --seed: expected an integer from 0 to"),
        (["--device", "abacus"], "argument --device: 'abacus' cannot be used here"),
        (["--likelihood", "cauchy"], "argument --likelihood: invalid choice"),
        (["--momentum", "1"], "unrecognized arguments: --momentum 1"),
    ],
)
def test_bad_options_are_refused_by_name(tmp_path, capsys, args, message):
    with pytest.raises(SystemExit) as exit_:
        train(tmp_path / "run", *args)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [0.01, 200.0])
def test_error_of_ignores_a_progress_bar_at_any_speed(capsys, monkeypatch, seconds):
    monkeypatch.setattr(tqdm, "format_dict", property(lambda bar: {**format_dict(bar), "elapsed": seconds * bar.n}))
    with tqdm(total=9, unit="step", desc="digits") as bar:
        bar.update(2)
    print("fastvae: error: the disk is full", file=sys.stderr)
    assert error_of(capsys, 2) == "fastvae: error: the disk is full"


def test_a_run_is_not_overwritten_by_accident(run, capsys):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert "exists: use --resume to continue" in error_of(capsys, train(run, *SMALL))
    assert "has finished its 3 epochs" in error_of(capsys, train(run, "--resume"))
    assert "--hidden 99 differs from the run to resume" in error_of(capsys, train(run, "--resume", "--hidden", "99"))
    code = train(run, *SMALL, "--overwrite", "--lr", "1e30")
    assert "no longer finite" in error_of(capsys, code)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_failed_write_leaves_the_old_file_whole(tmp_path):
    from fastvae.demo import storage

    target = tmp_path / "checkpoint.pt"
    target.write_bytes(b"old")

    def half_write(path):
        path.write_bytes(b"ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(storage.CommandError, match=r"cannot write .*: No space left on device"):
        storage.write_whole(target, half_write)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 half a zip"])
def test_a_malformed_checkpoint_is_reported(tmp_path, capsys, content):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    assert "is not a fastvae checkpoint" in error_of(capsys, main(["sample", str(path)]))
    assert "is not a fastvae checkpoint" in error_of(capsys, train(tmp_path, "--resume"))


def test_other_checkpoints_are_refused(tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    assert "no such checkpoint" in error_of(capsys, main(["sample", str(path)]))
    torch.save({"format": 99}, path)
    assert "not a fastvae checkpoint of format" in error_of(capsys, main(["sample", str(path)]))
    torch.save({"format": 1, "options": {"depth": 3}}, path)
    assert "not written by this version" in error_of(capsys, main(["sample", str(path)]))
    assert "not written by this version" in error_of(capsys, train(tmp_path, "--resume"))


def test_the_data_of_a_resumed_run_must_be_the_same(tmp_path, capsys):
    path, out = save(tmp_path / "x.npy", X), tmp_path / "run"
    assert train(out, "--data", path, *SMALL) == 0
    capsys.readouterr()
    save(tmp_path / "x.npy", X + 1)
    assert "have changed since the run" in error_of(capsys, train(out, "--resume", "--epochs", "4"))


def test_out_must_be_a_folder_and_sample_a_known_format(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "there is a file where the folder should be" in error_of(capsys, train(tmp_path / "file", *SMALL))
    code = main(["sample", str(run / "checkpoint.pt"), "--out", "x.jpg"])
    assert "expected a .png or .npy file" in error_of(capsys, code)


def test_bernoulli_has_no_scale(tmp_path, capsys):
    code = train(tmp_path / "run", "--likelihood", "bernoulli", "--scale", "1")
    assert "--scale is for a Gaussian or Laplace" in error_of(capsys, code)


def test_a_missing_package_of_the_demo_is_named(tmp_path):
    code = "import sys; sys.modules['tqdm'] = None; from fastvae.__main__ import main; sys.exit(main(['train']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr == "fastvae: error: tqdm is not installed: pip install 'fastvae-kernels[demo]'\n"
