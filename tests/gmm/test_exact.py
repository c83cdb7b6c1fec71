"""One step of EM against the same step in extended precision (64 bits): the errors of float64 in each backend."""

import numpy as np
import pytest

from fastvae import gmm
from fastvae_kernels.numba.language.target import LANES_REGISTER

from .mixtures import EPS, KINDS, data, dense, start

exact = np.longdouble
pytestmark = pytest.mark.skipif(
    bool(np.finfo(exact).eps > 2e-19), reason="no type of this machine is wider than float64"
)


def cholesky(V):
    L = np.zeros_like(V)
    for j in range(len(V)):
        L[j, j] = np.sqrt(V[j, j] - L[j, :j] @ L[j, :j])
        L[j + 1 :, j] = (V[j + 1 :, j] - L[j + 1 :, :j] @ L[j, :j]) / L[j, j]
    return L


def whitened(L, e):
    """L^-1 e for columns e."""
    z = np.zeros_like(e)
    for j in range(len(L)):
        z[j] = (e[j] - L[j, :j] @ z[:j]) / L[j, j]
    return z


def em_step(X, mixture, w):
    """Next weights, means and covariances, and the log-likelihood: textbook formulas, every number a longdouble."""
    X, w = X.astype(exact), w.astype(exact)
    weights, means, V = (t.astype(exact) for t in (*mixture[:2], dense(mixture)))
    logits = []
    for k in range(len(weights)):
        L = cholesky(V[k])
        squares = (whitened(L, (X - means[k]).T) ** 2).sum(0)
        constant = (
            np.log(weights[k]) - np.log(L.diagonal()).sum() - X.shape[1] / exact(2) * np.log(2 * np.pi * exact(1))
        )
        logits.append(constant - squares / 2)
    log_p = np.logaddexp.reduce(logits, axis=0)
    r = np.exp(np.stack(logits) - log_p) * w  # [K, N]
    n = r.sum(1)
    means = (r @ X) / n[:, None]
    full = np.stack([(r[k, :, None] * (X - m)).T @ (X - m) for k, m in enumerate(means)])
    variances = np.diagonal(full, axis1=1, axis2=2) / n[:, None]
    covariances = {
        "full": full / n[:, None, None],
        "tied": full.sum(0) / n.sum(),
        "diag": variances,
        "spherical": variances.mean(1),
    }[mixture.covariance_type]
    return n / n.sum(), means, covariances, (w * log_p).sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("D", [2, 7, 11])  # in registers, in blocks of them, in panels
@pytest.mark.parametrize("offset", [0.0, 1e8])  # standard deviations from the origin
@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_is_nearly_as_accurate_as_torch(kind, D, offset, weighted):
    X = data(N=700, D=D, seed=D)  # two tiles, the second cut within a vector
    mixture, X = start(X, kind=kind, seed=D), X + offset
    mixture.means[:] += offset
    w = np.random.default_rng(D).uniform(size=len(X)) if weighted else np.ones(len(X))
    truth = em_step(X, mixture, w)
    errors = {}
    for backend in ("numba", "reference"):
        new, likelihood = gmm.em_step(X, mixture, sample_weight=w if weighted else None, reg_covar=0.0, backend=backend)
        found = *new[:3], likelihood
        errors[backend] = [float(np.abs(a.astype(exact) - b).max()) for a, b in zip(found, truth, strict=True)]
    # torch sums pairwise; a lane adds one row after the other. With N equal numbers in L lanes, the error of an
    # addition is uniform up to half an eps of the sum so far, so that of the total is sqrt(N) / (6 L) eps. The budget
    # is four times that.
    walk = 4 * np.sqrt(len(X)) / (6 * LANES_REGISTER)
    sizes = [float(np.abs(true).max()) for true in truth]
    sizes[2] += float(np.abs(truth[1] - mixture.means).max()) ** 2  # squares are summed about the previous means
    for ours, theirs, size in zip(errors["numba"], errors["reference"], sizes, strict=True):
        assert ours <= 2 * theirs + (2 + walk) * EPS * size
