"""From sums of products to estimates, eight problems at a time, one in each lane; in float64 or in double-double.

    G = sum w (x - xbar)(x - xbar)' + alpha I = L L'       without an intercept: of x, and no means
    M = L^-1,   V = M'M = G^-1,   z = M g,   coef = M'z,   RSS = y'y - z'z,   g = sum w (x - xbar)(y - ybar)

A column is dependent where its distance from the span of those before it is no more than ``closest`` times the columns
themselves, see `factor`. In double-double it is left out, and `rank.py` goes on to the solution of minimum norm; in
float64 it is only noted, as is one whose pivot is less than ``least`` of its square. Where else float64 may not be
enough follows from bounds. With columns scaled to unit norm, the error of a coefficient, and of the intercept, is

    e_j = 2^-53 sum_k |V_jk| (|y|_2 + sum_l |b_l|),    e_0 = 2^-53 (|ybar| + sum |xbar_j b_j|) + sum |xbar_j| e_j

at most. Work unit: a group of eight problems. Layout: a number of eight lanes, or a pair of them, for each number of a
problem. Specification: fastvae/reference/regression/formulas.py
"""

from functools import cache
from typing import NamedTuple

from ..language.double import WORDS, constant, high, load_number, low, number, number_zero, store_number
from ..language.jit import Kernel, kernel, loop_jit, outlined
from ..language.layout import Layout, without_constants
from ..language.math import like, select, sqrt
from ..language.memory import F64, read, section, vector
from ..language.threads import finished, take, worker
from ..language.transpose import rows_to_lanes
from ..language.vector import total
from .factor import center_sums, factor, norm, quadratic, row, square, sums_of
from .fields import BATCH, NONFINITE, PROBLEMS, RECENTER, REFINE, RESULTS, scratch_offsets
from .lanes import ADDRESSES, LANE_NUMBERS, NUMBERS, ROW_COUNTS, find_rows, gather_sums, load_group, scatter_record
from .precision import is_uncertain, next_step, project_inverse, shorten_coefficients, store_small
from .statistics import store_statistics

ALONE, ALONE_PAIRS = 1e-5, 2.0**-67  # of y'y: a smaller RSS is summed from residuals, not what y'y - z'z leaves


class Limits(NamedTuple):
    """What is accepted without further steps."""

    least: float  # pivot, relative to the column's square
    closest: float  # distance of a column from the others, relative to their sizes
    most_error: float  # of V, relative
    tolerance: float  # of a coefficient


def scratch_sizes(P: int, R: int, F: int, results: int, words: int) -> dict[str, int]:
    """What a thread needs; ``results`` is the size of a problem's results, ``words`` that of a vector or a pair."""
    T = P * (P + 1) // 2
    return {
        "sums": F * words,  # G, and the factor in its place
        "slot": F * words,
        "M": T * words,
        "V": T * words,
        "mean": (P + R) * words,
        "coef": P * words,  # of a target
        "scale": WORDS * P,  # lengths of the columns, with what a ridge adds
        "limit": WORDS * P,
        "dropped": WORDS * P,  # 1 for a column left out
        "shrink": WORDS * P,  # 1 / scale
        "grain": WORDS * P,  # see `factor`
        "record": WORDS * results,
        "lost": WORDS * (P + R),  # low parts of the means
        "lanes": LANE_NUMBERS,
        "nulls": 3 * P * P * words if words > WORDS else 0,
    }


SCRATCH = scratch_offsets(scratch_sizes, 1, 1, 1, 1, 1)
LIMITS = Layout(" ".join(f"{name}:float" for name in Limits._fields))
SOLVE = Layout(
    "sums slots F centers small room",  # small: where the low parts of V go, or 0
    batch=BATCH,
    problems=PROBLEMS,
    limits=LIMITS,
    results=RESULTS,
    scratch=SCRATCH.layout,
)


