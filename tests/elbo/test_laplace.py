"""The Laplace likelihood: its formula against torch.distributions, and the kernels of both backends against that.

What all likelihoods have in common is tested in the other files of this folder, mostly with the Gaussian.
"""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Laplace as TorchLaplace

import fastvae
from fastvae import Laplace

from . import test_budget as budget

ROOT = Path(__file__).parents[2]
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
N, EVENT, L, K = 5, (3, 7, 2), 4, 3  # 42 features are two vectors of 16 and a part
KERNELS = ("numba", "triton")
LINKS: dict[str, Any] = {"identity": lambda a: a, "sigmoid": torch.sigmoid, "tanh": torch.tanh}
SHAPES = {"scalar": (), "per feature": EVENT, "per channel": (3, 1, 1), "per element": (N, *EVENT)}


# The shape of a parameter, which is positive as a scale must be, and the likelihood and scale made from it.
FORMS: dict[str, tuple[Any, Any, Any]] = {
    "unit": (None, lambda s, link: Laplace(link=link), lambda s: 1.0),
    "float scale": (None, lambda s, link: Laplace(0.7, link=link), lambda s: 0.7),
    "float log_scale": (None, lambda s, link: Laplace(log_scale=-0.4, link=link), lambda s: math.exp(-0.4)),
    **{f"{k} scale": (shape, lambda s, link: Laplace(s, link=link), lambda s: s) for k, shape in SHAPES.items()},
    **{
        f"{k} log_scale": (shape, lambda s, link: Laplace(log_scale=s, link=link), torch.exp)
        for k, shape in SHAPES.items()
    },
}


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("form", FORMS)
def test_the_formula_matches_torch_distributions(form, link):
    shape, make, scale_of = FORMS[form]
    x, x_hat = torch.randn(N, *EVENT, dtype=F64), torch.randn(K, N, *EVENT, dtype=F64, requires_grad=True)
    s = None if shape is None else (torch.rand(shape, dtype=F64) + 0.5).requires_grad_()
    mu, leaves = torch.zeros(N, L, dtype=F64), [x_hat] + ([] if s is None else [s])
    options: dict[str, Any] = {"num_samples": K, "reduction": "none", "backend": "reference"}
    ours = fastvae.elbo(x, x_hat, mu, mu, likelihood=make(s, link), **options)
    theirs = TorchLaplace(LINKS[link](x_hat), scale_of(s)).log_prob(x).sum((2, 3, 4)).mean(0)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    upstream = torch.randn(N, dtype=F64)
    gradients = (torch.autograd.grad((upstream * v).sum(), leaves) for v in (ours, theirs))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("link", LINKS)
def test_gradients_match_finite_differences_away_from_the_kink(link):
    x_hat, s = torch.randn(2, 6, dtype=F64, requires_grad=True), torch.randn(6, dtype=F64, requires_grad=True)
    x = LINKS[link](x_hat.detach()) + torch.tensor([0.3, -0.2, 1.0, -2.0, 0.1, -0.1], dtype=F64)
    assert torch.autograd.gradcheck(lambda a, s: Laplace(log_scale=s, link=link).log_prob(x, a), (x_hat, s))
    assert torch.autograd.gradgradcheck(lambda a, s: Laplace(log_scale=s, link=link).log_prob(x, a), (x_hat, s))


