"""`fastvae.sklearn.LinearRegression`: scikit-learn's own tests, and properties that those do not cover."""

import copy
import inspect
import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn.linear_model
import statsmodels.api as sm
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes, load_linnerud
from sklearn.ensemble import BaggingRegressor
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastvae
import fastvae.sklearn
from fastvae._core import backend as _backend
from fastvae.sklearn import LinearRegression

from ..sklearn_suite import run_sklearn_tests
from .exact import NIST, certified_problem

THEIRS = ("coef_", "intercept_", "rank_")
OURS = ("standard_errors_", "intercept_standard_error_", "sigma2_", "log_likelihood_", "r2_", "status_")

# scikit-learn's tests that are not run on our class, by a pattern of their names. Tests that need packages which are
# not installed, such as another array library, are skipped by scikit-learn itself.
SKIPPED = {
    r"test_inplace_data_preprocessing\[.*-None\]": "asserts that copy_X=False overwrites X; see"
    " test_arguments_are_not_written_to",
    "test_from_model_estimator_attribute_error": "asserts that there is no partial_fit",
    "test_multioutput_regressor_has_partial_fit": "asserts that there is no partial_fit, as well",
}
MODULES = [
    *(f"sklearn.linear_model.tests.test_{name}" for name in ("base", "common")),
    "sklearn.feature_selection.tests.test_from_model",
    "sklearn.tests.test_multioutput",
]
META_ESTIMATOR_TESTS = [  # tests of meta-estimators, with our estimator inside
    "sklearn.linear_model.tests.test_ransac",
    "sklearn.feature_selection.tests.test_rfe",
    *(f"sklearn.tests.test_{name}" for name in ("metadata_routing", "pipeline")),
    "sklearn.compose.tests.test_target",
    "sklearn.ensemble.tests.test_voting",
    "sklearn.frozen.tests.test_frozen",
    "sklearn.model_selection.tests.test_search",
    "sklearn.preprocessing.tests.test_polynomial",
]
PLUGIN = f"""
import inspect, re
import pytest, sklearn.linear_model
from sklearn.base import BaseEstimator
from fastvae.sklearn import LinearRegression

sklearn.linear_model.LinearRegression = LinearRegression  # before the test modules import it

def concerns_us(item):
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    kinds = [p if isinstance(p, type) else type(p) for p in parameters]
    others = [k for k in kinds if issubclass(k, BaseEstimator) and not issubclass(k, LinearRegression)]
    return "LinearRegression" in inspect.getsource(item.function) + item.name and not others

def pytest_collection_modifyitems(items):
    items[:] = filter(concerns_us, items)
    for item in items:
        assert getattr(item.module, "LinearRegression", LinearRegression) is LinearRegression
        for name, reason in {SKIPPED}.items():
            if re.fullmatch(name, item.name):
                item.add_marker(pytest.mark.skip(reason=reason))
"""


def test_scikit_learns_tests_pass(tmp_path):
    run_sklearn_tests(tmp_path, PLUGIN, MODULES, 35, SKIPPED)


@pytest.mark.long
def test_scikit_learns_tests_of_meta_estimators_pass(tmp_path):
    run_sklearn_tests(tmp_path, PLUGIN, META_ESTIMATOR_TESTS, 50, {})


@parametrize_with_checks([LinearRegression(), LinearRegression(fit_intercept=False), LinearRegression(positive=True)])
def test_checks_of_estimators_pass(estimator, check):
    check(estimator)


def problem(targets=None, N=60, P=5, dtype=np.float64, seed=0):
    """X, y and weights, some of them 0; columns and targets are not centred."""
    rng = np.random.default_rng(seed)
    X = rng.normal(3, 1, (N, P))
    y = X @ rng.normal(size=(P, targets or 1)) + 7 + 0.5 * rng.normal(size=(N, targets or 1))
    w = rng.integers(0, 4, N) * 0.7
    return X.astype(dtype), (y if targets else y[:, 0]).astype(dtype), w


