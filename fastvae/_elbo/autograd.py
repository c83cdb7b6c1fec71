"""The ELBO's kernels as torch operations: what is saved, what is recomputed, whose gradient is whose.

    Sample    mu, logvar, prior, seed                  ->  z, -beta KL in final units, raw KL
    Bound     x, x_hat, log_scale, that KL term        ->  ELBO, log-likelihood
              x, x_hat, log_scale, mu, logvar, prior   ->  ELBO, log-likelihood, raw KL

One pass: where the upstream gradient will most likely be that of a loss, -ELBO, `Bound` forms dx_hat while it has x and
x_hat at hand, and backward hands that buffer over, scaled if the upstream is another; a second backward finds it gone
and recomputes. The noise is never stored: it is a function of the seed. Under ``create_graph``, and for batched
gradients, the reference's formulas are differentiated instead.
What is known of a call before its numbers, the launch plans among it, stands in `_elbo/call.py`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastvae_kernels.private import find

from .._core import backend as _backend
from .._core.arrays import pending, settled
from ..likelihoods import UNIT_GAUSSIAN, named
from ..reference.elbo.formulas import ElboTerms, Prior, as_seed, decode_with, kl_penalty, reduce_batch
from ..reference.elbo.formulas import log_likelihood as log_likelihood_formula
from ..reference.elbo.formulas import reparameterize as reparameterize_formula
from .call import Call, layout, settled_likelihood, unserved_likelihood

float16, is_grad_enabled = torch.float16, torch.is_grad_enabled  # to look these up takes as long as to call them
# Where torch has these no more, what cannot be told is taken to be so: see `fastvae_kernels.private`.
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
    """The reduced log-likelihood by the reference."""
    log_prob = named(likelihood, log_scale, link).log_prob
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
    """The reduced -beta KL and raw KL, and z where there is a seed, by the reference."""
    penalty, kl = kl_penalty(mu, logvar, prior, beta, free_bits)
    outputs = [reduce_batch(-penalty, reduction), reduce_batch(kl, reduction)]
    if seed is not None:
        outputs.append(reparameterize_formula(mu, logvar, num_samples=num_samples, seed=seed, first_row=first_row))
    return outputs


class Run:
    """A launch and its backward: the `Call`, and what else is no tensor or gets no gradient."""

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
        self.beta, self.free_bits = settled(beta), settled(free_bits)
        self.density = density  # its plan
        self.log_scale = log_scale  # where it is no tensor
        self.one_pass = one_pass  # whether the gradient of x_hat is formed in passing
        self.first_row = first_row  # of the noise


def in_one_pass(call: Call, x_hat: Tensor) -> bool:
    """Whether the gradient of x_hat may be formed in passing."""
    return (
        x_hat.requires_grad
        and x_hat.dtype is not float16  # stored, it would underflow before a GradScaler's upstream
        and call.reduction != "none"
        and is_grad_enabled()
        and saved_tensors_hooks(True) is None
    )


class Sample(Function):
    """(mu, logvar, mu_p, logvar_p, seed) -> (z, neg_kl, kl); what is not asked for is None."""

    @staticmethod
    def forward(ctx: Any, mu: Tensor, logvar: Tensor, mu_p: Any, logvar_p: Any, seed: Any, run: Run) -> Any:
        """One launch."""
        call = run.call
        prior = None if mu_p is None else (mu_p, logvar_p)
        z, neg_kl, kl, kept, _ = call.latent.forward(
            *(mu, logvar, prior, seed, run.beta, run.free_bits, None, run.want_kl, call.terms),
            first_row=run.first_row,
        )
        ctx.save_for_backward(mu, logvar, mu_p, logvar_p, seed, kept)
        ctx.run = run
        ctx.set_materialize_grads(False)
        return z, neg_kl, kl

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> Any:
        """One launch, which makes the noise again; or the formula."""
        dz, dneg_kl, dkl = upstreams
        mu, logvar, mu_p, logvar_p, seed, kept = ctx.saved_tensors
        return *latent_gradients(ctx.run, mu, logvar, mu_p, logvar_p, seed, kept, dz, dneg_kl, dkl), None, None


class Bound(Function):
    """(x, x_hat, log_scale, neg_kl) or (x, x_hat, log_scale, None, mu, logvar, mu_p, logvar_p) -> elbo, log_lik, kl."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, x_hat: Tensor, log_scale: Any, neg_kl: Any, mu: Any, logvar: Any, mu_p: Any, logvar_p: Any,
        run: Run,
    ) -> Any:  # fmt: skip
        """One launch, or two."""
        call, density, one_pass = run.call, run.density, run.one_pass
        elbo = kl = kept = None
        kl_gradients: Any = (None, None)
        if neg_kl is None:
            if density.elbo_dtype is call.latent.compute:
                elbo = torch.empty_like(density.elbo)  # both terms in one place
            prior = None if mu_p is None else (mu_p, logvar_p)
            _, neg_kl, kl, kept, kl_gradients = call.latent.forward(
                mu, logvar, prior, None, run.beta, run.free_bits, elbo, True, call.terms, one_pass
            )
        scale, weight = run.log_scale if log_scale is None else log_scale, -1.0 if one_pass else None
        need_dlog_scale = log_scale is not None and ctx.needs_input_grad[2]
        elbo, log_lik, dx_hat, dlog_scale = density.evaluate(
            x, x_hat, scale, neg_kl, weight, elbo, need_dlog_scale, call.terms
        )
        ctx.save_for_backward(x, x_hat, log_scale, mu, logvar, mu_p, logvar_p, kept)
        # Buffers are no saved tensors: backward must be able to give them away. They hold the gradient of -ELBO: all of
        # it, or two parts, where the KL's was not to be had in passing.
        ctx.run, ctx.buffers = run, (dx_hat, dlog_scale, *(kl_gradients or ())) if one_pass else ()
        ctx.set_materialize_grads(False)
        return (elbo, log_lik, kl) if call.terms else elbo

    @staticmethod
    def backward(ctx: Any, delbo: Any, dlog_lik: Any = None, dkl: Any = None) -> Any:
        """Hand the buffers over; recompute if there are none, by the formula if that must be differentiable."""
        run, buffers, ctx.buffers = ctx.run, ctx.buffers, ()
        simple = len(buffers) == 4 and delbo is not None and dlog_lik is None and dkl is None
        if simple and not needs_formula(delbo):
            dx_hat, dlog_scale, dmu, dlogvar = run.call.density_module.scale_(buffers, delbo, -1.0)
            dneg_kl = delbo.to(run.call.latent.compute) if dmu is None else None
            return None, dx_hat, dlog_scale, dneg_kl, dmu, dlogvar, None, None, None
        needed = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        return *bound_gradients(run, buffers, needed, ctx.saved_tensors, delbo, dlog_lik, dkl), None


