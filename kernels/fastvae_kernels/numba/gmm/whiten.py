"""k-means of whitened rows: initialization of mixtures whose components are elongated, tilted, and side by side.

    z = P (x - m),    P = L^-1,    L L' = S + JITTER diag S,    m, S the mean and the covariance of all rows

Distances between rows of z are invariant under linear maps of x. k-means of x, with features in units of their standard
deviations, splits elongated components across their long axis. On the other hand, if only a few of many directions
separate clusters, k-means of x finds them and k-means of z does not. Both are tried, and the start with the higher
likelihood after a step of EM is taken, see `run.py`.
Traffic, elements: reads a sample of the rows once more and writes it in float64.
Specification: fastvae/reference/gmm/start.py
"""

from itertools import product

import numpy as np
import torch
from torch import Tensor

from .launch import Mixtures
from .modes import CENTERS, FULL, LINEAR, NEAREST, PARAMETERS, PRODUCTS, TIED

JITTER = 1e-9  # relative to each variance: a feature that others determine has no effect
SHARP = 2.0**20  # scale of the factors, such that responsibilities are 1 for the nearest center
WHITE_ROWS, ROWS_FOR_EACH, WHITE_ELEMENTS = 1 << 11, 8, 1 << 22  # sample of a problem; rows for each of the K D means
BLOCK = 1 << 17  # elements that fit a cache


def can_tilt(m: Mixtures) -> bool:
    """Return whether components of this family can be tilted."""
    return m.family in (FULL, TIED) and m.D > 1 and m.K > 1


def rows_to_whiten(m: Mixtures) -> int:
    """Return the number of rows that suffices to compare the likelihood of the starts."""
    return min(max(WHITE_ROWS, ROWS_FOR_EACH * m.K * m.D), max(WHITE_ELEMENTS // m.D, ROWS_FOR_EACH * m.K))


class Whitened:
    """The whitened rows of each problem, and the inverse map."""

    def __init__(self, m: Mixtures) -> None:
        self.mean, S = covariance(m)
        variances = S.diagonal(dim1=-2, dim2=-1)  # a view
        variances += torch.where(variances > 0, JITTER * variances, 1.0)
        self.L = torch.linalg.cholesky_ex(S)[0]  # [B, D, D]
        self.P = torch.linalg.solve_triangular(self.L, torch.eye(m.D, dtype=torch.float64).expand_as(S), upper=False)
        rows = m.X.to(torch.float64) - torch.from_numpy(m.shift)[:, None]
        white = lower_product(rows.sub_(self.mean[:, None]), self.P)
        self.mixtures = Mixtures(white, m.w, m.K, m.family, m.restarts, m.ids, seed=m.seed)

    def parameters(self, m: Mixtures, theta: np.ndarray) -> np.ndarray:
        """Return parameters of m whose responsibilities are 1 for the nearest whitened center and 0 for all others."""
        hard = m.parameters()
        weights, _, means, factors, _ = m.parts(hard)
        L, mean, P = (t.repeat_interleave(m.restarts, dim=0) for t in (self.L, self.mean[:, None], self.P))
        weights[:] = 1 / m.K
        means[:] = mean + lower_product(torch.from_numpy(self.mixtures.parts(theta)[2]), L)
        factors[:] = SHARP * (P if m.family == TIED else P[:, None])
        return hard


def covariance(m: Mixtures) -> tuple[Tensor, Tensor]:
    """Return means ``[B, D]``, relative to the shift, and covariances ``[B, D, D]`` of all rows of each problem."""
    one, active = Mixtures(m.X, m.w, 1, FULL, shift=m.shift), np.arange(m.B)
    about, new = one.parameters(), one.parameters()
    for _ in range(2):  # about the shift, then about the mean
        one.sweep(active, about, new, about, NEAREST, LINEAR, CENTERS)
        about, new = new, about
    one.sweep(active, about, new, about, NEAREST, PRODUCTS, PARAMETERS)
    _, _, means, _, covariances = one.parts(new)
    return torch.from_numpy(means[:, 0].copy()), torch.from_numpy(covariances[:, 0].copy())


def lower_product(rows: Tensor, L: Tensor) -> Tensor:
    """Return rows L' ``[B, n, D]`` for lower triangles L ``[B, D, D]``.

    It is computed element by element, since the bits of a matrix product may depend on the batch.
    """
    out = torch.zeros_like(rows)
    B, n, D = rows.shape
    problems, length = max(1, BLOCK // (n * D)), max(1, BLOCK // D)
    for b, t in product(range(0, B, problems), range(0, n, length)):
        at = slice(b, b + problems), slice(t, t + length)
        x = rows[at].mT.contiguous()  # features first, so that each operation has long rows
        y = torch.zeros_like(x)
        for j in range(D):
            y[:, j:] += x[:, j : j + 1] * L[at[0], j:, j, None]
        out[at] = y.mT
    return out
