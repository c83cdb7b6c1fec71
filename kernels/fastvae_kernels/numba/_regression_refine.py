"""Residuals in double-double, and the solution corrected by them.

    r = y - b0 - x'b,    delta = V (X'r - xbar 1'r - alpha b),    b += delta,    b0 += 1'r / n - xbar'delta

r stays a pair into X'r, and so do b and b0, so that delta is as exact as V: what is left of the error is delta times
2^-53 P condition^2. Where that is more than the tolerance the problem is left to double-double. There V is a pair, what
is left 2^-103 P condition^2, and the correction for conditions of 1e8 and more, repeated near 1e14.
Traffic: the rows once more, N (P + R) elements. Work units: as `_regression_gram`, then eight problems, as
`_regression_solve`. Specification: fastvae/reference/regression.py
"""

from functools import cache

from ._double import add_product, constant, disjoint, exact_sum, get, high, low, number, number_zero, pair, put
from ._gram_blocks import SIDE_ALONE, add_exact_block, partial_sums, prefetch
from ._jit import Kernel, kernel, loop_jit, outlined, unpack
from ._math import fma, like, select, sqrt
from ._memory import F32, F64, I64, array_at, read, vector, write
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
from ._regression_gram import finish_pairs, rows_of
from ._regression_solve import UNIT_PAIRS, finish, gather
from ._threads import finished, take, worker
from ._turned import load, load_weights
from ._vector import lanes, total

NOTHING = 2.0**-90  # of y: so small an error says nothing of a coefficient that is 0
RESIDUAL_FIELDS = "25q 1d"
CORRECT_FIELDS = "19q 2d"


@loop_jit
def residuals(r, wr, z, coef, w, weighted, T, S, gap, P, one, ahead, pace):
    """Y - b0 - x'b of one target as pairs in r, and w times that in wr; the sum of w r^2.

    Meanwhile as many rows are fetched from the address ``ahead`` on, 8 of them ``pace`` bytes.
    """
    outlined()
    v = vector(F64)
    squares = like(v, 0)
    for t in range(0, T, 8):
        for at in range(0, pace, 64):
            prefetch(ahead + at)
        ahead += pace
        acc = exact_sum(read(r, t, v), like(v, coef[0]))
        acc = pair(high(acc), low(acc) + like(v, coef[P + 1]))
        for j in range(1, P + 1):
            b = pair(like(v, coef[j]), like(v, coef[P + 1 + j]))
            acc = add_product(acc, read(z, j * S + t, v), b, one)
        acc, wt = disjoint(acc), read(w, t, v)
        if weighted:
            weighed = disjoint(add_product(pair(like(v, 0), like(v, 0)), wt, acc, one))
        else:  # 1, or 0 behind the rows
            weighed = pair(high(acc) * wt, low(acc) * wt)
        squares = fma(high(weighed), high(acc), squares)
        write(wr, t, high(weighed))
        write(wr, gap + t, low(weighed))
    return total(squares)


@loop_jit
def negative(coef, out, state, at, b, k, B, P, R):
    """-b0, -b of target k of problem b, then their small parts."""
    outlined()
    coef[0] = -out[at[INTERCEPT] * B + b * R + k]
    coef[P + 1] = -state[at[SMALL_INTERCEPT] - at[STATE] + k]
    for j in range(P):
        coef[1 + j] = -out[at[COEF] * B + (b * R + k) * P + j]
        coef[P + 2 + j] = -state[at[SMALL_COEF] - at[STATE] + k * P + j]


