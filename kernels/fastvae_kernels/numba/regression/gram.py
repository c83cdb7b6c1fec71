"""Sums of products of regressors and targets, of one problem or of many, in one pass over the rows.

    z = [1, x - c, y - c']                  c near the means, or 0 without an intercept
    sums   sum w z_i z_j for i <= P, j <= i, then for each target sum w y' z_0, ..., sum w y' z_P, sum w y'^2

in float64, or in double-double, where x - c is a pair as well, so that nothing but the last of 106 bits is rounded.
Traffic: the rows once, N (P + R) elements. Work unit: a slot of a problem, the tiles s, s + SLOTS, ... of its rows; the
slots are added in index order by who solves. Tiles depend on P and R alone, so the bits do not depend on threads.
Layout: turned columns in scratch, W of them, S apart; sums [problem, slot, F], pairs side by side.
Specification: fastvae/reference/regression/formulas.py
"""

from functools import cache

from ..language.blocks import (
    SIDE,
    SIDE_EXACT,
    add_all_products,
    add_block,
    add_exact_block,
    partial_sums,
    store_totals,
    totals_of_pairs,
)
from ..language.double import exact_product, exact_sum, high, low
from ..language.jit import Kernel, kernel, loop_jit, math_jit, outlined, unpack
from ..language.math import fma, like, select, sqrt
from ..language.memory import F32, F64, I64, array_at, number, on_stack, read, vector, write
from ..language.threads import finished, take, worker
from ..language.transpose import four, load, load_weights
from ..language.vector import lanes, total

ORIGIN, FIND, GIVEN = range(3)  # where the columns are taken from: 0, the mean of a few rows, centers that are there
FEW = 8
FIELDS = "25q 1d"


@math_jit
def numbers_of(P, R):
    """How many sums a problem has."""
    return (P + 1) * (P + 2) // 2 + R * (P + 2)


@loop_jit
def find_center(center, x, stride, rows, D):
    """The mean of each column over the first rows."""
    outlined()
    q, one = four(number(F64)), number(F64)
    n = min(rows, FEW)
    for first in range(0, D, 4):
        if D >= 4:
            d = min(first, D - 4)
            acc = read(x, d, q)
            for t in range(1, n):
                acc = acc + read(x, t * stride + d, q)
            write(center, d, acc / like(q, n))
        else:
            for d in range(D):
                sum_ = 0.0
                for t in range(n):
                    sum_ += read(x, t * stride + d, one)
                center[d] = sum_ / n


@loop_jit
def find_center_of(center, x, stride, weights, w_row, rows, D):
    """The same over the first that count: others may lie anywhere."""
    outlined()
    t, n, one = 0, 0, number(F64)
    for d in range(D):
        center[d] = 0.0
    while t < rows and n < FEW:
        if weights[t * w_row] > 0:
            n += 1
            for d in range(D):
                center[d] += (read(x, t * stride + d, one) - center[d]) / n
        t += 1


@loop_jit
def find_centers(center, x, code, x_row, w, w_row, N, D):
    """Of regressors, or of targets."""
    outlined()
    length, weights = (N - 1) * x_row + D, array_at(w, (N - 1) * w_row + 1, F64)
    if code == F32:
        rows32 = array_at(x, length, F32)
        if w:
            find_center_of(center, rows32, x_row, weights, w_row, N, D)
        else:
            find_center(center, rows32, x_row, N, D)
    else:
        rows = array_at(x, length, F64)
        if w:
            find_center_of(center, rows, x_row, weights, w_row, N, D)
        else:
            find_center(center, rows, x_row, N, D)


