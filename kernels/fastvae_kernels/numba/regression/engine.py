"""Linear regression by normal equations, one or a million problems at once: Numba.

    sums of products    `gram.py`       of the centered columns, in float64 or in double-double
    estimates           `estimates.py`  Cholesky, coefficients, standard errors, and bounds of the errors
    residuals           `residual.py`   in double-double, and the sums that follow from them
    corrections         `refine.py`     the solution corrected by them, and whether that is enough

This file decides which problem takes which step. Traffic, elements: reads N (P + R) once; again for the problems that
are refined, and again for those that take double-double. Launches: two for all problems, two more for each of these.
Specification: fastvae/reference/regression/formulas.py
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .centers import FIRST_ROWS, GIVEN, ORIGIN
from .estimates import Limits
from .fields import DEPENDENT, FIELDS, NONFINITE, RECENTER, REFINE, REPEAT, TO_DOUBLE_DOUBLE
from .launch import Problems, Rows
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
LEAST, MOST_ERROR = 1e-9, 1e-9  # a pivot and an error of V, relative, for which one correction is enough
LEAST_FLOAT64, MOST_FLOAT64 = 2.0**-46, 0.01  # the same for precision="float64", the first times P
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
    small_mean_x: Tensor  # [B, P], low parts of these
    mean_y: Tensor  # [B, R]
    total_weight: Tensor
    inverse_gram: Callable[[], Tensor]  # of [B, P, P]


def fit(
    X: Tensor, y: Tensor, *, sample_weight: Tensor | None, alpha: float, fit_intercept: bool, precision: str
) -> Fitted:
    """Estimates of all problems: see fastvae.regression.fit."""
    m = Rows(X, y, sample_weight, alpha, fit_intercept)
    status, nonfinite = np.zeros(m.B, np.int64), []
    for active in m.parts():
        if precision != "double-double":
            active, failed = in_float64(m, active, precision == "float64", status)
            nonfinite.append(failed)
        if len(active):
            nonfinite.append(in_double_double(m, active, status))
    return outcome(m, status, np.concatenate(nonfinite))


def in_float64(m: Rows, active: np.ndarray, only: bool, status: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimates in float64, refined where that is enough, or not at all if float64 is the ``only`` precision asked for;
    the problems that need double-double, and those without a solution.
    """
    tolerance = TOLERANCE[torch.promote_types(m.X.dtype, m.y.dtype)]
    limits = Limits(LEAST, 4 * m.P * CLOSE, MOST_ERROR, tolerance)
    if only:
        limits = Limits(LEAST_FLOAT64 * m.P, 4 * m.P * CLOSE, MOST_FLOAT64, math.inf)
    m.estimate(active, False, FIRST_ROWS if m.fit_intercept else ORIGIN, limits)
    flags, none = m.flags(active), active[:0]
    if m.fit_intercept and any_of(flags, RECENTER):  # once more, about the means
        far = active[flags & RECENTER != 0]
        m.centers[far, 1:] = m.field("means", m.P + m.R)[far]
        m.estimate(far, False, GIVEN, limits)
        flags = m.flags(active)
    failed = active[flags & NONFINITE != 0] if any_of(flags, NONFINITE) else none
    if any_of(flags, REFINE):
        those = flags & (REFINE | TO_DOUBLE_DOUBLE | NONFINITE) == REFINE
        refined = active if those.all() else active[those]
        if len(refined):
            m.refine(refined, only, tolerance)  # in float64 alone, RSS is all that is
            status[refined] = 0 if only else REFINED
            flags |= m.flags(active)
    if not any_of(flags, TO_DOUBLE_DOUBLE | RECENTER):
        return none, failed
    return active[(flags & (TO_DOUBLE_DOUBLE | RECENTER) != 0) & (flags & NONFINITE == 0)], failed


def any_of(flags: np.ndarray, some: int) -> bool:
    """Whether any problem has one of those flags: far faster than to select the problems."""
    return bool(np.bitwise_or.reduce(flags) & some)


def in_double_double(m: Rows, active: np.ndarray, status: np.ndarray) -> np.ndarray:
    """Estimates in double-double, corrected where that is not enough; the problems without a solution."""
    limits = Limits(0.0, m.P * CLOSE, math.inf, TOLERANCE[torch.float64] / 10)
    small = m.estimate(active, True, FIRST_ROWS if m.fit_intercept else ORIGIN, limits)
    flags = m.flags(active)
    status[active] = DOUBLE_DOUBLE + RANK_DEFICIENT * (flags & DEPENDENT != 0)
    finite = flags & NONFINITE == 0
    again = np.flatnonzero(finite & (flags & REPEAT != 0))
    status[active[again]] |= REFINED
    for _ in range(MOST_REPEATS):
        if len(again):
            m.refine(active[again], False, limits.tolerance, small, again)
            again = again[m.flags(active[again]) & REPEAT != 0]
    rss_lost = active[finite & (flags & (REFINE | REPEAT) == REFINE)]
    if len(rss_lost):
        m.refine(rss_lost, True, math.inf)
    return active[~finite]


