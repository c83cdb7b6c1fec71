"""k-means of whitened rows: where mixtures start whose components are long, tilted, and side by side.

    z = P (x - m),    P = L^-1,    L L' = S + JITTER diag S,    m, S the mean and the covariance of all rows

Distances of z do not depend on how features are scaled, turned or sheared; k-means of x, feature by feature in units of
its standard deviation, cuts such components across. Where there are clusters in few of many directions, it is k-means
of x that finds them: both are tried, and the start is taken that is likelier after a step of EM, see `run.py`.
Traffic, elements: reads some of the rows, once more; writes as many, float64.
Specification: fastvae/reference/gmm/start.py
"""

from itertools import product

import numpy as np
import torch
from torch import Tensor

from .few_features import FULL, TIED
from .launch import Mixtures
from .steps import CENTERS, LINEAR, NEAREST, PARAMETERS, PRODUCTS

JITTER = 1e-9  # of each variance: a feature that others determine counts for nothing
SHARP = 2.0**20  # what factors are times, so that responsibilities are 1 for the nearest center
WHITE_ROWS, ROWS_FOR_EACH, WHITE_ELEMENTS = 1 << 11, 8, 1 << 22  # of a problem; rows for each D and K
BLOCK = 1 << 17  # elements that stay in a cache


def can_tilt(m: Mixtures) -> bool:
    """Whether there are such components."""
    return m.family in (FULL, TIED) and m.D > 1 and m.K > 1


def rows_to_whiten(m: Mixtures) -> int:
    """How many are enough to tell which start is likelier."""
    return min(max(WHITE_ROWS, ROWS_FOR_EACH * m.K * m.D), max(WHITE_ELEMENTS // m.D, ROWS_FOR_EACH * m.K))


class Whitened:
    """Rows of each problem, white; and the way back."""

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
        """Of white centers those of m that make responsibilities 1 for the nearest, and 0 for all others."""
        hard = m.parameters()
        weights, _, means, factors, _ = m.parts(hard)
        L, mean, P = (t.repeat_interleave(m.restarts, dim=0) for t in (self.L, self.mean[:, None], self.P))
        weights[:] = 1 / m.K
        means[:] = mean + lower_product(torch.from_numpy(self.mixtures.parts(theta)[2]), L)
        factors[:] = SHARP * (P if m.family == TIED else P[:, None])
        return hard


def covariance(m: Mixtures) -> tuple[Tensor, Tensor]:
    """Means ``[B, D]``, less the shift, and covariances ``[B, D, D]`` of all rows of each problem."""
    one, active = Mixtures(m.X, m.w, 1, FULL, shift=m.shift), np.arange(m.B)
    about, new = one.parameters(), one.parameters()
    for _ in range(2):  # about the shift, then about the mean
        one.sweep(active, about, new, about, NEAREST, LINEAR, CENTERS)
        about, new = new, about
    one.sweep(active, about, new, about, NEAREST, PRODUCTS, PARAMETERS)
    _, _, means, _, covariances = one.parts(new)
    return torch.from_numpy(means[:, 0].copy()), torch.from_numpy(covariances[:, 0].copy())


def lower_product(rows: Tensor, L: Tensor) -> Tensor:
    """rows L' ``[B, n, D]`` for lower triangles ``[B, D, D]``, by element: no matrix product, whose bits may depend on
    the batch.
    """
    out = torch.zeros_like(rows)
    B, n, D = rows.shape
    problems, some = max(1, BLOCK // (n * D)), max(1, BLOCK // D)
    for b, t in product(range(0, B, problems), range(0, n, some)):
        at = slice(b, b + problems), slice(t, t + some)
        x = rows[at].mT.contiguous()  # features first: long rows for each operation
        y = torch.zeros_like(x)
        for j in range(D):
            y[:, j:] += x[:, j : j + 1] * L[at[0], j:, j, None]
        out[at] = y.mT
    return out
