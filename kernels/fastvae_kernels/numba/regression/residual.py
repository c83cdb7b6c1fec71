"""Residuals in double-double, and the sums that follow from them.

    r = y - b0 - x'b,    sums  1'wr, X'wr, r'wr       of each target

b and b0 may be pairs; r is a pair up to the sums. Lengths and means of columns are known, so Cauchy and Schwarz bound
the sums, (sum w x r)^2 <= sum w x^2 sum w r^2. They start at four times the bound, which is subtracted in the end: a
sum larger than any of its terms takes half as many steps, see `double.accumulate_above`.
Traffic: the rows once more, N (P + R) elements. Work unit and layout: as `tiles.py`; sums [problem, slot, R, P + 2].
Specification: fastvae/reference/regression/formulas.py
"""

import math
from functools import cache

from ..language.blocks import SIDE_ALONE, add_above, partial_sums, totals_above
from ..language.double import add_part, add_product, choose, exact_product, exact_sum, high, low, pair
from ..language.jit import Kernel, kernel, loop_jit, math_jit, outlined
from ..language.layout import Layout
from ..language.math import fma, like, select, sqrt
from ..language.memory import F64, array_at, on_stack, prefetch, read, section, vector, write
from ..language.threads import finished, take, worker
from ..language.vector import lanes, total
from .fields import RESULTS, Offsets, scratch_offsets
from .tiles import ROWS, TILES, load_tile, next_rows, problem_of, rows_of

SLACK, SLACK_PAIRS = 2.0**-30, 2.0**-80  # of y'y about the mean: more than RSS can be wrong by
ROUNDING = 2.0**-50  # of the terms of which an intercept is the sum


def scratch_sizes(W: int, S: int, P: int, R: int, target: int) -> dict[str, int]:
    """What a thread needs; ``target`` is the size of `TARGET`."""
    return {
        "z": W * S,
        "y": R * S,
        "weighed": 2 * S,  # w r of a target, high parts and low
        "weights": S,
        "targets": R * target + 8,
        "products": 16 * (W * R + 8),  # partial sums of pairs, lane by lane
        "squares": R,
        "zero": P + R,
    }


SCRATCH = scratch_offsets(scratch_sizes, 1, 1, 1, 1, 1)
# Of a target of a problem: -b0, -b, their low parts; the two terms of where its residuals start, see `prepare_target`,
# and where the sums of products of r and each column start.
TARGET = Offsets(lambda P: {"b": P + 1, "small_b": P + 1, "start": 2, "sums": P + 1}, 1)
RESIDUAL = Layout(
    "sums F pairs room",  # pairs: whether b and b0 are
    rows=ROWS,
    tiles=TILES,
    results=RESULTS,
    scratch=SCRATCH.layout,
    target=TARGET.layout,
)


@math_jit
def products_of(f, k):
    """Where in scratch the partial sums of target k begin."""
    return f.scratch.products + k * 2 * lanes(partial_sums()) * f.tiles.W


@loop_jit
def begin_target(f, mine, b, k):
    """What `TARGET` says of target k of problem b, and the start of its sums, which is four times what they can come
    to: r at start[0] + start[1] / sqrt(w), its product with column j at sums[j].
    """
    outlined()
    s, u, to = f.scratch, partial_sums(), mine + 8 * (f.scratch.targets + k * f.target.end)
    P, R, at, out, B = f.rows.P, f.rows.R, f.results.at, f.results.out, f.results.B
    state = out + 8 * (at.weight * B + b * (at.end - at.weight) - at.weight)
    target = b * R + k
    coef, small = (
        array_at(out + 8 * (at.coef * B + target * P), P, F64),
        array_at(state + 8 * (at.small_coef + k * P), P, F64),
    )
    rss = array_at(out + 8 * (at.rss * B + target), 1, F64)[0]
    lengths, means = array_at(state + 8 * at.lengths, P, F64), array_at(state + 8 * at.means, P + R, F64)
    weight, squares = array_at(state + 8 * at.weight, 1, F64)[0], array_at(state + 8 * at.squares, R, F64)[k]
    negative, small_negative = section(to, f.target.b, f.target.end), section(to, f.target.small_b, f.target.end)
    start, sums = section(to, f.target.start, f.target.end), section(to, f.target.sums, f.target.end)
    negative[0] = -array_at(out + 8 * (at.intercept * B + target), 1, F64)[0]
    small_negative[0] = -array_at(state + 8 * (at.small_intercept + k), 1, F64)[0]
    root, of_means, of_lengths = math.sqrt(weight), abs(negative[0]) + abs(means[P + k]), math.sqrt(squares)
    for j in range(P):
        negative[1 + j], small_negative[1 + j] = -coef[j], -small[j]
        of_means += abs(coef[j] * means[j])
        of_lengths += abs(coef[j]) * lengths[j]
    slack, lost = SLACK, ROUNDING * root * of_means  # of residuals, in an intercept of one part
    if f.pairs:
        slack, lost = SLACK_PAIRS, ROUNDING * lost
    r = 4.0 * math.sqrt(2.0 * rss + slack * squares + lost * lost)
    start[0], start[1] = 4.0 * of_means, 4.0 * of_lengths
    sums[0] = r * root
    for j in range(P):
        sums[1 + j] = r * (lengths[j] + root * abs(means[j]))
    section(mine, s.squares, s.end)[k] = 0.0
    acc = section(mine, products_of(f, k), s.end)
    for j in range(P + 1):
        write(acc, 2 * lanes(u) * j, like(u, sums[j]))
        write(acc, 2 * lanes(u) * j + lanes(u), like(u, 0))


