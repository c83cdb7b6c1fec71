"""`bench/gpu.py` from end to end on a CPU, at tiny sizes: a GPU is too rare to find there that a name is misspelt."""

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "gpu.py"


def run(monkeypatch, *arguments, **settings):
    module = runpy.run_path(str(SCRIPT))
    main = module["main"]
    for name, value in settings.items():
        monkeypatch.setitem(main.__globals__, name, value)
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    main()


def test_it_checks_times_and_writes(tmp_path, monkeypatch, capsys):
    out, readme = tmp_path / "history" / "gpu.json", tmp_path / "README.md"
    begin, end = "<!-- bench/gpu.py begins -->", "<!-- bench/gpu.py ends -->"
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    settings = {"DEVICE": "cpu", "SIZES": [(64, 32, 4)], "FLUSH": 1000}
    run(monkeypatch, "--seconds", "0", "--out", str(out), "--readme", str(readme), **settings)
    lines = json.loads(out.read_text())["lines"]
    cases = [f"{what} 64x32,4 {dtype}" for dtype in ("fp32", "bf16") for what in ("fwd", "fwd+bwd")]
    assert [line["case"] for line in lines] == [*cases, "training step 64x32,4"]
    assert all(set(line["seconds"]) >= {"fastvae", "eager", "compile"} for line in lines)
    text = readme.read_text()
    assert text.startswith(f"before\n{begin}\n")
    assert text.endswith(f"{end}\nafter\n")
    assert "old" not in text
    for line in capsys.readouterr().out.splitlines():
        assert line in text


def test_a_wrong_result_is_not_timed(tmp_path, monkeypatch):
    def wrong(x, x_hat, mu, logvar):
        return (x_hat * mu.sum() * logvar.sum()).sum()

    settings = {"DEVICE": "cpu", "SIZES": [(64, 32, 4)], "FLUSH": 1000, "fused": wrong}
    with pytest.raises(AssertionError):
        run(monkeypatch, "--out", str(tmp_path / "gpu.json"), "--readme", str(tmp_path / "README.md"), **settings)
    assert not (tmp_path / "gpu.json").exists()


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run(monkeypatch, "--out", str(tmp_path / "gpu.json"))
    assert capsys.readouterr().out == "no CUDA GPU here: nothing was measured\n"
