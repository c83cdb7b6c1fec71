"""Tables in .csv files: numbers separated by commas, after an optional header line with the names of the columns."""

import csv
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .storage import CommandError


class Table:
    """The numbers ``[N, D]`` in a file, and the names of its columns, if it has a header.

    A header is a first line without any number; a leading ``#`` is ignored. Blank lines and text after a ``#`` are
    skipped. Lines and columns are numbered from 1, lines as in an editor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header, self.names = self.read_header()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about a file without rows, which is an error below
                self.array = np.loadtxt(
                    path, delimiter=",", skiprows=self.header, ndmin=2, quotechar='"', encoding="utf-8-sig"
                )
        except ValueError as error:
            self.raise_parse_error()
            raise CommandError(f"--data {path}: malformed: {str(error).partition('.')[0]}") from error
        if self.array.size == 0:
            raise CommandError(f"--data {path}: no rows of numbers")
        if self.names is not None and len(self.names) != (D := self.array.shape[1]):
            raise CommandError(f"--data {path}: the header names {len(self.names)} columns, the rows have {D}")

    def read_header(self) -> tuple[int, list[str] | None]:
        """The line number of the header, 0 if there is none, and the column names."""
        comment = None
        with self.path.open(encoding="utf-8-sig") as file:
            for number, text in enumerate(file, 1):
                if not text.strip():
                    continue
                if text.lstrip().startswith("#"):
                    comment = split_cells(text.lstrip().lstrip("#"))
                    continue
                cells = split_cells(text)
                if any(cells) and not any(map(is_number, cells)):
                    return number, cells
                has_names = comment is not None and len(comment) == len(cells) and not any(map(is_number, comment))
                return 0, comment if has_names else None
        return 0, None

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """The line number and the cells of each row, with the same rows as `numpy.loadtxt`."""
        with self.path.open(encoding="utf-8-sig") as file:
            for number, text in enumerate(file, 1):
                if number > self.header and (content := text.rstrip("\n").partition("#")[0]):
                    yield number, split_cells(content)

    def place(self, row: int, column: int) -> str:
        """Position of an element of the array in the file."""
        line = next(number for n, (number, _) in enumerate(self.rows()) if n == row)
        return f"line {line}, {self.column(column)}"

    def column(self, column: int) -> str:
        """Number of a column, with its name if it has one."""
        name = self.names[column] if self.names is not None and column < len(self.names) else ""
        return f"column {column + 1}" + (f" ({name})" if name else "")

    def raise_parse_error(self) -> None:
        """Raise an error for the first cell that is not a number, or the first row of a different length."""
        width = None
        for line, cells in self.rows():
            for i, cell in enumerate(cells):
                if not is_number(cell):
                    hint = "; a header must not contain numbers" if width is None else ""
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


def split_cells(text: str) -> list[str]:
    """The cells of a line, without surrounding spaces and quotes."""
    return [cell.strip() for cell in next(csv.reader([text.strip("\r\n")], skipinitialspace=True), [])]


def is_number(cell: str) -> bool:
    """Whether NumPy reads the cell as a number: like `float`, but without 1_000 and digits of other scripts."""
    try:
        float(cell)
    except ValueError:
        return False
    return cell.isascii() and "_" not in cell
