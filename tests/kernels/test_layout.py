"""Layouts: names find their numbers, in groups too; slips are errors before anything runs."""

import numpy as np
import pytest

from fastvae_kernels.numba.language.jit import by_constant, kernel, loop_jit, math_jit, outlined
from fastvae_kernels.numba.language.layout import Layout, without_constants
from fastvae_kernels.numba.language.memory import F64, array_at
from fastvae_kernels.numba.language.threads import finished, run, take, worker

ROWS = Layout("x N")
SUMS = Layout("out factor:float", rows=ROWS)


@loop_jit
def sum_of(x, N):
    outlined()
    total = 0.0
    for n in range(N):
        total += x[n]
    return total


@loop_jit
def sum_of_squares(x, N):
    outlined()
    total = 0.0
    for n in range(N):
        total += x[n] * x[n]
    return total


moment = by_constant({1: sum_of, 2: sum_of_squares})


@math_jit
def moment_of(f, rows):
    return f.factor * moment(f.order, array_at(rows.x, rows.N, F64), rows.N)


def make_moment(order):
    @kernel(SUMS, order=order)
    def kernel_of_moments(f):
        me = worker(f.header)
        start, stop = take(f.header, me)
        while start < stop:
            array_at(f.out, 1, F64)[0] = moment_of(f, f.rows)
            finished(f.header, stop - start)
            start, stop = take(f.header, me)

    return kernel_of_moments


def test_members_are_found_by_name_and_functions_by_constant():
    x, out = np.arange(1.0, 6.0), np.zeros(1)
    rows = ROWS.pack(N=5, x=x.ctypes.data)
    for order in (1, 2):
        run(make_moment(order), SUMS.pack(rows=rows, factor=0.5, out=out.ctypes.data), 1, 0.0)
        assert out[0] == 0.5 * (x**order).sum()


def test_a_layout_gives_numbers_in_its_own_order():
    assert SUMS.pack(rows=ROWS.pack(N=2, x=1), factor=0.5, out=3) == (3, 0.5, 1, 2)
    assert (SUMS.size, SUMS.letters) == (4, "qdqq")


def test_places_of_numbers_and_groups_in_a_packed_block():
    block = list(SUMS.pack(rows=ROWS.pack(N=2, x=1), factor=0.5, out=3))
    assert [block[place] for place in SUMS.places("rows.N factor out rows.x")] == [2, 0.5, 3, 1]
    assert SUMS.places("rows") == [2]
    with pytest.raises(KeyError, match="strange"):
        SUMS.places("rows.strange")


@pytest.mark.parametrize("numbers", [{"x": 1}, {"x": 1, "N": 2, "D": 3}])
def test_a_missing_or_strange_name_is_an_error(numbers):
    with pytest.raises(TypeError, match=r"N|D"):
        ROWS.pack(**numbers)


def test_a_blank_block_has_the_groups_it_is_given():
    assert SUMS.blank(rows=ROWS.pack(N=2, x=1)) == [0, 0, 1, 2]


def test_a_layout_is_checked_as_it_is_made():
    with pytest.raises(ValueError, match="int, float, got double"):
        Layout("a:double")
    with pytest.raises(ValueError, match="twice: a"):
        Layout("a b", a=ROWS)
    with pytest.raises(ValueError, match="twice: out"):
        kernel(SUMS, out=1)(lambda f: None)


def test_an_unknown_member_is_named_by_the_compiler():
    def reads(f):
        f.strange  # noqa: B018

    with pytest.raises(Exception, match="Unknown attribute 'strange'"):
        kernel(SUMS)(reads)


@loop_jit
def doubled(rows):
    return 2 * rows.N


def test_a_group_without_constants_is_the_same_for_all_kernels():
    x, out = np.arange(1.0, 6.0), np.zeros(1)
    before = len(doubled.signatures)
    for order in (1, 2):

        @kernel(SUMS, order=order)
        def sizes(f):
            array_at(f.out, 1, F64)[0] = doubled(without_constants(f.rows)) + f.order

        run(sizes, SUMS.pack(rows=ROWS.pack(N=5, x=x.ctypes.data), factor=0.5, out=out.ctypes.data), 1, 0.0)
        assert out[0] == 10 + order
    assert len(doubled.signatures) == before + 1


def test_a_name_must_be_an_identifier():
    with pytest.raises(ValueError, match="identifier, got 'a-b'"):
        Layout("a-b")
    assert Layout("").pack() == ()
