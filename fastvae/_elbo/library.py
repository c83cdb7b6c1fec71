"""The ELBO's kernels as `torch.library` operations, for `torch.compile`.

    fastvae::sample            mu, logvar, prior, seed                ->  z, -beta KL after reduction, raw KL, kept
    fastvae::log_likelihood    x, x_hat, log_scale, that KL term      ->  ELBO, log-likelihood, gradients of -ELBO
    fastvae::*_backward        gradients of the outputs               ->  gradients of the inputs

The operations are functional and take no floats: a float that changes from step to step, as beta does in a warm-up,
would recompile the graph for each value. So beta, free_bits, x_scale and the scale are passed as 0-d tensors. An output
that is not requested has no elements. With ``one_pass``, the gradient of -ELBO is an output of the forward operation,
and backward multiplies it by the upstream gradient, which Inductor fuses with the operations that follow.
Eager calls do not use these operations: one costs 10 us more than a Function around the launcher (`_elbo/autograd.py`).
"""

from typing import Any

import torch
from torch import Tensor

from .._core import backend as _backend
from ..likelihoods import NAMES, LocationScale
from ..reference.elbo.formulas import ElboTerms, Prior, as_seed, compute_dtype, decode_with
from .autograd import density_formula, differentiate, sample_formula
from .call import CACHE, DTYPES, add_to_cache, layout

BACKEND_OF = {device: backend for backend, device in _backend.DEVICES.items()}

