"""Results for a row do not depend on other rows, such as rows far away or of weight 0."""

from typing import Any

import numpy as np
import pytest
import torch

from fastvae import Status, gmm, reference

from .mixtures import EPS, KINDS, as_torch, close, data, identical, start

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
def test_far_rows_in_front_do_not_affect_the_others(name, far, kind, each_backend):
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
def test_an_m_step_loses_no_accuracy_to_far_rows_without_component(kind, far, each_backend):
    X, resp = data(N=300), np.eye(3)[np.arange(305) % 3]
    resp[:5] = 0
    mixed = np.concatenate([np.full((5, 2), far), X])
    got, want = (gmm.m_step(x, r, covariance_type=kind) for x, r in ((mixed, resp), (X, resp[5:])))
    close(got[:3], want[:3], [300 * EPS * np.abs(X).max() ** 2] * 3)


@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])  # a tied covariance includes the far rows
@pytest.mark.parametrize("far", [1e8, 1e12])
def test_a_fit_loses_no_accuracy_to_far_rows_in_front(kind, far, each_backend):
    X = data(N=300)
    strays = far * (1 + 0.1 * np.random.default_rng(1).normal(size=(6, 2)))
    near, first = start(X, kind=kind), start(X, K=4, kind=kind)
    first.means[:3], first.means[3] = near.means, strays.mean(0)
    first.covariances[3] *= far**2
    how: dict[str, Any] = {"covariance_type": kind, "reg_covar": 0, "tol": 0, "max_iter": 10}
    # Without the far rows and their component, the others take the same steps.
    first.weights[:] = [*near.weights * 300 / 306, 6 / 306]
    got = gmm.fit(np.concatenate([strays, X]), 4, init=first, **how).mixture
    want = gmm.fit(X, 3, init=near, **how).mixture
    np.testing.assert_allclose(got.weights[:3] * 306 / 300, want.weights, rtol=1e-9)
    np.testing.assert_allclose(got.means[:3], want.means, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got.covariances[:3], want.covariances, rtol=1e-9, atol=1e-9)


# Rows of weight 0

NOTHING = [np.nan, -np.inf, 1e308]
every_nothing = pytest.mark.parametrize("nothing", NOTHING)


def with_ignored_rows(X, nothing, every=4):
    """X and weights, and both again with rows of weight 0 in front, between and after the rows."""
    w = np.random.default_rng(0).uniform(0.5, 2, size=X.shape[:-1])
    out = np.arange(X.shape[-2]) % every == 0
    spoiled = X.copy()
    spoiled[..., out, :] = nothing
    w[..., out] = 0
    return np.where(out[:, None], 0.0, X), spoiled, w


