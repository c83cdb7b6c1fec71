"""The shift that a fit subtracts from the rows of a problem.

For each feature it is the number nearest 0 between the minimum and the maximum of the rows with a positive weight:

    shift_d = min(max(0, min_n x_nd), max_n x_nd)

No row loses accuracy: |shift| <= |x|, so the error of x - shift is at most an ulp of x, whatever the other rows are. If
all rows are on one side of 0 and far from it, means relative to the shift are more precise than the data.
Traffic: reads N D elements. Work unit: a slot of a problem, its tiles in sequence.
Specification: fastvae/reference/gmm/engine.py
"""

import math
from functools import cache

from ..language.jit import Kernel, kernel, loop_jit, math_jit, outlined
from ..language.layout import Layout
from ..language.math import like, select
from ..language.memory import F64, array_at, read, row_at, vector, write
from ..language.threads import finished, take, worker
from .data import ROWS, load_tile, padded

ENDS = Layout("T tiles slots low high room room_size", rows=ROWS)  # low and high [B, slots, D]
LANES = 8


@loop_jit
def extend(low, high, xt, w, T, D, S):
    """Update the minimum and maximum of each feature, lane by lane, with the rows of a tile with a positive weight."""
    outlined()
    v = vector(F64)
    for d in range(D):
        least, most = read(low, LANES * d, v), read(high, LANES * d, v)
        for t in range(0, T, LANES):
            x, counts = read(xt, d * S + t, v), read(w, t, v) > like(v, 0)
            a, b = select(counts, x, like(v, math.inf)), select(counts, x, like(v, -math.inf))
            least, most = select(a < least, a, least), select(b > most, b, most)
        write(low, LANES * d, least)
        write(high, LANES * d, most)


@math_jit
def ends_of(f, unit, xt, w, zero, least, most):
    """Compute the minimum and maximum of each feature over the tiles of a slot."""
    D, T, tiles, slots = f.rows.D, f.T, f.tiles, f.slots
    data, slot = unit // slots, unit % slots
    for j in range(LANES * D):
        least[j], most[j] = math.inf, -math.inf
    for tile in range(slot * tiles // slots, (slot + 1) * tiles // slots):
        rows = min(T, f.rows.N - tile * T)
        load_tile(f.rows, xt, w, data, tile * T, rows, T + 8, zero)
        extend(least, most, xt, w, padded(rows), D, T + 8)
    low, high = row_at(f.low, unit, D, F64), row_at(f.high, unit, D, F64)
    for d in range(D):
        low[d], high[d] = math.inf, -math.inf
        for j in range(LANES * d, LANES * (d + 1)):
            low[d], high[d] = min(low[d], least[j]), max(high[d], most[j])


@cache
def make_ends() -> Kernel:
    """Return the kernel that computes the minimum and maximum of each feature in each slot."""

    @kernel(ENDS)
    def mixture_ends(f):
        D, S, me = f.rows.D, f.T + 8, worker(f.header)
        mine = f.room + 8 * f.room_size * me
        xt, w = array_at(mine, D * S, F64), array_at(mine + 8 * D * S, S, F64)
        rest = mine + 8 * (D + 1) * S
        zero = array_at(rest, D, F64)
        least, most = array_at(rest + 8 * D, LANES * D, F64), array_at(rest + 72 * D, LANES * D, F64)
        for d in range(D):
            zero[d] = 0.0
        start, stop = take(f.header, me)
        while start < stop:
            for unit in range(start, stop):
                ends_of(f, unit, xt, w, zero, least, most)
            finished(f.header, stop - start)
            start, stop = take(f.header, me)

    return mixture_ends
