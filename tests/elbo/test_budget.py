"""The ELBO's kernels are within an error budget: values and all gradients, for every option; Triton in its interpreter.

    err(kernel) <= 2 err(reference in the same dtype) + 2 eps max|truth|

Truth is the reference in float64 on the same inputs; err is the largest absolute error of a tensor. If all inputs are
float64, there is no more accurate truth, and err(reference), of sums in another order, is assumed to be
8 eps max|truth|.
"""

from typing import Any

import pytest
import torch

import fastvae
from fastvae import Bernoulli, Gaussian

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
N, EVENT, LATENT, K = 5, (3, 7, 2), (2, 3), 3  # 42 features are two vectors of 16 and a part; all sizes differ
BACKEND = "numba"  # set by the fixture `kernels`


def later(*values):
    """A case that runs only with --long."""
    return pytest.param(*values, marks=pytest.mark.long)


REDUCTIONS = ("none", "mean", later("sum"))  # "sum" is "mean" with a different factor


@pytest.fixture(params=["numba", "triton"], autouse=True)
def kernels(request):
    """The backend whose kernels are tested."""
    global BACKEND
    BACKEND = request.param


def wide(t):
    return t.double() if t.is_floating_point() else t


def narrower(dtype):
    """The lowest precision in which a value of this dtype may have been computed, if not all inputs are float64."""
    return F32 if dtype == F64 else dtype


def within_budget(call, *inputs, fixed=()):
    """Check the results of ``call(backend, *inputs)``, and their gradients for random weights, against the budget.

    ``fixed`` are the positions of inputs without gradient. Two results never have equal weights: the gradients of an
    ELBO and its KL would cancel, and leave only rounding errors.
    """
    weights: list[Any] = []

    def evaluate(backend, convert):
        given = [None if t is None else convert(t).detach() for t in inputs]
        leaves = [t.requires_grad_() for i, t in enumerate(given) if i not in fixed and t is not None]
        values = call(backend, *given)
        if not weights:  # the same upstream gradients for both, random in each row
            weights.extend(4**i * (0.5 + torch.rand_like(v, dtype=F32)) for i, v in enumerate(values))
        total = sum((w.to(v.dtype) * v).sum() for w, v in zip(weights, values, strict=True))
        return *(v.detach() for v in values), *torch.autograd.grad(total, leaves)

    all_double = all(t.dtype == F64 for t in inputs if t is not None and t.is_floating_point())
    same = torch.clone
    ours, theirs, truth = evaluate(BACKEND, same), evaluate("reference", same), evaluate("reference", wide)
    for a, b, exact in zip(ours, theirs, truth, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape == exact.shape
        if exact.numel() == 0:
            continue
        error, reference_error = (float((t.double() - exact).abs().max()) for t in (a, b))
        ulp = float(exact.abs().max()) * torch.finfo(a.dtype if all_double else narrower(a.dtype)).eps
        assert error <= 2 * max(reference_error, 8 * ulp * all_double) + 2 * ulp


def bound_alone(*args, **options):
    """`fastvae.elbo`, for which the gradient of the KL may be formed in the forward pass, as a list of values."""
    return [fastvae.elbo(*args, **options)]


# Name: the shape of a tensor log_scale (r is the number of rows), and the likelihood made from it.
LIKELIHOODS: dict[str, tuple[Any, Any]] = {
    "unit": (None, lambda s: Gaussian()),
    "float scale": (None, lambda s: Gaussian(0.3)),
    "scalar": ((), lambda s: Gaussian(log_scale=s)),
    "[1]": ((1,), lambda s: Gaussian(log_scale=s)),
    "per feature": (EVENT, lambda s: Gaussian(log_scale=s)),
    "per feature, [1, *event]": ((1, *EVENT), lambda s: Gaussian(log_scale=s)),
    "per feature, a scale": (EVENT, lambda s: Gaussian(s.exp())),
    "per channel": ((EVENT[0], 1, 1), lambda s: Gaussian(log_scale=s)),
    "per column": ((EVENT[2],), lambda s: Gaussian(log_scale=s)),
    "per element": ((N, *EVENT), lambda s: Gaussian(log_scale=s)),
    "per sample": ((N, 1, 1, 1), lambda s: Gaussian(log_scale=s)),
    "per sample and channel": ((N, EVENT[0], 1, 1), lambda s: Gaussian(log_scale=s)),
    "sigmoid": (None, lambda s: Gaussian(0.5, link="sigmoid")),
    "tanh": (None, lambda s: Gaussian(link="tanh")),
    "sigmoid, scalar": ((), lambda s: Gaussian(log_scale=s, link="sigmoid")),
    "Bernoulli": (None, lambda s: Bernoulli()),
}


# Each pair takes a second to compile. bfloat16 shares the arithmetic of float32, so loads and stores are tested there.
# Cases that differ only in the shape of log_scale share a kernel; tanh differs from sigmoid in one function.
OF_ITS_OWN = ("unit", "scalar", "per feature", "per element", "sigmoid", "Bernoulli")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, F32) for name in LIKELIHOODS),
        *((name, F64) if name in OF_ITS_OWN else later(name, F64) for name in LIKELIHOODS),
        *((name, BF16) for name in ("unit", "per feature", "sigmoid")),
        *(later(name, BF16) for name in ("scalar", "per sample", "Bernoulli")),
    ],
)
def test_every_likelihood(name, dtype, reduction):
    shape, make = LIKELIHOODS[name]
    s = None if shape is None else 0.5 * torch.randn(shape)
    draw = torch.rand if name == "Bernoulli" else torch.randn
    drawn = draw(N, *EVENT), torch.randn(N, *EVENT), torch.randn(N, *LATENT)
    inputs = [t if t is None else t.to(dtype) for t in (*drawn, s)]
    for function in (fastvae.elbo_terms, bound_alone):

        def call(backend, x, x_hat, mu, s, function=function):
            return function(x, x_hat, mu, mu, likelihood=make(s), reduction=reduction, backend=backend)

        within_budget(call, *inputs, fixed=[0])


