"""The autograd functions of the ELBO's kernels: gradients in the forward pass, and the lifetime of their buffers.

`launches` records each launch of the log-likelihood: None, or a weak reference to the memory of the dx_hat it computed;
`kl_buffers` has references to the gradients of the KL that were computed in the forward pass.
"""

import gc
from functools import partial
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

import fastvae
from fastvae import Gaussian
from fastvae._core import backend as _backend

N, D, L, K = 3, 8, 4, 2


def spy(monkeypatch, plan, name, formed, seen):
    """Make a launcher record the memory of the gradients that ``formed`` selects from its result."""
    launch = getattr(plan, name)

    def record(*args, **options):
        result = launch(*args, **options)
        seen.extend(t if t is None else StorageWeakRef(t.untyped_storage()) for t in formed(result))
        return result

    monkeypatch.setattr(plan, name, record)


@pytest.fixture
def launches(monkeypatch):
    plan, seen = _backend.kernel_module("elbo.log_likelihood", "numba").Density, list[Any]()
    spy(monkeypatch, plan, "evaluate", lambda result: result[2:3], seen)
    spy(monkeypatch, plan, "evaluate_plain", lambda dx_hat: [dx_hat], seen)
    return seen


@pytest.fixture
def kl_buffers(monkeypatch):
    plan, seen = _backend.kernel_module("elbo.reparameterize", "numba").Latent, list[Any]()
    spy(monkeypatch, plan, "forward", lambda result: result[4] or (), seen)
    spy(monkeypatch, plan, "forward_plain", lambda gradients: gradients, seen)
    return seen


class Model:
    """The output of an encoder, two layers of a decoder, a scale and a prior, all leaves; always the same numbers."""

    def __init__(self, dtype=torch.float32):
        generator = torch.Generator().manual_seed(1)

        def leaf(*shape):
            return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

        self.x = leaf(N, D).detach()
        self.mu, self.logvar, self.first, self.last = leaf(N, L), leaf(N, L), leaf(L, L), leaf(L, D)
        self.log_scale, self.mu_p, self.logvar_p = leaf(D), leaf(L), leaf()

    def decoder(self, z):
        return (z @ self.first).tanh() @ self.last

    def terms(self, backend="numba", x_hat=None, function=fastvae.elbo_terms, **options):
        """The terms with a decoder, a scale and a prior; or with an x_hat ("tensor" creates one) and without the prior.

        The KL is then launched with the bound, and its gradient has a buffer too.
        """
        if isinstance(x_hat, str):
            x_hat, options = self.decoder(self.mu), {"prior": None, **options}
        options = {
            "likelihood": Gaussian(log_scale=self.log_scale),
            "prior": (self.mu_p, self.logvar_p),
            "seed": 3,
            "backend": backend,
            **options,
        }
        return function(self.x, self.decoder if x_hat is None else x_hat, self.mu, self.logvar, **options)

    def leaves(self):
        return [t for t in vars(self).values() if t.requires_grad]

    def gradients(self):
        return [t.grad for t in self.leaves()]

    def clear(self):
        for t in self.leaves():
            t.grad = None


def bound(model, backend="numba", **options):
    """The bound by `fastvae.elbo`, which does not compute the other terms."""
    return model.terms(backend, function=fastvae.elbo, **options)


def agree(ours, theirs, **tolerance):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def formed(refs):
    return [ref is not None for ref in refs]


def alive(refs):
    return sum(ref is not None and not ref.expired() for ref in refs)


# As in training steps.
FORMS: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "draws": {"num_samples": K, "reduction": "sum"},
    "no scale": {"likelihood": Gaussian()},
    "tensor": {"x_hat": "tensor"},
    "tensor, plain": {"x_hat": "tensor", "likelihood": Gaussian()},
    "tensor, sum, no scale": {"x_hat": "tensor", "reduction": "sum", "likelihood": Gaussian(0.5), "beta": 0.7},
    "one scale": {"likelihood": Gaussian(log_scale=torch.tensor(0.3, requires_grad=True))},
}


@pytest.mark.parametrize("form", FORMS)
def test_forward_and_first_backward_are_one_launch_and_later_ones_recompute(launches, form):
    ours, theirs = Model(), Model()
    loss, truth = -bound(ours, **FORMS[form]), -bound(theirs, "reference", **FORMS[form])
    for launched in (1, 2, 3):
        gradients = torch.autograd.grad(loss, ours.leaves(), retain_graph=True, allow_unused=True)
        expected = torch.autograd.grad(truth, theirs.leaves(), retain_graph=True, allow_unused=True)
        assert formed(launches) == [True] * launched
        agree(gradients, expected)


