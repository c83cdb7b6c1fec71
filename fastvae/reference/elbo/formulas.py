"""The evidence lower bound of a variational autoencoder: the specification, in plain torch.

    q(z|x) = N(mu, diag e^logvar)      z = mu + e^(logvar/2) eps      x_hat = decoder(z)
    p(z)   = N(mu_p, diag e^logvar_p), by default N(0, I)

    elbo[n] = 1/K sum_k sum_d log p(x_nd | z_nk)  -  beta sum_l kl_nl

    kl_nl   = 1/2 ((mu - mu_p)^2 e^-logvar_p + phi(logvar - logvar_p))      phi(t) = e^t - 1 - t

Shapes: x [N, *event], x_hat [N, *event] or [K, N, *event], mu and logvar [N, *latent].
Arithmetic and sums are in float32, or float64 if an input is float64; gradients, by autograd, have the dtype of the
input. Arguments are checked in `fastvae._elbo.api`, not here.

Source: Kingma & Welling, "Auto-encoding variational Bayes" (2014); free bits: Kingma et al., "Improved variational
inference with inverse autoregressive flow" (2016).
"""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .likelihoods import gaussian_log_prob, over_scale
from .noise import standard_normal

# phi(t) / t^2 on |t| <= 0.9, highest power first: Chebyshev interpolation, accurate to rounding error.
PHI_LIMIT = 0.9
PHI_COEFFICIENTS = {
    torch.float32: (
        *(2.7966073e-06, 2.5251802e-05, 1.9839196e-04, 1.3886604e-03),
        *(8.333337e-03, 4.1666705e-02, 1.6666667e-01, 0.5),
    ),
    torch.float64: (
        *(7.727270990930746e-13, 1.1607008688019208e-11, 1.605815017780149e-10, 2.0875236573890073e-09),
        *(2.5052113324751672e-08, 2.7557327628184386e-07, 2.7557319209976874e-06, 2.4801587277749853e-05),
        *(1.9841269841288758e-04, 1.388888888892108e-03, 8.333333333333325e-03, 4.1666666666666505e-02),
        *(1.6666666666666666e-01, 0.5),
    ),
}

Prior = tuple[Tensor, Tensor]
Decoder = Callable[[Tensor], "Tensor | tuple[Tensor, Tensor]"]


