"""Scores, steps of EM and samples of fastvae.gmm: against scikit-learn, in every container, with gradients."""

import math

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from fastvae import Status, gmm

from .mixtures import EPS, KINDS, as_numpy, as_torch, close, data, dense, identical, one_of, start

every_kind = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.usefixtures("each_backend")


def fitted_model(mixture):
    """A scikit-learn estimator with these parameters."""
    model = GaussianMixture(len(mixture.weights), covariance_type=mixture.covariance_type)
    model.weights_, model.means_, model.covariances_, _ = mixture
    if mixture.covariance_type in ("full", "tied"):  # upper triangular, P = U U'
        model.precisions_cholesky_ = np.swapaxes(np.linalg.inv(np.linalg.cholesky(mixture.covariances)), -1, -2)
    else:
        model.precisions_cholesky_ = 1 / np.sqrt(mixture.covariances)
    return model


@every_kind
def test_scores_match_scikit_learn(kind):
    X = data(D=3)
    mixture = gmm.fit(X, 3, covariance_type=kind, seed=0).mixture
    model = fitted_model(mixture)
    scores = gmm.score_samples(X, mixture)
    allowed = 50 * EPS * np.abs(scores).max() * np.linalg.cond(dense(mixture)).max()
    close([scores, gmm.predict_proba(X, mixture)], [model.score_samples(X), model.predict_proba(X)], [allowed] * 2)
    close([np.exp(gmm.e_step(X, mixture).log_resp)], [model.predict_proba(X)], [allowed])
    np.testing.assert_array_equal(gmm.predict(X, mixture), model.predict(X))
    assert gmm.n_parameters(mixture) == model._n_parameters()
    close([gmm.aic(X, mixture), gmm.bic(X, mixture)], [model.aic(X), model.bic(X)], [240 * allowed] * 2)
    w = np.arange(120) % 4
    rows = np.repeat(np.arange(120), w)
    for criterion in (gmm.aic, gmm.bic):
        got, want = criterion(X, mixture, sample_weight=w), criterion(X[rows], mixture)
        close([got], [want], [240 * allowed])


@every_kind
def test_two_half_steps_are_one_step_and_a_fit_of_one_iteration(kind):
    X, w = data(D=3), np.random.default_rng(0).uniform(size=120)
    first = start(X, kind=kind)
    new, before = gmm.em_step(X, first, sample_weight=w, reg_covar=0.1)
    allowed = 120 * EPS * np.abs(X).max() ** 2 * np.linalg.cond(dense(first)).max()
    step = gmm.e_step(X, first)
    half = gmm.m_step(X, np.exp(step.log_resp), covariance_type=kind, sample_weight=w, reg_covar=0.1)
    close(half[:3], new[:3], [allowed] * 3)
    close([(w * step.log_prob).sum()], [before], [120 * allowed])
    fit = gmm.fit(X, 3, covariance_type=kind, init=first, max_iter=1, sample_weight=w, reg_covar=0.1)
    close(fit.mixture[:3], new[:3], [allowed] * 3)
    close([fit.lower_bounds[0]], [before / w.sum()], [120 * allowed])


@every_kind
def test_absent_components_bad_rows_and_bad_covariances(kind):
    X = data(N=20, batch=(2,))
    mixture = start(X, kind=kind)
    mixture.weights[0] = [0.5, 0.5, 0.0]
    mixture.covariances[1] *= -1
    X[0, 3] = np.nan
    step = gmm.e_step(X, mixture)
    finite = np.delete(np.arange(20), 3)
    assert (step.log_resp[0, finite, 2] == -math.inf).all()
    assert np.isfinite(step.log_prob[0, finite]).all()
    assert np.isnan(step.log_prob[0, 3])
    assert np.isnan(step.log_prob[1]).all()
    labels = gmm.predict(X, mixture)
    assert labels[0, 3] == -1
    assert (labels[1] == -1).all()
    assert set(labels[0, finite]) == {0, 1}