def close(got, want, rtol=1e-10):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max())


def same(ours, theirs, names=THEIRS, rtol=1e-10):
    """Check values, shapes, dtypes and types of results."""
    for name in names:
        got, want = getattr(ours, name), getattr(theirs, name)
        assert np.shape(got) == np.shape(want)
        assert np.asarray(got).dtype.kind == np.asarray(want).dtype.kind
        assert isinstance(got, np.ndarray) == isinstance(want, np.ndarray)
        close(got, want, rtol)


@pytest.mark.parametrize("targets", [None, 1, 3])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_fit_matches_scikit_learn(targets, intercept, weighted, dtype):
    X, y, w = problem(targets, dtype=dtype)
    w, rtol = (w if weighted else None), (1e-10 if dtype == np.float64 else 2e-5)
    ours, theirs = (
        cls(fit_intercept=intercept, tol=0).fit(X, y, w)
        for cls in (LinearRegression, sklearn.linear_model.LinearRegression)
    )
    same(ours, theirs, rtol=rtol)
    assert ours.coef_.dtype == theirs.coef_.dtype == ours.predict(X).dtype == ours.standard_errors_.dtype == dtype
    assert np.asarray(ours.sigma2_).dtype == np.asarray(ours.intercept_standard_error_).dtype == dtype
    assert np.asarray(ours.log_likelihood_).dtype == np.asarray(ours.r2_).dtype == np.float64
    assert type(ours.intercept_) is type(theirs.intercept_)
    close(ours.predict(X), theirs.predict(X), rtol)
    assert ours.score(X, y, w) == pytest.approx(theirs.score(X, y, w), rel=1e-5)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_errors_and_likelihood_match_statsmodels(intercept, weighted):
    X, Y, w = problem(2)
    w = w if weighted else np.ones(len(X))
    several, kept = LinearRegression(fit_intercept=intercept).fit(X, Y, w), w > 0
    for r, y in enumerate(Y.T):
        model = LinearRegression(fit_intercept=intercept).fit(X, y, w)
        design = sm.add_constant(X[kept]) if intercept else X[kept]
        theirs = sm.WLS(y[kept], design, w[kept]).fit()
        errors = [model.intercept_standard_error_, *model.standard_errors_][not intercept :]
        close(errors, theirs.bse)
        close(model.sigma2_, theirs.ssr / kept.sum())
        assert model.log_likelihood_ == pytest.approx(theirs.llf, rel=1e-12)
        assert model.r2_ == pytest.approx(theirs.rsquared, rel=1e-12)
        assert intercept or (model.intercept_, model.intercept_standard_error_) == (0, 0)
        if intercept:
            assert model.score(X, y, w) == pytest.approx(model.r2_)
        for name in OURS[:-1]:
            close(getattr(several, name)[r], getattr(model, name))


@pytest.mark.skipif(_backend.DEFAULT == "reference", reason="it computes by QR in float64, without refinement")
@pytest.mark.parametrize("path", NIST, ids=[path.stem for path in NIST])
def test_nist_certified_digits(path):
    X, y, intercept, certified = certified_problem(path)
    model = LinearRegression(fit_intercept=intercept).fit(X, y)
    coef = [model.intercept_, *model.coef_][not intercept :]
    np.testing.assert_allclose(coef, certified["coef"], rtol=10**-7.5 if path.stem == "Filip" else 1e-13)
    assert model.rank_ == X.shape[1]


def test_a_column_of_any_scale_is_kept():
    X, y, _ = problem(P=2)
    X[:, 1] *= 1e-7
    y = X @ [1.0, 1e7]
    model = LinearRegression().fit(X, y)
    assert (model.score(X, y), model.rank_) == (1.0, 2)
    close(model.coef_, [1.0, 1e7], 1e-12)


