"""Grams of targets whose squares are out of the range of float64."""

import math
import pickle

import numpy as np
import pytest

from fastvae import Status, regression

from .problems import FIELDS, N, R, by_backend, close, problem, same

pytestmark = by_backend
VALUES = tuple(name for name in FIELDS if name != "status")
SCALES = [2.0**-900, 2.0**-565, 2.0**-490, 2.0**480, 2.0**560, 2.0**900]
scales = pytest.mark.parametrize("scale", SCALES, ids=lambda s: f"2^{round(math.log2(s))}")
CUTS = [slice(0, 9), slice(9, 10), slice(10, N)]


def streamed(backend, X, y, w=None, parts=CUTS, **options):
    gram = regression.Gram(backend=backend, **options)
    for at in parts:
        gram.update(X[..., at, :], y[..., at, :] if y.ndim == X.ndim else y[..., at], None if w is None else w[..., at])
    return gram


@scales
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("options", [{}, {"fit_intercept": False}], ids=str)
def test_targets_of_any_magnitude(backend, scale, weighted, options):
    X, y, w = problem(2, targets=R)
    w = w if weighted else None
    y[:, :, 1] *= scale
    y[1][:, [0, 2]] *= scale
    for alpha in (0.0, 2.0):
        truth = regression.fit(X, y, sample_weight=w, alpha=alpha, backend=backend, **options)
        gram = streamed(backend, X, y, w, **options)
        same(gram.solve(alpha=alpha), truth, fields=VALUES)
        same(pickle.loads(pickle.dumps(gram)).solve(alpha=alpha), truth, fields=VALUES)
        close(gram.solve(alpha=alpha).predict(X), truth.predict(X))
        assert not (gram.solve().status & Status.NONFINITE).any()


@scales
def test_chunks_of_unlike_magnitudes(backend, scale):
    X, y, _ = problem()
    for first, rest in ((scale, 1.0), (1.0, scale), (scale, 0.0), (0.0, scale)):
        target = y * np.where(np.arange(N) < 9, first, rest)
        truth = regression.fit(X, target, backend=backend)
        grams = [streamed(backend, X, target, parts=[at]) for at in CUTS]
        results = [streamed(backend, X, target).solve(), grams[2].merge(grams[0]).merge(grams[1]).solve()]
        for result in results:
            same(result, truth, 1e-8, VALUES)
            assert np.isfinite(result.log_likelihood)


def test_the_likelihood_of_tiny_targets_is_finite(backend):
    x, y = np.array([0.0, 1, 2, 3]), np.array([1.0, 3, 5, 8])
    fit = regression.Gram(backend=backend).update(x, y * 1e-170).solve()
    close(fit.coef, 2.3e-170)
    close(fit.standard_errors, 1e-170 * math.sqrt(0.03))
    close(fit.log_likelihood, -2 * (math.log(2 * math.pi * 0.075) + 1) + 4 * 170 * math.log(10))
    assert fit.status & ~Status.DOUBLE_DOUBLE == 0


def test_targets_of_zeros_are_exact(backend):
    X, y, _ = problem()
    fit = streamed(backend, X, 0 * y).solve()
    assert fit.rss == 0
    assert fit.log_likelihood == math.inf
    assert (fit.coef == 0).all()
    fit = streamed(backend, X, 0 * y + 1e-170).solve()  # constant
    close(fit.intercept, 1e-170)
    close(fit.coef, 0, atol=1e-180)
