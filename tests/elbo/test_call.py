"""A cached call is not used for a call that differs in anything its launch plans depend on."""

from typing import Any

import pytest
import torch

import fastvae
from fastvae._elbo import call as elbo_call

N, D, L = 4, 4, 2


def base_arguments(dtype=torch.float32):
    """x, x_hat, mu, logvar of the cached call, except for the dtype."""
    return {name: torch.randn(N, size).to(dtype) for name, size in {"x": D, "x_hat": D, "mu": L, "logvar": L}.items()}


def strided(t):
    """The same numbers in every second column of a tensor, so not contiguous."""
    return torch.stack([t, t], -1)[..., 0]


# What is changed in the call: each case has another layout, type or option.
OTHERS: dict[str, Any] = {
    "x_hat, turned": lambda t: {"x_hat": t["x_hat"].T.contiguous().T},
    "x, turned": lambda t: {"x": t["x"].T.contiguous().T},
    "x, spread": lambda t: {"x": strided(t["x"])},
    "mu, spread": lambda t: {"mu": strided(t["mu"])},
    "logvar, spread": lambda t: {"logvar": strided(t["logvar"])},
    "x, float64": lambda t: {"x": t["x"].double()},
    "x_hat, float64": lambda t: {"x_hat": t["x_hat"].double()},
    "mu, float64": lambda t: {"mu": t["mu"].double()},
    "logvar, bfloat16": lambda t: {"logvar": t["logvar"].bfloat16()},
    "x, bool": lambda t: {"x": t["x"] > 0},
    "x, uint8": lambda t: {"x": (t["x"] > 0).byte(), "x_scale": 1.0},
    "x, uint8, not scaled": lambda t: {"x": (t["x"] > 0).byte()},
    "x, a learned one": lambda t: {"x": t["x"].clone().requires_grad_()},
    "other shapes of as many numbers": lambda t: {"x": t["x"].view(N, 2, 2), "x_hat": t["x_hat"].view(N, 2, 2)},
    "one shape of x": lambda t: {"x": t["x"].view(N, 2, 2)},
    "one shape of x_hat": lambda t: {"x_hat": t["x_hat"].view(N, 2, 2)},
    "other shapes of mu": lambda t: {"mu": t["mu"][:, :1], "logvar": t["logvar"][:, :1]},
    "one shape of mu": lambda t: {"mu": t["mu"][:, :1].clone()},
    "one shape of logvar": lambda t: {"logvar": t["logvar"][:, :1].clone()},
    "fewer rows": lambda t: {name: v[:2] for name, v in t.items()},
    "x_hat, a decoder": lambda t: {"x_hat": lambda z: z @ torch.ones(L, D), "seed": 1},
    "x_hat, a list": lambda t: {"x_hat": t["x_hat"].tolist()},
    "mu, a list": lambda t: {"mu": t["mu"].tolist()},
    "two draws": lambda t: {"x_hat": t["x_hat"].expand(2, N, D), "num_samples": 2},
    "draws, but true": lambda t: {"num_samples": True},
    "sum": lambda t: {"reduction": "sum"},
    "none": lambda t: {"reduction": "none"},
    "mode": lambda t: {"reduction": "mode"},
    "bernoulli": lambda t: {"likelihood": fastvae.Bernoulli()},
    "laplace": lambda t: {"likelihood": fastvae.Laplace()},
    "laplace with that link": lambda t: {"likelihood": fastvae.Laplace(link="sigmoid")},
    "scale": lambda t: {"likelihood": fastvae.Gaussian(scale=2.0)},
    "link": lambda t: {"likelihood": fastvae.Gaussian(link="tanh")},
    "scales": lambda t: {"likelihood": fastvae.Gaussian(scale=torch.arange(1.0, D + 1))},
    "a density": lambda t: {"likelihood": torch.distributions.Normal(0, 1)},
    "prior": lambda t: {"prior": (torch.ones(L), torch.ones(N, L))},
    "prior of three": lambda t: {"prior": (torch.ones(L),) * 3},
    "prior of a list": lambda t: {"prior": ([1.0], [1.0])},
    "beta": lambda t: {"beta": 0.5},
    "beta, a tensor": lambda t: {"beta": torch.tensor(0.5, requires_grad=True)},
    "free bits": lambda t: {"free_bits": 0.3},
    "backend": lambda t: {"backend": "reference"},
}


def evaluate(function, arguments):
    """Values and gradients, or the error."""
    try:
        leaves = [t for t in arguments.values() if isinstance(t, torch.Tensor) and t.is_floating_point()]
        for name in ("x_hat", "mu", "logvar"):
            if isinstance(arguments[name], torch.Tensor):
                arguments[name].requires_grad_()
        value = function(**arguments)
        value = value if isinstance(value, torch.Tensor) else torch.stack(value)
        return [value, *torch.autograd.grad(value.sum(), [t for t in leaves if t.requires_grad], allow_unused=True)]
    except Exception as error:
        return [type(error), str(error)]


@pytest.mark.parametrize("function", [fastvae.elbo, fastvae.elbo_terms])
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("of_decoder", [False, True])
def test_a_different_call_does_not_use_the_cached_plan(function, other, of_decoder, monkeypatch):
    tensors = base_arguments()
    before = {**tensors, **({"x_hat": lambda z: z.repeat(1, 2), "seed": 1} if of_decoder else {})}
    found = []
    for others in (
        [],
        [before],
        [{**before, "likelihood": fastvae.Gaussian(link="sigmoid")}, base_arguments(torch.float64)],
    ):
        monkeypatch.setattr(elbo_call, "CACHE", {})
        for arguments in others * 2:
            function(**arguments)
        now = {name: v.detach() if isinstance(v, torch.Tensor) else v for name, v in tensors.items()}
        found.append(evaluate(function, {**now, **OTHERS[other](now)}))
    for same in found[1:]:
        for a, b in zip(found[0], same, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
