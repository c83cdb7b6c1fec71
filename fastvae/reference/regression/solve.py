"""Solutions of the problems that QR of the rows as they are does not serve: dependent columns, and rows far apart.

The engine `regression_fit` says which problem needs which.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import formulas
from .formulas import Centred, Solution

EPS = torch.finfo(torch.float64).eps


def minimum_norm(data: Centred, ridge: float, length: Tensor, allowed: Tensor) -> Solution:
    """Of all W of least squares the shortest, or that of a ridge, where columns of A are dependent.

    Columns are taken in the order of what the ones before leave of them, relative to their `length` `[B, P]`, until
    that is no more than `allowed` `[B, 1]`: A = Q R with R `[r, P]` of full rank, and W' = R'(R R')^-1 Q'c. Source:
    Björck (1996), sec. 2.7: a complete orthogonal decomposition. Gram-Schmidt with a second pass is as good as
    Householder, and needs no more than batched products.
    """
    A, c = data[:2]
    B, _, P = A.shape
    length = torch.where(length > 0, length, 1.0)
    work = rest = A / length[:, None]  # [B, N, P]
    Q = A.new_zeros(B, A.shape[1], 0)
    alive = []
    for _ in range(min(A.shape[1:])):
        size, j = rest.norm(dim=-2).max(-1, keepdim=True)  # [B, 1]
        alive.append(size > allowed)
        if not alive[-1].any():
            break
        at = j[:, None].expand(-1, A.shape[1], 1)
        q = rest.gather(-1, at) / torch.where(alive[-1], size, 1.0)[..., None]  # [B, N, 1]
        q = q - Q @ (Q.mT @ q)
        q = torch.where(alive[-1][..., None], q / q.norm(dim=-2, keepdim=True), 0.0)
        Q = torch.cat([Q, q], -1)
        rest = (rest - q @ (q.mT @ rest)).scatter(-1, at, 0.0)
    live = torch.cat(alive, -1)[:, : Q.shape[-1]]  # [B, r]
    # In the units of the user, but for a power of two that keeps squares in range.
    scale = formulas.power_of_two(length[..., None])  # [B, 1, 1]
    U, T = torch.linalg.qr((Q.mT @ work).mT * (length[..., None] / scale))  # [B, P, r], [B, r, r]
    T = T + torch.diag_embed((~live).to(T))  # rows of Q that are 0 stay so
    root = torch.linalg.solve_triangular(T.mT, U, upper=False, left=False) * live[:, None]  # [B, P, r] U T^-T
    if (
        ridge > 0 and Q.shape[-1] > 0
    ):  # A W' = Q T' V for W' = U V: of a vector outside of U it sees nothing, and |W| = |V|
        rows = data._replace(A=T.mT * live[:, None] * scale, c=Q.mT @ c)
        coef = U @ formulas.least_squares(rows, ridge).coef
    else:
        coef = root @ (Q.mT @ c) / scale
    root = torch.nn.functional.pad(root, (0, P - root.shape[-1]))
    return Solution(coef, root, scale.expand(-1, 1, P), None, live.sum(-1, keepdim=True))


class ByRows(NamedTuple):
    """What `by_rows` returns."""

    coef: Tensor  # [B, P, R] W'
    root: Tensor  # [B, P, K] F, with V = F F'; K = P + fit_intercept
    rss: Tensor  # [B, R], the squares of a ridge included
    independent: Tensor  # [B] bool, columns, that of ones among them


@torch.no_grad()
def by_rows(X: Tensor, y: Tensor, w: Tensor, ridge: float, fit_intercept: bool) -> ByRows:
    """The solution of rows `[B, N, P]`, each with an error that is small beside it, for weights `[B, N]` far apart.

    Householder's QR, with rows from the largest to the least, those of the ridge among them, and each column chosen by
    what is left of it: so no reflection mixes the rounding of a heavy row into light ones. Source: Cox & Higham,
    "Stability of Householder QR factorization for weighted least squares problems" (1998). The intercept is a column of
    ones here: about the weighted means, heavy rows would say what their roundings say.
    """
    (B, _, P), counts = X.shape, (w > 0)[..., None]  # [B, N, 1]
    X, y, root = X.masked_fill(~counts, 0.0), y.masked_fill(~counts, 0.0), w.sqrt()[..., None]
    raw = formulas.power_of_two(X)  # [B, 1, P]
    if fit_intercept:  # near the middle of the rows, whatever they weigh
        X, y = (t - t.sum(1, keepdim=True) / counts.sum(1, keepdim=True) for t in (X, y))
    unit = formulas.power_of_two(X.masked_fill(~counts, 0.0))
    ones = torch.ones_like(X[..., : int(fit_intercept)])
    rows = root * torch.cat([ones, X / unit], -1)  # [B, N, K]
    penalty = torch.nn.functional.pad(torch.diag_embed(math.sqrt(ridge) / unit[:, 0]), (int(fit_intercept), 0))
    rows, c = torch.cat([rows, penalty], 1), torch.nn.functional.pad(root * y, (0, 0, 0, P))
    K = rows.shape[-1]
    # What rounding leaves of a column that is a combination of others, in units of each row.
    allowed = 8 * EPS * (K + counts.sum(1, keepdim=True).sqrt()) * torch.cat([ones[:, :1], raw / unit], -1)
    triangle, z, left, order, independent = _pivoted_qr(rows, c, allowed)
    eye = torch.eye(K).to(rows).expand(B, K, K)
    solved = (torch.linalg.solve_triangular(triangle, right, upper=True) for right in (z, eye))
    coef, F = (torch.zeros_like(t).scatter(1, order.mT.expand_as(t), t)[:, K - P :] / unit.mT for t in solved)
    return ByRows(coef, F, left.square().sum(1), independent)


def _pivoted_qr(rows: Tensor, c: Tensor, allowed: Tensor) -> tuple[Tensor, ...]:
    """Householder's QR of `[B, M, K]`, rows sorted and columns chosen as `by_rows` says: the triangle, Q'c above and
    below its K-th row, the order of the columns `[B, 1, K]`, and whether each left more than is `allowed` `[B, 1, K]`.
    """
    K = rows.shape[-1]
    order = rows.abs().amax(-1, keepdim=True).argsort(dim=1, descending=True, stable=True)
    rows, c = (torch.take_along_dim(t, order, 1) for t in (rows, c))
    size = rows.abs().amax(-1, keepdim=True)  # [B, M, 1]
    taken, columns = torch.zeros_like(allowed), []
    independent = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    for k in range(K):
        left = rows[:, k:].norm(dim=1, keepdim=True).masked_fill(taken > 0, -1.0)  # [B, 1, K]
        column = left.argmax(-1, keepdim=True)  # [B, 1, 1]
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
        taken = taken.scatter(-1, column, 1.0)
    order = torch.cat(columns, -1)  # [B, 1, K]
    return torch.take_along_dim(rows[:, :K], order, -1), c[:, :K], c[:, K:], order, independent
