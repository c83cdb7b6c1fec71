"""Argument checks. Each error names the argument, what was expected and what was given.

Only shapes, dtypes and devices are checked, never the values of a tensor, which would synchronize a GPU.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..likelihoods import LocationScale
from .numbers import is_integer, is_real

REDUCTIONS = ("mean", "sum", "none")


def describe(value: Any) -> str:
    """Describe a value in an error message: dtype and shape of a tensor, a str or a number as such, else the type."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {list(value.shape)}"
    return f"{value!r}" if isinstance(value, str | int | float) else type(value).__name__


def check_dense(name: str, value: Any) -> None:
    """Check that a tensor is dense; anything else passes."""
    if isinstance(value, Tensor) and (value.is_nested or value.layout is not torch.strided):
        kind = "a nested one" if value.is_nested else f"one of layout {value.layout}"
        raise TypeError(f"{name} must be a dense tensor, got {kind}")


def check_floating(name: str, value: Any) -> None:
    """Check for a dense floating-point tensor."""
    check_dense(name, value)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point torch.Tensor, got {describe(value)}")


def check_broadcasts(name: str, t: Tensor, shape: torch.Size, to: str) -> None:
    """Check that the shape of t broadcasts to ``shape`` without enlarging it."""
    aligned = tuple(t.shape)[::-1]
    if len(aligned) > len(shape) or any(a not in (1, b) for a, b in zip(aligned, tuple(shape)[::-1], strict=False)):
        raise ValueError(f"{name} must broadcast to the shape of {to}, {list(shape)}, got {list(t.shape)}")


def check_device(name: str, t: Tensor, device: torch.device, of: str) -> None:
    """Check that t is on the device of the argument named ``of``."""
    if t.device != device:
        raise ValueError(f"{name} must be on the device of {of}, {device}, got {t.device}")


def check_operand_device(name: str, t: Tensor, device: torch.device, of: str) -> None:
    """`check_device`, except that a 0-d CPU tensor is compatible with any device."""
    if t.dim() or t.device.type != "cpu":
        check_device(name, t, device, of)


def check_posterior(mu: Any, logvar: Any, prior: Any = None) -> None:
    """Check mu and logvar, floating-point ``[N, *latent]``, and that the prior is a pair that broadcasts to mu."""
    check_floating("mu", mu)
    check_floating("logvar", logvar)
    if mu.dim() == 0:
        raise ValueError("mu must have the shape [N, *latent], got a 0-d tensor")
    if mu.shape != logvar.shape:
        raise ValueError(
            f"mu and logvar must have the same shape [N, *latent], got {list(mu.shape)} and {list(logvar.shape)}"
        )
    check_device("logvar", logvar, mu.device, "mu")
    check_prior(prior, mu.shape, "mu")
    for name, p in zip(("mu_p", "logvar_p"), prior or (), strict=False):
        check_operand_device(f"prior's {name}", p, mu.device, "mu")


def check_prior(prior: Any, shape: torch.Size, to: str) -> None:
    """Check for None, or a pair of floating-point tensors that broadcast to ``shape``, the shape of ``to``."""
    if prior is None:
        return
    if not isinstance(prior, tuple | list) or len(prior) != 2:
        raise TypeError(f"prior must be a pair of tensors (mu_p, logvar_p) or None, got {describe(prior)}")
    for name, p in zip(("mu_p", "logvar_p"), prior, strict=True):
        check_floating(f"prior's {name}", p)
        check_broadcasts(f"prior's {name}", p, shape, to)


