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

from ..language.double import WORDS, constant, get, high, low, number, number_zero, pair, put
from ..language.jit import Kernel, by_constant, kernel, loop_jit, math_jit, outlined
from ..language.layout import Layout, without_constants
from ..language.math import fma, like, select, sqrt
from ..language.memory import F64, I64, array_at, vector
from ..language.threads import finished, take, worker
from .estimates import FLOAT64, PAIRS, UNIT_PAIRS
from .factor import UNIT, row
from .fields import BATCH, PROBLEMS, REPEAT, RESULTS, TO_DOUBLE_DOUBLE, scratch_offsets, section
from .lanes import LANE_NUMBERS, UNITS, gather_record, gather_sums, load_group, scatter_record
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
def set_gradient(f, mine, k, s):
    """X'r - xbar 1'r - alpha b of target k, where X'r becomes X'r - xbar 1'r; ``s`` is a zero of the type of V."""
    outlined()
    P, alpha, at, v, x = f.problems.P, f.problems.alpha, f.results.at, vector(F64), number_zero(1)
    sums, record = section(mine, f.scratch.sums, f.scratch.end), section(mine, f.scratch.record, f.scratch.end)
    gradient, first = section(mine, f.scratch.gradient, f.scratch.end), k * (P + 2)
    if f.problems.fit_intercept:
        all_ = get(sums, first, x)
        for j in range(P):
            mean = pair(get(record, at.means + j, v), get(record, at.small_means + j, v))
            put(sums, first + 1 + j, get(sums, first + 1 + j, x) - mean * all_)
    for j in range(P):
        g = get(sums, first + 1 + j, x)
        if alpha > 0:
            b = pair(get(record, at.coef + k * P + j, v), get(record, at.small_coef + k * P + j, v))
            g = g - constant(x, alpha) * b
        put(gradient, j, number(s, high(g), low(g)))


@loop_jit
def extended_length(record, at, j, alpha):
    """Of column j with the row that a ridge adds to it."""
    v = vector(F64)
    length = get(record, at.lengths + j, v)
    return sqrt(fma(length, length, like(v, alpha)))


@loop_jit
def set_delta(f, mine, s):
    """V times the gradient; the length of its longest part in units of y."""
    outlined()
    P, at, v = f.problems.P, without_constants(f.results).at, vector(F64)
    record, small_V = section(mine, f.scratch.record, f.scratch.end), section(mine, f.scratch.small_V, f.scratch.end)
    gradient, delta = section(mine, f.scratch.gradient, f.scratch.end), section(mine, f.scratch.delta, f.scratch.end)
    longest = like(v, 0)
    for j in range(P):
        step = s
        for i in range(P):
            entry = row(max(i, j)) + min(i, j)
            V = number(s, get(record, at.inverse + entry, v), get(small_V, entry, v))
            step = step + V * get(gradient, i, s)
        put(delta, j, step)
        length = abs(high(step)) * extended_length(record, at, j, f.problems.alpha)
        longest = select(length > longest, length, longest)
    return longest


@loop_jit
def noise_of(record, P, k, at):
    """How large the sums of residuals of target k start, and so how large their errors may be, of all columns with
    V_jj = 1; times sqrt(V_jj), of coefficient j.
    """
    outlined()
    v, most = vector(F64), like(vector(F64), 0)
    y, root = sqrt(get(record, at.squares + k, v)), sqrt(get(record, at.weight, v))
    rows = abs(get(record, at.intercept + k, v)) + abs(get(record, at.means + P + k, v))
    for j in range(P):
        rows = rows + abs(get(record, at.coef + k * P + j, v) * get(record, at.means + j, v))
    for j in range(P):
        length, mean = get(record, at.lengths + j, v), abs(get(record, at.means + j, v))
        size = (length + root * mean) * (y + like(v, ROUNDING) * root * rows) + length * root * rows
        size = size * sqrt(get(record, at.inverse + row(j) + j, v))
        most = select(size > most, size, most)
    return most