class PlainBound(Function):
    """`Bound` as most training loops have it, in half as much Python: one pass, where `Call.plain`, beta a number."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, x_hat: Tensor, mu: Tensor, logvar: Tensor, call: Call, log_scale: float, beta: float
    ) -> Any:
        """Two launches: as one, in which the second kernel waits for the first, steps took 3 to 30 us longer."""
        elbo = torch.empty_like(call.density.elbo)
        place = elbo.data_ptr()
        kl_gradients = call.latent.forward_plain(mu, logvar, beta, place)
        ctx.buffers = call.density.evaluate_plain(x, x_hat, log_scale, place), *kl_gradients
        ctx.save_for_backward(x, x_hat, mu, logvar)
        ctx.rest = call, log_scale, beta
        return elbo

    @staticmethod
    def backward(ctx: Any, delbo: Any) -> Any:
        """Hand the buffers over, or do as `Bound` does without."""
        buffers, ctx.buffers = ctx.buffers, ()
        call, log_scale, beta = ctx.rest
        if buffers and not needs_formula(delbo):
            return None, *call.density_module.scale_(buffers, delbo, -1.0), None, None, None
        x, x_hat, mu, logvar = ctx.saved_tensors
        run, saved = Run(call, beta, 0.0, True, call.density, log_scale), (x, x_hat, None, mu, logvar, None, None, None)
        gradients = bound_gradients(run, (), (True, False), saved, delbo, None, None)
        return None, gradients[1], gradients[4], gradients[5], None, None, None


def bound_gradients(
    run: Run, buffers: Any, needed: tuple[bool, bool], saved: Any, delbo: Any, dlog_lik: Any, dkl: Any
) -> tuple[Any, ...]:
    """Gradients of x, x_hat, log_scale, neg_kl, mu, logvar, mu_p, logvar_p, by launches or by the formula; ``needed``
    are those of x_hat and log_scale, ``buffers`` theirs, for an upstream of -1, if they were formed in passing.
    """
    call, formula = run.call, needs_formula(delbo, dlog_lik, dkl)
    x, x_hat, log_scale, mu, logvar, mu_p, logvar_p, kept = saved
    dneg_kl = None if delbo is None else delbo.to(call.latent.compute)
    upstream = dlog_lik if delbo is None else delbo if dlog_lik is None else delbo + dlog_lik
    scale = run.log_scale if log_scale is None else log_scale
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
            gradients = run.density.evaluate(x, x_hat, scale, None, upstream, need_dlog_scale=needed[1])[2:]
    if mu is None:
        return None, *gradients, dneg_kl, None, None, None, None
    latent = latent_gradients(run, mu, logvar, mu_p, logvar_p, None, kept, None, dneg_kl, dkl)
    return None, *gradients, None, *latent


# What `Function.apply` ends in. The rest of it looks for functorch's wrappers among the arguments, of which there are
# none here (see `unserved_state`), and is a tenth of a small call.
HAS_BASE = find("torch._C._FunctionBase.apply") is not None
apply_sample: Any = super(Function, Sample).apply if HAS_BASE else Sample.apply
apply_bound: Any = super(Function, Bound).apply if HAS_BASE else Bound.apply
apply_plain: Any = super(Function, PlainBound).apply if HAS_BASE else PlainBound.apply


def latent_gradients(
    run: Run, mu: Tensor, logvar: Tensor, mu_p: Any, logvar_p: Any, seed: Any, kept: Any, *upstreams: Any
) -> Any:
    """Gradients of mu, logvar, mu_p, logvar_p from those of z, neg_kl, kl."""
    dz, dneg_kl, dkl = upstreams
    if dz is None and dneg_kl is None and dkl is None:
        return None, None, None, None
    if needs_formula(*upstreams):
        with torch.enable_grad():
            inputs = aliases(mu, logvar, mu_p, logvar_p)
            prior = None if mu_p is None else tuple(inputs[2:])
            how = run.first_row, run.beta, run.free_bits, run.call.num_samples, run.call.reduction
            outputs = sample_formula(inputs[0], inputs[1], prior, seed, *how)
        return differentiate(outputs, (dneg_kl, dkl, dz), tuple(inputs))
    prior = None if mu_p is None else (mu_p, logvar_p)
    gradients = run.call.latent.backward(
        mu, logvar, prior, seed, run.beta, kept, dz, dneg_kl, dkl, first_row=run.first_row
    )
    return gradients if prior else (*gradients, None, None)


def needs_formula(*upstreams: Tensor | None) -> bool:
    """Whether the gradient must itself be differentiable, or an upstream is a batch of gradients or `pending`."""
    if is_grad_enabled():
        return True
    for u in upstreams:  # noqa: SIM110 (a generator takes longer than all of this)
        if u is not None and (is_batched(u) or is_legacy_batched(u) or pending(u)):
            return True
    return False


def aliases(*tensors: Any) -> list[Any]:
    """A view of each tensor, so that a tensor handed in twice has a gradient for each place it stands in."""
    return [t.view_as(t) if isinstance(t, Tensor) and t.requires_grad else t for t in tensors]


def differentiate(outputs: list[Tensor], upstreams: tuple[Tensor | None, ...], inputs: tuple[Any, ...]) -> list[Any]:
    """The gradient of each input, None for what is no tensor or has none; differentiable where grad mode is on."""
    pairs = [(out, up) for out, up in zip(outputs, upstreams, strict=False) if up is not None and out.requires_grad]
    wanted = [t for t in inputs if isinstance(t, Tensor) and t.requires_grad]
    if not pairs or not wanted:
        return [None] * len(inputs)
    found = torch.autograd.grad(
        [out for out, _ in pairs],
        wanted,
        [up.to(out.dtype) for out, up in pairs],
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,
    )
    by_id = {id(t): g for t, g in zip(wanted, found, strict=True)}
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
    """`fastvae.elbo_terms` on kernels, or `fastvae.elbo`, for a call without terms. Its arguments are checked."""
    mu_p, logvar_p = (None, None) if prior is None else prior
    if isinstance(x_hat, Tensor):
        number, log_scale = split_scale(call, likelihood)
        if call.density is None:
            call.plan(x, x_hat, log_scale)
        one_pass = in_one_pass(call, x_hat)
        if one_pass and call.plain and type(beta) is float and beta != 0 and free_bits == 0:
            return apply_plain(x, x_hat, mu, logvar, call, number, beta)
        run = Run(call, beta, free_bits, True, call.density, number, one_pass)
        out = apply_bound(x, x_hat, log_scale, None, mu, logvar, mu_p, logvar_p, run)
        return ElboTerms(*out) if call.terms else out
    run = Run(call, beta, free_bits, first_row=first_row)
    z, neg_kl, kl = apply_sample(mu, logvar, mu_p, logvar_p, as_seed(settled(seed), mu.device), run)
    x_hat, likelihood, decoded_scale = decode_with(x_hat, z, likelihood, call.num_samples)
    x_hat, likelihood, decoded_scale = settled(x_hat), settled_likelihood(likelihood), settled(decoded_scale)
    number, log_scale = split_scale(call, likelihood)
    if reason := unserved_likelihood(call.backend, x, x_hat, likelihood):  # the decoder's dtype has no kernel
        if call.strict:
            raise _backend.BackendError(f"backend={call.backend!r} cannot serve elbo: {reason}")
        log_lik = density_formula(x, x_hat, number if log_scale is None else log_scale, *call.density_options)
        return ElboTerms(log_lik + neg_kl, log_lik, kl) if call.terms else log_lik + neg_kl
    key = layout(x_hat), None if decoded_scale is None else layout(decoded_scale)
    density = call.densities.get(key)
    if density is None:
        density = call.densities[key] = call.plan_density(x, x_hat, log_scale)
    run = Run(call, beta, free_bits, True, density, number, in_one_pass(call, x_hat))
    out = apply_bound(x, x_hat, log_scale, neg_kl, None, None, None, None, run)
    return ElboTerms(out[0], out[1], kl) if call.terms else out


def split_scale(call: Call, likelihood: Any) -> tuple[Any, Tensor | None]:
    """The log_scale of a likelihood as a number, or as a tensor, which autograd must save: held by a `Run`, which its
    own graph holds, it would never be freed.
    """
    if likelihood is UNIT_GAUSSIAN:  # no logarithm of 1 in each step
        return 0.0, None
    log_scale = likelihood.get_log_scale() if call.scaled else 0.0
    return (None, log_scale) if isinstance(log_scale, Tensor) else (log_scale, None)


def reparameterize(call: Call, mu: Tensor, logvar: Tensor, seed: Tensor | int | None, first_row: int) -> Tensor:
    """`fastvae.reparameterize` on kernels."""
    run = Run(call, want_kl=False, first_row=first_row)
    return apply_sample(mu, logvar, None, None, as_seed(settled(seed), mu.device), run)[0]


def kl_divergence(call: Call, mu: Tensor, logvar: Tensor, prior: Prior | None) -> Tensor:
    """`fastvae.kl_divergence` on kernels."""
    mu_p, logvar_p = prior or (None, None)
    return apply_sample(mu, logvar, mu_p, logvar_p, None, Run(call))[2]
