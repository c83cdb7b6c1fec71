"""Every invalid argument of fastvae.regression raises an error of one line: its name, what was expected and given."""

import inspect
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from fastvae import BackendError, Status, regression
from fastvae.regression._problems import RankWarning

from ..refusals import refused, zeros
from .problems import N, P, R, by_backend, problem

X, y, w = problem()


def with_value(array, at, value):
    array = array.copy()
    array[at] = value
    return array


# The arguments that are changed, the type of the error, a pattern of its message.
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a list": ({"X": X.tolist()}, TypeError, r"^X must be a NumPy array or a torch\.Tensor, got list"),
    "no y": ({"y": None}, TypeError, r"^y must be a NumPy array or a torch\.Tensor, got NoneType"),
    "half": ({"X": X.astype(np.float16)}, TypeError, r"^X must be float32, float64, integer or bool, got a float16 te"),
    "complex": ({"y": y + 0j}, TypeError, r"^y must be an array of real numbers, got one of dtype complex128"),
    "objects": ({"X": X.astype(object)}, TypeError, r"^X must be an array of real numbers, got one of dtype object"),
    "sparse": ({"X": torch.tensor(X).to_sparse()}, TypeError, r"^X must be a dense tensor, got one of layout torch\.s"),
    "a number": ({"X": np.ones(())}, ValueError, r"^X must have the shape \[\*batch, N, P\], or \[N\] with y \[N\]"),
    "elsewhere": ({"y": zeros(N, device="meta")}, ValueError, r"^y must be on the device of X, cpu, got meta"),
    "other rows": (
        {"y": y[1:]},
        ValueError,
        r"^y must have the shape \[\*batch, N\], or .* to match X \[\*batch, N, P\] = \[23, 4\], got \[22\]$",
    ),
    "a row of y": ({"y": y[None]}, ValueError, r"^y must have .* = \[23, 4\], got \[1, 23\]$"),
    "other rows of one column": ({"X": X[1:, 0]}, ValueError, r"^y must have .* match X \[N\] = \[22\], got \[23\]$"),
    "no targets": ({"y": zeros(N, 0)}, ValueError, r"^y must have .* = \[23, 4\], got \[23, 0\]$"),
    "many dims of y": ({"y": zeros(2, N, R)}, ValueError, r"^y must have .* = \[23, 4\], got \[2, 23, 3\]$"),
    "targets of a vector": (
        {"X": X[:, 0], "y": zeros(N, R)},
        ValueError,
        r"^X with one dim, \[N\], requires y with the shape \[N\], got \[23\] and \[23, 3\]: for several targets X",
    ),
    "batches": (
        {"X": zeros(2, N, P), "y": zeros(3, N)},
        ValueError,
        r"^the batch dims of X and y must broadcast, got \[2\] and \[3\]$",
    ),
    "weights' N": ({"w": np.ones(7)}, ValueError, r"^sample_weight must have the shape \[\*batch, N\] = \[23\] or \[N"),
    "a weight": ({"w": np.ones(())}, ValueError, r"^sample_weight must have .*or \[N\], got \[\]"),
    "a float weight": ({"w": 1.0}, TypeError, r"^sample_weight must be a NumPy array or .*got 1\.0"),
    "weights' batch": (
        {"w": np.ones((2, N))},
        ValueError,
        r"^sample_weight must broadcast to the shape of X without its P, \[23\], got \[2, 23\]",
    ),
    "weights elsewhere": (
        {"w": zeros(N, device="meta")},
        ValueError,
        r"^sample_weight must be on the device of X, cpu",
    ),
    "negative weight": ({"w": 5 - np.arange(N)}, ValueError, r"^sample_weight must not be negative, got -1 at \[6\]$"),
    "negative and NaN": (
        {"w": with_value(with_value(w, 2, np.nan), 7, -0.5)},
        ValueError,
        r"^sample_weight must not be negative, got -0\.5 at \[7\]$",
    ),
    "backend": ({"backend": "cuda"}, ValueError, r"^backend must be one of 'auto', .*got 'cuda'"),
    "no backend": ({"backend": "triton"}, BackendError, r"^backend='triton' does not support regression: "),
    "precision": (
        {"precision": "float32"},
        ValueError,
        r"^precision must be one of 'auto', 'float64', 'double-double'",
    ),
    "no precision": ({"precision": None}, ValueError, r"^precision must be one of .*got NoneType$"),
    "reference": (
        {"precision": "double-double", "backend": "reference"},
        BackendError,
        r"^precision='double-double' is not supported by the reference, which uses QR in float64",
    ),
    "fit_intercept": ({"fit_intercept": 1}, TypeError, r"^fit_intercept must be True or False, got 1$"),
    "on_singular": (
        {"on_singular": "rescue"},
        ValueError,
        r"^on_singular must be one of 'warn', 'raise', 'ignore', got",
    ),
    **{
        f"alpha {value!r}": ({"alpha": value}, error, rf"^alpha must be {message}")
        for value, error, message in [
            (-1e-3, ValueError, r"finite and not negative, got -0\.001"),
            (math.nan, ValueError, "finite and not negative, got nan"),
            (math.inf, ValueError, "finite and not negative, got inf"),
            ("0", TypeError, "a float, got '0'"),
            (True, TypeError, "a float, got True"),
        ]
    },
}
FIT_ALONE: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no rows": ({"X": X[:0], "y": y[:0]}, ValueError, r"^X must have at least one row, got the shape \[0, 4\]$"),
    "no rows of a column": (
        {"X": X[:0, 0], "y": y[:0]},
        ValueError,
        r"^X must have at least one row, got the shape \[0\]",
    ),
    "NaN weight": ({"w": with_value(w, 9, np.nan)}, ValueError, r"^sample_weight must be finite, got nan at \[9\]$"),
    "inf weight": ({"w": with_value(w, 9, np.inf)}, ValueError, r"^sample_weight must be finite, got inf at \[9\]$"),
    "no weight": ({"w": np.zeros(N)}, ValueError, r"^sample_weight must be positive for at least one row, got 0$"),
    "NaN": ({"X": with_value(X, (5, 1), np.nan)}, ValueError, r"^X must be finite, got nan at \[5, 1\]$"),
    "inf": ({"y": with_value(y, 3, -np.inf)}, ValueError, r"^y must be finite, got -inf at \[3\]$"),
    "NaN targets": (
        {"y": with_value(np.c_[y, y], (8, 1), np.nan)},
        ValueError,
        r"^y must be finite, got nan at \[8, 1\]$",
    ),
    "NaN vector": ({"X": with_value(X[:, 0], 2, np.nan)}, ValueError, r"^X must be finite, got nan at \[2\]$"),
}


