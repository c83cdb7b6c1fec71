"""Tables in .csv files: numbers separated by commas, after a line with the names of the columns where there is one."""

import csv
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .storage import CommandError


class Table:
    """The numbers ``[N, D]`` in a file, and the names of its columns, if it has a header.

    A header is a first line in which nothing is a number; a ``#`` before it is left out. Blank lines and what follows
    a ``#`` are skipped. Lines and columns are counted from 1, lines as an editor counts those of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header, self.names = self.read_header()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there is no row, which is an error below
                self.array = np.loadtxt(
                    path, delimiter=",", skiprows=self.header, ndmin=2, quotechar='"', encoding="utf-8-sig"
                )
        except ValueError as error:
            self.refuse_what_is_no_number()
            raise CommandError(f"--data {path}: malformed: {str(error).partition('.')[0]}") from error
        if self.array.size == 0:
            raise CommandError(f"--data {path}: no rows of numbers")
        if self.names is not None and len(self.names) != (D := self.array.shape[1]):
            raise CommandError(f"--data {path}: the header names {len(self.names)} columns, the rows have {D}")

    def read_header(self) -> tuple[int, list[str] | None]:
        """The number of lines up to a header, 0 without one, and its names."""
        comment = None
        with self.path.open(encoding="utf-8-sig") as file:
            for number, text in enumerate(file, 1):
                if not text.strip():
                    continue
                if text.lstrip().startswith("#"):
                    comment = cells_of(text.lstrip().lstrip("#"))
                    continue
                cells = cells_of(text)
                if any(cells) and not any(map(is_number, cells)):
                    return number, cells
                named = comment is not None and len(comment) == len(cells) and not any(map(is_number, comment))
                return 0, comment if named else None
        return 0, None

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """The line and the cells of each row, of those that `numpy.loadtxt` takes for rows."""
        with self.path.open(encoding="utf-8-sig") as file:
            for number, text in enumerate(file, 1):
                if number > self.header and (content := text.rstrip("\n").partition("#")[0]):
                    yield number, cells_of(content)

    def place(self, row: int, column: int) -> str:
        """Where an element of the array stands in the file."""
        line = next(number for n, (number, _) in enumerate(self.rows()) if n == row)
        return f"line {line}, {self.column(column)}"

    def column(self, column: int) -> str:
        """A column by its number, and its name if it has one."""
        name = self.names[column] if self.names is not None and column < len(self.names) else ""
        return f"column {column + 1}" + (f" ({name})" if name else "")

    def refuse_what_is_no_number(self) -> None:
        """The error of the first cell that is no number, or of the first row of another length."""
        width = None
        for line, cells in self.rows():
            for i, cell in enumerate(cells):
                if not is_number(cell):
                    hint = "; a header has no numbers" if width is None else ""
                    raise CommandError(
                        f"--data {self.path}: malformed: could not convert string {cell!r} to a number"
                        f" at line {line}, {self.column(i)}{hint}"
                    )
            if width is not None and len(cells) != width:
                raise CommandError(
                    f"--data {self.path}: malformed: the number of columns changed from {width} to {len(cells)}"
                    f" at line {line}"
                )
            width = len(cells)


def cells_of(text: str) -> list[str]:
    """The cells of a line, without the space and the quotes around them."""
    return [cell.strip() for cell in next(csv.reader([text.strip("\r\n")], skipinitialspace=True), [])]


def is_number(cell: str) -> bool:
    """Whether NumPy reads the cell as a number: as `float` does, but not 1_000 or digits of other scripts."""
    try:
        float(cell)
    except ValueError:
        return False
    return cell.isascii() and "_" not in cell
