"""Solutions corrected by residuals, eight problems at a time, one in each lane.

    delta = V (X'r - xbar 1'r - alpha b),    b += delta,    b0 += 1'r / n - xbar'delta

The sums are pairs, see `residual.py`, and so are b and b0, so that delta is as exact as V: what is left of the
error is delta times 2^-53 P condition^2. Where that is more than the tolerance the problem is left to double-double.
There V is a pair, what is left 2^-103 P condition^2, and the correction for conditions of 1e8 and more, repeated near
1e14. The sums themselves have errors of 2^-104 of what they started from, which counts where columns are far from the
origin: `noise_of` bounds them. Work unit and layout: as `estimates.py`.
Specification: fastvae/reference/regression/formulas.py
"""

import math
from functools import cache

from ..language.double import WORDS, constant, high, load_number, low, number, number_zero, pair, store_number
from ..language.jit import Kernel, by_constant, kernel, loop_jit, math_jit, outlined
from ..language.layout import Layout, without_constants
from ..language.math import fma, like, select, sqrt
from ..language.memory import F64, I64, array_at, section, vector
from ..language.threads import finished, take, worker
from .factor import UNIT, row
from .fields import BATCH, PROBLEMS, REPEAT, RESULTS, TO_DOUBLE_DOUBLE, scratch_offsets
from .lanes import LANE_NUMBERS, UNITS, gather_record, gather_sums, load_group, scatter_record
from .precision import FLOAT64, PAIRS, UNIT_PAIRS
from .residual import ROUNDING
from .statistics import store_statistics

NOTHING = 2.0**-90  # of y: so small an error tells nothing of a coefficient that is 0
NOISE = 2.0**-104


def scratch_sizes(P: int, F: int, results: int) -> dict[str, int]:
    """What a thread needs; ``results`` are the numbers of a problem's results."""
    return {
        "sums": 2 * WORDS * F,
        "slot": 2 * WORDS * F,
        "record": WORDS * results,
        "delta": 2 * WORDS * P,
        "gradient": 2 * WORDS * P,
        "small_V": WORDS * P * (P + 1) // 2,  # low parts
        "lanes": LANE_NUMBERS,
    }


SCRATCH = scratch_offsets(scratch_sizes, 1, 1, 1)
# The low parts of V of unit i of the batch are row where[i] of small; ``keep``: the solutions stay, with new RSS.
CORRECT = Layout(
    "sums slots F small where keep room tolerance:float",
    batch=BATCH,
    problems=PROBLEMS,
    results=RESULTS,
    scratch=SCRATCH.layout,
)


@loop_jit
def extended_length(record, at, j, alpha):
    """Of column j with the row that a ridge adds to it."""
    v = vector(F64)
    length = load_number(record, at.lengths + j, v)
    return sqrt(fma(length, length, like(v, alpha)))


@loop_jit
def set_delta(f, mine, k, s):
    """delta of target k, and its largest part in units of y; X'r becomes X'r - xbar 1'r. ``s`` is a zero of the type of
    V.
    """
    outlined()
    P, alpha, at, v, x = f.problems.P, f.problems.alpha, without_constants(f.results).at, vector(F64), number_zero(1)
    sums, record = section(mine, f.scratch.sums, f.scratch.end), section(mine, f.scratch.record, f.scratch.end)
    gradient, delta = section(mine, f.scratch.gradient, f.scratch.end), section(mine, f.scratch.delta, f.scratch.end)
    small_V, first, longest = section(mine, f.scratch.small_V, f.scratch.end), k * (P + 2), like(v, 0)
    all_ = load_number(sums, first, x)
    for j in range(P):
        g = load_number(sums, first + 1 + j, x)
        if f.problems.fit_intercept:
            g = g - pair(load_number(record, at.means + j, v), load_number(record, at.small_means + j, v)) * all_
            store_number(sums, first + 1 + j, g)
        if alpha > 0:
            b = pair(load_number(record, at.coef + k * P + j, v), load_number(record, at.small_coef + k * P + j, v))
            g = g - constant(x, alpha) * b
        store_number(gradient, j, number(s, high(g), low(g)))
    for j in range(P):
        step = s
        for i in range(P):
            entry = row(max(i, j)) + min(i, j)
            V = number(s, load_number(record, at.inverse + entry, v), load_number(small_V, entry, v))
            step = step + V * load_number(gradient, i, s)
        store_number(delta, j, step)
        length = abs(high(step)) * extended_length(record, at, j, alpha)
        longest = select(length > longest, length, longest)
    return longest


@loop_jit
def noise_of(record, P, k, at):
    """How large the sums of residuals of target k start, and so how large their errors may be, of all columns with
    V_jj = 1; times sqrt(V_jj), of coefficient j.
    """
    outlined()
    v, most = vector(F64), like(vector(F64), 0)
    y, root = sqrt(load_number(record, at.squares + k, v)), sqrt(load_number(record, at.weight, v))
    rows = abs(load_number(record, at.intercept + k, v)) + abs(load_number(record, at.means + P + k, v))
    for j in range(P):
        rows = rows + abs(load_number(record, at.coef + k * P + j, v) * load_number(record, at.means + j, v))
    for j in range(P):
        length, mean = load_number(record, at.lengths + j, v), abs(load_number(record, at.means + j, v))
        size = (length + root * mean) * (y + like(v, ROUNDING) * root * rows) + length * root * rows
        size = size * sqrt(load_number(record, at.inverse + row(j) + j, v))
        most = select(size > most, size, most)
    return most


