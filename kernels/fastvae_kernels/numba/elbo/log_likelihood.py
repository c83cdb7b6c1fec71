"""Log-likelihood of x under a decoder's output, and its gradient: the launch plan. Numba.

The kernel, its formula and its traffic are in `likelihood_pass.py`, the log densities in `densities/`. Where rows lie
side by side and only their sum is requested, all are one row to the kernel.
Specification: fastvae/reference/elbo/formulas.py (log_likelihood), fastvae/reference/elbo/likelihoods.py
"""

from typing import Any

import torch
from torch import Tensor

from ...plans import DensityPlan
from ..language.buffers import allocator, scratch
from ..language.jit import Kernel
from ..language.memory import CODES
from ..language.threads import run
from .densities import NS_PER_ELEMENT
from .likelihood_pass import (
    CHUNK,
    ELEMENTS,
    ONE,
    PASS,
    SIZES,
    SUMMED,
    WRITTEN,
    make_pass,
)

ROW_BLOCKS = 16  # partial sums over rows of a per-feature gradient
PLAIN = ONE, True  # the key of the kernel with the gradient

# Where in a block a launch writes its own numbers.
X, H, S, S_ROW, BLOCK_ROWS, LOG_SCALE, CONSTANT = PASS.places("x h s s_row block_rows log_scale constant")
WEIGHT, WEIGHT_ROW, FACTOR = PASS.places("upstream.weight upstream.row upstream.factor")
PARTIAL, NEG_KL, ELBO, LOG_LIK = PASS.places("values.partial values.neg_kl values.elbo values.log_lik")
DH, DS, DLOG_SCALE = PASS.places("gradients.h gradients.s gradients.log_scale")


