"""Predictions are as accurate as the fit, however far the data are from the origin."""

import copy
import math
import pickle

import numpy as np
import pytest
import sklearn.linear_model
import torch

from fastvae import regression
from fastvae.sklearn import LinearRegression

from .exact import in_exact_arithmetic
from .problems import N, P, by_backend, close, problem

pytestmark = by_backend
rng = np.random.default_rng(0)
NEAR = np.round(rng.normal(size=(N, 3)) * 2**20) / 2**20  # a grid on which adding offsets of 2^30 is exact
TARGET = np.round((NEAR @ [1.0, -2.0, 3.0] + rng.normal(size=N)) * 2**20) / 2**20
FAR = 2.0**30
NEW = np.round(rng.normal(size=(7, 3)) * 2**20) / 2**20


def exactly(rows, weights=None):
    """Predictions of the fit to the data near the origin, in exact arithmetic."""
    b = in_exact_arithmetic(NEAR, TARGET, weights)[0]
    return b[0] + rows @ b[1:]


@pytest.mark.parametrize("offset", [FAR, -FAR, np.array([FAR, 0.0, -(2.0**29)])], ids=["far", "far below", "mixed"])
@pytest.mark.parametrize("weighted", [False, True])
def test_offsets_cost_predictions_no_accuracy(backend, offset, weighted):
    w = rng.uniform(0.1, 1, N) if weighted else None
    truth = exactly(NEW, w)
    fit = regression.fit(NEAR + offset, TARGET, sample_weight=w, backend=backend)
    for one in (fit, pickle.loads(pickle.dumps(fit)), copy.copy(fit)):
        np.testing.assert_allclose(one.predict(NEW + offset), truth, rtol=0, atol=1e-13)
    as_tensor = fit.predict(torch.from_numpy(NEW + offset))
    np.testing.assert_allclose(as_tensor.numpy(), truth, rtol=0, atol=1e-13)
    several = regression.fit(NEAR + offset, np.stack([TARGET, -TARGET], 1), sample_weight=w, backend=backend)
    np.testing.assert_allclose(several.predict(NEW + offset), np.stack([truth, -truth], 1), rtol=0, atol=1e-13)


def test_offsets_of_y_cost_few_roundings(backend):
    fit = regression.fit(NEAR + FAR, TARGET + FAR, backend=backend)
    np.testing.assert_allclose(fit.predict(NEW + FAR), exactly(NEW) + FAR, rtol=1e-15)


def test_offsets_cost_predictions_of_batches_and_scalars_no_accuracy(backend):
    X, y = np.stack([NEAR, NEAR + FAR, NEAR]), np.stack([TARGET, TARGET, -TARGET])
    fit = regression.fit(X, y, backend=backend)
    truth = exactly(NEW)
    rows = np.stack([NEW, NEW + FAR, NEW])
    expected = np.stack([truth, truth, -truth])
    np.testing.assert_allclose(fit.predict(rows), expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(fit[1].predict(NEW + FAR), truth, rtol=0, atol=1e-13)
    np.testing.assert_allclose(fit[1:].predict(rows[1:]), expected[1:], rtol=0, atol=1e-13)
    np.testing.assert_allclose(fit[[1, 0]].predict(rows[[1, 0]]), expected[[1, 0]], rtol=0, atol=1e-13)
    slope = regression.fit(NEAR[:, 0] + FAR, TARGET, backend=backend)
    b = in_exact_arithmetic(NEAR[:, :1], TARGET)[0]
    np.testing.assert_allclose(slope.predict(NEW[:, 0] + FAR), b[0] + NEW[:, 0] * b[1], rtol=0, atol=1e-13)


def test_offsets_cost_predictions_of_a_gram_little_accuracy(backend):
    gram = regression.Gram(backend=backend).update(NEAR[:9] + FAR, TARGET[:9]).update(NEAR[9:] + FAR, TARGET[9:])
    # the reference rounds the rows in its triangular factor
    atol = 1e-13 if backend == "numba" else 1e-5
    np.testing.assert_allclose(gram.solve().predict(NEW + FAR), exactly(NEW), rtol=0, atol=atol)


def test_offsets_cost_float32_predictions_no_accuracy(backend):
    near, offset = np.round(NEAR * 2**6) / 2**6, np.float32(2.0**16)
    far = (near + offset).astype(np.float32)
    fit = regression.fit(far, TARGET.astype(np.float32), backend=backend)
    b = in_exact_arithmetic(near, TARGET.astype(np.float32).astype(float))[0]
    predicted = fit.predict(far)
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, b[0] + near @ b[1:], rtol=0, atol=3e-6)


def test_extreme_magnitudes_are_predicted(backend):
    fit = regression.fit((NEAR + FAR) * 1e-180, TARGET * 1e100, backend=backend)
    close(fit.predict((NEW + FAR) * 1e-180) / 1e100, exactly(NEW), 1e-5, 1e-5)


def test_a_ridge_and_no_intercept_are_predicted(backend):
    X, y, _ = problem()
    about = X.mean(0), y.mean()
    A = X - about[0]
    W = np.linalg.solve(A.T @ A + 2 * np.eye(P), A.T @ (y - about[1]))
    fit = regression.fit(X, y, alpha=2.0, backend=backend)
    close(fit.predict(X), about[1] + A @ W)
    fit = regression.fit(X, y, fit_intercept=False, backend=backend)
    close(fit.predict(X), X @ fit.coef, 1e-12)


def test_predictions_have_gradients(backend):
    for offset in (0.0, FAR):
        X, rows = (torch.from_numpy(t + offset).requires_grad_() for t in (NEAR, NEW))
        y = torch.from_numpy(TARGET).requires_grad_()
        predicted = regression.fit(X, y, backend="auto").predict(rows)
        grads = torch.autograd.grad(predicted.square().sum(), (X, y, rows))
        if not offset:
            truth = grads
    for got, want in zip(grads, truth, strict=True):
        close(got, want, 1e-6, 1e-7)


def test_the_estimator_predicts_like_the_fit(backend):
    if backend != "numba":
        pytest.skip("the estimator takes what is there")
    truth = exactly(NEW)
    for model in (
        LinearRegression().fit(NEAR + FAR, TARGET),
        LinearRegression().partial_fit(NEAR[:9] + FAR, TARGET[:9]).partial_fit(NEAR[9:] + FAR, TARGET[9:]),
    ):
        for one in (model, pickle.loads(pickle.dumps(model))):
            np.testing.assert_allclose(one.predict(NEW + FAR), truth, rtol=0, atol=1e-13)
        close(model.intercept_, TARGET.mean() - (NEAR + FAR).mean(0) @ model.coef_, 1e-12)
    several = LinearRegression().fit(NEAR + FAR, np.stack([TARGET, -TARGET], 1))
    np.testing.assert_allclose(several.predict(NEW + FAR), np.stack([truth, -truth], 1), rtol=0, atol=1e-13)


@pytest.mark.parametrize("how", ["replaced", "in place", "intercept"])
def test_the_estimator_predicts_from_its_attributes(backend, how):
    if backend != "numba":
        pytest.skip("the estimator takes what is there")
    model = LinearRegression().fit(NEAR + FAR, TARGET)
    if how == "replaced":
        model.coef_ = model.coef_ * 2
    elif how == "in place":
        model.coef_[1] += 1e-3
    else:
        model.intercept_ += 1.0
    expected = sklearn.linear_model.LinearRegression.predict(model, NEW + FAR)
    np.testing.assert_array_equal(model.predict(NEW + FAR), expected)
    assert math.isfinite(model.score(NEAR, TARGET))
