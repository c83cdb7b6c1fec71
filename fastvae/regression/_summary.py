"""The text of `RegressionFit.summary`."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .._core.checks import describe
from .._core.numbers import is_integer
from .._core.status import Status
from ._inference import Inference

WIDTH, GAP = 12, 2  # minimum width of a column of numbers, and of the gap before it
DESCRIPTIONS = {
    Status.REFINED: "corrected with residuals in double-double",
    Status.DOUBLE_DOUBLE: "in double-double throughout",
    Status.RANK_DEFICIENT: "columns linearly dependent: this is the minimum-norm solution",
    Status.NONFINITE: "not fitted: the data contain inf or NaN",
    Status.TOO_FEW_ROWS: "not fitted: no row has a positive weight",
}


def text(fit: Inference, names: Sequence[str] | None, level: float, problem: Any, target: int | None) -> str:
    """A table of one problem, or an overview of a batch."""
    columns, targets = fit._columns if fit._columns is not None else 1, fit._targets
    if names is not None and (isinstance(names, str) or len(names) != columns):
        got = describe(names) if isinstance(names, str) else f"{len(names)}"
        raise ValueError(f"names must be a sequence of P = {columns} strings, got {got}")
    if target is not None and not is_integer(target):
        raise TypeError(f"target must be an int or None, got {describe(target)}")
    if target is not None and not 0 <= target < (targets or 1):
        raise ValueError(f"target must be in [0, {targets or 1}), got {target}")
    batch = fit.batch_shape
    if problem is not None:
        at = problem if isinstance(problem, tuple) else (problem,)
        if len(at) != len(batch) or not all(is_integer(i) and 0 <= i < n for i, n in zip(at, batch, strict=True)):
            raise ValueError(f"problem must be an index of one problem of the batch {list(batch)}, got {problem!r}")
        at = tuple(map(int, at))
        fit = fit[at]
    elif batch:
        return "\n".join(_overview(fit, target))
    column_names = [f"x{i + 1}" for i in range(columns)] if names is None else [str(name) for name in names]
    title = "Linear regression" + (f" of problem {list(at)}" if problem is not None else "")
    shown = [None] if targets is None else [target] if target is not None else list(range(targets))
    return "\n\n".join("\n".join(_table(fit, column_names, level, title, r)) for r in shown)


def _table(fit: Inference, names: list[str], level: float, title: str, target: int | None) -> Iterator[str]:
    """The lines for one problem and target."""

    def of(value: Any) -> np.ndarray:
        value = _array(value)
        return value if target is None else value[target]

    unbiased = float(of(fit.sigma2_unbiased))
    sigma = math.sqrt(unbiased if not math.isnan(unbiased) else float(of(fit.sigma2)))
    r2 = _r2_name(fit)
    facts = [
        ("rows", f"{int(fit.rows)}", r2, f"{float(of(fit.r2)):.6g}"),
        ("degrees of freedom", f"{int(fit.df)}", "sigma", f"{sigma:.6g}"),
        ("log-likelihood", f"{float(of(fit.log_likelihood)):.6g}", "condition", f"{float(fit.condition):.3g}"),
    ]
    yield title + ("" if target is None else f", target {target}")
    width = max(12, len(r2) + 2)
    yield from (f"  {a:<20}{_dash_if_nan(b):>14}    {c:<{width}}{_dash_if_nan(d):>14}" for a, b, c, d in facts)
    notes = _notes(fit, math.isnan(unbiased), math.isnan(float(of(fit.rss))))
    yield from (f"  {note}" for note in (*notes, _condition_note(fit)))
    ends = f"[{(1 - level) / 2:.4g}", f"{(1 + level) / 2:.4g}]"
    yield ""
    rows = []
    if fit._fit_intercept:
        values = fit.intercept, fit.intercept_standard_error, fit.intercept_t_value, fit.intercept_p_value
        rows.append(("intercept", *(of(v) for v in values), *of(fit.intercept_confidence_interval(level))))
    values = fit.coef, fit.standard_errors, fit.t_values, fit.p_values
    table = [np.reshape(of(v), -1) for v in values]
    low, high = np.reshape(of(fit.confidence_intervals(level)), (-1, 2)).T
    rows += zip(names, *table, low, high, strict=True)
    lines: list[tuple[str, ...]] = [("", "estimate", "std error", "t", "P>|t|", *ends)]
    for name, *numbers in rows:
        digits = (6, 4, 4, 4, 6, 6)
        lines.append((name, *(_dash_if_nan(f"{v:.{d}g}") for v, d in zip(numbers, digits, strict=True))))
    yield from _aligned(lines)


def _notes(fit: Inference, no_errors: bool, unfitted: bool) -> Iterator[str]:
    """How the fit was computed, and why results are missing."""
    # NONFINITE may refer to another target.
    status = Status(int(fit.status)) & (~Status(0) if unfitted else ~Status.NONFINITE)
    descriptions = [words for flag, words in DESCRIPTIONS.items() if status & flag]
    how = status & (Status.DOUBLE_DOUBLE | Status.REFINED | Status.NONFINITE | Status.TOO_FEW_ROWS)
    yield (
        "computed in float64"
        if not how and not descriptions
        else "; ".join(["computed in float64"] * (not how) + descriptions)
    )
    if status & Status.RANK_DEFICIENT:
        yield f"rank {int(fit.rank)} of {1 if fit._columns is None else fit._columns}"
    if fit._alpha > 0:
        yield f"ridge, alpha = {fit._alpha:g}: estimates are biased, without standard errors; sigma is sqrt(RSS / N)"
    elif no_errors and not status & (Status.NONFINITE | Status.TOO_FEW_ROWS):
        yield "no residual degrees of freedom, so no standard errors; sigma is sqrt(RSS / N)"


def _overview(fit: Inference, target: int | None) -> Iterator[str]:
    """The lines for a batch."""
    batch, status = fit.batch_shape, _array(fit.status).ravel()
    problems = len(status)
    yield f"Linear regressions: {problems} problems" + (f" ({' x '.join(map(str, batch))})" if len(batch) > 1 else "")
    counts = [(int(np.count_nonzero(status == 0)), "in float64")]
    unfitted = np.isnan(_array(fit.rss))
    partly = (status & Status.NONFINITE != 0) & ~(unfitted if fit._targets is None else unfitted.all(-1)).ravel()
    status = np.where(partly, status & ~Status.NONFINITE, status)
    counts += [(int(np.count_nonzero(status & flag)), text) for flag, text in DESCRIPTIONS.items()]
    counts += [(int(np.count_nonzero(partly)), "with targets that are not fitted: they contain inf or NaN")]
    yield from (f"  {count:>10}  {text}" for count, text in counts if count)
    yield ""
    lines: list[tuple[str, ...]] = [("", "min", "25 %", "median", "75 %", "max")]
    for name, value in ((_r2_name(fit), fit.r2), ("sigma", fit.sigma2_unbiased), ("condition", fit.condition)):
        array = _array(value).astype(np.float64)
        array = array[..., target] if target is not None and name != "condition" and fit._targets else array
        array = np.sqrt(array) if name == "sigma" else array
        array = np.sort(array[~np.isnan(array)])
        quantiles = array[np.round(np.linspace(0, len(array) - 1, 5)).astype(int)] if len(array) else [math.nan] * 5
        lines.append((f"  {name:<16}", *(_dash_if_nan(f"{v:.5g}") for v in quantiles)))
    yield from _aligned(lines)
    yield ""
    yield f"  {_condition_note(fit)}"


def _aligned(lines: list[tuple[str, ...]]) -> Iterator[str]:
    """Align names to the left and numbers to the right, with a gap between columns."""
    names, *columns = zip(*lines, strict=True)
    widths = [max(WIDTH, GAP + max(map(len, column))) for column in columns]
    first = GAP + max(map(len, names))
    for name, *cells in lines:
        yield f"{name:<{first}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _r2_name(fit: Inference) -> str:
    """The name statsmodels gives it: without an intercept, R^2 is about 0 and not a share of the variance."""
    return "R^2" if fit._fit_intercept else "R^2 (uncentered)"


def _condition_note(fit: Inference) -> str:
    columns = "centred columns" if fit._fit_intercept else "columns"
    return f"condition: of the {columns} at unit norm; statsmodels' Cond. No. is that of the raw design matrix"


def _dash_if_nan(number: str) -> str:
    """A dash for NaN."""
    return "-" if number == "nan" else number


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
