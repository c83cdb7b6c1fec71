"""The ELBO's kernels as torch operations: what is saved, what is recomputed, whose gradient is whose.

Two autograd Functions, so that asking for one gradient does not spend the other's buffer:

    SampleAndKL     mu, logvar, prior, seed         ->  z, -beta KL (in final units), raw KL
    LogLikelihood   x, x_hat, log_scale, -beta KL   ->  ELBO, log-likelihood

One pass: where the upstream gradient will most likely be that of a loss, -ELBO, `LogLikelihood` forms dx_hat while it
has x and x_hat at hand, and backward hands that buffer over, scaled if the upstream is another; a second backward finds
it gone and recomputes. The noise is never stored: it is a function of the seed. Under ``create_graph``, and for batched
gradients, the reference's formulas are differentiated instead.
Launchers are functions of ``fastvae_kernels.<backend>.{reparameterize, log_likelihood}``, imported at the first call.
"""

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import _backend
from ..likelihoods import Bernoulli, Gaussian
from ..reference.elbo import ElboTerms, Prior, as_seed, decode, kl_penalty, reduce_batch
from ..reference.elbo import log_likelihood as log_likelihood_formula
from ..reference.elbo import reparameterize as reparameterize_formula

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
PLAIN = (Tensor, torch.nn.Parameter)


@dataclass(frozen=True, slots=True)
class Options:
    """What is no tensor, or none that gets a gradient."""

    reduction: str = "none"
    num_samples: int | None = None
    beta: Tensor | float = 1.0
    free_bits: Tensor | float = 0.0
    x_scale: float | None = None
    likelihood: Gaussian | Bernoulli | None = None
    log_scale: float = 0.0
    kl: bool = True
    first_row: int = 0


