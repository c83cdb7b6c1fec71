"""The parts of `fastvae.gmm.fit`: which problems can be fitted, their fits, and the error messages of failures."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core.status import Status
from ..reference.gmm import engine as reference_engine
from ..reference.gmm import formulas
from ..reference.gmm.formulas import Mixture
from . import _checks as checks


class Task(NamedTuple):
    """The data of one call of `fit`, detached from any graph, and the mixtures to fit."""

    data: checks.Rows
    sample_weight: Tensor | None  # [B, N] float64
    n_components: int
    covariance_type: str
    start: str | checks.Parameters
    chunks: Any = None  # `Chunks`, if the rows come in chunks; `data` then has only their shape


def initial_status(task: Task) -> Tensor:
    """The status of each problem before fitting, int64 `[B]`: 0, NONFINITE or TOO_FEW_ROWS."""
    X, w = task.data.X, task.sample_weight
    finite = X.sum((1, 2)).isfinite()  # the fastest check of all values; it may overflow, which is checked below
    if not finite.all():
        rest = X[~finite]
        if w is not None:  # ignore rows of weight 0
            rest = rest.masked_fill((w[~finite] == 0)[..., None], 0)
        finite[~finite] = rest.amax((1, 2)).isfinite() & rest.amin((1, 2)).isfinite()  # both propagate NaN
    if not isinstance(task.start, str):
        finite &= torch.stack([t.flatten(1).isfinite().all(1) for t in task.start]).all(0)
    few = torch.full_like(finite, X.shape[1] < task.n_components)
    if w is not None:
        finite &= w.isfinite().all(1)
        few |= (w > 0).sum(1) < task.n_components
    return torch.where(finite, Status.TOO_FEW_ROWS * few, int(Status.NONFINITE))


def check_init_weights(task: Task) -> None:
    """Raise ValueError if the weights of an initial mixture are invalid, in any problem of a batch."""
    if not isinstance(task.start, str):
        weights = task.start[0]
        invalid = (weights < 0).any(1) | ((weights.sum(1) - 1).abs() > 1e-5)
        if invalid.any():
            got, where = weights[invalid][0], _in_problem(invalid, task)
            raise ValueError(f"init's weights must be >= 0 and sum to 1{where}, got {got.tolist()}")


def fit_all(
    engine: Any, task: Task, progress: Callable[[int, int], None] | None, **options: Any
) -> reference_engine.Fitted:
    """Fit the problems that can be fitted, in float64; the parameters of the others are NaN."""
    X, w, start, status = task.data.X, task.sample_weight, task.start, initial_status(task)
    fitted_problems = (status == 0).nonzero()[:, 0]
    B, K, D = len(X), task.n_components, X.shape[2]

    def nan_fit(width: int) -> reference_engine.Fitted:
        shapes: list[tuple[int, ...]] = [
            (K,),
            (K, D),
            checks.covariance_shape(task.covariance_type, K, D),
            (),
            (width,),
        ]
        *nan, variances = (torch.full((B, *s), math.nan, dtype=torch.float64, device=X.device) for s in (*shapes, (D,)))
        return reference_engine.Fitted._make((*nan, torch.zeros_like(status), status, variances))

    if len(fitted_problems) == 0:
        return nan_fit(1)

    def select(t: Tensor) -> Tensor:
        return t if len(fitted_problems) == B else t[fitted_problems]

    result = engine.fit(
        select(X) if task.chunks is None else engine.stream(task.chunks, w),
        K,
        task.covariance_type,
        start=start if isinstance(start, str) else tuple(select(t) for t in start),
        sample_weight=None if w is None else select(w),
        problems=fitted_problems,
        progress=progress,
        **options,
    )
    failed = result.log_likelihood.isnan()  # the start was degenerate
    if failed.any():
        parameters = (t.masked_fill(failed.reshape(-1, *[1] * (t.dim() - 1)), math.nan) for t in result[:3])
        result = reference_engine.Fitted._make((*parameters, *result[3:]))
    if len(fitted_problems) == B:
        return reference_engine.Fitted._make(result)
    full = nan_fit(result.lower_bounds.shape[1])
    parts = (t.index_copy(0, fitted_problems, part) for t, part in zip(full, result, strict=True))
    return reference_engine.Fitted._make(parts)


def raise_first_failure(task: Task, fitted: reference_engine.Fitted, reg_covar: float) -> None:
    """Raise ValueError for the first problem that has no fit or a degenerate one, if any."""
    bad = fitted.status & int(Status.SINGULAR | Status.NONFINITE | Status.TOO_FEW_ROWS) != 0
    if not bad.any():
        return
    b = int(bad.nonzero()[0, 0])
    where, status = _in_problem(bad, task), Status(int(fitted.status[b]))
    if status & Status.NONFINITE:
        raise ValueError(_nonfinite(task, b, where))
    K, w = task.n_components, task.sample_weight
    if status & Status.TOO_FEW_ROWS:
        assert w is not None  # N < K has been reported already
        raise ValueError(
            f"sample_weight must be positive for at least n_components = {K} rows{where}, got {int((w[b] > 0).sum())}"
        )
    raise ValueError(
        f"{_degenerate(task, fitted, b, reg_covar)}{where}: increase reg_covar, now {reg_covar:g}, decrease"
        f" n_components, now {K}, or use on_degenerate='rescue'"
    )


def warn_large_reg_covar(task: Task, fitted: reference_engine.Fitted, reg_covar: float) -> None:
    """Warn if reg_covar is as large as the variance of a feature that is not constant."""
    variances = fitted.variances  # [B, D]
    what = "the variance of feature {} of X"
    if task.covariance_type == "spherical":
        variances, what = variances.mean(1, keepdim=True), "the mean variance of X's features"
    small = (variances <= reg_covar) & (variances > 0)
    if reg_covar == 0 or not small.any():
        return
    # The computed variance of a constant feature far from 0 is its rounding error.
    rounding = 8 * torch.finfo(torch.float64).eps * fitted.means.abs().amax((1, 2))
    small &= variances > rounding.square()[:, None]
    if small.any():
        b, d = small.nonzero()[0].tolist()
        of = f"{what.format(d)}, {variances[b, d]:.3g}{_in_problem(small.any(1), task)}"
        warnings.warn(
            f"reg_covar, {reg_covar:g}, is as large as {of}, and hides all structure there: scale X, or decrease"
            " reg_covar",
            stacklevel=3,
        )


def _nonfinite(task: Task, b: int, where: str) -> str:
    """The error message for inf or NaN in problem b."""
    X, w = task.data.X[b], None if task.sample_weight is None else task.sample_weight[b]
    arguments = {"X": X if w is None else X.masked_fill((w == 0)[:, None], 0), "sample_weight": w}
    if not isinstance(task.start, str):
        fields = ("weights", "means", "covariances")
        arguments |= {f"init's {field}": t[b] for field, t in zip(fields, task.start, strict=True)}
    for name, t in arguments.items():
        if t is not None and not t.isfinite().all():
            at = (~t.isfinite()).nonzero()[0].tolist()
            return f"{name} must be finite, got {t[tuple(at)].item()} at {_index(*at)}{where}"
    raise AssertionError("every value is finite")


def _degenerate(task: Task, fitted: reference_engine.Fitted, b: int, reg_covar: float) -> str:
    """What is degenerate in problem b, found by repeating the failed step of EM."""
    kind, n_iter = task.covariance_type, int(fitted.n_iter[b])
    if task.chunks is not None:
        return f"a component has no rows or a singular covariance after iteration {n_iter}"
    if (at_start := bool(fitted.log_likelihood[b].isnan())) and isinstance(task.start, str):
        return f"a component of the start, init={task.start!r}, has no rows or a singular covariance"
    parameters = task.start if at_start else fitted[:3]
    weights, means, covariances = (t[b : b + 1] for t in parameters)
    mixture, when = Mixture(weights, means, covariances, kind), "at init"
    if not at_start:
        X = task.data.X[b : b + 1]
        w = None if task.sample_weight is None else task.sample_weight[b : b + 1]
        log_resp = reference_engine.e_step(X, *mixture[:3], kind)[0]
        assert log_resp is not None  # computed by default
        mixture = formulas.Mixture(*reference_engine.m_step(X, log_resp.exp(), kind, w, reg_covar), kind)
        when = f"in iteration {n_iter + 1}"
    degenerate = reference_engine.degenerate_components(mixture)[0]
    if kind == "tied" and degenerate.all():
        return f"the tied covariance is not positive definite {when}"
    if not degenerate.any():  # the other backend rounds differently
        return f"a component has no rows or a singular covariance {when}"
    k = int(degenerate.nonzero()[0, 0])
    what = "has no rows" if mixture.weights[0, k] == 0 else "has a covariance that is not positive definite"
    return f"component {k} {what} {when}"


def _index(*at: int) -> str:
    return f"[{', '.join(map(str, at))}]"


def _in_problem(bad: Tensor, task: Task) -> str:
    """The position of the first bad problem, for an error message; empty if there is only one problem."""
    return f" in problem {_index(*checks.first_index(bad, task.data))} of the batch" if task.data.batch else ""


@contextmanager
def progress_bar(enabled: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A function that reports the progress of an engine on a tqdm bar, or None."""
    if not enabled:
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc="gmm.fit", unit="") as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report
