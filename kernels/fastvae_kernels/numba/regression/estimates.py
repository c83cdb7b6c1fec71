"""From sums of products to estimates, eight problems at a time, one in each lane; in float64 or in double-double.

    G = sum w (x - xbar)(x - xbar)' + alpha I = L L'       without an intercept: of x, and no means
    M = L^-1,   V = M'M = G^-1,   z = M g,   coef = M'z,   RSS = y'y - z'z,   g = sum w (x - xbar)(y - ybar)

A column is dependent where its distance from the span of those before it is no more than ``closest`` times the columns
themselves, see `factor`. In double-double it is left out, and `rank.py` goes on to the solution of minimum
norm; in float64 it is only noted, as is one whose pivot is less than ``least`` of its square. What else float64 leaves
in doubt is seen from bounds. With columns scaled to unit norm, the error of a coefficient, and of the intercept, is

    e_j = 2^-53 sum_k |V_jk| (|y|_2 + sum_l |b_l|),    e_0 = 2^-53 (|ybar| + sum |xbar_j b_j|) + sum |xbar_j| e_j

at most.

Results lie in fields, see `fields.py`. Specification: fastvae/reference/regression/formulas.py
"""

import math
from functools import cache

from ..language.double import constant, get, high, low, number, number_zero, put, words
from ..language.jit import Kernel, kernel, loop_jit, outlined, unpack
from ..language.math import like, log, select, sqrt
from ..language.memory import F64, I64, array_at, read, vector, write
from ..language.threads import finished, take, worker
from ..language.transpose import into_lanes
from .factor import UNIT, center_sums, doubtful, factor, norm, quadratic, row, square, sums_of
from .fields import (
    COEF,
    COEF_ERROR,
    CONDITION,
    DEEPEN,
    DEPENDENT,
    DOUBTS,
    END,
    FAR,
    INTERCEPT,
    INTERCEPT_ERROR,
    INVERSE,
    LENGTHS,
    LOG_LIKELIHOOD,
    MEANS,
    NONFINITE,
    R2,
    RANK,
    REFINE,
    REPEAT,
    RSS,
    SIGMA2,
    SMALL_COEF,
    SMALL_INTERCEPT,
    SMALL_MEANS,
    SPREAD,
    SQUARES,
    STATE,
    UNBIASED,
    WEIGHT,
    choose_problems,
    find_rows,
    hand_out,
    places,
)
from .rank import null_vectors, project, shorten

UNIT_PAIRS = 2.0**-103
ALONE, ALONE_PAIRS = 1e-5, 2.0**-67  # of y'y: a smaller RSS is summed up from residuals, not what y'y - z'z leaves
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
FIELDS = "17q 5d"


