"""Launch plans: everything that follows from the layouts of a call's tensors. This part is shared by all backends.

The plans of a backend, `Density` and `Latent`, derive from these and add how its kernels are launched. A plan uses only
the shape, strides, dtype and device of the tensors it is built from; each launch takes tensors that agree in these.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .rows import Rows, compute_dtype, in_order, memory_order

LINKS = {"identity": 0, "sigmoid": 1, "tanh": 2}


class Likelihood(NamedTuple):
    """The constants of a likelihood. The function that computes it is defined by each backend.

    With r = (x - m) / scale, a kernel sums s = -|r|^power / power. The derivative with respect to log_scale is
    ``-(power s + 1)``, so that the gradient of a single log_scale follows from the same sums.
    """

    code: int
    power: int  # 0 if there is no scale
    constant: float  # the term of an element's log density that is added to s - log_scale


LIKELIHOODS = {
    "gaussian": Likelihood(0, 2, -0.5 * math.log(2 * math.pi)),
    "bernoulli": Likelihood(1, 0, 0.0),
    "laplace": Likelihood(2, 1, -math.log(2)),
}


def unit_of(reduction: str, N: int) -> float:
    """Return the factor of the sum over the batch, or 0 if each row has its own value."""
    return {"mean": 1 / N if N else 1.0, "sum": 1.0, "none": 0.0}[reduction]


class DensityPlan:
    """Plan of the log-likelihood. ``log_scale`` is None where it is a number rather than a tensor."""

    plain = False  # whether the backend can launch it by a shorter path

    def __init__(
        self,
        x: Tensor,
        x_hat: Tensor,
        log_scale: Tensor | None,
        *,
        likelihood: str,
        link: str,
        num_samples: int | None,
        reduction: str,
        x_scale: float | None,
        elbo_dtype: torch.dtype,
    ) -> None:
        N, D, K = x.shape[0], math.prod(x.shape[1:]), num_samples or 1
        self.N, self.K, self.D = N, K, D
        self.compute = compute_dtype(x, x_hat, log_scale)
        event = x.dim() - 1
        self.order = memory_order(x_hat, event)
        self.x, self.x_hat = Rows(x, x.dtype, self.order), Rows(x_hat, x_hat.dtype, self.order, num_samples is not None)
        # elements: whether log_scale has more than one element
        self.elements, self.s_row, self.scale_shape = False, 0, tuple(x_hat.shape)
        if log_scale is not None and log_scale.numel() != 1:
            self.elements, self.s_row = True, D
            lead = x_hat.dim() - event
            aligned = (1,) * (x_hat.dim() - log_scale.dim()) + tuple(log_scale.shape)
            if all(size == 1 for size in aligned[:lead]):  # one row of log_scale, shared by all rows
                self.s_row, self.scale_shape = 0, (*aligned[:lead], *x_hat.shape[lead:])
        code, self.power, constant = LIKELIHOODS[likelihood]
        self.variant, self.constant = (code, LINKS[link]), D * constant
        self.mean = unit_of(reduction, N)
        self.weight_factor = (self.mean or 1.0) / K
        self.x_scale = 1.0 if x_scale is None else float(x_scale)
        self.elbo_dtype = torch.promote_types(self.compute, elbo_dtype)
        self.log_lik = torch.empty((N,) if self.mean == 0 else (), dtype=self.compute, device=x_hat.device)
        self.elbo = torch.empty_like(self.log_lik, dtype=self.elbo_dtype)

    def scale_rows(self, log_scale: Tensor) -> Tensor:
        """Return log_scale as dense rows in the memory order of x_hat: one for each row of x_hat, or one for all."""
        return in_order(log_scale.expand(self.scale_shape), self.order).contiguous()

    def reduce_dlog_scale(self, gradient: Any, log_scale: Tensor, summed: bool) -> Tensor:
        """Convert a kernel's gradient to the shape, memory order and dtype of log_scale.

        If ``summed``, the first dim of the gradient holds partial sums over rows.
        """
        if not self.elements:
            return gradient.to(log_scale.dtype).view(log_scale.shape)
        gradient = in_order(gradient.sum(0) if summed else gradient, self.order, back=True)
        return gradient.sum_to_size(log_scale.shape).to(log_scale.dtype)


class LatentPlan:
    """Plan of sampling and the KL."""

    plain = False

    def __init__(
        self, mu: Tensor, logvar: Tensor, prior: tuple[Tensor, Tensor] | None, num_samples: int | None, reduction: str
    ) -> None:
        N, L = mu.shape[0], math.prod(mu.shape[1:])
        self.N, self.L, self.K, self.num_samples = N, L, num_samples or 1, num_samples
        # dtype of the elements, dtype of the arithmetic
        self.dtype, self.compute = (
            torch.promote_types(mu.dtype, logvar.dtype),
            compute_dtype(mu, logvar, *(prior or ())),
        )
        shared = [p.dim() < mu.dim() or p.shape[0] == 1 for p in prior or ()]
        self.prior_shapes = [(1 if one else N, *mu.shape[1:]) for one in shared]
        self.prior_rows = [0 if one else L for one in shared] or [0, 0]
        self.mean = unit_of(reduction, N)
        self.value = torch.empty((N,) if self.mean == 0 else (), dtype=self.compute, device=mu.device)

    def prior_operands(self, prior: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Return the prior's tensors with dense rows, on the device of mu, in the dtype of the arithmetic."""
        pairs = zip(prior, self.prior_shapes, strict=True)
        return [p.to(self.value.device, self.compute).expand(shape).contiguous() for p, shape in pairs]


def fit(gradients: list[Tensor], targets: tuple[Tensor, ...]) -> list[Tensor]:
    """Return each gradient in the shape and dtype of its target: dims in which the target was broadcast are summed."""
    return [
        g if g.shape == t.shape and g.dtype == t.dtype else g.sum_to_size(t.shape).to(t.dtype)
        for g, t in zip(gradients, targets, strict=True)
    ]
