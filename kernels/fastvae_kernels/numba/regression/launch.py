"""How regressions are launched: where their rows, sums and results lie, and how many are taken at a time."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..language.blocks import SIDE, SIDE_ALONE, SIDE_EXACT, UNROLLED
from ..language.buffers import address, scratch
from ..language.double import WORDS
from ..language.memory import CODES
from ..language.threads import run
from .estimates import make_solve
from .fields import DOUBTS, STATE, places
from .gram import make_gram, numbers_of
from .refine import make_correct
from .residual import make_residual

TILE = 3072  # numbers of a tile of rows, in the first cache
FEWEST_ROWS, MOST_ROWS = 64, 1024  # of a tile
SLOTS, TILES_A_SLOT = 32, 4  # of a problem, that threads share
PART = 1 << 25  # numbers of the problems that are taken together: how much memory their sums may take


class Limits(NamedTuple):
    """What is answered without doubt, see `estimates.py`."""

    least: float  # pivot, relative to the column's square
    closest: float  # distance of a column from others, relative to their sizes
    most_error: float  # of V, relative
    tolerance: float  # of a coefficient


class Problems:
    """B problems of one shape: where they lie, and where the results go."""

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        rows: np.ndarray | None,
        log_weights: np.ndarray | None,
        alpha: float,
        fit_intercept: bool,
    ) -> None:
        self.B, self.N, self.P, self.R = B, _, P, R = shape
        self.rows, self.log_weights, self.alpha, self.fit_intercept = rows, log_weights, alpha, fit_intercept
        self.F = numbers_of.py_func(P, R)
        self.at = places.py_func(P, R)
        self.out = np.empty(B * self.at[-1])
        self.weights_at = (0 if rows is None else address(rows), 0 if log_weights is None else address(log_weights))

    def field(self, k: int, *shape: int) -> np.ndarray:
        """A field of the results, [B, *shape]."""
        at, B = self.at, self.B
        if k < STATE:
            return self.out[B * at[k] : B * at[k + 1]].reshape(B, *shape)
        state = self.state()[:, at[k] - at[STATE] : at[k + 1] - at[STATE]]
        return state if shape else state[:, 0]

    def state(self) -> np.ndarray:
        """The fields that lie together, [B, numbers of each problem], WEIGHT the first."""
        return self.out[self.B * self.at[STATE] :].reshape(self.B, -1)

    def doubts(self, active: np.ndarray) -> np.ndarray:
        """What is to be done about problems, or wrong with them."""
        doubts = self.field(DOUBTS)
        return (doubts if len(active) == self.B else doubts[active]).astype(np.int64)

    def solve(
        self,
        active: np.ndarray,
        sums: np.ndarray,
        centers: np.ndarray,
        slots: int,
        pairs: bool,
        limits: Limits,
        small: int = 0,
    ) -> None:
        """Estimates of the active problems, whose sums are these; the small parts of V go to the address ``small``."""
        P, R = self.P, self.R
        n, T = WORDS * (2 if pairs else 1), P * (P + 1) // 2
        room = (
            (2 * self.F + 2 * T + 2 * P + R) * n
            + 40 * P
            + 8 * self.at[-1]
            + 48
            + 8 * (P + R)
            + (3 * P * P * n if pairs else 0)
        )
        groups = -(-len(active) // 8)
        args = (
            address(active), len(active), address(sums), slots, self.F, address(centers), small, *self.weights_at,
            self.N, P, R, self.B, address(self.out), int(self.fit_intercept),
            scratch(room * torch.get_num_threads()), room, self.alpha, *limits,
        )  # fmt: skip
        run(make_solve(int(pairs)), args, groups, groups * (P + 2) ** 2 * (P + 4 + 8 * R) * (20.0 if pairs else 1.0))


class Rows(Problems):
    """Problems whose rows are there."""

    def __init__(self, X: Tensor, y: Tensor, w: Tensor | None, alpha: float, fit_intercept: bool) -> None:
        rows = log_weights = None
        if w is not None:
            rows = (w > 0).sum(1).double().numpy()
            log_weights = w.log().masked_fill_(w == 0, 0.0).sum(1).numpy()
        super().__init__((*X.shape, y.shape[2]), rows, log_weights, alpha, fit_intercept)
        self.X = X = X if X.stride(2) == 1 or X.shape[2] == 1 else X.contiguous()
        self.y = y = y if y.stride(2) == 1 or y.shape[2] == 1 else y.contiguous()
        self.w = w
        self.data = (
            X.data_ptr(), CODES[X.dtype], X.stride(1), X.stride(0), y.data_ptr(), CODES[y.dtype], y.stride(1),
            y.stride(0), *((0, 0, 0) if w is None else (w.data_ptr(), w.stride(1), w.stride(0))), *self.X.shape[1:],
            y.shape[2], int(rows is not None and rows.min() < X.shape[1]),
        )  # fmt: skip
        self.columns = 1 + self.P + self.R
        self.centers = np.zeros((self.B, self.columns))

    def tiles(self, columns: int) -> tuple[int, int]:
        """Rows of a tile and slots of a problem."""
        T = max(FEWEST_ROWS, min(MOST_ROWS, TILE // columns // 8 * 8))
        tiles = -(-self.N // T)
        return min(T, -(-self.N // 8) * 8), max(1, min(SLOTS, tiles // TILES_A_SLOT))

    def parts(self) -> Iterator[np.ndarray]:
        """All problems, so many at a time."""
        each = max(self.N * (self.P + self.R), 2 * SLOTS * self.F if self.N > MOST_ROWS else 2 * self.F)
        size = max(8, PART // each // 8 * 8)
        for first in range(0, self.B, size):
            yield np.arange(first, min(first + size, self.B))

    def estimate(self, active: np.ndarray, pairs: bool, from_: int, limits: Limits) -> np.ndarray:
        """Sums of products and estimates; of pairs, the small parts of V."""
        sums, slots = self.sums(active, pairs, from_)
        small = np.empty((len(active) if pairs else 0, self.P * (self.P + 1) // 2))
        self.solve(active, sums, self.centers, slots, pairs, limits, address(small) if pairs else 0)
        return small

    def sums(self, active: np.ndarray, pairs: bool, from_: int) -> tuple[np.ndarray, int]:
        """Sums of products, and how many slots of each problem are to be added up."""
        words, side = (2, SIDE_EXACT) if pairs else (1, SIDE)
        T, slots = self.tiles(self.columns * words)
        unrolled = self.columns if self.columns <= UNROLLED and not pairs else 0
        W = unrolled or -(-self.columns // side) * side
        weighted = words * (1 if self.w is None or not pairs else 2)
        room = (weighted * W + 1) * (T + 8) + 2 * W + W * W * 8 * words + self.F + 8
        room = (room + 7) // 8 * 8
        sums = np.empty(len(active) * slots * self.F * words)
        args = (
            *self.data, T, W, slots, address(active), address(self.centers), from_, address(sums), self.F,
            scratch(room * torch.get_num_threads()), room, 1.0,
        )  # fmt: skip
        work = len(active) * self.N * self.columns * (self.columns + 4) * (0.3 if pairs else 0.04)
        run(make_gram(unrolled, int(pairs)), args, len(active) * slots, work)
        return sums, slots

    def refine(
        self,
        active: np.ndarray,
        keep: bool,
        tolerance: float,
        small: np.ndarray | None = None,
        where: np.ndarray | None = None,
    ) -> None:
        """Residuals, and the solutions corrected by them, or only their sums of squares.

        The small parts of V of problem i of the active ones are ``small[where[i]]``.
        """
        P, R, F = self.P, self.R, (self.P + 2) * self.R
        T, slots = self.tiles(P + R + 3)
        W = -(-(P + 1) // SIDE_ALONE) * SIDE_ALONE
        room = (W + R + 3) * (T + 8) + R * (3 * P + 5) + 8 + 16 * (W * R + 8) + 2 * R + P
        more = 32 * F + 8 * (self.at[-1] + 4 * P + P * (P + 1) // 2) + 40
        room = (max(room, more) + 7) // 8 * 8
        place = scratch(room * torch.get_num_threads())
        sums, deep = np.empty(2 * len(active) * slots * F), (0, 0)
        if small is not None and where is not None:
            deep = address(small), address(where)
        args = (
            *self.data, T, W, slots, address(active), self.B, address(self.out), int(deep != (0, 0)),
            address(sums), F, place, room,
        )  # fmt: skip
        run(make_residual(), args, len(active) * slots, len(active) * self.N * (P + 2) * R * 0.6)
        args = (
            address(active), len(active), address(sums), slots, F, *deep, *self.weights_at,
            self.N, P, R, self.B, address(self.out), int(self.fit_intercept), int(keep), place, room,
            self.alpha, tolerance,
        )  # fmt: skip
        groups = -(-len(active) // 8)
        run(make_correct(int(deep != (0, 0))), args, groups, groups * R * (P + 2) ** 2 * 20.0)
