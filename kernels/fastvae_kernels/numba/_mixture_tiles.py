"""A tile of rows and a mixture: log densities, responsibilities, sufficient statistics, in scratch that fits a cache.

A tile holds up to T rows, turned so that rows are the lanes of vectors; S = T + 8 is the stride between its features,
no power of two, which would put them all in one set of the cache.

    xt[d, t]     x_td - shift_d                    logit[k, t]   log pi_k + log N(x_t; mu_k, Sigma_k), then r_tk
    e[d, t]      xt_dt - center_kd, of one k       c[k]          log pi_k - D/2 log 2 pi + log |P_k|
    P            Sigma^-1 = P'P: lower triangular [K, D, D] (full), [1, D, D] (tied), [K, D] (diag), [K] (spherical)

Statistics of a component about its center, which is its previous mean, for r the weighted responsibilities:

    linear[k]    sum r e_0, ..., sum r e_(D-1), sum r
    square[k]    sum r e_i e_j [W, W] for j <= i (full; one for all k if tied), W = D or more; sum r e_d^2; sum r |e|^2

Everything is float64, whatever the dtype of the rows. Specification: fastvae/reference/gmm.py
"""

from ._jit import loop_jit, math_jit, outlined
from ._math import exp_negative, fma, like, log_normal, select
from ._memory import F64, number, read, sum_of, vector, write
from ._mixture_few import DIAG, FEW, FULL, SPHERICAL, add_few, logits_few
from ._vector import lanes, register, total, totals

PANEL = 8  # rows of products whose factors r e stay in the first cache
LOWEST = -1e300  # a row that no component knows: -inf - -inf would be NaN


@math_jit
def width(D):
    """Rows and columns of a matrix of products, in blocks of four."""
    return (D + 3) // 4 * 4


@loop_jit
def residuals(e, xt, center, T, D, S):
    """E = xt - center, of one component."""
    outlined()
    v = vector(F64)
    for d in range(D):
        m = like(v, center[d])
        for t in range(0, T, 8):
            write(e, d * S + t, read(xt, d * S + t, v) - m)


@loop_jit
def logits_full(logit, e, P, c, T, D, S):
    """C - |P e|^2 / 2: two rows of P times sixteen rows of the tile are in registers at a time."""
    outlined()
    v, one = vector(F64), number(F64)
    for t in range(0, T, 16):
        q0, q1 = like(v, 0), like(v, 0)
        for i in range(0, D - 1, 2):
            a0, a1, b0, b1 = like(v, 0), like(v, 0), like(v, 0), like(v, 0)
            row = i * D
            for j in range(i + 2):
                x0, x1 = read(e, j * S + t, v), read(e, j * S + t + 8, v)
                p, q = like(v, read(P, row + j, one)), like(v, read(P, row + D + j, one))
                a0, a1 = fma(p, x0, a0), fma(p, x1, a1)
                b0, b1 = fma(q, x0, b0), fma(q, x1, b1)
            q0, q1 = fma(b0, b0, fma(a0, a0, q0)), fma(b1, b1, fma(a1, a1, q1))
        if D % 2:
            a0, a1 = like(v, 0), like(v, 0)
            for j in range(D):
                p = like(v, read(P, (D - 1) * D + j, one))
                a0, a1 = fma(p, read(e, j * S + t, v), a0), fma(p, read(e, j * S + t + 8, v), a1)
            q0, q1 = fma(a0, a0, q0), fma(a1, a1, q1)
        write(logit, t, fma(like(v, -0.5), q0, like(v, c)))
        write(logit, t + 8, fma(like(v, -0.5), q1, like(v, c)))


@loop_jit
def logits_diag(logit, xt, center, P, c, T, D, S):
    """C - sum_d (P_d (x_d - mu_d))^2 / 2."""
    outlined()
    v, one = vector(F64), number(F64)
    for t in range(0, T, 16):
        q0, q1 = like(v, 0), like(v, 0)
        for d in range(D):
            m, p = like(v, read(center, d, one)), like(v, read(P, d, one))
            a0, a1 = (read(xt, d * S + t, v) - m) * p, (read(xt, d * S + t + 8, v) - m) * p
            q0, q1 = fma(a0, a0, q0), fma(a1, a1, q1)
        write(logit, t, fma(like(v, -0.5), q0, like(v, c)))
        write(logit, t + 8, fma(like(v, -0.5), q1, like(v, c)))


