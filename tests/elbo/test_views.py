"""Tensors whose memory does not hold their values: lazily negated, zero by a flag of torch, sparse, and nested ones.

A view such as ``c.conj().imag`` shares the memory of c, with the opposite sign. Results must be those for an ordinary
tensor with the same values, for every argument, every output and every upstream gradient.
"""

from typing import Any

import pytest
import torch

import fastvae
from fastvae import Gaussian

from ..views import negated, zero

N, D, L, K = 4, 6, 3, 2


def tensors():
    x, x_hat, log_scale = torch.rand(N, D), torch.randn(N, D), 0.3 * torch.randn(D)
    mu, logvar, mu_p, logvar_p = (torch.randn(shape) for shape in ((N, L), (N, L), (L,), (L,)))
    return {"x": x, "x_hat": x_hat, "mu": mu, "logvar": logvar, "mu_p": mu_p, "logvar_p": logvar_p, "s": log_scale}


def of_x_hat(t, backend):
    options = {"likelihood": Gaussian(log_scale=t["s"]), "prior": (t["mu_p"], t["logvar_p"]), "backend": backend}
    return fastvae.elbo_terms(t["x"], t["x_hat"], t["mu"], t["logvar"], **options)


def of_a_plain_call(t, backend):
    return [fastvae.elbo(t["x"], t["x_hat"], t["mu"], t["logvar"], backend=backend)]


def of_a_decoder(t, backend):
    def decoder(z):
        return negated(z.repeat(1, 2) * t["x_hat"]), negated(z.repeat(1, 2) * t["s"])

    return fastvae.elbo_terms(t["x"], decoder, t["mu"], t["logvar"], seed=1, backend=backend)


def of_draws(t, backend):
    return [fastvae.reparameterize(t["mu"], t["logvar"], num_samples=K, seed=1, backend=backend)]


def of_the_kl(t, backend):
    return [fastvae.kl_divergence(t["mu"], t["logvar"], (t["mu_p"], t["logvar_p"]), backend=backend)]


FUNCTIONS = {  # and the arguments that each reads
    of_x_hat: [*tensors()],
    of_a_plain_call: ["x", "x_hat", "mu", "logvar"],
    of_a_decoder: ["x", "mu"],
    of_draws: ["mu", "logvar"],
    of_the_kl: ["mu", "logvar", "mu_p", "logvar_p"],
}
# Such tensors are materialized before a backend is chosen, so one case of each function suffices for Triton.
CASES = [
    pytest.param(function, name, backend, id=f"{backend}-{function.__name__}-{name}")
    for backend in ("auto", "reference", "triton")
    for function, names in FUNCTIONS.items()
    for name in (names if backend != "triton" else names[:1])
]


def evaluate(function, t, backend, upstream=lambda g: g, changed=None):
    """Values, and the gradients of a weighted sum of them; ``changed`` makes arguments from the leaves t."""
    values = function(t | (changed or {}), backend)
    leaves = [v for v in t.values() if v.requires_grad]
    weights = [upstream(torch.linspace(0.5, 1, v.numel()).view(v.shape)) for v in values]
    return [*values, *torch.autograd.grad(values, leaves, weights, allow_unused=True)]


def leaves(t):
    return {name: v if name == "x" else v.clone().requires_grad_() for name, v in t.items()}


