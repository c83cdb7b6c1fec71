"""Double-double arithmetic of the Numba kernels, and sums of products in it, against exact fractions."""

import functools
from fractions import Fraction

import numpy as np
import pytest

from fastvae_kernels.numba.language import blocks
from fastvae_kernels.numba.language.blocks import SIDE_ALONE, SIDE_EXACT
from fastvae_kernels.numba.language.double import (
    add_part,
    add_product,
    choose,
    constant,
    exact_product,
    exact_sum,
    high,
    load_number,
    low,
    number_zero,
    root,
    store_number,
)
from fastvae_kernels.numba.language.jit import kernel
from fastvae_kernels.numba.language.layout import Layout
from fastvae_kernels.numba.language.memory import F64, I64, array_at, read, write
from fastvae_kernels.numba.language.threads import run
from fastvae_kernels.numba.language.vector import lanes, total
from fastvae_kernels.numba.regression.sums import Sums, add, joined, multiply, two_product

OPERATIONS = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
}


def call(function, *fields):
    run(function, tuple(f.ctypes.data if isinstance(f, np.ndarray) else f for f in fields), 1, 0)


def exact(pairs):
    """The exact values of pairs [..., 2, 8], lane by lane."""
    return [[Fraction(h) + Fraction(small) for h, small in zip(*p, strict=True)] for p in pairs.tolist()]


def random_pairs(count, seed, spread=20):
    """Pairs of both signs and very different exponents, some with a low part of 0."""
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(count, 8)) * 2.0 ** rng.integers(-spread, spread, (count, 8))
    small = h * rng.uniform(-0.5, 0.5, h.shape) * 2.0**-53
    small[rng.uniform(size=h.shape) < 0.2] = 0
    return np.stack([h, small], axis=1)


@functools.cache
def make_arithmetic():
    @kernel(Layout("a_address b_address out_address n"))
    def arithmetic(f):
        a_address, b_address, out_address, n = f.a_address, f.b_address, f.out_address, f.n
        a, b = array_at(a_address, 16 * n, F64), array_at(b_address, 16 * n, F64)
        out, x = array_at(out_address, 16 * 8 * n, F64), number_zero(1)
        for i in range(n):
            p, q = load_number(a, i, x), load_number(b, i, x)
            store_number(out, i, p + q)
            store_number(out, n + i, p - q)
            store_number(out, 2 * n + i, p * q)
            store_number(out, 3 * n + i, p / q)
            store_number(out, 4 * n + i, root(p * p))
            store_number(out, 5 * n + i, exact_product(high(p), high(q)))
            store_number(out, 6 * n + i, exact_sum(high(p), high(q)))
            store_number(out, 7 * n + i, choose(high(p) < high(q), p, -q))

    return arithmetic


def test_pairs_are_right_to_102_bits():
    n = 200
    a, b, out = random_pairs(n, 0), random_pairs(n, 1), np.empty((8, n, 2, 8))
    call(make_arithmetic(), a, b, out, n)
    p, q = exact(a), exact(b)
    for k, operation in enumerate(OPERATIONS.values()):
        for got, x, y in zip(exact(out[k]), p, q, strict=True):
            for g, s, t in zip(got, x, y, strict=True):
                want = operation(s, t)
                assert abs(g - want) <= abs(want) * Fraction(1, 2**102)
    for k in range(8):  # high and low parts do not overlap
        assert (np.abs(out[k, :, 1]) <= np.abs(out[k, :, 0]) * 2.0**-52).all()
    for got, x in zip(exact(out[4]), p, strict=True):
        for g, s in zip(got, x, strict=True):
            assert abs(g - abs(s)) <= abs(s) * Fraction(1, 2**100)
    h, g = a[:, 0].tolist(), b[:, 0].tolist()
    products, sums = exact(out[5]), exact(out[6])
    for i in range(n):
        for lane in range(8):
            s, t = Fraction(h[i][lane]), Fraction(g[i][lane])
            assert products[i][lane] == s * t
            assert sums[i][lane] == s + t
    np.testing.assert_array_equal(out[7], np.where((a[:, :1] < b[:, :1]), a, -b))


@functools.cache
def make_sums_above():
    @kernel(Layout("a_address b_address out_address n first:float"))
    def sums_above(f):
        a_address, b_address, out_address, n, first = f.a_address, f.b_address, f.out_address, f.n, f.first
        a, b = array_at(a_address, 8 * n, F64), array_at(b_address, 8 * n, F64)
        out, x = array_at(out_address, 16, F64), number_zero(1)
        p = constant(x, first)
        for i in range(n):
            p = add_product(add_part(p, read(b, 8 * i, high(x))), read(a, 8 * i, high(x)), read(b, 8 * i, high(x)))
        store_number(out, 0, exact_sum(high(p) - high(constant(x, first)), low(p)))

    return sums_above


