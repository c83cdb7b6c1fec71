"""Regressions to 80 digits or certified by NIST, to compare the kernels with, and data for them."""

import json
import math
from pathlib import Path

import mpmath
import numpy as np

from fastvae import regression

NIST = sorted((Path(__file__).parent / "nist_strd").glob("*.json"))
PRECISIONS = ["auto", "float64", "double-double"]

N = 40
rng = np.random.default_rng(0)
PLAIN = rng.normal(size=(N, 3))
TARGET = PLAIN @ [1.0, 2.0, 3.0] + rng.normal(size=N)


def fit(X, y, **options):
    return regression.fit(X, y, **{"backend": "numba", "on_singular": "raise"} | options)


def in_exact_arithmetic(X, y, w=None, alpha=0.0, intercept=True, digits=80):
    """Coefficients (intercept first), diagonal of (X'WX + alpha)^-1, and RSS, computed to `digits` and rounded once."""
    with mpmath.workdps(digits):
        A = mpmath.matrix([[*([1] if intercept else []), *map(mpmath.mpf, row)] for row in X.tolist()])
        b = mpmath.matrix(list(map(mpmath.mpf, y.tolist())))
        weights = [mpmath.mpf(v) for v in (np.ones(len(y)) if w is None else w).tolist()]
        WA = A.copy()
        for i in range(A.rows):
            for j in range(A.cols):
                WA[i, j] *= weights[i]
        G = A.T * WA
        for j in range(int(intercept), A.cols):
            G[j, j] += mpmath.mpf(alpha)
        inverse = G**-1
        solution = inverse * (WA.T * b)
        residuals = b - A * solution
        rss = sum(v * r**2 for v, r in zip(weights, residuals, strict=True))
        diagonal = [float(inverse[j, j]) for j in range(A.cols)]
        return np.array([float(s) for s in solution]), np.array(diagonal), float(rss)


def check_exactly(X, y, w=None, alpha=0.0, intercept=True, tolerance=2e-13, of_errors=1e-9, **options):
    """Check the fit against exact arithmetic; returns its status."""
    result = fit(X, y, sample_weight=w, alpha=alpha, fit_intercept=intercept, **options)
    solution, diagonal, rss = in_exact_arithmetic(X, y, w, alpha, intercept)
    coef = np.r_[result.intercept, result.coef] if intercept else result.coef
    np.testing.assert_allclose(coef, solution, rtol=tolerance)
    np.testing.assert_allclose(result.rss, rss, rtol=1e-10, atol=1e-50)
    if alpha == 0:
        errors = np.sqrt(rss / (int((np.ones(len(y)) if w is None else w > 0).sum()) - len(solution)) * diagonal)
        got = np.r_[result.intercept_standard_error, result.standard_errors] if intercept else result.standard_errors
        np.testing.assert_allclose(got, errors, rtol=of_errors, atol=1e-30)
    return result.status


def digits(actual, certified):
    """Worst -log10 relative error, absolute if the certified value is 0; at most 15, the number of certified digits."""
    actual, certified = np.atleast_1d(actual), np.atleast_1d(certified)
    error = np.abs(actual - certified) / np.where(certified == 0, 1.0, np.abs(certified))
    return min(15.0, -math.log10(max(error.max(), 1e-300)))


def certified_problem(path):
    data = json.loads(path.read_text())
    X = np.array(data["x"]).T ** np.arange(1, (data["poly_degree"] or 1) + 1)
    return X, np.array(data["y"]), data["intercept"], data["certified"]
