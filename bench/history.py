"""What is kept of a run: one JSON line, with the machine, the versions and the kernels it was measured with."""

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
HISTORY = ROOT / "bench" / "history"
FULL, PARTIAL = HISTORY / "runs.jsonl", HISTORY / "partial.jsonl"  # the second is for quick and partial runs
FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")
PACKAGES = (
    *("torch", "numpy", "numba", "scikit-learn", "scikit-learn-intelex", "statsmodels", "scipy"),
    *("threadpoolctl", "pytest-benchmark"),
)


def machine() -> dict[str, Any]:
    """What a time depends on and no version tells."""
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    except OSError:  # not Linux
        pass
    flags = facts.get("flags", facts.get("Features", "")).split()
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "system": platform.system(),
    }


def versions() -> dict[str, str | None]:
    """Of Python and of whatever a time depends on; None is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def git(*arguments: str) -> str:
    """What git prints, or nothing where there is no git."""
    try:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def commit() -> dict[str, Any]:
    """The commit, and whether a tracked file differed from it."""
    changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    return {"commit": git("rev-parse", "--short=10", "HEAD"), "dirty": changed}


def essence(node: Any) -> Any:
    """Of a syntax tree what is compiled: without docstrings and positions, the same for every version of Python."""
    if isinstance(node, list):
        return [essence(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if (
        isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
        and ast.get_docstring(node, clean=False) is not None
    ):
        fields["body"] = fields["body"][1:]
    return [type(node).__name__, *([name, essence(value)] for name, value in fields.items() if value not in (None, []))]


@cache
def stamp(folder: Path = ROOT / "kernels" / "fastvae_kernels") -> str:
    """Of the kernels' code: another where anything but comments, docstrings and layout changed."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        tree = essence(ast.parse(path.read_text(encoding="utf-8")))
        digest.update(json.dumps([path.relative_to(folder).as_posix(), tree]).encode())
    return digest.hexdigest()[:16]


def since(run: dict[str, Any]) -> str:
    """How many commits have touched the kernels since a run, where git can tell, and whether their code is another."""
    count = git("rev-list", "--count", f"{run['commit']}..HEAD", "--", "kernels")
    commits = f"{count} commit{'' if count == '1' else 's'} since this run {'has' if count == '1' else 'have'} touched"
    known = f" ({commits} kernels/)" if count else ""
    if run["stamp"] == stamp():
        return f"The kernels' code is that of this run{known}."
    return f"The kernels' code has changed since this run{known}."


def read(path: Path = FULL) -> list[dict[str, Any]]:
    """All runs, the last one last."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def append(run: dict[str, Any], path: Path) -> None:
    """Add a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(run) + "\n")


def last_before(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last run before the last one on a machine like its own."""
    *others, last = runs
    alike = [run for run in others if run["machine"] == last["machine"]]
    return alike[-1] if alike else None
