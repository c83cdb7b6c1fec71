"""The ELBO of the linear-Gaussian model, whose log p(x) and posterior are known in closed form.

z ~ N(0, I)    x | z ~ N(W z + b, s^2 I)    x ~ N(b, W W' + s^2 I)
z | x ~ N(V W'(x - b) / s^2, V)    V = (I + W'W / s^2)^-1
"""

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

import fastvae
from fastvae import VAE, Bernoulli, Gaussian

pytestmark = pytest.mark.usefixtures("each_backend")

F64 = torch.float64
N, D, L = 4, 5, 2  # few data points, more features than latents
S = 0.7  # the scale of x given z


class Linear(NamedTuple):
    """The model, some data, and the exact posterior: mean [N, L] and covariance [L, L]."""

    W: Tensor
    b: Tensor
    x: Tensor
    mean: Tensor
    covariance: Tensor

    def decoder(self, z):
        return z @ self.W.mT + self.b

    @property
    def logvar(self):
        """The log of the diagonal of the posterior covariance, as an encoder would return it."""
        return self.covariance.diagonal().log().expand(N, L)

    @property
    def log_p(self):
        return MultivariateNormal(self.b, self.W @ self.W.mT + S**2 * torch.eye(D)).log_prob(self.x)

    def expected_log_likelihood(self, mu, logvar):
        """E_q[log p(x|z)], from the residual at the mean and the covariance of q transformed by W."""
        residual = (self.x - self.decoder(mu)).square().sum(1) + logvar.exp() @ self.W.square().sum(0)
        return -0.5 * (residual / S**2 + D * math.log(2 * math.pi * S**2))


def linear(orthogonal):
    """With orthogonal columns of W the posterior is diagonal, so q can be equal to it; otherwise it cannot."""
    W = torch.randn(D, L, dtype=F64)
    W = torch.linalg.qr(W).Q * torch.tensor([1.5, 0.4]) if orthogonal else W + 0.5 * W.flip(1)
    b, x = torch.randn(D, dtype=F64), 1.5 * torch.randn(N, D, dtype=F64)
    covariance = torch.linalg.inv(torch.eye(L) + W.mT @ W / S**2)
    return Linear(W, b, x, (x - b) @ W @ covariance / S**2, covariance)


def random_q():
    return torch.randn(N, L, dtype=F64), torch.randn(N, L, dtype=F64) - 1


def mean_and_error(draws):
    """Mean over the last dim, and its standard error."""
    return draws.mean(-1), draws.std(-1) / math.sqrt(draws.shape[-1])


def test_log_p_is_the_bound_plus_the_kl_to_the_posterior():
    model, (mu, logvar) = linear(orthogonal=True), random_q()
    bound = model.expected_log_likelihood(mu, logvar) - fastvae.kl_divergence(mu, logvar)
    gap = fastvae.kl_divergence(mu, logvar, (model.mean, model.logvar))
    assert (gap > 0.1).all()  # q is not the posterior
    torch.testing.assert_close(bound + gap, model.log_p)
    at_posterior = model.expected_log_likelihood(model.mean, model.logvar)
    torch.testing.assert_close(at_posterior - fastvae.kl_divergence(model.mean, model.logvar), model.log_p)


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("over", ["draws", "rows"])  # the noise must be independent over both
def test_the_sampled_likelihood_averages_to_the_analytic_one(orthogonal, over):
    model, (mu, logvar) = linear(orthogonal), random_q()
    R = 20_000  # for standard errors below 2 %
    x, mu_r, logvar_r = (t.repeat_interleave(R, 0) if over == "rows" else t for t in (model.x, mu, logvar))
    options: dict[str, Any] = {"likelihood": Gaussian(S), "reduction": "none", "seed": 11}
    if over == "rows":
        terms = fastvae.elbo_terms(x, model.decoder, mu_r, logvar_r, **options)
        mean, error = mean_and_error(terms.log_likelihood.view(N, R))
    else:
        mean = fastvae.elbo_terms(x, model.decoder, mu, logvar, num_samples=R, **options).log_likelihood
        z = fastvae.reparameterize(mu, logvar, num_samples=R, seed=11)
        error = mean_and_error(Gaussian(S).log_prob(x, model.decoder(z)).sum(2).T)[1]
    exact = model.expected_log_likelihood(mu, logvar)
    assert (error < 0.02 * exact.abs()).all()
    assert ((mean - exact).abs() < 5 * error).all()


