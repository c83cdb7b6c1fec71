"""A bad row of a batch does not change a bit of the values and gradients of the other rows."""

import math

import pytest
import torch

import fastvae
from fastvae import Bernoulli, Gaussian, Laplace

N, D, L = 37, 9, 5  # no multiples of blocks or vectors

LIKELIHOODS = {
    "plain": lambda s: Gaussian(),
    "scale of elements": lambda s: Gaussian(log_scale=s),
    "Laplace": lambda s: Laplace(log_scale=s),
    "Bernoulli": lambda s: Bernoulli(),
}


def evaluate(given, likelihood, decoder, backend):
    """The terms of each row, and the gradients of a weighted sum of them."""
    leaves = {name: t.clone().requires_grad_(name != "x") for name, t in given.items()}
    x, x_hat, mu, logvar, s = leaves.values()
    out = (lambda z: x_hat + 0.1 * z[:, :1]) if decoder else x_hat
    options = {"likelihood": LIKELIHOODS[likelihood](s), "reduction": "none", "seed": 1, "backend": backend}
    values = list(fastvae.elbo_terms(x, out, mu, logvar, **options))
    values.append(fastvae.elbo(x, out, mu, logvar, **options))
    weight = torch.linspace(0.5, 1, N)
    requested = [x_hat, mu, logvar] + [s] * (likelihood in ("scale of elements", "Laplace"))
    return values + list(torch.autograd.grad(values, requested, [weight] * len(values)))


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("decoder", [False, True], ids=["x_hat", "decoder"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_a_bad_row_does_not_affect_the_others(value, likelihood, decoder, backend):
    given = {"x": torch.rand(N, D), "x_hat": torch.randn(N, D), "mu": torch.randn(N, L), "logvar": torch.randn(N, L)}
    given["s"] = torch.randn(N, D)
    want = evaluate(given, likelihood, decoder, backend)
    for name in given:
        for row in (0, 16, N - 1):
            changed = given | {name: given[name].clone()}
            changed[name][row, 1] = value
            others = torch.arange(N) != row
            for ours, theirs in zip(evaluate(changed, likelihood, decoder, backend), want, strict=True):
                assert torch.equal(ours[others], theirs[others]), (name, row)
