"""Where results and scratch lie: offsets are the sums of the sizes before them, and kernels read what Python wrote."""

import numpy as np
import pytest

from fastvae_kernels.numba.regression import estimates, gram, refine, residual
from fastvae_kernels.numba.regression.fields import FIELDS, SEPARATE, Offsets, separate_sizes, state_sizes
from fastvae_kernels.numba.regression.launch import Problems


def test_offsets_are_the_sums_of_sizes():
    offsets = Offsets(lambda n: {"a": n, "b": 2 * n, "c": 1}, 1)
    assert offsets.of(3) == (0, 3, 9, 10)
    assert offsets.of(3).c == 9
    assert (offsets.layout.letters, [*offsets.layout.members]) == ("qqqq", ["a", "b", "c", "end"])
    assert Offsets(lambda n: {"a": n}, 1, unit=8).of(9).end == 16


def test_the_fields_of_a_shape():
    # P = 2, R = 3, by hand
    at = FIELDS.of(2, 3)
    assert at[: SEPARATE + 1] == (0, 6, 9, 15, 18, 21, 24, 27, 30, 33, 34, 35, 36)
    assert at[SEPARATE:] == (36, 37, 40, 45, 47, 50, 56, 59, 61, 62)
    assert at.end == sum(separate_sizes(2, 3).values()) + sum(state_sizes(2, 3).values())


def test_no_field_is_both_separate_and_state():
    assert not separate_sizes(1, 1).keys() & state_sizes(1, 1).keys()


@pytest.mark.parametrize("module", [estimates, gram, refine, residual])
def test_scratch_is_whole_cache_lines(module):
    shape = range(1, 1 + module.scratch_sizes.__code__.co_argcount)
    sizes, begins = module.scratch_sizes(*shape), module.SCRATCH.of(*shape)
    assert begins.end % 8 == 0
    assert sum(sizes.values()) <= begins.end < sum(sizes.values()) + 8


@pytest.mark.parametrize("B", [1, 3])
def test_fields_are_views_that_do_not_overlap(B):
    m = Problems((B, 10, 2, 3), None, None, 0.0, True)
    m.out[:] = np.nan
    for k, name in enumerate(FIELDS.index):
        if name != "end":
            field = m.field(name, -1)
            assert np.isnan(field).all(), name
            field[:] = k
    assert not np.isnan(m.out).any()
    for k, name in enumerate(FIELDS.index):
        if name != "end":
            assert (m.field(name, -1) == k).all(), name
