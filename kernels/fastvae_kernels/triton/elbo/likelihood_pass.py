"""The kernel of the log-likelihood: one pass over x and x_hat, for the values and the gradients. Triton.

    log_lik[n]       = 1/K sum_k sum_d log p(x_nd | x_hat_knd)
    dx_hat[k, n, d]  = weight[n] / K  d log p / d x_hat        dlog_scale likewise, summed where log_scale is shared

Traffic, elements: reads x and x_hat once, writes dx_hat if requested: 3 N D with the gradient, 2 N D without; x is read
once for all K draws. Floor: a device copy of as many bytes.
Layout: rows dense in memory, any stride between them; row k N + n of x_hat is draw k of x's row n.
Work unit: a program takes tiles of R rows by C columns, R and C from D and the dtype alone; it sums a row of a tile in
the compute dtype. The last program to arrive adds the tiles in index order in float64, so that bits depend neither on
who came when nor, row by row, on the batch.
The log densities are in `densities/`. Specification: fastvae/reference/elbo/formulas.py (log_likelihood)
"""

import triton
import triton.language as tl

from ..language.math import inverse_parts, to_element
from ..language.tiles import load_rows, total_of
from .densities import log_density

# Log-scales: a number, one element of a tensor on the GPU, or elements.
NUMBER, ONE, ELEMENTS = range(3)
ONE_, ELEMENTS_ = tl.constexpr(ONE), tl.constexpr(ELEMENTS)
# The gradient of log_scale: not requested; of one number; of elements, written, or summed over a program's rows.
UNWANTED, OF_ONE, WRITTEN, SUMMED = range(4)
OF_ONE_, WRITTEN_, SUMMED_ = tl.constexpr(OF_ONE), tl.constexpr(WRITTEN), tl.constexpr(SUMMED)
# The upstream: none, so no gradient; a number; a 0-d tensor; one of each row.
NO_GRADIENT, PLAIN, SCALAR, PER_ROW = range(4)
NO_GRADIENT_, SCALAR_, PER_ROW_ = tl.constexpr(NO_GRADIENT), tl.constexpr(SCALAR), tl.constexpr(PER_ROW)

UNTYPED = ["N", "K", "DV", "chunks", "per", "blocks", "x_row", "h_row", "s_row", "w_row"]


@triton.jit
def scale_of_all(s, number_log_scale, T: tl.constexpr, SCALE: tl.constexpr):
    """The log_scale that all elements have, if they have one."""
    log_scale = tl.full((), number_log_scale, T)
    if SCALE == ONE_:
        log_scale = tl.load(s).to(T)
    return log_scale


@triton.jit
def weight_of_all(w, factor, T: tl.constexpr, WEIGHT: tl.constexpr):
    """The part of the upstream that all rows have in common."""
    weight = tl.full((), factor, T)
    if WEIGHT == SCALAR_:
        weight = weight * tl.load(w).to(T)
    return weight


@triton.jit
def weight_of_rows(w, w_row, n, live, of_all, R: tl.constexpr, T: tl.constexpr, WEIGHT: tl.constexpr):
    """The upstream of rows n, [R]."""
    weight = tl.zeros([R], T) + of_all
    if WEIGHT == PER_ROW_:
        weight = weight * tl.load(w + n * w_row, mask=live, other=0.0).to(T)
    return weight


@triton.jit
def density_tile(
    x, h, s, ds, row, h_row, s_row, first, cols, mask, log_scale, weight, ds_sum, out,
    T: tl.constexpr, LIKELIHOOD: tl.constexpr, LINK: tl.constexpr, SCALE: tl.constexpr, DS: tl.constexpr,
):  # fmt: skip
    """The log densities of a tile and their derivatives in x_hat, [R, C]; of log_scale's elements, the gradient is
    written, or added to the sums over rows, [C].
    """
    a = load_rows(h, row, h_row, first, cols, mask, T)
    if SCALE == ELEMENTS_:
        log_scales = load_rows(s, row, s_row, first, cols, mask, T)
        inverse, rest = inverse_parts(log_scales)
        value, slope, scale_slope = log_density(x, a, inverse, rest, log_scales, LIKELIHOOD, LINK)
        if DS == WRITTEN_:
            tl.store(ds + out, to_element(weight[:, None] * scale_slope, ds), mask=mask)
        elif DS == SUMMED_:
            ds_sum += tl.sum(tl.where(mask, weight[:, None] * scale_slope, 0.0), 0)
    else:
        inverse, rest = inverse_parts(log_scale)
        value, slope, _scale_slope = log_density(x, a, inverse, rest, tl.zeros([], T), LIKELIHOOD, LINK)
    return value, slope, ds_sum


@triton.jit
def constant_of(constant, D, log_scale, POWER: tl.constexpr):
    """What the log density of a row has beside the sum over its elements; made where it is used, not kept for long."""
    value = tl.full((), constant, tl.float64)
    if POWER != 0:
        value -= D.to(tl.float64) * log_scale.to(tl.float64)
    return value


@triton.jit
def put_values(n, value, neg_kl, elbo, log_lik, live):
    """The log-likelihood, if it is requested, and the ELBO: of rows n."""
    if log_lik is not None:
        tl.store(log_lik + n, to_element(value, log_lik), mask=live)
    value += tl.load(neg_kl + n, mask=live, other=0.0).to(tl.float64)
    tl.store(elbo + n, to_element(value, elbo), mask=live)