@cache
def make_residual() -> Kernel:
    """The kernel that adds up residuals: [problem, slot, R, P + 2] pairs of 1'r, X'r, r'r."""

    @kernel(RESIDUAL_FIELDS)
    def regression_residual(block):
        (
            _arrived, x, x_code, x_row, x_problem, y, y_code, y_row, y_problem, w, w_row, w_problem,
            N, P, R, T, W, slots, active, B, out, sums, F, room, room_size, one,
        ) = unpack(block, RESIDUAL_FIELDS)  # fmt: skip
        S, u = T + 8, partial_sums()
        at = places(P, R)
        results = array_at(out, B * at[END], F64)
        mine = room + 8 * room_size * worker(block)
        z, r = array_at(mine, W * S, F64), array_at(mine + 8 * W * S, R * S, F64)
        mine += 8 * (W + R) * S
        wr, w_t = array_at(mine, 2 * S, F64), array_at(mine + 16 * S, S, F64)
        mine += 24 * S
        coef = array_at(mine, 2 * R * (P + 1), F64)
        mine += 16 * R * (P + 1)
        size = 2 * lanes(u) * W  # of the partial sums of a target
        acc = array_at(mine, 16 * W * R, F64)
        mine += 128 * W * R
        squares, zero = array_at(mine, R, F64), array_at(mine + 8 * R, P + R, F64)
        where = array_at(mine + 8 * (P + 2 * R), P + 9, I64)
        for j in range(P + R):
            zero[j] = 0.0
        for j in range(P + 9):
            where[j] = 2 * lanes(u) * min(j, P)
        for t in range((P + 1) * S, W * S):
            z[t] = 0.0
        start, stop = take(block)
        while start < stop:
            for unit in range(start, stop):
                s, b = unit % slots, array_at(active + 8 * (unit // slots), 1, I64)[0]
                x_size = 4 if x_code == F32 else 8
                x_b = rows_of(x, x_problem, x_size, active, unit // slots)
                x_next = rows_of(x, x_problem, x_size, active, min(unit + 1, stop - 1) // slots)
                y_b = y + b * y_problem * (4 if y_code == F32 else 8)
                w_b = w + b * w_problem * 8 if w else 0
                state = results[at[STATE] * B + b * (at[END] - at[STATE]) :]
                for k in range(R):
                    negative(coef[2 * k * (P + 1) :], results, state, at, b, k, B, P, R)
                    squares[k] = 0.0
                first, fresh = s * T, 1
                while first < N:
                    rows = min(T, N - first)
                    whole = (rows + 7) // 8 * 8
                    load(z[S:], x_b, x_code, first, x_row, rows, whole, P, S, zero)
                    load(r, y_b, y_code, first, y_row, rows, whole, R, S, zero)
                    for t in range(whole):
                        z[t] = 1.0
                    for t in range(rows, whole):
                        z[t] = 0.0
                    weights = z
                    if w:
                        load_weights(w_t, w_b, first, w_row, rows, whole)
                        weights = w_t
                    ahead = x_next if first + slots * T >= N else x_b + (first + slots * T) * x_row * x_size
                    for k in range(R):
                        acc_k, coef_k = acc[k * size :], coef[2 * k * (P + 1) :]
                        pace = 8 * P * x_size if k == 0 and x_row == P else 0
                        squares[k] += residuals(
                            r[k * S :], wr, z, coef_k, weights, w != 0, whole, S, S, P, one, ahead, pace
                        )
                        for i in range(0, W, SIDE_ALONE):
                            add_exact_block(acc_k, 1, z, wr, i, 0, S, whole, fresh, S, one, False, False, SIDE_ALONE, 1)
                    fresh = 0
                    first += slots * T
                mine_s = array_at(sums + 16 * unit * F, 2 * F, F64)
                for k in range(R):
                    finish_pairs(mine_s[2 * k * (P + 2) :], acc[k * size :], where, P + 1)
                    mine_s[2 * (k * (P + 2) + P + 1)] = squares[k]
                    mine_s[2 * (k * (P + 2) + P + 1) + 1] = 0.0
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
def correct(G, record, small, delta, P, R, k, alpha, tolerance, fit_intercept, unit, s):
    """Add delta to the coefficients of target k, and what follows to the intercept; by how much that lowers RSS, and 1
    in the lanes where one correction is not enough. ``s`` is a zero of the type of V, whose small parts are ``small``.
    """
    outlined()
    v, x, at = vector(F64), number_zero(1), places(P, R)
    zero, longest, shift, doubt = like(v, 0), like(v, 0), like(v, 0), like(v, 0)
    centered_gradient(G, record, P, R, k, fit_intercept)
    for j in range(P):
        step = s
        for i in range(P):
            place, entry = k * P + i, row(max(i, j)) + min(i, j)
            b = pair(read(record, 8 * (at[COEF] + place), v), read(record, 8 * (at[SMALL_COEF] + place), v))
            g = get(G, k * (P + 2) + i + 1, x) - constant(x, alpha) * b
            V = number(s, read(record, 8 * (at[INVERSE] + entry), v), read(small, 8 * entry, v))
            step = step + V * number(s, high(g), low(g))
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
        results = array_at(out, B * at[END], F64)
        mine = room + 8 * room_size * worker(block)
        G, more = array_at(mine, 16 * F, F64), array_at(mine + 128 * F, 16 * F, F64)
        mine += 256 * F
        record, delta = array_at(mine, 8 * at[END], F64), array_at(mine + 64 * at[END], 16 * P, F64)
        mine += 64 * (at[END] + 2 * P)
        small_V = array_at(mine, 8 * T, F64)
        mine += 64 * T
        few = array_at(mine, 16, F64)
        units, problems = array_at(mine + 128, 8, I64), array_at(mine + 192, 8, I64)
        start, stop = take(block)
        while start < stop:
            for group in range(start, stop):
                lanes_ = choose_problems(units, problems, few, few[8:], active, group, count, rows_, log_weights, N)
                gather(G, more, array_at(sums, 2 * count * slots * F, F64), units, slots, F, x)
                take_in(record, results, at, B, problems)
                for lane in range(8):
                    at_lane = array_at(where + 8 * units[lane], 1, I64)[0] if deep else 0
                    for k in range(T):
                        small_V[8 * k + lane] = array_at(small + 8 * (at_lane * T + k), 1, F64)[0] if deep else 0.0
                spread, doubts = read(record, 8 * at[SPREAD], v), zero
                for k in range(R):
                    rss = high(get(G, k * (P + 2) + P + 1, x))
                    if not keep:
                        less, doubt = correct(
                            G, record, small_V, delta, P, R, k, alpha, tolerance, fit_intercept,
                            UNIT_PAIRS if deep else UNIT, s,
                        )  # fmt: skip
                        rss = rss - less
                        doubts = select(doubt > zero, like(v, REPEAT if deep else DEEPEN), doubts)
                    finish(record, P, R, k, spread, rss, read(few, 0, v), read(few, 8, v), alpha, fit_intercept)
                write(record, 8 * at[DOUBTS], doubts)
                hand_out(results, record, at, B, problems, lanes_, at[SMALL_COEF], at[LENGTHS])
            finished(block, stop - start)
            start, stop = take(block)

    return regression_correct
