"""Residuals in double-double, and the sums that follow from them.

    r = y - b0 - x'b,    sums  1'wr, X'wr, r'wr       of each target

b and b0 may be pairs; r stays one into the sums. Lengths and means of columns are known, so Cauchy and Schwarz say how
large sums can get, (sum w x r)^2 <= sum w x^2 sum w r^2. They start at four times that, which is taken off in the end:
above all that comes, half of the steps do, see `double.accumulate_above`.
Traffic: the rows once more, N (P + R) elements. Work unit and layout: as `gram.py`.
Specification: fastvae/reference/regression/formulas.py
"""

import math
from functools import cache

from ..language.blocks import SIDE_ALONE, add_above, partial_sums, totals_above
from ..language.double import add_part, add_product, choose, exact_product, exact_sum, high, low, pair
from ..language.jit import Kernel, kernel, loop_jit, outlined, unpack
from ..language.math import fma, like, select, sqrt
from ..language.memory import F64, array_at, on_stack, prefetch, read, vector, write
from ..language.threads import finished, take, worker
from ..language.transpose import load, load_weights
from ..language.vector import lanes, total
from .fields import (
    COEF,
    END,
    INTERCEPT,
    LENGTHS,
    MEANS,
    RSS,
    SMALL_COEF,
    SMALL_INTERCEPT,
    SQUARES,
    STATE,
    WEIGHT,
    places,
)
from .gram import drop_rows, open_unit

SLACK, SLACK_PAIRS = 2.0**-30, 2.0**-80  # of y'y about the mean: more than RSS can be wrong by
ROUNDING = 2.0**-50  # of a sum that an intercept is left of
FIELDS = "26q"


@loop_jit
def residuals(wr, y, z, w, plan, T, S, P, small, ahead, pace):
    """W (y - b0 - x'b) of one target as pairs, the small parts S behind; the sum of w r^2. All are addresses, that of
    the weights 0 where all are 1; ``plan`` is what `prepare` wrote, ``small`` tells whether coefficients are pairs.

    Meanwhile as many rows are fetched from the address ``ahead`` on, 8 of them ``pace`` bytes.
    """
    outlined()
    v = vector(F64)
    zero, unity = like(v, 0), like(v, 1)
    wr, y, z, w_t = array_at(wr, 2 * S, F64), array_at(y, T, F64), array_at(z, (P + 1) * S, F64), array_at(w, T, F64)
    b, most = array_at(plan, 2 * (P + 1), F64), array_at(plan + 16 * (P + 1), 2, F64)
    squares, first, wt = zero, like(v, most[0] + most[1]), zero
    for t in range(0, T, 8):
        for at in range(0, pace, 64):
            prefetch(ahead + at)
        ahead += pace
        if w:
            wt = read(w_t, t, v)
            first = like(v, most[0]) + like(v, most[1]) / sqrt(select(wt > zero, wt, unity))
        r = add_part(pair(first, zero), read(y, t, v))
        for j in range(P + 1):
            r = add_product(r, read(z, j * S + t, v), like(v, b[j]))
        if small:
            rest = low(r)
            for j in range(P + 1):
                rest = fma(read(z, j * S + t, v), like(v, b[P + 1 + j]), rest)
            r = pair(high(r), rest)
        r = exact_sum(high(r) - first, low(r))
        weighed = r
        if w:
            r = choose(wt > zero, r, pair(zero, zero))  # y may be anything where a row counts for nothing
            weighed = exact_product(wt, high(r))
            weighed = pair(high(weighed), fma(wt, low(r), low(weighed)))
        squares = fma(high(weighed), high(r), squares)
        write(wr, t, high(weighed))
        write(wr, S + t, low(weighed))
    return total(squares)


@loop_jit
def prepare(plan, coef, intercept, rss, state, at, k, P, R, pairs):
    """Of target k of a problem -b0, -b, their small parts, and where sums start, which is four times what they can come
    to: r at most[0] + most[1] / sqrt(w), then the products of r and column j at above[j]. All are addresses.
    """
    of, own = array_at(plan, 3 * P + 5, F64), state - 8 * at[STATE]
    b, small = array_at(coef, P, F64), array_at(own + 8 * (at[SMALL_COEF] + k * P), P, F64)
    lengths, means = array_at(own + 8 * at[LENGTHS], P, F64), array_at(own + 8 * at[MEANS], P, F64)
    weight, squares = array_at(own + 8 * at[WEIGHT], 1, F64)[0], array_at(own + 8 * (at[SQUARES] + k), 1, F64)[0]
    of[0] = -array_at(intercept, 1, F64)[0]
    of[P + 1] = -array_at(own + 8 * (at[SMALL_INTERCEPT] + k), 1, F64)[0]
    mean = abs(array_at(own + 8 * (at[MEANS] + P + k), 1, F64)[0])
    root, of_means, of_lengths = math.sqrt(weight), abs(of[0]) + mean, math.sqrt(squares)
    for j in range(P):
        of[1 + j], of[P + 2 + j] = -b[j], -small[j]
        of_means += abs(b[j] * means[j])
        of_lengths += abs(b[j]) * lengths[j]
    slack, lost = SLACK, ROUNDING * root * of_means  # of residuals, in an intercept of one part
    if pairs:
        slack, lost = SLACK_PAIRS, ROUNDING * lost
    r = 4.0 * math.sqrt(2.0 * array_at(rss, 1, F64)[0] + slack * squares + lost * lost)
    most = 2 * P + 2
    of[most], of[most + 1] = 4.0 * of_means, 4.0 * of_lengths
    of[most + 2] = r * root
    for j in range(P):
        of[most + 3 + j] = r * (lengths[j] + root * abs(means[j]))


