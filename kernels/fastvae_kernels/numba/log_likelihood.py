"""Log-likelihood of x under a decoder's output, and its gradient, in one pass: Numba.

    log_lik[n]       = 1/K sum_k sum_d log p(x_nd | x_hat_knd)
    dx_hat[k, n, d]  = weight[n] / K  d log p / d x_hat        dlog_scale likewise, summed where log_scale is shared

Traffic, elements: reads x and x_hat once, writes dx_hat if it is wanted: 3 N D with the gradient, 2 N D without; x is
read once for all K draws. Floor: the time of ``torch.add(x, x_hat, out=dx_hat)``.
Layout: rows dense in memory, any stride between them. Work unit: a fixed chunk of one row, or of a block of rows where
the gradient of a per-feature scale is summed over them. A chunk is summed in the compute dtype, chunks in float64 in
index order, so that a row's value depends on neither its batch nor the number of threads.
Specification: fastvae/reference/elbo.py (log_likelihood), fastvae/reference/likelihoods.py
"""

import math
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._jit import REDUCTION, jit, math_jit
from ._math import exp, like, log1p, sigmoid, tanh
from ._memory import (
    CODES,
    F64,
    ITEM_SIZES,
    U8,
    array_at,
    as_float,
    compute_dtype,
    dense_rows,
    empty,
    in_order,
    memory_order,
    scratch,
    store,
    weight_at,
)
from ._threads import run

LIKELIHOODS = {"gaussian": 0, "bernoulli": 1}
LINKS = {"identity": 0, "sigmoid": 1, "tanh": 2}
GAUSSIAN, SIGMOID, TANH = 0, 1, 2
# Log-scales: one number, or elements; the gradient of elements is not wanted, written, or summed over a block of rows.
ONE, ELEMENTS, WRITTEN, SUMMED = range(4)

CHUNK = 2048  # elements of a row summed in the compute dtype
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
ROW_BLOCKS = 16  # partial sums over rows of a per-feature gradient
NS_PER_ELEMENT = {("gaussian", "identity", ONE): 0.25}  # on one thread; everything with an exponential is about 1


@math_jit
def link_at(link: int, a: Any) -> Any:
    """The decoder's last function at a, and its derivative."""
    if link == SIGMOID:
        m = sigmoid(a)
        return m, m * (like(a, 1) - m)
    if link == TANH:
        m = tanh(a)
        return m, like(a, 1) - m * m
    return a, like(a, 1)


@math_jit
def gaussian(x: Any, m: Any, inverse_scale: Any, log_scale: Any) -> Any:
    """log N(x; m, scale^2) but for the constant, and its derivatives in m and in log_scale."""
    r = (x - m) * inverse_scale
    return like(r, -0.5) * (r * r) - log_scale, r * inverse_scale, r * r - like(r, 1)


@math_jit
def bernoulli(x: Any, a: Any) -> Any:
    """x log s(a) + (1 - x) log s(-a), and its derivative; log s(a) = min(a, 0) - log1p(e^-|a|)."""
    zero = like(a, 0)
    value = x * min(a, zero) + (like(a, 1) - x) * min(-a, zero) - log1p(exp(-abs(a)))
    return value, x - sigmoid(a)


