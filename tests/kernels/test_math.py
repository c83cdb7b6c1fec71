"""The mathematical functions of the Numba kernels, on numbers and vectors, against mpmath, the reference and torch.

More than 400 lines: one kernel evaluates all functions, and all tests share the table of functions and their limits.
"""

import functools
import itertools
import math
import re
from unittest import mock

import mpmath
import numpy as np
import pytest
import torch
from numba.core.ccallback import CFunc

from fastvae.reference.elbo.formulas import PHI_COEFFICIENTS
from fastvae.reference.elbo.noise import philox as reference_philox
from fastvae.reference.elbo.noise import standard_normal
from fastvae_kernels.coefficients import EXP_LEAST, EXP_MAX, PHI
from fastvae_kernels.numba.language import jit
from fastvae_kernels.numba.language import math as m
from fastvae_kernels.numba.language.jit import kernel
from fastvae_kernels.numba.language.layout import Layout
from fastvae_kernels.numba.language.memory import BF16, F32, F64, U32, array_at, number, read, vector, write
from fastvae_kernels.numba.language.noise import box_muller, normal4, philox
from fastvae_kernels.numba.language.threads import run
from fastvae_kernels.numba.language.vector import LANES_F32, LANES_F64, lanes, words

FLOATS = {np.float32: F32, np.float64: F64}
each_float = pytest.mark.parametrize("dtype", FLOATS)
each_form = pytest.mark.parametrize("vectors", [False, True], ids=["number", "vector"])


@m.math_jit
def write_all(y, n, i, a):
    sin, cos = m.sincos_2pi(a)
    half_root, half_excess, half_phi = m.half_exponentials(a)
    write(y, i, m.exp(a))
    write(y, n + i, m.expm1(a))
    write(y, 2 * n + i, half_phi + half_phi)
    write(y, 3 * n + i, m.log(a))
    write(y, 4 * n + i, m.log1p(a))
    write(y, 5 * n + i, m.tanh(a))
    write(y, 6 * n + i, m.sigmoid(a))
    write(y, 7 * n + i, sin)
    write(y, 8 * n + i, cos)
    write(y, 9 * n + i, half_root + half_root)
    write(y, 10 * n + i, half_excess + half_excess)


@functools.cache
def make_functions(T, vectors):
    """All functions at each x, one number or one vector at a time."""

    @kernel(Layout("x_address y_address n"))
    def functions(f):
        x_address, y_address, n = f.x_address, f.y_address, f.n
        x, y = array_at(x_address, n, T), array_at(y_address, 11 * n, T)
        v = vector(T) if vectors else number(T)
        for i in range(0, n, lanes(v) if vectors else 1):
            write_all(y, n, i, read(x, i, v))

    return functions


@functools.cache
def make_exp_negative(T, vectors):
    """exp_negative of each x."""

    @kernel(Layout("x_address y_address n"))
    def exp_negative(f):
        x_address, y_address, n = f.x_address, f.y_address, f.n
        x, y = array_at(x_address, n, T), array_at(y_address, n, T)
        v = vector(T) if vectors else number(T)
        for i in range(0, n, lanes(v) if vectors else 1):
            write(y, i, m.exp_negative(read(x, i, v)))

    return exp_negative


