"""`RegressionFit`, the result of `fastvae.regression`: estimates, inference, predictions and the summary."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .._core.arrays import as_floating, as_output
from .._core.checks import check_device
from .._core.numbers import is_integer
from .._core.status import Status
from ..reference.regression.engine import Fitted
from . import _summary
from ._checks import Form
from ._inference import Inference, check_level, tensor
from ._predict import Center, center_of, is_far, predict_centered

FIELDS = {  # with the dims of each after the batch dims
    "coef": "RP",
    "intercept": "R",
    "standard_errors": "RP",
    "intercept_standard_error": "R",
    "sigma2": "R",
    "sigma2_unbiased": "R",
    "log_likelihood": "R",
    "r2": "R",
    "rss": "R",
    "condition": "",
    "rank": "",
    "rows": "",
    "df": "",
    "status": "",
}
ESTIMATES = tuple(FIELDS)[:6]  # in the dtype of the data


class RegressionFit(Inference):
    """A fitted regression, or a batch of them, returned by `fit` and `Gram.solve`. Immutable; can be pickled.

    For a batch, ``fit[i]`` is the fit of problem i; slices, masks and index arrays select several; `len` and iteration
    use the first batch dim. There is no dim for R if y has none, and no dim for P if X is ``[N]``.

    Attributes
    ----------
    coef : ``[*batch, P]`` or ``[*batch, R, P]``
        W, like scikit-learn's ``coef_``.
    intercept : ``[*batch]`` or ``[*batch, R]``
        b; 0 without an intercept.
    standard_errors, intercept_standard_error : shaped like coef and intercept
        Standard errors, from sigma2_unbiased; statsmodels' ``bse``. NaN where sigma2_unbiased is NaN; 0 for the
        intercept if it is not estimated.
    sigma2 : ``[*batch]`` or ``[*batch, R]``
        Maximum likelihood estimate RSS / N of the variance of a row of weight 1.
    sigma2_unbiased : ``[*batch]`` or ``[*batch, R]``
        RSS / df; statsmodels' ``scale``. NaN if df <= 0, and with a ridge penalty, for which no df makes it unbiased.
    log_likelihood : float64 ``[*batch]`` or ``[*batch, R]``
        In nats; +inf if RSS = 0; statsmodels' ``llf``.
    r2 : float64 ``[*batch]`` or ``[*batch, R]``
        1 - RSS / TSS, with TSS about the mean of y, or about 0 without an intercept.
    rss : float64 ``[*batch]`` or ``[*batch, R]``
        Sum of weighted squared residuals.
    condition : float64 ``[*batch]``
        Condition number sqrt(|G| |G^-1|) in the 1-norm, G the Gram matrix of the columns (minus their means, if there
        is an intercept), scaled to unit norm. Its log10 is about the number of digits that a change in the last digit
        of the data can cost.
    rank : int64 ``[*batch]``
        Rank of the columns (minus their means, if there is an intercept).
    rows : int64 ``[*batch]``
        Number of rows with w > 0.
    df : int64 ``[*batch]``
        Residual degrees of freedom: rows - rank, minus 1 for an intercept.
    status : Status, or int64 ``[*batch]``
        Flags of `fastvae.Status`: REFINED, DOUBLE_DOUBLE, RANK_DEFICIENT, NONFINITE, TOO_FEW_ROWS.

    Notes
    -----
    Corresponds to statsmodels' ``RegressionResults``, for each problem of a batch.

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> X = np.random.default_rng(0).normal(size=(3, 50, 2))
    >>> fit = fastvae.regression.fit(X, X @ [1.0, -2.0] + 3.0)
    >>> fit
    RegressionFit(3 problems, P = 2)
    >>> fit[1].coef.round(6), round(float(fit[1].intercept), 6)
    (array([ 1., -2.]), 3.0)
    """

    __slots__ = (
        *("_alpha", "_center", "_columns", "_covariance", "_far", "_fit_intercept", "_inverse_gram", "_numpy"),
        *("_source", "_targets"),
        *FIELDS,
    )

    _center: Any  # Center, [*batch, P] and [*batch, R]; None until first used
    _far: bool | None
    _inverse_gram: Callable[[], Tensor]  # [*batch, P, P]
    _covariance: Any
    _source: Any  # fields are created from it on first access: creating 14 views takes as long as fitting a small batch

    def __init__(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @classmethod
    def _of(cls, fitted: Fitted, form: Form, alpha: float, fit_intercept: bool) -> "RegressionFit":
        """Create it from the results of an engine."""
        P, inverse_gram = form.P, fitted.inverse_gram
        return cls(
            _alpha=alpha,
            _center=None,
            _columns=form.features,
            _far=None,
            _covariance=None,
            _fit_intercept=fit_intercept,
            _inverse_gram=lambda: inverse_gram().reshape(*form.batch, P, P),
            _source=(fitted, form),
            _numpy=form.numpy,
            _targets=form.targets,
        )

    def __getattr__(self, name: str) -> Any:
        if name not in FIELDS:
            raise AttributeError(f"a RegressionFit has no attribute {name!r}")
        fitted, form = self._source
        if name == "status" and not form.batch:
            value: Any = Status(int(fitted.status))
        else:
            shape = {"RP": form.coef_shape(), "R": form.targets_shape(), "": form.batch}[FIELDS[name]]
            value = form.to_output(getattr(fitted, name), shape, form.dtype if name in ESTIMATES else None)
        object.__setattr__(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a RegressionFit is immutable: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a RegressionFit is immutable: {name} cannot be deleted")

    def __getstate__(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in self.__slots__}
        state |= {
            "_center": self._get_center().map(Tensor.detach),
            "_inverse_gram": self._inverse_gram(),
            "_source": None,
        }
        return {name: value.detach() if isinstance(value, Tensor) else value for name, value in state.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        V = state["_inverse_gram"]
        self.__init__(**state | {"_inverse_gram": lambda: V})  # type: ignore[misc]

    # Batches

    def __len__(self) -> int:
        if not self.batch_shape:
            raise TypeError("the fit of one problem has no len()")
        return self.batch_shape[0]

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator["RegressionFit"]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> "RegressionFit":
        batch = self.batch_shape
        if not batch:
            raise IndexError("the fit of one problem has no batch to index")
        at = index if isinstance(index, tuple) else (index,)
        if not all(is_integer(i) for i in at) or len(at) > len(batch):
            # Index the positions of the problems, so that no index reaches into the dims of coefficients.
            device = self.rank.device if isinstance(self.rank, Tensor) else "cpu"
            at = (torch.arange(math.prod(batch), device=device).reshape(batch)[index],)
        picked = at[0] if isinstance(at[0], Tensor) else None

        def pick(value: Any) -> Any:
            if picked is None:
                return value[at]
            which = picked if isinstance(value, Tensor) else picked.numpy()
            return value.reshape(-1, *value.shape[len(batch) :])[which]

        fields = {name: pick(getattr(self, name)) for name in FIELDS}
        if not getattr(fields["rank"], "shape", ()):
            fields["status"] = Status(int(fields["status"]))
        return RegressionFit(
            **fields,
            _alpha=self._alpha,
            _center=self._get_center().map(lambda t: pick(as_output(t, self._numpy))).map(tensor),
            _far=None,
            _source=None,
            _fit_intercept=self._fit_intercept,
            _columns=self._columns,
            _targets=self._targets,
            _numpy=self._numpy,
            _inverse_gram=lambda: pick(self._inverse_gram()),
            _covariance=None if self._covariance is None else pick(self._covariance),
        )

    def __repr__(self) -> str:
        batch = self.batch_shape
        what = f"{' x '.join(map(str, batch))} problems, " if batch else ""
        size = f"P = {1 if self._columns is None else self._columns}"
        size += "" if self._targets is None else f", R = {self._targets}"
        if batch:
            return f"RegressionFit({what}{size})"
        return f"RegressionFit(coef={self.coef}, intercept={self.intercept}, status={self.status!r})"

    # Derived quantities

    @property
    def covariance(self) -> Any:
        """Covariance Var W = sigma2_unbiased (Xc'D Xc)^-1, ``[*batch, P, P]`` or ``[*batch, R, P, P]``.

        Computed on first access, with the pseudo-inverse if the columns are dependent. Equivalent to statsmodels'
        ``cov_params()`` without the row and column of the constant.
        """
        if self._covariance is None:
            V, scale = self._inverse_gram(), tensor(self.sigma2_unbiased)
            V = V if self._targets is None else V[..., None, :, :]
            V = (V * scale[..., None, None]).to(scale.dtype)
            V = V[..., 0, 0] if self._columns is None else V
            object.__setattr__(self, "_covariance", as_output(V, self._numpy))
        return self._covariance

    def _get_center(self) -> Center:
        """The center for predictions, see `_predict`."""
        if self._center is None:
            fitted, form = self._source
            center = center_of(fitted.coef, fitted.mean_x, fitted.small_mean_x, fitted.mean_y)
            shapes = (*form.batch, form.P), (*form.batch, form.R)
            object.__setattr__(self, "_center", Center(*(t.reshape(s) for t, s in zip(center, shapes, strict=True))))
        return self._center

    def _is_far(self, W: Tensor, b: Tensor) -> bool:
        """Whether predictions must be computed about the means to keep their precision."""
        if self._far is None:
            sigma2 = tensor(self.sigma2).detach().reshape(b.shape)
            object.__setattr__(
                self, "_far", is_far(self._get_center().map(Tensor.detach), W.detach(), b.detach(), sigma2)
            )
        return bool(self._far)

    def predict(self, X: Any) -> Any:
        """Predict W x + b for new rows.

        Parameters
        ----------
        X : array or tensor ``[*batch, M, P]``
            Or ``[M, P]``, the same rows for all problems; ``[M]`` if the fit had X of shape ``[N]``.

        Returns
        -------
        array or tensor ``[*batch, M]`` or ``[*batch, M, R]``
            In the promoted dtype, with the container type of X.

        Notes
        -----
        Equivalent to scikit-learn's ``predict`` and ``X @ coef + intercept``. For data far from the origin it is
        computed about the means, as ``y0 + (X - x0) @ coef``, so that no precision of the fit is lost.
        """
        rows = as_floating("X", X)
        W, b = tensor(self.coef), tensor(self.intercept)
        check_device("X", rows, W.device, "the fit")
        dtype = torch.promote_types(rows.dtype, W.dtype)
        rows, W, b = rows.to(dtype), W.to(dtype), b.to(dtype)
        if self._columns is None:
            if rows.dim() != 1:
                raise ValueError(f"X must have the shape [M], as in the fit, got {list(rows.shape)}")
            W, b = W.reshape(1, 1), b.reshape(1)
            if self._is_far(W, b):
                return as_output(
                    predict_centered(rows[:, None], W, self._get_center())[:, 0], not isinstance(X, Tensor)
                )
            return as_output(rows * W[0, 0] + b[0], not isinstance(X, Tensor))
        batch, P = self.batch_shape, self._columns
        lead = tuple(rows.shape[:-2])
        valid = rows.dim() >= 2 and rows.shape[-1] == P and len(lead) in (0, len(batch))
        if not valid or any(n not in (1, m) for n, m in zip(lead, batch, strict=False)):
            form = f"{[*batch, 'M', P]} or ['M', {P}]" if batch else f"['M', {P}]"
            form = form.replace("'", "")
            raise ValueError(f"X must have the shape {form} to match the fit, got {list(rows.shape)}")
        single_target = self._targets is None
        if self._far is False or not self._is_far(*((W[..., None, :], b[..., None]) if single_target else (W, b))):
            y = (rows @ W[..., None])[..., 0] + b[..., None] if single_target else rows @ W.mT + b[..., None, :]
        else:
            y = predict_centered(rows, W[..., None, :] if single_target else W, self._get_center())
            y = y[..., 0] if single_target else y
        return as_output(y, not isinstance(X, Tensor))

    def summary(
        self,
        *,
        names: Sequence[str] | None = None,
        level: float = 0.95,
        problem: int | tuple[int, ...] | None = None,
        target: int | None = None,
    ) -> str:
        """Summarize one problem in a table of text, or a batch in an overview.

        Parameters
        ----------
        names : sequence of P strings
            Names of the columns; by default x1, x2, ...
        level : float
            Level of the confidence intervals.
        problem : int or tuple of ints
            Index of a problem of a batch; None gives the overview.
        target : int
            Index of a target; None gives the tables of all targets.

        Returns
        -------
        str

        Notes
        -----
        Corresponds to the ``summary()`` of statsmodels and R, except for the condition number, for which they use other
        columns. Unknown values are shown as ``-``. A table requires SciPy.

        Examples
        --------
        >>> import numpy as np, fastvae
        >>> fit = fastvae.regression.fit(np.array([0.0, 1, 2, 3]), np.array([1.0, 3, 5, 8]))
        >>> print(fit.summary(names=["dose"]))
        Linear regression
          rows                             4    R^2               0.988785
          degrees of freedom               2    sigma             0.387298
          log-likelihood            -0.49522    condition                1
          computed in ...
          condition: of the centred columns at unit norm; statsmodels' Cond. No. is that of the raw design matrix
        <BLANKLINE>
                       estimate   std error           t       P>|t|      [0.025      0.975]
        intercept           0.8       0.324       2.469      0.1323   -0.594219     2.19422
        dose                2.3      0.1732       13.28    0.005623     1.55476     3.04524
        """
        return _summary.text(self, names, check_level(level), problem, target)
