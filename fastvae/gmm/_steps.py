"""The single steps of EM and the bound that they increase: `e_step`, `m_step`, `em_step`, `elbo` of `fastvae.gmm`."""

from typing import Any

import torch

from .. import reference
from .._core.checks import not_negative
from ..reference.gmm.formulas import EStep, Mixture
from . import _checks as checks


def e_step(X: Any, mixture: Mixture, *, backend: str = "auto") -> EStep:
    """E-step: set q to the posterior, log r_nk = log pi_k + log N(x_n; mu_k, Sigma_k) - log p(x_n), in nats.

    Parameters
    ----------
    X : array or tensor ``[*batch, N, D]``
        The rows.
    mixture : Mixture
        The parameters. Their batch dims and those of X broadcast against each other.
    backend : "auto", "triton", "numba" or "reference"
        A backend requested by name computes the call or raises.

    Returns
    -------
    EStep
        ``log_resp`` ``[*batch, N, K]``, -inf for a component of weight 0, and ``log_prob`` ``[*batch, N]``, log p(x_n);
        in the dtype of X. NaN where X is NaN, or where a covariance is not positive definite.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type, shape or device.
    BackendError
        If the requested backend does not support the call.

    Notes
    -----
    Equivalent to the logarithm of scikit-learn's ``predict_proba``, and to its ``score_samples``.

    References
    ----------
    Neal & Hinton (1998); Bishop (2006), ch. 9.

    Examples
    --------
    >>> import torch, fastvae
    >>> m = fastvae.gmm.Mixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.ones(2), "spherical")
    >>> fastvae.gmm.e_step(torch.tensor([[0.0], [1.0]]), m).log_resp.exp()
    tensor([[0.5000, 0.5000],
            [0.1192, 0.8808]])
    """
    data, parameters, kind = checks.rows_and_mixture(X, mixture)
    log_resp, log_prob, _ = checks.engine(backend, data.X, *parameters).e_step(data.X, *parameters, kind)
    return EStep(data.to_output(log_resp), data.to_output(log_prob))


def m_step(
    X: Any,
    resp: Any,
    *,
    covariance_type: str = "full",
    sample_weight: Any = None,
    reg_covar: float = 0.0,
    backend: str = "auto",
) -> Mixture:
    """M-step: the mixture that maximises the bound for given responsibilities.

    With r_nk the responsibilities times the row's weight, and N_k = sum_n r_nk:

        pi_k = N_k / sum_k N_k,    mu_k = sum_n r_nk x_n / N_k,    S_k = sum_n r_nk (x_n - mu_k)(x_n - mu_k)',

    full S_k / N_k; tied sum_k S_k / sum_k N_k; diag the diagonal of full; spherical the mean of diag. ``reg_covar`` is
    added to every variance.

    Parameters
    ----------
    X : array or tensor ``[*batch, N, D]``
        The rows.
    resp : array or tensor ``[*batch, N, K]``
        Responsibilities, >= 0 and summing to 1 over K. Their values are not checked.
    covariance_type : "full", "tied", "diag" or "spherical"
        As in `fit`.
    sample_weight : array or tensor ``[*batch, N]`` or ``[N]``
        As in `fit`.
    reg_covar : float
        In squared units of X. Unless it is 0, the result is not the exact maximum.
    backend : "auto", "triton", "numba" or "reference"
        A backend requested by name computes the call or raises.

    Returns
    -------
    Mixture
        In the dtype of X. A component without rows has weight 0, and its mean and covariance are NaN.

    Raises
    ------
    TypeError, ValueError, BackendError
        Same as `e_step`.

    Notes
    -----
    Equivalent to the M-step of scikit-learn's ``GaussianMixture``, which adds 10 eps to N_k. With a column of ones as
    resp it fits one multivariate normal: ``np.mean(X, 0)`` and ``np.cov(X.T, ddof=0, aweights=sample_weight)``.

    References
    ----------
    Bishop (2006), ch. 9.

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> X = np.array([[0.0], [2.0], [9.0], [11.0]])
    >>> fastvae.gmm.m_step(X, np.repeat(np.eye(2), 2, axis=0), covariance_type="diag").means
    array([[ 1.], [10.]])
    """
    data, r = checks.responsibilities(resp, checks.rows(X))
    kind = checks.covariance_type(covariance_type)
    (w, _), ridge = checks.row_weights(sample_weight, data), not_negative("reg_covar", reg_covar)
    engine = checks.engine(backend, data.X, r, w)
    return data.mixture(engine.m_step(data.X, r, kind, w, ridge), kind)


