"""Solutions of the problems that QR of the rows as they are does not serve: dependent columns, and rows far apart.

Arguments as in `regression`: data of rows about their means, times the roots of their weights, A `[B, N, P]` and
c `[B, N, R]`. The engine `regression_fit` says which problem needs which.
"""

import math

import torch
from torch import Tensor

from . import regression
from .regression import Centred, Solution


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
    scale = regression.power_of_two(length[..., None])  # [B, 1, 1]
    U, T = torch.linalg.qr((Q.mT @ work).mT * (length[..., None] / scale))  # [B, P, r], [B, r, r]
    T = T + torch.diag_embed((~live).to(T))  # rows of Q that are 0 stay so
    root = torch.linalg.solve_triangular(T.mT, U, upper=False, left=False) * live[:, None]  # [B, P, r] U T^-T
    if (
        ridge > 0 and Q.shape[-1] > 0
    ):  # A W' = Q T' V for W' = U V: of a vector outside of U it sees nothing, and |W| = |V|
        rows = data._replace(A=T.mT * live[:, None] * scale, c=Q.mT @ c)
        coef = U @ regression.least_squares(rows, ridge).coef
    else:
        coef = root @ (Q.mT @ c) / scale
    root = torch.nn.functional.pad(root, (0, P - root.shape[-1]))
    return Solution(coef, root, scale.expand(-1, 1, P), None, live.sum(-1, keepdim=True))


@torch.no_grad()
def by_rows(data: Centred, ridge: float, w: Tensor) -> Solution:
    """The solution of rows each of which has an error that is small beside it, those of the ridge too, for weights
    `[B, N]` that are far apart.

    Householder's QR, with rows from the largest to the least, those of the ridge among them, and each column chosen by
    what is left of it: so no reflection mixes the rounding of a heavy row into light ones. Source: Cox & Higham,
    "Stability of Householder QR factorization for weighted least squares problems" (1998).
    """
    A, c = data[:2]
    P, root = A.shape[-1], w.sqrt()[..., None]
    unit = regression.power_of_two(torch.where(root > 0, A / root, 0.0))  # [B, 1, P], of rows before their weights
    rows = torch.cat([A / unit, torch.diag_embed(math.sqrt(ridge) / unit[:, 0])], -2)  # [B, N + P, P]
    c = torch.nn.functional.pad(c, (0, 0, 0, P))
    order = rows.abs().amax(-1, keepdim=True).argsort(dim=-2, descending=True, stable=True)
    rows, c = (torch.take_along_dim(t, order, -2) for t in (rows, c))
    taken = torch.zeros_like(unit)  # [B, 1, P]
    columns = []
    for k in range(P):
        left = rows[:, k:].norm(dim=-2, keepdim=True).masked_fill(taken > 0, -1.0)  # [B, 1, P]
        column = left.argmax(-1, keepdim=True)  # [B, 1, 1]
        columns.append(column)
        v = torch.take_along_dim(rows[:, k:], column, -1).clone()  # [B, N + P - k, 1]
        size = v.norm(dim=-2)
        v[:, 0] += torch.where(v[:, 0] < 0, -size, size)
        squares = v.square().sum(-2, keepdim=True)
        v_by_squares = v * torch.where(squares > 0, 2 / squares, 0.0)
        for t in (rows, c):
            t[:, k:] -= v_by_squares @ (v.mT @ t[:, k:])
        rows[:, k + 1 :].scatter_(-1, column.expand(-1, rows.shape[1] - k - 1, -1), 0.0)
        taken = taken.scatter(-1, column, 1.0)
    order = torch.cat(columns, -1)  # [B, 1, P]
    triangle = torch.take_along_dim(rows[:, :P], order, -1)
    coef, root = (
        torch.zeros_like(t).scatter(1, order.mT.expand_as(t), t)
        for t in (
            torch.linalg.solve_triangular(triangle, right, upper=True)
            for right in (c[:, :P], torch.eye(P).to(triangle).expand_as(triangle))
        )
    )
    return Solution(coef / unit.mT, root, unit, rows[:, :P], P)
