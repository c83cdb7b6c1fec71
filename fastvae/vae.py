"""VAE: encoder, decoder, prior and likelihood in one module, trained by `fastvae.elbo`. Bring your own networks."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from math import log, prod
from typing import Any

import torch
from torch import Tensor, nn

from ._core.checks import (
    check_likelihood,
    check_posterior,
    check_prior,
    check_x,
    checked_decoder,
    checked_num_samples,
    checked_x_scale,
    describe,
    integer,
)
from ._core.numbers import is_integer
from ._elbo.api import elbo, elbo_terms, reparameterize
from ._elbo.values import check_arguments, checked_outputs, warn_of_range
from .likelihoods import LIKELIHOODS, Gaussian, LocationScale
from .reference.elbo.formulas import ElboTerms, Prior, compute_dtype, decode_with, log_likelihood_elements, sum_event
from .reference.elbo.likelihoods import gaussian_log_prob

ROWS_AT_ONCE = 65536  # decoder rows of one piece of `log_likelihood`, which bounds its memory


class VAE(nn.Module):
    """A variational autoencoder: z ~ p(z), x ~ p(x | decoder(z)), with q(z|x) = N(mu, e^logvar) from the encoder.

    Parameters
    ----------
    encoder : module or callable
        x ``[N, *event]`` -> ``(mu, logvar)``, each ``[N, *latent]``. The parameters of a module are this one's as well;
        those that another callable uses are not, so hand them to the optimizer yourself.
    decoder : module or callable
        z ``[N, *latent]`` -> x_hat ``[N, *event]``, or ``(x_hat, log_scale)``.
    latent : int or tuple of ints
        The shape of one z.
    likelihood : `Gaussian`, `Laplace`, `Bernoulli`, or an object with an elementwise ``log_prob(x, x_hat)``
        A tensor scale or log_scale of the first two becomes a parameter of this module if it is an ``nn.Parameter``,
        and a buffer otherwise; a likelihood that is a module becomes a part of this one. `sample` and `reconstruct`
        ask an object of your own for ``sample(x_hat, generator)`` and ``mean(x_hat)``.
    prior : pair of tensors ``(mu_p, logvar_p)``
        p(z) = N(mu_p, e^logvar_p) in place of N(0, I), for all methods. Each broadcasts against one z, and becomes the
        parameter or buffer ``mu_p`` or ``logvar_p`` of this module. A prior that differs from row to row is for
        `fastvae.elbo`.

    Raises
    ------
    ValueError, TypeError
        As `fastvae.elbo`, from the methods.

    Notes
    -----
    Equivalent to writing the training loop with `fastvae.elbo` by hand. Units are nats; dtypes follow the networks'.
    Source: Kingma & Welling, "Auto-encoding variational Bayes" (2014).

    Examples
    --------
    >>> import torch, fastvae
    >>> x = torch.rand(16, 8, 8)
    >>> vae = fastvae.VAE.mlp((8, 8), latent=2, hidden=32)
    >>> optimizer = torch.optim.Adam(vae.parameters())
    >>> loss = -vae.elbo(x)
    >>> loss.backward()
    >>> optimizer.step()
    >>> vae.sample(3).shape, vae.reconstruct(x).shape, vae.log_likelihood(x, num_samples=10).shape
    (torch.Size([3, 8, 8]), torch.Size([16, 8, 8]), torch.Size([16]))
    """

    event_shape: tuple[int, ...] | None = None  # of one x, where it is known
    mu_p: Tensor | None
    logvar_p: Tensor | None

    def __init__(
        self,
        encoder: Callable[[Tensor], tuple[Tensor, Tensor]],
        decoder: Callable[[Tensor], Any],
        *,
        latent: int | tuple[int, ...],
        likelihood: Any = None,
        prior: Prior | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        sizes: Any = [latent] if is_integer(latent) else latent
        if not isinstance(sizes, tuple | list) or not all(is_integer(n) and n >= 0 for n in sizes):
            raise TypeError(f"latent must be an int or a tuple of ints, none negative, got {describe(latent)}")
        self.latent_shape = tuple(map(int, sizes))
        self._likelihood = Gaussian() if likelihood is None else likelihood
        self._held = ""  # "scale" or "log_scale", where that is a parameter or buffer of this module
        for name in ("scale", "log_scale") if isinstance(self._likelihood, LocationScale) else ():
            if isinstance(value := getattr(self._likelihood, name), Tensor):
                self._hold(name, value)
                self._held = name
                self._likelihood = replace(self._likelihood, scale=1.0, log_scale=None)
        check_prior(prior, torch.Size(self.latent_shape), "one z")
        for name, t in zip(("mu_p", "logvar_p"), prior or (None, None), strict=True):
            self._hold(name, t)

    def _hold(self, name: str, value: Tensor | None) -> None:
        """Make a tensor a parameter of this module, or a buffer."""
        if isinstance(value, nn.Parameter):
            self.register_parameter(name, value)
        else:
            self.register_buffer(name, value)

    @classmethod
    def mlp(
        cls,
        event: int | tuple[int, ...],
        *,
        latent: int = 2,
        hidden: int = 256,
        likelihood: str = "gaussian",
        scale: float | str = "learned",
    ) -> "VAE":
        """The network of two two-layer perceptrons, x -> hidden -> (mu, logvar) and z -> hidden -> x_hat.

        Parameters
        ----------
        event : int or tuple of ints
            The shape of one x.
        latent, hidden : int
        likelihood : "gaussian", "laplace" or "bernoulli"
        scale : float or "learned"
            Of the first two: a constant, or one learned number.

        Examples
        --------
        >>> import fastvae
        >>> fastvae.VAE.mlp(64, latent=2, hidden=16, likelihood="bernoulli").likelihood
        Bernoulli()
        """
        latent, hidden = integer("latent", latent, 1), integer("hidden", hidden, 1)
        event = (int(event),) if is_integer(event) else tuple(event)  # type: ignore[arg-type]
        D = prod(event)
        encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(D, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent), MeanAndLogvar()
        )
        decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, D), nn.Unflatten(1, event))
        if not isinstance(likelihood, str) or likelihood not in LIKELIHOODS:
            names = ", ".join(map(repr, LIKELIHOODS))
            raise ValueError(f"likelihood must be one of {names}, got {describe(likelihood)}")
        kind = LIKELIHOODS[likelihood]
        options: dict[str, Any] = {}
        if issubclass(kind, LocationScale):
            if isinstance(scale, str) and scale != "learned":
                raise ValueError(f"scale must be a positive float or 'learned', got {scale!r}")
            options = {"log_scale": nn.Parameter(torch.zeros(()))} if scale == "learned" else {"scale": scale}
        vae = cls(encoder, decoder, latent=latent, likelihood=kind(**options))
        vae.event_shape = event
        return vae

    @property
    def likelihood(self) -> Any:
        """The likelihood, with the scale that this module holds, if it does."""
        return replace(self._likelihood, **{self._held: getattr(self, self._held)}) if self._held else self._likelihood

    @property
    def prior(self) -> Prior | None:
        """The pair (mu_p, logvar_p), or None for N(0, I)."""
        return None if self.mu_p is None or self.logvar_p is None else (self.mu_p, self.logvar_p)

    def elbo(self, x: Tensor, **options: Any) -> Tensor:
        """`fastvae.elbo` of x, with any of its options but the prior and the likelihood, which are this module's."""
        mu, logvar = self.encode(x, options.get("x_scale"))
        return elbo(x, self.decoder, mu, logvar, **self._own(options), **options)

    def elbo_terms(self, x: Tensor, **options: Any) -> ElboTerms:
        """`fastvae.elbo_terms` of x, with the same options."""
        mu, logvar = self.encode(x, options.get("x_scale"))
        return elbo_terms(x, self.decoder, mu, logvar, **self._own(options), **options)

    forward = elbo

    def _own(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options that are this module's, and an error if the call has them as well."""
        for name in ("prior", "likelihood"):
            if name in options:
                raise TypeError(
                    f"{name} is the VAE's own, so that sample and log_likelihood use it as well:"
                    f" give it to VAE(..., {name}=...)"
                )
        return {"likelihood": self.likelihood, "prior": self.prior}

    def encode(self, x: Tensor, x_scale: float | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), each ``[N, *latent]``; bool and uint8 x reach the encoder as floats."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {describe(x)}")
        if self.event_shape is not None and x.shape[1:] != torch.Size(self.event_shape):
            shape = ", ".join(map(str, ("N", *self.event_shape)))
            raise ValueError(f"x must have the shape [{shape}], got {list(x.shape)}")
        x_scale = checked_x_scale(x_scale)
        if not x.is_floating_point():
            x = x.to(torch.get_default_dtype()) * (1.0 if x_scale is None else x_scale)
        pair = self.encoder(x)
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"the encoder must return a pair (mu, logvar), got {describe(pair)}")
        mu, logvar = pair
        if isinstance(mu, Tensor) and mu.shape[1:] != torch.Size(self.latent_shape):
            shape = ", ".join(map(str, ("N", *self.latent_shape)))
            raise ValueError(f"the encoder must return mu of the shape [{shape}], as latent says, got {list(mu.shape)}")
        return mu, logvar

    def _posterior(self, x: Tensor, x_scale: float | None) -> tuple[Tensor, Tensor]:
        """`encode`, for what does not go on to `fastvae.elbo`, with the checks of that."""
        mu, logvar = self.encode(x, x_scale)
        check_posterior(mu, logvar)
        check_x(x, x_scale, mu)
        check_likelihood(self.likelihood, x, None)
        return mu, logvar

    @torch.no_grad()
    def sample(self, n: int, *, mean: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Draw n data by ancestral sampling, ``[n, *event]``: z ~ p(z), then x ~ p(x|z), or E[x|z] if ``mean``."""
        if not is_integer(n) or n < 0:
            raise ValueError(f"n must be an int and not negative, got {describe(n)}")
        decoder = self.decoder.parameters() if isinstance(self.decoder, nn.Module) else ()  # a scale may have another
        like = next(chain(decoder, self.parameters(), self.buffers()), torch.empty(0))
        z = torch.randn(int(n), *self.latent_shape, generator=generator, dtype=like.dtype, device=like.device)
        if self.prior is not None:
            mu_p, logvar_p = self.prior
            z = (mu_p + torch.exp(0.5 * logvar_p) * z).to(like.dtype)
        x_hat, likelihood, _ = decode_with(checked_decoder(self.decoder), z, self.likelihood)
        check_likelihood(likelihood, x_hat, None)
        if mean:
            return method_of(likelihood, "mean")(x_hat)
        return method_of(likelihood, "sample")(x_hat, generator)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, x_scale: float | None = None) -> Tensor:
        """E[x' | z = mu(x)], ``[N, *event]``: what the decoder makes of the mean of q(z|x)."""
        mu, _ = self._posterior(x, x_scale)
        x_hat, likelihood, _ = decode_with(checked_decoder(self.decoder, x), mu, self.likelihood)
        return method_of(likelihood, "mean")(x_hat)

    @torch.no_grad()
    def log_likelihood(
        self,
        x: Tensor,
        num_samples: int = 1000,
        *,
        x_scale: float | None = None,
        seed: int | None = None,
        check_values: bool = False,
    ) -> Tensor:
        """Estimate log p(x), ``[N]`` in nats, by importance sampling from q: without gradient.

            log p(x) ~ log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x),   z_k ~ q(z|x)

        A lower bound in expectation, never below the ELBO in expectation, and rising to log p(x) with K. x, `x_scale`,
        `seed` and `check_values` are those of `fastvae.elbo`.
        Source: Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders" (2016).
        """
        if checked_num_samples(num_samples) is None:
            raise TypeError("num_samples must be an int, got None")
        mu, logvar = self._posterior(x, x_scale)
        decoder = self.decoder
        if check_values:
            check_arguments(x, decoder, mu, logvar, self.likelihood, self.prior, x_scale)
            decoder = checked_outputs(decoder)
        else:
            warn_of_range(x, self.likelihood, x_scale)
        N = x.shape[0]
        z = reparameterize(mu, logvar, num_samples=num_samples, seed=seed)  # [K, N, *latent]
        mu, logvar = (t.to(compute_dtype(t)) for t in (mu, logvar))  # the weights need float32, the decoder its dtype
        mu_p, logvar_p = self.prior or (torch.zeros_like(mu), torch.zeros_like(mu))
        log_weights = []
        for z_k in z.split(max(1, ROWS_AT_ONCE // max(N, 1))):
            K = z_k.shape[0]
            x_hat, likelihood, _ = decode_with(checked_decoder(decoder, x, K), z_k, self.likelihood, K)
            x_k = x.expand(K, *x.shape)
            log_p = log_likelihood_elements(x_k, x_hat, likelihood.log_prob, x_scale)  # [K, N, *event]
            log_ratio = gaussian_log_prob(z_k, mu_p, 0.5 * logvar_p) - gaussian_log_prob(z_k, mu, 0.5 * logvar)
            log_p_row, log_ratio_row = (sum_event(t.flatten(0, 1)).view(K, N) for t in (log_p, log_ratio))
            log_weights.append(log_p_row + log_ratio_row)
        return torch.cat(log_weights).logsumexp(0) - log(num_samples)


def method_of(likelihood: Any, name: str) -> Callable[..., Tensor]:
    """That method of a likelihood, which one of the user's own need not have."""
    if not callable(method := getattr(likelihood, name, None)):
        raise TypeError(f"the likelihood {type(likelihood).__name__} has no method {name}, which is needed here")
    return method


class MeanAndLogvar(nn.Module):
    """The two halves of the features: ``[N, 2 L]`` -> ``(mu, logvar)``."""

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Split h; views, no copy."""
        mu, logvar = h.chunk(2, dim=1)
        return mu, logvar