def em_step(
    X: Any, mixture: Mixture, *, sample_weight: Any = None, reg_covar: float = 0.0, backend: str = "auto"
) -> tuple[Mixture, Any]:
    """One E-step followed by one M-step.

    Parameters
    ----------
    X, mixture, sample_weight, reg_covar, backend
        As in `e_step` and `m_step`.

    Returns
    -------
    mixture : Mixture
        The next parameters, in the dtype of X. Their likelihood is at least that of the given ones if ``reg_covar`` is
        0.
    log_likelihood : float64 ``[*batch]``
        sum_n w_n log p(x_n) under the *given* mixture, in nats.

    Raises
    ------
    TypeError, ValueError, BackendError
        Same as `e_step`.

    Notes
    -----
    Equivalent to scikit-learn's ``GaussianMixture(max_iter=1)`` started at ``mixture``, and ``N * lower_bound_``.

    References
    ----------
    Dempster, Laird & Rubin (1977).

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> X = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    >>> start = fastvae.gmm.Mixture(np.array([0.5, 0.5]), np.array([[-1.0], [1.0]]), np.ones(2), "spherical")
    >>> mixture, before = fastvae.gmm.em_step(X, start)
    >>> bool(fastvae.gmm.score_samples(X, mixture).sum() > before)
    True
    """
    data, parameters, kind = checks.rows_and_mixture(X, mixture)
    (w, unit), ridge = checks.row_weights(sample_weight, data), not_negative("reg_covar", reg_covar)
    engine = checks.engine(backend, data.X, *parameters, w)
    new, log_likelihood = engine.em_step(data.X, *parameters, kind, w, ridge)
    return data.mixture(new, kind), data.to_output(log_likelihood * unit, torch.float64)


def elbo(X: Any, resp: Any, mixture: Mixture, *, sample_weight: Any = None) -> Any:
    """Evidence lower bound for any responsibilities q, in nats, with 0 log 0 = 0.

        ELBO(q) = sum_n w_n sum_k r_nk (log p(x_n, z=k) - log r_nk)

    It equals the log likelihood minus sum_n w_n KL(q_n || p(z | x_n)), so it is never larger than the log likelihood,
    and equal to it if q is the posterior returned by `e_step`. It is always computed by the reference.

    Parameters
    ----------
    X, resp, mixture, sample_weight
        As in `e_step` and `m_step`.

    Returns
    -------
    float64 ``[*batch]``

    Raises
    ------
    TypeError, ValueError
        Same as `e_step`.

    Notes
    -----
    Equivalent to ``torch.distributions.MixtureSameFamily(...).log_prob(X).sum()`` minus
    ``kl_divergence(Categorical(resp), posterior).sum()``.

    References
    ----------
    Neal & Hinton (1998).

    Examples
    --------
    >>> import torch, fastvae
    >>> m = fastvae.gmm.Mixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.ones(2), "spherical")
    >>> X = torch.tensor([[0.0], [1.0]])
    >>> q = fastvae.gmm.predict_proba(X, m)
    >>> fastvae.gmm.elbo(X, torch.full((2, 2), 0.5), m), fastvae.gmm.elbo(X, q, m)
    (tensor(-3.3379, dtype=torch.float64), tensor(-2.9041, dtype=torch.float64))
    """
    data = checks.rows(X)
    parameters, batch = checks.mixture_tensors("mixture", mixture, data)
    checks.check_weights("mixture", parameters[0])
    data, r = checks.responsibilities(resp, data.broadcast("mixture", batch), K=parameters[0].shape[-1])
    kind, (w, unit) = mixture.covariance_type, checks.row_weights(sample_weight, data)
    flat = Mixture(*checks.flatten(parameters, data.batch, kind), kind)
    bound = reference.gmm.elbo(data.X.to(torch.float64), r, flat, sample_weight=w)
    return data.to_output(bound * unit, torch.float64)
