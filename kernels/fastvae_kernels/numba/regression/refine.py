"""The solution corrected by residuals, eight problems at a time, one in each lane.

    delta = V (X'r - xbar 1'r - alpha b),    b += delta,    b0 += 1'r / n - xbar'delta

The sums are pairs, see `residual.py`, and so are b and b0, so that delta is as exact as V: what is left of the
error is delta times 2^-53 P condition^2. Where that is more than the tolerance the problem is left to double-double.
There V is a pair, what is left 2^-103 P condition^2, and the correction for conditions of 1e8 and more, repeated near
1e14. The sums themselves have errors of 2^-104 of what they started from, which counts where columns are far from the
origin: as much as `noise_of` says. Work unit: as `estimates.py`.
Specification: fastvae/reference/regression/formulas.py
"""

import math
from functools import cache

from ..language.double import (
    constant,
    get,
    high,
    low,
    number,
    number_zero,
    pair,
    put,
)
from ..language.jit import Kernel, kernel, loop_jit, outlined, unpack
from ..language.math import fma, like, select, sqrt
from ..language.memory import F64, I64, array_at, read, vector, write
from ..language.threads import finished, take, worker
from .estimates import UNIT_PAIRS, finish, gather
from .factor import UNIT, row
from .fields import (
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
    SMALL_MEANS,
    SPREAD,
    SQUARES,
    WEIGHT,
    choose_problems,
    hand_out,
    places,
    take_in,
)
from .residual import ROUNDING

NOTHING = 2.0**-90  # of y: so small an error says nothing of a coefficient that is 0
NOISE = 2.0**-104
FIELDS = "18q 2d"


@loop_jit
def centered_gradient(G, record, P, R, k, fit_intercept):
    """X'r less xbar 1'r, in the place of X'r, of target k."""
    outlined()
    v, x, at = vector(F64), number_zero(1), places(P, R)
    if fit_intercept:
        all_ = get(G, k * (P + 2), x)
        for j in range(P):
            mean = pair(read(record, 8 * (at[MEANS] + j), v), read(record, 8 * (at[SMALL_MEANS] + j), v))
            put(G, k * (P + 2) + j + 1, get(G, k * (P + 2) + j + 1, x) - mean * all_)


@loop_jit
def noise_of(record, P, k, at):
    """How large the sums of residuals of target k start, and so how large their errors may be, of all columns with
    V_jj = 1; times sqrt(V_jj), of coefficient j.
    """
    outlined()
    v, most = vector(F64), like(vector(F64), 0)
    y, root = sqrt(read(record, 8 * (at[SQUARES] + k), v)), sqrt(read(record, 8 * at[WEIGHT], v))
    rows = abs(read(record, 8 * (at[INTERCEPT] + k), v)) + abs(read(record, 8 * (at[MEANS] + P + k), v))
    for j in range(P):
        rows = rows + abs(read(record, 8 * (at[COEF] + k * P + j), v) * read(record, 8 * (at[MEANS] + j), v))
    for j in range(P):
        length, mean = read(record, 8 * (at[LENGTHS] + j), v), abs(read(record, 8 * (at[MEANS] + j), v))
        size = (length + root * mean) * (y + like(v, ROUNDING) * root * rows) + length * root * rows
        size = size * sqrt(read(record, 8 * (at[INVERSE] + row(j) + j), v))
        most = select(size > most, size, most)
    return most


@loop_jit
def extended_length(record, at, j, alpha):
    """Of column j with the row that a ridge adds to it."""
    v = vector(F64)
    length = read(record, 8 * (at[LENGTHS] + j), v)
    return sqrt(fma(length, length, like(v, alpha)))


@loop_jit
def correct(G, record, small, delta, gradient, P, R, k, alpha, tolerance, fit_intercept, unit, noise, s):
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
        length = abs(high(step)) * extended_length(record, at, j, alpha)
        longest = select(length > longest, length, longest)
    condition, less, of_means = read(record, 8 * at[CONDITION], v), zero, zero
    left = like(v, unit * P) * condition * condition * longest  # of the error, in units of y
    noise = like(v, noise * P) * noise_of(record, P, k, at)
    nothing = like(v, NOTHING) * sqrt(read(record, 8 * (at[SQUARES] + k), v))
    for j in range(P):
        step, place = high(get(delta, j, s)), k * P + j
        b = pair(read(record, 8 * (at[COEF] + place), v), read(record, 8 * (at[SMALL_COEF] + place), v))
        b = b + pair(step, low(get(delta, j, s)))
        write(record, 8 * (at[COEF] + place), high(b))
        write(record, 8 * (at[SMALL_COEF] + place), low(b))
        length, mean = extended_length(record, at, j, alpha), read(record, 8 * (at[MEANS] + j), v)
        error = left + noise * sqrt(read(record, 8 * (at[INVERSE] + row(j) + j), v)) * length
        doubt = select(error <= like(v, tolerance) * abs(high(b)) * length + nothing, doubt, like(v, 1))
        of_means = of_means + select(error > zero, abs(mean) * error / length, zero)
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

    @kernel(FIELDS)
    def regression_correct(block):
        (
            active, count, sums, slots, F, small, where, rows_, log_weights, N, P, R, B, out, fit_intercept,
            keep, room, room_size, alpha, tolerance,
        ) = unpack(block, FIELDS)  # fmt: skip
        v, x = vector(F64), number_zero(1)
        zero, at, s = like(v, 0), places(P, R), number_zero(deep)
        noise = 0.0 if deep else NOISE * math.sqrt(N + 64.0)  # for errors add up as a walk does
        T = P * (P + 1) // 2
        me = worker(block)
        mine = room + 8 * room_size * me
        G_at, G, record_at = mine, array_at(mine, 16 * F, F64), mine + 256 * F
        mine = record_at
        record, delta = array_at(mine, 8 * at[END], F64), array_at(mine + 64 * at[END], 16 * P, F64)
        gradient = array_at(mine + 64 * (at[END] + 2 * P), 16 * P, F64)
        mine += 64 * (at[END] + 4 * P)
        small_V = array_at(mine, 8 * T, F64)
        mine += 64 * T
        few = array_at(mine, 16, F64)
        units, problems, rows_at = array_at(mine + 128, 8, I64), array_at(mine + 192, 8, I64), mine + 256
        start, stop = take(block, me)
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
                            UNIT_PAIRS if deep else UNIT, noise, s,
                        )  # fmt: skip
                        rss = rss - less
                        doubts = select(doubt > zero, like(v, REPEAT if deep else DEEPEN), doubts)
                    finish(record, P, R, k, spread, rss, read(few, 0, v), read(few, 8, v), alpha, fit_intercept)
                write(record, 8 * at[DOUBTS], doubts)
                hand_out(out, record_at, at, B, problems, rows_at, at[SMALL_COEF], at[LENGTHS])
            finished(block, stop - start)
            start, stop = take(block, me)

    return regression_correct
