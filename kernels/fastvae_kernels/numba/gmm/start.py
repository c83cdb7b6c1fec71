"""Initial centers of many mixtures: greedy k-means++, or distinct random rows.

Arthur & Vassilvitskii (2007): each seed is a row drawn with probability proportional to w times its squared distance
from the nearest center so far. Greedy: of 2 + log K draws, the one that leaves the smallest sum of these is taken.
Random numbers depend on the seed, the problem and the restart only.
Work unit: a problem. Its rows, or a sample of them, are one tile in scratch, see `data.py`.
Specification: fastvae/reference/gmm/engine.py
"""

import math
from collections import namedtuple
from functools import cache

import numpy as np

from ..language.jit import Kernel, kernel, loop_jit, math_jit, outlined
from ..language.layout import Layout
from ..language.math import select
from ..language.memory import F64, I64, array_at, read, row_at, vector, write
from ..language.noise import HIGH_SHIFT, LOW_WORD, philox
from ..language.threads import finished, take, worker
from ..language.vector import total
from .data import ROWS, load_tile
from .densities import scaled_distances

# metric is [P, D]; centers are the means of parameter blocks [P, size]; spread selects k-means++, else distinct rows.
SEEDS = Layout("active ids metric centers size K seed spread room room_size", rows=ROWS)
BLOCK = 16  # rows whose weighted distances are summed in advance, to find a drawn row faster
# Scratch of a thread: rows and weights; squared distances from the nearest center and their weighted sums by blocks,
# currently and with the center of a trial; a center.
Scratch = namedtuple("Scratch", "xt w closest trial sums trial_sums center")


@loop_jit
def uniform(seed, problem, restart, draw):
    """Return a uniform number in (0, 1) with 53 bits."""
    outlined()
    key, at = np.uint64(seed), np.uint64(problem)
    words = philox(
        np.uint32(at & LOW_WORD), np.uint32(at >> HIGH_SHIFT), np.uint32(restart), np.uint32(draw | 0x80000000),
        np.uint32(key & LOW_WORD), np.uint32(key >> HIGH_SHIFT),
    )  # fmt: skip
    return ((words[0] >> 6) * 134217728.0 + (words[1] >> 5) + 0.5) * 2.0**-53


