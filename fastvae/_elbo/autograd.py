"""The ELBO's kernels as autograd functions: what is saved for backward, and what is recomputed.

    Sample    mu, logvar, prior, seed                  ->  z, -beta KL after reduction, raw KL
    Bound     x, x_hat, log_scale, that KL term        ->  ELBO, log-likelihood
              x, x_hat, log_scale, mu, logvar, prior   ->  ELBO, log-likelihood, raw KL

Gradient in the forward pass: if the upstream gradient will most likely be that of the loss, -ELBO, `Bound` computes
dx_hat while x and x_hat are in registers. Backward returns that buffer, rescaled if the upstream gradient differs; a
second backward recomputes the gradient. The noise is never stored: it is a function of the seed. Under
``create_graph``, and for batched gradients, the reference formulas are differentiated instead.
Launch plans and what else depends only on layouts and options are in `_elbo/call.py`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastvae_kernels.private import find

from .._core import backend as _backend
from .._core.arrays import is_lazy, materialize
from ..likelihoods import UNIT_GAUSSIAN, make_likelihood
from ..reference.elbo.formulas import ElboTerms, Prior, as_seed, decode_with, kl_penalty, reduce_batch
from ..reference.elbo.formulas import log_likelihood as log_likelihood_formula
from ..reference.elbo.formulas import reparameterize as reparameterize_formula
from .call import Call, layout, materialize_likelihood, unsupported_likelihood

float16, is_grad_enabled = torch.float16, torch.is_grad_enabled  # the attribute lookup takes as long as the call
# If torch no longer has these, the conservative answer is assumed: see `fastvae_kernels.private`.
saved_tensors_hooks = find("torch._C._autograd._top_saved_tensors_default_hooks", lambda _: "unknown")
is_batched = find("torch._C._functorch.is_batchedtensor", lambda _: True)
is_legacy_batched = find("torch._C._functorch.is_legacy_batchedtensor", lambda _: True)


def density_formula(
    x: Tensor,
    x_hat: Tensor,
    log_scale: Tensor | float,
    x_scale: Any,
    likelihood: str,
    link: str,
    num_samples: int | None,
    reduction: str,
) -> Tensor:
    """The reduced log-likelihood, computed by the reference."""
    log_prob = make_likelihood(likelihood, log_scale, link).log_prob
    return reduce_batch(log_likelihood_formula(x, x_hat, log_prob, num_samples=num_samples, x_scale=x_scale), reduction)


def sample_formula(
    mu: Any,
    logvar: Any,
    prior: Any,
    seed: Tensor | None,
    first_row: int,
    beta: Tensor | float,
    free_bits: Tensor | float,
    num_samples: int | None,
    reduction: str,
) -> list[Tensor]:
    """The reduced -beta KL and raw KL, and z if there is a seed, computed by the reference."""
    penalty, kl = kl_penalty(mu, logvar, prior, beta, free_bits)
    outputs = [reduce_batch(-penalty, reduction), reduce_batch(kl, reduction)]
    if seed is not None:
        outputs.append(reparameterize_formula(mu, logvar, num_samples=num_samples, seed=seed, first_row=first_row))
    return outputs


class Launch:
    """The `Call`, and the other arguments of a launch and its backward that receive no gradient."""

    __slots__ = ("beta", "call", "density", "first_row", "free_bits", "log_scale", "one_pass", "want_kl")

    def __init__(
        self,
        call: Call,
        beta: Any = 1.0,
        free_bits: Any = 0.0,
        want_kl: bool = True,
        density: Any = None,
        log_scale: float | None = None,
        one_pass: bool = False,
        first_row: int = 0,
    ) -> None:
        self.call, self.want_kl = call, want_kl
        self.beta, self.free_bits = materialize(beta), materialize(free_bits)
        self.density = density  # launch plan of the log-likelihood
        self.log_scale = log_scale  # if it is a number; a tensor is an argument of the Function
        self.one_pass = one_pass  # whether the gradient of x_hat is computed in the forward pass
        self.first_row = first_row  # on which the noise depends


def can_fuse_gradient(call: Call, x_hat: Tensor) -> bool:
    """Whether the gradient of x_hat may be computed in the forward pass."""
    return (
        x_hat.requires_grad
        and x_hat.dtype is not float16  # it would underflow: a GradScaler's factor is applied only in backward
        and call.reduction != "none"
        and is_grad_enabled()
        and saved_tensors_hooks(True) is None
    )


class Sample(Function):
    """(mu, logvar, mu_p, logvar_p, seed) -> (z, neg_kl, kl); outputs that are not requested are None."""

    @staticmethod
    def forward(ctx: Any, mu: Tensor, logvar: Tensor, mu_p: Any, logvar_p: Any, seed: Any, launch: Launch) -> Any:
        """One launch."""
        call = launch.call
        prior = None if mu_p is None else (mu_p, logvar_p)
        z, neg_kl, kl, kept, _ = call.latent.forward(
            *(mu, logvar, prior, seed, launch.beta, launch.free_bits, None, launch.want_kl, call.terms),
            first_row=launch.first_row,
        )
        ctx.save_for_backward(mu, logvar, mu_p, logvar_p, seed, kept)
        ctx.launch = launch
        ctx.set_materialize_grads(False)
        return z, neg_kl, kl

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> Any:
        """One launch, which regenerates the noise; or the formula, differentiated."""
        dz, dneg_kl, dkl = upstreams
        mu, logvar, mu_p, logvar_p, seed, kept = ctx.saved_tensors
        return *latent_gradients(ctx.launch, mu, logvar, mu_p, logvar_p, seed, kept, dz, dneg_kl, dkl), None, None


class Bound(Function):
    """(x, x_hat, log_scale, neg_kl) or (x, x_hat, log_scale, None, mu, logvar, mu_p, logvar_p) -> elbo, log_lik, kl."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, x_hat: Tensor, log_scale: Any, neg_kl: Any, mu: Any, logvar: Any, mu_p: Any, logvar_p: Any,
        launch: Launch,
    ) -> Any:  # fmt: skip
        """One launch, or two."""
        call, density, one_pass = launch.call, launch.density, launch.one_pass
        elbo = kl = kept = None
        kl_gradients: Any = (None, None)
        if neg_kl is None:
            if density.elbo_dtype is call.latent.compute:
                elbo = torch.empty_like(density.elbo)  # both terms are summed into it
            prior = None if mu_p is None else (mu_p, logvar_p)
            _, neg_kl, kl, kept, kl_gradients = call.latent.forward(
                mu, logvar, prior, None, launch.beta, launch.free_bits, elbo, True, call.terms, one_pass
            )
        scale, weight = launch.log_scale if log_scale is None else log_scale, -1.0 if one_pass else None
        need_dlog_scale = log_scale is not None and ctx.needs_input_grad[2]
        elbo, log_lik, dx_hat, dlog_scale = density.evaluate(
            x, x_hat, scale, neg_kl, weight, elbo, need_dlog_scale, call.terms
        )
        ctx.save_for_backward(x, x_hat, log_scale, mu, logvar, mu_p, logvar_p, kept)
        # The buffers are not saved tensors, because backward returns them without a copy. They hold the gradient of
        # -ELBO: all of it, or only the likelihood's two, if the KL's was not computed in the forward pass.
        ctx.launch, ctx.buffers = launch, (dx_hat, dlog_scale, *(kl_gradients or ())) if one_pass else ()
        ctx.set_materialize_grads(False)
        return (elbo, log_lik, kl) if call.terms else elbo

    @staticmethod
    def backward(ctx: Any, delbo: Any, dlog_lik: Any = None, dkl: Any = None) -> Any:
        """Return the buffers; recompute if there are none, by the formula if the gradient must be differentiable."""
        launch, buffers, ctx.buffers = ctx.launch, ctx.buffers, ()
        simple = len(buffers) == 4 and delbo is not None and dlog_lik is None and dkl is None
        if simple and not needs_formula(delbo):
            dx_hat, dlog_scale, dmu, dlogvar = launch.call.density_module.scale_(buffers, delbo, -1.0)
            dneg_kl = delbo.to(launch.call.latent.compute) if dmu is None else None
            return None, dx_hat, dlog_scale, dneg_kl, dmu, dlogvar, None, None, None
        needed = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        return *bound_gradients(launch, buffers, needed, ctx.saved_tensors, delbo, dlog_lik, dkl), None


