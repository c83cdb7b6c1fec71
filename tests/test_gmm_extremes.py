"""Mixtures at the ends of what float64 holds, and of what has an answer: far rows, no covariance, huge weights."""

import numpy as np
import pytest
from mixtures import EPS, KINDS, data, start

from fastvae import gmm

every_kind = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.usefixtures("each_backend")


# Rows far from all components


@every_kind
@pytest.mark.parametrize("far", [1e3, 1e5, 1e8, 1e13, 1e100, 1e150])
def test_responsibilities_sum_to_one_however_far_the_row(kind, far):
    mixture = start(data(), kind=kind)
    X = far * np.array([[1.0, -0.5], [-0.25, 1.0], [1.0, 1.0]])
    resp, step = gmm.predict_proba(X, mixture), gmm.e_step(X, mixture)
    np.testing.assert_allclose(resp.sum(-1), 1, rtol=3 * EPS)
    np.testing.assert_allclose(np.exp(step.log_resp).sum(-1), 1, rtol=3 * EPS)
    assert np.isfinite(step.log_prob).all()
    np.testing.assert_array_equal(gmm.predict(X, mixture), resp.argmax(-1))


@every_kind
@pytest.mark.parametrize("far", [1e3, 1e5, 1e8, 1e13, 1e100, 1e150])
@pytest.mark.parametrize("K", [1, 2, 3, 8])
def test_identical_components_share_a_row_by_their_weights(kind, far, K):
    one = start(data(), K=1, kind=kind)
    covariances = one.covariances if kind == "tied" else np.repeat(one.covariances, K, 0)
    weights = np.arange(1.0, K + 1) / np.arange(1.0, K + 1).sum()
    mixture = gmm.Mixture(weights, np.repeat(one.means, K, 0), covariances, kind)
    X = np.array([[far, -far], [0.5 * far, far]])
    got = gmm.predict_proba(X, mixture)
    if far <= 1e3:  # beyond, log pi has fewer digits than the log density lets it keep
        np.testing.assert_allclose(got, [weights, weights], rtol=1e-8)
    equal = gmm.predict_proba(X, mixture._replace(weights=np.full(K, 1 / K)))
    np.testing.assert_allclose(equal, 1 / K, rtol=4 * EPS)


@every_kind
def test_a_row_beyond_all_squares_has_density_zero(kind):
    mixture = start(data(), kind=kind)
    assert gmm.score_samples(np.array([[1e200, 0.0]]), mixture).tolist() == [-np.inf]


# A covariance that is not positive definite


@every_kind
def test_weights_are_normalised_where_no_covariance_is(kind):
    X = data(N=4, D=5, K=2)  # of fewer rows than features, so full and tied covariances are singular
    resp = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]])
    w = np.array([1.0, 3.0, 0.5, 2.0])
    for sample_weight in (None, w):
        new = gmm.m_step(X, resp, covariance_type=kind, sample_weight=sample_weight)
        N_k = resp.T @ (np.ones(4) if sample_weight is None else w)
        np.testing.assert_allclose(new.weights, N_k / N_k.sum(), rtol=4 * EPS)
        first = start(X, K=2, kind=kind)
        first.covariances[...] = np.eye(5) if kind in ("full", "tied") else 1
        new, _ = gmm.em_step(X, first, sample_weight=sample_weight)
        assert new.weights.sum() == pytest.approx(1, abs=4 * EPS)


def test_a_tied_covariance_that_is_nan_leaves_weights_that_sum_to_one():
    X = data(N=6, D=3)
    first = start(X, kind="tied")
    first.means[1] = 1e9  # without rows: weight 0
    first.covariances[:] = np.eye(3)
    new, _ = gmm.em_step(X, first)
    assert new.weights[1] == 0
    assert new.weights.sum() == pytest.approx(1, abs=4 * EPS)
