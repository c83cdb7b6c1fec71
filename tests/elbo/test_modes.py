"""The ELBO's kernels and other features of torch: calls computed by the reference, memory, threads, processes."""

import itertools
import threading
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile

import fastvae
from fastvae import BackendError, Bernoulli, Gaussian
from fastvae._elbo import call as elbo_call
from fastvae_kernels.numba.language import buffers

from ..children import in_python

N, D, L = 3, 8, 4


def data(dtype=torch.float32):
    """x, W, mu, logvar, log_scale: the last four require gradients."""
    x, *leaves = (torch.randn(s).to(dtype) for s in ((N, D), (L, D), (N, L), (N, L), (D,)))
    return x, *(t.requires_grad_() for t in leaves)


def bound(x, W, mu, logvar, log_scale, **options):
    options = {"likelihood": Gaussian(log_scale=log_scale), "seed": 1, **options}
    return fastvae.elbo(x, lambda z: z @ W, mu, logvar, **options)


# Functions that run f(x, W, mu, logvar, log_scale) in a mode that no kernel supports, and what the error says.
TRANSFORMS: dict[str, tuple[Any, str]] = {
    "grad": (lambda f, *t: torch.func.grad(f, (1, 2, 3, 4))(*t), "torch.func transform"),
    "vmap": (lambda f, *t: torch.func.vmap(f)(*(torch.stack([s, s + 1]) for s in t)), "torch.func transform"),
    "jvp": (lambda f, *t: torch.func.jvp(f, t, tuple(0.5 * s for s in t)), "torch.func transform"),
    "hessian": (lambda f, *t: torch.func.hessian(f, 2)(*t), "torch.func transform"),
    "dual numbers": (lambda f, *t: dual(f, *t), "forward-mode AD"),
    "make_fx": (lambda f, *t: make_fx(f)(*t)(*t), "being traced"),
}


def dual(f, *tensors):
    with torch.autograd.forward_ad.dual_level():
        return torch.autograd.forward_ad.unpack_dual(f(*(torch.autograd.forward_ad.make_dual(t, t) for t in tensors)))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_use_the_reference_and_are_refused_by_name(name):
    transform, reason = TRANSFORMS[name]
    tensors = [t.detach() for t in data(torch.float64)]
    ours, theirs = (
        transform(lambda *t, b=backend: bound(*t, backend=b), *tensors) for backend in ("auto", "reference")
    )
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(BackendError, match=f"numba.*does not support elbo: .*{reason}"):
        transform(lambda *t: bound(*t, backend="numba"), *tensors)
    with pytest.raises(BackendError, match=f"numba.*does not support reparameterize: .*{reason}"):
        transform(lambda *t: fastvae.reparameterize(*t[2:4], backend="numba").sum(), *tensors)


def test_a_trace_holds_no_constant():
    tensors, others = data(), data()
    graph = make_fx(lambda *t: bound(*t, beta=0.5))(*(t.detach() for t in tensors))
    torch.testing.assert_close(graph(*others), bound(*others, beta=0.5))


# dynamic=True: the batch grows between the two calls, in one graph. A graph takes seconds, so options are combined.
COMPILED: dict[str, dict[str, Any]] = {
    "a scale, prior, free bits, none": {
        "prior": (torch.ones(L), torch.tensor(0.3)),
        "free_bits": 0.1,
        "reduction": "none",
    },
    "Bernoulli, draws, bytes": {"likelihood": Bernoulli(), "num_samples": 2, "beta": 0.3, "x_scale": 1 / 255},
}


@pytest.mark.parametrize(
    "name", ["a scale, prior, free bits, none", pytest.param([*COMPILED][1], marks=pytest.mark.long)]
)
def test_compiled_with_dynamic_shapes_it_equals_the_kernels(name):
    torch._dynamo.reset()
    options: dict[str, Any] = {"likelihood": None, **COMPILED[name]}

    def f(x, W, mu, logvar, s, backend="auto"):
        given = {**options, "likelihood": options["likelihood"] or Gaussian(log_scale=s), "seed": 1, "backend": backend}
        return fastvae.elbo(x, (lambda z: z @ W) if "num_samples" in options else mu @ W, mu, logvar, **given)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 5):
        x, W, mu, logvar, s = data()
        x = x[:1].expand(rows, D).sigmoid()
        x = (255 * x).to(torch.uint8) if "x_scale" in options else x
        mu, logvar = (t.detach()[:1].repeat(rows, 1).requires_grad_() for t in (mu, logvar))
        eager = f(x, W, mu, logvar, s, "numba")
        ours = compiled(x, W, mu, logvar, s)
        torch.testing.assert_close(ours, eager)
        leaves = [W, mu, logvar, *([] if options["likelihood"] else [s])]
        a, b = (torch.autograd.grad(v.sum(), leaves) for v in (ours, eager))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


class Cauchy:
    def log_prob(self, x, x_hat):
        return -torch.log1p((x - x_hat).square())