def test_an_offset_of_y_changes_only_the_intercept():
    X, _, _ = problem()
    y = X.round(3) @ np.arange(1.0, 6)  # few digits, so that adding an offset is exact
    near, far = LinearRegression().fit(X, y), LinearRegression().fit(X, y + 1e9)
    close(far.coef_, near.coef_, 1e-7)
    close(far.standard_errors_, near.standard_errors_, 1e-5)
    assert far.intercept_ == pytest.approx(1e9, rel=1e-9)


def test_y_is_not_rounded_to_the_dtype_of_X():
    X, y, _ = problem(dtype=np.float32)
    far = y.astype(np.float64) + 1e9  # the spacing of float32 is 64 there
    model = LinearRegression().fit(X, far)
    assert model.coef_.dtype == model.predict(X).dtype == np.float32
    close(model.coef_, LinearRegression().fit(X, y).coef_, 1e-6)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("case", ["twice", "constant", "wide"])
def test_dependent_columns_get_the_minimum_norm_solution(case, intercept):
    X, y, w = problem(2, *((6, 9) if case == "wide" else (60, 5)))
    if case == "twice":
        X[:, 3] = X[:, 1]
    elif case == "constant":
        X[:, 3] = 2 if intercept else 0
    for weight in (None, w + 1):
        ours, theirs = (
            cls(fit_intercept=intercept).fit(X, y, weight)
            for cls in (LinearRegression, sklearn.linear_model.LinearRegression)
        )
        same(ours, theirs, rtol=1e-9)
        assert ours.rank_ < X.shape[1]
        assert ours.status_ & fastvae.Status.RANK_DEFICIENT


def test_rows_of_weight_0_are_ignored():
    X, y, w = problem(2)
    X[w == 0], y[w == 0] = 1e6, -1e6
    weighted, without = LinearRegression().fit(X, y, w), LinearRegression().fit(X[w > 0], y[w > 0], w[w > 0])
    same(weighted, without, (*THEIRS, *OURS), 1e-12)
    with pytest.raises(ValueError, match=r"[Ww]eight"):
        LinearRegression().fit(X, y, np.zeros(len(X)))


def test_invalid_weights_are_refused():
    X, y, _ = problem()
    for method in (LinearRegression().fit, LinearRegression().partial_fit):
        with pytest.raises(ValueError, match=r"[Nn]egative"):
            method(X, y, -np.ones(60))
        with pytest.raises(ValueError, match="sample_weight"):
            method(X, y, np.ones(59))
        with pytest.raises(ValueError, match="NaN"):
            method(X, y, np.full(60, np.nan))


@pytest.mark.parametrize("targets", [None, 1, 3])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_partial_fits_match_the_fit_of_all_rows(targets, intercept, weighted, dtype):
    X, y, w = problem(targets, dtype=dtype)
    parts, whole = (LinearRegression(fit_intercept=intercept) for _ in range(2))
    for rows in np.split(np.arange(60), [1, 2, 9, 40]):  # fewer rows than columns at first
        parts.partial_fit(X[rows], y[rows], 1 + w[rows] if weighted else None)
    whole.fit(X, y, 1 + w if weighted else None)
    same(parts, whole, (*THEIRS, *OURS[:-1]), rtol=1e-12 if dtype == np.float64 else 1e-6)
    close(parts.predict(X), whole.predict(X), rtol=1e-12 if dtype == np.float64 else 1e-6)
    assert type(parts.intercept_) is type(whole.intercept_)
    assert parts.coef_.dtype == parts.standard_errors_.dtype == dtype


