"""Where the rows of each problem are taken from in a fit: per feature, the number nearest 0 between the least and the
largest of those that count.

    shift_d = min(max(0, min_n x_nd), max_n x_nd)

No row loses by it: |shift| <= |x|, so that x - shift errs by an ulp of x at most, whatever the other rows are. And
where all lie on one side of 0, far from it, means held less the shift keep more digits than the data have.
Traffic: reads N D elements. Work unit: a slot of a problem, its tiles one after the other.
Specification: fastvae/reference/gmm/engine.py
"""

import math
from functools import cache

from ..language.jit import Kernel, kernel, loop_jit, outlined, unpack
from ..language.math import like, select
from ..language.memory import F32, F64, array_at, read, vector, write
from ..language.threads import finished, take, worker
from ..language.transpose import load, load_weights

FIELDS = "17q"
LANES = 8


@loop_jit
def extend(low, high, xt, w, T, D, S):
    """The least and the largest number so far of each feature and lane, with those of a tile; w = 0 does not count."""
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


@cache
def make_ends() -> Kernel:
    """The kernel: the least and the largest number of each slot and feature."""

    @kernel(FIELDS)
    def mixture_ends(block):
        (
            x, x_code, x_row, x_problem, _restarts, w, w_row, w_problem, N, D, T, tiles, slots, low, high,
            room, room_size,
        ) = unpack(block, FIELDS)  # fmt: skip
        S = T + 8
        me = worker(block)
        mine = room + 8 * room_size * me
        xt, w_t = array_at(mine, D * S, F64), array_at(mine + 8 * D * S, S, F64)
        rest = mine + 8 * (D + 1) * S
        zero = array_at(rest, D, F64)
        least, most = array_at(rest + 8 * D, LANES * D, F64), array_at(rest + 72 * D, LANES * D, F64)
        for d in range(D):
            zero[d] = 0.0
        start, stop = take(block, me)
        while start < stop:
            for unit in range(start, stop):
                data, slot = unit // slots, unit % slots
                x_p = x + data * x_problem * (4 if x_code == F32 else 8)
                w_p = w + data * w_problem * 8 if w else 0
                for j in range(LANES * D):
                    least[j], most[j] = math.inf, -math.inf
                for tile in range(slot * tiles // slots, (slot + 1) * tiles // slots):
                    rows = min(T, N - tile * T)
                    whole = (rows + 15) // 16 * 16
                    load(xt, x_p, x_code, tile * T, x_row, rows, whole, D, S, zero)
                    load_weights(w_t, w_p, tile * T, w_row, rows, whole)
                    extend(least, most, xt, w_t, whole, D, S)
                low_p, high_p = array_at(low + 8 * unit * D, D, F64), array_at(high + 8 * unit * D, D, F64)
                for d in range(D):
                    low_p[d], high_p[d] = math.inf, -math.inf
                    for j in range(LANES * d, LANES * (d + 1)):
                        low_p[d], high_p[d] = min(low_p[d], least[j]), max(high_p[d], most[j])
            finished(block, stop - start)
            start, stop = take(block, me)

    return mixture_ends
