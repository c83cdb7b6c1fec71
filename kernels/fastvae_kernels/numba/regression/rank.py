"""Dependent columns: from the solution without them to that of minimum norm, eight problems at a time.

Column j that is left out is sum_k T_kj x_k of those before it that are kept, T_j = L^-T L_j, so n_j = e_j - T_j is a
null vector. With Y an orthonormal basis of them all, a vector a row, Pi = I - Y'Y projects:

    coef <- Pi coef,    V <- Pi V Pi

which is the pseudo-inverse of G, in the user's units. In lanes where column j is kept n_j is 0, and nothing changes.
``room`` holds three P x P matrices: Y, Pi, and one for intermediate results.
"""

from ..language.double import choose, constant, high, load_number, root, store_number
from ..language.jit import loop_jit, outlined
from ..language.math import like
from ..language.memory import F64, read, vector
from .factor import row


@loop_jit
def null_vectors(room, M, G, dropped, P, x):
    """The null vectors n_j, a row each."""
    outlined()
    v = vector(F64)
    zero, one = constant(x, 0), constant(x, 1)
    for j in range(P):
        out = read(dropped, 8 * j, v) > like(v, 0)
        for k in range(P):
            acc = one if k == j else zero
            for i in range(k, j):
                acc = acc - load_number(M, row(i) + k, x) * load_number(G, row(j + 1) + i + 1, x)
            store_number(room, j * P + k, choose(out, acc, zero))


@loop_jit
def orthonormalize(room, P, x):
    """Y from the null vectors, by Gram and Schmidt; rows of 0 stay."""
    outlined()
    v = vector(F64)
    zero, one = constant(x, 0), constant(x, 1)
    for j in range(P):
        for i in range(j):
            acc = zero
            for k in range(P):
                acc = acc + load_number(room, j * P + k, x) * load_number(room, i * P + k, x)
            for k in range(P):
                store_number(room, j * P + k, load_number(room, j * P + k, x) - acc * load_number(room, i * P + k, x))
        acc = zero
        for k in range(P):
            a = load_number(room, j * P + k, x)
            acc = acc + a * a
        some = high(acc) > like(v, 0)
        inverse = choose(some, one / root(choose(some, acc, one)), zero)
        for k in range(P):
            store_number(room, j * P + k, load_number(room, j * P + k, x) * inverse)


@loop_jit
def projector(room, P, x):
    """Pi from Y."""
    outlined()
    zero, one, Pi = constant(x, 0), constant(x, 1), P * P
    for k in range(P):
        for m in range(P):
            acc = one if k == m else zero
            for j in range(P):
                acc = acc - load_number(room, j * P + k, x) * load_number(room, j * P + m, x)
            store_number(room, Pi + k * P + m, acc)


@loop_jit
def project(room, V, P, x):
    """V <- Pi V Pi."""
    outlined()
    zero = constant(x, 0)
    half, Pi = 2 * P * P, P * P
    for k in range(P):
        for m in range(P):
            acc = zero
            for i in range(P):
                acc = acc + load_number(room, Pi + k * P + i, x) * load_number(V, row(max(i, m)) + min(i, m), x)
            store_number(room, half + k * P + m, acc)
    for k in range(P):
        for m in range(k + 1):
            acc = zero
            for i in range(P):
                acc = acc + load_number(room, half + k * P + i, x) * load_number(room, Pi + i * P + m, x)
            store_number(V, row(k) + m, acc)


@loop_jit
def shorten(room, coef, P, x):
    """coef <- Pi coef."""
    outlined()
    half, Pi = 2 * P * P, P * P
    for k in range(P):
        acc = constant(x, 0)
        for i in range(P):
            acc = acc + load_number(room, Pi + k * P + i, x) * load_number(coef, i, x)
        store_number(room, half + k, acc)
    for k in range(P):
        store_number(coef, k, load_number(room, half + k, x))
