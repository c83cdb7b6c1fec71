"""The result of fastvae.regression.fit: indexing, predictions, pickling and the summary."""

import copy
import math
import pickle
import re

import numpy as np
import pytest
import torch

from fastvae import Status, regression

from .problems import FIELDS, B, R, by_backend, close, problem, same

pytestmark = by_backend


def test_a_batch_can_be_indexed(backend):
    X, y, _ = problem(B, 5, targets=R)
    fit = regression.fit(X, y, backend=backend)
    assert fit.batch_shape == (B, 5)
    assert len(fit) == B
    for index in (0, -1, (1, 2), np.int64(1), slice(1), (slice(None), 3), ..., (..., 2), np.array([1, 0, 1])):
        part = fit[index]
        assert part.batch_shape == fit.rank[index].shape
        for name in (*FIELDS, "covariance"):
            np.testing.assert_array_equal(
                getattr(part, name),
                getattr(fit, name)[
                    index
                    if name in FIELDS[-5:]
                    else (
                        index
                        if index is not Ellipsis and not (isinstance(index, tuple) and index[0] is Ellipsis)
                        else (slice(None), *([2] if isinstance(index, tuple) else []))
                    )
                ],
            )
    mask = np.zeros((B, 5), bool)
    mask[1, 3] = True
    np.testing.assert_array_equal(fit[mask].coef, fit.coef[1:, 3])
    assert type(fit[1, 2].status) is Status
    assert [part.batch_shape for part in fit] == [(5,)] * B
    for bad in ((1, 2, 0), 7, (0, 9)):
        with pytest.raises(IndexError):
            fit[bad]
    with pytest.raises(IndexError, match="no batch"):
        fit[0, 0][0]
    with pytest.raises(TypeError, match="no len"):
        len(fit[0, 0])
    assert fit[0, 0]
    tensors = regression.fit(torch.from_numpy(X), torch.from_numpy(y), backend=backend)
    np.testing.assert_array_equal(tensors[1, torch.tensor([0, 3])].coef, fit[1, [0, 3]].coef)


def test_one_X_predicts_for_all_problems(backend):
    for targets in (None, R):
        X, y, _ = problem(B, targets=targets)
        fit = regression.fit(X, y, backend=backend)
        whole = fit.predict(X[0])
        for b in range(B):
            close(whole[b], fit[b].predict(X[0]))
            close(whole[b], X[0] @ fit.coef[b].T + fit.intercept[b])
    assert fit.predict(X[:, :0]).shape == (B, 0, R)
    assert isinstance(fit.predict(torch.from_numpy(X)), torch.Tensor)
    assert fit.predict(X.astype(np.float32)).dtype == np.float64


@pytest.mark.parametrize("batch", [(), (B,)])
def test_fit_pickles_and_is_immutable(backend, batch):
    X, y, _ = problem(*batch)
    fit = regression.fit(X, y, backend=backend)
    for other in (pickle.loads(pickle.dumps(fit)), copy.deepcopy(fit), copy.copy(fit)):
        same(other, fit, 0)
        np.testing.assert_array_equal(other.covariance, fit.covariance)
        assert other.summary() == fit.summary()
        assert type(other.status) is type(fit.status)
    assert fit.covariance is fit.covariance
    with pytest.raises(AttributeError, match="immutable: coef cannot be set"):
        fit.coef = 0
    with pytest.raises(AttributeError, match="immutable: coef cannot be deleted"):
        del fit.coef
    with pytest.raises(AttributeError, match="no attribute 'params'"):
        fit.params  # noqa: B018


def test_repr(backend):
    X, y, _ = problem(B, 5, targets=R)
    assert repr(regression.fit(X, y, backend=backend)) == "RegressionFit(2 x 5 problems, P = 4, R = 3)"
    one = repr(regression.fit(X[0, 0, :, 0], y[0, 0, :, 0], backend=backend))
    assert one.startswith("RegressionFit(coef=")
    assert "\n" not in one


