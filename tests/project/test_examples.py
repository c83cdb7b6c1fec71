"""Every example runs and shows what its docstring says, in fewer than 60 lines."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))


def example(name):
    """Import an example; its `main` is not called."""
    return importlib.import_module(f"examples.{name}")


def test_the_list_of_examples_is_complete():
    names = "conditional_vae conv_vae ddp free_latents grouped_mixtures grouped_regression"
    assert [path.stem for path in FILES] == names.split()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_is_short_and_described(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") < 60
    assert text.startswith('"""')
    assert text.endswith('\n\nif __name__ == "__main__":\n    main()\n')
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    assert f"(examples/{path.name})" in readme


def test_conv_vae(capsys):
    before, after, log_p = example("conv_vae").main(epochs=3)
    assert before + 10 < after < log_p < 0  # on held-out digits
    printed = capsys.readouterr().out
    assert f"{after:.2f} after" in printed
    assert re.search(r"(\n[.#]{8}){8}\n", printed)


def test_free_latents(capsys):
    before, after, best = example("free_latents").main(steps=300)
    assert before < best - 2
    assert best - 0.1 < after < best + 0.02  # a bound, up to the noise of 1000 draws per flower
    assert f"{best:.3f}" in capsys.readouterr().out


def test_conditional_vae(capsys):
    before, after, found = example("conditional_vae").main(epochs=20)
    assert after > before + 50
    assert found > 0.9
    assert f"{found:.1%}" in capsys.readouterr().out


def test_ddp():
    # as started by a user: its workers import the file again
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(EXAMPLES / "ddp.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    difference, largest = map(float, re.findall(r"by at most (\S+); the largest is (\S+)\n", done.stdout)[0])
    assert largest > 1
    assert difference <= 1e-6 * largest


def test_grouped_mixtures(capsys):
    table, difference = example("grouped_mixtures").main()
    assert table["rows"].sum() == 1797
    assert table["rows"].nunique() > 1  # there was padding
    assert (table["status"] == "CONVERGED").all()
    assert difference <= 1e-9  # the means are of order 10
    assert f"differ by at most {difference:.1e}" in capsys.readouterr().out


def test_grouped_regression(capsys):
    table, difference = example("grouped_regression").main()
    assert difference <= 1e-9
    assert list(table.index) == [10, 20, 30, 40, 50, 60, 70]
    deficient = table["rank"] < 3
    assert list(table.index[deficient]) == [10]
    assert "RANK_DEFICIENT" in table.loc[10, "status"]
    assert not table["status"][~deficient].str.contains("RANK_DEFICIENT").any()
    assert np.isnan(table.loc[10, "se_bmi"])
    assert np.isfinite(table.loc[~deficient].drop(columns="status")).all(axis=None)
    assert "RANK_DEFICIENT" in capsys.readouterr().out
