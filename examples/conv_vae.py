"""A convolutional VAE on 1,797 real handwritten digits of 8 x 8 binary pixels. You can use any networks.

Prints the ELBO of 297 held-out digits before and after training, and an estimate of their log p(x), of which the ELBO
is a lower bound.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import fastvae

LATENT = 8


class Encoder(nn.Sequential):
    """Two convolutions of stride 2 down to 2 x 2 pixels, then mu and logvar."""

    def __init__(self) -> None:
        first, second = nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.Conv2d(32, 64, 3, stride=2, padding=1)
        super().__init__(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(64 * 2 * 2, 2 * LATENT))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Encode digits ``[N, 1, 8, 8]``; `fastvae.VAE` converts the bools to floats."""
        return super().forward(x).chunk(2, dim=1)


def main(epochs: int = 40) -> tuple[float, float, float]:
    """Train; return the held-out ELBO before and after, and log p(x), in nats per digit."""
    torch.manual_seed(0)
    x = torch.from_numpy(load_digits().images[:, None] > 8)
    train, test = x[torch.randperm(len(x))].split((1500, 297))
    decoder = nn.Sequential(
        nn.Linear(LATENT, 64 * 2 * 2),
        nn.Unflatten(1, (64, 2, 2)),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1),  # logits
    )
    vae = fastvae.VAE(Encoder(), decoder, latent=LATENT, likelihood=fastvae.Bernoulli())
    optimizer = torch.optim.Adam(vae.parameters(), 2e-3)
    before = vae.elbo(test, num_samples=10).item()
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            (-vae.elbo(batch)).backward()
            optimizer.step()
    after = vae.elbo(test, num_samples=10).item()
    log_p = vae.log_likelihood(test, num_samples=100).mean().item()
    print(f"held-out ELBO {before:.2f} nats per digit before training, {after:.2f} after; log p(x) about {log_p:.2f}")
    print(
        "a digit drawn from the model:", *("".join(".#"[int(v)] for v in row) for row in vae.sample(1)[0, 0]), sep="\n"
    )
    return before, after, log_p


if __name__ == "__main__":
    main()