class Density(DensityPlan):
    """The log-likelihood for all x, x_hat and log_scale of one layout: what is known before any number is."""

    def __init__(self, x: Tensor, x_hat: Tensor, log_scale: Tensor | None, **options: Any) -> None:
        super().__init__(x, x_hat, log_scale, **options)
        self.form = ELEMENTS if self.elements else ONE
        self.as_it_is = self.x.as_it_is and self.x_hat.as_it_is
        self.plain = self.as_it_is and self.mean != 0 and not self.elements
        strides = self.x.stride, self.x_hat.stride
        if self.mean != 0 and not self.elements and strides == (self.D, self.D):
            # one row, if only the batch's sum is requested: 4096 x 16 takes 12 us so, and 30 row by row, on one thread
            self.N, self.D, self.constant = 1, self.N * self.D, self.N * self.constant
            strides = self.D, self.D
        self.chunks = max(1, -(-self.D // CHUNK))
        self.block_rows = max(1, CHUNK // self.D if self.D else 1)
        self.summed_rows = max(1, -(-self.N // ROW_BLOCKS))
        self.sums, self.units = self.N * self.chunks, self.units_of(self.block_rows)
        sizes = SIZES.pack(
            N=self.N, K=self.K, D=self.D, chunks=self.chunks, x_row=strides[0], h_row=strides[1],
            x_scale=self.x_scale, mean=self.mean, power=self.power,
        )  # fmt: skip
        self.block = PASS.blank(sizes=sizes)  # each launch copies it and writes its addresses, 0 where there are none
        self.block[BLOCK_ROWS], self.block[FACTOR] = self.block_rows, self.weight_factor
        self.kernels: dict[tuple[int, bool], Kernel] = {}
        of_scale = log_scale.dtype if self.elements and log_scale is not None else x_hat.dtype
        dtypes = x.dtype, x_hat.dtype, of_scale, self.compute, self.elbo_dtype
        self.codes = tuple(CODES[dtype] for dtype in dtypes)
        self.work = x_hat.numel() * (1.0 if self.elements else NS_PER_ELEMENT.get(self.variant, 1.0))
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
        form, units, ds = self.form, self.units, None
        dlog_scale = dx_hat = log_lik = None
        block = self.block.copy()
        block[X], block[H] = x.data_ptr(), h.data_ptr()
        block[PARTIAL], block[CONSTANT] = scratch(self.sums), self.constant
        if form == ONE:
            block[LOG_SCALE] = number = float(log_scale)
            block[CONSTANT] -= self.D * number
            if need_dlog_scale:
                dlog_scale = torch.empty((), dtype=torch.float64, device="cpu")
                block[DLOG_SCALE] = dlog_scale.data_ptr()
        elif isinstance(log_scale, Tensor):
            s, block[S_ROW] = self.scale_rows(log_scale), self.s_row
            block[S] = s.data_ptr()
            if need_dlog_scale and self.s_row == 0:
                form, block[BLOCK_ROWS], units = SUMMED, self.summed_rows, self.units_of(self.summed_rows)
                ds = s.new_zeros((-(-self.N // self.summed_rows), *s.shape))
            elif need_dlog_scale:
                form, ds = WRITTEN, torch.empty_like(s)
            block[DS] = 0 if ds is None else ds.data_ptr()
        if isinstance(weight, Tensor):
            weight = weight.to(self.compute).contiguous()  # kept alive here
            block[WEIGHT], block[WEIGHT_ROW] = weight.data_ptr(), weight.dim()
        elif weight is not None:
            block[FACTOR] *= weight
        if gradient:
            dx_hat = self.empty_gradient(x_hat)
            block[DH] = dx_hat.data_ptr()
        if neg_kl is not None:
            if elbo is None:
                elbo = torch.empty_like(self.elbo)
            if want_log_lik:
                log_lik = torch.empty_like(self.log_lik)
                block[LOG_LIK] = log_lik.data_ptr()
            if neg_kl.dtype != elbo.dtype or not neg_kl.is_contiguous():
                neg_kl = neg_kl.to(elbo.dtype).contiguous()
            block[NEG_KL], block[ELBO] = neg_kl.data_ptr(), elbo.data_ptr()
        run(self.kernels.get((form, gradient)) or self.kernel(form, gradient), block, units, self.work)
        if need_dlog_scale and isinstance(log_scale, Tensor):
            dlog_scale = self.reduce_dlog_scale(dlog_scale if ds is None else ds, log_scale, form == SUMMED)
        return elbo if neg_kl is not None else None, log_lik, dx_hat, dlog_scale

    def evaluate_plain(self, x: Tensor, x_hat: Tensor, log_scale: float, elbo: int) -> Tensor:
        """`evaluate` in half as much Python, where `plain`: add to the KL term at an address, give -dELBO/dx_hat."""
        dx_hat = self.empty_gradient(x_hat)
        block = self.block.copy()
        block[X], block[H], block[DH] = x.data_ptr(), x_hat.data_ptr(), dx_hat.data_ptr()
        block[PARTIAL], block[NEG_KL], block[ELBO] = scratch(self.sums), elbo, elbo
        block[FACTOR], block[LOG_SCALE] = -self.weight_factor, log_scale
        block[CONSTANT] = self.constant - self.D * log_scale
        run(self.kernels.get(PLAIN) or self.kernel(*PLAIN), block, self.units, self.work)
        return dx_hat

    def units_of(self, rows: int) -> int:
        """How many units there are of so many rows."""
        return max(1, -(-self.N // rows)) * self.chunks

    def kernel(self, form: int, gradient: bool) -> Kernel:
        """The kernel, to be found in ``kernels`` next time."""
        self.kernels[form, gradient] = made = make_pass(*self.codes, *self.variant, form, gradient)
        return made


def scale_(gradients: tuple[Tensor | None, ...], upstream: Tensor, unit: float) -> tuple[Tensor | None, ...]:
    """Gradients for a 0-d upstream from those for the upstream ``unit``, in place; untouched where the two agree."""
    if (number := upstream.item() / unit) != 1:
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(number)
    return gradients
