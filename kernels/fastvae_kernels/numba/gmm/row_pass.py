"""One pass over the rows of one or many mixtures: E-step, log-likelihood and sufficient statistics, tile by tile.

The thread that finishes a problem does its M-step. Responsibilities are never stored.

Traffic: the rows once, N D elements per pass; everything else stays in a cache.
Work unit: a slot of a problem, that is the tiles s, s + SLOTS, s + 2 SLOTS, ... of its rows, added in this order; slots
are added in index order. Tiles depend on D and K alone, so the bits are the same for any number of threads, for a
problem alone or in a batch, and for rows in chunks of whole tiles. Where problems are ``whole``, a unit is all slots of
a problem and all its steps in sequence, see `steps.py`.

k-means is a mode of this kernel rather than a separate kernel: it shares the loading of rows, the sums about centers
and the end of a pass, and a second kernel would compile all of these again.
Specification: fastvae/reference/gmm/formulas.py
"""

from collections import namedtuple
from functools import cache

from ..language.jit import Kernel, kernel, math_jit
from ..language.layout import Layout
from ..language.memory import F32, F64, I64, array_at, row_at
from ..language.threads import finished, is_last, take, worker
from ..language.transpose import load
from .data import ROWS, load_tile, padded, rows_ahead
from .families import add_statistics, log_densities, nearest_centers
from .finish import PLAN, SUMS, finish_problem, problem_of
from .kmeans import random_responsibilities, scale_rows
from .modes import LEAVE, LINEAR, NEAREST, POSTERIOR, PRODUCTS, RANDOM, SPHERICAL, SQUARES
from .responsibilities import nearest, posterior, responsibilities, weigh
from .statistics import PANEL, add_all_linear, add_all_squares, width
from .steps import DONE, FIT, LLOYD_DONE, PARAMETERS_OF, RECORD, STEP, parameters_of, pass_of

# A launch processes the tiles from first_tile to last_tile; sums start at 0 if it is fresh. source, statistics and then
# are the mode of the pass, see `modes.py`; where there are records, these determine the mode, and then only tells
# whether to LEAVE the sums. resp is [P, N, K], if given, of the dtype resp_code.
PASS = Layout(
    "active first_tile last_tile fresh whole source statistics then rescue resp resp_code room",
    rows=ROWS,
    plan=PLAN,
    parameters=PARAMETERS_OF,
    sums=SUMS,
    fit=FIT,
)
# Scratch of a thread: features [D or more, S] and logits [K, S] of a tile; its weights, log densities and a panel of
# r e; for k-means, constants [K], metric and centers [K, D]; a matrix.
Scratch = namedtuple("Scratch", "xt logit w log_prob panel zero one metric scaled matrix")
NO_TILE = -1


def room_of(D: int, K: int, T: int) -> int:
    """Return the size of a thread's scratch in numbers, a whole number of cache lines."""
    return ((D + 3 + K + 4 + PANEL) * (T + 8) + 2 * K + 2 * K * D + D * D + 7) // 8 * 8


@math_jit
def open_scratch(f, me):
    """Return the scratch of a thread, with its constants filled in."""
    D, K, S, W = f.rows.D, f.plan.K, f.plan.T + 8, width(f.rows.D)
    at = f.room + 8 * f.plan.room_size * me
    xt, logit = array_at(at, W * S, F64), array_at(at + 8 * W * S, K * S, F64)
    at += 8 * (W + K) * S
    w, log_prob, panel = array_at(at, S, F64), array_at(at + 8 * S, S, F64), array_at(at + 16 * S, PANEL * S, F64)
    at += 8 * (2 + PANEL) * S
    zero, one = array_at(at, K, F64), array_at(at + 8 * K, K, F64)
    metric, scaled = array_at(at + 16 * K, K * D, F64), array_at(at + 8 * K * (2 + D), K * D, F64)
    matrix = array_at(at + 16 * K * (1 + D), D * D, F64)
    for k in range(K):
        zero[k], one[k] = 0.0, 1.0
    for t in range(D * S, W * S):
        xt[t] = 0.0
    return Scratch(xt, logit, w, log_prob, panel, zero, one, metric, scaled, matrix)


