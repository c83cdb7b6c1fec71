"""Initial responsibilities of EM, by k-means, k-means++, rows drawn from the data, or at random; and sampling.

Every draw depends only on (seed, problem, restart), and random numbers are generated on the CPU: a problem has the same
start alone and in any batch, on any device.

Arguments: X `[P, N, D]` float64, centred; w `[P, N]` >= 0; one (seed, problem, restart) for each of the P problems.
"""

import math

import torch
from torch import Generator, Tensor

from .formulas import Mixture, _cholesky

STARTS = ("kmeans", "kmeans-raw", "k-means++", "random", "random_from_data")
MAX_LLOYD = 300
JITTER = 1e-9  # relative to each variance: keeps the covariance positive definite if features are dependent

StreamKey = tuple[int, int, int]


def initial_responsibilities(X: Tensor, w: Tensor, K: int, start: str, streams: list[StreamKey]) -> Tensor:
    """The first responsibilities, `[P, N, K]`.

    kmeans, -raw       1 for the row's cluster after k-means, seeded by k-means++; the engine scales or whitens X first
    k-means++          1 for K rows far from each other, one per component; 0 for all other rows
    random_from_data   the same for K distinct rows, drawn with probability proportional to their weights
    random             uniform random numbers, normalised

    Equivalent to scikit-learn's ``GaussianMixture(init_params=start)``.
    """
    generators = [generator(*stream) for stream in streams]
    if start == "random":
        resp = _uniform(generators, X, X.shape[1], K)
        return resp / resp.sum(-1, keepdim=True)
    if start == "random_from_data":
        # The K smallest of exponential waiting times of rate w: weighted sampling without replacement.
        waiting = -_uniform(generators, X, X.shape[1]).log() / w  # [P, N]
        return _one_hot(waiting.topk(K, largest=False).indices, X.shape[1]).mT
    seeds = kmeans_plusplus(X, w, K, generators)  # [P, K]
    return lloyd(X, w, seeds) if start in ("kmeans", "kmeans-raw") else _one_hot(seeds, X.shape[1]).mT


def kmeans_plusplus(X: Tensor, w: Tensor, K: int, generators: list[Generator]) -> Tensor:
    """Greedy k-means++ seeding. Row indices `[P, K]`.

    Each next row is drawn with probability proportional to w_n d_n^2, d_n the distance to the nearest row so far. Of
    2 + log K candidates, the one that reduces sum w d^2 most is chosen.

    Equivalent to ``sklearn.cluster.kmeans_plusplus(X, K, sample_weight=w)``.
    Source: Arthur & Vassilvitskii, "k-means++: the advantages of careful seeding" (2007).
    """
    trials = 2 + int(math.log(K))
    u = _uniform(generators, X, K, trials)
    chosen = [_draw(w, u[:, 0, :1])]  # [P, 1]
    nearest = _squared_distances(X, chosen[0])[:, 0]  # [P, N]
    for k in range(1, K):
        candidates = _draw(w * nearest, u[:, k])  # [P, trials]
        squares = torch.minimum(nearest[:, None], _squared_distances(X, candidates))  # [P, trials, N]
        best = (squares * w[:, None]).sum(-1).argmin(-1, keepdim=True)  # [P, 1]
        chosen.append(candidates.gather(1, best))
        nearest = squares.gather(1, best[..., None].expand(-1, -1, X.shape[1]))[:, 0]
    return torch.cat(chosen, 1)


def lloyd(X: Tensor, w: Tensor, seeds: Tensor) -> Tensor:
    """Weighted k-means (Lloyd's algorithm) from the rows `seeds`, until no label changes: responsibilities `[P, N, K]`.

    An empty cluster is moved to the row that is farthest from its own centre.
    """
    K = seeds.shape[1]
    centres = X.gather(1, seeds[..., None].expand(-1, -1, X.shape[2]))  # [P, K, D]
    labels = None
    for _ in range(MAX_LLOYD):
        nearest, now = _distances(X, centres).min(-1)  # [P, N] both
        if labels is not None and torch.equal(now, labels):
            break
        labels = now
        r = _one_hot(labels, K) * w[..., None]  # [P, N, K]
        N_k = r.sum(1)  # [P, K]
        centres = r.mT @ X / N_k[..., None]
        for p, k in (N_k == 0).nonzero().tolist():
            farthest = torch.where(w[p] > 0, nearest[p], -1.0).argmax()
            centres[p, k], nearest[p, farthest] = X[p, farthest], 0.0
    return _one_hot(_distances(X, centres).argmin(-1), K)


