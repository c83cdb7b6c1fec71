"""Solutions for problems that plain QR cannot solve accurately: dependent columns, and very uneven weights.

The engine decides which problem needs which method.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import formulas
from .formulas import Centred, Solution

EPS = torch.finfo(torch.float64).eps


def minimum_norm(data: Centred, ridge: float, length: Tensor, allowed: Tensor) -> Solution:
    """The minimum-norm least-squares solution, or that of a ridge, for A with dependent columns.

    Columns are chosen by the largest remainder orthogonal to those chosen before, relative to their ``length``
    `[B, P]`, until it is at most ``allowed`` `[B, 1]`: A = Q R with R `[r, P]` of full rank, and W' = R'(R R')^-1 Q'c.
    Gram-Schmidt with reorthogonalization is as accurate as Householder, and needs only batched products.
    Source: Björck (1996), sec. 2.7: a complete orthogonal decomposition.
    """
    A, c = data[:2]
    B, _, P = A.shape
    length = torch.where(length > 0, length, 1.0)
    scaled = remainder = A / length[:, None]  # [B, N, P]
    Q = A.new_zeros(B, A.shape[1], 0)
    significant = []
    for _ in range(min(A.shape[1:])):
        size, j = remainder.norm(dim=-2).max(-1, keepdim=True)  # [B, 1]
        significant.append(size > allowed)
        if not significant[-1].any():
            break
        at = j[:, None].expand(-1, A.shape[1], 1)
        q = remainder.gather(-1, at) / torch.where(significant[-1], size, 1.0)[..., None]  # [B, N, 1]
        q = q - Q @ (Q.mT @ q)
        q = torch.where(significant[-1][..., None], q / q.norm(dim=-2, keepdim=True), 0.0)
        Q = torch.cat([Q, q], -1)
        remainder = (remainder - q @ (q.mT @ remainder)).scatter(-1, at, 0.0)
    used = torch.cat(significant, -1)[:, : Q.shape[-1]]  # [B, r]
    # In the units of X, up to a power of two that keeps squares in range.
    scale = formulas.power_of_two(length[..., None])  # [B, 1, 1]
    U, T = torch.linalg.qr((Q.mT @ scaled).mT * (length[..., None] / scale))  # [B, P, r], [B, r, r]
    T = T + torch.diag_embed((~used).to(T))  # columns of Q that are 0 stay 0
    root = torch.linalg.solve_triangular(T.mT, U, upper=False, left=False) * used[:, None]  # [B, P, r] U T^-T
    if ridge > 0 and Q.shape[-1] > 0:
        # A W' = Q T' V for W' = U V, with |W| = |V|: components of W' outside the span of U do not matter.
        rows = data._replace(A=T.mT * used[:, None] * scale, c=Q.mT @ c)
        coef = U @ formulas.least_squares(rows, ridge).coef
    else:
        coef = root @ (Q.mT @ c) / scale
    root = torch.nn.functional.pad(root, (0, P - root.shape[-1]))
    return Solution(coef, root, scale.expand(-1, 1, P), None, used.sum(-1, keepdim=True))


class RowwiseSolution(NamedTuple):
    """The result of `rowwise_qr`."""

    coef: Tensor  # [B, P, R] W'
    root: Tensor  # [B, P, K] F, with V = F F'; K = P + fit_intercept
    rss: Tensor  # [B, R], including the squares of a ridge
    independent: Tensor  # [B] bool, whether the columns, including that of ones, are independent


@torch.no_grad()
def rowwise_qr(X: Tensor, y: Tensor, w: Tensor, ridge: float, fit_intercept: bool) -> RowwiseSolution:
    """Least squares with row-wise backward stability, for rows `[B, N, P]` with very uneven weights `[B, N]`.

    The error is small relative to each row: Householder QR with the rows, including those of the ridge, sorted by
    decreasing size, and with column pivoting, so that no reflection mixes rounding errors of heavy rows into light
    ones. The intercept is a column of ones here: about the weighted means, heavy rows would consist of rounding errors.
    Source: Cox & Higham, "Stability of Householder QR factorization for weighted least squares problems" (1998).
    """
    (B, _, P), used = X.shape, (w > 0)[..., None]  # [B, N, 1]
    X, y, root = X.masked_fill(~used, 0.0), y.masked_fill(~used, 0.0), w.sqrt()[..., None]
    raw = formulas.power_of_two(X)  # [B, 1, P]
    if fit_intercept:  # about the unweighted means
        X, y = (t - t.sum(1, keepdim=True) / used.sum(1, keepdim=True) for t in (X, y))
    unit = formulas.power_of_two(X.masked_fill(~used, 0.0))
    ones = torch.ones_like(X[..., : int(fit_intercept)])
    rows = root * torch.cat([ones, X / unit], -1)  # [B, N, K]
    penalty = torch.nn.functional.pad(torch.diag_embed(math.sqrt(ridge) / unit[:, 0]), (int(fit_intercept), 0))
    rows, c = torch.cat([rows, penalty], 1), torch.nn.functional.pad(root * y, (0, 0, 0, P))
    K = rows.shape[-1]
    # What rounding may leave of a column that is a combination of others, relative to each row.
    allowed = 8 * EPS * (K + used.sum(1, keepdim=True).sqrt()) * torch.cat([ones[:, :1], raw / unit], -1)
    triangle, z, residual, order, independent = _pivoted_qr(rows, c, allowed)
    eye = torch.eye(K).to(rows).expand(B, K, K)
    solved = (torch.linalg.solve_triangular(triangle, right, upper=True) for right in (z, eye))
    coef, F = (torch.zeros_like(t).scatter(1, order.mT.expand_as(t), t)[:, K - P :] / unit.mT for t in solved)
    return RowwiseSolution(coef, F, residual.square().sum(1), independent)


def _pivoted_qr(rows: Tensor, c: Tensor, allowed: Tensor) -> tuple[Tensor, ...]:
    """Householder QR of `[B, M, K]` with sorted rows and column pivoting, see `rowwise_qr`.

    Returns the triangular factor, the first K rows of Q'c and the others, the order of the columns `[B, 1, K]`, and
    whether the remainder of every column exceeded ``allowed`` `[B, 1, K]`.
    """
    K = rows.shape[-1]
    order = rows.abs().amax(-1, keepdim=True).argsort(dim=1, descending=True, stable=True)
    rows, c = (torch.take_along_dim(t, order, 1) for t in (rows, c))
    size = rows.abs().amax(-1, keepdim=True)  # [B, M, 1]
    chosen, columns = torch.zeros_like(allowed), []
    independent = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    for k in range(K):
        norms = rows[:, k:].norm(dim=1, keepdim=True).masked_fill(chosen > 0, -1.0)  # [B, 1, K]
        column = norms.argmax(-1, keepdim=True)  # [B, 1, 1]
        columns.append(column)
        v = torch.take_along_dim(rows[:, k:], column, -1).clone()  # [B, M - k, 1]
        relative = torch.where(size[:, k:] > 0, v.abs() / size[:, k:], 0.0).amax((1, 2))
        independent &= relative > torch.take_along_dim(allowed, column, -1)[:, 0, 0]
        length = v.norm(dim=1)
        v[:, 0] += torch.where(v[:, 0] < 0, -length, length)
        squares = v.square().sum(1, keepdim=True)
        v_by_squares = v * torch.where(squares > 0, 2 / squares, 0.0)
        for t in (rows, c):
            t[:, k:] -= v_by_squares @ (v.mT @ t[:, k:])
        rows[:, k + 1 :].scatter_(-1, column.expand(-1, rows.shape[1] - k - 1, -1), 0.0)
        chosen = chosen.scatter(-1, column, 1.0)
    order = torch.cat(columns, -1)  # [B, 1, K]
    return torch.take_along_dim(rows[:, :K], order, -1), c[:, :K], c[:, K:], order, independent
