"""Accuracy of the ELBO: the KL against mpmath, dtypes and their error budget, autocast, transforms, compilation."""

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributions import Normal, kl_divergence

import fastvae
from fastvae import Bernoulli, Gaussian

pytestmark = pytest.mark.usefixtures("each_backend")

F64 = torch.float64
WIDE = [torch.float32, F64]


def ulps(actual, exact):
    """Errors in units in the last place of the exact values, computed by mpmath."""
    kind = actual.numpy().dtype.type
    spacing = [float(np.spacing(abs(kind(float(e))))) for e in exact]
    return max(float(abs(mpmath.mpf(float(a)) - e)) / s for a, e, s in zip(actual, exact, spacing, strict=True))


def exact_phi(t):
    with mpmath.workdps(120):  # e^t - 1 - t loses 60 digits at 1e-30
        t = mpmath.mpf(float(t))
        return mpmath.exp(t) - 1 - t


def logvars(dtype):
    """Both signs, 1e-30 to 80, densest around the branch at 0.9; enough for the vector loop and its remainder."""
    wide = torch.logspace(-30, math.log10(80), 1501, dtype=F64)
    seam = torch.linspace(0.85, 0.95, 301, dtype=F64)
    size = torch.cat([wide, seam, torch.tensor([1e-45, 0.0], dtype=F64)]).to(dtype)
    return torch.cat([size, -size])


def kl(mu, logvar, prior=None, **options):
    return fastvae.kl_divergence(mu, logvar, prior, **options)


@pytest.mark.parametrize("dtype", WIDE)
def test_phi_is_accurate_to_four_ulp_everywhere(dtype):
    t = logvars(dtype)[:, None]
    value = kl(torch.zeros_like(t), t)  # half of phi: halving is exact
    assert (value >= 0).all()
    assert ulps(value, [exact_phi(v) / 2 for v in t]) <= 4


@pytest.mark.parametrize("dtype", WIDE)
def test_the_derivative_of_phi_is_accurate_to_eight_ulp(dtype):
    t = logvars(dtype)[:, None].requires_grad_()
    (dt,) = torch.autograd.grad(kl(torch.zeros_like(t), t, reduction="sum"), t)
    with mpmath.workdps(120):
        assert ulps(dt[:, 0], [mpmath.expm1(mpmath.mpf(v)) / 2 for v in t[:, 0].tolist()]) <= 8


@pytest.mark.parametrize("dtype", WIDE)
def test_kl_with_a_mean_is_accurate_to_four_ulp(dtype):
    t = logvars(dtype)[:, None]
    mu = (torch.randn(t.shape, dtype=F64) * t.double().abs()).to(dtype)  # both terms are of similar size
    with mpmath.workdps(120):
        exact = [(mpmath.mpf(float(m)) ** 2 + exact_phi(v)) / 2 for m, v in zip(mu, t, strict=True)]
    assert ulps(kl(mu, t), exact) <= 4


@pytest.mark.parametrize("dtype", WIDE)
def test_kl_to_a_prior_is_as_accurate_as_its_condition_allows(dtype):
    eps = torch.finfo(dtype).eps
    mu, logvar, mu_p, logvar_p = (3 * torch.randn(500, 1, dtype=dtype) for _ in range(4))
    actual = kl(mu, logvar, (mu_p, logvar_p))
    for row in zip(actual, mu, logvar, mu_p, logvar_p, strict=True):
        with mpmath.workdps(50):
            a, m, v, m_p, v_p = (mpmath.mpf(float(t)) for t in row)
            exact = ((m - m_p) ** 2 * mpmath.exp(-v_p) + mpmath.expm1(v - v_p) - (v - v_p)) / 2
            # rounding logvar - logvar_p, or logvar_p / 2, costs a number of ulp proportional to the exponent
            assert abs(a - exact) <= (4 + abs(v - v_p) + abs(v_p)) * eps * exact


def test_kl_is_accurate_near_collapse():
    value = kl(torch.zeros(1, 1), torch.full((1, 1), 1e-8))
    logvar = float(torch.tensor(1e-8))
    assert float(value) == pytest.approx(logvar**2 / 4, rel=1e-6)  # phi = t^2 / 2 + O(t^3)


