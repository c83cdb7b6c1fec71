"""Sums of products of regressors and targets, of one problem or of many, in one pass over the rows.

    z = [1, x - c, y - c']                  c near the means, or 0 without an intercept
    sums   sum w z_i z_j for i <= P, j <= i, then for each target sum w y' z_0, ..., sum w y' z_P, sum w y'^2

Three kernels: of few columns, whose products are laid out at compile time; of any number; and in double-double, where
x - c is a pair as well, so that nothing but the last of 106 bits is rounded.
Traffic: the rows once, N (P + R) elements. Work unit: a slot of a problem, see `tiles.py`; the slots are added in index
order by who solves. Layout: W columns in scratch; sums [problem, slot, F], high and low parts of pairs adjacent.
Specification: fastvae/reference/regression/formulas.py
"""

from functools import cache

from ..language.blocks import add_all_products, partial_sums, store_totals
from ..language.jit import Kernel, by_constant, kernel, loop_jit, math_jit
from ..language.layout import Layout, without_constants
from ..language.memory import F64, I64, array_at, section
from ..language.threads import finished, take, worker
from ..language.vector import lanes
from .centers import centers_of
from .fields import scratch_offsets
from .products import add_blocks, add_exact_blocks, finish_pairs, finish_sums, split, weigh, weigh_pairs
from .tiles import ROWS, TILES, load_tile, next_rows, problem_of, rows_of

FEW, ANY, EXACT = range(3)  # the method: few columns, any number, double-double


def scratch_sizes(W: int, S: int, F: int, words: int, matrices: int) -> dict[str, int]:
    """What a thread needs: ``matrices`` are z, its low parts, and w z where it is another; ``words`` are of a sum."""
    return {
        "z": matrices * W * S,
        "weights": S,
        "zero": W,
        "center": W,
        "products": W * W * 8 * words,  # partial sums, lane by lane
        "entries": F + 8,  # where those of each sum lie
    }


SCRATCH = scratch_offsets(scratch_sizes, 1, 1, 1, 1, 1)
# ``columns`` are 1 + P + R of the W; ``one`` is 1, see `double.two_sum_mixed`
GRAM = Layout(
    "centers origin sums F columns matrices words room one:float",
    rows=ROWS,
    tiles=TILES,
    scratch=SCRATCH.layout,
)


def number_of_sums(P: int, R: int) -> int:
    """How many sums a problem has."""
    return (P + 1) * (P + 2) // 2 + R * (P + 2)


# Products of a tile of ``rows`` rows, T with the zeros behind, added to partial sums; ``fresh``: these start at 0


@math_jit
def add_few(f, mine, center, rows, T, w, fresh, ahead):
    """Of few columns, all in one go; meanwhile the rows at the address ``ahead`` are fetched."""
    s, S = f.scratch, f.tiles.S
    z = section(mine, s.z, s.end)
    if w:
        weigh(z, section(mine, s.weights, s.end), T, S, f.columns)
    pace = 8 * f.rows.x_row * f.rows.x_size
    add_all_products(section(mine, s.products, s.end), z, S, T, fresh, ahead, pace, f.count)


@math_jit
def add_any(f, mine, center, rows, T, w, fresh, ahead):
    """Block by block; rows are fetched as well."""
    s, S = f.scratch, f.tiles.S
    z = section(mine, s.z, s.end)
    if w:
        weigh(z, section(mine, s.weights, s.end), T, S, f.columns)
    add_blocks(section(mine, s.products, s.end), z, f.tiles.W, S, T, f.rows.P, fresh, ahead)


@math_jit
def add_exact(f, mine, center, rows, T, w, fresh, ahead):
    """In double-double."""
    s, S = f.scratch, f.tiles.S
    gap, z = f.tiles.W * S, section(mine, s.z, s.end)
    split(z, array_at(center, f.columns, F64), rows, T, S, gap, f.columns)
    a = z
    if w:
        a = section(mine, s.z + 2 * gap, s.end)
        weigh_pairs(a, z, section(mine, s.weights, s.end), T, S, gap, f.columns)
    add_exact_blocks(section(mine, s.products, s.end), a, z, f.tiles.W, S, T, f.rows.P, gap, fresh, f.one)