@loop_jit
def add_delta(f, mine, k, left, noise, s):
    """Add delta to the coefficients of target k, and what follows to the intercept. By how much that lowers RSS, and 1
    in the lanes where an error may exceed the tolerance: ``left`` in units of y, and ``noise`` times sqrt(V_jj).
    """
    outlined()
    P, alpha, at, v, x = f.problems.P, f.problems.alpha, without_constants(f.results).at, vector(F64), number_zero(1)
    sums, record = section(mine, f.scratch.sums, f.scratch.end), section(mine, f.scratch.record, f.scratch.end)
    delta, nothing = (
        section(mine, f.scratch.delta, f.scratch.end),
        like(v, NOTHING) * sqrt(load_number(record, at.squares + k, v)),
    )
    zero, shift, doubt, less, of_means = like(v, 0), like(v, 0), like(v, 0), like(v, 0), like(v, 0)
    for j in range(P):
        step, place = high(load_number(delta, j, s)), k * P + j
        b = pair(load_number(record, at.coef + place, v), load_number(record, at.small_coef + place, v))
        b = b + pair(step, low(load_number(delta, j, s)))
        store_number(record, at.coef + place, high(b))
        store_number(record, at.small_coef + place, low(b))
        length, mean = extended_length(record, at, j, alpha), load_number(record, at.means + j, v)
        error = left + noise * sqrt(load_number(record, at.inverse + row(j) + j, v)) * length
        doubt = select(error <= like(v, f.tolerance) * abs(high(b)) * length + nothing, doubt, like(v, 1))
        of_means = of_means + select(error > zero, abs(mean) * error / length, zero)
        shift = shift - mean * step
        # RSS(b + delta) = RSS(b) - 2 delta'g + delta'G delta, where (G + alpha I) delta = g - alpha b
        less = less + step * (high(load_number(sums, k * (P + 2) + j + 1, x)) + like(v, alpha) * high(b))
    if f.problems.fit_intercept:
        all_ = high(load_number(sums, k * (P + 2), x))
        mean = all_ / load_number(record, at.weight, v)
        b = pair(load_number(record, at.intercept + k, v), load_number(record, at.small_intercept + k, v))
        b = b + pair(shift + mean, zero)
        store_number(record, at.intercept + k, high(b))
        store_number(record, at.small_intercept + k, low(b))
        doubt = select(of_means <= like(v, f.tolerance) * abs(high(b)) + nothing, doubt, like(v, 1))
        less = less + all_ * mean
    return less, doubt


@math_jit
def no_low_parts(f, mine):
    """In float64 V has none."""


@loop_jit
def gather_low_parts(f, mine):
    """The low parts of V of the problems in the lanes."""
    outlined()
    s, T = f.scratch, f.problems.P * (f.problems.P + 1) // 2
    to, units = section(mine, s.small_V, s.end), array_at(mine + 8 * (s.lanes + UNITS), 8, I64)
    for lane in range(8):
        i = array_at(f.where + 8 * units[lane], 1, I64)[0]
        own = array_at(f.small + 8 * T * i, T, F64)
        for k in range(T):
            to[8 * k + lane] = own[k]


load_small = by_constant({FLOAT64: no_low_parts, PAIRS: gather_low_parts})


@cache
def make_correct(pairs: int) -> Kernel:
    """The kernel, with V in double-double if ``pairs``."""

    @kernel(CORRECT, pairs=pairs)
    def regression_correct(f):
        s, results, problems = f.scratch, without_constants(f.results), without_constants(f.problems)
        P, at, v, x, zero = problems.P, results.at, vector(F64), number_zero(1), number_zero(f.pairs)
        unit, code = (UNIT_PAIRS, REPEAT) if f.pairs else (UNIT, TO_DOUBLE_DOUBLE)
        noise = 0.0 if f.pairs else NOISE * math.sqrt(problems.N + 64.0)  # for errors add up as a walk does
        me = worker(f.header)
        mine = f.room + 8 * s.end * me
        lanes, sums, record = mine + 8 * s.lanes, section(mine, s.sums, s.end), section(mine, s.record, s.end)
        start, stop = take(f.header, me)
        while start < stop:
            for group in range(start, stop):
                load_group(lanes, without_constants(f.batch), problems, group)
                gather_sums(mine + 8 * s.sums, mine + 8 * s.slot, lanes, f.sums, f.slots, f.F, x)
                gather_record(mine + 8 * s.record, results, lanes)
                load_small(f.pairs, f, mine)
                flags, spread, condition = (
                    like(v, 0),
                    load_number(record, at.spread, v),
                    load_number(record, at.condition, v),
                )
                for k in range(problems.R):
                    rss = high(load_number(sums, k * (P + 2) + P + 1, x))
                    if not f.keep:
                        left = like(v, unit * P) * condition * condition * set_delta(f, mine, k, zero)
                        bound = like(v, noise * P) * noise_of(record, P, k, at)
                        less, doubt = add_delta(f, mine, k, left, bound, zero)
                        rss, flags = rss - less, select(doubt > like(v, 0), like(v, code), flags)
                    store_statistics(record, at, problems, lanes, k, spread, rss)
                store_number(record, at.flags, flags)
                scatter_record(results, mine + 8 * s.record, lanes, at.small_coef, at.lengths)
            finished(f.header, stop - start)
            start, stop = take(f.header, me)

    return regression_correct