@every_kind
def test_draws_have_the_moments_of_the_mixture(kind):
    X = data(D=3, batch=(2,))
    mixture = start(X, kind=kind)
    n = 20_000
    drawn, labels = gmm.sample(mixture, n, seed=0)
    assert drawn.shape == (2, n, 3)
    assert labels.shape == (2, n)
    covariances = dense(mixture)
    for b in range(2):
        for k in range(3):
            rows, w = drawn[b, labels[b] == k], mixture.weights[b, k]
            Sigma = covariances[b, k]
            std = np.sqrt(np.diag(Sigma) / len(rows))
            assert abs(len(rows) / n - w) < 5 * math.sqrt(w * (1 - w) / n)
            assert (np.abs(rows.mean(0) - mixture.means[b, k]) < 5 * std).all()
            spread = np.sqrt(
                (Sigma**2 + np.outer(np.diag(Sigma), np.diag(Sigma))) / len(rows)
            )  # of a sample covariance
            assert (np.abs(np.cov(rows.T) - Sigma) < 5 * spread).all()
    again, _ = gmm.sample(mixture, n, seed=0)
    np.testing.assert_array_equal(again, drawn)
    np.testing.assert_array_equal(gmm.sample(one_of(mixture, 0), n, seed=0)[0], drawn[0])
    assert (gmm.sample(mixture, 5, seed=1)[0] != drawn[:, :5]).all()


# Containers and dtypes


@every_kind
def test_tensors_in_tensors_out(kind):
    X = data(batch=(2,))
    first = start(X, kind=kind)
    fit = gmm.fit(X, 3, covariance_type=kind, init=first)
    got = gmm.fit(torch.tensor(X, requires_grad=True), 3, covariance_type=kind, init=as_torch(first))
    assert all(type(t) is torch.Tensor and not t.requires_grad for t in (*got.mixture[:3], *got[1:]))
    identical(as_numpy(got), fit)
    Y, mixture = torch.tensor(X), got.mixture
    for function in (gmm.score_samples, gmm.predict_proba, gmm.predict, gmm.aic, gmm.bic):
        want = function(X, fit.mixture)
        got_ = function(Y, mixture)
        assert isinstance(want, np.ndarray)
        assert isinstance(got_, torch.Tensor)
        np.testing.assert_array_equal(got_.numpy(), want, strict=True)
    for a, b in zip(gmm.sample(mixture, 7, seed=0), gmm.sample(fit.mixture, 7, seed=0), strict=True):
        np.testing.assert_array_equal(a.numpy(), b, strict=True)


def test_scalars_of_one_problem_are_python_numbers():
    for X in (data(), torch.tensor(data())):
        fit = gmm.fit(X, 3, seed=0)
        assert [type(t) for t in (fit.log_likelihood, fit.n_iter, fit.converged)] == [float, int, bool]
        assert isinstance(fit.status, Status)
        assert type(fit.lower_bounds) is type(X)
        assert fit.lower_bounds.shape == (fit.n_iter + 1,)


@every_kind
def test_float32_results_are_computed_in_float64(kind):
    X = data().astype(np.float32)
    first = start(X.astype(float), kind=kind)
    fit, want = (gmm.fit(x, 3, covariance_type=kind, init=first) for x in (X, X.astype(float)))
    assert fit.n_iter == want.n_iter
    for a, b in zip(fit.mixture[:3], want.mixture[:3], strict=True):
        assert a.dtype == np.float32
        assert (np.abs(a - b) <= 2 * np.finfo(np.float32).eps * np.abs(b).max()).all()  # rounding of the result
    size = np.abs(want.lower_bounds).max()
    assert np.abs(fit.lower_bounds - want.lower_bounds).max() <= 120 * EPS * size
    assert fit.lower_bounds.dtype == np.float64
    scores, exact = gmm.score_samples(X, want.mixture), gmm.score_samples(X.astype(float), want.mixture)
    assert scores.dtype == gmm.predict_proba(X, want.mixture).dtype == np.float32
    assert (np.abs(scores - exact) <= np.finfo(np.float32).eps * np.abs(exact)).all()
    assert gmm.predict(X, want.mixture).dtype == np.int64
    assert gmm.em_step(X, want.mixture)[1].dtype == np.float64
    assert gmm.sample(fit.mixture, 3)[0].dtype == np.float32


def test_every_memory_layout_and_number_type(tmp_path):
    X = data()
    how = {"init": start(X)}
    want = gmm.fit(X, 3, **how)
    np.save(tmp_path / "X.npy", X)
    aside = np.zeros((120, 5))
    aside[:, ::-2][:, :2] = X
    packed = np.zeros(120, dtype=[("flag", "i1"), ("x", "f8", 2)])
    packed["x"] = X
    fixed = X.copy()
    fixed.flags.writeable = False
    same = {
        "memory map": np.load(tmp_path / "X.npy", mmap_mode="r"),
        "read-only": fixed,
        "columns": np.asfortranarray(X),
        "backwards": X[::-1].copy()[::-1],
        "strided": aside[:, ::-2][:, :2],
        "unaligned": packed["x"],
        "big-endian": X.astype(">f8"),
    }
    for x in same.values():
        assert (x == X).all()
        identical(gmm.fit(x, 3, **how), want)
    identical(
        gmm.fit(torch.tensor(np.asfortranarray(X)).mT.contiguous().mT, 3, **how)._replace(mixture=want.mixture), want
    )
    counts = np.round(X * 10)
    for dtype in (np.int8, np.int64, np.uint8, np.float64):
        x = (counts - counts.min()).astype(dtype)
        fit = gmm.fit(x, 2, seed=0)
        assert fit.mixture.means.dtype == np.float64
        identical(fit, gmm.fit(x.astype(float), 2, seed=0))
    flags = X > 0
    identical(gmm.fit(flags, 1, seed=0), gmm.fit(flags.astype(float), 1, seed=0))