HALF = torch.float16
# What is changed in the call, and what the error of backend="numba" says.
UNSERVED: dict[str, tuple[Any, str]] = {
    "fp16 x_hat": (lambda t: {"x_hat": t["x_hat"].to(HALF)}, "no kernel for torch.float16"),
    "fp16 x": (lambda t: {"x": t["x"].to(HALF)}, "no kernel for torch.float16"),
    "fp16 mu": (lambda t: {"mu": t["mu"].to(HALF)}, "no kernel for torch.float16"),
    "fp16 prior": (lambda t: {"prior": (t["mu"].to(HALF), t["mu"])}, "no kernel for torch.float16"),
    "x requires grad": (lambda t: {"x": t["x"].clone().requires_grad_()}, "x requires grad"),
    "beta requires grad": (lambda t: {"beta": torch.tensor(0.5, requires_grad=True)}, "beta requires grad"),
    "likelihood": (lambda t: {"likelihood": Cauchy()}, "no kernel for the likelihood Cauchy"),
    "decoder": (
        lambda t: {"x_hat": lambda z: (z @ torch.ones(L, D)).to(HALF), "seed": 1},
        "no kernel for torch.float16",
    ),
    "decoder, log_scale": (
        lambda t: {"x_hat": lambda z: ((z @ torch.ones(L, D)).to(HALF), 0.1 * z[:, :1]), "seed": 1},
        "no kernel for torch.float16",
    ),
}


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", UNSERVED)
def test_unsupported_calls_use_the_reference_with_auto_and_are_refused_by_numba(name, reduction):
    change, reason = UNSERVED[name]
    x, _, mu, logvar, _ = data()
    given: dict[str, Any] = {"x": x, "x_hat": torch.randn(N, D, requires_grad=True), "mu": mu, "logvar": logvar}
    given |= {**change(given), "reduction": reduction}
    results = []
    for backend in ("auto", "reference"):
        terms = fastvae.elbo_terms(**given, backend=backend)
        gradients = torch.autograd.grad(terms.elbo.sum(), [mu, logvar])
        results.append([*terms, *gradients])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)  # z may differ by an ulp of fp16 after rounding
    with pytest.raises(BackendError, match=f"^backend='numba' does not support elbo: .*{reason}"):
        fastvae.elbo(**given, backend="numba")


def test_an_invalid_call_that_resembles_a_cached_one_is_refused():
    x, x_hat, mu = torch.randn(N, D), torch.randn(N, D), torch.randn(N, L)
    fastvae.elbo(x, x_hat, mu, mu, backend="numba")
    with pytest.raises(BackendError, match="x requires grad"):
        fastvae.elbo(x.clone().requires_grad_(), x_hat, mu, mu, backend="numba")
    beta = torch.tensor(0.5)
    fastvae.elbo(x, x_hat, mu, mu, beta=beta, backend="numba")
    with pytest.raises(BackendError, match="beta requires grad"):
        fastvae.elbo(x, x_hat, mu, mu, beta=beta.clone().requires_grad_(), backend="numba")
    fastvae.elbo(x, lambda z: x_hat, mu, mu, backend="numba")
    with pytest.raises(TypeError, match=r"^x_hat must be a floating-point .*got tuple"):
        fastvae.elbo(x, (x_hat, x_hat), mu, mu, backend="numba")  # type: ignore[arg-type]
    fastvae.elbo(x, x_hat, mu, mu, num_samples=None, x_scale=None, backend="numba")
    with pytest.raises(ValueError, match=r"^x_hat must have the shape"):
        fastvae.elbo(x, x_hat[:, :-1], mu, mu, backend="numba")


def test_a_subclass_of_tensor_uses_the_reference():
    class Tagged(torch.Tensor):
        pass

    x, W, mu, logvar, s = data()
    tagged = mu.detach().as_subclass(Tagged)
    torch.testing.assert_close(
        bound(x, W, tagged, logvar, s).as_subclass(torch.Tensor), bound(x, W, mu, logvar, s, backend="reference")
    )
    with pytest.raises(BackendError, match="Tagged is not a plain tensor"):
        bound(x, W, tagged, logvar, s, backend="numba")
    parameter = torch.nn.Parameter(mu.detach())
    torch.testing.assert_close(bound(x, W, parameter, logvar, s, backend="numba"), bound(x, W, mu, logvar, s))


def peak(f):
    """Peak memory that torch allocated during f, in bytes; reused buffers count."""
    buffers.forget()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        f()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # one per allocation
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(sizes, initial=0))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_forward_and_backward_need_the_memory_of_one_gradient(reduction):
    n, d = 64, 4096
    x, x_hat, mu = torch.randn(n, d), torch.randn(n, d, requires_grad=True), torch.randn(n, 2)

    def step():
        x_hat.grad = None
        fastvae.elbo(x, x_hat, mu, mu, reduction=reduction, backend="numba").sum().backward()

    step()
    x_hat.grad = None
    assert x_hat.nbytes <= peak(step) <= x_hat.nbytes + 64 * n + 4096
    with torch.no_grad():
        assert peak(lambda: fastvae.elbo(x, x_hat, mu, mu, backend="numba")) <= 64 * n + 4096


