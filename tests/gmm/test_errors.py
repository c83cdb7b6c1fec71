"""Every invalid argument of fastvae.gmm raises an error of one line that names it, and what was expected and given."""

import inspect
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from fastvae import Status, gmm

from ..refusals import refused, zeros
from .mixtures import KINDS, data, start

N, D, K = 20, 2, 3  # all different, so that a message with the wrong dim is noticed
X = data(N=N)
MIXTURE = start(X)
RESP = np.full((N, K), 1 / K)


def changed(**fields):
    return MIXTURE._replace(**fields)


# The arguments of fit that are changed, the type of the error, a pattern of its message.
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    # X
    "a list": ({"X": X.tolist()}, TypeError, r"^X must be a NumPy array or a torch\.Tensor, got list"),
    "no X": ({"X": None}, TypeError, r"^X must be a NumPy array or a torch\.Tensor, got NoneType"),
    "half": ({"X": X.astype(np.float16)}, TypeError, r"^X must be float32, float64, integer or bool, got a float16 te"),
    "bfloat16": (
        {"X": zeros(N, D).bfloat16()},
        TypeError,
        r"^X must be float32, .*got a bfloat16 tensor of shape \[20",
    ),
    "complex": ({"X": X + 0j}, TypeError, r"^X must be an array of real numbers, got one of dtype complex128"),
    "complex tensor": ({"X": zeros(N, D).cfloat()}, TypeError, r"^X must be float32, .*got a complex64 tensor"),
    "longdouble": ({"X": X.astype(np.longdouble)}, TypeError, r"^X must be an array of real numbers, got one of dtype"),
    "objects": ({"X": X.astype(object)}, TypeError, r"^X must be an array of real numbers, got one of dtype object"),
    "sparse": (
        {"X": torch.tensor(X).to_sparse()},
        TypeError,
        r"^X must be a dense tensor, got one of layout torch\.sp",
    ),
    "one dim": ({"X": X[0]}, ValueError, r"^X must have the shape \[\*batch, N, D\] with D >= 1, got \[2\]"),
    "no features": ({"X": X[:, :0]}, ValueError, r"^X must have the shape .*, got \[20, 0\]"),
    "too few rows": ({"X": X[:2]}, ValueError, r"^X must have at least n_components = 3 rows, got the shape \[2, 2\]"),
    "NaN": (
        {"X": np.where(np.arange(N)[:, None] == 4, np.nan, X)},
        ValueError,
        r"^X must be finite, got nan at \[4, 0\]$",
    ),
    "inf": (
        {"X": torch.tensor(X) / torch.arange(N)[:, None]},
        ValueError,
        r"^X must be finite, got -?inf at \[0, 0\]$",
    ),
    # n_components
    "no K": ({"n_components": 0}, ValueError, r"^n_components must be at least 1, got 0"),
    "float K": ({"n_components": 3.0}, TypeError, r"^n_components must be an int, got 3\.0"),
    "bool K": ({"n_components": True}, TypeError, r"^n_components must be an int, got True"),
    # options
    "type": (
        {"covariance_type": "round"},
        ValueError,
        r"^covariance_type must be one of 'full', 'tied', .*got 'round'",
    ),
    "no type": ({"covariance_type": None}, ValueError, r"^covariance_type must be one of .*got NoneType"),
    **{
        f"{name} {value!r}": ({name: value}, error, rf"^{name} must be {message}")
        for name in ("tol", "reg_covar")
        for value, error, message in [
            (-1e-3, ValueError, r"finite and not negative, got -0\.001"),
            (math.nan, ValueError, "finite and not negative, got nan"),
            (math.inf, ValueError, "finite and not negative, got inf"),
            ("0", TypeError, "a float, got '0'"),
            (True, TypeError, "a float, got True"),
        ]
    },
    "max_iter": ({"max_iter": -1}, ValueError, r"^max_iter must be at least 0, got -1"),
    "float max_iter": ({"max_iter": 1e2}, TypeError, r"^max_iter must be an int, got 100\.0"),
    "n_init": ({"n_init": 0}, ValueError, r"^n_init must be at least 1, got 0"),
    "negative seed": ({"seed": -1}, ValueError, r"^seed must be in \[0, 2\^63\), got -1"),
    "long seed": ({"seed": 2**63}, ValueError, r"^seed must be in \[0, 2\^63\), got 9223372036854775808"),
    "float seed": ({"seed": 0.5}, TypeError, r"^seed must be an int or None, got 0\.5"),
    "progress": ({"progress": 1}, TypeError, r"^progress must be True or False, got 1"),
    "backend": ({"backend": "cuda"}, ValueError, r"^backend must be one of 'auto', .*got 'cuda'"),
    "degenerate": (
        {"on_degenerate": "ignore"},
        ValueError,
        r"^on_degenerate must be one of 'raise', 'status', 'rescue'",
    ),
    "not degenerate": ({"on_degenerate": False}, ValueError, r"^on_degenerate must be one of .*or None, got False"),
    # sample_weight
    "weights' N": (
        {"sample_weight": np.ones(7)},
        ValueError,
        r"^sample_weight must have the shape \[\*batch, N\] = \[20\]",
    ),
    "a weight": ({"sample_weight": np.ones(())}, ValueError, r"^sample_weight must have .*or \[N\], got \[\]"),
    "a float weight": ({"sample_weight": 1.0}, TypeError, r"^sample_weight must be a NumPy array or .*got 1\.0"),
    "weights' batch": (
        {"sample_weight": np.ones((2, N))},
        ValueError,
        r"^sample_weight must broadcast to the shape of X without its D, \[20\], got \[2, 20\]",
    ),
    "weights elsewhere": ({"sample_weight": zeros(N, device="meta")}, ValueError, r"^sample_weight .*device of X, cpu"),
    "negative weight": (
        {"sample_weight": 5 - np.arange(N)},
        ValueError,
        r"^sample_weight must not be negative, got -1 at \[6\]",
    ),
    "NaN weight": (
        {"sample_weight": np.where(np.arange(N) == 9, np.nan, 1)},
        ValueError,
        r"^sample_weight must be finite, got nan at \[9\]$",
    ),
    "no weight": (
        {"sample_weight": np.zeros(N)},
        ValueError,
        r"^sample_weight must be positive for at least n_components = 3 rows, got 0",
    ),
    # init
    "init": (
        {"init": "k-mean"},
        ValueError,
        r"^init must be one of 'kmeans', .*or a fastvae\.gmm\.Mixture, got 'k-mean'",
    ),
    "init an array": ({"init": X}, TypeError, r"^init must be one of .*got ndarray"),
    "init a tuple": ({"init": tuple(MIXTURE)}, TypeError, r"^init must be one of .*got tuple"),
    "init's type": (
        {"init": MIXTURE, "covariance_type": "tied"},
        ValueError,
        r"^init's covariance_type must be that of the call, 'tied', got 'full'",
    ),
    "init's own type": ({"init": changed(covariance_type="x")}, ValueError, r"^init's covariance_type must be one of"),
    "init's D": (
        {"init": start(data(N=N, D=4))},
        ValueError,
        r"^init's means must have the shape \[\*batch, K, D\] with the D of X, 2, got \[3, 4\]",
    ),
    "init's K": (
        {"init": start(X, 4)},
        ValueError,
        r"^init's means must have the shape \[\*batch, K, D\] with K = n_components = 3, got \[4, 2\]",
    ),
    "init's batch": (
        {"init": start(data(N=N, batch=(2,)))},
        ValueError,
        r"^init's batch dims must broadcast to those of X, \[\], got \[2\]",
    ),
    "init's means": (
        {"init": changed(means=X[0])},
        ValueError,
        r"^init's means must have the shape \[\*batch, K, D\], got \[2",
    ),
    "init's means a list": ({"init": changed(means=[[0.0]])}, TypeError, r"^init's means must be a NumPy .*got list"),
    "init's weights": (
        {"init": changed(weights=np.ones(2) / 2)},
        ValueError,
        r"^init's weights must have the shape \[\*batch, 3\] to match means \[3, 2\] and .*'full', got \[2\]",
    ),
    "init's covariances": (
        {"init": changed(covariances=np.ones((K, D)))},
        ValueError,
        r"^init's covariances must have the shape \[\*batch, 3, 2, 2\] to match .*'full', got \[3, 2\]",
    ),
    "init's batches": (
        {"init": changed(weights=np.ones((4, K)), means=np.ones((5, K, D)))},
        ValueError,
        r"^the batch dims of init's weights and its other parameters must broadcast, got \[4\] and \[5\]",
    ),
    "init elsewhere": (
        {"init": changed(means=zeros(K, D, device="meta"))},
        ValueError,
        r"^init's means must be on the",
    ),
    "init's negative weight": (
        {"init": changed(weights=np.array([-0.5, 1, 0.5]))},
        ValueError,
        r"^init's weights must be >= 0 and sum to 1, got \[-0\.5, 1\.0, 0\.5\]",
    ),
    "init's sum": (
        {"init": changed(weights=np.ones(K))},
        ValueError,
        r"^init's weights must be >= 0 and sum to 1, got \[1",
    ),
    "init's NaN": (
        {"init": changed(means=np.where(np.eye(K, D) > 0, np.nan, 0))},
        ValueError,
        r"^init's means must be finite, got nan at \[0, 0\]$",
    ),
    "init's variance": (
        {"init": changed(covariances=np.stack([np.eye(2), -np.eye(2), np.eye(2)]))},
        ValueError,
        r"^component 1 has a covariance that is not positive definite at init: increase reg_covar, now 1e-06, decrease",
    ),
    "restarts of a Mixture": (
        {"init": MIXTURE, "n_init": 2},
        ValueError,
        r"^n_init must be 1 where init is a Mixture.*got 2",
    ),
}


