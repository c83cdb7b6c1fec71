"""One pass over the rows of one mixture, or of many: E-step, log-likelihood and sufficient statistics tile by tile, and
the M-step for whoever sums up last. Responsibilities are never stored.

Traffic: the rows once, N D elements a pass; everything else stays in a cache.
Work unit: a slot of a problem, the tiles s, s + SLOTS, s + 2 SLOTS, ... of its rows, added up in that order; slots are
added in index order. Tiles depend on D and K alone, so the bits are the same for any number of threads, for a problem
alone or in a batch, and for rows that come in chunks of whole tiles. Where the problems have ``records``, a unit is all
slots of a problem, and then one pass after the other, as `steps.py` has it.
Specification: fastvae/reference/gmm/formulas.py
"""

from functools import cache

import numpy as np

from ..language.jit import Kernel, kernel, loop_jit, outlined, unpack
from ..language.math import like
from ..language.memory import F32, F64, I64, array_at, read, vector, write
from ..language.noise import HIGH_SHIFT, LOW_WORD, philox
from ..language.threads import finished, last_of, take, worker
from ..language.transpose import ahead_of, drop, load, load_weights
from .steps import (
    AGAIN,
    CENTERS,
    DONE,
    IS_NEW,
    LAST,
    LEAVE,
    LEFT,
    LINEAR,
    NEAREST,
    PARAMETERS,
    POSTERIOR,
    PRODUCTS,
    RANDOM,
    RECORD,
    SQUARES,
    STEP,
    follow,
    pass_of,
)
from .tiles import (
    DIAG,
    FULL,
    PANEL,
    SPHERICAL,
    add_all_distances,
    add_all_linear,
    add_all_products,
    add_all_squares,
    logits_of_distances,
    logits_of_products,
    logits_of_squares,
    nearest,
    posterior,
    responsibilities,
    weigh,
    width,
)
from .update import finish_parameters, merge, update_diag, update_full, update_spherical

FIELDS = "43q 2d"
UPDATE_FIELDS = "15q 1d"