@pytest.mark.parametrize("term", ["elbo", "log_likelihood"])
def test_the_adaptive_weight_of_a_kl_vae(launches, term):
    # Esser et al. (2021): the norms of two gradients at the last layer weight two losses, which then have one backward.
    models = Model(), Model()
    for model, backend in zip(models, ("numba", "reference"), strict=True):
        terms = model.terms(backend)
        other = model.decoder(model.mu).square().sum()
        norms = [
            torch.autograd.grad(t, model.last, retain_graph=True)[0].norm() for t in (-getattr(terms, term), other)
        ]
        (-terms.elbo + (norms[0] / norms[1]).detach() * other).backward()
    agree(models[0].gradients(), models[1].gradients())
    assert formed(launches) == [True, True]


def plain(f, x):
    return f(x)


def saved_on_cpu(f, x):
    with torch.autograd.graph.save_on_cpu():
        return f(x)


# How the loss is computed, and whether each launch computes dx_hat: that of forward, then that of backward if there is
# one. Under a checkpoint, backward starts with another forward, which is an ordinary one if it is reentrant.
SITUATIONS: dict[str, tuple[Any, str, list[bool]]] = {
    "plain": (plain, "mean", [True]),
    "none": (plain, "none", [False, True]),
    "save_on_cpu": (saved_on_cpu, "mean", [False, True]),
    "reentrant": (partial(checkpoint, use_reentrant=True), "mean", [False, True]),
    "not reentrant": (partial(checkpoint, use_reentrant=False), "mean", [False, False, True]),
}


@pytest.mark.parametrize("form", ["mean", "tensor", "tensor, plain"])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_when_the_gradient_is_formed_and_that_it_is_freed_with_the_graph(launches, kl_buffers, situation, form):
    around, reduction, expected = SITUATIONS[situation]
    options = {**FORMS[form], "reduction": reduction}
    ours, theirs = Model(), Model()
    scale = torch.ones((), requires_grad=True)  # a reentrant checkpoint needs an argument that requires grad

    def call():
        return around(lambda scale: -scale * bound(ours, **options).sum(), scale)

    value = call()
    assert formed(launches) == expected[:1]
    assert alive(kl_buffers) == (2 if expected[0] and form != "mean" else 0)
    assert alive(launches) == expected[0]  # kept for backward, or not computed
    value.backward()
    assert formed(launches) == expected
    assert alive(launches) == 0  # although value, and so its graph, still exists
    (-bound(theirs, "reference", **options).sum()).backward()
    agree(ours.gradients(), theirs.gradients())
    ours.clear()  # leaves may hold the buffer of the KL's gradient
    assert alive(kl_buffers) == 0
    del value
    launches.clear()
    value = call()
    del value  # backward is never called
    assert alive(launches) == alive(kl_buffers) == 0


def test_no_buffer_outlives_a_backward_that_did_not_use_it(launches, kl_buffers):
    for loss in (lambda t: t.elbo + t.kl, lambda t: t.log_likelihood, lambda t: t.elbo * t.log_likelihood):
        model = Model()
        value = loss(model.terms(x_hat="tensor"))
        assert alive(launches) == 1
        value.backward()
        assert alive(launches) == alive(kl_buffers) == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_formed_if_none_can_be_requested(launches, mode):
    model = Model()
    x_hat = model.decoder(model.mu)  # requires grad nevertheless
    with mode():
        value = model.terms(x_hat=x_hat).elbo
    agree([value], [model.terms("reference", x_hat=x_hat).elbo.detach()])
    model.terms(x_hat=torch.zeros(N, D), likelihood=Gaussian()).elbo.backward()  # of mu and logvar only
    assert formed(launches) == [False, False]


def test_a_reconstruction_that_is_a_leaf_keeps_the_buffer_as_its_gradient(launches):
    model, x_hat = Model(), torch.randn(N, D, requires_grad=True)
    loss = -model.terms(x_hat=x_hat).elbo
    loss.backward()
    assert x_hat.grad is not None
    assert StorageWeakRef(x_hat.grad.untyped_storage()) == launches[0]  # no copy: autograd took over the buffer
    before = x_hat.grad.clone()
    del loss
    gc.collect()
    assert torch.equal(x_hat.grad, before)


