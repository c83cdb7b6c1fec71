"""The ELBO on the CPU: `fastvae` against eager torch, `torch.compile`, and the floor of memory, forward and backward.

`make bench` runs it. Rivals are at their best: compiled for static shapes, on all threads. The floor reads x and x_hat
and writes one array of their size, as the fused kernel must. Run it alone: threads share a machine badly.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastvae
from fastvae.demo.training import Options

# N, D, L: a small MLP; MNIST in three batch sizes; CIFAR; a wide table; images of 256 x 256 x 3, out of every cache
SIZES = [
    *((128, 64, 8), (128, 784, 20), (512, 784, 20), (512, 3072, 128)),
    *((128, 20000, 10), (4096, 784, 32), (64, 196608, 256)),
]


def textbook_elbo(x: Tensor, x_hat: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """What most training loops write."""
    log_likelihood = -0.5 * (x - x_hat).square().sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi)
    kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)
    return (log_likelihood - kl).mean()


class FreeDecoder(torch.autograd.Function):
    """A decoder that costs nothing: x_hat is one zero a row, and the gradient of z is what it is handed."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, dz: Tensor) -> Tensor:
        ctx.save_for_backward(dz)
        return z.new_zeros(z.shape[0], 1)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return ctx.saved_tensors[0], None


def textbook_bound(x: Tensor, decoder: Callable[[Tensor], Tensor], mu: Tensor, logvar: Tensor) -> Tensor:
    """Sampling as well, as most training loops write it."""
    z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
    return textbook_elbo(x, decoder(z), mu, logvar)


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "elbo {}x{},{}".format(*size))
def bench_elbo(race, size):
    N, D, L = size
    x, x_hat, mu, logvar = torch.randn(N, D), leaf(N, D), leaf(N, L), leaf(N, L)
    detached = x_hat.detach()

    def step(function):
        def run():
            x_hat.grad = mu.grad = logvar.grad = None
            (-function(x, x_hat, mu, logvar)).backward()

        return run

    race(
        fastvae=step(fastvae.elbo),
        eager=step(textbook_elbo),
        compile=step(torch.compile(textbook_elbo, dynamic=False)),
        floor=lambda: x + detached,
    )


LATENTS = pytest.mark.parametrize("size", [(128, 20), (4096, 512)], ids=lambda size: "sample + KL {}x{}".format(*size))


@LATENTS
def bench_sample_and_kl(race, size):
    """In the bound, around a decoder that costs nothing, which hands back a gradient of z."""
    mu, logvar, x, dz = leaf(*size), leaf(*size), torch.zeros(size[0], 1), torch.randn(size)

    def step(function):
        def run():
            mu.grad = logvar.grad = None
            (-function(x, lambda z: FreeDecoder.apply(z, dz), mu, logvar)).backward()

        return run

    race(
        fastvae=step(fastvae.elbo),
        eager=step(textbook_bound),
        compile=step(torch.compile(textbook_bound, dynamic=False)),
        floor=lambda: mu.detach() + dz,
    )


@LATENTS
def bench_reparameterize(race, size):
    """As two calls, each of which reads mu and logvar."""
    mu, logvar, dz, one = leaf(*size), leaf(*size), torch.randn(size), torch.ones(())

    def fused(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        return fastvae.reparameterize(mu, logvar), fastvae.kl_divergence(mu, logvar, reduction="mean")

    def textbook(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return z, -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1).mean()

    def step(function):
        def run():
            mu.grad = logvar.grad = None
            torch.autograd.backward(function(mu, logvar), (dz, one))

        return run

    race(fastvae=step(fused), eager=step(textbook), compile=step(torch.compile(textbook, dynamic=False)))


def bench_training_step(race):
    """A whole step of the default VAE of `make train`, Adam included, against the same with the reference ops."""
    options = Options()
    x = torch.rand(options.batch_size, 8, 8)

    def step(**how):
        model = fastvae.VAE.mlp((8, 8), latent=options.latent, hidden=options.hidden)
        optimizer = torch.optim.Adam(model.parameters(), options.lr)

        def run():
            optimizer.zero_grad()
            (-model.elbo(x, **how)).backward()
            optimizer.step()

        return run

    race(fastvae=step(), reference=step(backend="reference"))
