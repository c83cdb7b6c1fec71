"""`reparameterize` and `kl_divergence`: documentation, argument checks, choice of backend."""

from torch import Tensor

from .. import reference
from .._core import backend as _backend
from .._core.arrays import materialize
from .._core.checks import check_posterior, check_reduction, checked_first_row, checked_num_samples, checked_seed
from ..reference.elbo.formulas import Prior
from . import autograd
from . import call as elbo_call


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    *,
    num_samples: int | None = None,
    seed: int | Tensor | None = None,
    first_row: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Draw z ~ N(mu, e^logvar) with the reparameterization trick: z = mu + e^(logvar/2) eps, eps ~ N(0, I).

    Gradients propagate to mu and logvar.

    Parameters
    ----------
    mu, logvar : tensors ``[N, *latent]``
        Mean and log variance of q(z|x).
    num_samples : int
        Number of draws K per row; None returns one draw, without the leading dim.
    seed : int in [0, 2^63) or 0-d int64 tensor
        eps depends only on (seed, row, draw, latent element): it is the same on every device, and equal to within 2e-6
        in every dtype. Use a different seed for each call: two latent variables of one model need two seeds. If None,
        the seed is drawn from torch's generator.
    first_row : int
        Index of the first row. With the same seed, the parts of a batch get the same noise as the whole batch.
    backend : "auto", "triton", "numba" or "reference"
        As in `elbo`.

    Returns
    -------
    Tensor
        ``[N, *latent]``, or ``[K, N, *latent]`` for ``num_samples = K``, in the dtype of mu and logvar.

    Raises
    ------
    TypeError, ValueError, BackendError
        Same as `elbo`.

    Notes
    -----
    Equivalent to ``torch.distributions.Normal(mu, torch.exp(logvar / 2)).rsample()``, with portable noise
    (Philox-4x32-10 and Box-Muller, |eps| <= 6.77).

    References
    ----------
    Kingma & Welling (2014); Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).

    Examples
    --------
    >>> import torch, fastvae
    >>> mu, logvar = torch.zeros(2, 3), torch.zeros(2, 3)
    >>> fastvae.reparameterize(mu, logvar, seed=0)
    tensor([[...
    >>> z = fastvae.reparameterize(mu, logvar, num_samples=5, seed=0)
    >>> z.shape, torch.equal(z[0], fastvae.reparameterize(mu, logvar, seed=0))
    (torch.Size([5, 2, 3]), True)
    >>> torch.equal(z[:, 1:], fastvae.reparameterize(mu[1:], logvar[1:], num_samples=5, seed=0, first_row=1))
    True
    """
    backend = _backend.requested(backend)
    key, call = None, None
    if backend != "reference":
        key, call = elbo_call.Call.find(
            mu, logvar, None, None, None, None, ("sample", num_samples, type(num_samples), backend)
        )
    if call is None:
        check_posterior(mu, logvar)
        num_samples = checked_num_samples(num_samples)
    seed, first_row = checked_seed(seed, mu.device), checked_first_row(first_row)
    if call is None and backend != "reference":
        backend = _backend.choose(
            "reparameterize",
            backend,
            mu.device,
            elbo_call.unsupported_posterior(backend, mu, logvar) or _backend.unsupported_state(),
        )
        if backend != "reference":
            mu, logvar = materialize(mu), materialize(logvar)
            call = elbo_call.add_to_cache(key, elbo_call.Call(backend, mu, logvar, None, num_samples=num_samples))
    if call is not None:
        return autograd.reparameterize(call, mu, logvar, seed, first_row)
    return reference.reparameterize(mu, logvar, num_samples=num_samples, seed=seed, first_row=first_row)


def kl_divergence(
    mu: Tensor, logvar: Tensor, prior: Prior | None = None, *, reduction: str = "none", backend: str = "auto"
) -> Tensor:
    """KL divergence of N(mu, e^logvar) from N(0, I), or from any diagonal Gaussian, in closed form, in nats.

        kl[n] = sum_l 1/2 ((mu - mu_p)^2 e^-logvar_p + phi(logvar - logvar_p)),    phi(t) = e^t - 1 - t >= 0

    Parameters
    ----------
    mu, logvar : tensors ``[N, *latent]``
        Mean and log variance of the first Gaussian.
    prior : pair of tensors ``(mu_p, logvar_p)``
        The second Gaussian, N(0, I) if None. Each tensor broadcasts against mu. Swap the two Gaussians for the KL in
        the other direction.
    reduction : "none", "mean" or "sum"
        Reduction over the batch; the latent dims are always summed.
    backend : "auto", "triton", "numba" or "reference"
        As in `elbo`.

    Returns
    -------
    Tensor
        ``[N]``, or 0-d; float32, or float64 if any input is float64. Never negative. phi is accurate to 4 ulp for every
        logvar, so the KL is accurate near posterior collapse.

    Raises
    ------
    TypeError, ValueError, BackendError
        Same as `elbo`.

    Notes
    -----
    Equivalent to ``torch.distributions.kl_divergence(Normal(mu, std), Normal(mu_p, std_p))``, summed over the latent
    dims.

    References
    ----------
    Kingma & Welling (2014), appendix B.

    Examples
    --------
    >>> import torch, fastvae
    >>> fastvae.kl_divergence(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
    tensor([0.5000])
    >>> fastvae.kl_divergence(torch.zeros(1, 1), torch.full((1, 1), 1e-6))   # 2.5e-13; the textbook form gives 0
    tensor([2.5000e-13])
    """
    backend = _backend.requested(backend)
    key, call = None, None
    if backend != "reference":
        key, call = elbo_call.Call.find(mu, logvar, None, None, prior, None, ("kl", reduction, backend))
    if call is None:
        check_posterior(mu, logvar, prior)
        check_reduction(reduction, mu.shape[0])
        if backend != "reference":
            unsupported = elbo_call.unsupported_posterior(backend, mu, logvar, prior) or _backend.unsupported_state()
            backend = _backend.choose("kl_divergence", backend, mu.device, unsupported)
            if backend != "reference":
                mu, logvar, prior = materialize(mu), materialize(logvar), elbo_call.materialize_prior(prior)
                call = elbo_call.add_to_cache(key, elbo_call.Call(backend, mu, logvar, prior, reduction=reduction))
    if call is not None:
        return autograd.kl_divergence(call, mu, logvar, prior)
    return reference.kl_divergence(mu, logvar, prior, reduction=reduction)
