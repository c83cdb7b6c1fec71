"""`fastvae.regression.Gram`: regression on data that come in chunks, or from several processes."""

import copy
from typing import Any

import torch
from torch import Tensor

from .._core.checks import describe, not_negative
from ..reference.regression.engine import mark_lost, scale_targets
from . import _checks as checks
from . import _problems as problems
from ._result import RegressionFit


class Gram:
    """Sums of squares and products of chunks of rows, from which a regression is solved at any time.

    For data larger than memory, rows that arrive one by one, or parts of the data on several machines: a `Gram` has the
    size of P^2 numbers, whatever the number of rows, it pickles, and one merges with another. With Numba the sums are
    of [1 X y]'D [1 X y] about the means, D = diag(w); the reference has their triangular factor, by QR of each chunk
    under the one before.

    Parameters
    ----------
    fit_intercept : bool
        Whether b is estimated; else it is 0.
    precision : "auto", "float64" or "double-double"
        Of the sums and the solution. No residuals can be looked at once the rows are gone, so that "auto" is
        double-double from the start. The reference computes by QR in float64, and has no "double-double".
    backend : "auto", "triton", "numba" or "reference"
        Chosen at the first chunk, for all.

    Notes
    -----
    Batches, targets, weights, dtypes and containers are as in `fit`, the same in every chunk but for the number of
    rows, which may be 0. Results are detached from any graph. The same chunks in the same order give the same bits, for
    any number of threads. The sums themselves are kept: magnitudes of X beyond 1e140, which `fit` scales, are NONFINITE
    here, and a column below 1e-140 counts as 0. Those of y are scaled.

    Equivalent to `fit` on the rows of all chunks at once, and to R's ``biglm``.
    Source: Miller, Algorithm AS 274 (1992), for the factor; Chan, Golub & LeVeque (1983) for merging about means.

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

    __slots__ = ("_engine", "_form", "_lost", "_rows", "_sums", "backend", "fit_intercept", "precision")

    def __init__(self, *, fit_intercept: bool = True, precision: str = "auto", backend: str = "auto") -> None:
        self.fit_intercept = checks.flag("fit_intercept", fit_intercept)
        self.precision = checks.choice("precision", precision, checks.PRECISIONS)
        self.backend = backend
        checks.requested(backend)
        self._form: checks.Form | None = None
        self._engine = ""  # its name: a module does not pickle
        self._sums: Any = None
        self._lost: Tensor | None = None  # [B] bool: problems with weights that are inf or NaN
        self._rows = 0  # of each problem

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}  # protocols 0 and 1 ask for it where slots are

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def update(self, X: Any, y: Any, sample_weight: Any = None) -> "Gram":
        """Add rows: X ``[*batch, n, P]``, y ``[*batch, n]`` or ``[*batch, n, R]``, weights ``[*batch, n]``.

        A row of weight 0 may hold anything.

        Raises
        ------
        TypeError, ValueError
            As `fit`, and where shapes do not go with the chunks before. Inf and NaN are found by `solve`.
        BackendError
            If the backend named cannot serve the call.
        """
        data = checks.data(X, y, rows=0)
        form = data.form
        if self._form is not None:
            _check_alike(self._form, form, "X and y", "the chunks before")
        w, lost = checks.row_weights(sample_weight, form, data.X.shape[1], in_batch=True)
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
            precision=checks.of_sums(self.precision, name),
        )
        self._engine = name
        self._keep(form, lost, X.shape[1])
        return self

    def merge(self, other: "Gram") -> "Gram":
        """Add the rows of another Gram of the same options and shapes, which is left alone. Return self.

        Raises
        ------
        TypeError, ValueError
            Where other is no Gram, or one of other options, shapes or backend.
        """
        if not isinstance(other, Gram):
            raise TypeError(f"other must be a fastvae.regression.Gram, got {describe(other)}")
        for name in ("fit_intercept", "precision"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(f"other must have {name} = {ours!r}, as this Gram has, got {theirs!r}")
        if other._form is None:
            return self
        if self._form is None:
            self._engine, self._sums = other._engine, copy.deepcopy(other._sums)
        else:
            _check_alike(self._form, other._form, "other", "this Gram")
            if self._engine != other._engine:
                raise ValueError(f"other must have sums of the backend {self._engine!r}, got {other._engine!r}")
            self._sums = checks.engine(self._engine).merge(self._sums, other._sums)
        self._keep(other._form, other._lost, other._rows)
        return self

    def solve(self, *, alpha: float = 0.0, on_singular: str = "warn") -> RegressionFit:
        """The fit of all rows so far, which may go on growing.

        Parameters
        ----------
        alpha, on_singular
            As in `fit`.

        Raises
        ------
        TypeError, ValueError, numpy.linalg.LinAlgError
            As `fit`; ValueError where there are no rows yet.
        """
        ridge = not_negative("alpha", alpha)
        checks.choice("on_singular", on_singular, checks.ON_SINGULAR)
        if self._form is None:
            raise ValueError("a Gram has nothing to solve before update has been called with rows")
        engine = checks.engine(self._engine)
        fitted = engine.solve(self._sums, alpha=ridge)
        if (exponents := engine.target_exponents(self._sums)) is not None:
            fitted = scale_targets(fitted, exponents)
        if self._lost is not None:
            fitted = mark_lost(fitted, self._lost)
        told = problems.flags(fitted.status)
        if told & problems.UNFITTED and not self._form.batch:
            if told & problems.NONFINITE:
                raise ValueError("X, y or sample_weight of a chunk held inf or NaN, or magnitudes of X beyond 1e140")
            raise ValueError(problems.NO_ROWS)
        if told & problems.RANK_DEFICIENT and ridge > 0:
            fitted = problems.of_full_rank(fitted, self.fit_intercept)
        elif told & problems.RANK_DEFICIENT:
            problems.say_singular(fitted, self._form, self.fit_intercept, on_singular)
        return RegressionFit._of(fitted, self._form, ridge, self.fit_intercept)

    def _keep(self, form: checks.Form, lost: Tensor | None, rows: int) -> None:
        """Note what was added."""
        dtype = form.dtype if self._form is None else torch.promote_types(form.dtype, self._form.dtype)
        self._form = (self._form or form)._replace(dtype=dtype)
        if lost is not None:
            self._lost = lost if self._lost is None else self._lost | lost
        self._rows += rows

    def __repr__(self) -> str:
        if self._form is None:
            return "Gram(no rows yet)"
        form = self._form
        batch = f"{' x '.join(map(str, form.batch))} problems of " if form.batch else ""
        targets = "" if form.targets is None else f", R = {form.R}"
        return f"Gram({batch}{self._rows} rows, P = {form.P}{targets})"


def _check_alike(ours: checks.Form, theirs: checks.Form, name: str, to: str) -> None:
    """Batch, P and R agree, and the device."""

    def shape(form: checks.Form) -> str:
        x = [*form.batch, "n", *([] if form.features is None else [form.P])]
        y = [*form.batch, "n", *([] if form.targets is None else [form.R])]
        return f"{x} and {y}".replace("'", "")

    if ours[:3] != theirs[:3]:
        raise ValueError(f"{name} must have the shapes of {to}, X and y {shape(ours)}, got {shape(theirs)}")
    if ours.device != theirs.device:
        raise ValueError(f"{name} must be on the device of {to}, {ours.device}, got {theirs.device}")
