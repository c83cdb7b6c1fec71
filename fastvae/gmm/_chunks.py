"""Rows in chunks: the data of one problem, which need not fit in memory and are read again in each pass."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .._core.arrays import as_floating
from .._core.checks import describe
from . import _checks as checks


class Chunks:
    """A function that returns the chunks of the rows, checked; knows the number of rows and features, and the dtype."""

    def __init__(self, factory: Callable[[], Iterable[Any]]) -> None:
        self.factory = factory
        self.N, self.D, self.dtype, self.numpy = 0, 0, torch.float32, True
        # Rows that contain inf or NaN: their indices, and for each the first such column and value.
        self.nonfinite: list[tuple[Tensor, Tensor, Tensor]] = []
        for chunk in self._iterate():
            t = as_floating("each chunk of X", chunk)
            if t.dim() != 2 or t.shape[1] == 0 or t.shape[1] != (self.D or t.shape[1]):
                columns = f"{self.D} columns, as the first" if self.D else "at least 1 column"
                raise ValueError(f"each chunk of X must have the shape [n, D] with {columns}, got {list(t.shape)}")
            if self.N == 0:
                self.D, self.dtype, self.numpy = t.shape[1], t.dtype, not isinstance(chunk, Tensor)
            if t.dtype != self.dtype:
                raise TypeError(f"each chunk of X must be {self.dtype}, as the first, got {t.dtype}")
            if t.device.type != "cpu":
                raise ValueError(f"each chunk of X must be on the CPU, got one on {t.device}")
            if len(t) and not (t.amax().isfinite() and t.amin().isfinite()):
                rows = (~t.isfinite()).any(1).nonzero()[:, 0]
                first = (~t[rows].isfinite()).byte().argmax(1)
                self.nonfinite.append((rows + self.N, first, t[rows, first]))
            self.N += len(t)

    def check_finite(self, sample_weight: Tensor | None) -> None:
        """Raise ValueError for inf or NaN in a row of positive weight; the weights are `[1, N]`."""
        for rows, columns, values in self.nonfinite:
            used = torch.ones_like(rows, dtype=torch.bool) if sample_weight is None else sample_weight[0, rows] != 0
            for row, column, value in zip(*(t[used][:1].tolist() for t in (rows, columns, values)), strict=True):
                raise ValueError(f"X must be finite, got {value} at [{row}, {column}]")

    def __call__(self) -> Iterator[Tensor]:
        """The chunks as tensors."""
        return (as_floating("each chunk of X", chunk) for chunk in self._iterate())

    def rows(self) -> checks.Rows:
        """A stand-in for the rows in argument checks: zeros of their shape and dtype, which take no memory."""
        return checks.Rows(
            torch.zeros((), dtype=self.dtype).expand(1, self.N, max(self.D, 1)), torch.Size(), self.numpy
        )

    def whole(self) -> Tensor:
        """All rows in memory, ``[1, N, D]``, for an engine that cannot read chunks."""
        return torch.cat(list(self()))[None]

    def _iterate(self) -> Iterable[Any]:
        chunks = self.factory()
        if isinstance(chunks, Iterator) and chunks is getattr(self, "_last", None):
            raise TypeError("X must return a new iterable at each call, got the same iterator twice")
        self._last = chunks
        if not isinstance(chunks, Iterable):
            raise TypeError(f"X must return an iterable of arrays [n, D] when called, got {describe(chunks)}")
        return chunks
