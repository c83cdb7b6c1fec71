"""What a mixture's fit warns of: a reg_covar as large as a variance, few distinct rows, components placed anew."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from fastvae import Status, gmm
from fastvae.sklearn import GaussianMixture

KINDS = ("full", "tied", "diag", "spherical")


def two_groups(scale=1.0, N=200, D=3):
    """Rows about -4 and 4 in each feature."""
    rng = np.random.default_rng(0)
    return scale * (rng.normal(size=(N, D)) + rng.choice([-4.0, 4.0], size=(N, 1)))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reg_covar_as_large_as_a_variance(kind, backend):
    X, options = two_groups(1e-8), {"covariance_type": kind, "seed": 0, "backend": backend}
    message = r"^reg_covar = 1e-06 is as large as the variance of feature 0 of X, 1\.\d*e-15: .*Scale X, or lower"
    with pytest.warns(UserWarning, match=message) as seen:
        fit = gmm.fit(X, 2, **options)
    assert seen[0].filename == __file__
    assert np.ptp(fit.mixture.means[:, 0]) < 1e-12  # both in the middle
    with warnings.catch_warnings(action="error"):
        for reg_covar in (0.0, 1e-22):
            fit = gmm.fit(X, 2, reg_covar=reg_covar, **options)
            assert np.ptp(fit.mixture.means[:, 0]) > 7e-8
        gmm.fit(two_groups(), 2, **options)


@pytest.mark.parametrize("kind", ["full", "tied", "diag"])
def test_one_narrow_feature_of_one_problem_of_a_batch(kind):
    X = np.stack([two_groups() for _ in range(3)])
    X[1, :, 2] *= 1e-5
    X[1, 0, 2] = np.nan
    w = np.ones((3, X.shape[1]))
    w[1, 0] = 0  # what counts nowhere does not count here
    with pytest.warns(UserWarning, match=r"variance of feature 2 of X, 1\.\d*e-09 in problem \[1\]"):
        gmm.fit(X, 2, covariance_type=kind, sample_weight=w, seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_feature_is_no_narrow_one(kind):
    X = two_groups()
    X[:, 1] = 3.0
    with warnings.catch_warnings(action="error"):
        gmm.fit(X, 2, covariance_type=kind, seed=0)
        gmm.fit(np.ones((20, 2)), 2, covariance_type=kind, seed=0, on_degenerate="rescue")


def test_the_estimator_says_it_too():
    with pytest.warns(UserWarning, match=r"^reg_covar = 1e-06 is as large as the variance of feature 0"):
        GaussianMixture(2, random_state=0).fit(two_groups(1e-8))
    with warnings.catch_warnings(action="error"):
        estimator = GaussianMixture(2, random_state=0).fit(two_groups())
    assert estimator.status_ == Status.CONVERGED


@pytest.mark.filterwarnings("ignore:A component lost its rows")
def test_fewer_distinct_rows_than_components():
    X = np.repeat([[0.0, 0.0], [4.0, 1.0], [9.0, 2.0]], 40, axis=0)
    message = r"^Number of distinct rows \(3\) is smaller than n_components \(4\)"
    with pytest.warns(ConvergenceWarning, match=message):
        estimator = GaussianMixture(4, random_state=0).fit(X)
    assert np.isfinite(estimator.score(X))
    weight = np.ones(len(X))
    weight[:40] = 0
    with pytest.warns(ConvergenceWarning, match=r"^Number of distinct rows \(2\) is smaller than n_components \(3\)"):
        GaussianMixture(3, random_state=0).fit(X, sample_weight=weight)
    with warnings.catch_warnings(action="error"):
        GaussianMixture(3, random_state=0).fit(X)  # the third is behind many of the others


def test_a_component_placed_anew_is_not_hidden():
    X = two_groups()
    far = {"means_init": [[0, 0, 0], [1e6, 1e6, 1e6]], "weights_init": [0.5, 0.5], "precisions_init": [np.eye(3)] * 2}
    with pytest.warns(ConvergenceWarning, match=r"^A component lost its rows"):
        estimator = GaussianMixture(2, random_state=0, **far).fit(X)
    assert estimator.status_ & Status.RESCUED
    assert isinstance(estimator.status_, Status)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        estimator = GaussianMixture(2, random_state=0, max_iter=1).fit(X)
    assert estimator.status_ == Status.MAX_ITER
