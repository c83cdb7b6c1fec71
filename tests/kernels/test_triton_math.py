"""The mathematical functions of the Triton kernels, on a GPU or in the interpreter: errors in ulp."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from ..triton_device import DEVICE

import triton  # isort: skip
import triton.language as tl  # isort: skip

from fastvae_kernels.triton.language import launch
from fastvae_kernels.triton.language import math as _math

mpmath = pytest.importorskip("mpmath")
HOW = {} if launch.INTERPRET else launch.OPTIONS  # the options of our kernels

FUNCTIONS = {  # function, truth, range, and worst error in ulp; the interpreter does not fuse
    "exp": (_math.exp, mpmath.exp, (-87, 88), 2.0),
    "expm1": (_math.expm1, mpmath.expm1, (-20, 88), 2.0),
    "phi": (_math.phi, lambda t: mpmath.expm1(t) - t, (-20, 80), 4.0),
    "log_normal": (_math.log_normal, mpmath.log, (1e-6, 1e6), 2.0),
    "log1p": (_math.log1p, mpmath.log1p, (0, 1), 2.0),
    "sigmoid": (_math.sigmoid, lambda t: 1 / (1 + mpmath.exp(-t)), (-40, 40), 4.0),
    "tanh": (_math.tanh, mpmath.tanh, (-9, 9), 5.0),
}


@triton.jit
def apply(x, y, F: tl.constexpr, B: tl.constexpr):
    """Y = F(x), B elements."""
    o = tl.arange(0, B)
    tl.store(y + o, F(tl.load(x + o)))


@triton.jit
def apply_sincos(x, sin, cos, B: tl.constexpr):
    """Sine and cosine of 2 pi x."""
    o = tl.arange(0, B)
    s, c = _math.sincos_2pi(tl.load(x + o))
    tl.store(sin + o, s)
    tl.store(cos + o, c)


def points(low, high, dtype):
    """Evenly spaced points, and some near 0."""
    even = np.linspace(low, high, 448)
    near = np.geomspace(1e-9, 0.9, 32)
    return torch.tensor(np.concatenate([even, near, -near if low < 0 else near + 0.05])).to(DEVICE, dtype)


def worst_ulp(got, x, truth):
    got, x = got.cpu(), x.cpu()
    with mpmath.workprec(200):
        exact = [truth(mpmath.mpf(float(t))) for t in x]
        spacing = np.spacing(np.abs(np.array([float(e) for e in exact], got.numpy().dtype)))
        errors = [abs(mpmath.mpf(float(g)) - e) / float(s) for g, e, s in zip(got, exact, spacing, strict=True)]
        return float(max(errors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_in_ulp(name, dtype):
    function, truth, (low, high), most = FUNCTIONS[name]
    x = points(low, high, dtype)
    y = torch.empty_like(x)
    apply[(1,)](x, y, function, len(x), **HOW)
    assert worst_ulp(y, x, truth) <= most


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sine_and_cosine(dtype):
    x = torch.linspace(-0.5, 0.5, 512, dtype=torch.float64).to(DEVICE, dtype)
    sin, cos = torch.empty_like(x), torch.empty_like(x)
    apply_sincos[(1,)](x, sin, cos, len(x), **HOW)
    eps = torch.finfo(dtype).eps
    angle = 2 * torch.pi * x.double()
    assert float((sin - angle.sin()).abs().max()) <= 2 * eps
    assert float((cos - angle.cos()).abs().max()) <= 2 * eps


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # NumPy's, of the interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends(dtype):
    x = torch.tensor([np.nan, np.inf, -np.inf, 1e30], dtype=dtype, device=DEVICE)
    y = torch.empty_like(x)
    for name, want in {
        "exp": [np.nan, np.inf, 0, np.inf],
        "expm1": [np.nan, np.inf, -1, np.inf],
        "phi": [np.nan, np.inf, np.inf, np.inf],
        "sigmoid": [np.nan, 1, 0, 1],
        "tanh": [np.nan, 1, -1, 1],
    }.items():
        apply[(1,)](x, y, FUNCTIONS[name][0], len(x), **HOW)
        found = y.cpu().numpy()
        np.testing.assert_array_equal(found, np.array(want, found.dtype), name)


ROOT = Path(__file__).parents[2]
WAITING = {"item", "cpu", "tolist", "numpy", "equal", "nonzero", "allclose"}  # each synchronizes the GPU


ON_THE_WAY = sorted([*ROOT.glob("kernels/fastvae_kernels/triton/**/*.py"), *ROOT.glob("fastvae/_elbo/*.py")])


@pytest.mark.parametrize("path", ON_THE_WAY, ids=lambda path: path.name)
def test_nothing_on_the_way_to_a_kernel_waits_for_the_gpu(path):
    names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not names & WAITING
