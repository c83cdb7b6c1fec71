"""Private names of torch, Triton and Numba: all are in the table of `fastvae_kernels.private`, and none is required."""

import ast
import os
import sys
import traceback
from pathlib import Path

import pytest
import torch

import fastvae
from fastvae_kernels import private

ROOT = Path(__file__).parents[2]
FILES = [p for folder in ("fastvae", "kernels/fastvae_kernels") for p in sorted((ROOT / folder).rglob("*.py"))]


def dotted(node):
    """``a.b.c`` for such an expression, None for any other."""
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else None
    return node.id if isinstance(node, ast.Name) else None


def is_private(part):
    """Whether a part of a dotted name is private; that of `torch.__version__` is not."""
    return part.startswith("_") and not part.endswith("__")


def used(path):
    """Private names used directly by a file: ``torch._C.x``, and imports of Numba's internals."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        name = dotted(node) if isinstance(node, ast.Attribute) else None
        if name and name.startswith(("torch.", "triton.")) and any(map(is_private, name.split("."))):
            yield name
        if name and name.startswith(("cgutils.", "triton.knobs.")):
            yield name.replace("cgutils.", "numba.core.cgutils.")
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("numba.core", "numba.np")):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_private_name_is_in_the_table(path):
    if path.name == "private.py":
        return
    modules = {"numba.core.cgutils"}  # the names used from it are listed
    for name in set(used(path)) - modules:
        assert any(entry == name or entry.startswith(f"{name}.") for entry in private.NAMES), name


def test_the_table_is_of_names_that_exist():
    for package in ("torch", "triton", "numba"):
        assert private.missing(package) == ()


def test_what_is_missing_is_replaced():
    assert private.look("torch._C.no_such_name") is private._NOTHING
    assert private.look("torch.no_such_module.name") is private._NOTHING
    with pytest.raises(AssertionError, match="not in the table"):
        private.find("torch.nn.Module")


def step(backend):
    """The ELBO and all gradients, a second backward, and a gradient of more than 1 MB."""
    torch.manual_seed(0)
    x, W = torch.randn(40, 7), torch.randn(3, 7, requires_grad=True)
    mu, logvar = (torch.randn(40, 3, requires_grad=True) for _ in range(2))
    value = fastvae.elbo(x, lambda z: z @ W, mu, logvar, seed=1, backend=backend)
    found = [value, *torch.autograd.grad(value, [W, mu, logvar], retain_graph=True)]
    found += torch.autograd.grad(3 * value, [W, mu, logvar])
    x_hat = torch.randn(700, 700, requires_grad=True)
    value = fastvae.elbo(torch.zeros(700, 700), x_hat, mu[:1].expand(700, 3), mu[:1].expand(700, 3), backend=backend)
    found += torch.autograd.grad(value, [x_hat])
    return [t.detach() for t in found]


def compare_without(*names):
    """Check, in a child process, that the ELBO matches the reference without these names."""
    global fastvae
    for module in [m for m in sys.modules if m.split(".")[0] in ("fastvae", "fastvae_kernels")]:
        del sys.modules[module]
    from fastvae_kernels import private

    look = private.look
    private.look = lambda name: private._NOTHING if name in names else look(name)
    import fastvae

    fastvae.show_config()
    for ours, theirs in zip(step("auto"), step("reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    if "numba.np.arrayobj.populate_array" in names:
        with pytest.raises(fastvae.BackendError, match="this version of numba has no numba"):
            step("numba")
        X = torch.randn(40, 3, dtype=torch.float64)
        assert fastvae.regression.fit(X, X[:, 0]).coef.isfinite().all()
        assert fastvae.gmm.fit(X, 1).mixture.means.isfinite().all()


def in_a_child(*names):
    """Fork, because a new interpreter would have to import torch and Numba again."""
    import numba.core.ccallback  # noqa: F401

    child = os.fork()
    if child == 0:
        code = 1
        try:
            compare_without(*names)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
no_warning = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@forks
@no_warning
@pytest.mark.parametrize("package", ["torch", "numba"])
def test_without_any_of_them_results_are_the_same(package):
    in_a_child(*(name for name in private.NAMES if name.startswith(f"{package}.")))


@forks
@no_warning
@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in private.NAMES if name.startswith("torch.")])
def test_without_one_of_them_results_are_the_same(name):
    in_a_child(name)


def test_a_backend_that_cannot_be_imported_is_not_chosen(monkeypatch, capsys):
    def broken(package):
        raise ImportError("Numba needs NumPy 2.4 or less")

    private.unusable.cache_clear()
    private.missing.cache_clear()
    monkeypatch.setattr(private.importlib, "import_module", broken)
    try:
        assert private.unusable("numba") == "numba cannot be imported: Numba needs NumPy 2.4 or less"
        assert private.missing("numba") == ()
        fastvae.show_config()
        assert "numba: numba cannot be imported: Numba needs NumPy 2.4 or less" in capsys.readouterr().out
    finally:
        private.unusable.cache_clear()
        private.missing.cache_clear()
