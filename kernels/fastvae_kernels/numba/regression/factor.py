"""The factor of a Gram matrix and what follows from it, eight problems at a time, one in each lane.

    G = L L',   M = L^-1,   V = M'M = G^-1,   z = M g

Numbers are vectors of float64, or pairs of them in double-double; ``x``, a zero, has their type. Matrices are lower
triangles, row by row. G holds all sums: row and column 0 are the sums of the columns themselves, and the targets' rows
come last, see `gram.py`. Specification: fastvae/reference/regression/formulas.py
"""

from ..language.double import choose, constant, high, load_number, root, store_number
from ..language.jit import loop_jit, math_jit, outlined
from ..language.math import fma, like, select, sqrt
from ..language.memory import F64, read, vector, write

UNIT = 2.0**-53
FAR_AWAY = 4.0  # squared distance of a center from the mean, in units of the squared spread


@math_jit
def row(i):
    """Where row i of a lower triangle begins."""
    return i * (i + 1) // 2


@math_jit
def sums_of(i, P):
    """Where the sums of column i begin, see `gram.py`: a regressor's, i <= P, or a target's."""
    return row(i) if i <= P else row(P + 1) + (i - P - 1) * (P + 2)


@loop_jit
def center_sums(G, mean, rest, P, R, x):
    """Turn sums about the centers, ``mean``, into sums about the means, and the centers into the means, whose low parts
    are ``rest``; 1 in the lanes where a center was far from the mean.
    """
    outlined()
    v = vector(F64)
    n, far = load_number(G, 0, x), like(v, 0)
    for i in range(1, P + 1 + R):
        at = sums_of(i, P)
        own = at + (i if i <= P else P + 1)
        first = load_number(G, at, x)
        d = first / n
        center, moved = load_number(mean, i - 1, x), load_number(mean, i - 1, x) + d
        store_number(mean, i - 1, moved)
        write(rest, 8 * (i - 1), high(d) - (high(moved) - high(center)))
        for j in range(1, min(i, P + 1)):
            store_number(G, at + j, load_number(G, at + j, x) - d * load_number(G, row(j), x))
        square = load_number(G, own, x) - first * d
        store_number(G, own, square)
        far = select(high(first) * high(d) > like(v, FAR_AWAY) * high(square), like(v, 1), far)
    return far


@loop_jit
def factor(G, M, dropped, limit, grain, most, P, R, x):
    """L and z in place of G and g, and M = L^-1; how many columns are kept. Where one is left out, M has a row of 0,
    and ``dropped`` is 1.

    A column is left out if its pivot is not above its ``limit``, or its distance from the others not above the effect
    of their rounding, sum_k |T_jk| grain_k, where T_j are its coefficients on the columns before it, and T_jj = 1; and
    if ``most`` are kept already, the number that the rows can tell apart.
    """
    outlined()
    v = vector(F64)
    one, none, kept = constant(x, 1), constant(x, 0), like(v, 0)
    for j in range(1, P + 1):
        at, mine = row(j), row(j - 1)
        pivot, size = load_number(G, at + j, x), read(grain, 8 * (j - 1), v)
        for k in range(1, j):
            a = load_number(G, at + k, x)
            pivot = pivot - a * a
        for k in range(j - 1):
            acc = none
            for i in range(k, j - 1):
                acc = acc + load_number(G, at + i + 1, x) * load_number(M, row(i) + k, x)
            store_number(M, mine + k, acc)
            size = fma(abs(high(acc)), read(grain, 8 * k, v), size)
        good = (high(pivot) > fma(size, size, read(limit, 8 * (j - 1), v))) & (kept < most)
        inverse = choose(good, one / root(choose(good, pivot, one)), none)
        kept = kept + select(good, like(v, 1), like(v, 0))
        write(dropped, 8 * (j - 1), select(good, like(v, 0), like(v, 1)))
        for k in range(j - 1):
            store_number(M, mine + k, -(load_number(M, mine + k, x) * inverse))
        store_number(M, mine + j - 1, inverse)
        for i in range(j + 1, P + 1 + R):
            to = sums_of(i, P)
            acc = load_number(G, to + j, x)
            for k in range(1, j):
                acc = acc - load_number(G, to + k, x) * load_number(G, at + k, x)
            store_number(G, to + j, acc * inverse)
    return kept


@loop_jit
def square(V, M, P, x):
    """V = M'M, lower triangles."""
    outlined()
    for j in range(P):
        for k in range(j + 1):
            acc = load_number(M, row(j) + j, x) * load_number(M, row(j) + k, x)
            for i in range(j + 1, P):
                acc = acc + load_number(M, row(i) + j, x) * load_number(M, row(i) + k, x)
            store_number(V, row(j) + k, acc)


@loop_jit
def norm(A, step, scale, P, x):
    """The 1-norm of a symmetric matrix, from its row ``step`` on, with rows and columns multiplied by ``scale``."""
    outlined()
    v = vector(F64)
    most = like(v, 0)
    for j in range(P):
        acc = like(v, 0)
        for k in range(P):
            a, b = max(j, k) + step, min(j, k) + step
            acc = fma(abs(high(load_number(A, row(a) + b, x))), read(scale, 8 * k, v), acc)
        acc = acc * read(scale, 8 * j, v)
        most = select(acc > most, acc, most)
    return most


@loop_jit
def quadratic(V, a, P, x):
    """a'V a."""
    outlined()
    acc = constant(x, 0)
    for j in range(P):
        inner = constant(x, 0)
        for k in range(P):
            inner = inner + load_number(V, row(max(j, k)) + min(j, k), x) * load_number(a, k, x)
        acc = acc + inner * load_number(a, j, x)
    return acc


@loop_jit
def exceeds_tolerance(V, scale, mean, coef, intercept, yy, ybar, tolerance, P, fit_intercept, x):
    """1 in the lanes where the bound of an error exceeds ``tolerance`` times a coefficient, or times the intercept."""
    outlined()
    v = vector(F64)
    size, unit, tol = sqrt(yy), like(v, UNIT), like(v, tolerance)
    for j in range(P):
        size = size + abs(high(load_number(coef, j, x))) * read(scale, 8 * j, v)
    doubt, of_means = like(v, 0), like(v, 0)
    own = abs(ybar)
    for j in range(P):
        acc = like(v, 0)
        for k in range(P):
            acc = acc + abs(high(load_number(V, row(max(j, k)) + min(j, k), x))) * read(scale, 8 * k, v)
        error, value = unit * size * acc, abs(high(load_number(coef, j, x)))
        doubt = select(error <= tol * value, doubt, like(v, 1))
        m = abs(high(load_number(mean, j, x)))
        own, of_means = own + m * value, of_means + m * error
    if fit_intercept:
        doubt = select(unit * own + of_means <= tol * abs(intercept), doubt, like(v, 1))
    return doubt
