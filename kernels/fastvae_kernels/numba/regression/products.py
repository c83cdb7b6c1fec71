"""Columns weighted and split into pairs, their products, and the sums of the lanes of these.

Columns are S apart, T numbers each with the zeros behind. Partial sums are [W, W] vectors, or pairs of them.
"""

from ..language.blocks import SIDE, SIDE_EXACT, add_block, add_exact_block, partial_sums, totals_of_pairs
from ..language.double import exact_product, exact_sum, high, low
from ..language.jit import loop_jit, outlined
from ..language.math import fma, like, sqrt
from ..language.memory import F64, on_stack, read, vector, write
from ..language.vector import lanes, total


@loop_jit
def weigh(z, w, T, S, columns):
    """Multiply the columns by the square root of the weights, which replaces the column of ones."""
    outlined()
    v = vector(F64)
    for t in range(0, T, 8):
        write(z, t, sqrt(read(w, t, v)))
    for j in range(1, columns):
        for t in range(0, T, 8):
            write(z, j * S + t, read(z, j * S + t, v) * read(z, t, v))


@loop_jit
def split(z, center, rows, T, S, gap, columns):
    """The columns less the center as pairs, low parts ``gap`` behind; zeros behind the rows."""
    outlined()
    v = vector(F64)
    for j in range(1, columns):
        m = like(v, -center[j])
        for t in range(0, T, 8):
            difference = exact_sum(read(z, j * S + t, v), m)
            write(z, j * S + t, high(difference))
            write(z, gap + j * S + t, low(difference))
        for t in range(rows, T):
            z[j * S + t] = z[gap + j * S + t] = 0.0
    for t in range(T):
        z[gap + t] = 0.0


@loop_jit
def weigh_pairs(a, z, w, T, S, gap, columns):
    """A = w z of pairs."""
    outlined()
    v = vector(F64)
    for j in range(columns):
        for t in range(0, T, 8):
            wt, at = read(w, t, v), j * S + t
            product = exact_product(wt, read(z, at, v))
            write(a, at, high(product))
            write(a, gap + at, fma(wt, read(z, gap + at, v), low(product)))


@loop_jit
def add_blocks(acc, z, W, S, T, P, fresh, ahead):
    """The products of all columns, block by block."""
    outlined()
    for i in range(0, W, SIDE):
        for j in range(0, min(i, P + 1), SIDE):
            add_block(acc, W, z, i, j, S, T, fresh, ahead, False)
            ahead += 8 * T
        add_block(acc, W, z, i, i, S, T, fresh, ahead, True)
        ahead += 8 * T


@loop_jit
def add_exact_blocks(acc, a, z, W, S, T, P, gap, fresh, one):
    """The same in double-double, of a = w z and z."""
    outlined()
    for i in range(0, W, SIDE_EXACT):
        add_exact_block(acc, W, a, z, i, i, S, T, fresh, gap, one, True)
        for j in range(0, min(i, P + 1), SIDE_EXACT):
            add_exact_block(acc, W, a, z, i, j, S, T, fresh, gap, one, False)


@loop_jit
def finish_sums(sums, acc, entries, F):
    """Add up the lanes."""
    outlined()
    u = partial_sums()
    for k in range(F):
        sums[k] = total(read(acc, entries[k], u))


@loop_jit
def finish_pairs(sums, acc, entries, F):
    """Add up the lanes of pairs."""
    outlined()
    u = partial_sums()
    some = on_stack(16, F64)
    for k in range(0, F, lanes(u)):
        p = totals_of_pairs(acc, entries, k)
        write(some, 0, high(p))
        write(some, 8, low(p))
        for lane in range(min(lanes(u), F - k)):
            sums[2 * (k + lane)], sums[2 * (k + lane) + 1] = some[lane], some[8 + lane]
