"""Shared by the tests of `fastvae.regression`: data, and the available backends."""

import numpy as np
import pytest

from fastvae._core.backend import HAS_KERNEL

BACKENDS = ["reference", *(["numba"] if HAS_KERNEL["regression", "numba"] else [])]
by_backend = pytest.mark.parametrize("backend", BACKENDS)

N, P, R, B = 23, 4, 3, 2  # all different, so that dims cannot be confused
FIELDS: tuple[str, ...] = ("coef", "intercept", "standard_errors", "intercept_standard_error")
FIELDS += ("sigma2", "sigma2_unbiased", "log_likelihood", "r2", "rss", "condition", "rank", "rows", "df", "status")


def problem(*batch, targets=None, seed=0, rows=N, dtype=np.float64):
    """X with different scales and means, y with as much noise as signal, weights that differ by 100 times, one of 0."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(*batch, rows, P)) * [1.0, 0.01, 30.0, 5.0] + [0.5, 2.0, -40.0, 0.0]
    y = rng.normal(size=(*batch, rows, targets or 1)) * 3 + X.mean(-1, keepdims=True) + 7
    w = 10 ** (2 * rng.uniform(size=(*batch, rows)) - 1)
    w[..., 4:5] = 0.0
    return X.astype(dtype), (y if targets else y[..., 0]).astype(dtype), w


def close(actual, expected, rtol=1e-9, atol=0.0):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=rtol, atol=atol)


def same(actual, expected, rtol=1e-9, fields=FIELDS, atol=0.0):
    """Check that two fits agree, field by field."""
    for name in fields:
        got, want = np.asarray(getattr(actual, name)), np.asarray(getattr(expected, name))
        assert got.shape == want.shape, name
        np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=name)