def fit(X, y, w, **options):
    return regression.fit(X, y, sample_weight=w, **options)


def through_a_gram(X, y, w, alpha=0.0, on_singular="warn", **options):
    return regression.Gram(**options).update(X, y, w).solve(alpha=alpha, on_singular=on_singular)


@pytest.mark.parametrize(("changes", "error", "message"), (BAD | FIT_ALONE).values(), ids=list(BAD | FIT_ALONE))
def test_fit_refuses(changes, error, message):
    refused(error, message, fit, **({"X": X, "y": y, "w": w} | changes))


@pytest.mark.parametrize(("changes", "error", "message"), BAD.values(), ids=list(BAD))
def test_gram_refuses(changes, error, message):
    refused(error, message, through_a_gram, **({"X": X, "y": y, "w": w} | changes))


@by_backend
def test_unfitted_problems_are_reported_by_each_backend(backend):
    for name in ("NaN", "inf", "no weight", "NaN targets"):
        changes, error, message = FIT_ALONE[name]
        refused(error, message, fit, **({"X": X, "y": y, "w": w} | changes), backend=backend)
    message = "^X, y or sample_weight of a chunk contained inf or NaN"
    for changes in (
        {"X": with_value(X, (5, 1), np.nan)},
        {"y": with_value(y, 0, np.inf)},
        {"w": with_value(w, 1, np.nan)},
    ):
        refused(ValueError, message, through_a_gram, **({"X": X, "y": y, "w": w} | changes), backend=backend)
    message = "^sample_weight must be positive for at least one row"
    refused(ValueError, message, through_a_gram, X, y, np.zeros(N), backend=backend)