@functools.cache
def make_noise(T, vectors):
    """The words of each counter, their normals, and two normals from the first words of the counter itself."""
    count = LANES_F64 if T == F64 else LANES_F32

    @kernel(Layout("counters key out z_address pair_address n"))
    def noise(f):
        counters, key, out, z_address, pair_address, n = f.counters, f.key, f.out, f.z_address, f.pair_address, f.n
        c, key_words = array_at(counters, 4 * n, U32), array_at(key, 2, U32)
        w, z, pair = array_at(out, 4 * n, U32), array_at(z_address, 4 * n, T), array_at(pair_address, 2 * n, T)
        k0, k1 = key_words[0], key_words[1]
        v = vector(T) if vectors else number(T)
        u = words(count) if vectors else np.uint32(0)
        for i in range(0, n, lanes(v) if vectors else 1):
            c0, c1, c2, c3 = read(c, i, u), read(c, n + i, u), read(c, 2 * n + i, u), read(c, 3 * n + i, u)
            w0, w1, w2, w3 = philox(c0, c1, c2, c3, k0, k1)
            z0, z1, z2, z3 = normal4(w0, w1, w2, w3, v)
            p0, p1 = box_muller(c0, c1, v)
            write(w, i, w0)
            write(w, n + i, w1)
            write(w, 2 * n + i, w2)
            write(w, 3 * n + i, w3)
            write(z, i, z0)
            write(z, n + i, z1)
            write(z, 2 * n + i, z2)
            write(z, 3 * n + i, z3)
            write(pair, i, p0)
            write(pair, n + i, p1)

    return noise


@functools.cache
def make_copy(A, B, T, vectors):
    """Read numbers of the dtype A as T, and write them as B."""

    @kernel(Layout("x y n"))
    def copy(f):
        x, y, n = f.x, f.y, f.n
        v = vector(T) if vectors else number(T)
        for i in range(0, n, lanes(v) if vectors else 1):
            write(array_at(y, n, B), i, read(array_at(x, n, A), i, v))

    return copy


def call(kernel, *fields):
    """Call with the addresses of the arrays among the fields."""
    run(kernel, tuple(f.ctypes.data if isinstance(f, np.ndarray) else f for f in fields), 1, 0)


def padded(x, n=16):
    """The arrays as rows, padded to a multiple of the vector width, and the original number of columns."""
    length = x.shape[-1]
    return np.concatenate([x, np.ones((*x.shape[:-1], -length % n), x.dtype)], -1), length


def exact_phi(t):
    return t * t / 2 * mpmath.hyp1f1(1, 3, t) if abs(t) < 1 else mpmath.expm1(t) - t


# name: (exact, worst error in ulp, from, to: the arguments for float32 and float64, up to where it overflows)
ANY = (3.4e38, 1.79e308)
FUNCTIONS = {  # in the order of `write_all`
    "exp": (mpmath.exp, 1.1, (-105.0, -750.0), (88.7, 709.7)),
    "expm1": (mpmath.expm1, 1.3, (-1e30, -1e300), (88.7, 709.7)),
    "phi": (exact_phi, 2.8, (-1e30, -1e300), (88.7, 709.7)),
    "log": (mpmath.log, 1.0, (1e-45, 5e-324), ANY),
    "log1p": (mpmath.log1p, 1.1, (0.0, 0.0), (1.0, 1.0)),
    "tanh": (mpmath.tanh, 4.0, (-1e30, -1e300), ANY),
    "sigmoid": (lambda x: 1 / (1 + mpmath.exp(-x)), 2.5, (-105.0, -750.0), (1e30, 1e300)),
    "sin": (lambda t: mpmath.sinpi(2 * t), 2.5, (-0.5, -0.5), (0.5, 0.5)),
    "cos": (lambda t: mpmath.cospi(2 * t), 2.5, (-0.5, -0.5), (0.5, 0.5)),
    "root": (lambda s: mpmath.exp(s / 2), 1.1, (-173.0, -1414.0), (177.4, 1419.5)),
    "excess": (mpmath.expm1, 1.5, (-1e30, -1e300), (88.7, 709.7)),
}


def evaluate(name, x, vectors=True):
    x, length = padded(x)
    y = np.empty((len(FUNCTIONS), x.size), x.dtype)
    call(make_functions(FLOATS[x.dtype.type], vectors), x, y, x.size)
    return y[[*FUNCTIONS].index(name), :length]


