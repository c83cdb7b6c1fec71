"""`fastvae.sklearn.GaussianMixture`: scikit-learn's own tests, and properties that those do not cover."""

import pickle
import re

import numpy as np
import pandas as pd
import pytest
import sklearn.cluster
import sklearn.mixture
from sklearn.datasets import load_digits, load_iris
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastvae.sklearn
from fastvae import Status
from fastvae.reference.gmm.formulas import COVARIANCE_TYPES
from fastvae.sklearn import GaussianMixture

from ..sklearn_suite import run_sklearn_tests

every_kind = pytest.mark.parametrize("kind", COVARIANCE_TYPES)
IRIS = load_iris().data
DIGITS = PCA(6, random_state=0).fit_transform(load_digits().data)
PARAMETERS = ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_")

# scikit-learn's tests that are not run on our class, by a pattern of their names. Tests that need packages which are
# not installed, such as another array library, are skipped by scikit-learn itself.
SKIPPED = {
    "test_gaussian_mixture_all_init_does_not_estimate_gaussian_parameters.*": "counts calls of a private function",
    "test_gaussian_mixture_setting_best_params": "a component of one row, whose variance is 0 but for scikit-learn's"
    " rounding: an ill-defined covariance",
    "test_gaussian_mixture_precisions_init_diag.*": "precisions in the order of scikit-learn's k-means clusters; see"
    " test_initial_precisions_give_the_same_fit",
    r"test_gaussian_mixture_array_api_compliance\[False-.*-tied-random_from_data\]": "compares with scikit-learn's"
    " start of a tied covariance; see test_a_tied_covariance_starts_narrow_from_single_rows",
}
PLUGIN = f"""
import re
import pytest, sklearn.mixture, fastvae.sklearn

sklearn.mixture.GaussianMixture = fastvae.sklearn.GaussianMixture  # before the test modules import it

def pytest_collection_modifyitems(items):
    assert all(item.module.GaussianMixture is fastvae.sklearn.GaussianMixture for item in items)
    for item in items:
        for name, reason in {SKIPPED}.items():
            if re.fullmatch(name, item.name):
                item.add_marker(pytest.mark.skip(reason=reason))
"""


def test_scikit_learns_tests_pass(tmp_path):
    modules = [f"sklearn.mixture.tests.{name}" for name in ("test_gaussian_mixture", "test_mixture")]
    run_sklearn_tests(tmp_path, PLUGIN, modules, 70, SKIPPED)


UNEQUAL = {"check_sample_weight_equivalence_on_dense_data": "a start draws other rows where there are more of them"}


@parametrize_with_checks(
    [GaussianMixture(), GaussianMixture(2, covariance_type="diag", init_params="random")],
    expected_failed_checks=lambda model: UNEQUAL if model.n_components > 1 else {},
)
def test_checks_of_estimators_pass(estimator, check):
    check(estimator)


def start_of(model, X):
    """The initial parameters of `model`."""
    start = sklearn.base.clone(model).set_params(max_iter=0).fit(X)
    return {"weights_init": start.weights_, "means_init": start.means_, "precisions_init": start.precisions_}


def close(got, want, rtol):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max())


def same(ours, theirs, rtol=1e-7):
    for name in PARAMETERS:
        got, want = getattr(ours, name), getattr(theirs, name)
        assert got.dtype == want.dtype
        close(got, want, rtol)
    assert (ours.n_iter_, ours.converged_) == (theirs.n_iter_, theirs.converged_)
    assert len(ours.lower_bounds_) == ours.n_iter_
    np.testing.assert_allclose(ours.lower_bounds_, theirs.lower_bounds_, rtol=1e-9)
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_, rel=1e-9)