@loop_jit
def add_delta(f, mine, k, left, noise, nothing, s):
    """Add delta to the coefficients of target k. By how much that lowers RSS and shifts the intercept, 1 in the lanes
    where an error may exceed the tolerance, and the error of the intercept that follows from those of coefficients.
    """
    outlined()
    P, alpha, at, v, x = f.problems.P, f.problems.alpha, without_constants(f.results).at, vector(F64), number_zero(1)
    sums, record = section(mine, f.scratch.sums, f.scratch.end), section(mine, f.scratch.record, f.scratch.end)
    delta = section(mine, f.scratch.delta, f.scratch.end)
    zero, shift, doubt, less, of_means = like(v, 0), like(v, 0), like(v, 0), like(v, 0), like(v, 0)
    for j in range(P):
        step, place = high(get(delta, j, s)), k * P + j
        b = pair(get(record, at.coef + place, v), get(record, at.small_coef + place, v))
        b = b + pair(step, low(get(delta, j, s)))
        put(record, at.coef + place, high(b))
        put(record, at.small_coef + place, low(b))
        length, mean = extended_length(record, at, j, alpha), get(record, at.means + j, v)
        error = left + noise * sqrt(get(record, at.inverse + row(j) + j, v)) * length
        doubt = select(error <= like(v, f.tolerance) * abs(high(b)) * length + nothing, doubt, like(v, 1))
        of_means = of_means + select(error > zero, abs(mean) * error / length, zero)
        shift = shift - mean * step
        # RSS(b + delta) = RSS(b) - 2 delta'g + delta'G delta, where (G + alpha I) delta = g - alpha b
        less = less + step * (high(get(sums, k * (P + 2) + j + 1, x)) + like(v, alpha) * high(b))
    return less, shift, doubt, of_means


@loop_jit
def shift_intercept(f, mine, k, shift, of_means, nothing, less, doubt):
    """Add to the intercept of target k what follows, and the mean residual; likewise ``less`` and ``doubt``."""
    outlined()
    at, v, x = f.results.at, vector(F64), number_zero(1)
    sums, record = section(mine, f.scratch.sums, f.scratch.end), section(mine, f.scratch.record, f.scratch.end)
    all_ = high(get(sums, k * (f.problems.P + 2), x))
    mean = all_ / get(record, at.weight, v)
    b = pair(get(record, at.intercept + k, v), get(record, at.small_intercept + k, v))
    b = b + pair(shift + mean, like(v, 0))
    put(record, at.intercept + k, high(b))
    put(record, at.small_intercept + k, low(b))
    doubt = select(of_means <= like(v, f.tolerance) * abs(high(b)) + nothing, doubt, like(v, 1))
    return less + all_ * mean, doubt


@loop_jit
def correct(f, mine, k, noise):
    """Correct target k; by how much that lowers RSS, and 1 in the lanes where one correction is not enough."""
    outlined()
    P, v, s, at = f.problems.P, vector(F64), number_zero(f.pairs), without_constants(f.results).at
    record = section(mine, f.scratch.record, f.scratch.end)
    set_gradient(f, mine, k, s)
    longest = set_delta(f, mine, s)
    condition, unit = get(record, at.condition, v), UNIT_PAIRS if f.pairs else UNIT
    left = like(v, unit * P) * condition * condition * longest  # of the error, in units of y
    noise = like(v, noise * P) * noise_of(record, P, k, at)
    nothing = like(v, NOTHING) * sqrt(get(record, at.squares + k, v))
    less, shift, doubt, of_means = add_delta(f, mine, k, left, noise, nothing, s)
    if f.problems.fit_intercept:
        less, doubt = shift_intercept(f, mine, k, shift, of_means, nothing, less, doubt)
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


@loop_jit
def correct_group(f, mine, group):
    """Correct eight problems, or sum their RSS from residuals alone."""
    outlined()
    s, P, v, x = f.scratch, f.problems.P, vector(F64), number_zero(1)
    results, problems = without_constants(f.results), without_constants(f.problems)
    at, lanes, sums, record = results.at, mine + 8 * s.lanes, section(mine, s.sums, s.end), section(mine, s.record, s.end)
    noise = 0.0 if f.pairs else NOISE * math.sqrt(problems.N + 64.0)  # for errors add up as a walk does
    load_group(lanes, without_constants(f.batch), problems, group)
    gather_sums(mine + 8 * s.sums, mine + 8 * s.slot, lanes, f.sums, f.slots, f.F, x)
    gather_record(mine + 8 * s.record, results, lanes)
    load_small(f.pairs, f, mine)
    flags, spread = like(v, 0), get(record, at.spread, v)
    for k in range(problems.R):
        rss = high(get(sums, k * (P + 2) + P + 1, x))
        if not f.keep:
            less, doubt = correct(f, mine, k, noise)
            rss = rss - less
            flags = select(doubt > like(v, 0), like(v, REPEAT if f.pairs else TO_DOUBLE_DOUBLE), flags)
        store_statistics(record, at, problems, lanes, k, spread, rss)
    put(record, at.flags, flags)
    scatter_record(results, mine + 8 * s.record, lanes, at.small_coef, at.lengths)


@cache
def make_correct(pairs: int) -> Kernel:
    """The kernel, with V in double-double if ``pairs``."""

    @kernel(CORRECT, pairs=pairs)
    def regression_correct(f):
        me = worker(f.header)
        mine = f.room + 8 * f.scratch.end * me
        start, stop = take(f.header, me)
        while start < stop:
            for group in range(start, stop):
                correct_group(f, mine, group)
            finished(f.header, stop - start)
            start, stop = take(f.header, me)

    return regression_correct