# A scale per draw has one value for each row of x_hat; a scale per data point has the same value for all draws.
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize(
    "shape", [(), EVENT, (N, *EVENT), (N, 1, 1, 1), (K, 1, 1, 1, 1), (K, N, 1, 1, 1), (K, 1, *EVENT)]
)
def test_a_scale_with_draws(shape, reduction):
    def call(backend, x, x_hat, mu, s):
        options = {"likelihood": Gaussian(log_scale=s), "num_samples": K, "reduction": reduction}
        return fastvae.elbo_terms(x, x_hat, mu, mu, **options, backend=backend)

    x, x_hat, mu = torch.randn(N, *EVENT), torch.randn(K, N, *EVENT), torch.randn(N, *LATENT)
    within_budget(call, x, x_hat, mu, 0.5 * torch.randn(shape), fixed=[0])


def test_a_link_and_a_scale_of_each_feature():
    def call(backend, x, x_hat, mu, s):
        likelihood = Gaussian(log_scale=s, link="tanh")
        return fastvae.elbo_terms(x, x_hat, mu, mu, likelihood=likelihood, backend=backend)

    within_budget(call, *(torch.randn(N, d) for d in (42, 42, 2)), 0.5 * torch.randn(42), fixed=[0])


def test_a_fixed_scale_per_element_uses_a_kernel_without_its_gradient():
    def call(backend, x, x_hat, mu, s):
        return [fastvae.elbo(x, x_hat, mu, mu, likelihood=Gaussian(log_scale=s), backend=backend)]

    for shape in (EVENT, (N, *EVENT)):
        inputs = torch.randn(N, *EVENT), torch.randn(N, *EVENT), torch.randn(N, *LATENT), torch.randn(shape)
        within_budget(call, *inputs, fixed=[0, 3])


# The gradient of a scale is summed over blocks of rows: 1000 rows are 16 blocks of 63, the last one shorter. In one
# float32 sum of terms of the same sign, errors would add up.
def test_the_gradient_of_a_scale_that_many_rows_share():
    def call(backend, x, x_hat, mu, s):
        return [fastvae.elbo(x, x_hat, mu, mu, likelihood=Gaussian(log_scale=s), backend=backend)]

    for shape in ((), (17,)):
        within_budget(
            call, 3 + torch.randn(1000, 17), torch.randn(1000, 17), torch.randn(1000, 2), torch.zeros(shape), fixed=[0]
        )