@every_kind
@pytest.mark.parametrize(("X", "K"), [(IRIS, 3), (DIGITS, 10)], ids=["iris", "digits"])
def test_from_the_same_start_the_fit_matches_scikit_learn(kind, X, K):
    model = sklearn.mixture.GaussianMixture(K, covariance_type=kind, random_state=0, max_iter=300)
    model.set_params(**start_of(model, X))
    theirs, ours = model.fit(X), GaussianMixture(**model.get_params()).fit(X)
    same(ours, theirs)
    close(ours.score_samples(X), theirs.score_samples(X), 1e-7)
    close(ours.predict_proba(X), theirs.predict_proba(X), 1e-6)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    close([ours.score(X), ours.aic(X), ours.bic(X)], [theirs.score(X), theirs.aic(X), theirs.bic(X)], 1e-9)
    for got, want in zip(ours.sample(9), theirs.sample(9), strict=True):
        close(got, want, 1e-6)


@every_kind
@pytest.mark.parametrize("init", ["random", "random_from_data", "k-means++"])
def test_with_the_same_random_state_the_fit_matches_scikit_learn(kind, init):
    if kind == "tied" and init != "random":
        pytest.skip("another start: see test_a_tied_covariance_starts_narrow_from_single_rows")
    options = {"covariance_type": kind, "init_params": init, "n_init": 3, "max_iter": 300, "random_state": 3}
    ours, theirs = (model(3, **options).fit(IRIS) for model in (GaussianMixture, sklearn.mixture.GaussianMixture))
    if init != "random":  # in scikit-learn the first bound is for weights that sum to K / N
        assert ours.lower_bounds_[0] == pytest.approx(theirs.lower_bounds_[0] + np.log(len(IRIS) / 3))
        ours.lower_bounds_[0] = theirs.lower_bounds_[0]
    same(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("init", ["random_from_data", "k-means++"])
def test_a_tied_covariance_starts_narrow_from_single_rows(init):
    options = {"covariance_type": "tied", "init_params": init, "random_state": 0, "n_init": 5}
    model = GaussianMixture(3, max_iter=0, reg_covar=0.25, **options).fit(IRIS)
    np.testing.assert_array_equal(model.covariances_, 0.25 * np.eye(4))
    np.testing.assert_array_equal(model.weights_, np.full(3, 1 / 3))
    assert all(np.isclose(mean, IRIS, rtol=1e-12).all(1).any() for mean in model.means_)
    # If all components start wider than the data, as in scikit-learn, they coincide in the end.
    ours, theirs = (model(3, **options).fit(IRIS) for model in (GaussianMixture, sklearn.mixture.GaussianMixture))
    assert np.ptp(theirs.means_, axis=0).max() < 0.2 < 1 < np.ptp(ours.means_, axis=0).max()
    assert ours.lower_bound_ > theirs.lower_bound_ + 0.3


@every_kind
@pytest.mark.parametrize("X", [IRIS, DIGITS], ids=["iris", "digits"])
def test_our_k_means_finds_an_equally_good_optimum(kind, X, monkeypatch):
    options = {"covariance_type": kind, "n_init": 5, "tol": 1e-6, "max_iter": 1000, "random_state": 0}
    theirs = sklearn.mixture.GaussianMixture(3, **options).fit(X)
    monkeypatch.setattr(sklearn.cluster.KMeans, "fit", None)
    ours = GaussianMixture(3, **options).fit(X)
    assert ours.lower_bound_ > theirs.lower_bound_ - 1e-4
    assert GaussianMixture(3, **options).fit(X).lower_bounds_ == ours.lower_bounds_


@every_kind
def test_an_integer_weight_matches_repeated_rows(kind):
    model = GaussianMixture(3, covariance_type=kind, random_state=0)
    model.set_params(**start_of(model, IRIS))
    w = np.random.default_rng(0).integers(0, 4, len(IRIS))
    repeated, weighted = sklearn.base.clone(model), sklearn.base.clone(model)
    labels = repeated.fit_predict(IRIS.repeat(w, axis=0))
    np.testing.assert_array_equal(weighted.fit_predict(IRIS, sample_weight=w).repeat(w), labels)
    same(weighted, repeated)
    same(model.fit(IRIS, sample_weight=0.5 * w), repeated)


@pytest.mark.parametrize("init", ["kmeans", "k-means++", "random", "random_from_data"])
def test_every_start_ignores_rows_of_weight_0(init):
    w = np.zeros(len(IRIS))
    w[:50] = 2.0
    far = np.where(w[:, None] > 0, IRIS, 1e6)
    for max_iter in (0, 300):
        model = GaussianMixture(3, init_params=init, random_state=0, max_iter=max_iter).fit(far, sample_weight=w)
        assert model.means_.max() < 10
    with pytest.raises(ValueError, match=r"n_components = 51, n_samples = 50 of positive weight"):
        model.set_params(n_components=51).fit(far, sample_weight=w)


def test_invalid_weights_are_refused():
    model = GaussianMixture(2)
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        model.fit(IRIS, sample_weight=-np.ones(150))
    with pytest.raises(ValueError, match="sample_weight"):
        model.fit(IRIS, sample_weight=np.ones(149))
    with pytest.raises(ValueError, match="NaN"):
        model.fit(IRIS, sample_weight=np.full(150, np.nan))


def test_weights_of_other_arrays_than_numpys_are_refused(monkeypatch):
    monkeypatch.setattr(fastvae.sklearn._mixture, "get_config", lambda: {"array_api_dispatch": True})
    with pytest.raises(NotImplementedError, match="sample_weight"):
        GaussianMixture(2).fit(IRIS, sample_weight=np.ones(150))


@every_kind
@pytest.mark.parametrize("init", ["kmeans", "k-means++", "random", "random_from_data"])
@pytest.mark.parametrize(("dtype", "offset"), [(np.float64, 1e8), (np.float32, 1e3)])
def test_an_offset_changes_nothing_but_the_means(kind, init, dtype, offset):
    X = (np.round(IRIS / IRIS.std(0) * 2**12) / 2**12).astype(dtype)  # so that adding the offset does not round
    model = GaussianMixture(2, covariance_type=kind, init_params=init, random_state=1, max_iter=300, reg_covar=1e-4)
    near, far = sklearn.base.clone(model).fit(X), model.fit(X + dtype(offset))
    eps = np.finfo(dtype).eps
    assert far.means_.dtype == far.score_samples(X).dtype == dtype
    close(far.means_.astype(float) - offset, near.means_, 4 * eps * offset)
    close(far.covariances_, near.covariances_, 1e-5)
    close(far.lower_bound_, near.lower_bound_, 1e-6)
    np.testing.assert_array_equal(far.predict(X + dtype(offset)), near.predict(X))
    if kind != "full":
        with pytest.raises(ValueError, match="ill-defined empirical covariance"):
            sklearn.mixture.GaussianMixture(**model.get_params()).fit(X + dtype(offset))


@pytest.mark.parametrize("options", [{}, {"covariance_type": "tied", "warm_start": True}, {"max_iter": 0}])
def test_float32_is_kept(options):
    X = IRIS.astype(np.float32)
    model = GaussianMixture(2, random_state=0, **options).fit(X)
    values = [model.score_samples(X), model.predict_proba(X), *(getattr(model, name) for name in PARAMETERS)]
    assert {v.dtype for v in values} == {np.dtype(np.float32)}
    assert model.score_samples(IRIS).dtype == np.float64
    assert model.predict(X).dtype == model.fit_predict(X).dtype == np.int64


@pytest.mark.parametrize("interval", [1, 4, "all but one", 100])
@pytest.mark.parametrize("verbose", [1, 2])
@pytest.mark.parametrize("max_iter", [0, 12, 200])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_verbose_output_matches_scikit_learn_and_changes_nothing(verbose, interval, max_iter, capsys):
    options = {"init_params": "random", "n_init": 2, "random_state": 0, "max_iter": max_iter}
    silent = GaussianMixture(3, **options).fit(IRIS)
    if interval == "all but one":  # so that the last iteration follows a printed line
        interval = max(silent.n_iter_ - 1, 1)
    models, said = [], []
    for cls in (GaussianMixture, sklearn.mixture.GaussianMixture):
        models.append(cls(3, **options, verbose=verbose, verbose_interval=interval).fit(IRIS))
        said.append(re.sub(r"time lapse [0-9.]+s", "time lapse", capsys.readouterr().out))
    assert said[0] == said[1]
    assert said[0].count("\n") >= (4 if max_iter else 2)
    for model in models:
        same(silent, model)


@pytest.mark.parametrize("max_iter", [1, 2, 5])
@pytest.mark.parametrize("verbose", [0, 1])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_warm_start_continues_like_scikit_learn(max_iter, verbose):
    options = {"init_params": "random", "random_state": 0, "max_iter": max_iter, "warm_start": True}
    ours, theirs = (
        model(3, **options, verbose=verbose) for model in (GaussianMixture, sklearn.mixture.GaussianMixture)
    )
    for _ in range(60):
        same(ours.fit(IRIS), theirs.fit(IRIS), rtol=1e-6)
    assert ours.converged_
    assert ours.n_iter_ == 1  # a converged fit converges at once


@every_kind
def test_predictions_use_attributes_set_by_hand(kind):
    theirs = sklearn.mixture.GaussianMixture(3, covariance_type=kind, random_state=0).fit(IRIS)
    ours = GaussianMixture(3, covariance_type=kind)
    for name in ("weights_", "means_", "precisions_cholesky_"):
        setattr(ours, name, getattr(theirs, name))
    close(ours.score_samples(IRIS), theirs.score_samples(IRIS), 1e-7)
    ours.means_ = theirs.means_[::-1]
    ours.precisions_cholesky_ = 2 * ours.precisions_cholesky_
    theirs.means_, theirs.precisions_cholesky_ = ours.means_, ours.precisions_cholesky_
    close(ours.predict_proba(IRIS), theirs.predict_proba(IRIS), 1e-7)


@every_kind
def test_initial_precisions_give_the_same_fit(kind):
    model = GaussianMixture(3, covariance_type=kind, random_state=0).fit(IRIS)
    start = start_of(model, IRIS)
    for names in (["precisions_init"], ["means_init"], ["weights_init", "precisions_init"], list(start)):
        given = sklearn.base.clone(model).set_params(**{name: start[name] for name in names}).fit(IRIS)
        same(given, model)


@every_kind
def test_a_component_without_rows_is_not_an_error_with_reg_covar(kind):
    """scikit-learn leaves it empty, at the origin; here it is reinitialized."""
    far = {"means_init": [[5.0, 3.0, 1.4, 0.2], [1e5, 0.0, 0.0, 0.0]], "weights_init": [0.5, 0.5]}
    model = GaussianMixture(2, covariance_type=kind, random_state=0, **far)
    with pytest.warns(ConvergenceWarning, match="was reinitialized") as caught:
        assert model.fit(IRIS).weights_.min() > 0.1
    assert caught[0].filename == __file__
    assert model.status_ & Status.RESCUED
    with pytest.raises(ValueError, match="ill-defined empirical covariance"):
        model.set_params(reg_covar=0).fit(IRIS)


def test_float32_has_its_own_hint_in_the_error():
    X = np.repeat(np.eye(2, dtype=np.float32), 3, axis=0)
    with pytest.raises(ValueError, match="passing float64 data instead of float32"):
        GaussianMixture(2, reg_covar=0, random_state=0).fit(X)


def test_it_pickles_and_knows_the_columns_of_a_data_frame():
    frame = pd.DataFrame(IRIS, columns=list("abcd"))
    model = pickle.loads(pickle.dumps(GaussianMixture(3, random_state=0).fit(frame)))
    assert model.feature_names_in_.tolist() == list("abcd")
    np.testing.assert_array_equal(model.predict(frame), GaussianMixture(3, random_state=0).fit_predict(IRIS))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[list("dcba")])


