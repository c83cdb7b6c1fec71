"""Log-likelihood of x under a decoder's output, and its gradient, in one pass: Numba.

    log_lik[n]       = 1/K sum_k sum_d log p(x_nd | x_hat_knd)
    dx_hat[k, n, d]  = weight[n] / K  d log p / d x_hat        dlog_scale likewise, summed where log_scale is shared

Traffic, elements: reads x and x_hat once, writes dx_hat if it is wanted: 3 N D with the gradient, 2 N D without; x is
read once for all K draws. Floor: the time of ``torch.add(x, x_hat, out=dx_hat)``.
Layout: rows dense in memory, any stride between them. Work unit: a fixed chunk of one row, or of a block of rows where
rows are short or the gradient of a per-feature scale is summed over them. A chunk is summed in the compute dtype,
chunks in float64 in index order, so that a row's value depends on neither its batch nor the number of threads. Where
rows lie side by side and only their sum is wanted, all are one row.
Specification: fastvae/reference/elbo/formulas.py (log_likelihood), fastvae/reference/elbo/likelihoods.py
"""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...plans import LIKELIHOODS, LINKS, DensityPlan
from ..language.buffers import allocator, scratch
from ..language.jit import Kernel, kernel, loop_jit, math_jit, outlined, unpack
from ..language.math import exp, inverse_parts, like, log1p, select, sigmoid, tanh, times
from ..language.memory import (
    CODES,
    F32,
    F64,
    array_at,
    item_size,
    number,
    read,
    vector,
    weight_at,
    write,
)
from ..language.threads import finished, run, take, worker
from ..language.vector import lanes, total

BERNOULLI, LAPLACE = LIKELIHOODS["bernoulli"].code, LIKELIHOODS["laplace"].code  # what is left is the Gaussian
SIGMOID, TANH = LINKS["sigmoid"], LINKS["tanh"]  # and the identity
# Log-scales: one number, or elements; the gradient of elements is not wanted, written, or summed over a block of rows.
ONE, ELEMENTS, WRITTEN, SUMMED = range(4)
PLAIN = ONE, True  # the key of the kernel with the gradient

CHUNK = 2048  # elements of a row summed in the compute dtype
ROW_BLOCKS = 16  # partial sums over rows of a per-feature gradient
# On one thread; everything with an exponential is about 1.
NS_PER_ELEMENT = {(LIKELIHOODS[name].code, LINKS["identity"], ONE): 0.25 for name in ("gaussian", "laplace")}

FIELDS = "19q 6d"


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
def gaussian(x: Any, m: Any, inverse_scale: Any, rest: Any, log_scale: Any) -> Any:
    """log N(x; m, scale^2) but for the constant, and its derivatives in m and log_scale; 1 / scale has two factors."""
    d = x - m
    zero = d == like(d, 0)  # not 0 * inf
    inverse_scale, rest = select(zero, d, inverse_scale), select(zero, d, rest)
    r = d * inverse_scale * rest
    return like(r, -0.5) * (r * r) - log_scale, r * inverse_scale * rest, r * r - like(r, 1)


@math_jit
def laplace(x: Any, m: Any, inverse_scale: Any, rest: Any, log_scale: Any) -> Any:
    """The same of a Laplace variable; the derivative in m is 0 where x is m, and NaN for NaN."""
    r = times(times(x - m, inverse_scale), rest)
    size, zero = abs(r), like(r, 0)
    slope = select(size > zero, inverse_scale * rest, size)
    return -size - log_scale, select(r < zero, -slope, slope), size - like(r, 1)


@math_jit
def bernoulli(x: Any, a: Any) -> Any:
    """x log s(a) + (1 - x) log s(-a), and its derivative; log s(a) = min(a, 0) - log1p(e^-|a|)."""
    zero = like(a, 0)
    low, high = select(a < zero, a, zero), select(a > zero, -a, zero)
    value = x * low + (like(a, 1) - x) * high - log1p(exp(-abs(a)))
    return value, x - sigmoid(a)


