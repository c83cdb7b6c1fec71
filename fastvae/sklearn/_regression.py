"""`LinearRegression`: scikit-learn's estimator, with the digits and the errors of `fastvae.regression`."""

from typing import Any

import numpy as np
import sklearn.linear_model
import torch
from scipy.sparse import issparse
from sklearn import get_config
from sklearn.base import _fit_context
from sklearn.utils import check_array
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, validate_data

from .. import regression
from .._core.status import Status
from ..regression._predict import Center

Array = np.ndarray

FLOATS = [np.float64, np.float32]  # what X and y are kept in; anything else becomes the first
ERRORS = ("standard_errors_", "intercept_standard_error_", "sigma2_", "log_likelihood_", "r2_", "status_")
ESTIMATES = ("coef_", "intercept_", "rank_", *ERRORS)


class LinearRegression(sklearn.linear_model.LinearRegression):
    """`sklearn.linear_model.LinearRegression` by `fastvae.regression`, with standard errors and `partial_fit`.

    y_n = W x_n + b + eps_n with eps_n ~ N(0, sigma2 / w_n): W and b of least (weighted) squares, which are those of
    maximum likelihood. A drop-in: parameters, attributes, shapes and errors are scikit-learn's. The normal equations
    are those of centred, scaled columns, and what float64 leaves open in their solution is corrected in double-double:
    one pass over X, and at least as many digits as a QR factorisation has.

    Parameters
    ----------
    fit_intercept : bool, default=True
        Whether b is estimated; else it is 0.
    copy_X : bool, default=True
        Only for scikit-learn's solver: ours never writes to X.
    tol, n_jobs : default=1e-6, None
        Only for scikit-learn's solver. Ours drops no direction of X for being small; see Notes.
    positive : bool, default=False
        Whether no coefficient may be negative. scikit-learn's solver does this, as it fits sparse X.

    Attributes
    ----------
    coef_, intercept_ : ndarray, float or ndarray
        W, ``[P]`` or ``[R, P]``, and b, a float or ``[R]``; 0.0 if ``fit_intercept=False``. Of the dtype of X, as all
        that follow but ``log_likelihood_`` and ``r2_``, which are float64.
    standard_errors_, intercept_standard_error_ : ndarray, float or ndarray
        Of W and b, shaped like them, by the unbiased variance RSS / (N - rank - 1): statsmodels' ``bse``. NaN where
        there are no more rows than coefficients.
    sigma2_ : float or ndarray ``[R]``
        The maximum likelihood estimate RSS / N of the variance of a row of weight 1. N counts rows with w > 0.
    log_likelihood_ : float or ndarray ``[R]``
        At the estimates, in nats: statsmodels' ``llf``; +inf where RSS = 0.
    r2_ : float or ndarray ``[R]``
        1 - RSS / TSS of the rows fitted, TSS about the mean of y, or about 0 without an intercept: statsmodels'
        ``rsquared``. `score` takes it about the mean in either case.
    status_ : fastvae.Status
        ``REFINED`` or ``DOUBLE_DOUBLE`` if float64 was not enough, ``RANK_DEFICIENT`` if ``rank_ < P``.
    rank_ : int
        Of the columns of X, centred if an intercept is fitted.
    n_features_in_, feature_names_in_ : int, ndarray
        As in every scikit-learn estimator.

    Notes
    -----
    Equivalent to `sklearn.linear_model.LinearRegression` with ``tol=0``, and to ``statsmodels.api.WLS``. The solution
    of dependent columns is the same, that of minimum norm. Differences:

    - scikit-learn from 1.9 on drops all directions of X with a singular value below ``tol`` times the largest: two
      columns of scale 1 and 1e-7 are one to it. Here a column's scale does not matter, and dependent are columns that
      are so to the last digits of X. Of the eleven sets of NIST's StRD ten come out to 13 digits or more, Filip to 7.5;
    - ``singular_`` is missing: no decomposition of X is made. Where it is wanted,
      ``np.linalg.svd(X - X.mean(0), compute_uv=False)`` gives it;
    - y is not rounded to the dtype of X before the fit;
    - a fit with ``positive=True``, of sparse X, or with scikit-learn's ``array_api_dispatch`` on is scikit-learn's
      own and has its attributes alone.

    Examples
    --------
    >>> import numpy as np
    >>> from fastvae.sklearn import LinearRegression
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([1.0, 3.0, 5.0, 8.0])
    >>> model = LinearRegression().fit(X, y)
    >>> print(f"{model.coef_[0]:.4f} +- {model.standard_errors_[0]:.4f}, from {model.intercept_:.4f}")
    2.3000 +- 0.1732, from 0.8000
    >>> for rows in (slice(0, 2), slice(2, 4)):
    ...     model = model.partial_fit(X[rows], y[rows])
    >>> model.predict([[4.0]]).round(4)
    array([10.])
    """

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "LinearRegression":
        """Estimate W, b and sigma2, forgetting any earlier rows.

        Parameters
        ----------
        X : array-like or sparse matrix ``[N, P]``
            Rows; float32 is kept, everything else becomes float64.
        y : array-like ``[N]`` or ``[N, R]``
            One target, or several.
        sample_weight : array-like ``[N]`` or float, default=None
            Weights w >= 0, the variance of a row being sigma2 / w. A weight of 2 gives the W and b of the row twice,
            but counts as one row in the errors; one of 0 is no row.

        Returns
        -------
        LinearRegression
            The estimator itself.

        Raises
        ------
        ValueError
            For arguments that are not as above, with NaN or infinity in them, or without any weight.
        TypeError
            For sparse X with ``positive=True``, and for sparse y.
        """
        if not self.positive and not get_config()["array_api_dispatch"]:
            dense, targets, w = self._checked(X, y, sample_weight, accept_sparse=["csr", "csc", "coo"])
            if not issparse(dense):  # a frame of sparse columns is
                options = {"fit_intercept": self.fit_intercept, "on_singular": "ignore"}
                result = regression.fit(dense, targets, sample_weight=w, **options)
                self._forget()
                self._keep(result, dense.dtype, self.fit_intercept)
                return self
        self._forget()
        return super().fit(X, y, sample_weight)

    def predict(self, X: Any) -> Array:
        """W x + b, ``[N]`` or ``[N, R]``.

        Far from the origin it is taken about the means of the fit, which keeps the digits that ``intercept_`` cannot
        hold, as long as ``coef_`` and ``intercept_`` are those of the fit.

        Parameters
        ----------
        X : array-like or sparse matrix ``[N, P]``

        Returns
        -------
        ndarray
        """
        center = self._center_of_fit()
        if center is None or issparse(X) or get_config()["array_api_dispatch"]:
            return super().predict(X)
        X = validate_data(self, X, accept_sparse=["csr", "csc", "coo"], reset=False)
        if issparse(X):  # a frame of sparse columns
            return super().predict(X)
        dtype = np.result_type(X, self.coef_)
        x0, y0 = (t.numpy() for t in center)
        near = x0.astype(dtype)
        y0 = y0 + np.atleast_2d(self.coef_) @ (near - x0)  # what that rounds
        return (X - near) @ self.coef_.T + (y0 if np.ndim(self.coef_) == 2 else y0[0]).astype(dtype)

    def _center_of_fit(self) -> Center | None:
        """The means, where W x is far larger than what they leave of it, and estimates still agree with them."""
        getattr(self, "coef_", None)  # what partial_fit has left to be solved for
        center = vars(self).get("_center")
        if center is None:
            return None
        W, b = np.atleast_2d(self.coef_).astype(np.float64), np.atleast_1d(self.intercept_)
        x0, y0 = (t.numpy() for t in center)
        if W.shape != (len(y0), len(x0)) or b.shape != y0.shape:
            return None
        allowed = 4 * len(x0) * np.finfo(np.result_type(self.coef_)).eps * (np.abs(W) @ np.abs(x0) + np.abs(b))
        return center if (np.abs(b + W @ x0 - y0) <= allowed).all() else None

    @available_if(lambda self: not self.positive)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> "LinearRegression":
        """Estimate from these rows and those of all calls of `partial_fit` before: the `fit` of them together.

        Only sums are kept, in double-double, and the equations solved when an estimate is next asked for. Rows that
        `fit` has seen do not count: after it, the first call begins anew. Magnitudes of X beyond 1e140, which `fit`
        scales, are a ValueError when an estimate is asked for.

        Parameters
        ----------
        X : array-like ``[N, P]``
        y : array-like ``[N]`` or ``[N, R]``
            As many features and targets as before.
        sample_weight : array-like ``[N]`` or float, default=None
            As in `fit`.

        Returns
        -------
        LinearRegression
            The estimator itself.

        Raises
        ------
        ValueError
            As in `fit`, and if ``fit_intercept`` or the number of features or targets has changed.
        TypeError
            For sparse X or y.
        NotImplementedError
            With scikit-learn's ``array_api_dispatch`` on.
        AttributeError
            With ``positive=True``.

        Notes
        -----
        Equivalent to `fastvae.regression.Gram`, which also merges the sums of several processes.
        """
        if get_config()["array_api_dispatch"]:
            raise NotImplementedError("partial_fit is not implemented to work with 'array_api_dispatch' enabled.")
        sums = vars(self).get("_sums")
        X, y, sample_weight = self._checked(X, y, sample_weight, reset=sums is None)
        if sums is None:
            sums = _Sums(self.fit_intercept, y.shape[1:], X.dtype)
        sums.update(X, y, sample_weight, self.fit_intercept)
        self._forget()
        self._sums = sums
        return self

    def __getattr__(self, name: str) -> Any:
        """Estimates that `partial_fit` has left to be solved for; only called for what is not there."""
        state = vars(self)
        if name in ESTIMATES and "_sums" in state:
            sums = state["_sums"]
            self._keep(sums.gram.solve(on_singular="ignore"), sums.dtype, sums.fit_intercept)
            return state[name]
        reason = ""
        if name == "partial_fit":
            reason = " with positive=True: scikit-learn's solver wants all rows at once"
        elif name in ERRORS and "coef_" in state:
            reason = ": this fit was scikit-learn's own, as of sparse X or with positive=True"
        elif name == "singular_" and ("coef_" in state or "_sums" in state):
            reason = ": no decomposition of X was made; try np.linalg.svd(X - X.mean(0), compute_uv=False)"
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{reason}")

    def _checked(self, X: Any, y: Any, sample_weight: Any, **options: Any) -> tuple[Array, Array, Array | None]:
        X, y = validate_data(self, X, y, dtype=FLOATS, y_numeric=True, multi_output=True, **options)
        y = check_array(y, dtype=FLOATS, ensure_2d=False, ensure_all_finite=False, input_name="y")
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        return X, y, sample_weight

    def _keep(self, fit: regression.RegressionFit, dtype: np.dtype, fit_intercept: bool) -> None:
        self.coef_, self.standard_errors_ = _as(dtype, fit.coef), _as(dtype, fit.standard_errors)
        self.intercept_ = _as(dtype, fit.intercept) if fit_intercept else 0.0
        self.intercept_standard_error_ = _as(dtype, fit.intercept_standard_error)
        self.sigma2_, self.log_likelihood_, self.r2_ = _as(dtype, fit.sigma2), fit.log_likelihood, fit.r2
        self.rank_, self.status_ = int(fit.rank), Status(int(fit.status))
        W, b = torch.from_numpy(np.atleast_2d(fit.coef)), torch.from_numpy(np.atleast_1d(fit.intercept))
        if fit._is_far(W, b):
            self._center = fit._about()

    def _forget(self) -> None:
        for name in (*ESTIMATES, "singular_", "_sums", "_center"):
            self.__dict__.pop(name, None)


class _Sums:
    """What `partial_fit` keeps of its rows, and what all of them must agree in."""

    def __init__(self, fit_intercept: bool, targets: tuple[int, ...], dtype: np.dtype) -> None:
        self.fit_intercept, self.targets, self.dtype = fit_intercept, targets, dtype
        self.gram = regression.Gram(fit_intercept=fit_intercept)

    def update(self, X: Array, y: Array, sample_weight: Array | None, fit_intercept: bool) -> None:
        for name, now, before in (
            ("fit_intercept", fit_intercept, self.fit_intercept),
            ("the shape of a row of y", y.shape[1:], self.targets),
        ):
            if now != before:
                raise ValueError(f"{name} is {now}, but was {before} in the partial_fit before; fit begins anew")
        self.gram.update(X, y, sample_weight)
        self.dtype = np.result_type(self.dtype, X)


def _as(dtype: np.dtype, value: Any) -> Any:
    return value.astype(dtype, copy=False)
