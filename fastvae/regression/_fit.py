"""`fastvae.regression.fit`."""

from typing import Any

from .._core.checks import not_negative
from ..reference.regression.engine import mark_nonfinite
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

    With Xc and yc the data minus their weighted means (without an intercept, the data themselves), and D = diag(w):

        W = (Xc'D Xc + alpha I)^-1 Xc'D yc,    b = ybar - W xbar,    sigma2 = RSS / N,

        log L = -1/2 sum_n [log(2 pi sigma2) - log w_n + w_n (y_n - W x_n - b)^2 / sigma2].

    Parameters
    ----------
    X : array or tensor ``[*batch, N, P]``, or ``[N]`` with y ``[N]``
        The regressors, without a column of ones.
    y : array or tensor ``[*batch, N]`` or ``[*batch, N, R]``
        One target, or several targets with the same X and weights if y has as many dims as X.
    sample_weight : array or tensor ``[*batch, N]`` or ``[N]``
        Weights w: the variance of a row is sigma2 / w. A weight of 2 gives the same W and b as repeating the row, but
        counts as one row in N and df. Rows of weight 0 are ignored and may contain anything.
    alpha : float
        Ridge penalty on the sum of squares of W, in the units of X; b is not penalized.
    fit_intercept : bool
        Whether to estimate b; otherwise it is 0.
    precision : "auto", "float64" or "double-double"
        Precision of the normal equations. "auto" computes a bound on the error of each coefficient of the float64
        solution. If the bound is too large, the solution is corrected with residuals in double-double, or the problem
        is solved again in double-double; the status says which. The reference uses QR in float64 and does not support
        "double-double".
    on_singular : "warn", "raise" or "ignore"
        What to do if the columns of X (minus their means, if there is an intercept) are linearly dependent. Unless an
        error is raised, the minimum-norm solution is returned with the status RANK_DEFICIENT.
    backend : "auto", "triton", "numba" or "reference"
        A backend requested by name computes the call or raises.

    Returns
    -------
    RegressionFit
        Detached from any graph, unless X, y or sample_weight requires grad and grad mode is enabled.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type, shape or device, and for negative weights. For a single problem, also if the
        data contain inf or NaN, or if no row has a positive weight. In a batch, the status of such a problem is
        NONFINITE or TOO_FEW_ROWS, its results are NaN, and the other problems are fitted. If only some of several
        targets contain inf or NaN, the other targets of that problem are fitted as well; for a single problem, pass
        ``X[None], y[None]``, a batch of one.
    numpy.linalg.LinAlgError
        If columns are linearly dependent and ``on_singular="raise"``.
    BackendError
        If the requested backend does not support the call.

    Warns
    -----
    numpy.exceptions.RankWarning
        If columns are linearly dependent and ``on_singular="warn"``. Before NumPy 2 it is ``numpy.RankWarning``.

    Notes
    -----
    Equivalent to ``statsmodels.api.WLS(y, add_constant(X), weights).fit()`` on the rows with w > 0; to
    ``LinearRegression`` and ``Ridge(alpha)`` in scikit-learn; for W and b only, to
    ``torch.linalg.lstsq(torch.cat([ones, X], -1), y)``; and to a loop of these over a batch.

    References
    ----------
    Björck (1996), ch. 2; for the refinement, Demmel, Hida, Riedy & Li (2009).

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
    w, invalid = checks.row_weights(sample_weight, data.form, data.X.shape[1])
    engine = checks.engine(checks.engine_name(backend, precision, data.X, data.y, w))
    fitted = engine.fit(data.X, data.y, sample_weight=w, **options)
    flags, nonfinite_targets = problems.combined_flags(fitted.status), None
    if flags & problems.NONFINITE and data.form.batch and data.form.R > 1:
        data, fitted, nonfinite_targets = problems.replace_nonfinite_targets(engine, data, w, fitted, options)
        flags = problems.combined_flags(fitted.status)
    if flags & problems.MAYBE_OUT_OF_RANGE or problems.has_extreme_values(fitted, w is not None):
        fitted = problems.refit_rescaled(engine, data, w, fitted, options)
        flags = problems.combined_flags(fitted.status)
    if w is not None and flags & problems.ILL_CONDITIONED and engine is not problems.reference_engine:
        fitted = problems.refit_heavy_rows(data, w, fitted, options)
        flags = problems.combined_flags(fitted.status)
    if nonfinite_targets is not None:
        fitted = mark_nonfinite(fitted, nonfinite_targets)
    if invalid is not None:
        fitted = mark_nonfinite(fitted, invalid)
    if flags & problems.UNFITTED and not data.form.batch:
        problems.raise_unfitted(data, w, fitted)
    if flags & problems.RANK_DEFICIENT and options["alpha"] > 0:
        fitted = problems.as_full_rank(fitted, fit_intercept)
    elif flags & problems.RANK_DEFICIENT:
        problems.report_singular(fitted, data.form, fit_intercept, on_singular)
    return RegressionFit._of(fitted, data.form, options["alpha"], fit_intercept)
