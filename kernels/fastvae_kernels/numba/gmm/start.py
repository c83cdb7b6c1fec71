"""Seeds for the components of many mixtures: k-means++, greedy, and distinct random rows.

Arthur & Vassilvitskii (2007): each seed is a row drawn with probability proportional to w times its squared distance
from the nearest seed before it; greedy: of 2 + log K draws, the one that leaves the smallest sum of these. Every number
drawn is a function of the seed, the problem and the restart.
Work unit: a problem, whose rows, or a sample of them, stand turned in scratch, as one tile of `tiles.py`.
Specification: fastvae/reference/gmm/engine.py
"""

import math
from functools import cache

import numpy as np

from ..language.jit import Kernel, kernel, loop_jit, outlined, unpack
from ..language.math import select
from ..language.memory import F32, F64, I64, array_at, read, vector, write
from ..language.noise import HIGH_SHIFT, LOW_WORD, philox
from ..language.threads import finished, take, worker
from ..language.transpose import drop, load, load_weights
from ..language.vector import total
from .tiles import scaled_distances

FIELDS = "21q"
BLOCK = 16  # rows whose weights are added up before one of them is drawn


@loop_jit
def uniform(seed, problem, restart, draw):
    """A number in (0, 1) of 53 bits."""
    outlined()
    key, at = np.uint64(seed), np.uint64(problem)
    words = philox(
        np.uint32(at & LOW_WORD), np.uint32(at >> HIGH_SHIFT), np.uint32(restart), np.uint32(draw | 0x80000000),
        np.uint32(key & LOW_WORD), np.uint32(key >> HIGH_SHIFT),
    )  # fmt: skip
    return ((words[0] >> 6) * 134217728.0 + (words[1] >> 5) + 0.5) * 2.0**-53


@loop_jit
def nearer(closest, sums, xt, center, scale, w, before, M, D, S):
    """The squared distance of each row from the nearest center, this one included; w times it, by blocks, and the sum.

    ``before`` are the distances so far, ``closest`` those with the new center; they may be one array.
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
    """The row at which the running sum of w times the squared distance passes the target."""
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


@cache
def make_seeds() -> Kernel:
    """The kernel."""

    @kernel(FIELDS)
    def mixture_seeds(block):
        (
            x, x_code, x_row, x_problem, restarts, w, w_row, w_problem, seed, N, D, K, active, ids, shift,
            scale, centers, size, room, room_size, spread,
        ) = unpack(block, FIELDS)  # fmt: skip
        M = (N + BLOCK - 1) // BLOCK * BLOCK
        S = M + 8
        me = worker(block)
        mine = room + 8 * room_size * me
        xt, w_t = array_at(mine, D * S, F64), array_at(mine + 8 * D * S, S, F64)
        rest = mine + 8 * (D + 1) * S
        closest, trial = array_at(rest, S, F64), array_at(rest + 8 * S, S, F64)
        sums, trial_sums = array_at(rest + 16 * S, S, F64), array_at(rest + 24 * S, S, F64)
        center = array_at(rest + 32 * S, D, F64)
        start, stop = take(block, me)
        while start < stop:
            for unit in range(start, stop):
                p = array_at(active + 8 * unit, 1, I64)[0]
                data, restart = p // restarts, p % restarts
                problem = array_at(ids + 8 * data, 1, I64)[0]
                shift_p, scale_p = array_at(shift + 8 * data * D, D, F64), array_at(scale + 8 * p * D, D, F64)
                centers_p = array_at(centers + 8 * p * size + 16 * K, K * D, F64)
                load(xt, x + data * x_problem * (4 if x_code == F32 else 8), x_code, 0, x_row, N, M, D, S, shift_p)
                load_weights(w_t, w + data * w_problem * 8 if w else 0, 0, w_row, N, M)
                if w:
                    drop(xt, w_t, N, D, S)
                draws = 0
                for t in range(M):
                    closest[t] = 1.0
                for b in range(M // BLOCK):
                    sums[b] = 0.0
                    for t in range(b * BLOCK, (b + 1) * BLOCK):
                        sums[b] += w_t[t]
                potential = 0.0
                for b in range(M // BLOCK):
                    potential += sums[b]
                trials = 2 + int(math.log(K)) if spread else 1
                for k in range(K):
                    least, at = math.inf, 0
                    for _ in range(trials if k > 0 else 1):
                        u = uniform(seed, problem, restart, draws)
                        draws += 1
                        t = draw_row(closest, sums, w_t, u * potential, M, N)
                        if trials > 1 and k > 0:
                            for d in range(D):
                                center[d] = xt[d * S + t]
                            left = nearer(trial, trial_sums, xt, center, scale_p, w_t, closest, M, D, S)
                        else:
                            left = 0.0
                        if left < least:
                            least, at = left, t
                    for d in range(D):
                        centers_p[k * D + d] = xt[d * S + at]
                    if k == K - 1:
                        continue  # nothing is drawn any more
                    if spread:
                        if k == 0:
                            for t in range(M):
                                closest[t] = math.inf
                        potential = nearer(closest, sums, xt, centers_p[k * D :], scale_p, w_t, closest, M, D, S)
                    else:  # each row once
                        closest[at] = 0.0
                        b, potential = at // BLOCK, 0.0
                        sums[b] = 0.0
                        for t in range(b * BLOCK, (b + 1) * BLOCK):
                            sums[b] += w_t[t] * closest[t]
                        for b in range(M // BLOCK):
                            potential += sums[b]
            finished(block, stop - start)
            start, stop = take(block, me)

    return mixture_seeds
