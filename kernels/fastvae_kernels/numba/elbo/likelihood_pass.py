"""The kernel of the log-likelihood: one pass over x and x_hat, for the values and the gradients.

    log_lik[n]       = 1/K sum_k sum_d log p(x_nd | x_hat_knd)
    dx_hat[k, n, d]  = weight[n] / K  d log p / d x_hat        dlog_scale likewise, summed where log_scale is shared

Traffic, elements: reads x and x_hat once, writes dx_hat if requested: 3 N D with the gradient, 2 N D without; x is read
once for all K draws. Floor: the time of ``torch.add(x, x_hat, out=dx_hat)``.
Layout: rows dense in memory, any stride between them; row k N + n of x_hat is draw k of x's row n.
Work unit: one chunk of a row, or of each row of a block where rows are short or the gradient of a per-feature scale is
summed over them. A chunk is summed in the compute dtype, chunks in float64 in index order, so that a row's value
depends on neither its batch nor the number of threads.
The log densities are in `densities/`. Specification: fastvae/reference/elbo/formulas.py (log_likelihood)
"""

import math
from functools import cache

from ..language.jit import Kernel, by_constant, kernel, loop_jit, math_jit, outlined
from ..language.layout import Layout
from ..language.math import inverse_parts, like
from ..language.memory import F32, F64, array_at, item_size, number, read, vector, write
from ..language.threads import finished, take, worker
from ..language.vector import lanes, total
from .densities import log_density
from .upstream import UPSTREAM, upstream_at

CHUNK = 2048  # elements of a row summed in the compute dtype

# Log-scales: one number for all, or elements, whose gradient is not requested, written, or summed over a block of rows.
ONE, ELEMENTS, WRITTEN, SUMMED = range(4)

# Addresses are 0 where there is nothing; *_row are strides in elements.
SIZES = Layout("N K D chunks x_row h_row x_scale:float mean:float power:float")  # mean: 0 for a value of each row
VALUES = Layout("partial neg_kl elbo log_lik")
GRADIENTS = Layout("h s log_scale")
PASS = Layout(
    "x h s s_row block_rows log_scale:float constant:float",
    upstream=UPSTREAM, values=VALUES, gradients=GRADIENTS, sizes=SIZES,
)  # fmt: skip


@math_jit
def scale_of_all(f):
    """Two factors of 1 / scale where there is one log_scale, each a finite number."""
    one, least = number(f.T), max(f.log_scale, -88.0 if f.T == F32 else -709.0)  # e^88 is a number
    return like(one, math.exp(-least)), like(one, math.exp(least - f.log_scale))


@math_jit
def shared_scale(s, d, one_scale, v):
    """The scale of every element; its log is in the constant of a row."""
    return like(v, one_scale[0]), like(v, one_scale[1]), like(v, 0)


@math_jit
def own_scale(s, d, one_scale, v):
    """The scales of elements d, d + 1, ..."""
    log_scale = read(s, d, v)
    inverse, rest = inverse_parts(log_scale)
    return inverse, rest, log_scale


@math_jit
def no_gradient(out, d, gradient):
    """None is requested."""


@math_jit
def write_gradient(out, d, gradient):
    """It is that of one row."""
    write(out, d, gradient)


@math_jit
def add_gradient(out, d, gradient):
    """It is summed over the rows of a block."""
    write(out, d, read(out, d, gradient) + gradient)


scale_at = by_constant({ONE: shared_scale, ELEMENTS: own_scale, WRITTEN: own_scale, SUMMED: own_scale})
put_scale_gradient = by_constant(
    {ONE: no_gradient, ELEMENTS: no_gradient, WRITTEN: write_gradient, SUMMED: add_gradient}
)
put_gradient = by_constant({0: no_gradient, 1: write_gradient})


@math_jit
def add_elements(f, x, h, s, dh, ds, d, weight, one_scale, v):
    """The log densities of elements d, d + 1, ..., as many as v has lanes; gradients are written in passing."""
    x_d, a = read(x, d, v) * like(v, like(number(f.T), f.sizes.x_scale)), read(h, d, v)
    value, slope, scale_slope = log_density(f.likelihood, f, x_d, a, scale_at(f.scale, s, d, one_scale, v))
    put_scale_gradient(f.scale, ds, d, like(v, weight) * scale_slope)
    put_gradient(f.gradient, dh, d, like(v, weight) * slope)
    return value


