"""Draws from a diagonal Gaussian and its KL to the prior, and the way back through both: Triton.

    z[k, n, l] = mu + e^(logvar/2) eps        kl_nl = 1/2 ((mu - mu_p)^2 e^-logvar_p + phi(logvar - logvar_p))
    dmu = sum_k dz + g (mu - mu_p) e^-logvar_p          g[n, l] is the upstream of kl_nl: of its part in the bound,
    dlogvar = 1/2 e^(logvar/2) sum_k dz eps + 1/2 g expm1(logvar - logvar_p)        where free bits keep it, and raw

Traffic, elements: forward (2 + K) N L, backward (4 + K) N L. The noise is a function of (seed, row, draw, element) and
never stored: backward makes it again. Floor: a device copy of as many bytes.
Layout: as in `log_likelihood.py`; a Philox block is four neighbours in a row.
Specification: fastvae/reference/elbo/formulas.py (reparameterize, kl_elements, kl_penalty), noise.py
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...plans import LatentPlan, fit
from ...rows import Rows
from ..language.launch import as_pointer, launch
from ..language.math import exp, expm1, inverse_parts, normal4, number, phi, times, to_element
from ..language.tiles import TYPES, counters, load_rows, tile, total_of, vector_width

TILE_BYTES = 8192  # of mu in float32 and in float64; 2048 elements, 8 for each thread, of what is narrower
COLUMN_ROWS, COLUMNS, ROW_BLOCKS = 16, 64, 64  # of a tile of column sums; how many sums a column at most
UNTYPED = ["N", "K", "LV", "chunks", "mu_row", "logvar_row", "mu_p_row", "logvar_p_row", "first_row", "rows"]
UNTYPED_BACK = [*UNTYPED, "kept_row", "raw_row"]


@triton.jit
def kl_element(mu, logvar, mu_p, logvar_p, PRIOR: tl.constexpr):
    """KL of one latent element to the prior's, or to N(0, 1)."""
    if PRIOR:
        root = exp(number(mu, -0.25) * logvar_p)  # twice: the whole may overflow; `inverse_parts` spills on one GPU
        r = times(times(mu - mu_p, root), root)
        return number(mu, 0.5) * (r * r + phi(logvar - logvar_p))
    else:
        return number(mu, 0.5) * (mu * mu + phi(logvar))


