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
from ._math import exp, expm1, like, normal4, phi
from ._memory import CODES, F64, ITEM_SIZES, U8, array_at, as_float, compute_dtype, dense_rows, store
from ._threads import run

PIECE = 1024  # latent elements in a unit; a multiple of 4, the words of a Philox block
NS_SAMPLE, NS_KL = 3.0, 1.0  # of one element on one thread
LOW_WORD, HIGH_SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


@math_jit
def gather(scratch, width, address, first_row, rows, stride, first, length, item_bytes, code):
    """Copy ``rows`` pieces of ``length`` elements into a scratch of ``width`` a row, zeros behind them."""
    zero = like(scratch[0], 0)
    for i in range(rows):
        source = array_at(address + ((first_row + i) * stride + first) * item_bytes, length, code)
        target = scratch[i * width : (i + 1) * width]
        for j in range(length):
            target[j] = as_float(source[j])
        for j in range(length, width):
            target[j] = zero


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


@cache
def make_forward(M: int, T: int, sample: bool, want_kl: bool, prior: bool, masked: bool) -> Any:
    """The kernel for the dtype codes of mu, logvar and z, and of arithmetic and the prior."""
    m_bytes, t_bytes = ITEM_SIZES[M], ITEM_SIZES[T]

    @jit(fastmath=REDUCTION)
    def sample_and_kl(
        mu, logvar, mu_p, logvar_p, mask, z, kl, kl_kept, zero, seed, first_row,
        N, K, L, group, piece, mu_row, logvar_row, mu_p_row, logvar_p_row, start, stop,
    ):  # fmt: skip
        width, pieces = -(-piece // 4) * 4, -(-L // piece)
        kls, kls_kept = array_at(kl, N * pieces, F64), array_at(kl_kept, N * pieces, F64)
        scratch = np.empty((6, group * width), dtype=array_at(zero, 1, T).dtype)
        mu_s, logvar_s, mu_p_s, logvar_p_s, work, eps = scratch
        mu_p_s[:] = 0
        logvar_p_s[:] = 0
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
                    for i in range(rows):
                        z_i = array_at(z + ((k * N + n + i) * L + first) * m_bytes, length, M)
                        for j in range(length):
                            store(z_i, j, mu_s[i * width + j] + work[i * width + j] * eps[i * width + j])
            if not want_kl:
                continue
            if prior:
                gather(mu_p_s, width, mu_p, n, rows, mu_p_row, first, length, t_bytes, T)
                gather(logvar_p_s, width, logvar_p, n, rows, logvar_p_row, first, length, t_bytes, T)
            for i in range(size):
                if prior:
                    work[i] = kl_element(mu_s[i], logvar_s[i], mu_p_s[i], logvar_p_s[i])
                else:
                    work[i] = like(work[i], 0.5) * (mu_s[i] * mu_s[i] + phi(logvar_s[i]))
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
        mu, logvar, mu_p, logvar_p, mask, dz, dmu, dlogvar, dmu_p, dlogvar_p, w_kept, w_raw, zero, seed, first_row,
        N, K, L, group, piece, mu_row, logvar_row, mu_p_row, logvar_p_row, w_kept_row, w_raw_row, start, stop,
    ):  # fmt: skip
        width, pieces = -(-piece // 4) * 4, -(-L // piece)
        scratch = np.empty((8, group * width), dtype=array_at(zero, 1, T).dtype)
        mu_s, logvar_s, mu_p_s, logvar_p_s, dz_s, eps, sum_dz, sum_dz_eps = scratch
        mu_p_s[:] = 0
        logvar_p_s[:] = 0
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
                kept = array_at(w_kept + (n + i) * w_kept_row * t_bytes, 1, T)[0]
                raw = array_at(w_raw + (n + i) * w_raw_row * t_bytes, 1, T)[0]
                mask_i = array_at(mask + first, length, U8)
                out = (n + i) * L + first
                dmu_i, dlogvar_i = (
                    array_at(dmu + out * m_bytes, length, M),
                    array_at(dlogvar + out * m_bytes, length, M),
                )
                dmu_p_i = array_at(dmu_p + out * t_bytes, length, T)
                dlogvar_p_i = array_at(dlogvar_p + out * t_bytes, length, T)
                for j in range(length):
                    at = i * width + j
                    g = raw + (kept if not masked or mask_i[j] else like(half, 0))
                    d, v = mu_s[at] - mu_p_s[at], logvar_s[at] - logvar_p_s[at]
                    slope = d * exp(-logvar_p_s[at]) if prior else d
                    through_mu, through_logvar = g * slope, half * g * expm1(v)
                    if g == 0:  # not 0 * inf
                        through_mu, through_logvar = like(half, 0), like(half, 0)
                    store(dmu_i, j, sum_dz[at] + through_mu)
                    store(dlogvar_i, j, sum_dz_eps[at] + through_logvar)
                    if prior:
                        dmu_p_i[j] = -through_mu
                        dlogvar_p_i[j] = -(half * d * through_mu + through_logvar)

    return sample_and_kl_backward


@cache
def make_columns(M: int, T: int) -> Any:
    """The kernel that sums kl_nl over the rows, in order, for free bits: ``[L]`` in float64."""
    m_bytes, t_bytes = ITEM_SIZES[M], ITEM_SIZES[T]

    @jit
    def kl_columns(mu, logvar, mu_p, logvar_p, sums, N, L, mu_row, logvar_row, mu_p_row, logvar_p_row):
        total = array_at(sums, L, F64)
        for n in range(N):
            mu_n = array_at(mu + n * mu_row * m_bytes, L, M)
            logvar_n = array_at(logvar + n * logvar_row * m_bytes, L, M)
            mu_p_n = array_at(mu_p + n * mu_p_row * t_bytes, L, T)
            logvar_p_n = array_at(logvar_p + n * logvar_p_row * t_bytes, L, T)
            for j in range(L):
                one = like(mu_p_n[j], 1)
                total[j] += kl_element(as_float(mu_n[j]) * one, as_float(logvar_n[j]) * one, mu_p_n[j], logvar_p_n[j])

    return kl_columns


class Latent(NamedTuple):
    """Mu, logvar and the prior as the kernels take them: rows dense, their strides, sizes; kept alive here."""

    tensors: tuple[Tensor, Tensor, Tensor, Tensor]
    strides: tuple[int, int, int, int]
    sizes: tuple[int, int, int]  # L, rows of a unit, elements of a piece
    units: int
    codes: tuple[int, int]
    dtype: torch.dtype

    @property
    def addresses(self) -> list[int]:
        """Of the four tensors."""
        return [t.data_ptr() for t in self.tensors]


class Forward(NamedTuple):
    """Draws; the KL term of the ELBO, -beta KL with its floor, and the raw KL, both reduced; latent elements kept."""

    z: Tensor | None
    neg_kl: Tensor | None
    kl: Tensor | None
    kept: Tensor | None


def latent_of(mu: Tensor, logvar: Tensor, prior: tuple[Tensor, Tensor] | None) -> Latent:
    """Bring the operands into the form of the kernels; copies only what is not dense in its rows."""
    N = mu.shape[0]
    L = mu.numel() // N if N else 0
    if mu.dtype != logvar.dtype:
        both = torch.promote_types(mu.dtype, logvar.dtype)
        mu, logvar = mu.to(both), logvar.to(both)
    dtype = compute_dtype(mu, logvar, *(prior or ()))
    (mu_rows, mu_stride), (logvar_rows, logvar_stride) = dense_rows(mu, N), dense_rows(logvar, N)
    if prior is None:
        nothing = torch.zeros(L, dtype=dtype)
        priors, strides = [nothing, nothing], [0, 0]
    else:
        priors, strides = [], []
        for p in prior:
            shared = p.dim() < mu.dim() or p.shape[0] == 1
            rows = p.to(dtype).expand(1 if shared else N, *mu.shape[1:]).contiguous()
            priors.append(rows)
            strides.append(0 if shared else L)
    piece = min(L, PIECE) or 1
    group = PIECE // piece
    return Latent(
        (mu_rows, logvar_rows, priors[0], priors[1]),
        (mu_stride, logvar_stride, strides[0], strides[1]),
        (L, group, piece),
        -(-N // group) * -(-L // piece),
        (CODES[mu.dtype], CODES[dtype]),
        dtype,
    )


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
    first_row: int = 0,
) -> Forward:
    """Launch: draws if there is a seed, and the KL if it is wanted."""
    latent = latent_of(mu, logvar, prior)
    N, (L, _, piece) = mu.shape[0], latent.sizes
    pieces = -(-L // piece)
    lead = () if num_samples is None else (num_samples,)
    z = None if seed is None else torch.empty((*lead, *mu.shape), dtype=torch.promote_types(mu.dtype, logvar.dtype))
    kept, floor = None, float(free_bits)
    if floor or isinstance(free_bits, Tensor):
        sums = torch.zeros(L, dtype=torch.float64)
        make_columns(*latent.codes)(*latent.addresses, sums.data_ptr(), N, L, *latent.strides)
        kept = ~(sums / N <= floor)  # this way round NaN stays visible
    sums = torch.empty((2, N, pieces), dtype=torch.float64)
    scratch_type = torch.empty(1, dtype=latent.dtype)
    others = [sums if t is None else t for t in (kept, z)] + [sums[0], sums[1], scratch_type]
    run(
        make_forward(*latent.codes, seed is not None, want_kl, prior is not None, kept is not None),
        (
            *latent.addresses,
            *[t.data_ptr() for t in others],
            *(0 if seed is None else int(seed), first_row, N, num_samples or 1, *latent.sizes, *latent.strides),
        ),
        latent.units,
        N * L * (NS_KL + (0 if seed is None else NS_SAMPLE * (num_samples or 1))),
    )
    if not want_kl:
        return Forward(z, None, None, None)
    kl, weighed = sums.sum(2) if pieces > 1 else sums.view(2, N)
    weighed = kl if kept is None else weighed + floor * float(L - kept.sum())
    neg_kl = -float(beta) * weighed if float(beta) else torch.zeros_like(kl)
    neg_kl, kl = (reduce_batch(t, reduction).to(latent.dtype) for t in (neg_kl, kl))
    return Forward(z, neg_kl, kl, kept)


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
    N, (L, _, _), T = mu.shape[0], latent.sizes, latent.dtype
    mean = 1 / N if reduction == "mean" else 1.0
    weights = [
        torch.zeros((), dtype=T) if w is None else (w.to(T) * factor).contiguous()
        for w, factor in ((dneg_kl, -float(beta) * mean), (dkl, mean))
    ]
    sample = seed is not None and dz is not None
    dense = torch.promote_types(mu.dtype, logvar.dtype)
    dz = dz.to(dense).contiguous() if sample and dz is not None else weights[0]
    gradients = [torch.empty(mu.shape, dtype=dense), torch.empty(mu.shape, dtype=dense)]
    gradients += [torch.empty(mu.shape, dtype=T) if prior else weights[0] for _ in range(2)]
    others = [weights[0] if kept is None else kept, dz, *gradients, *weights, torch.empty(1, dtype=T)]
    run(
        make_backward(*latent.codes, sample, prior is not None, kept is not None),
        (
            *latent.addresses,
            *[t.data_ptr() for t in others],
            *(int(seed) if sample and seed is not None else 0, first_row, N, num_samples or 1),
            *latent.sizes,
            *latent.strides,
            *[w.dim() for w in weights],
        ),
        latent.units,
        N * L * (NS_KL + (NS_SAMPLE * (num_samples or 1) if sample else 0)),
    )
    targets = (mu, logvar, *(prior or ()))
    return [g.sum_to_size(t.shape).to(t.dtype) for g, t in zip(gradients, targets, strict=False)]


def reduce_batch(t: Tensor, reduction: str) -> Tensor:
    """``[N]`` -> its mean, its sum, or itself."""
    return t if reduction == "none" else t.mean() if reduction == "mean" else t.sum()
