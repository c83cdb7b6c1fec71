"""Sufficient statistics of a tile's rows, added to those of each component, float64.

With e = x - center, the center being the component's previous mean, and the weighted responsibilities r:

    linear[k]    sum r e_0, ..., sum r e_(D-1), sum r
    square[k]    sum r e_i e_j [W, W] for j <= i (full; one for all k if tied), W = D or more; sum r e_d^2; sum r |e|^2

Traffic: a tile and its responsibilities, in a cache. Up to 8 features: `few_features.py`.
Specification: fastvae/reference/gmm/formulas.py (m_step)
"""

from typing import Any

from ..language.jit import loop_jit, math_jit, outlined
from ..language.math import like
from ..language.memory import F64, read, sum_of, vector, write
from ..language.vector import total
from .few_features import FEW, add_features, add_few, add_square
from .modes import DIAG, FULL, MEANS_ALONE, SPHERICAL

PANEL = 8  # features whose r e stay in the L1 cache, a multiple of 4


@math_jit
def width(D):
    """Return the number of rows and columns of a matrix of products: D, rounded up to a multiple of four."""
    return (D + 3) // 4 * 4


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


def make_adder(family: int) -> Any:
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


add_all_linear, add_all_squares, add_all_distances = make_adder(MEANS_ALONE), make_adder(DIAG), make_adder(SPHERICAL)
