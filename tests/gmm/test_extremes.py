"""Mixtures at the limits of float64 and of well-posedness: far rows, singular covariances, huge weights."""

import numpy as np
import pytest
import torch

from fastvae import Status, gmm

from .mixtures import EPS, KINDS, as_torch, data, start

every_kind = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.usefixtures("each_backend")


# Rows far from all components


@every_kind
@pytest.mark.parametrize("far", [1e3, 1e5, 1e8, 1e13, 1e100, 1e150])
def test_responsibilities_of_far_rows_sum_to_one(kind, far):
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
    if far <= 1e3:  # beyond, log pi is lost to rounding in the log density
        np.testing.assert_allclose(got, [weights, weights], rtol=1e-8)
    equal = gmm.predict_proba(X, mixture._replace(weights=np.full(K, 1 / K)))
    np.testing.assert_allclose(equal, 1 / K, rtol=4 * EPS)


@every_kind
def test_a_row_whose_square_overflows_has_density_zero(kind):
    mixture = start(data(), kind=kind)
    assert gmm.score_samples(np.array([[1e200, 0.0]]), mixture).tolist() == [-np.inf]


# A covariance that is not positive definite


@every_kind
def test_weights_are_normalised_without_a_valid_covariance(kind):
    X = data(N=4, D=5, K=2)  # fewer rows than features, so full and tied covariances are singular
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


# Sample weights of any size


LARGE_UNITS = [2.0**957, 1e288, 2.0**1010, 2.0**-900, 1e-300, 2.0**-1040]  # of weights from 0.25 to 2


def by_weights(unit, batch=()):
    """Rows, and weights in exactly that unit; in a batch only for the second problem, else of order 1."""
    X = data(N=60, batch=batch)
    w = np.random.default_rng(0).integers(1, 9, size=(*batch, 60)) / 4.0
    units = np.full((*batch, 1), unit)
    if batch:
        units[np.arange(batch[0]) != 1] = 1
    return X, w, units


