"""What a mixture says of rows, and rows drawn from it: `score_samples`, `predict`, `sample`, ... of `fastvae.gmm`."""

from typing import Any

import torch

from .._core.arrays import as_floating, as_output
from .._core.checks import integer
from ..reference.gmm import formulas
from ..reference.gmm import start as reference_start
from ..reference.gmm.formulas import Mixture
from . import _checks as checks


def score_samples(X: Any, mixture: Mixture, *, backend: str = "auto") -> Any:
    """log p(x_n) = log sum_k pi_k N(x_n; mu_k, Sigma_k), ``[*batch, N]`` in the dtype of X, in nats.

    Raises
    ------
    TypeError, ValueError, BackendError
        As `e_step`.

    Notes
    -----
    Equivalent to scikit-learn's ``GaussianMixture.score_samples(X)``, and to
    ``torch.distributions.MixtureSameFamily(...).log_prob(X)``. Source: Bishop (2006), ch. 9.

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> normal = fastvae.gmm.Mixture(np.ones(1), np.zeros((1, 2)), np.ones(1), "spherical")
    >>> fastvae.gmm.score_samples(np.zeros((1, 2)), normal).round(4)
    array([-1.8379])
    """
    data, parameters, kind = checks.rows_and_mixture(X, mixture)
    engine = checks.engine(backend, data.X, *parameters)
    return data.back(engine.e_step(data.X, *parameters, kind, want_log_resp=False)[1])


def predict_proba(X: Any, mixture: Mixture, *, backend: str = "auto") -> Any:
    """p(z=k | x_n) = pi_k N(x_n; mu_k, Sigma_k) / p(x_n), ``[*batch, N, K]`` in the dtype of X.

    Raises
    ------
    TypeError, ValueError, BackendError
        As `e_step`.

    Notes
    -----
    Equivalent to scikit-learn's ``GaussianMixture.predict_proba(X)``. Source: Bishop (2006), ch. 9.

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> m = fastvae.gmm.Mixture(np.array([0.5, 0.5]), np.array([[-1.0], [1.0]]), np.ones(2), "spherical")
    >>> fastvae.gmm.predict_proba(np.array([[0.0], [1.0]]), m).round(4)
    array([[0.5 , 0.5 ], [0.1192, 0.8808]])
    """
    data, parameters, kind = checks.rows_and_mixture(X, mixture)
    log_resp = checks.engine(backend, data.X, *parameters).e_step(data.X, *parameters, kind)[0]
    return data.back(log_resp.exp())


def predict(X: Any, mixture: Mixture, *, backend: str = "auto") -> Any:
    """The most probable component of each row, int64 ``[*batch, N]``; -1 where log p(x_n) is NaN.

    Raises
    ------
    TypeError, ValueError, BackendError
        As `e_step`.

    Notes
    -----
    Equivalent to scikit-learn's ``GaussianMixture.predict(X)``. Source: Bishop (2006), ch. 9.

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> m = fastvae.gmm.Mixture(np.array([0.5, 0.5]), np.array([[-1.0], [1.0]]), np.ones(2), "spherical")
    >>> fastvae.gmm.predict(np.array([[-2.0], [3.0], [np.nan]]), m)
    array([ 0, 1, -1])
    """
    data, parameters, kind = checks.rows_and_mixture(X, mixture)
    engine = checks.engine(backend, data.X, *parameters)
    _, log_prob, labels = engine.e_step(data.X, *parameters, kind, want_log_resp=False, want_labels=True)
    return data.back(labels.masked_fill(log_prob.isnan(), -1))


