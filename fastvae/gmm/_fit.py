"""`fastvae.gmm.fit`: what it promises, and its checks."""

from typing import Any, NamedTuple

import torch

from .._core.checks import describe, integer, not_negative
from .._core.numbers import is_flag
from .._core.status import Status
from ..reference.gmm.formulas import Mixture
from . import _checks as checks
from . import _problems as problems
from ._chunks import Chunks


class MixtureFit(NamedTuple):
    """What `fit` returns. Of one problem the numbers are plain Python ones, of a batch arrays or tensors like X.

    Attributes
    ----------
    mixture : Mixture
        The parameters, in the dtype of X.
    log_likelihood : float, or float64 ``[*batch]``
        sum_n w_n log p(x_n) of these parameters, in nats.
    lower_bounds : float64 ``[*batch, max(n_iter) + 1]``
        The log likelihood per unit of weight before each M-step, and last that of the parameters returned; NaN behind
        the end of a problem that stopped earlier.
    n_iter : int, or int64 ``[*batch]``
        M-steps made.
    converged : bool, or bool ``[*batch]``
        Whether the bound changed by less than ``tol``.
    status : Status, or int64 ``[*batch]``
        Flags of `fastvae.Status`.
    """

    mixture: Mixture
    log_likelihood: Any
    lower_bounds: Any
    n_iter: Any
    converged: Any
    status: Any