class PlainBound(Function):
    """`Bound` for the common case, with half the Python overhead.

    The gradient is computed in the forward pass, `Call.plain` holds, and beta is a number.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, x_hat: Tensor, mu: Tensor, logvar: Tensor, call: Call, log_scale: float, beta: float
    ) -> Any:
        """Two launches: in one launch, the second kernel waited for the first, and steps took 3 to 30 us longer."""
        elbo = torch.empty_like(call.density.elbo)
        elbo_address = elbo.data_ptr()
        kl_gradients = call.latent.forward_plain(mu, logvar, beta, elbo_address)
        ctx.buffers = call.density.evaluate_plain(x, x_hat, log_scale, elbo_address), *kl_gradients
        ctx.save_for_backward(x, x_hat, mu, logvar)
        ctx.constants = call, log_scale, beta
        return elbo

    @staticmethod
    def backward(ctx: Any, delbo: Any) -> Any:
        """Return the buffers; recompute as `Bound` does if there are none."""
        buffers, ctx.buffers = ctx.buffers, ()
        call, log_scale, beta = ctx.constants
        if buffers and not needs_formula(delbo):
            return None, *call.density_module.scale_(buffers, delbo, -1.0), None, None, None
        x, x_hat, mu, logvar = ctx.saved_tensors
        launch, saved = (
            Launch(call, beta, 0.0, True, call.density, log_scale),
            (x, x_hat, None, mu, logvar, None, None, None),
        )
        gradients = bound_gradients(launch, (), (True, False), saved, delbo, None, None)
        return None, gradients[1], gradients[4], gradients[5], None, None, None


def bound_gradients(
    launch: Launch, buffers: Any, needed: tuple[bool, bool], saved: Any, delbo: Any, dlog_lik: Any, dkl: Any
) -> tuple[Any, ...]:
    """Gradients of x, x_hat, log_scale, neg_kl, mu, logvar, mu_p, logvar_p, by launches or by the formula.

    ``needed`` says whether the gradients of x_hat and log_scale are needed. ``buffers`` holds these two, for an
    upstream gradient of -1, if they were computed in the forward pass.
    """
    call, formula = launch.call, needs_formula(delbo, dlog_lik, dkl)
    x, x_hat, log_scale, mu, logvar, mu_p, logvar_p, kept = saved
    dneg_kl = None if delbo is None else delbo.to(call.latent.compute)
    upstream = dlog_lik if delbo is None else delbo if dlog_lik is None else delbo + dlog_lik
    scale = launch.log_scale if log_scale is None else log_scale
    gradients: Any = (None, None)
    if upstream is not None and any(needed):
        if formula:
            with torch.enable_grad():
                x_hat, scale = aliases(x_hat, scale)
                log_lik = density_formula(x, x_hat, scale, *call.density_options)
            gradients = differentiate([log_lik], (upstream,), (x_hat, scale))
        elif buffers:
            gradients = call.density_module.scale_(buffers[:2], upstream, -1.0)
        else:
            gradients = launch.density.evaluate(x, x_hat, scale, None, upstream, need_dlog_scale=needed[1])[2:]
    if mu is None:
        return None, *gradients, dneg_kl, None, None, None, None
    latent = latent_gradients(launch, mu, logvar, mu_p, logvar_p, None, kept, None, dneg_kl, dkl)
    return None, *gradients, None, *latent


# The last step of `Function.apply`. The rest of it looks for functorch wrappers among the arguments, of which there are
# none here (see `unsupported_state`), and takes a tenth of the time of a small call.
HAS_BASE = find("torch._C._FunctionBase.apply") is not None
apply_sample: Any = super(Function, Sample).apply if HAS_BASE else Sample.apply
apply_bound: Any = super(Function, Bound).apply if HAS_BASE else Bound.apply
apply_plain: Any = super(Function, PlainBound).apply if HAS_BASE else PlainBound.apply


def latent_gradients(
    launch: Launch, mu: Tensor, logvar: Tensor, mu_p: Any, logvar_p: Any, seed: Any, kept: Any, *upstreams: Any
) -> Any:
    """Gradients of mu, logvar, mu_p, logvar_p from those of z, neg_kl, kl."""
    dz, dneg_kl, dkl = upstreams
    if dz is None and dneg_kl is None and dkl is None:
        return None, None, None, None
    if needs_formula(*upstreams):
        with torch.enable_grad():
            inputs = aliases(mu, logvar, mu_p, logvar_p)
            prior = None if mu_p is None else tuple(inputs[2:])
            arguments = launch.first_row, launch.beta, launch.free_bits, launch.call.num_samples, launch.call.reduction
            outputs = sample_formula(inputs[0], inputs[1], prior, seed, *arguments)
        return differentiate(outputs, (dneg_kl, dkl, dz), tuple(inputs))
    prior = None if mu_p is None else (mu_p, logvar_p)
    gradients = launch.call.latent.backward(
        mu, logvar, prior, seed, launch.beta, kept, dz, dneg_kl, dkl, first_row=launch.first_row
    )
    return gradients if prior else (*gradients, None, None)


def needs_formula(*upstreams: Tensor | None) -> bool:
    """Whether the gradient must be differentiable, or an upstream gradient is batched or `is_lazy`."""
    if is_grad_enabled():
        return True
    for u in upstreams:  # noqa: SIM110 (a generator would take longer than the whole loop)
        if u is not None and (is_batched(u) or is_legacy_batched(u) or is_lazy(u)):
            return True
    return False


def aliases(*tensors: Any) -> list[Any]:
    """A view of each tensor, so that a tensor passed twice has a separate gradient for each argument."""
    return [t.view_as(t) if isinstance(t, Tensor) and t.requires_grad else t for t in tensors]


def differentiate(outputs: list[Tensor], upstreams: tuple[Tensor | None, ...], inputs: tuple[Any, ...]) -> list[Any]:
    """The gradient of each input, None if there is none; differentiable if grad mode is on."""
    pairs = [(out, up) for out, up in zip(outputs, upstreams, strict=False) if up is not None and out.requires_grad]
    sources = [t for t in inputs if isinstance(t, Tensor) and t.requires_grad]
    if not pairs or not sources:
        return [None] * len(inputs)
    gradients = torch.autograd.grad(
        [out for out, _ in pairs],
        sources,
        [up.to(out.dtype) for out, up in pairs],
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,
    )
    by_id = {id(t): g for t, g in zip(sources, gradients, strict=True)}
    return [by_id.get(id(t)) for t in inputs]


def elbo_terms(
    call: Call,
    x: Tensor,
    x_hat: Any,
    mu: Tensor,
    logvar: Tensor,
    likelihood: Any,
    prior: Prior | None,
    seed: Tensor | int | None,
    first_row: int,
    beta: Tensor | float,
    free_bits: Tensor | float,
) -> Any:
    """`fastvae.elbo_terms` by kernels, or `fastvae.elbo` if ``call.terms`` is False. The arguments are checked."""
    mu_p, logvar_p = (None, None) if prior is None else prior
    if isinstance(x_hat, Tensor):
        number, log_scale = split_scale(call, likelihood)
        if call.density is None:
            call.plan(x, x_hat, log_scale)
        one_pass = can_fuse_gradient(call, x_hat)
        if one_pass and call.plain and type(beta) is float and beta != 0 and free_bits == 0:
            return apply_plain(x, x_hat, mu, logvar, call, number, beta)
        launch = Launch(call, beta, free_bits, True, call.density, number, one_pass)
        out = apply_bound(x, x_hat, log_scale, None, mu, logvar, mu_p, logvar_p, launch)
        return ElboTerms(*out) if call.terms else out
    launch = Launch(call, beta, free_bits, first_row=first_row)
    z, neg_kl, kl = apply_sample(mu, logvar, mu_p, logvar_p, as_seed(materialize(seed), mu.device), launch)
    x_hat, likelihood, decoded_scale = decode_with(x_hat, z, likelihood, call.num_samples)
    x_hat, likelihood, decoded_scale = (
        materialize(x_hat),
        materialize_likelihood(likelihood),
        materialize(decoded_scale),
    )
    number, log_scale = split_scale(call, likelihood)
    if reason := unsupported_likelihood(call.backend, x, x_hat, likelihood):  # no kernel for the decoder's dtype
        if call.strict:
            raise _backend.BackendError(f"backend={call.backend!r} does not support elbo: {reason}")
        log_lik = density_formula(x, x_hat, number if log_scale is None else log_scale, *call.density_options)
        return ElboTerms(log_lik + neg_kl, log_lik, kl) if call.terms else log_lik + neg_kl
    key = layout(x_hat), None if decoded_scale is None else layout(decoded_scale)
    density = call.densities.get(key)
    if density is None:
        density = call.densities[key] = call.plan_density(x, x_hat, log_scale)
    launch = Launch(call, beta, free_bits, True, density, number, can_fuse_gradient(call, x_hat))
    out = apply_bound(x, x_hat, log_scale, neg_kl, None, None, None, None, launch)
    return ElboTerms(out[0], out[1], kl) if call.terms else out


def split_scale(call: Call, likelihood: Any) -> tuple[Any, Tensor | None]:
    """The log_scale of a likelihood: ``(number, None)`` or ``(None, tensor)``.

    Autograd must save the tensor: held by a `Launch`, which the tensor's own graph references, it would never be freed.
    """
    if likelihood is UNIT_GAUSSIAN:  # saves the logarithm of 1 in each step
        return 0.0, None
    log_scale = likelihood.get_log_scale() if call.scaled else 0.0
    return (None, log_scale) if isinstance(log_scale, Tensor) else (log_scale, None)


def reparameterize(call: Call, mu: Tensor, logvar: Tensor, seed: Tensor | int | None, first_row: int) -> Tensor:
    """`fastvae.reparameterize` by kernels."""
    launch = Launch(call, want_kl=False, first_row=first_row)
    return apply_sample(mu, logvar, None, None, as_seed(materialize(seed), mu.device), launch)[0]


def kl_divergence(call: Call, mu: Tensor, logvar: Tensor, prior: Prior | None) -> Tensor:
    """`fastvae.kl_divergence` by kernels."""
    mu_p, logvar_p = prior or (None, None)
    return apply_sample(mu, logvar, mu_p, logvar_p, None, Launch(call))[2]
