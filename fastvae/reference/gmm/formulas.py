"""Gaussian mixtures by EM: the specification.

The model of a row x is p(x) = sum_k pi_k N(x; mu_k, Sigma_k), the component z = k being hidden. For any distribution
q(z) over the components

    log p(x) = ELBO(q) + KL(q || p(z | x)),    ELBO(q) = sum_k q_k (log p(x, z=k) - log q_k).

EM (Dempster, Laird & Rubin 1977) maximises the ELBO in two alternating steps (Neal & Hinton 1998): `e_step` sets q to
the posterior, which makes the KL 0 and the bound tight; `m_step` maximises the bound over weights, means and
covariances with q held fixed. So the log likelihood never decreases. The formulas are in Bishop (2006), ch. 9.

Arguments, the same in every function, for N rows, D features, K components:

    X              `[*batch, N, D]`  rows
    resp           `[*batch, N, K]`  responsibilities q_n(z=k), >= 0, summing to 1 over K
    sample_weight  `[*batch, N]`     >= 0, or None for ones; a weight of 2 is equivalent to repeating the row
    mixture        a `Mixture`       the parameters

Leading dims `*batch` are independent problems and broadcast: X `[N, D]` can be combined with means `[B, K, D]`.
Results have the promoted dtype of the arguments, float32 at least, since there are no half-precision factorisations;
log probabilities are in nats. Arguments are not checked: an undefined result is NaN, and only in its own problem of a
batch. Residuals x - mu_k, `[*batch, K, N, D]`, are computed for one block of rows at a time.
"""

import math
from collections.abc import Iterator
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

COVARIANCE_TYPES = ("full", "tied", "diag", "spherical")
LARGE = 1e18  # larger values may overflow when squared in float32
BLOCK = 2**21  # elements of a block of residuals: 16 MB in float64


class Mixture(NamedTuple):
    """The parameters of a mixture, or of a batch of them.

    Attributes
    ----------
    weights : Tensor, or in `fastvae.gmm` a NumPy array, as means and covariances
        pi, `[*batch, K]`, >= 0 and summing to 1 over K.
    means : Tensor
        mu, `[*batch, K, D]`.
    covariances : Tensor
        Sigma: full `[*batch, K, D, D]`, tied (one for all components) `[*batch, D, D]`, diag (variances)
        `[*batch, K, D]`, spherical (one variance) `[*batch, K]`.
    covariance_type : str
        "full", "tied", "diag" or "spherical".
    """

    weights: Any
    means: Any
    covariances: Any
    covariance_type: str = "full"


class EStep(NamedTuple):
    """The result of the E-step.

    Attributes
    ----------
    log_resp : Tensor, or in `fastvae.gmm` a NumPy array, as log_prob
        log p(z=k | x_n), `[*batch, N, K]`.
    log_prob : Tensor
        log p(x_n), `[*batch, N]`.
    """

    log_resp: Any
    log_prob: Any