@loop_jit
def gather(G, more, sums, units, rows, slots, F, x):
    """Add up the slots of eight problems, in index order, lane by lane; all but the units are addresses."""
    outlined()
    size = F * words(x)
    total_, other = array_at(G, size, F64), array_at(more, size, F64)
    for s in range(slots):
        find_rows(rows, sums + s * size, slots * size // 8, units)
        into_lanes(more if s else G, rows, size // 8)
        if s:
            for k in range(F):
                put(total_, k, get(total_, k, x) + get(other, k, x))


@loop_jit
def finish(record, P, R, r, spread, rss, rows, log_weight, alpha, fit_intercept):
    """Variances, standard errors, log-likelihood, R^2 and RSS of target r, given RSS."""
    outlined()
    v, at = vector(F64), places(P, R)
    zero, nan = like(v, 0), like(v, math.nan)
    df = rows - read(record, 8 * at[RANK], v) - like(v, 1.0 * fit_intercept)
    rss = select(rss <= zero, zero, rss)
    sigma2 = rss / rows
    unbiased = select(df > zero, rss / df, nan)
    if alpha > 0:
        unbiased = nan
    for j in range(P):
        variance = read(record, 8 * (at[INVERSE] + row(j) + j), v)
        write(record, 8 * (at[COEF_ERROR] + r * P + j), sqrt(variance * unbiased))
    write(record, 8 * (at[INTERCEPT_ERROR] + r), sqrt(spread * unbiased) if fit_intercept else zero)
    write(record, 8 * (at[SIGMA2] + r), sigma2)
    write(record, 8 * (at[UNBIASED] + r), unbiased)
    value = like(v, 0.5) * (log_weight - rows * (log(sigma2) + like(v, 2 * HALF_LOG_2PI + 1)))
    write(record, 8 * (at[LOG_LIKELIHOOD] + r), value)
    write(record, 8 * (at[R2] + r), like(v, 1) - rss / read(record, 8 * (at[SQUARES] + r), v))
    write(record, 8 * (at[RSS] + r), rss)


@cache
def make_solve(pairs: int) -> Kernel:
    """The kernel, in double-double if ``pairs``."""

    @kernel(FIELDS)
    def regression_solve(block):
        (
            active, count, sums, slots, F, centers, small, rows_, log_weights, N, P, R, B, out, fit_intercept,
            room, room_size, alpha, least, closest, most_error, tolerance,
        ) = unpack(block, FIELDS)  # fmt: skip
        v = vector(F64)
        x = number_zero(pairs)
        n = words(x)
        T = P * (P + 1) // 2
        at = places(P, R)
        me = worker(block)
        mine = room + 8 * room_size * me
        G_at, G = mine, array_at(mine, F * n, F64)
        mine += 16 * F * n
        M, V = array_at(mine, T * n, F64), array_at(mine + 8 * T * n, T * n, F64)
        mine += 16 * T * n
        mean, coef = array_at(mine, (P + R) * n, F64), array_at(mine + 8 * (P + R) * n, P * n, F64)
        mine += 8 * (2 * P + R) * n
        scale, limit = array_at(mine, 8 * P, F64), array_at(mine + 64 * P, 8 * P, F64)
        dropped, shrink = array_at(mine + 128 * P, 8 * P, F64), array_at(mine + 192 * P, 8 * P, F64)
        grain, record_at = array_at(mine + 256 * P, 8 * P, F64), mine + 320 * P
        record = array_at(record_at, 8 * at[END], F64)
        mine += 320 * P + 64 * at[END]
        few = array_at(mine, 24, F64)
        units, problems = array_at(mine + 192, 8, I64), array_at(mine + 256, 8, I64)
        rows_at, lost = mine + 320, array_at(mine + 384, 8 * (P + R), F64)
        nulls = array_at(mine + 384 + 64 * (P + R), 3 * P * P * n if pairs else 0, F64)
        zero, unity = like(v, 0), like(v, 1)
        start, stop = take(block, me)
        while start < stop:
            for group in range(start, stop):
                choose_problems(units, problems, few, few[8:], active, group, count, rows_, log_weights, N)
                find_rows(rows_at, centers + 8, P + 1 + R, problems)
                into_lanes(record_at, rows_at, P + R)
                for j in range(P + R):
                    put(mean, j, number(x, read(record, 8 * j, v), zero))
                rows, log_weight = read(few, 0, v), read(few, 8, v)
                gather(G_at, G_at + 8 * F * n, sums, units, rows_at, slots, F, x)
                total = get(G, 0, x)
                far = zero
                for j in range(P + R):
                    write(lost, 8 * j, zero)
                if fit_intercept:
                    far = center_sums(G, mean, lost, P, R, x)
                ill = high(total) - high(total)
                for j in range(P):
                    own = row(j + 1) + j + 1
                    length2 = high(get(G, own, x))
                    ill = ill + (length2 - length2)
                    m = high(get(mean, j, x))
                    raw = length2 + high(total) * m * m if fit_intercept else length2
                    write(limit, 8 * j, like(v, least) * length2)
                    write(grain, 8 * j, like(v, closest) * sqrt(raw))
                    write(record, 8 * (at[LENGTHS] + j), sqrt(select(length2 > zero, length2, zero)))
                    put(G, own, get(G, own, x) + constant(x, alpha))
                    length = sqrt(high(get(G, own, x)))
                    write(scale, 8 * j, length)
                    write(shrink, 8 * j, select(length > zero, unity / length, zero))
                size = norm(G, 1, shrink, P, x)
                most = rows - like(v, 1.0 * fit_intercept) if alpha == 0 else like(v, P)
                factor(G, M, dropped, limit, grain, most, P, R, x)
                square(V, M, P, x)
                rank, any_dropped = zero, zero
                for j in range(P):
                    rank = rank + (unity - read(dropped, 8 * j, v))
                    any_dropped = select(read(dropped, 8 * j, v) > zero, unity, any_dropped)
                write(record, 8 * at[RANK], rank)
                write(few, 16, any_dropped)
                dependent = False
                for lane in range(8):
                    dependent = dependent or few[16 + lane] > 0
                if pairs and dependent:
                    null_vectors(nulls, M, G, dropped, P, x)
                    project(nulls, V, P, x)
                squared = size * norm(V, 0, scale, P, x)  # of the condition
                doubts = select(far > zero, like(v, FAR), zero)
                for k in range(T):
                    write(record, 8 * (at[INVERSE] + k), high(get(V, k, x)))
                spread = zero
                if fit_intercept:
                    spread = high(quadratic(V, mean, P, x)) + unity / high(total)
                deepen = select(like(v, UNIT * P) * squared <= like(v, most_error), any_dropped, unity)
                refine = zero
                for r in range(R):
                    to = sums_of(P + 1 + r, P)
                    yy = get(G, to + P + 1, x)
                    rss = yy
                    for j in range(P):
                        z = get(G, to + j + 1, x)
                        rss = rss - z * z
                        acc = constant(x, 0)
                        for i in range(j, P):
                            acc = acc + get(M, row(i) + j, x) * get(G, to + i + 1, x)
                        put(coef, j, acc)
                    if pairs and dependent:
                        shorten(nulls, coef, P, x)
                    ybar = get(mean, P + r, x)
                    intercept, rest = ybar if fit_intercept else constant(x, 0), high(rss)
                    for j in range(P):
                        value = get(coef, j, x)
                        if fit_intercept:
                            intercept = intercept - get(mean, j, x) * value
                        rest = rest - like(v, alpha) * high(value) * high(value)
                        write(record, 8 * (at[COEF] + r * P + j), high(value))
                        write(record, 8 * (at[SMALL_COEF] + r * P + j), low(value))
                    write(record, 8 * (at[INTERCEPT] + r), high(intercept))
                    write(record, 8 * (at[SMALL_INTERCEPT] + r), low(intercept))
                    y2 = high(yy)
                    ill = ill + (y2 - y2)
                    write(record, 8 * (at[SQUARES] + r), y2)
                    alone = ALONE_PAIRS if pairs else ALONE
                    refine = select(rest >= like(v, alone) * y2, refine, unity)
                    if not pairs:
                        doubt = doubtful(
                            V, scale, mean, coef, high(intercept), y2, high(ybar), tolerance, P, fit_intercept, x
                        )
                        refine = select(doubt > zero, unity, refine)
                    finish(record, P, R, r, spread, rest, rows, log_weight, alpha, fit_intercept)
                doubts = doubts + select(ill == zero, zero, like(v, NONFINITE))
                doubts = doubts + select(refine > zero, like(v, REFINE), zero)
                if pairs:
                    doubts = doubts + select(any_dropped > zero, like(v, DEPENDENT), zero)
                    left = like(v, UNIT_PAIRS * P) * squared
                    doubts = doubts + select(left <= like(v, tolerance), zero, like(v, REPEAT))
                    if small:
                        for lane in range(8):
                            rest_of_V = array_at(small + 8 * units[lane] * T, T, F64)
                            for k in range(T):
                                rest_of_V[k] = V[(2 * k + 1) * 8 + lane]
                else:
                    doubts = doubts + select(deepen > zero, like(v, DEEPEN), zero)
                write(record, 8 * at[CONDITION], sqrt(squared))
                write(record, 8 * at[DOUBTS], doubts)
                write(record, 8 * at[WEIGHT], high(total))
                write(record, 8 * at[SPREAD], spread)
                for j in range(P):
                    write(record, 8 * (at[SMALL_MEANS] + j), read(lost, 8 * j, v))
                for j in range(P + R):
                    write(record, 8 * (at[MEANS] + j), high(get(mean, j, x)))
                hand_out(out, record_at, at, B, problems, rows_at, at[STATE], at[END])
            finished(block, stop - start)
            start, stop = take(block, me)

    return regression_solve
