"""The layers of the package: which modules import which, which read the environment, what `import fastvae` loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPTIONAL = ("numba", "triton", "sklearn", "matplotlib", "tqdm")  # a call of fastvae.elbo needs none of them


def modules(folder):
    """Each file below a folder, and its dotted name relative to the parent of that folder."""
    base = ROOT / folder
    for path in sorted(base.rglob("*.py")):
        yield path, path.relative_to(base.parent).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


def imports(path, name):
    """The absolute names a file imports, at any depth of its code; ``from a import b`` gives both a and a.b."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from (source, *(f"{source}.{alias.name}" for alias in node.names))


def within(name, *packages):
    return any(name == p or name.startswith(p + ".") for p in packages)


def test_the_import_reader_sees_every_form(tmp_path):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "b.py"
    path.write_text("import x.y as z\nfrom . import c\nfrom ..d import e\ndef f():\n    from .g.h import i\n")
    names = {"x.y", "top.a", "top.a.c", "top.d", "top.d.e", "top.a.g.h", "top.a.g.h.i"}
    assert set(imports(path, "top.a.b")) == names
    init = tmp_path / "a" / "__init__.py"
    init.write_text("from . import c\n")
    assert set(imports(init, "top.a")) == {"top.a", "top.a.c"}


SHARED = tuple(
    f"fastvae_kernels.{name}" for name in ("plans", "rows", "coefficients", "private", "openmp", "undisturbed")
)
# What each layer may import besides the standard library. The rest of fastvae is above all of them.
LAYERS = {
    "fastvae/reference": ("torch", "fastvae.reference"),
    "kernels/fastvae_kernels/numba": ("torch", "numpy", "numba", "llvmlite", "fastvae_kernels.numba", *SHARED),
    "kernels/fastvae_kernels/triton": ("torch", "triton", "fastvae_kernels.triton", *SHARED),
}


@pytest.mark.parametrize("folder", LAYERS)
def test_reference_and_kernels_import_no_other_layer(folder):
    source_root = (ROOT / folder).parent
    files = [(path, f"{source_root.name}.{name}") for path, name in modules(folder)]
    assert files
    for path, name in files:
        for imported in imports(path, name):
            allowed = within(imported, *sys.stdlib_module_names, *LAYERS[folder])
            assert allowed, f"{path.relative_to(ROOT)} imports {imported}"


JOBS, SHARE = {"_elbo", "elbo", "gmm", "regression"}, {"_core", "language"}


def room(name):
    """The folder that contains a module of fastvae, or of a backend."""
    parts = name.split(".")[2 if within(name, "fastvae_kernels") else 1 :]
    return parts[0] if parts else None


def test_no_job_imports_another():
    files = [file for folder in ("fastvae", "kernels/fastvae_kernels") for file in modules(folder)]
    assert {room(name) for _, name in files} >= JOBS | SHARE
    for path, name in files:
        if room(name) in JOBS | SHARE:
            others = {room(imported) for imported in imports(path, name)} & JOBS - {room(name)}
            assert not others, f"{path.relative_to(ROOT)} imports of {others}"


def test_there_are_no_circular_imports():
    """`from package import name` counts as an import of the file that defines the name."""
    files = {name: path for folder in ("fastvae", "kernels/fastvae_kernels") for path, name in modules(folder)}
    arrows = {name: {i for i in imports(path, name) if i in files and i != name} for name, path in files.items()}
    for name, found in arrows.items():  # `from . import a` yields the package as well, which does not count
        arrows[name] = {i for i in found if not any(within(other, i) and other != i for other in found | {name})}
    while leaves := {name for name, found in arrows.items() if not found}:
        arrows = {name: found - leaves for name, found in arrows.items() if name not in leaves}
    assert not arrows, f"these import each other, or what does: {sorted(arrows)}"


def test_no_kernel_imports_fastvae():
    files = list(modules("kernels/fastvae_kernels"))
    assert files
    for path, name in files:
        assert not [i for i in imports(path, name) if within(i, "fastvae")], path


def test_only_backend_imports_the_kernels_module_by_name():
    # Anywhere else a kernel would be imported at `import fastvae`; other modules get kernels from _core/backend.py.
    for path, name in modules("fastvae"):
        kernels = [i for i in imports(path, name) if within(i, "fastvae_kernels")]
        none = [
            f"fastvae_kernels.{name}" for name in ("private", "openmp", "undisturbed")
        ]  # modules that import no kernel
        assert not [i for i in kernels if not within(i, *none)], path


def reads_environment(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = {"environ", "environb", "getenv", "getenvb"}
        if isinstance(node, ast.Attribute) and node.attr in names:
            return True
        if isinstance(node, ast.ImportFrom) and node.module == "os" and names & {a.name for a in node.names}:
            return True
    return False


def test_only_backend_reads_the_environment():
    files = [path for folder in ("fastvae", "kernels/fastvae_kernels") for path, _ in modules(folder)]
    assert [path.relative_to(ROOT).as_posix() for path in files if reads_environment(path)] == [
        "fastvae/_core/backend.py"
    ]


def test_kernels_is_a_source_root_and_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()  # it would shadow Hugging Face's `kernels`
    assert (ROOT / "kernels" / "fastvae_kernels" / "__init__.py").exists()


def run_fresh(code, cwd):
    """Run code in a new process, which finds files of the repository only through the installed package."""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=cwd, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_import_loads_neither_kernels_nor_optional_packages(tmp_path):
    code = """
import sys, torch
before = set(sys.modules)
import fastvae
print(*sorted(set(sys.modules) - before))
"""
    loaded = run_fresh(code, tmp_path)
    assert "fastvae.reference.elbo.formulas" in loaded
    assert not [name for name in loaded if within(name, *OPTIONAL, "statsmodels", "scipy", "pandas")]
    # kernels are located, which imports their empty packages, but not imported
    backends = ("fastvae_kernels.numba", "fastvae_kernels.triton")
    launchers = [name for name in loaded if within(name, *backends)]
    assert set(launchers) <= {*backends, *(f"{backend}.elbo" for backend in backends)}


def test_elbo_runs_without_optional_packages(tmp_path):
    code = f"""
import sys
sys.modules.update(dict.fromkeys({OPTIONAL}))  # importing one raises ImportError now
import torch, fastvae
mu = torch.zeros(3, 2, requires_grad=True)
fastvae.elbo(torch.ones(3, 4), torch.nn.Linear(2, 4), mu, mu).backward()
fastvae.VAE.mlp(4).elbo(torch.ones(3, 4)).backward()
assert mu.grad.isfinite().all()
try:
    fastvae.kl_divergence(mu, mu, backend="numba")
except fastvae.BackendError as error:
    print(error)
"""
    assert " ".join(run_fresh(code, tmp_path)).endswith("numba is not installed")