def joint_log_prob(X: Tensor, mixture: Mixture) -> Tensor:
    """Joint log density of a row and its component, log p(x_n, z=k) = log pi_k + log N(x_n; mu_k, Sigma_k).

    log N = -1/2 |z|^2 - 1/2 log |Sigma| - D/2 log 2 pi, where z = L^-1 (x - mu) and Sigma = L L'. It is computed from
    residuals: the expanded form x'Px - 2 x'P mu + mu'P mu suffers from cancellation for data far from the origin.

    A weight of exactly 0 removes its component from the model: -inf, and gradient 0. A covariance that is not positive
    definite has no density: NaN. `[*batch, N, K]`, in nats.

    Notes
    -----
    Equivalent to ``Categorical(weights).logits + MultivariateNormal(means, covariances).log_prob(X[..., None, :])`` in
    `torch.distributions`.

    Examples
    --------
    >>> mixture = Mixture(torch.tensor([0.5, 0.5]), torch.tensor([[0.0], [2.0]]), torch.tensor([1.0, 4.0]), "spherical")
    >>> joint_log_prob(torch.tensor([[0.0]]), mixture)
    tensor([[-1.6121, -2.8052]])
    """
    X, weights, means, covariances = _promote(X, *mixture[:3])
    if _check_covariance_type(mixture.covariance_type) in ("full", "tied"):
        tied = mixture.covariance_type == "tied"
        L = _cholesky(covariances[..., None, :, :] if tied else covariances)  # [*batch, 1 or K, D, D]
        half_log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # [*batch, 1 or K]

        def whiten(residual: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(L, residual.mT, upper=False).mT
    else:
        diag = mixture.covariance_type == "diag"
        std = (covariances if diag else covariances[..., None].expand_as(means)).sqrt()  # [*batch, K, D]
        half_log_det = std.log().sum(-1)  # [*batch, K]

        def whiten(residual: Tensor) -> Tensor:
            return residual / std[..., None, :]

    squares = [whiten(e).square().sum(-1) for e in _residuals(X, means)]  # |z|^2, each [*batch, K, rows]
    constant = 0.5 * X.shape[-1] * math.log(2 * math.pi)
    log_normal = -0.5 * torch.cat(squares, -1) - half_log_det[..., None] - constant  # [*batch, K, N]
    # A weight of 0 is replaced by 1 in the log, or its gradient would be 0 * inf = NaN. A negative weight gives NaN.
    ignored = weights == 0
    log_weights = weights.masked_fill(ignored, 1.0).log().masked_fill(ignored, -math.inf)  # [*batch, K]
    return (log_weights[..., None] + log_normal).mT


def e_step(X: Tensor, mixture: Mixture) -> EStep:
    """Set q to the posterior: log r_nk = log p(x_n, z=k) - log p(x_n), with log p(x_n) = log sum_k p(x_n, z=k).

    Returns
    -------
    EStep
        `log_resp` `[*batch, N, K]`, -inf for a component of weight 0, and `log_prob` `[*batch, N]`.

    Notes
    -----
    `log_prob` is equivalent to ``MixtureSameFamily(...).log_prob(X)`` in `torch.distributions` and to
    ``GaussianMixture.score_samples(X)`` in scikit-learn; `log_resp` to the logarithm of its ``predict_proba(X)``.

    Examples
    --------
    >>> mixture = Mixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.ones(2), "spherical")
    >>> e_step(torch.tensor([[0.0], [1.0]]), mixture).log_resp.exp()
    tensor([[0.5000, 0.5000],
            [0.1192, 0.8808]])
    """
    joint = joint_log_prob(X, mixture)  # [*batch, N, K]
    log_prob = torch.logsumexp(joint, -1)  # [*batch, N]
    # Not joint - log_prob: far from all components both are so large that the difference would lose all precision.
    return EStep(torch.log_softmax(joint, -1), log_prob)


def m_step(
    X: Tensor,
    resp: Tensor,
    *,
    covariance_type: str = "full",
    sample_weight: Tensor | None = None,
    reg_covar: float = 0.0,
) -> Mixture:
    """Maximise the bound over the parameters, q held fixed.

    With r_nk the responsibilities times the row's weight, and N_k = sum_n r_nk:

        pi_k = N_k / sum_k N_k,    mu_k = sum_n r_nk x_n / N_k,    S_k = sum_n r_nk (x_n - mu_k)(x_n - mu_k)',

    full S_k / N_k; tied sum_k S_k / sum_k N_k; diag the diagonal of full; spherical the mean of diag. Each is computed
    about the new mean in a second pass over X, is exactly symmetric, and has `reg_covar` added to its variances.

    Parameters
    ----------
    X, resp, sample_weight : Tensor
        See the module docstring.
    covariance_type : str
        "full", "tied", "diag" or "spherical".
    reg_covar : float
        Added to every variance. Unless it is 0, the result is not the exact maximum, and the bound may decrease.

    Returns
    -------
    Mixture
        A component without rows (N_k = 0) has weight 0, and its mean and covariance are NaN, as 0 / 0; a tied
        covariance is then NaN too.

    Notes
    -----
    Equivalent to the M-step of scikit-learn's ``GaussianMixture``, which adds 10 eps to N_k, and centres only "full".

    Examples
    --------
    >>> X = torch.tensor([[0.0], [2.0], [9.0], [11.0]])
    >>> resp = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> m_step(X, resp, covariance_type="diag").means.squeeze(-1)
    tensor([ 1., 10.])
    """
    X, resp, *rest = _promote(X, resp, *([] if sample_weight is None else [sample_weight]))
    w = rest[0] if rest else None
    X, resp = zero_ignored_rows(X, w), zero_ignored_rows(resp, w)
    r = resp if w is None else resp * w[..., None]  # [*batch, N, K]
    N_k = r.sum(-2)  # [*batch, K]
    weights = N_k / N_k.sum(-1, keepdim=True)  # [*batch, K]
    means = r.mT @ X / N_k[..., None]  # [*batch, K, D]
    blocks = (
        (q.mT[..., None], e) for q, e in zip(r.split(_rows_per_block(X, means), -2), _residuals(X, means), strict=True)
    )
    if _check_covariance_type(covariance_type) in ("full", "tied"):
        scatter = reduce(torch.add, ((q * e).mT @ e for q, e in blocks))  # [*batch, K, D, D]
        scatter = 0.5 * (scatter + scatter.mT)  # r x_i x_j and r x_j x_i round differently
        ridge = reg_covar * torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)  # [D, D]
        if covariance_type == "tied":
            return Mixture(weights, means, scatter.sum(-3) / N_k.sum(-1)[..., None, None] + ridge, "tied")
        return Mixture(weights, means, scatter / N_k[..., None, None] + ridge, "full")
    squares = reduce(torch.add, ((q * e * e).sum(-2) for q, e in blocks))  # [*batch, K, D]
    variances = squares / N_k[..., None] + reg_covar  # [*batch, K, D]
    return Mixture(weights, means, variances if covariance_type == "diag" else variances.mean(-1), covariance_type)


