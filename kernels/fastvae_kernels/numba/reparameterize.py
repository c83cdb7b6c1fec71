"""Sampling from q(z|x) = N(mu, e^logvar) and its KL to the prior, and the way back through both: Numba.

    z[k, n, l] = mu + e^(logvar/2) eps           kl[n] = sum_l 1/2 ((mu - mu_p)^2 e^-logvar_p + phi(logvar - logvar_p))
    dmu        = sum_k dz + g (mu - mu_p) e^-logvar_p
    dlogvar    = 1/2 e^(logvar/2) sum_k dz eps + g/2 expm1(logvar - logvar_p)          g[n, l] the upstream of kl_nl

Traffic, elements: forward reads mu and logvar and writes z, (2 + K) N L; backward reads mu, logvar and dz and writes
two gradients, (4 + K) N L. The noise eps is never stored: both passes make it from (seed, row, draw, latent element).
Layout: rows dense in memory, any stride between them. Work unit: a group of short rows, or a fixed piece of a long one;
it is copied into a scratch in the compute dtype, so that every loop runs over one dense array.
Specification: fastvae/reference/elbo.py (reparameterize, kl_elements), fastvae/reference/noise.py
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._jit import REDUCTION, jit, math_jit
from ._math import exp, expm1, like, normal4, phi, select
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
    gather,
    put,
    scratch,
    weight_at,
)
from ._threads import run

PIECE = 1024  # latent elements in a unit; a multiple of 4, the words of a Philox block
NS_SAMPLE, NS_KL = 3.0, 1.0  # of one element on one thread
LOW_WORD, HIGH_SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


@math_jit
def fill_noise(eps, width, n, rows, k, first, seed):
    """Noise of draw k of the rows n, n + 1, ... for the latent elements first, first + 1, ..., ``width`` of each."""
    key = np.uint64(seed)
    k0, k1 = np.uint32(key & LOW_WORD), np.uint32(key >> HIGH_SHIFT)
    blocks = width // 4
    for i in range(rows):
        row = np.uint64(n + i)
        c2, c3 = np.uint32(row & LOW_WORD), np.uint32(row >> HIGH_SHIFT)
        target = eps[i * width : (i + 1) * width]
        for block in range(blocks):
            e0, e1, e2, e3 = normal4(np.uint32(first // 4 + block), np.uint32(k), c2, c3, k0, k1, eps[0])
            target[4 * block] = e0
            target[4 * block + 1] = e1
            target[4 * block + 2] = e2
            target[4 * block + 3] = e3


@math_jit
def kl_element(mu, logvar, mu_p, logvar_p):
    """KL of one latent element to the prior's."""
    r = (mu - mu_p) * exp(like(mu, -0.5) * logvar_p)
    return like(mu, 0.5) * (r * r + phi(logvar - logvar_p))


@math_jit
def kl_slopes(mu, logvar, g):
    """Gradient of g KL of one latent element to N(0, 1). Reassociated, as the caller may, an infinite one is finite."""
    return g * mu, like(g, 0.5) * g * expm1(logvar)


