"""What follows from the layouts and options of a call: whether kernels support it, and its launch plans.

A training loop makes the same call, with the same shapes, dtypes and options, many times. Everything that follows from
these, argument checks included, is done once and cached; after that, some ten lines of Python run before the kernel.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._core import backend as _backend
from .._core.arrays import is_lazy, is_zero, materialize
from .._core.backend import unsupported_state
from ..likelihoods import NAMES, UNIT_GAUSSIAN, LocationScale
from ..reference.elbo.formulas import Prior

DTYPES = (torch.float32, torch.float64, torch.bfloat16)  # of both kernel backends; Triton supports float16 too
PLAIN = (Tensor, torch.nn.Parameter)


def unsupported_tensors(dtypes: tuple[torch.dtype, ...], *tensors: Any) -> str | None:
    """Why kernels do not support these tensors, or None."""
    for t in tensors:
        if isinstance(t, Tensor):
            if t.dtype not in dtypes:
                return f"there is no kernel for {t.dtype}"
            if type(t) not in PLAIN:
                return f"{type(t).__name__} is not a plain tensor"
    return None


def dtypes(t: Tensor, backend: str) -> tuple[torch.dtype, ...]:
    """The dtypes that the backend's kernels support, on the device of a tensor."""
    return (*DTYPES, torch.float16) if t.is_cuda or backend == "triton" else DTYPES


def unsupported_posterior(backend: str, mu: Tensor, logvar: Tensor, prior: Prior | None = None) -> str | None:
    """Why kernels do not support sampling and the KL for these tensors, or None."""
    return unsupported_tensors(dtypes(mu, backend), mu, logvar, *(prior or ()))


def unsupported_likelihood(backend: str, x: Tensor, x_hat: Any, likelihood: Any) -> str | None:
    """Why kernels do not support this log-likelihood, or None."""
    if type(likelihood) not in NAMES:
        return f"there is no kernel for the likelihood {type(likelihood).__name__}"
    if x.requires_grad:
        return "x requires grad"
    return unsupported_tensors((*dtypes(x, backend), torch.uint8, torch.bool), x, x_hat)


def layout(t: Tensor) -> tuple[Any, ...]:
    """All that a launch plan depends on.

    AttributeError if ``t`` is not a tensor, TypeError if it must be materialized first.
    """
    if is_lazy(t):
        raise TypeError
    return type(t), t.shape, t.is_contiguous() or t.stride(), t.dtype, t.layout, t.is_cpu or t.device


def likelihood_layout(likelihood: Any) -> tuple[Any, ...]:
    """The same for a likelihood; TypeError if there is no kernel for it."""
    if type(likelihood) not in NAMES:
        raise TypeError
    if not isinstance(likelihood, LocationScale):
        return (type(likelihood),)
    scale = likelihood.scale if likelihood.log_scale is None else likelihood.log_scale
    return type(likelihood), likelihood.link, layout(scale) if isinstance(scale, Tensor) else None


def materialize_prior(prior: Prior | None) -> Prior | None:
    """The prior, with tensors whose memory holds their values."""
    return None if prior is None else (materialize(prior[0]), materialize(prior[1]))


def materialize_likelihood(likelihood: Any) -> Any:
    """The likelihood, with a log_scale whose memory holds its values; a scale is read through its logarithm."""
    log_scale = likelihood.log_scale if isinstance(likelihood, LocationScale) else None
    return (
        replace(likelihood, log_scale=materialize(log_scale))
        if isinstance(log_scale, Tensor) and is_lazy(log_scale)
        else likelihood
    )


CACHE: dict[Any, Any] = {}  # launch plans and calls, by layouts and options
CACHE_SIZE = 1000  # emptied when full, so that shapes which never recur do not accumulate


def add_to_cache(key: Any, plan: Any) -> Any:
    """Cache a plan under its key, unless the key is None, and return the plan."""
    if key is not None:
        if len(CACHE) >= CACHE_SIZE:
            CACHE.clear()
        CACHE[key] = plan
    return plan


class Call:
    """The options of a call, and the launch plans for its layouts.

    It is shared by all calls with the same layouts and options, so it holds no tensor values.
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
        self.terms = terms  # whether to return the log-likelihood and the raw KL as well
        self.latent = _backend.kernel_module("elbo.reparameterize", backend).Latent(
            mu, logvar, prior, num_samples, reduction
        )
        self.likelihood = NAMES.get(type(likelihood), "")
        self.scaled = isinstance(likelihood, LocationScale)
        self.link = likelihood.link if self.scaled else "identity"
        self.density_module: Any = (
            None if likelihood is None else _backend.kernel_module("elbo.log_likelihood", backend)
        )
        self.densities: dict[tuple[Any, ...], Any] = {}  # plans for the outputs of a decoder, by layout
        self.density: Any = None  # plan for a tensor x_hat
        self.plain = False  # whether `PlainBound` supports a tensor x_hat

    @staticmethod
    def find(
        mu: Any, logvar: Any, x: Any, x_hat: Any, prior: Any, likelihood: Any, options: tuple[Any, ...]
    ) -> tuple[Any, "Call | None"]:
        """The cache key of a call, and the cached `Call`, each None if there is none.

        There is no key if kernels cannot run now, or if an argument is invalid; the argument checks report that.
        """
        if unsupported_state():
            return None, None
        try:
            if mu.is_neg() or logvar.is_neg() or is_zero(mu) or is_zero(logvar):  # `is_lazy`, inlined
                return None, None
            # `layout` of each tensor, inlined: calling it and joining the results took 3 us more of a step's 60 us.
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
            return key, CACHE.get(key)
        except (AttributeError, TypeError, RuntimeError):  # sparse and nested tensors raise RuntimeError
            return None, None

    @property
    def density_options(self) -> tuple[Any, ...]:
        """The options of `density_formula`, in its order."""
        return self.x_scale, self.likelihood, self.link, self.num_samples, self.reduction

    def plan(self, x: Tensor, x_hat: Tensor, log_scale: Tensor | None) -> None:
        """Make the launch plan for a tensor x_hat."""
        self.density = density = self.plan_density(x, x_hat, log_scale)
        one_dtype = density.elbo_dtype is self.latent.compute
        self.plain = density.plain and self.latent.plain and one_dtype and log_scale is None and not self.terms

    def plan_density(self, x: Tensor, x_hat: Tensor, log_scale: Tensor | None) -> Any:
        """A launch plan for the log-likelihood."""
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
