"""Responsibilities of a tile's rows from their log joint densities, float64, in place.

    r_tk = e^logit_tk / sum_j e^logit_tj        log p(x_t) = log sum_k e^logit_tk        times the weight of the row

Traffic: logits [K, S] of a tile, in a cache. Specification: fastvae/reference/gmm/formulas.py (e_step)
"""

import numpy as np

from ..language.jit import loop_jit, outlined
from ..language.math import exp_negative, fma, like, log_normal, select
from ..language.memory import F64, read, vector, write
from ..language.vector import total

FACTORS = 16  # factors between 1 and K whose product is finite for any K
LOWEST = -np.finfo(np.float64).max  # for a row of density 0 under all components: -inf - -inf would be NaN


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
