"""Log joint densities of a tile's rows under all components, float64.

    logit[k, t] = c_k - 1/2 |P_k (x_t - mu_k)|^2        c_k = log pi_k - D/2 log 2 pi + log |P_k|

    xt[d, t]    rows of the tile less the shift, transposed, S apart: see `data.py`
    P           Sigma^-1 = P'P: lower triangular [K, D, D] (full), [1, D, D] (tied), [K, D] (diag), [K] (spherical)

Traffic: a tile and its logits fit a cache. Up to 8 features: `few_features.py`.
Specification: fastvae/reference/gmm/formulas.py (joint_log_prob)
"""

from ..language.jit import loop_jit, math_jit, outlined
from ..language.math import fma, like
from ..language.memory import F64, number, read, vector, write
from ..language.transpose import fetch
from ..language.vector import lanes, register
from .few_features import FEW, logits_few
from .modes import DIAG, FULL, SPHERICAL


@math_jit
def four_rows(q, xt, center, P, i, t, D, S):
    """Add the squares of elements i to i + 3 of P (x - center) to q, for two vectors of rows from t on."""
    q0, q1 = q
    one, u = number(F64), like(q0, 0)
    w = t + lanes(u)
    a0, a1, a2, a3, b0, b1, b2, b3 = u, u, u, u, u, u, u, u
    row = i * D
    for j in range(i):
        m, at = like(u, read(center, j, one)), j * S
        x, y = read(xt, at + t, u) - m, read(xt, at + w, u) - m
        p = like(u, read(P, row + j, one))
        a0, b0 = fma(p, x, a0), fma(p, y, b0)
        p = like(u, read(P, row + D + j, one))
        a1, b1 = fma(p, x, a1), fma(p, y, b1)
        p = like(u, read(P, row + 2 * D + j, one))
        a2, b2 = fma(p, x, a2), fma(p, y, b2)
        p = like(u, read(P, row + 3 * D + j, one))
        a3, b3 = fma(p, x, a3), fma(p, y, b3)
    for j in range(i, i + 4):  # the triangle, with zeros above it
        m, at = like(u, read(center, j, one)), j * S
        x, y = read(xt, at + t, u) - m, read(xt, at + w, u) - m
        if j == i:
            p = like(u, read(P, row + j, one))
            a0, b0 = fma(p, x, a0), fma(p, y, b0)
        if j <= i + 1:
            p = like(u, read(P, row + D + j, one))
            a1, b1 = fma(p, x, a1), fma(p, y, b1)
        if j <= i + 2:
            p = like(u, read(P, row + 2 * D + j, one))
            a2, b2 = fma(p, x, a2), fma(p, y, b2)
        p = like(u, read(P, row + 3 * D + j, one))
        a3, b3 = fma(p, x, a3), fma(p, y, b3)
    q0 = fma(a3, a3, fma(a2, a2, fma(a1, a1, fma(a0, a0, q0))))
    q1 = fma(b3, b3, fma(b2, b2, fma(b1, b1, fma(b0, b0, q1))))
    return q0, q1


@math_jit
def one_row(q, xt, center, P, i, t, D, S):
    """Add the square of element i of P (x - center) to q, as `four_rows`."""
    q0, q1 = q
    one, u = number(F64), like(q0, 0)
    a, b = u, u
    for j in range(i + 1):
        m, p, at = like(u, read(center, j, one)), like(u, read(P, i * D + j, one)), j * S + t
        a, b = fma(p, read(xt, at, u) - m, a), fma(p, read(xt, at + lanes(u), u) - m, b)
    return fma(a, a, q0), fma(b, b, q1)


