"""Dependent columns in the regression kernels: how they are detected, and the minimum-norm solution."""

import numpy as np
import pytest

from fastvae import Status

from .exact import PLAIN, PRECISIONS, TARGET, N, check_exactly, fit


def minimum_norm(X, y, w=None, intercept=True):
    """The minimum-norm solution by the pseudo-inverse, for data with exact or almost exact dependence."""
    w = np.ones(len(y)) if w is None else w
    mean_x, mean_y = (w @ X / w.sum(), w @ y / w.sum()) if intercept else (0.0, 0.0)
    A, b = np.sqrt(w)[:, None] * (X - mean_x), np.sqrt(w) * (y - mean_y)
    inverse = np.linalg.pinv(A, rcond=1e-9)
    return inverse @ b, inverse @ inverse.T


ones = np.ones((N, 1))
DEPENDENT = {
    "twice": (np.c_[PLAIN, PLAIN[:, 0]], 3),
    "a sum": (np.c_[PLAIN, PLAIN[:, 0] + PLAIN[:, 1]], 3),
    "a combination, rounded": (np.c_[PLAIN[:, :2], 0.1 * PLAIN[:, 0] + 0.3 * PLAIN[:, 1], PLAIN[:, 2]], 3),
    "two of them": (np.c_[PLAIN[:, 0], 2 * PLAIN[:, 0], PLAIN[:, 1:], PLAIN[:, 1] - 3 * PLAIN[:, 2]], 3),
    "a constant": (np.c_[PLAIN, 0.1 * ones], 3),
    "a constant, first": (np.c_[0.1 * ones, PLAIN], 3),
    "a column of zeros": (np.c_[0 * ones, PLAIN], 3),
    "groups": (np.c_[np.eye(3)[np.arange(N) % 3], PLAIN], 5),
    "of unlike scales": (np.c_[PLAIN[:, :2], 1e3 * PLAIN[:, :1], 1e-3 * PLAIN[:, 2:]], 3),
    "far from the origin": (np.c_[PLAIN + 1e8, 2 * (PLAIN[:, :1] + 1e8)], 3),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", DEPENDENT)
def test_dependent_columns(name, precision):
    X, rank = DEPENDENT[name]
    result = fit(X, TARGET, precision=precision, on_singular="ignore")
    coef, V = minimum_norm(X, TARGET)
    assert result.rank == rank
    assert result.status & Status.RANK_DEFICIENT
    assert result.df == N - rank - 1
    np.testing.assert_allclose(result.coef, coef, rtol=1e-7, atol=1e-9 * np.abs(coef).max())
    np.testing.assert_allclose(result.covariance, V * result.sigma2_unbiased, rtol=1e-6, atol=1e-8 * np.abs(V).max())
    with pytest.raises(np.linalg.LinAlgError):
        fit(X, TARGET, precision=precision)


def test_columns_that_differ_only_by_rounding_are_dependent():
    # the sum of two columns of size 1e6 and standard deviation 1 has a relative rounding error of 1e-10 of the latter
    a, b = PLAIN[:, 0] + 1e6, PLAIN[:, 1] + 1e6
    for X in (np.c_[a, b, a + b], np.c_[a + b, a, b]):
        assert fit(X, TARGET, on_singular="ignore").rank == 2
    # x2 - x1 is small, with rounding errors of the scale of x1
    small = 1e-7 * PLAIN[:, 1]
    for X in (np.c_[a, a + small, small], np.c_[small, a, a + small]):
        assert fit(X, TARGET, on_singular="ignore").rank == 2


def test_columns_close_to_each_other_are_not_dependent():
    for distance in (1e-8, 1e-12):
        X = np.c_[PLAIN, PLAIN[:, 0] + distance * PLAIN[::-1, 1]]
        status = check_exactly(X, TARGET, of_errors=1e-6)
        assert status & Status.DOUBLE_DOUBLE


@pytest.mark.parametrize("intercept", [True, False])
def test_fewer_rows_than_columns(intercept):
    for n, p in ((4, 7), (1, 3), (2, 9)):
        g = np.random.default_rng(n)
        X, y = g.normal(size=(n, p)) * 10.0 ** g.integers(-6, 5, p), g.normal(size=n)
        result = fit(X, y, fit_intercept=intercept, on_singular="ignore")
        assert result.rank == n - intercept
        assert np.isnan(result.standard_errors).all()
        assert result.rss <= 1e-25
        np.testing.assert_allclose(result.predict(X), y, rtol=1e-10, atol=1e-10)
        coef, _ = minimum_norm(X, y, intercept=intercept)
        np.testing.assert_allclose(result.coef, coef, rtol=1e-6, atol=1e-9 * np.abs(coef).max())
