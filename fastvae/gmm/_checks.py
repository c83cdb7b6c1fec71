"""Checks of the arguments of `fastvae.gmm`, and the one form they are computed in: tensors `[B, ...]`, batch flattened.

Only shapes, types and options are looked at here: values are, where a fit needs it, in `_fit`.
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

FROM_ONE = 1e-5  # may be what weights sum to, as in scikit-learn: of float32, or moved a little by `gradcheck`

Parameters = tuple[Tensor, Tensor, Tensor]  # weights [B, K], means [B, K, D], covariances, in float64


class Rows(NamedTuple):
    """The argument X, and the way back from results to its container, dtype and batch dims."""

    X: Tensor  # [B, N, D], float32 or float64
    batch: torch.Size
    numpy: bool

    def broadcast(self, name: str, other: torch.Size) -> "Rows":
        """With its batch dims broadcast against those of another argument."""
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

    def back(self, t: Tensor, dtype: torch.dtype | None = None) -> Any:
        """A result `[B, ...]` as `[*batch, ...]`; floating-point ones in the dtype of X where no other is named."""
        dtype = dtype or (self.X.dtype if t.is_floating_point() else t.dtype)
        return as_output(t.to(dtype).reshape(self.batch + t.shape[1:]), self.numpy)

    def mixture(self, parameters: Parameters, covariance_type: str) -> Mixture:
        """Parameters `[B, ...]` as a Mixture."""
        weights, means, covariances = map(self.back, parameters)
        return Mixture(weights, means, covariances, covariance_type)


def rows(X: Any) -> Rows:
    """X `[*batch, N, D]`."""
    if callable(X) and not isinstance(X, Tensor):
        raise TypeError(f"X must be a NumPy array or a torch.Tensor, got the callable {type(X).__name__}")
    t = as_floating("X", X)
    if t.dim() < 2 or t.shape[-1] == 0:
        raise ValueError(f"X must have the shape [*batch, N, D] with D >= 1, got {list(t.shape)}")
    batch = t.shape[:-2]
    return Rows(t.reshape(math.prod(batch), *t.shape[-2:]), batch, not isinstance(X, Tensor))


def mixture_tensors(name: str, mixture: Any, data: Rows | None = None) -> tuple[Parameters, torch.Size]:
    """The parameters in float64 with their batch dims; where there are data, of their D and on their device."""
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
                f"{name}'s {field} must have the shape [*batch, {', '.join(map(str, tail))}] to go with means"
                f" {list(means.shape)} and covariance_type {kind!r}, got {list(t.shape)}"
            )
        if t.shape[:lead] == batch:  # broadcast_shapes takes 25 us
            continue
        try:
            batch = torch.broadcast_shapes(batch, t.shape[:lead])
        except RuntimeError:
            raise ValueError(
                f"the batch dims of {name}'s {field} and of its other parameters must broadcast,"
                f" got {list(t.shape[:lead])} and {list(batch)}"
            ) from None
    return (tensors["weights"], means.to(torch.float64), tensors["covariances"]), batch


def covariance_shape(kind: str, K: int, D: int) -> tuple[int, ...]:
    """The shape of the covariances of one mixture."""
    return {"full": (K, D, D), "tied": (D, D), "diag": (K, D), "spherical": (K,)}[kind]


def flatten(parameters: Parameters, batch: torch.Size, kind: str) -> Parameters:
    """Parameters that broadcast to the batch, as tensors `[B, ...]`."""
    K, D = parameters[1].shape[-2:]
    tails = (K,), (K, D), covariance_shape(kind, K, D)
    B = math.prod(batch)
    weights, means, covariances = (
        t.expand(*batch, *tail).reshape(B, *tail) for t, tail in zip(parameters, tails, strict=True)
    )
    return weights, means, covariances


def rows_and_mixture(X: Any, mixture: Any) -> tuple[Rows, Parameters, str]:
    """Both, with their batch dims broadcast against each other."""
    data = rows(X)
    parameters, batch = mixture_tensors("mixture", mixture, data)
    data = data.broadcast("mixture", batch)
    check_weights("mixture", parameters[0])
    return data, flatten(parameters, data.batch, mixture.covariance_type), mixture.covariance_type


def check_weights(name: str, weights: Tensor) -> None:
    """That those of each mixture are >= 0 and sum to 1, but for a rounding; NaN, of a problem without a fit, may be."""
    if unsupported_state() is not None:  # a transform of torch's: no number is known
        return
    w = weights.detach()
    look: Any = w.numpy() if w.device.type == "cpu" else w  # of torch's operations each takes 5 to 10 us
    if w.numel() == 0 or (look.min() >= 0 and abs(look.sum(-1) - 1).max() <= FROM_ONE):
        return
    off = ((w.sum(-1) - 1).abs() > FROM_ONE) | (w < 0).any(-1)
    if off.any():
        at = off.nonzero()[0].tolist()
        where = f" in mixture {at} of the batch" if at else ""
        raise ValueError(f"{name}'s weights must be >= 0 and sum to 1{where}, got {w[tuple(at)].tolist()}")


def row_weights(sample_weight: Any, data: Rows) -> tuple[Tensor | None, Tensor | float]:
    """sample_weight `[*batch, N]` or what broadcasts to it, as `[B, N]` in float64, and the unit that they are in: 1.0,
    or one for each problem, a power of 2, where the largest weight is so large or small that sums could overflow.
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
        raise ValueError(f"sample_weight must not be negative, got {w[negative][0]:g} at {first(negative, data)}")
    largest = w.detach().amax(-1)
    look: Any = largest.numpy() if w.device.type == "cpu" else largest
    if look.min() >= 2.0**-100 and look.max() <= 2.0**100:
        return w, 1.0
    beyond = ((largest < 2.0**-100) | (largest > 2.0**100)) & (largest > 0) & largest.isfinite()
    exponent = (torch.frexp(largest).exponent.to(torch.int64) * beyond).clamp(-1022, 1022)
    return w * _power_of_two(-exponent)[:, None], _power_of_two(exponent)


