"""What is said of a row is its own: no other row, far away or not counted, changes it."""

from typing import Any

import numpy as np
import pytest
from mixtures import EPS, KINDS, close, data, start

from fastvae import gmm

every_kind = pytest.mark.parametrize("kind", KINDS)
SCORES: dict[str, Any] = {
    "score_samples": gmm.score_samples,
    "predict_proba": gmm.predict_proba,
    "predict": gmm.predict,
    "log_resp": lambda X, mixture, **options: gmm.e_step(X, mixture, **options).log_resp,
}
every_score = pytest.mark.parametrize("name", SCORES)


# Far rows


@every_kind
@every_score
@pytest.mark.parametrize("far", [1e6, 1e12, 1e18])
def test_far_rows_in_front_say_nothing_of_the_others(name, far, kind, each_backend):
    X = data(N=300, D=3) + 100.0
    mixture = start(X, kind=kind)
    got, near = (SCORES[name](np.concatenate([front, X]), mixture)[5:] for front in (np.full((5, 3), far), X[:5]))
    np.testing.assert_array_equal(got, near)
    want = SCORES[name](X, mixture, backend="reference")
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@every_kind
@every_score
@pytest.mark.parametrize("D", [1, 2, 3, 7, 8, 11])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(name, D, kind):
    X = data(N=700, D=D, seed=D)
    mixture = start(X, kind=kind, seed=D)
    whole = SCORES[name](X, mixture, backend="numba")
    for rows in (slice(0, 1), slice(3, 4), slice(5, 16), slice(100, 613), slice(None, None, -1), slice(1, None, 7)):
        np.testing.assert_array_equal(SCORES[name](X[rows].copy(), mixture, backend="numba"), whole[rows])
    batch = SCORES[name](np.stack([1e9 * X, X, -X]), mixture, backend="numba")
    np.testing.assert_array_equal(batch[1], whole)


@every_kind
@pytest.mark.parametrize("far", [1e12, 1e18])
def test_an_m_step_loses_nothing_to_far_rows_of_no_component(kind, far, each_backend):
    X, resp = data(N=300), np.eye(3)[np.arange(305) % 3]
    resp[:5] = 0
    mixed = np.concatenate([np.full((5, 2), far), X])
    got, want = (gmm.m_step(x, r, covariance_type=kind) for x, r in ((mixed, resp), (X, resp[5:])))
    close(got[:3], want[:3], [300 * EPS * np.abs(X).max() ** 2] * 3)


@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])  # a tied covariance is that of the far rows as well
@pytest.mark.parametrize("far", [1e8, 1e12])
def test_a_fit_loses_nothing_to_far_rows_in_front(kind, far, each_backend):
    X = data(N=300)
    strays = far * (1 + 0.1 * np.random.default_rng(1).normal(size=(6, 2)))
    near, first = start(X, kind=kind), start(X, K=4, kind=kind)
    first.means[:3], first.means[3] = near.means, strays.mean(0)
    first.covariances[3] *= far**2
    how: dict[str, Any] = {"covariance_type": kind, "reg_covar": 0, "tol": 0, "max_iter": 10}
    # Without the strays and their component the others take the same steps.
    first.weights[:] = [*near.weights * 300 / 306, 6 / 306]
    got = gmm.fit(np.concatenate([strays, X]), 4, init=first, **how).mixture
    want = gmm.fit(X, 3, init=near, **how).mixture
    np.testing.assert_allclose(got.weights[:3] * 306 / 300, want.weights, rtol=1e-9)
    np.testing.assert_allclose(got.means[:3], want.means, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got.covariances[:3], want.covariances, rtol=1e-9, atol=1e-9)