@loop_jit
def load_problems(f, mine, group, x):
    """The sums of eight problems, and the centers these are about."""
    outlined()
    s, problems, v = f.scratch, without_constants(f.problems), vector(F64)
    lanes, columns = mine + 8 * s.lanes, problems.P + problems.R
    record, mean, lost = section(mine, s.record, s.end), section(mine, s.mean, s.end), section(mine, s.lost, s.end)
    load_group(lanes, without_constants(f.batch), problems, group)
    find_rows(lanes, f.centers + 8, 1 + columns, lanes + 8 * NUMBERS)
    rows_to_lanes(mine + 8 * s.record, lanes + 8 * ADDRESSES, columns)  # the record is free until later
    for j in range(columns):
        store_number(mean, j, number(x, load_number(record, j, v), like(v, 0)))
        store_number(lost, j, like(v, 0))
    gather_sums(mine + 8 * s.sums, mine + 8 * s.slot, lanes, f.sums, f.slots, f.F, x)


@loop_jit
def measure_columns(f, mine, x):
    """Lengths of columns, limits of their pivots, and the ridge; 0, or NaN in the lanes where a sum is not finite."""
    outlined()
    s, limits, at, v = f.scratch, f.limits, f.results.at, vector(F64)
    G, mean, record = section(mine, s.sums, s.end), section(mine, s.mean, s.end), section(mine, s.record, s.end)
    limit, grain = section(mine, s.limit, s.end), section(mine, s.grain, s.end)
    scale, shrink = section(mine, s.scale, s.end), section(mine, s.shrink, s.end)
    zero, unity, weight = like(v, 0), like(v, 1), high(load_number(G, 0, x))
    nonfinite = weight - weight
    for j in range(f.problems.P):
        own = row(j + 1) + j + 1
        length2 = high(load_number(G, own, x))
        nonfinite = nonfinite + (length2 - length2)
        m = high(load_number(mean, j, x))
        raw = length2 + weight * m * m if f.problems.fit_intercept else length2
        store_number(limit, j, like(v, limits.least) * length2)
        store_number(grain, j, like(v, limits.closest) * sqrt(raw))
        store_number(record, at.lengths + j, sqrt(select(length2 > zero, length2, zero)))
        store_number(G, own, load_number(G, own, x) + constant(x, f.problems.alpha))
        length = sqrt(high(load_number(G, own, x)))
        store_number(scale, j, length)
        store_number(shrink, j, select(length > zero, unity / length, zero))
    return nonfinite


