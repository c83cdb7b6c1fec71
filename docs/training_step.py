"""What the loss takes of a training step of MNIST size, by hand and by fastvae: `python docs/training_step.py`.

784-400-20, batches of 128, Adam; the fastest of 200 steps each, in turn, and of the loss with its gradients alone.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import fastvae

N, D, H, L, ROUNDS = 128, 784, 400, 20, 200


def by_hand(x: Tensor, decoder: nn.Module, mu: Tensor, logvar: Tensor) -> Tensor:
    """The bound as most training loops write it."""
    x_hat = decoder(mu + (logvar / 2).exp() * torch.randn_like(mu))
    kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1)
    return ((-0.5 * (x - x_hat) ** 2 - 0.9189385).sum(1) - kl).mean()


class Constant(nn.Module):
    """A decoder that costs nothing: its output is a leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.x_hat = nn.Parameter(torch.randn(N, D))

    def forward(self, z: Tensor) -> Tensor:
        """The same for every z."""
        return self.x_hat


def main() -> None:
    """Print the times."""
    encoder = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, 2 * L))
    decoder = nn.Sequential(nn.Linear(L, H), nn.ReLU(), nn.Linear(H, D))
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()])
    x, mu, logvar, constant = torch.rand(N, D), torch.randn(N, L), torch.randn(N, L), Constant()
    mu.requires_grad_(), logvar.requires_grad_()
    ways: dict[str, Callable[..., Tensor]] = {"by hand": by_hand, "fastvae": fastvae.elbo}
    best = {(what, name): float("inf") for what in ("step", "loss alone") for name in ways}
    for _ in range(ROUNDS):
        for name, elbo in ways.items():
            start = time.perf_counter()
            loss = -elbo(x, decoder, *encoder(x).chunk(2, 1))
            adam.zero_grad()
            loss.backward()
            adam.step()
            best["step", name] = min(best["step", name], time.perf_counter() - start)
            start = time.perf_counter()
            elbo(x, constant, mu, logvar).backward()
            best["loss alone", name] = min(best["loss alone", name], time.perf_counter() - start)
    for (what, name), seconds in best.items():
        print(f"{what}, {name}: {1e3 * seconds:.2f} ms")


if __name__ == "__main__":
    main()
