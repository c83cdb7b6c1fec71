"""`python -m bench report`: draw tables and charts from the history, and renew the README's section on speed."""

import argparse
from pathlib import Path

from . import history, report


def main(arguments: list[str] | None = None) -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, formatter_class=formatter)
    parser.add_argument("command", choices=["report"])
    parser.add_argument("--history", type=Path, default=history.FULL, help="the last line is reported on")
    parser.add_argument("--root", type=Path, default=history.ROOT, help="where README.md and docs/bench/ are written")
    options = parser.parse_args(arguments)
    runs = history.read(options.history)
    if not runs:
        print(f"no run in {options.history.name} yet: `make bench` adds one")
        return
    from . import charts  # matplotlib is needed by nobody else

    run, before = runs[-1], history.last_before(runs)
    folder, readme = options.root / "docs" / "bench", options.root / "README.md"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(report.page(run, before), encoding="utf-8")
    drawn = charts.draw(run, folder)
    if readme.exists():
        text = report.replace(readme.read_text(encoding="utf-8"), report.section(run))
        readme.write_text(text, encoding="utf-8")
    print(
        "\n".join(
            [report.heading(run), history.since(run), "", "Where a rival is faster:", *report.losses_text(run), ""]
        )
    )
    print("\n".join([*report.changes(run, before), "", f"{folder / 'README.md'} and {len(drawn)} charts written"]))


if __name__ == "__main__":
    main()
