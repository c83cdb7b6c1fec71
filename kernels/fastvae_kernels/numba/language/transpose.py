"""Transposition of rows into the lanes of vectors: column d of a scratch is feature d of a tile of rows.

    xt[d S + t] = x[t, d] - shift[d]        S is the stride between columns

Four rows by four features are transposed in registers. Everything becomes float64, whatever the dtype of the rows.
`fetch` prefetches the rows of the next tile while this one is processed.
`rows_to_lanes` and `lanes_to_rows` transpose eight rows of float64 at arbitrary addresses.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .jit import loop_jit, math_jit, outlined
from .math import like, select
from .memory import F32, F64, I64, array_at, number, prefetch, read, vector, write
from .vector import Vector, deinterleave, llvm_type, shuffle, total


@intrinsic
def vector_of_four(typingctx, one):
    """Return a vector of four zeros of the type of a number."""
    result = Vector(one, 4)
    return result(one), lambda context, builder, signature, args: ir.Constant(llvm_type(result), None)


@intrinsic
def transposed(typingctx, a, b, c, d):
    """Return the columns of a 4 x 4 matrix given by its rows."""
    result = types.UniTuple(a, 4)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pairs = [
            shuffle(builder, x, y, lanes) for x, y in (args[:2], args[2:]) for lanes in ([0, 4, 2, 6], [1, 5, 3, 7])
        ]
        halves = [
            shuffle(builder, pairs[k], pairs[k + 2], lanes) for lanes in ([0, 1, 4, 5], [2, 3, 6, 7]) for k in (0, 1)
        ]
        return context.make_tuple(builder, result, halves)

    return result(a, a, a, a), codegen


@loop_jit
def load(xt, address, code, row, stride, rows, T, D, S, shift):
    """Load rows row, row + 1, ..., ``stride`` elements apart, subtract the shift and transpose; pad with zeros to T."""
    outlined()
    length = max(rows - 1, 0) * stride + D
    if code == F32:
        transpose_rows(xt, array_at(address + row * stride * 4, length, F32), stride, rows, D, S, shift)
    else:
        transpose_rows(xt, array_at(address + row * stride * 8, length, F64), stride, rows, D, S, shift)
    for d in range(D):
        for t in range(rows, T):
            xt[d * S + t] = 0.0


@loop_jit
def transpose_rows(xt, x, stride, rows, D, S, shift):
    """Compute xt[d, t] = x[t, d] - shift[d]."""
    outlined()
    one, v = number(F64), vector(F64)
    q = vector_of_four(one)
    whole = 0
    if D == 1 and stride == 1:
        s = like(v, shift[0])
        whole = rows // 8 * 8
        for t in range(0, whole, 8):
            write(xt, t, read(x, t, v) - s)
    elif D == 2 and stride == 2:
        s0, s1 = like(v, shift[0]), like(v, shift[1])
        whole = rows // 8 * 8
        for t in range(0, whole, 8):
            x0, x1 = deinterleave(read(x, 2 * t, v), read(x, 2 * t + 8, v))
            write(xt, t, x0 - s0)
            write(xt, S + t, x1 - s1)
    elif D >= 4:
        whole = rows // 4 * 4
        for first in range(0, D, 4):
            d = min(first, D - 4)  # the last four overlap the previous ones
            s = read(shift, d, q)
            for t in range(0, whole, 4):
                at, to = t * stride + d, d * S + t
                c0, c1, c2, c3 = transposed(
                    read(x, at, q) - s,
                    read(x, at + stride, q) - s,
                    read(x, at + 2 * stride, q) - s,
                    read(x, at + 3 * stride, q) - s,
                )
                write(xt, to, c0)
                write(xt, to + S, c1)
                write(xt, to + 2 * S, c2)
                write(xt, to + 3 * S, c3)
    elif D > 1 and D + stride >= 4:  # four numbers can be read from the start of any row but the last
        whole = max(rows - 1, 0) // 4 * 4
        m0, m1, m2 = like(q, shift[0]), like(q, shift[1]), like(q, shift[D - 1])
        for t in range(0, whole, 4):
            at = t * stride
            c0, c1, c2, _ = transposed(
                read(x, at, q), read(x, at + stride, q), read(x, at + 2 * stride, q), read(x, at + 3 * stride, q)
            )
            write(xt, t, c0 - m0)
            write(xt, S + t, c1 - m1)
            if D == 3:
                write(xt, 2 * S + t, c2 - m2)
    for t in range(whole, rows):
        for d in range(D):
            write(xt, d * S + t, read(x, t * stride + d, one) - read(shift, d, one))


@math_jit
def ahead_of(address, code, row, stride, rows, D):
    """Return the address of the next rows and their size in bytes, for `fetch`; 0 bytes if they are not contiguous."""
    size = 4 if code == F32 else 8
    return address + row * stride * size, max(rows, 0) * D * size if stride == D else 0


@math_jit
def fetch(ahead, part, parts):
    """Prefetch a part of the next rows to the L2 cache; if all were fetched at once, `load` would wait for them."""
    start, size = ahead
    for line in range(size // 64 * part // parts, size // 64 * (part + 1) // parts):
        prefetch(start + 64 * line)


@loop_jit
def load_weights(w, address, row, stride, rows, T):
    """Load the weights of a tile's rows, 1 if there are no weights, and pad them with 0."""
    outlined()
    given = array_at(address + row * stride * 8, max(rows - 1, 0) * stride + 1, F64)
    for t in range(rows):
        w[t] = 1.0
    if address:
        for t in range(rows):
            w[t] = given[t * stride]
    for t in range(rows, T):
        w[t] = 0.0


