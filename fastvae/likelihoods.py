"""Likelihoods p(x|z), which define the meaning of the decoder's output x_hat. Each is a small immutable object.

`fastvae.elbo` accepts any object with an elementwise ``log_prob(x, x_hat)``; the likelihoods here have kernels.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from ._core.numbers import is_real
from .reference.elbo.likelihoods import LINKS, bernoulli_log_prob, gaussian_log_prob, laplace_log_prob


@dataclass(frozen=True, eq=False)
class LocationScale:
    """Base class of likelihoods with a location link(x_hat) and a scale: their arguments, and the checks of these."""

    scale: float | Tensor = 1.0
    log_scale: float | Tensor | None = None
    link: str = "identity"

    def __post_init__(self) -> None:
        name, value = ("scale", self.scale) if self.log_scale is None else ("log_scale", self.log_scale)
        if name == "log_scale" and (isinstance(self.scale, Tensor) or self.scale != 1.0):
            raise ValueError("scale and log_scale are mutually exclusive: give one of them")
        if isinstance(value, Tensor):
            if not value.is_floating_point():
                raise TypeError(f"{name} must be a floating-point tensor or a float, got a tensor of {value.dtype}")
        elif not is_real(value):
            raise TypeError(f"{name} must be a float or a tensor, got {type(value).__name__}")
        elif not math.isfinite(value) or (name == "scale" and value <= 0):
            raise ValueError(f"{name} must be {'positive and ' if name == 'scale' else ''}finite, got {value}")
        if not isinstance(self.link, str) or self.link not in LINKS:
            raise ValueError(f"link must be one of {', '.join(map(repr, LINKS))}, got {self.link!r}")

    def get_log_scale(self) -> float | Tensor:
        """Logarithm of the scale, from whichever of the two was given; a tensor has at least float32 precision."""
        value = self.scale if self.log_scale is None else self.log_scale
        if isinstance(value, Tensor):
            value = value.to(torch.promote_types(value.dtype, torch.float32))
            return value.log() if self.log_scale is None else value
        return math.log(value) if self.log_scale is None else value

    def with_log_scale(self, log_scale: Tensor) -> Self:
        """The same likelihood with the log_scale that a decoder returned; ValueError if it already has a scale."""
        if self.log_scale is not None or isinstance(self.scale, Tensor) or self.scale != 1.0:
            raise ValueError(
                "the decoder returned a log_scale, but the likelihood has a scale of its own:"
                f" use {type(self).__name__}() without one"
            )
        return replace(self, log_scale=log_scale)

    def mean(self, x_hat: Tensor) -> Tensor:
        """Mean E[x | z]."""
        return LINKS[self.link](x_hat)

    def _shift_and_scale(self, noise: Tensor, x_hat: Tensor) -> Tensor:
        """Standardized noise, multiplied by the scale and shifted to the mean."""
        log_scale = torch.as_tensor(self.get_log_scale(), dtype=x_hat.dtype, device=x_hat.device)
        return self.mean(x_hat) + log_scale.exp() * noise


@dataclass(frozen=True, eq=False)
class Gaussian(LocationScale):
    """Gaussian likelihood N(x; link(x_hat), scale^2). Log densities are in nats and include all constants.

        log p = -1/2 ((x - link(x_hat)) / scale)^2 - log scale - 1/2 log 2 pi

    Parameters
    ----------
    scale : float or tensor, positive
        Standard deviation: one number, one per feature (``[*event]``), or one per element (``[N, *event]``); any shape
        that broadcasts to that of x_hat. A tensor receives a gradient. Its values are not checked, which would
        synchronize a GPU: a negative scale gives NaN.
    log_scale : float or tensor
        Logarithm of the scale, which is unconstrained and therefore easier to learn. Give one of the two.
    link : "identity", "sigmoid" or "tanh"
        Elementwise function applied to x_hat, if the decoder does not apply it itself.

    Raises
    ------
    ValueError
        If both scale and log_scale are given, a float scale is not positive and finite, or link is unknown.
    TypeError
        If scale or log_scale is neither a number nor a floating-point tensor.

    Notes
    -----
    Equivalent to ``torch.distributions.Normal(x_hat, scale).log_prob(x)``, and with scale = 1 to
    ``-0.5 * F.mse_loss(x_hat, x, reduction="none") - 0.9189``. For a decoder that returns ``(x_hat, log_scale)``, use
    ``Gaussian()`` or ``Gaussian(link=...)``.

    Examples
    --------
    >>> import torch, fastvae
    >>> x, x_hat = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0])
    >>> fastvae.Gaussian().log_prob(x, x_hat)
    tensor([-0.9189, -1.4189])
    >>> fastvae.Gaussian(log_scale=torch.tensor([0.0, 1.0])).log_prob(x, x_hat)
    tensor([-0.9189, -1.9866])
    """

    def log_prob(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Log density of each element, in the dtype of the arguments."""
        return gaussian_log_prob(x, x_hat, self.get_log_scale(), self.link)

    def sample(self, x_hat: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw x given z, elementwise."""
        noise = torch.randn(x_hat.shape, dtype=x_hat.dtype, device=x_hat.device, generator=generator)
        return self._shift_and_scale(noise, x_hat)


@dataclass(frozen=True, eq=False)
class Laplace(LocationScale):
    """Laplace likelihood, with heavier tails than a Gaussian. Log densities are in nats and include all constants.

        log p = -|x - link(x_hat)| / scale - log(2 scale)

    With the identity link, the gradient with respect to x_hat is sign(x - x_hat) / scale, and 0 where they are equal.

    Parameters
    ----------
    scale, log_scale : float or tensor
        Scale b (the standard deviation is sqrt(2) b), or its logarithm, in the same forms as for `Gaussian`.
    link : "identity", "sigmoid" or "tanh"
        Elementwise function applied to x_hat, if the decoder does not apply it itself.

    Raises
    ------
    ValueError, TypeError
        Same as `Gaussian`.

    Notes
    -----
    Equivalent to ``torch.distributions.Laplace(x_hat, scale).log_prob(x)``, and with scale = 1 to
    ``-F.l1_loss(x_hat, x, reduction="none") - 0.6931``. For a decoder that returns ``(x_hat, log_scale)``, use
    ``Laplace()`` or ``Laplace(link=...)``.

    Examples
    --------
    >>> import torch, fastvae
    >>> x, x_hat = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0])
    >>> fastvae.Laplace().log_prob(x, x_hat)
    tensor([-0.6931, -1.6931])
    >>> fastvae.Laplace(log_scale=torch.tensor([0.0, 1.0])).log_prob(x, x_hat)
    tensor([-0.6931, -2.0610])
    """

    def log_prob(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Log density of each element, in the dtype of the arguments."""
        return laplace_log_prob(x, x_hat, self.get_log_scale(), self.link)

    def sample(self, x_hat: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw x given z, elementwise."""
        a, b = (torch.empty_like(x_hat).exponential_(generator=generator) for _ in range(2))
        return self._shift_and_scale(a - b, x_hat)


@dataclass(frozen=True, eq=False)
class Bernoulli:
    """Bernoulli likelihood of binary x, where x_hat are the logits. In nats.

        log p = x log s(x_hat) + (1 - x) log s(-x_hat),   s(a) = 1 / (1 + e^-a)

    For x between 0 and 1 it is the negative cross-entropy.

    Notes
    -----
    Equivalent to ``torch.distributions.Bernoulli(logits=x_hat).log_prob(x)`` and to
    ``-F.binary_cross_entropy_with_logits(x_hat, x, reduction="none")``.

    Examples
    --------
    >>> import torch, fastvae
    >>> fastvae.Bernoulli().log_prob(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 2.0]))
    tensor([-0.1269, -2.1269])
    """

    def with_log_scale(self, log_scale: Tensor) -> "Bernoulli":
        """Raise ValueError: a Bernoulli variable has no scale."""
        raise ValueError("the decoder returned (x_hat, log_scale), but a Bernoulli likelihood has no scale")

    def log_prob(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Log probability of each element, in the dtype of the arguments."""
        return bernoulli_log_prob(x, x_hat)

    def mean(self, x_hat: Tensor) -> Tensor:
        """Mean E[x | z], the sigmoid of the logits x_hat."""
        return torch.sigmoid(x_hat)

    def sample(self, x_hat: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw x given z, elementwise: 0 or 1, in the dtype of the logits x_hat."""
        return torch.bernoulli(self.mean(x_hat), generator=generator)


UNIT_GAUSSIAN = Gaussian()  # the default of `fastvae.elbo`

# Likelihoods that have kernels, by the kernels' name for them. A subclass has none: it may be another density.
LIKELIHOODS: dict[str, Any] = {"gaussian": Gaussian, "laplace": Laplace, "bernoulli": Bernoulli}
NAMES = {cls: name for name, cls in LIKELIHOODS.items()}


def make_likelihood(name: str, log_scale: Tensor | float, link: str) -> Any:
    """Create a likelihood by name; one without a scale ignores log_scale and link."""
    cls = LIKELIHOODS[name]
    return cls(log_scale=log_scale, link=link) if issubclass(cls, LocationScale) else cls()