# Name: the shapes of the prior's two tensors, and the other options. With free bits 0.6 some elements are on each side.
OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "beta": ((), {"beta": 0.3}),
    "beta tensor": ((), {"beta": torch.tensor(0.3)}),
    "beta 0": ((), {"beta": 0.0}),
    "beta tensor 0": ((), {"beta": torch.tensor(0.0), "free_bits": 0.6}),
    "free bits": ((), {"free_bits": 0.6}),
    "free bits tensor": ((), {"free_bits": torch.tensor(0.6), "beta": 2.0}),
    "prior": (((N, *LATENT), (N, *LATENT)), {}),
    "prior of one row": (((1, *LATENT), LATENT), {"beta": 0.3}),
    "prior of the parts": (((N, 1, 1), (LATENT[1],)), {}),
    "prior of numbers": (((), (1,)), {}),
    "prior, free bits": ((LATENT, (N, *LATENT)), {"free_bits": 0.6}),
}
FIRST = ("beta", "free bits", "prior")  # tested in float64 without --long


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, F32) for name in OPTIONS),
        *((name, F64) if name in FIRST else later(name, F64) for name in OPTIONS if name != "prior, free bits"),
        *((name, BF16) for name in ("beta", "free bits", "prior of one row")),
    ],
)
def test_every_option_of_the_kl(name, dtype, reduction):
    shapes, options = OPTIONS[name]
    inputs = torch.randn(N, 1), torch.randn(N, *LATENT), torch.randn(N, *LATENT), *(torch.randn(s) for s in shapes)
    for function in (fastvae.elbo_terms, bound_alone, fastvae.kl_divergence):

        def call(backend, x_hat, mu, logvar, *prior, function=function):
            given = {"prior": prior or None, "reduction": reduction, "backend": backend}
            if function is fastvae.kl_divergence:
                return [function(mu, logvar, **given)]
            return function(x_hat.detach().round(), x_hat, mu, logvar, **options, **given)

        fixed = [0] if function is fastvae.kl_divergence else []
        within_budget(call, *(t.to(dtype) for t in inputs), fixed=fixed)


# Each option of the KL shares a kernel with sampling; the decoder is elementwise, so it adds no errors.
DECODED: dict[str, dict[str, Any]] = {
    "one": {},
    "draws": {"num_samples": K},
    "a single draw": {"num_samples": 1, "beta": 0.0},
    "free bits, draws": {"free_bits": 0.6, "num_samples": K},
}


@pytest.mark.parametrize(
    ("name", "dtype", "prior"),
    [
        *((name, F32, prior) for name in DECODED for prior in (False, True)),
        *((name, dtype, False) for name in DECODED if name != "free bits, draws" for dtype in (F64, BF16)),
    ],
)
def test_the_decoder_form(name, dtype, prior):
    reduction = "none" if prior else "mean"

    def call(backend, x, mu, logvar, a, *prior):
        options = {**DECODED[name], "prior": prior or None, "reduction": reduction, "seed": 3, "backend": backend}
        return fastvae.elbo_terms(x, lambda z: (a * z, 0.1 * z) if prior else a * z, mu, logvar, **options)

    inputs = [torch.randn(N, *LATENT) for _ in range(3)] + [torch.randn(LATENT) for _ in range(3 if prior else 1)]
    within_budget(call, *(t.to(dtype) for t in inputs), fixed=[0])


@pytest.mark.parametrize("num_samples", [None, K])
@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_reparameterize(dtype, num_samples):
    def call(backend, mu, logvar):
        return [fastvae.reparameterize(mu, logvar, num_samples=num_samples, seed=1, backend=backend)]

    within_budget(call, torch.randn(N, *LATENT).to(dtype), torch.randn(N, *LATENT).to(dtype))


