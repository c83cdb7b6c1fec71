"""The regression kernels: certified digits, exact arithmetic, bits, threads, bad problems in a batch."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastvae
from fastvae import Status, regression
from fastvae_kernels.numba.regression import launch

from .exact import (
    NIST,
    PLAIN,
    PRECISIONS,
    TARGET,
    N,
    certified_problem,
    check_exactly,
    digits,
    fit,
    in_exact_arithmetic,
    rng,
)

REFINED, DOUBLE_DOUBLE, RANK_DEFICIENT = Status.REFINED, Status.DOUBLE_DOUBLE, Status.RANK_DEFICIENT


# Certified digits


# No solver can be more accurate than exact least squares on the float64 design: 13.2 digits on Wampler2, 13.5 on
# Pontius, 7.6 on Filip. Standard errors computed in float64 have 13 digits if the coefficients were refined.
@pytest.mark.parametrize("path", NIST, ids=lambda path: path.stem)
def test_nist_certified_digits_by_default(path):
    X, y, intercept, certified = certified_problem(path)
    result = regression.fit(X, y, fit_intercept=intercept)
    coef, errors = result.coef, result.standard_errors
    if intercept:
        coef = np.r_[result.intercept, coef]
        errors = np.r_[result.intercept_standard_error, errors]
    floor = 7.5 if path.stem == "Filip" else 13
    assert digits(coef, certified["coef"]) >= floor
    assert digits(errors, certified["coef_sd"]) >= floor
    assert digits(np.sqrt(result.sigma2_unbiased), certified["residual_sd"]) >= (9.5 if path.stem == "Filip" else 13)
    assert digits(result.r2, certified["r_squared"]) >= (11.5 if path.stem == "Filip" else 13)
    assert result.rank == X.shape[1]


def test_nist_in_one_stream():
    # the same digits from sums only, two rows at a time; RSS of a perfect fit is at the rounding level of double-double
    for path in NIST:
        X, y, intercept, certified = certified_problem(path)
        gram = regression.Gram(fit_intercept=intercept, backend="numba")
        for n in range(0, len(y), 2):
            gram.update(X[n : n + 2], y[n : n + 2])
        result = gram.solve()
        coef = np.r_[result.intercept, result.coef] if intercept else result.coef
        assert digits(coef, certified["coef"]) >= (7.5 if path.stem == "Filip" else 13), path.stem


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("exponent", range(0, 15, 2))
def test_ill_conditioned_designs_in_exact_arithmetic(exponent, weighted):
    # condition number 10^exponent: float64 up to 1, residuals up to 1e2, then double-double, from 1e8 with residuals
    rng = np.random.default_rng(exponent)
    N, P = 30, 5
    (U, _), (V, _) = np.linalg.qr(rng.normal(size=(N, P))), np.linalg.qr(rng.normal(size=(P, P)))
    X = U @ np.diag(np.logspace(0, -exponent, P)) @ V.T
    y = X @ rng.normal(size=P) + 1e-3 * rng.normal(size=N)
    w = rng.uniform(0.2, 1, size=N) if weighted else None
    status = check_exactly(X, y, w, of_errors=max(1e-9, 2.0**-95 * 100**exponent))
    assert bool(status & DOUBLE_DOUBLE) == (exponent >= 4)


OUTLYING = np.where(np.arange(N)[:, None] == 0, 1e12, PLAIN)
TREND = np.arange(N)[:, None] ** np.array([1.0, 2.0])
WHOLE = np.round(8 * PLAIN)
EXTREME, EXTREME_TARGET = PLAIN.copy(), PLAIN @ [1.0, 2.0, 3.0] + 1e-7 * TARGET
EXTREME[0] = 1e308  # its residuals overflow float64
DESIGNS: dict[str, tuple[np.ndarray, np.ndarray, dict]] = {
    "plain": (PLAIN, TARGET, {}),
    "scales of 1 and 1e-7": (PLAIN * [1, 1e-7, 1e5], TARGET, {}),
    "y far from the origin": (PLAIN, TARGET + 1e9, {}),
    "X far from the origin": (PLAIN + 1e8, TARGET, {}),
    "X far, two columns close": (np.c_[PLAIN + 1e8, PLAIN[:, :1] + 1e8 + 1e-3 * PLAIN[::-1, 1:2]], TARGET, {}),
    "X far, columns within a hundredth": (np.c_[PLAIN, PLAIN[:, 0] + 0.01 * TARGET[::-1]] + 1e9, TARGET + 1e9, {}),
    "a row of no weight, far off": (EXTREME, EXTREME_TARGET, {"w": (np.arange(N) > 0) * 1.0}),
    "an outlier in the first row": (OUTLYING, TARGET, {"of_errors": 1e-8}),
    "an outlier in a later row": (OUTLYING[::-1].copy(), TARGET, {"of_errors": 1e-8}),
    "sorted rows": (TREND, TARGET, {}),
    "a perfect fit": (WHOLE, WHOLE @ [1.0, 2.0, 3.0] + 5, {}),
    "powers": (np.linspace(0, 1, N)[:, None] ** np.arange(1, 10), np.cos(np.linspace(0, 5, N)), {}),
    "no intercept": (PLAIN, TARGET, {"intercept": False}),
    "weights": (PLAIN, TARGET, {"w": np.where(np.arange(N) % 5, rng.uniform(size=N), 0)}),
    "weights of all sizes": (PLAIN, TARGET, {"w": 10 ** rng.uniform(-6, 6, N)}),
    "a ridge": (PLAIN, TARGET, {"alpha": 2.5}),
    "a ridge, weights, no intercept": (PLAIN, TARGET, {"alpha": 0.1, "w": rng.uniform(size=N), "intercept": False}),
}


@pytest.mark.parametrize("precision", ["auto", "double-double"])
@pytest.mark.parametrize("name", DESIGNS)
def test_designs_in_exact_arithmetic(name, precision):
    X, y, options = DESIGNS[name]
    check_exactly(X, y, precision=precision, **options)


@pytest.mark.parametrize("exponent", range(20, 41, 4))
def test_an_intercept_that_is_a_difference_of_far_larger_terms(exponent):
    # the slopes are accurate long before the intercept is, so it has its own error bound
    X = np.c_[WHOLE[:, 0], 100 * WHOLE[:, 0] + WHOLE[:, 1], WHOLE[:, 2]] + 2.0**exponent
    result = fit(X, X @ [1.0, 2.0, 3.0] + 5)
    np.testing.assert_allclose([result.intercept, *result.coef], [5, 1, 2, 3], rtol=2e-13)


def far_designs():
    """Regressors 1e6 to 1e13 standard deviations from the origin, with coefficients that are small beside the noise."""
    g = np.random.default_rng(3)
    for _ in range(100):
        n, p = int(g.integers(8, 60)), int(g.integers(1, 5))
        X = g.normal(size=(n, p)) * 10.0 ** g.uniform(-3, 2, p) + 10.0 ** g.uniform(6, 10) * g.normal(size=p)
        y = X @ (g.normal(size=p) * 10.0 ** g.uniform(-3, 3, p)) + g.normal(size=n)
        yield X, y, g.uniform(0.1, 1, n) if g.uniform() < 0.5 else None


def test_designs_far_from_the_origin_in_exact_arithmetic():
    # sums of residuals must not start at the size of y, and means must not be rounded, or accuracy is lost silently
    assert REFINED in [check_exactly(X, y, w) for X, y, w in far_designs()]


def test_designs_far_from_the_origin_without_an_intercept():
    # condition number 1e9 and more: corrected in double-double, by sums that start no higher than their errors require
    for X, y, w in far_designs():
        X = X[:, :2] + [3e9, 1e9][: X.shape[1]]
        result, solution = fit(X, y, sample_weight=w, fit_intercept=False), in_exact_arithmetic(X, y, w, 0.0, False)[0]
        np.testing.assert_allclose(result.coef, solution, rtol=2e-13)


def test_columns_far_from_the_origin_with_tiny_coefficients():
    # y is a multiple of the first column; the other coefficients are 1e-17, by rounding, below the error of residuals
    g = np.random.default_rng(0)
    for exponent in range(20, 48, 2):
        near = g.integers(-1000, 1000, size=(60, 3)).astype(float)
        X, y = near + 2.0**exponent * g.integers(1, 4, size=3), g.normal() * near[:, 0]
        np.testing.assert_allclose(fit(X, y).coef, in_exact_arithmetic(X, y)[0][1:], rtol=1e-11)


def test_float64_is_accurate_for_well_conditioned_data():
    assert check_exactly(PLAIN, TARGET, precision="float64", tolerance=1e-12) == Status(0)


def test_a_tiny_rss_is_summed_from_residuals():
    y = PLAIN @ [1.0, 2.0, 3.0] + 1e-7 * TARGET  # RSS is 1e-15 of y'y
    for precision in PRECISIONS:
        tolerance = 1e-7 if precision == "float64" else 2e-13
        status = check_exactly(PLAIN, y, precision=precision, tolerance=tolerance)
        assert status == {"auto": REFINED, "float64": Status(0), "double-double": DOUBLE_DOUBLE}[precision]


def test_several_targets_are_refined_together():
    targets = np.stack([TARGET, 1e-5 * TARGET + 3, PLAIN @ [1.0, 1e-6, 0.1]], axis=1)
    result = fit(PLAIN, targets)
    for r in range(3):
        solution, _, rss = in_exact_arithmetic(PLAIN, targets[:, r])
        np.testing.assert_allclose(np.r_[result.intercept[r], result.coef[r]], solution, rtol=2e-13, atol=1e-25)
        np.testing.assert_allclose(result.rss[r], rss, rtol=1e-10, atol=1e-28)
    assert result.status == REFINED


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_first_rows_may_be_far_from_the_rest(precision):
    # the centers, which are the means of the first eight rows, are computed again, that of y too
    X = PLAIN + 1e6
    X[8:, 0] += 1e3
    check_exactly(X, TARGET + 1e7 + X[:, 0], precision=precision, tolerance=1e-12)


def test_few_well_behaved_problems_are_refined():
    g = np.random.default_rng(0)
    for n, p in ((64, 4), (256, 8)):
        X = g.normal(size=(2000, n, p))
        y = np.einsum("bnp,bp->bn", X, g.normal(size=(2000, p))) + g.normal(size=(2000, n)) + 1
        status = fit(X, y).status
        assert 0 < (status & REFINED != 0).mean() < 0.1
        assert (status & DOUBLE_DOUBLE == 0).all()


def test_float32_data_are_refined_to_float32():
    X, y = PLAIN.astype(np.float32), TARGET.astype(np.float32)
    result = fit(X, y)
    solution, _, rss = in_exact_arithmetic(X.astype(float), y.astype(float))
    np.testing.assert_array_equal(result.coef, solution[1:].astype(np.float32))
    np.testing.assert_allclose(result.rss, rss, rtol=1e-12)
    assert result.coef.dtype == np.float32
    assert result.status == Status(0)


# Bits, threads, batches


def batch_of(B=37, n=50, p=3, seed=0):
    """Problems that need no refinement, refinement, double-double, or a pseudo-inverse, and one with NaN."""
    g = np.random.default_rng(seed)
    X = g.normal(size=(B, n, p))
    y = np.einsum("bnp,bp->bn", X, g.normal(size=(B, p))) + g.normal(size=(B, n))
    y[3] = X[3] @ [1.0, 0.0, 1.0]
    X[5, :, 2] = X[5, :, 1] + 1e-6 * X[5, :, 2]
    X[11, :, 2] = X[11, :, 1]
    X[20, 7, 0] = np.nan
    return X, y


def fields(result):
    names = (
        "coef",
        "intercept",
        "standard_errors",
        "intercept_standard_error",
        "sigma2",
        "log_likelihood",
        "r2",
        "rss",
    )
    return [np.asarray(getattr(result, name)) for name in (*names, "condition", "rank", "status", "covariance")]


def assert_same_bits(one, other):
    for a, b in zip(fields(one), fields(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_problem_has_the_same_bits_alone_and_in_any_batch(precision):
    X, y = batch_of()
    options = {"precision": precision, "on_singular": "ignore"}
    result = fit(X, y, **options)
    for b in (0, 3, 5, 11, 36):
        assert_same_bits(fit(X[b : b + 1], y[b : b + 1], **options), result[b : b + 1])
    without = np.delete(np.arange(37), 20)
    assert_same_bits(fit(X[without], y[without], **options), result[without])
    assert result.status[20] == Status.NONFINITE
    assert np.isnan(result.coef[20]).all()
    if precision == "auto":
        assert result.status[3] == REFINED
        assert result.status[5] == DOUBLE_DOUBLE
        assert result.status[11] == DOUBLE_DOUBLE | RANK_DEFICIENT


def test_problems_are_solved_in_parts(monkeypatch):
    X, y = batch_of()
    whole = fit(X, y, on_singular="ignore")
    monkeypatch.setattr(launch, "PART", 2000)  # of 8 problems, and of 5 at the end
    assert_same_bits(fit(X, y, on_singular="ignore"), whole)


@pytest.fixture(params=[2, 3])
def threads(request):
    yield request.param
    torch.set_num_threads(1)


@pytest.mark.parametrize("weighted", [False, True])
def test_bits_do_not_depend_on_threads(threads, weighted):
    g = np.random.default_rng(0)
    X, y = batch_of(400)
    tall = g.normal(size=(40_000, 6)) + 100
    target = tall @ np.arange(6.0) + g.normal(size=40_000)
    w, w_tall = (g.uniform(size=y.shape), g.uniform(size=len(target))) if weighted else (None, None)
    for precision in PRECISIONS:
        options = {"precision": precision, "on_singular": "ignore"}
        torch.set_num_threads(1)
        one = fit(X, y, sample_weight=w, **options), fit(tall, target, sample_weight=w_tall, **options)
        torch.set_num_threads(threads)
        many = fit(X, y, sample_weight=w, **options), fit(tall, target, sample_weight=w_tall, **options)
        for a, b in zip(one, many, strict=True):
            assert_same_bits(a, b)


def test_sums_have_the_same_bits_for_the_same_updates(threads):
    g = np.random.default_rng(0)
    X, y = g.normal(size=(30_000, 4)), g.normal(size=30_000)

    def streamed(number):
        torch.set_num_threads(number)
        gram = regression.Gram(backend="numba")
        for n in range(0, 30_000, 7_000):
            gram.update(X[n : n + 7_000], y[n : n + 7_000])
        return gram.solve()

    assert_same_bits(streamed(1), streamed(threads))


def test_many_rows_of_a_tall_problem():
    # more tiles than one slot has, a first tile unlike the others, and rows that do not fill a vector
    g = np.random.default_rng(0)
    n = 30_011
    for p in (1, 3, 14):
        X = np.cumsum(g.normal(size=(n, p)), axis=0) + np.arange(n)[:, None]
        y = X.sum(1) + g.normal(size=n)
        A = np.c_[np.ones(n), X].astype(np.longdouble)
        G, b = A.T @ A, A.T @ y.astype(np.longdouble)
        solution = mpmath.lu_solve(mpmath.matrix(G.tolist()), mpmath.matrix(b.tolist()))
        for precision in ("auto", "double-double"):
            result = fit(X, y, precision=precision)
            np.testing.assert_allclose(result.coef, [float(s) for s in solution][1:], rtol=1e-9)
        exact = fit(X, y, precision="double-double")
        np.testing.assert_allclose(fit(X, y).coef, exact.coef, rtol=2e-13)


SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 30), st.integers(1, 16), st.integers(1, 3))


@given(
    SHAPES,
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from(["plain", "columns", "every other"]),
)
def test_any_shape_and_layout_matches_the_reference(shape, weighted, intercept, alpha, layout):
    B, extra, P, R = shape
    n = P + extra + 2
    g = np.random.default_rng(n)
    X, y = g.normal(size=(B, n, P)) + 2, g.normal(size=(B, n, R))
    if layout == "columns":
        X = np.ascontiguousarray(X.transpose(0, 2, 1)).transpose(0, 2, 1)
    elif layout == "every other":
        X, y = np.repeat(X, 2, axis=1)[:, ::2], np.repeat(y, 2, axis=2)[:, :, ::2]
    w = g.uniform(0.1, 1, size=(B, n)) if weighted else None
    options = {"sample_weight": w, "fit_intercept": intercept, "alpha": alpha}
    ours, theirs = fit(X, y, **options), regression.fit(X, y, backend="reference", **options)
    condition = np.max(ours.condition)
    for a, b in zip(fields(ours)[:8], fields(theirs)[:8], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9 * condition, atol=1e-12 * condition)


def test_rows_of_weight_zero_are_ignored():
    w = np.where(np.arange(N) % 3, 1.0, 0.0)
    everywhere = fit(PLAIN, TARGET, sample_weight=w)
    some = fit(PLAIN[w > 0], TARGET[w > 0], sample_weight=w[w > 0])
    for a, b in zip(fields(everywhere)[:8], fields(some)[:8], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert everywhere.rows == (w > 0).sum()


def test_data_whose_squares_overflow_are_scaled():
    result = fit(PLAIN * [1e200, 1e-200, 1.0], TARGET * 1e-50)
    plain = fit(PLAIN, TARGET)
    np.testing.assert_allclose(result.coef * [1e200, 1e-200, 1.0] * 1e50, plain.coef, rtol=1e-12)


def test_show_config_names_the_kernels(capsys):
    fastvae.show_config()
    assert "regression       numba" in capsys.readouterr().out
