"""The scalar mathematics of the Numba kernels, against mpmath, the reference noise and torch; how it is compiled."""

import functools
import math
import re

import mpmath
import numpy as np
import pytest
import torch
from numba import njit

from fastvae.reference.elbo import PHI_COEFFICIENTS
from fastvae.reference.noise import philox as reference_philox
from fastvae.reference.noise import standard_normal
from fastvae_kernels.numba import _jit
from fastvae_kernels.numba import _math as m

FLOATS = (np.float32, np.float64)


@m.math_jit
def sin_2pi(t):
    return m.sincos_2pi(t)[0]


@m.math_jit
def cos_2pi(t):
    return m.sincos_2pi(t)[1]


def exact_phi(t):
    return t * t / 2 * mpmath.hyp1f1(1, 3, t) if abs(t) < 1 else mpmath.expm1(t) - t


# name: (function, exact, worst error in ulp, from, to: the arguments for float32 and float64, up to where it overflows)
ANY = (3.4e38, 1.79e308)
FUNCTIONS = {
    "exp": (m.exp, mpmath.exp, 1.1, (-105.0, -750.0), (88.7, 709.7)),
    "expm1": (m.expm1, mpmath.expm1, 1.3, (-1e30, -1e300), (88.7, 709.7)),
    "phi": (m.phi, exact_phi, 2.5, (-1e30, -1e300), (88.7, 709.7)),
    "log": (m.log, mpmath.log, 1.0, (1e-45, 5e-324), ANY),
    "log1p": (m.log1p, mpmath.log1p, 1.1, (0.0, 0.0), (1.0, 1.0)),
    "tanh": (m.tanh, mpmath.tanh, 4.0, (-1e30, -1e300), ANY),
    "sigmoid": (m.sigmoid, lambda x: 1 / (1 + mpmath.exp(-x)), 2.5, (-105.0, -750.0), (1e30, 1e300)),
    "sin": (sin_2pi, lambda t: mpmath.sinpi(2 * t), 2.5, (-0.5, -0.5), (0.5, 0.5)),
    "cos": (cos_2pi, lambda t: mpmath.cospi(2 * t), 2.5, (-0.5, -0.5), (0.5, 0.5)),
}


@functools.cache
def loop(function, fastmath):
    @njit(fastmath=set(fastmath), error_model="numpy")
    def kernel(x, y):
        for i in range(x.shape[0]):
            y[i] = function(x[i])

    return kernel


def evaluate(function, x, fastmath=_jit.REDUCTION):
    y = np.empty_like(x)
    loop(function, fastmath)(x, y)
    return y


@functools.cache
def points(low, high, dtype, n=2000):
    """Dense, geometric and special points of [low, high], the subnormal ones among them."""
    rng, info = np.random.default_rng(0), np.finfo(dtype)
    size = np.exp(rng.uniform(math.log(info.smallest_subnormal), math.log(info.max), n))
    near = [rng.uniform(max(low, -b), min(high, b), n) for b in (1.0, 4.0, 100.0, 750.0)]
    ends = [0.0, -0.0, info.tiny, info.smallest_subnormal, 0.5, 1.0, math.sqrt(0.5), 0.9, 2.0, low, high]
    x = np.concatenate([*near, size, -size, 10.0 ** rng.uniform(-8, 2, n), -(10.0 ** rng.uniform(-8, 2, n)), ends])
    edges = np.concatenate([np.nextafter(dtype(e), dtype(s)) for e in ends[4:] for s in (-9, 9)], axis=None)
    x = np.concatenate([x, edges]).astype(dtype)
    return x[(x >= dtype(low)) & (x <= dtype(high))]


def ulps(y, x, exact):
    """The errors of y in units in the last place of the exact values, below the normal numbers in their spacing."""
    with mpmath.workdps(40 if y.dtype == np.float64 else 25):
        values = [exact(mpmath.mpf(float(v))) for v in x]
        head = np.array([float(v) for v in values])
        tail = np.array([float(v - h) for v, h in zip(values, head.tolist(), strict=True)])
    spacing = np.spacing(np.abs(head).astype(y.dtype)).astype(np.float64)
    return np.abs((y.astype(np.float64) - head) / spacing - tail / spacing)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_in_ulp(name, dtype):
    function, exact, bound, low, high = FUNCTIONS[name]
    i = FLOATS.index(dtype)
    x = points(low[i], high[i], dtype)
    y = evaluate(function, x)
    errors = ulps(y, x, exact)
    worst = int(np.argmax(errors))
    assert errors[worst] <= bound, f"{errors[worst]:.3f} ulp at {x[worst]!r}"
    if name == "phi":
        assert (y >= 0).all()


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("name", "arguments", "values"),
    [
        ("exp", [0, -0.0, INF, -INF, NAN, 1e30, -1e30], [1, 1, INF, 0, NAN, INF, 0]),
        ("expm1", [0, -0.0, INF, -INF, NAN, 1e30, -1e30], [0, 0, INF, -1, NAN, INF, -1]),
        ("phi", [0, -0.0, INF, -INF, NAN, 1e30, -1e30], [0, 0, INF, INF, NAN, INF, 1e30]),
        ("log", [0, -0.0, INF, -INF, NAN, 1, -1e-30], [-INF, -INF, INF, NAN, NAN, 0, NAN]),
        ("log1p", [0, -0.0, NAN, 1], [0, 0, NAN, math.log(2)]),
        ("tanh", [0, -0.0, INF, -INF, NAN, 1e30, -1e30], [0, 0, 1, -1, NAN, 1, -1]),
        ("sigmoid", [0, -0.0, INF, -INF, NAN, 1e30, -1e30], [0.5, 0.5, 1, 0, NAN, 1, 0]),
        ("sin", [0, 0.25, -0.25, 0.5, -0.5, NAN], [0, 1, -1, 0, 0, NAN]),
        ("cos", [0, 0.25, -0.25, 0.5, -0.5, NAN], [1, 0, 0, -1, -1, NAN]),
    ],
)
def test_special_values(name, arguments, values, dtype):
    np.testing.assert_array_equal(evaluate(FUNCTIONS[name][0], np.array(arguments, dtype)), np.array(values, dtype))


