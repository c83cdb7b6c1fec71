"""Products of columns, block by block: acc[i, j] += sum_t a[i, t] b[j, t], with the sums of a block in registers.

Columns lie S apart in scratch, T rows of them, a multiple of 8. Sums are kept as vectors of partial sums, lane by lane,
so that a tile adds to them without a shuffle; `_vector.total` and `pair_total` end them. A block is code made for its
shape: loads of its columns, then one fma for each of its products; in double-double

    p + e = a b exactly,    s + f = s + p exactly,    r += e + f + (small parts of a and b)

where s + r is the sum: as if summed in 106 bits (Ogita, Rump & Oishi, Accurate sum and dot product, 2005).
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._double import _add, _joined, _parts, fma, two_product, two_sum
from ._vector import LANES_REGISTER, Vector, _shuffle, call, llvm_type

WIDE = LANES_REGISTER == 8  # and twice as many registers
VECTOR = Vector(types.float64, LANES_REGISTER)
SIDE = 4 if WIDE else 3  # of a block of sums, of one register each
SIDE_EXACT = 3 if WIDE else 2  # of two registers each
SIDE_ALONE = 5  # and of a single column
MOST = 6 if WIDE else 4  # columns of a triangle of sums that is one block
UNROLLED = 12  # columns for which the blocks are laid out when the kernel is compiled


def _pointer(context: Any, builder: Any, array: Any, value: Any) -> Any:
    return context.make_array(array)(context, builder, value).data


def _loop(builder: Any, T: Any) -> Any:
    step = ir.Constant(T.type, LANES_REGISTER)
    return cgutils.for_range_slice(builder, ir.Constant(T.type, 0), T, step, T.type)


def _room(builder: Any, t: Any) -> Any:
    with builder.goto_entry_block():  # a register, once optimised
        return builder.alloca(t)


def _entries(rows: int, columns: int, triangle: bool) -> list[tuple[int, int]]:
    return [(i, j) for i in range(rows) for j in range(columns) if j <= i or not triangle]


def _emit(builder, acc, width, a, b, i, j, S, T, fresh, rows, columns, triangle, gap=None, exact_rows=False):
    """A block's loop. Pointers to float64; ``i`` and ``j`` are its first columns in a and in b, ``width`` that of acc.

    ``gap`` is how far behind the columns their small parts lie, in double-double; rows without them are ``exact_rows``.
    """
    vector, words = llvm_type(VECTOR), 1 if gap is None else 2
    integer = S.type

    def at(base: Any, index: Any) -> Any:
        return builder.bitcast(builder.gep(base, [index]), vector.as_pointer())

    def column(base: Any, first: Any, k: int, t: Any) -> Any:
        return builder.load(at(base, builder.add(builder.mul(builder.add(first, integer(k)), S), t)), align=8)

    zero, places, sums = ir.Constant(vector, None), {}, {}
    for row, col in _entries(rows, columns, triangle):
        entry = builder.add(builder.mul(builder.add(i, integer(row)), width), builder.add(j, integer(col)))
        for k in range(words):
            where = builder.add(builder.mul(entry, integer(words * LANES_REGISTER)), integer(k * LANES_REGISTER))
            places[row, col, k] = at(acc, where)
            sums[row, col, k] = _room(builder, vector)
            builder.store(builder.select(fresh, zero, builder.load(places[row, col, k], align=8)), sums[row, col, k])
    with _loop(builder, T) as (t, _):
        left = [column(a, i, k, t) for k in range(rows)]
        right = left if triangle and a is b else [column(b, j, k, t) for k in range(columns)]
        if gap is not None:
            behind = builder.add(gap, t)
            small_left = [] if exact_rows else [column(a, i, k, behind) for k in range(rows)]
            small_right = [column(b, j, k, behind) for k in range(columns)]
        for row, col in _entries(rows, columns, triangle):
            x, y, place = left[row], right[col], sums[row, col, 0]
            before = builder.load(place)
            if gap is None:
                builder.store(call(builder, "llvm.fmuladd", vector, x, y, before), place)
                continue
            p, error = two_product(builder, x, y)
            s, more = two_sum(builder, before, p)
            builder.store(s, place)
            error = fma(builder, x, small_right[col], builder.fadd(error, more))
            if not exact_rows:
                error = fma(builder, small_left[row], y, error)
            rest = sums[row, col, 1]
            builder.store(builder.fadd(builder.load(rest), error), rest)
    for key, place in places.items():
        builder.store(builder.load(sums[key]), place, align=8)


def _groups(n: int) -> list[tuple[int, int]]:
    """Columns in groups ``(first, count)`` whose squares and products fit the registers."""
    if n <= MOST:
        return [(0, n)]
    most = MOST - 1 if n <= 2 * (MOST - 1) else SIDE
    count = -(-n // most)
    sizes = [n // count + (k < n % count) for k in range(count)]
    return [(sum(sizes[:k]), size) for k, size in enumerate(sizes)]


@intrinsic(prefer_literal=True)
def add_all_products(typingctx, acc, z, S, T, fresh, count):
    """The lower triangle of z z' for ``count`` columns, a constant of the kernel; ``fresh`` sums start at 0."""
    n = count.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        acc_, z_ = (_pointer(context, builder, signature.args[k], args[k]) for k in range(2))
        S_, T_, fresh_ = args[2:5]
        fresh_ = builder.icmp_signed("!=", fresh_, fresh_.type(0))
        number = S_.type
        for i, rows in _groups(n):
            for j, columns in _groups(n):
                if j <= i:
                    sizes = (rows, columns, i == j)
                    _emit(builder, acc_, number(n), z_, z_, number(i), number(j), S_, T_, fresh_, *sizes)
        return context.get_dummy_value()

    return types.void(acc, z, types.intp, types.intp, types.intp, count), codegen


