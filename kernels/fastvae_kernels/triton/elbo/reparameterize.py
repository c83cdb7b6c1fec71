"""Draws from a diagonal Gaussian and its KL to the prior, and the way back: the launch plan. Triton.

The kernels, their formulas and their traffic: draws and KL are in `sample_pass.py`, the KL's sums for free bits in
`kl_columns.py`, gradients in `latent_backward.py`.
Specification: fastvae/reference/elbo/formulas.py (reparameterize, kl_elements, kl_penalty), noise.py
"""

import torch
from torch import Tensor

from ...plans import LatentPlan, fit
from ...rows import Rows
from ..language.launch import as_pointer, launch
from ..language.tiles import TYPES, counters, tile, vector_width
from .kl_columns import COLUMN_ROWS, COLUMNS, ROW_BLOCKS, kl_columns_kernel
from .latent_backward import reparameterize_bwd_kernel
from .sample_pass import reparameterize_fwd_kernel

TILE_BYTES = 8192  # of mu in float32 and in float64; 2048 elements, 8 for each thread, of what is narrower


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
        """Launch: draw if there is a seed, and compute the KL if requested, raw as well as in final units on request.

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
