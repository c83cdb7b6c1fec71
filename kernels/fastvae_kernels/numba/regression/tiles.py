"""Tiles of rows of a problem, loaded as columns: what the passes over the rows have in common.

    [1, x - shift, y - shift']        a column of ones, then the regressors; the targets behind them or elsewhere

Layout: columns S apart, zeros behind the rows up to a multiple of 8. Work unit: a slot of a problem, its tiles s,
s + SLOTS, ... of T rows. T and SLOTS depend on N, P and R alone, so that bits do not depend on threads.
"""

from ..language.jit import loop_jit, math_jit, outlined
from ..language.layout import Layout
from ..language.memory import F64, I64, array_at
from ..language.transpose import load, load_weights, zero_ignored_rows

# The rows of all problems: addresses, dtype codes, bytes of an element, strides in elements. w is 0 where there are no
# weights; ``ignored``: some are 0.
ROWS = Layout("x x_code x_size x_row x_problem y y_code y_size y_row y_problem w w_row w_problem N P R ignored")
TILES = Layout("T S W slots active")  # rows, stride and number of columns; slots; the problems to work on


@math_jit
def problem_of(tiles, unit):
    """The problem of a unit."""
    return array_at(tiles.active + 8 * (unit // tiles.slots), 1, I64)[0]


@math_jit
def rows_of(rows, b):
    """Where the rows of x, y and w of a problem begin."""
    x = rows.x + b * rows.x_problem * rows.x_size
    y = rows.y + b * rows.y_problem * rows.y_size
    return x, y, rows.w + b * rows.w_problem * 8 if rows.w else 0


@math_jit
def next_rows(rows, tiles, unit, stop, row):
    """Where the rows of x begin that are read next: of the next tile, or of the next unit before ``stop``."""
    row += tiles.slots * tiles.T
    b = problem_of(tiles, unit if row < rows.N else min(unit + 1, stop - 1))
    row = row if row < rows.N else 0
    return rows.x + (b * rows.x_problem + row * rows.x_row) * rows.x_size


@loop_jit
def load_tile(rows, x, y, w, row, T, S, z, targets, weights, shift, weighted):
    """Load T rows from ``row`` on, as columns to z and ``targets``; weights likewise; how many these are with the zeros
    behind. All but numbers are addresses.

    Where the weight is 0, ``weighted`` columns from the first regressor on become 0: such a row may hold anything.
    """
    outlined()
    P, R, whole = rows.P, rows.R, (T + 7) // 8 * 8
    columns = array_at(z + 8 * S, weighted * S, F64)
    load(columns, x, rows.x_code, row, rows.x_row, T, whole, P, S, array_at(shift, P, F64))
    shift_y = array_at(shift + 8 * P, R, F64)
    load(array_at(targets, R * S, F64), y, rows.y_code, row, rows.y_row, T, whole, R, S, shift_y)
    if w:
        w_t = array_at(weights, S, F64)
        load_weights(w_t, w, row, rows.w_row, T, whole)
        if rows.ignored:
            zero_ignored_rows(columns, w_t, T, weighted, S)
    ones = array_at(z, S, F64)
    for t in range(T):
        ones[t] = 1.0
    for t in range(T, whole):
        ones[t] = 0.0
    return whole
