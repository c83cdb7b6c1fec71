"""The pages of docs/: their tables are those of the script that makes them, and say what the prose claims.

Python of the guides runs. The site, which `make site` builds, has every page.
"""

import doctest
import re
import tomllib
import warnings
from pathlib import Path

import pytest

from docs import numerics

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "numerics.md").read_text(encoding="utf-8")


def cells(lines):
    """Header and rows of a table in Markdown."""
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return head, rows


def on_the_page(name):
    """A table of the page: its rows by label, the cells by column."""
    (found,) = numerics.between(name).finditer(PAGE)
    head, rows = cells(found[0].split("\n")[2:-2])
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def numbers(table, column, but=()):
    return [float(row[column]) for label, row in table.items() if label not in but]


@pytest.mark.parametrize("name", numerics.TABLES)
def test_a_table_of_the_page_is_one_of_the_script(name):
    (found,) = numerics.between(name).finditer(PAGE)
    head, rows = cells(found[0].split("\n")[2:-2])
    table = numerics.TABLES[name]
    assert head == table.head
    assert [row[0] for row in rows] == table.labels
    assert all(len(row) == len(head) and all(row[1:]) for row in rows)


def test_the_script_has_a_place_for_each_table_and_no_other():
    assert re.findall(r"<!-- ([\w ]+) begins -->", PAGE) == [*numerics.TABLES]


def test_the_kl_of_the_page():
    table, rows = on_the_page("kl"), numerics.TABLES["kl"].lines()
    for column in ("fastvae", "its gradient"):  # columns of gradients share a name; the last one, ours, is used
        assert max(numbers(table, column)) < 1.2e-7
    assert all(float(table[logvar]["textbook"]) == 1 for logvar in ("1e-4", "1e-5", "1e-6", "1e-8"))
    assert max(float(row[-2]) for row in cells(rows)[1]) < 1.2e-7  # computed again


def test_the_vector_math_of_the_page():
    table = on_the_page("math")
    for name, (_, worst, *_) in numerics.vector_math.FUNCTIONS.items():
        for column in ("float32", "float64"):
            assert float(table[name][column]) <= worst
    better = {name for name in numerics.TORCH if float(table[name]["torch float64"]) < float(table[name]["float64"])}
    assert better == {*numerics.TORCH} - {"log1p", "sigmoid"}


@pytest.mark.parametrize(("dtype", "worst"), [("float64", 1e-12), ("float32", 1e-6)])
def test_em_of_the_page(dtype, worst):
    table = on_the_page(f"em {dtype}")
    for label, row in table.items():
        if "fastvae" in label:
            assert all(float(cell) <= worst for cell in row.values())
        else:
            assert (list(row.values())[-1] == "raises") == ("full" not in label)


def test_nist_of_the_page():
    table, errors = on_the_page("nist"), on_the_page("nist errors")
    assert min(numbers(table, "fastvae", but=["Filip"])) >= 13
    assert min(numbers(errors, "fastvae", but=["Filip"])) >= 13
    assert float(table["Filip"]["fastvae"]) == float(table["Filip"]["exact"]) >= 7.5
    for row in table.values():
        assert float(row["fastvae"]) >= float(row["exact"]) - 0.1


def test_condition_on_the_page():
    table = on_the_page("condition")
    assert min(numbers(table, "fastvae")) >= 13
    assert float(table["1e12"]["lstsq"]) < 5


NIST = on_the_page("nist")
LATER = ("Pontius", "NoInt1", "NoInt2", "Longley")  # each needs its own kernels, which take seconds to compile


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long] if n in LATER else []) for n in NIST])
def test_nist_digits_are_still_those_of_the_page(name):
    X, y, intercept, values = numerics.certified(name)
    coef, _ = numerics.solved("fastvae", X, y, intercept)
    assert numerics.digits(coef, values["coef"]) >= float(NIST[name]["fastvae"]) - 0.5


def test_rows_can_be_reproduced():
    """Compute one row of each of the expensive tables again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("em float64", "nist errors", "condition", "versions"):
            table = numerics.TABLES[name]
            assert len(next(iter(table.rows()))) == len(table.head) - 1


PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_links_of_the_pages_point_to_files():
    for page in PAGES:
        prose = re.sub(r"```.*?```|`[^`]*`", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
        links = [link for link in re.findall(r"\]\(([^)#]+)", prose) if "://" not in link]
        assert [link for link in links if not ((DOCS / page).parent / link).exists()] == [], page


@pytest.mark.parametrize("page", ["index", "guides/elbo", "guides/mixtures", "guides/regression"])
def test_python_of_a_guide_runs(page):
    """From top to bottom, in one scope: ```python blocks as they are, ```pycon blocks as doctests."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|pycon)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert blocks
    scope: dict[str, object] = {}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, page, "exec"), scope)
            continue
        test = doctest.DocTestParser().get_doctest(block, scope, page, f"docs/{page}.md", 0)
        report: list[str] = []
        flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
        failed = doctest.DocTestRunner(optionflags=flags).run(test, out=report.append, clear_globs=False).failed
        assert not failed, "".join(report)
        scope = test.globs


def test_commands_of_the_guide_exist():
    from fastvae.__main__ import build_parser

    page = (DOCS / "guides" / "command_line.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python -m fastvae (.*)$", page, re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        build_parser().parse_args(command.split())


def test_the_site_has_every_page_and_no_other():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = config[config.index("\nnav:") : config.index("\nvalidation:")]
    named = re.findall(r"[:-] ([\w/]+\.md)$", nav, re.MULTILINE)
    assert sorted(named) == PAGES


def test_pages_include_files_that_exist():
    for page in PAGES:
        included = re.findall(r'^--8<-- "(.*)"$', (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert [path for path in included if not (ROOT / path).is_file()] == [], page


def test_every_public_name_is_in_the_api():
    import fastvae

    pages = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    names = [f"fastvae.{name}" for name in fastvae.__all__]
    names += [f"fastvae.gmm.{name}" for name in fastvae.gmm.__all__]
    names += [f"fastvae.regression.{name}" for name in fastvae.regression.__all__]
    assert [name for name in names if f"::: {name}\n" not in pages] == []


def test_the_citation_is_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"\nversion: {project['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
