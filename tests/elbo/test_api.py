"""The public ELBO against torch.distributions in float64: every likelihood and option, values and gradients."""

import math
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal, kl_divergence

import fastvae
from fastvae import Bernoulli, Gaussian

pytestmark = pytest.mark.usefixtures("each_backend")

F64 = torch.float64
# All sizes differ, so that a wrong dim is noticed; five latent elements are one block of the noise and a part.
N, EVENT, LATENT, K = 3, (2, 4), (5,), 6
REDUCE: dict[str, Any] = {"none": lambda t: t, "mean": torch.mean, "sum": torch.sum}
SHAPES = {"scalar": (), "per-feature": EVENT, "per-element": (N, *EVENT)}

# Name: (shape of its parameter, our likelihood, torch's). Parameters are positive, as scales must be.
LIKELIHOODS: dict[str, tuple[Any, Any, Any]] = {
    "unit": (None, lambda s: Gaussian(), lambda a, s: Normal(a, 1.0)),
    "float scale": (None, lambda s: Gaussian(0.7), lambda a, s: Normal(a, 0.7)),
    "float log_scale": (None, lambda s: Gaussian(log_scale=-0.4), lambda a, s: Normal(a, math.exp(-0.4))),
    **{f"{kind} scale": (shape, Gaussian, Normal) for kind, shape in SHAPES.items()},
    **{
        f"{kind} log_scale": (shape, lambda s: Gaussian(log_scale=s), lambda a, s: Normal(a, s.exp()))
        for kind, shape in SHAPES.items()
    },
    "sigmoid link": (None, lambda s: Gaussian(link="sigmoid"), lambda a, s: Normal(a.sigmoid(), 1.0)),
    "tanh link, scale": ((), lambda s: Gaussian(s, link="tanh"), lambda a, s: Normal(a.tanh(), s)),
    "Bernoulli": (None, lambda s: Bernoulli(), lambda a, s: TorchBernoulli(logits=a)),
}
# With free_bits = 0.6 some elements are above and some below, see the test of free bits.
OPTIONS: dict[str, Any] = {
    "defaults": dict,
    "beta": lambda: {"beta": 0.3},
    "beta tensor": lambda: {"beta": leaf(torch.tensor(0.3))},
    "free bits": lambda: {"free_bits": 0.6},
    "free bits tensor, beta": lambda: {"free_bits": torch.tensor(0.6, dtype=F64), "beta": 2.0},
    "prior": lambda: {"prior": (randn(N, *LATENT), randn(N, *LATENT))},
    "broadcast prior, free bits": lambda: {"prior": (randn(*LATENT), randn()), "free_bits": 0.6},
    "one draw": lambda: {"num_samples": 1},
    "draws": lambda: {"num_samples": K},
}


def leaf(t):
    return t.to(F64).requires_grad_()


def randn(*shape):
    return leaf(torch.randn(shape))


def data(likelihood, *shape):
    """Data in the support of the likelihood: real numbers, or zeros and ones."""
    return torch.randint(2, shape).to(F64) if likelihood == "Bernoulli" else torch.randn(shape, dtype=F64)


def truth(x, x_hat, mu, logvar, p_x, *, beta=1.0, free_bits=0.0, prior=None, num_samples=None):
    """ELBO, log-likelihood and KL, each [N], by torch.distributions; p_x makes a distribution of x_hat."""
    log_p = p_x(x_hat).log_prob(x)
    log_likelihood = (log_p[None] if num_samples is None else log_p).mean(0).reshape(x.shape[0], -1).sum(1)
    mu_p, logvar_p = prior or (torch.zeros_like(mu), torch.zeros_like(mu))
    kl = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(mu_p, (logvar_p / 2).exp()))
    penalty = torch.where(kl.mean(0) > free_bits, kl, free_bits)
    elbo = log_likelihood - beta * penalty.reshape(x.shape[0], -1).sum(1)
    return elbo, log_likelihood, kl.reshape(x.shape[0], -1).sum(1)


def leaves_of(*values):
    """The tensors that require grad, including the two of a prior."""
    flat = [t for v in values for t in (v if isinstance(v, tuple) else (v,))]
    return [t for t in flat if isinstance(t, torch.Tensor) and t.requires_grad]