@math_jit
def responsibilities_of(f, room, old, centers, p, tile, rows, source, statistics, scaled, ahead):
    """Compute the weighted responsibilities of the tile in scratch, and return its part of the log-likelihood.

    The responsibilities are in `room.logit`. Meanwhile the rows ahead are prefetched.
    """
    D, K, S, T = f.rows.D, f.plan.K, f.plan.T + 8, padded(rows)
    if source == POSTERIOR:
        log_densities(f.family, room.logit, room.xt, old, T, D, K, S, f.plan.tied, ahead)
        if f.rows.w:
            return posterior(room.logit, room.log_prob, room.panel, room.w, T, K, S)
        return responsibilities(room.logit, room.log_prob, room.panel, room.w, T, K, S)
    if statistics == SQUARES:  # there is a single component, nearest to all rows
        for t in range(T):
            room.logit[t] = room.w[t]
    elif source == NEAREST:
        if scaled:
            nearest_centers(
                SPHERICAL, room.logit, room.xt, room.scaled, room.one, room.one, room.zero, T, D, K, S, ahead
            )
        else:
            nearest_centers(f.family, room.logit, room.xt, centers, room.metric, room.one, room.zero, T, D, K, S, ahead)
        return nearest(room.logit, room.w, T, K, S)
    elif source == RANDOM:
        restarts = f.rows.restarts
        problem = row_at(f.plan.ids, p // restarts, 1, I64)[0]
        random_responsibilities(room.logit, room.w, tile * f.plan.T, T, K, S, f.plan.seed, p % restarts, problem)
    else:
        resp = f.resp + p * f.rows.N * K * (4 if f.resp_code == F32 else 8)
        load(room.logit, resp, f.resp_code, (tile - f.first_tile) * f.plan.T, K, rows, T, K, S, room.zero)
        weigh(room.logit, room.w, T, K, S)
    return 0.0


@math_jit
def add_tile(f, room, sums, centers, rows, statistics):
    """Add the statistics of the tile in scratch."""
    D, K, S, T = f.rows.D, f.plan.K, f.plan.T + 8, padded(rows)
    if statistics == LINEAR:
        add_all_linear(sums, sums, room.xt, centers, room.logit, T, D, K, S)
    elif statistics == SQUARES:
        add_all_squares(sums[K * (D + 1) :], sums, room.xt, centers, room.logit, T, D, K, S)
    elif statistics == PRODUCTS:
        add_statistics(f.family, sums, room.panel, room.xt, centers, room.logit, T, D, K, S, f.plan.tied)


@math_jit
def add_slot(f, room, old, centers, p, slot, source, statistics, scaled, held):
    """Process the tiles of a slot in order. ``held`` is the tile in scratch before; return the one in scratch after."""
    g, N, T, data = f.sums, f.rows.N, f.plan.T, p // f.rows.restarts
    sums = row_at(g.statistics, p * g.slots + slot, g.F, F64)
    if f.fresh:
        for j in range(g.F):
            sums[j] = 0.0
    value = 0.0
    about = room.scaled if scaled else centers
    tile = f.first_tile + (slot - f.first_tile) % g.slots
    while tile < f.last_tile:
        row = (tile - f.first_tile) * T
        rows = min(T, N - row)
        if held != tile:
            load_tile(f.rows, room.xt, room.w, data, row, rows, T + 8, row_at(f.rows.shift, data, f.rows.D, F64))
            if scaled:
                scale_rows(room.xt, room.metric, padded(rows), f.rows.D, T + 8)
            held = tile
        then = tile + g.slots
        if then >= f.last_tile:  # the first of the next slot
            then = f.first_tile + (slot + 1 - f.first_tile) % g.slots
        to = (then - f.first_tile) * T
        ahead = rows_ahead(f.rows, data, to, min(T, N - to) if then != tile else 0)
        value += responsibilities_of(f, room, old, centers, p, tile, rows, source, statistics, scaled, ahead)
        add_tile(f, room, sums, about, rows, statistics)
        tile += g.slots
    sums[g.F - 1] += value
    return held


@math_jit
def scale_centers(room, centers, D, K):
    """Multiply centers by the metric."""
    for j in range(K * D):
        room.scaled[j] = centers[j] * room.metric[j]


@math_jit
def work_at(f, room, unit):
    """Process a slot of a problem and, after its last slot, finish the pass; or all slots and steps of a problem."""
    D, K, slots = f.rows.D, f.plan.K, f.sums.slots
    p, first, last = problem_of(f, unit // slots), unit % slots, unit % slots + 1
    if f.whole:
        p, first, last = problem_of(f, unit), 0, slots
    metric = row_at(f.plan.metric, p, D, F64)
    for j in range(K * D):
        room.metric[j] = metric[j % D]
    source, statistics, then, held, was_scaled, step = f.source, f.statistics, f.then, NO_TILE, False, LLOYD_DONE
    if f.fit.records:
        step = int(row_at(f.fit.records, p, RECORD, F64)[STEP])
    running = True
    while running:
        if f.fit.records:
            source, statistics, then = pass_of(step)
        old, _, centers = parameters_of(f.parameters, f.fit, p)
        theta, means = array_at(old, f.parameters.size, F64), array_at(centers + 16 * K, K * D, F64)
        scaled = source == NEAREST and statistics == LINEAR and f.family != SPHERICAL
        if scaled:
            scale_centers(room, means, D, K)
        if scaled != was_scaled:
            held, was_scaled = NO_TILE, scaled
        for slot in range(first, last):
            held = add_slot(f, room, theta, means, p, slot, source, statistics, scaled, held)
        running = False
        if f.then != LEAVE and (f.whole or is_last(f.sums.arrived + 8 * p, slots)):
            step = finish_problem(f, p, then, room.metric, room.matrix)
            running = f.whole and step not in (LLOYD_DONE, DONE)


@cache
def make_pass(family: int) -> Kernel:
    """Return the kernel for a covariance family, FULL also for tied covariances."""

    @kernel(PASS, family=family)
    def mixture_pass(f):
        me = worker(f.header)
        room = open_scratch(f, me)
        start, stop = take(f.header, me)
        while start < stop:
            for unit in range(start, stop):
                work_at(f, room, unit)
            finished(f.header, stop - start)
            start, stop = take(f.header, me)

    return mixture_pass
