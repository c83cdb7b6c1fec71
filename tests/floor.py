"""Print the lower bounds of pyproject.toml as constraints for pip; with ``--installed``, the installed versions."""

import importlib.metadata
import platform
import re
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOLD = ("torch", "triton", "numba", "numpy", "scikit-learn", "scipy")


def floors() -> dict[str, str]:
    """The lowest version of each distribution that satisfies all requirements."""
    found: dict[str, str] = {}
    extras = PROJECT["optional-dependencies"]
    for requirement in [*PROJECT["dependencies"], *extras["demo"], *extras["test"]]:
        name, version = re.match(r"([\w-]+)\s*>=\s*([\d.]+)", requirement).groups()  # type: ignore[union-attr]
        found[name] = max(version, found.get(name, version), key=lambda v: [int(part) for part in v.split(".")])
    return found


if __name__ == "__main__":
    if sys.argv[1:] == ["--installed"]:
        there = {d.metadata["Name"].lower().replace("_", "-") for d in importlib.metadata.distributions()}
        versions = [f"{name} {importlib.metadata.version(name)}" for name in TOLD if name in there]
        print(", ".join([f"Python {platform.python_version()}", *versions]))
    else:
        print("\n".join(f"{name}=={version}" for name, version in floors().items()))
