"""Argument checks of `fastvae.regression`, and the conversion to tensors `[B, ...]` and back.

Only shapes, types, options and weights, which must not be negative, are checked here. The values of X and y are not: if
they are not finite, the status of the fit says so.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core import backend as _backend
from .._core.arrays import as_floating, as_operand, as_output
from .._core.backend import unsupported_state
from .._core.checks import check_broadcasts, check_device, describe
from .._core.numbers import is_flag
from ..reference.regression import engine as reference_engine

PRECISIONS = ("auto", "float64", "double-double")
requested = _backend.requested
ON_SINGULAR = ("warn", "raise", "ignore")
MAX_COLUMNS = 256  # that kernels support
NO_REFERENCE = (
    "precision='double-double' is not supported by the reference, which uses QR in float64: QR does not square the"
    " condition number, so 'auto' and 'float64' are safe there"
)


class Form(NamedTuple):
    """Shapes, container and dtype of X and y, and what is needed to convert results to that form."""

    batch: torch.Size
    targets: int | None  # R; None if y has no such dim
    features: int | None  # P; None if X has no such dim
    numpy: bool
    dtype: torch.dtype  # of estimates
    device: torch.device

    @property
    def R(self) -> int:
        """Number of targets; 1 if y has no dim for them."""
        return 1 if self.targets is None else self.targets

    @property
    def P(self) -> int:
        """Number of columns; 1 if X has no dim for them."""
        return 1 if self.features is None else self.features

    def targets_shape(self) -> torch.Size:
        """`[*batch, R]`, or `[*batch]` for one target."""
        return self.batch if self.targets is None else torch.Size((*self.batch, self.targets))

    def coef_shape(self) -> torch.Size:
        """`[*batch, R, P]`, without the dims that y or X does not have."""
        return self.targets_shape() if self.features is None else torch.Size((*self.targets_shape(), self.features))

    def to_output(self, t: Tensor, shape: torch.Size, dtype: torch.dtype | None = None) -> Any:
        """A result as an array or tensor of the given shape and dtype."""
        t = t.reshape(shape)
        return as_output(t if dtype is None else t.to(dtype), self.numpy)


class Data(NamedTuple):
    """X and y, batch dims broadcast and flattened."""

    X: Tensor  # [B, N, P], float32 or float64
    y: Tensor  # [B, N, R], float32 or float64
    form: Form


def data(X: Any, y: Any, rows: int = 1) -> Data:
    """Check X `[*batch, N, P]` with y `[*batch, N]` or `[*batch, N, R]`, or both `[N]`; N at least ``rows``."""
    numpy = not isinstance(X, Tensor)
    X, y = as_floating("X", X), as_floating("y", y)
    if y.device != X.device:
        check_device("y", y, X.device, "X")
    vector = X.dim() == 1
    if vector and y.dim() != 1:
        raise ValueError(
            f"X with one dim, [N], requires y with the shape [N], got {list(X.shape)} and {list(y.shape)}: for several"
            " targets X must have the shape [N, P]"
        )
    if X.dim() == 0:
        raise ValueError("X must have the shape [*batch, N, P], or [N] with y [N], got []")
    single_target = vector or y.dim() == X.dim() - 1
    X = X[:, None] if vector else X
    y = y[..., None] if single_target else y
    if y.dim() != X.dim() or y.shape[-2] != X.shape[-2] or y.shape[-1] == 0:
        X_shape = list(X.shape[:1] if vector else X.shape)
        y_shape = list(y.shape[:-1] if single_target else y.shape)
        raise ValueError(
            "y must have the shape [*batch, N], or [*batch, N, R] for several targets, to match X"
            f" {'[N]' if vector else '[*batch, N, P]'} = {X_shape}, got {y_shape}"
        )
    if X.shape[-2] < rows:
        raise ValueError(f"X must have at least one row, got the shape {list(X.shape[:1] if vector else X.shape)}")
    batch, B = X.shape[:-2], math.prod(X.shape[:-2])
    if y.shape[:-2] != batch:
        try:
            batch = torch.broadcast_shapes(batch, y.shape[:-2])
        except RuntimeError:
            raise ValueError(
                f"the batch dims of X and y must broadcast, got {list(X.shape[:-2])} and {list(y.shape[:-2])}"
            ) from None
        X, y, B = X.expand(*batch, -1, -1), y.expand(*batch, -1, -1), math.prod(batch)
    form = Form(
        batch,
        None if single_target else y.shape[-1],
        None if vector else X.shape[-1],
        numpy,
        X.dtype if X.dtype == y.dtype else torch.float64,
        X.device,
    )
    if len(batch) != 1:
        X, y = X.reshape(B, *X.shape[-2:]), y.reshape(B, *y.shape[-2:])
    return Data(X, y, form)


class Weights(NamedTuple):
    """Weights of rows, and which problems have inf or NaN among them; the weights of these are 0 here."""

    w: Tensor | None  # [B, N] float64
    invalid: Tensor | None  # [B] bool, None if there is no such problem


def row_weights(sample_weight: Any, form: Form, N: int, in_batch: bool = False) -> Weights:
    """Check sample_weight, which broadcasts to `[*batch, N]`; with in_batch, inf and NaN are never an error."""
    if sample_weight is None:
        return Weights(None, None)
    w = as_operand("sample_weight", sample_weight, form.device, "X")
    shape = torch.Size((*form.batch, N))
    if w.dim() == 0 or w.shape[-1] != N:
        raise ValueError(f"sample_weight must have the shape [*batch, N] = {list(shape)} or [N], got {list(w.shape)}")
    check_broadcasts("sample_weight", w, shape, "X without its P")
    valid = True
    if w.numel():
        smallest, largest = torch.aminmax(w.detach())  # both propagate NaN
        valid = bool((smallest >= 0) & (largest < math.inf))
    if not valid and (negative := w < 0).any():
        at = negative.nonzero()[0].tolist()
        raise ValueError(f"sample_weight must not be negative, got {w[tuple(at)].item():g} at {at}")
    w = w.expand(shape).reshape(math.prod(form.batch), N)
    if valid:
        return Weights(w, None)
    if not (form.batch or in_batch):
        n = int((~w[0].isfinite()).nonzero()[0, 0])
        raise ValueError(f"sample_weight must be finite, got {w[0, n].item()} at [{n}]")
    invalid = ~w.isfinite().all(1)
    return Weights(torch.where(invalid[:, None], 0.0, w), invalid)


def flag(name: str, value: Any) -> bool:
    """Check for True or False."""
    if not is_flag(value):
        raise TypeError(f"{name} must be True or False, got {describe(value)}")
    return bool(value)


def choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Check for one of the given strings."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {describe(value)}")
    return value


def engine_name(backend: str, precision: str, *tensors: Tensor | None) -> str:
    """The backend for these tensors, X first."""
    X = tensors[0]
    assert X is not None
    unsupported = unsupported_state()
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        unsupported = "an argument requires grad"
    if X.numel() == 0:
        unsupported = f"X is empty, of shape {list(X.shape)}"
    elif X.shape[-1] > MAX_COLUMNS:
        unsupported = f"X has {X.shape[-1]} columns, and kernels support at most {MAX_COLUMNS}"
    chosen = _backend.choose("regression", _backend.requested(backend), X.device, unsupported)
    if chosen == "reference" and precision == "double-double":
        raise _backend.BackendError(NO_REFERENCE)
    return chosen


def precision_of_sums(precision: str, name: str) -> str:
    """The precision of sums: "auto" means double-double, since a solution cannot be refined without the rows."""
    return "double-double" if precision == "auto" and name != "reference" else precision


def engine(name: str) -> Any:
    """The engine of a backend: the module of a kernel, or `fastvae.reference.regression.engine`."""
    return reference_engine if name == "reference" else _backend.kernel_module("regression", name)
