"""A tile of rows and a mixture: log densities, responsibilities, sufficient statistics, in scratch that fits a cache.

A tile holds up to T rows, transposed so that rows are the lanes of vectors. S = T + 8 is the stride between its
features; a power of two would map all of them to the same cache set.

    xt[d, t]     x_td - shift_d                    logit[k, t]   log pi_k + log N(x_t; mu_k, Sigma_k), then r_tk
                                                   c[k]          log pi_k - D/2 log 2 pi + log |P_k|
    P            Sigma^-1 = P'P: lower triangular [K, D, D] (full), [1, D, D] (tied), [K, D] (diag), [K] (spherical)

Statistics of a component about its center, which is its previous mean, with the weighted responsibilities r:

    linear[k]    sum r e_0, ..., sum r e_(D-1), sum r
    square[k]    sum r e_i e_j [W, W] for j <= i (full; one for all k if tied), W = D or more; sum r e_d^2; sum r |e|^2

Everything is float64, whatever the dtype of the rows. Specification: fastvae/reference/gmm/formulas.py
"""

from typing import Any

import numpy as np

from ..language.jit import loop_jit, math_jit, outlined
from ..language.math import exp_negative, fma, like, log_normal, select
from ..language.memory import F64, number, read, sum_of, vector, write
from ..language.transpose import fetch
from ..language.vector import lanes, register, total
from .few_features import FEW, add_features, add_few, add_square, logits_few
from .modes import DIAG, FULL, MEANS_ALONE, SPHERICAL

PANEL = 8  # features whose r e stay in the L1 cache, a multiple of 4
FACTORS = 16  # factors between 1 and K whose product is finite for any K
LOWEST = -np.finfo(np.float64).max  # for a row of density 0 under all components: -inf - -inf would be NaN


@math_jit
def width(D):
    """Return the number of rows and columns of a matrix of products: D, rounded up to a multiple of four."""
    return (D + 3) // 4 * 4


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


@loop_jit
def posterior(logit, log_prob, norm, w, T, K, S):
    """Replace logits by weighted responsibilities w r, and return the sum of w log p. ``norm`` is scratch.

    There are several loops over the rows, each of short independent steps; in a single loop the steps would form one
    long dependency chain.
    """
    outlined()
    v = vector(F64)
    exponentials(logit, log_prob, norm, T, K, S)
    acc = like(v, 0)
    for t in range(0, T, 8):
        wt, n = read(w, t, v), read(norm, t, v)
        value = read(log_prob, t, v) + log_normal(n) + (n - n)  # n - n is 0, or NaN, lost in log_normal
        write(log_prob, t, value)
        write(norm, t, select(wt == like(v, 0), like(v, 0), wt / n))  # n may be 0 in padding
        acc = fma(wt, value, acc)
    for k in range(K):
        for t in range(0, T, 8):
            write(logit, k * S + t, read(logit, k * S + t, v) * read(norm, t, v))
    return total(acc)


@loop_jit
def responsibilities(logit, top, norm, w, T, K, S):
    """Like `posterior`, for weights 1, or 0 in padding: one logarithm for many rows, as log n + log n' = log n n'."""
    outlined()
    v = vector(F64)
    exponentials(logit, top, norm, T, K, S)
    acc, unity = like(v, 0), like(v, 1)
    for first in range(0, T, 8 * FACTORS):
        product = unity
        for t in range(first, min(first + 8 * FACTORS, T), 8):
            wt, n = read(w, t, v), read(norm, t, v)
            acc = fma(wt, read(top, t, v), acc)
            n = select(wt > like(v, 0), n, unity)  # n may be 0 in padding
            product = product * n
            write(norm, t, wt / n)
        acc = acc + log_normal(product) + (product - product)  # the difference is 0, or NaN, lost in log_normal
    for k in range(K):
        for t in range(0, T, 8):
            write(logit, k * S + t, read(logit, k * S + t, v) * read(norm, t, v))
    return total(acc)


@loop_jit
def exponentials(logit, top, norm, T, K, S):
    """Replace logits by e^(logit - top), where top is the largest logit of each row; ``norm`` receives their sums."""
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
    """Replace the largest logit of each row by w and the others by 0; return the sum of w times the largest."""
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
def weigh(resp, w, T, K, S):
    """Multiply responsibilities by weights; the result is 0 where the weight is 0, whatever the responsibility."""
    outlined()
    v = vector(F64)
    for k in range(K):
        for t in range(0, T, 8):
            wt, r = read(w, t, v), read(resp, k * S + t, v)
            write(resp, k * S + t, select(wt == like(v, 0), wt, r * wt))


@loop_jit
def add_products(square, linear, re, xt, center, r, T, D, S):
    """Add sum r e_i e_j, sum r e_i and sum r, for e = x - center, with blocks of 4 x 4 products in registers."""
    outlined()
    v, W = vector(F64), width(D)
    linear[D] += sum_of(r, 0, T, v)
    for first in range(0, W, PANEL):
        last = min(first + PANEL, W)
        for i in range(first, last):
            s0, at = like(v, 0), (i - first) * S
            m = like(v, center[i] if i < D else 0.0)  # columns beyond the features are zeros
            for t in range(0, T, 8):
                a = read(r, t, v) * (read(xt, i * S + t, v) - m)
                s0 = s0 + a
                write(re, at + t, a)
            if i < D:
                linear[i] += total(s0)
        for i in range(first, last, 4):
            for j in range(0, i, 4):
                add_square(square, W, re, xt, center, i, first, j, T, S, False)
            add_square(square, W, re, xt, center, i, first, i, T, S, True)


@loop_jit
def add_all_products(square, linear, re, xt, centers, logit, T, D, K, S, step):
    """Add the statistics of all components by `add_products` or `add_few`.

    ``step`` is the stride from one matrix to the next, 0 if tied.
    """
    outlined()
    for k in range(K):
        matrix, sums, r = square[k * step :], linear[k * (D + 1) :], logit[k * S :]
        if D <= FEW:
            add_few(matrix, sums, xt, centers[k * D :], r, T, D, S, FULL)
        else:
            add_products(matrix, sums, re, xt, centers[k * D :], r, T, D, S)


def adder(family: int) -> Any:
    """Return the function that adds sum r, sum r e_d and the family's squares of all components, see `add_features`."""

    @loop_jit
    def add_all(square, linear, xt, centers, logit, T, D, K, S):
        outlined()
        if D <= FEW:
            step = D if family == DIAG else 1
            for k in range(K):
                sums, r = linear[k * (D + 1) :], logit[k * S :]
                add_few(square[k * step :], sums, xt, centers[k * D :], r, T, D, S, family)
            return
        for k in range(K):
            linear[k * (D + 1) + D] += sum_of(logit, k * S, T, vector(F64))
        for d in range(0, D - 3, 4):  # all components while these features are in the L1 cache
            for k in range(K):
                add_features(square, linear, xt, centers, logit, k, d, D, T, S, 4, family)
        for d in range(D // 4 * 4, D):
            for k in range(K):
                add_features(square, linear, xt, centers, logit, k, d, D, T, S, 1, family)

    return add_all


add_all_linear, add_all_squares, add_all_distances = adder(MEANS_ALONE), adder(DIAG), adder(SPHERICAL)
