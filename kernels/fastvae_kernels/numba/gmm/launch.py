"""How passes over many mixtures are launched: where each problem's rows, parameters and sums lie."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..language.buffers import address, scratch
from ..language.memory import CODES
from ..language.threads import run
from .few_features import DIAG, FULL, SPHERICAL, TIED
from .row_pass import make_pass, make_update
from .shift import make_ends
from .start import BLOCK, make_seeds
from .steps import LEAVE, MERGE, NEAREST, PARAMETERS, SQUARES
from .tiles import PANEL
from .update import LOST

SLOTS, SLOT_ELEMENTS = 32, 1 << 22  # partial sums of a problem, of at most so many numbers
SEED_ROWS, SEED_ELEMENTS = 1 << 14, 1 << 20  # rows that seeds are drawn from
APART = 1 << 18  # numbers to add up, from which the M-step is a launch of its own, a component a unit
PASSES = 10  # of a fit, about
FEW_TILES, ENOUGH = 8, 4  # of a small problem; problems for each thread
PIECE_ELEMENTS = 1 << 20  # of a stream, read before a launch


def tile_rows(D: int, K: int) -> int:
    """Rows of a tile: as many as let it and its logits stay in the second cache."""
    most = min(512, 16384 // K, max(256, 4096 // D) if D <= 128 else 64)
    return max(32, most // 16 * 16)


class Mixtures:
    """B problems of one shape, ``restarts`` times each: where they lie, and the parameters and sums of each."""

    def __init__(
        self,
        X: "Tensor | Stream",
        sample_weight: Tensor | None,
        K: int,
        family: int,
        restarts: int = 1,
        ids: np.ndarray | None = None,
        shift: np.ndarray | None = None,
        seed: int = 0,
        reg_covar: float = 0.0,
        scale: np.ndarray | None = None,
    ) -> None:
        self.w = None if sample_weight is None else sample_weight.double()
        if isinstance(X, Tensor):
            X = X if X.stride(2) == 1 or X.shape[2] == 1 else X.contiguous()
            self.B, self.N, self.D = X.shape
        else:
            self.B, self.N, self.D = 1, X.N, X.D
        self.X: Any = X
        B, D = self.B, self.D
        self.K, self.family, self.restarts, self.seed, self.reg_covar = K, family, restarts, seed, reg_covar
        self.P, self.T = B * restarts, tile_rows(D, K)
        self.tiles = max(1, -(-self.N // self.T))
        full = family in (FULL, TIED)
        self.matrices, self.shape = 1 if family == TIED else K, (D, D) if full else (D,) if family == DIAG else ()
        self.factor = math.prod(self.shape)
        self.kernel_family = FULL if full else family
        self.size = 2 * K + K * D + 2 * self.matrices * self.factor
        products = self.matrices * ((-(-D // 4) * 4) ** 2 if full else self.factor)
        self.F = (
            K * (D + 1) + max(products, D if K == 1 else 0) + 1
        )  # of one component, room for squares, see `moments`
        share = SLOT_ELEMENTS // self.F
        # where they are few, as many for each of a few threads
        self.slots = max(1, min(SLOTS, self.tiles, share // 4 * 4 or share))
        self.apart = family == FULL and K > 1 and self.slots * self.F > APART
        # few rows: a unit may take all of them, where there are enough problems for the threads
        few = self.tiles == 1 or (self.tiles <= FEW_TILES and self.P // torch.get_num_threads() >= ENOUGH)
        self.small = isinstance(X, Tensor) and few and self.slots == self.tiles and not self.apart
        self.room = (
            ((D + 3 + K + 4 + PANEL) * (self.T + 8) + 2 * K + 2 * K * D + D * D + 7) // 8 * 8
        )  # whole cache lines
        self.ids = np.arange(B) if ids is None else ids
        self.shift = np.zeros((B, D)) if shift is None else shift  # what rows and means are less by
        self.scale = np.ones((self.P, D)) if scale is None else scale  # what features are times in k-means
        self.options = K, family, restarts, self.ids, self.shift, seed, reg_covar, self.scale
        self.statistics = np.empty((self.P, self.slots, self.F))
        self.done, self.flags = np.zeros(self.P, np.int64), np.zeros((self.P, K), np.int64)
        self.result = np.zeros((self.P, 3))
        fixed = self.ids, self.shift, self.scale, self.statistics, self.done, self.flags, self.result
        self.at = tuple(map(address, fixed))  # 2 us each
        per_row = {FULL: D * (D + 1), TIED: D * (D + 1), DIAG: 7 * D, SPHERICAL: 5 * D}[family]
        self.ns_per_row = K * (0.06 * per_row + 2.0)

    def parameters(self) -> np.ndarray:
        """Room for those of all problems."""
        return np.zeros((self.P, self.size))

    def parts(self, theta: np.ndarray) -> tuple[np.ndarray, ...]:
        """Views of weights, c, means, factors and covariances."""
        K, D, P, last = self.K, self.D, len(theta), self.matrices * self.factor
        at = np.cumsum([K, K, K * D, last])
        w, c, means, factors, covariances = np.split(theta, at, axis=1)
        shape = (P, *([] if self.family == TIED else [K]), *self.shape)
        return w, c, means.reshape(P, K, D), factors.reshape(shape), covariances.reshape(shape)

    def sweep(
        self,
        active: np.ndarray,
        old: np.ndarray,
        new: np.ndarray,
        centers: np.ndarray,
        source: int,
        wanted: int,
        after: int,
        *,
        rescue: bool = False,
        resp: Tensor | None = None,
    ) -> np.ndarray:
        """One pass over the rows of the active problems; their results, ``[len(active), 3]``."""
        threads, tile = torch.get_num_threads(), 0
        apart = after == PARAMETERS and self.apart
        then = LEAVE if apart else after
        for X, w, last in self.pieces():
            N = X.shape[1]
            tiles = max(1, -(-N // self.T))
            args = (
                *self.rows(X, w), 0 if resp is None else resp.data_ptr(), 0 if resp is None else CODES[resp.dtype],
                self.seed, N, self.D, self.K, self.T, tile, tile + tiles, self.slots, address(active), *self.at[:3],
                address(old), address(new), address(centers), self.size, self.at[3], self.F, *self.at[4:],
                scratch(self.room * threads), self.room, self.matrices, source, wanted, then if last else LEAVE,
                int(tile == 0), int(rescue), 0, 0, 0, 0, 0.0, self.reg_covar,
            )  # fmt: skip
            run(make_pass(self.kernel_family), args, len(active) * self.slots, self.ns_per_row * N * len(active))
            tile += tiles
        if apart:
            args = (
                address(active), address(new), address(centers), self.size, self.at[3], self.F, self.slots,
                *self.at[4:], self.D, self.K, scratch(self.room * threads), self.room, int(rescue), self.reg_covar,
            )  # fmt: skip
            run(
                make_update(),
                args,
                len(active) * self.K,
                len(active) * (self.slots * self.F + self.K * self.D**3) * 0.5,
            )
        return self.result[active]

    def follow(
        self,
        active: np.ndarray,
        old: np.ndarray,
        new: np.ndarray,
        final: np.ndarray,
        records: np.ndarray,
        bounds: np.ndarray,
        tol: float,
        rescue: bool,
    ) -> None:
        """All passes of the active problems from the steps on that their records tell, see `steps.py`."""
        tiles = max(1, -(-self.N // self.T))
        args = (
            *self.rows(self.X, self.w), 0, 0, self.seed, self.N, self.D, self.K, self.T, 0, tiles, self.slots,
            address(active), *self.at[:3], address(old), address(new), address(old), self.size, self.at[3], self.F,
            *self.at[4:], scratch(self.room * torch.get_num_threads()), self.room, self.matrices, 0, 0, LEAVE, 1,
            int(rescue), address(records), address(bounds), address(final), bounds.shape[1] - 1, tol, self.reg_covar,
        )  # fmt: skip
        work = self.ns_per_row * self.N * len(active) * PASSES
        run(make_pass(self.kernel_family), args, len(active), work)

    def rows(self, X: Tensor, w: Tensor | None) -> tuple[int, ...]:
        """Where they lie, as a launch begins."""
        of_weights = (0, 0, 0) if w is None else (w.data_ptr(), w.stride(1), w.stride(0))
        return X.data_ptr(), CODES[X.dtype], X.stride(1), X.stride(0), self.restarts, *of_weights

    def pieces(self) -> Iterator[tuple[Tensor, Tensor | None, bool]]:
        """The rows and their weights: all at once, or a stream's chunk after chunk; whether it is the last."""
        if isinstance(self.X, Tensor):
            yield self.X, self.w, True
        else:
            yield from self.X.pieces(self.T)

    def move_near(self) -> None:
        """Shift each problem to where its rows lie, as `shift.py` has it: before anything else of a fit."""
        low, high = np.full((self.B, self.D), np.inf), np.full((self.B, self.D), -np.inf)
        threads, T = torch.get_num_threads(), tile_rows(self.D, 1)
        room = ((self.D + 1) * (T + 8) + 17 * self.D + 7) // 8 * 8
        for X, w, _ in self.pieces():
            N = X.shape[1]
            tiles = max(1, -(-N // T))
            slots = min(SLOTS, tiles)
            ends = np.empty((2, self.B, slots, self.D))
            args = (
                *self.rows(X, w), N, self.D, T, tiles, slots, address(ends), address(ends) + ends.nbytes // 2,
                scratch(room * threads), room,
            )  # fmt: skip
            run(make_ends(), args, self.B * slots, self.B * N * self.D * 0.4)
            low, high = np.minimum(low, ends[0].min(1)), np.maximum(high, ends[1].max(1))
        self.shift[:] = np.clip(0.0, low, high)

    def sample(self, most: int) -> "Mixtures":
        """The same problems with every so many-th of their rows, ``most`` or a few more."""
        step = stride_of(self.N, most)
        if isinstance(self.X, Tensor):
            if step == 1:
                return self
            X, w = self.X[:, ::step], None if self.w is None else self.w[:, ::step]
        else:
            X, w = self.X.every(step)
        if w is not None and bool(((w > 0).sum(1) < self.K).any()):  # too few are left that count
            if isinstance(self.X, Tensor):
                return self
            X, w = self.X.every(1)
        return Mixtures(X, w, *self.options)

    def seeds(self, centers: np.ndarray, spread: bool, scaled: bool = False) -> None:
        """Rows to start from, as means of the parameters ``centers``: spread as k-means++ does, or any."""
        scale = self.scale if scaled else np.ones_like(self.scale)
        few = self.sample(min(SEED_ROWS, max(SEED_ELEMENTS // self.D, 4 * self.K)))
        X, w, N, active = few.X, few.w, few.N, np.arange(self.P)
        M = -(-N // BLOCK) * BLOCK + 8
        room, threads = ((self.D + 5) * M + self.D + 7) // 8 * 8, torch.get_num_threads()
        args = (
            *self.rows(X, w), self.seed, N, self.D, self.K, address(active), *self.at[:2], address(scale),
            address(centers), self.size, scratch(room * threads), room, int(spread),
        )  # fmt: skip
        trials = 3 + int(math.log(self.K))
        run(make_seeds(), args, self.P, self.P * N * self.K * trials * (0.4 * self.D + 1.0))


class Stream:
    """One problem whose rows are read again in each pass: ``chunks()`` gives them afresh, ``[n, D]`` each."""

    def __init__(
        self, chunks: Callable[[], Iterable[Tensor]], N: int, D: int, dtype: torch.dtype, w: Tensor | None
    ) -> None:
        self.chunks, self.N, self.D, self.dtype, self.w = chunks, N, D, dtype, w

    def pieces(self, T: int) -> Iterator[tuple[Tensor, Tensor | None, bool]]:
        """The rows cut anew, into blocks of whole tiles of T rows; the last may end within one."""
        room = torch.empty(1, -(-PIECE_ELEMENTS // (self.D * T)) * T, self.D, dtype=self.dtype)
        length, held, row = room.shape[1], 0, 0
        for chunk in self.chunks():
            while len(chunk):
                if held == length:
                    yield room, self.weights(row, held), False
                    row, held = row + held, 0
                taken = min(length - held, len(chunk))
                room[0, held : held + taken] = chunk[:taken]
                chunk, held = chunk[taken:], held + taken
        if row + held != self.N:
            raise ValueError(f"X must give the same rows each time, got {self.N} in the first pass, now {row + held}")
        yield room[:, :held], self.weights(row, held), True

    def weights(self, row: int, rows: int) -> Tensor | None:
        """Those of some rows."""
        return None if self.w is None else self.w[:, row : row + rows]

    def rows(self, numbers: Tensor) -> Tensor:
        """Those of some numbers, which ascend, ``[1, n, D]``."""
        found, at = [], 0
        for chunk in self.chunks():
            own = numbers[(numbers >= at) & (numbers < at + len(chunk))] - at
            found.append(chunk[own])  # a copy
            at += len(chunk)
            if at > numbers[-1]:
                break
        return torch.cat(found)[None]

    def every(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Every so many-th row."""
        rows, at = [], 0
        for chunk in self.chunks():
            rows.append(chunk[-at % step :: step].clone())
            at += len(chunk)
        return torch.cat(rows)[None], None if self.w is None else self.w[:, ::step]


def stride_of(N: int, most: int) -> int:
    """Every which row to take for at most ``most``, or all if they are few more. No multiple of 2 or 3, of which the
    data may have a period.
    """
    step = -(-N // most) if 2 * most < N else 1
    while math.gcd(step, 6) > 1:
        step += 1
    return step


def moments(m: Mixtures) -> tuple[np.ndarray, np.ndarray]:
    """The sum of weights, [B], and the variances, [B, D], of each problem's rows."""
    one = Mixtures(m.X, m.w, 1, m.family, shift=m.shift)
    about, room, D, active = one.parameters(), one.parameters(), m.D, np.arange(m.B)
    center, variances = one.parts(about)[2][:, 0], np.empty((m.B, D))
    while len(active):
        one.sweep(active, about, room, about, NEAREST, SQUARES, MERGE)
        sums = one.statistics[active, 0]
        n, linear, squares = sums[:, D : D + 1], sums[:, :D], sums[:, D + 1 : 2 * D + 1]
        with np.errstate(over="ignore", invalid="ignore"):  # of a fit that says so by its status
            variances[active] = (squares - np.square(linear) / n) / n
        lost = (variances[active] * n < LOST * squares).any(1) & (center[active] == 0).all(1)
        active = active[lost]  # of digits: once more, about the mean
        center[active] = (linear / n)[lost]
    return one.statistics[:, 0, D].copy(), np.maximum(variances, 0.0)
