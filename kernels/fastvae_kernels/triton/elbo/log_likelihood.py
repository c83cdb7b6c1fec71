"""Log-likelihood of x under a decoder's output, and its gradient, in one pass: Triton.

    log_lik[n]       = 1/K sum_k sum_d log p(x_nd | x_hat_knd)
    dx_hat[k, n, d]  = weight[n] / K  d log p / d x_hat        dlog_scale likewise, summed where log_scale is shared

Traffic, elements: reads x and x_hat once, writes dx_hat if it is wanted: 3 N D with the gradient, 2 N D without; x is
read once for all K draws. Floor: a device copy of as many bytes.
Layout: rows dense in memory, any stride between them. A program takes tiles of R rows by C columns, R and C from D and
the dtype alone; it sums a row of a tile in the compute dtype. The last program to arrive adds the tiles in index order
in float64, so that bits depend neither on who came when nor, row by row, on the batch.
Specification: fastvae/reference/elbo/formulas.py (log_likelihood), fastvae/reference/elbo/likelihoods.py
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...plans import LIKELIHOODS, LINKS, DensityPlan
from ...rows import in_order
from ..language.launch import as_pointer, launch
from ..language.math import exp, inverse_parts, log1p, number, sigmoid, tanh, times, to_element
from ..language.tiles import TYPES, counters, load_rows, tile, total_of, vector_width

# What is left are the Gaussian and the identity.
BERNOULLI, LAPLACE = tl.constexpr(LIKELIHOODS["bernoulli"].code), tl.constexpr(LIKELIHOODS["laplace"].code)
SIGMOID, TANH = tl.constexpr(LINKS["sigmoid"]), tl.constexpr(LINKS["tanh"])
# Log-scales: a number, one element of a tensor on the GPU, or elements.
NUMBER, ONE, ELEMENTS = range(3)
ONE_, ELEMENTS_ = tl.constexpr(ONE), tl.constexpr(ELEMENTS)
# The gradient of log_scale: not wanted; of one number; of elements, written, or summed over a program's rows.
UNWANTED, OF_ONE, WRITTEN, SUMMED = range(4)
OF_ONE_, WRITTEN_, SUMMED_ = tl.constexpr(OF_ONE), tl.constexpr(WRITTEN), tl.constexpr(SUMMED)
# The upstream: none, so no gradient; a number; a 0-d tensor; one of each row.
NO_GRADIENT, PLAIN, SCALAR, PER_ROW = range(4)
SCALAR_, PER_ROW_ = tl.constexpr(SCALAR), tl.constexpr(PER_ROW)

TILE_BYTES = 8192  # of x_hat: two 16-byte loads in flight for each of 256 threads, and as many of x
MOST_PROGRAMS = 4096  # some fill a GPU many times over; more would queue up at the counter
SUMMED_BLOCKS = 64  # partial sums over rows of a per-feature gradient
SCALE_BLOCK, SCALE_PROGRAMS = 4096, 2048
UNTYPED = ["N", "K", "DV", "chunks", "per", "blocks", "x_row", "h_row", "s_row", "w_row"]


@triton.jit
def link_at(a, LINK: tl.constexpr):
    """The decoder's last function at a, and its derivative."""
    if LINK == SIGMOID:
        m = sigmoid(a)
        return m, m * (number(a, 1.0) - m)
    elif LINK == TANH:
        m = tanh(a)
        return m, number(a, 1.0) - m * m
    else:
        return a, number(a, 1.0)


@triton.jit
def gaussian(x, m, inverse_scale, rest, log_scale):
    """log N(x; m, scale^2) but for the constant, and its derivatives in m and log_scale; 1 / scale has two factors."""
    d = x - m
    inverse_scale, rest = tl.where(d == 0.0, d, inverse_scale), tl.where(d == 0.0, d, rest)  # not 0 * inf
    r = d * inverse_scale * rest
    return number(r, -0.5) * (r * r) - log_scale, r * inverse_scale * rest, r * r - number(r, 1.0)


@triton.jit
def laplace(x, m, inverse_scale, rest, log_scale):
    """The same of a Laplace variable; the derivative in m is 0 where x is m, and NaN for NaN."""
    r = times(times(x - m, inverse_scale), rest)
    size = tl.abs(r)
    slope = tl.where(size > 0, inverse_scale * rest, size)  # this way round no GPU spills registers
    return -size - log_scale, tl.where(r < 0, -slope, slope), size - number(r, 1.0)


