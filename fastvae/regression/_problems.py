"""Problems that need more than one call of an engine, such as extreme magnitudes, and the messages about failures."""

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._core.status import Status
from ..reference.regression import engine as reference_engine
from ..reference.regression.engine import MAX_MAGNITUDE, MIN_MAGNITUDE, Fitted, insert, ldexp, scale_targets
from . import _checks as checks

NONFINITE, RANK_DEFICIENT = int(Status.NONFINITE), int(Status.RANK_DEFICIENT)
MAYBE_OUT_OF_RANGE = NONFINITE | RANK_DEFICIENT  # squares may have left the range of float64
ILL_CONDITIONED = RANK_DEFICIENT | int(Status.DOUBLE_DOUBLE)  # kernels set one of these if weights are very uneven
HEAVY_RATIO = 2.0**66  # ratio of weights above which sums in double-double may lose light rows to rounding
UNFITTED = NONFINITE | int(Status.TOO_FEW_ROWS)
NO_ROWS = "sample_weight must be positive for at least one row, got 0"

RankWarning: Any = vars(np.exceptions).get("RankWarning") or vars(np)["RankWarning"]  # the second before NumPy 2

MIN_WEIGHT, MAX_WEIGHT = 1e-100, 1e100
MIN_ALPHA = 1e-300  # positive, so still a ridge, but negligible relative to squares of 1
MAX_SPREAD = 900  # powers of two between the largest and smallest column that one common factor can bring into range


def combined_flags(status: Tensor) -> int:
    """The flags that are set for any problem."""
    try:
        return int(np.bitwise_or.reduce(status.cpu().numpy(), axis=None, initial=0))  # 5 times as fast as torch
    except RuntimeError:  # under a transform of torch.func
        return sum(flag for flag in Status if (status & flag).any())


def has_extreme_values(fitted: Fitted, weighted: bool) -> bool:
    """Whether squares of the data may have left the range of float64 without setting a flag."""
    if fitted.rss.numel() == 0:
        return False
    if weighted:
        smallest, largest = torch.aminmax(fitted.total_weight.detach())
        if not (smallest.item() > MIN_WEIGHT and largest.item() < MAX_WEIGHT):
            return True
    if fitted.coef.numel():
        smallest, largest = torch.aminmax(fitted.coef.detach())
        if not (smallest.item() > -1e100 and largest.item() < 1e100):
            return True
    return fitted.rss.detach().min().item() < 1e-250


def replace_nonfinite_targets(
    engine: Any, data: checks.Data, w: Tensor | None, fitted: Fitted, options: dict[str, Any]
) -> tuple[checks.Data, Fitted, Tensor | None]:
    """Replace targets that contain inf or NaN by a finite target of the same problem, and fit these problems again.

    Returns the data, the fits, and which targets were replaced, `[B, R]`, or None. The other targets are then treated
    as if the replaced ones were absent, and gradients do not pass through the latter.
    """
    bad = ~data.y.detach().isfinite()  # [B, N, R]
    replaced = (bad if w is None else bad & (w > 0)[..., None]).any(1)
    replaced &= ~replaced.all(1, keepdim=True)
    at = replaced.any(1).nonzero()[:, 0]
    if not len(at):
        return data, fitted, None
    own = torch.arange(replaced.shape[1], device=replaced.device)
    first_finite = (~replaced).to(torch.uint8).argmax(1, keepdim=True)
    y = data.y.gather(2, torch.where(replaced, first_finite, own)[:, None].expand_as(data.y))
    refitted = engine.fit(data.X[at], y[at], sample_weight=None if w is None else w[at], **options)
    return data._replace(y=y), insert(fitted, at, refitted), replaced