@pytest.mark.parametrize(("changes", "error", "message"), BAD.values(), ids=list(BAD))
def test_fit_refuses(changes, error, message):
    refused(
        error,
        message,
        lambda X, n_components, **o: gmm.fit(X, n_components, **o),
        **({"X": X, "n_components": K} | changes),
    )


# The other functions


def call(function, **changes):
    """Call the function with valid arguments, except for the changes."""
    names = inspect.signature(function).parameters
    good = {"X": X, "mixture": MIXTURE, "resp": RESP, "n": 5}
    return function(**({k: v for k, v in good.items() if k in names} | changes))


SCORES = (gmm.score_samples, gmm.predict_proba, gmm.predict, gmm.aic, gmm.bic)
OF_MIXTURES: list[Any] = [gmm.e_step, gmm.em_step, gmm.elbo, *SCORES]
VALUES = ("NaN", "inf", "too few rows", "no weight", "NaN weight")  # checked only by fit
SHARED = [
    (function, name)
    for function in (gmm.m_step, *OF_MIXTURES)
    for name, (changes, *_) in BAD.items()
    if changes.keys() <= inspect.signature(function).parameters.keys() and name not in VALUES
]


@pytest.mark.parametrize(("function", "name"), SHARED)
def test_the_other_functions_refuse(function, name):
    changes, error, message = BAD[name]
    refused(error, message, call, function, **changes)


