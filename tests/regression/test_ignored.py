"""Rows of weight 0 do not affect a regression, whatever they contain."""

import pickle

import numpy as np
import pytest
import torch

from fastvae import Status, reference, regression

from .problems import FIELDS, B, N, P, R, by_backend, close, problem, same

pytestmark = by_backend
VALUES = [np.nan, np.inf, -np.inf, 1e300, -1e-300]
VALUES_OF_A_GRAM = tuple(name for name in FIELDS if name != "status")
spoilers = pytest.mark.parametrize("value", VALUES, ids=str)


def with_ignored_rows(value, *batch, targets=None, rows=N):
    """A problem, and the same with rows of weight 0 that contain the value, some only in X and some only in y."""
    X, y, w = problem(*batch, targets=targets, rows=rows)
    w[..., [0, 9, rows - 1]] = 0.0
    spoilt_X, spoilt_y = X.copy(), y.copy()
    spoilt_X[..., [0, 4], :] = value
    spoilt_X[..., rows - 1, 1] = value
    along = (..., slice(None)) if targets else (...,)
    spoilt_y[(*along[:1], [0, 9], *along[1:])] = value
    return (X, y, w), (spoilt_X, spoilt_y, w)


# Rows of weight 0


@spoilers
@pytest.mark.parametrize("targets", [None, R])
@pytest.mark.parametrize("options", [{}, {"fit_intercept": False}, {"alpha": 2.0}], ids=str)
def test_a_row_of_weight_0_is_ignored(backend, value, targets, options):
    clean, spoilt = with_ignored_rows(value, targets=targets)
    results = [regression.fit(X, y, sample_weight=w, backend=backend, **options) for X, y, w in (clean, spoilt)]
    same(results[1], results[0], 1e-12)
    close(results[1].covariance, results[0].covariance, 1e-12)
    keep = clean[2] > 0
    without = regression.fit(*(t[keep] for t in clean[:2]), sample_weight=clean[2][keep], backend=backend, **options)
    same(results[1], without, 1e-9)


@spoilers
def test_it_is_ignored_in_a_batch_in_many_tiles_and_in_float32(backend, value):
    for kind, rows in (((B,), N), ((), 3000)):
        clean, spoilt = with_ignored_rows(value, *kind, rows=rows)
        for dtype in (np.float64, np.float32):
            with np.errstate(over="ignore"):
                results = [
                    regression.fit(X.astype(dtype), y.astype(dtype), sample_weight=w, backend=backend)
                    for X, y, w in (clean, spoilt)
                ]
            same(results[1], results[0], 1e-6 if dtype is np.float32 else 1e-12)


@spoilers
def test_it_is_ignored_in_any_precision(backend, value):
    if backend == "reference":
        pytest.skip("the reference has one precision")
    clean, spoilt = with_ignored_rows(value, targets=R)
    for precision in ("float64", "double-double"):
        results = [regression.fit(X, y, sample_weight=w, precision=precision) for X, y, w in (clean, spoilt)]
        same(results[1], results[0], 1e-12)


@spoilers
def test_it_is_ignored_in_residuals_and_rank(backend, value):
    (X, _, w), (spoilt, _, _) = with_ignored_rows(value)
    # RSS of such a good fit is computed from residuals.
    target = X @ np.arange(1.0, 5.0) + 7 + 1e-7 * np.cos(np.arange(N))
    results = [regression.fit(Z, target, sample_weight=w, backend=backend) for Z in (X, spoilt)]
    same(results[1], results[0], 1e-12)
    double = [np.c_[Z, Z[:, :1]] for Z in (X, spoilt)]
    results = [regression.fit(Z, target, sample_weight=w, on_singular="ignore", backend=backend) for Z in double]
    same(results[1], results[0], 1e-12)
    assert results[1].rank == P


@spoilers
def test_it_is_ignored_with_extreme_magnitudes(backend, value):
    clean, spoilt = with_ignored_rows(value, B, targets=R)
    for by_X, by_y, by_w in ((1e-170, 1.0, 1.0), (1e160, 1e-200, 1.0), (1.0, 1e170, 1e-120)):
        with np.errstate(over="ignore", under="ignore"):
            scaled = [(X * by_X, y * by_y, w * by_w) for X, y, w in (clean, spoilt)]
        results = [regression.fit(X, y, sample_weight=w, backend=backend) for X, y, w in scaled]
        same(results[1], results[0], 1e-12)


@spoilers
def test_it_is_ignored_in_a_gram(backend, value):
    clean, spoilt = with_ignored_rows(value, B, targets=R)
    results = []
    for X, y, w in (clean, spoilt):
        first, second = (
            regression.Gram(backend=backend).update(X[:, at], y[:, at], w[:, at]) for at in (slice(9), slice(9, 15))
        )
        second.update(X[:, 15:22], y[:, 15:22], w[:, 15:22]).update(X[:, 22:], y[:, 22:], w[:, 22:])
        results.append(first.merge(pickle.loads(pickle.dumps(second))).solve())
    same(results[1], results[0], 1e-12)
    same(results[1], regression.fit(*clean[:2], sample_weight=clean[2], backend=backend), 1e-9, VALUES_OF_A_GRAM)
    gram = regression.Gram(backend=backend).update(spoilt[0][:, :1], spoilt[1][:, :1], spoilt[2][:, :1])
    assert (gram.solve().status == Status.TOO_FEW_ROWS).all()
    same(gram.update(*(t[:, 1:] for t in spoilt)).solve(), results[0], 1e-9, VALUES_OF_A_GRAM)


@spoilers
def test_it_is_ignored_in_gradients(backend, value):
    clean, spoilt = with_ignored_rows(value)
    grads = []
    for X, y, w in (clean, spoilt):
        tensors = [torch.from_numpy(t).requires_grad_() for t in (X, y)]
        fit = regression.fit(*tensors, sample_weight=torch.from_numpy(w))
        (fit.coef.sum() + fit.log_likelihood).backward()
        grads.append([t.grad for t in tensors])
    for clean_grad, grad in zip(*grads, strict=True):
        assert (grad[torch.from_numpy(clean[2]) == 0] == 0).all()
        close(grad, clean_grad, 1e-9, 1e-15)


@spoilers
def test_it_is_ignored_in_the_likelihood_and_the_specification(backend, value):
    if backend != "reference":
        pytest.skip("the specification is one")
    clean, spoilt = ([torch.from_numpy(t) for t in data] for data in with_ignored_rows(value, targets=R))
    results = [reference.regression.fit(X, y, sample_weight=w) for X, y, w in (clean, spoilt)]
    for a, b in zip(*results, strict=True):
        close(b, a, 1e-12)
    coef = results[0].coef.requires_grad_()
    totals, grads = [], []
    for X, y, w in (clean, spoilt):
        total = reference.regression.log_likelihood(X, y, coef, *results[0][1:3], sample_weight=w)
        totals.append(total.detach())
        grads.append(torch.autograd.grad(total.sum(), coef)[0])
    close(totals[1], totals[0], 1e-12)
    close(totals[1], results[0].log_likelihood, 1e-9)
    close(grads[1], grads[0], 1e-9, 1e-12)


def test_the_error_names_a_row_of_positive_weight(backend):
    X, y, w = problem()
    X[4, 1], X[7, 2] = np.nan, np.nan  # the weight of row 4 is 0
    with pytest.raises(ValueError, match=r"^X must be finite, got nan at \[7, 2\]$"):
        regression.fit(X, y, sample_weight=w, backend=backend)
