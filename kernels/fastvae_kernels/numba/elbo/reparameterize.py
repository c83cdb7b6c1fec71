"""Sampling from q(z|x) = N(mu, e^logvar) and its KL to the prior, and the way back: the launch plan. Numba.

The kernels, their formulas and their traffic: draws are in `sample_pass.py`, the KL without draws in `kl_pass.py`, its
sums for free bits in `kl_columns.py`, gradients in `latent_backward.py`. Each is compiled for what is asked of it.
Specification: fastvae/reference/elbo/formulas.py (reparameterize, kl_elements), fastvae/reference/elbo/noise.py
"""

import torch
from torch import Tensor

from ...plans import LatentPlan, fit
from ...rows import Rows
from ..language.buffers import allocator, scratch
from ..language.jit import Kernel
from ..language.memory import CODES
from ..language.threads import run
from .kl import EACH, NO_UPSTREAM, NUMBER
from .kl_columns import COLUMN_SUMS, COLUMNS, make_columns
from .kl_pass import make_kl
from .latent_backward import BACKWARD, MANY, NONE, ONE, make_backward
from .pieces import BATCH, FORWARD, INPUTS, KEPT, NO_KL, NO_SUMS, PIECE, PRIOR, ROWS, SIZES, STANDARD
from .sample_pass import make_sample

NS_SAMPLE, NS_KL = 1.5, 0.6  # of one element on one thread
PLAIN = False, STANDARD, BATCH, 1  # the key of the kernel of the KL and its gradients

