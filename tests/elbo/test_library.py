"""The ELBO's kernels as operations of a graph: opcheck, and the comparisons that it cannot make.

`backend="numba"` uses them under `torch.compile`. Graphs are compiled by "aot_eager", which runs the same operations
as Inductor without its code generation; one test uses Inductor.
"""

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fastvae
from fastvae import BackendError, Bernoulli, Gaussian
from fastvae._elbo import call as elbo_call
from fastvae._elbo import library as elbo_library

N, D, L, K = 3, 8, 5, 2
OPS = torch.ops.fastvae  # the names that `elbo_library` registers


def leaf(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype).requires_grad_()


def scalar(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


SAMPLES: dict[str, Any] = {
    "plain": {},
    "KL alone": {"seed": None},
    "prior": {"prior": True},
    "draws": {"num_samples": K, "reduction": "none", "first_row": 5},
    "free bits": {"masked": True, "free_bits": scalar(0.3)},
    "float64": {"dtype": torch.float64},
    "bfloat16": {"dtype": torch.bfloat16},
    "columns": {"strided": True},
}
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.fixture
def launched(backend, monkeypatch):
    """The operations with the kernels of this backend, Triton in the interpreter."""
    monkeypatch.setitem(elbo_library.BACKEND_OF, "cpu", backend)
    elbo_call.CACHE.clear()
    yield
    elbo_call.CACHE.clear()


def for_both(cases):
    """Each case with Numba; with Triton those whose results have another memory format, the others only with --long."""
    layouts = ("plain", "draws", "columns", "channels last")
    triton = [pytest.param("triton", name, marks=() if name in layouts else pytest.mark.long) for name in cases]
    return pytest.mark.parametrize(("backend", "name"), [*(("numba", name) for name in cases), *triton])


@pytest.mark.usefixtures("launched")
@for_both(SAMPLES)
def test_opcheck_sample(backend, name):
    case = {"seed": torch.tensor(3), "num_samples": None, "reduction": "mean", **SAMPLES[name]}
    dtype = case.get("dtype", torch.float32)
    mu, logvar = leaf(N, L, dtype=dtype), leaf(N, L, dtype=dtype)
    if case.get("strided"):
        mu, logvar = (t.detach().repeat(1, 2)[:, ::2].requires_grad_() for t in (mu, logvar))
    prior = (leaf(L, dtype=dtype), leaf(N, L, dtype=dtype)) if case.get("prior") else (None, None)
    weights = scalar(0.7), case.get("free_bits", scalar(0.0))
    options = case.get("first_row", 0), case["num_samples"], case["reduction"], "free_bits" in case
    args = mu, logvar, *prior, case["seed"], *weights, *options
    torch.library.opcheck(OPS.sample.default, args, test_utils=CHECKS)


DENSITIES: dict[str, Any] = {
    "plain": {},
    "recomputed": {"reduction": "none", "one_pass": False},
    "per feature": {"scale": (D,)},
    "per element": {"scale": (N, D)},
    "draws": {"num_samples": K, "scale": (K, N, D)},
    "tanh": {"link": "tanh"},
    "Bernoulli of bytes": {"likelihood": "bernoulli", "x_scale": scalar(1 / 255)},
    "Laplace": {"likelihood": "laplace", "scale": (D,)},
    "bfloat16": {"dtype": torch.bfloat16},
    "columns": {"strided": True},
    "channels last": {"channels_last": True},
}


@pytest.mark.usefixtures("launched")
@for_both(DENSITIES)
def test_opcheck_log_likelihood(backend, name):
    case = {"num_samples": None, "reduction": "mean", "one_pass": True, **DENSITIES[name]}
    dtype = case.get("dtype", torch.float32)
    shape = (N, D) if case["num_samples"] is None else (K, N, D)
    x, x_hat = torch.rand(N, D).to(dtype), leaf(*shape, dtype=dtype)
    if case.get("strided"):
        x_hat = x_hat.detach().repeat(1, 2)[:, ::2].requires_grad_()
    if case.get("channels_last"):
        x = x.view(N, 2, 2, D // 4)
        x_hat = torch.randn(N, 2, 2, D // 4).to(memory_format=torch.channels_last).requires_grad_()
    if "x_scale" in case:
        x = (255 * x).to(torch.uint8)
    log_scale = leaf(*case.get("scale", ()))
    neg_kl = leaf(N) if case["reduction"] == "none" else leaf()
    options = case.get("likelihood", "gaussian"), case.get("link", "identity"), case["num_samples"], case["reduction"]
    args = (x, x_hat, log_scale, case.get("x_scale"), neg_kl, *options, case["one_pass"])
    torch.library.opcheck(OPS.log_likelihood.default, args, test_utils=CHECKS)


class Problem:
    """The output of an encoder, a decoder, a scale and a prior, all leaves."""

    def __init__(self, rows=N):
        self.mu, self.logvar, self.W, self.V = leaf(rows, L), leaf(rows, L), leaf(L, D), leaf(L, D)
        self.log_scale, self.mu_p, self.logvar_p = leaf(D), leaf(L), leaf(rows, L)
        self.x = torch.rand(rows, D)

    def bytes(self):
        return (255 * self.x).to(torch.uint8)

    def leaves(self):
        return [t for t in vars(self).values() if t.requires_grad]


# Calls of elbo_terms, as functions of the problem: x, x_hat and options.
OPTIONS: dict[str, Any] = {
    "decoder": lambda p: (p.x, lambda z: z @ p.W, {}),
    "tensor": lambda p: (p.x, p.mu @ p.W, {"reduction": "sum"}),
    "none": lambda p: (p.x, lambda z: z @ p.W, {"reduction": "none", "likelihood": Gaussian(log_scale=p.log_scale)}),
    "decoded scale": lambda p: (p.x, lambda z: (z @ p.W, 0.1 * z @ p.V), {}),
    "scale": lambda p: (p.x, p.mu @ p.W, {"likelihood": Gaussian(p.log_scale.exp(), link="sigmoid")}),
    "later rows": lambda p: (p.x, lambda z: z @ p.W, {"first_row": 2**32 - 1}),
    "prior, beta": lambda p: (p.x, lambda z: z @ p.W, {"prior": (p.mu_p, p.logvar_p), "beta": 0.3}),
    "free bits": lambda p: (p.x, lambda z: z @ p.W, {"free_bits": 0.4, "beta": torch.tensor(0.5)}),
    "prior, free bits": lambda p: (
        p.x,
        lambda z: z @ p.W,
        {"prior": (p.mu_p, p.logvar_p), "free_bits": 0.4, "beta": 2},
    ),
    "draws": lambda p: (p.x, lambda z: z @ p.W, {"num_samples": K, "likelihood": Bernoulli()}),
    "bytes": lambda p: (p.bytes(), p.mu @ p.W, {"x_scale": 1 / 255, "likelihood": Bernoulli()}),
    "draws, bytes": lambda p: (
        p.bytes(),
        lambda z: z @ p.W,
        {"num_samples": K, "x_scale": 1 / 255, "likelihood": Bernoulli()},
    ),
    "bool": lambda p: (p.x > 0.5, lambda z: z @ p.W, {"likelihood": Bernoulli()}),
    "half": lambda p: (p.x, lambda z: (z @ p.W).half(), {}),  # computed by the formula, within the graph
}
WEIGHINGS: dict[str, Any] = {
    "elbo": lambda t: -t.elbo.sum(),
    "all": lambda t: (2 * t.elbo - t.log_likelihood.square() + 0.5 * t.kl).sum(),
}


# Symbolic sizes test more than static ones; each option of an operation is tested once.
STATIC = ("decoder",)
DYNAMIC = ("decoded scale", "prior, free bits", "draws, bytes", "half", "none")


@pytest.mark.parametrize(
    ("name", "dynamic"),
    [
        *(pytest.param(name, True, marks=() if name in DYNAMIC else pytest.mark.long) for name in OPTIONS),
        *(pytest.param(name, False, marks=() if name in STATIC else pytest.mark.long) for name in OPTIONS),
    ],
)
def test_compiled_equals_eager(name, dynamic):
    torch._dynamo.reset()

    def loss(p, weighing, backend):
        x, x_hat, options = OPTIONS[name](p)
        terms = fastvae.elbo_terms(x, x_hat, p.mu, p.logvar, seed=7, backend=backend, **options)
        return WEIGHINGS[weighing](terms)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for weighing, rows in [("all", N), ("all", N + 2)] if dynamic else [(weighing, N) for weighing in WEIGHINGS]:
        p = Problem(rows)
        ours, theirs = compiled(p, weighing, "numba"), loss(p, weighing, "auto")
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        gradients = (torch.autograd.grad(v, p.leaves(), allow_unused=True) for v in (ours, theirs))
        for a, b in zip(*gradients, strict=True):  # an operation returns zeros where a Function may return None
            zero = torch.zeros(())
            torch.testing.assert_close(zero if a is None or not a.any() else a, zero if b is None or not b.any() else b,
                                       rtol=1e-4, atol=1e-5)  # fmt: skip


def test_inductor_and_two_calls_in_one_graph_have_independent_noise():
    torch._dynamo.reset()
    p = Problem()

    def both(x, W, mu, logvar):
        loss = -fastvae.elbo(x, lambda z: z @ W, mu, logvar, seed=1, backend="numba")
        seen = []

        def decoder(z):
            seen.append(z)
            return z

        for _ in range(2):
            fastvae.elbo(torch.zeros(N, L), decoder, mu, logvar, backend="numba")
        return loss, seen

    results, draws = [], []
    for f in (both, compiled := torch.compile(both, fullgraph=True), compiled):
        value, seen = f(p.x, p.W, p.mu, p.logvar)
        results.append([value, *torch.autograd.grad(value, [p.W, p.mu, p.logvar])])
        draws += seen
    for ours in results[1:]:
        torch.testing.assert_close(results[0], ours, rtol=1e-5, atol=1e-5)
    assert torch.stack(draws).flatten(1).unique(dim=0).shape[0] == len(draws)


def graphs():
    """A backend that counts the graphs it compiles."""
    seen = []

    def backend(gm, inputs):
        seen.append(gm)
        return gm.forward

    return seen, backend


def test_a_warm_up_of_20_betas_compiles_at_most_2_graphs():
    torch._dynamo.reset()
    seen, backend = graphs()
    p = Problem()

    @torch.compile(fullgraph=True, backend=backend)
    def f(beta):
        return fastvae.elbo(p.x, lambda z: z @ p.W, p.mu, p.logvar, beta=beta, free_bits=beta, seed=1, backend="numba")

    for i in range(20):
        expected = fastvae.elbo(p.x, lambda z: z @ p.W, p.mu, p.logvar, beta=i / 20, free_bits=i / 20, seed=1)
        torch.testing.assert_close(f(i / 20), expected)
    assert len(seen) <= 2


def test_a_checkpoint_inside_a_graph():
    torch._dynamo.reset()

    def f(x, W, mu, logvar):
        def bound(W, mu, logvar):
            return fastvae.elbo(x, lambda z: z @ W, mu, logvar, seed=1, backend="numba")

        return checkpoint(bound, W, mu, logvar, use_reentrant=False)

    p = Problem()
    results = []
    for g in (f, torch.compile(f, backend="aot_eager")):
        value = g(p.x, p.W, p.mu, p.logvar)
        results.append([value, *torch.autograd.grad(value, [p.W, p.mu, p.logvar])])
    torch.testing.assert_close(*results)


def test_a_gradient_of_a_gradient_goes_through_the_formulas():
    mu, logvar, x_hat, log_scale, neg_kl = leaf(N, L), leaf(N, L), leaf(N, D), leaf(D), leaf()
    x, seed, weights = torch.randn(N, D), torch.tensor(3), (scalar(0.7), scalar(0.0))
    z, penalty, kl, _ = OPS.sample(mu, logvar, None, None, seed, *weights, 0, None, "sum", False)
    elbo, log_lik, _, _ = OPS.log_likelihood(
        x, x_hat, log_scale, None, neg_kl, "gaussian", "identity", None, "sum", True
    )
    value, leaves = (z**3).sum() + penalty + kl**2 + elbo**2 + log_lik, [mu, logvar, x_hat, log_scale]
    first = torch.autograd.grad(value, leaves, create_graph=True)
    second = torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), leaves)
    terms = fastvae.reference.elbo_terms(
        x, x_hat, mu, logvar, likelihood=Gaussian(log_scale=log_scale), reduction="sum", beta=0.0
    )
    zs = fastvae.reference.reparameterize(mu, logvar, seed=3)
    truth = (zs**3).sum() - 0.7 * terms.kl + terms.kl**2 + (terms.elbo + neg_kl) ** 2 + terms.log_likelihood
    torch.testing.assert_close(value, truth)
    expected = torch.autograd.grad(truth, leaves, create_graph=True)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-4)
    penalty = torch.stack([g.square().sum() for g in expected]).sum()
    torch.testing.assert_close(second, torch.autograd.grad(penalty, leaves), rtol=1e-3, atol=1e-3)


def test_unsupported_calls_are_refused_in_a_graph_too():
    torch._dynamo.reset()
    p = Problem()

    @torch.compile(backend="eager")
    def f(mu):
        return fastvae.elbo(p.x, p.x, mu, mu, backend="numba")

    with pytest.raises(BackendError, match=r"no kernel for torch\.float16"):
        f(p.mu.detach().half())