def assert_agree(ours, theirs, leaves, **tolerance):
    """All values, and the gradients of one random weighting of them."""
    tolerance = tolerance or {"rtol": 1e-10, "atol": 1e-10}
    weights = [torch.randn_like(t) for t in theirs]
    gradients = []
    for values in (ours, theirs):
        total = sum((w * v).sum() for w, v in zip(weights, values, strict=True))
        gradients.append(torch.autograd.grad(total, leaves, retain_graph=True))
    for a, b in zip((*ours, *gradients[0]), (*theirs, *gradients[1]), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("reduction", REDUCE)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_values_and_gradients_match_torch_distributions(likelihood, option, reduction):
    shape, ours, theirs = LIKELIHOODS[likelihood]
    options = OPTIONS[option]()
    draws = () if "num_samples" not in options else (options["num_samples"],)
    x, x_hat, mu, logvar = data(likelihood, N, *EVENT), randn(*draws, N, *EVENT), randn(N, *LATENT), randn(N, *LATENT)
    s = None if shape is None else leaf(torch.rand(shape) + 0.5)
    terms = fastvae.elbo_terms(x, x_hat, mu, logvar, likelihood=ours(s), reduction=reduction, **options)
    expected = truth(x, x_hat, mu, logvar, lambda a: theirs(a, s), **options)
    expected = [REDUCE[reduction](t) for t in expected]
    assert_agree(terms, expected, leaves_of(x_hat, mu, logvar, s, *options.values()))
    elbo = fastvae.elbo(x, x_hat, mu, logvar, likelihood=ours(s), reduction=reduction, **options)
    assert torch.equal(elbo, terms.elbo)


# What a decoder may return with x_hat [R, *EVENT], R = N or K*N: log_scale in each shape that broadcasts to it.
@pytest.mark.parametrize("log_scale_shape", [None, (), EVENT, (1, *EVENT), ("R", 1, 1), ("R", *EVENT)])
@pytest.mark.parametrize("num_samples", [None, 1, K])
def test_a_decoder_is_called_once_and_receives_gradients(num_samples, log_scale_shape):
    x, mu, logvar = data("", N, *EVENT), randn(N, *LATENT), randn(N, *LATENT)
    W, V = randn(*LATENT, math.prod(EVENT)), randn(*LATENT, math.prod(EVENT))
    constant = None if log_scale_shape is None or "R" in log_scale_shape else randn(*log_scale_shape)
    seen = []

    def decoder(z):
        seen.append(z)
        x_hat, log_scale = (z @ W).view(-1, *EVENT), constant
        if constant is None and log_scale_shape is not None:
            log_scale = (0.1 * z @ V).view(-1, *EVENT)[:, : log_scale_shape[1], : log_scale_shape[2]]
        return x_hat if log_scale is None else (x_hat, log_scale)

    terms = fastvae.elbo_terms(x, decoder, mu, logvar, num_samples=num_samples, reduction="none", seed=5)
    assert len(seen) == 1
    zero = torch.zeros_like(mu)
    eps = fastvae.reparameterize(zero, zero, num_samples=num_samples or 1, seed=5)  # [K, N, *LATENT]
    z = (Normal(mu, (logvar / 2).exp()).mean + (logvar / 2).exp() * eps).flatten(0, 1)  # k varies slowest
    torch.testing.assert_close(seen[0], z)
    out = decoder(z)
    x_hat, log_scale = out if isinstance(out, tuple) else (out, torch.zeros((), dtype=F64))
    scale = log_scale.exp().expand_as(x_hat).unflatten(0, (-1, N))  # [K, N, *EVENT]
    x_hat = x_hat.unflatten(0, (-1, N))
    expected = truth(x, x_hat, mu, logvar, lambda a: Normal(a, scale), num_samples=num_samples or 1)
    leaves = leaves_of(mu, logvar, W, constant, V if log_scale_shape and "R" in log_scale_shape else None)
    assert_agree(terms, expected, leaves)


def test_decoder_and_reconstruction_give_the_same_bound():
    x, mu, logvar, W = data("", N, 4), randn(N, *LATENT), randn(N, *LATENT), randn(*LATENT, 4)
    z = fastvae.reparameterize(mu, logvar, seed=2)
    handed_in, called = fastvae.elbo(x, z @ W, mu, logvar), fastvae.elbo(x, lambda z: z @ W, mu, logvar, seed=2)
    assert_agree([handed_in], [called], [mu, logvar, W])


# uint8 and bool x, with every likelihood that accepts them.
@pytest.mark.parametrize(
    ("x", "x_scale"),
    [
        (torch.tensor([[0, 1, 100, 255]] * N, dtype=torch.uint8), 1 / 255),
        (torch.tensor([[0, 1, 1, 0]] * N, dtype=torch.uint8), 1.0),
        (torch.tensor([[False, True, True, False]] * N), None),
    ],
)
@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Bernoulli()])
@pytest.mark.parametrize("num_samples", [None, K])
def test_uint8_and_bool_x_match_floats(x, x_scale, likelihood, num_samples):
    x_hat, mu, logvar = randn(*([K] if num_samples else []), N, 4), randn(N, 5), randn(N, 5)
    options = {"likelihood": likelihood, "num_samples": num_samples, "reduction": "none"}
    as_float = x.to(F64) * (x_scale or 1.0)
    ours = fastvae.elbo_terms(x, x_hat, mu, logvar, x_scale=x_scale, **options)
    assert_agree(ours, fastvae.elbo_terms(as_float, x_hat, mu, logvar, **options), [x_hat, mu, logvar])