def refit_rescaled(engine: Any, data: checks.Data, w: Tensor | None, fitted: Fitted, options: dict[str, Any]) -> Fitted:
    """Fit problems of extreme magnitude again, with columns, y and weights scaled by powers of two."""
    coef, rss = fitted.coef.detach(), fitted.rss.detach()  # [B, R, P], [B, R]
    suspect = (fitted.status & MAYBE_OUT_OF_RANGE != 0) | (rss < 1e-250).any(1) | ~(coef.abs() < 1e100).all(2).all(1)
    suspect |= ~((fitted.total_weight > MIN_WEIGHT) & (fitted.total_weight < MAX_WEIGHT))
    at = suspect.nonzero()[:, 0]
    tensors = [data.X[at].to(torch.float64), data.y[at].to(torch.float64)]  # [b, N, P], [b, N, R]
    if w is not None:
        weights = w[at][..., None]  # [b, N, 1]
        tensors = [*(t.masked_fill(weights == 0, 0.0) for t in tensors), weights]
    peaks = [t.detach().abs().amax(1) for t in tensors]  # [b, P], [b, R], [b, 1]
    root = 1.0 if w is None else peaks[2].sqrt()
    extreme = [((p > MAX_MAGNITUDE) | (p < MIN_MAGNITUDE) & (p > 0)).any(1) for p in (peaks[0] * root, peaks[1] * root)]
    if w is not None:
        extreme.append(((peaks[2] > MAX_WEIGHT) | (peaks[2] < MIN_WEIGHT) & (peaks[2] > 0))[:, 0])
    out_of_range = torch.stack(extreme).any(0)
    out_of_range &= torch.stack([p.isfinite().all(1) for p in peaks]).all(0)  # amax propagates NaN
    one_by_one = options["alpha"] > 0  # each problem then has its own scaled alpha
    groups = out_of_range.nonzero() if one_by_one else [out_of_range.nonzero()[:, 0]] if out_of_range.any() else []
    for group in groups:
        refitted = _refit(engine, [t[group] for t in tensors], [p[group] for p in peaks], options)
        fitted = insert(fitted, at[group], refitted)
    return fitted


