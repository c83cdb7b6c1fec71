"""The results of B regressions, field by field: where they lie, and how eight are written and read, a lane each.

Fields that every user asks for are arrays [B, width] of their own. Those from STATE on, which only some ask for and the
steps to come, are one field, so that a problem's lie together.
"""

from ._jit import loop_jit, math_jit, outlined
from ._memory import F64, I64, array_at

(
    COEF, INTERCEPT, COEF_ERROR, INTERCEPT_ERROR, SIGMA2, UNBIASED, LOG_LIKELIHOOD, R2, RSS,
    CONDITION, RANK, DOUBTS,
    WEIGHT,  # of all rows
    SQUARES,  # sum w (y - ybar)^2
    MEANS,  # of columns, then targets
    INVERSE,  # of the Gram matrix, V, a lower triangle
    SMALL_COEF, SMALL_INTERCEPT,  # the small parts of pairs
    LENGTHS,  # of the centred columns
    SPREAD,  # variance of the intercept for a unit variance of the noise
    END,
) = range(21)  # fmt: skip
STATE = WEIGHT
REFINE, DEEPEN, FAR, NONFINITE, DEPENDENT, REPEAT = 1, 2, 4, 8, 16, 32  # DOUBTS: what is to be done, or wrong


@math_jit
def places(P, R):
    """Where each field begins, in units of B numbers, and at the end how many there are in all."""
    a = 2 * (P + 1) * R
    b = a + 5 * R
    c = b + 4 + R
    d = c + P + R + P * (P + 1) // 2
    e = d + (P + 1) * R
    return (
        0, P * R, (P + 1) * R, (2 * P + 1) * R, a, a + R, a + 2 * R, a + 3 * R, a + 4 * R,
        b, b + 1, b + 2, b + 3, b + 4, c, c + P + R, d, d + P * R, e, e + P, e + P + 1,
    )  # fmt: skip


@loop_jit
def choose_problems(units, problems, rows, log_weights, active, group, count, rows_at, log_weights_at, N):
    """Which problems are in the lanes of a group, and their rows and sums of log w; how many lanes have one of their
    own. The others repeat the last.
    """
    outlined()
    lanes_ = min(8, count - 8 * group)
    for lane in range(8):
        units[lane] = 8 * group + min(lane, lanes_ - 1)
        b = array_at(active + 8 * units[lane], 1, I64)[0]
        problems[lane] = b
        rows[lane] = array_at(rows_at + 8 * b, 1, F64)[0] if rows_at else N * 1.0
        log_weights[lane] = array_at(log_weights_at + 8 * b, 1, F64)[0] if log_weights_at else 0.0
    return lanes_


@loop_jit
def hand_out(out, record, at, B, problems, lanes_, first_of, last_of):
    """Write the fields of the problems in the lanes; of those that lie together some, from one place to another."""
    outlined()
    for f in range(STATE):
        first, last = at[f], at[f + 1]
        if last - first == 1:
            for lane in range(lanes_):
                out[first * B + problems[lane]] = record[first * 8 + lane]
        else:
            for lane in range(lanes_):
                to = first * B + problems[lane] * (last - first)
                for k in range(last - first):
                    out[to + k] = record[(first + k) * 8 + lane]
    for lane in range(lanes_):
        to = at[STATE] * B + problems[lane] * (at[END] - at[STATE]) - at[STATE]
        for k in range(first_of, last_of):
            out[to + k] = record[k * 8 + lane]


@loop_jit
def take_in(record, out, at, B, problems):
    """Coefficients, intercepts and all that lies together of eight problems, a lane each: the reverse of `hand_out`."""
    outlined()
    for f in range(STATE + 1):
        if INTERCEPT < f < CONDITION:  # are made anew
            continue
        first, last = at[f], at[END] if f == STATE else at[f + 1]
        for lane in range(8):
            source = first * B + problems[lane] * (last - first)
            for k in range(last - first):
                record[(first + k) * 8 + lane] = out[source + k]