# Dtypes of x, x_hat, mu, logvar, log_scale; bf16 models keep x, or the latent, in float32.
@pytest.mark.parametrize(
    "dtypes",
    [
        (F32, BF16, BF16, BF16, F32),
        (BF16, F32, F32, F32, BF16),
        (F32, F32, F32, F64, F32),
        *map(later, ((F64, F32, F32, F32, F32), (F32, F32, BF16, F32, F32), (F32, F32, F32, F32, F64))),
    ],
)
def test_mixed_dtypes(dtypes):
    def call(backend, x, x_hat, mu, logvar, s):
        options: dict[str, Any] = {"prior": (mu[0].float(), logvar[1]), "reduction": "none", "backend": backend}
        z = fastvae.reparameterize(mu, logvar, seed=1, backend=backend)
        return *fastvae.elbo_terms(x, x_hat, mu, logvar, likelihood=Gaussian(log_scale=s), **options), z

    inputs = [torch.randn(N, 6), torch.randn(N, 6), torch.randn(N, 4), torch.randn(N, 4), 0.5 * torch.randn(6)]
    within_budget(call, *(t.to(dtype) for t, dtype in zip(inputs, dtypes, strict=True)), fixed=[0])


@pytest.mark.parametrize("num_samples", [None, K])
@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Bernoulli()])
@pytest.mark.parametrize(("x_dtype", "x_scale"), [(torch.uint8, 1 / 255), (torch.uint8, 1.0), (torch.bool, None)])
def test_uint8_and_bool(x_dtype, x_scale, likelihood, num_samples):
    def call(backend, x, x_hat, mu):
        options = {"likelihood": likelihood, "x_scale": x_scale, "num_samples": num_samples, "backend": backend}
        return fastvae.elbo_terms(x, x_hat, mu, mu, **options)

    x = torch.randint(2 if x_scale == 1.0 else 256, (N, *EVENT)).to(x_dtype)
    draws = () if num_samples is None else (num_samples,)
    within_budget(call, x, torch.randn(*draws, N, *EVENT), torch.randn(N, 2), fixed=[0])


CHUNK, PIECE = 2048, 1024  # of log_likelihood and reparameterize


