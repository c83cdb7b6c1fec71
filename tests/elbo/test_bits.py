"""Bitwise properties of the ELBO's Numba kernels: collapse, overflow, NaN, batches and threads, the noise."""

import itertools
import math
from typing import Any

import pytest
import torch

import fastvae
from fastvae import Bernoulli, Gaussian, Laplace, reference
from fastvae._core import backend as _backend
from fastvae_kernels.numba.language import threads as _threads

SEED = 0x1234_5678_9ABC_DEF0  # both words are nonzero
N, D, L = 7, 2100, 1030  # two chunks and two pieces per row, the second ones short


def kl(mu, logvar, prior=None):
    return fastvae.kl_divergence(mu, logvar, prior, backend="numba")


def elbo_terms(*args, **options):
    return fastvae.elbo_terms(*args, **options, backend="numba")


def elbo(*args, **options):
    return fastvae.elbo(*args, **options, backend="numba")


def same_bits(a, b):
    """Equal bit for bit, NaN included."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


@pytest.fixture
def many_chunks(monkeypatch):
    """Split even the smallest problem over the threads as finely as possible."""
    monkeypatch.setattr(_threads, "SERIAL_BELOW", 0)
    monkeypatch.setattr(_threads, "LEAST_CHUNK", 1)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Posterior collapse: phi(t) = t^2 / 2 + t^3 / 6 + O(t^4); the textbook formula has no correct digit in float32.
@pytest.mark.parametrize("t", [1e-8, -1e-8, 1e-5, -1e-3])
def test_kl_has_six_digits_near_collapse(t):
    logvar = torch.full((1, 3), t)
    t = float(logvar[0, 0])
    truth = t**2 / 4 + t**3 / 12 + t**4 / 48
    assert float(kl(torch.zeros(1, 3), logvar)) == pytest.approx(3 * truth, rel=1e-6, abs=0)
    moved = (torch.full((1, 3), 2.0), torch.zeros(3))
    assert float(kl(moved[0].clone(), logvar, moved)) == pytest.approx(3 * truth, rel=1e-6, abs=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_is_never_negative(dtype):
    sizes = torch.logspace(-44, 8, 2000, dtype=torch.float64).to(dtype)  # including subnormal numbers of float32
    logvar = torch.cat([sizes, -sizes])[:, None]
    values = kl(torch.zeros_like(logvar), logvar)
    assert (values >= 0).all()
    assert (values[logvar[:, 0].abs() > 1e-15] > 0).all()
    moved = kl(logvar, logvar, (logvar, logvar.clamp(-40, 40)))
    assert (moved >= 0).all()


# Close to float32's limit e^88.
@pytest.mark.parametrize("level", [80.0, -80.0])
def test_gradients_stay_finite_at_extreme_logvar(level):
    leaves = [torch.full((2, 5), v, requires_grad=True) for v in (1.0, level, 0.0, 0.0)]
    mu, logvar, *prior = leaves
    for pair, sign in [(None, 1), (prior, 1), (prior, -1)]:  # -1: the prior is the extreme one
        args = (mu, logvar, pair) if sign > 0 else (prior[0], prior[1], (mu, logvar))
        gradients = torch.autograd.grad(kl(*args).sum(), leaves[: 4 if pair else 2])
        assert all(g.isfinite().all() for g in gradients)
        if sign > 0:
            torch.testing.assert_close(gradients[1], torch.full((2, 5), 0.5 * math.expm1(level)))
    bound = elbo(torch.zeros(2, 5), lambda z: 1e-30 * z, mu, logvar, seed=0)
    assert all(g.isfinite().all() for g in torch.autograd.grad(bound, (mu, logvar)))


# The start of a warm-up: an infinite KL, times 0, must not affect the value and the gradients.
@pytest.mark.parametrize("beta", [0.0, torch.tensor(0.0)])
@pytest.mark.parametrize(("level", "where"), [(1e4, "logvar"), (math.inf, "logvar"), (1e30, "mu"), (-1e4, "prior")])
def test_beta_0_switches_an_infinite_kl_off(level, where, beta):
    level = torch.full((3, 2), level)
    mu, logvar, mu_p, logvar_p = (
        (level if where == name else torch.ones(3, 2)).clone().requires_grad_()
        for name in ("mu", "logvar", "mu_p", "prior")
    )
    x, x_hat = torch.randn(3, 4), torch.randn(3, 4, requires_grad=True)
    for prior in ((mu_p * 0, logvar_p), None)[: 1 if where == "prior" else 2]:
        terms = elbo_terms(x, x_hat, mu, logvar, beta=beta, prior=prior)
        alone = elbo(x, x_hat, mu, logvar, beta=beta, prior=prior)
        assert terms.kl == math.inf
        assert torch.equal(terms.elbo, terms.log_likelihood)
        assert torch.equal(terms.elbo, alone)
        for value in (terms.elbo, alone):
            for g in torch.autograd.grad(value, (mu, logvar, *([logvar_p] if prior else []))):
                assert (g == 0).all()


def bound_and_gradients(upstream, **inputs):
    """The terms of each row, z, and the gradient of each input, under a per-sample upstream gradient."""
    given: dict[str, Any] = {name: t.clone().requires_grad_(name != "x") for name, t in inputs.items()}
    x, x_hat, mu, logvar, s, mu_p, logvar_p = given.values()
    options = {"likelihood": Gaussian(log_scale=s), "prior": (mu_p, logvar_p), "reduction": "none"}
    terms = elbo_terms(x, x_hat, mu, logvar, **options)
    z = fastvae.reparameterize(mu, logvar, seed=1, backend="numba")
    outputs = [v.reshape(len(v), -1) for v in (*terms, z)]
    total = sum((upstream[:, i : i + v.shape[1]] * v).sum() for i, v in enumerate(outputs))
    return terms, z, torch.autograd.grad(total, list(given.values())[1:])


NAMES = {"x": D, "x_hat": D, "mu": L, "logvar": L, "log_scale": D, "mu_p": L, "logvar_p": L}


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_in_its_own_row(name):
    inputs = {n: 0.3 * torch.randn(N, size) for n, size in NAMES.items()}
    upstream = torch.randn(N, L + 3)
    clean = bound_and_gradients(upstream, **inputs)
    inputs[name][2, -1] = math.nan  # in the last, short chunk
    terms, z, gradients = bound_and_gradients(upstream, **inputs)
    others = [n for n in range(N) if n != 2]
    for a, b in zip((*clean[0], clean[1], *clean[2]), (*terms, z, *gradients), strict=True):
        assert same_bits(a[others], b[others])
    of_likelihood = name in ("x", "x_hat", "log_scale")
    assert terms.elbo[2].isnan()
    assert terms.log_likelihood[2].isnan() == of_likelihood
    assert terms.kl[2].isnan() != of_likelihood
    assert z[2].isnan().any() == (name in ("mu", "logvar"))
    touched = gradients[0 if of_likelihood else 1]  # of x_hat, of mu: at the same element
    assert touched[2].isnan().nonzero().tolist() == ([[touched.shape[1] - 1]] if name != "logvar" else [])


@pytest.mark.parametrize("likelihood", [Gaussian(link="sigmoid"), Gaussian(link="tanh"), Bernoulli()])
def test_nan_passes_every_link(likelihood):
    x, x_hat, mu = torch.zeros(3, 20), torch.zeros(3, 20), torch.zeros(3, 1)
    x_hat[1, 4] = math.nan
    x_hat.requires_grad_()
    values = elbo(x, x_hat, mu, mu, likelihood=likelihood, reduction="none")
    assert values.isnan().tolist() == [False, True, False]
    assert torch.autograd.grad(values.sum(), x_hat)[0].isnan().nonzero().tolist() == [[1, 4]]


def test_nan_is_kept_under_free_bits_and_every_reduction():
    x, mu, logvar = torch.zeros(3, 4), torch.zeros(3, 5), torch.zeros(3, 5)
    mu[1, 3] = math.nan
    for reduction in ("mean", "sum"):
        assert elbo(x, x, mu, logvar, free_bits=1e3, reduction=reduction).isnan()
    values = elbo(x, x, mu, logvar, free_bits=1e3, reduction="none")  # NaN is kept, in its own row
    assert values.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_infinities_saturate(dtype):
    x, mu = torch.zeros(4, 20, dtype=dtype), torch.zeros(4, 3, dtype=dtype)
    x_hat, logvar = x.clone(), mu.clone()
    x_hat[0, 17], x_hat[1, 0] = math.inf, -math.inf
    logvar[2, 0], logvar[3, 2] = math.inf, -math.inf
    terms = elbo_terms(x, x_hat, mu, logvar, reduction="none")
    assert terms.elbo.tolist() == [-math.inf] * 4
    assert terms.log_likelihood.isinf().tolist() == [True, True, False, False]
    assert terms.kl.tolist() == [0, 0, math.inf, math.inf]
    assert elbo(x, x_hat, mu, logvar, reduction="mean") == -math.inf


@pytest.mark.parametrize("logvar", [1e4, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_an_infinite_kl_is_infinite(dtype, logvar):
    x, mu = torch.zeros(3, 4, dtype=dtype), torch.ones(3, 5, dtype=dtype)
    x_hat, logvar = x.clone().requires_grad_(), torch.full_like(mu, logvar).requires_grad_()
    in_passing, recomputed = elbo(x, x_hat, mu, logvar), elbo_terms(x, x_hat, mu, logvar).elbo
    for value in (in_passing, in_passing, recomputed):  # the second time its buffer is gone
        assert (torch.autograd.grad(-value, logvar, retain_graph=True)[0] == math.inf).all()


# Batch invariance: the bits of a row do not depend on its position or on other rows.
LIKELIHOODS: dict[str, Any] = {
    "unit": lambda s: Gaussian(),
    "per element": lambda s: Gaussian(log_scale=s),
    "sigmoid": lambda s: Gaussian(link="sigmoid"),
    "Laplace": lambda s: Laplace(),
    "Bernoulli": lambda s: Bernoulli(),
}


@pytest.mark.parametrize(("d", "latent"), [(D, L), (17, 5)])  # short rows share a work unit
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_row_has_the_same_bits_in_any_batch(likelihood, d, latent):
    n = 400 if latent == 5 else N  # 204 rows of 5 elements are one unit
    inputs = [torch.rand(n, d), torch.randn(n, d), torch.randn(n, latent), torch.randn(n, latent)]
    inputs += [0.5 * torch.randn(n, d), torch.randn(n)]  # log_scale, the upstream gradient

    def run(rows):
        x, *leaves, w = (t[rows] for t in inputs)
        leaves = [t.clone().requires_grad_() for t in leaves]
        options = {"likelihood": LIKELIHOODS[likelihood](leaves[3]), "reduction": "none"}
        terms = elbo_terms(x, *leaves[:3], **options, prior=(leaves[1][:1] * 0, leaves[2] * 0 + 0.5))
        used = leaves if likelihood == "per element" else leaves[:3]
        return [*terms, *torch.autograd.grad((w * terms.elbo).sum(), used)]

    whole = run(torch.arange(n))
    for rows in (torch.tensor([n - 2]), torch.arange(3), torch.arange(n).flip(0), torch.tensor([4, 1, 1, 5])):
        for a, b in zip(whole, run(rows), strict=True):
            assert same_bits(a[rows], b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("latent", [1, 5, 20, L])
def test_a_draw_is_a_function_of_its_row(latent, dtype):
    mu, logvar = (torch.randn(60, latent, dtype=dtype) for _ in range(2))

    def draw(rows):
        return fastvae.reparameterize(mu[:rows], logvar[:rows], num_samples=2, seed=SEED, backend="numba")

    whole = draw(60)
    for rows in (1, 2, 3, 59):
        assert same_bits(draw(rows), whole[:, :rows])
    alone = fastvae.reparameterize(mu, logvar, seed=SEED, backend="numba")
    assert same_bits(alone, whole[0])


# 16: each row fills vectors; 4, 20: four rows do; 6: none do; 1024: one unit; 1028: one unit and a piece of four
WIDTHS = [1, 4, 6, 16, 20, 512, 1024, 1028, 2048]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("latent", WIDTHS)
def test_contiguous_and_strided_rows_have_the_same_bits(latent, dtype):
    """The first are read and written in place, the others through a scratch buffer."""
    encoded = torch.randn(53, 2 * latent, dtype=dtype)

    def run(mu, logvar, draws):
        mu, logvar = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
        z = fastvae.reparameterize(mu, logvar, num_samples=draws, seed=SEED, backend="numba")
        divergence = kl(mu, logvar)
        return z, divergence, *torch.autograd.grad((z * torch.arange(latent)).sum() + divergence.sum(), (mu, logvar))

    mu, logvar = encoded.chunk(2, dim=1)
    for draws in (None, 3):
        for a, b in zip(run(mu, logvar, draws), run(mu.contiguous(), logvar.contiguous(), draws), strict=True):
            assert same_bits(a, b)


PLAIN: dict[str, Any] = {  # options; shapes of x and of the latent; dtype
    "rows of several chunks and pieces": ({}, (N, D), (N, L), torch.float32),
    "short rows": ({"reduction": "sum", "beta": 0.7}, (50, 3), (50, 5), torch.float32),
    "images": ({"likelihood": Gaussian(0.3, link="sigmoid")}, (4, 3, 5, 7), (4, 2, 3), torch.float64),
    "Laplace": ({"likelihood": Laplace(log_scale=0.2)}, (N, 33), (N, 17), torch.float32),
    "Bernoulli, with draws": ({"likelihood": Bernoulli(), "num_samples": 3}, (N, 20), (N, 4), torch.float32),
    "bfloat16": ({}, (N, 64), (N, 16), torch.bfloat16),
    "uint8": ({"x_scale": 1 / 255}, (N, 100), (N, 9), torch.uint8),
}


@pytest.mark.parametrize("case", PLAIN)
def test_the_plain_path_has_the_same_bits_as_all_terms(case, monkeypatch):
    options, shape, latent, dtype = PLAIN[case]
    plan, taken = _backend.kernel_module("elbo.log_likelihood", "numba").Density, list[Any]()
    launch = plan.evaluate_plain

    def record(*args):
        taken.append(args)
        return launch(*args)

    monkeypatch.setattr(plan, "evaluate_plain", record)
    floating = torch.float32 if dtype is torch.uint8 else dtype
    x = torch.randint(0, 256, shape, dtype=dtype) if dtype is torch.uint8 else torch.rand(shape, dtype=dtype)
    draws = (options["num_samples"],) if "num_samples" in options else ()
    leaves = [
        t.to(floating).requires_grad_() for t in (torch.randn(*draws, *shape), torch.randn(latent), torch.randn(latent))
    ]

    def evaluate(function, times):
        value = function(x, *leaves, **options)
        value = value if isinstance(value, torch.Tensor) else value.elbo
        found = [torch.autograd.grad(-2 * value, leaves, retain_graph=True) for _ in range(times)]
        return value.detach(), found

    value, (handed_over, recomputed) = evaluate(elbo, 2)
    expected, (gradients,) = evaluate(elbo_terms, 1)
    assert len(taken) == 1
    assert same_bits(value, expected)
    assert all(map(same_bits, handed_over, gradients))
    for a, b in zip(recomputed, gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("latent", WIDTHS)
def test_nothing_is_written_but_the_results(latent):
    n, draws, guard = 53, 2, 64
    mu, logvar, dz = torch.randn(n, latent), torch.randn(n, latent), torch.randn(draws, n, latent)
    plan = _backend.kernel_module("elbo.reparameterize", "numba").Latent(mu, logvar, None, draws, "mean")
    rooms = []

    def guarded(*shape):
        rooms.append(torch.full((guard + math.prod(shape) + guard,), math.nan))
        return rooms[-1][guard:-guard].view(shape)

    plan.empty_z, plan.empty_gradient = (lambda t: guarded(draws, n, latent)), (lambda t: guarded(n, latent))
    seed, one = torch.tensor(SEED), torch.ones(())
    plan.forward(mu, logvar, None, seed)
    plan.forward(mu, logvar, None, None, want_gradients=True)
    plan.backward(mu, logvar, None, seed, 1.0, None, dz, one, None)
    assert len(rooms) == 5
    for room in rooms:
        assert torch.cat([room[:guard], room[-guard:]]).isnan().all()
        assert not room[guard:-guard].isnan().any()


def everything(reduction, n=N, d=D, latent=L):
    """All values and gradients of a call that uses each kernel: two draws, free bits, a prior, a shared scale."""
    generator = torch.Generator().manual_seed(1)
    x, mu, logvar, s, a, mu_p, logvar_p, w = (
        torch.randn(shape, generator=generator)
        for shape in ((n, d), (n, latent), (n, latent), (d,), (d,), (latent,), (n, latent), (n,))
    )
    leaves = [t.requires_grad_() for t in (mu, logvar, s, a, mu_p, logvar_p)]
    wider = -(-d // latent)
    terms = elbo_terms(
        x,
        lambda z: z.repeat(1, wider)[:, :d] * a,
        mu,
        logvar,
        likelihood=Gaussian(log_scale=s),
        prior=(mu_p, logvar_p),
        free_bits=0.8,
        num_samples=2,
        reduction=reduction,
        seed=SEED,
    )
    total = (w * terms.elbo).sum() if reduction == "none" else 0.7 * terms.elbo
    return [*terms, *torch.autograd.grad(total + terms.kl.sum(), leaves)]


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize(("n", "latent"), [(N, L), (300, 5)])
def test_bits_do_not_depend_on_threads_or_runs(many_chunks, reduction, n, latent):
    torch.set_num_threads(1)
    single = everything(reduction, n=n, latent=latent)
    for threads in (2, 3, 1, 3):
        torch.set_num_threads(threads)
        for a, b in zip(single, everything(reduction, n=n, latent=latent), strict=True):
            assert same_bits(a, b)


def test_bits_do_not_depend_on_threads_at_a_size_that_uses_them():
    before = torch.get_num_threads()
    x, x_hat, mu = (
        torch.randn(400, 5000),
        torch.randn(400, 5000),
        torch.randn(400, 500),
    )  # 0.5 and 0.8 ms' worth of work
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [x_hat.clone().requires_grad_(), mu.clone().requires_grad_()]
            values = elbo(x, leaves[0], leaves[1], leaves[1], reduction="none")
            results.append([values, *torch.autograd.grad(values.sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    for a, b in itertools.product(results[:1], results[1:]):
        assert all(map(same_bits, a, b))


# Portable noise: that of the reference, whose words tests/kernels/test_noise.py checks one by one.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("latent", [1, 3, 4, 6, 1023, 1030])
@pytest.mark.parametrize("seed", [0, SEED, 2**63 - 1])
def test_noise_matches_the_reference(seed, latent, dtype, tolerance):
    zero = torch.zeros(9, latent, dtype=dtype)
    ours, theirs = (
        fastvae.reparameterize(zero, zero, num_samples=3, seed=seed, backend=b) for b in ("numba", "reference")
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("first_row", [1, 2**32 - 1, 2**40 + 3])  # 2^32 - 1: the high word changes within the call
def test_rows_are_counted_from_first_row_in_forward_and_backward(first_row):
    mu, logvar, w = (torch.randn(3, 5, dtype=torch.float64) for _ in range(3))
    plan = _backend.kernel_module("elbo.reparameterize", "numba").Latent(mu, logvar, None, None, "none")
    seed = torch.tensor(SEED)
    z = plan.forward(mu, logvar, None, seed, want_kl=False, first_row=first_row)[0]
    gradients = plan.backward(mu, logvar, None, seed, 1.0, None, w, None, None, first_row=first_row)
    leaves = mu.requires_grad_(), logvar.requires_grad_()
    expected = reference.reparameterize(mu, logvar, seed=SEED, first_row=first_row)
    for a, b in zip((z, *gradients), (expected.detach(), *torch.autograd.grad(expected, leaves, w)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