@math_jit
def squared_distances(xt, center, t, D, S, v):
    """|x - center|^2 of the sixteen rows from t on."""
    one = number(F64)
    q0, q1, r0, r1 = like(v, 0), like(v, 0), like(v, 0), like(v, 0)
    for d in range(0, D - 1, 2):
        m, n = like(v, read(center, d, one)), like(v, read(center, d + 1, one))
        a0, a1 = read(xt, d * S + t, v) - m, read(xt, d * S + t + 8, v) - m
        b0, b1 = read(xt, d * S + S + t, v) - n, read(xt, d * S + S + t + 8, v) - n
        q0, q1, r0, r1 = fma(a0, a0, q0), fma(a1, a1, q1), fma(b0, b0, r0), fma(b1, b1, r1)
    if D % 2:
        m = like(v, center[D - 1])
        a0, a1 = read(xt, (D - 1) * S + t, v) - m, read(xt, (D - 1) * S + t + 8, v) - m
        q0, q1 = fma(a0, a0, q0), fma(a1, a1, q1)
    return q0 + r0, q1 + r1


@loop_jit
def logits_spherical(logit, xt, center, p, c, T, D, S):
    """C - p^2 |x - mu|^2 / 2."""
    outlined()
    v = vector(F64)
    for t in range(0, T, 16):
        q0, q1 = squared_distances(xt, center, t, D, S, v)
        factor = like(v, -0.5 * p * p)
        write(logit, t, fma(factor, q0, like(v, c)))
        write(logit, t + 8, fma(factor, q1, like(v, c)))


@loop_jit
def logits_of_products(logit, e, xt, means, P, c, T, D, K, S, step):
    """Log joint densities of the tile's rows and all components; ``step`` from one P to the next, 0 if tied."""
    outlined()
    for k in range(K):
        if D <= FEW:
            logits_few(logit[k * S :], xt, means[k * D :], P[k * step :], c[k], T, D, S, FULL)
        else:
            residuals(e, xt, means[k * D :], T, D, S)
            logits_full(logit[k * S :], e, P[k * step :], c[k], T, D, S)


@loop_jit
def logits_of_squares(logit, xt, means, P, c, T, D, K, S):
    """The same for diagonal covariances."""
    outlined()
    for k in range(K):
        if D <= FEW:
            logits_few(logit[k * S :], xt, means[k * D :], P[k * D :], c[k], T, D, S, DIAG)
        else:
            logits_diag(logit[k * S :], xt, means[k * D :], P[k * D :], c[k], T, D, S)


@loop_jit
def logits_of_distances(logit, xt, means, P, c, T, D, K, S):
    """The same for spherical ones."""
    outlined()
    for k in range(K):
        if D <= FEW:
            logits_few(logit[k * S :], xt, means[k * D :], P[k:], c[k], T, D, S, SPHERICAL)
        else:
            logits_spherical(logit[k * S :], xt, means[k * D :], P[k], c[k], T, D, S)


@loop_jit
def posterior(logit, log_prob, norm, w, T, K, S):
    """Logits become weighted responsibilities w r; sum of w log p. ``norm`` is scratch.

    Loop after loop over the rows, each of short and independent steps: in one, each step would wait for the last.
    """
    outlined()
    v = vector(F64)
    exponentials(logit, log_prob, norm, T, K, S)
    acc = like(v, 0)
    for t in range(0, T, 8):
        wt, n = read(w, t, v), read(norm, t, v)
        value = read(log_prob, t, v) + log_normal(n) + (n - n)  # which is 0, or NaN: log_normal knows none
        write(log_prob, t, value)
        write(norm, t, wt / n)
        acc = fma(wt, value, acc)
    for k in range(K):
        for t in range(0, T, 8):
            write(logit, k * S + t, read(logit, k * S + t, v) * read(norm, t, v))
    return total(acc)


@loop_jit
def exponentials(logit, top, norm, T, K, S):
    """Logits become e^(logit - top), top the largest of each row; the sums of these."""
    outlined()
    v = vector(F64)
    for t in range(0, T, 8):
        most = like(v, LOWEST)
        for k in range(K):
            a = read(logit, k * S + t, v)
            most = select(most > a, most, a)
        write(top, t, most)
        write(norm, t, like(v, 0))
    for k in range(K):
        for t in range(0, T, 8):
            a = exp_negative(read(logit, k * S + t, v) - read(top, t, v))
            write(logit, k * S + t, a)
            write(norm, t, read(norm, t, v) + a)


@loop_jit
def nearest(logit, w, T, K, S):
    """Logits become w for the largest, 0 for the others; sum of w times the largest."""
    outlined()
    v = vector(F64)
    acc = like(v, 0)
    for t in range(0, T, 8):
        top, label = read(logit, t, v), like(v, 0)
        for k in range(1, K):
            a = read(logit, k * S + t, v)
            label = select(a > top, like(v, k), label)
            top = select(a > top, a, top)
        wt = read(w, t, v)
        for k in range(K):
            write(logit, k * S + t, select(label == like(v, k), wt, like(v, 0)))
        acc = fma(wt, top, acc)
    return total(acc)


