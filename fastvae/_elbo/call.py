"""What is known of a call before its numbers: whether kernels serve it, and the launch plans for its layouts.

A training loop calls with the same shapes, dtypes and options over and over. So all that follows from these, checks
included, is done once and found again by their key; what is left of the way to a kernel is some ten lines of Python.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._core import backend as _backend
from .._core.arrays import is_zero, pending, settled
from .._core.backend import unserved_state
from ..likelihoods import NAMES, UNIT_GAUSSIAN, LocationScale
from ..reference.elbo.formulas import Prior

DTYPES = (torch.float32, torch.float64, torch.bfloat16)  # of every backend; Triton has float16 as well
PLAIN = (Tensor, torch.nn.Parameter)


def unserved_tensors(dtypes: tuple[torch.dtype, ...], *tensors: Any) -> str | None:
    """Why not, for these tensors."""
    for t in tensors:
        if isinstance(t, Tensor):
            if t.dtype not in dtypes:
                return f"there is no kernel for {t.dtype}"
            if type(t) not in PLAIN:
                return f"{type(t).__name__} is no plain tensor"
    return None


def dtypes(t: Tensor, backend: str) -> tuple[torch.dtype, ...]:
    """Those of the kernels that would serve a tensor."""
    return (*DTYPES, torch.float16) if t.is_cuda or backend == "triton" else DTYPES


def unserved_posterior(backend: str, mu: Tensor, logvar: Tensor, prior: Prior | None = None) -> str | None:
    """Why not, for sampling and the KL of these tensors."""
    return unserved_tensors(dtypes(mu, backend), mu, logvar, *(prior or ()))


def unserved_likelihood(backend: str, x: Tensor, x_hat: Any, likelihood: Any) -> str | None:
    """Why not, for the log-likelihood of these."""
    if type(likelihood) not in NAMES:
        return f"there is no kernel for the likelihood {type(likelihood).__name__}"
    if x.requires_grad:
        return "x requires grad"
    return unserved_tensors((*dtypes(x, backend), torch.uint8, torch.bool), x, x_hat)


def layout(t: Tensor) -> tuple[Any, ...]:
    """All that a launch plan is made from; AttributeError for what is no tensor, TypeError for one to be `settled`."""
    if pending(t):
        raise TypeError
    return type(t), t.shape, t.is_contiguous() or t.stride(), t.dtype, t.layout, t.is_cpu or t.device


def likelihood_layout(likelihood: Any) -> tuple[Any, ...]:
    """The same of a likelihood; TypeError for one that has no kernels."""
    if type(likelihood) not in NAMES:
        raise TypeError
    if not isinstance(likelihood, LocationScale):
        return (type(likelihood),)
    scale = likelihood.scale if likelihood.log_scale is None else likelihood.log_scale
    return type(likelihood), likelihood.link, layout(scale) if isinstance(scale, Tensor) else None


def settled_prior(prior: Prior | None) -> Prior | None:
    """The same with tensors that kernels can read."""
    return None if prior is None else (settled(prior[0]), settled(prior[1]))


def settled_likelihood(likelihood: Any) -> Any:
    """The same with a scale that kernels can read."""
    log_scale = likelihood.log_scale if isinstance(likelihood, LocationScale) else None  # of a scale there is a log
    return (
        replace(likelihood, log_scale=settled(log_scale))
        if isinstance(log_scale, Tensor) and pending(log_scale)
        else likelihood
    )


KNOWN: dict[Any, Any] = {}  # launch plans and calls by their layouts
MOST_KNOWN = 1000  # a guard against shapes that never come again


def remember(key: Any, plan: Any) -> Any:
    """Have it for the layouts of that key, if there is one."""
    if key is not None:
        if len(KNOWN) >= MOST_KNOWN:
            KNOWN.clear()
        KNOWN[key] = plan
    return plan


class Call:
    """What is known of a call before any number is: its options, and the launch plans for tensors of its layouts.

    Calls of one layout share one, so nothing of a single call is kept in it.
    """

    __slots__ = (
        *("backend", "strict", "num_samples", "x_scale", "reduction", "terms"),
        *("latent", "density_module", "densities", "density", "likelihood", "scaled", "link", "plain"),
    )

    def __init__(
        self,
        backend: str,
        mu: Tensor,
        logvar: Tensor,
        prior: Prior | None,
        *,
        strict: bool = False,
        likelihood: Any = None,
        num_samples: int | None = None,
        x_scale: float | None = None,
        reduction: str = "none",
        terms: bool = True,
    ) -> None:
        self.backend, self.strict = backend, strict
        self.num_samples, self.x_scale, self.reduction = num_samples, x_scale, reduction
        self.terms = terms  # whether log-likelihood and raw KL are asked for
        self.latent = _backend.launcher("elbo.reparameterize", backend).Latent(
            mu, logvar, prior, num_samples, reduction
        )
        self.likelihood = NAMES.get(type(likelihood), "")
        self.scaled = isinstance(likelihood, LocationScale)
        self.link = likelihood.link if self.scaled else "identity"
        self.density_module: Any = None if likelihood is None else _backend.launcher("elbo.log_likelihood", backend)
        self.densities: dict[tuple[Any, ...], Any] = {}  # for the decoder's outputs
        self.density: Any = None  # for a tensor x_hat
        self.plain = False  # whether `PlainBound` serves one, in one pass

    @staticmethod
    def find(
        mu: Any, logvar: Any, x: Any, x_hat: Any, prior: Any, likelihood: Any, options: tuple[Any, ...]
    ) -> tuple[Any, "Call | None"]:
        """The key of such calls, and the call if there was one; no key where none can be made, or kernels cannot run.

        The errors left aside here are of arguments that are no tensors or no sensible options: checks speak of them.
        """
        if unserved_state():
            return None, None
        try:
            if mu.is_neg() or logvar.is_neg() or is_zero(mu) or is_zero(logvar):  # `pending`
                return None, None
            # The `layout` of each tensor, written out: to call it and join what it gives took 3 us more of a step's 60.
            key: tuple[Any, ...] = (
                options, type(mu), mu.shape, mu.is_contiguous() or mu.stride(), mu.dtype,
                mu.layout, mu.is_cpu or mu.device,
                type(logvar), logvar.shape, logvar.is_contiguous() or logvar.stride(), logvar.dtype,
                logvar.layout, logvar.is_cpu or logvar.device,
            )  # fmt: skip
            if x is not None:
                if x.is_neg() or is_zero(x):
                    return None, None
                key += (
                    type(x), x.shape, x.is_contiguous() or x.stride(), x.dtype, x.layout, x.is_cpu or x.device,
                    x.requires_grad, None if likelihood is UNIT_GAUSSIAN else likelihood_layout(likelihood),
                )  # fmt: skip
            if isinstance(x_hat, Tensor):
                if x_hat.is_neg() or is_zero(x_hat):
                    return None, None
                key += (
                    type(x_hat), x_hat.shape, x_hat.is_contiguous() or x_hat.stride(), x_hat.dtype,
                    x_hat.layout, x_hat.is_cpu or x_hat.device,
                )  # fmt: skip
            else:
                key += (callable(x_hat),)
            if prior is not None:
                key += tuple(map(layout, prior))
            return key, KNOWN.get(key)
        except (AttributeError, TypeError, RuntimeError):  # the last of sparse and nested tensors
            return None, None

    @property
    def density_options(self) -> tuple[Any, ...]:
        """Those of `density_formula`."""
        return self.x_scale, self.likelihood, self.link, self.num_samples, self.reduction

    def plan(self, x: Tensor, x_hat: Tensor, log_scale: Tensor | None) -> None:
        """Plan for a tensor x_hat."""
        self.density = density = self.plan_density(x, x_hat, log_scale)
        one_dtype = density.elbo_dtype is self.latent.compute
        self.plain = density.plain and self.latent.plain and one_dtype and log_scale is None and not self.terms

    def plan_density(self, x: Tensor, x_hat: Tensor, log_scale: Tensor | None) -> Any:
        """The plan of the log-likelihood."""
        return self.density_module.Density(
            x,
            x_hat,
            log_scale,
            likelihood=self.likelihood,
            link=self.link,
            num_samples=self.num_samples,
            reduction=self.reduction,
            x_scale=self.x_scale,
            elbo_dtype=self.latent.compute,
        )