@every_kind
@every_nothing
@pytest.mark.parametrize("D", [1, 2, 11])
def test_steps_ignore_rows_of_weight_0(kind, nothing, D, each_backend):
    clean, spoiled, w = with_ignored_rows(data(N=120, D=D) + 5.0, nothing)
    mixture = start(clean, kind=kind)
    step, clean_step = (gmm.em_step(X, mixture, sample_weight=w) for X in (spoiled, clean))
    for a, b in zip((*step[0][:3], step[1]), (*clean_step[0][:3], clean_step[1]), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()
    resp = np.exp(gmm.e_step(spoiled, mixture).log_resp)  # NaN where the row is NaN
    got, want = (
        gmm.m_step(X, r, covariance_type=kind, sample_weight=w)
        for X, r in ((spoiled, resp), (clean, np.nan_to_num(resp)))
    )
    for a, b in zip(got[:3], want[:3], strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()
    resp = gmm.predict_proba(clean, mixture)
    resp[w == 0] = nothing
    for function in (gmm.aic, gmm.bic, lambda X, m, **o: gmm.elbo(X, resp, m, **o)):
        got, want = (function(X, mixture, sample_weight=w) for X in (spoiled, clean))
        assert got == want
        assert np.isfinite(got)


@every_kind
@pytest.mark.parametrize("nothing", [np.nan, *(pytest.param(v, marks=pytest.mark.long) for v in NOTHING[1:])])
@pytest.mark.parametrize("init", ["kmeans", "k-means++", "random", "random_from_data", "a mixture"])
def test_a_fit_ignores_rows_of_weight_0(kind, nothing, init, each_backend):
    clean, spoiled, w = with_ignored_rows(data(N=120, D=2, batch=(2,)) + 5.0, nothing)
    how: dict[str, Any] = {"covariance_type": kind, "seed": 0, "sample_weight": w, "max_iter": 20, "n_init": 2}
    how |= {"init": init} if init != "a mixture" else {"init": start(clean, kind=kind), "n_init": 1}
    identical(gmm.fit(spoiled, 3, **how), gmm.fit(clean, 3, **how))
    one = {**how, "sample_weight": w[0], **({"init": start(clean[0], kind=kind)} if init == "a mixture" else {})}
    identical(gmm.fit(spoiled[0], 3, **one), gmm.fit(clean[0], 3, **one))


@pytest.mark.parametrize("nothing", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fit_of_many_rows_or_of_chunks_ignores_rows_of_weight_0(nothing, dtype, each_backend):
    clean, spoiled, w = with_ignored_rows(data(N=5000, D=3).astype(dtype), nothing, every=3)
    clean = clean.astype(dtype)
    how: dict[str, Any] = {"seed": 0, "sample_weight": w, "max_iter": 3}
    want = gmm.fit(clean, 3, **how)
    identical(gmm.fit(spoiled, 3, **how), want)
    chunks = gmm.fit(lambda: [spoiled[:777], spoiled[777:]], 3, **how)
    identical(chunks, want)
    found = gmm.sweep(spoiled, [1, 3], sample_weight=w, seed=0, max_iter=3)
    assert np.isfinite(found.bic).all()


def test_centers_without_rows_do_not_move_to_rows_of_weight_0(each_backend):
    clean, spoiled, w = with_ignored_rows(np.repeat([[0.0], [1.0], [5.0]], 40, axis=0), np.inf)
    how: dict[str, Any] = {"sample_weight": w, "on_degenerate": "rescue", "reg_covar": 1e-3, "max_iter": 5}
    for seed in range(5):
        identical(gmm.fit(spoiled, 6, seed=seed, **how), gmm.fit(clean, 6, seed=seed, **how))


def test_rows_of_positive_weight_must_be_finite():
    _, spoiled, w = with_ignored_rows(data(N=40), np.nan)
    w[4] = 1.0
    with pytest.raises(ValueError, match=r"^X must be finite, got nan at \[4, 0\]$"):
        gmm.fit(spoiled, 3, sample_weight=w)
    with pytest.raises(ValueError, match=r"^X must be finite, got nan at \[4, 0\]$"):
        gmm.fit(lambda: [spoiled[:3], spoiled[3:]], 3, sample_weight=w)
    many = gmm.fit(np.stack([spoiled, spoiled]), 3, sample_weight=np.stack([w, np.where(np.arange(40) == 4, 0, w)]))
    assert many.status[0] == Status.NONFINITE
    assert many.status[1] & Status.NONFINITE == 0


@every_kind
def test_the_specification_and_its_gradients_ignore_rows_of_weight_0(kind):
    clean, spoiled, w = (torch.tensor(t) for t in with_ignored_rows(data(N=40), np.nan))
    mixture, resp = as_torch(start(clean.numpy(), kind=kind)), torch.rand(40, 3, dtype=torch.float64)
    bad = torch.where((w == 0)[:, None], np.nan, resp)
    values = []
    for X, r in ((spoiled, bad), (clean, resp)):
        leaves = [t.clone().requires_grad_() for t in (X, r, mixture.weights, mixture.means)]
        m = mixture._replace(weights=leaves[2], means=leaves[3])
        new, total = reference.gmm.em_step(leaves[0], m, sample_weight=w)
        other = reference.gmm.m_step(leaves[0], leaves[1], covariance_type=kind, sample_weight=w)
        bound = reference.gmm.elbo(leaves[0], leaves[1], m, sample_weight=w)
        log_l = reference.gmm.log_likelihood(leaves[0], m, sample_weight=w)
        found = [*new[:3], total, *other[:3], bound, log_l]
        gradients = torch.autograd.grad(sum(t.sum() for t in found), leaves)
        values.append([*found, *gradients])
    for a, b in zip(*values, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert a.isfinite().all()