@intrinsic(prefer_literal=True)
def add_block(typingctx, acc, width, z, i, j, S, T, fresh, triangle):
    """The products of SIDE columns from i on and SIDE from j on; of a triangle, at i = j, those below."""
    sizes = (SIDE, SIDE, bool(triangle.literal_value))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        acc_, z_ = (_pointer(context, builder, signature.args[k], args[k]) for k in (0, 2))
        fresh_ = builder.icmp_signed("!=", args[7], args[7].type(0))
        _emit(builder, acc_, args[1], z_, z_, *args[3:7], fresh_, *sizes)
        return context.get_dummy_value()

    n = types.intp
    return types.void(acc, n, z, n, n, n, n, n, triangle), codegen


@intrinsic(prefer_literal=True)
def add_exact_block(typingctx, acc, width, a, b, i, j, S, T, gap, fresh, triangle, exact_rows, rows, columns):
    """The same in double-double, of a times b, whose small parts lie ``gap`` behind; of constant ``rows`` and ``columns``."""
    sizes = (rows.literal_value, columns.literal_value, bool(triangle.literal_value))
    exact = bool(exact_rows.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        acc_, a_, b_ = (_pointer(context, builder, signature.args[k], args[k]) for k in (0, 2, 3))
        fresh_ = builder.icmp_signed("!=", args[9], args[9].type(0))
        _emit(builder, acc_, args[1], a_, b_, *args[4:8], fresh_, *sizes, gap=args[8], exact_rows=exact)
        return context.get_dummy_value()

    n = types.intp
    return types.void(acc, n, a, b, n, n, n, n, n, n, triangle, exact_rows, rows, columns), codegen


@intrinsic(prefer_literal=True)
def store_totals(typingctx, sums, acc, count):
    """The sums of the lanes of the lower triangle, row by row: eight together in as many steps as three alone."""
    n = count.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums_, acc_ = (_pointer(context, builder, signature.args[k], args[k]) for k in range(2))
        entries = _entries(n, n, True)
        for first in range(0, len(entries), LANES_REGISTER):
            some = entries[first : first + LANES_REGISTER]
            values = []
            for row, col in (some + some[-1:] * LANES_REGISTER)[:LANES_REGISTER]:
                at = builder.gep(acc_, [ir.IntType(64)((row * n + col) * LANES_REGISTER)])
                values.append(builder.load(builder.bitcast(at, llvm_type(VECTOR).as_pointer()), align=8))
            part = LANES_REGISTER // 2
            while part:  # of each lane group the first and the second half
                halves = [
                    [
                        g + k + side
                        for side in (0, LANES_REGISTER)
                        for g in range(0, LANES_REGISTER, 2 * part)
                        for k in range(h, h + part)
                    ]
                    for h in (0, part)
                ]
                values = [
                    builder.fadd(*(_shuffle(builder, values[k], values[k + 1], lanes) for lanes in halves))
                    for k in range(0, len(values), 2)
                ]
                part //= 2
            at = builder.gep(sums_, [ir.IntType(64)(first)])
            if len(some) == LANES_REGISTER:
                builder.store(values[0], builder.bitcast(at, llvm_type(VECTOR).as_pointer()), align=8)
            else:
                for k in range(len(some)):
                    place = builder.gep(at, [ir.IntType(64)(k)])
                    builder.store(builder.extract_element(values[0], ir.IntType(32)(k)), place, align=8)
        return context.get_dummy_value()

    return types.void(sums, acc, count), codegen


@intrinsic
def partial_sums(typingctx):
    """A vector of zeros as wide as partial sums are."""
    return VECTOR(), lambda context, builder, signature, args: ir.Constant(llvm_type(VECTOR), None)


@intrinsic
def pair_total(typingctx, p):
    """The sum of the lanes of a pair, by halves, as ``(high, low)``."""
    result = types.UniTuple(p.part.dtype, 2)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, n = args[0], p.part.lanes
        while n > 1:
            n //= 2
            halves = (
                _joined(
                    builder, *(_shuffle(builder, part, part, list(range(k, k + n))) for part in _parts(builder, value))
                )
                for k in (0, n)
            )
            value = _add(builder, *halves)
        numbers = [builder.extract_element(part, ir.IntType(32)(0)) for part in _parts(builder, value)]
        return context.make_tuple(builder, result, numbers)

    return result(p), codegen
