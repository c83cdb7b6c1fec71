"""Checks of tensor values: those of ``check_values=True``, and one that is always made on the CPU.

Each tensor is read once, for its minimum and maximum, which are NaN if any element is. It is read again only after a
failed check, to find the position.
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
    "between 0 and 1": lambda t: (t >= -1e-6) & (t <= 1 + 1e-6),  # allows for rounding in preprocessing
}


def check_elements(name: str, t: Any, expected: str, factor: float = 1.0) -> None:
    """Check each element of a tensor, times ``factor``, against an entry of `EXPECTED`; anything else passes."""
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
    """Check that x is in the range of a Bernoulli likelihood."""
    name = "x" if x_scale is None else "x, times x_scale,"
    check_elements(f"{name} of a Bernoulli likelihood", x, "between 0 and 1", 1.0 if x_scale is None else x_scale)


def check_arguments(
    x: Tensor, x_hat: Any, mu: Tensor, logvar: Tensor, likelihood: Any, prior: Any, x_scale: float | None
) -> None:
    """Check all tensors passed to `fastvae.elbo`, in the order of its arguments."""
    if isinstance(likelihood, Bernoulli):
        check_x_range(x, x_scale)
    else:
        check_elements("x", x, "finite")
    for name, t in (("x_hat", x_hat), ("mu", mu), ("logvar", logvar)):
        check_elements(name, t, "finite")
    if isinstance(likelihood, LocationScale):
        check_elements("likelihood's scale", likelihood.scale, "positive and finite")
        check_elements("likelihood's log_scale", likelihood.log_scale, "finite")
    for name, t in zip(("mu_p", "logvar_p"), prior or (), strict=False):
        check_elements(f"prior's {name}", t, "finite")


def checked_outputs(x_hat: Any) -> Any:
    """The decoder, with a check of the values it returns; a tensor is returned unchanged."""
    if isinstance(x_hat, Tensor):
        return x_hat
    decoder: Callable[[Tensor], Any] = x_hat

    def decode(z: Tensor) -> Any:
        out = decoder(z)
        for name, t in zip(("x_hat", "log_scale"), out if isinstance(out, tuple) else (out,), strict=False):
            check_elements(f"the decoder's {name}", t, "finite")
        return out

    return decode


def warn_out_of_range(x: Tensor, likelihood: Any, x_scale: float | None) -> None:
    """Warn if x, on the CPU, is outside the range of a Bernoulli likelihood.

    It is called only for the first call with its shapes and options, so later calls are not slowed down. It catches
    pixels that were never scaled.
    """
    if not x.is_cpu or not isinstance(likelihood, Bernoulli):
        return
    try:
        check_x_range(x, x_scale)
    except ValueError as error:
        text = f"{error}; the bound is then meaningless. Use check_values=True to check every call"
        warnings.warn(text, UserWarning, stacklevel=4)
