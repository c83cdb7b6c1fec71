"""Argument checks of `fastvae.gmm`, and the conversion to tensors `[B, ...]` with flattened batch dims and back.

Only shapes, types, options and weights are checked here. The values of X are examined during a fit, in `_problems`.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core import backend as _backend
from .._core.arrays import as_floating, as_operand, as_output
from .._core.backend import unsupported_state
from .._core.checks import check_broadcasts, check_device, describe
from .._core.numbers import is_integer
from ..reference.gmm import engine as reference_engine
from ..reference.gmm.formulas import COVARIANCE_TYPES, Mixture
from ..reference.gmm.start import STARTS

ON_DEGENERATE = (None, "raise", "status", "rescue")

SUM_TOLERANCE = 1e-5  # of weights that sum to 1, as in scikit-learn: for float32 weights, and for `gradcheck`

Parameters = tuple[Tensor, Tensor, Tensor]  # weights [B, K], means [B, K, D], covariances, in float64


class Rows(NamedTuple):
    """The argument X with flattened batch dims, and what is needed to convert results to its form."""

    X: Tensor  # [B, N, D], float32 or float64
    batch: torch.Size
    numpy: bool

    def broadcast(self, name: str, other: torch.Size) -> "Rows":
        """The rows, with their batch dims broadcast against those of another argument."""
        if other == self.batch:
            return self
        try:
            batch = torch.broadcast_shapes(self.batch, other)
        except RuntimeError:
            raise ValueError(
                f"the batch dims of X and {name} must broadcast, got {list(self.batch)} and {list(other)}"
            ) from None
        if batch == self.batch:
            return self
        tail = self.X.shape[1:]
        return Rows(self.X.reshape(self.batch + tail).expand(batch + tail).reshape(-1, *tail), batch, self.numpy)

    def to_output(self, t: Tensor, dtype: torch.dtype | None = None) -> Any:
        """A result `[B, ...]` as `[*batch, ...]`; by default, a floating-point result has the dtype of X."""
        dtype = dtype or (self.X.dtype if t.is_floating_point() else t.dtype)
        return as_output(t.to(dtype).reshape(self.batch + t.shape[1:]), self.numpy)

    def mixture(self, parameters: Parameters, covariance_type: str) -> Mixture:
        """Parameters `[B, ...]` as a `Mixture` with the batch dims of X."""
        weights, means, covariances = map(self.to_output, parameters)
        return Mixture(weights, means, covariances, covariance_type)


def rows(X: Any) -> Rows:
    """Check X `[*batch, N, D]`."""
    if callable(X) and not isinstance(X, Tensor):
        raise TypeError(f"X must be a NumPy array or a torch.Tensor, got the callable {type(X).__name__}")
    t = as_floating("X", X)
    if t.dim() < 2 or t.shape[-1] == 0:
        raise ValueError(f"X must have the shape [*batch, N, D] with D >= 1, got {list(t.shape)}")
    batch = t.shape[:-2]
    return Rows(t.reshape(math.prod(batch), *t.shape[-2:]), batch, not isinstance(X, Tensor))


def mixture_tensors(name: str, mixture: Any, data: Rows | None = None) -> tuple[Parameters, torch.Size]:
    """Check a `Mixture`: its parameters in float64, and its batch dims. With `data`, D and device must match."""
    if not isinstance(mixture, Mixture):
        raise TypeError(f"{name} must be a fastvae.gmm.Mixture, got {describe(mixture)}")
    kind = covariance_type(mixture.covariance_type, f"{name}'s covariance_type")
    means = as_floating(f"{name}'s means", mixture.means)
    if means.dim() < 2 or 0 in means.shape[-2:]:
        raise ValueError(f"{name}'s means must have the shape [*batch, K, D], got {list(means.shape)}")
    K, D = means.shape[-2:]
    if data is not None:
        check_device(f"{name}'s means", means, data.X.device, "X")
        if data.X.shape[-1] != D:
            raise ValueError(
                f"{name}'s means must have the shape [*batch, K, D] with the D of X, {data.X.shape[-1]},"
                f" got {list(means.shape)}"
            )
    tails = {"weights": (K,), "covariances": covariance_shape(kind, K, D)}
    tensors = {
        field: as_operand(f"{name}'s {field}", getattr(mixture, field), means.device, "means") for field in tails
    }
    batch = means.shape[:-2]
    for field, tail in tails.items():
        t = tensors[field]
        lead = t.dim() - len(tail)
        if lead < 0 or tuple(t.shape[lead:]) != tail:
            raise ValueError(
                f"{name}'s {field} must have the shape [*batch, {', '.join(map(str, tail))}] to match means"
                f" {list(means.shape)} and covariance_type {kind!r}, got {list(t.shape)}"
            )
        if t.shape[:lead] == batch:  # broadcast_shapes takes 25 us
            continue
        try:
            batch = torch.broadcast_shapes(batch, t.shape[:lead])
        except RuntimeError:
            raise ValueError(
                f"the batch dims of {name}'s {field} and its other parameters must broadcast,"
                f" got {list(t.shape[:lead])} and {list(batch)}"
            ) from None
    return (tensors["weights"], means.to(torch.float64), tensors["covariances"]), batch


def covariance_shape(kind: str, K: int, D: int) -> tuple[int, ...]:
    """Shape of the covariances of one mixture."""
    return {"full": (K, D, D), "tied": (D, D), "diag": (K, D), "spherical": (K,)}[kind]


def flatten(parameters: Parameters, batch: torch.Size, kind: str) -> Parameters:
    """Expand parameters to the batch, as tensors `[B, ...]`."""
    K, D = parameters[1].shape[-2:]
    tails = (K,), (K, D), covariance_shape(kind, K, D)
    B = math.prod(batch)
    weights, means, covariances = (
        t.expand(*batch, *tail).reshape(B, *tail) for t, tail in zip(parameters, tails, strict=True)
    )
    return weights, means, covariances


def rows_and_mixture(X: Any, mixture: Any) -> tuple[Rows, Parameters, str]:
    """Check X and a mixture, and broadcast their batch dims against each other."""
    data = rows(X)
    parameters, batch = mixture_tensors("mixture", mixture, data)
    data = data.broadcast("mixture", batch)
    check_weights("mixture", parameters[0])
    return data, flatten(parameters, data.batch, mixture.covariance_type), mixture.covariance_type


def check_weights(name: str, weights: Tensor) -> None:
    """Check that the weights of each mixture are >= 0 and sum to 1; NaN, from a problem without a fit, is allowed."""
    if unsupported_state() is not None:  # under a torch transform, values cannot be read
        return
    w = weights.detach()
    values: Any = w.numpy() if w.device.type == "cpu" else w  # NumPy: each torch operation takes 5 to 10 us
    if w.numel() == 0 or (values.min() >= 0 and abs(values.sum(-1) - 1).max() <= SUM_TOLERANCE):
        return
    invalid = ((w.sum(-1) - 1).abs() > SUM_TOLERANCE) | (w < 0).any(-1)
    if invalid.any():
        at = invalid.nonzero()[0].tolist()
        where = f" in mixture {at} of the batch" if at else ""
        raise ValueError(f"{name}'s weights must be >= 0 and sum to 1{where}, got {w[tuple(at)].tolist()}")


def row_weights(sample_weight: Any, data: Rows) -> tuple[Tensor | None, Tensor | float]:
    """sample_weight as `[B, N]` in float64, divided by a unit, and the unit.

    The unit is 1.0, or a power of 2 for each problem if a largest weight is so large or small that sums could overflow.
    """
    if sample_weight is None:
        return None, 1.0
    w = as_operand("sample_weight", sample_weight, data.X.device, "X")
    shape = torch.Size((*data.batch, data.X.shape[1]))
    if w.dim() == 0 or w.shape[-1] != shape[-1]:
        raise ValueError(f"sample_weight must have the shape [*batch, N] = {list(shape)} or [N], got {list(w.shape)}")
    check_broadcasts("sample_weight", w, shape, "X without its D")
    w = w.expand(shape).reshape(data.X.shape[:2])
    if w.numel() == 0 or unsupported_state() is not None:
        return w, 1.0
    if (negative := w.detach() < 0).any():
        raise ValueError(f"sample_weight must not be negative, got {w[negative][0]:g} at {first_index(negative, data)}")
    largest = w.detach().amax(-1)
    values: Any = largest.numpy() if w.device.type == "cpu" else largest
    if values.min() >= 2.0**-100 and values.max() <= 2.0**100:
        return w, 1.0
    beyond = ((largest < 2.0**-100) | (largest > 2.0**100)) & (largest > 0) & largest.isfinite()
    exponent = (torch.frexp(largest).exponent.to(torch.int64) * beyond).clamp(-1022, 1022)
    return w * _power_of_two(-exponent)[:, None], _power_of_two(exponent)


def first_index(mask: Tensor, data: Rows) -> list[int]:
    """Index of the first True of a mask `[B, ...]`, with the batch dims of X."""
    b, *rest = mask.nonzero()[0].tolist()
    problem = torch.unravel_index(torch.tensor(b), data.batch) if data.batch else ()
    return [*map(int, problem), *rest]


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^n for int64 n in [-1022, 1022], exactly, from the bits of a float64."""
    return ((exponent + 1023) << 52).view(torch.float64)