@pytest.mark.parametrize("dtype", WIDE)
def test_infinities_saturate_and_nan_stays_nan(dtype):
    t = torch.tensor([[math.inf], [-math.inf], [1e4], [math.nan]], dtype=dtype)
    zero = torch.zeros_like(t)
    assert kl(zero, t).tolist()[:3] == [math.inf] * 3
    assert kl(zero, t)[3].isnan()
    assert kl(t, zero)[:2].tolist() == [math.inf] * 2
    assert kl(t, zero)[3].isnan()


@pytest.mark.parametrize("width", [32, 64])
@given(data=st.data())
def test_kl_is_never_negative(data, width):
    dtype = {32: torch.float32, 64: F64}[width]
    numbers = st.floats(allow_nan=False, width=width)
    rows = data.draw(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=40))
    mu, logvar = torch.tensor(rows, dtype=dtype)[:, None].unbind(-1)
    assert (kl(mu, logvar) >= 0).all()
    moderate = st.floats(-40, 40, width=width)  # beyond, mu = mu_p at no variance is 0 * inf
    priors = torch.tensor(data.draw(st.lists(moderate, min_size=3, max_size=3)), dtype=dtype)
    moved = logvar.clamp(-40, 40)
    assert (kl(mu, moved, (priors[0], priors[1])) >= 0).all()
    assert (kl(priors[:, None], priors[:, None], (priors[:, None], priors[:, None])) == 0).all()


@pytest.mark.parametrize("dtype", WIDE)
def test_both_directions_of_the_kl(dtype):
    mu, logvar, mu_p, logvar_p = (torch.randn(4, 5, dtype=dtype, requires_grad=True) for _ in range(4))
    q, p = Normal(mu, (logvar / 2).exp()), Normal(mu_p, (logvar_p / 2).exp())
    forth, back = kl(mu, logvar, (mu_p, logvar_p)), kl(mu_p, logvar_p, (mu, logvar))
    for ours, theirs in [(forth, kl_divergence(q, p).sum(1)), (back, kl_divergence(p, q).sum(1))]:
        torch.testing.assert_close(ours, theirs)
        leaves = (mu, logvar, mu_p, logvar_p)
        gradients = [torch.autograd.grad(t.sum(), leaves, retain_graph=True) for t in (ours, theirs)]
        torch.testing.assert_close(*gradients)
    assert not torch.isclose(forth, back).any()
    for reduction in ("mean", "sum"):
        whole = kl(mu, logvar, (mu_p, logvar_p), reduction=reduction)
        torch.testing.assert_close(whole, getattr(forth, reduction)())


# +-80: close to float32's limit e^88. -1e7: its powers overflow. Gradients that are finite must be computed as finite.
@pytest.mark.parametrize("level", [80.0, -80.0, -1e7])
def test_gradients_stay_finite_at_extreme_logvar(level):
    mu, logvar, mu_p, logvar_p = (torch.full((2, 3), v, requires_grad=True) for v in (1.0, level, 0.0, 0.0))
    x = torch.zeros(2, 4)
    for prior in (None, (mu_p, logvar_p)):
        bound = fastvae.elbo(x, x, mu, logvar, prior=prior)
        dmu, dlogvar, *_ = torch.autograd.grad(bound, (mu, logvar, *(prior or ())))
        torch.testing.assert_close(dmu, torch.full((2, 3), -0.5))
        torch.testing.assert_close(dlogvar, torch.full((2, 3), -0.25 * math.expm1(level)), rtol=1e-5, atol=0)
    z = fastvae.reparameterize(mu, logvar, seed=0)
    assert all(g.isfinite().all() for g in torch.autograd.grad(z.sum(), (mu, logvar)))


# Error budget, against float64 on the same rounded inputs: at most twice the error of torch in the same dtype.
def torch_form(x, x_hat, mu, logvar, likelihood):
    p_x = {
        "Gaussian": lambda: Normal(x_hat, 1.0),
        "Laplace": lambda: torch.distributions.Laplace(x_hat, 1.0),
        "Bernoulli": lambda: torch.distributions.Bernoulli(logits=x_hat),
    }[likelihood]()
    return p_x.log_prob(x).sum(1) - kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1)