@triton.jit
def noise(seed, n, first, k, R: tl.constexpr, C: tl.constexpr, T: tl.constexpr):
    """Standard normals [R, C] of int64 rows n, from latent element ``first`` on."""
    block = first // 4 + tl.arange(0, C // 4)
    row = n[:, None] + tl.zeros([R, C // 4], tl.int64)
    block = block[None, :] + tl.zeros([R, C // 4], tl.int32)
    draw = k + tl.zeros([R, C // 4], tl.int32)
    e0, e1, e2, e3 = normal4(seed, block, draw, row, T)
    return tl.interleave(tl.interleave(e0, e2), tl.interleave(e1, e3))


@triton.jit
def weight_of(beta, beta_number):
    """Beta: a number, times what a tensor holds."""
    value = tl.full((), beta_number, tl.float64)
    if beta is not None:
        value *= tl.load(beta).to(tl.float64)
    return value


@triton.jit(do_not_specialize=UNTYPED)
def reparameterize_fwd_kernel(
    mu, logvar, mu_p, logvar_p, seed, beta, kept, floor, z, dmu, dlogvar, neg_kl, kl, partial, counter,
    N: tl.int64, K: tl.int32, LV: tl.int32, chunks: tl.int32,
    mu_row: tl.int64, logvar_row: tl.int64, mu_p_row: tl.int64, logvar_p_row: tl.int64, first_row: tl.int64,
    rows: tl.int64, beta_number: tl.float64, mean: tl.float64,
    R: tl.constexpr, C: tl.constexpr, V: tl.constexpr, T: tl.constexpr, PRIOR: tl.constexpr, SAMPLE: tl.constexpr,
    KL: tl.constexpr, KEPT: tl.constexpr, GRADIENT: tl.constexpr, EACH: tl.constexpr, CHUNKED: tl.constexpr,
):  # fmt: skip
    """Rows in units of V elements; ``rows`` is how many blocks of rows there are. EACH: a value for each row."""
    pid = tl.program_id(0)
    chunk, b = pid % chunks, (pid // chunks).to(tl.int64)
    first, L = chunk * C, LV * V
    cols = tl.arange(0, C)
    n = b * R + tl.arange(0, R).to(tl.int64)  # [R]
    live = n < N
    mask = live[:, None] & (first + cols < L)[None, :]  # [R, C]
    m = load_rows(mu, n, mu_row * V, first, cols, mask, T)
    s = load_rows(logvar, n, logvar_row * V, first, cols, mask, T)
    if SAMPLE:
        scale = exp(s * number(s, 0.5))
        word = tl.load(seed)
        for k in range(K):
            eps = noise(word, n + first_row, first, k, R, C, T)
            o = ((k * N + n) * LV * V)[:, None] + first + cols[None, :]
            tl.store(z + o, to_element(tl.fma(scale, eps, m), z), mask=mask)
    if KL:
        m_p, s_p = m, s
        if PRIOR:
            m_p = load_rows(mu_p, n, mu_p_row * V, first, cols, mask, T)
            s_p = load_rows(logvar_p, n, logvar_p_row * V, first, cols, mask, T)
        value = tl.where(mask, kl_element(m, s, m_p, s_p, PRIOR), 0.0)
        raw = tl.sum(value, 1)  # [R]
        weight, constant = weight_of(beta, beta_number), tl.full((), 0.0, tl.float64)
        in_bound = raw
        if KEPT:
            keep = tl.load(kept + first + cols, mask=first + cols < L, other=0) != 0
            in_bound = tl.sum(tl.where(keep[None, :], value, 0.0), 1)
            constant += tl.load(floor)
        if GRADIENT:  # of minus the KL term, in final units
            g = weight.to(T)
            if not EACH:
                g = g * tl.full((), mean, T)
            o = (n * LV * V)[:, None] + first + cols[None, :]
            g_m, g_s = tl.where(g != 0, g * m, 0.0), tl.where(g != 0, g * expm1(s) * 0.5, 0.0)
            tl.store(dmu + o, to_element(g_m, dmu), mask=mask)
            tl.store(dlogvar + o, to_element(g_s, dlogvar), mask=mask)
        count = rows * chunks
        if EACH and not CHUNKED:
            if kl is not None:
                tl.store(kl + n, to_element(raw, kl), mask=live)
            bound = in_bound.to(tl.float64) + constant
            bound = tl.where(weight != 0.0, -weight * bound, 0.0)
            tl.store(neg_kl + n, to_element(bound, neg_kl), mask=live)
        else:
            tl.store(partial + pid, tl.sum(raw, 0))
            if KEPT:
                tl.store(partial + count + pid, tl.sum(in_bound, 0))
            tl.debug_barrier()
            if EACH:  # R is 1: the chunks of this row
                place, start, tiles, unit, constants = b, b * chunks, chunks, tl.full((), 1.0, tl.float64), constant
            else:
                place, start, tiles, unit, constants = 0, 0, count, tl.full((), mean, tl.float64), constant * N
            there = place < N if EACH else True  # an empty batch has one block and no row
            if tl.atomic_add(counter + place, 1) == tiles - 1:
                value_of_all = total_of(partial + start, tiles)
                if kl is not None:
                    tl.store(kl + place, to_element(value_of_all * unit, kl), mask=there)
                if KEPT:
                    value_of_all = total_of(partial + count + start, tiles) + constants
                value_of_all = tl.where(weight != 0.0, -weight * value_of_all * unit, 0.0)
                tl.store(neg_kl + place, to_element(value_of_all, neg_kl), mask=there)
                tl.store(counter + place, 0)


@triton.jit(do_not_specialize=["N", "L", "mu_row", "logvar_row", "mu_p_row", "logvar_p_row", "per"])
def kl_columns_kernel(
    mu, logvar, mu_p, logvar_p, lambda_, sums, kept, floor, counter,
    N: tl.int64, L: tl.int32,
    mu_row: tl.int64, logvar_row: tl.int64, mu_p_row: tl.int64, logvar_p_row: tl.int64, per: tl.int64,
    lambda_number: tl.float64, R: tl.constexpr, C: tl.constexpr, T: tl.constexpr, PRIOR: tl.constexpr,
):  # fmt: skip
    """Which latent elements have a batch mean above lambda, and lambda times how many have not."""
    columns = tl.maximum(tl.cdiv(L, C), 1)
    pid = tl.program_id(0)
    block = pid // columns
    first = (pid % columns) * C
    cols = tl.arange(0, C)
    acc = tl.zeros([C], tl.float64)
    for i in range(per):
        n = (block * per + i) * R + tl.arange(0, R).to(tl.int64)
        mask = (n < N)[:, None] & (first + cols < L)[None, :]
        m = load_rows(mu, n, mu_row, first, cols, mask, T)
        s = load_rows(logvar, n, logvar_row, first, cols, mask, T)
        m_p, s_p = m, s
        if PRIOR:
            m_p = load_rows(mu_p, n, mu_p_row, first, cols, mask, T)
            s_p = load_rows(logvar_p, n, logvar_p_row, first, cols, mask, T)
        acc += tl.sum(tl.where(mask, kl_element(m, s, m_p, s_p, PRIOR), 0.0).to(tl.float64), 0)
    tl.store(sums + block * L + first + cols, acc, mask=first + cols < L)
    tl.debug_barrier()
    if tl.atomic_add(counter, 1) == tl.num_programs(0) - 1:
        level = tl.full((), lambda_number, tl.float64)
        if lambda_ is not None:
            level *= tl.load(lambda_).to(tl.float64)
        blocks = tl.num_programs(0) // columns
        below = tl.full((), 0.0, tl.float64)
        for j in range(columns):
            o = j * C + tl.arange(0, C)
            column = tl.zeros([C], tl.float64)
            for other in range(blocks):
                column += tl.load(sums + other * L + o, mask=o < L, other=0.0, cache_modifier=".cg")
            constant = (column / tl.maximum(N, 1) <= level) & (o < L)  # this way round NaN stays visible
            tl.store(kept + o, 1 - constant.to(tl.int8), mask=o < L)
            below += tl.sum(tl.where(constant, 1.0, 0.0).to(tl.float64), 0)
        tl.store(floor, level * below)
        tl.store(counter, 0)


@triton.jit(do_not_specialize=UNTYPED_BACK)
def reparameterize_bwd_kernel(
    mu, logvar, mu_p, logvar_p, seed, beta, kept, dz, dneg_kl, dkl, dmu, dlogvar, dmu_p, dlogvar_p,
    N: tl.int64, K: tl.int32, LV: tl.int32, chunks: tl.int32,
    mu_row: tl.int64, logvar_row: tl.int64, mu_p_row: tl.int64, logvar_p_row: tl.int64, first_row: tl.int64,
    kept_row: tl.int32, raw_row: tl.int32, beta_number: tl.float64, mean: tl.float64,
    R: tl.constexpr, C: tl.constexpr, V: tl.constexpr, T: tl.constexpr, PRIOR: tl.constexpr,
):  # fmt: skip
    """What there is no upstream of is None. Rows in units of V elements."""
    pid = tl.program_id(0)
    chunk, b = pid % chunks, (pid // chunks).to(tl.int64)
    first, L = chunk * C, LV * V
    cols = tl.arange(0, C)
    n = b * R + tl.arange(0, R).to(tl.int64)  # [R]
    live = n < N
    mask = live[:, None] & (first + cols < L)[None, :]  # [R, C]
    m = load_rows(mu, n, mu_row * V, first, cols, mask, T)
    s = load_rows(logvar, n, logvar_row * V, first, cols, mask, T)
    out = (n * LV * V)[:, None] + first + cols[None, :]
    g_m, g_s = tl.zeros([R, C], T), tl.zeros([R, C], T)
    if dz is not None:
        word = tl.load(seed)
        for k in range(K):
            eps = noise(word, n + first_row, first, k, R, C, T)
            d = load_rows(dz, k * N + n, L, first, cols, mask, T)
            g_m += d
            g_s = tl.fma(d, eps, g_s)
        g_s = g_s * exp(s * number(s, 0.5)) * 0.5
    if dneg_kl is not None or dkl is not None:
        g = tl.zeros([R, C], T)
        if dneg_kl is not None:
            unit = -weight_of(beta, beta_number) * tl.full((), mean, tl.float64)
            w = tl.load(dneg_kl + n * kept_row, mask=live, other=0.0).to(T) * unit.to(T)
            g += w[:, None]
            if kept is not None:
                keep = tl.load(kept + first + cols, mask=first + cols < L, other=0) != 0
                g = tl.where(keep[None, :], g, 0.0)
        if dkl is not None:
            g += (tl.load(dkl + n * raw_row, mask=live, other=0.0).to(T) * tl.full((), mean, T))[:, None]
        t, slope, half_square = s, m, m
        if PRIOR:
            m_p = load_rows(mu_p, n, mu_p_row * V, first, cols, mask, T)
            s_p = load_rows(logvar_p, n, logvar_p_row * V, first, cols, mask, T)
            t = s - s_p
            one, two = inverse_parts(s_p * number(s, 0.5))  # two factors of 1 / the prior's deviation
            r = times(times(m - m_p, one), two)
            slope, half_square = times(times(r, one), two), r * r * 0.5
        through_mu = tl.where(g != 0.0, g * slope, 0.0)  # not 0 * inf
        through_logvar = tl.where(g != 0.0, g * expm1(t) * 0.5, 0.0)
        g_m += through_mu
        g_s += through_logvar
        if PRIOR:
            tl.store(dmu_p + out, -through_mu, mask=mask)
            through_square = tl.where(g != 0.0, g * half_square, 0.0)
            tl.store(dlogvar_p + out, -(through_square + through_logvar), mask=mask)
    elif PRIOR:
        tl.store(dmu_p + out, tl.zeros([R, C], T), mask=mask)
        tl.store(dlogvar_p + out, tl.zeros([R, C], T), mask=mask)
    tl.store(dmu + out, to_element(g_m, dmu), mask=mask)
    tl.store(dlogvar + out, to_element(g_s, dlogvar), mask=mask)


class Latent(LatentPlan):
    """Sampling and the KL for all posteriors of one layout: what is known before any number is."""

    def __init__(
        self, mu: Tensor, logvar: Tensor, prior: tuple[Tensor, Tensor] | None, num_samples: int | None, reduction: str
    ) -> None:
        super().__init__(mu, logvar, prior, num_samples, reduction)
        self.mu, self.logvar = Rows(mu, mu.dtype), Rows(logvar, logvar.dtype)
        self.R, self.C, self.chunks = tile(self.L, TILE_BYTES // self.compute.itemsize)
        self.blocks = max(1, -(-self.N // self.R))  # an empty batch is one block with no live row
        self.V = V = vector_width((self.L, self.mu.stride, self.logvar.stride))
        rows = self.mu.stride, self.logvar.stride, *self.prior_rows
        self.sizes = self.N, self.K, self.L // V, self.chunks, *[row // V for row in rows]

    def operands(self, mu: Tensor, logvar: Tensor, prior: tuple[Tensor, Tensor] | None) -> list[Tensor | None]:
        """Mu, logvar and the prior with dense rows."""
        tensors = [self.mu.of(mu), self.logvar.of(logvar)]
        return [*tensors, *((None, None) if prior is None else self.prior_operands(prior))]

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor beside mu."""
        return torch.empty(shape, dtype=dtype, device=self.value.device)

    def forward(
        self,
        mu: Tensor,
        logvar: Tensor,
        prior: tuple[Tensor, Tensor] | None,
        seed: Tensor | None,
        beta: Tensor | float = 1.0,
        free_bits: Tensor | float = 0.0,
        neg_kl: Tensor | None = None,
        want_kl: bool = True,
        want_raw: bool = True,
        want_gradients: bool = False,
        first_row: int = 0,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, tuple[Tensor, Tensor] | None]:
        """Launch: draws if there is a seed, and the KL if it is wanted, as it is besides in final units if wanted raw.

        ``neg_kl`` is where to write it in final units. Gives z; the KL term of the ELBO, -beta KL with its floor, and
        the raw KL, both reduced; the latent elements kept; and the gradients of minus the KL term in mu and logvar,
        where they could be had in passing.
        """
        operands = self.operands(mu, logvar, prior)
        z = kl = kept = floor = dmu = dlogvar = None
        beta_tensor, beta_number = as_pointer(beta, self.value.device)
        if want_kl:
            neg_kl = torch.empty_like(self.value) if neg_kl is None else neg_kl
            kl = torch.empty_like(self.value) if want_raw else None
            if isinstance(free_bits, Tensor) or free_bits != 0:
                kept, floor = self.kept(operands, free_bits)
            elif want_gradients and prior is None:
                dmu, dlogvar = self.empty(mu.shape, mu.dtype), self.empty(mu.shape, logvar.dtype)
        if seed is not None:
            z = self.empty((*(() if self.num_samples is None else (self.K,)), *mu.shape), self.dtype)
        each = self.mean == 0
        partial = self.empty((2 * self.blocks * self.chunks,), self.compute)
        counter = counters(self.value, self.blocks if each and self.chunks > 1 else 1)
        launch(
            reparameterize_fwd_kernel,
            self.blocks * self.chunks,
            (
                *(*operands, seed, beta_tensor, bytes_of(kept), floor, z, dmu, dlogvar),
                *(neg_kl if want_kl else None, kl, partial, counter),
            ),
            (*self.sizes, first_row, self.blocks, beta_number, self.mean),
            (
                *(self.R, self.C, self.V, TYPES[self.compute], prior is not None, seed is not None),
                *(want_kl, kept is not None, dmu is not None, each, self.chunks > 1),
            ),
        )
        gradients = None if dmu is None or dlogvar is None else (dmu, dlogvar)
        return z, neg_kl if want_kl else None, kl, kept, gradients

    def kept(self, operands: list[Tensor | None], free_bits: Tensor | float) -> tuple[Tensor, Tensor]:
        """Which latent elements have a batch mean above lambda, ``[L]``, and what the others hold constant."""
        lambda_, lambda_number = as_pointer(free_bits, self.value.device)
        kept, floor = self.empty((self.L,), torch.bool), self.empty((), torch.float64)
        tiles = max(1, -(-self.N // COLUMN_ROWS))
        per = -(-tiles // ROW_BLOCKS)
        blocks = -(-tiles // per)
        sums = self.empty((blocks, self.L), torch.float64)
        launch(
            kl_columns_kernel,
            blocks * max(1, -(-self.L // COLUMNS)),
            (*operands, lambda_, sums, kept.view(torch.int8), floor, counters(self.value)),
            (self.N, self.L, self.mu.stride, self.logvar.stride, *self.prior_rows, per, lambda_number),
            (COLUMN_ROWS, COLUMNS, TYPES[self.compute], operands[2] is not None),
        )
        return kept, floor

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
        operands = self.operands(mu, logvar, prior)
        beta_tensor, beta_number = as_pointer(beta, self.value.device)
        gradients = [self.empty(mu.shape, mu.dtype), self.empty(mu.shape, logvar.dtype)]
        if prior is not None:
            gradients += [self.empty(mu.shape, self.compute), self.empty(mu.shape, self.compute)]
        rows = [0 if u is None or u.dim() == 0 else u.stride(0) for u in (dneg_kl, dkl)]
        launch(
            reparameterize_bwd_kernel,
            self.blocks * self.chunks,
            (
                *(*operands, None if dz is None else seed, beta_tensor, bytes_of(kept)),
                *(None if dz is None else dz.contiguous(), dneg_kl, dkl),
                *(*gradients, *([None, None] if prior is None else [])),
            ),
            (*self.sizes, first_row, *rows, beta_number, self.mean or 1.0),
            (self.R, self.C, self.V, TYPES[self.compute], prior is not None),
        )
        return fit(gradients, (mu, logvar, *(prior or ())))


def bytes_of(mask: Tensor | None) -> Tensor | None:
    """A mask as a kernel reads it."""
    return None if mask is None else mask.view(torch.int8)
