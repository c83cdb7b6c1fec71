"""The Triton kernels in CUDA graphs. For `make gpu`, in its own process and last: a failed capture breaks the process.

A kernel is loaded at its first launch, and nothing can be loaded while a graph is captured, so the captured step runs
once before.
"""

from typing import Any

import pytest
import torch

import fastvae
from bench.gpu.timing import captured
from fastvae import Bernoulli, Gaussian, Laplace

from ..triton_device import DEVICE, on_gpu

pytestmark = on_gpu
N, D, L = 64, 784, 20


def captured_with_outputs(step):
    """A graph of a step, captured after a warm-up, and the tensors that a replay writes to."""
    outputs: list[Any] = []
    return captured(lambda: outputs.append(step())), outputs[-1]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    with torch.device(DEVICE):
        yield


def test_a_captured_step_draws_new_noise_at_each_replay():
    x, mu, logvar, W = torch.zeros(N, D), torch.zeros(N, L), torch.zeros(N, L), torch.ones(L, D)

    def step():
        z = fastvae.reparameterize(mu, logvar, backend="triton")
        return z, fastvae.elbo(x, z @ W, mu, logvar, backend="triton")

    graph, (z, value) = captured_with_outputs(step)
    draws = []
    for _ in range(3):
        graph.replay()
        draws.append((z.clone(), value.clone()))
    assert not torch.equal(draws[0][0], draws[1][0])
    for z, value in draws:
        expected = fastvae.elbo(x, z @ W, mu, logvar, backend="reference")
        torch.testing.assert_close(value, expected)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "each row": {"reduction": "none"},
    "free bits": {"free_bits": 0.5},
    "draws": {"num_samples": 3},
    "Laplace": {"likelihood": Laplace(0.5)},
    "Bernoulli": {"likelihood": Bernoulli()},
    "a scale": {"likelihood": Gaussian(log_scale=torch.zeros((), device=DEVICE, requires_grad=True))},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_captured_step_gives_the_gradients_of_an_eager_one(name):
    x, seed = torch.rand(N, D), torch.tensor(0)
    leaves = [torch.randn(s, requires_grad=True) for s in ((L, D), (N, L), (N, L))]

    def step():
        W, mu, logvar = leaves
        value = fastvae.elbo(x, lambda z: z @ W, mu, logvar, seed=seed, backend="triton", **OPTIONS[name])
        return value.detach(), *torch.autograd.grad(-value.sum(), leaves)

    graph, out = captured_with_outputs(step)
    for number in (3, 4):
        seed.fill_(number)
        graph.replay()
        for a, b in zip([t.clone() for t in out], step(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