# Each combination of dtype, link, form of the scale, and values or gradients has its own kernel: a second each.
CASES = [
    ("unit", "identity", F32, "none"),
    *(("unit", "identity", dtype, "mean") for dtype in (F32, BF16)),
    ("float scale", "sigmoid", F32, "sum"),
    ("scalar log_scale", "identity", F64, "mean"),
    ("scalar log_scale", "tanh", F32, "mean"),
    *(("per feature log_scale", "identity", dtype, "mean") for dtype in (F32, F64)),
    ("per channel scale", "identity", F32, "sum"),
    ("per element log_scale", "identity", F32, "none"),
]


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(("form", "link", "dtype", "reduction"), CASES)
def test_kernels_are_within_the_error_budget(backend, form, link, dtype, reduction, monkeypatch):
    monkeypatch.setattr(budget, "BACKEND", backend)
    shape, make, _ = FORMS[form]

    def call(backend, x, x_hat, mu, s):
        options = {"likelihood": make(s, link), "reduction": reduction, "backend": backend}
        return fastvae.elbo_terms(x, x_hat, mu, mu, **options)

    inputs = [torch.randn(N, *EVENT), torch.randn(N, *EVENT), torch.randn(N, L)]
    inputs += [] if shape is None else [torch.rand(shape) + 0.5]
    given = [t.to(dtype) for t in inputs] + [None] * (4 - len(inputs))
    budget.within_budget(call, *given, fixed=[0])


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("shape", [(), EVENT, (K, N, *EVENT)])
def test_draws_are_within_the_error_budget(backend, shape, monkeypatch):
    monkeypatch.setattr(budget, "BACKEND", backend)

    def call(backend, x, x_hat, mu, s):
        options = {"likelihood": Laplace(log_scale=s), "num_samples": K, "backend": backend}
        return fastvae.elbo_terms(x, x_hat, mu, mu, **options)

    inputs = torch.randn(N, *EVENT), torch.randn(K, N, *EVENT), torch.randn(N, L), 0.5 * torch.randn(shape)
    budget.within_budget(call, *inputs, fixed=[0])


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(("x_dtype", "x_scale"), [(torch.uint8, 1 / 255), (torch.bool, None)])
def test_uint8_and_bool_are_within_the_error_budget(backend, x_dtype, x_scale, monkeypatch):
    monkeypatch.setattr(budget, "BACKEND", backend)

    def call(backend, x, x_hat, mu):
        options = {"likelihood": Laplace(0.3), "x_scale": x_scale, "backend": backend}
        return fastvae.elbo_terms(x, x_hat, mu, mu, **options)

    x = torch.randint(256 if x_scale else 2, (N, *EVENT)).to(x_dtype)
    budget.within_budget(call, x, torch.randn(N, *EVENT), torch.randn(N, L), fixed=[0])


# x equals x_hat often if both are uint8, bool or bfloat16. The gradient of torch's abs is 0 there.
@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@pytest.mark.parametrize("reduction", ["none", "sum"])  # recomputed, and in one pass
def test_the_gradient_is_0_where_x_equals_x_hat(backend, reduction):
    x = torch.randint(3, (N, 42), dtype=torch.uint8)
    x_hat = torch.randint(3, (N, 42)).float().requires_grad_()
    likelihood, mu = Laplace(0.25), torch.zeros(N, L)
    options = {"likelihood": likelihood, "x_scale": 1.0, "reduction": reduction, "backend": backend}
    value = fastvae.elbo(x, x_hat, mu, mu, **options)
    expected = -4 * (x - x_hat).abs().sum(1) - 42 * math.log(0.5)
    torch.testing.assert_close(value, expected if reduction == "none" else expected.sum())
    (gradient,) = torch.autograd.grad(value.sum(), x_hat)
    assert torch.equal(gradient, 4 * (x - x_hat).sign())
    assert (gradient == 0).any()


@pytest.mark.parametrize("backend", KERNELS)
def test_nan_is_kept_and_stays_in_its_place(backend):
    x, x_hat, mu = torch.zeros(3, 42), torch.zeros(3, 42), torch.zeros(3, L)
    x_hat[1, 4] = math.nan
    x_hat.requires_grad_()
    values = fastvae.elbo(x, x_hat, mu, mu, likelihood=Laplace(), reduction="none", backend=backend)
    assert values.isnan().tolist() == [False, True, False]
    assert torch.autograd.grad(values.sum(), x_hat)[0].isnan().nonzero().tolist() == [[1, 4]]


def decoder(W, V):
    return lambda z: (z @ W, 0.1 * z @ V)


