"""Without an encoder: each data point has its own mean and log variance, trained together with the decoder.

With a linear decoder this is probabilistic PCA, whose maximum log-likelihood is known in closed form. The ELBO cannot
exceed it, and reaches it: q(z|x), one diagonal Gaussian per data point, is then the exact posterior. The data are the
150 irises.
"""

import torch
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.preprocessing import scale
from torch import nn

import fastvae


def main(steps: int = 1500, L: int = 2) -> tuple[float, float, float]:
    """Train; return the ELBO before and after, and the log-likelihood of probabilistic PCA, in nats per flower."""
    torch.manual_seed(0)
    X = scale(load_iris().data)
    x = torch.tensor(X, dtype=torch.float32)
    N, D = x.shape
    mu, logvar = nn.Parameter(torch.zeros(N, L)), nn.Parameter(torch.zeros(N, L))
    decoder, log_scale = nn.Linear(L, D), nn.Parameter(torch.zeros(()))
    likelihood = fastvae.Gaussian(log_scale=log_scale)
    optimizer = torch.optim.Adam([mu, logvar, log_scale, *decoder.parameters()], 0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def elbo(num_samples: int) -> torch.Tensor:
        return fastvae.elbo(x, decoder, mu, logvar, likelihood=likelihood, num_samples=num_samples)

    before = elbo(1000).item()
    for _ in range(steps):
        optimizer.zero_grad()
        (-elbo(10)).backward()
        optimizer.step()
        schedule.step()
    after = elbo(1000).item()
    best = float(PCA(L).fit(X).score(X))
    print(f"ELBO {before:.3f} nats per flower before training, {after:.3f} after")
    print(f"log-likelihood of probabilistic PCA, its upper bound: {best:.3f}")
    return before, after, best


if __name__ == "__main__":
    main()