class ElboTerms(NamedTuple):
    """The ELBO and its two terms, in nats, each reduced over the batch in the same way.

    Attributes
    ----------
    elbo : Tensor
        The evidence lower bound.
    log_likelihood : Tensor
        The expected log-likelihood, averaged over the draws.
    kl : Tensor
        The KL divergence, without beta and free bits.
    """

    elbo: Tensor
    log_likelihood: Tensor
    kl: Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of arithmetic, sums and values: float32, or float64 if one of the tensors is float64."""
    return reduce(torch.promote_types, (t.dtype for t in tensors if t.is_floating_point()), torch.float32)


def phi(t: Tensor) -> Tensor:
    """e^t - 1 - t, accurate to 4 ulp and never negative; float32 or float64. Its derivative is expm1(t).

    Examples
    --------
    >>> float(phi(torch.tensor(1e-6)))          # the textbook formula has no correct digit here
    5.0000...e-13
    """
    small = t.abs() <= PHI_LIMIT
    t_small = torch.where(small, t, 0.0)  # powers of a large t would overflow, and give a gradient of 0 * inf
    q = torch.zeros_like(t)
    for c in PHI_COEFFICIENTS[t.dtype]:
        q = q * t_small + c
    # t is negligible relative to e^t long before 1000, and the clamp gives phi(inf) = inf instead of inf - inf
    return torch.where(small, t_small * t_small * q, torch.expm1(t) - t.clamp(max=1000.0))


def kl_elements(mu: Tensor, logvar: Tensor, prior: Prior | None = None) -> Tensor:
    """KL(q || p) of each latent element, ``[N, *latent]``, in nats."""
    dtype = compute_dtype(mu, logvar, *(prior or ()))
    mu, logvar = mu.to(dtype), logvar.to(dtype)
    if prior is None:
        return 0.5 * (mu.square() + phi(logvar))
    mu_p, logvar_p = (p.to(dtype) for p in prior)
    return 0.5 * (over_scale(mu - mu_p, 0.5 * logvar_p).square() + phi(logvar - logvar_p))


def kl_divergence(mu: Tensor, logvar: Tensor, prior: Prior | None = None, *, reduction: str = "none") -> Tensor:
    """KL(N(mu, e^logvar) || p), summed over the latent dims; for the other direction, swap the two Gaussians.

    Equivalent to ``torch.distributions.kl_divergence(Normal(mu, std), Normal(mu_p, std_p))``, summed over the latent
    dims.
    """
    return reduce_batch(sum_event(kl_elements(mu, logvar, prior)), reduction)


def reparameterize(
    mu: Tensor, logvar: Tensor, *, num_samples: int | None = None, seed: Tensor | int | None = None, first_row: int = 0
) -> Tensor:
    """z = mu + e^(logvar/2) eps, ``[N, *latent]`` or ``[K, N, *latent]``; eps is `standard_normal`, portable noise."""
    dtype = compute_dtype(mu, logvar)
    eps = standard_normal(
        tuple(mu.shape), as_seed(seed, mu.device), num_samples=num_samples, first_row=first_row, dtype=dtype
    )
    z = mu.to(dtype) + torch.exp(0.5 * logvar.to(dtype)) * eps
    return z.to(torch.promote_types(mu.dtype, logvar.dtype))


def log_likelihood_elements(x: Tensor, x_hat: Tensor, log_prob: Any, x_scale: float | None = None) -> Tensor:
    """log p(x_nd | x_hat_knd), in the shape of x_hat: ``[N, *event]`` or ``[K, N, *event]``."""
    dtype = compute_dtype(x, x_hat)
    x = x.to(dtype) if x_scale is None else x.to(dtype) * x_scale
    return log_prob(x, x_hat.to(dtype))


def log_likelihood(
    x: Tensor,
    x_hat: Tensor,
    log_prob: Callable[[Tensor, Tensor], Tensor] = gaussian_log_prob,
    *,
    num_samples: int | None = None,
    x_scale: float | None = None,
) -> Tensor:
    """1/K sum_k sum_d log p(x_nd | x_hat_knd), ``[N]``; ``log_prob`` is elementwise, by default log N(x; x_hat, 1)."""
    log_p = log_likelihood_elements(x, x_hat, log_prob, x_scale)
    return sum_event(log_p) if num_samples is None else sum_event(log_p.movedim(0, 1)) / num_samples


def elbo_terms(
    x: Tensor,
    x_hat: Tensor | Decoder,
    mu: Tensor,
    logvar: Tensor,
    *,
    likelihood: Any = None,
    beta: Tensor | float = 1.0,
    free_bits: Tensor | float = 0.0,
    prior: Prior | None = None,
    num_samples: int | None = None,
    x_scale: float | None = None,
    reduction: str = "mean",
    seed: Tensor | int | None = None,
    first_row: int = 0,
) -> ElboTerms:
    """The ELBO, the expected log-likelihood and the KL; ``likelihood`` is any object with ``log_prob(x, x_hat)``.

    With free bits lambda, kl_nl is replaced by the constant lambda wherever its batch mean is at most lambda, so that
    the mean of the ELBO is mean(log_likelihood) - beta sum_l max(lambda, kl_bar_l). The returned ``kl`` includes
    neither beta nor free bits.
    """
    log_prob = gaussian_log_prob if likelihood is None else likelihood.log_prob
    if not isinstance(x_hat, Tensor):
        z = reparameterize(mu, logvar, num_samples=num_samples, seed=seed, first_row=first_row)
        x_hat, log_scale = decode(x_hat, z, num_samples)
        if log_scale is not None and likelihood is None:
            log_prob = partial(gaussian_log_prob, log_scale=log_scale)
        elif log_scale is not None:
            log_prob = with_log_scale(likelihood, log_scale).log_prob
    log_lik = log_likelihood(x, x_hat, log_prob, num_samples=num_samples, x_scale=x_scale)  # [N]
    penalty, kl = kl_penalty(mu, logvar, prior, beta, free_bits)
    return ElboTerms(*(reduce_batch(t, reduction) for t in (log_lik - penalty, log_lik, kl)))


def kl_penalty(
    mu: Tensor, logvar: Tensor, prior: Prior | None, beta: Tensor | float, free_bits: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The KL penalty, weighted by beta and with free bits, and the raw KL: each ``[N]``."""
    kl = kl_raw = kl_elements(mu, logvar, prior)  # [N, *latent]
    may_be_zero = not beta.requires_grad if isinstance(beta, Tensor) else beta == 0
    if may_be_zero:
        is_zero = torch.as_tensor(beta, device=mu.device) == 0  # masks the inputs: a gradient of 0 * inf would be NaN
        mu, logvar, *params = (torch.where(is_zero, 0.0, t) for t in (mu, logvar, *(prior or ())))
        kl = kl_elements(mu, logvar, (params[0], params[1]) if params else None)
    if isinstance(free_bits, Tensor) or free_bits != 0:
        floor = torch.as_tensor(free_bits, dtype=kl.dtype, device=kl.device).detach()
        kl = torch.where(kl.mean(0) <= floor, floor, kl)  # in this order NaN is kept
    return beta * sum_event(kl), sum_event(kl_raw)


