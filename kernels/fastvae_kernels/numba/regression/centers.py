"""What the columns of a problem are centered about: its first few rows say roughly where their means are.

The mean is taken off later, see `factor.center_sums`; sums about a center near it have lost few digits by then.
"""

from ..language.jit import loop_jit, outlined
from ..language.math import like
from ..language.memory import F32, F64, array_at, number, read, write
from ..language.transpose import vector_of_four

ORIGIN, FIRST_ROWS, GIVEN = range(3)  # 0, the mean of a few rows, centers that are there
FEW_ROWS = 8


@loop_jit
def mean_of_rows(center, x, code, stride, N, D):
    """The mean of each column over the first rows."""
    outlined()
    one, n, length = number(F64), min(N, FEW_ROWS), (N - 1) * stride + D
    rows32, rows64, q = array_at(x, length, F32), array_at(x, length, F64), vector_of_four(number(F64))
    for first in range(0, D if D >= 4 else 0, 4):
        d, total = min(first, D - 4), like(q, 0)  # the last four overlap with those before
        for t in range(n):
            at = t * stride + d
            total = total + (read(rows32, at, q) if code == F32 else read(rows64, at, q))
        write(center, d, total / like(q, n))
    for d in range(D if D < 4 else 0):
        sum_ = 0.0
        for t in range(n):
            at = t * stride + d
            sum_ += read(rows32, at, one) if code == F32 else read(rows64, at, one)
        center[d] = sum_ / n


@loop_jit
def mean_of_weighted_rows(center, x, code, stride, w, w_row, N, D):
    """The same over the first rows of positive weight: others may hold anything."""
    outlined()
    t, n, one, length, weights = 0, 0, number(F64), (N - 1) * stride + D, array_at(w, (N - 1) * w_row + 1, F64)
    rows32, rows64 = array_at(x, length, F32), array_at(x, length, F64)
    for d in range(D):
        center[d] = 0.0
    while t < N and n < FEW_ROWS:
        if weights[t * w_row] > 0:
            n += 1
            for d in range(D):
                at = t * stride + d
                value = read(rows32, at, one) if code == F32 else read(rows64, at, one)
                center[d] += (value - center[d]) / n
        t += 1


@loop_jit
def centers_of(rows, x, y, w, given, room, origin, slot):
    """The address of the centers of a problem, 1 + P + R: given ones, or new ones in ``room``, which the first slot
    stores where the given ones would be.
    """
    outlined()
    if origin != FIRST_ROWS:
        return given
    N, P, R = rows.N, rows.P, rows.R
    of_x, of_y = array_at(room + 8, P + R, F64), array_at(room + 8 * (P + 1), R, F64)
    if w:
        mean_of_weighted_rows(of_x, x, rows.x_code, rows.x_row, w, rows.w_row, N, P)
        mean_of_weighted_rows(of_y, y, rows.y_code, rows.y_row, w, rows.w_row, N, R)
    else:
        mean_of_rows(of_x, x, rows.x_code, rows.x_row, N, P)
        mean_of_rows(of_y, y, rows.y_code, rows.y_row, N, R)
    if slot == 0:
        stored = array_at(given + 8, P + R, F64)
        for j in range(P + R):
            stored[j] = of_x[j]
    return room