def our_form(x, x_hat, mu, logvar, likelihood):
    return fastvae.elbo(x, x_hat, mu, logvar, likelihood=getattr(fastvae, likelihood)(), reduction="none")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("likelihood", ["Gaussian", "Laplace", "Bernoulli"])
@pytest.mark.parametrize("scale", [1.0, 1e-2])  # at 1e-2 the posterior has almost collapsed
def test_dtypes_are_within_the_error_budget(dtype, likelihood, scale):
    x = (torch.rand(16, 50) < 0.5).to(dtype)  # 50 features: sums long enough for bfloat16 to lose accuracy
    leaves = [t.to(dtype) for t in (torch.randn(16, 50), scale * torch.randn(16, 7), scale * torch.randn(16, 7))]

    def run(form, dtype):
        args = [t.detach().to(dtype).requires_grad_() for t in leaves]
        value = form(x.to(dtype), *args, likelihood)
        return value.detach(), *torch.autograd.grad(value.sum(), args)

    ours, theirs, exact = run(our_form, dtype), run(torch_form, dtype), run(torch_form, F64)
    assert ours[0].dtype == torch.float32
    assert all(g.dtype == dtype for g in ours[1:])
    for a, b, e in zip(ours, theirs, exact, strict=True):
        budget = 2 * (b.double() - e).abs().max() + 2 * torch.finfo(dtype).eps * e.abs().max()
        assert (a.double() - e).abs().max() <= budget
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-5, atol=0)  # sums are always in float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["scale", "log_scale"])
def test_a_half_precision_scale_is_computed_in_float32(dtype, name):
    x, x_hat, mu = torch.randn(3, 4).to(dtype), torch.randn(3, 4).to(dtype), torch.zeros(3, 2, dtype=dtype)
    s = (torch.rand(4) + 0.5).to(dtype).requires_grad_()
    likelihood = Gaussian(s) if name == "scale" else Gaussian(log_scale=s)
    value = fastvae.elbo(x, x_hat, mu, mu, likelihood=likelihood, reduction="none")
    wide = s.detach().double()
    exact = Normal(x_hat.double(), wide if name == "scale" else wide.exp()).log_prob(x.double()).sum(1)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(value.sum(), s)[0].dtype == dtype


def test_mixed_dtypes_are_computed_in_the_widest_dtype():
    x, x_hat, mu, logvar = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 2), torch.randn(3, 2)
    leaves = [x_hat.bfloat16().requires_grad_(), mu.half().requires_grad_(), logvar.double().requires_grad_()]
    value = fastvae.elbo(x, *leaves)
    assert value.dtype == F64
    assert [g.dtype for g in torch.autograd.grad(value, leaves)] == [torch.bfloat16, torch.float16, F64]


@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Gaussian(link="sigmoid"), Bernoulli()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing_here(likelihood, dtype):
    x = (torch.rand(3, 4) < 0.5).to(dtype)
    leaves = [t.to(dtype).requires_grad_() for t in (torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 4))]

    def run():
        terms = fastvae.elbo_terms(x, leaves[0], *leaves[1:], likelihood=likelihood, reduction="none")
        called = fastvae.elbo(x, lambda z: 2 * z, *leaves[1:], likelihood=likelihood, seed=1)
        return (
            *terms,
            called,
            fastvae.reparameterize(*leaves[1:], seed=1),
            *torch.autograd.grad(terms.elbo.sum(), leaves),
        )

    outside = run()
    with torch.autocast("cpu", torch.bfloat16):
        inside = run()
    for a, b in zip(outside, inside, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_an_autocast_decoder_gives_a_float32_bound_and_gradients():
    decoder, mu = torch.nn.Linear(2, 4), torch.randn(3, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        low = fastvae.elbo(torch.ones(3, 4), decoder, mu, mu, seed=1)
    low.backward()
    assert low.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in (mu, *decoder.parameters()))
    torch.testing.assert_close(low, fastvae.elbo(torch.ones(3, 4), decoder, mu, mu, seed=1), rtol=0.02, atol=0.02)


# torch.func differentiates the same function as autograd.
FUNC_OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "draws, free bits": {"num_samples": 3, "free_bits": 0.2},
    "beta, Bernoulli": {"beta": 0.5, "likelihood": Bernoulli()},
}