@every_kind
@pytest.mark.parametrize("unit", LARGE_UNITS)
@pytest.mark.parametrize(
    "init", ["kmeans", "random", *(pytest.param(s, marks=pytest.mark.long) for s in ("k-means++", "random_from_data"))]
)
def test_a_fit_does_not_depend_on_the_unit_of_its_weights(kind, unit, init):
    X, w, units = by_weights(unit, batch=(3,))
    how = {"covariance_type": kind, "init": init, "seed": 0, "max_iter": 10}
    got, want = (gmm.fit(X, 3, sample_weight=v, **how) for v in (w * units, w))
    np.testing.assert_array_equal(got.status, want.status)
    assert (want.status & Status.SINGULAR == 0).all()
    for a, b in zip((*got.mixture[:3], got.lower_bounds), (*want.mixture[:3], want.lower_bounds), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    np.testing.assert_allclose(got.log_likelihood, want.log_likelihood * units[:, 0], rtol=1e-12)
    one = gmm.fit(X[1], 3, sample_weight=w[1] * unit, **(how | {"init": start(X[1], kind=kind)}))
    assert np.isfinite(one.log_likelihood)


@every_kind
@pytest.mark.parametrize("unit", LARGE_UNITS)
def test_steps_do_not_depend_on_the_unit_of_their_weights(kind, unit):
    X, w, units = by_weights(unit)
    mixture = start(X, kind=kind)
    resp = gmm.predict_proba(X, mixture)
    got, want = (gmm.em_step(X, mixture, sample_weight=v) for v in (w * units, w))
    other, same = (gmm.m_step(X, resp, covariance_type=kind, sample_weight=v) for v in (w * units, w))
    for a, b in zip((*got[0][:3], *other[:3]), (*want[0][:3], *same[:3]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    np.testing.assert_allclose(got[1], want[1] * unit, rtol=1e-12)
    bound = gmm.elbo(X, resp, mixture, sample_weight=w * units)
    np.testing.assert_allclose(bound, got[1], rtol=1e-12)
    price = np.log(w.sum()) + np.log(unit)
    p, log_l = gmm.n_parameters(mixture), want[1] * unit
    np.testing.assert_allclose(gmm.bic(X, mixture, sample_weight=w * units), p * price - 2 * log_l, rtol=1e-12)
    np.testing.assert_allclose(gmm.aic(X, mixture, sample_weight=w * units), 2 * p - 2 * log_l, rtol=1e-12)


@pytest.mark.parametrize("unit", [2.0**957, 2.0**-900])
def test_gradients_go_through_weights_of_any_unit(unit):
    X, w, _ = by_weights(unit)
    mixture, gradients = as_torch(start(X)), []
    for v in (w * unit, w):
        leaf = torch.tensor(v, requires_grad=True)
        new, total = gmm.em_step(torch.tensor(X), mixture, sample_weight=leaf)
        (of_new,) = torch.autograd.grad(new.means.sum(), leaf, retain_graph=True)
        (of_total,) = torch.autograd.grad(total, leaf)
        gradients.append((of_new, of_total))
    (of_new, of_total), (want_new, want_total) = gradients
    torch.testing.assert_close(of_new * unit, want_new, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(of_total, want_total, rtol=1e-9, atol=0)
    assert want_new.abs().max() > 0


def test_a_sweep_does_not_depend_on_the_unit_of_its_weights():
    X, w, _ = by_weights(1.0)
    got, want = (gmm.sweep(X, [1, 2], sample_weight=v, seed=0) for v in (w * 1e288, w))
    log_l = np.array([fit.log_likelihood for fit in want.fits]) * 1e288
    np.testing.assert_allclose(got.bic, -2 * log_l, rtol=1e-9)
    assert np.isfinite(got.aic).all()


# Weights of a mixture that do not sum to 1

OF_A_MIXTURE = {
    **{
        f.__name__: f
        for f in (gmm.e_step, gmm.em_step, gmm.score_samples, gmm.predict_proba, gmm.predict, gmm.aic, gmm.bic)
    },
    "elbo": lambda X, mixture: gmm.elbo(X, np.full((len(X), 3), 1 / 3), mixture),
    "sample": lambda X, mixture: gmm.sample(mixture, 5),
}


@pytest.mark.parametrize("name", OF_A_MIXTURE)
@pytest.mark.parametrize(
    "weights", [[0.5, 0.5, 0.5], [0.2, 0.3, 0.4999], [0.0, 0.0, 0.0], [-0.5, 1.0, 0.5], [1.0, np.inf, 0.0]]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_that_do_not_sum_to_one_are_refused(name, weights, dtype):
    X = data(N=20)
    mixture = start(X)._replace(weights=np.array(weights, dtype))
    with pytest.raises(ValueError, match=r"^mixture's weights must be >= 0 and sum to 1, got \["):
        OF_A_MIXTURE[name](X, mixture)
    many = start(data(N=20, batch=(2,)))._replace(weights=np.array([[0.2, 0.3, 0.5], weights], dtype))
    if name != "elbo":
        with pytest.raises(
            ValueError, match=r"^mixture's weights must be >= 0 and sum to 1 in mixture \[1\] of the batch, got \["
        ):
            OF_A_MIXTURE[name](X, many)


@pytest.mark.parametrize("name", OF_A_MIXTURE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_that_sum_to_one_up_to_rounding_are_accepted(name, dtype):
    X = data(N=20)
    for seed in range(20):
        weights = np.random.default_rng(seed).dirichlet(np.ones(3)).astype(dtype)
        OF_A_MIXTURE[name](X, start(X)._replace(weights=weights))
        OF_A_MIXTURE[name](X, start(X)._replace(weights=weights.astype(np.float64)))  # from a fit in float32
    OF_A_MIXTURE[name](X, start(X)._replace(weights=np.full(3, np.nan)))  # NaN, as for a problem without a fit


# A reg_covar as large as the data are wide


@every_kind
def test_a_reg_covar_as_large_as_a_variance_warns(kind):
    how = {"covariance_type": kind, "seed": 0}
    X = 1e-8 * data()
    what = "the mean variance of X's features" if kind == "spherical" else "the variance of feature 0 of X"
    variances = X.var(0)
    size = variances.mean() if kind == "spherical" else variances[0]
    said = rf"^reg_covar, 1e-06, is as large as {what}, {size:.3g}, and hides all structure there: scale X, or decrease"
    with pytest.warns(UserWarning, match=said):
        gmm.fit(X, 3, **how)
    found = gmm.fit(X, 3, reg_covar=0, **how)  # no warning: in this suite, warnings are errors
    assert found.status == Status.CONVERGED
    many = data(batch=(2, 2))
    many[1, 0, :, 1] *= 1e-6
    if kind != "spherical":
        with pytest.warns(
            UserWarning, match=r"variance of feature 1 of X, \S+ in problem \[1, 0\] of the batch, and hides"
        ):
            gmm.fit(many, 3, **how)
    else:
        assert (gmm.fit(many, 3, **how).status != Status.SINGULAR).all()
    weights = np.where(np.arange(120) < 60, 1.0, 0.0)
    mixed = np.where(weights[:, None] > 0, X, 1.0)
    with pytest.warns(UserWarning, match=r"reg_covar, 1e-06, is as large as"):
        gmm.fit(mixed, 3, sample_weight=weights, **how)


@every_kind
@pytest.mark.parametrize("offset", [0.0, 0.1, 1e8])
def test_a_constant_feature_does_not_warn(kind, offset):
    X = np.concatenate([data(), np.full((120, 1), offset)], axis=1)
    assert gmm.fit(X, 3, covariance_type=kind, seed=0).converged
    w = np.random.default_rng(0).uniform(size=120)
    assert gmm.fit(X, 3, covariance_type=kind, seed=0, sample_weight=w).converged


def test_a_chunked_fit_warns_too():
    X = 1e-8 * data()
    with pytest.warns(UserWarning, match=r"^reg_covar, 1e-06, is as large as the variance of feature 0 of X"):
        gmm.fit(lambda: [X[:50], X[50:]], 3, seed=0)
