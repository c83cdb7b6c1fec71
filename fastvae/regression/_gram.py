"""`fastvae.regression.Gram`: regression on data in chunks, or from several processes."""

import copy
from typing import Any

import torch
from torch import Tensor

from .._core.checks import describe, not_negative
from ..reference.regression.engine import mark_nonfinite, scale_targets
from . import _checks as checks
from . import _problems as problems
from ._result import RegressionFit


class Gram:
    """Sums of squares and products over chunks of rows, from which the regression can be solved at any time.

    Use it for data larger than memory, rows that arrive over time, or data distributed over several machines. A `Gram`
    stores about P^2 numbers, whatever the number of rows; it can be pickled, and merged with another one. With Numba
    the sums are those of [1 X y]'D [1 X y] about the means, D = diag(w). The reference stores their triangular factor,
    updated by QR with each chunk.

    Parameters
    ----------
    fit_intercept : bool
        Whether to estimate b; otherwise it is 0.
    precision : "auto", "float64" or "double-double"
        Precision of the sums and the solution. Residuals cannot be computed without the rows, so "auto" uses
        double-double from the start. The reference uses QR in float64 and does not support "double-double".
    backend : "auto", "triton", "numba" or "reference"
        Chosen at the first chunk, for all chunks.

    Notes
    -----
    Batches, targets, weights, dtypes and containers are as in `fit`, and the same in every chunk except for the number
    of rows, which may be 0. Results are detached from any graph. The same chunks in the same order give the same bits,
    for any number of threads. The sums are not rescaled: if X has magnitudes above 1e140, which `fit` rescales, the
    status is NONFINITE, and a column below 1e-140 counts as 0. Targets are rescaled.

    Equivalent to `fit` on the rows of all chunks together, and to R's ``biglm``.

    References
    ----------
    Miller, Algorithm AS 274 (1992), for the triangular factor; Chan, Golub & LeVeque (1983) for merging about means.

    Examples
    --------
    >>> import numpy as np, fastvae
    >>> rng, gram = np.random.default_rng(0), fastvae.regression.Gram()
    >>> for _ in range(10):
    ...     X = rng.normal(size=(1000, 2))
    ...     gram = gram.update(X, X @ [1.0, -2.0] + 3.0)
    >>> gram
    Gram(10000 rows, P = 2)
    >>> fit = gram.solve()
    >>> fit.coef.round(6), round(float(fit.intercept), 6)
    (array([ 1., -2.]), 3.0)
    """

    __slots__ = ("_engine", "_form", "_invalid", "_rows", "_sums", "backend", "fit_intercept", "precision")

    def __init__(self, *, fit_intercept: bool = True, precision: str = "auto", backend: str = "auto") -> None:
        self.fit_intercept = checks.flag("fit_intercept", fit_intercept)
        self.precision = checks.choice("precision", precision, checks.PRECISIONS)
        self.backend = backend
        checks.requested(backend)
        self._form: checks.Form | None = None
        self._engine = ""  # its name: a module cannot be pickled
        self._sums: Any = None
        self._invalid: Tensor | None = None  # [B] bool: problems with inf or NaN among the weights
        self._rows = 0  # rows per problem

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}  # needed by pickle protocols 0 and 1

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def update(self, X: Any, y: Any, sample_weight: Any = None) -> "Gram":
        """Add rows to the sums.

        Parameters
        ----------
        X : array or tensor ``[*batch, n, P]``
            The regressors of the rows.
        y : array or tensor ``[*batch, n]`` or ``[*batch, n, R]``
            Their targets.
        sample_weight : array or tensor ``[*batch, n]``
            Their weights. Rows of weight 0 are ignored and may contain anything.

        Returns
        -------
        Gram
            The object itself.

        Raises
        ------
        TypeError, ValueError
            Same as `fit`; also if the shapes do not match those of previous chunks. Inf and NaN are reported by
            `solve`.
        BackendError
            If the requested backend does not support the call.
        """
        data = checks.data(X, y, rows=0)
        form = data.form
        if self._form is not None:
            _check_compatible(self._form, form, "X and y", "the previous chunks")
        w, invalid = checks.row_weights(sample_weight, form, data.X.shape[1], in_batch=True)
        if data.X.shape[1] == 0:
            return self
        X, y, w = (None if t is None else t.detach() for t in (data.X, data.y, w))
        name = self._engine or checks.engine_name(self.backend, self.precision, X, y, w)
        self._sums = checks.engine(name).accumulate(
            self._sums,
            X,
            y,
            sample_weight=w,
            fit_intercept=self.fit_intercept,
            precision=checks.precision_of_sums(self.precision, name),
        )
        self._engine = name
        self._record(form, invalid, X.shape[1])
        return self

    def merge(self, other: "Gram") -> "Gram":
        """Add the rows of another Gram with the same options and shapes.

        Parameters
        ----------
        other : Gram
            It is not modified.

        Returns
        -------
        Gram
            The object itself.

        Raises
        ------
        TypeError, ValueError
            If other is not a Gram, or if its options, shapes or backend differ.
        """
        if not isinstance(other, Gram):
            raise TypeError(f"other must be a fastvae.regression.Gram, got {describe(other)}")
        for name in ("fit_intercept", "precision"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(f"other must have {name} = {ours!r}, as this Gram, got {theirs!r}")
        if other._form is None:
            return self
        if self._form is None:
            self._engine, self._sums = other._engine, copy.deepcopy(other._sums)
        else:
            _check_compatible(self._form, other._form, "other", "this Gram")
            if self._engine != other._engine:
                raise ValueError(f"other must have sums of the backend {self._engine!r}, got {other._engine!r}")
            self._sums = checks.engine(self._engine).merge(self._sums, other._sums)
        self._record(other._form, other._invalid, other._rows)
        return self

    def solve(self, *, alpha: float = 0.0, on_singular: str = "warn") -> RegressionFit:
        """Solve for the fit of all rows so far. More rows can be added afterwards.

        Parameters
        ----------
        alpha, on_singular
            As in `fit`.

        Returns
        -------
        RegressionFit

        Raises
        ------
        TypeError, ValueError, numpy.linalg.LinAlgError
            Same as `fit`; ValueError if there are no rows yet.
        """
        ridge = not_negative("alpha", alpha)
        checks.choice("on_singular", on_singular, checks.ON_SINGULAR)
        if self._form is None:
            raise ValueError("the Gram has no rows: call update before solve")
        engine = checks.engine(self._engine)
        fitted = engine.solve(self._sums, alpha=ridge)
        if (exponents := engine.target_exponents(self._sums)) is not None:
            fitted = scale_targets(fitted, exponents)
        if self._invalid is not None:
            fitted = mark_nonfinite(fitted, self._invalid)
        flags = problems.combined_flags(fitted.status)
        if flags & problems.UNFITTED and not self._form.batch:
            if flags & problems.NONFINITE:
                raise ValueError("X, y or sample_weight of a chunk contained inf or NaN, or X magnitudes above 1e140")
            raise ValueError(problems.NO_ROWS)
        if flags & problems.RANK_DEFICIENT and ridge > 0:
            fitted = problems.as_full_rank(fitted, self.fit_intercept)
        elif flags & problems.RANK_DEFICIENT:
            problems.report_singular(fitted, self._form, self.fit_intercept, on_singular)
        return RegressionFit._of(fitted, self._form, ridge, self.fit_intercept)

    def _record(self, form: checks.Form, invalid: Tensor | None, rows: int) -> None:
        """Update dtype, invalid problems and number of rows."""
        dtype = form.dtype if self._form is None else torch.promote_types(form.dtype, self._form.dtype)
        self._form = (self._form or form)._replace(dtype=dtype)
        if invalid is not None:
            self._invalid = invalid if self._invalid is None else self._invalid | invalid
        self._rows += rows

    def __repr__(self) -> str:
        if self._form is None:
            return "Gram(no rows yet)"
        form = self._form
        batch = f"{' x '.join(map(str, form.batch))} problems of " if form.batch else ""
        targets = "" if form.targets is None else f", R = {form.R}"
        return f"Gram({batch}{self._rows} rows, P = {form.P}{targets})"


def _check_compatible(ours: checks.Form, theirs: checks.Form, name: str, to: str) -> None:
    """Check that batch dims, P, R and device agree."""

    def shape(form: checks.Form) -> str:
        x = [*form.batch, "n", *([] if form.features is None else [form.P])]
        y = [*form.batch, "n", *([] if form.targets is None else [form.R])]
        return f"{x} and {y}".replace("'", "")

    if ours[:3] != theirs[:3]:
        raise ValueError(f"{name} must have the shapes of {to}, X and y {shape(ours)}, got {shape(theirs)}")
    if ours.device != theirs.device:
        raise ValueError(f"{name} must be on the device of {to}, {ours.device}, got {theirs.device}")