@cache
def make_forward(M: int, T: int, sample: bool, prior: bool, masked: bool, gradient: bool) -> Any:
    """The kernel for the dtype codes of mu, logvar and z, and of arithmetic and the prior.

    With ``gradient`` it writes that of the KL too, times a factor; for N(0, I) and no free bits, as is usual. There is
    no variant without the KL: it is a third of the work of sampling, and LLVM vectorises the whole but not that part.
    """
    m_bytes, t_bytes = ITEM_SIZES[M], ITEM_SIZES[T]

    @jit(fastmath=REDUCTION)
    def sample_and_kl(
        mu, logvar, mu_p, logvar_p, mu_row, logvar_row, mu_p_row, logvar_p_row,
        mask, z, kl, kl_kept, dmu, dlogvar, factor, seed, first_row, N, K, L, group, piece, start, stop,
    ):  # fmt: skip
        width, pieces = -(-piece // 4) * 4, -(-L // piece)
        kls, kls_kept = array_at(kl, N * pieces, F64), array_at(kl_kept, N * pieces, F64)
        room = np.empty((6, group * width), dtype=np.float64 if T == F64 else np.float32)
        mu_s, logvar_s, mu_p_s, logvar_p_s, work, eps = room
        for unit in range(start, stop):
            first, n = unit % pieces * piece, unit // pieces * group
            length, rows = min(piece, L - first), min(group, N - n)
            gather(mu_s, width, mu, n, rows, mu_row, first, length, m_bytes, M)
            gather(logvar_s, width, logvar, n, rows, logvar_row, first, length, m_bytes, M)
            size = rows * width
            if sample:
                for i in range(size):
                    work[i] = exp(like(work[i], 0.5) * logvar_s[i])
                for k in range(K):
                    fill_noise(eps, width, first_row + n, rows, k, first, seed)
                    for i in range(size):
                        eps[i] = mu_s[i] + work[i] * eps[i]
                    put(eps, width, z, k * N + n, rows, L, first, length, m_bytes, M)
            if prior:
                gather(mu_p_s, width, mu_p, n, rows, mu_p_row, first, length, t_bytes, T)
                gather(logvar_p_s, width, logvar_p, n, rows, logvar_p_row, first, length, t_bytes, T)
            for i in range(size):
                if prior:
                    work[i] = kl_element(mu_s[i], logvar_s[i], mu_p_s[i], logvar_p_s[i])
                else:
                    work[i] = like(work[i], 0.5) * (mu_s[i] * mu_s[i] + phi(logvar_s[i]))
            if gradient:
                g = like(work[0], factor)
                for i in range(size):
                    mu_s[i], logvar_s[i] = kl_slopes(mu_s[i], logvar_s[i], g)
                put(mu_s, width, dmu, n, rows, L, first, length, m_bytes, M)
                put(logvar_s, width, dlogvar, n, rows, L, first, length, m_bytes, M)
            for i in range(rows):
                kl_i, at = work[i * width : i * width + length], (n + i) * pieces + unit % pieces
                total = like(work[0], 0)
                for j in range(length):
                    total += kl_i[j]
                kls[at] = total
                if masked:
                    kept, mask_i = like(work[0], 0), array_at(mask + first, length, U8)
                    for j in range(length):
                        kept += kl_i[j] if mask_i[j] else like(work[0], 0)
                    kls_kept[at] = kept

    return sample_and_kl


@cache
def make_backward(M: int, T: int, sample: bool, prior: bool, masked: bool) -> Any:
    """The kernel of all gradients, of the prior's too where there is one, for the codes of `make_forward`."""
    m_bytes, t_bytes = ITEM_SIZES[M], ITEM_SIZES[T]

    @jit
    def sample_and_kl_backward(
        mu, logvar, mu_p, logvar_p, mu_row, logvar_row, mu_p_row, logvar_p_row,
        mask, dz, dmu, dlogvar, dmu_p, dlogvar_p,
        kept, kept_row, kept_factor, raw, raw_row, raw_factor, seed, first_row, N, K, L, group, piece, start, stop,
    ):  # fmt: skip
        width, pieces = -(-piece // 4) * 4, -(-L // piece)
        room = np.empty((8, group * width), dtype=np.float64 if T == F64 else np.float32)
        mu_s, logvar_s, mu_p_s, logvar_p_s, dz_s, eps, sum_dz, sum_dz_eps = room
        half = like(mu_s[0], 0.5)
        for unit in range(start, stop):
            first, n = unit % pieces * piece, unit // pieces * group
            length, rows = min(piece, L - first), min(group, N - n)
            size = rows * width
            gather(mu_s, width, mu, n, rows, mu_row, first, length, m_bytes, M)
            gather(logvar_s, width, logvar, n, rows, logvar_row, first, length, m_bytes, M)
            if prior:
                gather(mu_p_s, width, mu_p, n, rows, mu_p_row, first, length, t_bytes, T)
                gather(logvar_p_s, width, logvar_p, n, rows, logvar_p_row, first, length, t_bytes, T)
            sum_dz[:size] = 0
            sum_dz_eps[:size] = 0
            if sample:
                for k in range(K):
                    gather(dz_s, width, dz, k * N + n, rows, L, first, length, m_bytes, M)
                    fill_noise(eps, width, first_row + n, rows, k, first, seed)
                    for i in range(size):
                        sum_dz[i] += dz_s[i]
                        sum_dz_eps[i] += dz_s[i] * eps[i]
                for i in range(size):
                    sum_dz_eps[i] *= half * exp(half * logvar_s[i])
            for i in range(rows):
                weight_kept = weight_at(kept, (n + i) * kept_row, kept_factor, T)
                weight_raw = weight_at(raw, (n + i) * raw_row, raw_factor, T)
                mask_i = array_at(mask + first, length, U8)
                a, b = i * width, i * width + length
                mu_i, logvar_i, dmu_i, dlogvar_i = mu_s[a:b], logvar_s[a:b], sum_dz[a:b], sum_dz_eps[a:b]
                mu_p_i, logvar_p_i, zero = mu_p_s[a:b], logvar_p_s[a:b], like(half, 0)
                for j in range(length):
                    g = weight_raw + (select(mask_i[j] != 0, weight_kept, zero) if masked else weight_kept)
                    d, v, slope = mu_i[j], logvar_i[j], mu_i[j]
                    if prior:
                        d, v = d - mu_p_i[j], v - logvar_p_i[j]
                        slope = d * exp(-logvar_p_i[j])
                    through_mu = select(g != 0, g * slope, zero)  # not 0 * inf
                    through_logvar = select(g != 0, half * g * expm1(v), zero)
                    dmu_i[j] += through_mu
                    dlogvar_i[j] += through_logvar
                    if prior:
                        mu_p_i[j] = -through_mu
                        logvar_p_i[j] = -(half * d * through_mu + through_logvar)
            put(sum_dz, width, dmu, n, rows, L, first, length, m_bytes, M)
            put(sum_dz_eps, width, dlogvar, n, rows, L, first, length, m_bytes, M)
            if prior:
                put(mu_p_s, width, dmu_p, n, rows, L, first, length, t_bytes, T)
                put(logvar_p_s, width, dlogvar_p, n, rows, L, first, length, t_bytes, T)

    return sample_and_kl_backward


@cache
def make_columns(M: int, T: int, prior: bool) -> Any:
    """The kernel that sums kl_nl over the rows, in order, for free bits: ``[L]`` in float64."""
    m_bytes, t_bytes = ITEM_SIZES[M], ITEM_SIZES[T]

    @jit
    def kl_columns(mu, logvar, mu_p, logvar_p, mu_row, logvar_row, mu_p_row, logvar_p_row, sums, N, L):
        total = array_at(sums, L, F64)
        for n in range(N):
            mu_n = array_at(mu + n * mu_row * m_bytes, L, M)
            logvar_n = array_at(logvar + n * logvar_row * m_bytes, L, M)
            mu_p_n = array_at(mu_p + n * mu_p_row * t_bytes, L, T)
            logvar_p_n = array_at(logvar_p + n * logvar_p_row * t_bytes, L, T)
            for j in range(L):
                m, v = as_float(mu_n[j]), as_float(logvar_n[j])
                if prior:
                    one = like(mu_p_n[j], 1)
                    total[j] += kl_element(m * one, v * one, mu_p_n[j], logvar_p_n[j])
                else:
                    total[j] += like(m, 0.5) * (m * m + phi(v))

    return kl_columns


@cache
def make_finish(T: int, per_row: bool, masked: bool) -> Any:
    """The kernel that adds up the pieces of each row in index order, and the rows."""
    t_bytes = ITEM_SIZES[T]

    @jit
    def kl_finish(sums, kept_sums, neg_kl, kl, N, pieces, beta, floor, mean):
        raw_sums, kept = array_at(sums, N * pieces, F64), array_at(kept_sums, N * pieces, F64)
        total, weighed = 0.0, 0.0
        for n in range(N):
            row, row_kept = 0.0, floor
            for piece in range(pieces):
                row += raw_sums[n * pieces + piece]
                if masked:
                    row_kept += kept[n * pieces + piece]
            row_kept = row_kept if masked else row
            if per_row:
                if kl:
                    array_at(kl + n * t_bytes, 1, T)[0] = row
                array_at(neg_kl + n * t_bytes, 1, T)[0] = -beta * row_kept if beta != 0 else 0.0  # not 0 * inf
            total += row
            weighed += row_kept
        if not per_row:
            if kl:
                array_at(kl, 1, T)[0] = total * mean
            array_at(neg_kl, 1, T)[0] = -beta * weighed * mean if beta != 0 else 0.0

    return kl_finish


class Latent(NamedTuple):
    """Mu, logvar and the prior as the kernels take them; the tensors are kept alive here."""

    tensors: tuple[Tensor, ...]
    operands: tuple[int, ...]  # four addresses and four strides between rows
    sizes: tuple[int, int, int]  # L, rows of a unit, elements of a piece
    units: int
    pieces: int
    codes: tuple[int, int]  # of the elements, and of arithmetic and the prior
    dtype: torch.dtype  # of arithmetic


class Forward(NamedTuple):
    """Draws; the KL term of the ELBO, -beta KL with its floor, and the raw KL, both reduced; latent elements kept;
    gradients of minus the KL term in mu and logvar, where they could be had in passing.
    """

    z: Tensor | None
    neg_kl: Tensor | None
    kl: Tensor | None
    kept: Tensor | None
    gradients: tuple[Tensor, Tensor] | None


def latent_of(mu: Tensor, logvar: Tensor, prior: tuple[Tensor, Tensor] | None) -> Latent:
    """Bring the operands into the form of the kernels; copies only what is not dense in its rows."""
    N = mu.shape[0]
    L = mu.numel() // N if N else 0
    if mu.dtype != logvar.dtype:
        both = torch.promote_types(mu.dtype, logvar.dtype)
        mu, logvar = mu.to(both), logvar.to(both)
    (mu, mu_stride), (logvar, logvar_stride) = dense_rows(mu, N), dense_rows(logvar, N)
    dtype = compute_dtype(mu, *(prior or ()))
    priors: tuple[Tensor, ...] = ()
    prior_operands: tuple[int, ...] = (0, 0, 0, 0)
    if prior is not None:
        shared = [p.dim() < mu.dim() or p.shape[0] == 1 for p in prior]
        shapes = [(1 if one else N, *mu.shape[1:]) for one in shared]
        priors = tuple(p.to(dtype).expand(shape).contiguous() for p, shape in zip(prior, shapes, strict=True))
        prior_operands = (*[p.data_ptr() for p in priors], *[0 if one else L for one in shared])
    operands = (mu.data_ptr(), logvar.data_ptr(), *prior_operands[:2], mu_stride, logvar_stride, *prior_operands[2:])
    piece = min(L, PIECE) or 1
    group, pieces = PIECE // piece, -(-L // piece)
    codes = CODES[mu.dtype], CODES[dtype]
    return Latent((mu, logvar, *priors), operands, (L, group, piece), -(-N // group) * pieces, pieces, codes, dtype)


def forward(
    mu: Tensor,
    logvar: Tensor,
    prior: tuple[Tensor, Tensor] | None,
    seed: Tensor | None,
    *,
    num_samples: int | None,
    beta: Tensor | float,
    free_bits: Tensor | float,
    reduction: str,
    want_kl: bool = True,
    want_raw: bool = True,
    want_gradients: bool = False,
    first_row: int = 0,
) -> Forward:
    """Launch: draws if there is a seed, and the KL if it is wanted, as it is besides in final units if wanted raw."""
    latent = latent_of(mu, logvar, prior)
    codes, N, L, pieces = latent.codes, mu.shape[0], latent.sizes[0], latent.pieces
    z = None
    if seed is not None:
        z = empty(mu.shape if num_samples is None else (num_samples, *mu.shape), latent.tensors[0].dtype)
    kept, floor = None, float(free_bits)
    if want_kl and (floor or isinstance(free_bits, Tensor)):
        columns = torch.zeros(L, dtype=torch.float64)
        make_columns(*codes, prior is not None)(*latent.operands, columns.data_ptr(), N, L)
        kept = ~(columns / N <= floor)  # this way round NaN stays visible
    sums = scratch(2 * N * pieces)
    mean, beta, gradients = 1 / N if reduction == "mean" else 1.0, float(beta), None
    if want_gradients and prior is None and kept is None and beta != 0 and mu.dtype == logvar.dtype:
        gradients = empty(mu.shape, mu.dtype), empty(mu.shape, mu.dtype)
    addresses = [0 if t is None else t.data_ptr() for t in (kept, z)] + [sums, sums + 8 * N * pieces]
    run(
        make_forward(*codes, z is not None, prior is not None, kept is not None, gradients is not None),
        (
            *latent.operands,
            *addresses,
            *((0, 0) if gradients is None else [g.data_ptr() for g in gradients]),
            beta * mean,
            *(0 if seed is None else int(seed), first_row, N, num_samples or 1, *latent.sizes),
        ),
        latent.units,
        N * L * (NS_KL + (0 if z is None else NS_SAMPLE * (num_samples or 1))),
    )
    if not want_kl:
        return Forward(z, None, None, None, None)
    shape = (N,) if reduction == "none" else ()
    neg_kl = torch.empty(shape, dtype=latent.dtype)
    kl = torch.empty(shape, dtype=latent.dtype) if want_raw else None
    make_finish(codes[1], reduction == "none", kept is not None)(
        *(*addresses[2:], neg_kl.data_ptr(), 0 if kl is None else kl.data_ptr(), N, pieces, beta),
        *(0.0 if kept is None else floor * float(L - kept.sum()), mean),
    )
    return Forward(z, neg_kl, kl, kept, gradients)


def backward(
    mu: Tensor,
    logvar: Tensor,
    prior: tuple[Tensor, Tensor] | None,
    seed: Tensor | None,
    kept: Tensor | None,
    dz: Tensor | None,
    dneg_kl: Tensor | None,
    dkl: Tensor | None,
    *,
    num_samples: int | None,
    beta: Tensor | float,
    reduction: str,
    first_row: int = 0,
) -> list[Tensor]:
    """Launch: the gradients of mu and logvar, and of the prior's two tensors where there is one."""
    latent = latent_of(mu, logvar, prior)
    N, L, T = mu.shape[0], latent.sizes[0], latent.dtype
    mean = 1 / N if reduction == "mean" else 1.0
    weights, alive = [], []
    for upstream, factor in ((dneg_kl, -float(beta) * mean), (dkl, mean)):
        if upstream is None:
            weights += [0, 0, 0.0]
        else:
            alive.append(upstream.to(T).contiguous())
            weights += [alive[-1].data_ptr(), upstream.dim(), factor]
    sample = seed is not None and dz is not None
    if sample and dz is not None:
        dz = dz.to(latent.tensors[0].dtype).contiguous()
    targets = (mu, logvar) if prior is None else (mu, logvar, *prior)
    dtypes = (latent.tensors[0].dtype, latent.tensors[0].dtype, T, T)
    gradients = [empty(mu.shape, dtype) for _, dtype in zip(targets, dtypes, strict=False)]
    addresses = [t.data_ptr() for t in gradients] + [0, 0] * (prior is None)
    run(
        make_backward(*latent.codes, sample, prior is not None, kept is not None),
        (
            *latent.operands,
            *(0 if kept is None else kept.data_ptr(), 0 if dz is None else dz.data_ptr(), *addresses, *weights),
            *(int(seed) if sample and seed is not None else 0, first_row, N, num_samples or 1, *latent.sizes),
        ),
        latent.units,
        N * L * (NS_KL + (NS_SAMPLE * (num_samples or 1) if sample else 0)),
    )
    return [g.sum_to_size(t.shape).to(t.dtype) for g, t in zip(gradients, targets, strict=True)]
