"""A conditional VAE: encoder and decoder take the label as input, and each label has its own, learned prior.

The model is p(x|c), so it can be used as a classifier: the predicted label is the one with the largest ELBO. Prints the
accuracy on held-out digits.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fastvae


class ConditionalVAE(nn.Module):
    """q(z|x, c), p(x|z, c) = N(x_hat, scale^2) and p(z|c) = N(mu_c, e^logvar_c)."""

    def __init__(self, D: int, C: int, L: int = 6, hidden: int = 128) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(D + C, hidden), nn.ReLU(), nn.Linear(hidden, 2 * L))
        self.decoder = nn.Sequential(nn.Linear(L + C, hidden), nn.ReLU(), nn.Linear(hidden, D))
        self.prior = nn.Linear(C, 2 * L)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c: Tensor, num_samples: int = 1) -> Tensor:
        """The lower bound of log p(x|c) for each row, ``[N]``; c is one-hot, ``[N, C]``."""
        mu, logvar = self.encoder(torch.cat([x, c], 1)).chunk(2, 1)
        c_k = c.repeat(num_samples, 1)  # to match z [K*N, L], in which the draw varies slowest
        likelihood = fastvae.Gaussian(log_scale=self.log_scale)
        opts = {"prior": self.prior(c).chunk(2, 1), "num_samples": num_samples, "reduction": "none"}
        return fastvae.elbo(
            x, lambda z: self.decoder(torch.cat([z, c_k], 1)), mu, logvar, likelihood=likelihood, **opts
        )


def main(epochs: int = 40) -> tuple[float, float, float]:
    """Train; return the held-out ELBO before and after, in nats per digit, and the accuracy."""
    torch.manual_seed(0)
    data = load_digits()
    x, c = torch.tensor(data.data / 16, dtype=torch.float32), torch.eye(10)[data.target]
    rows, test = torch.randperm(len(x)).split((1500, 297))
    model = ConditionalVAE(D=64, C=10)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    before = model(x[test], c[test]).mean().item()
    for _ in range(epochs):
        for batch in rows[torch.randperm(len(rows))].split(64):
            optimizer.zero_grad()
            (-model(x[batch], c[batch]).mean()).backward()
            optimizer.step()
    after = model(x[test], c[test]).mean().item()
    with torch.no_grad():
        bounds = torch.stack([model(x[test], label.expand(len(test), -1), num_samples=20) for label in torch.eye(10)])
    accuracy = (bounds.argmax(0) == c[test].argmax(1)).double().mean().item()
    print(f"held-out ELBO of log p(x|c): {before:.1f} nats per digit before training, {after:.1f} after")
    print(f"the label with the largest ELBO is right for {accuracy:.1%} of them")
    return before, after, accuracy


if __name__ == "__main__":
    main()
