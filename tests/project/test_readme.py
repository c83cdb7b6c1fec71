"""The Python code of the README runs as written, and the files it links to exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run_one_after_another():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 4
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    assert scope["terms"].elbo.isfinite()  # type: ignore[attr-defined]


def test_links_point_to_files():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_public_name_is_in_the_table():
    import fastvae

    table = README[README.index("## What is in it") :]
    undocumented = [name for name in fastvae.__all__ if f"fastvae.{name}`" not in table]
    assert set(undocumented) == {"BackendError", "ElboTerms"}


def test_commands_of_the_readme_exist():
    from fastvae.__main__ import build_parser

    commands = re.findall(r"^python -m fastvae (.*?)(?:\s+#.*)?$", README, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        build_parser().parse_args(command.split())
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([\w-]+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