def whiten(X: Tensor, w: Tensor) -> Tensor:
    """Whitened rows L^-1 (x - m), `[P, N, D]`, with L L' = S + JITTER diag S for their mean m and covariance S.

    Distances between whitened rows are invariant to scaling, rotating and shearing the features.
    """
    share = (w / w.sum(-1, keepdim=True))[..., None]  # [P, N, 1]
    X = X - (share * X).sum(1, keepdim=True)
    S = (share * X).mT @ X  # [P, D, D]
    variances = S.diagonal(dim1=-2, dim2=-1)
    S = S + torch.diag_embed(torch.where(variances > 0, JITTER * variances, 1.0))
    return torch.linalg.solve_triangular(torch.linalg.cholesky_ex(S).L, X.mT, upper=False).mT.contiguous()


def sample(mixture: Mixture, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw n rows from each of B mixtures: z from its weights, then x = mu_z + L_z eps. X `[B, n, D]`, z `[B, n]`."""
    weights, means, covariances, kind = mixture
    B, K, D = means.shape
    streams = [generator(seed, b, 0) for b in range(B)]
    labels = _draw(weights, _uniform(streams, means, n))  # [B, n]
    eps = torch.stack([torch.randn(n, D, generator=g, dtype=torch.float64) for g in streams]).to(means.device)
    X = means.gather(1, labels[..., None].expand(-1, -1, D))  # [B, n, D]
    X = X.masked_fill(~weights.isfinite().all(1)[:, None, None], math.nan)  # no component can be drawn
    if kind in ("diag", "spherical"):
        std = (covariances if kind == "diag" else covariances[..., None].expand_as(means)).sqrt()
        return X + std.gather(1, labels[..., None].expand(-1, -1, D)) * eps, labels
    L = _cholesky(covariances)  # [B, K, D, D], tied [B, D, D]
    if kind == "tied":
        return X + eps @ L.mT, labels
    for k in range(K):
        X = X + torch.where((labels == k)[..., None], eps @ L[:, k].mT, 0.0)
    return X, labels


def generator(seed: int, problem: int, restart: int) -> Generator:
    """The random generator of one restart of one problem; a hash (splitmix64) decorrelates neighbouring streams."""
    state = seed
    for word in (problem, restart):
        state = (state + 0x9E3779B97F4A7C15 * (word + 1)) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return Generator().manual_seed(state % 2**63)


def _uniform(generators: list[Generator], like: Tensor, *shape: int) -> Tensor:
    """Uniform random numbers in [0, 1), `[P, *shape]`."""
    numbers = [torch.rand(*shape, generator=g, dtype=torch.float64) for g in generators]
    return torch.stack(numbers).to(like.device)


def _draw(weights: Tensor, u: Tensor) -> Tensor:
    """Indices drawn with probability proportional to the weights, by inversion: weights `[P, N]`, u `[P, m]`.

    An index of weight 0 is never drawn, unless all weights are 0.
    """
    sums = weights.cumsum(-1)
    return torch.searchsorted(sums, u * sums[:, -1:], right=True).clamp_(max=weights.shape[-1] - 1)


def _squared_distances(X: Tensor, rows: Tensor) -> Tensor:
    """Squared distances from the rows with indices `[P, m]` to all rows, `[P, m, N]`."""
    return _distances(X.gather(1, rows[..., None].expand(-1, -1, X.shape[2])), X).square()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")  # from differences: no cancellation


def _one_hot(labels: Tensor, K: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, K).to(torch.float64)
