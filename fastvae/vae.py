"""VAE: an encoder, a decoder and a likelihood held together, trained by `fastvae.elbo`. Bring your own networks."""

from collections.abc import Callable
from dataclasses import replace
from math import log, prod
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import check_num_samples, describe
from ._elbo import elbo, elbo_terms, reparameterize
from .likelihoods import LIKELIHOODS, Gaussian, LocationScale
from .reference.elbo import ElboTerms, compute_dtype, decode_with, sum_event
from .reference.elbo import log_likelihood as mean_log_prob
from .reference.likelihoods import gaussian_log_prob

ROWS_AT_ONCE = 65536  # decoder rows of one piece of `log_likelihood`, which bounds its memory


class VAE(nn.Module):
    """A variational autoencoder: z ~ N(0, I), x ~ p(x | decoder(z)), with q(z|x) = N(mu, e^logvar) from the encoder.

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
        A scale or log_scale that is an ``nn.Parameter`` becomes a parameter of this module.

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

    def __init__(
        self,
        encoder: Callable[[Tensor], tuple[Tensor, Tensor]],
        decoder: Callable[[Tensor], Any],
        *,
        latent: int | tuple[int, ...],
        likelihood: Any = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.latent_shape = (latent,) if isinstance(latent, int) else tuple(latent)
        self._likelihood = Gaussian() if likelihood is None else likelihood
        self._learned = (
            ""  # "scale" or "log_scale" where that is a parameter: of this module then, not of the likelihood
        )
        for name in ("scale", "log_scale"):
            if isinstance(value := getattr(self._likelihood, name, None), nn.Parameter):
                self.register_parameter(name, value)
                self._learned = name
                self._likelihood = replace(self._likelihood, **{name: None if name == "log_scale" else 1.0})

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
        event = (event,) if isinstance(event, int) else tuple(event)
        D = prod(event)
        encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(D, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent), MeanAndLogvar()
        )
        decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, D), nn.Unflatten(1, event))
        if not isinstance(likelihood, str) or likelihood not in LIKELIHOODS:
            names = ", ".join(map(repr, LIKELIHOODS))
            raise ValueError(f"likelihood must be one of {names}, got {describe(likelihood)}")
        kind = LIKELIHOODS[likelihood]
        if not issubclass(kind, LocationScale):
            return cls(encoder, decoder, latent=latent, likelihood=kind())
        if scale == "learned":
            return cls(encoder, decoder, latent=latent, likelihood=kind(log_scale=nn.Parameter(torch.zeros(()))))
        if isinstance(scale, str):
            raise ValueError(f"scale must be a positive float or 'learned', got {scale!r}")
        return cls(encoder, decoder, latent=latent, likelihood=kind(scale))

    @property
    def likelihood(self) -> Any:
        """The likelihood, with this module's own scale where that is learned."""
        return (
            replace(self._likelihood, **{self._learned: getattr(self, self._learned)})
            if self._learned
            else self._likelihood
        )

    def elbo(self, x: Tensor, **options: Any) -> Tensor:
        """`fastvae.elbo` of x, with any of its options."""
        mu, logvar = self.encode(x, options.get("x_scale"))
        return elbo(x, self.decoder, mu, logvar, likelihood=self.likelihood, **options)

    def elbo_terms(self, x: Tensor, **options: Any) -> ElboTerms:
        """`fastvae.elbo_terms` of x, with any of its options."""
        mu, logvar = self.encode(x, options.get("x_scale"))
        return elbo_terms(x, self.decoder, mu, logvar, likelihood=self.likelihood, **options)

    forward = elbo

    def encode(self, x: Tensor, x_scale: float | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), each ``[N, *latent]``; bool and uint8 x reach the encoder as floats."""
        if not x.is_floating_point():
            x = x.to(torch.get_default_dtype()) * (1.0 if x_scale is None else x_scale)
        return self.encoder(x)

    def _decode(self, z: Tensor) -> tuple[Tensor, Any]:
        x_hat, likelihood, _ = decode_with(self.decoder, z, self.likelihood)
        return x_hat, likelihood

    @torch.no_grad()
    def sample(self, n: int, *, mean: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Draw n data by ancestral sampling, ``[n, *event]``: z ~ N(0, I), then x ~ p(x|z), or E[x|z] if ``mean``."""
        like = next(self.parameters())
        z = torch.randn(n, *self.latent_shape, generator=generator, dtype=like.dtype, device=like.device)
        x_hat, likelihood = self._decode(z)
        return likelihood.mean(x_hat) if mean else likelihood.sample(x_hat, generator)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, x_scale: float | None = None) -> Tensor:
        """E[x' | z = mu(x)], ``[N, *event]``: what the decoder makes of the mean of q(z|x)."""
        x_hat, likelihood = self._decode(self.encode(x, x_scale)[0])
        return likelihood.mean(x_hat)

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, num_samples: int = 1000, *, x_scale: float | None = None, seed: int | None = None
    ) -> Tensor:
        """Estimate log p(x), ``[N]`` in nats, by importance sampling from q: without gradient.

            log p(x) ~ log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x),   z_k ~ q(z|x)

        A lower bound in expectation, never below the ELBO in expectation, and rising to log p(x) with K.
        Source: Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders" (2016).
        """
        check_num_samples(num_samples)
        N = x.shape[0]
        mu, logvar = self.encode(x, x_scale)
        z = reparameterize(mu, logvar, num_samples=num_samples, seed=seed)  # [K, N, *latent]
        mu, logvar = (t.to(compute_dtype(t)) for t in (mu, logvar))  # the weights need float32, the decoder its dtype
        zero, log_weights = torch.zeros_like(mu), []
        for z_k in z.split(max(1, ROWS_AT_ONCE // max(N, 1))):
            K = z_k.shape[0]
            x_hat, likelihood = self._decode(z_k.flatten(0, 1))
            x_k = x.expand(K, *x.shape).flatten(0, 1)
            log_p = mean_log_prob(x_k, x_hat, likelihood.log_prob, x_scale=x_scale).view(K, N)
            log_ratio = gaussian_log_prob(z_k, zero) - gaussian_log_prob(z_k, mu, 0.5 * logvar)  # [K, N, *latent]
            log_weights.append(log_p + sum_event(log_ratio.flatten(0, 1)).view(K, N))
        return torch.cat(log_weights).logsumexp(0) - log(num_samples)


class MeanAndLogvar(nn.Module):
    """The two halves of the features: ``[N, 2 L]`` -> ``(mu, logvar)``."""

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Split h; views, no copy."""
        mu, logvar = h.chunk(2, dim=1)
        return mu, logvar
