"""The vectors of the Numba kernels: each operation lane by lane; exactly the right elements are read and written."""

import ctypes
import functools
import itertools
import mmap
from typing import Any

import numpy as np
import pytest
import torch

from fastvae_kernels.numba.language.jit import kernel
from fastvae_kernels.numba.language.layout import Layout
from fastvae_kernels.numba.language.math import like, select
from fastvae_kernels.numba.language.memory import (
    BF16,
    CODES,
    F32,
    F64,
    U8,
    U32,
    array_at,
    gather,
    number,
    read,
    scatter,
    sum_of,
    vector,
    weight_at,
    write,
)
from fastvae_kernels.numba.language.threads import run
from fastvae_kernels.numba.language.vector import (
    LANES_F32,
    LANES_F64,
    deinterleave,
    interleave_order,
    lanes,
    store_interleaved,
    total,
)

NUMPY: dict[int, Any] = {F32: np.float32, F64: np.float64, U32: np.uint32}
LANES = {F32: LANES_F32, F64: LANES_F64, U32: LANES_F32}
DTYPES = {F32: torch.float32, F64: torch.float64, BF16: torch.bfloat16, U8: torch.uint8}
NAMES = {F32: "float32", F64: "float64", BF16: "bfloat16", U8: "uint8", U32: "uint32"}.get
each_float = pytest.mark.parametrize("T", [F32, F64], ids=NAMES)
# elements in memory, and the dtype to compute in, which is never narrower
READ = [(F32, F32), (BF16, F32), (U8, F32), (F32, F64), (F64, F64), (BF16, F64), (U8, F64)]
WRITTEN = [(A, T) for A, T in READ if A != U8]


def call(kernel, *fields):
    """Call with the addresses of the arrays and tensors among the fields."""
    address = {np.ndarray: lambda a: a.ctypes.data, torch.Tensor: torch.Tensor.data_ptr}
    run(kernel, tuple(address[type(f)](f) if type(f) in address else f for f in fields), 1, 0)


@functools.cache
def make_arithmetic(T):
    @kernel(Layout("a_address b_address out_address n"))
    def arithmetic(f):
        a_address, b_address, out_address, n = f.a_address, f.b_address, f.out_address, f.n
        out, v = array_at(out_address, 15 * n, T), vector(T)
        one, zero = like(v, 1), like(v, 0)
        for i in range(0, n, lanes(v)):
            a, b = read(array_at(a_address, n, T), i, v), read(array_at(b_address, n, T), i, v)
            write(out, i, a + b)
            write(out, n + i, a - b)
            write(out, 2 * n + i, a * b)
            write(out, 3 * n + i, select(a < b, one, zero))
            write(out, 4 * n + i, select(a <= b, one, zero))
            write(out, 5 * n + i, select(a > b, one, zero))
            write(out, 6 * n + i, select(a >= b, one, zero))
            write(out, 7 * n + i, select(a == b, one, zero))
            write(out, 8 * n + i, select(a != b, one, zero))
            write(out, 9 * n + i, select((a < b) & (a > one), one, zero))
            write(out, 10 * n + i, select((a < b) | (a > one), one, zero))
            write(out, 11 * n + i, select((a < b) ^ (a > one), one, zero))
            if T == U32:
                write(out, 12 * n + i, a ^ b)
                write(out, 13 * n + i, a & b)
                write(out, 14 * n + i, a | b)
            else:
                write(out, 12 * n + i, a / b)
                write(out, 13 * n + i, -a)
                write(out, 14 * n + i, abs(a))

    return arithmetic


@pytest.mark.parametrize("T", [F32, F64, U32], ids=NAMES)
def test_arithmetic_comparisons_and_masks_lane_by_lane(T):
    rng = np.random.default_rng(0)
    if T == U32:
        numbers = np.array([0, 1, 2, 2**31 - 1, 2**31, 2**32 - 1, *rng.integers(0, 2**32, 10)], np.uint32)
    else:
        ends = [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, np.finfo(NUMPY[T]).max, np.finfo(NUMPY[T]).tiny]
        numbers = np.array([*ends, *rng.normal(size=7)], NUMPY[T])
    a, b = (x.ravel() for x in np.meshgrid(numbers, numbers))  # 256 pairs: whole vectors
    out = np.empty((15, a.size), NUMPY[T])
    call(make_arithmetic(T), a, b, out, a.size)
    less, above = a < b, a > 1
    with np.errstate(all="ignore"):
        expected = [a + b, a - b, a * b, less, a <= b, a > b, a >= b, a == b, a != b, less & above, less | above]
        expected += [less ^ above, *([a ^ b, a & b, a | b] if T == U32 else [a / b, -a, np.abs(a)])]
    for row, values in zip(out, expected, strict=True):
        np.testing.assert_array_equal(row, values.astype(NUMPY[T]))
    if T != U32:
        assert not np.signbit(out[14][~np.isnan(a)]).any()