@triton.jit
def finish_row(partial, counter, neg_kl, elbo, log_lik, b, N, K, D, chunks, constant, log_scale, POWER: tl.constexpr):
    """The value of row b, by the last of its chunks to arrive."""
    tl.debug_barrier()
    if tl.atomic_add(counter + 1 + b, 1) == chunks - 1:
        value = total_of(partial + b * chunks, chunks) / K + constant_of(constant, D, log_scale, POWER)
        put_values(b, value, neg_kl, elbo, log_lik, b < N)
        tl.store(counter + 1 + b, 0)


@triton.jit
def finish_batch(
    partial, counter, neg_kl, elbo, log_lik, dlog_scale, tiles, N, K, D, constant, mean, log_scale,
    POWER: tl.constexpr, DS: tl.constexpr, OF_BATCH: tl.constexpr,
):  # fmt: skip
    """The value of the batch and the gradient of a single log_scale, by the last program to arrive."""
    tl.debug_barrier()
    if tl.atomic_add(counter, 1) == tl.num_programs(0) - 1:
        if OF_BATCH:
            value = (total_of(partial, tiles) / K + constant_of(constant, D, log_scale, POWER) * N) * tl.full(
                (), mean, tl.float64
            )
            if log_lik is not None:
                tl.store(log_lik, to_element(value, log_lik))
            value += tl.load(neg_kl).to(tl.float64)
            tl.store(elbo, to_element(value, elbo))
        if DS == OF_ONE_:
            tl.store(dlog_scale, total_of(partial + tiles, tiles))
        tl.store(counter, 0)


@triton.jit(do_not_specialize=UNTYPED)
def log_likelihood_fwd_kernel(
    x, h, s, dh, ds, w, neg_kl, elbo, log_lik, dlog_scale, partial, counter,
    N: tl.int64, K: tl.int32, DV: tl.int32, chunks: tl.int32, per: tl.int32, blocks: tl.int64,
    x_row: tl.int64, h_row: tl.int64, s_row: tl.int64, w_row: tl.int32,
    factor: tl.float64, x_scale: tl.float64, number_log_scale: tl.float64, constant: tl.float64, mean: tl.float64,
    R: tl.constexpr, C: tl.constexpr, V: tl.constexpr, T: tl.constexpr, LIKELIHOOD: tl.constexpr, LINK: tl.constexpr,
    POWER: tl.constexpr, SCALE: tl.constexpr, DS: tl.constexpr, WEIGHT: tl.constexpr, VALUES: tl.constexpr,
    EACH: tl.constexpr, CHUNKED: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Rows in units of V elements. EACH: a value for each row. CHUNKED: a row takes several tiles, and R is 1."""
    pid = tl.program_id(0)
    chunk, group = pid % chunks, (pid // chunks).to(tl.int64)
    D, first, cols = DV * V, chunk * C, tl.arange(0, C)
    inside = first + cols < D
    length = tl.minimum(D - first, C).to(T)
    log_scale = scale_of_all(s, number_log_scale, T, SCALE)
    of_all = weight_of_all(w, factor, T, WEIGHT)
    ds_sum = tl.zeros([C], T)
    for i in range(tl.minimum(per, blocks - group * per)):
        b = group * per + i
        n = b * R + tl.arange(0, R).to(tl.int64)  # [R]
        live = n < N
        mask = live[:, None] & inside[None, :]  # [R, C]
        value_x = load_rows(x, n, x_row * V, first, cols, mask, T)
        if SCALED:
            value_x = value_x * tl.full((), x_scale, T)
        weight = weight_of_rows(w, w_row, n, live, of_all, R, T, WEIGHT)
        acc = tl.zeros([R], T)
        for k in range(K):
            row = k * N + n
            out = (row * DV * V)[:, None] + first + cols[None, :]  # known to be a multiple of V
            value, slope, ds_sum = density_tile(
                value_x, h, s, ds, row, h_row * V, s_row * V, first, cols, mask, log_scale, weight, ds_sum, out,
                T, LIKELIHOOD, LINK, SCALE, DS,
            )  # fmt: skip
            acc += tl.sum(tl.where(mask, value, 0.0), 1)
            if WEIGHT != NO_GRADIENT_:
                tl.store(dh + out, to_element(weight[:, None] * slope, dh), mask=mask)
        t = b * chunks + chunk
        if DS == OF_ONE_:  # from the same sums: see `plans.Likelihood`
            part = weight * (acc * -POWER - length * K.to(T))
            tl.store(partial + blocks * chunks + t, tl.sum(tl.where(live, part, 0.0), 0))
        if VALUES and EACH and not CHUNKED:
            value_n = acc.to(tl.float64) / K + constant_of(constant, D, log_scale, POWER)
            put_values(n, value_n, neg_kl, elbo, log_lik, live)
        elif VALUES:
            tl.store(partial + t, tl.sum(acc, 0))  # rows beyond the last are all masked
            if EACH:
                finish_row(partial, counter, neg_kl, elbo, log_lik, b, N, K, D, chunks, constant, log_scale, POWER)
    if DS == SUMMED_:
        tl.store(ds + group * D + first + cols, to_element(ds_sum, ds), mask=inside)
    if (VALUES and not EACH) or DS == OF_ONE_:
        finish_batch(
            partial, counter, neg_kl, elbo, log_lik, dlog_scale, blocks * chunks, N, K, D, constant, mean, log_scale,
            POWER, DS, VALUES and not EACH,
        )  # fmt: skip
