"""The rows of B problems, as all mixture kernels receive them, and a tile of them in scratch.

Problem p of P = B restarts is a restart of the data p // restarts. A tile holds T rows minus a shift, transposed, so
that rows are the lanes of vectors. S = T + 8 is the stride between its features; a power of two would map all of them
to the same cache set. Rows of weight 0 are set to zeros, whatever they contain.
"""

from ..language.jit import math_jit
from ..language.layout import Layout
from ..language.memory import F32
from ..language.transpose import ahead_of, load, load_weights, zero_ignored_rows

# Addresses, the dtype code of x, strides in elements, sizes. w is 0 if there are no weights; shift is [B, D].
ROWS = Layout("x x_code x_row x_problem w w_row w_problem shift N D restarts")


@math_jit
def padded(rows):
    """Round a number of rows up to whole pairs of vectors."""
    return (rows + 15) // 16 * 16


@math_jit
def x_of(f, data):
    """Return the address of the rows of x."""
    return f.x + data * f.x_problem * (4 if f.x_code == F32 else 8)


@math_jit
def load_tile(f, xt, w_t, data, first, rows, S, shift):
    """Load rows from the first on, and their weights, and pad both with zeros."""
    load(xt, x_of(f, data), f.x_code, first, f.x_row, rows, padded(rows), f.D, S, shift)
    load_weights(w_t, f.w + data * f.w_problem * 8 if f.w else 0, first, f.w_row, rows, padded(rows))
    if f.w:
        zero_ignored_rows(xt, w_t, rows, f.D, S)


@math_jit
def rows_ahead(f, data, first, rows):
    """Return the location of rows that are loaded later, for `fetch`."""
    return ahead_of(x_of(f, data), f.x_code, first, f.x_row, rows, f.D)