@math_jit
def density(likelihood: int, link: int, x: Any, a: Any, inverse_scale: Any, rest: Any, log_scale: Any) -> Any:
    """The log density of any of them, and its derivatives in a and in log_scale."""
    if likelihood == BERNOULLI:
        value, slope = bernoulli(x, a)
        return value, slope, like(a, 0)
    m, dm = link_at(link, a)
    if likelihood == LAPLACE:
        value, slope, scale_slope = laplace(x, m, inverse_scale, rest, log_scale)
    else:
        value, slope, scale_slope = gaussian(x, m, inverse_scale, rest, log_scale)
    return value, slope * dm, scale_slope


@math_jit
def step(x, h, s, dh, ds, d, weight, inverse, rest, x_factor, likelihood, link, scale, gradient, v):
    """Elements d, d + 1, ..., as many as v has lanes: their log densities; what is to be written is."""
    value_x, a = read(x, d, v) * like(v, x_factor), read(h, d, v)
    if scale == ONE:
        value, slope, scale_slope = density(likelihood, link, value_x, a, like(v, inverse), like(v, rest), like(v, 0))
    else:
        log_scale = read(s, d, v)
        value, slope, scale_slope = density(likelihood, link, value_x, a, *inverse_parts(log_scale), log_scale)
        if scale == WRITTEN:
            write(ds, d, like(v, weight) * scale_slope)
        elif scale == SUMMED:
            write(ds, d, read(ds, d, v) + like(v, weight) * scale_slope)
    if gradient:
        write(dh, d, like(v, weight) * slope)
    return value


@loop_jit
def finish(
    partial, neg_kl, elbo, log_lik, dlog_scale, w, w_row, w_factor, N, chunks, K, D, constant, mean, power, T, E
):
    """Add up the chunks of each row in index order, and the rows; E is the dtype code of the ELBO.

    The gradient of a single log_scale is had from the same sums: see `plans.Likelihood`.
    """
    outlined()
    sums = array_at(partial, N * chunks, F64)
    values, gradient = 0.0, 0.0
    for n in range(N):
        row = 0.0
        for c in range(chunks):
            row += sums[n * chunks + c]
        if dlog_scale:
            gradient += (-power * row - K * D) * weight_at(w, n * w_row, w_factor, T)
        row = row / K + constant
        values += row
        if elbo and mean == 0:
            if log_lik:
                array_at(log_lik + n * item_size(T), 1, T)[0] = row
            array_at(elbo + n * item_size(E), 1, E)[0] = row + array_at(neg_kl + n * item_size(E), 1, E)[0]
    if elbo and mean != 0:
        if log_lik:
            array_at(log_lik, 1, T)[0] = values * mean
        array_at(elbo, 1, E)[0] = values * mean + array_at(neg_kl, 1, E)[0]
    if dlog_scale:
        array_at(dlog_scale, 1, F64)[0] = gradient