@math_jit
def sum_chunk(f, n, block, first, one_scale):
    """The sum over the chunk of row n that begins at element ``first``, over all draws."""
    v, one, N, D = vector(f.T), number(f.T), f.sizes.N, f.sizes.D
    length = min(CHUNK, D - first)
    whole, of_draws = length - length % lanes(v), 0.0
    weight = upstream_at(f, f.upstream, n)
    x = array_at(f.x + (n * f.sizes.x_row + first) * item_size(f.X), length, f.X)
    for k in range(f.sizes.K):
        row = k * N + n
        h = array_at(f.h + (row * f.sizes.h_row + first) * item_size(f.H), length, f.H)
        s = array_at(f.s + (row * f.s_row + first) * item_size(f.S), length, f.S)
        dh = array_at(f.gradients.h + (row * D + first) * item_size(f.H), length, f.H)
        ds_row = block if f.scale == SUMMED else row
        ds = array_at(f.gradients.s + (ds_row * D + first) * item_size(f.S), length, f.S)
        acc, rest = like(v, 0), like(one, 0)
        for d in range(0, whole, lanes(v)):
            acc = acc + add_elements(f, x, h, s, dh, ds, d, weight, one_scale, v)
        for d in range(whole, length):
            rest += add_elements(f, x, h, s, dh, ds, d, weight, one_scale, one)
        of_draws += total(acc) + rest
    return of_draws


@loop_jit
def finish(f):
    """Add up the chunks of each row in index order, and the rows.

    The gradient of a single log_scale is had from the same sums: see `plans.Likelihood`.
    """
    outlined()
    N, K, chunks, mean = f.sizes.N, f.sizes.K, f.sizes.chunks, f.sizes.mean
    sums, values, gradient = array_at(f.values.partial, N * chunks, F64), 0.0, 0.0
    neg_kl, elbo = array_at(f.values.neg_kl, N, f.E), array_at(f.values.elbo, N, f.E)
    log_lik = array_at(f.values.log_lik, N, f.T)
    for n in range(N):
        row = 0.0
        for c in range(chunks):
            row += sums[n * chunks + c]
        if f.gradients.log_scale:
            gradient += (-f.sizes.power * row - K * f.sizes.D) * upstream_at(f, f.upstream, n)
        row = row / K + f.constant
        values += row
        if f.values.elbo and mean == 0:
            if f.values.log_lik:
                log_lik[n] = row
            elbo[n] = row + neg_kl[n]
    if f.values.elbo and mean != 0:
        if f.values.log_lik:
            log_lik[0] = values * mean
        elbo[0] = values * mean + neg_kl[0]
    if f.gradients.log_scale:
        array_at(f.gradients.log_scale, 1, F64)[0] = gradient


@cache
def make_pass(X: int, H: int, S: int, T: int, E: int, likelihood: int, link: int, scale: int, gradient: bool) -> Kernel:
    """The kernel for the dtype codes of x, x_hat, log_scale, arithmetic and the ELBO, and these options."""

    @kernel(PASS, X=X, H=H, S=S, T=T, E=E, likelihood=likelihood, link=link, scale=scale, gradient=int(gradient))
    def log_likelihood_pass(f):
        N, chunks, rows, one_scale = f.sizes.N, f.sizes.chunks, f.block_rows, scale_of_all(f)
        sums = array_at(f.values.partial, N * chunks, F64)
        me = worker(f.header)
        start, stop = take(f.header, me)
        while start < stop:
            for unit in range(start, stop):
                chunk, block = unit % chunks, unit // chunks
                for n in range(block * rows, min((block + 1) * rows, N)):
                    sums[n * chunks + chunk] = sum_chunk(f, n, block, chunk * CHUNK, one_scale)
            if finished(f.header, stop - start):
                finish(f)
            start, stop = take(f.header, me)

    return log_likelihood_pass