@by_backend
def test_linearly_dependent_columns_are_reported(backend):
    double = np.c_[X, X[:, 1]]
    what = r"^the columns of X, minus their means, are linearly dependent: rank 4 of 5; "
    with pytest.warns(RankWarning, match=what + "the minimum-norm solution is returned") as caught:
        fit(double, y, w, backend=backend)
    assert len(caught) == 1
    refused(np.linalg.LinAlgError, what + "use on_sing", fit, double, y, w, on_singular="raise", backend=backend)
    assert fit(double, y, w, on_singular="ignore", backend=backend).status & Status.RANK_DEFICIENT
    what = r"^the columns of X are linearly dependent in 2 of 6 problems, first in \[0, 2\]: rank 4 of 5; "
    many = np.zeros((2, 3, N, 5)) + np.c_[X, X[:, 0] ** 2]
    many[[0, 1], [2, 0]] = double
    with pytest.warns(RankWarning, match=what):
        fit(many, np.broadcast_to(y, (2, 3, N)), w, fit_intercept=False, backend=backend)


def test_the_warning_points_at_the_call():
    gram = regression.Gram().update(np.c_[X, X], y)
    for call in (lambda: regression.fit(np.c_[X, X], y), lambda: gram.solve()):
        with pytest.warns(RankWarning) as caught:
            call()
        assert [record.filename for record in caught] == [__file__]


def test_the_first_negative_weight_of_a_batch_is_named():
    bad = np.ones((2, 3, N))
    bad[1, 0, 7] = -2
    many = np.broadcast_to(X, (2, 3, N, P)), np.broadcast_to(y, (2, 3, N))
    refused(ValueError, r"^sample_weight must not be negative, got -2 at \[1, 0, 7\]$", fit, *many, bad)


def test_unsupported_calls_give_the_reason():
    refused(BackendError, "an argument requires grad", fit, torch.tensor(X, requires_grad=True), y, w, backend="numba")
    refused(
        BackendError,
        "X has 257 columns, and kernels support at most 256",
        fit,
        np.ones((3, 257)),
        y[:3],
        None,
        backend="numba",
    )
    refused(BackendError, r"X is empty, of shape \[0, 23, 4\]", fit, zeros(0, N, P), zeros(0, N), None, backend="numba")
    assert fit(torch.tensor(X, requires_grad=True), y, w).coef.requires_grad


def test_the_result_refuses():
    one, many = fit(X, y, w), fit(np.stack([X, X]), np.stack([y, y]), w)
    vector = fit(X[:, 0], y, w)
    refused(ValueError, r"^X must have the shape \[M, 4\] to match the fit, got \[23, 3\]$", one.predict, X[:, 1:])
    refused(ValueError, r"^X must have the shape \[M, 4\] to match the fit, got \[4\]$", one.predict, X[0])
    refused(ValueError, r"^X must have .* \[2, M, 4\] or \[M, 4\] .*, got \[3, 5, 4\]$", many.predict, zeros(3, 5, 4))
    refused(ValueError, r"^X must have the shape \[M\], as in the fit, got \[23, 4\]$", vector.predict, X)
    refused(TypeError, r"^X must be a NumPy array or a torch\.Tensor, got list", one.predict, [[1.0] * 4])
    refused(ValueError, "^X must be on the device of the fit, cpu, got meta", one.predict, zeros(2, 4, device="meta"))
    for call in (one.confidence_intervals, one.intercept_confidence_interval, lambda level: one.summary(level=level)):
        refused(ValueError, r"^level must be between 0 and 1, such as 0\.95, got 95\.0$", call, level=95)
        refused(TypeError, r"^level must be a float, got '95 %'$", call, level="95 %")
    refused(ValueError, r"^names must be a sequence of P = 4 strings, got 1$", one.summary, names=["a"])
    refused(ValueError, r"^names must be a sequence of P = 4 strings, got 'abcd'$", one.summary, names="abcd")
    refused(ValueError, r"^problem must be an index of one problem of the batch \[2\], got 2$", many.summary, problem=2)
    refused(ValueError, r"^problem must be an index .* batch \[\], got 0$", one.summary, problem=0)
    refused(ValueError, r"^target must be in \[0, 1\), got 1$", one.summary, target=1)
    refused(TypeError, r"^target must be an int or None, got 'a'$", one.summary, target="a")


