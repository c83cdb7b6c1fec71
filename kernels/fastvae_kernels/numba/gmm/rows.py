"""What a mixture says of each row: log density, log responsibilities, the most likely component.

Traffic: reads N D elements, writes N, N K and N, as wanted. Work unit: a tile of rows of a problem.
Specification: fastvae/reference/gmm/formulas.py
"""

import math
from functools import cache

from ..language.jit import Kernel, kernel, loop_jit, outlined, unpack
from ..language.math import exp_negative, like, log_normal, select
from ..language.memory import F32, F64, I64, array_at, read, vector, write
from ..language.threads import finished, take, worker
from ..language.transpose import ahead_of, load
from .tiles import (
    DIAG,
    LOWEST,
    SPHERICAL,
    logits_of_distances,
    logits_of_products,
    logits_of_squares,
)

FIELDS = "21q"


@loop_jit
def log_norms(logit, log_prob, label, top, norm, T, K, S):
    """log sum_k e^logit and the largest component, of each row; left in ``top`` and ``norm``: the largest logit, and
    log sum_k e^(logit - top), which is what of log p is lost beside a large top.
    """
    outlined()
    v = vector(F64)
    for t in range(0, T, 8):
        most, best = read(logit, t, v), like(v, 0)
        for k in range(1, K):
            a = read(logit, k * S + t, v)
            best = select(a > most, like(v, k), best)
            most = select(most >= a, most, a)  # this way round NaN stays
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
        value = select(n == like(v, 0), like(v, -math.inf), log_normal(n) + (n - n))  # 0, or NaN: log_normal knows none
        write(norm, t, value)
        write(log_prob, t, read(top, t, v) + value)


@loop_jit
def put_rows(address, code, row, rows, K, S, logit, top, norm):
    """Log responsibilities, row by row."""
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


@cache
def make_rows(family: int) -> Kernel:
    """The kernel for a covariance family, FULL for tied ones too."""

    @kernel(FIELDS)
    def mixture_rows(block):
        (
            x, x_code, x_row, x_problem, N, D, K, T, tiles, shift, parameters, size, parameters_problem,
            log_resp, resp_code, log_prob, labels, room, room_size, shift_problem, matrices,
        ) = unpack(block, FIELDS)  # fmt: skip
        S = T + 8
        me = worker(block)
        mine = room + 8 * room_size * me
        xt, logit = array_at(mine, D * S, F64), array_at(mine + 8 * D * S, K * S, F64)
        rest = mine + 8 * (D + K) * S
        value, label = array_at(rest, S, F64), array_at(rest + 8 * S, S, F64)
        top, norm = array_at(rest + 16 * S, S, F64), array_at(rest + 24 * S, S, F64)
        start, stop = take(block, me)
        while start < stop:
            for unit in range(start, stop):
                p, row = unit // tiles, unit % tiles * T
                rows = min(T, N - row)
                whole = (rows + 15) // 16 * 16
                theta = array_at(parameters + 8 * p * parameters_problem, size, F64)
                shift_p = array_at(shift + 8 * p * shift_problem, D, F64)
                x_p = x + p * x_problem * (4 if x_code == F32 else 8)
                load(xt, x_p, x_code, row, x_row, rows, whole, D, S, shift_p)
                ahead = ahead_of(x_p, x_code, row + T, x_row, min(T, N - row - T), D)
                c, means, P = theta[K:], theta[2 * K :], theta[2 * K + K * D :]
                if family == DIAG:
                    logits_of_squares(logit, xt, means, P, c, whole, D, K, S, ahead)
                elif family == SPHERICAL:
                    logits_of_distances(logit, xt, means, P, c, whole, D, K, S, ahead)
                else:
                    step = D * D if matrices == K else 0
                    logits_of_products(logit, xt, means, P, c, whole, D, K, S, step, ahead)
                log_norms(logit, value, label, top, norm, whole, K, S)
                out = array_at(log_prob + 8 * (p * N + row), rows, F64)
                for t in range(rows):
                    out[t] = value[t]
                if log_resp:
                    resp_p = log_resp + p * N * K * (4 if resp_code == F32 else 8)
                    put_rows(resp_p, resp_code, row, rows, K, S, logit, top, norm)
                if labels:
                    out_ = array_at(labels + 8 * (p * N + row), rows, I64)
                    for t in range(rows):
                        out_[t] = int(label[t])
            finished(block, stop - start)
            start, stop = take(block, me)

    return mixture_rows