# N, event, latent, and why.
SHAPES = [
    (1, (17,), (5,)),  # one row
    (1, (1,), (1,)),  # one element
    (3, (), ()),  # the rows are numbers
    (3, (15,), (3,)),  # one less than a vector; part of a block of the noise
    (3, (16,), (4,)),
    (2, (CHUNK,), (PIECE,)),  # one chunk, one piece: exactly full
    (2, (CHUNK + 1,), (PIECE + 1,)),
    (3, (5000,), (2 * PIECE + 3,)),  # several chunks and pieces
    (2, (2, 3, 400), (2, 513)),  # a row split within its dims
    (300, (2,), (5,)),  # more rows than a unit of short latent rows takes, 1024 / 5
    (2, (3,), (PIECE - 1,)),  # one less than a piece: its width is rounded up to whole blocks of the noise
    (3, (4,), (PIECE // 2 + 1,)),  # one row per unit
    (3, (4,), (0,)),  # no latent element, no feature
    (3, (0,), (2,)),
    (0, (4,), (2,)),  # an empty batch
    (0, (2, 4), (0,)),
]


@pytest.mark.parametrize("reductions", [("none", "sum"), later(("sum", "none"))])
@pytest.mark.parametrize(("n", "event", "latent"), SHAPES)
def test_every_way_a_shape_is_split(n, event, latent, reductions):
    shapes = ((n, *event), (n, *event), (n, *latent), (n, *latent))
    for scale, reduction in zip(((), event), reductions, strict=True):

        def call(backend, x, x_hat, mu, logvar, s, reduction=reduction):
            options = {"likelihood": Gaussian(log_scale=s), "reduction": reduction, "backend": backend}
            z = fastvae.reparameterize(mu, logvar, seed=1, backend=backend)
            return *fastvae.elbo_terms(x, x_hat, mu, logvar, free_bits=0.3, **options), z

        within_budget(call, *(torch.randn(s) for s in shapes), 0.5 * torch.randn(scale), fixed=[0])
    inputs = [torch.randn(s) for s in shapes]
    within_budget(lambda b, *args: bound_alone(*args, reduction=reductions[1], backend=b), *inputs, fixed=[0])


# Views of x, x_hat (both [N, 4, 6]) and mu, logvar (both [N, 6]), made from a leaf of the shape given before them.
LAYOUTS: dict[str, Any] = {
    "columns": ((N, 4, 12), lambda t: t[..., ::2]),
    "first half of each row": ((N, 4, 12), lambda t: t[..., :6]),
    "every other row": ((2 * N, 4, 6), lambda t: t[::2]),
    "transposed": ((N, 6, 4), lambda t: t.transpose(1, 2)),
    "rows last": ((4, 6, N), lambda t: t.movedim(2, 0)),
    "one row for all": ((1, 4, 6), lambda t: t.expand(N, 4, 6)),
    "one column for all": ((N, 4, 1), lambda t: t.expand(N, 4, 6)),
    "reversed": ((N, 4, 6), lambda t: t.flip(0)),
}


@pytest.mark.parametrize("strided", [later("x"), "x_hat", "both", "log_scale"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_views_of_the_data(name, strided):
    shape, view = LAYOUTS[name]
    used = {"both": ("x", "x_hat")}.get(strided, (strided,))

    def call(backend, x, x_hat, mu, s):
        x, x_hat, s = (view(t) if n in used else t for n, t in (("x", x), ("x_hat", x_hat), ("log_scale", s)))
        return fastvae.elbo_terms(x, x_hat, mu, mu, likelihood=Gaussian(log_scale=s), backend=backend)

    x, x_hat, s = (torch.randn(shape if n in used else (N, 4, 6)) for n in ("x", "x_hat", "log_scale"))
    within_budget(call, x, x_hat, torch.randn(N, 6), s, fixed=[0])


@pytest.mark.parametrize("strided", ["mu", later("logvar"), "both"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_views_of_the_posterior(name, strided):
    shape, view = LAYOUTS[name]

    def call(backend, x, mu, logvar, a):
        mu, logvar = (t if strided == other else view(t) for t, other in ((mu, "logvar"), (logvar, "mu")))
        options: dict[str, Any] = {"prior": (logvar.detach(), mu[0]), "seed": 1, "backend": backend}
        terms = fastvae.elbo_terms(x, lambda z: z.flatten(1) * a, mu, logvar, **options)
        return *terms, fastvae.reparameterize(mu, logvar, num_samples=2, seed=2, backend=backend).transpose(0, 1)

    mu, logvar = (torch.randn((N, 4, 6) if strided == other else shape) for other in ("logvar", "mu"))
    within_budget(call, torch.randn(N, 24), mu, logvar, torch.randn(N, 24), fixed=[0])


def test_the_posterior_as_two_chunks_of_the_encoders_output():
    def call(backend, x, mu_logvar, a):
        mu, logvar = mu_logvar.chunk(2, dim=1)
        terms = fastvae.elbo_terms(x, lambda z: z * a, mu, logvar, seed=1, backend=backend)
        return *terms, fastvae.elbo(x, a, mu, logvar, backend=backend) / 100

    within_budget(call, torch.randn(N, 6), torch.randn(N, 12), torch.randn(N, 6), fixed=[0])


@pytest.mark.parametrize("num_samples", [None, 2])
@pytest.mark.parametrize("scale", [(), (3, 1, 1), (3, 4, 5), (N, 3, 4, 5)])
def test_channels_last_is_read_and_written_in_place(scale, num_samples):
    x, x_hat = torch.randn(N, 3, 4, 5), torch.randn(num_samples or 1, N, 3, 4, 5)
    x = x.to(memory_format=torch.channels_last)

    def call(backend, x, x_hat, mu, s):
        x_hat = x_hat.movedim(-1, 2)  # from [K, N, H, W, C]
        x_hat = x_hat[0] if num_samples is None else x_hat
        if backend == BACKEND:
            x_hat.register_hook(lambda g: strides.append((g.stride(), x_hat.stride())))
        options = {"likelihood": Gaussian(log_scale=s), "num_samples": num_samples, "backend": backend}
        return fastvae.elbo_terms(x, x_hat, mu, mu, **options)

    strides: list[Any] = []
    within_budget(call, x, x_hat.movedim(2, -1).contiguous(), torch.randn(N, 2), 0.5 * torch.randn(scale), fixed=[0])
    assert [a for a, _ in strides] == [b for _, b in strides] != []


def test_slices_of_two_dtypes():
    # one of them is copied to the dtype of the other, and its rows then have a different stride
    mu, logvar = torch.randn(N, 8)[:, :4], torch.randn(N, 4, dtype=F64)
    for a, b in ((mu, logvar), (logvar, mu)):
        ours, theirs = (fastvae.kl_divergence(a, b, backend=backend) for backend in (BACKEND, "reference"))
        torch.testing.assert_close(ours, theirs)