def test_a_decoded_scale_and_the_draws_are_freed_with_the_graph():
    # The graph of the decoder's log_scale includes the sampling: neither must be kept alive by a reference cycle.
    model, seen = Model(), list[Any]()

    def decoder(z):
        out = model.decoder(z), 0.1 * (z @ model.last)
        seen.extend(StorageWeakRef(t.untyped_storage()) for t in (z, *out))
        return out

    for backward in (False, True):
        loss = model.terms(x_hat=decoder, likelihood=Gaussian()).elbo
        if backward:
            loss.backward()
        del loss
        gc.collect()
        assert all(ref.expired() for ref in seen)


# Autograd may accumulate into the gradients it receives, and does so for a sum of losses.
def accumulated(model, backend, reduction):
    x_hat = model.decoder(model.mu)
    x_hat.retain_grad()
    a = bound(model, backend, x_hat=x_hat, reduction=reduction, prior=None).sum()
    b = bound(model, backend, x_hat=x_hat, reduction=reduction, prior=None, likelihood=fastvae.Laplace()).sum()
    (x_hat.square().sum() - a - 0.5 * b).backward(retain_graph=True)
    (-a).backward(retain_graph=True)  # accumulates into existing gradients
    b.backward()
    return [x_hat.grad, *model.gradients()]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_reconstruction_used_several_times_accumulates(reduction):
    agree(*(accumulated(Model(), backend, reduction) for backend in ("numba", "reference")), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_arguments_are_not_modified(reduction):
    model, x_hat, beta, seed = Model(), torch.randn(N, D, requires_grad=True), torch.tensor(0.5), torch.tensor(3)
    upstream = torch.full((N,) if reduction == "none" else (), 0.7)
    handed_in = [*vars(model).values(), x_hat, beta, seed, upstream]
    before = [(t.detach().clone(), t._version) for t in handed_in]
    leaves = [*model.leaves(), x_hat]
    for form in (x_hat, None):
        terms = model.terms(x_hat=form, beta=beta, free_bits=0.1, seed=seed, reduction=reduction)
        value = bound(model, x_hat=form, beta=beta, prior=None, seed=seed, reduction=reduction)
        for _ in range(2):
            torch.autograd.grad(terms, leaves, [upstream] * 3, retain_graph=True, allow_unused=True)
            torch.autograd.grad(value, leaves, upstream, retain_graph=True, allow_unused=True)
    for t, (value, version) in zip(handed_in, before, strict=True):
        assert torch.equal(t, value)
        assert t._version == version


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("upstream", [-1.0, 1.0, 0.5, 65536.0, 0.0])  # 65536: the initial scale of torch.amp.GradScaler
@pytest.mark.parametrize("prior", [{}, {"prior": None}])
def test_the_buffer_is_scaled_for_any_upstream(launches, upstream, reduction, dtype, prior):
    model, wide = Model(dtype), Model(dtype)
    for name, t in vars(wide).items():  # the truth: the same numbers in float64
        setattr(wide, name, t.detach().double().requires_grad_(t.requires_grad))
    x_hat = torch.linspace(-1, 1, N * D).view(N, D).to(dtype)
    results = []
    for m, h, backend in ((model, x_hat, "numba"), (wide, x_hat.double(), "reference")):
        h = h.detach().requires_grad_()
        value = bound(m, backend, x_hat=h, reduction=reduction, **prior)
        gradients = torch.autograd.grad(value, [*m.leaves(), h], torch.full_like(value, upstream), allow_unused=True)
        results.append([g if g is None else g.double() for g in gradients])
    assert formed(launches) == [True]
    for a, b in zip(*results, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=3 * torch.finfo(dtype).eps, atol=1e-5 * abs(upstream))


WEIGHINGS = {
    "elbo": lambda t: -t.elbo.sum(),
    "log_likelihood": lambda t: t.log_likelihood.sum(),
    "kl": lambda t: 2 * t.kl.sum(),
    "elbo and log_likelihood": lambda t: (3 * t.elbo - t.log_likelihood.square()).sum(),
    "elbo and kl": lambda t: (t.elbo * t.kl).sum(),
    "all": lambda t: (0.3 * t.elbo + 2 * t.log_likelihood - t.kl).sum(),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("decoder", [True, False])
@pytest.mark.parametrize("weighing", WEIGHINGS)
def test_each_output_has_its_gradient(weighing, decoder, reduction):
    results = []
    for backend in ("numba", "reference"):
        model = Model()
        x_hat = None if decoder else model.decoder(model.mu)
        terms = model.terms(backend, x_hat=x_hat, reduction=reduction, beta=0.7, free_bits=0.2)
        gradients = torch.autograd.grad(WEIGHINGS[weighing](terms), model.leaves(), allow_unused=True)
        # a Function's gradient that autograd fills in with zeros is the reference's None
        results.append([torch.zeros(()) if g is None or not g.any() else g for g in gradients])
    agree(*results, rtol=1e-4, atol=1e-5)


# What the first operation of a decoder returns as the gradient of z [R, L]; w is [R, D].
DECODERS: dict[str, Any] = {
    "stride 0": lambda z, w: z.sum() * w,
    "one row for all": lambda z, w: z.sum(0).repeat(D // L) * w,
    "transposed": lambda z, w: (z.T @ w).sum() * w,
    "parts of a cat": lambda z, w: torch.cat([z, z.square(), z], dim=1)[:, 2 : 2 + D] * w,
    "every other column": lambda z, w: z[:, ::2].repeat(1, 2 * D // L) * w,
}


@pytest.mark.parametrize("num_samples", [None, K])
@pytest.mark.parametrize("name", DECODERS)
def test_any_gradient_of_the_draws_is_right(name, num_samples):
    w, results = torch.randn(N * (num_samples or 1), D), []
    for backend in ("numba", "reference"):
        model = Model()
        value = model.terms(backend, lambda z: DECODERS[name](z, w), num_samples=num_samples).elbo
        results.append([value, *torch.autograd.grad(value, [model.mu, model.logvar])])
    agree(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("decoded_scale", [False, True])
def test_a_gradient_penalty_goes_through_the_formulas(launches, reduction, decoded_scale):
    results = []
    for backend in ("numba", "reference"):
        model = Model()
        options: dict[str, Any] = {"reduction": reduction, "free_bits": 0.2, "num_samples": K}
        if decoded_scale:
            options |= {"x_hat": lambda z, m=model: (m.decoder(z), 0.1 * z @ m.last), "likelihood": Gaussian()}
        terms = model.terms(backend, **options)
        first = torch.autograd.grad(terms.elbo.sum(), model.leaves(), create_graph=True, allow_unused=True)
        penalty = sum(g.square().sum() for g in first if g is not None)
        second = torch.autograd.grad(penalty + terms.kl.sum(), model.leaves(), allow_unused=True)
        results.append([*(g for g in first if g is not None), *(g for g in second if g is not None)])
    agree(*results, rtol=1e-4, atol=1e-4)
    assert len(launches) == 1  # of forward: a launch in backward would have no graph


def test_batched_gradients_leave_the_graph_intact():
    model, theirs, upstreams = Model(), Model(), torch.tensor([1.0, -2.0])
    loss = model.terms().elbo
    (jacobian,) = torch.autograd.grad(loss, model.last, upstreams, is_grads_batched=True, retain_graph=True)
    loss.backward()
    theirs.terms("reference").elbo.backward()
    agree(model.gradients(), theirs.gradients())
    agree([jacobian], [torch.stack([model.last.grad, -2 * model.last.grad])])


# A tensor passed as two arguments has the sum of two gradients.
TWICE: dict[str, Any] = {
    "mu as logvar": lambda m, h: (h, m.mu, m.mu, {}),
    "x_hat as log_scale": lambda m, h: (h, m.mu, m.logvar, {"likelihood": Gaussian(log_scale=h)}),
    "x_hat as scale": lambda m, h: (h, m.mu, m.logvar, {"likelihood": Gaussian(h.exp())}),
    "the posterior as prior": lambda m, h: (h, m.mu, m.logvar, {"prior": (m.logvar, m.mu)}),
    "x_hat as mu": lambda m, h: (h, h, h, {"prior": (h, h[0])}),
}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", TWICE)
def test_one_tensor_as_two_arguments(name, create_graph):
    results = []
    for backend in ("numba", "reference"):
        model = Model()
        x_hat = torch.linspace(-1, 1, N * D).view(N, D).requires_grad_()
        args = TWICE[name](model, x_hat)
        value = fastvae.elbo(model.x, *args[:3], **args[3], backend=backend)
        leaves = [x_hat, model.mu, model.logvar]
        results.append([value, *torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)])
    agree(*results)