@loop_jit
def residuals(f, mine, k, T, w, ahead, pace):
    """W (y - b0 - x'b) of target k as pairs, low parts S behind; the sum of w r^2.

    Meanwhile as many rows are fetched from the address ``ahead`` on, 8 of them ``pace`` bytes.
    """
    outlined()
    P, S, s, v = f.rows.P, f.tiles.S, f.scratch, vector(F64)
    zero, unity = like(v, 0), like(v, 1)
    z, y, w_t = section(mine, s.z, s.end), section(mine, s.y + k * S, s.end), section(mine, s.weights, s.end)
    target, wr = mine + 8 * (s.targets + k * f.target.end), section(mine, s.weighed, s.end)
    b, small_b = section(target, f.target.b, f.target.end), section(target, f.target.small_b, f.target.end)
    start = section(target, f.target.start, f.target.end)
    squares, first, wt = zero, like(v, start[0] + start[1]), zero
    for t in range(0, T, 8):
        for at in range(0, pace, 64):
            prefetch(ahead + at)
        ahead += pace
        if w:
            wt = read(w_t, t, v)
            first = like(v, start[0]) + like(v, start[1]) / sqrt(select(wt > zero, wt, unity))
        r = add_part(pair(first, zero), read(y, t, v))
        for j in range(P + 1):
            r = add_product(r, read(z, j * S + t, v), like(v, b[j]))
        if f.pairs:
            rest = low(r)
            for j in range(P + 1):
                rest = fma(read(z, j * S + t, v), like(v, small_b[j]), rest)
            r = pair(high(r), rest)
        r = exact_sum(high(r) - first, low(r))
        weighed = r
        if w:
            r = choose(wt > zero, r, pair(zero, zero))  # y may be anything where a row is ignored
            weighed = exact_product(wt, high(r))
            weighed = pair(high(weighed), fma(wt, low(r), low(weighed)))
        squares = fma(high(weighed), high(r), squares)
        write(wr, t, high(weighed))
        write(wr, S + t, low(weighed))
    return total(squares)


@loop_jit
def add_tile(f, mine, T, w, ahead):
    """Add a tile's products of residuals and columns to the sums of each target."""
    outlined()
    s, S, P = f.scratch, f.tiles.S, f.rows.P
    squares, z, wr = section(mine, s.squares, s.end), section(mine, s.z, s.end), section(mine, s.weighed, s.end)
    pace = 8 * P * f.rows.x_size if f.rows.x_row == P else 0  # of rows that follow each other in memory
    for k in range(f.rows.R):
        squares[k] += residuals(f, mine, k, T, w, ahead, pace)
        acc, pace = section(mine, products_of(f, k), s.end), 0
        for i in range(0, f.tiles.W, SIDE_ALONE):
            add_above(acc, z, wr, i, S, T, S)


@loop_jit
def finish_target(f, mine, unit, k):
    """The sums of target k of a unit, as pairs: of their lanes, less where they started."""
    outlined()
    P, s, u, some = f.rows.P, f.scratch, partial_sums(), on_stack(16, F64)
    sums = array_at(f.sums + 16 * (unit * f.F + k * (P + 2)), 2 * (P + 2), F64)
    start = section(mine + 8 * (s.targets + k * f.target.end), f.target.sums, f.target.end)
    acc = section(mine, products_of(f, k), s.end)
    for j in range(0, P + 1, lanes(u)):
        p = totals_above(acc, start, j)
        write(some, 0, high(p))
        write(some, 8, low(p))
        for lane in range(min(lanes(u), P + 1 - j)):
            sums[2 * (j + lane)], sums[2 * (j + lane) + 1] = some[lane], some[8 + lane]
    sums[2 * P + 2], sums[2 * P + 3] = section(mine, s.squares, s.end)[k], 0.0


@loop_jit
def prepare(f, mine):
    """Zeros in what is read before it is written: columns that only fill blocks, partial sums, the shift of columns."""
    outlined()
    s = f.scratch
    z, acc, zero = section(mine, s.z, s.end), section(mine, s.products, s.end), section(mine, s.zero, s.end)
    for t in range((f.rows.P + 1) * f.tiles.S, f.tiles.W * f.tiles.S):
        z[t] = 0.0
    for i in range(2 * lanes(partial_sums()) * f.tiles.W * f.rows.R):
        acc[i] = 0.0
    for j in range(f.rows.P + f.rows.R):
        zero[j] = 0.0


@cache
def make_residual() -> Kernel:
    """The kernel that adds up residuals."""

    @kernel(RESIDUAL)
    def regression_residual(f):
        rows, tiles, s = f.rows, f.tiles, f.scratch
        N, S = rows.N, tiles.S
        me = worker(f.header)
        mine = f.room + 8 * s.end * me
        z, targets, weights, zero = mine + 8 * s.z, mine + 8 * s.y, mine + 8 * s.weights, mine + 8 * s.zero
        prepare(f, mine)
        start, stop = take(f.header, me)
        while start < stop:
            for unit in range(start, stop):
                b, row = problem_of(tiles, unit), unit % tiles.slots * tiles.T
                x, y, w = rows_of(rows, b)
                for k in range(rows.R):
                    begin_target(f, mine, b, k)
                while row < N:
                    T, ahead = min(tiles.T, N - row), next_rows(rows, tiles, unit, stop, row)
                    whole = load_tile(rows, x, y, w, row, T, S, z, targets, weights, zero, rows.P)
                    add_tile(f, mine, whole, w, ahead)
                    row += tiles.slots * tiles.T
                for k in range(rows.R):
                    finish_target(f, mine, unit, k)
            finished(f.header, stop - start)
            start, stop = take(f.header, me)

    return regression_residual