def test_the_other_functions_share_their_checks():
    assert {name for _, name in SHARED} >= {"half", "weights' N", "type", "reg_covar nan", "backend"}


@pytest.mark.parametrize("function", [*OF_MIXTURES, gmm.sample, gmm.n_parameters])
def test_functions_of_mixtures_refuse(function):
    refused(TypeError, r"^mixture must be a fastvae\.gmm\.Mixture, got tuple", call, function, mixture=tuple(MIXTURE))
    message = r"^mixture's weights must have the shape \[\*batch, 3\] to match .*got \[2\]"
    refused(ValueError, message, call, function, mixture=changed(weights=np.ones(2)))
    if "X" in inspect.signature(function).parameters:
        message = r"^mixture's means must have .* the D of X, 2, got \[3, 4\]"
        refused(ValueError, message, call, function, mixture=start(data(N=N, D=4)))
        message = r"^the batch dims of X and mixture must broadcast, got \[2\] and \[4\]"
        many = {"X": data(N=N, batch=(2,)), "mixture": start(data(N=N, batch=(4,)))}
        refused(ValueError, message, call, function, **many)


@pytest.mark.parametrize("function", [gmm.m_step, gmm.elbo])
def test_responsibilities_refused(function):
    message = r"^resp must have the shape \[\*batch, N, K\] with N = 20.*, got \[19, 3\]"
    refused(ValueError, message, call, function, resp=RESP[1:])
    refused(ValueError, r"^resp must have the shape .*got \[20\]", call, function, resp=RESP[:, 0])
    refused(TypeError, r"^resp must be a NumPy array or a torch\.Tensor, got list", call, function, resp=RESP.tolist())
    message = r"^the batch dims of X and resp must broadcast, got \[2\] and \[4\]"
    refused(ValueError, message, call, function, X=data(N=N, batch=(2,)), resp=np.ones((4, N, K)))
    if function is gmm.elbo:
        refused(ValueError, r"^resp .* with N = 20 and K = 3, got \[20, 4\]", call, function, resp=np.ones((N, 4)))


