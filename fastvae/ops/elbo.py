"""The ELBO's kernels as torch operations: what is saved, what is recomputed, whose gradient is whose.

    Sample    mu, logvar, prior, seed                  ->  z, -beta KL in final units, raw KL
    Bound     x, x_hat, log_scale, that KL term        ->  ELBO, log-likelihood
              x, x_hat, log_scale, mu, logvar, prior   ->  ELBO, log-likelihood, raw KL

One pass: where the upstream gradient will most likely be that of a loss, -ELBO, `Bound` forms dx_hat while it has x and
x_hat at hand, and backward hands that buffer over, scaled if the upstream is another; a second backward finds it gone
and recomputes. The noise is never stored: it is a function of the seed. Under ``create_graph``, and for batched
gradients, the reference's formulas are differentiated instead.
Launchers are functions of ``fastvae_kernels.<backend>.{reparameterize, log_likelihood}``, imported at the first call.
"""

from dataclasses import replace
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


class Call:
    """One call of a public function: its launchers, and its options that are no tensors or get no gradient."""

    __slots__ = (
        *("latent", "density", "reduction", "num_samples", "beta", "free_bits", "x_scale", "likelihood", "log_scale"),
        *("terms", "want_kl", "one_pass"),
    )

    def __init__(
        self,
        backend: str,
        *,
        reduction: str = "none",
        num_samples: int | None = None,
        beta: Tensor | float = 1.0,
        free_bits: Tensor | float = 0.0,
        x_scale: float | None = None,
        terms: bool = True,
        want_kl: bool = True,
    ) -> None:
        self.latent = _backend.launcher("reparameterize", backend)
        self.density = _backend.launcher("log_likelihood", backend)
        self.reduction, self.num_samples = reduction, num_samples
        self.beta, self.free_bits, self.x_scale = beta, free_bits, x_scale
        self.terms, self.want_kl = terms, want_kl  # whether log-likelihood and raw KL are asked for, and any KL at all
        self.likelihood: Any = None
        self.log_scale = 0.0  # the Gaussian's, where it is no tensor
        self.one_pass = False

    def sample(self, mu: Tensor, logvar: Tensor, prior: Any, seed: Tensor | None) -> Any:
        """Launch sampling and KL: z, neg_kl, kl, which latent elements free bits keep, gradients had in passing."""
        return self.latent.forward(
            mu,
            logvar,
            prior,
            seed,
            num_samples=self.num_samples,
            beta=self.beta,
            free_bits=self.free_bits,
            reduction=self.reduction,
            want_kl=self.want_kl,
            want_raw=self.terms,
            want_gradients=self.one_pass and seed is None,
        )

    def sample_backward(self, mu: Tensor, logvar: Tensor, prior: Any, *others: Any) -> Any:
        """Launch the way back through both; ``others`` are seed, kept, dz, dneg_kl, dkl."""
        k, b, r = self.num_samples, self.beta, self.reduction
        return self.latent.backward(mu, logvar, prior, *others, num_samples=k, beta=b, reduction=r)

    def bound(self, x: Tensor, x_hat: Tensor, log_scale: Any, neg_kl: Tensor | None, weight: Any) -> Any:
        """Launch the log-likelihood: values if there is a KL term to add, gradients if there is a weight."""
        gaussian = type(self.likelihood) is Gaussian
        return self.density.log_likelihood(
            x,
            x_hat,
            self.log_scale if log_scale is None else log_scale,
            self.x_scale,
            neg_kl,
            weight,
            likelihood="gaussian" if gaussian else "bernoulli",
            link=self.likelihood.link if gaussian else "identity",
            num_samples=self.num_samples,
            reduction=self.reduction,
            need_dlog_scale=log_scale is not None,
            want_log_lik=self.terms,
        )

    def log_likelihood_formula(self, x: Tensor, x_hat: Tensor, log_scale: Any) -> Tensor:
        """The reduced log-likelihood by the reference."""
        likelihood, k = self.likelihood, self.num_samples
        if log_scale is not None:
            likelihood = replace(likelihood, scale=1.0, log_scale=log_scale)
        log_lik = log_likelihood_formula(x, x_hat, likelihood.log_prob, num_samples=k, x_scale=self.x_scale)
        return reduce_batch(log_lik, self.reduction)

    def sample_formula(self, mu: Any, logvar: Any, prior: Any, seed: Tensor | None) -> list[Tensor]:
        """The reduced -beta KL and raw KL, and z where there is a seed, by the reference."""
        penalty, kl = kl_penalty(mu, logvar, prior, self.beta, self.free_bits)
        outputs = [reduce_batch(t, self.reduction) for t in (-penalty, kl)]
        if seed is not None:
            outputs.append(reparameterize_formula(mu, logvar, num_samples=self.num_samples, seed=seed))
        return outputs


