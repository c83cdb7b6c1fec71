"""`fastvae.regression.fit`: what it promises."""

from typing import Any

from .._core.checks import not_negative
from ..reference.regression.engine import mark_lost
from . import _checks as checks
from . import _problems as problems
from ._result import RegressionFit


def fit(
    X: Any,
    y: Any,
    *,
    sample_weight: Any = None,
    alpha: float = 0.0,
    fit_intercept: bool = True,
    precision: str = "auto",
    on_singular: str = "warn",
    backend: str = "auto",
) -> RegressionFit:
    """Fit a linear regression, or one to each problem of a batch, with standard errors, likelihood and status.

    With Xc and yc the data less their weighted means (or as they are, without an intercept), and D = diag(w):

        W = (Xc'D Xc + alpha I)^-1 Xc'D yc,    b = ybar - W xbar,    sigma2 = RSS / N,

        log L = -1/2 sum_n [log(2 pi sigma2) - log w_n + w_n (y_n - W x_n - b)^2 / sigma2].

    Parameters
    ----------
    X : array or tensor ``[*batch, N, P]``, or ``[N]`` with y ``[N]``
    y : array or tensor ``[*batch, N]`` or ``[*batch, N, R]``
        One target or several, which share X and weights: read from y.ndim against X.ndim.
    sample_weight : array or tensor ``[*batch, N]`` or ``[N]``
        A row's variance is sigma2 / w. A weight of 2 gives W and b of the row twice, but counts as one row in N and
        df; a row of weight 0 counts nowhere, whatever it holds.
    alpha : float
        Ridge penalty on the sum of squares of W, in units of X as given; never on b.
    fit_intercept : bool
        Whether b is estimated; else it is 0.
    precision : "auto", "float64" or "double-double"
        Of normal equations. "auto" bounds the error of each coefficient of the float64 solution, and corrects it by
        residuals in double-double, or solves anew in double-double, where the bound is not good enough; the status says
        which. The reference computes by QR in float64, and has no "double-double".
    on_singular : "warn", "raise" or "ignore"
        Where the columns of X are linearly dependent, about their means if there is an intercept: the solution is that
        of minimum norm and the status says RANK_DEFICIENT in any case.
    backend : "auto", "triton", "numba" or "reference"

    Returns
    -------
    RegressionFit
        Detached from any graph, unless X, y or sample_weight requires grad under grad mode.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, shape or device, and for negative weights. For inf or NaN in one problem, and
        where it has no row of positive weight; in a batch the status of that problem says NONFINITE or TOO_FEW_ROWS,
        its results are NaN, and all others are answered. Where some of several targets alone hold inf or NaN, so are
        the other targets of that problem, and ``X[None], y[None]`` is a batch of one.
    numpy.linalg.LinAlgError
        For linearly dependent columns, with ``on_singular="raise"``.
    BackendError
        If the backend named cannot serve the call.

    Warns
    -----
    numpy.exceptions.RankWarning
        For linearly dependent columns, with ``on_singular="warn"``. Before NumPy 2 it is ``numpy.RankWarning``.

    Notes
    -----
    Equivalent to ``statsmodels.api.WLS(y, add_constant(X), weights).fit()`` on the rows with w > 0; to
    ``LinearRegression`` and ``Ridge(alpha)`` in scikit-learn; for W and b alone to
    ``torch.linalg.lstsq(torch.cat([ones, X], -1), y)``; and to a loop of them over a batch.
    Source: Björck (1996), ch. 2; refinement by Demmel, Hida, Riedy & Li (2009).

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> X, y = np.array([0.0, 1, 2, 3]), np.array([1.0, 3, 5, 8])
    >>> fit = fastvae.regression.fit(X, y)
    >>> print(f"{fit.coef:.2f} {fit.intercept:.2f} {fit.sigma2:.3f} {fit.sigma2_unbiased:.3f}")  # RSS / 4, RSS / 2
    2.30 0.80 0.075 0.150
    >>> print(f"{fit.standard_errors:.4f} {fit.p_values:.4f} {fit.r2:.4f}")
    0.1732 0.0056 0.9888
    >>> many = fastvae.regression.fit(np.stack([X, X**2, X * np.nan])[..., None], np.stack([y, y, y]))
    >>> many.coef.round(3)
    array([[2.3  ],
           [0.724],
           [  nan]])
    >>> many[2].status
    <Status.NONFINITE: 16>
    """
    options: dict[str, Any] = {
        "alpha": not_negative("alpha", alpha),
        "fit_intercept": checks.flag("fit_intercept", fit_intercept),
        "precision": checks.choice("precision", precision, checks.PRECISIONS),
    }
    checks.choice("on_singular", on_singular, checks.ON_SINGULAR)
    data = checks.data(X, y)
    w, lost = checks.row_weights(sample_weight, data.form, data.X.shape[1])
    engine = checks.engine(checks.engine_name(backend, precision, data.X, data.y, w))
    fitted = engine.fit(data.X, data.y, sample_weight=w, **options)
    told, lost_targets = problems.flags(fitted.status), None
    if told & problems.NONFINITE and data.form.batch and data.form.R > 1:
        data, fitted, lost_targets = problems.without_lost_targets(engine, data, w, fitted, options)
        told = problems.flags(fitted.status)
    if told & problems.SUSPECT or problems.extreme(fitted, w is not None):
        fitted = problems.rescaled(engine, data, w, fitted, options)
        told = problems.flags(fitted.status)
    if w is not None and told & problems.STRAINED and engine is not problems.reference_engine:
        fitted = problems.with_heavy_rows(data, w, fitted, options)
        told = problems.flags(fitted.status)
    if lost_targets is not None:
        fitted = mark_lost(fitted, lost_targets)
    if lost is not None:
        fitted = mark_lost(fitted, lost)
    if told & problems.UNFITTED and not data.form.batch:
        problems.refuse(data, w, fitted)
    if told & problems.RANK_DEFICIENT and options["alpha"] > 0:
        fitted = problems.of_full_rank(fitted, fit_intercept)
    elif told & problems.RANK_DEFICIENT:
        problems.say_singular(fitted, data.form, fit_intercept, on_singular)
    return RegressionFit._of(fitted, data.form, options["alpha"], fit_intercept)
