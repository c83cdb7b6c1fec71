"""The ELBO, forward and backward, tensor form, float32, mean over the batch: `fastvae.elbo` against eager torch.

`make bench` runs it. Two threads share a machine badly with anything else, so run it alone.
"""

import math

import pytest
import torch
from torch import Tensor

import fastvae

# N, D, L: a small MLP, MNIST in two batch sizes, CIFAR, a wide table
SIZES = [(128, 64, 8), (128, 784, 20), (4096, 784, 32), (512, 3072, 128), (128, 20000, 10)]


def eager(x: Tensor, x_hat: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """What most training loops write."""
    log_likelihood = -0.5 * (x - x_hat).square().sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi)
    kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)
    return (log_likelihood - kl).mean()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("function", [fastvae.elbo, eager], ids=["fastvae", "eager"])
def bench_elbo(benchmark, function, size):
    N, D, L = size
    x = torch.randn(N, D)
    x_hat, mu, logvar = (torch.randn(shape).requires_grad_() for shape in ((N, D), (N, L), (N, L)))

    def step():
        x_hat.grad = mu.grad = logvar.grad = None
        (-function(x, x_hat, mu, logvar)).backward()

    benchmark.group = f"{N} x {D}, {L}"
    benchmark(step)
