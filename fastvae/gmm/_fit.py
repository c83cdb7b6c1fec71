"""`fastvae.gmm.fit`: its documentation and argument checks."""

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
    """Result of `fit`. For one problem, scalars are Python numbers; for a batch, they are arrays or tensors like X.

    Attributes
    ----------
    mixture : Mixture
        The parameters, in the dtype of X.
    log_likelihood : float, or float64 ``[*batch]``
        sum_n w_n log p(x_n) for these parameters, in nats.
    lower_bounds : float64 ``[*batch, max(n_iter) + 1]``
        The log likelihood per unit of weight before each M-step, followed by that of the returned parameters. Padded
        with NaN for problems that stopped earlier than others.
    n_iter : int, or int64 ``[*batch]``
        Number of M-steps.
    converged : bool, or bool ``[*batch]``
        Whether the change of the bound fell below ``tol``.
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

    Iteration i consists of an E-step, which gives the bound L_i = sum_n w_n log p(x_n) / sum_n w_n of the current
    parameters, and an M-step. It is the last one if |L_i - L_{i-1}| < tol. With ``reg_covar=0`` the bounds never
    decrease, except for rounding.

    Parameters
    ----------
    X : array or tensor ``[*batch, N, D]``, or a function
        A memory-mapped array is read on demand. A function must return a new iterable over chunks ``[n, D]`` of the
        rows of one problem, on the CPU, each time it is called. Each pass reads the chunks once, with a few thousand
        rows in memory at a time, and the result is bit for bit that of the same rows in one array.
    n_components : int
        Number of components K, at most N. If ``on_degenerate`` is "status" or "rescue", a larger K gives the status
        TOO_FEW_ROWS instead of an error.
    covariance_type : "full", "tied", "diag" or "spherical"
        One matrix per component, one matrix shared by all components, one variance per component and feature, or one
        variance per component.
    tol : float
        Convergence threshold, in nats per unit of weight.
    max_iter : int
        Maximum number of iterations. Reaching it is not an error; the status is then MAX_ITER. 0 returns the initial
        mixture.
    n_init : int
        Number of starts. The fit with the highest bound is returned; a degenerate one only if all are.
    init : "kmeans", "kmeans-raw", "k-means++", "random_from_data", "random" or a Mixture
        - "kmeans": clusters of k-means. The first, third, ... of the ``n_init`` starts scale each feature by its
          standard deviation and, for "full" and "tied", try whitened rows as well: of the two, the start with the
          higher likelihood after a step of EM is used. The other starts, and all for "spherical", use the units of X.
        - "kmeans-raw": clusters of k-means, always in the units of X, as in scikit-learn.
        - "k-means++", "random_from_data": one row per component, chosen far from each other or drawn at random; all
          other rows have responsibility 0.
        - "random": random responsibilities.
        - a Mixture: the initial parameters, whose batch dims broadcast to those of X.
    reg_covar : float
        Added to every variance, in squared units of X.
    sample_weight : array or tensor ``[*batch, N]`` or ``[N]``
        Finite and not negative, positive for at least K rows. Rows of weight 0 are ignored and may contain anything.
    seed : int in [0, 2^63)
        Seed of the starts, which depend only on (seed, index of the problem, restart). If None, it is drawn from
        torch's generator.
    on_degenerate : "raise", "status" or "rescue"
        What to do if a component loses its rows, a covariance is not positive definite, or a problem cannot be fitted.
        "raise" raises an error for the first such problem. "status" reports it in the status of the problem. "rescue"
        reinitializes the component by splitting the widest other one and continues; problems that cannot be fitted are
        reported in the status. None means "raise" for one problem and "status" for a batch.
    progress : bool
        Whether to show a tqdm progress bar.
    backend : "auto", "triton", "numba" or "reference"
        A backend requested by name computes the call or raises.

    Returns
    -------
    MixtureFit
        Named tuple (mixture, log_likelihood, lower_bounds, n_iter, converged, status), detached from any graph.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type, shape or device, for negative weights, and as specified by ``on_degenerate``.
        In a batch, for example, inf or NaN in the data of one problem gives that problem the status NONFINITE.
    BackendError
        If the requested backend does not support the call.

    Warns
    -----
    UserWarning
        If ``reg_covar`` is as large as the variance of a feature that is not constant (for "spherical", the mean
        variance of all features): it then hides the differences between components in that feature.

    Notes
    -----
    Equivalent to ``sklearn.mixture.GaussianMixture(K, ...).fit(X)`` in iterations, stopping rule and defaults. Its
    ``lower_bounds_`` are those here without the last one, and it has no batches, sample weights or status.

    References
    ----------
    Dempster, Laird & Rubin (1977); Arthur & Vassilvitskii (2007) for k-means++.

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
    options["seed"] = checks.resolve_seed(seed)
    with torch.no_grad(), problems.progress_bar(progress) as report:
        problems.check_init_weights(task)
        fitted = problems.fit_all(checks.engine(backend, data.X), task, report, **options)
        if on_degenerate == "raise" or (on_degenerate is None and not data.batch):
            problems.raise_first_failure(task, fitted, options["reg_covar"])
    problems.warn_large_reg_covar(task, fitted, options["reg_covar"])
    fitted = fitted._replace(log_likelihood=fitted.log_likelihood * unit)
    mixture = data.mixture(fitted[:3], kind)
    converged = fitted.status & Status.CONVERGED != 0
    bounds = data.to_output(fitted.lower_bounds, torch.float64)
    if not data.batch:
        log_likelihood, n_iter, status = fitted.log_likelihood.item(), int(fitted.n_iter), Status(int(fitted.status))
        return MixtureFit(mixture, log_likelihood, bounds, n_iter, bool(converged), status)
    log_likelihood = data.to_output(fitted.log_likelihood, torch.float64)
    return MixtureFit(mixture, log_likelihood, bounds, *map(data.to_output, (fitted.n_iter, converged, fitted.status)))
