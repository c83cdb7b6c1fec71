"""Scores of each row under a mixture: log density, log responsibilities and the most likely component.

Traffic: reads N D elements, writes N, N K and N of them as requested. Work unit: a tile of rows of a problem.
Specification: fastvae/reference/gmm/formulas.py
"""

import math
from collections import namedtuple
from functools import cache

from ..language.jit import Kernel, kernel, loop_jit, math_jit, outlined
from ..language.layout import Layout
from ..language.math import exp_negative, like, log_normal, select
from ..language.memory import F32, F64, I64, array_at, read, row_at, vector, write
from ..language.threads import finished, take, worker
from ..language.transpose import load
from .data import ROWS, padded, rows_ahead, x_of
from .families import log_densities
from .responsibilities import LOWEST

# theta: parameter blocks [B, size]; log_resp [B, N, K] of the dtype resp_code, log_prob [B, N], labels [B, N]: 0 if not
# requested.
SCORES = Layout("theta size K T tiles tied log_resp resp_code log_prob labels room room_size", rows=ROWS)
Scratch = namedtuple("Scratch", "xt logit value label top norm")


@loop_jit
def log_norms(logit, log_prob, label, top, norm, T, K, S):
    """Compute log sum_k e^logit and the most likely component of each row.

    ``top`` and ``norm`` receive the largest logit and log sum_k e^(logit - top) separately, since their sum loses
    precision of the second where the first is large.
    """
    outlined()
    v = vector(F64)
    for t in range(0, T, 8):
        most, best = read(logit, t, v), like(v, 0)
        for k in range(1, K):
            a = read(logit, k * S + t, v)
            best = select(a > most, like(v, k), best)
            most = select(most >= a, most, a)  # in this order NaN is kept
        most = select(most < like(v, LOWEST), like(v, LOWEST), most)
        write(top, t, most)
        write(norm, t, like(v, 0))
        write(label, t, best)
    for k in range(K):
        for t in range(0, T, 8):
            a = exp_negative(read(logit, k * S + t, v) - read(top, t, v))
            write(norm, t, read(norm, t, v) + a)
    for t in range(0, T, 8):
        n = read(norm, t, v)
        # n - n is 0, or NaN, which is lost in log_normal
        value = select(n == like(v, 0), like(v, -math.inf), log_normal(n) + (n - n))
        write(norm, t, value)
        write(log_prob, t, read(top, t, v) + value)


@loop_jit
def put_rows(address, code, row, rows, K, S, logit, top, norm):
    """Write log responsibilities, row by row."""
    outlined()
    if code == F32:
        out = array_at(address + row * K * 4, rows * K, F32)
        for t in range(rows):
            for k in range(K):
                out[t * K + k] = logit[k * S + t] - top[t] - norm[t]
    else:
        out_ = array_at(address + row * K * 8, rows * K, F64)
        for t in range(rows):
            for k in range(K):
                out_[t * K + k] = logit[k * S + t] - top[t] - norm[t]


@math_jit
def open_scratch(f, me):
    """Return the scratch of a thread: features and logits of a tile, then one number per row for each result."""
    D, K, S = f.rows.D, f.K, f.T + 8
    at = f.room + 8 * f.room_size * me
    xt, logit, at = array_at(at, D * S, F64), array_at(at + 8 * D * S, K * S, F64), at + 8 * (D + K) * S
    value, label = array_at(at, S, F64), array_at(at + 8 * S, S, F64)
    return Scratch(xt, logit, value, label, array_at(at + 16 * S, S, F64), array_at(at + 24 * S, S, F64))


@math_jit
def score_tile(f, room, p, row):
    """Compute and write the requested scores of the rows of a tile."""
    N, D, K, S = f.rows.N, f.rows.D, f.K, f.T + 8
    rows = min(f.T, N - row)
    theta = row_at(f.theta, p, f.size, F64)
    load(
        room.xt,
        x_of(f.rows, p),
        f.rows.x_code,
        row,
        f.rows.x_row,
        rows,
        padded(rows),
        D,
        S,
        row_at(f.rows.shift, p, D, F64),
    )
    ahead = rows_ahead(f.rows, p, row + f.T, min(f.T, N - row - f.T))
    log_densities(f.family, room.logit, room.xt, theta, padded(rows), D, K, S, f.tied, ahead)
    log_norms(room.logit, room.value, room.label, room.top, room.norm, padded(rows), K, S)
    out = array_at(f.log_prob + 8 * (p * N + row), rows, F64)
    for t in range(rows):
        out[t] = room.value[t]
    if f.log_resp:
        resp = f.log_resp + p * N * K * (4 if f.resp_code == F32 else 8)
        put_rows(resp, f.resp_code, row, rows, K, S, room.logit, room.top, room.norm)
    if f.labels:
        labels = array_at(f.labels + 8 * (p * N + row), rows, I64)
        for t in range(rows):
            labels[t] = int(room.label[t])


@cache
def make_rows(family: int) -> Kernel:
    """Return the kernel for a covariance family, FULL also for tied covariances."""

    @kernel(SCORES, family=family)
    def mixture_rows(f):
        me = worker(f.header)
        room = open_scratch(f, me)
        start, stop = take(f.header, me)
        while start < stop:
            for unit in range(start, stop):
                score_tile(f, room, unit // f.tiles, unit % f.tiles * f.T)
            finished(f.header, stop - start)
            start, stop = take(f.header, me)

    return mixture_rows
