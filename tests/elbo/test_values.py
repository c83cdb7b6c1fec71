"""Values of arguments: what check_values=True refuses, the warning without it, the numbers that options accept."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import fastvae
from fastvae import Bernoulli, Gaussian, Laplace

N, D, L = 4, 3, 2


def arguments() -> dict[str, Any]:
    return {"x": torch.rand(N, D), "x_hat": torch.randn(N, D), "mu": torch.randn(N, L), "logvar": torch.randn(N, L)}


def bad(t, value=math.nan):
    """The same tensor with the value in row 2, column 1."""
    t = t.clone()
    t[2, 1] = value
    return t


@pytest.mark.parametrize("function", [fastvae.elbo, fastvae.elbo_terms])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["x", "x_hat", "mu", "logvar"])
def test_infinities_and_nan_are_refused_with_their_position(name, value, function):
    given = arguments()
    given[name] = bad(given[name], value)
    function(**given)
    with pytest.raises(ValueError, match=rf"^{name} must be finite, got {value:g} at \[2, 1\]$"):
        function(**given, check_values=True)


def test_all_other_tensors_are_checked():
    given, one = arguments(), torch.ones(N, D)
    fastvae.elbo(**given, likelihood=Gaussian(one), prior=(given["mu"], given["logvar"]), check_values=True)
    cases: dict[str, dict[str, Any]] = {
        "likelihood's scale must be positive and finite, got 0": {"likelihood": Gaussian(bad(one, 0.0))},
        "likelihood's scale must be positive and finite, got -2": {"likelihood": Laplace(bad(one, -2.0))},
        "likelihood's log_scale must be finite, got nan": {"likelihood": Gaussian(log_scale=bad(one))},
        "prior's mu_p must be finite, got nan": {"prior": (bad(given["mu"]), given["mu"])},
        "prior's logvar_p must be finite, got nan": {"prior": (given["mu"], bad(given["mu"]))},
        "the decoder's x_hat must be finite, got nan": {"x_hat": lambda z: bad(one)},
        "the decoder's log_scale must be finite, got nan": {"x_hat": lambda z: (one, bad(one))},
    }
    for message, changes in cases.items():
        with pytest.raises(ValueError, match=rf"^{message} at \[2, 1\]$"):
            fastvae.elbo(**(given | changes), check_values=True)


def test_invalid_values_are_counted_and_results_unchanged():
    given = arguments()
    torch.manual_seed(0)
    assert torch.equal(fastvae.elbo(**given, seed=1), fastvae.elbo(**given, seed=1, check_values=True))
    with pytest.raises(ValueError, match=r"^x must be finite, got nan at \[0, 0\], the first of 12$"):
        fastvae.elbo(**(given | {"x": given["x"] * math.nan}), check_values=True)
    empty = torch.zeros(0, D), torch.zeros(0, D), torch.zeros(0, L), torch.zeros(0, L)
    assert fastvae.elbo(*empty, reduction="sum", check_values=True) == 0


WRONG = {  # x of a Bernoulli likelihood, x_scale, the error message
    "bytes": (
        torch.full((N, D), 255, dtype=torch.uint8),
        1.0,
        r"x, times x_scale, .*got 255 at \[0, 0\], the first of 12",
    ),
    "pixels": (bad(torch.rand(N, D), 255.0), None, r"x of .*between 0 and 1, got 255 at \[2, 1\]"),
    "signs": (bad(torch.rand(N, D), -1.0), None, r"x of .*between 0 and 1, got -1 at \[2, 1\]"),
    "NaN": (bad(torch.rand(N, D)), None, r"x of .*between 0 and 1, got nan at \[2, 1\]"),
}
RIGHT = {
    "bytes": (torch.full((N, D), 255, dtype=torch.uint8), 1 / 255),
    "bool": (torch.rand(N, D) < 0.5, None),
    "floats": (torch.rand(N, D), None),
    "rounded": (torch.ones(N, D) + 2.4e-7, None),
    "bfloat16": (torch.ones(N, D, dtype=torch.bfloat16), None),
}


@pytest.mark.parametrize("name", WRONG)
def test_x_outside_the_range_of_a_bernoulli_likelihood(name):
    x, x_scale, message = WRONG[name]
    given = arguments() | {"x": x, "x_scale": x_scale, "likelihood": Bernoulli()}
    fastvae._elbo.call.CACHE.clear()  # a cached call would not be checked
    with pytest.warns(UserWarning, match=f"^{message}; the bound is then meaningless") as seen:
        fastvae.elbo(**given)
    assert seen[0].filename == __file__
    with warnings.catch_warnings(action="error"):
        fastvae.elbo(**given)  # warned about only once
    with pytest.raises(ValueError, match=f"^{message}"):
        fastvae.elbo(**given, check_values=True)


@pytest.mark.parametrize("name", RIGHT)
def test_x_inside_the_range_of_a_bernoulli_likelihood(name):
    x, x_scale = RIGHT[name]
    given = arguments() | {"x": x, "x_scale": x_scale, "likelihood": Bernoulli()}
    fastvae._elbo.call.CACHE.clear()
    with warnings.catch_warnings(action="error"):
        fastvae.elbo(**given)
        fastvae.elbo(**given, check_values=True)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_numpy_numbers_are_accepted(backend):
    given = arguments()
    for name in ("beta", "free_bits"):
        want = fastvae.elbo(**(given | {name: 2.0}), backend=backend)
        for kind in (np.float32, np.float64, np.int64, int):
            assert torch.equal(fastvae.elbo(**(given | {name: kind(2)}), backend=backend), want)
        for value in (True, np.True_, "2", 1j):
            with pytest.raises(TypeError, match=f"^{name} must be a float or a 0-d tensor"):
                fastvae.elbo(**(given | {name: value}), backend=backend)
    given["x_hat"] = lambda z: z @ torch.ones(L, D)
    want = fastvae.elbo(**given, seed=3, num_samples=2, first_row=5, backend=backend)
    numbers: dict[str, Any] = {"seed": np.int64(3), "num_samples": np.int32(2), "first_row": np.uint8(5)}
    assert torch.equal(fastvae.elbo(**given, **numbers, backend=backend), want)
    pixels = given | {"x": torch.ones(N, D, dtype=torch.uint8), "seed": 1, "backend": backend}
    scales: Any = np.float32(0.5), 0.5
    assert torch.equal(*(fastvae.elbo(**pixels, x_scale=s) for s in scales))
    assert Gaussian(scales[0]).get_log_scale() == math.log(0.5)