@loop_jit
def logits_full(logit, xt, center, P, c, T, D, S):
    """Compute c - |P (x - center)|^2 / 2, with four rows of P times two vectors of rows in registers at a time."""
    outlined()
    u = register(vector(F64))
    half, c = like(u, -0.5), like(u, c)
    for t in range(0, T, 2 * lanes(u)):
        q = like(u, 0), like(u, 0)
        for i in range(0, D - 3, 4):
            q = four_rows(q, xt, center, P, i, t, D, S)
        for i in range(D // 4 * 4, D):
            q = one_row(q, xt, center, P, i, t, D, S)
        write(logit, t, fma(half, q[0], c))
        write(logit, t + lanes(u), fma(half, q[1], c))


@math_jit
def scaled_distances(xt, means, P, k, t, D, S, v):
    """Return sum_d (P_d (x_d - mu_d))^2 of the sixteen rows from t on.

    Two features at a time have separate sums, to hide the latency of fma.
    """
    one = number(F64)
    q0, q1, r0, r1 = like(v, 0), like(v, 0), like(v, 0), like(v, 0)
    for d in range(0, D - 1, 2):
        i, at = k * D + d, d * S + t
        m, p = like(v, read(means, i, one)), like(v, read(P, i, one))
        a0, a1 = (read(xt, at, v) - m) * p, (read(xt, at + 8, v) - m) * p
        m, p = like(v, read(means, i + 1, one)), like(v, read(P, i + 1, one))
        b0, b1 = (read(xt, at + S, v) - m) * p, (read(xt, at + S + 8, v) - m) * p
        q0, q1, r0, r1 = fma(a0, a0, q0), fma(a1, a1, q1), fma(b0, b0, r0), fma(b1, b1, r1)
    if D % 2:
        i, at = k * D + D - 1, (D - 1) * S + t
        m, p = like(v, read(means, i, one)), like(v, read(P, i, one))
        a0, a1 = (read(xt, at, v) - m) * p, (read(xt, at + 8, v) - m) * p
        q0, q1 = fma(a0, a0, q0), fma(a1, a1, q1)
    return q0 + r0, q1 + r1


@math_jit
def squared_distances(xt, means, k, t, D, S, v):
    """Return |x - mu|^2 of the sixteen rows from t on, as `scaled_distances`."""
    one = number(F64)
    q0, q1, r0, r1 = like(v, 0), like(v, 0), like(v, 0), like(v, 0)
    for d in range(0, D - 1, 2):
        i, at = k * D + d, d * S + t
        m, n = like(v, read(means, i, one)), like(v, read(means, i + 1, one))
        a0, a1 = read(xt, at, v) - m, read(xt, at + 8, v) - m
        b0, b1 = read(xt, at + S, v) - n, read(xt, at + S + 8, v) - n
        q0, q1, r0, r1 = fma(a0, a0, q0), fma(a1, a1, q1), fma(b0, b0, r0), fma(b1, b1, r1)
    if D % 2:
        i, at = k * D + D - 1, (D - 1) * S + t
        m = like(v, read(means, i, one))
        a0, a1 = read(xt, at, v) - m, read(xt, at + 8, v) - m
        q0, q1 = fma(a0, a0, q0), fma(a1, a1, q1)
    return q0 + r0, q1 + r1


@loop_jit
def logits_of_products(logit, xt, means, P, c, T, D, K, S, step, ahead):
    """Compute the log joint densities of the tile's rows and all components, for full covariances.

    ``step`` is the stride from one P to the next, 0 if tied. Meanwhile the memory given by ``ahead`` is prefetched.
    """
    outlined()
    for k in range(K):
        fetch(ahead, k, K)
        if D <= FEW:
            logits_few(logit[k * S :], xt, means[k * D :], P[k * step :], c[k], T, D, S, FULL)
        else:
            logits_full(logit[k * S :], xt, means[k * D :], P[k * step :], c[k], T, D, S)


@loop_jit
def logits_of_squares(logit, xt, means, P, c, T, D, K, S, ahead):
    """Compute the log joint densities for diagonal covariances, as `logits_of_products`."""
    outlined()
    if D <= FEW:
        for k in range(K):
            fetch(ahead, k, K)
            logits_few(logit[k * S :], xt, means[k * D :], P[k * D :], c[k], T, D, S, DIAG)
        return
    v, one = vector(F64), number(F64)
    half = like(v, -0.5)
    for t in range(0, T, 16):  # all components while these rows are in the L1 cache
        fetch(ahead, t // 16, T // 16)
        for k in range(K):
            q0, q1 = scaled_distances(xt, means, P, k, t, D, S, v)
            write(logit, k * S + t, fma(half, q0, like(v, read(c, k, one))))
            write(logit, k * S + t + 8, fma(half, q1, like(v, read(c, k, one))))


@loop_jit
def logits_of_distances(logit, xt, means, P, c, T, D, K, S, ahead):
    """Compute the log joint densities for spherical covariances, as `logits_of_products`."""
    outlined()
    if D <= FEW:
        for k in range(K):
            fetch(ahead, k, K)
            logits_few(logit[k * S :], xt, means[k * D :], P[k:], c[k], T, D, S, SPHERICAL)
        return
    v, one = vector(F64), number(F64)
    for t in range(0, T, 16):
        fetch(ahead, t // 16, T // 16)
        for k in range(K):
            q0, q1 = squared_distances(xt, means, k, t, D, S, v)
            p = read(P, k, one)
            factor, c_k = like(v, -0.5 * p * p), like(v, read(c, k, one))
            write(logit, k * S + t, fma(factor, q0, c_k))
            write(logit, k * S + t + 8, fma(factor, q1, c_k))