def check(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a.resolve_neg(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("function", "name", "backend"), CASES)
def test_a_negated_view_is_read_with_the_right_sign(function, name, backend):
    plain = leaves(tensors())
    want = evaluate(function, plain, "reference")
    evaluate(function, plain, backend)  # a call with ordinary tensors of this layout is cached
    view = negated(plain[name])
    assert view.is_neg()
    check(evaluate(function, plain, backend, changed={name: view}), want)
    check(evaluate(function, plain, backend), want)


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("upstream", [negated, zero])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_lazy_upstream_gradient(function, upstream, backend):
    t = leaves(tensors())
    want = evaluate(function, t, "reference", lambda g: g if upstream is negated else torch.zeros_like(g))
    check(evaluate(function, t, backend, upstream), want)


@pytest.mark.parametrize(("function", "name", "backend"), CASES)
def test_zeros_without_memory_are_zeros(function, name, backend):
    t = tensors()
    want = function(t | {name: torch.zeros_like(t[name])}, "reference")
    function(t, backend)
    check(function(t | {name: zero(t[name])}, backend), want)


@pytest.mark.parametrize("backend", ["auto", "reference", "triton"])
@pytest.mark.parametrize("make", [negated, zero])
@pytest.mark.parametrize("name", ["beta", "free_bits", "seed"])
def test_numbers_in_lazy_tensors(name, make, backend):
    t, number = tensors(), torch.tensor(5) if name == "seed" else torch.tensor(0.5)
    options: dict[str, Any] = {"beta": 0.7, "seed": 1}

    def bound(**changes):
        x_hat = t["x_hat"]
        return fastvae.elbo(t["x"], lambda z: z.repeat(1, 2) * x_hat, t["mu"], t["logvar"], **options | changes)

    stands_for = number if make is negated else torch.zeros_like(number)
    want = bound(**{name: stands_for}, backend="reference")
    view = torch._neg_view(-number) if name == "seed" and make is negated else make(number)
    torch.testing.assert_close(bound(**{name: view}, backend=backend), want)
    if name == "seed":
        draws = [fastvae.reparameterize(t["mu"], t["logvar"], seed=s, backend=backend) for s in (view, stands_for)]
        assert torch.equal(*draws)


def test_a_negated_view_in_a_graph():
    t = leaves(tensors())

    def f(mu, backend):
        return fastvae.elbo(
            t["x"], lambda z: negated(z.repeat(1, 2)), negated(mu), t["logvar"], seed=1, backend=backend
        )

    torch._dynamo.reset()
    ours = torch.compile(f, backend="aot_eager", fullgraph=True)(t["mu"], "numba")
    theirs = f(t["mu"], "reference")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(v, [t["mu"], t["logvar"]]) for v in (ours, theirs)))


NOT_DENSE: dict[str, Any] = {
    "sparse": lambda t: t.to_sparse(),
    "sparse rows": lambda t: t.reshape(t.shape[0], -1).to_sparse_csr().requires_grad_(t.requires_grad),
    "jagged": lambda t: torch.nested.nested_tensor(list(t), layout=torch.jagged),
    "nested": lambda t: torch.nested.nested_tensor(list(t)),
    "MKL-DNN": lambda t: t.to_mkldnn(),
}


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning", "ignore:.*Sparse CSR:UserWarning")
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", NOT_DENSE)
@pytest.mark.parametrize("name", ["x", "x_hat", "mu", "logvar"])
def test_tensors_that_are_not_dense_are_refused_by_name(name, kind, backend):
    t = tensors()
    with pytest.raises(TypeError, match=rf"^{name} must be a dense tensor, got "):
        of_a_plain_call(t | {name: NOT_DENSE[kind](t[name])}, backend)


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_tensors_that_are_not_dense_are_refused_elsewhere_too():
    t, sparse = tensors(), torch.eye(N, L).to_sparse()
    calls = {
        "mu": lambda: fastvae.kl_divergence(sparse, t["logvar"]),
        "prior's mu_p": lambda: fastvae.kl_divergence(t["mu"], t["logvar"], (sparse, t["logvar"])),
        "likelihood's log_scale": lambda: of_x_hat(t | {"s": t["s"].to_sparse()}, "auto"),
        "what the decoder returns": lambda: fastvae.elbo(t["x"], lambda z: t["x"].to_sparse(), t["mu"], t["logvar"]),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=rf"^{name} must be a dense tensor, got "):
            call()
    with pytest.raises(TypeError, match="nested"):
        fastvae.reparameterize(NOT_DENSE["nested"](t["mu"]), t["logvar"])
