"""Inference from a fit: t values, p values and confidence intervals, by Student's t distribution."""

import math
from typing import Any

import torch
from torch import Tensor

from .._core.arrays import as_output
from .._core.checks import describe
from .._core.numbers import is_real


class Inference:
    """The part of `RegressionFit` that follows from estimates and their standard errors."""

    __slots__ = ()

    coef: Any
    intercept: Any
    standard_errors: Any
    intercept_standard_error: Any
    sigma2: Any
    sigma2_unbiased: Any
    log_likelihood: Any
    r2: Any
    rss: Any
    condition: Any
    rank: Any
    rows: Any
    df: Any
    status: Any
    _alpha: float
    _columns: int | None  # P; None if it has no dim
    _targets: int | None  # R, likewise
    _fit_intercept: bool
    _numpy: bool

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading dims; () for one problem."""
        return tuple(getattr(self.rank, "shape", ()))

    def __getitem__(self, index: Any) -> "Inference":
        raise NotImplementedError

    @property
    def t_values(self) -> Any:
        """W divided by its standard errors, shaped like coef; statsmodels' ``tvalues``. NaN without standard errors."""
        return as_output(tensor(self.coef) / tensor(self.standard_errors), self._numpy)

    @property
    def intercept_t_value(self) -> Any:
        """The t value of b; NaN without an intercept."""
        return as_output(tensor(self.intercept) / tensor(self.intercept_standard_error), self._numpy)

    @property
    def p_values(self) -> Any:
        """Two-sided p values of Student's t test, float64, shaped like coef; statsmodels' ``pvalues``.

        Requires SciPy, as confidence intervals do: ``pip install 'fastvae-kernels[stats]'``.
        """
        return as_output(p_values(tensor(self.t_values), tensor(self.df)), self._numpy)

    @property
    def intercept_p_value(self) -> Any:
        """The p value of b; NaN without an intercept."""
        return as_output(p_values(tensor(self.intercept_t_value), tensor(self.df)), self._numpy)

    def confidence_intervals(self, level: float = 0.95) -> Any:
        """Confidence intervals of the coefficients.

        Parameters
        ----------
        level : float
            The confidence level.

        Returns
        -------
        array or tensor ``[..., P, 2]``
            Lower and upper ends; NaN without standard errors.

        Notes
        -----
        Equivalent to statsmodels' ``conf_int(1 - level)``.
        """
        ends = intervals(tensor(self.coef), tensor(self.standard_errors), tensor(self.df), level)
        return as_output(ends, self._numpy)

    def intercept_confidence_interval(self, level: float = 0.95) -> Any:
        """Confidence interval of b.

        Parameters
        ----------
        level : float
            The confidence level.

        Returns
        -------
        array or tensor ``[..., 2]``
            Lower and upper end; NaN without an intercept.
        """
        error = tensor(self.intercept_standard_error)
        error = error if self._fit_intercept else torch.full_like(error, math.nan)
        return as_output(intervals(tensor(self.intercept), error, tensor(self.df), level), self._numpy)


def tensor(value: Any) -> Tensor:
    """A tensor, which shares the memory of an array."""
    return value if isinstance(value, Tensor) else torch.as_tensor(value)


def student_t() -> Any:
    """`scipy.stats.t`, imported on first use."""
    try:
        from scipy.stats import t
    except ImportError as error:
        message = "p values and confidence intervals require SciPy: pip install 'fastvae-kernels[stats]'"
        raise ImportError(message) from error
    return t


def p_values(t: Tensor, df: Tensor) -> Tensor:
    """P(|T| >= |t|) for df `[*batch]` degrees of freedom, float64, shaped like t; NaN where df <= 0."""
    tail = student_t().sf(t.detach().abs().double().cpu().numpy(), _along(df, t).cpu().numpy())
    return 2 * torch.as_tensor(tail).to(t.device)


def intervals(value: Tensor, error: Tensor, df: Tensor, level: float) -> Tensor:
    """value -+ q error, q the quantile (1 + level) / 2 for df `[*batch]` degrees of freedom; `[*value.shape, 2]`."""
    quantile = student_t().ppf((1 + check_level(level)) / 2, df.cpu().numpy())
    half = _along(torch.as_tensor(quantile).to(value.device), value) * error
    return torch.stack([value - half, value + half], -1).to(value.dtype)


def check_level(level: Any) -> float:
    """Check for a float between 0 and 1, exclusive."""
    if not is_real(level):
        raise TypeError(f"level must be a float, got {describe(level)}")
    if not 0 < (number := float(level)) < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95, got {number}")
    return number


def _along(per_problem: Tensor, t: Tensor) -> Tensor:
    return per_problem.reshape((*per_problem.shape, *[1] * (t.dim() - per_problem.dim())))
