"""`fastvae.gmm.sweep`: fits for several numbers of components, and the criteria to choose among them."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from .._core.arrays import as_output
from .._core.checks import describe, integer
from . import _checks as checks
from ._chunks import Chunks
from ._fit import MixtureFit, fit
from ._scores import n_parameters


class MixtureSweep(NamedTuple):
    """What `sweep` returns, for J numbers of components.

    Attributes
    ----------
    n_components : list of int
        As they were asked for.
    fits : list of MixtureFit
        One for each of them.
    aic, bic : float64 ``[J, *batch]``
        Akaike's and the Bayesian criterion of each fit, lower is better; NaN for what has no fit.
    best : int, or int64 ``[*batch]``
        The number of components of the lowest BIC; 0 where a problem has no fit at all.
    """

    n_components: list[int]
    fits: list[MixtureFit]
    aic: Any
    bic: Any
    best: Any


def sweep(
    X: Any,
    n_components: Iterable[int],
    *,
    sample_weight: Any = None,
    seed: int | None = None,
    tol: float = 1e-5,
    max_iter: int = 1000,
    on_degenerate: str = "status",
    **options: Any,
) -> MixtureSweep:
    """Fit mixtures of several numbers of components K to the same data, and compare them.

        AIC = 2 p - 2 log L,    BIC = p log sum_n w_n - 2 log L,    p free parameters

    Parameters
    ----------
    X, sample_weight, seed, on_degenerate, **options
        As in `fit`; all K start from the same seed, and a K that is too large is by default a status and no error.
    tol, max_iter : float, int
        As in `fit`, but for their defaults: fits are compared by what they converge to, not by how soon EM slows down.
    n_components : iterable of int

    Returns
    -------
    MixtureSweep
        A named tuple (n_components, fits, aic, bic, best).

    Raises
    ------
    TypeError, ValueError, BackendError
        As `fit`; if no number of components is given.

    Notes
    -----
    Equivalent to a loop of scikit-learn's ``GaussianMixture(K).fit(X)`` and its ``bic(X)``. The problems of a batch run
    side by side, one K after the other. Source: Akaike (1974); Schwarz (1978).

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> X = np.random.default_rng(0).normal(size=(300, 2)) + np.repeat([[0.0], [9.0], [-9.0]], 100, axis=0)
    >>> found = fastvae.gmm.sweep(X, range(1, 6), seed=0, n_init=3)
    >>> found.best, found.fits[2].mixture.means.shape
    (3, (3, 2))
    """
    if isinstance(n_components, str) or not isinstance(n_components, Iterable):
        raise TypeError(f"n_components must be several numbers of components, got {describe(n_components)}")
    numbers = [integer("n_components", K, 1) for K in n_components]
    if not numbers:
        raise ValueError("n_components must hold at least one number of components, got none")
    chunked = callable(X) and not isinstance(X, torch.Tensor)
    data = Chunks(X).rows() if chunked else checks.rows(X)
    log_n = checks.log_rows(data, *checks.row_weights(sample_weight, data))  # [B]
    seed = checks.seed_or_drawn(seed)
    how = {
        "sample_weight": sample_weight,
        "seed": seed,
        "tol": tol,
        "max_iter": max_iter,
        "on_degenerate": on_degenerate,
    }
    fits = [fit(X, K, **how, **options) for K in numbers]
    parameters = torch.tensor([n_parameters(one.mixture) for one in fits])[:, None]  # [J, 1]
    log_l = torch.stack([torch.as_tensor(one.log_likelihood, dtype=torch.float64).reshape(-1) for one in fits])
    aic, bic = (price * parameters - 2 * log_l for price in (2.0, log_n))  # [J, B]
    known = torch.where(bic.isnan(), math.inf, bic)
    best = torch.where(known.isinf().all(0), 0, torch.tensor(numbers, device=bic.device)[known.argmin(0)])  # [B]
    shape = (len(numbers), *data.batch)
    aic, bic = (as_output(t.reshape(shape), data.numpy) for t in (aic, bic))
    return MixtureSweep(numbers, fits, aic, bic, data.back(best) if data.batch else int(best))
