"""A target with inf or NaN does not affect other targets of the same problem, in a batch and in a Gram."""

import numpy as np
import pytest
import torch

from fastvae import Status, regression

from .problems import FIELDS, N, P, R, by_backend, close, problem

pytestmark = by_backend
OVER_TARGETS = FIELDS[:9]
OF_ALL = ("condition", "rank", "rows", "df")
HOW = Status.REFINED | Status.DOUBLE_DOUBLE | Status.RANK_DEFICIENT
spoilers = pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)


def problems_with_nonfinite_targets(value, **options):
    """Three problems: the first without inf or NaN, the second with one such target, the third with two."""
    X, y, w = problem(3, targets=R, **options)
    y[1, 7, 1] = y[2, 0, 0] = y[2, 22, 2] = value
    return X, y, w


NONFINITE_TARGETS = np.zeros((3, R), bool)
NONFINITE_TARGETS[[1, 2, 2], [1, 0, 2]] = True


def as_if_alone(fit, alone, lost=NONFINITE_TARGETS, rtol=1e-10, how=HOW):
    """Check finite targets against `alone(b, kept)`, and that the others are NaN with the status NONFINITE."""
    for b in range(len(lost)):
        kept = ~lost[b]
        truth = alone(b, kept)
        for name in OVER_TARGETS:
            value = getattr(fit, name)[b]
            np.testing.assert_allclose(value[kept], getattr(truth, name), rtol=rtol, err_msg=name)
            assert np.isnan(value[~kept]).all(), name
        for name in OF_ALL:
            np.testing.assert_allclose(getattr(fit, name)[b], getattr(truth, name), rtol=1e-9, err_msg=name)
        close(fit.covariance[b][kept], truth.covariance, rtol, 1e-12)
        assert bool(fit.status[b] & Status.NONFINITE) == lost[b].any()
        assert fit.status[b] & how == truth.status & how


@spoilers
@pytest.mark.parametrize("options", [{}, {"fit_intercept": False}, {"alpha": 2.0}, {"precision": "float64"}], ids=str)
@pytest.mark.parametrize("weighted", [True, False])
def test_other_targets_are_fitted(backend, value, options, weighted):
    X, y, w = problems_with_nonfinite_targets(value)
    options = options | {"backend": backend}
    fit = regression.fit(X, y, sample_weight=w if weighted else None, **options)
    as_if_alone(
        fit, lambda b, kept: regression.fit(X[b], y[b][:, kept], sample_weight=w[b] if weighted else None, **options)
    )


def test_other_targets_are_fitted_with_dependent_columns(backend):
    X, y, _ = problems_with_nonfinite_targets(np.nan)
    y[1, :, 0] = X[1] @ np.arange(1.0, 5.0) + 1e-8 * np.cos(np.arange(N))  # corrected with residuals
    X[2, :, 3] = X[2, :, 0]
    fit = regression.fit(X, y, on_singular="ignore", backend=backend)
    as_if_alone(
        fit,
        lambda b, kept: regression.fit(X[b], y[b][:, kept], on_singular="ignore", backend=backend),
        rtol=1e-7,
    )
    assert fit.status[2] & Status.RANK_DEFICIENT
    near = X.copy()
    near[:, :, 3] = X[:, :, 0] * (1 + 1e-5 * np.cos(np.arange(N)))
    fit = regression.fit(near, y, backend=backend)
    as_if_alone(fit, lambda b, kept: regression.fit(near[b], y[b][:, kept], backend=backend), rtol=1e-6)
    if backend == "numba":
        assert (fit.status & Status.DOUBLE_DOUBLE != 0).all()


def test_other_targets_are_fitted_with_extreme_magnitudes(backend):
    X, y, _ = problems_with_nonfinite_targets(np.nan)
    y[:, :, 2] *= 1e180
    X *= 1e-160
    fit = regression.fit(X, y, backend=backend)
    as_if_alone(fit, lambda b, kept: regression.fit(X[b], y[b][:, kept], backend=backend), rtol=1e-9)


@spoilers
def test_a_problem_without_finite_targets_is_not_fitted(backend, value):
    X, y, _ = problems_with_nonfinite_targets(value)
    y[1, 3], X[2, 5, 0] = value, value
    fit = regression.fit(X, y, backend=backend)
    gram = regression.Gram(backend=backend).update(X, y).solve()
    for result in (fit, gram):
        assert (result.status & Status.NONFINITE != 0).tolist() == [False, True, True]
        assert result.rank.tolist() == [P, 0, 0]
        assert all(np.isnan(getattr(result, name)[1:]).all() for name in (*OVER_TARGETS, "condition", "covariance"))


@spoilers
def test_other_targets_of_a_gram_are_fitted(backend, value):
    X, y, w = problems_with_nonfinite_targets(value)
    gram, other = (
        regression.Gram(backend=backend).update(X[:, at], y[:, at], w[:, at]) for at in (slice(9), slice(9, 15))
    )
    fit = gram.merge(other.update(X[:, 15:], y[:, 15:], w[:, 15:])).solve()

    def alone(b, kept):
        one = regression.Gram(backend=backend).update(X[b, :9], y[b, :9][:, kept], w[b, :9])
        return one.update(X[b, 9:], y[b, 9:][:, kept], w[b, 9:]).solve()

    as_if_alone(fit, alone)
    again = other.merge(regression.Gram(backend=backend).update(X[:, :9], y[:, :9], w[:, :9])).solve()
    as_if_alone(again, alone, rtol=1e-9)


def test_gradients_ignore_nonfinite_targets(backend):
    X, y, _ = (torch.from_numpy(t) for t in problems_with_nonfinite_targets(np.nan))
    tensors = [t.clone().requires_grad_() for t in (X, y)]
    fit = regression.fit(*tensors)
    kept = torch.from_numpy(~NONFINITE_TARGETS)
    (fit.coef[kept].sum() + fit.log_likelihood[kept].sum()).backward()
    of_X, of_y = (t.grad for t in tensors)
    assert of_X is not None
    assert of_y is not None
    for b in range(3):
        alone = [t.clone().requires_grad_() for t in (X[b], y[b][:, kept[b]])]
        truth = regression.fit(*alone)
        (truth.coef.sum() + truth.log_likelihood.sum()).backward()
        close(of_X[b], alone[0].grad, 1e-9, 1e-12)
        close(of_y[b][:, kept[b]], alone[1].grad, 1e-9, 1e-12)
    assert (of_y.mT[torch.from_numpy(NONFINITE_TARGETS)] == 0).all()


def test_a_summary_names_the_nonfinite_target(backend):
    X, y, _ = problems_with_nonfinite_targets(np.nan)
    fit = regression.fit(X, y, backend=backend)
    lost = "not fitted: the data contain inf or NaN"
    assert [lost in fit.summary(problem=1, target=r) for r in range(R)] == [False, True, False]
    assert "nan" not in fit.summary(problem=1)
    assert "2  with targets that are not fitted: they contain inf or NaN" in fit.summary()