@functools.cache
def points(name, dtype, n=2000):
    """Evenly and geometrically spaced and special points of the function's domain, including subnormal numbers."""
    low, high = (float(end[dtype is np.float64]) for end in FUNCTIONS[name][2:])
    rng, info = np.random.default_rng(0), np.finfo(dtype)
    size = np.exp(rng.uniform(math.log(info.smallest_subnormal), math.log(info.max), n))
    near = [rng.uniform(max(low, -b), min(high, b), n) for b in (1.0, 4.0, 100.0, 750.0)]
    ends = [0.0, -0.0, info.tiny, info.smallest_subnormal, 0.5, 1.0, math.sqrt(0.5), 0.9, 2.0, low, high]
    x = np.concatenate([*near, size, -size, 10.0 ** rng.uniform(-8, 2, n), -(10.0 ** rng.uniform(-8, 2, n)), ends])
    edges = np.concatenate([np.nextafter(dtype(e), dtype(s)) for e in ends[4:] for s in (-9, 9)], axis=None)
    x = np.concatenate([x, edges]).astype(dtype)
    return x[(x >= dtype(low)) & (x <= dtype(high))]


@functools.cache
def exact_values(name, dtype, n=2000):
    """Exact values at the points, as float64 and the remainder."""
    exact = FUNCTIONS[name][0]
    with mpmath.workdps(40 if dtype is np.float64 else 25):
        values = [exact(mpmath.mpf(float(v))) for v in points(name, dtype, n)]
        head = np.array([float(v) for v in values])
        return head, np.array([float(v - h) for v, h in zip(values, head.tolist(), strict=True)])


@each_form
@each_float
@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_in_ulp(name, dtype, vectors, request):
    n = 2000 if request.config.getoption("--long") else 400
    x, (head, tail) = points(name, dtype, n), exact_values(name, dtype, n)
    y = evaluate(name, x, vectors)
    # For subnormal numbers, this is the spacing of the smallest normal ones.
    spacing = np.spacing(np.abs(head).astype(dtype)).astype(np.float64)
    errors = np.abs((y.astype(np.float64) - head) / spacing - tail / spacing)
    worst = int(np.argmax(errors))
    assert errors[worst] <= FUNCTIONS[name][1], f"{errors[worst]:.3f} ulp at {x[worst]!r}"
    if name == "phi":
        assert (y >= 0).all()


INF, NAN = math.inf, math.nan


@each_form
@each_float
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
        ("root", [0, -0.0, INF, -INF, NAN, 1e30, -1e30, -180 * 16], [1, 1, INF, 0, NAN, INF, 0, 0]),
        ("excess", [0, -0.0, INF, -INF, NAN, 1e30, -1e30, 1500], [0, 0, INF, -1, NAN, INF, -1, INF]),
        ("cos", [0, 0.25, -0.25, 0.5, -0.5, NAN], [1, 0, 0, -1, -1, NAN]),
    ],
)
def test_special_values(name, arguments, values, dtype, vectors):
    np.testing.assert_array_equal(evaluate(name, np.array(arguments, dtype), vectors), np.array(values, dtype))


@each_form
@pytest.mark.parametrize(("dtype", "largest", "smallest"), [(np.float32, 88.72, -103.9), (np.float64, 709.78, -745.1)])
def test_exp_up_to_its_ends(dtype, largest, smallest, vectors):
    x = np.array([largest, largest + 0.01, smallest, smallest - 0.3], dtype)
    y = evaluate("exp", x, vectors)
    assert np.isfinite(y[0])
    assert y[1] == INF
    assert y[2] == np.finfo(dtype).smallest_subnormal  # gradual underflow
    assert y[3] == 0


@each_form
@each_float
def test_where_e_to_the_s_overflows_its_root_does_not(dtype, vectors):
    most = EXP_MAX[dtype is np.float64]
    s = np.linspace(most + 0.1, 2 * most - 1, 1000, dtype=dtype)
    assert (evaluate("excess", s, vectors) == INF).all()
    assert (evaluate("phi", s, vectors) == INF).all()
    assert np.isfinite(evaluate("root", s, vectors)).all()


