"""Every invalid argument raises an error of one line that names the argument, what was expected and what was given."""

import inspect
import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastvae
from fastvae import Bernoulli, Gaussian
from fastvae._core import backend as _backend
from fastvae._elbo import call as elbo_call

N, D, L, K = 3, 4, 2, 5  # all different, so that a message with the wrong dim is noticed


def zeros(*shape, **options):
    return torch.zeros(shape, **options)


def bytes_(*shape):
    return torch.zeros(shape, dtype=torch.uint8)


def decoder(*outputs, shape=(N, D)):
    """A decoder that returns x_hat of this shape, followed by these outputs."""
    return lambda z: (zeros(*shape), *outputs) if outputs else zeros(*shape)


def elbo(**changes):
    arguments: dict[str, Any] = {"x": zeros(N, D), "x_hat": zeros(N, D), "mu": zeros(N, L), "logvar": zeros(N, L)}
    return fastvae.elbo(**(arguments | changes))


def refused(error, message, call, *args, **options):
    """Check that the call raises this error, with a message of one line that matches the pattern."""
    with pytest.raises(error, match=message) as caught:
        call(*args, **options)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


# The arguments that are changed, the type of the error, a pattern of its message.
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    # mu and logvar
    "integer mu": ({"mu": zeros(N, L).int()}, TypeError, r"^mu must be a floating-point .*got a int32 tensor"),
    "numpy mu": ({"mu": np.zeros((N, L))}, TypeError, r"^mu must be a floating-point torch\.Tensor, got ndarray"),
    "logvar a float": ({"logvar": 0.5}, TypeError, r"^logvar must be a floating-point torch\.Tensor, got 0\.5"),
    "0-d mu": ({"mu": zeros(), "logvar": zeros()}, ValueError, r"^mu must have the shape \[N, \*latent\], got a 0-d"),
    "logvar of one std": (
        {"logvar": zeros(N, 1)},
        ValueError,
        r"^mu and logvar must have the same shape \[N, \*latent\], got \[3, 2\] and \[3, 1\]",
    ),
    "logvar elsewhere": ({"logvar": zeros(N, L, device="meta")}, ValueError, r"^logvar .*device of mu, cpu, got meta"),
    # x
    "numpy x": ({"x": np.zeros((N, D))}, TypeError, r"^x must be a torch\.Tensor, got ndarray"),
    "int64 x": ({"x": zeros(N, D).long()}, TypeError, r"^x must be floating-point, uint8 or bool, got a int64 tensor"),
    "complex x": ({"x": zeros(N, D).cfloat()}, TypeError, r"^x must be floating-point, uint8 or bool, got a complex64"),
    "0-d x": ({"x": zeros()}, ValueError, r"^x \[N, .*and mu \[N, .* must have the same N, got \[\] and"),
    "other N": ({"x": zeros(N + 4, D)}, ValueError, r"^x .*and mu .* must have the same N, got \[7, 4\] and \[3, 2\]"),
    "x elsewhere": ({"x": zeros(N, D, device="meta")}, ValueError, r"^x must be on the device of mu, cpu, got meta"),
    # x_scale
    "uint8 alone": ({"x": bytes_(N, D)}, ValueError, r"^x_scale must be given with uint8 .*got None with a uint8"),
    "scaled float x": ({"x_scale": 1.0}, ValueError, r"^x_scale .*uint8 x, and only then.*got 1\.0 with a float32"),
    "scaled bool x": ({"x": zeros(N, D).bool(), "x_scale": 1.0}, ValueError, r"^x_scale .*only then.*1\.0 with a bool"),
    "x_scale a tensor": ({"x": bytes_(N, D), "x_scale": zeros()}, TypeError, r"^x_scale must be a finite float, got a"),
    "x_scale a bool": ({"x": bytes_(N, D), "x_scale": True}, TypeError, r"^x_scale must be a finite float, got True"),
    "x_scale NaN": ({"x": bytes_(N, D), "x_scale": math.nan}, TypeError, r"^x_scale must be a finite float, got nan"),
    # x_hat
    "x_hat of other D": ({"x_hat": zeros(N, D + 1)}, ValueError, r"^x_hat must have .*shape .*\[3, 4\].*got \[3, 5\]"),
    "x_hat flattened": (
        {"x": zeros(N, 2, 2)},
        ValueError,
        r"^x_hat must have the shape \[N, \*event\] = \[3, 2, 2\] to match x, got \[3, 4\]",
    ),
    "x_hat without draws": (
        {"num_samples": K},
        ValueError,
        r"^x_hat must have the shape \[K, N, \*event\] = \[5, 3, 4\] .*got \[3, 4\]",
    ),
    "x_hat with draws": ({"x_hat": zeros(K, N, D)}, ValueError, r"^x_hat must .*\[N, \*event\].*got \[5, 3, 4\]"),
    "integer x_hat": ({"x_hat": zeros(N, D).int()}, TypeError, r"^x_hat must be a floating-point .*got a int32"),
    "x_hat a pair": ({"x_hat": (zeros(N, D), zeros())}, TypeError, r"^x_hat must be a floating-point .*got tuple"),
    "x_hat elsewhere": ({"x_hat": zeros(N, D, device="meta")}, ValueError, r"^x_hat must be on the device of x, cpu"),
    "scale elsewhere": (
        {"likelihood": Gaussian(torch.ones(D, device="meta"))},
        ValueError,
        r"^likelihood's scale must be on the device of x, cpu",
    ),
    "one log_scale elsewhere": (
        {"likelihood": Gaussian(log_scale=torch.ones((), device="meta"))},
        ValueError,
        r"^likelihood's log_scale must be on the device of x, cpu",
    ),
    "a prior's number elsewhere": (
        {"prior": (zeros(device="meta"), zeros())},
        ValueError,
        r"^prior's mu_p must be on the device of mu, cpu",
    ),
    "decoder elsewhere": (
        {"x_hat": lambda z: zeros(N, D, device="meta")},
        ValueError,
        r"^the decoder's x_hat must be on the device of x, cpu",
    ),
    "decoder's log_scale elsewhere": (
        {"x_hat": lambda z: (zeros(N, D), zeros(D, device="meta"))},
        ValueError,
        r"^the decoder's log_scale must be on the device of x, cpu",
    ),
    # the decoder's output
    "decoder's shape": (
        {"x_hat": decoder(shape=(N, D + 1))},
        ValueError,
        r"^the decoder must return x_hat of shape \[3, 4\] for z of shape \[3, 2\], got \[3, 5\]",
    ),
    "decoder without draws": (
        {"x_hat": decoder(), "num_samples": K},
        ValueError,
        r"^the decoder must return x_hat of shape \[15, 4\] for z of shape \[15, 2\], got \[3, 4\]",
    ),
    "decoder's draws unfolded": (
        {"x_hat": decoder(shape=(K, N, D)), "num_samples": K},
        ValueError,
        r"^the decoder must return x_hat of shape \[15, 4\] .*got \[5, 3, 4\]",
    ),
    "decoder's None": ({"x_hat": lambda z: None}, TypeError, r"^the decoder must return a tensor x_hat or .*NoneType"),
    "decoder's integers": ({"x_hat": lambda z: zeros(N, D).int()}, TypeError, r"^the decoder must .*got \(a int32"),
    "decoder's list": ({"x_hat": lambda z: [zeros(N, D), zeros()]}, TypeError, r"^the decoder must .*got \(list\)"),
    "decoder's triple": ({"x_hat": decoder(zeros(), zeros())}, TypeError, r"^the decoder must .*\(x_hat, log_scale\)"),
    "decoder's float log_scale": ({"x_hat": decoder(0.5)}, TypeError, r"^the decoder must return .*float32 .*0\.5\)"),
    "decoder's log_scale": (
        {"x_hat": decoder(zeros(5))},
        ValueError,
        r"^the decoder's log_scale must broadcast .*x_hat, \[3, 4\], got \[5\]",
    ),
    "log_scale of Bernoulli": (
        {"x_hat": decoder(zeros()), "likelihood": Bernoulli()},
        ValueError,
        r"^the decoder returned \(x_hat, log_scale\), but a Bernoulli likelihood has no scale",
    ),
    **{
        f"two scales: {name}": (
            {"x_hat": decoder(zeros()), "likelihood": likelihood},
            ValueError,
            r"^the decoder returned a log_scale, but the likelihood has a scale of its own: use Gaussian\(\)",
        )
        for name, likelihood in {
            "float": Gaussian(0.5),
            "tensor": Gaussian(torch.ones(())),
            "log_scale": Gaussian(log_scale=0.0),
        }.items()
    },
    # likelihood
    "likelihood's class": (
        {"likelihood": Gaussian},
        TypeError,
        r"^likelihood must be fastvae\.Gaussian.*got the class Gaussian: add \(\)",
    ),
    "likelihood's name": ({"likelihood": "bernoulli"}, TypeError, r"^likelihood must be .*, got 'bernoulli'"),
    "no likelihood": ({"likelihood": None}, TypeError, r"^likelihood must be .*or an object with.*got NoneType"),
    "scale per what": (
        {"likelihood": Gaussian(torch.ones(5))},
        ValueError,
        r"^likelihood's scale must broadcast to the shape of x_hat, \[3, 4\], got \[5\]",
    ),
    "log_scale too large": (
        {"likelihood": Gaussian(log_scale=zeros(2, N, D))},
        ValueError,
        r"^likelihood's log_scale must broadcast to the shape of x_hat, \[3, 4\], got \[2, 3, 4\]",
    ),
    # beta and free_bits
    **{
        f"{name} {value!r}": ({name: value}, error, rf"^{name} must be {expected}.*got {got}")
        for name in ("beta", "free_bits")
        for value, error, expected, got in [
            (-0.5, ValueError, "finite and not negative", r"-0\.5"),
            (math.nan, ValueError, "finite and not negative", "nan"),
            (math.inf, ValueError, "finite and not negative", "inf"),
            (True, TypeError, "a float or a 0-d tensor", "True"),
            ("1", TypeError, "a float or a 0-d tensor", "'1'"),
            (None, TypeError, "a float or a 0-d tensor", "NoneType"),
            (torch.ones(1), TypeError, "a float or a 0-d floating-point tensor", r"a float32 tensor of shape \[1\]"),
            (torch.tensor(1), TypeError, "a float or a 0-d floating-point tensor", "a int64 tensor"),
        ]
    },
    # prior
    "prior a tensor": ({"prior": zeros(2, N, L)}, TypeError, r"^prior must be a pair of tensors \(mu_p, logvar_p\)"),
    "prior of three": ({"prior": (zeros(L),) * 3}, TypeError, r"^prior must be a pair of tensors .*got tuple"),
    "prior of floats": ({"prior": (0.0, zeros())}, TypeError, r"^prior's mu_p must be a floating-point .*got 0\.0"),
    "prior's integers": ({"prior": (zeros(), zeros(L).int())}, TypeError, r"^prior's logvar_p must be .*got a int32"),
    "prior too large": (
        {"prior": (zeros(7, N, L), zeros())},
        ValueError,
        r"^prior's mu_p must broadcast to the shape of mu, \[3, 2\], got \[7, 3, 2\]",
    ),
    "prior of other L": ({"prior": (zeros(L), zeros(3))}, ValueError, r"^prior's logvar_p must broadcast .*got \[3\]"),
    "prior elsewhere": (
        {"prior": (zeros(L, device="meta"), zeros())},
        ValueError,
        r"^prior's mu_p must be on the device of mu, cpu, got meta",
    ),
    # num_samples, seed, reduction, backend
    "no draws": ({"num_samples": 0}, ValueError, r"^num_samples must be at least 1, got 0"),
    "negative draws": ({"num_samples": -3}, ValueError, r"^num_samples must be at least 1, got -3"),
    "float draws": ({"num_samples": 2.0}, TypeError, r"^num_samples must be an int or None, got 2\.0"),
    "bool draws": ({"num_samples": True}, TypeError, r"^num_samples must be an int or None, got True"),
    "negative seed": ({"seed": -1}, ValueError, r"^seed must be in \[0, 2\^63\), got -1"),
    "seed of 64 bits": ({"seed": 2**63}, ValueError, r"^seed must be in \[0, 2\^63\), got 9223372036854775808"),
    "bool seed": ({"seed": False}, TypeError, r"^seed must be an int, a 0-d int64 tensor or None, got False"),
    "float seed": ({"seed": 1.0}, TypeError, r"^seed must be an int, a 0-d int64 tensor or None, got 1\.0"),
    "float tensor seed": ({"seed": zeros()}, TypeError, r"^seed must be .*0-d int64 tensor, got a float32 tensor"),
    "1-d seed": ({"seed": zeros(1).long()}, TypeError, r"^seed must be .*0-d int64 tensor, got .*of shape \[1\]"),
    "int32 seed": ({"seed": zeros().int()}, TypeError, r"^seed must be .*0-d int64 tensor, got a int32 tensor"),
    "seed elsewhere": ({"seed": zeros(device="meta").long()}, ValueError, r"^seed must be on the device .*got meta"),
    "reduction": ({"reduction": "avg"}, ValueError, r"^reduction must be one of 'mean', 'sum', 'none', got 'avg'"),
    "no reduction": ({"reduction": None}, ValueError, r"^reduction must be one of .*got NoneType"),
    "backend": (
        {"backend": "cuda"},
        ValueError,
        r"^backend must be one of 'auto', 'triton', 'numba', 'reference', got 'cuda'",
    ),
    "mean of no rows": (
        {"x": zeros(0, D), "x_hat": zeros(0, D), "mu": zeros(0, L), "logvar": zeros(0, L)},
        ValueError,
        r"^reduction='mean' of an empty batch \(N = 0\) is undefined: use 'sum' or 'none'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), BAD.values(), ids=list(BAD))
def test_elbo_refuses(changes, error, message):
    refused(error, message, elbo, **changes)


# The other functions check the arguments they share with elbo; they have no x_hat to which num_samples could apply.
SHARED = [
    (function, name)
    for function in (fastvae.reparameterize, fastvae.kl_divergence)
    for name, (changes, *_) in BAD.items()
    if changes.keys() <= inspect.signature(function).parameters.keys() and not name.startswith("x_hat")
]


@pytest.mark.parametrize(("function", "name"), SHARED)
def test_the_other_functions_refuse(function, name):
    changes, error, message = BAD[name]
    refused(error, message, function, **({"mu": zeros(N, L), "logvar": zeros(N, L)} | changes))


def test_the_other_functions_share_their_checks():
    assert {name for _, name in SHARED} >= {"integer mu", "negative seed", "no draws", "prior of other L", "backend"}


def test_options_are_keywords():
    for function in (fastvae.elbo, fastvae.elbo_terms, fastvae.reparameterize):
        positional = [p.name for p in inspect.signature(function).parameters.values() if p.kind != p.KEYWORD_ONLY]
        assert positional == (
            ["mu", "logvar"] if function is fastvae.reparameterize else ["x", "x_hat", "mu", "logvar"]
        )
    assert inspect.signature(fastvae.elbo).parameters == inspect.signature(fastvae.elbo_terms).parameters


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scale": 0.5, "log_scale": 0.0}, ValueError, r"^scale and log_scale are mutually exclusive: give one"),
        (
            {"scale": torch.ones(()), "log_scale": torch.ones(())},
            ValueError,
            r"^scale and log_scale are mutually exclusive",
        ),
        ({"scale": 0.0}, ValueError, r"^scale must be positive and finite, got 0\.0"),
        ({"scale": -1}, ValueError, r"^scale must be positive and finite, got -1"),
        ({"scale": math.nan}, ValueError, r"^scale must be positive and finite, got nan"),
        ({"log_scale": math.inf}, ValueError, r"^log_scale must be finite, got inf"),
        ({"scale": "learned"}, TypeError, r"^scale must be a float or a tensor, got str"),
        ({"scale": True}, TypeError, r"^scale must be a float or a tensor, got bool"),
        ({"scale": torch.ones(2).int()}, TypeError, r"^scale must be a floating-point tensor or a float, .*int32"),
        ({"log_scale": [0.0]}, TypeError, r"^log_scale must be a float or a tensor, got list"),
        ({"link": "softmax"}, ValueError, r"^link must be one of 'identity', 'sigmoid', 'tanh', got 'softmax'"),
        ({"link": ["tanh"]}, ValueError, r"^link must be one of 'identity', 'sigmoid', 'tanh', got \['tanh'\]"),
    ],
)
def test_gaussian_refuses(options, error, message):
    refused(error, message, Gaussian, **options)


