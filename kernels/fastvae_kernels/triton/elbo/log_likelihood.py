"""Log-likelihood of x under a decoder's output, and its gradient: the launch plan, and the gradient's scaling. Triton.

The kernel, its formula and its traffic are in `likelihood_pass.py`, the log densities in `densities/`.
Specification: fastvae/reference/elbo/formulas.py (log_likelihood), fastvae/reference/elbo/likelihoods.py
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...plans import DensityPlan
from ...rows import in_order
from ..language.launch import as_pointer, launch
from ..language.math import to_element
from ..language.tiles import TYPES, counters, tile, vector_width
from .likelihood_pass import (
    ELEMENTS,
    NO_GRADIENT,
    NUMBER,
    OF_ONE,
    ONE,
    PER_ROW,
    PLAIN,
    SCALAR,
    SUMMED,
    UNWANTED,
    WRITTEN,
    log_likelihood_fwd_kernel,
)

TILE_BYTES = 8192  # of x_hat: two 16-byte loads in flight for each of 256 threads, and as many of x
MOST_PROGRAMS = 4096  # some fill a GPU many times over; more would queue up at the counter
SUMMED_BLOCKS = 64  # partial sums over rows of a per-feature gradient
SCALE_BLOCK, SCALE_PROGRAMS = 4096, 2048


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
