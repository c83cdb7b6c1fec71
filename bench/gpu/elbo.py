"""The ELBO on a GPU against eager torch, `torch.compile`, and a device copy of the minimum number of bytes.

Before timing, each case is checked against the reference in float64, at the first and last rows. Rivals take turns. The
copy moves as many bytes as one pass must: it reads x and x_hat and writes the gradient. The most important cases come
first, because time may run out.
"""

import argparse
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

import fastvae

from . import results
from .timing import DEVICE, ON_GPU, compiled, copies, race

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LIKELIHOODS = {"gaussian": fastvae.Gaussian(), "bernoulli": fastvae.Bernoulli()}
MNIST, SMALL, CIFAR = (128, 784, 20), (4096, 784, 32), (512, 3072, 128)
WIDE, IMAGES = (1024, 20000, 10), (64, 196608, 256)  # a table; images of 256 x 256 x 3
LARGE, HUGE = (4096, 16384, 32), (65536, 16384, 32)  # 64 million elements, a billion
CASES: list[tuple[tuple[int, int, int], str, str]] = [
    *((LARGE, "fp32", "gaussian"), (HUGE, "fp32", "gaussian"), (MNIST, "fp32", "gaussian")),
    *((LARGE, "bf16", "gaussian"), (HUGE, "bf16", "gaussian"), (LARGE, "fp32", "bernoulli")),
    *((MNIST, "fp32", "bernoulli"), (IMAGES, "fp32", "gaussian"), (SMALL, "fp32", "gaussian")),
    *((CIFAR, "fp32", "gaussian"), (WIDE, "fp32", "gaussian"), (LARGE, "bf16", "bernoulli")),
    *((HUGE, "bf16", "bernoulli"), (MNIST, "bf16", "gaussian"), (IMAGES, "bf16", "gaussian")),
]
TINY = [((8, 32, 4), "fp32", "gaussian"), ((8, 32, 4), "bf16", "bernoulli")]
ROWS = 64  # checked at each end
LARGEST = 60e9  # bytes of device memory a case may use, including the temporaries of eager torch


def textbook(likelihood: str) -> Any:
    """The ELBO as most training loops write it."""

    def gaussian(x: Tensor, x_hat: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        log_likelihood = -0.5 * (x - x_hat).float().square().sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi)
        kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)
        return (log_likelihood - kl).mean()

    def bernoulli(x: Tensor, x_hat: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        log_likelihood = -cross_entropy(x_hat, x, reduction="none").float().sum(1)
        kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)
        return (log_likelihood - kl).mean()

    return {"gaussian": gaussian, "bernoulli": bernoulli}[likelihood]


def fused(likelihood: str) -> Any:
    """The ELBO by kernels."""
    kind = LIKELIHOODS[likelihood]

    def bound(x: Tensor, x_hat: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        return fastvae.elbo(x, x_hat, mu, logvar, likelihood=kind, backend="triton")

    return bound


def forward(function: Any, x: Tensor, leaves: list[Tensor]) -> Any:
    def run() -> None:
        with torch.no_grad():
            function(x, *leaves)

    return run


def forward_backward(function: Any, x: Tensor, leaves: list[Tensor]) -> Any:
    def run() -> None:
        torch.autograd.grad(-function(x, *leaves), leaves)

    return run


def check(bound: Any, likelihood: str, x: Tensor, leaves: list[Tensor]) -> None:
    """Compare the gradients of the batch, at its first and last rows, with those of the reference in float64."""
    ours, N = torch.autograd.grad(bound(x, *leaves), leaves), len(x)
    for rows in (slice(0, ROWS), slice(max(0, N - ROWS), N)):
        few = [t[rows].detach().double().requires_grad_() for t in leaves]
        how: dict[str, Any] = {"likelihood": LIKELIHOODS[likelihood], "reduction": "sum", "backend": "reference"}
        truth = torch.autograd.grad(fastvae.elbo(x[rows].double(), *few, **how), few)
        for a, b in zip(ours, truth, strict=True):
            rtol = 1e-2 if a.dtype is torch.bfloat16 else 1e-5
            torch.testing.assert_close(a[rows] * N, b.to(a.dtype), rtol=rtol, atol=rtol)


def case(size: tuple[int, int, int], dtype: str, likelihood: str, backward: bool, seconds: float) -> dict[str, Any]:
    """Measure a line of the table: the forward pass, or forward and backward."""
    (N, D, L), T = size, DTYPES[dtype]
    torch._dynamo.reset()
    torch.manual_seed(0)
    x = torch.rand(N, D, device=DEVICE).to(T)
    x_hat = torch.randn(N, D, device=DEVICE).to(T).requires_grad_()
    leaves = [x_hat, *(torch.randn(N, L, device=DEVICE, requires_grad=True) for _ in range(2))]
    written, make = (x_hat.nbytes, forward_backward) if backward else (0, forward)
    bound, rival = fused(likelihood), textbook(likelihood)
    check(bound, likelihood, x, leaves)
    contenders = {
        "fastvae": make(bound, x, leaves),
        "eager": make(rival, x, leaves),
        "compile": make(compiled(rival), x, leaves),
        "copy": copies(x.nbytes + x_hat.nbytes, written),
    }
    return {"seconds": race(contenders, seconds if ON_GPU else 0), "bytes": x.nbytes + x_hat.nbytes + written}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=190, help="for all cases together")
    parser.add_argument("--each", type=float, default=1.0, help="seconds of timing a case")
    parser.add_argument("--cases", type=int, help="the first so many")
    options = parser.parse_args()
    chosen = [c for c in (CASES if ON_GPU else TINY) if 8 * c[0][0] * c[0][1] * DTYPES[c[1]].itemsize < LARGEST]
    named = [
        (
            f"{'fwd+bwd' if backward else 'fwd'} {N}x{D},{L} {dtype} {likelihood}",
            lambda N=N, D=D, L=L, dtype=dtype, likelihood=likelihood, backward=backward: case(
                (N, D, L), dtype, likelihood, backward, options.each
            ),
        )
        for (N, D, L), dtype, likelihood in chosen[: options.cases]
        for backward in (True, False)
    ]
    return results.run("bench", named, options.seconds)


if __name__ == "__main__":
    raise SystemExit(main())
