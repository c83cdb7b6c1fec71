"""`python -m bench report`: renew tables and the README's section from the last run; `--charts` draws."""

import argparse
from pathlib import Path

from . import history, report


def main(arguments: list[str] | None = None) -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, formatter_class=formatter)
    parser.add_argument("command", choices=["report"])
    parser.add_argument("--history", type=Path, default=history.FULL, help="the last line is reported on")
    parser.add_argument("--root", type=Path, default=history.ROOT, help="where README.md and docs/bench/ are written")
    parser.add_argument("--charts", action="store_true", help="draw the charts of docs/bench/ as well: for a release")
    options = parser.parse_args(arguments)
    runs = history.read(options.history)
    if not runs:
        print(f"no run in {options.history.name} yet: `make bench` adds one")
        return
    run, before = runs[-1], history.last_before(runs)
    folder, readme = options.root / "docs" / "bench", options.root / "README.md"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(report.page(run, before), encoding="utf-8")
    written = [folder / "README.md"]
    if options.charts:
        from . import charts  # matplotlib is needed by nobody else

        written += charts.draw(run, folder)
    if readme.exists():
        text = report.replace(readme.read_text(encoding="utf-8"), report.section(run))
        readme.write_text(text, encoding="utf-8")
        written.append(readme)
    lines = [report.heading(run), history.since(run), "", "Where another library is faster:", *report.losses_text(run)]
    lines += ["", *report.changes(run, before), "", "Written:", *(f"  {path}" for path in written)]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