@triton.jit
def bernoulli(x, a):
    """x log s(a) + (1 - x) log s(-a), and its derivative; log s(a) = min(a, 0) - log1p(e^-|a|)."""
    zero = number(a, 0.0)
    low, high = tl.where(a < zero, a, zero), tl.where(a > zero, -a, zero)
    value = x * low + (number(a, 1.0) - x) * high - log1p(exp(-tl.abs(a)))
    return value, x - sigmoid(a)


@triton.jit
def density(x, a, inverse_scale, rest, log_scale, LIKELIHOOD: tl.constexpr, LINK: tl.constexpr):
    """The log density of any of them, and its derivatives in a and in log_scale."""
    if LIKELIHOOD == BERNOULLI:
        value, slope = bernoulli(x, a)
        return value, slope, number(a, 0.0)
    else:
        m, dm = link_at(a, LINK)
        if LIKELIHOOD == LAPLACE:
            value, slope, scale_slope = laplace(x, m, inverse_scale, rest, log_scale)
        else:
            value, slope, scale_slope = gaussian(x, m, inverse_scale, rest, log_scale)
        return value, slope * dm, scale_slope


@triton.jit
def constant_of(constant, D, log_scale, POWER: tl.constexpr):
    """What the log density of a row has beside the sum over its elements; made where it is used, not kept for long."""
    value = tl.full((), constant, tl.float64)
    if POWER != 0:
        value -= D.to(tl.float64) * log_scale.to(tl.float64)
    return value


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
    """Rows in units of V elements; row k N + n of x_hat is draw k of x's row n. EACH: a value for each row."""
    pid = tl.program_id(0)
    chunk = pid % chunks
    group = (pid // chunks).to(tl.int64)
    D = DV * V
    first = chunk * C
    cols = tl.arange(0, C)
    inside = first + cols < D
    length = tl.minimum(D - first, C).to(T)
    log_scale = tl.full((), number_log_scale, T)
    if SCALE == ONE_:
        log_scale = tl.load(s).to(T)
    weight_of_all = tl.full((), factor, T)
    if WEIGHT == SCALAR_:
        weight_of_all = weight_of_all * tl.load(w).to(T)
    ds_sum = tl.zeros([C], T)
    for i in range(tl.minimum(per, blocks - group * per)):
        b = group * per + i
        n = b * R + tl.arange(0, R).to(tl.int64)  # [R]
        live = n < N
        mask = live[:, None] & inside[None, :]  # [R, C]
        value_x = load_rows(x, n, x_row * V, first, cols, mask, T)
        if SCALED:
            value_x = value_x * tl.full((), x_scale, T)
        weight = tl.zeros([R], T) + weight_of_all
        if WEIGHT == PER_ROW_:
            weight = weight * tl.load(w + n * w_row, mask=live, other=0.0).to(T)
        acc = tl.zeros([R], T)
        for k in range(K):
            row = k * N + n
            out = (row * DV * V)[:, None] + first + cols[None, :]  # known to be a multiple of V
            a = load_rows(h, row, h_row * V, first, cols, mask, T)
            if SCALE == ELEMENTS_:
                ls = load_rows(s, row, s_row * V, first, cols, mask, T)
                inverse, rest = inverse_parts(ls)
                value, slope, scale_slope = density(value_x, a, inverse, rest, ls, LIKELIHOOD, LINK)
                if DS == WRITTEN_:
                    tl.store(ds + out, to_element(weight[:, None] * scale_slope, ds), mask=mask)
                elif DS == SUMMED_:
                    ds_sum += tl.sum(tl.where(mask, weight[:, None] * scale_slope, 0.0), 0)
            else:
                inverse, rest = inverse_parts(log_scale)
                value, slope, scale_slope = density(value_x, a, inverse, rest, tl.zeros([], T), LIKELIHOOD, LINK)
            acc += tl.sum(tl.where(mask, value, 0.0), 1)
            if WEIGHT != 0:
                tl.store(dh + out, to_element(weight[:, None] * slope, dh), mask=mask)
        t = b * chunks + chunk
        if DS == OF_ONE_:  # from the same sums: see `plans.Likelihood`
            part = weight * (acc * -POWER - length * K.to(T))
            tl.store(partial + blocks * chunks + t, tl.sum(tl.where(live, part, 0.0), 0))
        if VALUES:
            if EACH and not CHUNKED:
                value_n = acc.to(tl.float64) / K + constant_of(constant, D, log_scale, POWER)
                if log_lik is not None:
                    tl.store(log_lik + n, to_element(value_n, log_lik), mask=live)
                value_n += tl.load(neg_kl + n, mask=live, other=0.0).to(tl.float64)
                tl.store(elbo + n, to_element(value_n, elbo), mask=live)
            else:
                tl.store(partial + t, tl.sum(acc, 0))  # rows beyond the last are all masked
            if EACH and CHUNKED:  # R is 1
                tl.debug_barrier()
                if tl.atomic_add(counter + 1 + b, 1) == chunks - 1:
                    value_b = total_of(partial + b * chunks, chunks) / K + constant_of(constant, D, log_scale, POWER)
                    if log_lik is not None:
                        tl.store(log_lik + b, to_element(value_b, log_lik), mask=b < N)
                    value_b += tl.load(neg_kl + b, mask=b < N, other=0.0).to(tl.float64)
                    tl.store(elbo + b, to_element(value_b, elbo), mask=b < N)
                    tl.store(counter + 1 + b, 0)
    if DS == SUMMED_:
        tl.store(ds + group * D + first + cols, to_element(ds_sum, ds), mask=inside)
    if (VALUES and not EACH) or DS == OF_ONE_:
        tl.debug_barrier()
        if tl.atomic_add(counter, 1) == tl.num_programs(0) - 1:
            if VALUES and not EACH:
                value = (
                    total_of(partial, blocks * chunks) / K + constant_of(constant, D, log_scale, POWER) * N
                ) * tl.full((), mean, tl.float64)
                if log_lik is not None:
                    tl.store(log_lik, to_element(value, log_lik))
                value += tl.load(neg_kl).to(tl.float64)
                tl.store(elbo, to_element(value, elbo))
            if DS == OF_ONE_:
                tl.store(dlog_scale, total_of(partial + blocks * chunks, blocks * chunks))
            tl.store(counter, 0)


class Density(DensityPlan):
    """The log-likelihood for all x, x_hat and log_scale of one layout: what is known before any number is."""

    def __init__(self, x: Tensor, x_hat: Tensor, log_scale: Tensor | None, **options: Any) -> None:
        super().__init__(x, x_hat, log_scale, **options)
        self.R, self.C, self.chunks = tile(self.D, TILE_BYTES // x_hat.element_size())
        self.blocks = max(1, -(-self.N // self.R))  # an empty batch is one block with no live row
        self.V = vector_width((self.D, self.x.stride, self.x_hat.stride))
        dense = in_order(torch.empty(in_order(x_hat, self.order).shape, device="meta"), self.order, back=True)
        self.dense = dense.stride()

    def evaluate(
        self,
        x: Tensor,
        x_hat: Tensor,
        log_scale: Tensor | float,
        neg_kl: Tensor | None,
        weight: Tensor | float | None,
        elbo: Tensor | None = None,
        need_dlog_scale: bool = False,
        want_log_lik: bool = True,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Launch, for ``(elbo, log_lik, dx_hat, dlog_scale)``, None for what is not asked for.

        Values if ``neg_kl`` is given, the KL term in final units that is added to them; gradients if ``weight`` is, the
        upstream of the log-likelihood as it is reduced: a number, 0-d, or ``[N]`` for "none".

        ``elbo`` is where to write the ELBO; it may be ``neg_kl`` itself.
        """
        x, h = self.x.of(x), self.x_hat.of(x_hat)
        x = x.view(torch.uint8) if x.dtype is torch.bool else x
        need_dlog_scale = need_dlog_scale and weight is not None
        most = max(1, MOST_PROGRAMS // self.chunks)
        s = w = dx_hat = log_lik = ds = dlog_scale = None
        form, s_row, w_row, factor, number_log_scale = NUMBER, 0, 0, self.weight_factor, 0.0
        ds_mode, mode = UNWANTED, NO_GRADIENT if weight is None else PLAIN
        if self.elements and isinstance(log_scale, Tensor):
            form, s, s_row = ELEMENTS, self.scale_rows(log_scale), self.s_row
            if need_dlog_scale:
                ds_mode = SUMMED if s_row == 0 else WRITTEN
        else:
            s, number_log_scale = as_pointer(log_scale, x_hat.device)
            form = NUMBER if s is None else ONE
            if need_dlog_scale:
                ds_mode, dlog_scale = OF_ONE, torch.empty((), dtype=torch.float64, device=x_hat.device)
        if ds_mode == SUMMED:
            most = min(most, SUMMED_BLOCKS)
        per = -(-self.blocks // most)
        groups = -(-self.blocks // per)
        if s is not None and ds_mode in (WRITTEN, SUMMED):
            ds = torch.empty_like(s) if ds_mode == WRITTEN else s.new_empty((groups, *s.shape), dtype=self.compute)
        if isinstance(weight, Tensor):
            w, w_row, mode = weight, weight.stride(0) if weight.dim() else 0, PER_ROW if weight.dim() else SCALAR
        elif weight is not None:
            factor *= weight
        if weight is not None:
            dx_hat = torch.empty_strided(x_hat.shape, self.dense, dtype=x_hat.dtype, device=x_hat.device)
        values, each = neg_kl is not None, self.mean == 0
        if neg_kl is not None:
            elbo = torch.empty_like(self.elbo) if elbo is None else elbo
            log_lik = torch.empty_like(self.log_lik) if want_log_lik else None
            neg_kl = neg_kl.contiguous()
        partial = torch.empty(2 * self.blocks * self.chunks, dtype=self.compute, device=x_hat.device)
        counter = counters(x_hat, 1 + self.blocks if each and self.chunks > 1 else 1)
        launch(
            log_likelihood_fwd_kernel,
            groups * self.chunks,
            (x, h, s, dx_hat, ds, w, neg_kl, elbo if values else None, log_lik, dlog_scale, partial, counter),
            (
                *(self.N, self.K, self.D // self.V, self.chunks, per, self.blocks),
                *(self.x.stride // self.V, self.x_hat.stride // self.V, s_row // self.V, w_row),
                *(factor, self.x_scale, number_log_scale, self.constant, self.mean),
            ),
            (
                *(self.R, self.C, self.V, TYPES[self.compute], *self.variant, self.power),
                *(form, ds_mode, mode, values, each, self.chunks > 1, x.dtype is torch.uint8),
            ),
        )
        if need_dlog_scale and isinstance(log_scale, Tensor):
            dlog_scale = self.reduce_dlog_scale(dlog_scale if ds is None else ds, log_scale, ds_mode == SUMMED)
        return elbo if values else None, log_lik, dx_hat, dlog_scale


@triton.jit
def scale_array(a, size, factor, V: tl.constexpr, B: tl.constexpr):
    """Multiply ``size`` V elements, each program every so many blocks."""
    T: tl.constexpr = tl.float64 if a.dtype.element_ty == tl.float64 else tl.float32
    step = tl.num_programs(0).to(tl.int64) * B
    for start in range(tl.program_id(0).to(tl.int64) * B, size * V, step):
        o = start + tl.arange(0, B)
        scaled = tl.load(a + o, mask=o < size * V).to(T) * factor.to(T)
        tl.store(a + o, to_element(scaled, a), mask=o < size * V)


@triton.jit(do_not_specialize=["a_size", "b_size", "c_size", "d_size"])
def scale_kernel(
    a, b, c, d, upstream,
    a_size: tl.int64, b_size: tl.int64, c_size: tl.int64, d_size: tl.int64, unit: tl.float64,
    V: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Multiply up to four dense arrays by upstream / unit; return at once where that is 1. Sizes in units of V."""
    factor = tl.load(upstream).to(tl.float64) / tl.full((), unit, tl.float64)
    if factor != 1.0:
        scale_array(a, a_size, factor, V, B)
        if b is not None:
            scale_array(b, b_size, factor, V, B)
        if c is not None:
            scale_array(c, c_size, factor, V, B)
        if d is not None:
            scale_array(d, d_size, factor, V, B)


def scale_(gradients: tuple[Tensor | None, ...], upstream: Tensor, unit: float) -> tuple[Tensor | None, ...]:
    """Gradients for a 0-d upstream from those for the upstream ``unit``, in place, without a look at it from here.

    They are dense.
    """
    given = [g for g in gradients if g is not None and g.numel()]
    if given:
        padded = [*given, None, None, None][:4]
        sizes = [0 if g is None else g.numel() for g in padded]
        V = vector_width(sizes)
        programs = min(SCALE_PROGRAMS, -(-max(sizes) // SCALE_BLOCK))
        launch(scale_kernel, programs, (*padded, upstream), (*[n // V for n in sizes], unit), (V, SCALE_BLOCK))
    return gradients