def _refit(engine: Any, tensors: list[Tensor], peaks: list[Tensor], options: dict[str, Any]) -> Fitted:
    """Fit X `[b, N, P]`, y `[b, N, R]` and weights `[b, N, 1]` after scaling, given their largest magnitudes."""
    exponents = [torch.where(p > 0, torch.frexp(p).exponent, 0) for p in peaks]  # [b, P], [b, R], [b, 1]
    if exponents[0].shape[1]:
        # One common factor for all columns if possible, which preserves the minimum-norm solution and the ridge.
        zero, ex = peaks[0] == 0, exponents[0]
        low = ex.masked_fill(zero, 10**4).amin(1, keepdim=True)  # [b, 1]
        high = ex.masked_fill(zero, -(10**4)).amax(1, keepdim=True)
        common = (high - low <= MAX_SPREAD) | (options["alpha"] > 0)
        exponents[0] = torch.where(common, (low + high) // 2, ex)
        if options["alpha"] > 0:  # if it exceeds their squares, scale it to 1, so that it does not overflow
            of_alpha = math.frexp(options["alpha"])[1] - (exponents[2] if len(exponents) > 2 else 0)
            exponents[0] = torch.maximum(exponents[0], torch.div(of_alpha, 2, rounding_mode="floor"))
    X, y, *w = (ldexp(t, -e[:, None]) for t, e in zip(tensors, exponents, strict=True))
    ex, ey = exponents[:2]
    ew = exponents[2] if w else torch.zeros_like(ey[:, :1])
    if options["alpha"] > 0 and ex.shape[1]:
        alpha = ldexp(torch.tensor(options["alpha"], dtype=torch.float64), -2 * ex[0, 0] - ew[0, 0])
        options = options | {"alpha": max(alpha.item(), MIN_ALPHA)}
    fitted = engine.fit(X, y, sample_weight=w[0][..., 0] if w else None, **options)
    fitted = scale_targets(fitted, ey)
    undo = {"coef": -ex[:, None], "standard_errors": -ex[:, None], "mean_x": ex, "small_mean_x": ex}
    undo |= {"total_weight": ew[:, 0], "rss": ew, "sigma2": ew, "sigma2_unbiased": ew}  # cancels in the likelihood
    scaled = {name: ldexp(getattr(fitted, name), exponent) for name, exponent in undo.items()}
    inverse, exponent = fitted.inverse_gram, -ex[..., None] - ex[:, None] - ew[..., None]
    return fitted._replace(**scaled, inverse_gram=lambda: ldexp(inverse(), exponent))


def refit_heavy_rows(data: checks.Data, w: Tensor, fitted: Fitted, options: dict[str, Any]) -> Fitted:
    """Fit problems again by QR if sums over heavy rows may have lost light rows to rounding."""
    has_uneven_weights, UNEVEN_RATIO = reference_engine.has_uneven_weights, reference_engine.UNEVEN_RATIO
    rank_deficient = fitted.status & RANK_DEFICIENT != 0
    ill_conditioned = (fitted.status & ILL_CONDITIONED != 0) & (fitted.total_weight < MAX_WEIGHT)
    heavy = has_uneven_weights(w, HEAVY_RATIO) | rank_deficient & has_uneven_weights(w, UNEVEN_RATIO)
    at = (heavy & ill_conditioned).nonzero()[:, 0]
    if not len(at):
        return fitted
    return insert(fitted, at, reference_engine.fit(data.X[at], data.y[at], sample_weight=w[at], **options))


def as_full_rank(fitted: Fitted, fit_intercept: bool) -> Fitted:
    """Mark ridge fits as of full rank: a ridge has a unique solution.

    If alpha is so small that it is lost to rounding, the minimum-norm solution has been computed, which is its limit.
    """
    rank = torch.where(fitted.status & RANK_DEFICIENT != 0, fitted.coef.shape[-1], fitted.rank)
    df = fitted.rows - rank - int(fit_intercept)
    return fitted._replace(status=fitted.status & ~RANK_DEFICIENT, rank=rank, df=df)


def raise_unfitted(data: checks.Data, w: Tensor | None, fitted: Fitted) -> None:
    """Raise ValueError for a single problem that could not be fitted."""
    if int(fitted.status) & Status.TOO_FEW_ROWS:
        raise ValueError(NO_ROWS)
    form = data.form
    for name, t, dim in (("X", data.X[0], form.features), ("y", data.y[0], form.targets)):
        finite = t.isfinite() if w is None else t.isfinite() | (w[0] == 0)[:, None]
        if not finite.all():
            n, column = (~finite).nonzero()[0].tolist()
            at = [n] if dim is None else [n, column]
            raise ValueError(f"{name} must be finite, got {t[n, column].item()} at {at}")
    raise ValueError("X and y are finite, but sums of their squares overflow float64, in any units")


def report_singular(fitted: Fitted, form: checks.Form, fit_intercept: bool, on_singular: str) -> None:
    """Warn about linearly dependent columns, or raise, on behalf of a public function."""
    if on_singular == "ignore":
        return
    bad = (fitted.status & RANK_DEFICIENT != 0).nonzero()[:, 0]
    where = ""
    if form.batch:
        first = [int(i) for i in torch.unravel_index(bad[0].cpu(), form.batch)]
        where = f" in {len(bad)} of {len(fitted.status)} problems, first in {first}"
    what = (
        f"the columns of X{', minus their means,' if fit_intercept else ''} are linearly dependent{where}: rank"
        f" {int(fitted.rank[bad[0]])} of {form.P}"
    )
    if on_singular == "raise":
        raise np.linalg.LinAlgError(f"{what}; use on_singular='ignore' for the minimum-norm solution")
    message = f"{what}; the minimum-norm solution is returned. on_singular='ignore' silences this warning"
    warnings.warn(message, RankWarning, stacklevel=3)