def responsibilities(resp: Any, data: Rows, K: int | None = None) -> tuple[Rows, Tensor]:
    """Check resp: the rows and resp as `[B, N, K]` in float64, their batch dims broadcast against each other."""
    r = as_operand("resp", resp, data.X.device, "X")
    N = data.X.shape[1]
    if r.dim() < 2 or r.shape[-1] == 0 or r.shape[-2] != N or K not in (None, r.shape[-1]):
        columns = "" if K is None else f" and K = {K}"
        raise ValueError(f"resp must have the shape [*batch, N, K] with N = {N}{columns}, got {list(r.shape)}")
    data = data.broadcast("resp", r.shape[:-2])
    return data, r.expand(data.batch + r.shape[-2:]).reshape(-1, *r.shape[-2:])


def start(init: Any, data: Rows, K: int, kind: str, n_init: int) -> str | Parameters:
    """Check init: the name of a start, or the parameters of a Mixture, expanded to the batch of the rows."""
    names = ", ".join(map(repr, STARTS))
    if isinstance(init, str) and init in STARTS:
        return init
    if isinstance(init, str):
        raise ValueError(f"init must be one of {names}, or a fastvae.gmm.Mixture, got {init!r}")
    if not isinstance(init, Mixture):
        raise TypeError(f"init must be one of {names}, or a fastvae.gmm.Mixture, got {describe(init)}")
    parameters, batch = mixture_tensors("init", init, data)
    if init.covariance_type != kind:
        raise ValueError(f"init's covariance_type must be that of the call, {kind!r}, got {init.covariance_type!r}")
    if parameters[1].shape[-2] != K:
        raise ValueError(
            f"init's means must have the shape [*batch, K, D] with K = n_components = {K},"
            f" got {list(parameters[1].shape)}"
        )
    if data.broadcast("init", batch).batch != data.batch:
        raise ValueError(f"init's batch dims must broadcast to those of X, {list(data.batch)}, got {list(batch)}")
    if n_init != 1:
        raise ValueError(f"n_init must be 1 where init is a Mixture: all starts would be the same, got {n_init}")
    weights, means, covariances = flatten(parameters, data.batch, kind)
    return weights.detach(), means.detach(), covariances.detach()


