"""`VAE`: your encoder and decoder, a prior and a likelihood in one module, trained with `fastvae.elbo`."""

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
from ._elbo.api import elbo, elbo_terms
from ._elbo.latent import reparameterize
from ._elbo.values import check_arguments, checked_outputs, warn_out_of_range
from .likelihoods import LIKELIHOODS, Gaussian, LocationScale
from .reference.elbo.formulas import ElboTerms, Prior, compute_dtype, decode_with, log_likelihood_elements, sum_event
from .reference.elbo.likelihoods import gaussian_log_prob

MAX_DECODER_ROWS = 65536  # rows per decoder call in `log_likelihood`, to bound memory


class VAE(nn.Module):
    """Variational autoencoder: z ~ p(z), x ~ p(x | decoder(z)), with q(z|x) = N(mu, e^logvar) from the encoder.

    Parameters
    ----------
    encoder : module or callable
        x ``[N, *event]`` -> ``(mu, logvar)``, each ``[N, *latent]``. The parameters of a module are registered in this
        one; those of any other callable are not, so pass them to the optimizer yourself.
    decoder : module or callable
        z ``[N, *latent]`` -> x_hat ``[N, *event]`` (logits for `Bernoulli`), or ``(x_hat, log_scale)``.
    latent : int or tuple of ints
        Shape of one z.
    likelihood : `Gaussian`, `Laplace`, `Bernoulli`, or an object with an elementwise ``log_prob(x, x_hat)``
        A tensor scale or log_scale of the first two becomes a parameter of this module if it is an ``nn.Parameter``,
        and a buffer otherwise; a likelihood that is a module becomes a submodule. If you pass your own object, `sample`
        needs its method ``sample(x_hat, generator)``, and `reconstruct` its method ``mean(x_hat)``.
    prior : pair of tensors ``(mu_p, logvar_p)``
        p(z) = N(mu_p, e^logvar_p) instead of N(0, I), for all methods. Each broadcasts against one z, and becomes the
        parameter or buffer ``mu_p`` or ``logvar_p`` of this module. For a prior that differs from row to row, use
        `fastvae.elbo`.

    Raises
    ------
    ValueError, TypeError
        From the methods, same as `fastvae.elbo`.

    Notes
    -----
    Equivalent to a training loop written with `fastvae.elbo`. Units are nats; dtypes are those of the networks.

    References
    ----------
    Kingma & Welling, "Auto-encoding variational Bayes" (2014).

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

    event_shape: tuple[int, ...] | None = None  # shape of one x, if known
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
        self._scale_name = ""  # "scale" or "log_scale" if that is a parameter or buffer of this module
        for name in ("scale", "log_scale") if isinstance(self._likelihood, LocationScale) else ():
            if isinstance(value := getattr(self._likelihood, name), Tensor):
                self._register(name, value)
                self._scale_name = name
                self._likelihood = replace(self._likelihood, scale=1.0, log_scale=None)
        check_prior(prior, torch.Size(self.latent_shape), "one z")
        for name, t in zip(("mu_p", "logvar_p"), prior or (None, None), strict=True):
            self._register(name, t)

    def _register(self, name: str, value: Tensor | None) -> None:
        """Register a tensor as a parameter or a buffer of this module."""
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
        """VAE of two two-layer perceptrons, x -> hidden -> (mu, logvar) and z -> hidden -> x_hat.

        Parameters
        ----------
        event : int or tuple of ints
            Shape of one x.
        latent, hidden : int
            Number of latent elements and of hidden units.
        likelihood : "gaussian", "laplace" or "bernoulli"
            For "bernoulli", x_hat are logits.
        scale : float or "learned"
            Scale of the first two: a constant, or a single learned number.

        Returns
        -------
        VAE

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong type or value.

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
        """The likelihood, with the module's scale if that is a parameter or buffer."""
        return (
            replace(self._likelihood, **{self._scale_name: getattr(self, self._scale_name)})
            if self._scale_name
            else self._likelihood
        )

    @property
    def prior(self) -> Prior | None:
        """The pair (mu_p, logvar_p), or None for N(0, I)."""
        return None if self.mu_p is None or self.logvar_p is None else (self.mu_p, self.logvar_p)

    def elbo(self, x: Tensor, **options: Any) -> Tensor:
        """ELBO of x, by `fastvae.elbo`.

        Parameters
        ----------
        x : tensor ``[N, *event]``
            The data.
        **options
            Options of `fastvae.elbo`, except prior and likelihood, which belong to the module.

        Returns
        -------
        Tensor
            As `fastvae.elbo`.
        """
        mu, logvar = self.encode(x, options.get("x_scale"))
        return elbo(x, self.decoder, mu, logvar, **self._module_options(options), **options)

    def elbo_terms(self, x: Tensor, **options: Any) -> ElboTerms:
        """ELBO of x and its two terms, by `fastvae.elbo_terms`.

        Parameters
        ----------
        x : tensor ``[N, *event]``
            The data.
        **options
            Options of `fastvae.elbo_terms`, except prior and likelihood, which belong to the module.

        Returns
        -------
        ElboTerms
            As `fastvae.elbo_terms`.
        """
        mu, logvar = self.encode(x, options.get("x_scale"))
        return elbo_terms(x, self.decoder, mu, logvar, **self._module_options(options), **options)

    forward = elbo

    def _module_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options that belong to the module; TypeError if the call passes them too."""
        for name in ("prior", "likelihood"):
            if name in options:
                raise TypeError(
                    f"{name} belongs to the VAE, so that sample and log_likelihood use it as well:"
                    f" pass it to VAE(..., {name}=...)"
                )
        return {"likelihood": self.likelihood, "prior": self.prior}

    def encode(self, x: Tensor, x_scale: float | None = None) -> tuple[Tensor, Tensor]:
        """Encode x.

        Parameters
        ----------
        x : tensor ``[N, *event]``
            The data; bool and uint8 are converted to floats.
        x_scale : float
            Factor applied to uint8 x.

        Returns
        -------
        mu, logvar : tensors ``[N, *latent]``
            Mean and log variance of q(z|x).
        """
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
        """`encode` with the argument checks of `fastvae.elbo`, for methods that do not call it."""
        mu, logvar = self.encode(x, x_scale)
        check_posterior(mu, logvar)
        check_x(x, x_scale, mu)
        check_likelihood(self.likelihood, x, None)
        return mu, logvar

    @torch.no_grad()
    def sample(self, n: int, *, mean: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Draw data points by ancestral sampling: z ~ p(z), then x ~ p(x|z).

        Parameters
        ----------
        n : int
            Number of draws.
        mean : bool
            Whether to return E[x|z] instead of a draw from p(x|z).
        generator : torch.Generator
            By default torch's global generator.

        Returns
        -------
        Tensor ``[n, *event]``
        """
        if not is_integer(n) or n < 0:
            raise ValueError(f"n must be an int and not negative, got {describe(n)}")
        # z has the dtype and device of the decoder, whose dtype may differ from that of the scale.
        decoder = self.decoder.parameters() if isinstance(self.decoder, nn.Module) else ()
        like = next(chain(decoder, self.parameters(), self.buffers()), torch.empty(0))
        z = torch.randn(int(n), *self.latent_shape, generator=generator, dtype=like.dtype, device=like.device)
        if self.prior is not None:
            mu_p, logvar_p = self.prior
            z = (mu_p + torch.exp(0.5 * logvar_p) * z).to(like.dtype)
        x_hat, likelihood, _ = decode_with(checked_decoder(self.decoder), z, self.likelihood)
        check_likelihood(likelihood, x_hat, None)
        if mean:
            return get_method(likelihood, "mean")(x_hat)
        return get_method(likelihood, "sample")(x_hat, generator)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, x_scale: float | None = None) -> Tensor:
        """Reconstruct x: E[x' | z = mu(x)], decoded from the mean of q(z|x).

        Parameters
        ----------
        x : tensor ``[N, *event]``
            The data.
        x_scale : float
            Factor applied to uint8 x.

        Returns
        -------
        Tensor ``[N, *event]``
        """
        mu, _ = self._posterior(x, x_scale)
        x_hat, likelihood, _ = decode_with(checked_decoder(self.decoder, x), mu, self.likelihood)
        return get_method(likelihood, "mean")(x_hat)

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
        """Estimate log p(x) by importance sampling from q, without gradients.

            log p(x) ~ log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x),   z_k ~ q(z|x)

        In expectation, the estimate is a lower bound of log p(x), is never below the ELBO, and approaches log p(x) as K
        grows.

        Parameters
        ----------
        x : tensor ``[N, *event]``
            The data.
        num_samples : int
            Number of draws K per data point.
        x_scale, seed, check_values
            As in `fastvae.elbo`.

        Returns
        -------
        Tensor ``[N]``
            In nats.

        References
        ----------
        Burda, Grosse & Salakhutdinov, "Importance weighted autoencoders" (2016).
        """
        if checked_num_samples(num_samples) is None:
            raise TypeError("num_samples must be an int, got None")
        mu, logvar = self._posterior(x, x_scale)
        decoder = self.decoder
        if check_values:
            check_arguments(x, decoder, mu, logvar, self.likelihood, self.prior, x_scale)
            decoder = checked_outputs(decoder)
        else:
            warn_out_of_range(x, self.likelihood, x_scale)
        N = x.shape[0]
        z = reparameterize(mu, logvar, num_samples=num_samples, seed=seed)  # [K, N, *latent]
        # z keeps the decoder's dtype; the importance weights are computed in float32 at least.
        mu, logvar = (t.to(compute_dtype(t)) for t in (mu, logvar))
        mu_p, logvar_p = self.prior or (torch.zeros_like(mu), torch.zeros_like(mu))
        log_weights = []
        for z_k in z.split(max(1, MAX_DECODER_ROWS // max(N, 1))):
            K = z_k.shape[0]
            x_hat, likelihood, _ = decode_with(checked_decoder(decoder, x, K), z_k, self.likelihood, K)
            x_k = x.expand(K, *x.shape)
            log_p = log_likelihood_elements(x_k, x_hat, likelihood.log_prob, x_scale)  # [K, N, *event]
            log_ratio = gaussian_log_prob(z_k, mu_p, 0.5 * logvar_p) - gaussian_log_prob(z_k, mu, 0.5 * logvar)
            log_p_row, log_ratio_row = (sum_event(t.flatten(0, 1)).view(K, N) for t in (log_p, log_ratio))
            log_weights.append(log_p_row + log_ratio_row)
        return torch.cat(log_weights).logsumexp(0) - log(num_samples)


def get_method(likelihood: Any, name: str) -> Callable[..., Tensor]:
    """A method of a likelihood; TypeError if a user-defined likelihood lacks it."""
    if not callable(method := getattr(likelihood, name, None)):
        raise TypeError(f"the likelihood {type(likelihood).__name__} has no method {name}, which is needed here")
    return method


class MeanAndLogvar(nn.Module):
    """Split the features into two halves: ``[N, 2 L]`` -> ``(mu, logvar)``."""

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Split h into two views."""
        mu, logvar = h.chunk(2, dim=1)
        return mu, logvar