class PlainFunction(Function):
    """A Function of plain tensors only (see `unserved`), which need no looking through for functorch's wrappers."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """What `Function.apply` ends in; the rest of it is a tenth of a small call."""
        return super(Function, cls).apply(*args)  # type: ignore[misc]


class Sample(PlainFunction):
    """(mu, logvar, mu_p, logvar_p, seed) -> (z, neg_kl, kl); what is not asked for is None."""

    @staticmethod
    def forward(ctx: Any, mu: Tensor, logvar: Tensor, mu_p: Any, logvar_p: Any, seed: Any, call: Call) -> Any:
        """One launch."""
        z, neg_kl, kl, kept, _ = call.sample(mu, logvar, None if mu_p is None else (mu_p, logvar_p), seed)
        ctx.save_for_backward(mu, logvar, mu_p, logvar_p, seed, kept)
        ctx.call = call
        ctx.set_materialize_grads(False)
        return z, neg_kl, kl

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> Any:
        """One launch, which makes the noise again; or the formula."""
        dz, dneg_kl, dkl = upstreams
        mu, logvar, mu_p, logvar_p, seed, kept = ctx.saved_tensors
        return *latent_gradients(ctx.call, mu, logvar, mu_p, logvar_p, seed, kept, dz, dneg_kl, dkl), None, None


class Bound(PlainFunction):
    """(x, x_hat, log_scale, neg_kl) or (x, x_hat, log_scale, None, mu, logvar, mu_p, logvar_p) -> elbo, log_lik, kl."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, x_hat: Tensor, log_scale: Any, neg_kl: Any, mu: Any, logvar: Any, mu_p: Any, logvar_p: Any,
        call: Call,
    ) -> Any:  # fmt: skip
        """One launch, or two."""
        kl = kept = None
        kl_gradients = (None, None)  # of a KL term that came from outside
        ctx.inside = neg_kl is None
        if neg_kl is None:
            _, neg_kl, kl, kept, kl_gradients = call.sample(
                mu, logvar, None if mu_p is None else (mu_p, logvar_p), None
            )
        elbo, log_lik, dx_hat, dlog_scale = call.bound(x, x_hat, log_scale, neg_kl, -1.0 if call.one_pass else None)
        # Buffers are no saved tensors: backward must be able to give them away. They hold the gradient of -ELBO.
        ctx.buffer = (dx_hat, dlog_scale) if call.one_pass else None
        ctx.kl_buffer = kl_gradients
        ctx.save_for_backward(x, x_hat, log_scale, mu, logvar, mu_p, logvar_p, kept)
        ctx.call, ctx.kl_dtype = call, neg_kl.dtype
        ctx.set_materialize_grads(False)
        return (elbo, log_lik, kl) if call.terms else elbo

    @staticmethod
    def backward(ctx: Any, delbo: Any, dlog_lik: Any = None, dkl: Any = None) -> Any:
        """Hand the buffers over; recompute if there are none, by the formula if that must be differentiable."""
        loss_alone = delbo is not None and dlog_lik is None and dkl is None and not needs_formula(delbo)
        if loss_alone and ctx.buffer is not None and ctx.kl_buffer is not None:
            buffers, ctx.buffer, ctx.kl_buffer = (*ctx.buffer, *ctx.kl_buffer), None, None
            dx_hat, dlog_scale, dmu, dlogvar = ctx.call.density.scale_(buffers, delbo, -1.0)
            dneg_kl = None if ctx.inside else delbo.to(ctx.kl_dtype)
            return None, dx_hat, dlog_scale, dneg_kl, dmu, dlogvar, None, None, None
        ctx.kl_buffer = None  # of no use from here on
        x, x_hat, log_scale, mu, logvar, mu_p, logvar_p, kept = ctx.saved_tensors
        call, dneg_kl = ctx.call, None if delbo is None else delbo.to(ctx.kl_dtype)
        upstream = dlog_lik if delbo is None else delbo if dlog_lik is None else delbo + dlog_lik
        gradients: Any = (None, None)
        if upstream is not None and (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            buffer, ctx.buffer = ctx.buffer, None
            if needs_formula(upstream):
                with torch.enable_grad():
                    x_hat, log_scale = aliases(x_hat, log_scale)
                    log_lik = call.log_likelihood_formula(x, x_hat, log_scale)
                gradients = differentiate([log_lik], (upstream,), (x_hat, log_scale))
            elif buffer is not None:
                gradients = call.density.scale_(buffer, upstream, -1.0)
            else:
                gradients = call.bound(x, x_hat, log_scale, None, upstream)[2:]
        if not ctx.inside:
            return None, *gradients, dneg_kl, None, None, None, None, None
        latent = latent_gradients(call, mu, logvar, mu_p, logvar_p, None, kept, None, dneg_kl, dkl)
        return None, *gradients, None, *latent, None


def latent_gradients(
    call: Call, mu: Tensor, logvar: Tensor, mu_p: Any, logvar_p: Any, seed: Any, kept: Any, *upstreams: Any
) -> Any:
    """Gradients of mu, logvar, mu_p, logvar_p from those of z, neg_kl, kl."""
    dz, dneg_kl, dkl = upstreams
    if dz is None and dneg_kl is None and dkl is None:
        return None, None, None, None
    if needs_formula(*upstreams):
        with torch.enable_grad():
            inputs = aliases(mu, logvar, mu_p, logvar_p)
            prior = None if mu_p is None else tuple(inputs[2:])
            outputs = call.sample_formula(inputs[0], inputs[1], prior, seed)
        return differentiate(outputs, (dneg_kl, dkl, dz), tuple(inputs))
    prior = None if mu_p is None else (mu_p, logvar_p)
    gradients = call.sample_backward(mu, logvar, prior, seed, kept, dz, dneg_kl, dkl)
    return gradients if prior else (*gradients, None, None)


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
    """`fastvae.elbo_terms` on the kernels of a backend. Its arguments are checked; ``strict`` forbids the reference.

    With ``terms=False`` among the options the two terms may be None.
    """
    call, neg_kl, kl = Call(backend, **options), None, None
    mu_p, logvar_p = prior or (None, None)
    if not isinstance(x_hat, Tensor):
        z, neg_kl, kl = Sample.apply(mu, logvar, mu_p, logvar_p, as_seed(seed, mu.device), call)
        x_hat, decoded_scale = decode(x_hat, z, call.num_samples)
        if decoded_scale is not None:
            likelihood = likelihood.with_log_scale(decoded_scale)
    log_scale = None
    if type(likelihood) is Gaussian:
        scale = likelihood.get_log_scale()
        if isinstance(scale, Tensor):
            # autograd saves it; a decoded one held by the call besides, which Sample holds, would never be freed
            log_scale, likelihood = scale, Gaussian(link=likelihood.link)
        else:
            call.log_scale = scale
    call.likelihood = likelihood
    if neg_kl is not None and (
        reason := unserved_likelihood(x, x_hat, likelihood)
    ):  # the decoder's dtype has no kernel
        if strict:
            raise _backend.BackendError(f"backend={backend!r} cannot serve elbo: {reason}")
        log_lik = call.log_likelihood_formula(x, x_hat, log_scale)
        return ElboTerms(log_lik + neg_kl, log_lik, kl)  # type: ignore[arg-type]
    call.one_pass = (
        x_hat.requires_grad
        and call.reduction != "none"
        and torch.is_grad_enabled()
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    )
    if neg_kl is not None:
        mu = logvar = mu_p = logvar_p = None  # type: ignore[assignment]
    out = Bound.apply(x, x_hat, log_scale, neg_kl, mu, logvar, mu_p, logvar_p, call)
    if not call.terms:
        return ElboTerms(out, None, None)  # type: ignore[arg-type]
    return ElboTerms(out[0], out[1], out[2] if kl is None else kl)


def reparameterize(
    backend: str, mu: Tensor, logvar: Tensor, *, num_samples: int | None, seed: Tensor | int | None
) -> Tensor:
    """`fastvae.reparameterize` on the kernels of a backend."""
    call = Call(backend, num_samples=num_samples, want_kl=False)
    return Sample.apply(mu, logvar, None, None, as_seed(seed, mu.device), call)[0]


def kl_divergence(backend: str, mu: Tensor, logvar: Tensor, prior: Prior | None, *, reduction: str) -> Tensor:
    """`fastvae.kl_divergence` on the kernels of a backend."""
    mu_p, logvar_p = prior or (None, None)
    return Sample.apply(mu, logvar, mu_p, logvar_p, None, Call(backend, reduction=reduction))[2]