@cache
def make_rows(X: int, H: int, S: int, T: int, E: int, likelihood: int, link: int, scale: int, gradient: bool) -> Kernel:
    """The kernel for the dtype codes of x, x_hat, log_scale, arithmetic and the ELBO, and these options."""

    @kernel(FIELDS)
    def log_likelihood_rows(block):
        # x, ..., w are addresses, *_row strides in elements; row k N + n of x_hat is draw k of x's row n
        (
            N, K, D, rows, x_row, h_row, s_row, x, h, s, dh, ds, w, w_row, partial, neg_kl, elbo, log_lik, dlog_scale,
            w_factor, x_scale, one_log_scale, constant, mean, power,
        ) = unpack(block, FIELDS)  # fmt: skip
        chunks = max(1, -(-D // CHUNK))
        sums = array_at(partial, N * chunks, F64)
        v, one = vector(T), number(T)
        least = max(one_log_scale, -88.0 if T == F32 else -709.0)  # e^88 is a number
        inverse, inverse_rest = like(one, math.exp(-least)), like(one, math.exp(least - one_log_scale))
        x_factor = like(one, x_scale)
        me = worker(block)
        start, stop = take(block, me)
        while start < stop:
            for unit in range(start, stop):
                c, b = unit % chunks, unit // chunks
                first = c * CHUNK
                length = min(CHUNK, D - first)
                whole = length - length % lanes(v)
                for n in range(b * rows, min(b * rows + rows, N)):
                    weight = weight_at(w, n * w_row, w_factor, T)
                    x_n = array_at(x + (n * x_row + first) * item_size(X), length, X)
                    sum_ = 0.0
                    for k in range(K):
                        row = k * N + n
                        h_kn = array_at(h + (row * h_row + first) * item_size(H), length, H)
                        s_kn = array_at(s + (row * s_row + first) * item_size(S), length, S)
                        dh_kn = array_at(dh + (row * D + first) * item_size(H), length, H)
                        ds_row = b if scale == SUMMED else row
                        ds_kn = array_at(ds + (ds_row * D + first) * item_size(S), length, S)
                        acc, rest = like(v, 0), like(one, 0)
                        for d in range(0, whole, lanes(v)):
                            acc = acc + step(
                                x_n, h_kn, s_kn, dh_kn, ds_kn, d, weight, inverse, inverse_rest, x_factor,
                                likelihood, link, scale, gradient, v,
                            )  # fmt: skip
                        for d in range(whole, length):
                            rest += step(
                                x_n, h_kn, s_kn, dh_kn, ds_kn, d, weight, inverse, inverse_rest, x_factor,
                                likelihood, link, scale, gradient, one,
                            )  # fmt: skip
                        sum_ += total(acc) + rest
                    sums[n * chunks + c] = sum_
            if finished(block, stop - start):
                finish(
                    partial, neg_kl, elbo, log_lik, dlog_scale, w, w_row, w_factor,
                    N, chunks, K, D, constant, mean, power, T, E,
                )  # fmt: skip
            start, stop = take(block, me)

    return log_likelihood_rows


class Density(DensityPlan):
    """The log-likelihood for all x, x_hat and log_scale of one layout: what is known before any number is."""

    def __init__(self, x: Tensor, x_hat: Tensor, log_scale: Tensor | None, **options: Any) -> None:
        super().__init__(x, x_hat, log_scale, **options)
        self.form = ELEMENTS if self.elements else ONE
        self.as_it_is = self.x.as_it_is and self.x_hat.as_it_is
        self.plain = self.as_it_is and self.mean != 0 and not self.elements
        self.strides = self.x.stride, self.x_hat.stride
        if self.mean != 0 and not self.elements and self.strides == (self.D, self.D):
            # one row, if only the batch's sum is wanted: 4096 x 16 takes 12 us so, and 30 row by row, on one thread
            self.N, self.D, self.constant = 1, self.N * self.D, self.N * self.constant
            self.strides = self.D, self.D
        self.sizes = self.N, self.K, self.D
        self.chunks = max(1, -(-self.D // CHUNK))
        self.block = max(1, CHUNK // self.D if self.D else 1)
        self.summed_block = max(1, -(-self.N // ROW_BLOCKS))
        self.sums, self.units = self.N * self.chunks, self.units_of(self.block)
        self.kernels: dict[tuple[int, bool], Kernel] = {}
        of_scale = log_scale.dtype if self.elements and log_scale is not None else x_hat.dtype
        dtypes = x.dtype, x_hat.dtype, of_scale, self.compute, self.elbo_dtype
        self.codes = tuple(CODES[dtype] for dtype in dtypes)
        self.work = x_hat.numel() * NS_PER_ELEMENT.get((*self.variant, self.form), 1.0)
        self.empty_gradient = allocator(x_hat, x_hat.dtype, self.order)

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
        h = x_hat
        if not self.as_it_is:
            x, h = self.x.of(x), self.x_hat.of(x_hat)
        gradient, need_dlog_scale = weight is not None, need_dlog_scale and weight is not None
        form, block, s, s_row, one_log_scale = self.form, self.block, h, 0, 0.0
        ds = dlog_scale = dx_hat = log_lik = None
        w_, w_row, factor = 0, 0, self.weight_factor
        dx_hat_ = neg_kl_ = elbo_ = log_lik_ = dlog_scale_ = 0  # addresses; 0 where there is none
        if form == ONE:
            one_log_scale = float(log_scale)
            if need_dlog_scale:
                dlog_scale = torch.empty((), dtype=torch.float64, device="cpu")
                dlog_scale_ = dlog_scale.data_ptr()
        elif isinstance(log_scale, Tensor):
            s, s_row = self.scale_rows(log_scale), self.s_row
            if need_dlog_scale and s_row == 0:
                form, block = SUMMED, self.summed_block
                ds = s.new_zeros((-(-self.N // block), *s.shape))
            elif need_dlog_scale:
                form, ds = WRITTEN, torch.empty_like(s)
        if isinstance(weight, Tensor):
            weight = weight.to(self.compute).contiguous()  # kept alive here
            w_, w_row = weight.data_ptr(), weight.dim()
        elif weight is not None:
            factor *= weight
        if gradient:
            dx_hat = self.empty_gradient(x_hat)
            dx_hat_ = dx_hat.data_ptr()
        if neg_kl is not None:
            if elbo is None:
                elbo = torch.empty_like(self.elbo)
            if want_log_lik:
                log_lik = torch.empty_like(self.log_lik)
                log_lik_ = log_lik.data_ptr()
            if neg_kl.dtype != elbo.dtype or not neg_kl.is_contiguous():
                neg_kl = neg_kl.to(elbo.dtype).contiguous()
            neg_kl_, elbo_ = neg_kl.data_ptr(), elbo.data_ptr()
        kernel = self.kernels.get((form, gradient)) or self.kernel(form, gradient)
        args = (
            *self.sizes, block, *self.strides, s_row,
            x.data_ptr(), h.data_ptr(), s.data_ptr(), dx_hat_, 0 if ds is None else ds.data_ptr(), w_, w_row,
            scratch(self.sums), neg_kl_, elbo_, log_lik_, dlog_scale_,
            factor, self.x_scale, one_log_scale, self.constant - self.D * one_log_scale, self.mean, self.power,
        )  # fmt: skip
        run(kernel, args, self.units if block == self.block else self.units_of(block), self.work)
        if need_dlog_scale and isinstance(log_scale, Tensor):
            dlog_scale = self.reduce_dlog_scale(dlog_scale if ds is None else ds, log_scale, form == SUMMED)
        return elbo if neg_kl is not None else None, log_lik, dx_hat, dlog_scale

    def evaluate_plain(self, x: Tensor, x_hat: Tensor, log_scale: float, elbo: int) -> Tensor:
        """`evaluate` in half as much Python, where `plain`: add to the KL term at an address, give -dELBO/dx_hat."""
        dx_hat = self.empty_gradient(x_hat)
        h = x_hat.data_ptr()
        args = (
            *self.sizes, self.block, *self.strides, 0, x.data_ptr(), h, h, dx_hat.data_ptr(), 0, 0, 0,
            scratch(self.sums), elbo, elbo, 0, 0,
            -self.weight_factor, self.x_scale, log_scale, self.constant - self.D * log_scale, self.mean, self.power,
        )  # fmt: skip
        run(self.kernels.get(PLAIN) or self.kernel(*PLAIN), args, self.units, self.work)
        return dx_hat

    def units_of(self, block: int) -> int:
        """How many units there are of so many rows."""
        return max(1, -(-self.N // block)) * self.chunks

    def kernel(self, form: int, gradient: bool) -> Kernel:
        """The kernel, to be found in ``kernels`` next time."""
        self.kernels[form, gradient] = made = make_rows(*self.codes, *self.variant, form, gradient)
        return made


def scale_(gradients: tuple[Tensor | None, ...], upstream: Tensor, unit: float) -> tuple[Tensor | None, ...]:
    """Gradients for a 0-d upstream from those for the upstream ``unit``, in place; untouched where the two agree."""
    if (number := upstream.item() / unit) != 1:
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(number)
    return gradients
