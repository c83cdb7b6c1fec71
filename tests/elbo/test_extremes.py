"""Scales so small that their inverse overflows: values and gradients against closed forms in mpmath.

There, 0 * inf would be NaN although the truth is 0 or finite. A pixel that a ReLU decoder reproduces exactly drives its
learned log_scale to such values, as does a collapsed prior.
"""

import mpmath
import pytest
import torch

import fastvae
from fastvae import Gaussian, Laplace

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # NumPy's, of Triton's interpreter

BACKENDS = ["reference", "numba", "triton"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
HALF_LOG_2PI = float(mpmath.log(2 * mpmath.pi) / 2)


def kl_and_gradients(mu, logvar, mu_p, logvar_p):
    """The exact KL of one latent element, and its four derivatives."""
    d, s = mpmath.mpf(mu) - mpmath.mpf(mu_p), mpmath.exp(-mpmath.mpf(logvar_p))
    t = mpmath.mpf(logvar) - mpmath.mpf(logvar_p)
    excess = mpmath.expm1(t) / 2
    kl = (d * d * s + mpmath.expm1(t) - t) / 2
    return [float(v) for v in (kl, d * s, excess, -d * s, -(d * d * s / 2 + excess))]


# mu, logvar, mu_p, logvar_p
ELEMENTS = [
    (1.5, -200.0, 1.5, -200.0),
    (1e-20, -90.0, 0.0, -90.0),
    (0.0, -170.0, 0.0, -170.0),
    (0.0, -400.0, 0.0, -400.0),
    (3e-20, -92.0, 1e-20, -91.0),
    (1e-38, -200.0, 0.0, -200.0),  # dmu overflows, the rest does not
    (1e-40, -150.0, 0.0, -150.0),  # a product in the derivative with respect to logvar_p may underflow
    (1.0, -90.0, 0.0, -90.0),
    (0.5, 60.0, -0.5, 90.0),
]


@each_backend
@pytest.mark.parametrize("element", ELEMENTS)
def test_the_kl_to_a_narrow_prior(element, backend):
    given = [torch.full((2, 3), value).requires_grad_() for value in element]
    exact = kl_and_gradients(*(float(t.detach()[0, 0]) for t in given))
    mu, logvar, mu_p, logvar_p = given
    x = torch.zeros(2, 1)
    for which in ("kl", "elbo"):
        if which == "kl":
            value = fastvae.kl_divergence(mu, logvar, (mu_p, logvar_p), backend=backend).sum()
        else:
            terms = fastvae.elbo_terms(x, x, mu, logvar, prior=(mu_p, logvar_p), reduction="sum", backend=backend)
            value = HALF_LOG_2PI * -2 - terms.elbo
        gradients = torch.autograd.grad(value, given)
        sum_ = torch.tensor(6 * exact[0], dtype=torch.float64).float()
        torch.testing.assert_close(value.detach(), sum_, rtol=1e-5, atol=1e-5)
        for g, truth in zip(gradients, exact[1:], strict=True):
            exact_g = torch.tensor(truth, dtype=torch.float64).float()  # inf where it overflows float32
            torch.testing.assert_close(g, exact_g.expand(2, 3), rtol=1e-5, atol=1e-6)


SCALES = {
    "a float": lambda value, shape: value,
    "one": lambda value, shape: torch.full((), value).requires_grad_(),
    "per feature": lambda value, shape: torch.full(shape[1:], value).requires_grad_(),
    "per element": lambda value, shape: torch.full(shape, value).requires_grad_(),
}


@each_backend
@pytest.mark.parametrize("log_scale", [pytest.param(-60.0, marks=pytest.mark.long), -100.0, -300.0])
@pytest.mark.parametrize("form", SCALES)
@pytest.mark.parametrize("likelihood", [Gaussian, Laplace])
@pytest.mark.parametrize("reduction", ["mean", pytest.param("none", marks=pytest.mark.long)])
def test_data_that_the_decoder_reproduces(likelihood, form, log_scale, backend, reduction):
    shape = (2, 5)
    x_hat, s = torch.rand(shape).requires_grad_(), SCALES[form](log_scale, shape)
    x, mu = x_hat.detach().clone(), torch.zeros(2, 1)
    options = {"likelihood": likelihood(log_scale=s), "reduction": reduction, "backend": backend}
    value = fastvae.elbo(x, x_hat, mu, mu, **options).mean()
    constant = HALF_LOG_2PI if likelihood is Gaussian else float(mpmath.log(2))
    torch.testing.assert_close(value.item(), -5 * (log_scale + constant))
    dx_hat, *ds = torch.autograd.grad(value, [x_hat, s] if isinstance(s, torch.Tensor) else [x_hat])
    assert torch.equal(dx_hat, torch.zeros(shape))
    for g in ds:
        torch.testing.assert_close(g.sum(), torch.tensor(-5.0))


# log_scale and residual: e^-log_scale overflows float32, and the product with the residual is in range, or is not
RESIDUALS = [(-90.0, 1e-30), (-90.0, 1e-3), (-130.0, 1e-44), (-150.0, 1e-40), (-200.0, 1e-38), (-90.0, 1.0)]
RESIDUALS += [
    (-44.2, 1.0),
    (-88.6, 1.0),
    (-300.0, 1.0),
]  # twice the derivative with respect to log_scale is out of range


@each_backend
@pytest.mark.parametrize(("log_scale", "residual"), RESIDUALS)
@pytest.mark.parametrize("form", SCALES)
@pytest.mark.parametrize("likelihood", [Gaussian, Laplace])
def test_a_residual_with_a_scale_whose_inverse_overflows(likelihood, form, log_scale, residual, backend):
    x, mu = torch.full((1, 5), residual), torch.zeros(1, 1)
    x_hat, s = torch.zeros(1, 5, requires_grad=True), SCALES[form](log_scale, (1, 5))
    value = fastvae.elbo(x, x_hat, mu, mu, likelihood=likelihood(log_scale=s), reduction="sum", backend=backend)
    inverse = mpmath.exp(-mpmath.mpf(log_scale))
    r = mpmath.mpf(x[0, 0].item()) * inverse
    if likelihood is Gaussian:
        exact, slopes = -r * r / 2 - log_scale - HALF_LOG_2PI, (r * inverse, r * r - 1)
    else:
        exact, slopes = -r - log_scale - mpmath.log(2), (inverse, r - 1)
    gradients = torch.autograd.grad(value, [x_hat, s] if isinstance(s, torch.Tensor) else [x_hat])
    for got, want in zip((value.detach(), *(g.sum() for g in gradients)), (exact, *slopes), strict=False):
        # a rounding error of log_scale is 130 or more of e^-log_scale
        torch.testing.assert_close(got, torch.tensor(float(5 * want), dtype=torch.float64).float(), rtol=1e-5, atol=0)


@each_backend
def test_a_log_scale_of_higher_precision_than_the_data(backend):
    residual, z = torch.full((1, 1), 1e-30), torch.zeros(1, 1)
    s = torch.full((1,), -300.0, dtype=torch.float64, requires_grad=True)
    value = fastvae.elbo(residual, z, z, z, likelihood=Laplace(log_scale=s), reduction="sum", backend=backend)
    r = float(mpmath.mpf(residual.item()) * mpmath.exp(300))
    torch.testing.assert_close(value.item(), -r, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(value, s)[0].item(), r, rtol=1e-12, atol=0)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tiny_scale_whose_square_underflows(dtype, backend):
    scale = {torch.float32: 1e-20, torch.float64: 1e-170}[dtype]
    residual = torch.tensor([[0.0, 1.0, -2.0]], dtype=dtype) * scale
    mu = torch.zeros(1, 1, dtype=dtype)
    value = fastvae.elbo(residual, 0 * residual, mu, mu, likelihood=Gaussian(scale), backend=backend)
    exact = float(-2.5 - 3 * (mpmath.log(scale) + HALF_LOG_2PI))
    torch.testing.assert_close(value.item(), exact)
    log_prob = Gaussian(scale).log_prob(residual, 0 * residual).sum()
    torch.testing.assert_close(log_prob.item(), exact)


def test_nan_is_not_hidden():
    nan, zero = torch.full((1, 2), torch.nan), torch.zeros(1, 2)
    for backend in BACKENDS:
        for s in (nan, torch.full((2,), torch.nan), torch.tensor(torch.nan)):
            value = fastvae.elbo(zero, zero, zero, zero, likelihood=Gaussian(log_scale=s), backend=backend)
            assert value.isnan()
        assert fastvae.kl_divergence(zero, zero, (zero, nan), backend=backend).isnan()
        assert fastvae.kl_divergence(nan, zero, (zero, zero - 300), backend=backend).isnan()