@pytest.mark.parametrize(("dtype", "largest", "smallest"), [(np.float32, 88.72, -103.9), (np.float64, 709.78, -745.1)])
def test_exp_up_to_its_ends(dtype, largest, smallest):
    x = np.array([largest, largest + 0.01, smallest, smallest - 0.3], dtype)
    y = evaluate(m.exp, x)
    assert np.isfinite(y[0])
    assert y[1] == INF
    assert y[2] == np.finfo(dtype).smallest_subnormal  # gradual underflow
    assert y[3] == 0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_same_bits_under_any_fastmath_and_anywhere_in_a_loop(name, dtype):
    function, _, _, low, high = FUNCTIONS[name]
    i = FLOATS.index(dtype)
    x = points(low[i], high[i], dtype)
    y = evaluate(function, x)
    np.testing.assert_array_equal(evaluate(function, x, _jit.VECTOR), y)
    one_by_one = np.concatenate([evaluate(function, x[j : j + 1]) for j in range(0, x.size, 29)])  # in no vector
    np.testing.assert_array_equal(one_by_one, y[::29])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_loops_are_vectors_without_libm(name, dtype):
    kernel = loop(FUNCTIONS[name][0], _jit.REDUCTION)
    evaluate(FUNCTIONS[name][0], np.full(4, 0.25, dtype))
    code = {signature[0].dtype.name: text for signature, text in kernel.inspect_llvm().items()}[dtype.__name__]
    kind = "f32" if dtype == np.float32 else "f64"
    assert re.search(rf"call <\d+ x (float|double)> @llvm\.fmuladd\.v\d+{kind}", code)
    called = set(re.findall(r"declare (?:float|double) @([\w.]+)", code))
    assert all(name.startswith("llvm.f") for name in called), called  # fmuladd, fabs


def test_reductions():
    @njit(fastmath=set(_jit.REDUCTION), error_model="numpy")
    def total(x):
        sum_ = x[0] - x[0]
        for i in range(x.shape[0]):
            sum_ += m.exp(x[i])
        return sum_

    x = np.random.default_rng(0).uniform(-3, 3, 1001)
    assert total(x) == pytest.approx(np.exp(x).sum(), rel=1e-14)
    assert total(x.astype(np.float32)) == pytest.approx(np.exp(x).sum(), rel=1e-6)


# Salmon et al.'s own vectors for philox4x32-10 (kat_vectors of Random123): counter, key, words.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@njit
def words(counters, key, out):
    for i in range(counters.shape[1]):
        c = counters[:, i]
        out[0, i], out[1, i], out[2, i], out[3, i] = m.philox(c[0], c[1], c[2], c[3], key[0], key[1])


@njit(fastmath=set(_jit.REDUCTION), error_model="numpy")
def normals(key, k, n, out):  # the draws k of the rows n, a multiple of 4 in each
    for b in range(out.shape[0] // 4):
        z = m.normal4(np.uint32(b), np.uint32(k), np.uint32(n), np.uint32(n >> 32), key[0], key[1], out[0])
        out[4 * b], out[4 * b + 1], out[4 * b + 2], out[4 * b + 3] = z


def random_words(*shape):
    return np.random.default_rng(0).integers(0, 2**32, shape, dtype=np.uint32)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    counter, key, expected = (np.array([int(w, 16) for w in t.split()], np.uint32) for t in (counter, key, expected))
    out = np.empty((4, 1), np.uint32)
    words(counter[:, None], key, out)
    np.testing.assert_array_equal(out[:, 0], expected)


def test_philox_words_are_those_of_the_reference():
    counters, key = random_words(4, 1000), random_words(2)
    out = np.empty((4, 1000), np.uint32)
    words(counters, key, out)
    expected = reference_philox(torch.from_numpy(counters.astype(np.int64)), torch.from_numpy(key.astype(np.int64)))
    np.testing.assert_array_equal(out, expected.numpy())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 2e-14)])