def test_summary_of_one_problem(backend):
    X, y, w = problem()
    fit = regression.fit(X, y, sample_weight=w, backend=backend)
    lines = fit.summary(names=["a", "b", "a long name", "d"], level=0.9).splitlines()
    assert lines[0] == "Linear regression"
    assert {"rows": "22", "sigma": f"{math.sqrt(fit.sigma2_unbiased):.6g}"}.items() <= {
        pair[0]: pair[1] for line in lines[1:3] for pair in zip(line.split()[-4::2], line.split()[-3::2], strict=True)
    }.items()
    assert lines[-6].split() == ["estimate", "std", "error", "t", "P>|t|", "[0.05", "0.95]"]
    assert [line.split()[0] for line in lines[-5:]] == ["intercept", "a", "b", "a", "d"]
    numbers = [fit.coef[0], fit.standard_errors[0], fit.t_values[0], fit.p_values[0], *fit.confidence_intervals(0.9)[0]]
    np.testing.assert_allclose([float(v) for v in lines[-4].split()[1:]], numbers, rtol=1e-3)
    assert max(map(len, lines)) <= 120
    without = regression.fit(X, y, fit_intercept=False, backend=backend).summary()
    assert "intercept" not in without
    assert "x4" in without


@pytest.mark.parametrize("scale", [1e6, 1e-110, 1e110])
def test_columns_of_a_summary_are_separated(backend, scale):
    X, y, _ = problem(B, rows=200)
    fit = regression.fit(X, -scale * y, backend=backend)
    one = fit[0]
    lines = one.summary().splitlines()
    values = np.c_[one.coef, one.standard_errors, one.t_values, one.p_values, one.confidence_intervals()]
    for line, row in zip(lines[-4:], values, strict=True):
        cells = re.split(" {2,}", line)
        assert len(cells) == 7, line
        np.testing.assert_allclose([float(cell) for cell in cells[1:]], row, rtol=1e-3)
    assert len({len(line) for line in lines[-6:]}) == 1
    assert max(map(len, lines)) <= 120
    for line in fit.summary().splitlines()[-5:-2]:
        assert len([float(cell) for cell in re.split(" {2,}", line.strip())[1:]]) == 5


def test_summary_describes_its_numbers(backend):
    X, y, _ = problem(B)
    for fit_intercept in (True, False):
        fit = regression.fit(X, y, fit_intercept=fit_intercept, backend=backend)
        for text in (fit.summary(), fit.summary(problem=0)):
            assert ("R^2 (uncentered)" in text) == (not fit_intercept)
            columns = "centred columns" if fit_intercept else "columns"
            assert f"condition: of the {columns} at unit norm; statsmodels' Cond. No. is that of the raw design" in text


def test_summary_explains_missing_numbers(backend):
    X, y, _ = problem()
    double = np.c_[X, X[:, 0]]
    text = regression.fit(double, y, on_singular="ignore", backend=backend).summary()
    assert "columns linearly dependent: this is the minimum-norm solution" in text
    assert "rank 4 of 5" in text
    assert "ridge, alpha = 2: estimates are biased" in regression.fit(X, y, alpha=2, backend=backend).summary()
    assert "no residual degrees of freedom" in regression.fit(X[:5], y[:5], backend=backend).summary()
    assert "nan" not in regression.fit(X[:5], y[:5], backend=backend).summary()


def test_summary_of_batches_and_targets(backend):
    X, y, _ = problem(B, 5, targets=R)
    X[0, 3, 0, 0] = np.nan
    fit = regression.fit(X, y, backend=backend)
    text = fit.summary()
    assert text.startswith("Linear regressions: 10 problems (2 x 5)\n")
    assert "1  not fitted: the data contain inf or NaN" in text
    assert all(word in text for word in ("R^2", "sigma", "condition", "median"))
    assert "nan" not in text
    unknown = regression.fit(X, y, alpha=1, backend=backend).summary().splitlines()[-4]
    assert unknown.split() == ["sigma", *"-----"]
    one = fit.summary(problem=(1, 2), target=1)
    assert one.startswith("Linear regression of problem [1, 2], target 1")
    assert f"{fit.coef[1, 2, 1, 0]:.6g}" in one
    assert fit.summary(problem=(1, 2)).count("target") == R
    assert fit[1, 2].summary(target=1).count("\n") == one.count("\n")
    assert "not fitted: the data contain inf or NaN" in fit.summary(problem=(0, 3))
    assert fit[:, 0].summary(target=2)