@loop_jit
def finish_above(sums, acc, above, count):
    """Add up the lanes of sums of products, and take off where they started."""
    outlined()
    u, some = partial_sums(), on_stack(16, F64)
    sums, above = array_at(sums, 2 * count, F64), array_at(above, count, F64)
    acc = array_at(acc, 2 * lanes(u) * count, F64)
    for k in range(0, count, lanes(u)):
        p = totals_above(acc, above, k)
        write(some, 0, high(p))
        write(some, 8, low(p))
        for lane in range(min(lanes(u), count - k)):
            sums[2 * (k + lane)], sums[2 * (k + lane) + 1] = some[lane], some[8 + lane]


@cache
def make_residual() -> Kernel:
    """The kernel that adds up residuals: [problem, slot, R, P + 2] pairs of 1'r, X'r, r'r."""

    @kernel(FIELDS)
    def regression_residual(block):
        (
            x, x_code, x_row, x_problem, y, y_code, y_row, y_problem, w, w_row, w_problem,
            N, P, R, ignored, T, W, slots, active, B, out, small, sums, F, room, room_size,
        ) = unpack(block, FIELDS)  # fmt: skip
        S, u = T + 8, partial_sums()
        size = 2 * lanes(u)  # of a partial sum
        at = places(P, R)
        me = worker(block)
        mine = room + 8 * room_size * me
        z, y_t = mine, mine + 8 * W * S
        mine += 8 * (W + R) * S
        wr, w_t = mine, mine + 16 * S
        mine += 24 * S
        plan, planned, above = mine, 3 * P + 5, 2 * P + 4
        mine += 8 * (R * planned + 8)
        acc_at = mine
        mine += 128 * (W * R + 8)
        squares, zero = array_at(mine, R, F64), array_at(mine + 8 * R, P + R, F64)
        for j in range(P + R):
            zero[j] = 0.0
        acc = array_at(acc_at, size * W * R, F64)
        for i in range(size * W * R):
            acc[i] = 0.0
        columns = array_at(z, W * S, F64)
        for t in range((P + 1) * S, W * S):
            columns[t] = 0.0
        start, stop = take(block, me)
        while start < stop:
            for unit in range(start, stop):
                s, b, x_b, y_b, w_b, x_next, x_size = open_unit(
                    unit, stop, slots, active, x, x_code, x_problem, y, y_code, y_problem, w, w_problem
                )
                state = out + 8 * (at[STATE] * B + b * (at[END] - at[STATE]))
                for k in range(R):
                    i = b * R + k
                    coef, intercept = out + 8 * (at[COEF] * B + i * P), out + 8 * (at[INTERCEPT] * B + i)
                    mine = plan + 8 * k * planned
                    prepare(mine, coef, intercept, out + 8 * (at[RSS] * B + i), state, at, k, P, R, small)
                    squares[k] = 0.0
                    first = array_at(mine + 8 * above, P + 1, F64)
                    acc = array_at(acc_at + 8 * size * W * k, size * W, F64)
                    for j in range(P + 1):
                        write(acc, size * j, like(u, first[j]))
                        write(acc, size * j + lanes(u), like(u, 0))
                row = s * T
                while row < N:
                    rows = min(T, N - row)
                    whole = (rows + 7) // 8 * 8
                    load(array_at(z + 8 * S, W * S, F64), x_b, x_code, row, x_row, rows, whole, P, S, zero)
                    load(array_at(y_t, R * S, F64), y_b, y_code, row, y_row, rows, whole, R, S, zero)
                    ones = array_at(z, S, F64)
                    for t in range(whole):
                        ones[t] = 1.0
                    for t in range(rows, whole):
                        ones[t] = 0.0
                    if w:
                        load_weights(array_at(w_t, S, F64), w_b, row, w_row, rows, whole)
                        if ignored:
                            drop_rows(array_at(z + 8 * S, W * S, F64), array_at(w_t, S, F64), rows, S, P)
                    ahead = x_next if row + slots * T >= N else x_b + (row + slots * T) * x_row * x_size
                    for k in range(R):
                        pace = 8 * P * x_size if k == 0 and x_row == P else 0
                        plan_k, weights = plan + 8 * k * planned, w_t if w else 0
                        squares[k] += residuals(
                            wr, y_t + 8 * k * S, z, weights, plan_k, whole, S, P, small, ahead, pace
                        )
                        acc = array_at(acc_at + 8 * size * W * k, size * W, F64)
                        for i in range(0, W, SIDE_ALONE):
                            add_above(acc, array_at(z, W * S, F64), array_at(wr, 2 * S, F64), i, S, whole, S)
                    row += slots * T
                mine_s = sums + 16 * unit * F
                for k in range(R):
                    own = mine_s + 16 * k * (P + 2)
                    finish_above(own, acc_at + 8 * size * W * k, plan + 8 * (k * planned + above), P + 1)
                    last = array_at(own + 16 * (P + 1), 2, F64)
                    last[0], last[1] = squares[k], 0.0
            finished(block, stop - start)
            start, stop = take(block, me)

    return regression_residual