@loop_jit
def update_distances(closest, sums, xt, center, scale, w, before, M, D, S):
    """Compute the squared distance of each row from the nearest center, including a new one.

    ``before`` holds the distances so far, ``closest`` receives the new ones; they may be the same array. ``sums``
    receives w times the squared distance, summed by blocks; the total is returned.
    """
    outlined()
    v = vector(F64)
    acc = 0.0
    for t in range(0, M, BLOCK):
        q0, q1 = scaled_distances(xt, center, scale, 0, t, D, S, v)
        b0, b1 = read(before, t, v), read(before, t + 8, v)
        q0, q1 = select(q0 < b0, q0, b0), select(q1 < b1, q1, b1)
        write(closest, t, q0)
        write(closest, t + 8, q1)
        sum_ = total(q0 * read(w, t, v) + q1 * read(w, t + 8, v))
        sums[t // BLOCK] = sum_
        acc += sum_
    return acc


@loop_jit
def draw_row(closest, sums, w, target, M, rows):
    """Return the row at which the running sum of w times the squared distance exceeds the target."""
    outlined()
    at, last = 0.0, -1
    for b in range(M // BLOCK):
        if at + sums[b] > target or (b + 1) * BLOCK >= rows:
            for t in range(b * BLOCK, min((b + 1) * BLOCK, rows)):
                a = w[t] * closest[t]
                at += a
                if a > 0:
                    last = t
                if at > target and a > 0:
                    return t
        else:
            at += sums[b]
            if sums[b] > 0:
                last = (b + 1) * BLOCK - 1
    while last > 0 and not w[last] * closest[last] > 0:
        last -= 1
    return max(last, 0)


@math_jit
def open_scratch(f, me):
    """Return the scratch of a thread."""
    D, S = f.rows.D, blocks_of(f.rows.N) * BLOCK + 8
    at = f.room + 8 * f.room_size * me
    xt, w, at = array_at(at, D * S, F64), array_at(at + 8 * D * S, S, F64), at + 8 * (D + 1) * S
    closest, trial = array_at(at, S, F64), array_at(at + 8 * S, S, F64)
    sums, trial_sums = array_at(at + 16 * S, S, F64), array_at(at + 24 * S, S, F64)
    return Scratch(xt, w, closest, trial, sums, trial_sums, array_at(at + 32 * S, D, F64))


@math_jit
def blocks_of(N):
    """Return the number of blocks of N rows."""
    return (N + BLOCK - 1) // BLOCK


@loop_jit
def weights_by_block(closest, sums, w, blocks):
    """Use weights in place of weighted distances, before there is a center, and return their sum."""
    outlined()
    for t in range(blocks * BLOCK):
        closest[t] = 1.0
    for b in range(blocks):
        sums[b] = 0.0
        for t in range(b * BLOCK, (b + 1) * BLOCK):
            sums[b] += w[t]
    potential = 0.0
    for b in range(blocks):
        potential += sums[b]
    return potential


@loop_jit
def without_row(closest, sums, w, at, blocks):
    """Exclude a row that was drawn, and return the remaining sum."""
    outlined()
    closest[at] = 0.0
    b, potential = at // BLOCK, 0.0
    sums[b] = 0.0
    for t in range(b * BLOCK, (b + 1) * BLOCK):
        sums[b] += w[t] * closest[t]
    for b in range(blocks):
        potential += sums[b]
    return potential


@math_jit
def copy_row(to, at, xt, t, D, S):
    """Copy row t of a tile."""
    for d in range(D):
        to[at + d] = xt[d * S + t]


@math_jit
def best_of_trials(f, room, metric, stream, trials, potential, drawn):
    """Draw ``trials`` rows, return the one that leaves the smallest potential; ``drawn`` numbers were used before."""
    problem, restart = stream
    N, D = f.rows.N, f.rows.D
    M = blocks_of(N) * BLOCK
    least, at = math.inf, 0
    for trial in range(trials):
        u = uniform(f.seed, problem, restart, drawn + trial)
        t, left = draw_row(room.closest, room.sums, room.w, u * potential, M, N), 0.0
        if trials > 1:
            copy_row(room.center, 0, room.xt, t, D, M + 8)
            left = update_distances(
                room.trial, room.trial_sums, room.xt, room.center, metric, room.w, room.closest, M, D, M + 8
            )  # fmt: skip
        if left < least:
            least, at = left, t
    return at


@math_jit
def draw_seeds(f, room, p):
    """Draw the centers of a problem in sequence."""
    N, D, K, data = f.rows.N, f.rows.D, f.K, p // f.rows.restarts
    blocks = blocks_of(N)
    M, S = blocks * BLOCK, blocks * BLOCK + 8
    stream = row_at(f.ids, data, 1, I64)[0], p % f.rows.restarts
    metric = row_at(f.metric, p, D, F64)
    centers = array_at(f.centers + 8 * p * f.size + 16 * K, K * D, F64)
    load_tile(f.rows, room.xt, room.w, data, 0, N, S, row_at(f.rows.shift, data, D, F64))
    potential, drawn = weights_by_block(room.closest, room.sums, room.w, blocks), 0
    for k in range(K):
        trials = 2 + int(math.log(K)) if f.spread and k > 0 else 1
        at = best_of_trials(f, room, metric, stream, trials, potential, drawn)
        drawn += trials
        copy_row(centers, k * D, room.xt, at, D, S)
        if f.spread and k < K - 1:
            if k == 0:
                for t in range(M):
                    room.closest[t] = math.inf
            closest, center = room.closest, centers[k * D :]
            potential = update_distances(closest, room.sums, room.xt, center, metric, room.w, closest, M, D, S)
        elif k < K - 1:
            potential = without_row(room.closest, room.sums, room.w, at, blocks)


@cache
def make_seeds() -> Kernel:
    """Return the kernel that draws initial centers, one problem per unit."""

    @kernel(SEEDS)
    def mixture_seeds(f):
        me = worker(f.header)
        room = open_scratch(f, me)
        start, stop = take(f.header, me)
        while start < stop:
            for unit in range(start, stop):
                draw_seeds(f, room, row_at(f.active, unit, 1, I64)[0])
            finished(f.header, stop - start)
            start, stop = take(f.header, me)

    return mixture_seeds
