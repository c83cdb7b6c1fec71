"""The data of the command line: .csv files, labels, standardized tables, and the positions of errors in files."""

import csv
import math

import numpy as np
import pytest
import torch

from fastvae.__main__ import main
from fastvae.demo import data, pictures, training
from fastvae.vae import VAE

from .runs import SMALL, error_of, finished_run, save, state_of, train, write

rng = np.random.default_rng(0)
ROWS = rng.standard_normal((20, 3)).round(3)
LINES = "".join(",".join(map(str, row)) + "\n" for row in ROWS.tolist())


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(pictures, "draw_run", lambda *_: [])


without_pictures = pytest.mark.usefixtures("no_pictures")
NAMES = ["height", "mass, kg", "größe"]
HEADER = 'height,"mass, kg",größe\n'


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("\ufeff" + LINES, None),
        ("\ufeff" + HEADER + LINES, NAMES),
        (HEADER + LINES, NAMES),
        ("\n# made by hand\n" + HEADER + LINES.replace("\n", "\n\n", 3) + "# the end", NAMES),
        ((HEADER + LINES).replace("\n", "\r\n"), NAMES),
        ("# a, b, c\n" + LINES, ["a", "b", "c"]),  # as written by numpy.savetxt
        ("# three columns\n" + LINES, None),
        (",a,b\n" + LINES, ["", "a", "b"]),  # as written by pandas, with its index
    ],
    ids=["mark", "mark and header", "header", "blanks and comments", "CRLF", "savetxt", "comment", "index"],
)
def test_a_table_keeps_all_rows_and_column_names(tmp_path, content, names):
    path = tmp_path / "x.CSV"
    path.write_bytes(content.encode())
    read = data.load_data(str(path), "gaussian")
    assert np.array_equal(read.x.numpy(), ROWS.astype(np.float32))
    assert read.names == names


def with_cell(cell, header=HEADER, row=11):
    lines = LINES.splitlines()
    lines[row] = lines[row].rpartition(",")[0] + "," + cell
    return header + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_cell("two"), "could not convert string 'two' to a number at line 13, column 3 (größe)"),
        (with_cell(""), "could not convert string '' to a number at line 13, column 3 (größe)"),
        (with_cell("1_0"), "could not convert string '1_0' to a number at line 13, column 3 (größe)"),
        (with_cell("٣", "\n\n# b\n"), "could not convert string '٣' to a number at line 15, column 3"),
        (with_cell("1,1", ""), "the number of columns changed from 3 to 4 at line 12"),
        (with_cell("two", "", 0), "could not convert string 'two' to a number at line 1, column 3; a header must not"),
        (with_cell("nan"), "1 values are NaN or infinite, the first at line 13, column 3 (größe)"),
        (with_cell("-inf", "# x\n\n"), "1 values are NaN or infinite, the first at line 14, column 3"),
        (with_cell("1e39"), "values as large as 1e+39 do not fit in float32, the first at line 13, column 3 (größe)"),
        ("a,b\n" + LINES, "the header names 2 columns, the rows have 3"),
        ("a,b\n\n#\n", "no rows of numbers"),
        ("", "no rows of numbers"),
    ],
)
def test_an_error_in_a_table_names_line_and_column(tmp_path, capsys, content, message):
    code = train(tmp_path / "run", "--data", write(tmp_path / "x.csv", content), *SMALL)
    assert message in error_of(capsys, code)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_table_in_another_encoding_is_malformed(tmp_path, capsys, encoding):
    path = tmp_path / "x.csv"
    path.write_bytes((HEADER + LINES).encode(encoding))
    assert "malformed: 'utf-8' codec can't decode" in error_of(capsys, train(tmp_path / "run", "--data", str(path)))


