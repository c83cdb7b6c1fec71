"""The Triton kernels: in Triton's interpreter, like all tests, or on a GPU, by `make gpu`.

This file needs only torch and pytest, so it runs from a bare checkout: ``PYTHONPATH=.:kernels python -m pytest
--noconftest -c /dev/null tests/elbo/test_triton.py``. Options and dtypes are tested one by one in `test_budget.py`, and
CUDA graphs in `test_capture.py`, in its own process.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import fastvae
from fastvae import Bernoulli, Gaussian, Laplace
from fastvae._core import backend as _backend

from ..triton_device import DEVICE, on_gpu

pytest.importorskip("triton")
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    with torch.device(DEVICE):
        yield


@pytest.fixture
def poisoned():
    """Fill uninitialized memory with NaN."""
    settings: Any = torch.utils.deterministic
    before, settings.fill_uninitialized_memory = settings.fill_uninitialized_memory, True
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.use_deterministic_algorithms(False)
    settings.fill_uninitialized_memory = before


class Problem:
    """A call with a linear decoder and given sizes, and all its gradients."""

    def __init__(self, N=5, D=37, L=6, dtype=F32, likelihood=Gaussian, scale=None, prior=False, x=None, **options):
        self.x = (torch.rand(N, D) if likelihood is Bernoulli else torch.randn(N, D)).to(dtype) if x is None else x
        self.leaves = [torch.randn(L, D).to(dtype) / L, torch.randn(N, L).to(dtype), torch.randn(N, L).to(dtype)]
        self.leaves += [torch.randn(L).to(dtype), torch.randn(N, L).to(dtype)] if prior else []
        self.leaves += [] if scale is None else [(torch.randn(scale) / 3).to(dtype)]
        self.prior, self.scaled, self.likelihood, self.options = prior, scale is not None, likelihood, options
        rows = options.get("reduction") == "none"
        self.upstream = [torch.rand(N) + 0.5 if rows else torch.tensor(1.7), torch.rand(N) if rows else torch.tensor(3)]

    def __call__(self, backend, convert=torch.clone, seed=7):
        """The bound, its terms, and the gradient of a weighted sum of the bound and the KL."""
        W, mu, logvar, *rest = leaves = [convert(t).detach().requires_grad_() for t in self.leaves]
        likelihood = self.likelihood(log_scale=rest.pop()) if self.scaled else self.likelihood()
        x = convert(self.x) if self.x.is_floating_point() else self.x
        terms = fastvae.elbo_terms(
            x, lambda z: z @ W, mu, logvar, likelihood=likelihood, prior=tuple(rest) if self.prior else None,
            seed=seed, backend=backend, **self.options,
        )  # fmt: skip
        total: Any = sum((u.to(t.dtype) * t).sum() for u, t in zip(self.upstream, (terms.elbo, terms.kl), strict=True))
        return [*(t.detach() for t in terms), *torch.autograd.grad(total, leaves)]

    def check(self):
        """err(triton) <= 2 err(reference in the same dtype) + 2 eps max|truth|."""
        ours, theirs = self("triton"), self("reference")
        truth = self("reference", lambda t: t.double())
        for a, b, exact in zip(ours, theirs, truth, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            if exact.numel():
                error, reference_error = (float((t.double() - exact).abs().max()) for t in (a, b))
                eps = torch.finfo(a.dtype if self.leaves[0].dtype is not F64 else F64).eps
                slack = float(exact.abs().max()) * torch.finfo(F32 if a.dtype == F64 and eps > 1e-10 else a.dtype).eps
                assert error <= 2 * reference_error + 8 * slack, (error, reference_error, slack)


PROBLEMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one row": {"N": 1},
    "a row of two chunks and a bit": {"D": 4101},
    "rows one short of a block": {"D": 64, "N": 31},
    "two blocks of rows": {"D": 64, "N": 64},
    "wide latents": {"L": 2050, "D": 8},
    "wide latents, each row": {"L": 2050, "D": 8, "reduction": "none"},
    "each row": {"reduction": "none"},
    "each row, in chunks": {"reduction": "none", "D": 5000},
    "sum": {"reduction": "sum"},
    "draws": {"num_samples": 3},
    "draws, each row": {"num_samples": 3, "reduction": "none"},
    "prior": {"prior": True},
    "beta": {"beta": 0.3},
    "no beta": {"beta": 0.0},
    "free bits": {"free_bits": 0.5},
    "free bits and prior, each row": {"free_bits": 0.5, "prior": True, "reduction": "none"},
    "free bits, many columns": {"free_bits": 0.5, "L": 130, "N": 70},
    "Bernoulli": {"likelihood": Bernoulli},
    "Laplace": {"likelihood": Laplace},
    "Laplace, a scale of elements": {"likelihood": Laplace, "scale": (5, 37)},
    "sigmoid": {"likelihood": lambda **how: Gaussian(link="sigmoid", **how)},
    "tanh, a scale": {"likelihood": lambda **how: Gaussian(link="tanh", **how), "scale": ()},
    "a scale": {"scale": ()},
    "a scale, each row": {"scale": (), "reduction": "none"},
    "a scale of features": {"scale": (37,), "N": 40},
    "a scale of elements": {"scale": (5, 37)},
    "a scale of rows": {"scale": (5, 1)},
    "bfloat16": {"dtype": BF16, "D": 40},
    "float16": {"dtype": F16, "D": 40},
    "float64": {"dtype": F64},
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_values_and_gradients(name, poisoned):
    Problem(**PROBLEMS[name]).check()


def test_bool_and_uint8_data(poisoned):
    Problem(x=torch.rand(5, 37) < 0.5, likelihood=Bernoulli).check()
    Problem(x=torch.randint(0, 256, (5, 37), dtype=torch.uint8), x_scale=1 / 255).check()


def test_weights_that_are_tensors():
    as_numbers = Problem(beta=0.3, free_bits=0.4)
    as_tensors = Problem(beta=torch.tensor(0.3, dtype=F64), free_bits=torch.tensor(0.4, dtype=F64))
    as_tensors.x, as_tensors.leaves, as_tensors.upstream = as_numbers.x, as_numbers.leaves, as_numbers.upstream
    for a, b in zip(as_tensors("triton"), as_numbers("triton"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_an_empty_batch(reduction, poisoned):
    Problem(N=0, reduction=reduction).check()
    Problem(N=0, reduction=reduction, free_bits=0.1, scale=()).check()
    Problem(N=0, reduction=reduction, scale=(37,)).check()
    Problem(N=0, reduction=reduction, D=5000, L=2050).check()  # a size whose rows are processed in chunks


def test_an_empty_batch_writes_nowhere():
    room = torch.full((4,), 7.0)
    x, mu = torch.randn(0, 5000), torch.randn(0, 2050)
    how = {"likelihood": "gaussian", "link": "identity", "num_samples": None, "reduction": "none", "x_scale": None}
    density = _backend.kernel_module("elbo.log_likelihood", "triton").Density(x, x, None, elbo_dtype=F32, **how)
    density.evaluate(x, x, 0.0, room[1:1], None, room[2:2], want_log_lik=False)
    latent = _backend.kernel_module("elbo.reparameterize", "triton").Latent(mu, mu, None, None, "none")
    latent.forward(mu, mu, None, None, neg_kl=room[3:3])
    assert (room == 7).all()


def bound(x, x_hat, mu, **options):
    return fastvae.elbo(x, x_hat, mu, mu, backend="triton", **options)


def test_a_second_backward_and_any_upstream():
    x, x_hat, mu = torch.randn(5, 37), torch.randn(5, 37, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    want = torch.autograd.grad(fastvae.elbo(x, x_hat, mu, mu, backend="reference"), [x_hat, mu])
    value = bound(x, x_hat, mu)
    for factor in (1.0, -1.0, 65536.0):
        got = torch.autograd.grad(factor * value, [x_hat, mu], retain_graph=True)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, factor * b, rtol=2e-6, atol=1e-6 * abs(factor))
    rows = bound(x, x_hat, mu, reduction="none")
    for upstream in (torch.ones(()).expand(5), torch.rand(5, 2)[:, 0], torch.cat([torch.rand(2), torch.rand(3)])):
        (dx_hat,) = torch.autograd.grad(rows, [x_hat], upstream, retain_graph=True)
        torch.testing.assert_close(dx_hat, upstream[:, None] * (x - x_hat).detach(), rtol=2e-6, atol=1e-6)


def test_a_float16_gradient_is_scaled_before_rounding():
    x, x_hat, mu = torch.zeros(64, 7), torch.linspace(1e-6, 2e-5, 448).view(64, 7).to(F16), torch.zeros(64, 2)
    (gradient,) = torch.autograd.grad(65536 * bound(x, x_hat.requires_grad_(), mu), [x_hat])  # as a GradScaler does
    torch.testing.assert_close(gradient.float(), -1024 * x_hat.detach().float(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("D", [37, 64, 5000])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(D):
    x, x_hat, mu = torch.randn(70, D), torch.randn(70, D), torch.randn(70, 6)
    together = bound(x, x_hat, mu, reduction="none")
    for n in (0, 33, 69):
        alone = bound(x[n : n + 1].clone(), x_hat[n : n + 1].clone(), mu[n : n + 1].clone(), reduction="none")
        assert torch.equal(alone, together[n : n + 1])


def test_layouts_are_read_in_place():
    x, both, mu = torch.randn(6, 80)[:, :40], torch.randn(6, 80), torch.randn(6, 16)[:, ::2]
    for x_hat in (both[:, 40:], both[:, ::2], both.T.contiguous().T[:, :40]):
        torch.testing.assert_close(bound(x, x_hat, mu), fastvae.elbo(x, x_hat, mu, mu, backend="reference"))
    images = torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.autograd.grad(bound(torch.randn(3, 4, 5, 6), images, mu[:3]), [images])[0]
    assert gradient.stride() == images.stride()


def test_a_row_too_long_to_count_is_refused():
    row = torch.zeros(1, 1).expand(1, 2**31)
    with pytest.raises(ValueError, match="a row has 2147483648 elements"):
        bound(row, row, torch.zeros(1, 1))


def test_the_noise_is_the_same_in_every_backend():
    mu, logvar = torch.zeros(40, 18, dtype=F64), torch.zeros(40, 18, dtype=F64)
    seed = 2**62 + 12345
    for dtype, digits in ((F32, 2e-6), (F64, 1e-12)):
        eps = fastvae.reparameterize(mu.to(dtype), logvar.to(dtype), num_samples=3, seed=seed, backend="triton")
        truth = fastvae.reparameterize(mu, logvar, num_samples=3, seed=seed, backend="reference")
        assert float((eps - truth).abs().max()) <= digits


def test_extreme_variances_have_finite_and_small_ones_accurate_gradients():
    logvar = torch.tensor([[-80.0, 80.0, 1e-8, -1e-8]], requires_grad=True)
    kl = fastvae.kl_divergence(torch.zeros(1, 4), logvar, reduction="sum", backend="triton")
    kl.backward()
    assert logvar.grad is not None
    assert logvar.grad.isfinite().all()
    small = fastvae.kl_divergence(torch.zeros(1, 1), torch.full((1, 1), 1e-8), backend="triton")
    torch.testing.assert_close(small, torch.tensor([0.25e-16]), rtol=1e-6, atol=0)


def test_gradients_can_be_differentiated():
    x, x_hat, mu = torch.randn(5, 7), torch.randn(5, 7, requires_grad=True), torch.randn(5, 2)
    (gradient,) = torch.autograd.grad(bound(x, x_hat, mu, reduction="sum"), [x_hat], create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), [x_hat])
    torch.testing.assert_close(second, 2 * (x_hat - x).detach())


@on_gpu
def test_numbers_may_be_on_the_cpu():
    def number(value):
        return torch.tensor(value, device="cpu", requires_grad=True)

    x, x_hat, mu, results = torch.randn(5, 7), torch.randn(5, 7), torch.randn(5, 2), []
    for backend in ("triton", "reference"):
        scale, prior = number(0.3), (number(0.1), number(-0.2))
        how: dict[str, Any] = {
            "likelihood": Gaussian(log_scale=scale),
            "prior": prior,
            "beta": torch.tensor(0.5, device="cpu"),
        }
        value = fastvae.elbo(x, x_hat, mu, mu, **how, backend=backend)
        results.append((value, *torch.autograd.grad(value, [scale, *prior])))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@on_gpu
@pytest.mark.parametrize("free_bits", [0.0, 0.1])
def test_no_call_synchronizes_the_gpu(free_bits):
    problem = Problem(N=64, D=784, L=20, scale=(), free_bits=free_bits, beta=torch.tensor(0.5))
    problem("triton")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        problem("triton", seed=None)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
def test_streams_and_threads_are_independent():
    problem = Problem(N=512, D=784, L=20)
    want = problem("triton")
    torch.cuda.synchronize()

    def work(_):
        with torch.device(DEVICE), torch.cuda.stream(torch.cuda.Stream()):
            found = [problem("triton") for _ in range(50)]
        torch.cuda.synchronize()
        return found

    with ThreadPoolExecutor(2) as pool:
        for got in (step for found in pool.map(work, range(2)) for step in found):  # raises the errors of `work`
            for a, b in zip(got[:3], want[:3], strict=True):
                assert torch.equal(a, b)


@on_gpu
def test_forward_and_backward_need_the_memory_of_one_gradient():
    x, x_hat, mu = torch.randn(512, 8192), torch.randn(512, 8192, requires_grad=True), torch.randn(512, 2)
    for _ in range(2):
        x_hat.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        (-bound(x, x_hat, mu)).backward()
    assert torch.cuda.max_memory_allocated() - before <= x_hat.nbytes + (1 << 20)


@on_gpu
@pytest.mark.parametrize("name", ["plain", "draws", "each row", "prior", "free bits", "a scale of features"])
def test_compiled_in_one_piece_it_equals_eager(name):
    torch._dynamo.reset()  # or sizes of other tests would become symbolic
    problem = Problem(**PROBLEMS[name])
    W, mu, logvar, *rest = problem.leaves

    def step(x, W, mu, logvar):
        how = {"log_scale": rest[-1]} if problem.scaled else {}
        prior = tuple(rest) if problem.prior else None
        return fastvae.elbo(
            x, lambda z: z @ W, mu, logvar, likelihood=problem.likelihood(**how), prior=prior, seed=7,
            backend="triton", **problem.options,
        ).sum()  # fmt: skip

    given = [problem.x, *[t.clone().requires_grad_() for t in (W, mu, logvar)]]
    want = torch.autograd.grad(step(*given), given[1:])
    got = torch.autograd.grad(torch.compile(step, fullgraph=True, dynamic=False)(*given), given[1:])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@on_gpu
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_the_operations_of_a_graph_pass_opcheck(dtype):
    from fastvae._elbo import library as elbo_library  # registers the operations

    assert elbo_library.BACKEND_OF["cuda"] == "triton"
    mu, logvar, x_hat = (torch.randn(5, 6).to(dtype).requires_grad_() for _ in range(3))
    weights, seed = (torch.tensor(0.7, dtype=F64), torch.tensor(0.0, dtype=F64)), torch.tensor(3)
    sample = mu, logvar, None, None, seed, *weights, None, "mean", False
    torch.library.opcheck(torch.ops.fastvae.sample.default, sample)
    options = "gaussian", "identity", None, "mean", True
    density = torch.randn(5, 6).to(dtype), x_hat, torch.tensor(0.1, requires_grad=True), None, torch.randn(()), *options
    torch.library.opcheck(torch.ops.fastvae.log_likelihood.default, density)


@on_gpu
def test_offsets_beyond_two_billion_elements():
    N, D = 2**16 + 8, 2**15
    x, x_hat = torch.zeros(1, D, dtype=BF16).expand(N, D), torch.ones(N, D, dtype=BF16)
    rows = bound(x, x_hat, torch.zeros(N, 1), reduction="none")
    assert torch.equal(rows, rows[:1].expand(N))
