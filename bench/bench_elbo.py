"""The ELBO on the CPU, forward and backward: `fastvae` against eager torch, `torch.compile` and the memory floor.

Before timing, value and gradients are compared with the textbook formulas in float64, or, with sampling, with the
reference for the same noise. Rivals run in their best setting: compiled for static shapes, on all threads. The floor
reads x and x_hat and writes one array of their size, as the fused kernel must. Run it on an idle machine.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastvae
from bench.rivals import cases, compiled, first_call
from fastvae.demo.training import Options

# N, D, L: a small MLP; MNIST in three batch sizes; CIFAR; a wide table; images of 256 x 256 x 3, larger than all caches
SIZES = [
    *((128, 64, 8), (128, 784, 20), (512, 784, 20), (512, 3072, 128)),
    *((128, 20000, 10), (4096, 784, 32), (64, 196608, 256)),
]


def textbook_elbo(x: Tensor, x_hat: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The ELBO as most training loops write it."""
    log_likelihood = -0.5 * (x - x_hat).square().sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi)
    kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)
    return (log_likelihood - kl).mean()


class FreeDecoder(torch.autograd.Function):
    """A decoder without cost: x_hat is one zero per row, and the gradient of z is the tensor given."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, dz: Tensor) -> Tensor:
        ctx.save_for_backward(dz)
        return z.new_zeros(z.shape[0], 1)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return ctx.saved_tensors[0], None


def textbook_bound(x: Tensor, decoder: Callable[[Tensor], Tensor], mu: Tensor, logvar: Tensor) -> Tensor:
    """The ELBO with sampling, as most training loops write it."""
    z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
    return textbook_elbo(x, decoder(z), mu, logvar)


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float) -> None:
    """Check equality relative to the largest element, which determines the rounding error of a sum."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            a.double(), b.double(), rtol=tolerance, atol=tolerance * b.detach().abs().max().item()
        )


@cases(SIZES, [(128, 784, 20), (4096, 784, 32)], "elbo {}x{} L={}")
def bench_elbo(race, case):
    N, D, L = case
    x, x_hat, mu, logvar = torch.randn(N, D), leaf(N, D), leaf(N, L), leaf(N, L)
    detached = x_hat.detach()

    def evaluate(function, *tensors):
        leaves = [t.detach().requires_grad_() for t in tensors[1:]]
        value = function(tensors[0], *leaves)
        return value, *torch.autograd.grad(value, leaves)

    def check():
        exact = evaluate(textbook_elbo, *(t.double() for t in (x, x_hat, mu, logvar)))
        same(evaluate(fastvae.elbo, x, x_hat, mu, logvar), exact, 1e-6)

    def step(function):
        def run():
            x_hat.grad = mu.grad = logvar.grad = None
            (-function(x, x_hat, mu, logvar)).backward()

        return function and run

    contenders = {
        "fastvae": step(fastvae.elbo),
        "eager": step(textbook_elbo),
        "compile": step(compiled(textbook_elbo)),
        "floor": lambda: x + detached,
    }
    race(contenders, check=check, limits=["floor"], elements=N * D, bytes=3 * x.nbytes)


LATENTS = [(128, 20), (4096, 512)]


@cases(LATENTS, LATENTS[1:], "sample + KL {}x{}")
def bench_sample_and_kl(race, case):
    """Sampling and KL within the ELBO, with a decoder without cost, which returns a gradient of z."""
    mu, logvar, x, dz = leaf(*case), leaf(*case), torch.zeros(case[0], 1), torch.randn(case)

    def evaluate(**how):
        value = fastvae.elbo(x, lambda z: FreeDecoder.apply(z, dz), mu, logvar, seed=7, **how)
        return value, *torch.autograd.grad(value, (mu, logvar))

    def step(function):
        def run():
            mu.grad = logvar.grad = None
            (-function(x, lambda z: FreeDecoder.apply(z, dz), mu, logvar)).backward()

        return function and run

    def check():
        same(evaluate(), evaluate(backend="reference"), 1e-5)

    contenders = {
        "fastvae": step(fastvae.elbo),
        "eager": step(textbook_bound),
        "compile": step(compiled(textbook_bound)),
        "floor": lambda: mu.detach() + dz,
    }
    # forward reads mu and logvar and writes z; backward reads both and dz, and writes two gradients
    race(contenders, check=check, limits=["floor"], elements=mu.numel(), bytes=8 * mu.nbytes)


@cases(LATENTS, [], "reparameterize, KL {}x{}")
def bench_reparameterize(race, case):
    """Sampling and KL as two calls, each of which reads mu and logvar."""
    mu, logvar, dz, one = leaf(*case), leaf(*case), torch.randn(case), torch.ones(())

    def fused(mu: Tensor, logvar: Tensor, seed: int | None = None, backend: str = "auto") -> tuple[Tensor, Tensor]:
        z = fastvae.reparameterize(mu, logvar, seed=seed, backend=backend)
        return z, fastvae.kl_divergence(mu, logvar, reduction="mean", backend=backend)

    def textbook(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return z, -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1).mean()

    def evaluate(backend):
        values = fused(mu, logvar, 7, backend)
        return *values, *torch.autograd.grad(values, (mu, logvar), (dz, one))

    def step(function):
        def run():
            mu.grad = logvar.grad = None
            torch.autograd.backward(function(mu, logvar), (dz, one))

        return function and run

    def check():
        same(evaluate("auto"), evaluate("reference"), 1e-5)

    contenders = {"fastvae": step(fused), "eager": step(textbook), "compile": step(compiled(textbook))}
    race(contenders, check=check, elements=mu.numel(), bytes=8 * mu.nbytes)


@cases([(8, 8)], [(8, 8)], "training step {}x{}")
def bench_training_step(race, case):
    """A complete step of the default VAE of `make train`, including Adam, against the same with the reference."""
    options = Options()
    x = torch.rand(options.batch_size, *case)

    def make():
        torch.manual_seed(0)
        model = fastvae.VAE.mlp(case, latent=options.latent, hidden=options.hidden)
        return model, torch.optim.Adam(model.parameters(), options.lr)

    def evaluate(**how):
        model, _ = make()
        value = model.elbo(x, seed=7, **how)
        return value, *torch.autograd.grad(value, list(model.parameters()))

    def step(**how):
        model, optimizer = make()

        def run():
            optimizer.zero_grad()
            (-model.elbo(x, **how)).backward()
            optimizer.step()

        return run

    def check():
        same(evaluate(), evaluate(backend="reference"), 1e-5)

    race({"fastvae": step(), "reference": step(backend="reference")}, check=check, elements=x.numel())


def bench_first_call_of_elbo(note, tmp_path):
    """Value and gradients of the first batch in a process, including sampling and a linear decoder."""
    setup = """
import torch, fastvae
x, decoder = torch.randn(128, 784), torch.nn.Linear(20, 784)
mu, logvar = (torch.randn(128, 20).requires_grad_() for _ in range(2))
decoder(mu).sum().backward()  # torch's own first call
"""
    note("first calls", first_call(setup, "fastvae.elbo(x, decoder, mu, logvar).backward()", tmp_path))