def sample(mixture: Mixture, n: int, *, seed: int | None = None) -> tuple[Any, Any]:
    """Draw n rows of each mixture: z by its weights, then x = mu_z + L_z eps, with eps ~ N(0, I) and L L' = Sigma_z.

    Parameters
    ----------
    mixture : Mixture
        Of arrays or of tensors; parameters that are NaN give rows that are.
    n : int
    seed : int in [0, 2^63)
        The draws depend on (seed, index of the problem) only. None draws it from torch's generator.

    Returns
    -------
    X : array or tensor ``[*batch, n, D]``, of the dtype of the means
    labels : the same kind, int64 ``[*batch, n]``
        The components the rows come from, in no order.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or shape.

    Notes
    -----
    Equivalent to scikit-learn's ``GaussianMixture.sample(n)``, which sorts the rows by component.
    Source: Bishop (2006), ch. 8 (ancestral sampling).

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> m = fastvae.gmm.Mixture(np.array([0.5, 0.5]), np.array([[-9.0], [9.0]]), np.ones(2), "spherical")
    >>> X, labels = fastvae.gmm.sample(m, 5, seed=0)
    >>> bool(((X[:, 0] > 0) == labels).all())
    True
    """
    parameters, batch = checks.mixture_tensors("mixture", mixture)
    checks.check_weights("mixture", parameters[0])
    kind, n = mixture.covariance_type, integer("n", n, 0)
    flat = Mixture(*checks.flatten(parameters, batch, kind), kind)
    X, labels = reference_start.sample(flat, n, checks.seed_or_drawn(seed))
    dtype = as_floating("mixture's means", mixture.means).dtype
    numpy = not isinstance(mixture.means, torch.Tensor)
    return (
        as_output(X.reshape(batch + X.shape[1:]).to(dtype), numpy),
        as_output(labels.reshape(batch + labels.shape[1:]), numpy),
    )


def n_parameters(mixture: Mixture) -> int:
    """The number of free parameters of one mixture: K - 1 weights, K D for the means, and those of its covariances,

        full K D (D + 1) / 2,    tied D (D + 1) / 2,    diag K D,    spherical K.

    Raises
    ------
    TypeError, ValueError
        For what is no mixture.

    Notes
    -----
    Equivalent to scikit-learn's private ``GaussianMixture._n_parameters()``. Source: Bishop (2006), ch. 9.

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> fastvae.gmm.n_parameters(fastvae.gmm.Mixture(np.ones(2) / 2, np.zeros((2, 3)), np.ones((2, 3)), "diag"))
    13
    """
    K, D = checks.mixture_tensors("mixture", mixture)[0][1].shape[-2:]
    triangle = D * (D + 1) // 2
    shape = {"full": K * triangle, "tied": triangle, "diag": K * D, "spherical": K}[mixture.covariance_type]
    return K - 1 + K * D + shape


def aic(X: Any, mixture: Mixture, *, sample_weight: Any = None, backend: str = "auto") -> Any:
    """Akaike's criterion 2 p - 2 sum_n w_n log p(x_n), p the number of free parameters; ``[*batch]``, lower is better.

    Raises
    ------
    TypeError, ValueError, BackendError
        As `e_step`.

    Notes
    -----
    Equivalent to scikit-learn's ``GaussianMixture.aic(X)``. Source: Akaike (1974).

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> normal = fastvae.gmm.Mixture(np.ones(1), np.zeros((1, 2)), np.ones(1), "spherical")
    >>> round(float(fastvae.gmm.aic(np.zeros((1, 2)), normal)), 4)
    9.6758
    """
    return _criterion(X, mixture, sample_weight, backend, lambda log_n: torch.full_like(log_n, 2.0))


def bic(X: Any, mixture: Mixture, *, sample_weight: Any = None, backend: str = "auto") -> Any:
    """The Bayesian criterion p log N - 2 sum_n w_n log p(x_n), N = sum_n w_n; ``[*batch]``, lower is better.

    Raises
    ------
    TypeError, ValueError, BackendError
        As `e_step`.

    Notes
    -----
    Equivalent to scikit-learn's ``GaussianMixture.bic(X)``. Source: Schwarz (1978).

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> normal = fastvae.gmm.Mixture(np.ones(1), np.zeros((1, 2)), np.ones(1), "spherical")
    >>> round(float(fastvae.gmm.bic(np.zeros((1, 2)), normal)), 4)
    3.6758
    """
    return _criterion(X, mixture, sample_weight, backend, lambda log_n: log_n)


def _criterion(X: Any, mixture: Mixture, sample_weight: Any, backend: str, price: Any) -> Any:
    """What a parameter costs, for log sum_n w_n `[B]`, times their number, less twice the log likelihood."""
    data, parameters, kind = checks.rows_and_mixture(X, mixture)
    w, unit = checks.row_weights(sample_weight, data)
    X = formulas.counted(data.X, w)
    log_prob = checks.engine(backend, X, *parameters, w).e_step(X, *parameters, kind, want_log_resp=False)[1]
    log_n = checks.log_rows(data, w, unit)
    return data.back(price(log_n) * n_parameters(mixture) - 2 * checks.total(log_prob, w) * unit, torch.float64)
