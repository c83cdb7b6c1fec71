"""Shared by the tests of mixtures: data, initial mixtures, and how much a fit changes if its data are rounded."""

import numpy as np
import torch

from fastvae import gmm

KINDS = ("full", "tied", "diag", "spherical")
EPS = np.finfo(float).eps


def data(N=120, D=2, K=3, batch=(), seed=0):
    """Overlapping blobs, so that EM takes several iterations, without accidental symmetry."""
    g = np.random.default_rng(seed)
    centres = 3 * g.normal(size=(*batch, K, D))
    labels = np.arange(N) % K
    return centres[..., labels, :] + g.normal(size=(*batch, N, D)) * g.uniform(0.5, 1.5, size=(*batch, 1, D))


def start(X, K=3, kind="full", seed=0):
    """Random means of the scale of the data, and covariances equal to that of the data, with the batch dims of X."""
    g = np.random.default_rng(seed)
    *batch, D = X.mean(-2).shape
    residual = X - X.mean(-2, keepdims=True)
    tied = np.swapaxes(residual, -1, -2) @ residual / X.shape[-2]
    variances = np.diagonal(tied, axis1=-2, axis2=-1)
    covariances = {
        "full": np.repeat(tied[..., None, :, :], K, -3),
        "tied": tied,
        "diag": np.repeat(variances[..., None, :], K, -2),
        "spherical": np.repeat(variances.mean(-1)[..., None], K, -1),
    }[kind]
    means = X.mean(-2)[..., None, :] + g.normal(size=(*batch, K, D)) * X.std(-2)[..., None, :]
    return gmm.Mixture(g.dirichlet(np.ones(K) * 5, size=batch), means, covariances, kind)


def dense(mixture):
    """The covariances as K full matrices."""
    _, means, covariances, kind = mixture
    K, D = means.shape[-2:]
    if kind == "tied":
        return np.repeat(covariances[..., None, :, :], K, -3)
    if kind == "full":
        return covariances
    return (covariances if kind == "diag" else np.repeat(covariances[..., None], D, -1))[..., None] * np.eye(D)


def one_of(mixture, index):
    """The mixture of a single problem of a batch."""
    weights, means, covariances, kind = mixture
    return gmm.Mixture(weights[index], means[index], covariances[index], kind)


def as_torch(mixture, dtype=torch.float64):
    """The mixture with tensors."""
    weights, means, covariances = (torch.tensor(t, dtype=dtype) for t in mixture[:3])
    return gmm.Mixture(weights, means, covariances, mixture.covariance_type)


def as_numpy(fit):
    """The fit with arrays instead of tensors."""
    weights, means, covariances = (t.numpy() for t in fit.mixture[:3])
    mixture = gmm.Mixture(weights, means, covariances, fit.mixture.covariance_type)
    return gmm.MixtureFit(mixture, *(t.numpy() for t in fit[1:]))


def numbers(fit):
    """All results of a fit, for comparison."""
    return *fit.mixture[:3], np.asarray(fit.log_likelihood), np.asarray(fit.lower_bounds)


def identical(a, b):
    """The same bits, NaN included."""
    assert a.mixture.covariance_type == b.mixture.covariance_type
    pairs = zip(
        (*numbers(a), a.n_iter, a.converged, a.status), (*numbers(b), b.n_iter, b.converged, b.status), strict=True
    )
    for x, y in pairs:
        np.testing.assert_array_equal(x, y, strict=True)


def rounding(fit_to, X, times=20.0, draws=3):
    """How much rounding may change each result of a fit.

    `times` the largest change when every element of X is changed by one rounding error, plus a few rounding errors of
    the result.
    """
    at = numbers(fit_to(X))
    moved = [0.0] * len(at)
    for seed in range(draws):
        signs = np.random.default_rng(seed).integers(-1, 2, size=X.shape)
        near = numbers(fit_to(X * (1 + EPS * signs)))
        moved = [max(m, np.abs(a - b).max()) for m, a, b in zip(moved, at, near, strict=True)]
    return [times * (m + EPS * np.abs(a).max()) for m, a in zip(moved, at, strict=True)]


def close(got, want, budget):
    """Check each result against its budget; there may be more budgets than results."""
    for a, b, allowed in zip(got, want, budget[: len(got)], strict=True):
        assert np.shape(a) == np.shape(b)
        assert (np.abs(a - b) <= allowed).all(), f"{np.max(np.abs(a - b) / allowed):.2g} of what is allowed"
