"""The results of B regressions, field by field: where they lie, and how eight are written and read, a lane each.

Fields that every user asks for are arrays [B, width] of their own. Those from STATE on, which only some ask for and the
steps to come, are one field, so that a problem's lie together.
"""

from ..language.jit import loop_jit, math_jit, outlined
from ..language.memory import F64, I64, array_at, read, vector, write
from ..language.transpose import into_lanes, out_of_lanes

(
    COEF, INTERCEPT, COEF_ERROR, INTERCEPT_ERROR, SIGMA2, UNBIASED, LOG_LIKELIHOOD, R2, RSS,
    CONDITION, RANK, DOUBTS,
    WEIGHT,  # of all rows
    SQUARES,  # sum w (y - ybar)^2
    MEANS,  # of columns, then targets
    SMALL_MEANS,  # of columns: what rounding left of a mean, which is large beside what is summed about it
    INVERSE,  # of the Gram matrix, V, a lower triangle
    SMALL_COEF, SMALL_INTERCEPT,  # the small parts of pairs
    LENGTHS,  # of the centred columns
    SPREAD,  # variance of the intercept for a unit variance of the noise
    END,
) = range(22)  # fmt: skip
STATE = WEIGHT
REFINE, DEEPEN, FAR, NONFINITE, DEPENDENT, REPEAT = 1, 2, 4, 8, 16, 32  # DOUBTS: what is to be done, or wrong


@math_jit
def places(P, R):
    """Where each field begins, in units of B numbers, and at the end how many there are in all."""
    a = 2 * (P + 1) * R
    b = a + 5 * R
    c = b + 4 + R
    d = c + 2 * P + R + P * (P + 1) // 2
    e = d + (P + 1) * R
    return (
        0, P * R, (P + 1) * R, (2 * P + 1) * R, a, a + R, a + 2 * R, a + 3 * R, a + 4 * R,
        b, b + 1, b + 2, b + 3, b + 4, c, c + P + R, c + 2 * P + R, d, d + P * R, e, e + P, e + P + 1,
    )  # fmt: skip


@loop_jit
def choose_problems(units, problems, rows, log_weights, active, group, count, rows_at, log_weights_at, N):
    """Which problems are in the lanes of a group, and their rows and sums of log w. Lanes that are left over have the
    last problem as well, and do as that does.
    """
    outlined()
    lanes_ = min(8, count - 8 * group)
    for lane in range(8):
        units[lane] = 8 * group + min(lane, lanes_ - 1)
        b = array_at(active + 8 * units[lane], 1, I64)[0]
        problems[lane] = b
        rows[lane] = array_at(rows_at + 8 * b, 1, F64)[0] if rows_at else N * 1.0
        log_weights[lane] = array_at(log_weights_at + 8 * b, 1, F64)[0] if log_weights_at else 0.0


@loop_jit
def find_rows(rows, start, size, numbers):
    """The addresses at which rows of ``size`` float64 begin, given their numbers, the first of all at ``start``."""
    rows = array_at(rows, 8, I64)
    for lane in range(8):
        rows[lane] = start + 8 * size * numbers[lane]


@loop_jit
def hand_out(out, record, at, B, problems, rows, first_of, last_of):
    """Write the fields of the problems in the lanes; of those that lie together some, from one place to another.

    ``out``, ``record`` and ``rows``, room for eight, are addresses.
    """
    outlined()
    v, neighbours = vector(F64), problems[6] - problems[0] == 6 and problems[7] - problems[6] == 1  # for they ascend
    for f in range(STATE):
        first, size = at[f], at[f + 1] - at[f]
        if size == 1 and neighbours:
            field = array_at(out + 8 * (first * B + problems[0]), 8, F64)
            write(field, 0, read(array_at(record + 64 * first, 8, F64), 0, v))
        else:
            find_rows(rows, out + 8 * first * B, size, problems)
            out_of_lanes(rows, record + 64 * first, size)
    find_rows(rows, out + 8 * (at[STATE] * B + first_of - at[STATE]), at[END] - at[STATE], problems)
    out_of_lanes(rows, record + 64 * first_of, last_of - first_of)


@loop_jit
def take_in(record, out, at, B, problems, rows):
    """Coefficients, intercepts, rank and all that lies together: the reverse of `hand_out`."""
    outlined()
    for f in (COEF, INTERCEPT, CONDITION, RANK):
        find_rows(rows, out + 8 * at[f] * B, at[f + 1] - at[f], problems)
        into_lanes(record + 64 * at[f], rows, at[f + 1] - at[f])
    find_rows(rows, out + 8 * at[STATE] * B, at[END] - at[STATE], problems)
    into_lanes(record + 64 * at[STATE], rows, at[END] - at[STATE])
