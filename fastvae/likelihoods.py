"""Likelihoods p(x|z): what the decoder's output x_hat means. Each is a small immutable description.

`fastvae.elbo` takes any object with an elementwise ``log_prob(x, x_hat)``; the ones here are those that have kernels.
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
    """What likelihoods of a location link(x_hat) and a scale have in common: their arguments, and checks of them."""

    scale: float | Tensor = 1.0
    log_scale: float | Tensor | None = None
    link: str = "identity"

    def __post_init__(self) -> None:
        name, value = ("scale", self.scale) if self.log_scale is None else ("log_scale", self.log_scale)
        if name == "log_scale" and (isinstance(self.scale, Tensor) or self.scale != 1.0):
            raise ValueError("scale and log_scale are two spellings of one thing: give one of them")
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
        """The logarithm of the scale, whichever of the two was given; a tensor in float32 or wider."""
        value = self.scale if self.log_scale is None else self.log_scale
        if isinstance(value, Tensor):
            value = value.to(torch.promote_types(value.dtype, torch.float32))
            return value.log() if self.log_scale is None else value
        return math.log(value) if self.log_scale is None else value

    def with_log_scale(self, log_scale: Tensor) -> Self:
        """The same likelihood with the log_scale that a decoder returned; an error if it has a scale of its own."""
        if self.log_scale is not None or isinstance(self.scale, Tensor) or self.scale != 1.0:
            raise ValueError(
                "the decoder returned a log_scale, but the likelihood has a scale of its own:"
                f" give {type(self).__name__}()"
            )
        return replace(self, log_scale=log_scale)

    def mean(self, x_hat: Tensor) -> Tensor:
        """E[x | z]."""
        return LINKS[self.link](x_hat)

    def located(self, noise: Tensor, x_hat: Tensor) -> Tensor:
        """The noise of a unit scale about zero, scaled and moved to the mean."""
        log_scale = torch.as_tensor(self.get_log_scale(), dtype=x_hat.dtype, device=x_hat.device)
        return self.mean(x_hat) + log_scale.exp() * noise


@dataclass(frozen=True, eq=False)
class Gaussian(LocationScale):
    """Gaussian likelihood, log N(x; link(x_hat), scale^2), in nats, constants included.

        log p = -1/2 ((x - link(x_hat)) / scale)^2 - log scale - 1/2 log 2 pi

    Parameters
    ----------
    scale : float or tensor, positive
        The standard deviation: one number, one per feature (``[*event]``), or one per element (``[N, *event]``);
        any shape that broadcasts to x_hat's. A tensor gets its gradient. Its values are not looked at (that would
        stall a GPU): a negative one gives NaN.
    log_scale : float or tensor
        Its logarithm instead, which needs no constraint and so suits learning. Give one of the two.
    link : "identity", "sigmoid" or "tanh"
        The decoder's last elementwise function, if the decoder leaves it to the likelihood.

    Raises
    ------
    ValueError
        If both scale and log_scale are given, a float scale is not positive and finite, or link is unknown.
    TypeError
        If scale or log_scale is neither a number nor a floating-point tensor.

    Notes
    -----
    Equivalent to ``torch.distributions.Normal(x_hat, scale).log_prob(x)``, and with scale = 1 to
    ``-0.5 * F.mse_loss(x_hat, x, reduction="none") - 0.9189``. A decoder that returns ``(x_hat, log_scale)`` goes
    with ``Gaussian()`` or ``Gaussian(link=...)``.

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
        """Log density of each element, in the dtype of its arguments."""
        return gaussian_log_prob(x, x_hat, self.get_log_scale(), self.link)

    def sample(self, x_hat: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw of x given z, elementwise."""
        noise = torch.randn(x_hat.shape, dtype=x_hat.dtype, device=x_hat.device, generator=generator)
        return self.located(noise, x_hat)


@dataclass(frozen=True, eq=False)
class Laplace(LocationScale):
    """Laplace likelihood of residuals with heavier tails than a Gaussian's, in nats, constants included.

        log p = -|x - link(x_hat)| / scale - log(2 scale)

    Its gradient in x_hat is sign(x - x_hat) / scale for the identity, and 0 where the two are equal.

    Parameters
    ----------
    scale, log_scale : float or tensor
        The scale b (the standard deviation is sqrt(2) b), or its logarithm, in every form that `Gaussian` takes.
    link : "identity", "sigmoid" or "tanh"
        The decoder's last elementwise function, if the decoder leaves it to the likelihood.

    Raises
    ------
    ValueError, TypeError
        As `Gaussian`.

    Notes
    -----
    Equivalent to ``torch.distributions.Laplace(x_hat, scale).log_prob(x)``, and with scale = 1 to
    ``-F.l1_loss(x_hat, x, reduction="none") - 0.6931``. A decoder that returns ``(x_hat, log_scale)`` goes with
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
        """Log density of each element, in the dtype of its arguments."""
        return laplace_log_prob(x, x_hat, self.get_log_scale(), self.link)

    def sample(self, x_hat: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw of x given z, elementwise."""
        a, b = (torch.empty_like(x_hat).exponential_(generator=generator) for _ in range(2))
        return self.located(a - b, x_hat)


@dataclass(frozen=True, eq=False)
class Bernoulli:
    """Bernoulli likelihood of binary x; x_hat holds logits.

        log p = x log s(x_hat) + (1 - x) log s(-x_hat),   s(a) = 1 / (1 + e^-a),   in nats

    For x between 0 and 1 it is minus the cross-entropy.

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
        """Always an error: a Bernoulli variable has no scale."""
        raise ValueError("the decoder returned (x_hat, log_scale), but a Bernoulli likelihood has no scale")

    def log_prob(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Log probability of each element, in the dtype of its arguments."""
        return bernoulli_log_prob(x, x_hat)

    def mean(self, x_hat: Tensor) -> Tensor:
        """E[x | z]."""
        return torch.sigmoid(x_hat)

    def sample(self, x_hat: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw of x given z, elementwise: 0 or 1 in x_hat's dtype."""
        return torch.bernoulli(self.mean(x_hat), generator=generator)


UNIT_GAUSSIAN = Gaussian()  # what `fastvae.elbo` takes by default

# Those that have kernels, by the name that kernels know them by. A subclass may be another likelihood: it has none.
LIKELIHOODS: dict[str, Any] = {"gaussian": Gaussian, "laplace": Laplace, "bernoulli": Bernoulli}
NAMES = {cls: name for name, cls in LIKELIHOODS.items()}


def named(name: str, log_scale: Tensor | float, link: str) -> Any:
    """The likelihood of that name; one without a scale takes neither."""
    cls = LIKELIHOODS[name]
    return cls(log_scale=log_scale, link=link) if issubclass(cls, LocationScale) else cls()
