"""What follows from RSS: variances, standard errors, log-likelihood and R^2 of eight problems, one in each lane.

    sigma2 = RSS / n,   unbiased = RSS / (n - rank - 1),   standard errors  sqrt(V_jj unbiased)
    log-likelihood = 1/2 (sum log w - n (log sigma2 + log 2 pi + 1)),   R^2 = 1 - RSS / y'y

Specification: fastvae/reference/regression/formulas.py
"""

import math

from ..language.double import load_number, store_number
from ..language.jit import loop_jit, outlined
from ..language.math import like, log, select, sqrt
from ..language.memory import F64, array_at, read, vector
from .factor import row
from .lanes import LOG_WEIGHTS, ROW_COUNTS

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@loop_jit
def store_statistics(record, at, problems, lanes, r, spread, rss):
    """Those of target r, to the record; ``spread`` is the variance of the intercept for noise of unit variance."""
    outlined()
    P, fit_intercept, v = problems.P, problems.fit_intercept, vector(F64)
    zero, nan = like(v, 0), like(v, math.nan)
    rows = read(array_at(lanes + 8 * ROW_COUNTS, 8, F64), 0, v)
    log_weight = read(array_at(lanes + 8 * LOG_WEIGHTS, 8, F64), 0, v)
    df = rows - load_number(record, at.rank, v) - like(v, 1.0 * fit_intercept)
    rss = select(rss <= zero, zero, rss)
    sigma2 = rss / rows
    unbiased = select(df > zero, rss / df, nan)
    if problems.alpha > 0:
        unbiased = nan
    for j in range(P):
        store_number(
            record, at.coef_error + r * P + j, sqrt(load_number(record, at.inverse + row(j) + j, v) * unbiased)
        )
    store_number(record, at.intercept_error + r, sqrt(spread * unbiased) if fit_intercept else zero)
    store_number(record, at.sigma2 + r, sigma2)
    store_number(record, at.unbiased + r, unbiased)
    value = like(v, 0.5) * (log_weight - rows * (log(sigma2) + like(v, 2 * HALF_LOG_2PI + 1)))
    store_number(record, at.log_likelihood + r, value)
    store_number(record, at.r2 + r, like(v, 1) - rss / load_number(record, at.squares + r, v))
    store_number(record, at.rss + r, rss)