def covariance_type(value: Any, name: str = "covariance_type") -> str:
    """Check for one of the four covariance types."""
    if not isinstance(value, str) or value not in COVARIANCE_TYPES:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, COVARIANCE_TYPES))}, got {describe(value)}")
    return value


def resolve_seed(seed: Any) -> int:
    """Check for an int in [0, 2^63); None draws one from torch's generator."""
    if seed is None:
        return int(torch.randint(2**63 - 1, (), device="cpu"))
    if not is_integer(seed):
        raise TypeError(f"seed must be an int or None, got {describe(seed)}")
    if not 0 <= (number := int(seed)) < 2**63:
        raise ValueError(f"seed must be in [0, 2^63), got {number}")
    return number


def on_degenerate(value: Any) -> str | None:
    """Check for one of the three options, or None."""
    if not isinstance(value, str | None) or value not in ON_DEGENERATE:
        names = ", ".join(map(repr, ON_DEGENERATE[1:]))
        raise ValueError(f"on_degenerate must be one of {names}, or None, got {describe(value)}")
    return value


def engine(backend: str, *tensors: Tensor | None) -> Any:
    """The engine for these tensors, X first: the module of a kernel, or `fastvae.reference.gmm.engine`."""
    X = tensors[0]
    assert X is not None
    unsupported = unsupported_state()
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        unsupported = "an argument requires grad"
    if X.numel() == 0:
        unsupported = f"X is empty, of shape {list(X.shape)}"
    chosen = _backend.choose("gmm", _backend.requested(backend), X.device, unsupported)
    return reference_engine if chosen == "reference" else _backend.kernel_module("gmm", chosen)


def total(log_prob: Tensor, sample_weight: Tensor | None) -> Tensor:
    """sum_n w_n log p(x_n), `[B]`."""
    return (log_prob if sample_weight is None else log_prob * sample_weight).sum(-1)


def log_total_weight(data: Rows, sample_weight: Tensor | None, unit: Tensor | float) -> Tensor:
    """log sum_n w_n, `[B]` float64."""
    if sample_weight is None:
        return data.X.new_full((len(data.X),), data.X.shape[1], dtype=torch.float64).log()
    return sample_weight.sum(-1).log() + torch.as_tensor(unit, dtype=torch.float64).log()