def test_estimates_follow_each_call_of_partial_fit():
    X, y, _ = problem()
    model, rows = LinearRegression(), 0
    for n in (3, 20, 37):
        assert model.partial_fit(X[rows : rows + n], y[rows : rows + n]) is model
        rows += n
        assert "coef_" not in vars(model)  # solved for on access, and only once
        same(model, LinearRegression().fit(X[:rows], y[:rows]), rtol=1e-9)
        assert model.coef_ is model.coef_
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        same(copied.partial_fit(X, y), LinearRegression().fit(X, y))  # all rows twice, which does not change W and b
        assert copied.sigma2_ == pytest.approx(model.sigma2_)
        assert copied.standard_errors_.max() < 0.8 * model.standard_errors_.max()


def test_fit_and_the_first_partial_fit_after_it_start_from_scratch():
    X, y, _ = problem()
    model = LinearRegression().partial_fit(X[:40], y[:40]).fit(X[40:], y[40:])
    same(model, LinearRegression().fit(X[40:], y[40:]), (*THEIRS, *OURS))
    same(model.partial_fit(X[:40], y[:40]), LinearRegression().fit(X[:40], y[:40]))
    assert not hasattr(sklearn.base.clone(model), "coef_")


def test_partial_fits_must_agree():
    X, y, _ = problem()
    model = LinearRegression().partial_fit(X, y)
    before = model.coef_
    for more in (np.stack([y, y], 1), y[:, None]):
        with pytest.raises(ValueError, match="the shape of a row of y"):
            model.partial_fit(X, more)
    with pytest.raises(ValueError, match="features"):
        model.partial_fit(X[:, 1:], y)
    with pytest.raises(ValueError, match="fit_intercept is False, but was True"):
        model.set_params(fit_intercept=False).partial_fit(X, y)
    np.testing.assert_array_equal(model.set_params(fit_intercept=True).coef_, before)
    assert model.partial_fit(X.astype(np.float32), y).coef_.dtype == np.float64
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        model.partial_fit(scipy.sparse.csr_array(X), y)


@pytest.mark.parametrize("kind", ["positive", "sparse", "sparse frame"])
def test_unsupported_options_use_scikit_learns_solver(kind):
    X, y, w = problem(2)
    sparse = scipy.sparse.csr_matrix(X)
    given = {"positive": X, "sparse": sparse, "sparse frame": pd.DataFrame.sparse.from_spmatrix(sparse)}
    arguments, options = (given[kind], y, w), {"positive": kind == "positive"}
    model = LinearRegression(tol=1e-12).partial_fit(X, y).fit(X, y).set_params(**options)
    theirs = sklearn.linear_model.LinearRegression(tol=1e-12, **options).fit(*arguments)
    same(model.fit(*arguments), theirs, ("coef_", "intercept_"), 1e-14)
    for name in OURS:  # nothing remains of the previous fit
        with pytest.raises(AttributeError, match=f"{name}.*: this fit was computed by scikit-learn"):
            getattr(model, name)
    assert not hasattr(model, "rank_")
    if kind == "positive":
        with pytest.raises(AttributeError, match="'partial_fit' with positive=True"):
            model.partial_fit(X, y)


def test_with_array_api_dispatch_scikit_learns_code_runs(monkeypatch):
    X, y, _ = problem()
    monkeypatch.setattr(fastvae.sklearn._regression, "get_config", lambda: {"array_api_dispatch": True})
    model = LinearRegression().fit(X, y)
    same(model, sklearn.linear_model.LinearRegression().fit(X, y), (*THEIRS, "singular_"))
    assert not hasattr(model, "sigma2_")
    with pytest.raises(NotImplementedError, match="partial_fit"):
        model.partial_fit(X, y)


def test_missing_attributes_give_the_reason():
    X, y, _ = problem()
    model = LinearRegression()
    with pytest.raises(AttributeError, match=r"no attribute 'coef_'$"):
        model.coef_  # noqa: B018
    with pytest.raises(NotFittedError):
        model.predict(X)
    for fitted in (LinearRegression().fit(X, y), LinearRegression().partial_fit(X, y)):
        with pytest.raises(AttributeError, match="X was not decomposed"):
            fitted.singular_  # noqa: B018
        with pytest.raises(AttributeError, match=r"no attribute 'nonsense_'$"):
            fitted.nonsense_  # noqa: B018