@loop_jit
def zero_ignored_rows(xt, w, rows, D, S):
    """Set rows of weight 0 to zeros, whatever they contain, since 0 times NaN is NaN. Padding has weight 0."""
    outlined()
    v = vector(F64)
    zeros, padded = like(v, 0), (rows + 7) // 8 * 8
    for t in range(0, padded, 8):
        zeros = zeros + select(read(w, t, v) == like(v, 0), like(v, 1), like(v, 0))
    if total(zeros) == padded - rows:  # the usual case
        return
    for t in range(rows):
        if w[t] == 0:
            for d in range(D):
                xt[d * S + t] = 0.0


@loop_jit
def rows_to_lanes(to, rows, width):
    """Set to[8 k + lane] to number k of the row at address rows[lane]; ``to`` and ``rows`` are addresses themselves."""
    outlined()
    one, rows = number(F64), array_at(rows, 8, I64)
    q, to = vector_of_four(one), array_at(to, 8 * width, F64)
    if width >= 4:
        for lane in range(0, 8, 4):
            a, b = array_at(rows[lane], width, F64), array_at(rows[lane + 1], width, F64)
            c, d = array_at(rows[lane + 2], width, F64), array_at(rows[lane + 3], width, F64)
            for first in range(0, width, 4):
                k = min(first, width - 4)  # the last four overlap the previous ones
                k0, k1, k2, k3 = transposed(read(a, k, q), read(b, k, q), read(c, k, q), read(d, k, q))
                write(to, 8 * k + lane, k0)
                write(to, 8 * k + lane + 8, k1)
                write(to, 8 * k + lane + 16, k2)
                write(to, 8 * k + lane + 24, k3)
    else:
        for lane in range(8):
            row = array_at(rows[lane], width, F64)
            for k in range(width):
                to[8 * k + lane] = row[k]


@loop_jit
def lanes_to_rows(rows, x, width):
    """Set number k of the row at address rows[lane] to x[8 k + lane]: the inverse of `rows_to_lanes`."""
    outlined()
    one, rows = number(F64), array_at(rows, 8, I64)
    q, x = vector_of_four(one), array_at(x, 8 * width, F64)
    if width >= 4:
        for lane in range(0, 8, 4):
            a, b = array_at(rows[lane], width, F64), array_at(rows[lane + 1], width, F64)
            c, d = array_at(rows[lane + 2], width, F64), array_at(rows[lane + 3], width, F64)
            for first in range(0, width, 4):
                k = min(first, width - 4)
                at = 8 * k + lane
                in_a, in_b, in_c, in_d = transposed(
                    read(x, at, q), read(x, at + 8, q), read(x, at + 16, q), read(x, at + 24, q)
                )
                write(a, k, in_a)
                write(b, k, in_b)
                write(c, k, in_c)
                write(d, k, in_d)
    else:
        for lane in range(8):
            row = array_at(rows[lane], width, F64)
            for k in range(width):
                row[k] = x[8 * k + lane]