# Where in the block of a launch its own numbers are written: of those forward, and of those back.
OPERANDS = "inputs.mu inputs.logvar inputs.mu_p inputs.logvar_p"
MU, LOGVAR, MU_P, LOGVAR_P = FORWARD.places(OPERANDS)
Z, DMU, DLOGVAR, SEED, FIRST_ROW = FORWARD.places("z dmu dlogvar noise.seed noise.first_row")
NEG_KL, KL, PARTIAL, MASK, BETA, FLOOR = FORWARD.places(
    "values.neg_kl values.kl values.partial values.mask values.beta values.floor"
)
B_MU, B_LOGVAR, B_MU_P, B_LOGVAR_P = BACKWARD.places(OPERANDS)
B_DZ, B_SEED, B_FIRST_ROW, B_MASK = BACKWARD.places("dz noise.seed noise.first_row mask")
B_KEPT, B_KEPT_ROW, B_KEPT_FACTOR = BACKWARD.places("kept.weight kept.row kept.factor")
B_RAW, B_RAW_ROW, B_RAW_FACTOR = BACKWARD.places("raw.weight raw.row raw.factor")
B_DMU, B_DLOGVAR, B_DMU_P, B_DLOGVAR_P = BACKWARD.places("dmu dlogvar dmu_p dlogvar_p")


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
        pieces = max(1, -(-L // piece))
        self.units, self.sums = max(1, -(-N // group)) * pieces, 2 * N * pieces
        mu_p_row, logvar_p_row = self.prior_rows
        self.sizes = SIZES.pack(
            N=N, L=L, K=self.K, group=group, piece=piece, width=-(-piece // 4) * 4, pieces=pieces, mean=self.mean,
            mu_row=self.mu.stride, logvar_row=self.logvar.stride, mu_p_row=mu_p_row, logvar_p_row=logvar_p_row,
        )  # fmt: skip
        self.block, self.backward_block = FORWARD.blank(sizes=self.sizes), BACKWARD.blank(sizes=self.sizes)
        self.codes = CODES[self.dtype], CODES[self.compute]
        self.kl = STANDARD if prior is None else PRIOR
        self.kernels: dict[tuple[bool, int, int, int], Kernel] = {}  # whether they draw, KL, sums, whether gradients
        self.ns_sample, self.ns_kl = N * L * NS_SAMPLE * self.K, N * L * NS_KL
        self.empty_gradient, self.empty_prior = allocator(mu, self.dtype), allocator(mu, self.compute)
        self.empty_z = self.empty_gradient if num_samples is None else allocator(mu, self.dtype, draws=num_samples)

    def operands(self, mu: Tensor, logvar: Tensor, prior: tuple[Tensor, Tensor] | None) -> tuple[Tensor, ...]:
        """The tensors with dense rows, to be kept alive."""
        if not self.as_they_are:
            mu, logvar = self.mu.of(mu), self.logvar.of(logvar)
        return (mu, logvar) if prior is None else (mu, logvar, *self.prior_operands(prior))

    def forward(
        self, mu: Tensor, logvar: Tensor, prior: tuple[Tensor, Tensor] | None, seed: Tensor | None,
        beta: Tensor | float = 1.0, free_bits: Tensor | float = 0.0, neg_kl: Tensor | None = None,
        want_kl: bool = True, want_raw: bool = True, want_gradients: bool = False, first_row: int = 0,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, tuple[Tensor, Tensor] | None]:  # fmt: skip
        """Launch: draw if there is a seed, and compute the KL if requested, raw as well as in final units on request.

        ``neg_kl`` is where to write it in final units. Gives z; the KL term of the ELBO, -beta KL with its floor, and
        the raw KL, both reduced; the latent elements kept; and the gradients of minus the KL term in mu and logvar,
        where they could be had in passing, without draws.
        """
        block, operands = self.block.copy(), self.operands(mu, logvar, prior)
        block[MU], block[LOGVAR] = operands[0].data_ptr(), operands[1].data_ptr()
        if prior is not None:
            block[MU_P], block[LOGVAR_P] = operands[2].data_ptr(), operands[3].data_ptr()
        z = kl = kept = gradients = None
        form, sums, work = NO_KL, NO_SUMS, 0.0
        if want_kl:
            form, sums, work = self.kl, ROWS if self.mean == 0 else BATCH, self.ns_kl
            if neg_kl is None:
                neg_kl = torch.empty_like(self.value)
            block[NEG_KL], block[PARTIAL], block[BETA] = neg_kl.data_ptr(), scratch(self.sums), float(beta)
            if want_raw:
                kl = torch.empty_like(self.value)
                block[KL] = kl.data_ptr()
            if free_bits := float(free_bits):
                kept, sums = self.kept(operands, free_bits), KEPT
                block[FLOOR], block[MASK] = free_bits * float(self.L - kept.sum()), kept.data_ptr()
            elif want_gradients and seed is None and prior is None and beta != 0 and not self.mixed:
                gradients = self.empty_gradient(mu), self.empty_gradient(mu)
                block[DMU], block[DLOGVAR] = gradients[0].data_ptr(), gradients[1].data_ptr()
        if seed is not None:
            z, work = self.empty_z(mu), work + self.ns_sample
            block[Z], block[SEED], block[FIRST_ROW] = z.data_ptr(), int(seed), first_row
        key = seed is not None, form, sums, 0 if gradients is None else 1
        run(self.kernels.get(key) or self.kernel(*key), block, self.units, work)
        return z, neg_kl, kl, kept, gradients

    def forward_plain(self, mu: Tensor, logvar: Tensor, beta: float, neg_kl: int) -> tuple[Tensor, Tensor]:
        """`forward` in half as much Python, where `plain`: the KL term to an address, and the gradients of minus it."""
        dmu, dlogvar = self.empty_gradient(mu), self.empty_gradient(mu)
        block = self.block.copy()
        block[MU], block[LOGVAR] = mu.data_ptr(), logvar.data_ptr()
        block[DMU], block[DLOGVAR] = dmu.data_ptr(), dlogvar.data_ptr()
        block[NEG_KL], block[PARTIAL], block[BETA] = neg_kl, scratch(self.sums), beta
        run(self.kernels.get(PLAIN) or self.kernel(*PLAIN), block, self.units, self.ns_kl)
        return dmu, dlogvar

    def kernel(self, sample: bool, kl_form: int, sums: int, gradients: int) -> Kernel:
        """The kernel, kept for the next call."""
        made = make_sample(*self.codes, kl_form, sums) if sample else make_kl(*self.codes, kl_form, sums, gradients)
        self.kernels[sample, kl_form, sums, gradients] = made
        return made

    def kept(self, operands: tuple[Tensor, ...], free_bits: float) -> Tensor:
        """Which latent elements have a batch mean above lambda, ``[L]`` of bool."""
        columns = torch.empty(self.L, dtype=torch.float64, device="cpu")
        if self.L:
            names = "mu", "logvar", "mu_p", "logvar_p"
            addresses = dict.fromkeys(names, 0) | {n: t.data_ptr() for n, t in zip(names, operands, strict=False)}
            block = COLUMN_SUMS.pack(sums=columns.data_ptr(), inputs=INPUTS.pack(**addresses), sizes=self.sizes)
            run(make_columns(*self.codes, self.kl), block, -(-self.L // COLUMNS), self.ns_kl)
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
        block, operands = self.backward_block.copy(), self.operands(mu, logvar, prior)
        block[B_MU], block[B_LOGVAR] = operands[0].data_ptr(), operands[1].data_ptr()
        mean, form, draws, upstream = self.mean or 1.0, NO_KL, NONE, NO_UPSTREAM
        if dneg_kl is not None:
            form, dneg_kl = self.kl, dneg_kl.to(self.compute).contiguous()
            upstream = EACH if kept is not None or dneg_kl.dim() else NUMBER
            block[B_KEPT], block[B_KEPT_ROW], block[B_KEPT_FACTOR] = (
                dneg_kl.data_ptr(), dneg_kl.dim(), -float(beta) * mean,
            )  # fmt: skip
        if dkl is not None:
            form, dkl = self.kl, dkl.to(self.compute).contiguous()
            upstream = EACH if upstream == EACH or dkl.dim() else NUMBER
            block[B_RAW], block[B_RAW_ROW], block[B_RAW_FACTOR] = dkl.data_ptr(), dkl.dim(), mean
        if kept is not None:
            block[B_MASK] = kept.data_ptr()
        if dz is not None:
            draws, dz = MANY if self.K > 1 else ONE, dz.to(self.dtype).contiguous()
            block[B_DZ], block[B_SEED], block[B_FIRST_ROW] = dz.data_ptr(), 0 if seed is None else int(seed), first_row
        gradients = [self.empty_gradient(mu), self.empty_gradient(mu)]
        block[B_DMU], block[B_DLOGVAR] = gradients[0].data_ptr(), gradients[1].data_ptr()
        if prior is not None:
            of_prior = [self.empty_prior(mu), self.empty_prior(mu)]
            block[B_MU_P], block[B_LOGVAR_P] = operands[2].data_ptr(), operands[3].data_ptr()
            block[B_DMU_P], block[B_DLOGVAR_P] = of_prior[0].data_ptr(), of_prior[1].data_ptr()
            gradients += of_prior if form == PRIOR else [gradient.zero_() for gradient in of_prior]
        work = (0.0 if form == NO_KL else self.ns_kl) + (0.0 if dz is None else self.ns_sample)
        run(make_backward(*self.codes, form, draws, upstream), block, self.units, work)
        return fit(gradients, (mu, logvar, *(prior or ())))