def elbo(x: Tensor, x_hat: Tensor | Decoder, mu: Tensor, logvar: Tensor, **options: Any) -> Tensor:
    """The ELBO; arguments as in `elbo_terms`."""
    return elbo_terms(x, x_hat, mu, logvar, **options).elbo


def decode(decoder: Decoder, z: Tensor, num_samples: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Call the decoder once, with the K draws folded into the rows: x_hat, and log_scale or None."""
    out = decoder(z if num_samples is None else z.flatten(0, 1))  # k slowest
    x_hat, log_scale = out if isinstance(out, tuple) else (out, None)
    if num_samples is not None:
        if log_scale is not None and log_scale.dim() == x_hat.dim() and log_scale.shape[0] == x_hat.shape[0]:
            log_scale = log_scale.reshape(num_samples, -1, *log_scale.shape[1:])
        x_hat = x_hat.reshape(num_samples, -1, *x_hat.shape[1:])  # [K, N, *event]
    return x_hat, log_scale


def decode_with(
    decoder: Decoder, z: Tensor, likelihood: Any, num_samples: int | None = None
) -> tuple[Tensor, Any, Tensor | None]:
    """Call the decoder: x_hat, the likelihood with the log_scale the decoder returned, if any, and that log_scale."""
    x_hat, log_scale = decode(decoder, z, num_samples)
    return x_hat, likelihood if log_scale is None else with_log_scale(likelihood, log_scale), log_scale


def with_log_scale(likelihood: Any, log_scale: Tensor) -> Any:
    """The likelihood with the log_scale that the decoder returned; TypeError if it does not support one."""
    if not hasattr(likelihood, "with_log_scale"):
        kind = type(likelihood).__name__
        raise TypeError(
            f"the decoder returned (x_hat, log_scale), but the likelihood {kind} has no with_log_scale(log_scale)"
        )
    return likelihood.with_log_scale(log_scale)


def as_seed(seed: Tensor | int | None, device: torch.device) -> Tensor:
    """The seed as a 0-d int64 tensor on the device; None draws one from torch's generator for that device."""
    if seed is None:
        return torch.randint(2**63 - 1, (), device=device)
    return seed if isinstance(seed, Tensor) else torch.full((), seed, dtype=torch.int64, device=device)


def sum_event(t: Tensor) -> Tensor:
    """Sum over all dims except the first, ``[N, ...] -> [N]``."""
    return t.reshape(t.shape[0], math.prod(t.shape[1:])).sum(1)


def reduce_batch(t: Tensor, reduction: str) -> Tensor:
    """Reduce ``[N]`` to its mean or its sum, or return it unchanged."""
    return t if reduction == "none" else t.mean() if reduction == "mean" else t.sum()