def fit(
    X: Any,
    n_components: int,
    *,
    covariance_type: str = "full",
    tol: float = 1e-3,
    max_iter: int = 100,
    n_init: int = 1,
    init: str | Mixture = "kmeans",
    reg_covar: float = 1e-6,
    sample_weight: Any = None,
    seed: int | None = None,
    on_degenerate: str | None = None,
    progress: bool = False,
    backend: str = "auto",
) -> MixtureFit:
    """Fit a mixture by EM, or one to each problem of a batch, each with its own convergence, restarts and status.

    Iteration i is an E-step, the bound of the parameters it saw, L_i = sum_n w_n log p(x_n) / sum_n w_n, and an M-step;
    it is the last if |L_i - L_{i-1}| < tol. With ``reg_covar=0`` the bounds never fall beyond rounding.

    Parameters
    ----------
    X : array or tensor ``[*batch, N, D]``, or a function
        A memory-mapped array is read as it is needed. A function returns, each time it is called, a new iterable of
        chunks ``[n, D]`` of the rows of one problem, on the CPU; they are read once a pass, a few thousand rows in
        memory at a time, and the fit is that of the same rows in one array, bit for bit.
    n_components : int
        K, at most N. Where the status is to say what cannot be fitted, more are TOO_FEW_ROWS.
    covariance_type : "full", "tied", "diag" or "spherical"
        A matrix a component, one matrix for all, variances a component, or one variance a component.
    tol : float
        In nats per unit of weight.
    max_iter : int
        Where it is reached, the status says MAX_ITER, which is no error. 0 returns the start.
    n_init : int
        Starts; the fit of the highest bound is returned, a degenerate one only if all are.
    init : "kmeans", "kmeans-raw", "k-means++", "random_from_data", "random" or a Mixture
        - "kmeans": clusters of k-means. The first and every other one of `n_init` starts measures each feature by its
          standard deviation and, if "full" or "tied", tries whitened rows as well: of the two starts it takes the one
          that is likelier after a step of EM. The rest, and all if "spherical", measure features in the unit of X.
        - "kmeans-raw": clusters of k-means, always in the unit of X, as in scikit-learn.
        - "k-means++", "random_from_data": one row a component, far from each other or drawn at random, all other rows
          counting for nothing.
        - "random": random responsibilities.
        - a Mixture: the parameters to start at, whose batch dims broadcast to those of X.
    reg_covar : float
        Added to every variance, in units of X squared.
    sample_weight : array or tensor ``[*batch, N]`` or ``[N]``
        Finite and not negative, positive for K rows at least. A row of weight 0 does not matter, whatever it holds.
    seed : int in [0, 2^63)
        Of the starts, which depend on (seed, index of the problem, restart) only. None draws it from torch's generator.
    on_degenerate : "raise", "status" or "rescue"
        Where a component loses its rows, a covariance is not positive definite, or a problem cannot be fitted: raise
        for the first such problem; say so in its status; or place the component anew in the widest other one and go on,
        and say the rest in the status. None raises for one problem, and says so in the status in a batch.
    progress : bool
        Show a bar of tqdm.
    backend : "auto", "triton", "numba" or "reference"

    Returns
    -------
    MixtureFit
        A named tuple (mixture, log_likelihood, lower_bounds, n_iter, converged, status), detached from any graph.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, shape or device, negative weights, and as ``on_degenerate`` says: inf or NaN
        in the data of one problem of a batch, say, is the status NONFINITE of that one.
    BackendError
        If the backend named cannot serve the call.

    Warns
    -----
    UserWarning
        If ``reg_covar`` is as large as the variance of a feature that is not constant (where "spherical", as the mean
        of all): it hides what tells the components apart there.

    Notes
    -----
    Equivalent to ``sklearn.mixture.GaussianMixture(K, ...).fit(X)`` in iterations, stopping rule and defaults; its
    ``lower_bounds_`` are those here without the last, and it has no batches, no sample weights and no status.
    Source: Dempster, Laird & Rubin (1977); Arthur & Vassilvitskii (2007) for k-means++.

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> X = np.random.default_rng(0).normal(size=(200, 2)) + np.repeat([[0.0], [9.0]], 100, axis=0)
    >>> fit = fastvae.gmm.fit(X, 2, seed=0)
    >>> np.sort(fit.mixture.means[:, 0].round()), fit.status
    (array([-0., 9.]), <Status.CONVERGED: 1>)
    >>> many = fastvae.gmm.fit(np.stack([X, 2 * X, X * np.nan]), 2, seed=0)
    >>> many.mixture.means.shape, many.converged
    ((3, 2, 2), array([ True, True, False]))
    """
    chunks = Chunks(X) if callable(X) and not isinstance(X, torch.Tensor) else None
    data = checks.rows(X) if chunks is None else chunks.rows()
    K = integer("n_components", n_components, 1)
    N = data.X.shape[1]
    if N < K and on_degenerate not in ("status", "rescue"):
        raise ValueError(
            f"X must have at least n_components = {K} rows, got the shape {list(data.batch + data.X.shape[1:])}"
        )
    kind = checks.covariance_type(covariance_type)
    restarts = integer("n_init", n_init, 1)
    options: dict[str, Any] = {
        "tol": not_negative("tol", tol),
        "max_iter": integer("max_iter", max_iter, 0),
        "n_init": restarts,
        "reg_covar": not_negative("reg_covar", reg_covar),
        "rescue": checks.on_degenerate(on_degenerate) == "rescue",
    }
    if not is_flag(progress):
        raise TypeError(f"progress must be True or False, got {describe(progress)}")
    w, unit = checks.row_weights(sample_weight, data)
    if chunks is not None:
        chunks.check_finite(w)
    task = problems.Task(
        data._replace(X=data.X.detach()),
        None if w is None else w.detach(),
        K,
        kind,
        checks.start(init, data, K, kind, restarts),
        chunks,
    )
    options["seed"] = checks.seed_or_drawn(seed)
    with torch.no_grad(), problems.progress_bar(progress) as tell:
        problems.check_values(task)
        fitted = problems.run(checks.engine(backend, data.X), task, tell, **options)
        if on_degenerate == "raise" or (on_degenerate is None and not data.batch):
            problems.refuse(task, fitted, options["reg_covar"])
    problems.warn_of_floor(task, fitted, options["reg_covar"])
    fitted = fitted._replace(log_likelihood=fitted.log_likelihood * unit)
    mixture = data.mixture(fitted[:3], kind)
    converged = fitted.status & Status.CONVERGED != 0
    bounds = data.back(fitted.lower_bounds, torch.float64)
    if not data.batch:
        log_likelihood, n_iter, status = fitted.log_likelihood.item(), int(fitted.n_iter), Status(int(fitted.status))
        return MixtureFit(mixture, log_likelihood, bounds, n_iter, bool(converged), status)
    log_likelihood = data.back(fitted.log_likelihood, torch.float64)
    return MixtureFit(mixture, log_likelihood, bounds, *map(data.back, (fitted.n_iter, converged, fitted.status)))
