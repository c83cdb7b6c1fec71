"""Evaluating a mixture on rows, and sampling from it: `score_samples`, `predict`, `sample`, ... of `fastvae.gmm`."""

from typing import Any

import torch

from .._core.arrays import as_floating, as_output
from .._core.checks import integer
from ..reference.gmm import formulas
from ..reference.gmm import start as reference_start
from ..reference.gmm.formulas import Mixture
from . import _checks as checks


def score_samples(X: Any, mixture: Mixture, *, backend: str = "auto") -> Any:
    """Log density of each row, log p(x_n) = log sum_k pi_k N(x_n; mu_k, Sigma_k), in nats.

    Parameters
    ----------
    X, mixture, backend
        As in `e_step`.

    Returns
    -------
    array or tensor ``[*batch, N]``
        In the dtype of X.

    Raises
    ------
    TypeError, ValueError, BackendError
        Same as `e_step`.

    Notes
    -----
    Equivalent to scikit-learn's ``GaussianMixture.score_samples(X)``, and to
    ``torch.distributions.MixtureSameFamily(...).log_prob(X)``.

    References
    ----------
    Bishop (2006), ch. 9.

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> normal = fastvae.gmm.Mixture(np.ones(1), np.zeros((1, 2)), np.ones(1), "spherical")
    >>> fastvae.gmm.score_samples(np.zeros((1, 2)), normal).round(4)
    array([-1.8379])
    """
    data, parameters, kind = checks.rows_and_mixture(X, mixture)
    engine = checks.engine(backend, data.X, *parameters)
    return data.to_output(engine.e_step(data.X, *parameters, kind, want_log_resp=False)[1])


def predict_proba(X: Any, mixture: Mixture, *, backend: str = "auto") -> Any:
    """Posterior probability of each component, p(z=k | x_n) = pi_k N(x_n; mu_k, Sigma_k) / p(x_n).

    Parameters
    ----------
    X, mixture, backend
        As in `e_step`.

    Returns
    -------
    array or tensor ``[*batch, N, K]``
        In the dtype of X.

    Raises
    ------
    TypeError, ValueError, BackendError
        Same as `e_step`.

    Notes
    -----
    Equivalent to scikit-learn's ``GaussianMixture.predict_proba(X)``.

    References
    ----------
    Bishop (2006), ch. 9.

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> m = fastvae.gmm.Mixture(np.array([0.5, 0.5]), np.array([[-1.0], [1.0]]), np.ones(2), "spherical")
    >>> fastvae.gmm.predict_proba(np.array([[0.0], [1.0]]), m).round(4)
    array([[0.5 , 0.5 ], [0.1192, 0.8808]])
    """
    data, parameters, kind = checks.rows_and_mixture(X, mixture)
    log_resp = checks.engine(backend, data.X, *parameters).e_step(data.X, *parameters, kind)[0]
    return data.to_output(log_resp.exp())


def predict(X: Any, mixture: Mixture, *, backend: str = "auto") -> Any:
    """Most probable component of each row.

    Parameters
    ----------
    X, mixture, backend
        As in `e_step`.

    Returns
    -------
    int64 array or tensor ``[*batch, N]``
        -1 where log p(x_n) is NaN.

    Raises
    ------
    TypeError, ValueError, BackendError
        Same as `e_step`.

    Notes
    -----
    Equivalent to scikit-learn's ``GaussianMixture.predict(X)``.

    References
    ----------
    Bishop (2006), ch. 9.

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
    return data.to_output(labels.masked_fill(log_prob.isnan(), -1))


def sample(mixture: Mixture, n: int, *, seed: int | None = None) -> tuple[Any, Any]:
    """Draw n rows from each mixture: z from its weights, then x = mu_z + L_z eps, with eps ~ N(0, I), L L' = Sigma_z.

    Parameters
    ----------
    mixture : Mixture
        With arrays or tensors as parameters. NaN parameters give NaN rows.
    n : int
        Number of rows.
    seed : int in [0, 2^63)
        The draws depend only on (seed, index of the problem). If None, the seed is drawn from torch's generator.

    Returns
    -------
    X : array or tensor ``[*batch, n, D]``
        The rows, in the dtype of the means.
    labels : int64 array or tensor ``[*batch, n]``
        The component that each row was drawn from. The rows are not sorted by component.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or shape.

    Notes
    -----
    Equivalent to scikit-learn's ``GaussianMixture.sample(n)``, which sorts the rows by component.

    References
    ----------
    Bishop (2006), ch. 8 (ancestral sampling).

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
    X, labels = reference_start.sample(flat, n, checks.resolve_seed(seed))
    dtype = as_floating("mixture's means", mixture.means).dtype
    numpy = not isinstance(mixture.means, torch.Tensor)
    return (
        as_output(X.reshape(batch + X.shape[1:]).to(dtype), numpy),
        as_output(labels.reshape(batch + labels.shape[1:]), numpy),
    )