@each_float
@pytest.mark.parametrize("name", FUNCTIONS)
def test_same_bits_as_a_number_in_a_vector_and_alone(name, dtype):
    x = points(name, dtype)
    y = evaluate(name, x)
    bits = f"u{y.itemsize}"
    np.testing.assert_array_equal(evaluate(name, x, False).view(bits), y.view(bits))
    call_one = make_functions(FLOATS[dtype], False)
    for i in range(0, x.size, 29):  # so that LLVM has no loop to vectorize
        one = np.empty(len(FUNCTIONS), dtype)
        call(call_one, x[i:], one, 1)
        assert one[[*FUNCTIONS].index(name)].view(bits) == y[i].view(bits)


@each_form
@each_float
def test_no_function_of_libm_is_called(dtype, vectors):
    with (
        mock.patch.object(CFunc, "enable_caching", side_effect=RuntimeError),  # code from the cache cannot be read
        mock.patch.object(jit, "warn_once"),
    ):
        code = make_functions.__wrapped__(FLOATS[dtype], vectors).compiled.inspect_llvm()
    called = set(re.findall(r"declare [^@]*@([\w.]+)", code))
    assert all(name.startswith("llvm.f") for name in called), called  # fmuladd, fabs
    assert f"llvm.fmuladd.{'v16f32' if dtype is np.float32 else 'v8f64'}" in called or not vectors


# Known answers for philox4x32-10 by Salmon et al. (kat_vectors of Random123): counter, key, words.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def noise(counters, key, dtype=np.float32, vectors=True):
    """The words [4, n] of the counters [4, n], their normals [4, n], and two normals [2, n] of the counters' words."""
    counters, length = padded(np.ascontiguousarray(counters, np.uint32))
    n = counters.shape[1]
    out, z, pair = np.empty((4, n), np.uint32), np.empty((4, n), dtype), np.empty((2, n), dtype)
    call(make_noise(FLOATS[dtype], vectors), counters, np.array(key, np.uint32), out, z, pair, n)
    return out[:, :length], z[:, :length], pair[:, :length]


def random_words(*shape):
    return np.random.default_rng(0).integers(0, 2**32, shape, dtype=np.uint32)


@each_form
@each_float
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected, dtype, vectors):
    counter, key, expected = ([int(w, 16) for w in t.split()] for t in (counter, key, expected))
    counters = random_words(4, 20)
    counters[:, 13] = counter  # different in each lane: lanes are independent
    np.testing.assert_array_equal(noise(counters, key, dtype, vectors)[0][:, 13], expected)


@each_form
@each_float
def test_philox_words_are_those_of_the_reference(dtype, vectors):
    counters, key = random_words(4, 1000), random_words(2)
    expected = reference_philox(torch.from_numpy(counters.astype(np.int64)), torch.from_numpy(key.astype(np.int64)))
    np.testing.assert_array_equal(noise(counters, key, dtype, vectors)[0], expected.numpy())