@cache
def make_rows(X: int, H: int, S: int, T: int, likelihood: int, link: int, scale: int, gradient: bool) -> Any:
    """The kernel for the dtype codes of x, x_hat, log_scale and arithmetic, a likelihood, a link, a form of scale."""
    x_bytes, h_bytes, s_bytes = (ITEM_SIZES[code] for code in (X, H, S))

    @jit(fastmath=REDUCTION)
    def log_likelihood_rows(
        x, h, s, dh, ds, partial, w, w_row, w_factor, x_scale, one_log_scale,
        N, K, D, block, x_row, h_row, s_row, start, stop,
    ):  # fmt: skip
        # x, ..., w are addresses, *_row strides in elements; row k N + n of x_hat is draw k of x's row n
        chunks = -(-D // CHUNK)
        sums = array_at(partial, N * chunks, F64)
        for unit in range(start, stop):
            c, b = unit % chunks, unit // chunks
            first = c * CHUNK
            length = min(CHUNK, D - first)
            for n in range(b * block, min(b * block + block, N)):
                weight = weight_at(w, n * w_row, w_factor, T)
                x_n = array_at(x + (n * x_row + first) * x_bytes, length, X)
                one, inverse = like(weight, 1), like(weight, math.exp(-one_log_scale))
                x_factor = like(weight, x_scale) if X == U8 else one
                total = 0.0
                for k in range(K):
                    row = k * N + n
                    h_kn = array_at(h + (row * h_row + first) * h_bytes, length, H)
                    s_kn = array_at(s + (row * s_row + first) * s_bytes, length, S)
                    dh_kn = array_at(dh + (row * D + first) * h_bytes, length, H)
                    ds_kn = array_at(ds + ((b if scale == SUMMED else row) * D + first) * s_bytes, length, S)
                    acc = like(weight, 0)
                    for d in range(length):
                        value_x, a = as_float(x_n[d]) * x_factor, as_float(h_kn[d]) * one  # in the compute dtype
                        if likelihood == GAUSSIAN:
                            m, dm = link_at(link, a)
                            if scale == ONE:
                                value, slope, scale_slope = gaussian(value_x, m, inverse, like(weight, 0))
                            else:
                                log_scale = s_kn[d] * one
                                value, slope, scale_slope = gaussian(value_x, m, exp(-log_scale), log_scale)
                                if scale == WRITTEN:
                                    store(ds_kn, d, weight * scale_slope)
                                elif scale == SUMMED:
                                    ds_kn[d] += weight * scale_slope
                            slope = slope * dm
                        else:
                            value, slope = bernoulli(value_x, a)
                        acc += value
                        if gradient:
                            store(dh_kn, d, weight * slope)
                    total += acc
                sums[n * chunks + c] = total

    return log_likelihood_rows


@cache
def make_finish(T: int, E: int, per_row: bool) -> Any:
    """The kernel that adds up the chunks of each row in index order, and the rows; E is the dtype code of the ELBO."""
    t_bytes, e_bytes = ITEM_SIZES[T], ITEM_SIZES[E]

    @jit
    def log_likelihood_finish(partial, neg_kl, elbo, log_lik, N, chunks, K, constant, mean):
        sums = array_at(partial, N * chunks, F64)
        total = 0.0
        for n in range(N):
            row = 0.0
            for c in range(chunks):
                row += sums[n * chunks + c]
            row = row / K + constant
            if per_row:
                if log_lik:
                    array_at(log_lik + n * t_bytes, 1, T)[0] = row
                array_at(elbo + n * e_bytes, 1, E)[0] = row + array_at(neg_kl + n * e_bytes, 1, E)[0]
            total += row
        if not per_row:
            if log_lik:
                array_at(log_lik, 1, T)[0] = total * mean
            array_at(elbo, 1, E)[0] = total * mean + array_at(neg_kl, 1, E)[0]

    return log_likelihood_finish


@cache
def make_dlog_scale(T: int) -> Any:
    """The kernel of the gradient of a single log_scale: sum_d (r^2 - 1) of each row, from its sums of -r^2 / 2."""

    @jit
    def log_scale_gradient(partial, w, w_row, w_factor, out, N, chunks, count):
        sums = array_at(partial, N * chunks, F64)
        total = 0.0
        for n in range(N):
            row = 0.0
            for c in range(chunks):
                row += sums[n * chunks + c]
            total += (-2 * row - count) * weight_at(w, n * w_row, w_factor, T)
        array_at(out, 1, F64)[0] = total

    return log_scale_gradient


class Result(NamedTuple):
    """The ELBO and the log-likelihood, reduced over the batch, and the gradients; None for what was not asked for."""

    elbo: Tensor | None
    log_lik: Tensor | None
    dx_hat: Tensor | None
    dlog_scale: Tensor | None


class Scale(NamedTuple):
    """How the kernel finds log_scale: one number; or rows of elements, kept alive here, with their stride."""

    form: int
    number: float
    rows: Tensor
    stride: int
    gradient: Tensor  # where the kernel writes, or the rows again


def log_likelihood(
    x: Tensor,
    x_hat: Tensor,
    log_scale: Tensor | float,
    x_scale: float | None,
    neg_kl: Tensor | None,
    weight: Tensor | float | None,
    *,
    likelihood: str,
    link: str,
    num_samples: int | None,
    reduction: str,
    need_dlog_scale: bool = False,
    want_log_lik: bool = True,
) -> Result:
    """Values if ``neg_kl`` is given, the KL term in final units that is added to them; gradients if ``weight`` is.

    ``weight`` is the upstream gradient of the log-likelihood as it is reduced: a number, 0-d, or ``[N]`` for "none".
    """
    N, K = x.shape[0], num_samples or 1
    D = x.numel() // N if N else 0
    dtype = compute_dtype(x, x_hat, log_scale)
    T = CODES[dtype]
    gradient = weight is not None
    order = memory_order(x_hat, x.dim() - 1)
    x_rows, x_stride = dense_rows(in_order(x, order), N)
    h = in_order(x_hat, order)
    h_rows, h_stride = dense_rows(h if num_samples is None else h.flatten(0, 1), K * N)
    block = -(-N // ROW_BLOCKS) or 1
    scale = scale_form(log_scale, h, order, x.dim() - 1, block, need_dlog_scale and gradient)
    if scale.form != SUMMED:
        block = 1
    factor = 1 / (N * K) if reduction == "mean" else 1 / K
    if isinstance(weight, Tensor):
        weight = weight.to(dtype).contiguous()  # kept alive here
        w, w_row = weight.data_ptr(), weight.dim()
    else:
        w, w_row, factor = 0, 0, factor * (weight or 0.0)
    chunks = -(-D // CHUNK)
    partial = scratch(N * chunks)
    dx_hat = empty(h.shape, h.dtype) if gradient else h

    rows = make_rows(
        CODES[x.dtype], CODES[h.dtype], CODES[scale.rows.dtype], T,
        LIKELIHOODS[likelihood], LINKS[link], scale.form, gradient,
    )  # fmt: skip
    run(
        rows,
        (
            x_rows.data_ptr(), h_rows.data_ptr(), scale.rows.data_ptr(), dx_hat.data_ptr(), scale.gradient.data_ptr(),
            partial, w, w_row, factor, 1.0 if x_scale is None else float(x_scale), scale.number,
            N, K, D, block, x_stride, h_stride, scale.stride,
        ),
        -(-N // block) * chunks,
        h.numel() * NS_PER_ELEMENT.get((likelihood, link, scale.form), 1.0),
    )  # fmt: skip

    dlog_scale = None
    if gradient and need_dlog_scale and isinstance(log_scale, Tensor):
        if scale.form == ONE:
            dlog_scale = torch.empty((), dtype=torch.float64)
            make_dlog_scale(T)(partial, w, w_row, factor, dlog_scale.data_ptr(), N, chunks, K * D)
        else:
            summed = scale.gradient.sum(0) if scale.form == SUMMED else scale.gradient
            dlog_scale = in_order(summed, order, back=True)
        dlog_scale = (
            dlog_scale.expand(log_scale.shape) if scale.form == ONE else dlog_scale.sum_to_size(log_scale.shape)
        )
        dlog_scale = dlog_scale.to(log_scale.dtype)
    elbo = log_lik = None
    if neg_kl is not None:
        constant = -D * (scale.number + HALF_LOG_2PI) if likelihood == "gaussian" else 0.0
        shape = (N,) if reduction == "none" else ()
        log_lik = torch.empty(shape, dtype=dtype) if want_log_lik else None
        elbo = torch.empty(shape, dtype=torch.promote_types(dtype, neg_kl.dtype))
        neg_kl = neg_kl.to(elbo.dtype).contiguous()
        finish = make_finish(T, CODES[elbo.dtype], reduction == "none")
        mean = 1 / N if reduction == "mean" else 1.0
        addresses = neg_kl.data_ptr(), elbo.data_ptr(), 0 if log_lik is None else log_lik.data_ptr()
        finish(partial, *addresses, N, chunks, K, constant, mean)
    return Result(elbo, log_lik, in_order(dx_hat, order, back=True) if gradient else None, dlog_scale)


def scale_form(
    log_scale: Tensor | float, h: Tensor, order: tuple[int, ...] | None, event_dims: int, block: int, gradient: bool
) -> Scale:
    """The form of log_scale for x_hat ``h``, whose event dims stand in memory order."""
    if not isinstance(log_scale, Tensor) or log_scale.numel() == 1:
        return Scale(ONE, float(log_scale), h, 0, h)
    event, lead = h.shape[h.dim() - event_dims :], h.dim() - event_dims
    aligned = log_scale.view((1,) * (h.dim() - log_scale.dim()) + log_scale.shape)
    shared = all(size == 1 for size in aligned.shape[:lead])
    full = in_order(aligned.expand(*aligned.shape[:lead], *in_order(h, order, back=True).shape[lead:]), order)
    if shared:
        rows = full.contiguous()
        summed = rows.new_zeros((-(-h.shape[lead - 1] // block), *(1,) * lead, *event)) if gradient else rows
        return Scale(SUMMED if gradient else ELEMENTS, 0.0, rows, 0, summed)
    full = full.expand(h.shape)
    rows, stride = dense_rows(full if lead == 1 else full.flatten(0, 1), math.prod(h.shape[:lead]))
    return Scale(
        WRITTEN if gradient else ELEMENTS,
        0.0,
        rows,
        stride,
        empty(h.shape, rows.dtype) if gradient else rows,
    )


def scale_(gradients: tuple[Tensor | None, ...], upstream: Tensor, unit: float) -> tuple[Tensor | None, ...]:
    """Gradients for a 0-d upstream from those for the upstream ``unit``, in place; untouched where the two agree."""
    if (number := float(upstream) / unit) != 1:
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(number)
    return gradients
