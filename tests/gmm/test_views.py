"""Mixtures read tensors whose memory does not hold their values: lazily negated ones, and zeros without memory."""

import numpy as np
import pytest
import torch

from fastvae import gmm

from ..views import negated, zero
from .mixtures import KINDS, as_torch, data, start

every_kind = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.usefixtures("each_backend")


def inputs(kind, batch=()):
    """Rows, weights of rows, responsibilities and a mixture."""
    X = data(N=60, D=3, batch=batch)
    g = np.random.default_rng(0)
    w, resp = g.uniform(size=(*batch, 60)), g.dirichlet(np.ones(3), size=(*batch, 60))
    return *(torch.tensor(t) for t in (X, w, resp)), as_torch(start(X, kind=kind))


def views(mixture):
    """The mixture, of negated tensors."""
    weights, means, covariances = (negated(t) for t in mixture[:3])
    assert weights.is_neg()
    return gmm.Mixture(weights, means, covariances, mixture.covariance_type)


def same(got, want):
    """The same bits in all that a function returns."""
    pairs = zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]
    for a, b in pairs:
        if isinstance(a, tuple):
            same(a, b)
        elif isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        else:
            assert a == b


@every_kind
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_negated_tensors_are_read_with_the_right_sign(kind, batch, dtype):
    X, w, resp, mixture = inputs(kind, batch)
    X = X.to(dtype)
    Y, v, q, m = negated(X), negated(w), negated(resp), views(mixture)
    assert Y.is_neg()
    for function in (gmm.score_samples, gmm.predict_proba, gmm.predict, gmm.e_step):
        same(function(Y, m), function(X, mixture))
    for function in (gmm.aic, gmm.bic, gmm.em_step):
        same(function(Y, m, sample_weight=v), function(X, mixture, sample_weight=w))
    how = {"covariance_type": kind, "seed": 0, "max_iter": 5}
    same(
        gmm.m_step(Y, q, covariance_type=kind, sample_weight=v),
        gmm.m_step(X, resp, covariance_type=kind, sample_weight=w),
    )
    same(gmm.elbo(Y, q, m, sample_weight=v), gmm.elbo(X, resp, mixture, sample_weight=w))
    same(gmm.fit(Y, 3, sample_weight=v, **how), gmm.fit(X, 3, sample_weight=w, **how))
    same(gmm.fit(Y, 3, init=m, **how), gmm.fit(X, 3, init=mixture, **how))
    same(gmm.sample(m, 5, seed=0), gmm.sample(mixture, 5, seed=0))
    if not batch:
        same(gmm.fit(lambda: Y.split(17), 3, **how), gmm.fit(X, 3, **how))
    swept, want = (gmm.sweep(x, [1, 3], sample_weight=u, seed=0, max_iter=5) for x, u in ((Y, v), (X, w)))
    same(swept.bic, want.bic)


def test_zeros_without_memory_are_zeros():
    X, w, _, mixture = inputs("spherical")
    nothing = mixture._replace(means=zero(mixture.means))
    want = mixture._replace(means=torch.zeros_like(mixture.means))
    same(gmm.score_samples(X, nothing), gmm.score_samples(X, want))
    same(gmm.score_samples(zero(X), mixture), gmm.score_samples(torch.zeros_like(X), mixture))
    with pytest.raises(ValueError, match="sample_weight must be positive for at least n_components = 3 rows, got 0"):
        gmm.fit(X, 3, sample_weight=zero(w))