@each_form
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float64, 2e-14)])
def test_noise_is_that_of_the_reference(dtype, tolerance, vectors):
    seed, first_row, N, K, L = 0x1234_5678_9ABC_DEF0, 2**32 - 2, 4, 2, 2000  # the high word of the row number changes
    torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
    expected = standard_normal(
        (N, L), torch.tensor(seed), num_samples=K, first_row=first_row, dtype=torch_dtype
    ).numpy()
    for k, n in itertools.product(range(K), range(N)):
        row = first_row + n
        counters = np.stack([np.arange(L // 4), *[np.full(L // 4, c) for c in (k, row % 2**32, row >> 32)]])
        _, eps, _ = noise(counters, [seed % 2**32, seed >> 32], dtype, vectors)
        np.testing.assert_allclose(eps.T.ravel(), expected[k, n], rtol=0, atol=tolerance)


@each_float
def test_same_noise_as_numbers_and_in_vectors(dtype):
    counters, key = random_words(4, 5000), random_words(2)
    for a, b in zip(noise(counters, key, dtype), noise(counters, key, dtype, False), strict=True):
        np.testing.assert_array_equal(a, b)


def test_float32_noise_against_float64_noise():
    counters, key = random_words(4, 25_000), random_words(2)
    single, double = (noise(counters, key, dtype)[1] for dtype in FLOATS)
    assert np.abs(single - double).max() <= 1e-6
    assert np.abs(double).max() <= 6.77


@each_form
@each_float
def test_extreme_words(dtype, vectors):
    w, w_signed = [0, 0, 2**32 - 1, 2**32 - 1], [0, 2**31, 2**31 - 1, 2**32 - 1]
    out = noise(np.array([w, w_signed, w, w]), [0, 0], dtype, vectors)[2].T.ravel()
    radius = math.sqrt(2 * 33 * math.log(2))
    np.testing.assert_allclose(out, [radius, 0, -radius, 0, 0, 0, 0, 0], atol=1e-6)


def from_bfloat16(half, dtype, vectors):
    y = np.empty(half.size, dtype)
    call(make_copy(BF16, FLOATS[dtype], FLOATS[dtype], vectors), half, y, y.size)
    return y


def to_bfloat16(x, vectors):
    x, length = padded(x)
    code, half = FLOATS[x.dtype.type], np.empty(x.size, np.uint16)
    call(make_copy(code, BF16, code, vectors), x, half, x.size)
    return half[:length]


@each_form
@each_float
def test_every_bfloat16_number_there_and_back(dtype, vectors):
    x = np.arange(65536, dtype=np.uint16)
    y = from_bfloat16(x, dtype, vectors)
    expected = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(np.signbit(y), np.signbit(expected))
    back = to_bfloat16(y, vectors)
    is_number = ~np.isnan(expected)
    np.testing.assert_array_equal(back[is_number], x[is_number])
    assert np.isnan(from_bfloat16(back, dtype, vectors)[~is_number]).all()


@each_form
@each_float
def test_bfloat16_is_rounded_to_nearest_even(dtype, vectors):
    pattern = random_words(200_000)
    pattern[::5] = (pattern[::5] & ~np.uint32(0xFFFF)) | 0x8000  # ties
    edges = [3.3895e38, 3.3961775e38, 3.4e38, 1e-45, 2.0**-126, INF, -INF, 0.0, -0.0]
    x = np.concatenate([pattern.view(np.float32), np.array(edges, np.float32)])
    x = x[~np.isnan(x)].astype(dtype)
    if dtype is np.float64:  # through float32, as in torch
        x = np.concatenate([x, np.random.default_rng(0).normal(size=10_000), [1e39, -1e300, 1e-300]])
    expected = torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(to_bfloat16(x, vectors), expected)


@each_form
def test_nan_stays_nan_in_bfloat16(vectors):
    x = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F8F8000, 0x7FC00000], np.uint32).view(np.float32)
    assert np.isnan(from_bfloat16(padded(to_bfloat16(x, vectors))[0], np.float32, vectors)[: x.size]).all()


@each_form
@each_float
def test_exp_of_a_weight_is_exp_down_to_where_it_counts_as_nothing(dtype, vectors):
    """Within a rounding error of exp; 0 from EXP_LEAST down; NaN is kept."""
    T, least = FLOATS[dtype], EXP_LEAST[dtype is np.float64]
    x = np.concatenate([np.linspace(least, 0, 4000), np.nextafter(least, [-np.inf, 0], dtype=dtype), [-np.inf, np.nan]])
    x = np.resize(x.astype(dtype), 4096)
    y = np.empty_like(x)
    call(make_exp_negative(T, vectors), x, y, len(x))
    want = np.where(x < least, 0, np.exp(x.astype(np.float64))).astype(dtype)
    np.testing.assert_array_max_ulp(y[~np.isnan(x)], want[~np.isnan(x)], 2)
    assert np.isnan(y[np.isnan(x)]).all()


def test_the_polynomial_of_phi_is_the_references():
    assert (torch.float32, torch.float64) == tuple(PHI_COEFFICIENTS)
    assert tuple(PHI_COEFFICIENTS.values()) == PHI