torch.library.define(
    "fastvae::sample",
    "(Tensor mu, Tensor logvar, Tensor? mu_p, Tensor? logvar_p, Tensor? seed, Tensor beta, Tensor free_bits,"
    " SymInt first_row, int? num_samples, str reduction, bool masked)"
    " -> (Tensor z, Tensor neg_kl, Tensor kl, Tensor kept)",
)
torch.library.define(
    "fastvae::sample_backward",
    "(Tensor mu, Tensor logvar, Tensor? mu_p, Tensor? logvar_p, Tensor? seed, Tensor beta, Tensor kept, Tensor? dz,"
    " Tensor dneg_kl, Tensor dkl, SymInt first_row, int? num_samples, str reduction)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
_DENSITY = (
    "(Tensor x, Tensor x_hat, Tensor log_scale, Tensor? x_scale, Tensor {}, str likelihood, str link, int? num_samples,"
    " str reduction, bool {}) -> "
)
torch.library.define(
    "fastvae::log_likelihood",
    _DENSITY.format("neg_kl", "one_pass") + "(Tensor elbo, Tensor log_lik, Tensor dx_hat, Tensor dlog_scale)",
)
torch.library.define(
    "fastvae::log_likelihood_backward", _DENSITY.format("upstream", "need_dlog_scale") + "(Tensor, Tensor)"
)


def _pair(mu_p: Tensor | None, logvar_p: Tensor | None) -> Prior | None:
    return None if mu_p is None or logvar_p is None else (mu_p, logvar_p)


def _empty(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return like.new_empty(0, dtype=dtype or like.dtype)


def _latent_plan(mu: Tensor, logvar: Tensor, prior: Prior | None, num_samples: int | None, reduction: str) -> Any:
    key = ("sample", layout(mu), layout(logvar), prior and tuple(map(layout, prior)), num_samples, reduction)
    plan = CACHE.get(key)
    if plan is None:
        module = _backend.kernel_module("elbo.reparameterize", BACKEND_OF[mu.device.type])
        plan = add_to_cache(key, module.Latent(mu, logvar, prior, num_samples, reduction))
    return plan


def _density_plan(x: Tensor, x_hat: Tensor, log_scale: Tensor, elbo_dtype: torch.dtype, *options: Any) -> Any:
    key = ("log_likelihood", layout(x), layout(x_hat), layout(log_scale), elbo_dtype, options)
    plan = CACHE.get(key)
    if plan is None:
        likelihood, link, num_samples, reduction, x_scale = options
        module = _backend.kernel_module("elbo.log_likelihood", BACKEND_OF[x.device.type])
        plan = module.Density(
            *(x, x_hat, log_scale),
            likelihood=likelihood,
            link=link,
            num_samples=num_samples,
            reduction=reduction,
            x_scale=x_scale,
            elbo_dtype=elbo_dtype,
        )
        add_to_cache(key, plan)
    return plan


def _sample(mu, logvar, mu_p, logvar_p, seed, beta, free_bits, first_row, num_samples, reduction, masked):
    prior = _pair(mu_p, logvar_p)
    plan = _latent_plan(mu, logvar, prior, num_samples, reduction)
    floor = free_bits if masked else 0.0
    z, neg_kl, kl, kept, _ = plan.forward(mu, logvar, prior, seed, beta, floor, first_row=first_row)
    z = _empty(mu, plan.dtype) if z is None else z
    if kept is None:
        kept = mu.new_ones(plan.L if masked else 0, dtype=torch.bool)
    return z, neg_kl, kl, kept


def _sample_fake(mu, logvar, mu_p, logvar_p, seed, beta, free_bits, first_row, num_samples, reduction, masked):
    dtype = torch.promote_types(mu.dtype, logvar.dtype)
    compute = compute_dtype(mu, logvar, *(_pair(mu_p, logvar_p) or ()))
    value = mu.new_empty(mu.shape[:1] if reduction == "none" else (), dtype=compute)
    z = _empty(mu, dtype)
    if seed is not None:
        z = mu.new_empty(mu.shape if num_samples is None else (num_samples, *mu.shape), dtype=dtype)
    kept = mu.new_empty(mu[0].numel() if masked else 0, dtype=torch.bool)
    return z, value, torch.empty_like(value), kept


def _sample_backward(mu, logvar, mu_p, logvar_p, seed, beta, kept, dz, dneg_kl, dkl, first_row, num_samples, reduction):
    prior = _pair(mu_p, logvar_p)
    plan = _latent_plan(mu, logvar, prior, num_samples, reduction)
    kept = kept if kept.numel() else None
    dz = None if seed is None else dz
    gradients = plan.backward(mu, logvar, prior, seed, beta, kept, dz, dneg_kl, dkl, first_row=first_row)
    gradients = [g.contiguous() for g in gradients]
    return (*gradients, *[_empty(mu) for _ in range(4 - len(gradients))])


def _sample_backward_fake(mu, logvar, mu_p, logvar_p, *others):
    return tuple(_empty(mu) if t is None else t.new_empty(t.shape) for t in (mu, logvar, mu_p, logvar_p))


def _x_scale_number(x_scale: Tensor | None) -> float | None:
    return None if x_scale is None else float(x_scale)


def _with_strides_of(t: Tensor, like: Tensor) -> Tensor:
    # the strides of the fake implementation, which Inductor relies on
    expected = torch.empty_like(like)
    return t if t.stride() == expected.stride() else expected.copy_(t)


def _log_likelihood(x, x_hat, log_scale, x_scale, neg_kl, likelihood, link, num_samples, reduction, one_pass):
    options = likelihood, link, num_samples, reduction, _x_scale_number(x_scale)
    plan = _density_plan(x, x_hat, log_scale, neg_kl.dtype, *options)
    weight = -1.0 if one_pass else None
    elbo, log_lik, dx_hat, dlog_scale = plan.evaluate(x, x_hat, log_scale, neg_kl, weight, None, one_pass)
    dx_hat = _empty(x_hat) if dx_hat is None else _with_strides_of(dx_hat, x_hat)
    return elbo, log_lik, dx_hat, _empty(log_scale) if dlog_scale is None else dlog_scale.contiguous()


def _log_likelihood_fake(x, x_hat, log_scale, x_scale, neg_kl, likelihood, link, num_samples, reduction, one_pass):
    compute = compute_dtype(x, x_hat, log_scale)
    log_lik = x_hat.new_empty(x.shape[:1] if reduction == "none" else (), dtype=compute)
    elbo = torch.empty_like(log_lik, dtype=torch.promote_types(compute, neg_kl.dtype))
    if not one_pass:
        return elbo, log_lik, _empty(x_hat), _empty(log_scale)
    return elbo, log_lik, torch.empty_like(x_hat), log_scale.new_empty(log_scale.shape)


def _log_likelihood_backward(
    x, x_hat, log_scale, x_scale, upstream, likelihood, link, num_samples, reduction, need_dlog_scale
):
    options = likelihood, link, num_samples, reduction, _x_scale_number(x_scale)
    plan = _density_plan(x, x_hat, log_scale, upstream.dtype, *options)
    dx_hat, dlog_scale = plan.evaluate(x, x_hat, log_scale, None, upstream, None, need_dlog_scale)[2:]
    dlog_scale = log_scale.new_zeros(log_scale.shape) if dlog_scale is None else dlog_scale.contiguous()
    return _with_strides_of(dx_hat, x_hat), dlog_scale


def _log_likelihood_backward_fake(x, x_hat, log_scale, *others):
    return torch.empty_like(x_hat), log_scale.new_empty(log_scale.shape)


for _name, _function, _fake in (
    ("sample", _sample, _sample_fake),
    ("sample_backward", _sample_backward, _sample_backward_fake),
    ("log_likelihood", _log_likelihood, _log_likelihood_fake),
    ("log_likelihood_backward", _log_likelihood_backward, _log_likelihood_backward_fake),
):
    torch.library.impl(f"fastvae::{_name}", ("cpu", "cuda"), _function)
    torch.library.register_fake(f"fastvae::{_name}", _fake)


def _save_sample(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    mu, logvar, mu_p, logvar_p, seed, beta, free_bits, *ctx.options, _ = inputs
    ctx.save_for_backward(mu, logvar, mu_p, logvar_p, seed, beta, free_bits, output[3])
    ctx.mark_non_differentiable(output[3])


def _differentiate_sample(ctx: Any, dz: Tensor, dneg_kl: Tensor, dkl: Tensor, _: Any) -> Any:
    *tensors, seed, beta, free_bits, kept = ctx.saved_tensors
    first_row, num_samples, reduction = ctx.options
    if torch.is_grad_enabled():  # the gradient of a kernel is not differentiable
        mu, logvar, *prior = tensors
        outputs = sample_formula(mu, logvar, _pair(*prior), seed, first_row, beta, free_bits, num_samples, reduction)
        gradients = differentiate(outputs, (dneg_kl, dkl, dz), tuple(tensors))
    else:
        gradients = torch.ops.fastvae.sample_backward(*tensors, seed, beta, kept, dz, dneg_kl, dkl, *ctx.options)
        gradients = [g if t is not None else None for g, t in zip(gradients, tensors, strict=True)]
    return *gradients, None, None, None, None, None, None, None


def _save_log_likelihood(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, x_hat, log_scale, x_scale, neg_kl, *options, ctx.one_pass = inputs
    gradients = output[2:] if ctx.one_pass else ()
    ctx.options, ctx.kl_dtype = options, neg_kl.dtype
    ctx.save_for_backward(x, x_hat, log_scale, x_scale, *gradients)
    ctx.mark_non_differentiable(*output[2:])


def _differentiate_log_likelihood(ctx: Any, delbo: Tensor, dlog_lik: Tensor, *_: Any) -> Any:
    x, x_hat, log_scale, x_scale, *gradients = ctx.saved_tensors
    upstream = delbo + dlog_lik
    if torch.is_grad_enabled():
        log_lik = density_formula(x, x_hat, log_scale, x_scale, *ctx.options)
        dx_hat, dlog_scale = differentiate([log_lik], (upstream,), (x_hat, log_scale))
    elif gradients:
        dx_hat, dlog_scale = ((g * -upstream).to(g.dtype) for g in gradients)  # rounds the product, not the upstream
    else:
        dx_hat, dlog_scale = torch.ops.fastvae.log_likelihood_backward(
            x, x_hat, log_scale, x_scale, upstream, *ctx.options, ctx.needs_input_grad[2]
        )
    return None, dx_hat, dlog_scale, None, delbo.to(ctx.kl_dtype), None, None, None, None, None


torch.library.register_autograd("fastvae::sample", _differentiate_sample, setup_context=_save_sample)
torch.library.register_autograd(
    "fastvae::log_likelihood", _differentiate_log_likelihood, setup_context=_save_log_likelihood
)


def scalar(value: Tensor | float, device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
    """A 0-d tensor, created so that a number which changes does not recompile the graph."""
    return value if isinstance(value, Tensor) else torch.ones((), dtype=dtype, device=device) * value


def elbo_terms(
    x: Tensor,
    x_hat: Any,
    mu: Tensor,
    logvar: Tensor,
    *,
    likelihood: Any,
    prior: Prior | None,
    seed: Tensor | int | None,
    first_row: int,
    beta: Tensor | float,
    free_bits: Tensor | float,
    num_samples: int | None,
    x_scale: float | None,
    reduction: str,
) -> ElboTerms:
    """`fastvae.elbo_terms` as operations in a graph. The arguments are checked."""
    device, scaled = mu.device, isinstance(likelihood, LocationScale)
    masked, decoder = isinstance(free_bits, Tensor) or free_bits != 0, not isinstance(x_hat, Tensor)
    seed = as_seed(seed, device) if decoder else None
    mu_p, logvar_p = (None, None) if prior is None else prior
    weights = scalar(beta, device), scalar(free_bits, device)
    z, neg_kl, kl, _ = torch.ops.fastvae.sample(
        mu, logvar, mu_p, logvar_p, seed, *weights, first_row, num_samples, reduction, masked
    )
    if decoder:
        x_hat, likelihood, _ = decode_with(x_hat, z, likelihood, num_samples)
    log_scale = scalar(likelihood.get_log_scale() if scaled else 0.0, device, compute_dtype(x, x_hat))
    options = NAMES[type(likelihood)], likelihood.link if scaled else "identity", num_samples, reduction
    x_scale_ = None if x_scale is None else scalar(x_scale, torch.device("cpu"))  # read at launch, without a sync
    if x_hat.dtype not in DTYPES:
        log_lik = density_formula(x, x_hat, log_scale, x_scale_, *options)
        return ElboTerms(log_lik + neg_kl, log_lik, kl)
    one_pass = x_hat.requires_grad and reduction != "none" and torch.is_grad_enabled()
    elbo, log_lik, _, _ = torch.ops.fastvae.log_likelihood(x, x_hat, log_scale, x_scale_, neg_kl, *options, one_pass)
    return ElboTerms(elbo, log_lik, kl)
