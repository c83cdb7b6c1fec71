"""What a fit does about problems that are not answered at once: extreme magnitudes, and what is said of failures."""

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._core.status import Status
from ..reference.regression import engine as reference_engine
from ..reference.regression.engine import LEAST, MOST, Fitted, put, scale_targets, times
from . import _checks as checks

NONFINITE, RANK_DEFICIENT = int(Status.NONFINITE), int(Status.RANK_DEFICIENT)
SUSPECT = NONFINITE | RANK_DEFICIENT  # maybe because squares left the range of float64
STRAINED = RANK_DEFICIENT | int(Status.DOUBLE_DOUBLE)  # as all problems are in which a kernel meets such rows
HEAVY = 2.0**66  # weights, of one another: sums in double-double may round light rows away
UNFITTED = NONFINITE | int(Status.TOO_FEW_ROWS)
NO_ROWS = "sample_weight must be positive for at least one row, got 0"

RankWarning: Any = vars(np.exceptions).get("RankWarning") or vars(np)["RankWarning"]  # the second before NumPy 2

LEAST_WEIGHT, MOST_WEIGHT = 1e-100, 1e100
LEAST_ALPHA = 1e-300  # so small beside squares of 1 that it counts for nothing, but a ridge
SPREAD = 900  # powers of two between the largest and the least column that one common factor brings into that range


def flags(status: Tensor) -> int:
    """Those that any problem has."""
    try:
        return int(np.bitwise_or.reduce(status.cpu().numpy(), axis=None, initial=0))  # a fifth of the time of torch
    except RuntimeError:  # under a transform of torch.func there are no numbers to point at
        return sum(flag for flag in Status if (status & flag).any())


def extreme(fitted: Fitted, weighted: bool) -> bool:
    """Whether results look as if squares of the data had left the range of float64 with no flag to say so."""
    if fitted.rss.numel() == 0:
        return False
    if weighted:
        least, most = torch.aminmax(fitted.total_weight.detach())
        if not (least.item() > LEAST_WEIGHT and most.item() < MOST_WEIGHT):
            return True
    if fitted.coef.numel():
        least, most = torch.aminmax(fitted.coef.detach())
        if not (least.item() > -1e100 and most.item() < 1e100):
            return True
    return fitted.rss.detach().min().item() < 1e-250


def without_lost_targets(
    engine: Any, data: checks.Data, w: Tensor | None, fitted: Fitted, options: dict[str, Any]
) -> tuple[checks.Data, Fitted, Tensor | None]:
    """Data with another target in place of those that hold inf or NaN, the results, and which these are: [B, R].

    So what is done about the other targets is as if these were not there, and gradients pass them by.
    """
    bad = ~data.y.detach().isfinite()  # [B, N, R]
    lost = (bad if w is None else bad & (w > 0)[..., None]).any(1)
    lost &= ~lost.all(1, keepdim=True)
    at = lost.any(1).nonzero()[:, 0]
    if not len(at):
        return data, fitted, None
    own, sound = torch.arange(lost.shape[1], device=lost.device), (~lost).to(torch.uint8).argmax(1, keepdim=True)
    y = data.y.gather(2, torch.where(lost, sound, own)[:, None].expand_as(data.y))
    again = engine.fit(data.X[at], y[at], sample_weight=None if w is None else w[at], **options)
    return data._replace(y=y), put(fitted, at, again), lost


def rescaled(engine: Any, data: checks.Data, w: Tensor | None, fitted: Fitted, options: dict[str, Any]) -> Fitted:
    """Results, with problems of extreme magnitude fitted once more: columns, y and weights times powers of two."""
    coef, rss = fitted.coef.detach(), fitted.rss.detach()  # [B, R, P], [B, R]
    suspect = (fitted.status & SUSPECT != 0) | (rss < 1e-250).any(1) | ~(coef.abs() < 1e100).all(2).all(1)
    suspect |= ~((fitted.total_weight > LEAST_WEIGHT) & (fitted.total_weight < MOST_WEIGHT))
    at = suspect.nonzero()[:, 0]
    tensors = [data.X[at].to(torch.float64), data.y[at].to(torch.float64)]  # [b, N, P], [b, N, R]
    if w is not None:
        weights = w[at][..., None]  # [b, N, 1]
        tensors = [*(t.masked_fill(weights == 0, 0.0) for t in tensors), weights]
    peaks = [t.detach().abs().amax(1) for t in tensors]  # [b, P], [b, R], [b, 1]
    root = 1.0 if w is None else peaks[2].sqrt()
    wild = torch.stack([((p > MOST) | (p < LEAST) & (p > 0)).any(1) for p in (peaks[0] * root, peaks[1] * root)]).any(0)
    if w is not None:
        wild |= ((peaks[2] > MOST_WEIGHT) | (peaks[2] < LEAST_WEIGHT) & (peaks[2] > 0))[:, 0]
    wild &= torch.stack([p.isfinite().all(1) for p in peaks]).all(0)  # amax passes NaN on
    alone = options["alpha"] > 0  # each has an alpha of its own then
    for one in wild.nonzero() if alone else [wild.nonzero()[:, 0]] if wild.any() else []:
        again = _refit(engine, [t[one] for t in tensors], [p[one] for p in peaks], options)
        fitted = put(fitted, at[one], again)
    return fitted