def test_bernoulli_of_a_grey_value_is_the_negative_cross_entropy():
    x, x_hat, mu = torch.rand(N, 4, dtype=F64), randn(N, 4), randn(N, 5)
    ours = fastvae.elbo_terms(x, x_hat, mu, mu, likelihood=Bernoulli(), reduction="none").log_likelihood
    theirs = -torch.nn.functional.binary_cross_entropy_with_logits(x_hat, x, reduction="none").sum(1)
    assert_agree([ours], [theirs], [x_hat])


def test_x_receives_a_gradient():
    x, x_hat, mu = randn(N, *EVENT), randn(N, *EVENT), randn(N, *LATENT)
    ours = fastvae.elbo_terms(x, x_hat, mu, mu, reduction="none")
    assert_agree(ours, truth(x, x_hat, mu, mu, lambda a: Normal(a, 1.0)), [x, x_hat, mu])


# Each gives autograd a different kind of upstream gradient; w is random.
UPSTREAMS: dict[str, Any] = {
    "contiguous": lambda v, w: (v * w[0]).sum(),
    "stride 0": lambda v, w: v.sum(),
    "stride 0 and scaled": lambda v, w: 65536 * v.mean(),  # as with torch.amp.GradScaler
    "a part of a cat": lambda v, w: (torch.cat([v, w[0], v.square()]) * w.flatten()[: 3 * N]).sum(),
    "a column": lambda v, w: (torch.stack([v, 2 * v, 3 * v], dim=1) * w[:3].T).sum(),
    "reversed": lambda v, w: (v.flip(0)[::2] * w[0, : (N + 1) // 2]).sum(),
    "none at all": lambda v, w: (0 * v).sum(),
}


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize("form", ["tensor", "decoder", "draws"])
def test_any_upstream_gradient_is_right(upstream, form):
    x, mu, logvar, W, w = data("", N, 4), randn(N, 5), randn(N, 5), randn(5, 4), torch.randn(4, N, dtype=F64)
    draws = 2 if form == "draws" else None
    z = fastvae.reparameterize(mu, logvar, num_samples=draws, seed=1)
    x_hat = z @ W if form == "tensor" else lambda z: z @ W
    ours = fastvae.elbo(x, x_hat, mu, logvar, num_samples=draws, seed=1, reduction="none")
    theirs = truth(x, z @ W, mu, logvar, lambda a: Normal(a, 1.0), num_samples=draws)[0]
    assert_agree([UPSTREAMS[upstream](ours, w)], [UPSTREAMS[upstream](theirs, w)], [mu, logvar, W])


# Every likelihood, and with the one with most parameters every option that has its own derivatives.
@pytest.mark.parametrize(
    ("likelihood", "option"),
    [
        *((name, "defaults") for name in LIKELIHOODS),
        *(("per-element scale", name) for name in ("free bits", "prior", "broadcast prior, free bits", "draws")),
    ],
)
def test_first_and_second_derivatives_match_finite_differences(likelihood, option):
    shape, make, _ = LIKELIHOODS[likelihood]
    options = OPTIONS[option]()
    prior = options.pop("prior", ())
    draws = options.get("num_samples")
    x, mu, logvar = data(likelihood, N, *EVENT), randn(N, 2), randn(N, 2)
    x_hat = randn(*([draws] if draws else []), N, *EVENT)
    s = () if shape is None else (leaf(torch.rand(shape) + 0.5),)
    prior = tuple((p[..., :2] if p.dim() else p).detach().requires_grad_() for p in prior)

    def f(x_hat, mu, logvar, *rest):
        pair = rest[len(s) :] or None
        return fastvae.elbo(x, x_hat, mu, logvar, likelihood=make(*(rest[: len(s)] or [None])), prior=pair, **options)

    inputs = (x_hat, mu, logvar, *s, *prior)
    # One random direction each: the whole Jacobian would take ten times as long.
    assert gradcheck(f, inputs, fast_mode=True)
    assert gradgradcheck(f, inputs, fast_mode=True)


def test_derivatives_through_sampling_and_decoder_match_finite_differences():
    x, mu, logvar, W = data("", N, 4), randn(N, 2), randn(N, 2), randn(2, 4)

    def f(mu, logvar, W):
        return fastvae.elbo_terms(x, lambda z: (z @ W).tanh(), mu, logvar, num_samples=2, seed=3, reduction="none")

    assert gradcheck(f, (mu, logvar, W))
    assert gradgradcheck(f, (mu, logvar, W))


def test_backward_twice_leaves_the_arguments_unchanged():
    x, mu, logvar, W = data("", N, 4), randn(N, 5), randn(N, 5), randn(5, 4)
    before = [t.detach().clone() for t in (x, mu, logvar, W)]
    loss = -fastvae.elbo(x, lambda z: z @ W, mu, logvar, seed=1)
    first = torch.autograd.grad(loss, (mu, logvar, W), retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(loss, (mu, logvar, W), torch.tensor(2.0, dtype=F64))
    for a, b, c in zip(first, second, kept, strict=True):
        assert torch.equal(a, c)  # the second backward did not write into the gradients of the first
        torch.testing.assert_close(b, 2 * a)
    assert all(torch.equal(a, b) for a, b in zip((x, mu, logvar, W), before, strict=True))


# Free bits: Kingma et al. (2016), eq. 15, with minibatch means.
def test_free_bits_floor_the_batch_mean_of_each_latent_element():
    x, x_hat, mu, logvar = data("", N, 4), randn(N, 4), randn(N, 5), randn(N, 5)
    kl = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0))
    floor = float(kl.detach().mean(0).sort().values[1:3].mean())  # two of the five elements are below
    below = kl.mean(0) <= floor
    assert below.sum() == 2
    for reduction, scale in [("mean", 1), ("sum", N)]:
        terms = fastvae.elbo_terms(x, x_hat, mu, logvar, beta=0.7, free_bits=floor, reduction=reduction)
        penalty = torch.maximum(kl.mean(0), torch.tensor(floor, dtype=F64)).sum()
        torch.testing.assert_close(terms.elbo, terms.log_likelihood - 0.7 * scale * penalty)
        torch.testing.assert_close(terms.kl, scale * kl.sum(1).mean())  # raw
        gradient = torch.autograd.grad(terms.elbo, logvar)[0]
        assert ((gradient == 0) == below).all()
    none = fastvae.elbo(x, x_hat, mu, logvar, beta=0.7, free_bits=floor, reduction="none")
    torch.testing.assert_close(none.mean(), fastvae.elbo(x, x_hat, mu, logvar, beta=0.7, free_bits=floor))


@pytest.mark.parametrize("free_bits", [0.5, torch.tensor(0.5)])
def test_free_bits_at_the_floor_pass_no_gradient_and_keep_nan(free_bits):
    x, mu = torch.zeros(2, 1), torch.tensor([[1.0], [-1.0]], requires_grad=True)  # kl = 1/2 exactly
    fastvae.elbo(x, x, mu, torch.zeros(2, 1), free_bits=free_bits).backward()
    assert mu.grad is not None
    assert (mu.grad == 0).all()
    assert fastvae.elbo(x, x, mu * math.nan, torch.zeros(2, 1), free_bits=free_bits).isnan()


# beta = 0 at the start of a warm-up, while an untrained encoder gives an infinite KL: e^1000.
@pytest.mark.parametrize("beta", [0, 0.0, torch.tensor(0.0)])
@pytest.mark.parametrize("free_bits", [0.0, 0.1])
def test_beta_0_switches_an_infinite_kl_off(beta, free_bits):
    x, x_hat = torch.zeros(2, 3), torch.ones(2, 3, requires_grad=True)
    mu, logvar, mu_p, logvar_p = (torch.full((2, 3), v, requires_grad=True) for v in (1e30, 1000.0, -1e30, -1000.0))
    for prior in (None, (mu_p, logvar_p)):
        terms = fastvae.elbo_terms(x, x_hat, mu, logvar, prior=prior, beta=beta, free_bits=free_bits)
        assert terms.kl == math.inf
        assert torch.equal(terms.elbo, terms.log_likelihood)
        terms.elbo.backward()
        for t in (mu, logvar, *(prior or ())):
            assert t.grad is not None
            assert (t.grad == 0).all()


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_gradient_of_beta_is_minus_the_kl(value):
    x, mu, beta = data("", N, 4), randn(N, 5), leaf(torch.tensor(value))
    terms = fastvae.elbo_terms(x, x, mu, mu, beta=beta)
    torch.testing.assert_close(torch.autograd.grad(terms.elbo, beta, retain_graph=True)[0], -terms.kl.detach())
    torch.testing.assert_close(
        *(torch.autograd.grad(t, mu, retain_graph=True)[0] for t in (terms.elbo, -value * terms.kl))
    )


# Shapes of event and latent: one number per row; a picture; latents with two dims; none at all.
@pytest.mark.parametrize(("event", "latent"), [((), ()), ((1,), (5,)), ((3, 4, 5), (2, 3)), ((2, 3, 2, 2), (1,))])
@pytest.mark.parametrize("num_samples", [None, 2])
def test_any_number_of_event_and_latent_dims(event, latent, num_samples):
    x, mu, logvar = data("", N, *event), randn(N, *latent), randn(N, *latent)
    x_hat = randn(*([2] if num_samples else []), N, *event)
    ours = fastvae.elbo_terms(x, x_hat, mu, logvar, num_samples=num_samples, reduction="none")
    expected = truth(x, x_hat, mu, logvar, lambda a: Normal(a, 1.0), num_samples=num_samples)
    assert_agree(ours, expected, [x_hat, mu, logvar])


# Memory formats: channels last, of one tensor or both; columns of a wider tensor; an expanded tensor.
@pytest.mark.parametrize("which", ["x", "x_hat", "both", "mu", "expanded"])
def test_any_memory_layout(which):
    x, x_hat, mu = data("", N, 2, 4, 6), randn(N, 2, 4, 6), randn(N, 5)
    args = [x, x_hat, mu, mu]
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, x_hat)]
    args[0] = last[0] if which in ("x", "both") else args[0]
    args[1] = last[1] if which in ("x_hat", "both") else args[1]
    if which == "mu":
        args[2] = torch.cat([mu, mu], 1)[:, 5:]
    if which == "expanded":
        x = args[0] = x[:1].expand(N, -1, -1, -1)
    ours = fastvae.elbo_terms(*args, reduction="none")
    assert_agree(ours, truth(x, x_hat, mu, mu, lambda a: Normal(a, 1.0)), [x_hat, mu])


@pytest.mark.parametrize("num_samples", [None, 2])
@pytest.mark.parametrize("free_bits", [0.0, 0.5])
def test_an_empty_batch_has_no_rows_and_sums_to_zero(num_samples, free_bits):
    mu = torch.zeros(0, 2, requires_grad=True)
    decoder = torch.nn.Linear(2, 4)
    options = {"num_samples": num_samples, "free_bits": free_bits}
    assert fastvae.elbo(torch.zeros(0, 4), decoder, mu, mu, reduction="none", **options).shape == (0,)
    total = fastvae.elbo(torch.zeros(0, 4), decoder, mu, mu, reduction="sum", **options)
    total.backward()
    assert total == 0
    assert mu.grad is not None
    assert mu.grad.shape == (0, 2)
    assert decoder.weight.grad is not None
    assert not decoder.weight.grad.any()
