"""Ridges of any size, against exact rationals."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch

from fastvae import Status, reference, regression

from .problems import by_backend, close

pytestmark = by_backend
x, y = np.arange(1.0, 5.0)[:, None], np.array([1.0, 1, 2, 2])  # without an intercept 17 / (30 + alpha)
DESIGN = np.array([[1, 2, -1], [3, 1, 4], [-2, 5, 2], [0, -3, 7], [6, 1, 1], [2, 2, -5]], float)
ALPHAS = [0.0, 1e-3, 1.0, 1e8, 1e16, 1e24, 1e32, 1e100, 1e280]


def less_mean(t):
    """Rows minus their mean, exactly."""
    rows = np.vectorize(Fraction, otypes=[object])(t)
    return rows - rows.sum(0) / len(rows)


def in_rationals(X, y, alpha):
    """(X'X + alpha I)^-1 X'y, exactly, by Gauss-Jordan elimination."""
    X, y = [[Fraction(v) for v in row] for row in X.tolist()], [Fraction(v) for v in y.tolist()]
    P = len(X[0])
    rows = [
        [sum(r[i] * r[j] for r in X) + (i == j) * Fraction(alpha) for j in range(P)]
        + [sum(r[i] * t for r, t in zip(X, y, strict=True))]
        for i in range(P)
    ]
    for i in range(P):
        rows[i] = [v / rows[i][i] for v in rows[i]]
        for j in range(P):
            if j != i:
                rows[j] = [a - rows[j][i] * b for a, b in zip(rows[j], rows[i], strict=True)]
    return [row[-1] for row in rows]


def relative_error(coef, truth):
    return max(float(abs(Fraction(float(c)) / t - 1)) for c, t in zip(coef, truth, strict=True))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("scales", [(1, 1, 1), (2.0**-30, 1, 2.0**30), (2.0**40, 2.0**-20, 1)], ids=str)
def test_a_ridge_matches_exact_rationals(backend, alpha, scales):
    X, target = DESIGN * scales, np.array([3.0, -1, 4, 1, -5, 9])
    truth = in_rationals(X, target, alpha)
    fits = [
        regression.fit(X, target, alpha=alpha, fit_intercept=False, backend=backend),
        regression.Gram(fit_intercept=False, backend=backend).update(X, target).solve(alpha=alpha),
    ]
    for fit in fits:
        assert relative_error(fit.coef, truth) < 2e-13
    six = 6 * X, 6 * target  # so that means are integers
    centred = regression.fit(*six, alpha=36 * alpha, backend=backend)
    assert (
        relative_error(centred.coef, in_rationals(six[0] - six[0].mean(0), six[1] - six[1].mean(), 36 * alpha)) < 2e-13
    )


@pytest.mark.parametrize("alpha", ALPHAS)
def test_calls_that_use_the_reference(backend, alpha):
    if backend != "reference":
        pytest.skip("by the default backend")
    truth = 17 / (30 + Fraction(alpha))
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    fit = regression.fit(tensors[0].clone().requires_grad_(), tensors[1], alpha=alpha, fit_intercept=False)
    assert relative_error(fit.coef.detach(), [truth]) < 1e-14
    wide = np.diag(np.arange(1.0, 258.0))  # more columns than kernels support
    coef = regression.fit(wide, np.ones(257), alpha=alpha, fit_intercept=False).coef
    truths = [Fraction(k) / (k * k + Fraction(alpha)) for k in range(1, 258)]
    assert relative_error(coef, truths) < 1e-14
    single = reference.regression.fit(
        tensors[0].float(), tensors[1].float(), ridge=min(alpha, 1e30), fit_intercept=False
    )
    close(single.coef, float(17 / (30 + Fraction(min(alpha, 1e30)))), 1e-6)


def test_gradients_of_a_large_ridge(backend):
    if backend != "reference":
        pytest.skip("gradients are the reference's")
    for alpha in ALPHAS[:7]:
        X = torch.from_numpy(x).clone().requires_grad_()
        fit = regression.fit(X, torch.from_numpy(y), alpha=alpha, fit_intercept=False)
        slope = torch.autograd.grad(fit.coef.sum(), X)[0]
        # d/dx of x'y / (x'x + alpha)
        total = 30 + Fraction(alpha)
        truth = [Fraction(t) / total - 17 * 2 * Fraction(v) / total**2 for v, t in zip(x[:, 0], y, strict=True)]
        close(slope[:, 0], [float(t) for t in truth], 1e-12)


@pytest.mark.parametrize("by_x", [1e-155, 2.0**-500, 1e-120])
@pytest.mark.parametrize("alpha", [1e-290, 1e-3, 1.0, 1e10])
def test_a_ridge_larger_than_all_squares(backend, by_x, alpha):
    X, target = x * by_x, y * 1e150
    truth = sum(Fraction(a) * Fraction(b) for a, b in zip(X[:, 0], target, strict=True))
    truth /= sum(Fraction(a) ** 2 for a in X[:, 0]) + Fraction(alpha)
    fit = regression.fit(X, target, alpha=alpha, fit_intercept=False, backend=backend)
    assert relative_error(fit.coef, [truth]) < 1e-13


def test_a_negligible_ridge_is_still_a_ridge(backend):
    fit = regression.fit(np.c_[x, x, x**2] * 1e200, y, alpha=1.0, backend=backend)  # without a warning
    close(fit.coef[0], fit.coef[1])
    close(fit.predict(np.c_[x, x, x**2] * 1e200), regression.fit(np.c_[x, x**2], y).predict(np.c_[x, x**2]))
    assert np.isnan(fit.sigma2_unbiased)
    assert np.isnan(fit.standard_errors).all()


@pytest.mark.parametrize("row", [[1.0, 2.0], [1e9, 3.0], [0.1, 1e20], [0.0, 0.0]], ids=str)
@pytest.mark.parametrize("alpha", [1e-300, 1e-12, 1.0])
def test_the_solution_of_a_ridge_is_unique(backend, row, alpha):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = np.array([row]), np.array([3.0])
        fits = [
            regression.fit(*one, alpha=alpha, on_singular="raise", backend=backend),
            regression.fit(*one, sample_weight=np.array([0.3]), alpha=alpha, backend=backend),
            regression.Gram(backend=backend).update(*one).solve(alpha=alpha),
        ]
    for fit in fits:
        assert not fit.status & Status.RANK_DEFICIENT
        assert (fit.coef == 0).all()
        assert fit.intercept == 3
        assert fit.rank == 2
        assert fit.df == -2


@pytest.mark.parametrize("alpha", [1e-16, 1e-12, 1e-8, 1e-4, 1e-2, 1.0, 1e4])
def test_a_ridge_on_dependent_columns(backend, alpha):
    rng = np.random.default_rng(0)
    X, target = rng.normal(size=(40, 2))[:, [0, 0, 1]], rng.normal(size=40)
    fit = regression.fit(X, target, alpha=alpha, fit_intercept=False, backend=backend)
    assert relative_error(fit.coef, in_rationals(X, target, alpha)) < 1e-13
    assert not fit.status & Status.RANK_DEFICIENT
    assert fit.rank == 3
    batch = regression.fit(np.stack([X, X**3, X]), np.stack([target] * 3), alpha=alpha, backend=backend).coef
    close(batch[:, 0], batch[:, 1], 1e-13)


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e16])
def test_a_ridge_on_columns_that_differ_only_by_rounding(backend, alpha):
    rng = np.random.default_rng(0)
    x = rng.normal(size=7).round(3)
    X, target = np.stack([x, 2 * x], 1) + 1e9, rng.normal(size=7)
    fit = regression.fit(X, target, alpha=alpha, backend=backend)
    error = relative_error(fit.coef, in_rationals(less_mean(X), less_mean(target), alpha))
    assert error < 1e-13 + 1e-14 / alpha  # |X|^2 / alpha rounding errors


@pytest.mark.parametrize("alpha", [1e-30, 1e-20, 1e-12, 1e-6])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
@pytest.mark.parametrize(("rows", "columns"), [(7, 3), (2, 2), (2, 5)])
def test_a_ridge_on_equal_columns(backend, alpha, offset, rows, columns):
    x, target = np.random.default_rng(0).normal(size=(2, rows))
    X = np.repeat(x[:, None] + offset, columns, axis=1)
    fit = regression.fit(X, target, alpha=alpha, fit_intercept=False, backend=backend)
    close(fit.coef, (X[:, 0] @ target) / (columns * (X[:, 0] @ X[:, 0]) + alpha), 1e-10)
    close(fit.coef, fit.coef[0], 1e-13)


@pytest.mark.parametrize("alpha", [1e-16, 1e-10, 1e-4, 1.0])
@pytest.mark.parametrize("rows", [400, 100])
def test_a_ridge_on_more_columns_than_kernels_support(backend, alpha, rows):
    """More columns than kernels support, and than rows: w = u + u, u the ridge of one per pair with half of alpha."""
    if backend != "reference":
        pytest.skip("by the default backend")
    rng = np.random.default_rng(0)
    Z, target = rng.normal(size=(rows, 129)), rng.normal(size=rows)
    coef = regression.fit(np.c_[Z, Z], target, alpha=alpha).coef
    close(coef[:129], coef[129:], 1e-12, 1e-13)
    half = regression.fit(Z, target, alpha=alpha / 2).coef / 2
    close(coef[:129], half, 1e-9, 1e-11)


def test_gradients_of_a_ridge_on_dependent_columns(backend):
    if backend != "reference":
        pytest.skip("gradients are the reference's")
    rng = np.random.default_rng(0)
    X = torch.tensor(rng.normal(size=(9, 2))[:, [0, 0, 1]])
    target = torch.tensor(rng.normal(size=9))

    def coef(X, target):
        return regression.fit(X, target, alpha=1e-2, fit_intercept=False).coef

    slopes = torch.autograd.functional.jacobian(coef, (X, target))
    closed = torch.autograd.functional.jacobian(
        lambda X, target: torch.linalg.solve(X.mT @ X + 1e-2 * torch.eye(3).double(), X.mT @ target), (X, target)
    )
    for got, want in zip(slopes, closed, strict=True):
        close(got, want, 1e-8, 1e-8)


@pytest.mark.parametrize("alpha", [1.0, 1e16, 1e32, 1e36, 1e60, 1e100])
def test_a_ridge_on_columns_far_from_the_origin(backend, alpha):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 3)) * [1e-3, 1, 1e3] + [1e3, 5e5, 1e7]
    target = rng.normal(size=30) + 7
    fit = regression.fit(X, target, alpha=alpha, backend=backend)
    truth = in_rationals(less_mean(X), less_mean(target), Fraction(alpha))
    assert relative_error(fit.coef, truth) < 2e-13
