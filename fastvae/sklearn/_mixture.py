"""`GaussianMixture`: scikit-learn's estimator, with EM computed by `fastvae.gmm`."""

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import sklearn.mixture
from sklearn import get_config
from sklearn.base import _fit_context
from sklearn.cluster import kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from .. import gmm
from .._core.status import Status

Array = np.ndarray

FLOATS = [np.float64, np.float32]  # dtypes that X may keep; anything else is converted to the first
# From version 1.8, scikit-learn's checks take the array namespace.
NAMESPACE = (
    {"xp": np} if "xp" in inspect.signature(sklearn.mixture.GaussianMixture._check_parameters).parameters else {}
)


class EMRun(NamedTuple):
    """The result of EM from one initialization; ``lower_bounds`` has the bound before each iteration."""

    mixture: gmm.Mixture
    lower_bounds: list[float]
    lower_bound: float
    converged: bool
    status: Status


class GaussianMixture(sklearn.mixture.GaussianMixture):
    """Drop-in replacement for `sklearn.mixture.GaussianMixture`, with EM by `fastvae.gmm` and with sample weights.

    p(x) = sum_k weights_k N(x; means_k, covariances_k). Parameters, defaults, attributes, order of iterations,
    convergence rule, warm start, verbose output, errors and warnings are those of scikit-learn. Each iteration of EM is
    one pass over X, which never stores the ``[N, K]`` responsibilities and computes every sum about the mean of its
    component: data 1e8 standard deviations from the origin (1e3 in float32) are fitted accurately, for each covariance
    type.

    Parameters
    ----------
    n_components : int, default=1
        Number of components K.
    covariance_type : {"full", "tied", "diag", "spherical"}, default="full"
        One covariance ``[D, D]`` per component, one for all components, D variances per component, or one variance per
        component.
    tol, reg_covar, max_iter, n_init : default=1e-3, 1e-6, 100, 1
        EM stops when the mean log likelihood per row changes by less than ``tol``; ``reg_covar`` is added to each
        variance; the best of ``n_init`` initializations is kept. ``max_iter=0`` returns the initialization.
    init_params : {"kmeans", "k-means++", "random", "random_from_data"}, default="kmeans"
        "kmeans" is "kmeans-raw" of `fastvae.gmm.fit`; the others have the starts of scikit-learn (see Notes).
    weights_init, means_init, precisions_init : array-like, default=None
        Initial parameters that replace those of ``init_params``.
    random_state, warm_start, verbose, verbose_interval : default=None, False, 0, 10
        As in scikit-learn. Verbose output is printed during the fit, every ``verbose_interval`` iterations.

    Attributes
    ----------
    weights_, means_, covariances_, precisions_, precisions_cholesky_ : ndarray
        ``[K]``, ``[K, D]``, and by covariance type ``[K, D, D]``, ``[D, D]``, ``[K, D]`` or ``[K]``; float32 for
        float32 data. Predictions use ``precisions_cholesky_``, even if you set it yourself.
    converged_, n_iter_, lower_bound_, lower_bounds_ : bool, int, float, list of float
        Of the best initialization. Lower bounds are per unit weight, and of the parameters before each iteration, so
        ``lower_bound_`` is one step older than ``score``.
    status_ : fastvae.Status
        Of the best initialization: CONVERGED or MAX_ITER, and RESCUED if a component was reinitialized during EM.
    n_features_in_, feature_names_in_ : int, ndarray
        As in every scikit-learn estimator.

    Notes
    -----
    Equivalent to `sklearn.mixture.GaussianMixture`. From the same start it finds the same parameters in the same number
    of iterations, and for the same ``random_state`` it has the same start, with these differences:

    - "kmeans": fastvae has its own k-means with other random draws. Components are in a different order, and if there
      are several local optima, a different one may be found.
    - "k-means++" and "random_from_data", which give each component one row: initial weights are 1/K (in scikit-learn
      1/N), and an initial tied covariance is ``reg_covar`` times the identity (in scikit-learn the sum of squares of
      all rows about the origin over K, so wide that the components coincide).
    - A component that loses its rows, or whose covariance is not positive definite despite ``reg_covar`` > 0, is
      reinitialized by splitting the widest other one (in scikit-learn it stays empty, or an error is raised). With
      ``reg_covar=0`` both raise scikit-learn's error about ill-defined covariances.

    With scikit-learn's ``array_api_dispatch`` enabled, scikit-learn's own code runs, and sample weights are not
    supported.

    Examples
    --------
    >>> import numpy as np
    >>> from fastvae.sklearn import GaussianMixture
    >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> model = GaussianMixture(2, random_state=0).fit(X, sample_weight=[1, 1, 1, 2, 2, 2])
    >>> sorted(model.weights_.round(3).tolist())
    [0.333, 0.667]
    >>> labels = model.predict([[0, 0], [12, 3]])
    >>> model.means_[labels].round(3)
    array([[ 1.,  2.],
           [10.,  2.]])
    """

    lower_bound_: float

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "GaussianMixture":
        """Estimate the parameters by EM.

        Parameters
        ----------
        X : array-like ``[N, D]``
            Rows; float32 is kept, everything else is converted to float64.
        y : ignored
            For compatibility with scikit-learn.
        sample_weight : array-like ``[N]``, default=None
            Weights >= 0. A weight of 2 is equivalent to repeating the row, and a weight of 0 to removing it: the bound
            and its optima are the same. The rows drawn by an initialization depend on the number of rows.

        Returns
        -------
        GaussianMixture
            The estimator itself.

        Raises
        ------
        ValueError
            If an argument is invalid, if there are fewer rows of positive weight than components, or if a covariance is
            not positive definite.

        Warns
        -----
        ConvergenceWarning
            If the best initialization did not converge within ``max_iter`` iterations, or one of its components was
            reinitialized; with k-means, if X has fewer distinct points than components.
        UserWarning
            If ``reg_covar`` is as large as the variance of a feature, as in `fastvae.gmm.fit`.
        """
        if _array_api(sample_weight):
            super().fit_predict(X)
        else:
            self._fit(X, sample_weight)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Array:
        """Fit, and return the labels ``[N]``: ``fit(X, sample_weight=sample_weight).predict(X)``."""
        if _array_api(sample_weight):
            return super().fit_predict(X)
        X = self._fit(X, sample_weight)
        return gmm.predict(X, self._mixture())

    def score_samples(self, X: Any) -> Array:
        """Log density log p(x_n) of each row, ``[N]``, in nats."""
        return super().score_samples(X) if _array_api() else self._evaluate(gmm.score_samples, X)

    def predict(self, X: Any) -> Array:
        """Label of each row, ``[N]``: the component with the largest posterior probability."""
        return super().predict(X) if _array_api() else self._evaluate(gmm.predict, X)

    def predict_proba(self, X: Any) -> Array:
        """Posterior probability p(z=k | x_n) of each component, ``[N, K]``."""
        return super().predict_proba(X) if _array_api() else self._evaluate(gmm.predict_proba, X)

    def _evaluate(self, function: Callable[..., Array], X: Any) -> Array:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=FLOATS, reset=False)
        values = function(X, self._mixture())
        # The parameters were passed as float64, whatever their dtype.
        return values if values.dtype.kind == "i" else values.astype(np.result_type(X, self.means_), copy=False)

    def _fit(self, X: Any, sample_weight: Any) -> Array:
        X = validate_data(self, X, dtype=FLOATS, ensure_min_samples=2)
        rows = len(X)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            rows = int(np.count_nonzero(sample_weight))
            # Scaled by a power of 2, without rounding, so that no sum overflows. The fit does not depend on the scale.
            sample_weight = np.ldexp(sample_weight, -np.frexp(sample_weight.max())[1])
        if rows < self.n_components:
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = {self.n_components}, n_samples = {rows}"
                + (" of positive weight" if rows < len(X) else "")
            )
        self._check_parameters(X, **NAMESPACE)
        warm = self.warm_start and hasattr(self, "converged_")
        random_state = check_random_state(self.random_state)
        user_init = (self.weights_init, self.means_init, self.precisions_init)
        if self.init_params == "kmeans" and not warm and any(parameter is None for parameter in user_init):
            self._warn_few_distinct(X if sample_weight is None else X[sample_weight > 0])
        best: EMRun | None = None
        for init in range(1 if warm else self.n_init):
            self._print_verbose_msg_init_beg(init)
            start, status = (self._mixture(), Status(0)) if warm else self._start(X, sample_weight, random_state)
            em_run = self._run_em(X, sample_weight, start, status, self.lower_bound_ if warm else -math.inf)
            if self.max_iter > 0:
                self._print_verbose_msg_init_end(em_run.lower_bound, em_run.converged)
            if best is None or em_run.lower_bound > best.lower_bound or best.lower_bound == -math.inf:
                best = em_run
        assert best is not None  # n_init is at least 1
        if best.status & Status.RESCUED:
            warnings.warn(
                "A component that had lost its rows, or whose covariance was not positive definite, was reinitialized"
                " by splitting the widest other one. Try fewer components, or check for duplicate points in X.",
                ConvergenceWarning,
                stacklevel=4,
            )
        if not best.converged and self.max_iter > 0:
            warnings.warn(
                "Best performing initialization did not converge. Try different init parameters, or increase max_iter, "
                "tol, or check for degenerate data.",
                ConvergenceWarning,
                stacklevel=4,  # past `fit` and its decorator
            )
        *parameters, _ = best.mixture
        parameters.append(_compute_precision_cholesky(best.mixture.covariances, self.covariance_type))
        self._set_parameters(tuple(parameter.astype(X.dtype, copy=False) for parameter in parameters))
        self.converged_, self.n_iter_, self.status_ = best.converged, len(best.lower_bounds), best.status
        self.lower_bound_, self.lower_bounds_ = best.lower_bound, best.lower_bounds
        return X

    def _warn_few_distinct(self, X: Array) -> None:
        """Warn, as scikit-learn's k-means does, if there are fewer distinct rows than clusters."""
        K = self.n_components
        # The first rows usually suffice to rule that out.
        if len(np.unique(X[: 8 * K], axis=0)) < K and (count := len(np.unique(X, axis=0))) < K:
            warnings.warn(
                f"Number of distinct clusters ({count}) found smaller than n_clusters ({K}). Possibly due to duplicate"
                " points in X.",
                ConvergenceWarning,
                stacklevel=5,
            )

    def _start(
        self, X: Array, sample_weight: Array | None, random_state: np.random.RandomState
    ) -> tuple[gmm.Mixture | int, Status]:
        """The start of EM: a mixture, or the seed of k-means, and a status."""
        user_init = [self.weights_init, self.means_init, self.precisions_init]
        if user_init[2] is not None:
            precisions = np.asarray(user_init[2], np.float64)
            factors = np.linalg.cholesky(precisions) if _is_matrix(self.covariance_type) else np.sqrt(precisions)
            user_init[2] = _covariances(factors, self.covariance_type)
        if all(parameter is not None for parameter in user_init):
            return gmm.Mixture._make([*user_init, self.covariance_type]), Status(0)
        status = Status(0)
        if self.init_params == "kmeans":
            seed = int(random_state.randint(np.iinfo(np.int32).max))
            if self.max_iter > 0 and all(parameter is None for parameter in user_init):
                return seed, status  # k-means and EM are one call
            mixture, *_, status = self._em(X, sample_weight, seed, 0)
        else:
            mixture = self._draw_start(X, sample_weight, random_state)
        parameters = (default if u is None else u for u, default in zip(user_init, mixture[:3], strict=True))
        return gmm.Mixture._make([*parameters, self.covariance_type]), status

    def _draw_start(self, X: Array, sample_weight: Array | None, random_state: np.random.RandomState) -> gmm.Mixture:
        """A start by any method but k-means, with the same random numbers and computations as scikit-learn."""
        options = {"covariance_type": self.covariance_type, "reg_covar": self.reg_covar}
        if self.init_params == "random":
            resp = random_state.uniform(size=(len(X), self.n_components)).astype(X.dtype, copy=False)
            resp /= resp.sum(1, keepdims=True)
            return gmm.m_step(X, resp, sample_weight=sample_weight, **options)
        if self.init_params == "random_from_data":
            p = None if sample_weight is None else sample_weight / sample_weight.sum()
            rows = random_state.choice(len(X), self.n_components, replace=False, p=p)
        else:
            # Centred, because it expands the squares of distances, which cancels far from the origin.
            centred = X - X.mean(0)
            _, rows = kmeans_plusplus(
                centred, self.n_components, sample_weight=sample_weight, random_state=random_state
            )
        return gmm.m_step(X[rows], np.eye(self.n_components, dtype=X.dtype), **options)

    def _run_em(
        self, X: Array, sample_weight: Array | None, start: gmm.Mixture | int, status: Status, lower_bound: float
    ) -> EMRun:
        """EM from a start; ``lower_bound`` is that of the previous iteration, -inf if there was none.

        This is a single call of `fastvae.gmm.fit`, except with verbose output, which is printed between calls, and
        after a warm start, which may converge in its first iteration. `fastvae.gmm.fit` cannot detect convergence in
        its first iteration, since it does not know the previous bound. So an iteration that may be the last one, as the
        last bound of the previous call shows, is a call of its own.
        """
        lower_bounds: list[float] = []
        converged, single_step = False, lower_bound > -math.inf
        while len(lower_bounds) < self.max_iter and not converged:
            n = 1 if single_step else self.max_iter - len(lower_bounds)
            if self.verbose:
                n = min(n, self.verbose_interval - len(lower_bounds) % self.verbose_interval)
            fit = self._em(X, sample_weight, start, n)
            status |= fit.status
            *bounds, next_bound = fit.lower_bounds.tolist()
            for bound in bounds:
                lower_bound, change = bound, bound - lower_bound
                lower_bounds.append(bound)
                self._print_verbose_msg_iter_end(len(lower_bounds), change)
            start, converged, single_step = fit.mixture, abs(change) < self.tol, abs(next_bound - bound) < self.tol
        assert isinstance(start, gmm.Mixture)  # a seed is only used if max_iter > 0
        ended = Status.CONVERGED if converged else Status.MAX_ITER
        return EMRun(start, lower_bounds, lower_bound, converged, ended | (status & Status.RESCUED))

    def _em(self, X: Array, sample_weight: Array | None, start: gmm.Mixture | int, max_iter: int) -> gmm.MixtureFit:
        init, seed = ("kmeans-raw", start) if isinstance(start, int) else (start, None)
        fit = gmm.fit(
            X,
            self.n_components,
            covariance_type=self.covariance_type,
            tol=self.tol,
            max_iter=max_iter,
            init=init,
            reg_covar=self.reg_covar,
            sample_weight=sample_weight,
            seed=seed,
            # In scikit-learn, a component without rows is not an error if reg_covar gives it a covariance.
            on_degenerate="rescue" if self.reg_covar > 0 else "status",
        )
        if fit.status & (Status.SINGULAR | Status.NONFINITE):
            # A variance of 0 raises scikit-learn's own error.
            _compute_precision_cholesky(np.zeros((1, 1), X.dtype), "diag")
        return fit

    def _mixture(self) -> gmm.Mixture:
        """The parameters that predictions use, as in scikit-learn: covariances follow from precisions_cholesky_."""
        covariances = _covariances(np.asarray(self.precisions_cholesky_, np.float64), self.covariance_type)
        weights, means = (np.asarray(parameter, np.float64) for parameter in (self.weights_, self.means_))
        return gmm.Mixture(weights, means, covariances, self.covariance_type)


def _is_matrix(covariance_type: str) -> bool:
    return covariance_type in ("full", "tied")


def _covariances(factors: Array, covariance_type: str) -> Array:
    """Covariances F^-T F^-1 from factors F of the precisions F F', such as `precisions_cholesky_`."""
    if not _is_matrix(covariance_type):
        return factors**-2
    root = np.linalg.inv(factors)
    return root.swapaxes(-1, -2) @ root


def _array_api(sample_weight: Any = None) -> bool:
    """Whether scikit-learn's own code runs, for arrays other than NumPy's."""
    if not get_config()["array_api_dispatch"]:
        return False
    if sample_weight is not None:
        raise NotImplementedError("sample_weight is not implemented to work with 'array_api_dispatch' enabled.")
    return True