@loop_jit
def random_responsibilities(logit, w, row, T, K, S, seed, restart, problem):
    """Uniform numbers, normalised; a function of seed, problem, restart, row and component."""
    outlined()
    key = np.uint64(seed)
    k0, k1 = np.uint32(key & LOW_WORD), np.uint32(key >> HIGH_SHIFT)
    for t in range(T):
        norm = 0.0
        for k in range(K):
            c2, c3 = np.uint32(problem), np.uint32(restart | (k // 2) << 12)
            at = np.uint64(row + t)
            words = philox(np.uint32(at & LOW_WORD), np.uint32(at >> HIGH_SHIFT), c2, c3, k0, k1)
            u = (words[2 * (k % 2)] + 0.5) * 2.0**-32
            logit[k * S + t] = u
            norm += u
        for k in range(K):
            logit[k * S + t] *= w[t] / norm


@loop_jit
def move_centers(statistics, parameters, centers, metric, D, K):
    """The means of the rows next to each center, which stays where it has none; how far they moved, how many stayed.

    The sums are of features times ``metric``, and so is the way that centers moved.
    """
    outlined()
    moved, empty = 0.0, 0
    for k in range(K):
        n = statistics[k * (D + 1) + D]
        for d in range(D):
            step = statistics[k * (D + 1) + d] / n if n > 0 else 0.0
            parameters[2 * K + k * D + d] = centers[k * D + d] + step / metric[d]
            moved += step * step
        if not n > 0:
            empty += 1
    return moved, empty


@loop_jit
def scale_rows(xt, metric, T, D, S):
    """Features times ``metric``."""
    outlined()
    v = vector(F64)
    for d in range(D):
        if metric[d] != 1:
            a = like(v, metric[d])
            for t in range(0, T, 8):
                write(xt, d * S + t, read(xt, d * S + t, v) * a)


@loop_jit
def copy(to, source, size):
    """Of parameters."""
    outlined()
    for j in range(size):
        to[j] = source[j]


@cache
def make_pass(family: int) -> Kernel:
    """The kernel for a covariance family, FULL for tied ones too."""

    @kernel(FIELDS)
    def mixture_pass(block):
        # *_problem, *_row are strides in elements; `old` holds the parameters to evaluate, `new` those to write
        (
            x, x_code, x_row, x_problem, restarts, w, w_row, w_problem, resp, resp_code, seed,
            N, D, K, T, first_tile, last_tile, slots, active, ids, shift, scale, old, new, centers, size,
            statistics, F, done, flags, result, room, room_size, matrices, source, wanted, after, fresh, rescue,
            records, bounds, final, max_iter, tol, reg_covar,
        ) = unpack(block, FIELDS)  # fmt: skip
        S = T + 8
        me = worker(block)
        mine = room + 8 * room_size * me
        W = width(D)
        xt, logit = array_at(mine, W * S, F64), array_at(mine + 8 * W * S, K * S, F64)
        rest = mine + 8 * (W + K) * S
        w_t, log_prob, re = (
            array_at(rest, S, F64),
            array_at(rest + 8 * S, S, F64),
            array_at(rest + 16 * S, PANEL * S, F64),
        )
        rest += 8 * (2 + PANEL) * S
        zero, one, rest = array_at(rest, K, F64), array_at(rest + 8 * K, K, F64), rest + 16 * K
        metric, near = array_at(rest, K * D, F64), array_at(rest + 8 * K * D, K * D, F64)
        u = array_at(rest + 16 * K * D, D * D, F64)
        for k in range(K):
            zero[k], one[k] = 0.0, 1.0
        for t in range(D * S, W * S):
            xt[t] = 0.0
        tied = matrices < K
        start, stop = take(block, me)
        while start < stop:
            for unit in range(start, stop):
                own, i, behind = unit % slots, unit // slots, unit % slots + 1
                if records:  # all slots, and all steps
                    own, i, behind = 0, unit, slots
                p = array_at(active + 8 * i, 1, I64)[0]
                data = p // restarts
                shift_p, scale_p = array_at(shift + 8 * data * D, D, F64), array_at(scale + 8 * p * D, D, F64)
                for j in range(K * D):
                    metric[j] = scale_p[j % D]
                old_at, new_at, about = old + 8 * p * size, new + 8 * p * size, centers + 8 * p * size
                sums = array_at(statistics + 8 * p * slots * F, slots * F, F64)
                result_p = array_at(result + 24 * p, 3, F64)
                record = array_at(records + 8 * RECORD * p, RECORD, F64)
                x_p = x + data * x_problem * (4 if x_code == F32 else 8)
                w_p = w + data * w_problem * 8 if w else 0
                held, times, step = -1, False, DONE  # the tile that is in scratch, and whether times the metric
                if records:
                    step = int(record[STEP])
                while True:
                    if records:
                        source, wanted, after = pass_of(step)
                    old_p, centers_p = array_at(old_at, size, F64), array_at(about + 16 * K, K * D, F64)
                    # k-means alone, all rows and centers times the metric: fewer products than for each of K distances
                    scaled = source == NEAREST and wanted == LINEAR and family != SPHERICAL
                    if scaled:
                        for j in range(K * D):
                            near[j] = centers_p[j] * metric[j]
                        if not times:
                            held = -1
                    elif times:
                        held = -1
                    times = scaled
                    for s in range(own, behind):
                        mine_s = sums[s * F : s * F + F]
                        if fresh:
                            for j in range(F):
                                mine_s[j] = 0.0
                        tile = first_tile + (s - first_tile) % slots
                        value = 0.0
                        while tile < last_tile:
                            row = (tile - first_tile) * T
                            rows = min(T, N - row)
                            whole = (rows + 15) // 16 * 16
                            if held != tile:
                                load(xt, x_p, x_code, row, x_row, rows, whole, D, S, shift_p)
                                load_weights(w_t, w_p, row, w_row, rows, whole)
                                if w:
                                    drop(xt, w_t, rows, D, S)
                                if scaled:
                                    scale_rows(xt, metric, whole, D, S)
                                held = tile
                            then = tile + slots
                            if then >= last_tile:  # the first of the next slot
                                then = first_tile + (s + 1 - first_tile) % slots
                            to = (then - first_tile) * T
                            ahead = ahead_of(x_p, x_code, to, x_row, min(T, N - to) if then != tile else 0, D)
                            if source == POSTERIOR:
                                c, means, P = old_p[K:], old_p[2 * K :], old_p[2 * K + K * D :]
                                if family == DIAG:
                                    logits_of_squares(logit, xt, means, P, c, whole, D, K, S, ahead)
                                elif family == SPHERICAL:
                                    logits_of_distances(logit, xt, means, P, c, whole, D, K, S, ahead)
                                else:
                                    step_ = 0 if tied else D * D
                                    logits_of_products(logit, xt, means, P, c, whole, D, K, S, step_, ahead)
                                if w:
                                    value += posterior(logit, log_prob, re, w_t, whole, K, S)
                                else:
                                    value += responsibilities(logit, log_prob, re, w_t, whole, K, S)
                            elif wanted == SQUARES:  # of one component, which all rows are nearest to
                                for t in range(whole):
                                    logit[t] = w_t[t]
                            elif source == NEAREST:
                                if scaled:
                                    logits_of_distances(logit, xt, near, one, zero, whole, D, K, S, ahead)
                                elif family == SPHERICAL:  # whose metric is 1
                                    logits_of_distances(logit, xt, centers_p, one, zero, whole, D, K, S, ahead)
                                else:
                                    logits_of_squares(logit, xt, centers_p, metric, zero, whole, D, K, S, ahead)
                                value += nearest(logit, w_t, whole, K, S)
                            elif source == RANDOM:
                                id_p = array_at(ids + 8 * data, 1, I64)[0]
                                random_responsibilities(logit, w_t, tile * T, whole, K, S, seed, p % restarts, id_p)
                            else:
                                resp_p = resp + p * N * K * (4 if resp_code == F32 else 8)
                                load(logit, resp_p, resp_code, row, K, rows, whole, K, S, zero)
                                weigh(logit, w_t, whole, K, S)
                            square = mine_s[K * (D + 1) :]
                            if wanted == LINEAR:
                                add_all_linear(mine_s, mine_s, xt, near if scaled else centers_p, logit, whole, D, K, S)
                            elif wanted == SQUARES:
                                add_all_squares(square, mine_s, xt, centers_p, logit, whole, D, K, S)
                            elif wanted == PRODUCTS:
                                if family == DIAG:
                                    add_all_squares(square, mine_s, xt, centers_p, logit, whole, D, K, S)
                                elif family == SPHERICAL:
                                    add_all_distances(square, mine_s, xt, centers_p, logit, whole, D, K, S)
                                else:
                                    size2 = 0 if tied else W * W
                                    add_all_products(square, mine_s, re, xt, centers_p, logit, whole, D, K, S, size2)
                            tile += slots
                        mine_s[F - 1] += value
                    if after == LEAVE or not (records or last_of(done + 8 * p, slots)):
                        break
                    merge(sums, 0, F, F, slots)
                    result_p[0] = sums[F - 1]
                    new_p = array_at(new_at, size, F64)
                    if after == PARAMETERS:
                        flags_p = array_at(flags + 8 * p * K, K, I64)
                        for k in range(K):
                            if family == DIAG:
                                flags_p[k] = update_diag(k, sums, new_p, centers_p, D, K, reg_covar)
                            elif family == SPHERICAL:
                                flags_p[k] = update_spherical(k, sums, new_p, centers_p, D, K, reg_covar)
                            else:
                                flags_p[k] = update_full(k, sums, new_p, centers_p, u, D, K, tied, reg_covar)
                        flag, split = finish_parameters(new_p, flags_p, D, K, matrices, family, rescue)
                        result_p[1], result_p[2] = flag, split
                    elif after == CENTERS:
                        result_p[1], result_p[2] = move_centers(sums, new_p, centers_p, metric, D, K)
                    if not records:
                        break
                    of_p = array_at(bounds + 8 * p * (max_iter + 1), max_iter + 1, F64)
                    step = follow(record, of_p, result_p[0], result_p[1], result_p[2], tol, max_iter)
                    if step == DONE:
                        break
                    if step == AGAIN:
                        about = new_at
                    elif step in (LAST, LEFT):
                        found = new_p if step == LEFT or record[IS_NEW] else old_p
                        old_at = about = final + 8 * p * size
                        copy(array_at(old_at, size, F64), found, size)
                        if step == LEFT:
                            break
                    else:
                        old_at, new_at = new_at, old_at
                        about = old_at
            finished(block, stop - start)
            start, stop = take(block, me)

    return mixture_pass


@cache
def make_update() -> Kernel:
    """The kernel that adds up the slots of full mixtures and makes their parameters, a component a unit of work."""

    @kernel(UPDATE_FIELDS)
    def mixture_update(block):
        (
            active, new, centers, size, statistics, F, slots, done, flags, result, D, K, room, room_size,
            rescue, reg_covar,
        ) = unpack(block, UPDATE_FIELDS)  # fmt: skip
        me = worker(block)
        u, W = array_at(room + 8 * room_size * me, D * D, F64), width(D)
        start, stop = take(block, me)
        while start < stop:
            for unit in range(start, stop):
                k, p = unit % K, array_at(active + 8 * (unit // K), 1, I64)[0]
                sums = array_at(statistics + 8 * p * slots * F, slots * F, F64)
                centers_p = array_at(centers + 8 * p * size + 16 * K, K * D, F64)
                new_p = array_at(new + 8 * p * size, size, F64)
                flags_p = array_at(flags + 8 * p * K, K, I64)
                merge(sums, k * (D + 1), D + 1, F, slots)
                merge(sums, K * (D + 1) + k * W * W, W * W, F, slots)
                flags_p[k] = update_full(k, sums, new_p, centers_p, u, D, K, False, reg_covar)
                if last_of(done + 8 * p, K):
                    merge(sums, F - 1, 1, F, slots)
                    result_p = array_at(result + 24 * p, 3, F64)
                    result_p[0] = sums[F - 1]
                    result_p[1], result_p[2] = finish_parameters(new_p, flags_p, D, K, K, FULL, rescue)
            finished(block, stop - start)
            start, stop = take(block, me)

    return mixture_update