def accumulate(
    sums: Sums | None,
    X: Tensor,
    y: Tensor,
    *,
    sample_weight: Tensor | None,
    fit_intercept: bool,
    precision: str,
) -> Sums:
    """The sums so far, if there are any, and those of more rows added."""
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
    """The sums of rows, about the centers of sums that are to be added to."""
    origin = GIVEN if about else FIRST_ROWS if m.fit_intercept else ORIGIN
    if about:
        m.centers = about.centers.copy()
    numbers = np.zeros((m.B, m.F, 2))
    for part in m.parts():
        new, slots = m.sums(part, exact, origin)
        of_slots = new.reshape(len(part), slots, m.F, -1)
        for s in range(slots):
            low = of_slots[:, s, :, 1] if exact else np.zeros(())
            added = add((numbers[part, :, 0], numbers[part, :, 1]), (of_slots[:, s, :, 0], low))
            numbers[part] = np.stack(added, axis=-1)
    rows = np.full(m.B, float(m.N)) if m.rows is None else m.rows
    log_weights = np.zeros(m.B) if m.log_weights is None else m.log_weights
    return Sums(numbers, m.centers, rows, log_weights, m.P, m.R, m.fit_intercept, exact)


def target_exponents(sums: Sums) -> Tensor | None:
    """Exponents [B, R] of the powers of two by which `solve` takes the targets divided; None where there are none."""
    return None if sums.exponents is None else torch.from_numpy(sums.exponents)


def merge(sums: Sums, other: Sums) -> Sums:
    """The sums of the rows of both."""
    return joined(sums, other)


def solve(sums: Sums, *, alpha: float) -> Fitted:
    """Estimates of all problems from their sums, in units of 2^`target_exponents`."""
    m, flags = solved(sums, alpha)
    lost = None
    if sums.R > 1 and any_of(flags, NONFINITE):
        sums, lost = without_lost_targets(sums)
        m, flags = solved(sums, alpha) if lost.any() else (m, flags)
    status = DOUBLE_DOUBLE * sums.exact + RANK_DEFICIENT * (flags & DEPENDENT != 0)
    fitted = outcome(m, status, np.flatnonzero(flags & NONFINITE))
    if lost is not None:
        status[lost.any(1)] |= BAD_DATA
        for t in fitted[:9]:
            t[torch.from_numpy(lost)] = math.nan
    return fitted


def solved(sums: Sums, alpha: float) -> tuple[Problems, np.ndarray]:
    """Estimates of all problems, and their flags."""
    B, exact = len(sums.rows), sums.exact
    m = Problems((B, 0, sums.P, sums.R), sums.rows, sums.log_weights, alpha, sums.fit_intercept)
    close = m.P * CLOSE if exact else CLOSE_SUMS
    m.solve(
        np.arange(B), np.ascontiguousarray(sums.numbers), sums.centers, 1, True, Limits(0.0, close, math.inf, math.inf)
    )
    return m, m.flags(np.arange(B))


def outcome(m: Problems, status: np.ndarray, failed: np.ndarray) -> Fitted:
    """The results of the problems, NaN for those that ``failed``."""
    B, P, R = m.B, m.P, m.R
    if len(failed):
        status[failed] = BAD_DATA
        if m.rows is not None:
            status[failed[m.rows[failed] == 0]] = TOO_FEW_ROWS
        for name in FIELDS.index:
            if name != "end":
                m.field(name, -1)[failed] = math.nan  # views of the results
        m.field("rank")[failed] = 0
    shapes = [(B, R, P), (B, R), (B, R, P), *[(B, R)] * 6]  # of the first fields, up to RSS
    arrays = [m.out[B * m.at[k] : B * m.at[k + 1]].reshape(shape) for k, shape in enumerate(shapes)]
    rank = m.field("rank").astype(np.int64)
    rows = np.full(B, m.N) if m.rows is None else m.rows.astype(np.int64)
    means = m.field("means", P + R)

    def inverse_gram() -> Tensor:
        i, j = np.tril_indices(P)
        V = torch.empty(B, P, P, dtype=torch.float64)
        V[:, i, j] = V[:, j, i] = torch.from_numpy(m.field("inverse", P * (P + 1) // 2))
        return V

    return Fitted._make(
        [
            *map(torch.from_numpy, arrays),
            torch.from_numpy(m.field("condition")),
            *map(torch.from_numpy, (rank, rows, rows - rank - int(m.fit_intercept), status)),
            torch.from_numpy(means[:, :P]),
            torch.from_numpy(m.field("small_means", P)),
            torch.from_numpy(means[:, P:]),
            torch.from_numpy(m.field("weight")),
            inverse_gram,
        ]
    )
