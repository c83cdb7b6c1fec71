"""How regressions are launched: where their rows, sums and results lie, and how many are solved at a time."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..language.blocks import SIDE, SIDE_ALONE, SIDE_EXACT, UNROLLED
from ..language.buffers import address, scratch
from ..language.double import WORDS
from ..language.memory import CODES
from ..language.threads import run
from . import estimates, gram, refine, residual
from .estimates import SOLVE, Limits, make_solve
from .fields import BATCH, FIELDS, PROBLEMS, RESULTS, SEPARATE
from .gram import GRAM, make_gram, number_of_sums
from .refine import CORRECT, make_correct
from .residual import RESIDUAL, TARGET, make_residual
from .tiles import ROWS, TILES

TILE = 3072  # numbers of a tile of rows, in the first cache
FEWEST_ROWS, MOST_ROWS = 64, 1024  # of a tile
SLOTS, TILES_A_SLOT = 32, 4  # of a problem, that threads share
PART = 1 << 25  # numbers of the problems that are taken together: how much memory their sums may take


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
        self.F = number_of_sums(P, R)
        self.at = FIELDS.of(P, R)
        self.out = np.empty(B * self.at.end)
        self.state = self.out[B * self.at.weight :].reshape(B, -1)  # fields that are adjacent for each problem
        self.groups: dict[str, tuple[Any, ...]] = {}

    def packed(self) -> dict[str, tuple[Any, ...]]:
        """The groups of a launch that describe the problems and their results; sums alone need neither."""
        if not self.groups:
            self.groups["results"] = RESULTS.pack(out=address(self.out), B=self.B, at=self.at)
            self.groups["problems"] = PROBLEMS.pack(
                row_counts=0 if self.rows is None else address(self.rows),
                log_weights=0 if self.log_weights is None else address(self.log_weights),
                N=self.N,
                P=self.P,
                R=self.R,
                fit_intercept=int(self.fit_intercept),
                alpha=self.alpha,
            )
        return self.groups

    def field(self, name: str, *shape: int) -> np.ndarray:
        """A field of the results, [B, *shape]; of the state, [B, size] or [B]."""
        at, k = self.at, FIELDS.index[name]
        if k < SEPARATE:
            return self.out[self.B * at[k] : self.B * at[k + 1]].reshape(self.B, *shape)
        first = at[k] - at.weight
        return self.state[:, first : at[k + 1] - at.weight] if shape else self.state[:, first]

    def flags(self, active: np.ndarray) -> np.ndarray:
        """What is to be done next about problems, or is wrong with them."""
        flags = self.field("flags")
        return (flags if len(active) == self.B else flags[active]).astype(np.int64)

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
        """Estimates of the active problems, whose sums are these; the low parts of V go to the address ``small``."""
        P, R = self.P, self.R
        begins = estimates.SCRATCH.of(P, R, self.F, self.at.end, WORDS * (2 if pairs else 1))
        groups = -(-len(active) // 8)
        numbers = SOLVE.pack(
            sums=address(sums),
            slots=slots,
            F=self.F,
            centers=address(centers),
            small=small,
            room=scratch(begins.end * torch.get_num_threads()),
            batch=BATCH.pack(active=address(active), count=len(active)),
            limits=limits,
            scratch=begins,
            **self.packed(),
        )
        run(make_solve(int(pairs)), numbers, groups, groups * (P + 2) ** 2 * (P + 4 + 8 * R) * (20.0 if pairs else 1.0))


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
        self.data = ROWS.pack(
            x=X.data_ptr(),
            x_code=CODES[X.dtype],
            x_size=X.itemsize,
            x_row=X.stride(1),
            x_problem=X.stride(0),
            y=y.data_ptr(),
            y_code=CODES[y.dtype],
            y_size=y.itemsize,
            y_row=y.stride(1),
            y_problem=y.stride(0),
            w=0 if w is None else w.data_ptr(),
            w_row=0 if w is None else w.stride(1),
            w_problem=0 if w is None else w.stride(0),
            N=self.N,
            P=self.P,
            R=self.R,
            ignored=int(rows is not None and rows.min() < self.N),
        )
        self.columns = 1 + self.P + self.R
        self.centers = np.zeros((self.B, self.columns))

    def tiles(self, columns: int) -> tuple[int, int]:
        """Rows of a tile, and slots of a problem."""
        T = max(FEWEST_ROWS, min(MOST_ROWS, TILE // columns // 8 * 8))
        tiles = -(-self.N // T)
        return min(T, -(-self.N // 8) * 8), max(1, min(SLOTS, tiles // TILES_A_SLOT))

    def parts(self) -> Iterator[np.ndarray]:
        """All problems, as many at a time as memory for their sums allows."""
        each = max(self.N * (self.P + self.R), 2 * SLOTS * self.F if self.N > MOST_ROWS else 2 * self.F)
        size = max(8, PART // each // 8 * 8)
        for first in range(0, self.B, size):
            yield np.arange(first, min(first + size, self.B))

    def estimate(self, active: np.ndarray, pairs: bool, origin: int, limits: Limits) -> np.ndarray:
        """Sums of products and estimates; of pairs, the low parts of V."""
        sums, slots = self.sums(active, pairs, origin)
        small = np.empty((len(active) if pairs else 0, self.P * (self.P + 1) // 2))
        self.solve(active, sums, self.centers, slots, pairs, limits, address(small) if pairs else 0)
        return small

    def sums(self, active: np.ndarray, pairs: bool, origin: int) -> tuple[np.ndarray, int]:
        """Sums of products, and how many slots of each problem are to be added up."""
        words, side = (2, SIDE_EXACT) if pairs else (1, SIDE)
        T, slots = self.tiles(self.columns * words)
        count = self.columns if self.columns <= UNROLLED and not pairs else 0
        W = count or -(-self.columns // side) * side
        matrices = words * (1 if self.w is None or not pairs else 2)
        begins = gram.SCRATCH.of(W, T + 8, self.F, words, matrices)
        sums = np.empty(len(active) * slots * self.F * words)
        numbers = GRAM.pack(
            centers=address(self.centers),
            origin=origin,
            sums=address(sums),
            F=self.F,
            columns=self.columns,
            matrices=matrices,
            words=words,
            room=scratch(begins.end * torch.get_num_threads()),
            one=1.0,
            rows=self.data,
            tiles=TILES.pack(T=T, S=T + 8, W=W, slots=slots, active=address(active)),
            scratch=begins,
        )
        method = gram.EXACT if pairs else gram.FEW if count else gram.ANY
        work = len(active) * self.N * self.columns * (self.columns + 4) * (0.3 if pairs else 0.04)
        run(make_gram(method, count), numbers, len(active) * slots, work)
        return sums, slots

    def refine(
        self,
        active: np.ndarray,
        keep: bool,
        tolerance: float,
        small: np.ndarray | None = None,
        where: np.ndarray | None = None,
    ) -> None:
        """Residuals, and the solutions corrected by them; where these are to be kept, only the sums of squares.

        The low parts of V of problem i of the active ones are ``small[where[i]]``.
        """
        P, R, F = self.P, self.R, (self.P + 2) * self.R
        T, slots = self.tiles(P + R + 3)
        W = -(-(P + 1) // SIDE_ALONE) * SIDE_ALONE
        target, threads = TARGET.of(P), torch.get_num_threads()
        sums, pairs = np.empty(2 * len(active) * slots * F), small is not None
        begins = residual.SCRATCH.of(W, T + 8, P, R, target.end)
        numbers = RESIDUAL.pack(
            sums=address(sums),
            F=F,
            pairs=int(pairs),
            room=scratch(begins.end * threads),
            rows=self.data,
            tiles=TILES.pack(T=T, S=T + 8, W=W, slots=slots, active=address(active)),
            results=self.packed()["results"],
            scratch=begins,
            target=target,
        )
        run(make_residual(), numbers, len(active) * slots, len(active) * self.N * (P + 2) * R * 0.6)
        begins = refine.SCRATCH.of(P, F, self.at.end)
        numbers = CORRECT.pack(
            sums=address(sums),
            slots=slots,
            F=F,
            small=address(small) if pairs else 0,
            where=address(where) if pairs else 0,
            keep=int(keep),
            room=scratch(begins.end * threads),
            tolerance=tolerance,
            batch=BATCH.pack(active=address(active), count=len(active)),
            scratch=begins,
            **self.packed(),
        )
        groups = -(-len(active) // 8)
        run(make_correct(int(pairs)), numbers, groups, groups * R * (P + 2) ** 2 * 20.0)
