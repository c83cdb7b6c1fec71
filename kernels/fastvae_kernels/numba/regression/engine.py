"""Linear regression by normal equations, one or a million problems at once: Numba.

    sums of products    `gram.py`       of the centred columns, in float64 or in double-double
    estimates           `estimates.py`  Cholesky, coefficients, errors, and what is in doubt about them
    residuals           `residual.py`   in double-double, and the sums that follow from them
    corrections         `refine.py`     the solution corrected by them, and whether that is enough

Traffic, elements: reads N (P + R) once; again for the problems that are refined, and again for those that take
double-double. Launches: two for all problems, two more for each of these. Here stands which problem takes which.
Specification: fastvae/reference/regression/formulas.py
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .fields import (
    CONDITION,
    DEEPEN,
    DEPENDENT,
    FAR,
    INVERSE,
    MEANS,
    NONFINITE,
    RANK,
    REFINE,
    REPEAT,
    WEIGHT,
)
from .gram import FIND, GIVEN, ORIGIN
from .launch import Limits, Problems, Rows
from .sums import (
    NOTHING,
    Sums,
    add,
    exponents_of,
    joined,
    out_of_range,
    scaled,
    without_lost_targets,
)

BAD_DATA, TOO_FEW_ROWS, REFINED, DOUBLE_DOUBLE, RANK_DEFICIENT = 16, 32, 64, 128, 256  # the values of fastvae.Status
CLOSE = 2.0**-50  # times P: how near, relative to its length, a dependent column is to the others
CLOSE_SUMS = 1e-6  # the same where sums are float64, and their rows are gone
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-9}  # of a coefficient
LEAST, MOST_ERROR = 1e-9, 1e-9  # a pivot, and the error of V, relative, that one correction is enough for
LEAST_FLOAT64, MOST_FLOAT64 = 2.0**-46, 0.01  # times P; the same where float64 is asked for
MOST_REPEATS = 8  # of a correction in double-double


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
    small_mean_x: Tensor  # [B, P], what rounding left of these
    mean_y: Tensor  # [B, R]
    total_weight: Tensor
    inverse_gram: Callable[[], Tensor]  # of [B, P, P]


def fit(
    X: Tensor, y: Tensor, *, sample_weight: Tensor | None, alpha: float, fit_intercept: bool, precision: str
) -> Fitted:
    """Estimates of all problems: see fastvae.regression.fit."""
    m = Rows(X, y, sample_weight, alpha, fit_intercept)
    status, bad = np.zeros(m.B, np.int64), []
    for part in m.parts():
        deeper = part
        if precision != "double-double":
            deeper, without = in_float64(m, part, precision == "float64", status)
            bad.append(without)
        if len(deeper):
            bad.append(in_double_double(m, deeper, status))
    return outcome(m, status, np.concatenate(bad))


def in_float64(m: Rows, active: np.ndarray, wanted: bool, status: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimates in float64, refined where that is enough, or not if float64 is ``wanted``; the problems that need more,
    and those without a solution.
    """
    tolerance = TOLERANCE[torch.promote_types(m.X.dtype, m.y.dtype)]
    limits = Limits(LEAST, 4 * m.P * CLOSE, MOST_ERROR, tolerance)
    if wanted:
        limits = Limits(LEAST_FLOAT64 * m.P, 4 * m.P * CLOSE, MOST_FLOAT64, math.inf)
    m.estimate(active, False, FIND if m.fit_intercept else ORIGIN, limits)
    doubts, none = m.doubts(active), active[:0]
    if m.fit_intercept and any_of(doubts, FAR):  # once more, about the means
        far = active[doubts & FAR != 0]
        m.centers[far, 1:] = m.field(MEANS, m.P + m.R)[far]
        m.estimate(far, False, GIVEN, limits)
        doubts = m.doubts(active)
    spoilt = active[doubts & NONFINITE != 0] if any_of(doubts, NONFINITE) else none
    if any_of(doubts, REFINE):
        those = doubts & (REFINE | DEEPEN | NONFINITE) == REFINE
        refined = active if those.all() else active[those]
        if len(refined):
            m.refine(refined, wanted, tolerance)  # where float64 is wanted, RSS alone
            status[refined] = 0 if wanted else REFINED
            doubts |= m.doubts(active)
    deeper = (
        active[(doubts & (DEEPEN | FAR) != 0) & (doubts & NONFINITE == 0)] if any_of(doubts, DEEPEN | FAR) else none
    )
    return deeper, spoilt


def any_of(doubts: np.ndarray, what: int) -> bool:
    """Whether any problem has one of those doubts: a look at all that is far faster than to pick some."""
    return bool(np.bitwise_or.reduce(doubts) & what)


