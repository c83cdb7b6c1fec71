"""Linear regression by normal equations, one or a million problems at once: Numba.

    sums of products    `_regression_gram`      of the centred columns, in float64 or in double-double
    estimates           `_regression_solve`     Cholesky, coefficients, errors, and what is in doubt about them
    residuals           `_regression_refine`    in double-double, and the solution corrected by them

Traffic, elements: reads N (P + R) once; again for the problems that are refined, and again for those that take
double-double. Launches: two for all problems, two more for each of these. Here stands which problem takes which.
Specification: fastvae/reference/regression.py
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._buffers import scratch
from ._double import WORDS
from ._gram_blocks import SIDE, SIDE_ALONE, SIDE_EXACT, UNROLLED, UNROLLED_RESIDUALS
from ._memory import CODES
from ._regression_gram import FIND, GIVEN, ORIGIN, make_gram, numbers_of
from ._regression_refine import make_correct, make_residual
from ._regression_solve import DEEPEN, DEPENDENT, FAR, NONFINITE, REFINE, REPEAT, STATE, make_solve, places
from ._regression_sums import Sums, add, joined
from ._threads import run

REFINED, DOUBLE_DOUBLE, RANK_DEFICIENT = 64, 128, 256  # of a fit: the values of fastvae.Status
SINGULAR_DATA, TOO_FEW_ROWS = 16, 32
TILE = 3072  # numbers of a tile of rows, in the first cache
SLOTS = 32  # of a problem, that threads share
BLOCK = 1 << 21  # numbers of data, or of sums, of the problems that are taken together
MOST_REPEATS = 3  # of a correction in double-double
MOST_ERROR = 1e-9  # of V, relative, that one correction is enough for
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-9}  # of a coefficient
ALL = {"least": 0.0, "most_error": math.inf, "tolerance": math.inf}  # are answered
CLOSE_SUMS = 1e-6  # the same where the sums are float64, and their rows are gone
CLOSE = 2.0**-50  # times P: how near, relative to its length, a dependent column is to the others


class Fitted(NamedTuple):
    """Estimates of B problems, float64: see fastvae.regression.RegressionFit."""

    coef: Tensor  # [B, R, P]
    intercept: Tensor  # [B, R], as all that follow but
    standard_errors: Tensor  # [B, R, P]
    intercept_standard_error: Tensor
    sigma2: Tensor
    sigma2_unbiased: Tensor
    log_likelihood: Tensor
    r2: Tensor
    rss: Tensor
    condition: Tensor  # [B], and so on
    rank: Tensor
    rows: Tensor
    df: Tensor
    status: Tensor
    mean_x: Tensor  # [B, P]
    total_weight: Tensor
    inverse_gram: Callable[[], Tensor]  # of [B, P, P]


def address(array: np.ndarray) -> int:
    """Of its first element."""
    return array.__array_interface__["data"][0]


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
        state = self.out[B * at[STATE] :].reshape(B, -1)[:, at[k] - at[STATE] : at[k + 1] - at[STATE]]
        return state if shape else state[:, 0]

    def solve(
        self,
        active: np.ndarray,
        sums: np.ndarray,
        centers: np.ndarray,
        slots: int,
        pairs: bool,
        small: int = 0,
        **limits: float,
    ) -> None:
        """Estimates of the active problems, whose sums are these; the small parts of V go to the address ``small``."""
        P, R = self.P, self.R
        n, T = WORDS * (2 if pairs else 1), P * (P + 1) // 2
        room = (2 * self.F + 2 * T + 2 * P + R) * n + 40 * P + 8 * self.at[-1] + 40 + (3 * P * P * n if pairs else 0)
        groups = -(-len(active) // 8)
        args = (
            0, address(active), len(active), address(sums), slots, self.F, address(centers), small,
            *self.weights_at, self.N, P, R, self.B, address(self.out), int(self.fit_intercept), scratch(room * torch.get_num_threads()),
            room, self.alpha, limits["least"], limits["closest"], limits["most_error"], limits["tolerance"],
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
            y.shape[2],
        )  # fmt: skip
        self.columns = 1 + self.P + self.R
        self.centers = np.zeros((self.B, self.columns))

    def tiles(self, columns: int) -> tuple[int, int]:
        """Rows of a tile and slots of a problem."""
        T = max(64, min(1024, TILE // columns // 8 * 8))
        tiles = -(-self.N // T)
        return min(T, -(-self.N // 8) * 8), max(1, min(SLOTS, tiles // 4))

    def parts(self, active: np.ndarray, each: int) -> Iterator[np.ndarray]:
        """The active problems, as many at a time as keep their data or sums, ``each`` a problem, within a cache."""
        size = max(8, BLOCK // max(each, 1) // 8 * 8)
        for first in range(0, len(active), size):
            yield active[first : first + size]

    def estimate(self, active: np.ndarray, pairs: bool, from_: int, **limits: float) -> np.ndarray:
        """Sums of products and estimates; of pairs, the small parts of V."""
        T, done = self.P * (self.P + 1) // 2, 0
        small = np.empty((len(active) if pairs else 0, T))
        for part, sums, slots in self.sums(active, pairs, from_):
            at = address(small) + 8 * done * T if pairs else 0
            self.solve(part, sums, self.centers, slots, pairs, at, **limits)
            done += len(part)
        return small

    def sums(self, active: np.ndarray, pairs: bool, from_: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Sums of products: of some problems after the other, and how many slots of each are to be added up."""
        words, side = (2, SIDE_EXACT) if pairs else (1, SIDE)
        T, slots = self.tiles(self.columns * words)
        unrolled = self.columns if self.columns <= UNROLLED and not pairs else 0
        W = unrolled or -(-self.columns // side) * side
        weighted = words * (1 if self.w is None or not pairs else 2)
        room = (weighted * W + 1) * (T + 8) + 2 * W + W * W * 8 * words + (self.F + 8 if pairs else 0)
        room = (room + 7) // 8 * 8
        for part in self.parts(active, words * slots * self.F):
            sums = np.empty(len(part) * slots * self.F * words)
            args = (
                0, *self.data, T, W, slots, address(part), address(self.centers), from_, address(sums), self.F,
                scratch(room * torch.get_num_threads()), room, 1.0,
            )  # fmt: skip
            work = len(part) * self.N * self.columns * (self.columns + 4) * (0.3 if pairs else 0.04)
            run(make_gram(unrolled, int(pairs)), args, len(part) * slots, work)
            yield part, sums, slots

    def refine(
        self,
        active: np.ndarray,
        keep: bool,
        tolerance: float,
        small: np.ndarray | None = None,
        where: np.ndarray | None = None,
    ) -> None:
        """Residuals, and the solutions corrected by them, or only their sums of squares. The small parts of V of problem
        i of the active ones are ``small[where[i]]``.
        """
        P, R, F = self.P, self.R, (self.P + 2) * self.R
        T, slots = self.tiles(self.P + self.R + 3)
        unrolled = P if P <= UNROLLED_RESIDUALS else 0
        W = P + 1 if unrolled else -(-(P + 1) // SIDE_ALONE) * SIDE_ALONE
        room = (W + R + 3) * (T + 8) + 2 * R * (P + 1) + 16 * (W + 1) * R + 2 * R + 2 * P + 9
        more = 32 * F + 8 * (self.at[-1] + 2 * P + P * (P + 1) // 2) + 32
        room = (max(room, more) + 7) // 8 * 8
        done = 0
        for part in self.parts(active, 2 * slots * F):
            sums = np.empty(2 * len(part) * slots * F)
            deep = (0, 0) if small is None or where is None else (address(small), address(where) + 8 * done)
            done += len(part)
            at = address(self.out), address(sums), F, scratch(room * torch.get_num_threads()), room
            work = len(part) * self.N * (P + 2) * R * 0.6
            args = (0, *self.data, T, W, slots, address(part), self.B, *at, 1.0)
            run(make_residual(unrolled), args, len(part) * slots, work)
            args = (
                0, address(part), len(part), at[1], slots, F, *deep, *self.weights_at, self.N, P, R, self.B, at[0],
                int(self.fit_intercept), int(keep), *at[3:], self.alpha, tolerance,
            )  # fmt: skip
            groups = -(-len(part) // 8)
            run(make_correct(int(small is not None)), args, groups, groups * R * (P + 2) ** 2 * 20.0)


def fit(
    X: Tensor, y: Tensor, *, sample_weight: Tensor | None, alpha: float, fit_intercept: bool, precision: str
) -> Fitted:
    """Estimates of all problems: see fastvae.regression.fit."""
    m = Rows(X, y, sample_weight, alpha, fit_intercept)
    status, everyone = np.zeros(m.B, np.int64), np.arange(m.B)
    tolerance = TOLERANCE[torch.promote_types(X.dtype, y.dtype)]
    close = m.P * CLOSE
    limits = {"least": 1e-9, "closest": 4 * close, "most_error": MOST_ERROR, "tolerance": tolerance}
    if precision == "float64":
        limits |= {"least": m.P * 2.0**-46, "most_error": 0.01, "tolerance": math.inf}
    from_ = FIND if fit_intercept else ORIGIN
    deeper = everyone
    if precision != "double-double":
        m.estimate(everyone, False, from_, **limits)
        doubts = m.field(11).astype(np.int64)
        if doubts.any():
            far = np.flatnonzero(doubts & FAR) if fit_intercept else deeper[:0]
            if len(far):
                m.centers[far, 1:] = m.field(14, m.P + m.R)[far]
                m.estimate(far, False, GIVEN, **limits)
                doubts[far] = m.field(11)[far].astype(np.int64)
            sound = doubts & NONFINITE == 0
            refined = np.flatnonzero(sound & (doubts & (REFINE | DEEPEN) == REFINE))
            if len(refined):
                m.refine(refined, precision == "float64", tolerance)
                status[refined] |= REFINED
                doubts[refined] |= m.field(11)[refined].astype(np.int64)
            deeper = np.flatnonzero(sound & (doubts & DEEPEN != 0))
            bad = np.flatnonzero(~sound)
        else:
            deeper = bad = deeper[:0]
    if len(deeper):
        small = m.estimate(deeper, True, from_, **ALL | {"closest": close, "tolerance": TOLERANCE[torch.float64] / 10})
        doubts = m.field(11)[deeper].astype(np.int64)
        status[deeper] = DOUBLE_DOUBLE + RANK_DEFICIENT * (doubts & DEPENDENT != 0)
        sound = doubts & NONFINITE == 0
        again = np.flatnonzero(sound & (doubts & REPEAT != 0))
        status[deeper[again]] |= REFINED
        for _ in range(MOST_REPEATS):
            if len(again):
                m.refine(deeper[again], False, TOLERANCE[torch.float64] / 10, small, again)
                again = again[m.field(11)[deeper[again]].astype(np.int64) & REPEAT != 0]
        alone = deeper[sound & (doubts & (REFINE | REPEAT) == REFINE)]
        if len(alone):
            m.refine(alone, True, math.inf)
        if precision == "double-double":
            bad = deeper[doubts & NONFINITE != 0]
    return outcome(m, status, bad)


def accumulate(
    sums: Sums | None,
    X: Tensor,
    y: Tensor,
    *,
    sample_weight: Tensor | None,
    fit_intercept: bool,
    precision: str,
) -> Sums:
    """The sums, if there are any, and those of some more rows."""
    m, exact = Rows(X, y, sample_weight, 0.0, fit_intercept), precision == "double-double"
    from_ = GIVEN if sums else FIND if fit_intercept else ORIGIN
    if sums:
        m.centers = sums.centers.copy()
    numbers = np.zeros((m.B, m.F, 2))
    for part, some, slots in m.sums(np.arange(m.B), exact, from_):
        of_slots = some.reshape(len(part), slots, m.F, -1)
        for s in range(slots):
            low = of_slots[:, s, :, 1] if exact else np.zeros(())
            added = add((numbers[part, :, 0], numbers[part, :, 1]), (of_slots[:, s, :, 0], low))
            numbers[part] = np.stack(added, axis=-1)
    rows = np.full(m.B, float(m.N)) if m.rows is None else m.rows
    log_weights = np.zeros(m.B) if m.log_weights is None else m.log_weights
    new = Sums(numbers, m.centers, rows, log_weights, m.P, m.R, fit_intercept, exact)
    return joined(sums, new) if sums else new


def merge(sums: Sums, other: Sums) -> Sums:
    """The sums of the rows of both."""
    return joined(sums, other)


def solve(sums: Sums, *, alpha: float) -> Fitted:
    """Estimates of all problems from their sums."""
    B, exact = len(sums.rows), sums.exact
    m = Problems((B, 0, sums.P, sums.R), sums.rows, sums.log_weights, alpha, sums.fit_intercept)
    close = m.P * CLOSE if exact else CLOSE_SUMS
    m.solve(np.arange(B), np.ascontiguousarray(sums.numbers), sums.centers, 1, True, closest=close, **ALL)
    doubts = m.field(11).astype(np.int64)
    status = DOUBLE_DOUBLE * exact + RANK_DEFICIENT * (doubts & DEPENDENT != 0)
    return outcome(m, status, np.flatnonzero(doubts & NONFINITE))


def outcome(m: Problems, status: np.ndarray, bad: np.ndarray) -> Fitted:
    """What the problems' results are, NaN for those without any."""
    B, P, R = m.B, m.P, m.R
    if len(bad):
        status[bad] = SINGULAR_DATA
        if m.rows is not None:
            status[bad[m.rows[bad] == 0]] = TOO_FEW_ROWS
        for k in range(len(m.at) - 1):
            m.field(k, -1)[bad] = math.nan  # views of the results
        m.field(10)[bad] = 0
    shapes = [(R, P), (R,), (R, P), *[(R,)] * 6]
    fields = [torch.from_numpy(m.field(k, *shape)) for k, shape in enumerate(shapes)]
    rank = torch.from_numpy(m.field(10).astype(np.int64))
    rows = torch.full((B,), m.N) if m.rows is None else torch.from_numpy(m.rows.astype(np.int64))

    def inverse_gram() -> Tensor:
        i, j = np.tril_indices(P)
        V = torch.empty(B, P, P, dtype=torch.float64)
        V[:, i, j] = V[:, j, i] = torch.from_numpy(m.field(15, P * (P + 1) // 2))
        return V

    return Fitted(
        *fields, torch.from_numpy(m.field(9)), rank, rows, rows - rank - int(m.fit_intercept),
        torch.from_numpy(status), torch.from_numpy(m.field(14, P + R)[:, :P]), torch.from_numpy(m.field(12)), inverse_gram,
    )  # fmt: skip