@loop_jit
def add_linear(linear, xt, center, r, T, D, S):
    """Add sum r e and sum r."""
    outlined()
    v = vector(F64)
    linear[D] += sum_of(r, 0, T, v)
    for d in range(D):
        m, s0, s1 = like(v, center[d]), like(v, 0), like(v, 0)
        for t in range(0, T, 16):
            s0 = fma(read(r, t, v), read(xt, d * S + t, v) - m, s0)
            s1 = fma(read(r, t + 8, v), read(xt, d * S + t + 8, v) - m, s1)
        linear[d] += total(s0 + s1)


@loop_jit
def add_products(square, linear, e, re, r, T, D, S):
    """Add sum r e_i e_j, sum r e_i and sum r: two rows and four columns of products are in registers at a time."""
    outlined()
    v, W = vector(F64), width(D)
    u = register(v)
    linear[D] += sum_of(r, 0, T, v)
    for first in range(0, D, PANEL):
        last = min(first + PANEL, D)
        for i in range(first, last):
            s0, at = like(v, 0), (i - first) * S
            for t in range(0, T, 8):
                a = read(r, t, v) * read(e, i * S + t, v)
                s0 = s0 + a
                write(re, at + t, a)
            linear[i] += total(s0)
        for j in range(0, last, 4):
            z0 = j * S
            z1, z2, z3 = z0 + S, z0 + 2 * S, z0 + 3 * S
            for i in range(max(first, j // 2 * 2), last, 2):
                at, x0 = i * W + j, (i - first) * S
                y0 = x0 + S
                a0, a1, a2, a3 = like(u, 0), like(u, 0), like(u, 0), like(u, 0)
                b0, b1, b2, b3 = like(u, 0), like(u, 0), like(u, 0), like(u, 0)
                for t in range(0, T, lanes(u)):
                    x, y = read(re, x0 + t, u), read(re, y0 + t, u)
                    z = read(e, z0 + t, u)
                    a0, b0 = fma(x, z, a0), fma(y, z, b0)
                    z = read(e, z1 + t, u)
                    a1, b1 = fma(x, z, a1), fma(y, z, b1)
                    z = read(e, z2 + t, u)
                    a2, b2 = fma(x, z, a2), fma(y, z, b2)
                    z = read(e, z3 + t, u)
                    a3, b3 = fma(x, z, a3), fma(y, z, b3)
                a, b = totals(a0, a1, a2, a3), totals(b0, b1, b2, b3)
                write(square, at, read(square, at, a) + a)
                write(square, at + W, read(square, at + W, a) + b)


@loop_jit
def add_squares(square, linear, xt, center, r, T, D, S):
    """Add sum r e_d^2, sum r e_d and sum r."""
    outlined()
    if D <= FEW:
        add_few(square, linear, xt, center, r, T, D, S, DIAG)
        return
    v = vector(F64)
    linear[D] += sum_of(r, 0, T, v)
    for d in range(D):
        m, s0, s1, q0, q1 = like(v, center[d]), like(v, 0), like(v, 0), like(v, 0), like(v, 0)
        for t in range(0, T, 16):
            e0, e1 = read(xt, d * S + t, v) - m, read(xt, d * S + t + 8, v) - m
            a0, a1 = read(r, t, v) * e0, read(r, t + 8, v) * e1
            s0, s1, q0, q1 = s0 + a0, s1 + a1, fma(a0, e0, q0), fma(a1, e1, q1)
        linear[d] += total(s0 + s1)
        square[d] += total(q0 + q1)


@loop_jit
def add_all_products(square, linear, e, re, xt, centers, logit, T, D, K, S, step):
    """Of all components; ``step`` from one matrix to the next, 0 if tied."""
    outlined()
    for k in range(K):
        matrix, sums, r = square[k * step :], linear[k * (D + 1) :], logit[k * S :]
        if D <= FEW:
            add_few(matrix, sums, xt, centers[k * D :], r, T, D, S, FULL)
        else:
            residuals(e, xt, centers[k * D :], T, D, S)
            add_products(matrix, sums, e, re, r, T, D, S)


@loop_jit
def add_distances(square, linear, xt, center, r, T, D, S):
    """Add sum r |e|^2, sum r e and sum r."""
    outlined()
    if D <= FEW:
        add_few(square, linear, xt, center, r, T, D, S, SPHERICAL)
        return
    add_linear(linear, xt, center, r, T, D, S)
    v = vector(F64)
    s0, s1 = like(v, 0), like(v, 0)
    for t in range(0, T, 16):
        q0, q1 = squared_distances(xt, center, t, D, S, v)
        s0, s1 = fma(read(r, t, v), q0, s0), fma(read(r, t + 8, v), q1, s1)
    square[0] += total(s0 + s1)