def check_x(x: Any, x_scale: Any, mu: Tensor) -> None:
    """Check x ``[N, *event]``: floating-point, bool, or uint8 with x_scale."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {describe(x)}")
    check_dense("x", x)
    if not (x.is_floating_point() or x.dtype in (torch.uint8, torch.bool)):
        raise TypeError(f"x must be floating-point, uint8 or bool, got {describe(x)}")
    if x.dim() == 0 or x.shape[0] != mu.shape[0]:
        raise ValueError(
            f"x [N, *event] and mu [N, *latent] must have the same N, got {list(x.shape)} and {list(mu.shape)}"
        )
    check_device("x", x, mu.device, "mu")
    if (x.dtype == torch.uint8) != (x_scale is not None):
        raise ValueError(
            "x_scale must be given with uint8 x, and only then: 1/255 for pixels, or 1.0;"
            f" got {x_scale} with {describe(x)}"
        )


def check_x_hat(x_hat: Any, x: Tensor, num_samples: int | None) -> None:
    """Check that x_hat has the shape of x, with a leading K if num_samples is K."""
    check_floating("x_hat", x_hat)
    shape = x.shape if num_samples is None else torch.Size((num_samples, *x.shape))
    if x_hat.shape != shape:
        form = "[N, *event]" if num_samples is None else "[K, N, *event]"
        raise ValueError(f"x_hat must have the shape {form} = {list(shape)} to match x, got {list(x_hat.shape)}")
    check_device("x_hat", x_hat, x.device, "x")


def checked_decoder(
    decoder: Callable[[Tensor], Any], x: Tensor | None = None, num_samples: int | None = None
) -> Callable[[Tensor], Any]:
    """The decoder, with a check of what it returns: x_hat ``[K*N, *event]``, or the pair (x_hat, log_scale).

    Without x, only the number of rows is checked.
    """
    known = None if x is None else torch.Size((x.shape[0] * (num_samples or 1), *x.shape[1:]))

    def decode(z: Tensor) -> Any:
        out = decoder(z)
        outputs = out if isinstance(out, tuple) else (out,)
        for t in outputs:
            check_dense("what the decoder returns", t)
        if (isinstance(out, tuple) and len(out) != 2) or not all(
            isinstance(t, Tensor) and t.is_floating_point() for t in outputs
        ):
            got = ", ".join(describe(t) for t in outputs)
            raise TypeError(f"the decoder must return a tensor x_hat or a pair (x_hat, log_scale), got ({got})")
        shape = known or torch.Size((z.shape[0], *outputs[0].shape[1:]))
        if outputs[0].shape != shape:
            raise ValueError(
                f"the decoder must return x_hat of shape {list(shape)} for z of shape {list(z.shape)},"
                f" got {list(outputs[0].shape)}"
            )
        device = z.device if x is None else x.device
        check_device("the decoder's x_hat", outputs[0], device, "x")
        for log_scale in outputs[1:]:
            check_broadcasts("the decoder's log_scale", log_scale, shape, "x_hat")
            check_operand_device("the decoder's log_scale", log_scale, device, "x")
        return out

    return decode


def check_likelihood(likelihood: Any, x: Tensor, num_samples: int | None) -> None:
    """Check for an object with log_prob; a tensor scale must broadcast to x_hat and be on the device of x."""
    shape = x.shape if num_samples is None else torch.Size((num_samples, *x.shape))
    if isinstance(likelihood, type) or not callable(getattr(likelihood, "log_prob", None)):
        got = f"the class {likelihood.__name__}: add ()" if isinstance(likelihood, type) else describe(likelihood)
        raise TypeError(
            "likelihood must be fastvae.Gaussian(...), fastvae.Laplace(...), fastvae.Bernoulli(), or an object with"
            f" log_prob(x, x_hat), got {got}"
        )
    for name in ("scale", "log_scale") if isinstance(likelihood, LocationScale) else ():
        if isinstance(value := getattr(likelihood, name), Tensor):
            check_dense(f"likelihood's {name}", value)
            check_broadcasts(f"likelihood's {name}", value, shape, "x_hat")
            check_operand_device(f"likelihood's {name}", value, x.device, "x")


def checked_weight(name: str, value: Any) -> Any:
    """Check beta or free_bits: a float that is not negative, or a 0-d tensor."""
    if isinstance(value, Tensor):
        if value.dim() != 0 or not value.is_floating_point():
            raise TypeError(f"{name} must be a float or a 0-d floating-point tensor, got {describe(value)}")
        return value
    return not_negative(name, value, "a float or a 0-d tensor")


def not_negative(name: str, value: Any, expected: str = "a float") -> float:
    """Check for a finite number that is not negative, and return it as a float."""
    if not is_real(value):
        raise TypeError(f"{name} must be {expected}, got {describe(value)}")
    if not 0 <= (number := float(value)) < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {number}")
    return number


def integer(name: str, value: Any, minimum: int) -> int:
    """Check for an int or NumPy integer of at least ``minimum``, and return it as an int."""
    if not is_integer(value):
        raise TypeError(f"{name} must be an int, got {describe(value)}")
    if (number := int(value)) < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}")
    return number


def checked_num_samples(num_samples: Any) -> int | None:
    """Check K: a positive int, or None."""
    if num_samples is None:
        return None
    if not is_integer(num_samples):
        raise TypeError(f"num_samples must be an int or None, got {describe(num_samples)}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    return int(num_samples)


def checked_seed(seed: Any, device: torch.device) -> Any:
    """Check for None, an int in [0, 2^63), or a 0-d int64 tensor on the device of mu."""
    if seed is None:
        return None
    if isinstance(seed, Tensor):
        if seed.dim() != 0 or seed.dtype != torch.int64:
            raise TypeError(f"seed must be an int or a 0-d int64 tensor, got {describe(seed)}")
        check_device("seed", seed, device, "mu")
        return seed
    if not is_integer(seed):
        raise TypeError(f"seed must be an int, a 0-d int64 tensor or None, got {describe(seed)}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in [0, 2^63), got {seed}")
    return int(seed)


def checked_first_row(first_row: Any) -> int:
    """Check a row index, small enough that 2^31 rows can follow."""
    if not is_integer(first_row):
        raise TypeError(f"first_row must be an int, got {describe(first_row)}")
    if not 0 <= first_row < 2**62:
        raise ValueError(f"first_row must be in [0, 2^62), got {first_row}")
    return int(first_row)


def checked_x_scale(x_scale: Any) -> float | None:
    """Check for a finite float, or None."""
    if x_scale is None:
        return None
    if not is_real(x_scale) or not abs(x_scale) < math.inf:
        raise TypeError(f"x_scale must be a finite float, got {describe(x_scale)}")
    return float(x_scale)


def check_reduction(reduction: Any, N: int) -> None:
    """Check for one of the three reductions; an empty batch has no mean."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {describe(reduction)}")
    if reduction == "mean" and N == 0:
        raise ValueError("reduction='mean' of an empty batch (N = 0) is undefined: use 'sum' or 'none'")
