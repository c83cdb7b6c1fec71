"""Shared by the tests of the command line: small runs, their files, and the line of an error message."""

import re

import numpy as np
import pytest
import torch

from fastvae.__main__ import main
from fastvae.demo import pictures

SMALL = (
    "--hidden",
    "16",
    "--latent",
    "3",
    "--epochs",
    "3",
    "--batch-size",
    "512",
)  # 3 steps per epoch, the last one smaller
BAR = re.compile(r"\d+/\d+ \[")  # of tqdm, whose rate is step/s, or s/step if a step takes more than a second


def train(out, *args):
    return main(["train", "--out", str(out), *args])


def finished_run(out):
    """A small finished run on the digits, without pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw_run", lambda *_: [])
        assert train(out, *SMALL) == 0
    return out


def state_of(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


def assert_same_run(a, b):
    a, b = state_of(a), state_of(b)
    assert a["history"] == b["history"]
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in b["model"])
    for moments, expected in zip(a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(moments[k], expected[k]) for k in expected)


def line_of(err):
    """The line of an error message on stderr, besides a progress bar."""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.strip() and not BAR.search(line)]
    assert len(lines) == 1, err
    return lines[0]


def error_of(capsys, code):
    """The line on stderr, besides a progress bar, of a command that failed with exit status 2."""
    assert code == 2
    return line_of(capsys.readouterr().err)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def save(path, array):
    np.save(path, array, allow_pickle=True)
    return str(path)