def test_batch_dims_broadcast():
    X, mixtures = data(), start(data(batch=(2, 4)))  # one X, eight mixtures
    scores = gmm.score_samples(X, mixtures)
    assert scores.shape == (2, 4, 120)
    resp = gmm.predict_proba(X, mixtures)
    bound = gmm.elbo(X, resp, mixtures)
    fitted = gmm.m_step(X, resp)
    for i in np.ndindex(2, 4):
        np.testing.assert_array_equal(gmm.score_samples(X, one_of(mixtures, i)), scores[i])
        np.testing.assert_array_equal(gmm.m_step(X, resp[i]).means, fitted.means[i])
        assert abs(bound[i] - scores[i].sum()) <= 120 * 120 * EPS * np.abs(scores[i]).max()
    outer = gmm.score_samples(data(batch=(2, 1)), start(data(batch=(4,))))
    for i, j in np.ndindex(2, 4):
        alone = gmm.score_samples(data(batch=(2, 1))[i, 0], one_of(start(data(batch=(4,))), j))
        np.testing.assert_array_equal(alone, outer[i, j])
    many = data(batch=(2, 4))
    shared = start(data())  # one start for eight problems
    fit = gmm.fit(many, 3, init=shared)
    identical(
        gmm.fit(many[1, 2], 3, init=shared)._replace(lower_bounds=0),
        gmm.MixtureFit(
            one_of(fit.mixture, (1, 2)), fit.log_likelihood[1, 2].item(), 0, *(t[1, 2].item() for t in fit[3:])
        ),
    )


def test_empty_batches_and_no_rows():
    nothing = gmm.fit(np.zeros((0, 9, 2)), 3)
    assert nothing.mixture.means.shape == (0, 3, 2)
    assert nothing.lower_bounds.shape == (0, 1)
    assert nothing.status.shape == (0,)
    mixture = start(data())
    assert gmm.score_samples(np.zeros((0, 2)), mixture).shape == (0,)
    assert gmm.predict_proba(np.zeros((4, 0, 2)), mixture).shape == (4, 0, 3)
    assert gmm.sample(mixture, 0)[0].shape == (0, 2)


@every_kind
def test_steps_and_scores_are_differentiable(kind):
    X, mixture = torch.tensor(data(N=5)), as_torch(start(data(N=5), kind=kind))
    matrix = kind in ("full", "tied")
    root = torch.linalg.cholesky(mixture.covariances) if matrix else mixture.covariances.sqrt()
    w = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    leaves = [t.detach().requires_grad_() for t in (X, mixture.weights, mixture.means, root, w)]

    def values(X, weights, means, root, w):
        m = gmm.Mixture(weights, means, root @ root.mT if matrix else root.square(), kind)
        step = gmm.e_step(X, m)
        new, before = gmm.em_step(X, m, sample_weight=w)
        bound = gmm.elbo(X, step.log_resp.exp(), m, sample_weight=w)
        return gmm.score_samples(X, m), gmm.bic(X, m, sample_weight=w), before, bound, *new[:3]

    assert torch.autograd.gradcheck(values, leaves)
    X32 = leaves[0].detach().float().requires_grad_()
    (gradient,) = torch.autograd.grad(gmm.score_samples(X32, mixture).sum(), X32)
    assert gradient.dtype == torch.float32


def test_a_requested_kernel_does_not_drop_a_gradient():
    X = torch.tensor(data(), requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^backend='numba' does not support gmm: an argument requires grad"):
        gmm.score_samples(X, as_torch(start(data())), backend="numba")
    with torch.no_grad():
        assert not gmm.score_samples(X, as_torch(start(data()))).requires_grad


def test_progress_is_a_bar(capsys):
    gmm.fit(data(), 3, seed=0, progress=True)
    gmm.fit(data(batch=(4,)), 3, seed=0, n_init=2, progress=True)
    bars = capsys.readouterr().err
    assert bars.count("\n") == 2
    assert bars.startswith("\rgmm.fit:")