def test_eight_threads_at_once_get_their_own_gradients():
    before = torch.get_num_threads()
    problems = [(torch.randn(300, 2100), torch.randn(300, 2100), torch.randn(300, 200)) for _ in range(8)]
    results: list[Any] = [None] * 8

    def work(i, barrier=None):
        x, x_hat, mu = problems[i]
        leaves = [x_hat.clone().requires_grad_(), mu.clone().requires_grad_()]
        if barrier is not None:
            barrier.wait(30)
        for _ in range(3):
            value = fastvae.elbo(x, leaves[0], leaves[1], leaves[1], backend="numba")
            z = fastvae.reparameterize(leaves[1], leaves[1], seed=i, backend="numba")
            results[i] = [value, *torch.autograd.grad(value + z.square().mean(), leaves)]

    for i in range(8):
        work(i)
    expected = results[:]
    try:
        torch.set_num_threads(2)
        barrier = threading.Barrier(8)
        threads = [threading.Thread(target=work, args=(i, barrier)) for i in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(300)
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(results, expected, strict=True):
        assert ours is not theirs
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


STEP = """
torch.set_num_threads(2)
x, *data = (torch.randn(400, d) for d in (2100, 2100, 300, 300))

def step(backend="numba"):
    leaves = [t.clone().requires_grad_() for t in data]
    loss = -fastvae.elbo(x, *leaves, backend=backend)
    gradients = torch.autograd.grad(loss, leaves)
    return loss.detach(), *gradients

def agree(a, b):
    return all(torch.allclose(s, t, rtol=1e-4, atol=1e-6) for s, t in zip(a, b))
"""


def test_a_forked_child_and_a_data_loaders_workers_call_it_after_their_parent():
    code = f"""
import os, signal, torch, fastvae
{STEP}
class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return agree(step(), truth)

truth = step()
pid = os.fork()
if pid == 0:
    signal.alarm(30)  # a deadlock ends
    os._exit(0 if agree(step(), truth) else 1)
print(os.waitpid(pid, 0)[1])
loader = torch.utils.data.DataLoader(Rows(), num_workers=2, multiprocessing_context="fork")
print(*(int(ok) for ok in loader))
print(int(agree(step(), truth)))
"""
    assert in_python(code) == ["0", "1", "1", "1", "1", "1"]


def test_it_works_without_a_writable_cache():
    code = """
import torch, warnings
from numba.core import caching
caching.CompileResultCacheImpl._locator_classes = []  # no directory is writable (root may write anywhere)
from fastvae_kernels.numba.elbo.kl_columns import COLUMN_SUMS, make_columns
from fastvae_kernels.numba.elbo.pieces import INPUTS, SIZES, STANDARD
from fastvae_kernels.numba.language.memory import F32
from fastvae_kernels.numba.language.threads import run
with warnings.catch_warnings(record=True, action="always") as seen:
    kernel = make_columns(F32, F32, STANDARD)  # the smallest
print(len(seen), "NUMBA_CACHE_DIR" in str(seen[0].message))
mu, sums = torch.randn(6, 2), torch.full((8,), 7.0, dtype=torch.float64)
inputs = INPUTS.pack(mu=mu.data_ptr(), logvar=mu.data_ptr(), mu_p=0, logvar_p=0)
numbers = dict.fromkeys(SIZES.members, 0) | {"N": 6, "L": 2, "mu_row": 2, "logvar_row": 2}
run(kernel, COLUMN_SUMS.pack(sums=sums.data_ptr(), inputs=inputs, sizes=SIZES.pack(**numbers)), 1, 0)
from fastvae.reference.elbo.formulas import kl_elements
kl = kl_elements(mu, mu).sum(0)
print(int(torch.allclose(sums[:2], kl.double())), kernel.cached)
"""
    assert in_python(code) == ["1", "True", "1", "False"]


def test_another_default_device_changes_nothing():
    x, x_hat, mu = torch.randn(5, 3), torch.randn(5, 3, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    scale = torch.tensor(1.5, requires_grad=True)

    def run():
        likelihood = fastvae.Gaussian(scale=scale)
        bound = fastvae.elbo(x, x_hat, mu, mu, likelihood=likelihood, free_bits=0.1, seed=3, backend="numba")
        z = fastvae.reparameterize(mu, mu, num_samples=3, seed=3, backend="numba")
        return bound, z, *torch.autograd.grad(bound + z.sum(), [x_hat, mu, scale])

    here = run()
    elbo_call.CACHE.clear()
    with torch.device("meta"):
        there = run()
    elbo_call.CACHE.clear()
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a, b)


def test_a_gradient_can_be_differentiated_if_the_posterior_has_none():
    x, x_hat, mu = torch.randn(5, 7), torch.randn(5, 7, requires_grad=True), torch.randn(5, 2)
    value = fastvae.elbo(x, x_hat, mu, mu, reduction="sum", backend="numba")
    (gradient,) = torch.autograd.grad(value, [x_hat], create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), [x_hat])
    torch.testing.assert_close(second, 2 * (x_hat - x).detach())