def em_step(
    X: Tensor, mixture: Mixture, *, sample_weight: Tensor | None = None, reg_covar: float = 0.0
) -> tuple[Mixture, Tensor]:
    """One E-step and one M-step: the next parameters, and the log likelihood of the given ones.

    Returns
    -------
    Mixture
        The next parameters. Their likelihood is at least that of the given ones if `reg_covar` is 0.
    Tensor
        sum_n w_n log p(x_n) under the *given* mixture, `[*batch]`, in nats.

    Notes
    -----
    Equivalent to scikit-learn's ``GaussianMixture(max_iter=1)`` started at `mixture`, with ``N * lower_bound_``.

    Examples
    --------
    >>> X = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> start = Mixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.ones(2), "spherical")
    >>> mixture, before = em_step(X, start)
    >>> bool(log_likelihood(X, mixture) > before)
    True
    """
    X = zero_ignored_rows(X, sample_weight)
    log_resp, log_prob = e_step(X, mixture)
    q, kind = log_resp.exp(), mixture.covariance_type
    new = m_step(X, q, covariance_type=kind, sample_weight=sample_weight, reg_covar=reg_covar)
    return new, _sum_rows(log_prob, sample_weight)


def elbo(X: Tensor, resp: Tensor, mixture: Mixture, *, sample_weight: Tensor | None = None) -> Tensor:
    """ELBO(q) = sum_n w_n sum_k r_nk (log p(x_n, z=k) - log r_nk) for any q, with 0 log 0 = 0.

    The log likelihood minus sum_n w_n KL(q_n || p(z | x_n)), so it is never larger, and equal if q is the posterior. If
    r_nk is exactly 0, the component contributes nothing to the value or to any gradient. `[*batch]`, in nats.

    Examples
    --------
    >>> mixture = Mixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.ones(2), "spherical")
    >>> X = torch.tensor([[0.0], [1.0]])
    >>> elbo(X, torch.full((2, 2), 0.5), mixture), elbo(X, e_step(X, mixture).log_resp.exp(), mixture)
    (tensor(-3.3379), tensor(-2.9041))
    """
    X, resp = _promote(zero_ignored_rows(X, sample_weight), zero_ignored_rows(resp, sample_weight))
    joint = joint_log_prob(X, mixture)  # [*batch, N, K]
    ignored = resp == 0
    # Where r = 0, both terms are replaced, so that neither 0 * -inf nor log 0 is ever computed.
    gap = joint.masked_fill(ignored, 0.0) - resp.masked_fill(ignored, 1.0).log()  # [*batch, N, K]
    return _sum_rows((resp * gap).sum(-1), sample_weight)