@pytest.mark.parametrize("options", FUNC_OPTIONS.values(), ids=list(FUNC_OPTIONS))
def test_func_transforms_agree_with_autograd(options):
    x, mu, logvar, W = (torch.rand(3, 4) < 0.5).to(F64), *(torch.randn(*s, dtype=F64) for s in [(3, 2), (3, 2), (2, 4)])

    def f(mu, logvar, W):
        return fastvae.elbo(x, lambda z: z @ W, mu, logvar, seed=1, **options)

    args = [t.clone().requires_grad_() for t in (mu, logvar, W)]
    expected = torch.autograd.grad(f(*args), args)
    torch.testing.assert_close(torch.func.grad(f, (0, 1, 2))(mu, logvar, W), expected)
    tangents = tuple(torch.randn_like(t) for t in args)
    value, derivative, *_ = torch.func.jvp(f, (mu, logvar, W), tangents)
    torch.testing.assert_close(value, f(mu, logvar, W))
    torch.testing.assert_close(derivative, sum((g * t).sum() for g, t in zip(expected, tangents, strict=True)))
    several: Any = torch.stack([mu, mu + 1])
    torch.testing.assert_close(torch.func.vmap(f, (0, None, None))(several, logvar, W)[1], f(mu + 1, logvar, W))
    per_model = torch.func.vmap(torch.func.grad(f), (0, None, None))(several, logvar, W)
    torch.testing.assert_close(per_model[0], expected[0])


def test_batched_gradients_agree_with_single_ones():
    x, mu = torch.randn(3, 4), torch.randn(3, 4, requires_grad=True)
    values = fastvae.elbo(x, lambda z: z, mu, mu, seed=1, reduction="none")
    (jacobian,) = torch.autograd.grad(values, mu, torch.eye(3), is_grads_batched=True, retain_graph=True)
    (row,) = torch.autograd.grad(values[1], mu)
    torch.testing.assert_close(jacobian[1], row)


# Dynamo stops compiling after eight graphs of one function: a KL warm-up of twenty betas must not need as many.
# (By default, Dynamo compiles a graph for each float once it has seen a tensor as the same argument.)
BETAS: dict[str, Any] = {
    "floats": [i / 19 for i in range(20)],
    "tensors": [torch.tensor(i / 19) for i in range(20)],
    "a tensor, then floats": [torch.tensor(0.5), *(i / 11 for i in range(12))],
}


# In a graph both use the formulas of the reference; in eager mode, `auto` uses kernels.
in_a_graph = pytest.mark.parametrize(
    "each_backend", ["auto", pytest.param("reference", marks=pytest.mark.long)], indirect=True
)


@in_a_graph
@pytest.mark.parametrize(
    "betas", [pytest.param(betas, id=i, marks=[] if "then" in i else pytest.mark.long) for i, betas in BETAS.items()]
)
def test_compiled_in_one_piece_it_equals_eager_for_every_beta(betas):
    torch._dynamo.reset()
    x, mu, logvar = torch.randn(3, 4), torch.randn(3, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    decoder = torch.nn.Linear(2, 4)
    leaves = [mu, logvar, *decoder.parameters()]

    def f(beta):
        return fastvae.elbo(x, decoder, mu, logvar, beta=beta, num_samples=2, seed=3)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(f, fullgraph=True, backend=counter)
    for beta in betas:
        ours, eager = compiled(beta), f(beta)
        torch.testing.assert_close(ours, eager)
        torch.testing.assert_close(torch.autograd.grad(ours, leaves), torch.autograd.grad(eager, leaves))
    assert counter.frame_count <= 2


@in_a_graph
def test_compiled_calls_without_seed_draw_new_noise():
    torch._dynamo.reset()
    mu = torch.zeros(3, 2)
    compiled = torch.compile(
        lambda: (fastvae.reparameterize(mu, mu), fastvae.reparameterize(mu, mu)), fullgraph=True, backend="aot_eager"
    )
    draws = torch.stack([*compiled(), *compiled()])
    assert draws.flatten(1).unique(dim=0).shape[0] == 4