def in_double_double(m: Rows, active: np.ndarray, status: np.ndarray) -> np.ndarray:
    """Estimates in double-double, corrected where that is not enough; the problems without a solution."""
    limits = Limits(0.0, m.P * CLOSE, math.inf, TOLERANCE[torch.float64] / 10)
    small = m.estimate(active, True, FIND if m.fit_intercept else ORIGIN, limits)
    doubts = m.doubts(active)
    status[active] = DOUBLE_DOUBLE + RANK_DEFICIENT * (doubts & DEPENDENT != 0)
    sound = doubts & NONFINITE == 0
    again = np.flatnonzero(sound & (doubts & REPEAT != 0))
    status[active[again]] |= REFINED
    for _ in range(MOST_REPEATS):
        if len(again):
            m.refine(active[again], False, limits.tolerance, small, again)
            again = again[m.doubts(active[again]) & REPEAT != 0]
    alone = active[sound & (doubts & (REFINE | REPEAT) == REFINE)]
    if len(alone):
        m.refine(alone, True, math.inf)
    return active[~sound]


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
    exact = precision == "double-double"
    new = None
    if sums is None or sums.exponents is None:
        new = sums_of(Rows(X, y, sample_weight, 0.0, fit_intercept), sums, exact)
    if new is None or out_of_range(new):
        targets = y.numpy().astype(np.float64)
        to = exponents_of(targets, None if sample_weight is None else sample_weight.numpy(), sums)
        if new is None or ((to != 0) & (to != NOTHING)).any():
            y = torch.from_numpy(np.ldexp(targets, -to[:, None]))
            m = Rows(X, y, sample_weight, 0.0, fit_intercept)
            new = sums_of(m, sums and scaled(sums, to), exact)._replace(exponents=to)
    return joined(sums, new) if sums else new


def sums_of(m: Rows, about: Sums | None, exact: bool) -> Sums:
    """The sums of some rows, about the centers of others."""
    from_ = GIVEN if about else FIND if m.fit_intercept else ORIGIN
    if about:
        m.centers = about.centers.copy()
    numbers = np.zeros((m.B, m.F, 2))
    for part in m.parts():
        some, slots = m.sums(part, exact, from_)
        of_slots = some.reshape(len(part), slots, m.F, -1)
        for s in range(slots):
            low = of_slots[:, s, :, 1] if exact else np.zeros(())
            added = add((numbers[part, :, 0], numbers[part, :, 1]), (of_slots[:, s, :, 0], low))
            numbers[part] = np.stack(added, axis=-1)
    rows = np.full(m.B, float(m.N)) if m.rows is None else m.rows
    log_weights = np.zeros(m.B) if m.log_weights is None else m.log_weights
    return Sums(numbers, m.centers, rows, log_weights, m.P, m.R, m.fit_intercept, exact)


def target_exponents(sums: Sums) -> Tensor | None:
    """What `solve` takes the targets divided by, powers of two [B, R]; None where it takes them as they are."""
    return None if sums.exponents is None else torch.from_numpy(sums.exponents)


def merge(sums: Sums, other: Sums) -> Sums:
    """The sums of the rows of both."""
    return joined(sums, other)


def solve(sums: Sums, *, alpha: float) -> Fitted:
    """Estimates of all problems from their sums, in units of 2^`target_exponents`."""
    m, doubts = solved(sums, alpha)
    lost = None
    if sums.R > 1 and any_of(doubts, NONFINITE):
        sums, lost = without_lost_targets(sums)
        m, doubts = solved(sums, alpha) if lost.any() else (m, doubts)
    status = DOUBLE_DOUBLE * sums.exact + RANK_DEFICIENT * (doubts & DEPENDENT != 0)
    fitted = outcome(m, status, np.flatnonzero(doubts & NONFINITE))
    if lost is not None:
        status[lost.any(1)] |= BAD_DATA
        for t in fitted[:9]:
            t[torch.from_numpy(lost)] = math.nan
    return fitted


def solved(sums: Sums, alpha: float) -> tuple[Problems, np.ndarray]:
    """Estimates of all problems, and what is in doubt about them."""
    B, exact = len(sums.rows), sums.exact
    m = Problems((B, 0, sums.P, sums.R), sums.rows, sums.log_weights, alpha, sums.fit_intercept)
    close = m.P * CLOSE if exact else CLOSE_SUMS
    m.solve(
        np.arange(B), np.ascontiguousarray(sums.numbers), sums.centers, 1, True, Limits(0.0, close, math.inf, math.inf)
    )
    return m, m.doubts(np.arange(B))


def outcome(m: Problems, status: np.ndarray, bad: np.ndarray) -> Fitted:
    """What the problems' results are, NaN for those without any."""
    B, P, R = m.B, m.P, m.R
    if len(bad):
        status[bad] = BAD_DATA
        if m.rows is not None:
            status[bad[m.rows[bad] == 0]] = TOO_FEW_ROWS
        for k in range(len(m.at) - 1):
            m.field(k, -1)[bad] = math.nan  # views of the results
        m.field(RANK)[bad] = 0
    shapes = [(R, P), (R,), (R, P), *[(R,)] * 6]
    estimates = [torch.from_numpy(m.field(k, *shape)) for k, shape in enumerate(shapes)]
    state, rank = m.state(), m.field(RANK).astype(np.int64)
    mean = m.at[MEANS] - m.at[WEIGHT]  # where they begin: of columns, of targets, small parts
    rows = np.full(B, m.N) if m.rows is None else m.rows.astype(np.int64)

    def inverse_gram() -> Tensor:
        i, j = np.tril_indices(P)
        V = torch.empty(B, P, P, dtype=torch.float64)
        V[:, i, j] = V[:, j, i] = torch.from_numpy(m.field(INVERSE, P * (P + 1) // 2))
        return V

    return Fitted._make(
        [
            *estimates,
            torch.from_numpy(m.field(CONDITION)),
            *map(torch.from_numpy, (rank, rows, rows - rank - int(m.fit_intercept), status)),
            torch.from_numpy(state[:, mean : mean + P]),
            torch.from_numpy(state[:, mean + P + R : mean + 2 * P + R]),
            torch.from_numpy(state[:, mean + P : mean + P + R]),
            torch.from_numpy(state[:, 0]),
            inverse_gram,
        ]
    )
