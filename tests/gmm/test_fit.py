"""fastvae.gmm against scikit-learn, NumPy and the theorems of EM, by the reference and by kernels."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from fastvae import Status, gmm

from .mixtures import EPS, KINDS, close, data, dense, identical, numbers, one_of, rounding, start

every_kind = pytest.mark.parametrize("kind", KINDS)
every_init = pytest.mark.parametrize("init", ["kmeans", "k-means++", "random", "random_from_data"])
pytestmark = pytest.mark.usefixtures("each_backend")


def precisions(mixture):
    kind, covariances = mixture.covariance_type, mixture.covariances
    return np.linalg.inv(covariances) if kind in ("full", "tied") else 1 / covariances


def scikit_learn(X, first, **options):
    """The fit of scikit-learn from the same start."""
    weights, means, _, kind = first
    model = GaussianMixture(len(weights), covariance_type=kind, **options)
    return model.set_params(weights_init=weights, means_init=means, precisions_init=precisions(first)).fit(X)


# EM from a given start


@every_kind
@pytest.mark.parametrize("reg_covar", [1e-6, 0.1])
def test_a_fit_from_the_same_start_matches_scikit_learn(kind, reg_covar):
    X, first = data(D=3), start(data(D=3), kind=kind)
    model = scikit_learn(X, first, reg_covar=reg_covar, max_iter=1000)

    def fit_to(X):
        return gmm.fit(X, 3, covariance_type=kind, init=first, reg_covar=reg_covar, max_iter=1000)

    fit, budget = fit_to(X), rounding(fit_to, X)
    assert fit.n_iter == model.n_iter_ > 5
    assert fit.converged
    assert fit.status == Status.CONVERGED
    close(fit.mixture[:3], (model.weights_, model.means_, model.covariances_), budget)
    close([fit.lower_bounds[:-1]], [np.array(model.lower_bounds_)], budget[4:])
    close([fit.log_likelihood, fit.lower_bounds[-1]], [120 * model.score(X), model.score(X)], budget[3:])


def test_iterations_end_at_max_iter_without_a_warning():
    X, first = data(), start(data())
    with pytest.warns(ConvergenceWarning):
        model = scikit_learn(X, first, max_iter=3)
    fit = gmm.fit(X, 3, init=first, max_iter=3)
    assert (fit.n_iter, fit.converged, fit.status) == (3, False, Status.MAX_ITER)
    close([fit.mixture.means], [model.means_], [1e3 * EPS])  # three steps on numbers of order 1
    none = gmm.fit(X, 3, init=first, max_iter=0)
    assert (none.n_iter, none.converged, none.status) == (0, False, Status.MAX_ITER)
    for got, given_ in zip(none.mixture[:3], first[:3], strict=True):
        # shifted, and back
        assert np.abs(got - given_).max() <= 2 * EPS * np.abs(given_).max() + EPS * np.abs(X).max()
    assert none.lower_bounds.shape == (1,)


@every_kind
def test_the_log_likelihood_is_that_of_the_parameters_returned(kind):
    X = data(batch=(2,))
    w = np.random.default_rng(1).uniform(0, 2, size=(2, 120))
    fit = gmm.fit(X, 3, covariance_type=kind, sample_weight=w, seed=0)
    scores = gmm.score_samples(X, fit.mixture)
    allowed = 120 * EPS * (w * np.abs(scores)).sum(-1)
    assert (np.abs(fit.log_likelihood - (w * scores).sum(-1)) <= allowed).all()
    last = fit.lower_bounds[np.arange(2), fit.n_iter]
    assert (np.abs(last * w.sum(-1) - fit.log_likelihood) <= allowed).all()


@every_kind
def test_integer_weights_match_repeated_rows(kind):
    X = data(N=60)
    w = np.arange(60) % 4  # 0 (row absent) to 3, and integers
    rows = np.repeat(np.arange(60), w)
    first = start(X, kind=kind)

    def fit_to(X, **options):
        return gmm.fit(X, 3, covariance_type=kind, init=first, **options)

    budget = rounding(fit_to, X[rows])
    fit, want = fit_to(X, sample_weight=w), fit_to(X[rows])
    assert fit.n_iter == want.n_iter
    close(numbers(fit), numbers(want), budget)


@every_kind
def test_a_batch_is_a_loop_bit_for_bit(kind):
    X = data(N=50, batch=(2, 3))
    first = start(X, kind=kind)
    w = np.random.default_rng(0).uniform(size=50)
    whole = gmm.fit(X, 3, covariance_type=kind, init=first, sample_weight=w)  # [N], the same for all problems
    assert len(set(whole.n_iter.ravel())) > 1  # each stops by itself
    assert whole.lower_bounds.shape == (2, 3, whole.n_iter.max() + 1)
    for i in np.ndindex(2, 3):
        want = gmm.fit(X[i], 3, covariance_type=kind, init=one_of(first, i), sample_weight=w)
        n = want.n_iter + 1
        bounds, rest = whole.lower_bounds[i], [t[i].item() for t in whole[3:]]
        got = gmm.MixtureFit(one_of(whole.mixture, i), whole.log_likelihood[i].item(), bounds[:n], *rest)
        identical(got, want)
        assert np.isnan(bounds[n:]).all()


@every_init
def test_random_starts_depend_only_on_seed_problem_and_restart(init):
    X = data(N=40, batch=(3,))
    fit = gmm.fit(X, 3, init=init, seed=7, n_init=2)
    identical(gmm.fit(X, 3, init=init, seed=7, n_init=2), fit)
    others = X.copy()
    others[0] = np.nan
    others[1] *= 2
    again = gmm.fit(others, 3, init=init, seed=7, n_init=2)
    for a, b in zip(numbers(fit)[:4], numbers(again)[:4], strict=True):
        np.testing.assert_array_equal(a[2], b[2])
    alone = gmm.fit(X[0], 3, init=init, seed=7, n_init=2)  # the index of a single problem is 0
    np.testing.assert_array_equal(alone.mixture.means, fit.mixture.means[0])
    same = gmm.fit(np.stack([X[0]] * 6), 3, init="random_from_data", seed=7, max_iter=0)
    assert len(np.unique(same.mixture.means, axis=0)) > 1


def test_none_draws_the_seed_from_torch_and_a_seed_does_not():
    X = data(batch=(4,))
    fits = [gmm.fit(X, 3, init="random_from_data", max_iter=1) for _ in range(2)]
    assert (fits[0].mixture.means != fits[1].mixture.means).any()
    torch.manual_seed(0)
    identical(gmm.fit(X, 3, init="random_from_data", max_iter=1), fits[0])
    state = torch.get_rng_state()
    gmm.fit(X, 3, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


@every_kind
def test_the_best_of_n_init_is_returned(kind):
    X = data(N=80, K=6, batch=(3,))
    last = -math.inf
    history = []
    for n_init in (1, 2, 5):  # more restarts include those of fewer
        fit = gmm.fit(X, 6, covariance_type=kind, init="random_from_data", seed=1, n_init=n_init, reg_covar=1e-2)
        assert (fit.log_likelihood >= last).all()
        last = fit.log_likelihood
        history.append(last)
    assert (history[-1] > history[0]).any()


@given(st.sampled_from(KINDS), st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 4), st.integers(-3, 3))
def test_bounds_never_decrease_without_reg_covar(kind, seed, D, K, exponent):
    X = 10.0**exponent * data(N=60, D=D, K=K, seed=seed)
    w = np.random.default_rng(seed).uniform(size=60)
    fit = gmm.fit(X, K, covariance_type=kind, reg_covar=0, tol=1e-6, sample_weight=w, seed=seed, on_degenerate="status")
    if fit.n_iter:
        size = np.abs(gmm.score_samples(X, fit.mixture)).max() * np.linalg.cond(dense(fit.mixture)).max()
        assert np.diff(fit.lower_bounds).min() >= -60 * EPS * max(size, np.abs(fit.lower_bounds).max())


@given(st.sampled_from(KINDS), st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 4))
def test_the_elbo_is_below_the_log_likelihood_and_equal_at_the_posterior(kind, seed, D, K):
    X = data(N=30, D=D, seed=seed)
    mixture = start(X, K, kind, seed)
    g = np.random.default_rng(seed)
    q, w = g.dirichlet(np.ones(K), size=30), g.uniform(size=30)
    scores = gmm.score_samples(X, mixture)
    log_p = (w * scores).sum()
    joint = np.abs(gmm.e_step(X, mixture).log_resp + scores[:, None])
    # The size of the terms times the number of additions; both sides have the same rounding errors of the densities.
    allowed = (30 + K) * EPS * (w[:, None] * (joint + np.abs(np.log(q, where=q > 0, out=q * 0)))).sum()
    assert gmm.elbo(X, q, mixture, sample_weight=w) <= log_p + allowed
    posterior = gmm.predict_proba(X, mixture)
    assert abs(gmm.elbo(X, posterior, mixture, sample_weight=w) - log_p) <= 10 * D * allowed


@every_kind
def test_one_component_is_the_sample_mean_and_covariance(kind):
    X = data(D=3)
    for w in (None, np.random.default_rng(0).uniform(size=120)):
        fit = gmm.fit(X, 1, covariance_type=kind, reg_covar=0, sample_weight=w)
        full = np.cov(X.T, ddof=0, aweights=w)
        variances = np.diag(full)
        want = {"full": full[None], "tied": full, "diag": variances[None], "spherical": variances.mean()[None]}[kind]
        size = np.abs(X).max()
        close([fit.mixture.means[0]], [np.average(X, axis=0, weights=w)], [120 * EPS * size])
        close([fit.mixture.covariances], [want], [120 * EPS * size**2])
        step = gmm.m_step(X, np.ones((120, 1)), covariance_type=kind, sample_weight=w)
        close(step[:3], fit.mixture[:3], [120 * EPS * size**2] * 3)
        assert fit.n_iter == 2  # the first M-step reaches the optimum, the second detects it


# Equivariance and accuracy


@every_kind
@pytest.mark.parametrize(("dtype", "offset", "bits"), [(np.float64, 1e8, 20), (np.float32, 1e3, 10)])
def test_an_offset_costs_only_the_rounding_of_the_means(kind, dtype, offset, bits):
    X = np.round(data() * 2.0**bits) / 2.0**bits  # on a grid on which adding the offset is exact
    there = (X + offset).astype(dtype)
    assert (there.astype(float) - offset == X).all()

    def fit_to(X):
        return gmm.fit(X, 3, covariance_type=kind, seed=0)

    here, budget = fit_to(X), rounding(fit_to, X)
    got = fit_to(there)
    eps = np.finfo(dtype).eps
    weights, means, covariances, log_likelihood, bounds = numbers(got)
    assert got.n_iter == here.n_iter
    rounded = [eps * np.abs(t).max() for t in (weights, means, covariances)]  # of results in this dtype
    budget = [a + b for a, b in zip(budget, [*rounded, 0, 0], strict=True)]
    close((weights, means.astype(float) - offset, covariances, log_likelihood, bounds), numbers(here), budget)


@every_kind
def test_order_and_units_do_not_matter(kind):
    X = data()
    first = start(X, kind=kind)

    def fit_to(X, first=first):
        return gmm.fit(X, 3, covariance_type=kind, init=first, reg_covar=0)

    fit, budget = fit_to(X), rounding(fit_to, X)
    rows = np.random.default_rng(0).permutation(120)
    close(numbers(fit_to(X[rows])), numbers(fit), budget)

    turn = np.array([2, 0, 1])

    def transformed(mixture):
        weights, means, covariances, _ = mixture
        return gmm.Mixture(weights[turn], means[turn], covariances if kind == "tied" else covariances[turn], kind)

    other = fit_to(X, transformed(first))
    close(numbers(other), numbers(fit._replace(mixture=transformed(fit.mixture))), budget)

    c = 2.0**40
    weights, means, covariances, _ = first
    scaled = fit_to(c * X, gmm.Mixture(weights, c * means, c**2 * covariances, kind))
    nats = 2 * np.log(c)  # a density is per unit of volume, here D = 2
    back = gmm.Mixture(scaled.mixture.weights, scaled.mixture.means / c, scaled.mixture.covariances / c**2, kind)
    got = gmm.MixtureFit(back, scaled.log_likelihood + 120 * nats, scaled.lower_bounds + nats, *scaled[3:])
    budget[3] += 120 * 120 * EPS * nats
    budget[4] = budget[4] + 120 * EPS * nats
    assert scaled.n_iter == fit.n_iter
    close(numbers(got), numbers(fit), budget)


# What cannot be fitted


def degenerate_batch():
    """Two good problems, and between them one with NaN, one with equal rows, one with two rows of positive weight."""
    X = data(N=40, batch=(5,))
    w = np.ones((5, 40))
    X[1, 7, 1] = np.nan
    X[2] = X[2, 0]
    w[3, 2:] = 0
    return X, w


@every_kind
@pytest.mark.parametrize("on_degenerate", [None, "status", "rescue"])
def test_a_bad_problem_does_not_affect_the_others(kind, on_degenerate):
    X, w = degenerate_batch()
    how: dict[str, Any] = {
        "covariance_type": kind,
        "seed": 0,
        "reg_covar": 0,
        "on_degenerate": on_degenerate,
        "n_init": 2,
    }
    fit = gmm.fit(X, 3, sample_weight=w, **how)
    want = gmm.fit(data(N=40, batch=(5,)), 3, sample_weight=np.ones((5, 40)), **how)
    for i in (0, 4):
        for a, b in zip(numbers(fit)[:4], numbers(want)[:4], strict=True):
            np.testing.assert_array_equal(a[i], b[i])
        assert fit.status[i] == want.status[i] == Status.CONVERGED
    assert fit.status[1:4].tolist() == [Status.NONFINITE, Status.SINGULAR, Status.TOO_FEW_ROWS]
    assert fit.status.dtype == fit.n_iter.dtype == np.int64
    assert fit.converged.tolist() == [True, False, False, False, True]
    for t in numbers(fit):
        assert np.isnan(t[1:4]).all()
    assert fit.n_iter[1:4].tolist() == [0, 0, 0]


def test_a_component_without_rows_stops_a_fit_at_the_parameters_before():
    X = data()
    far = start(X)
    far.means[1] = 1e6
    fit = gmm.fit(X, 3, init=far, on_degenerate="status")
    assert (fit.status, fit.n_iter, fit.converged) == (Status.SINGULAR, 0, False)
    np.testing.assert_array_equal(fit.mixture.covariances, far.covariances)
    assert math.isfinite(fit.log_likelihood)
    assert fit.lower_bounds.tolist() == [pytest.approx(fit.log_likelihood / 120)]


@every_kind
def test_rescue_reinitializes_the_component(kind):
    X = data()
    far = start(X, kind=kind)
    far.means[1] = 1e6
    fit = gmm.fit(X, 3, covariance_type=kind, init=far, on_degenerate="rescue", max_iter=1000)
    assert fit.status == Status.CONVERGED | Status.RESCUED
    assert fit.mixture.weights.min() > 0.01
    assert fit.log_likelihood > gmm.score_samples(X, far).sum()


def test_rescue_of_a_component_that_shrinks_onto_one_row():
    X = np.concatenate([data(N=100, K=2), [[100.0, 100.0]]])
    first = start(X)
    first.means[2] = 100
    first.covariances[:] = np.eye(2)
    assert gmm.fit(X, 3, init=first, reg_covar=0, on_degenerate="status").status == Status.SINGULAR
    fit = gmm.fit(X, 3, init=first, reg_covar=0, on_degenerate="rescue", max_iter=1000)
    assert fit.status & Status.RESCUED
    assert np.isfinite(fit.mixture.means).all()


def test_restarts_that_do_not_degenerate_are_preferred():
    X = np.broadcast_to(data(N=12, K=2), (10, 12, 2))  # four rows per component: many starts collapse onto two
    how: dict[str, Any] = {"init": "random", "seed": 0, "reg_covar": 0, "max_iter": 200, "tol": 1e-6}
    one, more = gmm.fit(X, 3, **how), gmm.fit(X, 3, n_init=4, **how)
    sound = [(f.status & Status.SINGULAR) == 0 for f in (one, more)]
    assert 0 < sound[0].sum() < 10
    assert (sound[1] >= sound[0]).all()
    assert sound[1].sum() > sound[0].sum()
