"""`fastvae.VAE`: all methods use its prior and likelihood, which move with the module; errors name the argument."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastvae
from fastvae import VAE, Bernoulli, Gaussian, Laplace

N, D, L = 4, 3, 2


class Exact(nn.Module):
    """q(z|x) of x = z + e, z ~ N(m, 1), e ~ N(0, 1): the posterior N((x + m) / 2, 1/2), so that the bound is tight."""

    def __init__(self, m):
        super().__init__()
        self.m = m

    def forward(self, x):
        return (x + self.m) / 2, torch.full_like(x, -math.log(2))


def exact(prior, m):
    return VAE(Exact(m), nn.Identity(), latent=1, likelihood=Gaussian(), prior=prior)


def linear(likelihood=None, heads=1, **options):
    """Linear networks in double precision, for comparisons of numbers."""
    decoder = nn.Linear(L, D) if heads == 1 else Heads(heads)
    return VAE(lambda x: (x[:, :L], x[:, :L]), decoder, latent=L, likelihood=likelihood, **options).double()


class Heads(nn.Linear):
    """A decoder that returns the given number of outputs."""

    def __init__(self, heads):
        super().__init__(L, D)
        self.heads = heads

    def forward(self, z):
        return (super().forward(z),) * self.heads


@pytest.mark.parametrize("kind", [nn.Parameter, lambda t: t])
def test_the_prior_is_used_by_every_method(kind):
    vae = exact((kind(torch.tensor([5.0])), kind(torch.zeros(1))), 5.0)
    x = torch.tensor([[5.0], [3.0], [8.5]])
    truth = torch.distributions.Normal(5.0, math.sqrt(2)).log_prob(x)[:, 0]
    torch.testing.assert_close(truth[0], torch.tensor(-1.2655), atol=1e-4, rtol=0)
    torch.testing.assert_close(vae.log_likelihood(x, num_samples=50), truth)  # each weight is p(x), as q is exact
    many = vae.elbo(x, num_samples=20_000, reduction="none", seed=0).detach()
    torch.testing.assert_close(many, truth, atol=0.05, rtol=0)
    assert torch.equal(vae.elbo_terms(x, num_samples=20_000, reduction="none", seed=0).elbo, many)
    drawn = vae.sample(50_000, generator=torch.Generator().manual_seed(0))
    assert abs(float(drawn.mean()) - 5) < 4 * math.sqrt(2 / 50_000)
    assert abs(float(drawn.var()) - 2) < 4 * 2 * math.sqrt(2 / 50_000)
    at_prior = vae.sample(50_000, mean=True, generator=torch.Generator().manual_seed(1))
    assert abs(float(at_prior.var()) - 1) < 4 * math.sqrt(2 / 50_000)


def test_a_learned_prior_is_a_parameter_and_another_a_buffer():
    vae = exact((nn.Parameter(torch.tensor([5.0])), torch.zeros(1)), 5.0)
    assert [name for name, _ in vae.named_parameters()] == ["mu_p"]
    assert [name for name, _ in vae.named_buffers()] == ["logvar_p"]
    (-vae.elbo(torch.zeros(3, 1))).backward()
    assert vae.mu_p.grad is not None
    loaded = exact((nn.Parameter(torch.zeros(1)), torch.ones(1)), 5.0)
    loaded.load_state_dict(vae.state_dict())
    assert loaded.prior[0] == 5.0
    assert loaded.prior[1] == 0.0
    assert all(t.dtype is torch.float64 for t in vae.double().prior)
    assert exact(None, 0.0).prior is None


def test_prior_and_likelihood_are_no_options_of_a_call():
    vae, x = linear(), torch.randn(N, D, dtype=torch.float64)
    for name, value in (("prior", (torch.zeros(L), torch.zeros(L))), ("likelihood", Bernoulli())):
        for method in (vae.elbo, vae.elbo_terms):
            with pytest.raises(TypeError, match=rf"^{name} belongs to the VAE.*VAE\(\.\.\., {name}=\.\.\.\)$"):
                method(x, **{name: value})
    with pytest.raises(TypeError, match=r"^prior must be a pair"):
        linear(prior=torch.zeros(L))
    with pytest.raises(ValueError, match=r"^prior's mu_p must broadcast to the shape of one z, \[2\], got \[4, 2\]"):
        linear(prior=(torch.zeros(N, L), torch.zeros(L)))


@pytest.mark.parametrize("shape", [(), (D,), (N, D), (N, 1)])
@pytest.mark.parametrize("kind", [Gaussian, Laplace])
def test_log_likelihood_takes_a_scale_of_every_shape(kind, shape, monkeypatch):
    monkeypatch.setattr(fastvae.vae, "MAX_DECODER_ROWS", 3 * N)  # three draws per decoder call
    x, scale = torch.randn(N, D, dtype=torch.float64), torch.rand(shape, dtype=torch.float64) + 0.5
    vae = linear(kind(scale))
    each = scale.expand(N, D)
    rows = [linear(kind(each[n].clone())) for n in range(N)]
    mu, logvar = vae.encode(x)
    z = fastvae.reparameterize(mu, logvar, num_samples=7, seed=1)
    for n, row in enumerate(rows):
        row.decoder.load_state_dict(vae.decoder.state_dict())
        log_p = row.likelihood.log_prob(x[n], row.decoder(z[:, n])).sum(1)
        prior, q = torch.distributions.Normal(0, 1), torch.distributions.Normal(mu[n], torch.exp(logvar[n] / 2))
        weight = log_p + (prior.log_prob(z[:, n]) - q.log_prob(z[:, n])).sum(1)
        truth = weight.logsumexp(0) - math.log(7)
        torch.testing.assert_close(vae.log_likelihood(x, num_samples=7, seed=1)[n], truth.detach())


def test_a_constant_scale_follows_the_module():
    half = torch.full((D,), 0.5)
    for name, likelihood in (("scale", Gaussian(half)), ("log_scale", Gaussian(log_scale=half))):
        vae = linear(likelihood)
        held = getattr(vae.likelihood, name)
        assert held.dtype is torch.float64
        assert name in vae.state_dict()
        assert getattr(copy.deepcopy(vae).to("meta").likelihood, name).is_meta
        assert not next(iter(vae.decoder.parameters())).is_meta
        assert vae.elbo(torch.randn(N, D, dtype=torch.float64)).isfinite()


class Student(nn.Module):
    """A likelihood that is a module, with a parameter named scale, and only the method log_prob."""

    def __init__(self, shape=(7,)):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(shape))

    def log_prob(self, x, x_hat):
        return torch.distributions.StudentT(self.scale.square().sum(), x_hat, 1.0).log_prob(x)


def test_a_likelihood_that_is_a_module_becomes_a_submodule():
    vae, x = linear(Student()), torch.randn(N, D, dtype=torch.float64)
    (-vae.elbo(x, seed=0)).backward()
    assert vae.likelihood.scale.grad is not None
    assert any(p is vae.likelihood.scale for p in vae.parameters())
    assert vae.likelihood.scale.dtype is torch.float64
    assert vae.log_likelihood(x, num_samples=3).isfinite().all()
    with pytest.raises(TypeError, match=r"^the likelihood Student has no method sample"):
        vae.sample(2)
    with pytest.raises(TypeError, match=r"^the likelihood Student has no method mean"):
        vae.reconstruct(x)


@pytest.mark.parametrize("method", ["elbo", "elbo_terms", "sample", "reconstruct", "log_likelihood"])
def test_more_outputs_than_the_likelihood_supports(method):
    def call(vae):
        argument = 2 if method == "sample" else torch.rand(N, D, dtype=torch.float64)
        return getattr(vae, method)(argument)

    for heads, likelihood, error, message in (
        (3, None, TypeError, r"^the decoder must return a tensor x_hat or a pair"),
        (2, Student(), TypeError, r"^the decoder returned .*but the likelihood Student has no with_log_scale"),
        (2, Bernoulli(), ValueError, r"^the decoder returned .*but a Bernoulli likelihood has no scale"),
    ):
        with pytest.raises(error, match=message):
            call(linear(likelihood, heads=heads))
    call(linear(Gaussian(), heads=2))


def test_x_that_the_encoder_does_not_accept():
    vae: Any = VAE.mlp((2, D), latent=L, hidden=3)
    for method in (vae.elbo, vae.elbo_terms, vae.reconstruct, vae.log_likelihood, vae.encode):
        with pytest.raises(TypeError, match=r"^x must be a torch\.Tensor, got ndarray"):
            method(np.zeros((N, 2, D), np.float32))
        for shape in ((N, D), (N, 2, D + 1), (2 * D,), ()):
            with pytest.raises(ValueError, match=r"^x must have the shape \[N, 2, 3\], got"):
                method(torch.zeros(shape))
    one = VAE(nn.Linear(D, L), nn.Linear(L, D), latent=L)
    with pytest.raises(TypeError, match=r"^the encoder must return a pair \(mu, logvar\), got a float32 tensor"):
        one.elbo(torch.zeros(N, D))
    for n in (-1, 2.0, True):
        with pytest.raises(ValueError, match=r"^n must be an int and not negative"):
            vae.sample(n)


def test_other_methods_refuse_what_elbo_refuses():
    vae: Any = VAE.mlp(D, latent=L, hidden=3, likelihood="bernoulli")
    pixels = torch.randint(256, (N, D), dtype=torch.uint8)
    per_row: Any = VAE(vae.encoder, vae.decoder, latent=L, likelihood=Gaussian(torch.ones(N, D)))
    for name in ("elbo", "reconstruct", "log_likelihood"):
        for x, options in ((pixels, {}), (pixels / 255, {"x_scale": 1 / 255})):
            with pytest.raises(ValueError, match=r"^x_scale must be given with uint8 x, and only then"):
                getattr(vae, name)(x, **options)
        with pytest.raises(TypeError, match=r"^x_scale must be a finite float, got 'a'"):
            getattr(vae, name)(pixels, x_scale="a")
        with pytest.raises(ValueError, match=rf"^likelihood's scale must broadcast to .* x_hat, \[2, {D}\]"):
            getattr(per_row, name)(torch.rand(2, D))
        with pytest.raises(
            ValueError, match=rf"^the encoder must return mu of the shape \[N, {L + 1}\], as latent says"
        ):
            getattr(VAE(vae.encoder, vae.decoder, latent=L + 1), name)(torch.rand(N, D))
        with pytest.raises(TypeError, match=r"^the decoder must return a tensor x_hat or a pair"):
            getattr(VAE(vae.encoder, lambda z: (z,), latent=L), name)(torch.rand(N, D))
    with pytest.raises(ValueError, match=rf"^likelihood's scale must broadcast to .* x_hat, \[2, {D}\]"):
        per_row.sample(2)


def test_values_that_log_likelihood_checks():
    vae = VAE.mlp(D, latent=L, hidden=3, likelihood="bernoulli")
    with pytest.warns(UserWarning, match=r"^x of a Bernoulli likelihood must be between 0 and 1, got 7"):
        vae.log_likelihood(torch.full((N, D), 7.0), 3)
    with pytest.raises(ValueError, match=r"^x of a Bernoulli likelihood must be between 0 and 1, got nan"):
        vae.log_likelihood(torch.full((N, D), math.nan), 3, check_values=True)
    bad = VAE(vae.encoder, lambda z: vae.decoder(z) / 0, latent=L)
    with pytest.raises(ValueError, match=r"^the decoder's x_hat must be finite"):
        bad.log_likelihood(torch.rand(N, D), 3, check_values=True)


@pytest.mark.parametrize("latent", [2.5, -1, (2, -2), "2", True])
def test_a_latent_that_is_not_a_shape(latent):
    with pytest.raises(TypeError, match=r"^latent must be an int or a tuple of ints, none negative, got"):
        VAE(nn.Linear(D, L), nn.Linear(L, D), latent=latent)
    with pytest.raises((TypeError, ValueError), match=r"^latent must be (an int, got|at least 1, got -1)"):
        VAE.mlp(D, latent=latent)


def test_draws_have_the_dtype_of_the_decoder():
    log_scale = nn.Parameter(torch.zeros(D, dtype=torch.float64))
    vae = VAE(nn.Linear(D, L), nn.Linear(L, D), latent=L, likelihood=Gaussian(log_scale=log_scale))
    assert vae.sample(3).shape == (3, D)
    assert vae.sample(3, mean=True).dtype is torch.float32


def test_numpy_numbers_are_accepted():
    sizes: Any = {"event": np.int64(D), "latent": np.int64(L), "hidden": np.int64(3), "scale": np.float32(0.5)}
    vae: Any = VAE.mlp(**sizes)
    assert vae.sample(np.int64(2)).shape == (2, D)
    assert vae.log_likelihood(torch.zeros(N, D), num_samples=np.int64(3)).shape == (N,)


def test_a_vae_without_parameters_draws():
    vae = VAE(lambda x: (x, x), lambda z: z, latent=L, prior=(torch.ones(L), torch.zeros(L)))
    assert vae.sample(5).shape == (5, L)
    assert VAE(lambda x: (x, x), lambda z: z, latent=L).sample(5).shape == (5, L)