@pytest.mark.parametrize("backend", KERNELS)
def test_a_decoder_may_return_the_log_scale(backend):
    x, *leaves = (torch.randn(shape) for shape in ((N, 6), (L, 6), (L, 6), (N, L), (N, L)))
    gradients = []
    for b in (backend, "reference"):
        W, V, mu, logvar = given = [t.clone().requires_grad_() for t in leaves]
        terms = fastvae.elbo_terms(x, decoder(W, V), mu, logvar, likelihood=Laplace(), num_samples=2, seed=1, backend=b)
        # twice: the second time through the formulas
        first = torch.autograd.grad(terms.elbo, given, retain_graph=True)
        again = torch.autograd.grad(terms.elbo, given, create_graph=True)
        second = torch.autograd.grad(torch.stack([g.square().sum() for g in again]).sum(), given)
        gradients.append([*terms, *first, *second])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_in_a_graph():
    torch._dynamo.reset()
    x, *leaves = (torch.randn(shape) for shape in ((N, 6), (L, 6), (N, L), (N, L), (6,)))

    def loss(W, mu, logvar, s, backend):
        likelihood = Laplace(log_scale=s, link="tanh")
        return -fastvae.elbo(x, lambda z: z @ W, mu, logvar, likelihood=likelihood, seed=1, backend=backend)

    results, compiled = [], torch.compile(loss, fullgraph=True, backend="aot_eager")
    runs: list[Any] = [(compiled, "numba"), (loss, "reference")]
    for function, backend in runs:
        given = [t.clone().requires_grad_() for t in leaves]
        value = function(*given, backend)
        results.append([value, *torch.autograd.grad(value, given)])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_the_optimal_scale_is_the_mean_absolute_residual():
    x, x_hat, mu = torch.randn(N, 42, dtype=F64), torch.randn(N, 42, dtype=F64), torch.zeros(N, L, dtype=F64)
    best = (x - x_hat).abs().mean()
    for shape in ((), (1,)):
        log_scale = best.log().expand(shape).clone().requires_grad_()
        value = fastvae.elbo(x, x_hat, mu, mu, likelihood=Laplace(log_scale=log_scale), reduction="sum")
        torch.testing.assert_close(value, torch.tensor(-N * 42 * (1 + math.log(2 * best)), dtype=F64))
        assert torch.autograd.grad(value, log_scale)[0].abs() < 1e-10


def test_draws_of_x_have_its_distribution():
    likelihood = Laplace(scale=0.5, link="tanh")
    x_hat = torch.full((100_000,), 0.3)
    assert torch.equal(likelihood.mean(x_hat), x_hat.tanh())
    x, again = (likelihood.sample(x_hat, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(x, again)
    # u is uniform; the bound is the 1e-6 quantile of the Kolmogorov-Smirnov statistic.
    u = TorchLaplace(x_hat.tanh(), 0.5).cdf(x).sort().values
    assert (u - torch.linspace(0, 1, len(u))).abs().max() < 2.7 / math.sqrt(len(u))


def test_a_vae_learns_its_scale():
    vae = fastvae.VAE.mlp(6, latent=2, hidden=8, likelihood="laplace")
    assert isinstance(vae.likelihood, Laplace)
    vae.elbo(torch.randn(N, 6)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in vae.parameters())
    assert vae.likelihood.log_scale is dict(vae.named_parameters())["log_scale"]
    assert vae.sample(3).shape == (3, 6)
    fixed = fastvae.VAE.mlp(6, likelihood="laplace", scale=0.5).likelihood
    assert isinstance(fixed, Laplace)
    assert fixed.scale == 0.5


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match=r"^scale must be positive and finite, got 0\.0"):
        Laplace(0.0)
    x, mu = torch.zeros(N, 6), torch.zeros(N, L)
    with pytest.raises(ValueError, match=r"the likelihood has a scale of its own: use Laplace\(\)"):
        fastvae.elbo(x, lambda z: (x, x), mu, mu, likelihood=Laplace(0.5))


def test_a_subclass_may_be_another_likelihood_and_has_no_kernel():
    class Twice(Laplace):
        def log_prob(self, x, x_hat):
            return 2 * super().log_prob(x, x_hat)

    x, mu = torch.randn(N, 6), torch.zeros(N, L)
    twice = fastvae.elbo(x, 0 * x, mu, mu, likelihood=Twice())
    torch.testing.assert_close(twice, 2 * fastvae.elbo(x, 0 * x, mu, mu, likelihood=Laplace()))
    with pytest.raises(fastvae.BackendError, match="no kernel for the likelihood Twice"):
        fastvae.elbo(x, x, mu, mu, likelihood=Twice(), backend="numba")


def test_the_recipe_quotes_the_sources_and_names_files_that_exist():
    recipe = (ROOT / "docs" / "add_an_op.md").read_text(encoding="utf-8")
    steps = re.split(r"^\d\. ", recipe, flags=re.MULTILINE)[1:]
    quoted = 0
    for step in steps:
        for block in re.findall(r"```python\n(.*?)```", step, re.DOTALL):
            lines = [line.strip() for line in block.rstrip().splitlines()]
            source = (ROOT / step.split("`")[1]).read_text(encoding="utf-8")  # the file named at the start of the step
            assert "\n".join(lines) in "\n".join(line.strip() for line in source.splitlines())
            quoted += 1
    assert quoted == 4
    named = re.findall(r"`([\w/]+/[\w.]+\.(?:py|md))`", recipe)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
