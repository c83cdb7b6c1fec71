"""The wheel, built here without a network and installed on its own, and the editable install."""

import subprocess
import sys
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def run(*command, cwd):
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked():
    """The files that git would track, including new ones, without ignored ones."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    paths = {path for path in listed.split("\0") if path and not path.startswith(("tests/", "docs/", "bench/"))}
    return sorted(path for path in paths if (ROOT / path).is_file())


def litter():
    """Files that a build in the repository itself would create or change."""
    found = [ROOT / "build", ROOT / "dist", *ROOT.glob("*.egg-info/*"), *ROOT.glob("kernels/*.egg-info/*")]
    return {path: path.stat().st_mtime_ns for path in found if path.exists()}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A folder with the installed wheel. It is built in a copy, because a build leaves build/ and egg-info behind."""
    folder, before = tmp_path_factory.mktemp("wheel"), litter()
    for path in tracked():
        copy = folder / "tree" / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / path).read_bytes())
    options = ["--no-deps", "--no-index", "--no-build-isolation"]
    run(*PIP, "wheel", *options, "--wheel-dir", folder / "dist", folder / "tree", cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    run(*PIP, "install", "--no-deps", "--no-index", "--target", folder / "site", wheel, cwd=folder)
    assert litter() == before
    return folder / "site"


def run_installed(target, *arguments, cwd):
    """Run Python with the wheel first in the path; -S excludes the editable install."""
    setup = f"import sys, runpy; sys.path[:] = [{str(target)!r}, *{[p for p in sys.path if not is_ours(p)]}]; "
    return run(sys.executable, "-S", "-c", setup + arguments[0], *arguments[1:], cwd=cwd)


def is_ours(path):
    """Whether an entry of sys.path points to the sources of this repository."""
    return path == "" or Path(path).resolve() in (ROOT, ROOT / "kernels", ROOT / "tests")


def test_the_wheel_alone_imports_and_runs(target, tmp_path):
    code = """
import fastvae, fastvae_kernels, torch
print(fastvae.__file__, fastvae_kernels.__file__, sep="\\n")
mu = torch.zeros(3, 2, requires_grad=True)
fastvae.elbo(torch.ones(3, 4), torch.nn.Linear(2, 4), mu, mu, backend="reference").backward()
assert mu.grad.isfinite().all()
assert fastvae.kl_divergence(mu, mu, backend="numba").sum() == 0  # compiled in a second
fastvae.show_config()
"""
    files = run_installed(target, code, cwd=tmp_path).splitlines()
    assert files[0] == str(target / "fastvae" / "__init__.py")
    assert files[1] == str(target / "fastvae_kernels" / "__init__.py")
    assert files[2].split() == ["fastvae", metadata(target)["Version"]]


def test_the_wheel_has_every_module_the_type_marker_and_nothing_else(target):
    shipped = {
        p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file() and "__pycache__" not in p.parts
    }
    shipped = {p for p in shipped if ".dist-info/" not in p and not p.startswith("bin/")}
    sources = {path.removeprefix("kernels/") for path in tracked() if path.endswith((".py", "py.typed"))}
    assert shipped == {path for path in sources if path.startswith("fastvae")}
    assert {"fastvae/py.typed", "fastvae_kernels/__init__.py"} <= shipped
    assert not (target / "kernels").exists()


@pytest.mark.skipif(not (ROOT / "fastvae" / "__main__.py").exists(), reason="there is no command line yet")
def test_the_command_line_shows_its_help(target, tmp_path):
    code = "sys.argv[0] = 'fastvae'; runpy.run_module('fastvae', run_name='__main__', alter_sys=True)"
    assert "usage" in run_installed(target, code, "--help", cwd=tmp_path).lower()
    assert (target / "bin" / "fastvae").exists()
    assert "usage" in run(sys.executable, "-m", "fastvae", "--help", cwd=tmp_path).lower()


def metadata(target):
    (file,) = target.glob("*.dist-info/METADATA")
    return HeaderParser().parsestr(file.read_text())


def test_the_metadata(target):
    fields = metadata(target)
    assert fields["Name"] == "fastvae-kernels"  # `fastvae` on PyPI is another project
    assert fields["License-Expression"] == "MIT"
    assert list(target.glob("*.dist-info/licenses/LICENSE"))
    required = [r for r in fields.get_all("Requires-Dist", []) if "extra ==" not in r]
    names = {r.split(">")[0].split(";")[0].strip() for r in required}
    assert names == {"torch", "numpy", "numba"}  # not triton, of a gigabyte, which torch installs where there is a GPU


def test_this_environment_imports_from_the_repository(tmp_path):
    code = "import fastvae, fastvae_kernels; print(fastvae.__file__, fastvae_kernels.__file__, sep='\\n')"
    files = run(sys.executable, "-c", code, cwd=tmp_path).splitlines()
    assert [Path(f).resolve() for f in files] == [
        ROOT / "fastvae" / "__init__.py",
        ROOT / "kernels" / "fastvae_kernels" / "__init__.py",
    ]