def call(op, **options):
    if op == "elbo":
        return elbo(**options)
    if op == "gmm":
        normal = fastvae.gmm.Mixture(torch.ones(1), zeros(1, D), torch.ones(1), "spherical")
        return fastvae.gmm.score_samples(zeros(N, D), normal, **options)
    if op == "regression":
        return fastvae.regression.fit(torch.arange(float(N)), zeros(N), **options)
    return getattr(fastvae, op)(zeros(N, L), zeros(N, L), **options)


@pytest.mark.parametrize("op", _backend.KERNELS)
def test_an_unsupported_call_gives_the_reason(op, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(elbo_call, "CACHE", {})  # calls cached by other tests would not be checked again
    refused(
        fastvae.BackendError,
        rf"^backend='triton' does not support {op}: it runs on cuda tensors, these are on cpu",
        call,
        op,
        backend="triton",
    )
    monkeypatch.setitem(_backend.HAS_KERNEL, (op, "numba"), False)
    message = rf"^backend='numba' does not support {op}: it has no kernel for this yet"
    refused(fastvae.BackendError, message, call, op, backend="numba")
    monkeypatch.setitem(_backend.INSTALLED, "numba", False)
    message = rf"^backend='numba' does not support {op}: numba is not installed"
    refused(fastvae.BackendError, message, call, op, backend="numba")
    call(op)  # auto never fails because there is no kernel
    call(op, backend="reference")


def test_the_environment_replaces_only_auto(monkeypatch):
    monkeypatch.setitem(_backend.HAS_KERNEL, ("elbo", "numba"), False)
    monkeypatch.setattr(elbo_call, "CACHE", {})  # cached calls would not be checked again
    monkeypatch.setattr(_backend, "DEFAULT", "cuda")
    refused(ValueError, r"^FASTVAE_BACKEND must be one of auto, triton, numba, reference, got 'cuda'", elbo)
    elbo(backend="reference")
    monkeypatch.setattr(_backend, "DEFAULT", "numba")
    refused(fastvae.BackendError, r"^backend='numba' does not support elbo", elbo)
    monkeypatch.setattr(_backend, "DEFAULT", "reference")
    elbo()
    code = "from fastvae._core import backend as _backend; print(_backend.requested('auto'))"
    env = {**os.environ, "FASTVAE_BACKEND": "reference"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert run.stdout == "reference\n"


def test_vae_raises_the_same_errors():
    vae = fastvae.VAE.mlp(D, latent=L, hidden=3)
    refused(ValueError, r"^x_scale must be given with uint8 x", vae.elbo, bytes_(N, D))
    refused(ValueError, r"^reduction must be one of", vae.elbo, zeros(N, D), reduction="avg")
    refused(ValueError, r"^num_samples must be at least 1", vae.log_likelihood, zeros(N, D), 0)
    refused(
        ValueError,
        r"^likelihood must be one of 'gaussian', 'laplace', 'bernoulli'",
        fastvae.VAE.mlp,
        D,
        likelihood="poisson",
    )
    refused(ValueError, r"^scale must be a positive float or 'learned'", fastvae.VAE.mlp, D, scale="fixed")
    wrong = fastvae.VAE(lambda x: (zeros(N, L), zeros(N, L)), nn.Linear(L, D + 1), latent=L)
    refused(ValueError, r"^the decoder must return x_hat of shape \[3, 4\]", wrong.elbo, zeros(N, D))