def log_likelihood(X: Tensor, mixture: Mixture, *, sample_weight: Tensor | None = None) -> Tensor:
    """sum_n w_n log p(x_n), `[*batch]`, in nats.

    Equivalent to ``N * GaussianMixture.score(X)`` in scikit-learn.

    Examples
    --------
    >>> mixture = Mixture(torch.ones(1), torch.zeros(1, 2), torch.ones(1), "spherical")
    >>> log_likelihood(torch.zeros(1, 2), mixture)
    tensor(-1.8379)
    """
    return _sum_rows(e_step(zero_ignored_rows(X, sample_weight), mixture).log_prob, sample_weight)


def fit_normal(X: Tensor, *, sample_weight: Tensor | None = None) -> Mixture:
    """Fit one multivariate normal by maximum likelihood: a mixture of one full component, without iterations.

    Equivalent to ``np.mean(X, 0)`` and ``np.cov(X.T, ddof=0, aweights=sample_weight)``.

    Examples
    --------
    >>> fit_normal(torch.tensor([[0.0], [2.0]])).covariances
    tensor([[[1.]]])
    """
    return m_step(X, torch.ones_like(X[..., :1]), sample_weight=sample_weight)


def zero_ignored_rows(rows: Tensor, sample_weight: Tensor | None) -> Tensor:
    """The rows, `[*batch, N, any]`, with rows of weight 0 set to zero if they contain NaN, inf or very large values.

    Such values would turn a product with weight 0 into NaN. Other rows of weight 0 are kept, for the derivative with
    respect to their weight.
    """
    if sample_weight is None:
        return rows
    ignored = (sample_weight == 0) & ~(rows.detach().abs().amax(-1) < LARGE)  # [*batch, N]
    return torch.where(ignored[..., None], 0.0, rows)


def _promote(*tensors: Tensor) -> list[Tensor]:
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    return [t.to(dtype) for t in tensors]


def _rows_per_block(X: Tensor, means: Tensor) -> int:
    """Rows per block, such that the residuals from all means of all problems have about BLOCK elements."""
    problems = math.prod(torch.broadcast_shapes(X.shape[:-2], means.shape[:-2]))
    return max(1, BLOCK // max(1, problems * means.shape[-2] * means.shape[-1]))


def _residuals(X: Tensor, means: Tensor) -> Iterator[Tensor]:
    """x - mu_k, one block of rows at a time, each `[*batch, K, rows, D]`."""
    return (rows[..., None, :, :] - means[..., :, None, :] for rows in X.split(_rows_per_block(X, means), -2))


def _check_covariance_type(covariance_type: str) -> str:
    if covariance_type not in COVARIANCE_TYPES:
        raise ValueError(f"covariance_type must be one of {COVARIANCE_TYPES}, got {covariance_type!r}")
    return covariance_type


def _cholesky(A: Tensor) -> Tensor:
    # If one matrix of a batch is not positive definite, `cholesky` raises for the whole batch. `cholesky_ex` leaves a
    # partial factor for that one, which must not be used.
    L, info = torch.linalg.cholesky_ex(A)
    return L.masked_fill((info != 0)[..., None, None], math.nan)


def _sum_rows(values: Tensor, sample_weight: Tensor | None) -> Tensor:
    return (values if sample_weight is None else values * sample_weight).sum(-1)