def test_values_outside_0_to_1_are_named_by_position(tmp_path, capsys):
    x = rng.random((20, 3)).round(3)
    x[7, 1] = 1.5
    np.savetxt(tmp_path / "x.csv", x, delimiter=",", header="a,b,c", comments="")
    for path, place in ((tmp_path / "x.csv", "line 9, column 2 (b)"), (save(tmp_path / "x.npy", x), "[7, 1]")):
        code = train(tmp_path / "run", "--data", str(path), "--likelihood", "bernoulli")
        line = error_of(capsys, code)
        assert "needs values in [0, 1], found [0" in line
        assert line.endswith(f"1.5], the first of them at {place}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("run"))


@without_pictures
def test_draws_of_a_table_have_its_header(tmp_path):
    out = tmp_path / "run"
    assert train(out, "--data", write(tmp_path / "x.csv", HEADER + LINES), *SMALL) == 0
    assert state_of(out)["names"] == NAMES
    for name in ("y.csv", "y.npy"):
        assert main(["sample", str(out / "checkpoint.pt"), "--num", "12", "--out", str(tmp_path / name)]) == 0
    drawn = np.load(tmp_path / "y.npy")
    with (tmp_path / "y.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file)) == NAMES
    again = data.load_data(str(tmp_path / "y.csv"), "gaussian")
    assert again.names == NAMES
    assert np.array_equal(again.x.numpy(), drawn)  # all digits of float32


def test_a_table_has_no_images_in_it(run, tmp_path, capsys):
    code = main(["sample", str(run / "checkpoint.pt"), "--out", str(tmp_path / "y.csv")])
    assert "these draws are 8 x 8 each: use a .npy file" in error_of(capsys, code)


LABELS = {
    "strings": np.array(["a", "b"] * 20),
    "many strings": np.array([f"class {i % 13}" for i in range(40)]),
    "not a number": np.where(np.arange(40) % 3, 1.0, np.nan),
    "bools": np.arange(40) % 2 == 0,
    "complex, left out": np.arange(40) * 1j,
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_kind_are_drawn(tmp_path, kind):
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((40, 5)), y=LABELS[kind])
    read = data.load_data(str(tmp_path / "x.npz"), "gaussian")
    assert (read.labels is None) == kind.endswith("left out")
    figure = pictures.draw_latents(VAE.mlp(5, latent=2), read.x, read.labels)
    assert pictures.save(figure, tmp_path / "latents.png").exists()
    values = [] if read.labels is None else [str(value) for value in np.unique(read.labels)]
    assert [text.get_text() for text in figure.axes[0].texts] == (values if len(values) <= 10 else [])


def test_names_with_dollars_are_not_formulas(run, tmp_path):
    history, labels = state_of(run)["history"], np.array(["$_^$", "$"] * 20)
    pictures.save(pictures.draw_elbo(history, {"train": -2.0, "test": -3.0}, "$_^$.npz"), tmp_path / "elbo.png")
    pictures.save(pictures.draw_latents(VAE.mlp(5, latent=2), torch.randn(40, 5), labels), tmp_path / "latents.png")
    assert len(list(tmp_path.iterdir())) == 2


# Columns of very different scales, one of them constant, and one whose variation float32 cannot represent.
MEAN, SCALE = np.array([1.6e9, -3.0, 2e-7, 5.25]), np.array([20.0, 1e4, 1e-8, 0.0])
RAW = MEAN + SCALE * (rng.standard_normal((300, 1)) * [1, 1, -1, 1] + 0.3 * rng.standard_normal((300, 4)))
TEST_ROW = int(torch.randperm(40, generator=torch.Generator().manual_seed(0))[0])
STANDARD = ("--latent", "2", "--hidden", "32", "--epochs", "30", "--lr", "0.01")


@pytest.fixture(scope="module")
def standardized(tmp_path_factory):
    folder = tmp_path_factory.mktemp("standardized")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw_run", lambda *_: [])
        assert train(folder / "run", "--data", save(folder / "x.npy", RAW), "--standardize", *STANDARD) == 0
    return folder


def test_a_raw_table_is_standardized_and_draws_are_in_its_units(standardized, tmp_path):
    out = standardized / "run"
    assert main(["sample", str(out / "checkpoint.pt"), "--num", "4000", "--out", str(tmp_path / "y.npy")]) == 0
    x = np.load(tmp_path / "y.npy")
    spread = RAW.std(0)
    assert x.dtype == np.float64
    assert np.all(np.abs(x.mean(0) - RAW.mean(0))[:3] < 0.2 * spread[:3])
    assert np.all(np.abs(x.std(0) / np.where(spread == 0, 1, spread) - 1)[:3] < 0.3)
    expected = np.corrcoef(RAW[:, :3].T)
    assert np.abs(np.corrcoef(x[:, :3].T) - expected).max() < 0.15
    assert np.abs(x[:, 3] - 5.25).max() < 6 * float(state_of(out)["model"]["log_scale"].exp())  # shifted, not scaled


def test_standardizing_by_hand_is_the_same_run_up_to_the_jacobian(standardized, tmp_path, capsys):
    rows, _ = training.Run(training.Options(str(standardized / "x.npy")), tmp_path).data.split(0)
    mean, scale = RAW[rows].mean(0), RAW[rows].std(0)
    mean[3], scale[3] = 5.25, 1.0
    by_hand = save(tmp_path / "u.npy", (RAW - mean) / scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw_run", lambda *_: [])
        assert train(tmp_path / "run", "--data", by_hand, *STANDARD) == 0
        by_hand_line = capsys.readouterr().out
        assert train(tmp_path / "again", "--data", str(standardized / "x.npy"), "--standardize", *STANDARD) == 0
        line = capsys.readouterr().out
    jacobian = -math.fsum(map(math.log, scale))
    for entry, other in zip(*(state_of(d / "run")["history"] for d in (standardized, tmp_path)), strict=True):
        for part in ("train", "test"):
            for term, added in (("elbo", jacobian), ("log_likelihood", jacobian), ("kl", 0.0)):
                assert entry[part][term] == pytest.approx(other[part][term] + added, abs=2e-3)
    log_p, log_p_by_hand = (float(text.partition("draws per row: ")[2].split()[0]) for text in (line, by_hand_line))
    assert log_p == pytest.approx(log_p_by_hand + jacobian, abs=0.02)


@without_pictures
def test_a_standardized_run_is_resumed_as_standardized(standardized, tmp_path, capsys):
    path = str(standardized / "x.npy")
    assert train(tmp_path, "--data", path, "--standardize", *STANDARD, "--epochs", "11") == 0
    assert train(tmp_path, "--resume", "--epochs", "30") == 0
    assert state_of(tmp_path)["history"] == state_of(standardized / "run")["history"]
    state = state_of(tmp_path)
    assert torch.equal(state["units"]["mean"], state_of(standardized / "run")["units"]["mean"])


@pytest.mark.parametrize(
    ("x", "args", "message"),
    [
        (
            RAW,
            (),
            "the ELBO is no longer finite in epoch 1: try a smaller --lr, or data nearer to unit scale by --stand",
        ),
        (RAW, ("--standardize", "--likelihood", "bernoulli"), "--standardize is for a Gaussian or Laplace"),
        (
            np.where(np.arange(40)[:, None] == TEST_ROW, 1e30, 1e-30 * np.arange(40)[:, None]),
            ("--standardize",),
            "standardized, values do not fit in float32, the first at [",
        ),
    ],
    ids=["raw", "bernoulli", "far"],
)
@without_pictures
def test_data_that_cannot_be_trained_on_give_the_reason(tmp_path, capsys, x, args, message):
    code = train(tmp_path / "run", "--data", save(tmp_path / "x.npy", x * 1e15 if args == () else x), *SMALL, *args)
    assert message in error_of(capsys, code)


def test_the_curves_of_training_and_test_rows_end_below_their_own_log_p(run):
    history = state_of(run)["history"]
    figure = pictures.draw_elbo(history, {"train": 7.0, "test": 5.0}, "x")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    for part, rows, log_p in (("train", "training rows", 7.0), ("test", "test rows", 5.0)):
        dotted = lines[f"log p(x), {rows}: about {log_p:.1f}"]
        curve = lines[f"ELBO, {rows}: {history[-1][part]['elbo']:.1f} at the end"]
        assert np.asarray(dotted.get_ydata()).tolist() == [log_p] * 2
        assert dotted.get_color() == curve.get_color()
        assert np.asarray(curve.get_ydata()).tolist() == [entry[part]["elbo"] for entry in history]
    assert len(lines) == 4


@pytest.mark.parametrize("D", [3, 20])
def test_a_table_has_a_panel_for_each_feature(tmp_path, D):
    x = torch.randn(40, D) * 10.0 ** torch.arange(D).remainder(5)
    names = [f"$column_{d}" for d in range(D)]
    reconstructed = pictures.draw_reconstructions(x, x, names)
    for figure in (reconstructed, pictures.draw_samples(x, x[:30], names), pictures.draw_draws(x, "x", (0, 1), names)):
        shown = [axes for axes in figure.axes if axes.axison]
        assert [axes.get_title() for axes in shown] == names[:16]
        assert all(len(axes.lines) <= 1 for axes in shown)
        assert ("(the first 16 of 20 features)" in figure.get_suptitle()) == (D == 20)
        assert pictures.save(figure, tmp_path / "x.png").exists()
    assert [axes.texts[0].get_text() for axes in reconstructed.axes[:3]] == ["R² 1.00"] * 3


def test_signals_are_curves(tmp_path):
    x = torch.linspace(0, 6, 40).add(torch.rand(30, 1)).sin()
    figure = pictures.draw_reconstructions(x, x)
    assert [len(axes.lines) for axes in figure.axes] == [2] * 6
    assert [len(axes.lines) for axes in pictures.draw_samples(x, x).axes] == [2]
    assert pictures.save(figure, tmp_path / "x.png").exists()


def test_latents_without_labels_show_the_elbo_of_each_row():
    x, model = torch.randn(40, 5), VAE.mlp(5, latent=2)
    points, bar = (pictures.draw_latents(model, x, None, log_jacobian=3.0).axes[i] for i in (0, 2))
    expected = model.elbo(x, num_samples=10, seed=0, reduction="none") + 3
    assert np.array_equal(np.asarray(points.collections[0].get_array()), expected.detach().numpy())
    assert bar.get_ylabel() == "ELBO of the row, nats"


@pytest.mark.parametrize("shape", [(4,), (17,), (3, 4, 4), (8, 8)])
@pytest.mark.parametrize("value", [0.0, 1.0, -3e38])
def test_constant_data_are_drawn(tmp_path, shape, value):
    x = torch.full((12, *shape), value)
    pictures.save(pictures.draw_samples(x, x + 0.1), tmp_path / "samples.png")
    pictures.save(pictures.draw_draws(x, "x", pictures.bounds(x)), tmp_path / "draws.png")
    pictures.save(pictures.draw_reconstructions(x, x - 0.1), tmp_path / "reconstructions.png")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_collapsed_encoder_is_drawn():
    points, names = pictures.in_the_plane(np.full((12, 3), 0.25, np.float32))
    assert points.tolist() == [[0.25, 0.25]] * 12
    assert names == ("z[0]", "z[1]")