@pytest.mark.parametrize("copy_X", [True, False])
def test_arguments_are_not_written_to(copy_X):
    X, y, w = problem()
    given = [np.asfortranarray(X), y.copy(), w.copy()]
    for array in given:
        array.flags.writeable = False
    model = LinearRegression(copy_X=copy_X).fit(*given)
    same(model, LinearRegression().fit(X[::-1], y[::-1], w[::-1]), (*THEIRS, *OURS[:-1]))
    model.partial_fit(*given)
    for array, original in zip(given, (X, y, w), strict=True):
        np.testing.assert_array_equal(array, original)


def test_it_takes_lists_and_integers():
    model = LinearRegression().fit([[0], [1], [2], [3]], [1, 3, 5, 8], sample_weight=2)
    close([model.intercept_, *model.coef_], [0.8, 2.3])
    assert LinearRegression().fit(np.eye(3, dtype=np.float16), np.arange(3, dtype=np.uint8)).coef_.dtype == np.float64
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        LinearRegression().fit(np.eye(3), scipy.sparse.csr_array(np.eye(3)))


def test_it_pickles_and_knows_the_columns_of_a_data_frame():
    frame, y = load_diabetes(return_X_y=True, as_frame=True)
    model = pickle.loads(pickle.dumps(LinearRegression().fit(frame, y)))
    assert model.feature_names_in_.tolist() == frame.columns.tolist()
    same(model, LinearRegression().fit(frame.to_numpy(), y.to_numpy()), (*THEIRS, *OURS))
    assert isinstance(model.status_, fastvae.Status)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[frame.columns[::-1]])
    with pytest.raises(ValueError, match="feature names"):
        model.partial_fit(frame, y).partial_fit(frame[frame.columns[::-1]], y)
    assert LinearRegression().fit(frame, pd.DataFrame({"a": y, "b": 2 * y})).coef_.shape == (2, 10)


def test_the_constructor_matches_scikit_learn_and_methods_route_weights():
    theirs = sklearn.linear_model.LinearRegression
    assert inspect.signature(LinearRegression) == inspect.signature(theirs)
    assert LinearRegression().get_params() == theirs().get_params()
    with sklearn.config_context(enable_metadata_routing=True):
        model = LinearRegression().set_fit_request(sample_weight=True).set_partial_fit_request(sample_weight=True)
        assert model.get_metadata_routing().partial_fit.requests == {"sample_weight": True}
    with pytest.raises(ValueError, match="fit_intercept"):
        LinearRegression(fit_intercept="yes").fit(np.eye(2), [1, 2])


@pytest.mark.parametrize(
    "around",
    [
        lambda model: make_pipeline(StandardScaler(), PolynomialFeatures(2), model),
        lambda model: TransformedTargetRegressor(model, func=np.log, inverse_func=np.exp),
        lambda model: BaggingRegressor(model, n_estimators=5, random_state=0),
        lambda model: GridSearchCV(model, {"fit_intercept": [True, False]}),
    ],
    ids=["pipeline", "target", "bagging", "search"],
)
def test_scikit_learns_meta_estimators_accept_it(around):
    X, y = load_diabetes(return_X_y=True)
    ours, theirs = (around(cls()) for cls in (LinearRegression, sklearn.linear_model.LinearRegression))
    close(ours.fit(X, y).predict(X), theirs.fit(X, y).predict(X), 1e-6)
    close(cross_val_score(ours, X, y), cross_val_score(theirs, X, y), 1e-6)


def test_several_targets_are_cross_validated():
    models = LinearRegression(), sklearn.linear_model.LinearRegression()
    close(*(cross_val_predict(model, *load_linnerud(return_X_y=True), cv=4) for model in models))