def test_the_constructor_matches_scikit_learn_and_fit_routes_weights():
    assert GaussianMixture().get_params() == sklearn.mixture.GaussianMixture().get_params()
    with sklearn.config_context(enable_metadata_routing=True):
        assert GaussianMixture().set_fit_request(sample_weight=True)


def test_the_warning_points_at_the_call():
    with pytest.warns(ConvergenceWarning, match="Best performing initialization did not converge") as caught:
        GaussianMixture(3, max_iter=1, random_state=0).fit(IRIS)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("unit", [2.0**1020, 2.0**-1060])
@pytest.mark.parametrize("init", ["kmeans", "k-means++", "random", "random_from_data"])
def test_the_unit_of_weights_does_not_matter(init, unit):
    w = np.random.default_rng(0).integers(1, 9, len(IRIS)) / 4.0
    model = GaussianMixture(3, init_params=init, random_state=0)
    same(sklearn.base.clone(model).fit(IRIS, sample_weight=unit * w), model.fit(IRIS, sample_weight=w), rtol=0)


@pytest.mark.parametrize("max_iter", [0, 100])
@pytest.mark.parametrize("n_init", [1, 2])
def test_fewer_distinct_points_than_clusters_warn_as_in_scikit_learn(max_iter, n_init):
    X, w = np.repeat([[0.0, 1.0], [5.0, 2.0]], 200, axis=0), np.ones(401)
    said = (
        r"Number of distinct clusters \(2\) found smaller than n_clusters \(3\). Possibly due to duplicate points in X."
    )
    options = {"random_state": 0, "max_iter": max_iter, "n_init": n_init}
    with pytest.warns(ConvergenceWarning, match=said):
        sklearn.mixture.GaussianMixture(3, **options).fit(X)
    with pytest.warns(ConvergenceWarning) as caught:
        model = GaussianMixture(3, **options).fit(X)
    assert model.status_ & Status.RESCUED
    assert any(re.match(said, str(one.message)) for one in caught)
    w[400] = 0
    with pytest.warns(ConvergenceWarning) as caught:  # a row of weight 0 does not count as a third point
        GaussianMixture(3, **options).fit(np.concatenate([X, [[9.0, 9.0]]]), sample_weight=w)
    assert any(re.match(said, str(one.message)) for one in caught)
    late = np.concatenate([X, [[9.0, 9.0]]])  # the third point comes last: no warning
    assert GaussianMixture(3, random_state=0).fit(late).converged_


def test_the_status_of_the_best_initialisation_is_kept():
    model = GaussianMixture(3, random_state=0, n_init=2).fit(IRIS)
    assert model.status_ == Status.CONVERGED
    assert isinstance(model.status_, Status)
    with pytest.warns(ConvergenceWarning):
        assert model.set_params(max_iter=2).fit(IRIS).status_ == Status.MAX_ITER
    far = {"means_init": [[5.0, 3.0, 1.4, 0.2], [1e5, 0.0, 0.0, 0.0]], "weights_init": [0.5, 0.5]}
    with pytest.warns(ConvergenceWarning, match="was reinitialized"):
        model = GaussianMixture(2, random_state=0, verbose=1, verbose_interval=1, max_iter=300, **far).fit(IRIS)
    assert model.status_ == Status.CONVERGED | Status.RESCUED  # combined over the calls that verbose output needs


def test_a_reg_covar_as_large_as_a_variance_warns():
    with pytest.warns(UserWarning, match="^reg_covar, 1e-06, is as large as the variance of feature 0 of X"):
        GaussianMixture(2, random_state=0).fit(1e-8 * IRIS)
