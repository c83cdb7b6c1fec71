"""Residuals in double-double, and the solution corrected by them.

    r = y - b0 - x'b,    delta = V (X'r - xbar 1'r - alpha b),    b += delta,    b0 += 1'r / n - xbar'delta

r stays a pair into X'r, and so do b and b0, so that delta is as exact as V: what is left of the error is delta times
2^-53 P condition^2. Where that is more than the tolerance the problem is left to double-double. There V is a pair, what
is left 2^-103 P condition^2, and the correction for conditions of 1e8 and more, repeated near 1e14. Lengths and means
of columns are known, so Cauchy and Schwarz say how large sums can get: they start at four times that, see
`_double.accumulate_above`, which is taken off in the end.
Traffic: the rows once more, N (P + R) elements. Work units: as `_regression_gram`, then eight problems, as
`_regression_solve`. Specification: fastvae/reference/regression.py
"""

import math
from functools import cache

from ._double import (
    add_part,
    add_product,
    choose,
    constant,
    exact_product,
    exact_sum,
    get,
    high,
    low,
    number,
    number_zero,
    pair,
    put,
)
from ._gram_blocks import SIDE_ALONE, add_above, partial_sums, prefetch, totals_above
from ._jit import Kernel, kernel, loop_jit, outlined, unpack
from ._math import fma, like, select, sqrt
from ._memory import F32, F64, I64, array_at, on_stack, read, vector, write
from ._regression_factor import UNIT, row
from ._regression_fields import (
    COEF,
    CONDITION,
    DEEPEN,
    DOUBTS,
    END,
    INTERCEPT,
    INVERSE,
    LENGTHS,
    MEANS,
    REPEAT,
    RSS,
    SMALL_COEF,
    SMALL_INTERCEPT,
    SPREAD,
    SQUARES,
    STATE,
    WEIGHT,
    choose_problems,
    hand_out,
    places,
    take_in,
)
from ._regression_gram import rows_of
from ._regression_solve import UNIT_PAIRS, finish, gather
from ._threads import finished, take, worker
from ._turned import load, load_weights
from ._vector import lanes, total

NOTHING = 2.0**-90  # of y: so small an error says nothing of a coefficient that is 0
SLACK = 2.0**-30  # of y'y: more than RSS can be wrong by
RESIDUAL_FIELDS = "26q"
CORRECT_FIELDS = "19q 2d"


@loop_jit
def residuals(wr, y, z, w, coef, T, S, P, small, ahead, pace):
    """W (y - b0 - x'b) of one target as pairs, the small parts S behind; the sum of w r^2. All are addresses, that of
    the weights 0 where all are 1; ``coef`` is what `prepare` wrote, ``small`` tells whether coefficients are pairs.

    Meanwhile as many rows are fetched from the address ``ahead`` on, 8 of them ``pace`` bytes.
    """
    outlined()
    v = vector(F64)
    zero, unity = like(v, 0), like(v, 1)
    wr, y, z, w_t = array_at(wr, 2 * S, F64), array_at(y, T, F64), array_at(z, (P + 1) * S, F64), array_at(w, T, F64)
    b, most = array_at(coef, 2 * (P + 1), F64), array_at(coef + 16 * (P + 1), 2, F64)
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
            weighed = exact_product(wt, high(r))
            weighed = pair(high(weighed), fma(wt, low(r), low(weighed)))
            weighed = choose(wt > zero, weighed, pair(zero, zero))
        squares = fma(high(weighed), high(r), squares)
        write(wr, t, high(weighed))
        write(wr, S + t, low(weighed))
    return total(squares)


