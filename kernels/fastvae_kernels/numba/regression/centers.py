"""What the columns of a problem are centered about: its first few rows say roughly where their means are.

The mean is taken off later, see `factor.center_sums`; sums about a center near it have lost few digits by then.
"""

from ..language.jit import loop_jit, outlined
from ..language.math import like
from ..language.memory import F32, F64, array_at, number, read, write
from ..language.transpose import four

ORIGIN, FIRST_ROWS, GIVEN = range(3)  # 0, the mean of a few rows, centers that are there
FEW_ROWS = 8


@loop_jit
def mean_of_rows(center, x, stride, rows, D):
    """The mean of each column over the first rows."""
    outlined()
    q, one = four(number(F64)), number(F64)
    n = min(rows, FEW_ROWS)
    for first in range(0, D, 4):
        if D >= 4:
            d = min(first, D - 4)
            acc = read(x, d, q)
            for t in range(1, n):
                acc = acc + read(x, t * stride + d, q)
            write(center, d, acc / like(q, n))
        else:
            for d in range(D):
                sum_ = 0.0
                for t in range(n):
                    sum_ += read(x, t * stride + d, one)
                center[d] = sum_ / n


@loop_jit
def mean_of_weighted_rows(center, x, stride, weights, w_row, rows, D):
    """The same over the first rows of positive weight: others may hold anything."""
    outlined()
    t, n, one = 0, 0, number(F64)
    for d in range(D):
        center[d] = 0.0
    while t < rows and n < FEW_ROWS:
        if weights[t * w_row] > 0:
            n += 1
            for d in range(D):
                center[d] += (read(x, t * stride + d, one) - center[d]) / n
        t += 1


@loop_jit
def find_centers(center, x, code, x_row, w, w_row, N, D):
    """Of regressors, or of targets."""
    outlined()
    length, weights = (N - 1) * x_row + D, array_at(w, (N - 1) * w_row + 1, F64)
    if code == F32:
        rows32 = array_at(x, length, F32)
        if w:
            mean_of_weighted_rows(center, rows32, x_row, weights, w_row, N, D)
        else:
            mean_of_rows(center, rows32, x_row, N, D)
    else:
        rows = array_at(x, length, F64)
        if w:
            mean_of_weighted_rows(center, rows, x_row, weights, w_row, N, D)
        else:
            mean_of_rows(center, rows, x_row, N, D)


@loop_jit
def centers_of(rows, x, y, w, given, room, origin, slot):
    """The address of the centers of a problem, 1 + P + R: given ones, or new ones in ``room``, which the first slot
    stores where the given ones would be.
    """
    outlined()
    if origin != FIRST_ROWS:
        return given
    P, R = rows.P, rows.R
    find_centers(array_at(room + 8, P, F64), x, rows.x_code, rows.x_row, w, rows.w_row, rows.N, P)
    find_centers(array_at(room + 8 * (P + 1), R, F64), y, rows.y_code, rows.y_row, w, rows.w_row, rows.N, R)
    if slot == 0:
        new, stored = array_at(room, 1 + P + R, F64), array_at(given, 1 + P + R, F64)
        for j in range(1, 1 + P + R):
            stored[j] = new[j]
    return room
