"""`LinearRegression`: scikit-learn's estimator, computed by `fastvae.regression`, with standard errors."""

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

FLOATS = [np.float64, np.float32]  # dtypes that X and y may keep; anything else is converted to the first
ERRORS = ("standard_errors_", "intercept_standard_error_", "sigma2_", "log_likelihood_", "r2_", "status_")
ESTIMATES = ("coef_", "intercept_", "rank_", *ERRORS)


class LinearRegression(sklearn.linear_model.LinearRegression):
    """Drop-in replacement for `sklearn.linear_model.LinearRegression`, with standard errors and `partial_fit`.

    y_n = W x_n + b + eps_n with eps_n ~ N(0, sigma2 / w_n). W and b are the (weighted) least-squares estimates, which
    are those of maximum likelihood. Parameters, attributes, shapes and errors are those of scikit-learn. The normal
    equations of centred and scaled columns are solved in float64 and, if necessary, corrected in double-double: one
    pass over X, and results at least as accurate as those of a QR factorisation.

    Parameters
    ----------
    fit_intercept : bool, default=True
        Whether to estimate b; otherwise it is 0.
    copy_X : bool, default=True
        Only used by scikit-learn's solver; fastvae never writes to X.
    tol, n_jobs : default=1e-6, None
        Only used by scikit-learn's solver. fastvae does not drop small singular values of X; see Notes.
    positive : bool, default=False
        Whether to constrain the coefficients to be nonnegative. This uses scikit-learn's solver, as sparse X does.

    Attributes
    ----------
    coef_, intercept_ : ndarray, float or ndarray
        W, ``[P]`` or ``[R, P]``, and b, a float or ``[R]``; 0.0 if ``fit_intercept=False``. In the dtype of X, like all
        that follow except ``log_likelihood_`` and ``r2_``, which are float64.
    standard_errors_, intercept_standard_error_ : ndarray, float or ndarray
        Standard errors of W and b, shaped like them, from the unbiased variance RSS / (N - rank - 1): statsmodels'
        ``bse``. NaN if there are no more rows than coefficients.
    sigma2_ : float or ndarray ``[R]``
        Maximum likelihood estimate RSS / N of the variance of a row of weight 1. N counts rows with w > 0.
    log_likelihood_ : float or ndarray ``[R]``
        Log likelihood at the estimates, in nats: statsmodels' ``llf``; +inf if RSS = 0.
    r2_ : float or ndarray ``[R]``
        1 - RSS / TSS of the fitted rows, TSS about the mean of y, or about 0 without an intercept: statsmodels'
        ``rsquared``. `score` always computes it about the mean.
    status_ : fastvae.Status
        ``REFINED`` or ``DOUBLE_DOUBLE`` if float64 was not enough, ``RANK_DEFICIENT`` if ``rank_ < P``.
    rank_ : int
        Rank of X, centred if an intercept is fitted.
    n_features_in_, feature_names_in_ : int, ndarray
        As in every scikit-learn estimator.

    Notes
    -----
    Equivalent to `sklearn.linear_model.LinearRegression` with ``tol=0``, and to ``statsmodels.api.WLS``. For dependent
    columns, both return the minimum-norm solution. Differences:

    - From version 1.9, scikit-learn drops all singular values of X below ``tol`` times the largest, so two columns of
      scale 1 and 1e-7 are treated as one. Here the scale of a column does not matter, and only columns that are
      dependent to the last digits of X are treated as such. Of the eleven data sets of the NIST StRD, ten are solved to
      13 digits or more, and Filip to 7.5.
    - ``singular_`` is missing, since X is not decomposed. If you need it, use
      ``np.linalg.svd(X - X.mean(0), compute_uv=False)``.
    - y is not rounded to the dtype of X before the fit.
    - Fits with ``positive=True``, of sparse X, or with scikit-learn's ``array_api_dispatch`` enabled are computed by
      scikit-learn and have only its attributes.

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
        """Estimate W, b and sigma2. Rows from earlier calls, of `partial_fit` too, are discarded.

        Parameters
        ----------
        X : array-like or sparse matrix ``[N, P]``
            Rows; float32 is kept, everything else is converted to float64.
        y : array-like ``[N]`` or ``[N, R]``
            One target, or several.
        sample_weight : array-like ``[N]`` or float, default=None
            Weights w >= 0; the variance of a row is sigma2 / w. A weight of 2 gives the same W and b as repeating the
            row, but counts as one row in the errors. Rows of weight 0 are ignored.

        Returns
        -------
        LinearRegression
            The estimator itself.

        Raises
        ------
        ValueError
            If an argument is invalid or contains NaN or infinity, or if no row has a positive weight.
        TypeError
            For sparse X with ``positive=True``, and for sparse y.
        """
        if not self.positive and not get_config()["array_api_dispatch"]:
            dense, targets, w = self._validate(X, y, sample_weight, accept_sparse=["csr", "csc", "coo"])
            if not issparse(dense):  # a data frame with sparse columns becomes sparse
                options = {"fit_intercept": self.fit_intercept, "on_singular": "ignore"}
                result = regression.fit(dense, targets, sample_weight=w, **options)
                self._clear()
                self._store(result, dense.dtype, self.fit_intercept)
                return self
        self._clear()
        return super().fit(X, y, sample_weight)

    def predict(self, X: Any) -> Array:
        """Predict W x + b.

        For data far from the origin it is computed about the means of the fit, which avoids the rounding error of
        ``intercept_``, unless ``coef_`` or ``intercept_`` was changed after the fit.

        Parameters
        ----------
        X : array-like or sparse matrix ``[N, P]``
            Rows.

        Returns
        -------
        ndarray ``[N]`` or ``[N, R]``
        """
        center = self._center_of_fit()
        if center is None or issparse(X) or get_config()["array_api_dispatch"]:
            return super().predict(X)
        X = validate_data(self, X, accept_sparse=["csr", "csc", "coo"], reset=False)
        if issparse(X):  # a data frame with sparse columns
            return super().predict(X)
        dtype = np.result_type(X, self.coef_)
        x0, y0 = (t.numpy() for t in center)
        x0_rounded = x0.astype(dtype)
        y0 = y0 + np.atleast_2d(self.coef_) @ (x0_rounded - x0)
        return (X - x0_rounded) @ self.coef_.T + (y0 if np.ndim(self.coef_) == 2 else y0[0]).astype(dtype)

    def _center_of_fit(self) -> Center | None:
        """The center for predictions, if they need it and the estimates have not been changed; otherwise None."""
        getattr(self, "coef_", None)  # solves for pending estimates of partial_fit
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
        """Add rows to those of all previous calls of `partial_fit`; equivalent to `fit` on all of them together.

        Only sums are stored, in double-double. The equations are solved on the next access to an estimate. Rows passed
        to `fit` are not included: the first call after it starts from scratch. If X has magnitudes above 1e140, which
        `fit` rescales, accessing an estimate raises ValueError.

        Parameters
        ----------
        X : array-like ``[N, P]``
            Rows, with as many features as before.
        y : array-like ``[N]`` or ``[N, R]``
            Targets, as many as before.
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
            With scikit-learn's ``array_api_dispatch`` enabled.
        AttributeError
            With ``positive=True``.

        Notes
        -----
        Equivalent to `fastvae.regression.Gram`, which also merges the sums of several processes.
        """
        if get_config()["array_api_dispatch"]:
            raise NotImplementedError("partial_fit is not implemented to work with 'array_api_dispatch' enabled.")
        sums = vars(self).get("_sums")
        X, y, sample_weight = self._validate(X, y, sample_weight, reset=sums is None)
        if sums is None:
            sums = _Sums(self.fit_intercept, y.shape[1:], X.dtype)
        sums.update(X, y, sample_weight, self.fit_intercept)
        self._clear()
        self._sums = sums
        return self

    def __getattr__(self, name: str) -> Any:
        """Solve for estimates after `partial_fit`, on first access."""
        state = vars(self)
        if name in ESTIMATES and "_sums" in state:
            sums = state["_sums"]
            self._store(sums.gram.solve(on_singular="ignore"), sums.dtype, sums.fit_intercept)
            return state[name]
        reason = ""
        if name == "partial_fit":
            reason = " with positive=True: scikit-learn's solver needs all rows at once"
        elif name in ERRORS and "coef_" in state:
            reason = ": this fit was computed by scikit-learn, as for sparse X or with positive=True"
        elif name == "singular_" and ("coef_" in state or "_sums" in state):
            reason = ": X was not decomposed; use np.linalg.svd(X - X.mean(0), compute_uv=False)"
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{reason}")

    def _validate(self, X: Any, y: Any, sample_weight: Any, **options: Any) -> tuple[Array, Array, Array | None]:
        X, y = validate_data(self, X, y, dtype=FLOATS, y_numeric=True, multi_output=True, **options)
        y = check_array(y, dtype=FLOATS, ensure_2d=False, ensure_all_finite=False, input_name="y")
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        return X, y, sample_weight

    def _store(self, fit: regression.RegressionFit, dtype: np.dtype, fit_intercept: bool) -> None:
        self.coef_, self.standard_errors_ = _cast(dtype, fit.coef), _cast(dtype, fit.standard_errors)
        self.intercept_ = _cast(dtype, fit.intercept) if fit_intercept else 0.0
        self.intercept_standard_error_ = _cast(dtype, fit.intercept_standard_error)
        self.sigma2_, self.log_likelihood_, self.r2_ = _cast(dtype, fit.sigma2), fit.log_likelihood, fit.r2
        self.rank_, self.status_ = int(fit.rank), Status(int(fit.status))
        W, b = torch.from_numpy(np.atleast_2d(fit.coef)), torch.from_numpy(np.atleast_1d(fit.intercept))
        if fit._is_far(W, b):
            self._center = fit._get_center()

    def _clear(self) -> None:
        for name in (*ESTIMATES, "singular_", "_sums", "_center"):
            self.__dict__.pop(name, None)


class _Sums:
    """The sums of `partial_fit`, and the properties that must be the same in all calls."""

    def __init__(self, fit_intercept: bool, targets: tuple[int, ...], dtype: np.dtype) -> None:
        self.fit_intercept, self.targets, self.dtype = fit_intercept, targets, dtype
        self.gram = regression.Gram(fit_intercept=fit_intercept)

    def update(self, X: Array, y: Array, sample_weight: Array | None, fit_intercept: bool) -> None:
        for name, value, previous in (
            ("fit_intercept", fit_intercept, self.fit_intercept),
            ("the shape of a row of y", y.shape[1:], self.targets),
        ):
            if value != previous:
                raise ValueError(
                    f"{name} is {value}, but was {previous} in the previous partial_fit; call fit to start again"
                )
        self.gram.update(X, y, sample_weight)
        self.dtype = np.result_type(self.dtype, X)


def _cast(dtype: np.dtype, value: Any) -> Any:
    return value.astype(dtype, copy=False)
