"""`GaussianMixture`: scikit-learn's estimator, with EM by `fastvae.gmm`."""

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

FLOATS = [np.float64, np.float32]  # what X is kept in; anything else becomes the first
# From 1.8 on scikit-learn's checks are told the array namespace.
NAMESPACE = (
    {"xp": np} if "xp" in inspect.signature(sklearn.mixture.GaussianMixture._check_parameters).parameters else {}
)


class Climb(NamedTuple):
    """One initialisation's EM: its last parameters, and the lower bound that each iteration set out from."""

    mixture: gmm.Mixture
    lower_bounds: list[float]
    lower_bound: float
    converged: bool
    status: Status


class GaussianMixture(sklearn.mixture.GaussianMixture):
    """`sklearn.mixture.GaussianMixture` with the whole of EM in `fastvae.gmm`, and with sample weights.

    p(x) = sum_k weights_k N(x; means_k, covariances_k). A drop-in: parameters, defaults, attributes, order of
    iterations, convergence rule, warm start, verbose output, errors and warnings are scikit-learn's. EM is one pass
    over X an iteration, which forms no ``[N, K]`` responsibilities and takes every sum about a component's own mean:
    data 1e8 standard deviations off the origin (1e3 in float32) are fitted like any other, whatever the covariance
    type.

    Parameters
    ----------
    n_components : int, default=1
        K.
    covariance_type : {"full", "tied", "diag", "spherical"}, default="full"
        One covariance ``[D, D]`` a component, one for all, D variances a component, or one.
    tol, reg_covar, max_iter, n_init : default=1e-3, 1e-6, 100, 1
        EM stops when the mean log likelihood of a row changes by less than ``tol``; ``reg_covar`` is added to each
        variance; the best of ``n_init`` initialisations is kept. ``max_iter=0`` gives the initialisation.
    init_params : {"kmeans", "k-means++", "random", "random_from_data"}, default="kmeans"
        "kmeans" is "kmeans-raw" of `fastvae.gmm.fit`, and the others begin where scikit-learn does (see Notes).
    weights_init, means_init, precisions_init : array-like, default=None
        In place of what ``init_params`` finds.
    random_state, warm_start, verbose, verbose_interval : default=None, False, 0, 10
        As in scikit-learn. Verbose output comes every ``verbose_interval`` iterations, as they are done.

    Attributes
    ----------
    weights_, means_, covariances_, precisions_, precisions_cholesky_ : ndarray
        ``[K]``, ``[K, D]``, and by covariance type ``[K, D, D]``, ``[D, D]``, ``[K, D]`` or ``[K]``; float32 for
        float32 data. Predictions go by ``precisions_cholesky_``, also where it was set by hand.
    converged_, n_iter_, lower_bound_, lower_bounds_ : bool, int, float, list of float
        Of the best initialisation. A lower bound is that of the parameters that entered an iteration, so that
        ``lower_bound_`` is one step older than ``score``; per unit weight.
    status_ : fastvae.Status
        Of the best initialisation too: CONVERGED or MAX_ITER, and RESCUED where a component was placed anew on the way.
    n_features_in_, feature_names_in_ : int, ndarray
        As in every scikit-learn estimator.

    Notes
    -----
    Equivalent to `sklearn.mixture.GaussianMixture`. From the same start it finds the same parameters in as many
    iterations, and for the same ``random_state`` it starts at the same place, but for

    - "kmeans": k-means is our own, and starts from other draws: components come in another order, and where there are
      several local optima, another may be found;
    - "k-means++" and "random_from_data", which give each component one row: weights start at 1/K (there 1/N), and a
      tied covariance at ``reg_covar`` times the identity (there at the sum of squares of all rows about the origin
      over K, so wide that the components fall onto one another);
    - a component that loses its rows, or whose covariance is not positive definite in spite of a ``reg_covar`` > 0: it
      is placed anew in the widest other one (there it stays empty, or it is an error). With ``reg_covar=0`` both are
      scikit-learn's error of an ill-defined covariance.

    With scikit-learn's ``array_api_dispatch`` on, its own code runs, and sample weights are refused.

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
            Rows; float32 is kept, everything else becomes float64.
        y : ignored
        sample_weight : array-like ``[N]``, default=None
            Weights >= 0. A weight of 2 is the row twice, one of 0 is no row: the bound and its optima are the same,
            but which rows an initialisation draws depends on how many there are.

        Returns
        -------
        GaussianMixture
            The estimator itself.

        Raises
        ------
        ValueError
            For arguments that are not as above, fewer rows of positive weight than components, and where a covariance
            is not positive definite.

        Warns
        -----
        ConvergenceWarning
            If the best initialisation did not converge within ``max_iter`` iterations, or a component of it was placed
            anew; with k-means, if X has fewer distinct points than there are components.
        UserWarning
            As `fastvae.gmm.fit`, of a ``reg_covar`` as large as a feature's variance.
        """
        if _array_api(sample_weight):
            super().fit_predict(X)
        else:
            self._fit(X, sample_weight)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Array:
        """``fit(X, sample_weight=sample_weight).predict(X)``: the labels ``[N]``."""
        if _array_api(sample_weight):
            return super().fit_predict(X)
        X = self._fit(X, sample_weight)
        return gmm.predict(X, self._mixture())

    def score_samples(self, X: Any) -> Array:
        """Log density log p(x_n) of each row, ``[N]``, in nats."""
        return super().score_samples(X) if _array_api() else self._evaluate(gmm.score_samples, X)

    def predict(self, X: Any) -> Array:
        """Label of each row, ``[N]``: the component of the largest posterior."""
        return super().predict(X) if _array_api() else self._evaluate(gmm.predict, X)

    def predict_proba(self, X: Any) -> Array:
        """Posterior p(z=k | x_n) of each component, ``[N, K]``."""
        return super().predict_proba(X) if _array_api() else self._evaluate(gmm.predict_proba, X)

    def _evaluate(self, function: Callable[..., Array], X: Any) -> Array:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=FLOATS, reset=False)
        values = function(X, self._mixture())
        # The parameters go in as float64 whatever they are kept in.
        return values if values.dtype.kind == "i" else values.astype(np.result_type(X, self.means_), copy=False)

    def _fit(self, X: Any, sample_weight: Any) -> Array:
        X = validate_data(self, X, dtype=FLOATS, ensure_min_samples=2)
        rows = len(X)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            rows = int(np.count_nonzero(sample_weight))
            # Their unit does not matter, and a power of 2 rounds nothing: no sum of them overflows.
            sample_weight = np.ldexp(sample_weight, -np.frexp(sample_weight.max())[1])
        if rows < self.n_components:
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = {self.n_components}, n_samples = {rows}"
                + (" of positive weight" if rows < len(X) else "")
            )
        self._check_parameters(X, **NAMESPACE)
        warm = self.warm_start and hasattr(self, "converged_")
        random_state = check_random_state(self.random_state)
        given = (self.weights_init, self.means_init, self.precisions_init)
        if self.init_params == "kmeans" and not warm and any(parameter is None for parameter in given):
            self._count_points(X if sample_weight is None else X[sample_weight > 0])
        best: Climb | None = None
        for init in range(1 if warm else self.n_init):
            self._print_verbose_msg_init_beg(init)
            start, status = (self._mixture(), Status(0)) if warm else self._start(X, sample_weight, random_state)
            climb = self._climb(X, sample_weight, start, status, self.lower_bound_ if warm else -math.inf)
            if self.max_iter > 0:
                self._print_verbose_msg_init_end(climb.lower_bound, climb.converged)
            if best is None or climb.lower_bound > best.lower_bound or best.lower_bound == -math.inf:
                best = climb
        assert best is not None  # n_init is at least 1
        if best.status & Status.RESCUED:
            warnings.warn(
                "A component that had lost its rows, or whose covariance was not positive definite, was placed anew in"
                " the widest other one. Try fewer components, or check for duplicate points in X.",
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

    def _count_points(self, X: Array) -> None:
        """Warn as scikit-learn's k-means does of fewer distinct rows than clusters; few rows tell, as a rule."""
        K = self.n_components
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
        """Where EM begins: a mixture, with its status, or the seed of a k-means."""
        given = [self.weights_init, self.means_init, self.precisions_init]
        if given[2] is not None:
            precisions = np.asarray(given[2], np.float64)
            factors = np.linalg.cholesky(precisions) if _is_matrix(self.covariance_type) else np.sqrt(precisions)
            given[2] = _covariances(factors, self.covariance_type)
        if all(parameter is not None for parameter in given):
            return gmm.Mixture._make([*given, self.covariance_type]), Status(0)
        status = Status(0)
        if self.init_params == "kmeans":
            seed = int(random_state.randint(np.iinfo(np.int32).max))
            if self.max_iter > 0 and all(parameter is None for parameter in given):
                return seed, status  # k-means and EM are one call
            found, *_, status = self._em(X, sample_weight, seed, 0)
        else:
            found = self._drawn(X, sample_weight, random_state)
        parameters = (f if g is None else g for g, f in zip(given, found[:3], strict=True))
        return gmm.Mixture._make([*parameters, self.covariance_type]), status

    def _drawn(self, X: Array, sample_weight: Array | None, random_state: np.random.RandomState) -> gmm.Mixture:
        """A start by anything but k-means: the random numbers, and what is made of them, are scikit-learn's."""
        options = {"covariance_type": self.covariance_type, "reg_covar": self.reg_covar}
        if self.init_params == "random":
            resp = random_state.uniform(size=(len(X), self.n_components)).astype(X.dtype, copy=False)
            resp /= resp.sum(1, keepdims=True)
            return gmm.m_step(X, resp, sample_weight=sample_weight, **options)
        if self.init_params == "random_from_data":
            p = None if sample_weight is None else sample_weight / sample_weight.sum()
            rows = random_state.choice(len(X), self.n_components, replace=False, p=p)
        else:
            # Centred, since distances are taken in their expanded form, which cancels far from the origin.
            centred = X - X.mean(0)
            _, rows = kmeans_plusplus(
                centred, self.n_components, sample_weight=sample_weight, random_state=random_state
            )
        return gmm.m_step(X[rows], np.eye(self.n_components, dtype=X.dtype), **options)

    def _climb(
        self, X: Array, sample_weight: Array | None, start: gmm.Mixture | int, status: Status, lower_bound: float
    ) -> Climb:
        """EM from a start; `lower_bound` is that of the iteration before, -inf if there was none.

        One call, unless verbose output wants to be printed on the way, or a warm start to know whether its first bound
        is still that of the last fit. No call can tell that its own first iteration is the last one, so such an
        iteration is made by itself; the last bound of the call before foretells it.
        """
        lower_bounds: list[float] = []
        converged, by_itself = False, lower_bound > -math.inf
        while len(lower_bounds) < self.max_iter and not converged:
            n = 1 if by_itself else self.max_iter - len(lower_bounds)
            if self.verbose:
                n = min(n, self.verbose_interval - len(lower_bounds) % self.verbose_interval)
            fit = self._em(X, sample_weight, start, n)
            status |= fit.status
            *entered, coming = fit.lower_bounds.tolist()
            for bound in entered:
                lower_bound, change = bound, bound - lower_bound
                lower_bounds.append(bound)
                self._print_verbose_msg_iter_end(len(lower_bounds), change)
            start, converged, by_itself = fit.mixture, abs(change) < self.tol, abs(coming - bound) < self.tol
        assert isinstance(start, gmm.Mixture)  # a seed comes only where there are iterations to make
        ended = Status.CONVERGED if converged else Status.MAX_ITER
        return Climb(start, lower_bounds, lower_bound, converged, ended | (status & Status.RESCUED))

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
            # A component without rows is no error in scikit-learn where reg_covar gives it a covariance.
            on_degenerate="rescue" if self.reg_covar > 0 else "status",
        )
        if fit.status & (Status.SINGULAR | Status.NONFINITE):
            # scikit-learn's own words, which a variance of 0 gets out of it.
            _compute_precision_cholesky(np.zeros((1, 1), X.dtype), "diag")
        return fit

    def _mixture(self) -> gmm.Mixture:
        """The parameters as scikit-learn's predictions see them, whoever has set them."""
        covariances = _covariances(np.asarray(self.precisions_cholesky_, np.float64), self.covariance_type)
        weights, means = (np.asarray(parameter, np.float64) for parameter in (self.weights_, self.means_))
        return gmm.Mixture(weights, means, covariances, self.covariance_type)


def _is_matrix(covariance_type: str) -> bool:
    return covariance_type in ("full", "tied")


def _covariances(factors: Array, covariance_type: str) -> Array:
    """From factors F of the precisions F F', such as `precisions_cholesky_`: F^-T F^-1."""
    if not _is_matrix(covariance_type):
        return factors**-2
    root = np.linalg.inv(factors)
    return root.swapaxes(-1, -2) @ root


def _array_api(sample_weight: Any = None) -> bool:
    """Whether scikit-learn is to run its own code, on arrays that are not NumPy's."""
    if not get_config()["array_api_dispatch"]:
        return False
    if sample_weight is not None:
        raise NotImplementedError("sample_weight is not implemented to work with 'array_api_dispatch' enabled.")
    return True
