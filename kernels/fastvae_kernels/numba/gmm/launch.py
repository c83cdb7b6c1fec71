"""Launches of the mixture kernels: the memory of B problems and the methods that launch each kernel on it."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..language.buffers import address, scratch
from ..language.memory import CODES
from ..language.threads import run
from .data import ROWS
from .families import Shapes
from .finish import PLAN, SUMS, UPDATE, make_update
from .modes import FULL, LEAVE, MERGE, NEAREST, PARAMETERS, SQUARES, TIED
from .row_pass import PASS, make_pass, room_of
from .shift import ENDS, make_ends
from .start import BLOCK, SEEDS, make_seeds
from .steps import AGAIN, EM, FIT, PARAMETERS_OF, RECORD, STEP
from .update import CANCELLED

SLOTS, SLOT_ELEMENTS = 32, 1 << 22  # most partial sums per problem, and the most numbers they may hold
SEED_ROWS, SEED_ELEMENTS = 1 << 14, 1 << 20  # limits on the sample that seeds are drawn from
SEPARATE_UPDATE = 1 << 18  # numbers to merge per problem above which the M-step is a separate launch
PASSES = 10  # typical number of passes in a fit, for the work estimate
FEW_TILES, PROBLEMS_PER_THREAD = 8, 4  # limits within which a work unit may be a whole problem
MOST_BOUNDS = 1 << 23  # lower bounds allocated in advance; the array grows if a fit takes more iterations
PIECE_ELEMENTS = 1 << 20  # elements of a stream that are read before a launch


def tile_rows(D: int, K: int) -> int:
    """Return the number of rows per tile, such that the tile and its logits stay in the L2 cache."""
    most = min(512, 16384 // K, max(256, 4096 // D) if D <= 128 else 64)
    return max(32, most // 16 * 16)


class Mixtures:
    """B problems of one shape, each with its restarts: the data, sums and flags of P = B restarts fits."""

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
        self.shapes = shapes = Shapes.of(family, D, K)
        self.size = 2 * K + K * D + 2 * shapes.matrices * shapes.factor
        # for K = 1 there is room for squares, see `moments`
        self.F = K * (D + 1) + max(shapes.products, D if K == 1 else 0) + 1
        share = SLOT_ELEMENTS // self.F
        # a multiple of 4, so that few threads share them evenly
        self.slots = max(1, min(SLOTS, self.tiles, share // 4 * 4 or share))
        self.separate_update = family == FULL and K > 1 and self.slots * self.F > SEPARATE_UPDATE
        # problems with few rows: a unit is a whole problem, if there are enough problems for all threads
        few = self.tiles == 1 or (self.tiles <= FEW_TILES and self.P // torch.get_num_threads() >= PROBLEMS_PER_THREAD)
        self.small = isinstance(X, Tensor) and few and self.slots == self.tiles and not self.separate_update
        self.room = room_of(D, K, self.T)
        self.ids = np.arange(B) if ids is None else ids
        self.shift = np.zeros((B, D)) if shift is None else shift  # subtracted from rows and means
        self.scale = np.ones((self.P, D)) if scale is None else scale  # features are multiplied by it in k-means
        self.options = K, family, restarts, self.ids, self.shift, seed, reg_covar, self.scale
        self.statistics = np.empty((self.P, self.slots, self.F))
        self.arrived, self.flags = np.zeros(self.P, np.int64), np.zeros((self.P, K), np.int64)
        self.result = np.zeros((self.P, 3))
        self.sums = SUMS.pack(
            statistics=address(self.statistics), F=self.F, slots=self.slots, arrived=address(self.arrived),
            flags=address(self.flags), result=address(self.result),
        )  # fmt: skip
        self.packed_rows: tuple[Any, ...] | None = None  # the packed group of X, once it is made
        self.plan = PLAN.pack(
            K=K, T=self.T, tied=int(shapes.matrices < K), metric=address(self.scale), ids=address(self.ids), seed=seed,
            room_size=self.room, reg_covar=reg_covar,
        )  # fmt: skip

    def parameters(self) -> np.ndarray:
        """Return parameter blocks of all problems, filled with zeros."""
        return np.zeros((self.P, self.size))

    def parts(self, theta: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return views of weights, c, means, factors and covariances in parameter blocks."""
        K, D, P, last = self.K, self.D, len(theta), self.shapes.matrices * self.shapes.factor
        at = np.cumsum([K, K, K * D, last])
        w, c, means, factors, covariances = np.split(theta, at, axis=1)
        shape = (P, *([] if self.family == TIED else [K]), *self.shapes.covariance)
        return w, c, means.reshape(P, K, D), factors.reshape(shape), covariances.reshape(shape)

    def sweep(
        self,
        active: np.ndarray,
        old: np.ndarray,
        new: np.ndarray,
        centers: np.ndarray,
        source: int,
        statistics: int,
        then: int,
        *,
        rescue: bool = False,
        resp: Tensor | None = None,
    ) -> np.ndarray:
        """Run one pass over the rows of the active problems and return their results, ``[len(active), 3]``."""
        mode = {"source": source, "statistics": statistics}
        if resp is not None:
            mode |= {"resp": resp.data_ptr(), "resp_code": CODES[resp.dtype]}
        self._pass(active, self.blocks(old, new, centers), NO_FIT, then, rescue, **mode)
        return self.result[active]

    def advance(self, active: np.ndarray, fit: "Steps", rescue: bool, whole: bool) -> None:
        """Take the next step of each active problem, or all steps if ``whole``."""
        blocks = self.blocks(fit.now, fit.next, fit.now)
        if not self.separate_update:
            self._pass(active, blocks, fit.packed(), PARAMETERS, rescue, whole=int(whole))
            return
        updated = np.isin(fit.records[active, STEP], (EM, AGAIN))
        for group, then in (active[updated], PARAMETERS), (active[~updated], MERGE):
            if len(group):
                self._pass(group, blocks, fit.packed(), then, rescue)

    def _pass(
        self, active: np.ndarray, blocks: tuple[int, ...], fit: Any, then: int, rescue: bool, *, whole: int = 0,
        source: int = 0, statistics: int = 0, resp: int = 0, resp_code: int = 0,
    ) -> None:  # fmt: skip
        separate, tile = then == PARAMETERS and self.separate_update, 0
        rows: tuple[int, ...] = ()
        room = scratch(self.room * torch.get_num_threads())
        groups = {"plan": self.plan, "parameters": blocks, "sums": self.sums, "fit": fit}
        for X, w, is_last in self.pieces():
            N, rows = X.shape[1], self.rows(X, w)
            tiles = max(1, -(-N // self.T))
            numbers = PASS.pack(
                active=address(active), first_tile=tile, last_tile=tile + tiles, fresh=int(tile == 0), whole=whole,
                source=source, statistics=statistics, then=LEAVE if separate or not is_last else then,
                rescue=int(rescue), resp=resp, resp_code=resp_code, room=room, rows=rows, **groups,
            )  # fmt: skip
            units, passes = (len(active), PASSES) if whole else (len(active) * self.slots, 1)
            run(make_pass(self.shapes.kernel), numbers, units, self.shapes.ns_per_row * N * len(active) * passes)
            tile += tiles
        if separate:
            numbers = UPDATE.pack(active=address(active), rescue=int(rescue), room=room, rows=rows, **groups)
            work = len(active) * (self.slots * self.F + self.K * self.D**3) * 0.5
            run(make_update(), numbers, len(active) * self.K, work)

    def blocks(self, old: np.ndarray, new: np.ndarray, centers: np.ndarray) -> tuple[int, ...]:
        """Return the packed group of parameter blocks of a launch."""
        return PARAMETERS_OF.pack(old=address(old), new=address(new), centers=address(centers), size=self.size)

    def rows(self, X: Tensor, w: Tensor | None) -> tuple[int, ...]:
        """Return the packed group of rows and weights of a launch."""
        if X is self.X and self.packed_rows is not None:
            return self.packed_rows
        of_w = (0, 0, 0) if w is None else (w.data_ptr(), w.stride(1), w.stride(0))
        packed = ROWS.pack(
            x=X.data_ptr(), x_code=CODES[X.dtype], x_row=X.stride(1), x_problem=X.stride(0),
            w=of_w[0], w_row=of_w[1], w_problem=of_w[2], shift=address(self.shift),
            N=X.shape[1], D=self.D, restarts=self.restarts,
        )  # fmt: skip
        if X is self.X:
            self.packed_rows = packed
        return packed

    def pieces(self) -> Iterator[tuple[Tensor, Tensor | None, bool]]:
        """Yield the rows and weights of each launch in order, and whether they are the last: all rows, or pieces."""
        if isinstance(self.X, Tensor):
            yield self.X, self.w, True
        else:
            yield from self.X.pieces(self.T)

    def compute_shift(self) -> None:
        """Compute the shift of each problem, see `shift.py`. This is the first step of a fit."""
        low, high = np.full((self.B, self.D), np.inf), np.full((self.B, self.D), -np.inf)
        threads, T = torch.get_num_threads(), tile_rows(self.D, 1)
        room = ((self.D + 1) * (T + 8) + 17 * self.D + 7) // 8 * 8
        for X, w, _ in self.pieces():
            N = X.shape[1]
            tiles = max(1, -(-N // T))
            slots = min(SLOTS, tiles)
            ends = np.empty((2, self.B, slots, self.D))
            numbers = ENDS.pack(
                rows=self.rows(X, w), T=T, tiles=tiles, slots=slots, low=address(ends), high=address(ends[1]),
                room=scratch(room * threads), room_size=room,
            )  # fmt: skip
            run(make_ends(), numbers, self.B * slots, self.B * N * self.D * 0.4)
            low, high = np.minimum(low, ends[0].min(1)), np.maximum(high, ends[1].max(1))
        self.shift[:] = np.clip(0.0, low, high)

    def sample(self, most: int) -> "Mixtures":
        """Return the same problems with about ``most`` of their rows, evenly spaced."""
        step = stride_of(self.N, most)
        if isinstance(self.X, Tensor):
            if step == 1:
                return self
            X, w = self.X[:, ::step], None if self.w is None else self.w[:, ::step]
        else:
            X, w = self.X.every(step)
        if w is not None and bool(((w > 0).sum(1) < self.K).any()):  # fewer than K have a positive weight
            if isinstance(self.X, Tensor):
                return self
            X, w = self.X.every(1)
        return Mixtures(X, w, *self.options)

    def seeds(self, centers: np.ndarray, spread: bool, scaled: bool = False) -> None:
        """Write K rows of each problem as means into the blocks ``centers``, chosen by k-means++ or at random."""
        scale = self.scale if scaled else np.ones_like(self.scale)
        part = self.sample(min(SEED_ROWS, max(SEED_ELEMENTS // self.D, 4 * self.K)))
        N, active = part.N, np.arange(self.P)
        M = -(-N // BLOCK) * BLOCK + 8
        room, threads = ((self.D + 5) * M + self.D + 7) // 8 * 8, torch.get_num_threads()
        numbers = SEEDS.pack(
            rows=part.rows(part.X, part.w), seed=self.seed, K=self.K, active=address(active), ids=address(self.ids),
            metric=address(scale), centers=address(centers), size=self.size, spread=int(spread),
            room=scratch(room * threads), room_size=room,
        )  # fmt: skip
        trials = 3 + int(math.log(self.K))
        run(make_seeds(), numbers, self.P, self.P * N * self.K * trials * (0.4 * self.D + 1.0))


NO_FIT = FIT.pack(records=0, bounds=0, most_bounds=0, found=0, max_iter=0, tol=0.0)


class Steps:
    """State of fits between steps, see `steps.py`: parameter blocks, records, lower bounds and final parameters."""

    def __init__(
        self, now: np.ndarray, next_: np.ndarray, found: np.ndarray, step: int, max_iter: int = 0, tol: float = 0.0
    ) -> None:
        self.now, self.next, self.found, self.max_iter, self.tol = now, next_, found, max_iter, tol
        self.records = np.zeros((len(now), RECORD))
        self.records[:, STEP] = step
        self.bounds = np.empty((len(now), min(max_iter, MOST_BOUNDS // len(now)) + 1))

    def packed(self) -> tuple[Any, ...]:
        """Return the packed group of a launch."""
        return FIT.pack(
            records=address(self.records), bounds=address(self.bounds), most_bounds=self.bounds.shape[1],
            found=address(self.found), max_iter=self.max_iter, tol=self.tol,
        )  # fmt: skip

    def make_room(self, count: int) -> None:
        """Grow the array of lower bounds, if needed, for that of iteration ``count``."""
        if count >= self.bounds.shape[1]:
            more = np.empty((len(self.bounds), min(count, self.max_iter + 1 - count)))
            self.bounds = np.hstack([self.bounds, more])

    def column(self, field: int) -> np.ndarray:
        """Return one field of all records, as integers."""
        return self.records[:, field].astype(np.int64)


class Stream:
    """One problem whose rows are read again in each pass: ``chunks()`` returns an iterable of ``[n, D]`` tensors."""

    def __init__(
        self, chunks: Callable[[], Iterable[Tensor]], N: int, D: int, dtype: torch.dtype, w: Tensor | None
    ) -> None:
        self.chunks, self.N, self.D, self.dtype, self.w = chunks, N, D, dtype, w

    def pieces(self, T: int) -> Iterator[tuple[Tensor, Tensor | None, bool]]:
        """Yield the rows in blocks of whole tiles of T rows; the last block may end within a tile."""
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
        """Return the weights of consecutive rows, or None if there are none."""
        return None if self.w is None else self.w[:, row : row + rows]

    def rows(self, numbers: Tensor) -> Tensor:
        """Return the rows with the given indices, in ascending order, ``[1, n, D]``."""
        found, at = [], 0
        for chunk in self.chunks():
            own = numbers[(numbers >= at) & (numbers < at + len(chunk))] - at
            found.append(chunk[own])  # a copy
            at += len(chunk)
            if at > numbers[-1]:
                break
        return torch.cat(found)[None]

    def every(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Return every ``step``-th row and its weight."""
        rows, at = [], 0
        for chunk in self.chunks():
            rows.append(chunk[-at % step :: step].clone())
            at += len(chunk)
        return torch.cat(rows)[None], None if self.w is None else self.w[:, ::step]


def stride_of(N: int, most: int) -> int:
    """Return the step of a sample of about ``most`` of N rows: not a multiple of 2 or 3, common periods of data."""
    step = -(-N // most) if 2 * most < N else 1
    while math.gcd(step, 6) > 1:
        step += 1
    return step


def moments(m: Mixtures) -> tuple[np.ndarray, np.ndarray]:
    """Return the total weight [B] and the variances [B, D] of the rows of each problem."""
    one = Mixtures(m.X, m.w, 1, m.family, shift=m.shift)
    about, room, D, active = one.parameters(), one.parameters(), m.D, np.arange(m.B)
    center, variances = one.parts(about)[2][:, 0], np.empty((m.B, D))
    while len(active):
        one.sweep(active, about, room, about, NEAREST, SQUARES, MERGE)
        sums = one.statistics[active, 0]
        n, linear, squares = sums[:, D : D + 1], sums[:, :D], sums[:, D + 1 : 2 * D + 1]
        with np.errstate(over="ignore", invalid="ignore"):  # reported by the status of the fit
            variances[active] = (squares - np.square(linear) / n) / n
        cancelled = (variances[active] * n < CANCELLED * squares).any(1) & (center[active] == 0).all(1)
        active = active[cancelled]  # repeat, about the mean
        center[active] = (linear / n)[cancelled]
    return one.statistics[:, 0, D].copy(), np.maximum(variances, 0.0)
