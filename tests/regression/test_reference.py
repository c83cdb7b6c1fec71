"""The specification of regression against statsmodels, scikit-learn, NIST, mpmath and theory."""

import json
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import statsmodels.api as sm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from torch.distributions import Normal

from fastvae.reference.regression.formulas import fit, log_likelihood, mse

properties = settings(deadline=None, max_examples=25, derandomize=True)
intercept_or_not = pytest.mark.parametrize("fit_intercept", [True, False])
weighted_or_not = pytest.mark.parametrize("weighted", [True, False])

# 23 rows: few enough for N and df to differ by a quarter. 4 regressors, 3 targets, 2 problems: all greater than one,
# and all different, so that dims cannot be confused.
N, P, R, B = 23, 4, 3, 2


def problem(*batch, targets=None, seed=0, rows=N, dtype=torch.float64):
    """X with different scales and means, y with as much noise as signal, weights that differ by 100 times, one of 0."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(*batch, rows, P, generator=g, dtype=torch.float64)
    X = X * torch.tensor([1.0, 0.01, 30.0, 5.0]).double() + torch.tensor([0.5, 2.0, -40.0, 0.0]).double()
    y = torch.randn(*batch, rows, targets or 1, generator=g, dtype=torch.float64) * 3 + X.mean(-1, keepdim=True) + 7
    w = 10 ** (2 * torch.rand(*batch, rows, generator=g, dtype=torch.float64) - 1)
    w[..., 4] = 0.0
    return X.to(dtype), (y if targets else y[..., 0]).to(dtype), w.to(dtype)


def close(actual, expected, rtol=1e-10, atol=0.0):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=atol)


def estimates(result, fit_intercept=True):
    """Parameters and their standard errors, intercept first as in statsmodels and NIST."""
    if not fit_intercept:
        return result.coef, result.standard_errors
    params = torch.cat([result.intercept[..., None], result.coef], -1)
    return params, torch.cat([result.intercept_standard_error[..., None], result.standard_errors], -1)


@intercept_or_not
@pytest.mark.parametrize("weights", ["none", "positive", "with zeros"])
def test_fit_matches_statsmodels_wls(fit_intercept, weights):
    X, y, w = problem()
    w = {"none": torch.ones_like(w), "positive": w + 0.01, "with zeros": w}[weights]
    keep = w > 0  # statsmodels includes rows of weight 0 in N and df, with log likelihood -inf
    design = X[keep].numpy()
    truth = sm.WLS(y[keep].numpy(), sm.add_constant(design) if fit_intercept else design, w[keep].numpy()).fit()
    result = fit(X, y, fit_intercept=fit_intercept, sample_weight=None if weights == "none" else w)
    close(torch.stack(estimates(result, fit_intercept)), np.stack([truth.params, truth.bse]))
    for ours, theirs in {"log_likelihood": "llf", "r2": "rsquared", "rss": "ssr", "sigma2_unbiased": "scale"}.items():
        close(getattr(result, ours), getattr(truth, theirs))
    close(result.sigma2, truth.ssr / truth.nobs)
    assert fit_intercept or result.intercept == result.intercept_standard_error == 0


@intercept_or_not
@weighted_or_not
@pytest.mark.parametrize("ridge", [0.0, 2.5])
def test_coefficients_match_scikit_learn(fit_intercept, ridge, weighted):
    X, y, w = problem(targets=R)
    w = w if weighted else torch.ones_like(w)
    model = (Ridge(ridge, solver="svd") if ridge else LinearRegression(tol=0)).set_params(fit_intercept=fit_intercept)
    predicted = model.fit(X.numpy(), y.numpy(), w.numpy()).predict(X.numpy())
    result = fit(X, y, fit_intercept=fit_intercept, sample_weight=w, ridge=ridge)
    close(result.coef, model.coef_)
    close(result.intercept, model.intercept_ if fit_intercept else np.zeros(R))
    if fit_intercept:  # without an intercept, scikit-learn's r2 is still about the mean
        close(result.r2, r2_score(y.numpy(), predicted, sample_weight=w.numpy(), multioutput="raw_values"))


# Minimum digits of the worst coefficient and standard error. QR codes (scipy's gelsy, statsmodels' qr) reach: Norris
# 12-13, Pontius 12, Filip 8, Longley 11, Wampler 9-10, 13, 9-10, 8-9, 6-7. The BLAS kernel, centring and scaling change
# this by half a digit, for Filip by one; the minimum digits are that much lower, Longley's higher since it is centred.
# A Gram matrix with Cholesky does not reach them: 7, 9.7, 7 on Wampler 1-3, and none on Filip.
NIST = {
    "Norris": (11.5, 13), "Pontius": (11.5, 12.5), "NoInt1": (14, 14), "NoInt2": (14, 14), "Filip": (6.5, 7),
    "Longley": (12.5, 13.5), "Wampler1": (8.5, 8), "Wampler2": (12, 13), "Wampler3": (8.5, 12), "Wampler4": (7, 12),
    "Wampler5": (5, 12),
}  # fmt: skip


def digits(actual, certified):
    """Worst -log10 relative error, absolute if the certified value is 0; at most 15, the number of certified digits."""
    certified = torch.tensor(certified, dtype=torch.float64)
    error = (actual - certified).abs() / torch.where(certified == 0, 1.0, certified.abs())
    return min(15.0, -math.log10(max(error.max().item(), 1e-300)))


@pytest.mark.parametrize(("name", "floors"), NIST.items(), ids=NIST)
def test_nist_certified_digits(name, floors):
    data = json.loads((Path(__file__).parent / "nist_strd" / f"{name}.json").read_text())
    X = torch.tensor(data["x"], dtype=torch.float64).mT ** torch.arange(1, (data["poly_degree"] or 1) + 1)
    result = fit(X, torch.tensor(data["y"], dtype=torch.float64), fit_intercept=data["intercept"])
    (params, errors), certified = estimates(result, data["intercept"]), data["certified"]
    assert digits(params, certified["coef"]) >= floors[0]
    assert digits(errors, certified["coef_sd"]) >= floors[1]
    assert digits(result.sigma2_unbiased.sqrt(), certified["residual_sd"]) >= floors[1]
    assert digits(result.r2, certified["r_squared"]) >= min(13, floors[1] + 2)  # 1 - r2 is 0.003 on Filip


def test_ill_conditioned_least_squares_in_exact_arithmetic():
    # Powers 1..6 of 12 points in [1, 2]: condition number 2e6 after centring and scaling. Errors of QR are about 1e-9,
    # those of a Gram matrix 2e-3.
    x = torch.linspace(1, 2, 12, dtype=torch.float64)
    X, y = x[:, None] ** torch.arange(1, 7), torch.cos(3 * x)  # not a polynomial, so there are residuals
    with mpmath.workdps(60):
        A, b = mpmath.matrix([[1.0, *row] for row in X.tolist()]), mpmath.matrix(y.tolist())
        inverse = (A.T * A) ** -1
        params = inverse * (A.T * b)
        rss = mpmath.fsum(r**2 for r in b - A * params)
        errors = [mpmath.sqrt(rss / (12 - 7) * inverse[i, i]) for i in range(7)]
    result = fit(X, y)
    close(torch.cat([*estimates(result), result.rss[None]]), [float(v) for v in (*params, *errors, rss)], rtol=1e-8)


@pytest.mark.parametrize("targets", [None, R])
def test_log_likelihood_matches_normal_log_prob(targets):
    X, y, w = problem(B, targets=targets, seed=1)
    shape = (B, R) if targets else (B,)
    coef, noise = torch.randn(*shape, P + 2, generator=torch.Generator().manual_seed(2)).double().split([P, 2], -1)
    intercept, sigma2 = noise[..., 0], noise[..., 1].exp()
    mean = torch.einsum("bnp,brp->bnr" if targets else "bnp,bp->bn", X, coef) + intercept[:, None]
    std = sigma2.sqrt()[:, None]
    close(log_likelihood(X, y, coef, intercept, sigma2), Normal(mean, std).log_prob(y).sum(1))
    v = w[..., None] if targets else w
    counted = Normal(mean, std / v.clamp(min=1e-9).sqrt()).log_prob(y).where(v > 0, 0.0).sum(1)
    close(log_likelihood(X, y, coef, intercept, sigma2, sample_weight=w), counted)
    close(mse(X, y, coef, intercept), np.square((y - mean).numpy()).mean(1))


@intercept_or_not
@weighted_or_not
def test_the_likelihood_is_stationary_at_the_fit(fit_intercept, weighted):
    X, y, w = problem(seed=3)
    w = w if weighted else None
    result = fit(X, y, fit_intercept=fit_intercept, sample_weight=w)
    at = [t.clone().requires_grad_() for t in (result.coef, result.intercept, result.sigma2)]
    value = log_likelihood(X, y, *at, sample_weight=w)
    close(value.detach(), result.log_likelihood, rtol=1e-11)
    # Per standard error, so that units do not matter. Rounding errors are 2e-11 if a mean is 200 standard deviations.
    scales = result.standard_errors, result.intercept_standard_error, result.sigma2
    for gradient, scale in zip(torch.autograd.grad(value, at), scales, strict=True):
        assert (gradient * scale).abs().max() < 1e-9


@properties
@given(st.integers(0, 2**31), st.floats(-3, 1), st.booleans())
def test_every_step_away_lowers_the_likelihood_as_theory_predicts(seed, log_step, weighted):
    X, y, w = problem(seed=seed)
    w = w if weighted else torch.ones_like(w)
    best = fit(X, y, sample_weight=w)
    step = 10**log_step * torch.randn(P + 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    coef, intercept = best.coef + step[:P] * best.standard_errors, best.intercept + step[P]
    moved = log_likelihood(X, y, coef, intercept, best.sigma2, sample_weight=w)
    assert moved < best.log_likelihood
    # log L is quadratic in W and b: it decreases by sum_n w_n (dW x_n + db)^2 / (2 sigma2), for any step.
    change = X @ (coef - best.coef) + (intercept - best.intercept)
    close(best.log_likelihood - moved, (w * change.square()).sum() / (2 * best.sigma2), rtol=1e-6, atol=1e-10)
    moved = log_likelihood(X, y, best.coef, best.intercept, best.sigma2 * step[-1].exp(), sample_weight=w)
    close(best.log_likelihood - moved, (w > 0).sum() / 2 * (torch.expm1(-step[-1]) + step[-1]), rtol=1e-6, atol=1e-10)
    assert moved < best.log_likelihood


@properties
@given(st.integers(0, 2**31), st.floats(-2, 2))
def test_likelihood_and_mean_square_error_rank_all_parameters_alike(seed, log_sigma2):
    X, y, _ = problem(seed=seed)
    # 50 candidates for one data set: leading dims that the data do not have.
    candidates = torch.randn(50, P + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sigma2 = torch.tensor(10**log_sigma2, dtype=torch.float64)
    W, b = candidates[:, :P], candidates[:, P]
    error, value = mse(X, y, W, b), log_likelihood(X, y, W, b, sigma2)
    assert error.shape == value.shape == (50,)
    close(value, -N / 2 * (torch.log(2 * math.pi * sigma2) + error / sigma2))
    assert torch.equal(error.argsort(), (-value).argsort())
    best = fit(X, y)
    close(mse(X, y, best.coef, best.intercept), best.sigma2)
    assert best.sigma2 < error.min()


@intercept_or_not
def test_a_batch_is_a_loop_and_so_are_targets(fit_intercept):
    X, y, w = problem(B, 5, targets=R)  # two batch dims
    together = fit(X, y, fit_intercept=fit_intercept, sample_weight=w)
    for name, value in together._asdict().items():
        assert value.shape == ((B, 5, R, P) if name in ("coef", "standard_errors") else (B, 5, R)), name
    for i, j, r in np.ndindex(B, 5, R):
        alone = fit(X[i, j], y[i, j, :, r], fit_intercept=fit_intercept, sample_weight=w[i, j])
        for name, value in alone._asdict().items():
            close(value, getattr(together, name)[i, j, r], rtol=1e-9, atol=1e-13)


def test_integer_weights_match_repeated_rows_and_their_unit_is_arbitrary():
    X, y, _ = problem(seed=5)
    times = torch.arange(N) % 4  # including zeros
    weighted, scaled = fit(X, y, sample_weight=times), fit(X, y, sample_weight=times * 1e6)
    repeated = fit(X.repeat_interleave(times, 0), y.repeat_interleave(times, 0))
    for name in ("coef", "intercept", "r2"):
        close(getattr(weighted, name), getattr(repeated, name))
        close(getattr(weighted, name), getattr(scaled, name))
    close(weighted.rss, repeated.rss)
    close(weighted.standard_errors, scaled.standard_errors)


@pytest.mark.parametrize(("fit_intercept", "ridge", "defined"), [(True, 0.0, 9), (False, 0.0, 9), (True, 1.0, 6)])
def test_gradients(fit_intercept, ridge, defined):
    # 7 rows keep numerical differences over all of X fast; df is 2 or 3. Weights > 0: sqrt has no derivative at 0.
    X, y, w = problem(seed=6, rows=7)
    inputs = [t.clone().requires_grad_() for t in (X / X.std(0), y, w + 0.5)]

    def fields(X, y, w):
        result = fit(X, y, fit_intercept=fit_intercept, sample_weight=w, ridge=ridge)
        return tuple(t for t in result if not t.isnan().any())

    assert len(fields(*inputs)) == defined
    assert torch.autograd.gradcheck(fields, inputs)


def test_float32_is_more_accurate_than_torch_lstsq():
    X, y, _ = problem(64, dtype=torch.float32)  # the worst of 64 problems, for reliability
    result, truth = fit(X, y), fit(X.double(), y.double())
    params, exact = estimates(result)[0], estimates(truth)[0]
    rival = torch.linalg.lstsq(torch.cat([torch.ones_like(X[..., :1]), X], -1), y[..., None]).solution[..., 0]
    error, budget = (((b - exact) / exact.norm(dim=-1, keepdim=True)).abs().max() for b in (params, rival))
    assert error < budget / 5  # centring gains a factor of 45 here
    for name in ("sigma2", "standard_errors", "log_likelihood", "rss"):
        close(getattr(result, name).double(), getattr(truth, name), rtol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    X, y, w = problem(dtype=dtype)
    result, expected = fit(X, y, sample_weight=w), fit(X.float(), y.float(), sample_weight=w.float())
    assert all(value.dtype == torch.float32 for value in result)
    assert all(map(torch.equal, result, expected))
    assert log_likelihood(X, y, *result[:3]).dtype == mse(X, y, *result[:2]).dtype == torch.float32
    assert fit(X, y.double()).coef.dtype == torch.float64


def test_an_offset_of_1e6_costs_no_accuracy():
    X, y, _ = problem(seed=7)
    X = (
        X / X.std(0) * 2**20
    ).round() / 2**20  # a grid on which the shift is exact: both problems have the same solution
    near, far = fit(X, y), fit(X + 1e6, y)
    for name in ("coef", "standard_errors", "sigma2", "log_likelihood", "r2", "rss"):
        close(getattr(far, name), getattr(near, name), rtol=1e-12)
    close(far.intercept, near.intercept - 1e6 * near.coef.sum(), rtol=1e-12)
    # Var(b - 1e6 sum W) from the covariance of the near problem; statsmodels has 4 correct digits on the far one.
    towards = np.array([1.0] + [-1e6] * P)
    variance = towards @ sm.OLS(y.numpy(), sm.add_constant(X.numpy())).fit(method="qr").cov_params() @ towards
    close(far.intercept_standard_error, math.sqrt(variance), rtol=1e-8)


@pytest.mark.parametrize("power", [-90, 90])
def test_scales_whose_squares_overflow_cost_no_accuracy(power):
    X, y, _ = problem(dtype=torch.float32)
    scale = 2.0**power  # 1e27 or 1e-27: exact in float32, but its square is out of range
    scaled = fit(X * scale, y)
    scaled = scaled._replace(coef=scaled.coef * scale, standard_errors=scaled.standard_errors * scale)
    assert all(map(torch.equal, scaled, fit(X, y)))


def test_a_degenerate_problem_does_not_affect_the_others():
    X, y, w = problem(3)
    X[1, :, 2], w[2, 3:] = 0.0, 0.0  # a column that explains nothing; three rows for four columns
    result = fit(X, y, fit_intercept=False, sample_weight=w)
    assert not result.coef[1:].isfinite().all(-1).any()
    assert result.rss.isnan().tolist() == result.log_likelihood.isnan().tolist() == [False, True, True]
    close(result.coef[0], fit(X[0], y[0], fit_intercept=False, sample_weight=w[0]).coef)
    assert fit(X[0, :3], y[0, :3], fit_intercept=False).rss.isnan()  # only three rows


def test_undefined_estimates_are_nan_or_infinite():
    X, y, _ = problem(targets=R)
    flat = fit(X[:5], torch.ones(5, R))  # df = RSS = TSS = 0
    assert ((flat.rss == 0) & (flat.log_likelihood == math.inf) & flat.r2.isnan() & flat.sigma2_unbiased.isnan()).all()
    assert all(t.isnan().all() for t in fit(X, y, ridge=1.0)[3:6])  # no unbiased sigma2, no standard errors
    # With a ridge there is a solution for 2 rows of 4 columns, one of them 0.
    X, y = X[:2] * torch.tensor([1.0, 0.0, 1.0, 1.0]), y[:2]
    dual = X.mT @ torch.linalg.solve(X @ X.mT + torch.eye(2), y)
    close(fit(X, y, fit_intercept=False, ridge=1.0).coef, dual.mT, atol=1e-12)


def test_without_regressors_it_fits_a_normal_distribution():
    _, y, _ = problem(B, seed=8)
    result, sigma = fit(y.new_zeros(B, N, 0), y), y.std(-1, correction=0)
    close(result.intercept, y.mean(-1))
    close(result.sigma2, sigma.square())
    close(result.intercept_standard_error, y.std(-1) / N**0.5)
    close(result.log_likelihood, Normal(y.mean(-1), sigma).log_prob(y.mT).sum(0))