def test_noise_is_that_of_the_reference(dtype, tolerance):
    seed, first_row, N, K, L = 0x1234_5678_9ABC_DEF0, 2**32 - 2, 4, 2, 2000  # the row number crosses into its high word
    expected = standard_normal((N, L), torch.tensor(seed), num_samples=K, first_row=first_row, dtype=dtype)
    key = np.array([seed % 2**32, seed >> 32], np.uint32)
    eps = torch.empty(K, N, L, dtype=dtype)
    for k in range(K):
        for n in range(N):
            normals(key, k, first_row + n, eps[k, n].numpy())
    torch.testing.assert_close(eps, expected, rtol=0, atol=tolerance)


def test_float32_noise_against_float64_noise():
    key, n = random_words(2), 100_000
    single, double = np.empty(n, np.float32), np.empty(n)
    normals(key, 0, 0, single)
    normals(key, 0, 0, double)
    assert np.abs(single - double).max() <= 1e-6
    assert np.abs(double).max() <= 6.77


@njit
def extreme_normals(w, w_signed, out):
    for i in range(w.shape[0]):
        out[2 * i], out[2 * i + 1] = m.box_muller(w[i], w_signed[i], out[0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_extreme_words(dtype):
    w = np.array([0, 0, 2**32 - 1, 2**32 - 1], np.uint32)
    w_signed = np.array([0, 2**31, 2**31 - 1, 2**32 - 1], np.uint32)
    out = np.empty(8, dtype)
    extreme_normals(w, w_signed, out)
    radius = math.sqrt(2 * 33 * math.log(2))
    np.testing.assert_allclose(out, [radius, 0, -radius, 0, 0, 0, 0, 0], atol=1e-6)


HALVES = {  # to float32, from float32, the dtype
    "bfloat16": (m.bf16_to_f32, m.f32_to_bf16, torch.bfloat16),
    "float16": (m.f16_to_f32, m.f32_to_f16, torch.float16),
}


@njit
def convert(function, x, y):
    for i in range(x.shape[0]):
        y[i] = function(x[i])


def halves_of(x, dtype):
    return x.to(dtype).view(torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize("name", HALVES)
def test_half_precision_round_trip(name):
    widen, narrow, dtype = HALVES[name]
    x = np.arange(65536, dtype=np.uint16)
    y, back = np.empty(65536, np.float32), np.empty(65536, np.uint16)
    convert(widen, x, y)
    expected = torch.from_numpy(x.view(np.int16)).view(dtype).float().numpy()
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(np.signbit(y), np.signbit(expected))
    convert(narrow, y, back)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(back[number], x[number])
    convert(widen, back, y)
    assert np.isnan(y[~number]).all()


@pytest.mark.parametrize("name", HALVES)
def test_half_precision_rounding(name):
    _, narrow, dtype = HALVES[name]
    bits = random_words(200_000)
    bits[::2] = (bits[::2] & 0x8FFFFFFF) | 0x30000000  # half of them about 1e-9 .. 1e5, the range of float16
    bits[::5] = (bits[::5] & ~np.uint32(0xFFFF)) | 0x8000  # ties of bfloat16
    bits[::7] = (bits[::7] & ~np.uint32(0x1FFF)) | 0x1000  # ties of float16
    x = bits.view(np.float32)
    edges = [65504, 65519.99, 65520, 65536, 2**-14, 2**-24, 2**-25, 2**-26, 3.3895e38, 3.4e38, INF, -INF, 0.0, -0.0]
    x = np.concatenate([x[~np.isnan(x)], np.array(edges, np.float32)])
    y = np.empty(x.size, np.uint16)
    convert(narrow, x, y)
    np.testing.assert_array_equal(y, halves_of(torch.from_numpy(x), dtype))


def test_the_polynomial_of_phi_is_the_references():
    assert (torch.float32, torch.float64) == tuple(PHI_COEFFICIENTS)
    assert tuple(PHI_COEFFICIENTS.values()) == m.PHI


def test_scalar_functions_keep_their_own_flags():
    @_jit.math_jit
    def nearest(x):  # with the flags of the caller, the function that is compiled first, this would be x
        return (x + 1.5 * 2**52) - 1.5 * 2**52

    x = np.linspace(-10, 10, 97)
    np.testing.assert_array_equal(evaluate(nearest, x), np.rint(x))


def test_a_kernel_without_a_source_file_is_not_cached():
    names: dict = {}
    exec("def add_one(x):\n    return x + 1", names)
    assert _jit.jit(names["add_one"])(1) == 2


def test_a_cached_kernel_knows_the_sources_it_was_made_from():
    kernel = _jit.jit(fastmath=_jit.REDUCTION)(lambda x: x)
    assert kernel._cache._cache_file._source_stamp == _jit._STAMP
    assert kernel.targetoptions["nogil"]
    assert kernel.targetoptions["fastmath"] == _jit.REDUCTION
