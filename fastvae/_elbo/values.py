"""What ``check_values=True`` looks at, the values of tensors, and the one look that is always taken on the CPU.

Each tensor is read once, for its least and its largest element, which are NaN if one is. Only an error reads it again,
for the place.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..likelihoods import Bernoulli, LocationScale

EXPECTED: dict[str, Callable[[Tensor], Tensor]] = {
    "finite": torch.isfinite,
    "positive and finite": lambda t: (t > 0) & t.isfinite(),
    "between 0 and 1": lambda t: (t >= -1e-6) & (t <= 1 + 1e-6),  # where somebody has rounded
}


def check_each(name: str, t: Any, expected: str, factor: float = 1.0) -> None:
    """Each element of a tensor, times the factor, is what is expected; whatever is no tensor, is."""
    if not isinstance(t, Tensor) or t.numel() == 0 or t.dtype is torch.bool:
        return
    t, holds = t.detach(), EXPECTED[expected]
    if holds(torch.stack(t.aminmax()).double() * factor).all():
        return
    values = t.flatten().double() * factor
    bad = ~holds(values)
    first, more = int(bad.int().argmax()), int(bad.sum()) - 1
    place = [int(i) for i in torch.unravel_index(torch.tensor(first), t.shape)]
    others = f", the first of {more + 1}" if more else ""
    raise ValueError(f"{name} must be {expected}, got {float(values[first]):g} at {place}{others}")


def check_x_range(x: Tensor, x_scale: float | None) -> None:
    """X is what a Bernoulli likelihood can explain."""
    name = "x" if x_scale is None else "x, times x_scale,"
    check_each(f"{name} of a Bernoulli likelihood", x, "between 0 and 1", 1.0 if x_scale is None else x_scale)


def check_arguments(
    x: Tensor, x_hat: Any, mu: Tensor, logvar: Tensor, likelihood: Any, prior: Any, x_scale: float | None
) -> None:
    """All tensors of a call of `fastvae.elbo`, in the order of its arguments."""
    if isinstance(likelihood, Bernoulli):
        check_x_range(x, x_scale)
    else:
        check_each("x", x, "finite")
    for name, t in (("x_hat", x_hat), ("mu", mu), ("logvar", logvar)):
        check_each(name, t, "finite")
    if isinstance(likelihood, LocationScale):
        check_each("likelihood's scale", likelihood.scale, "positive and finite")
        check_each("likelihood's log_scale", likelihood.log_scale, "finite")
    for name, t in zip(("mu_p", "logvar_p"), prior or (), strict=False):
        check_each(f"prior's {name}", t, "finite")


def checked_outputs(x_hat: Any) -> Any:
    """A decoder that looks at what it returns; a tensor as it is."""
    if isinstance(x_hat, Tensor):
        return x_hat
    decoder: Callable[[Tensor], Any] = x_hat

    def decode(z: Tensor) -> Any:
        out = decoder(z)
        for name, t in zip(("x_hat", "log_scale"), out if isinstance(out, tuple) else (out,), strict=False):
            check_each(f"the decoder's {name}", t, "finite")
        return out

    return decode


def warn_of_range(x: Tensor, likelihood: Any, x_scale: float | None) -> None:
    """Warn where x on the CPU is beyond the range of a Bernoulli likelihood.

    This is for the first call of its shapes and options: it costs later ones nothing, and finds pixels that nobody has
    scaled.
    """
    if not x.is_cpu or not isinstance(likelihood, Bernoulli):
        return
    try:
        check_x_range(x, x_scale)
    except ValueError as error:
        text = f"{error}; the bound then means nothing. check_values=True looks at each call"
        warnings.warn(text, UserWarning, stacklevel=4)