@loop_jit
def store_problem(f, mine, rank, squared, x):
    """What is the same for all targets, and what the next steps need; the variance of the intercept for noise of unit
    variance. ``squared`` is the condition number of G, a bound.
    """
    outlined()
    s, P, at, v = f.scratch, f.problems.P, f.results.at, vector(F64)
    V, mean, lost = section(mine, s.V, s.end), section(mine, s.mean, s.end), section(mine, s.lost, s.end)
    record, weight = section(mine, s.record, s.end), high(load_number(section(mine, s.sums, s.end), 0, x))
    store_number(record, at.rank, rank)
    store_number(record, at.condition, sqrt(squared))
    store_number(record, at.weight, weight)
    for k in range(P * (P + 1) // 2):
        store_number(record, at.inverse + k, high(load_number(V, k, x)))
    for j in range(P):
        store_number(record, at.small_means + j, load_number(lost, j, v))
    for j in range(P + f.problems.R):
        store_number(record, at.means + j, high(load_number(mean, j, x)))
    spread = like(v, 0)
    if f.problems.fit_intercept:
        spread = high(quadratic(V, mean, P, x)) + like(v, 1) / weight
    store_number(record, at.spread, spread)
    return spread


@loop_jit
def solve_target(f, mine, r, dependent, x):
    """Coefficients and intercept of target r; RSS without what a ridge adds. ``dependent``: whether columns are."""
    outlined()
    s, P, at, v = f.scratch, f.problems.P, f.results.at, vector(F64)
    G, M, record = section(mine, s.sums, s.end), section(mine, s.M, s.end), section(mine, s.record, s.end)
    mean, coef, to = section(mine, s.mean, s.end), section(mine, s.coef, s.end), sums_of(P + 1 + r, P)
    yy, rss = load_number(G, to + P + 1, x), load_number(G, to + P + 1, x)
    for j in range(P):
        z = load_number(G, to + j + 1, x)
        rss = rss - z * z
        acc = constant(x, 0)
        for i in range(j, P):
            acc = acc + load_number(M, row(i) + j, x) * load_number(G, to + i + 1, x)
        store_number(coef, j, acc)
    if dependent:
        shorten_coefficients(f.pairs, f, mine, x)
    intercept, rest = load_number(mean, P + r, x) if f.problems.fit_intercept else constant(x, 0), high(rss)
    for j in range(P):
        value = load_number(coef, j, x)
        if f.problems.fit_intercept:
            intercept = intercept - load_number(mean, j, x) * value
        rest = rest - like(v, f.problems.alpha) * high(value) * high(value)
        store_number(record, at.coef + r * P + j, high(value))
        store_number(record, at.small_coef + r * P + j, low(value))
    store_number(record, at.intercept + r, high(intercept))
    store_number(record, at.small_intercept + r, low(intercept))
    store_number(record, at.squares + r, high(yy))
    return rest


@cache
def make_solve(pairs: int) -> Kernel:
    """The kernel, in double-double if ``pairs``."""

    @kernel(SOLVE, pairs=pairs)
    def regression_solve(f):
        s, results, problems = f.scratch, without_constants(f.results), without_constants(f.problems)
        P, R, at, v, x = problems.P, problems.R, results.at, vector(F64), number_zero(f.pairs)
        zero, unity = like(v, 0), like(v, 1)
        me = worker(f.header)
        mine = f.room + 8 * s.end * me
        G, M, V = section(mine, s.sums, s.end), section(mine, s.M, s.end), section(mine, s.V, s.end)
        mean, lost, record = section(mine, s.mean, s.end), section(mine, s.lost, s.end), section(mine, s.record, s.end)
        scale, shrink = section(mine, s.scale, s.end), section(mine, s.shrink, s.end)
        limit, grain = section(mine, s.limit, s.end), section(mine, s.grain, s.end)
        dropped, row_counts = section(mine, s.dropped, s.end), section(mine, s.lanes + ROW_COUNTS, s.end)
        start, stop = take(f.header, me)
        while start < stop:
            for group in range(start, stop):
                load_problems(f, mine, group, x)
                far = center_sums(G, mean, lost, P, R, x) if problems.fit_intercept else zero
                nonfinite = measure_columns(f, mine, x)
                size = norm(G, 1, shrink, P, x)
                rows = read(row_counts, 0, v)
                most = rows - like(v, 1.0 * problems.fit_intercept) if problems.alpha == 0 else like(v, P)
                rank = factor(G, M, dropped, limit, grain, most, P, R, x)
                square(V, M, P, x)
                dependent = select(rank < like(v, P), unity, zero)
                if total(dependent) > 0:
                    project_inverse(f.pairs, f, mine, x)
                squared = size * norm(V, 0, scale, P, x)
                spread = store_problem(f, mine, rank, squared, x)
                refine = zero
                for r in range(R):
                    rss = solve_target(f, mine, r, total(dependent) > 0, x)
                    yy = load_number(record, at.squares + r, v)
                    nonfinite = nonfinite + (yy - yy)
                    refine = select(rss >= like(v, ALONE_PAIRS if f.pairs else ALONE) * yy, refine, unity)
                    refine = select(is_uncertain(f.pairs, f, mine, r, yy, x) > zero, unity, refine)
                    store_statistics(record, at, problems, mine + 8 * s.lanes, r, spread, rss)
                flags = next_step(f.pairs, f, squared, dependent) + select(far > zero, like(v, RECENTER), zero)
                flags = flags + select(nonfinite == zero, zero, like(v, NONFINITE))
                store_number(record, at.flags, flags + select(refine > zero, like(v, REFINE), zero))
                store_small(f.pairs, f, mine, x)
                scatter_record(results, mine + 8 * s.record, mine + 8 * s.lanes, at.weight, at.end)
            finished(f.header, stop - start)
            start, stop = take(f.header, me)

    return regression_solve
