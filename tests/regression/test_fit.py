"""fastvae.regression.fit against statsmodels, scikit-learn and NumPy, by the reference and by kernels."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from sklearn.linear_model import LinearRegression, Ridge
from statsmodels.tools import sm_exceptions

from fastvae import Status, regression
from fastvae.regression._problems import RankWarning

from .exact import NIST, certified_problem
from .problems import FIELDS, B, N, P, R, by_backend, close, problem, same

pytestmark = by_backend
intercept_or_not = pytest.mark.parametrize("fit_intercept", [True, False])
FITTED_ALONE = tuple(name for name in FIELDS if name != "status")


def all_of(result, name, intercept_name):
    return np.concatenate([np.atleast_1d(getattr(result, intercept_name)), getattr(result, name)])


def test_a_numpy_bool_is_accepted(backend):
    X, y, _ = problem()
    of_numpy: Any = np.bool_(True)
    with_one = regression.fit(X, y, fit_intercept=of_numpy, backend=backend)
    np.testing.assert_array_equal(with_one.coef, regression.fit(X, y, fit_intercept=True, backend=backend).coef)


# Against other packages


@intercept_or_not
@pytest.mark.parametrize("weights", ["none", "positive", "with zeros"])
def test_a_fit_matches_statsmodels(backend, fit_intercept, weights):
    X, y, w = problem()
    w = {"none": np.ones(N), "positive": w + 0.01, "with zeros": w}[weights]
    keep = w > 0  # statsmodels includes rows of weight 0 in N and df
    design = sm.add_constant(X[keep]) if fit_intercept else X[keep]
    truth = (sm.OLS(y, design) if weights == "none" else sm.WLS(y[keep], design, w[keep])).fit()
    how = {"fit_intercept": fit_intercept, "backend": backend}
    result = regression.fit(X, y, sample_weight=None if weights == "none" else w, **how)
    first = int(fit_intercept)
    close(result.coef, truth.params[first:])
    close(result.standard_errors, truth.bse[first:])
    close(result.t_values, truth.tvalues[first:])
    close(result.p_values, truth.pvalues[first:])
    close(result.confidence_intervals(), truth.conf_int()[first:])
    close(result.confidence_intervals(0.5), truth.conf_int(0.5)[first:])
    close(result.covariance, truth.cov_params()[first:, first:], atol=1e-12)
    if fit_intercept:
        close(result.intercept, truth.params[0])
        close(result.intercept_standard_error, truth.bse[0])
        close(result.intercept_t_value, truth.tvalues[0])
        close(result.intercept_p_value, truth.pvalues[0])
        close(result.intercept_confidence_interval(0.9), truth.conf_int(0.1)[0])
    else:
        assert result.intercept == result.intercept_standard_error == 0
        assert np.isnan([result.intercept_t_value, result.intercept_p_value]).all()
        assert np.isnan(result.intercept_confidence_interval()).all()
    ours = ("log_likelihood", "r2", "rss", "sigma2_unbiased", "rows", "df", "rank")
    theirs = ("llf", "rsquared", "ssr", "scale", "nobs", "df_resid", "df_model")
    close([getattr(result, name) for name in ours], [getattr(truth, name) for name in theirs])
    close(result.sigma2, truth.ssr / keep.sum())
    A = (X - fit_intercept * np.average(X, axis=0, weights=w)) * np.sqrt(w)[:, None]
    G = (A / np.linalg.norm(A, axis=0)).T @ (A / np.linalg.norm(A, axis=0))
    close(result.condition, math.sqrt(np.linalg.norm(G, 1) * np.linalg.norm(np.linalg.inv(G), 1)), rtol=1e-7)
    assert not result.status & ~(Status.REFINED | Status.DOUBLE_DOUBLE)


@intercept_or_not
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("alpha", [0, 2.5])
def test_coefficients_and_predictions_match_scikit_learn(backend, fit_intercept, weighted, alpha):
    X, y, w = problem(targets=R)
    weights = w if weighted else None
    model = (Ridge(alpha, solver="svd") if alpha else LinearRegression(tol=0)).set_params(fit_intercept=fit_intercept)
    model.fit(X, y, weights)
    how = {"alpha": alpha, "fit_intercept": fit_intercept, "backend": backend}
    result = regression.fit(X, y, sample_weight=weights, **how)
    close(result.coef, model.coef_)
    close(result.intercept, model.intercept_ if fit_intercept else np.zeros(R), rtol=1e-8)
    close(result.predict(X[:5]), model.predict(X[:5]))
    no_errors = (result.standard_errors, result.sigma2_unbiased, result.t_values, result.p_values)
    assert all(np.isnan(v).all() == (alpha > 0) for v in no_errors)


def test_dependent_columns_have_the_minimum_norm_solution(backend):
    X, y, w = problem()
    X = np.c_[X, X[:, 0] - X[:, 1], np.full(N, 0.1)]
    root = np.sqrt(w)[:, None]
    for fit_intercept, rank in ((True, 4), (False, 5)):
        means = fit_intercept * np.average(X, axis=0, weights=w), fit_intercept * np.average(y, weights=w)
        A, c = root * (X - means[0]), root[:, 0] * (y - means[1])
        pseudo = np.linalg.pinv(A, rcond=1e-12)
        with pytest.warns(RankWarning):
            result = regression.fit(X, y, sample_weight=w, fit_intercept=fit_intercept, backend=backend)
        assert result.status & Status.RANK_DEFICIENT
        assert result.rank == rank
        assert result.rows == N - 1
        assert result.df == N - 1 - rank - fit_intercept
        close(result.coef, pseudo @ c, rtol=1e-8, atol=1e-12)
        close(result.intercept, means[1] - means[0] @ result.coef, atol=1e-12)
        close(result.rss, np.sum((c - A @ (pseudo @ c)) ** 2))
        covariance = result.sigma2_unbiased * pseudo @ pseudo.T
        close(result.covariance, covariance, rtol=1e-7, atol=1e-10)
        close(result.standard_errors, np.sqrt(np.diag(covariance)), rtol=1e-7, atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sm_exceptions.SingularMatrixWarning)  # since statsmodels 0.15
        # Without an intercept: "pinv" minimizes the norm of all coefficients.
        truth = sm.WLS(y[w > 0], X[w > 0], w[w > 0]).fit(method="pinv")
    close(result.coef, truth.params, rtol=1e-8)
    close(result.standard_errors, truth.bse, rtol=1e-7)


def test_each_problem_has_its_own_rank(backend):
    rng = np.random.default_rng(3)
    factors = [(rng.integers(-9, 10, (N, k)), rng.integers(-9, 10, (k, P))) for k in range(P + 1)]
    X = np.stack([a @ b for a, b in factors]) * [1, 128, 1 / 64, 8] + 5  # without rounding: exactly dependent
    y = rng.normal(size=(P + 1, N, R))
    result = regression.fit(X, y, on_singular="ignore", backend=backend)
    assert result.rank.tolist() == list(range(P + 1))
    assert (result.status & Status.RANK_DEFICIENT != 0).tolist() == [True] * P + [False]
    about = X - X.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    for k in range(P + 1):
        close(result.coef[k], (np.linalg.pinv(about[0][k], rcond=1e-10) @ about[1][k]).T, rtol=1e-7, atol=1e-12)


def test_nearly_dependent_columns_are_not_dependent(backend):
    X, y, _ = problem()
    noise = np.random.default_rng(1).normal(size=N)
    far, near = (np.c_[X, X[:, 0] + size * noise] for size in (1e-8, 1e-17))
    result = regression.fit(far, y, backend=backend)
    assert result.rank == P + 1
    assert 1e7 < result.condition < 1e10
    close(result.predict(far), sm.OLS(y, sm.add_constant(far)).fit(method="qr").fittedvalues, rtol=1e-6)
    assert regression.fit(near, y, on_singular="ignore", backend=backend).rank == P


@pytest.mark.parametrize("path", NIST, ids=lambda path: path.stem)
def test_no_nist_problem_is_rank_deficient(backend, path):
    X, y, intercept, certified = certified_problem(path)
    result = regression.fit(X, y, fit_intercept=intercept, backend=backend)
    assert result.rank == X.shape[1]
    close(result.coef, certified["coef"][int(intercept) :], rtol=1e-4 if path.stem == "Wampler5" else 1e-6)
    close(math.sqrt(result.sigma2_unbiased), certified["residual_sd"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_fewer_rows_than_columns(backend, fit_intercept):
    X, y, _ = problem(rows=3)
    result = regression.fit(X, y, fit_intercept=fit_intercept, on_singular="ignore", backend=backend)
    centred, about = (X - X.mean(0), y - y.mean()) if fit_intercept else (X, y)
    close(result.coef, np.linalg.pinv(centred, rcond=1e-12) @ about, rtol=1e-7)
    close(result.predict(X), y, rtol=1e-9)
    assert result.rank == 3 - fit_intercept
    assert result.df == 0
    assert result.rss < 1e-16 * (y**2).sum()
    assert np.isnan(result.standard_errors).all()
    assert np.isnan(result.sigma2_unbiased)


def test_a_ridge_makes_dependent_columns_well_posed(backend):
    X, y, _ = problem()
    X = np.c_[X, X[:, 0]]
    result = regression.fit(X, y, alpha=1.0, backend=backend)  # without a warning
    close(result.coef, Ridge(1.0, solver="svd").fit(X, y).coef_)
    assert not result.status & Status.RANK_DEFICIENT


# Shapes, dtypes and containers


@pytest.mark.parametrize("targets", [None, 1, R])
@pytest.mark.parametrize("batch", [(), (B,), (B, 5)])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_shapes_dtypes_and_containers(backend, targets, batch, kind):
    X, y, w = problem(*batch, targets=targets, dtype=np.float32)
    if kind == "torch":
        X, y, w = map(torch.from_numpy, (X, y, w))
    result = regression.fit(X, y, sample_weight=w, backend=backend)
    over = (*batch, *([targets] if targets else []))
    shapes = {"coef": (*over, P), "standard_errors": (*over, P), "covariance": (*over, P, P)}
    shapes |= {"t_values": (*over, P), "p_values": (*over, P)}
    shapes |= dict.fromkeys(("condition", "rank", "rows", "df", "status"), batch)
    for name in (*FIELDS, "covariance", "t_values", "p_values", "intercept_t_value", "intercept_p_value"):
        value = getattr(result, name)
        if name == "status" and not batch:
            assert type(value) is Status
            continue
        assert isinstance(value, torch.Tensor if kind == "torch" else np.ndarray | np.generic), name
        assert value.shape == shapes.get(name, over), name
        wide = {"log_likelihood", "r2", "rss", "condition", "p_values", "intercept_p_value"}
        dtype = "int64" if name in ("rank", "rows", "df", "status") else "float64" if name in wide else "float32"
        assert str(value.dtype).removeprefix("torch.") == dtype, name
    assert result.confidence_intervals().shape == (*over, P, 2)
    assert result.intercept_confidence_interval().shape == (*over, 2)
    rows = X[..., :7, :]
    assert result.predict(rows).shape == (*batch, 7, *over[len(batch) :])
    assert type(result.predict(rows)) is type(X)
    wide_y = regression.fit(X, y.double() if kind == "torch" else y.astype(np.float64), backend=backend)
    assert str(wide_y.coef.dtype).endswith("float64")


def test_float32_data_are_computed_in_float64(backend):
    X, y, w = problem(dtype=np.float32)
    result = regression.fit(X, y, sample_weight=w, backend=backend)
    truth = regression.fit(X.astype(np.float64), y.astype(np.float64), sample_weight=w, backend=backend)
    for name in FITTED_ALONE:
        close(getattr(result, name), getattr(truth, name), rtol=1e-7)


@pytest.mark.parametrize("targets", [None, R])
def test_a_batch_is_a_loop_and_so_are_targets(backend, targets):
    X, y, w = problem(B, 5, targets=targets)
    whole = regression.fit(X, y, sample_weight=w, backend=backend)
    for i in np.ndindex(B, 5):
        alone = regression.fit(X[i], y[i], sample_weight=w[i], backend=backend)
        same(whole[i], alone, fields=FITTED_ALONE)
        close(whole[i].covariance, alone.covariance, atol=1e-12)
        close(whole[i].predict(X[i]), whole.predict(X)[i])
        for r in range(targets or 0):
            one = regression.fit(X[i], y[i][:, r], sample_weight=w[i], backend=backend)
            close(alone.coef[r], one.coef)
            close(alone.covariance[r], one.covariance, atol=1e-12)


def test_one_column_without_a_dim_gives_scalars(backend):
    X, y, w = problem()
    result = regression.fit(X[:, 0], y, sample_weight=w, backend=backend)
    truth = regression.fit(X[:, :1], y, sample_weight=w, backend=backend)
    for name in ("coef", "standard_errors", "t_values", "p_values"):
        assert np.shape(getattr(result, name)) == ()
        close(getattr(result, name), getattr(truth, name)[0])
    close(result.covariance, truth.covariance[0, 0])
    close(result.confidence_intervals(), truth.confidence_intervals()[0])
    close(result.predict(X[:, 0]), truth.predict(X[:, :1]))
    assert result.predict(X[:, 0]).shape == (N,)
    assert type(result.coef) is np.float64


def test_batches_of_X_y_and_weights_broadcast(backend):
    X, y, w = problem(B, 5)
    one = regression.fit(X[:, :1], y, sample_weight=w[0, 0], backend=backend)
    same(one, regression.fit(np.repeat(X[:, :1], 5, 1), y, sample_weight=np.broadcast_to(w[0, 0], w.shape)), 1e-12)
    many = regression.fit(X[0], y[:1, 0].repeat(5, 0)[:1], backend=backend)
    same(many, regression.fit(X[0], np.broadcast_to(y[0, 0], (5, N)), backend=backend), 1e-12)


def layouts(X, tmp_path):
    np.save(tmp_path / "X.npy", X)
    every_other = np.zeros((*X.shape[:-1], 2 * P))
    every_other[..., ::2] = X
    readonly = X.copy()
    readonly.flags.writeable = False
    swapped = X.astype(X.dtype.newbyteorder())
    buffer = np.zeros(X.nbytes + 1, np.uint8)
    unaligned = buffer[1:].view(np.float64).reshape(X.shape)
    unaligned[:] = X
    yield from (every_other[..., ::2], X[::-1][::-1], np.asfortranarray(X), X.swapaxes(0, 1).copy().swapaxes(0, 1))
    yield from (
        np.load(tmp_path / "X.npy", mmap_mode="r"),
        readonly,
        swapped,
        unaligned,
        X[:, ::-1, ::-1].copy()[:, ::-1, ::-1],
    )


def test_layouts_change_nothing(backend, tmp_path):
    X, y, w = problem(5)
    truth = regression.fit(X, y, sample_weight=w, backend=backend)
    for other in layouts(X, tmp_path):
        same(regression.fit(other, y, sample_weight=w, backend=backend), truth, 1e-12)
    expanded = torch.from_numpy(X[0]).expand(5, -1, -1)
    same(regression.fit(expanded, torch.from_numpy(y), backend=backend), regression.fit(X[[0] * 5], y), 1e-12)
    transposed = np.ascontiguousarray(y.T).T, np.ascontiguousarray(w.T).T
    same(regression.fit(X, transposed[0], sample_weight=transposed[1], backend=backend), truth, 1e-12)


def test_arguments_are_not_written_to(backend):
    X, y, w = problem(B)
    before = [t.copy() for t in (X, y, w)]
    regression.fit(X, y, sample_weight=w, backend=backend)
    for t, was in zip((X, y, w), before, strict=True):
        np.testing.assert_array_equal(t, was)


def test_integers_and_bools_are_float64(backend):
    X, y = np.arange(12).reshape(6, 2) ** 2 % 7, np.arange(6) % 2 == 0
    result = regression.fit(X, y, sample_weight=np.ones(6, int), backend=backend)
    same(result, regression.fit(X.astype(float), y.astype(float), backend=backend), fields=FITTED_ALONE)


@pytest.mark.parametrize("targets", [None, R])
def test_without_columns_it_fits_a_normal_distribution(backend, targets):
    if backend != "reference":
        pytest.skip("the reference serves what has no columns")
    _, y, w = problem(B, targets=targets)
    result = regression.fit(np.zeros((B, N, 0)), y, sample_weight=w)
    over = y.swapaxes(1, -1)
    weights = w[:, None] if targets else w
    mean = (weights * over).sum(-1) / weights.sum(-1)
    close(result.intercept, mean)
    close(result.sigma2, (weights * (over - mean[..., None]) ** 2).sum(-1) / (N - 1))
    assert result.coef.shape == (*mean.shape, 0)
    assert (result.status == 0).all()


def test_an_empty_batch_is_not_an_error(backend):
    if backend != "reference":
        pytest.skip("the reference serves what is empty")
    X, y, w = problem(0)
    result = regression.fit(X, y, sample_weight=w)
    assert result.coef.shape == result.standard_errors.shape == (0, P)
    assert result.status.shape == (0,)
    assert result.summary().startswith("Linear regressions: 0 problems")


# Bad problems in a batch


def test_a_bad_problem_does_not_affect_the_others(backend):
    X, y, w = problem(7)
    sound = regression.fit(X, y, sample_weight=w, backend=backend)
    X, y, w = X.copy(), y.copy(), w.copy()
    X[0, 3, 1], X[1, 0, 0], y[2, 5], w[3, 1], w[4] = np.nan, -np.inf, np.nan, np.inf, 0.0
    X[5, :, 2] = X[5, :, 0]
    result = regression.fit(X, y, sample_weight=w, on_singular="ignore", backend=backend)
    flags = [Status(int(s)) & ~(Status.REFINED | Status.DOUBLE_DOUBLE) for s in result.status]
    assert flags == [Status.NONFINITE] * 4 + [Status.TOO_FEW_ROWS, Status.RANK_DEFICIENT, Status(0)]
    same(result[6], sound[6], fields=FITTED_ALONE)
    for name in FIELDS[:10]:
        assert np.isnan(getattr(result, name)[:5]).all(), name
    assert np.isnan(result.covariance[:5]).all()
    assert np.isfinite(result.coef[5:]).all()


def test_rows_of_weight_zero_are_ignored_whatever_they_contain(backend):
    X, y, w = problem(B)
    X[0, 4], y[1, 4] = 1e6, -1e6
    result = regression.fit(X, y, sample_weight=w, backend=backend)
    keep = np.arange(N) != 4
    same(result, regression.fit(X[:, keep], y[:, keep], sample_weight=w[:, keep], backend=backend), fields=FITTED_ALONE)
    X[0, 4, 0] = np.nan
    same(regression.fit(X, y, sample_weight=w, backend=backend), result, 1e-12)


@pytest.mark.parametrize("scale", [1e200, 1e-200, 1e-160, 1e150])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_extreme_magnitudes_are_scaled(backend, scale, alpha):
    scale = 2.0 ** round(math.log2(scale))
    X, y, w = problem(3)
    how = {"sample_weight": w, "backend": backend}
    truth = regression.fit(X, y, **how)
    fields = ("coef", "intercept", "r2", "rank")
    if alpha == 0:
        many = X.copy()
        many[1] *= scale
        result = regression.fit(many, y, **how)
        close(result.coef * np.array([1, scale, 1])[:, None], truth.coef)
        same(result, truth, fields=("intercept", "r2", "rank", "rss", "log_likelihood"))
        many = X * [1, scale, 1, 1 / scale]  # no common factor for all
        result = regression.fit(many, y, **how)
        close(result.coef * [1, scale, 1, 1 / scale], truth.coef)
        close(result.standard_errors * [1, scale, 1, 1 / scale], truth.standard_errors)
        result = regression.fit(X, y * scale, **how)
        close(result.coef / scale, truth.coef)
        close(result.log_likelihood, truth.log_likelihood - (N - 1) * math.log(scale))
        same(result, truth, fields=("r2", "rank", "condition"))
        result = regression.fit(X, y, sample_weight=w * scale, backend=backend)
        same(result, truth, fields=(*fields, "log_likelihood", "standard_errors"))
    elif scale > 1:  # the penalty is negligible relative to such squares
        same(regression.fit(X * scale, y * scale, alpha=alpha, **how), truth, fields=("coef", "r2", "rank"))
    else:  # here the penalty dominates
        close(
            regression.fit(X * scale, y, alpha=alpha, **how).predict(X * scale),
            np.repeat(np.average(y, axis=1, weights=w)[:, None], N, 1),
        )