@loop_jit
def prepare(plan, coef, intercept, rss, state, at, k, P, R):
    """Of target k of a problem -b0, -b, their small parts, and where sums start, which is four times what they can come
    to: r at most[0] + most[1] / sqrt(w), the products of r and column j at above[j]. All are addresses.
    """
    of, own = array_at(plan, 3 * P + 5, F64), state - 8 * at[STATE]
    b, small = array_at(coef, P, F64), array_at(own + 8 * (at[SMALL_COEF] + k * P), P, F64)
    lengths, means = array_at(own + 8 * at[LENGTHS], P, F64), array_at(own + 8 * at[MEANS], P, F64)
    weight, squares = array_at(own + 8 * at[WEIGHT], 1, F64)[0], array_at(own + 8 * (at[SQUARES] + k), 1, F64)[0]
    of[0] = -array_at(intercept, 1, F64)[0]
    of[P + 1] = -array_at(own + 8 * (at[SMALL_INTERCEPT] + k), 1, F64)[0]
    mean = abs(array_at(own + 8 * (at[MEANS] + P + k), 1, F64)[0])
    r = 4.0 * math.sqrt(2.0 * array_at(rss, 1, F64)[0] + SLACK * (squares + weight * mean * mean))
    root, of_means, of_lengths = math.sqrt(weight), abs(of[0]) + mean, math.sqrt(squares)
    most = 2 * P + 2
    of[most + 2] = r * root
    for j in range(P):
        of[1 + j], of[P + 2 + j] = -b[j], -small[j]
        of_means += abs(b[j] * means[j])
        of_lengths += abs(b[j]) * lengths[j]
        of[most + 3 + j] = r * (lengths[j] + root * abs(means[j]))
    of[most], of[most + 1] = 4.0 * of_means, 4.0 * of_lengths


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

    @kernel(RESIDUAL_FIELDS)
    def regression_residual(block):
        (
            _arrived, x, x_code, x_row, x_problem, y, y_code, y_row, y_problem, w, w_row, w_problem,
            N, P, R, T, W, slots, active, B, out, small, sums, F, room, room_size,
        ) = unpack(block, RESIDUAL_FIELDS)  # fmt: skip
        S, u = T + 8, partial_sums()
        size = 2 * lanes(u)  # of a partial sum
        at = places(P, R)
        mine = room + 8 * room_size * worker(block)
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
        start, stop = take(block)
        while start < stop:
            for unit in range(start, stop):
                s, b = unit % slots, array_at(active + 8 * (unit // slots), 1, I64)[0]
                x_size = 4 if x_code == F32 else 8
                x_b = rows_of(x, x_problem, x_size, active, unit // slots)
                x_next = rows_of(x, x_problem, x_size, active, min(unit + 1, stop - 1) // slots)
                y_b = y + b * y_problem * (4 if y_code == F32 else 8)
                w_b = w + b * w_problem * 8 if w else 0
                state = out + 8 * (at[STATE] * B + b * (at[END] - at[STATE]))
                for k in range(R):
                    i = b * R + k
                    coef, intercept = out + 8 * (at[COEF] * B + i * P), out + 8 * (at[INTERCEPT] * B + i)
                    mine = plan + 8 * k * planned
                    prepare(mine, coef, intercept, out + 8 * (at[RSS] * B + i), state, at, k, P, R)
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
                    ahead = x_next if row + slots * T >= N else x_b + (row + slots * T) * x_row * x_size
                    for k in range(R):
                        pace = 8 * P * x_size if k == 0 and x_row == P else 0
                        squares[k] += residuals(
                            wr,
                            y_t + 8 * k * S,
                            z,
                            w_t if w else 0,
                            plan + 8 * k * planned,
                            whole,
                            S,
                            P,
                            small,
                            ahead,
                            pace,
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
            start, stop = take(block)

    return regression_residual


@loop_jit
def centered_gradient(G, record, P, R, k, fit_intercept):
    """X'r less xbar 1'r, in the place of X'r, of target k."""
    outlined()
    v, x, at = vector(F64), number_zero(1), places(P, R)
    if fit_intercept:
        all_ = get(G, k * (P + 2), x)
        for j in range(P):
            mean = pair(read(record, 8 * (at[MEANS] + j), v), like(v, 0))
            put(G, k * (P + 2) + j + 1, get(G, k * (P + 2) + j + 1, x) - mean * all_)


@loop_jit
def correct(G, record, small, delta, gradient, P, R, k, alpha, tolerance, fit_intercept, unit, s):
    """Add delta to the coefficients of target k, and what follows to the intercept; by how much that lowers RSS, and 1
    in the lanes where one correction is not enough. ``s`` is a zero of the type of V, whose small parts are ``small``.
    """
    outlined()
    v, x, at = vector(F64), number_zero(1), places(P, R)
    zero, longest, shift, doubt = like(v, 0), like(v, 0), like(v, 0), like(v, 0)
    centered_gradient(G, record, P, R, k, fit_intercept)
    for i in range(P):
        g, place = get(G, k * (P + 2) + i + 1, x), k * P + i
        if alpha > 0:
            b = pair(read(record, 8 * (at[COEF] + place), v), read(record, 8 * (at[SMALL_COEF] + place), v))
            g = g - constant(x, alpha) * b
        put(gradient, i, number(s, high(g), low(g)))
    for j in range(P):
        step = s
        for i in range(P):
            entry = row(max(i, j)) + min(i, j)
            V = number(s, read(record, 8 * (at[INVERSE] + entry), v), read(small, 8 * entry, v))
            step = step + V * get(gradient, i, s)
        put(delta, j, step)
        length = abs(high(step)) * read(record, 8 * (at[LENGTHS] + j), v)
        longest = select(length > longest, length, longest)
    condition, less, of_means = read(record, 8 * at[CONDITION], v), zero, zero
    left = like(v, unit * P) * condition * condition * longest  # of the error, in units of y
    nothing = like(v, NOTHING) * sqrt(read(record, 8 * (at[SQUARES] + k), v))
    for j in range(P):
        step, place = high(get(delta, j, s)), k * P + j
        b = pair(read(record, 8 * (at[COEF] + place), v), read(record, 8 * (at[SMALL_COEF] + place), v))
        b = b + pair(step, low(get(delta, j, s)))
        write(record, 8 * (at[COEF] + place), high(b))
        write(record, 8 * (at[SMALL_COEF] + place), low(b))
        length, mean = read(record, 8 * (at[LENGTHS] + j), v), read(record, 8 * (at[MEANS] + j), v)
        doubt = select(left <= like(v, tolerance) * abs(high(b)) * length + nothing, doubt, like(v, 1))
        of_means = of_means + select(left > zero, abs(mean) * left / length, zero)
        shift = shift - mean * step
        # RSS(b + delta) = RSS(b) - 2 delta'g + delta'G delta, where (G + alpha I) delta = g - alpha b
        less = less + step * (high(get(G, k * (P + 2) + j + 1, x)) + like(v, alpha) * high(b))
    if fit_intercept:
        all_ = high(get(G, k * (P + 2), x))
        mean = all_ / read(record, 8 * at[WEIGHT], v)
        b = pair(read(record, 8 * (at[INTERCEPT] + k), v), read(record, 8 * (at[SMALL_INTERCEPT] + k), v)) + pair(
            shift + mean, zero
        )
        write(record, 8 * (at[INTERCEPT] + k), high(b))
        write(record, 8 * (at[SMALL_INTERCEPT] + k), low(b))
        doubt = select(of_means <= like(v, tolerance) * abs(high(b)) + nothing, doubt, like(v, 1))
        less = less + all_ * mean
    return less, doubt


@cache
def make_correct(deep: int) -> Kernel:
    """The kernel that corrects the solutions, by a V in double-double if ``deep``; if they are to be kept, only what
    follows from r'r.
    """

    @kernel(CORRECT_FIELDS)
    def regression_correct(block):
        (
            _arrived, active, count, sums, slots, F, small, where, rows_, log_weights, N, P, R, B, out, fit_intercept,
            keep, room, room_size, alpha, tolerance,
        ) = unpack(block, CORRECT_FIELDS)  # fmt: skip
        v, x = vector(F64), number_zero(1)
        zero, at, s = like(v, 0), places(P, R), number_zero(deep)
        T = P * (P + 1) // 2
        mine = room + 8 * room_size * worker(block)
        G_at, G, record_at = mine, array_at(mine, 16 * F, F64), mine + 256 * F
        mine = record_at
        record, delta = array_at(mine, 8 * at[END], F64), array_at(mine + 64 * at[END], 16 * P, F64)
        gradient = array_at(mine + 64 * (at[END] + 2 * P), 16 * P, F64)
        mine += 64 * (at[END] + 4 * P)
        small_V = array_at(mine, 8 * T, F64)
        mine += 64 * T
        few = array_at(mine, 16, F64)
        units, problems, rows_at = array_at(mine + 128, 8, I64), array_at(mine + 192, 8, I64), mine + 256
        start, stop = take(block)
        while start < stop:
            for group in range(start, stop):
                choose_problems(units, problems, few, few[8:], active, group, count, rows_, log_weights, N)
                gather(G_at, G_at + 128 * F, sums, units, rows_at, slots, F, x)
                take_in(record_at, out, at, B, problems, rows_at)
                if deep:
                    for lane in range(8):
                        own = array_at(small + 8 * T * array_at(where + 8 * units[lane], 1, I64)[0], T, F64)
                        for k in range(T):
                            small_V[8 * k + lane] = own[k]
                spread, doubts = read(record, 8 * at[SPREAD], v), zero
                for k in range(R):
                    rss = high(get(G, k * (P + 2) + P + 1, x))
                    if not keep:
                        less, doubt = correct(
                            G, record, small_V, delta, gradient, P, R, k, alpha, tolerance, fit_intercept,
                            UNIT_PAIRS if deep else UNIT, s,
                        )  # fmt: skip
                        rss = rss - less
                        doubts = select(doubt > zero, like(v, REPEAT if deep else DEEPEN), doubts)
                    finish(record, P, R, k, spread, rss, read(few, 0, v), read(few, 8, v), alpha, fit_intercept)
                write(record, 8 * at[DOUBTS], doubts)
                hand_out(out, record_at, at, B, problems, rows_at, at[SMALL_COEF], at[LENGTHS])
            finished(block, stop - start)
            start, stop = take(block)

    return regression_correct
