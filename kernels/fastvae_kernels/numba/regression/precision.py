"""Where estimates in float64 and in double-double differ: functions chosen by the constant ``pairs`` of the kernel.

Dependent columns are left out in double-double alone, where the solution is the one of minimum norm. In float64 the
errors of coefficients are bounded one by one; in double-double the condition alone tells whether residuals are needed.
"""

from ..language.double import high, load_number
from ..language.jit import by_constant, loop_jit, math_jit, outlined
from ..language.math import like, select
from ..language.memory import F64, I64, array_at, section
from .factor import UNIT, exceeds_tolerance
from .fields import DEPENDENT, REPEAT, TO_DOUBLE_DOUBLE
from .lanes import UNITS
from .rank import null_vectors, orthonormalize, project, projector, shorten

UNIT_PAIRS = 2.0**-103
FLOAT64, PAIRS = range(2)


@math_jit
def leave(f, mine, x):
    """In float64 a dependent column is only noted, and V has no low parts."""


@math_jit
def project_to_minimum_norm(f, mine, x):
    """V of the solution of minimum norm, and the projection to it."""
    s, P = f.scratch, f.problems.P
    nulls, dropped = section(mine, s.nulls, s.end), section(mine, s.dropped, s.end)
    null_vectors(nulls, section(mine, s.M, s.end), section(mine, s.sums, s.end), dropped, P, x)
    orthonormalize(nulls, P, x)
    projector(nulls, P, x)
    project(nulls, section(mine, s.V, s.end), P, x)


@math_jit
def shorten_to_minimum_norm(f, mine, x):
    """The coefficients of minimum norm."""
    shorten(
        section(mine, f.scratch.nulls, f.scratch.end), section(mine, f.scratch.coef, f.scratch.end), f.problems.P, x
    )


@math_jit
def is_uncertain_float64(f, mine, r, y2, x):
    """1 in the lanes where the bound of an error exceeds the tolerance."""
    s, P = f.scratch, f.problems.P
    V, scale, mean = section(mine, s.V, s.end), section(mine, s.scale, s.end), section(mine, s.mean, s.end)
    intercept = load_number(section(mine, s.record, s.end), f.results.at.intercept + r, y2)
    return exceeds_tolerance(
        V, scale, mean, section(mine, s.coef, s.end), intercept, y2, high(load_number(mean, P + r, x)),
        f.limits.tolerance, P, f.problems.fit_intercept, x,
    )  # fmt: skip


@math_jit
def is_uncertain_pairs(f, mine, r, y2, x):
    """Of pairs, `flags_pairs` tells it of all targets."""
    return like(y2, 0)


@math_jit
def flags_float64(f, squared, dependent):
    """Whether double-double is needed, in each lane."""
    accurate = like(squared, UNIT * f.problems.P) * squared <= like(squared, f.limits.most_error)
    deeper = select(accurate, dependent, like(squared, 1))
    return select(deeper > like(squared, 0), like(squared, TO_DOUBLE_DOUBLE), like(squared, 0))


@math_jit
def flags_pairs(f, squared, dependent):
    """Whether columns are dependent, and whether one correction by residuals is enough, in each lane."""
    zero, left = like(squared, 0), like(squared, UNIT_PAIRS * f.problems.P) * squared
    flags = select(dependent > zero, like(squared, DEPENDENT), zero)
    return flags + select(left <= like(squared, f.limits.tolerance), zero, like(squared, REPEAT))


@math_jit
def store_low_parts(f, mine, x):
    """The low parts of V, for corrections in double-double."""
    if f.small:
        T, units = f.problems.P * (f.problems.P + 1) // 2, array_at(mine + 8 * (f.scratch.lanes + UNITS), 8, I64)
        copy_low_parts(f.small, section(mine, f.scratch.V, f.scratch.end), units, T)


@loop_jit
def copy_low_parts(small, V, units, T):
    """Of T numbers of each problem of a batch, to the address ``small``."""
    outlined()
    for lane in range(8):
        to = array_at(small + 8 * units[lane] * T, T, F64)
        for k in range(T):
            to[k] = V[(2 * k + 1) * 8 + lane]


project_inverse = by_constant({FLOAT64: leave, PAIRS: project_to_minimum_norm})
shorten_coefficients = by_constant({FLOAT64: leave, PAIRS: shorten_to_minimum_norm})
is_uncertain = by_constant({FLOAT64: is_uncertain_float64, PAIRS: is_uncertain_pairs})
next_step = by_constant({FLOAT64: flags_float64, PAIRS: flags_pairs})
store_small = by_constant({FLOAT64: leave, PAIRS: store_low_parts})
