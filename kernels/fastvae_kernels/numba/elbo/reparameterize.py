"""Sampling from q(z|x) = N(mu, e^logvar) and its KL to the prior, and the way back through both: Numba.

    z[k, n, l] = mu + e^(logvar/2) eps           kl[n] = sum_l 1/2 ((mu - mu_p)^2 e^-logvar_p + phi(logvar - logvar_p))
    dmu        = sum_k dz + g (mu - mu_p) e^-logvar_p
    dlogvar    = 1/2 e^(logvar/2) sum_k dz eps + g/2 expm1(logvar - logvar_p)          g[n, l] the upstream of kl_nl

Traffic, elements: forward reads mu and logvar and writes z, (2 + K) N L; backward reads mu, logvar and dz and writes
two gradients, (4 + K) N L. The noise eps is never stored: both passes make it from (seed, row, draw, latent element).
Layout: rows dense in memory, any stride between them. Work unit: a group of short rows, or a fixed piece of a long one,
in one loop over whole vectors of dense arrays in the compute dtype: where a tensor is not like that, `source` and
`target` put a scratch in its place. The loop makes noise block by block, so that every stream of memory has arithmetic
beside it: apart from each other, streams took as long as the arithmetic.
Specification: fastvae/reference/elbo/formulas.py (reparameterize, kl_elements), fastvae/reference/elbo/noise.py
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...plans import LatentPlan, fit
from ...rows import Rows
from ..language.buffers import allocator, scratch
from ..language.jit import Kernel, kernel, unpack
from ..language.math import fma, half_exponentials, like, select
from ..language.memory import (
    CODES,
    F64,
    I64,
    U8,
    U32,
    array_at,
    gather,
    item_size,
    on_stack,
    prefetch,
    put,
    read,
    settle,
    source,
    sum_of,
    target,
    vector,
    wide_vector,
    write,
)  # fmt: skip
from ..language.noise import BLOCK, KEYS, count, fill_keys, fill_noise
from ..language.threads import finished, run, take, worker
from ..language.vector import lanes, total
from .kl import COLUMNS, LATENT, fill_upstream, finish, kl_element, kl_element_to, kl_slopes_to, make_columns

LINE = 64  # bytes of a cache
PIECE = 1024  # the most elements of a unit, those between short rows included; whole blocks of noise and wide vectors
COUNTERS = PIECE // 4
NS_SAMPLE, NS_KL = 1.5, 0.6  # of one element on one thread

FORWARD = f"{LATENT} 9q 3d"
BACKWARD = f"{LATENT} 13q 2d"


@cache
def make_forward(M: int, T: int, sample: bool) -> Kernel:
    """The kernel for the dtype codes of mu, logvar and z, and of arithmetic and the prior; it draws z or does not.

    It takes the KL where there is a neg_kl. One that does not draw writes the gradient of minus the KL term where there
    is a dmu, for the KL to N(0, I) without free bits.
    """

    @kernel(FORWARD)
    def sample_and_kl(block):
        (
            mu, logvar, mu_p, logvar_p, mu_row, logvar_row, mu_p_row, logvar_p_row, N, L, K, group, piece,
            seed, first_row, mask, z, dmu, dlogvar, neg_kl, kl, partial, beta, floor, mean,
        ) = unpack(block, FORWARD)  # fmt: skip
        width, pieces, per_row = -(-piece // 4) * 4, max(1, -(-L // piece)), mean == 0
        sums, kept_sums = array_at(partial, N * pieces, F64), array_at(partial + 8 * N * pieces, N * pieces, F64)
        v, u = wide_vector(T), vector(T)
        none, g = like(v, 0), like(v, beta * (1.0 if per_row else mean))
        mu_s, logvar_s, mu_p_s, logvar_p_s = (
            on_stack(PIECE, T), on_stack(PIECE, T), on_stack(PIECE, T), on_stack(PIECE, T),
        )  # fmt: skip
        z_s, scale, kl_s, mask_s = on_stack(PIECE, T), on_stack(PIECE, T), on_stack(PIECE, T), on_stack(PIECE, T)
        eps = on_stack(BLOCK, T)
        blocks_, rows_, keys = on_stack(COUNTERS, U32), on_stack(COUNTERS, U32), on_stack(KEYS, I64)
        if sample:
            fill_keys(keys, seed)
            count(blocks_, rows_, width // 4, group)
        draws, whole = K if sample else 1, not per_row and floor < 0  # the sum over a unit is all that is asked for
        me = worker(block)
        start, stop = take(block, me)
        while start < stop:
            for unit in range(start, stop):
                first, n = unit % pieces * piece, unit // pieces * group
                length, rows = min(piece, L - first), min(group, N - n)
                size = rows * width
                m_ = array_at(source(mu_s, width, mu, n, rows, mu_row, first, length, M, T, v), size, T)
                s_ = array_at(source(logvar_s, width, logvar, n, rows, logvar_row, first, length, M, T, v), size, T)
                if mu_p:
                    gather(mu_p_s, width, mu_p, n, rows, mu_p_row, first, length, T, u)
                    gather(logvar_p_s, width, logvar_p, n, rows, logvar_p_row, first, length, T, u)
                for j in range(size, -(-size // lanes(v)) * lanes(v)):  # if any, the rows are in scratch
                    mu_s[j] = logvar_s[j] = mu_p_s[j] = logvar_p_s[j] = 0
                if not sample:
                    dmu_ = array_at(target(mu_s, width, dmu, n, rows, L, first, length, M, T, v), size, T)
                    dlogvar_ = array_at(target(logvar_s, width, dlogvar, n, rows, L, first, length, M, T, v), size, T)
                sum_ = like(v, 0)
                for k in range(draws):
                    if sample:
                        z_ = array_at(target(z_s, width, z, k * N + n, rows, L, first, length, M, T, v), size, T)
                    for b in range(0, size, BLOCK):
                        if sample:
                            fill_noise(eps, blocks_, rows_, b // 4, first // 4, first_row + n, k, keys, u)
                        for i in range(b, min(b + BLOCK, size), lanes(v)):
                            m = read(m_, i, v)
                            if k == 0:
                                s = read(s_, i, v)
                                half_root, half_excess, half_phi = half_exponentials(s)
                                root = half_root + half_root
                                if draws > 1:
                                    write(scale, i, root)
                                if not sample or neg_kl:  # draws alone need no phi, a fifth of their time
                                    kl_i = kl_element(m, half_phi)
                                    if mu_p:
                                        kl_i = kl_element_to(m, s, read(mu_p_s, i, v), read(logvar_p_s, i, v))
                                    sum_ = sum_ + kl_i
                                    if not whole:
                                        write(kl_s, i, kl_i)
                                if not sample and dmu:
                                    write(dmu_, i, g * m)
                                    write(dlogvar_, i, g * half_excess)
                            else:
                                root = read(scale, i, v)
                            if sample:
                                write(z_, i, fma(root, read(eps, i - b, v), m))
                    if sample:
                        settle(z_s, width, z, k * N + n, rows, L, first, length, M, T, v)
                if not sample and dmu:
                    settle(mu_s, width, dmu, n, rows, L, first, length, M, T, v)
                    settle(logvar_s, width, dlogvar, n, rows, L, first, length, M, T, v)
                if whole:
                    sums[unit] = total(sum_)  # between short rows stand zeros, and behind the last one
                if whole or neg_kl == 0:
                    continue
                for i in range(rows):
                    sums[(n + i) * pieces + unit % pieces] = sum_of(kl_s, i * width, length, u)
                if floor >= 0:
                    gather(mask_s, width, mask, 0, rows, 0, first, length, U8, u)
                    for i in range(0, size, lanes(v)):
                        write(kl_s, i, select(read(mask_s, i, v) != none, read(kl_s, i, v), none))
                    for i in range(rows):
                        kept_sums[(n + i) * pieces + unit % pieces] = sum_of(kl_s, i * width, length, u)
            if finished(block, stop - start) and neg_kl:
                rows, each = (max(1, -(-N // group)) * pieces, 1) if whole else (N, pieces)
                finish(partial, partial + 8 * N * pieces, neg_kl, kl, rows, each, beta, floor, mean, per_row, T)
            start, stop = take(block, me)

    return sample_and_kl


@cache
def make_backward(M: int, T: int, sample: bool) -> Kernel:
    """The kernel of all gradients, of the prior's too where there is one, for the codes of `make_forward`."""

    @kernel(BACKWARD)
    def sample_and_kl_backward(block):
        (
            mu, logvar, mu_p, logvar_p, mu_row, logvar_row, mu_p_row, logvar_p_row, N, L, K, group, piece,
            seed, first_row, mask, dz, dmu, dlogvar, dmu_p, dlogvar_p, through_kl, kept, kept_row, raw, raw_row,
            kept_factor, raw_factor,
        ) = unpack(block, BACKWARD)  # fmt: skip
        width, pieces = -(-piece // 4) * 4, max(1, -(-L // piece))
        v, u = wide_vector(T), vector(T)
        none = like(v, 0)
        mu_s, logvar_s, mu_p_s, logvar_p_s = (
            on_stack(PIECE, T), on_stack(PIECE, T), on_stack(PIECE, T), on_stack(PIECE, T),
        )  # fmt: skip
        dz_s, dmu_s, dlogvar_s, g_s = on_stack(PIECE, T), on_stack(PIECE, T), on_stack(PIECE, T), on_stack(PIECE, T)
        mask_s, eps = on_stack(PIECE, T), on_stack(BLOCK, T)
        blocks_, rows_, keys = on_stack(COUNTERS, U32), on_stack(COUNTERS, U32), on_stack(KEYS, I64)
        if sample:
            fill_keys(keys, seed)
            count(blocks_, rows_, width // 4, group)
        if through_kl and not (mask or kept_row or raw_row):  # one number
            fill_upstream(g_s, mask_s, PIECE, 0, 1, 0, kept, 0, kept_factor, raw, 0, raw_factor, T)
        draws = K if sample else 1
        me = worker(block)
        start, stop = take(block, me)
        while start < stop:
            for unit in range(start, stop):
                first, n = unit % pieces * piece, unit // pieces * group
                length, rows = min(piece, L - first), min(group, N - n)
                size = rows * width
                m_at = source(mu_s, width, mu, n, rows, mu_row, first, length, M, T, v)
                s_at = source(logvar_s, width, logvar, n, rows, logvar_row, first, length, M, T, v)
                m_, s_ = array_at(m_at, size, T), array_at(s_at, size, T)
                dmu_ = array_at(target(dmu_s, width, dmu, n, rows, L, first, length, M, T, v), size, T)
                dlogvar_ = array_at(target(dlogvar_s, width, dlogvar, n, rows, L, first, length, M, T, v), size, T)
                if through_kl:
                    if mask:
                        gather(mask_s, width, mask, 0, rows, 0, first, length, U8, u)
                    if mask or kept_row or raw_row:
                        fill_upstream(
                            g_s, mask_s, width, n, rows, mask, kept, kept_row, kept_factor, raw, raw_row, raw_factor, T
                        )
                    if mu_p:
                        gather(mu_p_s, width, mu_p, n, rows, mu_p_row, first, length, T, u)
                        gather(logvar_p_s, width, logvar_p, n, rows, logvar_p_row, first, length, T, u)
                for k in range(draws):
                    if sample:
                        dz_at = source(dz_s, width, dz, k * N + n, rows, L, first, length, M, T, v)
                        dz_ = array_at(dz_at, size, T)
                    for b in range(0, size, BLOCK):
                        if sample:
                            for at in range(b * item_size(T), (b + BLOCK) * item_size(T), LINE):
                                prefetch(dz_at + at)
                                if k == draws - 1:
                                    prefetch(m_at + at)
                                    prefetch(s_at + at)
                            fill_noise(eps, blocks_, rows_, b // 4, first // 4, first_row + n, k, keys, u)
                        for i in range(b, min(b + BLOCK, size), lanes(v)):
                            dm, ds = none, none
                            if sample:
                                if k > 0:
                                    dm, ds = read(dmu_s, i, v), read(dlogvar_s, i, v)
                                d = read(dz_, i, v)
                                dm, ds = dm + d, fma(d, read(eps, i - b, v), ds)
                                if k < draws - 1:
                                    write(dmu_s, i, dm)
                                    write(dlogvar_s, i, ds)
                                    continue
                            d, s = read(m_, i, v), read(s_, i, v)
                            half_root, half_excess, _ = half_exponentials(s)
                            if sample:
                                ds = half_root * ds
                            if through_kl:
                                g, slope, half_square = read(g_s, i, v), d, none
                                if mu_p:
                                    d = d - read(mu_p_s, i, v)
                                    slope, half_excess, half_square = kl_slopes_to(d, s, read(logvar_p_s, i, v))
                                through_mu = select(g != none, g * slope, none)  # not 0 * inf
                                through_logvar = select(g != none, g * half_excess, none)
                                dm, ds = dm + through_mu, ds + through_logvar
                                if mu_p:
                                    write(mu_p_s, i, -through_mu)
                                    write(logvar_p_s, i, -select(g != none, fma(g, half_square, through_logvar), none))
                            elif dmu_p:
                                write(mu_p_s, i, none)
                                write(logvar_p_s, i, none)
                            write(dmu_, i, dm)
                            write(dlogvar_, i, ds)
                settle(dmu_s, width, dmu, n, rows, L, first, length, M, T, v)
                settle(dlogvar_s, width, dlogvar, n, rows, L, first, length, M, T, v)
                if dmu_p:
                    put(mu_p_s, width, dmu_p, n, rows, L, first, length, T, u)
                    put(logvar_p_s, width, dlogvar_p, n, rows, L, first, length, T, u)
            start, stop = take(block, me)

    return sample_and_kl_backward


class Latent(LatentPlan):
    """Sampling and the KL for all posteriors of one layout: what is known before any number is."""

    def __init__(
        self, mu: Tensor, logvar: Tensor, prior: tuple[Tensor, Tensor] | None, num_samples: int | None, reduction: str
    ) -> None:
        super().__init__(mu, logvar, prior, num_samples, reduction)
        N, L = self.N, self.L
        self.mixed = mu.dtype != logvar.dtype
        self.mu, self.logvar = Rows(mu, self.dtype), Rows(logvar, self.dtype)
        self.as_they_are = self.mu.as_it_is and self.logvar.as_it_is
        self.plain = self.as_they_are and self.mean != 0 and prior is None and not self.mixed
        piece = min(L, PIECE) or 1
        group = max(1, PIECE // (-(-piece // 4) * 4))
        group -= group % 4 if group > 4 else 0  # whole vectors, if rows are a multiple of 4
        self.pieces = max(1, -(-L // piece))
        self.units = max(1, -(-N // group)) * self.pieces
        self.sizes = self.mu.stride, self.logvar.stride, *self.prior_rows, N, L, self.K, group, piece
        self.codes = CODES[self.dtype], CODES[self.compute]
        self.forwards: list[Kernel | None] = [None, None]  # without draws and with
        self.sums = 2 * N * self.pieces
        self.ns_sample, self.ns_kl = N * L * NS_SAMPLE * self.K, N * L * NS_KL
        self.empty_gradient, self.empty_prior = allocator(mu, self.dtype), allocator(mu, self.compute)
        self.empty_z = self.empty_gradient if num_samples is None else allocator(mu, self.dtype, draws=num_samples)

    def operands(self, mu: Tensor, logvar: Tensor, prior: tuple[Tensor, Tensor] | None) -> tuple[Any, ...]:
        """The tensors with dense rows, to be kept alive, and the fields of LATENT."""
        if not self.as_they_are:
            mu, logvar = self.mu.of(mu), self.logvar.of(logvar)
        if prior is None:
            return (mu, logvar), (mu.data_ptr(), logvar.data_ptr(), 0, 0, *self.sizes)
        tensors = mu, logvar, *self.prior_operands(prior)
        return tensors, (*[t.data_ptr() for t in tensors], *self.sizes)

    def forward(
        self, mu: Tensor, logvar: Tensor, prior: tuple[Tensor, Tensor] | None, seed: Tensor | None,
        beta: Tensor | float = 1.0, free_bits: Tensor | float = 0.0, neg_kl: Tensor | None = None,
        want_kl: bool = True, want_raw: bool = True, want_gradients: bool = False, first_row: int = 0,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, tuple[Tensor, Tensor] | None]:  # fmt: skip
        """Launch: draws if there is a seed, and the KL if it is wanted, as it is besides in final units if wanted raw.

        ``neg_kl`` is where to write it in final units. Gives z; the KL term of the ELBO, -beta KL with its floor, and
        the raw KL, both reduced; the latent elements kept; and the gradients of minus the KL term in mu and logvar,
        where they could be had in passing, without draws.
        """
        _alive, latent = self.operands(mu, logvar, prior)
        z = kl = kept = gradients = None
        z_ = kl_ = kept_ = dmu_ = dlogvar_ = neg_kl_ = seed_ = 0  # addresses; 0 where there is none
        floor, work = -1.0, 0.0
        if want_kl:
            work = self.ns_kl
            if neg_kl is None:
                neg_kl = torch.empty_like(self.value)
            neg_kl_ = neg_kl.data_ptr()
            if want_raw:
                kl = torch.empty_like(self.value)
                kl_ = kl.data_ptr()
            if free_bits := float(free_bits):
                kept = self.kept(latent, free_bits)
                floor, kept_ = free_bits * float(self.L - kept.sum()), kept.data_ptr()
            elif want_gradients and seed is None and prior is None and beta != 0 and not self.mixed:
                gradients = self.empty_gradient(mu), self.empty_gradient(mu)
                dmu_, dlogvar_ = gradients[0].data_ptr(), gradients[1].data_ptr()
        if seed is not None:
            z, work, seed_ = self.empty_z(mu), work + self.ns_sample, int(seed)
            z_ = z.data_ptr()
        kernel = self.forwards[z is not None] or self.forward_kernel(z is not None)
        args = (
            *latent, seed_, first_row,
            kept_, z_, dmu_, dlogvar_, neg_kl_, kl_, scratch(self.sums), float(beta), floor, self.mean,
        )  # fmt: skip
        run(kernel, args, self.units, work)
        return z, neg_kl, kl, kept, gradients

    def forward_plain(self, mu: Tensor, logvar: Tensor, beta: float, neg_kl: int) -> tuple[Tensor, Tensor]:
        """`forward` in half as much Python, where `plain`: the KL term to an address, and the gradients of minus it."""
        dmu, dlogvar = self.empty_gradient(mu), self.empty_gradient(mu)
        args = (
            mu.data_ptr(), logvar.data_ptr(), 0, 0, *self.sizes, 0, 0, 0, 0, dmu.data_ptr(), dlogvar.data_ptr(),
            neg_kl, 0, scratch(self.sums), beta, -1.0, self.mean,
        )  # fmt: skip
        run(self.forwards[False] or self.forward_kernel(False), args, self.units, self.ns_kl)
        return dmu, dlogvar

    def forward_kernel(self, sample: bool) -> Kernel:
        """The kernel, kept for the next call."""
        self.forwards[sample] = made = make_forward(*self.codes, sample)
        return made

    def kept(self, latent: tuple[int, ...], free_bits: float) -> Tensor:
        """Which latent elements have a batch mean above lambda, ``[L]`` of bool."""
        columns = torch.empty(self.L, dtype=torch.float64, device="cpu")
        if self.L:
            run(make_columns(*self.codes), (*latent, columns.data_ptr()), -(-self.L // COLUMNS), self.ns_kl)
        return ~(columns / self.N <= free_bits)  # this way round NaN stays visible

    def backward(
        self,
        mu: Tensor,
        logvar: Tensor,
        prior: tuple[Tensor, Tensor] | None,
        seed: Tensor | None,
        beta: Tensor | float,
        kept: Tensor | None,
        dz: Tensor | None,
        dneg_kl: Tensor | None,
        dkl: Tensor | None,
        *,
        first_row: int = 0,
    ) -> list[Tensor]:
        """Launch: the gradients of mu and logvar, and of the prior's two tensors where there is one."""
        alive, latent = self.operands(mu, logvar, prior)
        mean = self.mean or 1.0
        weights, factors = [], []
        for upstream, factor in ((dneg_kl, -float(beta) * mean), (dkl, mean)):
            if upstream is not None:
                upstream = upstream.to(self.compute).contiguous()
            alive += (upstream,)
            weights += [0, 0] if upstream is None else [upstream.data_ptr(), upstream.dim()]
            factors.append(0.0 if upstream is None else factor)
        if dz is not None:
            dz = dz.to(self.dtype).contiguous()
        gradients = [self.empty_gradient(mu), self.empty_gradient(mu)]
        if prior is not None:
            gradients += [self.empty_prior(mu), self.empty_prior(mu)]
        through_kl = dneg_kl is not None or dkl is not None
        run(
            make_backward(*self.codes, dz is not None),
            (
                *latent, 0 if dz is None or seed is None else int(seed), first_row,
                0 if kept is None else kept.data_ptr(), 0 if dz is None else dz.data_ptr(),
                *[g.data_ptr() for g in gradients], *([0, 0] if prior is None else []),
                int(through_kl), *weights, *factors,
            ),
            self.units,
            (self.ns_kl if through_kl else 0.0) + (0.0 if dz is None else self.ns_sample),
        )  # fmt: skip
        return fit(gradients, (mu, logvar, *(prior or ())))