def first(mask: Tensor, data: Rows) -> list[int]:
    """The place of the first True of `[B, ...]`, with the batch dims of X."""
    b, *rest = mask.nonzero()[0].tolist()
    problem = torch.unravel_index(torch.tensor(b), data.batch) if data.batch else ()
    return [*map(int, problem), *rest]


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^n of int64 from -1022 to 1022, exactly: by the bits of a float64."""
    return ((exponent + 1023) << 52).view(torch.float64)


def responsibilities(resp: Any, data: Rows, K: int | None = None) -> tuple[Rows, Tensor]:
    """resp as `[B, N, K]` in float64, and the rows, their batch dims broadcast against each other."""
    r = as_operand("resp", resp, data.X.device, "X")
    N = data.X.shape[1]
    if r.dim() < 2 or r.shape[-1] == 0 or r.shape[-2] != N or K not in (None, r.shape[-1]):
        columns = "" if K is None else f" and K = {K}"
        raise ValueError(f"resp must have the shape [*batch, N, K] with N = {N}{columns}, got {list(r.shape)}")
    data = data.broadcast("resp", r.shape[:-2])
    return data, r.expand(data.batch + r.shape[-2:]).reshape(-1, *r.shape[-2:])


def start(init: Any, data: Rows, K: int, kind: str, n_init: int) -> str | Parameters:
    """The name of a start, or the parameters of a Mixture whose batch dims broadcast to those of the rows."""
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
    """One of the four."""
    if not isinstance(value, str) or value not in COVARIANCE_TYPES:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, COVARIANCE_TYPES))}, got {describe(value)}")
    return value


def seed_or_drawn(seed: Any) -> int:
    """An int in [0, 2^63); None draws one from torch's generator."""
    if seed is None:
        return int(torch.randint(2**63 - 1, (), device="cpu"))
    if not is_integer(seed):
        raise TypeError(f"seed must be an int or None, got {describe(seed)}")
    if not 0 <= (number := int(seed)) < 2**63:
        raise ValueError(f"seed must be in [0, 2^63), got {number}")
    return number


def on_degenerate(value: Any) -> str | None:
    """One of the three, or None."""
    if not isinstance(value, str | None) or value not in ON_DEGENERATE:
        names = ", ".join(map(repr, ON_DEGENERATE[1:]))
        raise ValueError(f"on_degenerate must be one of {names}, or None, got {describe(value)}")
    return value


def engine(backend: str, *tensors: Tensor | None) -> Any:
    """The module that computes with these tensors, X first: a kernel's, or `fastvae.reference.gmm.engine`."""
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


def log_rows(data: Rows, sample_weight: Tensor | None, unit: Tensor | float) -> Tensor:
    """log sum_n w_n, `[B]` float64."""
    if sample_weight is None:
        return data.X.new_full((len(data.X),), data.X.shape[1], dtype=torch.float64).log()
    return sample_weight.sum(-1).log() + torch.as_tensor(unit, dtype=torch.float64).log()