@math_jit
def open_unit(unit, stop, slots, active, x, x_code, x_problem, y, y_code, y_problem, w, w_problem):
    """Slot and problem of a unit; where its rows of x, y and w begin, and the rows of x of the unit that comes next;
    bytes of an element of x.
    """
    x_size, y_size, i = 4 if x_code == F32 else 8, 4 if y_code == F32 else 8, min(unit + 1, stop - 1)
    b, following = array_at(active + 8 * (unit // slots), 1, I64)[0], array_at(active + 8 * (i // slots), 1, I64)[0]
    x_b, x_next = x + b * x_problem * x_size, x + following * x_problem * x_size
    return unit % slots, b, x_b, y + b * y_problem * y_size, w + b * w_problem * 8 if w else 0, x_next, x_size


@loop_jit
def drop_rows(z, w, rows, S, count):
    """Zeros in the columns where the weight is 0: such a row may hold anything, inf and NaN as well."""
    outlined()
    v = vector(F64)
    zero, unity = like(v, 0), like(v, 1)
    found, whole, none = zero, rows // 8 * 8, 0
    for t in range(0, whole, 8):
        found = select(read(w, t, v) > zero, found, unity)
    for t in range(whole, rows):
        none += w[t] == 0
    if none or total(found) > 0:
        for j in range(count):
            for t in range(0, rows, 8):  # behind the rows are zeros already
                write(z, j * S + t, select(read(w, t, v) > zero, read(z, j * S + t, v), zero))


@loop_jit
def weigh(z, w, T, S, count):
    """Multiply the columns by the square root of the weights, which becomes the first."""
    outlined()
    v = vector(F64)
    for t in range(0, T, 8):
        write(z, t, sqrt(read(w, t, v)))
    for j in range(1, count):
        for t in range(0, T, 8):
            write(z, j * S + t, read(z, j * S + t, v) * read(z, t, v))


@loop_jit
def split(z, center, rows, T, S, gap, count):
    """The columns less the center as pairs, the small parts ``gap`` behind; zeros behind the rows."""
    outlined()
    v = vector(F64)
    for j in range(1, count):
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
def weigh_pairs(a, z, w, T, S, gap, count):
    """A = w z of pairs."""
    outlined()
    v = vector(F64)
    for j in range(count):
        for t in range(0, T, 8):
            wt, at = read(w, t, v), j * S + t
            product = exact_product(wt, read(z, at, v))
            write(a, at, high(product))
            write(a, gap + at, fma(wt, read(z, gap + at, v), low(product)))


@loop_jit
def add_products(acc, z, W, S, T, P, fresh, ahead):
    """The products of all columns, block by block."""
    outlined()
    for i in range(0, W, SIDE):
        for j in range(0, min(i, P + 1), SIDE):
            add_block(acc, W, z, i, j, S, T, fresh, ahead, False)
            ahead += 8 * T
        add_block(acc, W, z, i, i, S, T, fresh, ahead, True)
        ahead += 8 * T


@loop_jit
def add_exact_products(acc, a, z, W, S, T, P, gap, fresh, one):
    """The same in double-double, of a = w z and z."""
    outlined()
    for i in range(0, W, SIDE_EXACT):
        add_exact_block(acc, W, a, z, i, i, S, T, fresh, gap, one, True)
        for j in range(0, min(i, P + 1), SIDE_EXACT):
            add_exact_block(acc, W, a, z, i, j, S, T, fresh, gap, one, False)


@loop_jit
def finish_sums(sums, acc, where, count):
    """Add up the lanes."""
    outlined()
    u = partial_sums()
    for k in range(count):
        sums[k] = total(read(acc, where[k], u))


@loop_jit
def places_of_sums(where, W, P, R, size):
    """Where the partial sums of each number of the layout lie, ``size`` apart; beyond the last, the last again."""
    outlined()
    at = 0
    for i in range(P + 1 + R):
        for j in range(min(i, P) + 1 + (i > P)):
            where[at] = (i * W + (j if j <= P else i)) * size
            at += 1
    for k in range(8):
        where[at + k] = where[at - 1]


@loop_jit
def finish_pairs(sums, acc, where, count):
    """Add up the lanes of pairs."""
    outlined()
    u = partial_sums()
    some = on_stack(16, F64)
    for k in range(0, count, lanes(u)):
        p = totals_of_pairs(acc, where, k)
        write(some, 0, high(p))
        write(some, 8, low(p))
        for lane in range(min(lanes(u), count - k)):
            sums[2 * (k + lane)], sums[2 * (k + lane) + 1] = some[lane], some[8 + lane]


@cache
def make_gram(count: int, pairs: int) -> Kernel:
    """The kernel for ``count`` = P + 1 + R columns, UNROLLED at most, or any if 0; ``pairs``: in double-double."""

    @kernel(FIELDS)
    def regression_gram(block):
        # *_problem, *_row are strides in elements; ``ignored`` tells of weights of 0; ``one`` is 1, see
        # `double.two_sum_mixed`
        (
            x, x_code, x_row, x_problem, y, y_code, y_row, y_problem, w, w_row, w_problem,
            N, P, R, ignored, T, W, slots, active, centers, from_, sums, F, room, room_size, one,
        ) = unpack(block, FIELDS)  # fmt: skip
        S, columns, words = T + 8, P + 1 + R, 2 if pairs else 1
        gap = W * S
        me = worker(block)
        mine = room + 8 * room_size * me
        z = array_at(mine, words * W * S, F64)
        rest = mine + 8 * words * W * S
        a = z
        if pairs and w:
            a = array_at(rest, 2 * W * S, F64)
            rest += 16 * W * S
        w_t = array_at(rest, S, F64)
        zero, own = array_at(rest + 8 * S, W, F64), array_at(rest + 8 * (S + W), W, F64)
        acc = array_at(rest + 8 * (S + 2 * W), W * W * 8 * words, F64)
        where = array_at(rest + 8 * (S + 2 * W + W * W * 8 * words), F + 8, I64)
        places_of_sums(where, W, P, R, words * lanes(partial_sums()))
        for j in range(W):
            zero[j] = 0.0
        for t in range(columns * S, W * S):
            z[t] = 0.0
            if pairs:
                z[gap + t] = a[t] = a[gap + t] = 0.0
        start, stop = take(block, me)
        while start < stop:
            for unit in range(start, stop):
                s, b, x_b, y_b, w_b, x_next, x_size = open_unit(
                    unit, stop, slots, active, x, x_code, x_problem, y, y_code, y_problem, w, w_problem
                )
                center = array_at(centers + 8 * b * columns, columns, F64)
                if from_ == FIND:
                    find_centers(own[1:], x_b, x_code, x_row, w_b, w_row, N, P)
                    find_centers(own[P + 1 :], y_b, y_code, y_row, w_b, w_row, N, R)
                    if s == 0:
                        for j in range(1, columns):
                            center[j] = own[j]
                    center = own
                row, fresh = s * T, 1
                ahead = zero if pairs else center
                while row < N:
                    rows = min(T, N - row)
                    whole = (rows + 7) // 8 * 8
                    load(z[S:], x_b, x_code, row, x_row, rows, whole, P, S, ahead[1:])
                    load(z[(P + 1) * S :], y_b, y_code, row, y_row, rows, whole, R, S, ahead[P + 1 :])
                    if w:
                        load_weights(w_t, w_b, row, w_row, rows, whole)
                        if ignored:
                            drop_rows(z[S:], w_t, rows, S, columns - 1)
                    for t in range(whole):
                        z[t] = 1.0
                    for t in range(rows, whole):
                        z[t] = 0.0
                    if pairs:
                        split(z, center, rows, whole, S, gap, columns)
                        if w:
                            weigh_pairs(a, z, w_t, whole, S, gap, columns)
                        add_exact_products(acc, a, z, W, S, whole, P, gap, fresh, one)
                    else:
                        if w:
                            weigh(z, w_t, whole, S, columns)
                        # what comes next is fetched while this is computed: the caches have nothing else to do
                        ahead_of = x_next if row + slots * T >= N else x_b + (row + slots * T) * x_row * x_size
                        if count:
                            add_all_products(acc, z, S, whole, fresh, ahead_of, 8 * x_row * x_size, count)
                        else:
                            add_products(acc, z, W, S, whole, P, fresh, ahead_of)
                    fresh = 0
                    row += slots * T
                mine_s = array_at(sums + 8 * words * unit * F, words * F, F64)
                if pairs:
                    finish_pairs(mine_s, acc, where, F)
                elif count and R == 1:
                    store_totals(mine_s, acc, count)
                else:
                    finish_sums(mine_s, acc, where, F)
            finished(block, stop - start)
            start, stop = take(block, me)

    return regression_gram
