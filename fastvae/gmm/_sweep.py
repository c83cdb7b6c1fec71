"""`fastvae.gmm.sweep`: fits for several numbers of components, and the criteria to choose between them."""

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
    """Result of `sweep`, for J numbers of components.

    Attributes
    ----------
    n_components : list of int
        The numbers of components, in the order given.
    fits : list of MixtureFit
        One fit for each number of components.
    aic, bic : float64 ``[J, *batch]``
        The Akaike and the Bayesian information criterion of each fit; lower is better. NaN if there is no fit.
    best : int, or int64 ``[*batch]``
        The number of components with the lowest BIC; 0 if a problem has no fit at all.
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
    """Fit mixtures with several numbers of components K to the same data, and compare them.

        AIC = 2 p - 2 log L,    BIC = p log sum_n w_n - 2 log L,    p free parameters

    Parameters
    ----------
    X, sample_weight, seed, on_degenerate, **options
        As in `fit`. All fits use the same seed. By default, a K that is too large gives a status, not an error.
    n_components : iterable of int
        The numbers of components to try.
    tol, max_iter : float, int
        As in `fit`, but with stricter defaults, so that converged fits are compared.

    Returns
    -------
    MixtureSweep
        Named tuple (n_components, fits, aic, bic, best).

    Raises
    ------
    TypeError, ValueError, BackendError
        Same as `fit`; also if no number of components is given.

    Notes
    -----
    Equivalent to a loop of scikit-learn's ``GaussianMixture(K).fit(X)`` and its ``bic(X)``. The problems of a batch are
    fitted in parallel, one K after the other.

    References
    ----------
    Akaike (1974); Schwarz (1978).

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> X = np.random.default_rng(0).normal(size=(300, 2)) + np.repeat([[0.0], [9.0], [-9.0]], 100, axis=0)
    >>> result = fastvae.gmm.sweep(X, range(1, 6), seed=0, n_init=3)
    >>> result.best, result.fits[2].mixture.means.shape
    (3, (3, 2))
    """
    if isinstance(n_components, str) or not isinstance(n_components, Iterable):
        raise TypeError(f"n_components must be an iterable of ints, got {describe(n_components)}")
    numbers = [integer("n_components", K, 1) for K in n_components]
    if not numbers:
        raise ValueError("n_components must hold at least one number of components, got none")
    chunked = callable(X) and not isinstance(X, torch.Tensor)
    data = Chunks(X).rows() if chunked else checks.rows(X)
    log_n = checks.log_total_weight(data, *checks.row_weights(sample_weight, data))  # [B]
    seed = checks.resolve_seed(seed)
    common = {
        "sample_weight": sample_weight,
        "seed": seed,
        "tol": tol,
        "max_iter": max_iter,
        "on_degenerate": on_degenerate,
    }
    fits = [fit(X, K, **common, **options) for K in numbers]
    parameters = torch.tensor([n_parameters(one.mixture) for one in fits])[:, None]  # [J, 1]
    log_l = torch.stack([torch.as_tensor(one.log_likelihood, dtype=torch.float64).reshape(-1) for one in fits])
    aic, bic = (penalty * parameters - 2 * log_l for penalty in (2.0, log_n))  # [J, B]
    bic_or_inf = torch.where(bic.isnan(), math.inf, bic)
    lowest = torch.tensor(numbers, device=bic.device)[bic_or_inf.argmin(0)]
    best = torch.where(bic_or_inf.isinf().all(0), 0, lowest)  # [B]
    shape = (len(numbers), *data.batch)
    aic, bic = (as_output(t.reshape(shape), data.numpy) for t in (aic, bic))
    return MixtureSweep(numbers, fits, aic, bic, data.to_output(best) if data.batch else int(best))
