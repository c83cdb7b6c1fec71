"""Transposing rows into lanes, and back: every width, since each has its own code, and rows at any position."""

import functools

import numpy as np
import pytest

from fastvae_kernels.numba.language.jit import kernel
from fastvae_kernels.numba.language.layout import Layout
from fastvae_kernels.numba.language.memory import F32, F64, array_at
from fastvae_kernels.numba.language.threads import run
from fastvae_kernels.numba.language.transpose import lanes_to_rows, load, rows_to_lanes

WIDTHS = [*range(1, 10), 13]  # up to three separately; then four at a time, where the last four may overlap
CODES = {np.float32: F32, np.float64: F64}
S = 40


def call(function, *fields):
    run(function, tuple(f.ctypes.data if isinstance(f, np.ndarray) else f for f in fields), 1, 0)


@functools.cache
def make_load():
    @kernel(Layout("xt x code row stride rows T D shift"))
    def load_rows(f):
        xt, x, code, row, stride, rows, T, D, shift = f.xt, f.x, f.code, f.row, f.stride, f.rows, f.T, f.D, f.shift
        load(array_at(xt, D * S, F64), x, code, row, stride, rows, T, D, S, array_at(shift, D, F64))

    return load_rows


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("gap", [0, 3])
@pytest.mark.parametrize("width", WIDTHS)
def test_rows_are_turned(width, gap, dtype):
    rng = np.random.default_rng(width)
    for rows, first in ((1, 0), (3, 2), (8, 0), (29, 5)):  # one row, fewer than four, a full vector, with a remainder
        x = rng.normal(size=(first + rows, width + gap)).astype(dtype)
        memory = x.ravel()[: x.size - gap].copy()  # ends with the last row
        shift, T, xt = rng.normal(size=width), -(-rows // 8) * 8, np.full((width, S), -1.0)
        call(make_load(), xt, memory, CODES[dtype], first, width + gap, rows, T, width, shift)
        np.testing.assert_array_equal(xt[:, :rows], (x[first:, :width].astype(np.float64) - shift).T)
        np.testing.assert_array_equal(xt[:, rows:T], 0.0)
        np.testing.assert_array_equal(xt[:, T:], -1.0)


@functools.cache
def make_lanes():
    @kernel(Layout("inside rows rows_of_copy width"))
    def lanes(f):
        inside, rows, rows_of_copy, width = f.inside, f.rows, f.rows_of_copy, f.width
        rows_to_lanes(inside, rows, width)
        lanes_to_rows(rows_of_copy, inside, width)

    return lanes


@pytest.mark.parametrize("width", WIDTHS)
def test_eight_rows_go_into_lanes_and_come_back(width):
    x = np.random.default_rng(width).normal(size=(30, width))
    copy, inside = np.zeros_like(x), np.full((width + 1, 8), -1.0)
    where = np.array([3, 29, 0, 12, 13, 14, 7, 7])  # unused lanes repeat the last row
    rows = x.ctypes.data + where * x.strides[0]
    call(make_lanes(), inside, rows, copy.ctypes.data + where * x.strides[0], width)
    np.testing.assert_array_equal(inside[:width], x[where].T)
    np.testing.assert_array_equal(inside[width], -1.0)
    np.testing.assert_array_equal(copy[where], x[where])
    others = np.setdiff1d(np.arange(30), where)
    np.testing.assert_array_equal(copy[others], 0.0)