add_tile = by_constant({FEW: add_few, ANY: add_any, EXACT: add_exact})

# Sums of a unit: the lanes of its partial sums, added up


@math_jit
def store_few(f, mine, sums):
    """Of few columns."""
    if f.rows.R == 1:
        store_totals(sums, section(mine, f.scratch.products, f.scratch.end), f.count)
    else:
        store_any(f, mine, sums)


@math_jit
def store_any(f, mine, sums):
    """Of any number of columns."""
    s = f.scratch
    finish_sums(sums, section(mine, s.products, s.end), array_at(mine + 8 * s.entries, f.F + 8, I64), f.F)


@math_jit
def store_exact(f, mine, sums):
    """In double-double."""
    s = f.scratch
    finish_pairs(sums, section(mine, s.products, s.end), array_at(mine + 8 * s.entries, f.F + 8, I64), f.F)


store_sums = by_constant({FEW: store_few, ANY: store_any, EXACT: store_exact})


@loop_jit
def prepare(f, mine):
    """Zeros in the columns that are only there to fill blocks, and where the partial sums of each sum lie; behind the
    last, the last again.
    """
    s, P, W, S = f.scratch, f.rows.P, f.tiles.W, f.tiles.S
    z, zero = section(mine, s.z, s.end), section(mine, s.zero, s.end)
    for k in range(f.matrices):
        for t in range(f.columns * S, W * S):
            z[k * W * S + t] = 0.0
    for j in range(W):
        zero[j] = 0.0
    entries, at = array_at(mine + 8 * s.entries, f.F + 8, I64), 0
    size = f.words * lanes(partial_sums())
    for i in range(f.columns):
        for j in range(min(i, P) + 1 + (i > P)):
            entries[at] = (i * W + (j if j <= P else i)) * size
            at += 1
    for k in range(8):
        entries[at + k] = entries[at - 1]


@cache
def make_gram(method: int, count: int) -> Kernel:
    """The kernel of a method; for FEW, of ``count`` = 1 + P + R columns, UNROLLED at most."""

    @kernel(GRAM, method=method, count=count)
    def regression_gram(f):
        rows, tiles, s = without_constants(f.rows), f.tiles, f.scratch
        N, S, slots, width = rows.N, tiles.S, tiles.slots, 8 * f.words * f.F
        me = worker(f.header)
        mine = f.room + 8 * s.end * me
        z, weights, room = mine + 8 * s.z, mine + 8 * s.weights, mine + 8 * s.center
        prepare(without_constants(f), mine)
        start, stop = take(f.header, me)
        while start < stop:
            for unit in range(start, stop):
                b, slot = problem_of(tiles, unit), unit % slots
                x, y, w = rows_of(rows, b)
                center = centers_of(rows, x, y, w, f.centers + 8 * b * f.columns, room, f.origin, slot)
                shift = mine + 8 * s.zero if f.method == EXACT else center  # of pairs, `split` subtracts it
                row, fresh = slot * tiles.T, 1
                while row < N:
                    T, ahead = min(tiles.T, N - row), next_rows(rows, tiles, unit, stop, row)
                    targets = z + 8 * (rows.P + 1) * S
                    whole = load_tile(rows, x, y, w, row, T, S, z, targets, weights, shift + 8, f.columns - 1)
                    add_tile(f.method, f, mine, center, T, whole, w, fresh, ahead)
                    row, fresh = row + slots * tiles.T, 0
                store_sums(f.method, f, mine, array_at(f.sums + width * unit, f.words * f.F, F64))
            finished(f.header, stop - start)
            start, stop = take(f.header, me)

    return regression_gram