class SampleAndKL(Function):
    """(mu, logvar, mu_p, logvar_p, seed) -> (z, neg_kl, kl); z is None without a seed."""

    @staticmethod
    def forward(
        ctx: Any,
        mu: Tensor,
        logvar: Tensor,
        mu_p: Tensor | None,
        logvar_p: Tensor | None,
        seed: Tensor | None,
        launcher: ModuleType,
        options: Options,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """One launch."""
        o = options
        prior = None if mu_p is None or logvar_p is None else (mu_p, logvar_p)
        z, neg_kl, kl, kept = launcher.forward(
            mu,
            logvar,
            prior,
            seed,
            num_samples=o.num_samples,
            beta=o.beta,
            free_bits=o.free_bits,
            reduction=o.reduction,
            want_kl=o.kl,
            first_row=o.first_row,
        )
        ctx.save_for_backward(mu, logvar, mu_p, logvar_p, seed, kept)
        ctx.launcher, ctx.options = launcher, options
        ctx.set_materialize_grads(False)
        return z, neg_kl, kl

    @staticmethod
    def backward(ctx: Any, dz: Tensor | None, dneg_kl: Tensor | None, dkl: Tensor | None) -> Any:
        """One launch, which makes the noise again; or the formula."""
        mu, logvar, mu_p, logvar_p, seed, kept = ctx.saved_tensors
        o: Options = ctx.options
        if dz is None and dneg_kl is None and dkl is None:
            return (None,) * 7
        prior = None if mu_p is None else (mu_p, logvar_p)
        if needs_formula(dz, dneg_kl, dkl):
            with torch.enable_grad():
                mu, logvar, mu_p, logvar_p = aliases(mu, logvar, mu_p, logvar_p)
                prior = None if mu_p is None else (mu_p, logvar_p)
                penalty, kl = kl_penalty(mu, logvar, prior, o.beta, o.free_bits)
                outputs = [reduce_batch(t, o.reduction) for t in (-penalty, kl)]
                if seed is not None:
                    k, n = o.num_samples, o.first_row
                    outputs.append(reparameterize_formula(mu, logvar, num_samples=k, seed=seed, first_row=n))
            return *differentiate(outputs, (dneg_kl, dkl, dz), (mu, logvar, mu_p, logvar_p)), None, None, None
        gradients = ctx.launcher.backward(
            mu,
            logvar,
            prior,
            seed,
            kept,
            dz,
            dneg_kl,
            dkl,
            num_samples=o.num_samples,
            beta=o.beta,
            reduction=o.reduction,
            first_row=o.first_row,
        )
        return *gradients, *(None,) * (7 - len(gradients))


class LogLikelihood(Function):
    """(x, x_hat, log_scale, neg_kl) -> (elbo, log_lik), where elbo = log_lik + neg_kl."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        x_hat: Tensor,
        log_scale: Tensor | None,
        neg_kl: Tensor,
        launcher: ModuleType,
        options: Options,
        one_pass: bool,
    ) -> tuple[Tensor, Tensor]:
        """One launch."""
        weight = torch.full((), -1.0) if one_pass else None
        elbo, log_lik, dx_hat, dlog_scale = launch(launcher, options, x, x_hat, log_scale, neg_kl, weight)
        # The buffer is no saved tensor: backward must be able to give it away. It holds the gradient of -ELBO.
        ctx.buffer = (dx_hat, dlog_scale) if one_pass else None
        ctx.save_for_backward(x, x_hat, log_scale)
        ctx.launcher, ctx.options, ctx.neg_kl_dtype = launcher, options, neg_kl.dtype
        ctx.set_materialize_grads(False)
        return elbo, log_lik

    @staticmethod
    def backward(ctx: Any, delbo: Tensor | None, dlog_lik: Tensor | None) -> Any:
        """Hand the buffer over; recompute if there is none, by the formula if that must be differentiable."""
        upstream = dlog_lik if delbo is None else delbo if dlog_lik is None else delbo + dlog_lik
        if upstream is None:
            return (None,) * 7
        dneg_kl = None if delbo is None else delbo.to(ctx.neg_kl_dtype)
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return None, None, None, dneg_kl, None, None, None
        x, x_hat, log_scale = ctx.saved_tensors
        buffer, ctx.buffer = ctx.buffer, None
        if needs_formula(upstream):
            with torch.enable_grad():
                x_hat, log_scale = aliases(x_hat, log_scale)
                log_lik = reduced_log_likelihood(ctx.options, x, x_hat, log_scale)
            gradients = differentiate([log_lik], (upstream,), (x_hat, log_scale))
        elif buffer is not None:
            gradients = ctx.launcher.scale_(buffer, -upstream)
        else:
            gradients = launch(ctx.launcher, ctx.options, x, x_hat, log_scale, None, upstream)[2:]
        return None, *gradients, dneg_kl, None, None, None


def launch(
    launcher: ModuleType,
    options: Options,
    x: Tensor,
    x_hat: Tensor,
    log_scale: Tensor | None,
    neg_kl: Tensor | None,
    weight: Tensor | None,
) -> Any:
    """Call the log-likelihood launcher: values if there is a KL term to add, gradients if there is a weight."""
    likelihood = options.likelihood
    return launcher.log_likelihood(
        x,
        x_hat,
        options.log_scale if log_scale is None else log_scale,
        options.x_scale,
        neg_kl,
        weight,
        likelihood="gaussian" if isinstance(likelihood, Gaussian) else "bernoulli",
        link=likelihood.link if isinstance(likelihood, Gaussian) else "identity",
        num_samples=options.num_samples,
        reduction=options.reduction,
        need_dlog_scale=log_scale is not None,
    )


def reduced_log_likelihood(options: Options, x: Tensor, x_hat: Tensor, log_scale: Tensor | None) -> Tensor:
    """The reduced log-likelihood by the reference's formula."""
    likelihood = options.likelihood
    if isinstance(likelihood, Gaussian) and log_scale is not None:
        likelihood = replace(likelihood, scale=1.0, log_scale=log_scale)
    k, scale = options.num_samples, options.x_scale
    log_lik = log_likelihood_formula(x, x_hat, likelihood.log_prob, num_samples=k, x_scale=scale)  # type: ignore[union-attr]
    return reduce_batch(log_lik, options.reduction)


def needs_formula(*upstreams: Tensor | None) -> bool:
    """Whether the gradient must itself be differentiable, or an upstream is a batch of gradients."""
    batched, legacy = torch._C._functorch.is_batchedtensor, torch._C._functorch.is_legacy_batchedtensor
    return torch.is_grad_enabled() or any(batched(u) or legacy(u) for u in upstreams if u is not None)


def aliases(*tensors: Any) -> list[Any]:
    """A view of each tensor, so that a tensor handed in twice has a gradient for each place it stands in."""
    return [t.view_as(t) if isinstance(t, Tensor) and t.requires_grad else t for t in tensors]


def differentiate(outputs: list[Tensor], upstreams: tuple[Tensor | None, ...], inputs: tuple[Any, ...]) -> list[Any]:
    """The gradient of each input, None for what is no tensor or has none; differentiable where grad mode is on."""
    pairs = [(out, up) for out, up in zip(outputs, upstreams, strict=False) if up is not None and out.requires_grad]
    wanted = [t for t in inputs if isinstance(t, Tensor) and t.requires_grad]
    found = torch.autograd.grad(
        [out for out, _ in pairs],
        wanted,
        [up.to(out.dtype) for out, up in pairs],
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,
    )
    by_id = {id(t): g for t, g in zip(wanted, found, strict=True)}
    return [by_id.get(id(t)) for t in inputs]


def unserved(*tensors: Any) -> str | None:
    """Why kernels cannot take a call on these tensors as things stand, in a few words; None if they can."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return "the call is being traced"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "the call is under a torch.func transform"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode AD is active"
    for t in tensors:
        if isinstance(t, Tensor) and type(t) not in PLAIN:
            return f"{type(t).__name__} is no plain tensor"
    return None


def unserved_posterior(mu: Tensor, logvar: Tensor, prior: Prior | None = None) -> str | None:
    """Why not, for sampling and the KL."""
    for t in (mu, logvar, *(prior or ())):
        if t.dtype not in DTYPES:
            return f"there is no kernel for {t.dtype}"
    return unserved(mu, logvar, *(prior or ()))


def unserved_likelihood(x: Tensor, x_hat: Any, likelihood: Any) -> str | None:
    """Why not, for the log-likelihood."""
    if type(likelihood) not in (Gaussian, Bernoulli):
        return f"there is no kernel for the likelihood {type(likelihood).__name__}"
    if x.requires_grad:
        return "x requires grad"
    for t in (x, x_hat):
        if isinstance(t, Tensor) and t.dtype not in (*DTYPES, torch.uint8, torch.bool):
            return f"there is no kernel for {t.dtype}"
    return unserved(x, x_hat)


def elbo_terms(
    backend: str,
    strict: bool,
    x: Tensor,
    x_hat: Any,
    mu: Tensor,
    logvar: Tensor,
    *,
    likelihood: Any,
    prior: Prior | None,
    seed: Tensor | int | None,
    **options: Any,
) -> ElboTerms:
    """`fastvae.elbo_terms` on the kernels of a backend. Its arguments are checked; ``strict`` forbids the reference."""
    o = Options(**options)
    decoder = None if isinstance(x_hat, Tensor) else x_hat
    seed = None if decoder is None else as_seed(seed, mu.device)
    latent = _backend.launcher("reparameterize", backend)
    z, neg_kl, kl = SampleAndKL.apply(mu, logvar, *(prior or (None, None)), seed, latent, o)
    if decoder is not None:
        x_hat, decoded_scale = decode(decoder, z, o.num_samples)
        if decoded_scale is not None:
            likelihood = likelihood.with_log_scale(decoded_scale)
    scale = likelihood.get_log_scale() if isinstance(likelihood, Gaussian) else 0.0
    log_scale, number = (scale, 0.0) if isinstance(scale, Tensor) else (None, scale)
    o = replace(o, likelihood=likelihood, log_scale=number)
    if reason := unserved_likelihood(x, x_hat, likelihood):  # the decoder's output is in a dtype that has no kernel
        if strict:
            raise _backend.BackendError(f"backend={backend!r} cannot serve elbo: {reason}")
        log_lik = reduced_log_likelihood(o, x, x_hat, log_scale)
        return ElboTerms(log_lik + neg_kl, log_lik, kl)
    one_pass = (
        torch.is_grad_enabled()
        and x_hat.requires_grad
        and o.reduction != "none"
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    )
    density = _backend.launcher("log_likelihood", backend)
    elbo, log_lik = LogLikelihood.apply(x, x_hat, log_scale, neg_kl, density, o, one_pass)
    return ElboTerms(elbo, log_lik, kl)


def reparameterize(
    backend: str, mu: Tensor, logvar: Tensor, *, num_samples: int | None, seed: Tensor | int | None
) -> Tensor:
    """`fastvae.reparameterize` on the kernels of a backend."""
    latent = _backend.launcher("reparameterize", backend)
    seed = as_seed(seed, mu.device)
    return SampleAndKL.apply(mu, logvar, None, None, seed, latent, Options(num_samples=num_samples, kl=False))[0]


def kl_divergence(backend: str, mu: Tensor, logvar: Tensor, prior: Prior | None, *, reduction: str) -> Tensor:
    """`fastvae.kl_divergence` on the kernels of a backend."""
    latent = _backend.launcher("reparameterize", backend)
    return SampleAndKL.apply(mu, logvar, *(prior or (None, None)), None, latent, Options(reduction=reduction))[2]