@functools.cache
def make_sums(T):
    """The sum of the lanes of the first vector, and of a part of the array."""

    @kernel(Layout("x_address first length out_address"))
    def sums(f):
        x_address, first, length, out_address = f.x_address, f.first, f.length, f.out_address
        x, out, v = array_at(x_address, first + length, T), array_at(out_address, 2, T), vector(T)
        out[0] = total(read(x, 0, v))
        out[1] = sum_of(x, first, length, v)

    return sums


def by_halves(x):
    while x.size > 1:
        x = x[: x.size // 2] + x[x.size // 2 :]
    return x[0]


@each_float
def test_sums_are_taken_in_the_order_that_is_written(T):
    rng, n, out = np.random.default_rng(0), LANES[T], np.empty(2, NUMPY[T])
    for length, first in itertools.product((0, 1, n - 1, n, n + 1, 3 * n - 1, 10 * n + 5), (0, 1, n)):
        x = (rng.normal(size=first + length + n) * 10.0 ** rng.integers(-3, 4, first + length + n)).astype(NUMPY[T])
        call(make_sums(T), x, first, length, out)
        lanes_, whole = np.zeros((2, n), NUMPY[T]), first + length - length % n
        for j, i in enumerate(range(first, whole, n)):
            lanes_[j % 2] += x[i : i + n]
        expected = by_halves(lanes_[0] + lanes_[1])
        for i in range(whole, first + length):
            expected += x[i]
        assert out.tolist() == [by_halves(x[:n]), expected], (length, first)


@functools.cache
def make_apart():
    @kernel(Layout("x_address out_address"))
    def apart(f):
        x_address, out_address = f.x_address, f.out_address
        v = vector(F64)
        x, out = array_at(x_address, 16, F64), array_at(out_address, 16, F64)
        even, odd = deinterleave(read(x, 0, v), read(x, 8, v))
        write(out, 0, even)
        write(out, 8, odd)

    return apart


def test_lanes_taken_apart():
    x, out = np.random.default_rng(0).normal(size=16), np.empty(16)
    call(make_apart(), x, out)
    assert out.tolist() == [*x[::2], *x[1::2]]


@functools.cache
def make_interleave(T):
    @kernel(Layout("x_address out_address at"))
    def interleave(f):
        x_address, out_address, at = f.x_address, f.out_address, f.at
        v = vector(T)
        n = lanes(v)
        x, out = array_at(x_address, 4 * n, T), array_at(out_address, at + 4 * n, T)
        a, b, c, d = read(x, 0, v), read(x, n, v), read(x, 2 * n, v), read(x, 3 * n, v)
        store_interleaved(
            out, at, interleave_order(a, v), interleave_order(b, v), interleave_order(c, v), interleave_order(d, v)
        )

    return interleave


@each_float
def test_four_vectors_are_stored_interleaved(T):
    n = LANES[T]
    x = np.arange(4 * n, dtype=NUMPY[T])
    for at in range(n + 1):
        out = np.full(6 * n, -1, NUMPY[T])
        call(make_interleave(T), x, out, at)
        expected = [-1] * at + x.reshape(4, n).T.ravel().tolist()
        assert out.tolist() == expected + [-1] * (out.size - len(expected))


@functools.cache
def make_copy(A, B, T, vectors):
    """Read elements of dtype A from i on as T, and write them as dtype B from j on."""

    @kernel(Layout("x_address y_address i j n"))
    def copy(f):
        x_address, y_address, i, j, n = f.x_address, f.y_address, f.i, f.j, f.n
        x, y = array_at(x_address, i + n, A), array_at(y_address, j + n, B)
        v = vector(T) if vectors else number(T)
        for k in range(0, n, lanes(v) if vectors else 1):
            write(y, j + k, read(x, i + k, v))

    return copy


def numbers_of(code, n, seed=0):
    """Numbers of the dtype, most of them with full precision."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, dtype=torch.float64, generator=generator) * 255).to(DTYPES[code])


@pytest.mark.parametrize("vectors", [False, True], ids=["number", "vector"])
@pytest.mark.parametrize(("A", "B", "T"), [(A, B, T) for A, T in READ for B, also in WRITTEN if also == T], ids=NAMES)
def test_elements_are_read_and_written_at_any_position(A, B, T, vectors):
    x, step = numbers_of(A, 80), LANES[T] if vectors else 1
    for i, j, steps in itertools.product(range(18), range(18), (1, 2)):
        y = torch.full((80,), 7.0).to(DTYPES[B])
        expected, n = y.clone(), steps * step
        expected[j : j + n] = x[i : i + n].to(DTYPES[T]).to(DTYPES[B])
        call(make_copy(A, B, T, vectors), x, y, i, j, n)
        assert torch.equal(y, expected), (i, j)


def test_bool_is_read_as_zero_and_one():
    x, y = torch.rand(32) > 0.5, torch.empty(32)
    call(make_copy(CODES[x.dtype], F32, F32, True), x, y, 0, 0, 32)
    assert torch.equal(y, x.float())


@functools.cache
def make_move(A, T, back):
    """`gather`, or `scatter`."""

    @kernel(Layout("scratch room width address first_row rows stride first length"))
    def move(f):
        scratch, room, width, address, first_row, rows, stride, first, length = (
            f.scratch,
            f.room,
            f.width,
            f.address,
            f.first_row,
            f.rows,
            f.stride,
            f.first,
            f.length,
        )
        if back:
            scatter(array_at(scratch, room, T), width, address, first_row, rows, stride, first, length, A, vector(T))
        else:
            gather(array_at(scratch, room, T), width, address, first_row, rows, stride, first, length, A, vector(T))

    return move


def pieces(T):
    """(width, first_row, rows, stride, first, length), with contiguous, strided and identical rows."""
    n = LANES[T]
    for length in (0, 1, 3, n - 1, n, n + 1, 2 * n + 3):
        for width, first in itertools.product({length, -(-length // 4) * 4, length + n}, (0, 2)):
            for stride in {first + length, max(width, first + length), first + length + 5, 0}:
                for first_row, rows in ((0, 1), (2, 1), (0, 3), (1, 2), (1, 0)):
                    yield width, first_row, rows, stride, first, length


@pytest.mark.parametrize(("A", "T"), READ, ids=NAMES)
def test_gather_fills_the_scratch_with_elements_then_zeros_and_nothing_else(A, T):
    source = numbers_of(A, 400)
    for piece in pieces(T):
        width, first_row, rows, stride, first, length = piece
        room = torch.full((4 * width + 40,), 7, dtype=DTYPES[T])
        expected = room.clone()
        for i in range(rows):
            at, from_ = 5 + i * width, (first_row + i) * stride + first
            expected[at : at + width] = 0
            expected[at : at + length] = source[from_ : from_ + length].to(DTYPES[T])
        call(make_move(A, T, False), room[5:], room.numel() - 5, width, source, *piece[1:])
        assert torch.equal(room, expected), piece


@pytest.mark.parametrize(("A", "T"), WRITTEN, ids=NAMES)
def test_put_writes_the_elements_and_nothing_else(A, T):
    room = numbers_of(T, 400)
    for piece in pieces(T):
        width, first_row, rows, stride, first, length = piece
        if rows > 1 and stride == 0:
            continue
        target = torch.full((400,), 7, dtype=DTYPES[A])
        expected = target.clone()
        for i in range(rows):
            to = 5 + (first_row + i) * stride + first
            expected[to : to + length] = room[i * width : i * width + length].to(DTYPES[A])
        call(make_move(A, T, True), room, room.numel(), width, target[5:], *piece[1:])
        assert torch.equal(target, expected), piece


@pytest.mark.parametrize(("A", "T"), WRITTEN, ids=NAMES)
def test_nothing_beyond_the_last_row_is_touched(A, T):
    size, item, n = mmap.PAGESIZE, DTYPES[A].itemsize, LANES[T]
    pages = mmap.mmap(-1, 2 * size)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(size), 0)  # an access would crash
    room = torch.zeros(200, dtype=DTYPES[T])
    for length, back in itertools.product((1, n - 1, n, n + 1, 2 * n - 1), (True, False)):
        for stride in (length, length + 3):
            address = start + size - (stride + length) * item
            call(make_move(A, T, back), room, 200, length + n, address, 0, 2, stride, 0, length)
    assert not room.any()


@functools.cache
def make_weight(T):
    @kernel(Layout("address i out factor:float"))
    def weight(f):
        address, i, out, factor = f.address, f.i, f.out, f.factor
        array_at(out, 1, T)[0] = weight_at(address, i, factor, T)

    return weight


@each_float
def test_the_weight_is_the_factor_times_the_element_if_there_is_one(T):
    upstream, out, factor = numbers_of(T, 50), torch.empty(51, dtype=DTYPES[T]), torch.tensor(0.1, dtype=DTYPES[T])
    for i in range(50):
        call(make_weight(T), upstream, i, out[i:], 0.1)
    call(make_weight(T), 0, 3, out[50:], 0.1)
    assert torch.equal(out, torch.cat([factor * upstream, factor[None]]))
