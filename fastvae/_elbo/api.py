"""`elbo` and `elbo_terms`: documentation, argument checks, choice of backend."""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._core import backend as _backend
from .._core.arrays import materialize
from .._core.checks import (
    check_likelihood,
    check_posterior,
    check_reduction,
    check_x,
    check_x_hat,
    checked_decoder,
    checked_first_row,
    checked_num_samples,
    checked_seed,
    checked_weight,
    checked_x_scale,
)
from ..likelihoods import UNIT_GAUSSIAN
from ..reference.elbo.formulas import Decoder, ElboTerms, Prior
from . import autograd
from . import call as elbo_call
from .values import check_arguments, checked_outputs, warn_out_of_range


def elbo(
    x: Tensor,
    x_hat: Tensor | Decoder,
    mu: Tensor,
    logvar: Tensor,
    *,
    likelihood: Any = UNIT_GAUSSIAN,
    beta: float | Tensor = 1.0,
    free_bits: float | Tensor = 0.0,
    prior: Prior | None = None,
    num_samples: int | None = None,
    x_scale: float | None = None,
    reduction: str = "mean",
    seed: int | Tensor | None = None,
    first_row: int = 0,
    check_values: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Evidence lower bound (ELBO) of a variational autoencoder, in nats.

    It is differentiable, so ``-elbo(...)`` is the loss to minimize.

        elbo[n] = 1/K sum_k sum_d log p(x_nd | z_nk)  -  beta KL(N(mu_n, e^logvar_n) || N(0, I))

    Parameters
    ----------
    x : tensor ``[N, *event]``
        The data: floating-point, bool (0 and 1), or uint8 with ``x_scale``.
    x_hat : tensor ``[N, *event]``, or the decoder
        The decoder's output for a z drawn with `reparameterize` (logits for `Bernoulli`); or the decoder itself, a
        callable. It is called once, with a z ``[N, *latent]`` drawn here, and returns x_hat or the pair
        ``(x_hat, log_scale)``.
    mu, logvar : tensors ``[N, *latent]``
        Mean and log variance of q(z|x): the encoder's output, or free parameters, one pair per data point.
    likelihood : `Gaussian`, `Laplace`, `Bernoulli`, or an object with an elementwise ``log_prob(x, x_hat)``
        p(x|z); by default N(x_hat, 1).
    beta : float or 0-d tensor
        Weight of the KL, for a warm-up or a beta-VAE. At 0 the KL is left out, even where it is infinite.
    free_bits : float or 0-d tensor
        lambda, in nats per latent element. kl_nl is replaced by the constant lambda wherever its batch mean is at most
        lambda, so that the batch mean of the penalty is ``beta * sum_l max(lambda, kl_bar_l)``.
    prior : pair of tensors ``(mu_p, logvar_p)``
        p(z) = N(mu_p, e^logvar_p) instead of N(0, I). Each broadcasts against mu and receives a gradient.
    num_samples : int
        Number of draws K per data point. A tensor x_hat then has the shape ``[K, N, *event]``; a decoder is called with
        z of shape ``[K*N, *latent]``, in which k varies slowest.
    x_scale : float
        Factor applied to uint8 x: 1/255, or 1.0.
    reduction : "mean", "sum" or "none"
        Reduction over the batch; event and latent dims are always summed. "none" returns ``[N]``.
    seed : int in [0, 2^63) or 0-d int64 tensor
        Seed of the noise, which depends only on (seed, row, draw, latent element), on every device. If None, the seed
        is drawn from torch's generator, so that `torch.manual_seed` makes it reproducible.
    first_row : int
        Index of the first row, on which the noise depends. With the same seed, the parts of a batch get the same noise
        as the whole batch if each part passes the index of its first row.
    check_values : bool
        Check the values of all tensors, reading each once. Infinities, NaN, scales that are not positive, and x outside
        [0, 1] for `Bernoulli` then raise a ValueError that names the argument and the position. Synchronizes a GPU.
    backend : "auto", "triton", "numba" or "reference"
        A backend requested by name computes the call or raises; it is never replaced by another.

    Returns
    -------
    Tensor
        0-d, or ``[N]`` for "none"; float32, or float64 if any input is float64. Gradients have the dtype of the input.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type, dtype, shape or device, for the mean of an empty batch, and for invalid
        values if ``check_values`` is set.
    BackendError
        If the requested backend does not support the call.

    Notes
    -----
    With a decoder and the default options, equivalent to::

        q, p = torch.distributions.Normal(mu, torch.exp(logvar / 2)), torch.distributions.Normal(0, 1)
        log_likelihood = torch.distributions.Normal(decoder(q.rsample()), 1).log_prob(x).flatten(1).sum(1)
        (log_likelihood - torch.distributions.kl_divergence(q, p).flatten(1).sum(1)).mean()

    but the KL is accurate near posterior collapse (logvar near 0), where that form loses all precision.

    Before you capture a training step in a CUDA graph, run the same step once on a side stream, as PyTorch's notes on
    CUDA graphs describe. A kernel is loaded at its first launch, which is not allowed during capture; each dtype, set
    of options and alignment has its own kernel. With ``seed=None`` each replay draws new noise.

    References
    ----------
    Kingma & Welling, "Auto-encoding variational Bayes" (2014); Kingma et al. (2016) for free bits.

    Examples
    --------
    >>> import torch, fastvae
    >>> encoder, decoder = torch.nn.Linear(4, 2 * 2), torch.nn.Linear(2, 4)
    >>> x = torch.rand(8, 4)
    >>> mu, logvar = encoder(x).chunk(2, dim=1)
    >>> loss = -fastvae.elbo(x, decoder, mu, logvar)
    >>> loss.backward()
    >>> encoder.weight.grad.shape
    torch.Size([4, 4])

    >>> at_prior = torch.zeros(1, 2)      # q = p: the KL is 0, and log N(0; 0, I) remains
    >>> fastvae.elbo(torch.zeros(1, 4), torch.zeros(1, 4), at_prior, at_prior)
    tensor(-3.6758)
    """
    return _evaluate(
        *(x, x_hat, mu, logvar, likelihood, beta, free_bits, prior, num_samples, x_scale, reduction, seed, first_row),
        *(check_values, backend, False),
    )


def elbo_terms(
    x: Tensor,
    x_hat: Tensor | Decoder,
    mu: Tensor,
    logvar: Tensor,
    *,
    likelihood: Any = UNIT_GAUSSIAN,
    beta: float | Tensor = 1.0,
    free_bits: float | Tensor = 0.0,
    prior: Prior | None = None,
    num_samples: int | None = None,
    x_scale: float | None = None,
    reduction: str = "mean",
    seed: int | Tensor | None = None,
    first_row: int = 0,
    check_values: bool = False,
    backend: str = "auto",
) -> ElboTerms:
    """ELBO and its two terms ``(elbo, log_likelihood, kl)``, each differentiable, in nats.

        log_likelihood[n] = 1/K sum_k sum_d log p(x_nd | z_nk)
        kl[n]             = sum_l kl_nl, without beta and free bits

    Parameters
    ----------
    x, x_hat, mu, logvar
        As in `elbo`.
    likelihood, beta, free_bits, prior, num_samples, x_scale, reduction, seed, first_row, check_values, backend
        As in `elbo`.

    Returns
    -------
    ElboTerms
        Named tuple of tensors, each reduced over the batch according to ``reduction``: 0-d, or ``[N]`` for "none".

    Raises
    ------
    TypeError, ValueError, BackendError
        Same as `elbo`.

    Notes
    -----
    Equivalent to calling `elbo` and computing its terms separately. Shapes, dtypes and references are those of `elbo`.

    Examples
    --------
    >>> import torch, fastvae
    >>> mu, logvar = torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
    >>> fastvae.elbo_terms(torch.zeros(1, 4), torch.zeros(1, 4), mu, logvar)
    ElboTerms(elbo=tensor(-4.1758), log_likelihood=tensor(-3.6758), kl=tensor(0.5000))
    """
    return _evaluate(
        *(x, x_hat, mu, logvar, likelihood, beta, free_bits, prior, num_samples, x_scale, reduction, seed, first_row),
        *(check_values, backend, True),
    )


def _evaluate(
    x: Any, x_hat: Any, mu: Any, logvar: Any, likelihood: Any, beta: Any, free_bits: Any, prior: Any, num_samples: Any,
    x_scale: Any, reduction: Any, seed: Any, first_row: Any, check_values: Any, backend: Any, terms: bool,
) -> Any:  # fmt: skip
    """Check the arguments, choose a backend and call it: for the ELBO and its terms, or for the ELBO alone.

    If a call with the same layouts and options was checked before, only the values of the scalar arguments are checked.
    """
    backend = _backend.requested(backend)
    key = call = None
    if backend != "reference":
        learned = isinstance(beta, Tensor) and beta.requires_grad
        options: tuple[Any, ...] = (reduction, backend, terms, learned)
        if num_samples is not None or x_scale is not None:  # their types as well: True == 1
            options = *options, num_samples, type(num_samples), x_scale, type(x_scale)
        key, call = elbo_call.Call.find(mu, logvar, x, x_hat, prior, likelihood, options)
    if call is None:
        check_posterior(mu, logvar, prior)
        num_samples, x_scale = checked_num_samples(num_samples), checked_x_scale(x_scale)
        check_x(x, x_scale, mu)
        check_reduction(reduction, mu.shape[0])
        check_likelihood(likelihood, x, num_samples)
    if call is None or type(beta) is not float or beta != 1.0:
        beta = checked_weight("beta", beta)
    if call is None or type(free_bits) is not float or free_bits != 0.0:
        free_bits = checked_weight("free_bits", free_bits)
    if seed is not None:
        seed = checked_seed(seed, mu.device)
    if type(first_row) is not int or first_row != 0:
        first_row = checked_first_row(first_row)
    if not isinstance(x_hat, Tensor) and callable(x_hat):
        x_hat = checked_decoder(x_hat, x, num_samples)
    elif call is None:
        check_x_hat(x_hat, x, num_samples)
    if check_values:
        check_arguments(x, x_hat, mu, logvar, likelihood, prior, x_scale)
        x_hat = checked_outputs(x_hat)
    if call is not None:
        return autograd.elbo_terms(call, x, x_hat, mu, logvar, likelihood, prior, seed, first_row, beta, free_bits)
    arguments = {"likelihood": likelihood, "num_samples": num_samples, "x_scale": x_scale, "reduction": reduction}
    weights = {"prior": prior, "seed": seed, "first_row": first_row, "beta": beta, "free_bits": free_bits}
    if backend != "reference":
        strict = backend != "auto"
        unsupported = elbo_call.unsupported_posterior(backend, mu, logvar, prior) or elbo_call.unsupported_likelihood(
            backend, x, x_hat, likelihood
        )
        unsupported = unsupported or ("beta requires grad" if learned else None)
        if strict and torch.compiler.is_compiling():
            # `auto` leaves graphs to Inductor, which is faster on a CPU: see kernels/README.md
            if backend == "triton" and mu.device.type == "cpu":
                unsupported = "Triton's interpreter does not run in compiled graphs"
            _backend.choose("elbo", backend, mu.device, unsupported)
            from . import library as elbo_library  # not at `import fastvae`: registering the operations takes 10 ms

            traced = elbo_library.elbo_terms(x, x_hat, mu, logvar, **weights, **arguments)
            return traced if terms else traced.elbo
        backend = _backend.choose("elbo", backend, mu.device, unsupported or _backend.unsupported_state())
        if backend != "reference":
            x, x_hat, mu, logvar, prior = *map(materialize, (x, x_hat, mu, logvar)), elbo_call.materialize_prior(prior)
            arguments["likelihood"] = likelihood = elbo_call.materialize_likelihood(likelihood)
            if not check_values:
                warn_out_of_range(x, likelihood, x_scale)
            call = elbo_call.Call(backend, mu, logvar, prior, strict=strict, terms=terms, **arguments)
            elbo_call.add_to_cache(key, call)
            return autograd.elbo_terms(call, x, x_hat, mu, logvar, likelihood, prior, seed, first_row, beta, free_bits)
    if torch.compiler.is_compiling() and not isinstance(beta, Tensor):
        # A float that changes, as in a warm-up, would trigger a recompilation for each value. A 0-d float64 tensor does
        # not change the dtype of an [N] tensor.
        weights["beta"] = torch.ones((), dtype=torch.float64, device=mu.device) * beta
    function = reference.elbo_terms if terms else reference.elbo
    return function(x, x_hat, mu, logvar, **arguments, **weights)