def n_parameters(mixture: Mixture) -> int:
    """Number of free parameters of one mixture: K - 1 weights, K D for the means, and those of the covariances,

        full K D (D + 1) / 2,    tied D (D + 1) / 2,    diag K D,    spherical K.

    Parameters
    ----------
    mixture : Mixture
        The mixture, or a batch of them.

    Returns
    -------
    int

    Raises
    ------
    TypeError, ValueError
        If the argument is not a valid mixture.

    Notes
    -----
    Equivalent to scikit-learn's private ``GaussianMixture._n_parameters()``.

    References
    ----------
    Bishop (2006), ch. 9.

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
    """Akaike information criterion, 2 p - 2 sum_n w_n log p(x_n), p the number of free parameters; lower is better.

    Parameters
    ----------
    X, mixture, sample_weight, backend
        As in `em_step`.

    Returns
    -------
    float64 ``[*batch]``

    Raises
    ------
    TypeError, ValueError, BackendError
        Same as `e_step`.

    Notes
    -----
    Equivalent to scikit-learn's ``GaussianMixture.aic(X)``.

    References
    ----------
    Akaike (1974).

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> normal = fastvae.gmm.Mixture(np.ones(1), np.zeros((1, 2)), np.ones(1), "spherical")
    >>> round(float(fastvae.gmm.aic(np.zeros((1, 2)), normal)), 4)
    9.6758
    """
    return _criterion(X, mixture, sample_weight, backend, lambda log_n: torch.full_like(log_n, 2.0))


def bic(X: Any, mixture: Mixture, *, sample_weight: Any = None, backend: str = "auto") -> Any:
    """Bayesian information criterion, p log N - 2 sum_n w_n log p(x_n), with N = sum_n w_n; lower is better.

    p is the number of free parameters.

    Parameters
    ----------
    X, mixture, sample_weight, backend
        As in `em_step`.

    Returns
    -------
    float64 ``[*batch]``

    Raises
    ------
    TypeError, ValueError, BackendError
        Same as `e_step`.

    Notes
    -----
    Equivalent to scikit-learn's ``GaussianMixture.bic(X)``.

    References
    ----------
    Schwarz (1978).

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> normal = fastvae.gmm.Mixture(np.ones(1), np.zeros((1, 2)), np.ones(1), "spherical")
    >>> round(float(fastvae.gmm.bic(np.zeros((1, 2)), normal)), 4)
    3.6758
    """
    return _criterion(X, mixture, sample_weight, backend, lambda log_n: log_n)


def _criterion(X: Any, mixture: Mixture, sample_weight: Any, backend: str, penalty: Any) -> Any:
    """penalty(log sum_n w_n `[B]`) times the number of parameters, minus twice the log likelihood."""
    data, parameters, kind = checks.rows_and_mixture(X, mixture)
    w, unit = checks.row_weights(sample_weight, data)
    X = formulas.zero_ignored_rows(data.X, w)
    log_prob = checks.engine(backend, X, *parameters, w).e_step(X, *parameters, kind, want_log_resp=False)[1]
    log_n = checks.log_total_weight(data, w, unit)
    return data.to_output(penalty(log_n) * n_parameters(mixture) - 2 * checks.total(log_prob, w) * unit, torch.float64)
