"""Very uneven weights, against exact arithmetic: light rows are not lost beside heavy ones."""

import numpy as np
import pytest
import torch

from fastvae import Status, regression

from .exact import in_exact_arithmetic
from .problems import by_backend, close

pytestmark = by_backend
rng = np.random.default_rng(1)
X, y = rng.normal(size=(15, 3)) * [1.0, 10.0, 100.0], rng.normal(size=15)
X[0, 0] = 0.0  # the heaviest row does not contribute to the first column


def weights(heavy, power):
    w = np.ones(15)
    w[heavy] = 10.0 ** np.linspace(power, power / 2, len(heavy))
    w[4] = 0.0
    return w


@pytest.mark.parametrize("power", [4, 8, 12, 16, 20, 24, 28, 32, 40, 56])
@pytest.mark.parametrize("heavy", [[0], [7], [2, 9], [3, 5, 8]], ids=str)
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_light_rows_are_not_lost_beside_heavy_ones(backend, power, heavy, intercept, alpha):
    w = weights(heavy, power)
    solution, diagonal, rss = in_exact_arithmetic(X, y, w, alpha, intercept, digits=250)
    fit = regression.fit(X, y, sample_weight=w, alpha=alpha, fit_intercept=intercept, backend=backend)
    assert not fit.status & Status.RANK_DEFICIENT
    close(np.r_[fit.intercept, fit.coef] if intercept else fit.coef, solution, 1e-13)
    close(fit.rss, rss, 1e-12)
    if alpha == 0:
        errors = np.r_[fit.intercept_standard_error, fit.standard_errors] if intercept else fit.standard_errors
        close(errors, np.sqrt(rss / (14 - len(solution)) * diagonal), 1e-11)


@pytest.mark.parametrize("power", [16, 17, 20, 24, 28])
@pytest.mark.parametrize("offset", [1e2, 1e6])
@pytest.mark.parametrize("intercept", [False, True])
def test_heavy_rows_far_from_the_origin(backend, power, offset, intercept):
    w = weights([2, 9], power)
    solution = in_exact_arithmetic(X + offset, y, w, 0.0, intercept, digits=250)[0]
    fit = regression.fit(X + offset, y, sample_weight=w, fit_intercept=intercept, backend=backend)
    assert not fit.status & Status.RANK_DEFICIENT
    # without an intercept the offset determines the condition of the coefficients; with one, that of the intercept
    close(fit.coef, solution[int(intercept) :], 1e-13 if intercept else 1e-15 * offset)


@pytest.mark.parametrize("power", [4, 16, 24])
def test_dependent_columns_are_detected_beside_heavy_rows(backend, power):
    w = weights([2, 9], power)
    double = np.c_[X, X[:, 0] + X[:, 1]]
    fit = regression.fit(double, y, sample_weight=w, on_singular="ignore", backend=backend)
    assert fit.status & Status.RANK_DEFICIENT
    assert fit.rank == 3


def test_a_problem_with_uneven_weights_does_not_affect_the_others(backend):
    w = np.stack([np.ones(15), weights([2, 9], 24), np.linspace(1, 2, 15)])
    how = {"alpha": 0.5, "backend": backend}
    many = regression.fit(np.stack([X] * 3), np.stack([y] * 3), sample_weight=w, **how)
    for k in range(3):
        alone = regression.fit(X, y, sample_weight=w[k], **how)
        np.testing.assert_array_equal(many.coef[k], alone.coef)
        assert many.status[k] == alone.status


def test_gradients_beside_heavy_rows(backend):
    if backend != "reference":
        pytest.skip("gradients are the reference's")
    w = weights([2, 9], 10)
    target = torch.tensor(y, requires_grad=True)
    fit = regression.fit(torch.tensor(X), target, sample_weight=torch.tensor(w), fit_intercept=False)
    found = torch.stack([torch.autograd.grad(b, target, retain_graph=True)[0] for b in fit.coef])
    with np.errstate(all="raise"):
        truth = np.stack([in_exact_arithmetic(X, one, w, 0.0, False)[0] for one in np.eye(15)], axis=1)
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-9 * np.abs(truth).max())