@by_backend
def test_grams_refuse_incompatible_data(backend):
    gram = regression.Gram(backend=backend)
    message = r"^the Gram has no rows: call update before solve$"
    refused(ValueError, message, gram.solve)
    refused(ValueError, message, gram.update(X[:0], y[:0]).solve)
    gram.update(X, y)
    message = r"^X and y must have the shapes of the previous chunks, X and y \[n, 4\] and \[n\], got "
    refused(ValueError, message + r"\[n, 3\] and \[n\]$", gram.update, X[:, 1:], y)
    refused(ValueError, message + r"\[n, 4\] and \[n, 1\]$", gram.update, X[:0], y[:0, None])
    refused(ValueError, message + r"\[2, n, 4\] and \[2, n\]$", gram.update, np.stack([X, X]), np.stack([y, y]))
    refused(ValueError, message + r"\[n\] and \[n\]$", gram.update, X[:, 0], y)
    refused(TypeError, r"^other must be a fastvae\.regression\.Gram, got ndarray$", gram.merge, X)
    other = regression.Gram(fit_intercept=False, backend=backend)
    refused(ValueError, "^other must have fit_intercept = True, as this Gram, got False", gram.merge, other)
    other = regression.Gram(precision="float64", backend=backend)
    refused(ValueError, "^other must have precision = 'auto', as this Gram, got 'float64'", gram.merge, other)
    other = regression.Gram(backend=backend).update(X[:, 1:], y)
    message = r"^other must have the shapes of this Gram, X and y \[n, 4\] and \[n\], got \[n, 3\] and \[n\]$"
    refused(ValueError, message, gram.merge, other)
    assert repr(gram) == "Gram(23 rows, P = 4)"  # unchanged by these errors


def test_options_are_keywords():
    kinds = {"fit": ["X", "y"], "Gram": []}
    for name, positional in kinds.items():
        parameters = inspect.signature(getattr(regression, name)).parameters.values()
        assert [p.name for p in parameters if p.kind != p.KEYWORD_ONLY] == positional


def test_inference_requires_scipy():
    code = """
import sys
sys.modules["scipy"] = None
import torch, fastvae
fit = fastvae.regression.fit(torch.arange(4.0), torch.tensor([1.0, 3, 5, 8]))
fit.t_values, fit.covariance
try:
    fit.p_values
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        run.stdout.strip() == "p values and confidence intervals require SciPy: pip install 'fastvae-kernels[stats]'"
    ), run


def test_an_index_may_be_a_number_of_numpy():
    X, y = np.random.default_rng(0).normal(size=(2, 20, 3)), np.random.default_rng(1).normal(size=(2, 20, 2))
    fit = regression.fit(X, y)
    two: Any = np.int64(1)
    assert fit.summary(problem=two, target=two) == fit.summary(problem=1, target=1)
    wrong: Any
    for wrong in (True, 1.0, "1"):
        with pytest.raises(ValueError, match=r"^problem must be an index"):
            fit.summary(problem=wrong)
        with pytest.raises(TypeError, match=r"^target must be an int or None"):
            fit.summary(problem=0, target=wrong)