def test_sums_above_all_that_comes_are_right_to_100_bits_of_it():
    n = 50
    a, b, out = random_pairs(n, 0)[:, 0].copy(), random_pairs(n, 1)[:, 0].copy(), np.empty((1, 2, 8))
    b[n // 2 :], a[n // 2 :] = -b[: n // 2], a[: n // 2] * (1 + 2.0**-50)  # all but the last of 106 bits cancel
    terms = [
        [Fraction(y) * (1 + Fraction(x)) for x, y in zip(*rows, strict=True)]
        for rows in zip(a.tolist(), b.tolist(), strict=True)
    ]
    most = max(sum(abs(t[lane]) for t in terms) for lane in range(8)) + max(map(Fraction, np.abs(b).max(0).tolist()))
    call(make_sums_above(), a, b, out, n, 4.0 * float(most))
    for lane, got in enumerate(exact(out)[0]):
        assert abs(got - sum(t[lane] for t in terms)) <= most * Fraction(1, 2**100)


@functools.cache
def make_products(count):
    @kernel(Layout("z_address acc_address sums_address S T"))
    def products(f):
        z_address, acc_address, sums_address, S, T = f.z_address, f.acc_address, f.sums_address, f.S, f.T
        z = array_at(z_address, count * S, F64)
        acc = array_at(acc_address, count * count * 8, F64)
        sums = array_at(sums_address, count * (count + 1) // 2, F64)
        blocks.add_all_products(acc, z, S, T // 2, 1, z_address, 64, count)
        blocks.add_all_products(acc, z[T // 2 :], S, T // 2, 0, 0, 64, count)
        blocks.store_totals(sums, acc, count)

    return products


@pytest.mark.parametrize("count", range(2, blocks.UNROLLED + 1))
def test_products_of_all_columns(count):
    # each number of columns is split into different groups; integers, so that any order of summation is exact;
    # prefetching beyond the end is harmless
    rng = np.random.default_rng(count)
    T, S = 48, 56
    z = np.full((count, S), np.nan)
    z[:, :T] = rng.integers(-9, 9, (count, T))
    acc, sums = np.full((count, count, 8), np.nan), np.full(count * (count + 1) // 2 + 1, -1.0)
    call(make_products(count), z, acc, sums, S, T)
    i, j = np.tril_indices(count)
    np.testing.assert_array_equal(sums[:-1], (z[:, :T] @ z[:, :T].T)[i, j])
    assert sums[-1] == -1  # nothing is written after them


@functools.cache
def make_blocks():
    @kernel(Layout("z_address acc_address out_address S T"))
    def two_blocks(f):
        z_address, acc_address, out_address, S, T = f.z_address, f.acc_address, f.out_address, f.S, f.T
        side = blocks.SIDE
        z = array_at(z_address, 2 * side * S, F64)
        acc = array_at(acc_address, 4 * side * side * 8, F64)
        out = array_at(out_address, 4 * side * side, F64)
        u = blocks.partial_sums()
        for i in range(0, 2 * side, side):
            blocks.add_block(acc, 2 * side, z, i, i, S, T, 1, z_address, True)
        blocks.add_block(acc, 2 * side, z, side, 0, S, T, 1, 0, False)
        for k in range(4 * side * side):
            out[k] = total(read(acc, k * blocks.LANES_REGISTER, u))

    return two_blocks


def test_blocks_of_products():
    n, T, S = 2 * blocks.SIDE, 24, 32
    z = np.zeros((n, S))
    z[:, :T] = np.random.default_rng(0).integers(-9, 9, (n, T))
    acc, out = np.zeros((n, n, 8)), np.empty((n, n))
    call(make_blocks(), z, acc, out, S, T)
    np.testing.assert_array_equal(np.tril(out), np.tril(z @ z.T))


@functools.cache
def make_exact_blocks():
    @kernel(Layout("a_address z_address acc_address out_address where_address S T one:float"))
    def exact_block(f):
        a_address, z_address, acc_address, out_address, where_address, S, T, one = (
            f.a_address,
            f.z_address,
            f.acc_address,
            f.out_address,
            f.where_address,
            f.S,
            f.T,
            f.one,
        )
        side = SIDE_EXACT
        gap = side * S
        a, z = array_at(a_address, 2 * gap, F64), array_at(z_address, 2 * gap, F64)
        room = (side * side + 7) // 8 * 8
        acc, out = array_at(acc_address, side * side * 16, F64), array_at(out_address, 2 * room, F64)
        where, u = array_at(where_address, room, I64), blocks.partial_sums()
        blocks.add_exact_block(acc, side, a, z, 0, 0, S, T, 1, gap, one, False)
        for k in range(0, side * side, lanes(u)):
            some = blocks.totals_of_pairs(acc, where, k)
            write(out, 2 * k, high(some))
            write(out, 2 * k + lanes(u), low(some))

    return exact_block


def products_that_cancel(side, T, S):
    """Pairs a and z, ``side`` columns each, whose sums of products cancel except for the last of 106 bits."""
    rng = np.random.default_rng(0)
    a, z = (rng.normal(size=(2, side, S)) * [[[1.0]], [[2.0**-54]]] for _ in range(2))
    z[:, :, T // 2 : T] = -z[:, :, : T // 2]
    a[:, :, T // 2 : T] = a[:, :, : T // 2] * (1 + 2.0**-40)
    return a, z


def exact_products(a, z, i, j, T):
    x, y = ([Fraction(h) + Fraction(s) for h, s in zip(*p.tolist(), strict=True)] for p in (a[:, i, :T], z[:, j, :T]))
    return [s * t for s, t in zip(x, y, strict=True)]


def test_sums_of_products_of_pairs_that_cancel():
    side, T, S = SIDE_EXACT, 96, 104
    a, z = products_that_cancel(side, T, S)
    room, L = -(-side * side // 8) * 8, blocks.LANES_REGISTER
    where = np.minimum(np.arange(room), side * side - 1) * 2 * L
    acc, out = np.zeros((side, side, 16)), np.empty((room // L, 2, L))
    call(make_exact_blocks(), a, z, acc, out, where, S, T, 1.0)
    totals = out.transpose(0, 2, 1).reshape(room, 2)[: side * side].reshape(side, side, 2)
    for i in range(side):
        for j in range(side):
            products = exact_products(a, z, i, j, T)
            got = sum(map(Fraction, totals[i, j].tolist()))
            size = sum(map(abs, products), Fraction())
            assert abs(Fraction(got - sum(products))) <= size * Fraction(1, 2**100)


@functools.cache
def make_blocks_above():
    @kernel(Layout("a_address z_address acc_address S T"))
    def block_above(f):
        a_address, z_address, acc_address, S, T = f.a_address, f.z_address, f.acc_address, f.S, f.T
        a, z = array_at(a_address, SIDE_ALONE * S, F64), array_at(z_address, 2 * S, F64)
        acc = array_at(acc_address, 2 * SIDE_ALONE * blocks.LANES_REGISTER, F64)
        blocks.add_above(acc, a, z, 0, S, T, S)

    return block_above


def test_sums_of_products_above_all_that_comes():
    T, S, L = 96, 104, blocks.LANES_REGISTER
    a, z = products_that_cancel(SIDE_ALONE, T, S)
    a[1], z = 0.0, z[:, 0].copy()
    acc = np.zeros((SIDE_ALONE, 2, L))
    first = 4 * np.linalg.norm(a[0, :, :T], axis=1) * np.linalg.norm(z[0, :T])  # Cauchy-Schwarz
    acc[:, 0] = first[:, None]
    call(make_blocks_above(), a[0].copy(), z, acc, S, T)
    for i in range(SIDE_ALONE):
        products = exact_products(a, z[:, None], i, 0, T)
        got = sum(map(Fraction, acc[i].ravel().tolist()), -L * Fraction(first[i].item()))
        assert abs(Fraction(got - sum(products))) <= Fraction(first[i].item()) * Fraction(1, 2**100)


def test_pairs_in_numpy():
    a, b = random_pairs(100, 2), random_pairs(100, 3)
    p, q = (a[:, 0], a[:, 1]), (b[:, 0], b[:, 1])
    for function, operation in ((add, OPERATIONS["add"]), (multiply, OPERATIONS["multiply"])):
        for got, x, y in zip(exact(np.stack(function(p, q), axis=1)), exact(a), exact(b), strict=True):
            for g, s, t in zip(got, x, y, strict=True):
                assert abs(g - operation(s, t)) <= abs(operation(s, t)) * Fraction(1, 2**100)
    for h, small, s, t in zip(*(x.ravel().tolist() for x in (*two_product(p[0], q[0]), p[0], q[0])), strict=True):
        assert Fraction(h) + Fraction(small) == Fraction(s) * Fraction(t)


def test_sums_about_other_centers_are_the_same_sums():
    # integers, so that sums about integers are exact in any order
    rng = np.random.default_rng(0)
    P, R = 3, 2
    z = rng.integers(-99, 99, (50, P + R)).astype(float)
    centers = rng.integers(-9, 9, (2, P + R)).astype(float)

    def of(rows, center):
        c = np.c_[np.ones(len(rows)), rows - center]
        numbers = [c[:, i] @ c[:, j] for i in range(P + 1) for j in range(i + 1)]
        for i in range(P + 1, P + 1 + R):
            numbers += [*(c[:, i] @ c[:, j] for j in range(P + 1)), c[:, i] @ c[:, i]]
        pairs = np.stack([numbers, np.zeros(len(numbers))], axis=-1)[None]
        return Sums(pairs, np.r_[0.0, center][None], np.array([len(rows)]), np.zeros(1), P, R, True, True)

    both = joined(of(z[:20], centers[0]), of(z[20:], centers[1]))
    np.testing.assert_array_equal(both.numbers, of(z, centers[0]).numbers)
    assert both.rows == 50