@pytest.mark.parametrize("orthogonal", [True, False])
def test_the_expected_bound_is_below_log_p_and_tight_at_the_posterior(orthogonal):
    model, R = linear(orthogonal), 20_000
    posterior = MultivariateNormal(model.mean, model.covariance)
    for mu, logvar in [random_q(), (model.mean, model.logvar)]:
        gap = kl_divergence(MultivariateNormal(mu, logvar.exp().diag_embed()), posterior)
        rows = (t.repeat_interleave(R, 0) for t in (mu, logvar))
        x = model.x.repeat_interleave(R, 0)
        bounds = fastvae.elbo(x, model.decoder, *rows, likelihood=Gaussian(S), reduction="none")
        mean, error = mean_and_error(bounds.view(N, R))
        assert ((mean - (model.log_p - gap)).abs() < 5 * error).all()
        assert ((mean < model.log_p - 5 * error) | (gap < 1e-9)).all()
    assert (gap.abs() < 1e-9).all() if orthogonal else (gap > 0.1).all()


def test_no_encoder_gradient_ascent_on_mu_and_logvar_finds_the_posterior():
    model = linear(orthogonal=True)
    mu, logvar = (torch.zeros(N, L, dtype=F64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.Adam([mu, logvar], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.985)  # to a tenth in 150 steps
    for _ in range(300):
        optimizer.zero_grad()
        loss = -fastvae.elbo(model.x, model.decoder, mu, logvar, likelihood=Gaussian(S), num_samples=32)
        loss.backward()
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(mu.detach(), model.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(logvar.detach(), model.logvar, rtol=0, atol=0.06)


def test_gradient_ascent_on_the_decoder_finds_the_maximum_likelihood():
    # With q the posterior at each step this is EM, and with one latent probabilistic PCA has a closed-form solution.
    N, D = 400, 3
    x = torch.randn(N, 1, dtype=F64) @ torch.tensor([[2.0, 1.0, -1.0]], dtype=F64) + 0.5 * torch.randn(N, D, dtype=F64)
    W, b, log_s = (torch.full(s, v, dtype=F64, requires_grad=True) for s, v in [((1, D), 0.5), ((D,), 0.0), ((), 0.0)])
    optimizer = torch.optim.Adam([W, b, log_s], lr=0.05)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    for _ in range(300):
        with torch.no_grad():
            variance = 1 / (1 + W.square().sum() / (2 * log_s).exp())
            mean = (x - b) @ W.mT * variance / (2 * log_s).exp()
            logvar = variance.log().expand(N, 1)
        optimizer.zero_grad()
        likelihood = Gaussian(log_scale=log_s)
        loss = -fastvae.elbo(x, lambda z: z @ W + b, mean, logvar, likelihood=likelihood, num_samples=4)
        loss.backward()
        optimizer.step()
        scheduler.step()
    values, vectors = torch.linalg.eigh(x.T.cov(correction=0))
    noise = values[:-1].mean()  # Tipping & Bishop (1999): s^2 is the mean of the discarded variances
    signal = (values[-1] - noise) * vectors[:, -1].outer(vectors[:, -1])
    torch.testing.assert_close((2 * log_s).exp().detach(), noise, rtol=0.03, atol=0)
    torch.testing.assert_close((W.mT @ W).detach(), signal, rtol=0, atol=0.1)
    torch.testing.assert_close(b.detach(), x.mean(0), rtol=0, atol=0.1)


class Encoder(nn.Module):
    """An affine map of the data, equal to the exact posterior unless shifted or widened."""

    def __init__(self, model, shift=0.0, widen=0.0):
        super().__init__()
        self.model, self.shift, self.widen = model, shift, widen

    def forward(self, x):
        model = self.model
        mean = (x - model.b) @ model.W @ model.covariance / S**2
        return mean + self.shift, (model.logvar + self.widen)[: x.shape[0]]


def linear_vae(model, **encoder):
    decoder = nn.Linear(L, D, dtype=F64)
    decoder.load_state_dict({"weight": model.W, "bias": model.b})
    return VAE(Encoder(model, **encoder), decoder, latent=L, likelihood=Gaussian(S))


def test_importance_weights_are_constant_at_the_posterior():
    model = linear(orthogonal=True)
    torch.testing.assert_close(linear_vae(model).log_likelihood(model.x, num_samples=1), model.log_p)
    torch.testing.assert_close(linear_vae(model).log_likelihood(model.x, num_samples=7), model.log_p)


def test_importance_sampling_converges_to_log_p_from_below(monkeypatch):
    model = linear(orthogonal=False)
    vae = linear_vae(model, shift=0.3, widen=0.7)  # wider than the posterior: weights of finite variance
    estimate = vae.log_likelihood(model.x, num_samples=20_000, seed=1)
    torch.testing.assert_close(estimate, model.log_p, rtol=0, atol=0.05)
    monkeypatch.setattr("fastvae.vae.MAX_DECODER_ROWS", 3 * N)  # several decoder calls: the same draws
    pieces = vae.log_likelihood(model.x, num_samples=200, seed=1)
    monkeypatch.undo()
    torch.testing.assert_close(vae.log_likelihood(model.x, num_samples=200, seed=1), pieces)
    tightening = [
        torch.stack([vae.log_likelihood(model.x, num_samples=K, seed=s) for s in range(200)]).mean() for K in (1, 5, 50)
    ]
    assert tightening[0] + 0.02 < tightening[1] < tightening[2] - 0.001 < model.log_p.mean()  # Burda et al., theorem 1


def test_one_importance_sample_is_the_bound():
    model = linear(orthogonal=False)
    vae = linear_vae(model, shift=0.3)
    seeds = range(400)
    weights = torch.stack([vae.log_likelihood(model.x, num_samples=1, seed=s) for s in seeds], -1)
    bounds = torch.stack([vae.elbo(model.x, reduction="none", seed=s).detach() for s in seeds], -1)
    mean, error = mean_and_error(weights - bounds)  # one samples the KL, the other computes it in closed form
    assert (mean.abs() < 5 * error).all()


def test_ancestral_samples_have_the_moments_of_the_model():
    model, R = linear(orthogonal=False), 40_000
    vae = linear_vae(model)
    x = vae.sample(R)
    covariance = model.W @ model.W.mT + S**2 * torch.eye(D)
    assert ((x.mean(0) - model.b).abs() < 5 * (covariance.diagonal() / R).sqrt()).all()
    spread = (covariance.diagonal().outer(covariance.diagonal()) + covariance.square()) / R  # Isserlis
    assert ((x.T.cov() - covariance).abs() < 5 * spread.sqrt()).all()
    noiseless = vae.sample(R, mean=True)
    assert ((noiseless.T.cov() - model.W @ model.W.mT).abs() < 5 * spread.sqrt()).all()


def test_reconstruction_is_decoded_from_the_mean_of_q():
    model = linear(orthogonal=False)
    torch.testing.assert_close(linear_vae(model).reconstruct(model.x), model.decoder(model.mean))


def test_bernoulli_evidence_sums_to_one_over_all_data():
    # Two binary features have four values of x; their probabilities, estimated by importance sampling, sum to 1.
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    encoder = lambda x: (x - 0.5, torch.zeros(4, 2))  # noqa: E731
    vae = VAE(encoder, nn.Linear(2, 2), latent=2, likelihood=Bernoulli())
    total = vae.log_likelihood(x, num_samples=20_000, seed=0).exp().sum()
    assert float(total) == pytest.approx(1, abs=0.01)