def _refit(engine: Any, tensors: list[Tensor], peaks: list[Tensor], options: dict[str, Any]) -> Fitted:
    """The fit of X `[b, N, P]`, y `[b, N, R]` and weights `[b, N, 1]`, given their largest magnitudes."""
    exponents = [torch.where(p > 0, torch.frexp(p).exponent, 0) for p in peaks]  # [b, P], [b, R], [b, 1]
    if exponents[0].shape[1]:
        # One factor for all columns, where it will do: then minimum norm and ridge mean what they did.
        zero, ex = peaks[0] == 0, exponents[0]
        low = ex.masked_fill(zero, 10**4).amin(1, keepdim=True)  # [b, 1]
        high = ex.masked_fill(zero, -(10**4)).amax(1, keepdim=True)
        common = (high - low <= SPREAD) | (options["alpha"] > 0)
        exponents[0] = torch.where(common, (low + high) // 2, ex)
        if options["alpha"] > 0:  # where it is more than their squares it is scaled to 1, not beyond float64
            of_alpha = math.frexp(options["alpha"])[1] - (exponents[2] if len(exponents) > 2 else 0)
            exponents[0] = torch.maximum(exponents[0], torch.div(of_alpha, 2, rounding_mode="floor"))
    X, y, *w = (times(t, -e[:, None]) for t, e in zip(tensors, exponents, strict=True))
    ex, ey = exponents[:2]
    ew = exponents[2] if w else torch.zeros_like(ey[:, :1])
    if options["alpha"] > 0 and ex.shape[1]:
        shrunk = times(torch.tensor(options["alpha"], dtype=torch.float64), -2 * ex[0, 0] - ew[0, 0])
        options = options | {"alpha": max(shrunk.item(), LEAST_ALPHA)}
    found = engine.fit(X, y, sample_weight=w[0][..., 0] if w else None, **options)
    found = scale_targets(found, ey)
    back = {"coef": -ex[:, None], "standard_errors": -ex[:, None], "mean_x": ex, "small_mean_x": ex}
    back |= {"total_weight": ew[:, 0], "rss": ew, "sigma2": ew, "sigma2_unbiased": ew}  # which the likelihood cancels
    scaled = {name: times(getattr(found, name), exponent) for name, exponent in back.items()}
    inverse = found.inverse_gram
    return found._replace(**scaled, inverse_gram=lambda: times(inverse(), -ex[..., None] - ex[:, None] - ew[..., None]))


def with_heavy_rows(data: checks.Data, w: Tensor, fitted: Fitted, options: dict[str, Any]) -> Fitted:
    """Results, with those by QR where sums over heavy rows have rounded away what light ones say."""
    lost = fitted.status & RANK_DEFICIENT != 0
    strained = (fitted.status & STRAINED != 0) & (fitted.total_weight < MOST_WEIGHT)
    heavy = reference_engine.are_uneven(w, HEAVY) | lost & reference_engine.are_uneven(w, reference_engine.UNEVEN)
    at = (heavy & strained).nonzero()[:, 0]
    if not len(at):
        return fitted
    return put(fitted, at, reference_engine.fit(data.X[at], data.y[at], sample_weight=w[at], **options))


def of_full_rank(fitted: Fitted, fit_intercept: bool) -> Fitted:
    """Results under a ridge: it has one solution, that of minimum norm where a tiny alpha is lost beside rounding."""
    rank = torch.where(fitted.status & RANK_DEFICIENT != 0, fitted.coef.shape[-1], fitted.rank)
    df = fitted.rows - rank - int(fit_intercept)
    return fitted._replace(status=fitted.status & ~RANK_DEFICIENT, rank=rank, df=df)


def refuse(data: checks.Data, w: Tensor | None, fitted: Fitted) -> None:
    """Raise ValueError for the one problem that has no fit."""
    if int(fitted.status) & Status.TOO_FEW_ROWS:
        raise ValueError(NO_ROWS)
    form = data.form
    for name, t, dim in (("X", data.X[0], form.features), ("y", data.y[0], form.targets)):
        finite = t.isfinite() if w is None else t.isfinite() | (w[0] == 0)[:, None]
        if not finite.all():
            n, column = (~finite).nonzero()[0].tolist()
            at = [n] if dim is None else [n, column]
            raise ValueError(f"{name} must be finite, got {t[n, column].item()} at {at}")
    raise ValueError("X and y are finite, but sums of their squares are not in float64, in any units")


def say_singular(fitted: Fitted, form: checks.Form, fit_intercept: bool, on_singular: str) -> None:
    """Warn of linearly dependent columns, or raise, for the caller of a public function."""
    if on_singular == "ignore":
        return
    bad = (fitted.status & RANK_DEFICIENT != 0).nonzero()[:, 0]
    where = ""
    if form.batch:
        first = [int(i) for i in torch.unravel_index(bad[0].cpu(), form.batch)]
        where = f" in {len(bad)} of {len(fitted.status)} problems, first in {first}"
    what = (
        f"the columns of X{', less their means,' if fit_intercept else ''} are linearly dependent{where}: rank"
        f" {int(fitted.rank[bad[0]])} of {form.P}"
    )
    if on_singular == "raise":
        raise np.linalg.LinAlgError(f"{what}; for the solution of minimum norm fit with on_singular='ignore'")
    message = f"{what}; the solution is that of minimum norm, and on_singular='ignore' silences this"
    warnings.warn(message, RankWarning, stacklevel=3)