def test_sample_refuses():
    refused(ValueError, r"^n must be at least 0, got -1", gmm.sample, MIXTURE, -1)
    refused(TypeError, r"^n must be an int, got 5\.0", gmm.sample, MIXTURE, 5.0)
    refused(ValueError, r"^seed must be in \[0, 2\^63\)", gmm.sample, MIXTURE, 5, seed=-1)


def test_rows_of_a_mixture_whose_weights_are_nan_are_nan():
    many = start(data(N=N, batch=(2,)))
    many.weights[1, 0] = np.nan
    rows, _ = gmm.sample(many, 5, seed=0)
    assert np.isfinite(rows[0]).all()
    assert np.isnan(rows[1]).all()


def test_options_are_keywords():
    positional = {"fit": ["X", "n_components"], "m_step": ["X", "resp"], "elbo": ["X", "resp", "mixture"]}
    positional |= {"sample": ["mixture", "n"], "n_parameters": ["mixture"], "sweep": ["X", "n_components"]}
    for name in set(gmm.__all__) - {"Mixture", "MixtureFit", "MixtureSweep", "EStep"}:
        parameters = inspect.signature(getattr(gmm, name)).parameters.values()
        keywords = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD
        assert [p.name for p in parameters if p.kind not in keywords] == positional.get(name, ["X", "mixture"])


# Degenerate problems: None raises for one problem, "raise" for the first of a batch


@pytest.mark.parametrize("kind", KINDS)
def test_the_degenerate_component_is_named(kind, each_backend):
    far = start(X, kind=kind)
    far.means[1] = 1e6
    where = r": increase reg_covar, now 1e-06, decrease n_components, now 3, or use on_degenerate='rescue'$"
    refused(
        ValueError, rf"^component 1 has no rows in iteration 1{where}", gmm.fit, X, 3, covariance_type=kind, init=far
    )
    equal = np.ones((N, D))
    message = (
        r"^a component of the start, init='kmeans', has no rows or a singular covariance: increase reg_covar, now 0"
    )
    refused(ValueError, message, gmm.fit, equal, 2, covariance_type=kind, reg_covar=0)
    near = start(X, kind=kind)._replace(means=np.ones((3, 2)))
    what = "the tied covariance is" if kind == "tied" else "component 0 has a covariance that is"
    message = rf"^{what} not positive definite in iteration 1: increase reg_covar, now 0,"
    refused(ValueError, message, gmm.fit, equal, 3, covariance_type=kind, init=near, reg_covar=0)


def test_the_first_bad_problem_of_a_batch_is_named():
    many = data(N=N, batch=(2, 3))
    many[1, 1, 5, 0] = np.nan
    many[1, 2] = np.inf
    how: dict[str, Any] = {"n_components": 3, "seed": 0}
    message = r"^X must be finite, got nan at \[5, 0\] in problem \[1, 1\] of the batch$"
    refused(ValueError, message, gmm.fit, many, on_degenerate="raise", **how)
    assert (gmm.fit(many, **how).status[1, 1:] == Status.NONFINITE).all()
    many = data(N=N, batch=(2, 3))
    many[0, 2] = 1
    message = r"^a component of the start, .* in problem \[0, 2\] of the batch: increase reg_covar, now 0,"
    refused(ValueError, message, gmm.fit, many, on_degenerate="raise", reg_covar=0, **how)
    many, w = data(N=N, batch=(2, 3)), np.ones((2, 3, N))
    w[1, 0, 2:] = 0
    message = r"^sample_weight must be positive for .* 3 rows in problem \[1, 0\] of the batch, got 2"
    refused(ValueError, message, gmm.fit, many, on_degenerate="raise", sample_weight=w, **how)
    w[1, 0, 7] = -2
    refused(
        ValueError, r"^sample_weight must not be negative, got -2 at \[1, 0, 7\]", gmm.fit, many, sample_weight=w, **how
    )
    w[0, 1, 3] = np.nan  # in another problem: the negative weight is still found
    for function in (partial(gmm.fit, n_components=3), partial(gmm.bic, mixture=start(many))):
        refused(ValueError, r"^sample_weight .* got -2 at \[1, 0, 7\]", function, many, sample_weight=w)
    starts = start(many)
    starts.weights[1, 2] = 1
    message = r"^init's weights must be >= 0 and sum to 1 in problem \[1, 2\] of the batch, got \[1"
    refused(ValueError, message, gmm.fit, many, init=starts, **how)
    starts.weights[1, 2] = np.nan
    assert (gmm.fit(many, init=starts, **how).status == Status.NONFINITE).nonzero()[0].tolist() == [1]
