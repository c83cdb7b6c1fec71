"""Products of columns, block by block: acc[i, j] += sum_t a[i, t] b[j, t], with the sums of a block in registers.

Columns are S elements apart in scratch and have T rows, a multiple of 8. Each sum is a vector of partial sums, one per
lane, so that a tile is added without shuffles; `store_totals` and `totals_of_pairs` reduce them at the end. The code of
a block is generated for its shape: it loads the columns of the block, then does one fma for each product. In
double-double a product is added by

    p + e = a b exactly,    s + f = s + p exactly,    r += e + f + (small parts of a and b)

where s + r is the sum, as accurate as if summed in 106 bits (Ogita, Rump & Oishi, Accurate sum and dot product, 2005).
Where the sums are known to be less than a third of their starting value, `add_above` takes half as many steps.
"""

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .double import Pair, _joined, accumulate, accumulate_above, fma, two_sum
from .emit import VECTOR, WIDE, Registers, broadcast, halves, in_lanes, load, loop, pointer, totals, vector_at
from .memory import prefetch_line
from .vector import LANES_REGISTER, llvm_type, splat

SIDE = 4 if WIDE else 3  # rows and columns of a block of sums, each in one register
SIDE_EXACT = 3 if WIDE else 2  # rows and columns of a block of double-double sums, each in two registers
SIDE_ALONE = 5  # rows of a block of products with a single column
MOST = 6 if WIDE else 4  # most columns of a triangle of sums that is a single block
UNROLLED = 12  # most columns for which all blocks are generated when the kernel is compiled


def _entries(rows: int, columns: int, triangle: bool) -> list[tuple[int, int]]:
    return [(i, j) for i in range(rows) for j in range(columns) if j <= i or not triangle]


class _Block(NamedTuple):
    """Operands of a block: pointers to float64 and integers. All but the last three are LLVM values."""

    acc: Any
    width: Any  # row length of acc
    a: Any
    b: Any
    i: Any  # first column of a
    j: Any  # first column of b
    S: Any
    T: Any
    fresh: Any
    rows: int
    columns: int
    triangle: bool


class _Prefetch(NamedTuple):
    """Memory to prefetch meanwhile: for every 8 rows, ``lines`` of 64 bytes; the address advances by ``pace`` bytes."""

    address: Any
    pace: Any
    lines: range


class _DoubleDouble(NamedTuple):
    """Operands of double-double sums."""

    gap: Any  # offset from the columns to their small parts
    one: Any  # a vector of ones; None where a has no small parts and the sums start above everything added to them


def _fetch(builder: Any, ahead: _Prefetch, t: Any) -> None:
    first = builder.add(ahead.address, builder.mul(builder.lshr(t, t.type(3)), ahead.pace))
    for line in ahead.lines:
        prefetch_line(builder, builder.add(first, t.type(64 * line)))


def _emit(builder: Any, block: _Block, exactly: _DoubleDouble | None = None, ahead: _Prefetch | None = None) -> None:
    """Generate the loop of a block. Its sums are loaded from ``acc``, or start at 0 if they are fresh."""
    width, a, b, i, j, S = block[1:7]
    integer, keys, words = S.type, _entries(block.rows, block.columns, block.triangle), 2 if exactly else 1

    def column(base: Any, first: Any, k: int, t: Any) -> Any:
        return load(builder, base, builder.add(builder.mul(builder.add(first, integer(k)), S), t))

    places = {}
    for r, c in keys:
        entry = builder.add(builder.mul(builder.add(i, integer(r)), width), builder.add(j, integer(c)))
        for k in range(words):
            at = builder.mul(entry, integer(words * LANES_REGISTER))
            places[r, c, k] = vector_at(builder, block.acc, builder.add(at, integer(k * LANES_REGISTER)))
    zero = ir.Constant(llvm_type(VECTOR), None)
    sums = Registers(builder, places, lambda key: builder.select(block.fresh, zero, builder.load(places[key], align=8)))
    with loop(builder, block.T) as (t, _):
        if ahead:
            _fetch(builder, ahead, t)
        left = [column(a, i, k, t) for k in range(block.rows)]
        right = left if block.triangle and a is b else [column(b, j, k, t) for k in range(block.columns)]
        if exactly:
            behind = builder.add(exactly.gap, t)
            small_left = [column(a, i, k, behind) if exactly.one else None for k in range(block.rows)]
            small_right = [column(b, j, k, behind) for k in range(block.columns)]
        for r, c in keys:
            if not exactly:
                sums.add((r, c, 0), left[r], right[c])
                continue
            pair = sums.get((r, c, 0)), sums.get((r, c, 1))
            if exactly.one:
                pair = accumulate(builder, *pair, left[r], small_left[r], right[c], small_right[c], exactly.one)
            else:
                s, rest = accumulate_above(builder, *pair, left[r], right[c])
                pair = s, fma(builder, left[r], small_right[c], rest)
            for k in range(2):
                sums.set((r, c, k), pair[k])
    for key, place in places.items():
        builder.store(sums.get(key), place, align=8)


def _groups(n: int) -> list[tuple[int, int]]:
    """Split the columns into groups ``(first, count)``, so that the sums of two groups' products fit the registers."""
    if n <= MOST:
        return [(0, n)]
    most = MOST - 1 if n <= 2 * (MOST - 1) else SIDE
    count = -(-n // most)
    sizes = [n // count + (k < n % count) for k in range(count)]
    return [(sum(sizes[:k]), size) for k, size in enumerate(sizes)]


@intrinsic(prefer_literal=True)
def add_all_products(typingctx, acc, z, S, T, fresh, ahead, pace, count):
    """Add the lower triangle of z z' for ``count`` columns, a constant of the kernel; ``fresh`` sums start at 0.

    Meanwhile the same number of rows is prefetched from the address ``ahead``, where 8 rows take ``pace`` bytes.
    """
    n = count.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        acc_, z_ = (pointer(context, builder, signature.args[k], args[k]) for k in range(2))
        S_, T_, fresh_, address, pace_ = args[2:7]
        fresh_ = builder.icmp_signed("!=", fresh_, fresh_.type(0))
        number = S_.type
        shapes = [(i, j, rows, columns) for i, rows in _groups(n) for j, columns in _groups(n) if j <= i]
        each = -(-(n - 2) // len(shapes))  # 8 rows take as many cache lines as there are regressors
        for k, (i, j, rows, columns) in enumerate(shapes):
            at = number(i), number(j), S_, T_, fresh_
            ahead_ = _Prefetch(address, pace_, range(k * each, (k + 1) * each))
            _emit(builder, _Block(acc_, number(n), z_, z_, *at, rows, columns, i == j), ahead=ahead_)
        return context.get_dummy_value()

    i = types.intp
    return types.void(acc, z, i, i, i, i, i, count), codegen


@intrinsic(prefer_literal=True)
def add_block(typingctx, acc, width, z, i, j, S, T, fresh, ahead, triangle):
    """Add the products of columns i to i + SIDE - 1 with columns j to j + SIDE - 1.

    With ``triangle``, where i = j, only the lower triangle is added. Meanwhile one cache line for every 8 rows is
    prefetched from the address ``ahead`` on.
    """
    below = bool(triangle.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        acc_, z_ = (pointer(context, builder, signature.args[k], args[k]) for k in (0, 2))
        _, width_, _, *at, fresh_, address, _ = args
        fresh_ = builder.icmp_signed("!=", fresh_, fresh_.type(0))
        ahead_ = _Prefetch(address, address.type(64), range(1))
        _emit(builder, _Block._make([acc_, width_, z_, z_, *at, fresh_, SIDE, SIDE, below]), ahead=ahead_)
        return context.get_dummy_value()

    n = types.intp
    return types.void(acc, n, z, n, n, n, n, n, n, triangle), codegen


@intrinsic(prefer_literal=True)
def add_exact_block(typingctx, acc, width, a, b, i, j, S, T, fresh, gap, one, triangle):
    """Add the products of SIDE_EXACT columns of a with as many of b in double-double.

    The small parts are ``gap`` elements behind the columns. ``one`` is 1, as a value that the compiler does not know.
    """
    shape = SIDE_EXACT, SIDE_EXACT, bool(triangle.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        acc_, a_, b_ = (pointer(context, builder, signature.args[k], args[k]) for k in (0, 2, 3))
        _, width_, _, _, *at, fresh_, gap_, one_ = args[:11]
        fresh_ = builder.icmp_signed("!=", fresh_, fresh_.type(0))
        exactly = _DoubleDouble(gap_, splat(builder, one_, VECTOR))
        _emit(builder, _Block._make([acc_, width_, a_, b_, *at, fresh_, *shape]), exactly)
        return context.get_dummy_value()

    n = types.intp
    return types.void(acc, n, a, b, n, n, n, n, n, n, types.float64, triangle), codegen


@intrinsic
def add_above(typingctx, acc, a, b, i, S, T, gap):
    """Add the products of SIDE_ALONE columns of a, from column i on, with a single column b.

    The small part of b is ``gap`` elements behind it. Sums are pairs, as in `add_exact_block`; each must start at more
    than 3 times the largest sum to come.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        acc_, a_, b_ = (pointer(context, builder, signature.args[k], args[k]) for k in range(3))
        i_, S_, T_, gap_ = args[3:]
        one, none, fresh = i_.type(1), i_.type(0), ir.IntType(1)(0)
        block = _Block(acc_, one, a_, b_, i_, none, S_, T_, fresh, SIDE_ALONE, 1, False)
        _emit(builder, block, _DoubleDouble(gap_, None))
        return context.get_dummy_value()

    n = types.intp
    return types.void(acc, a, b, n, n, n, n), codegen


@intrinsic(prefer_literal=True)
def store_totals(typingctx, sums, acc, count):
    """Store the lower triangle row by row, each vector summed over its lanes.

    Eight vectors reduced together take as many steps as three reduced one by one.
    """
    n = count.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums_, acc_ = (pointer(context, builder, signature.args[k], args[k]) for k in range(2))
        number, entries = ir.IntType(64), _entries(n, n, True)
        for first in range(0, len(entries), LANES_REGISTER):
            group = entries[first : first + LANES_REGISTER]
            vectors = [load(builder, acc_, number((row * n + col) * LANES_REGISTER)) for row, col in group]
            lane_sums = totals(builder, vectors)
            if len(group) == LANES_REGISTER:
                builder.store(lane_sums, vector_at(builder, sums_, number(first)), align=8)
            else:
                for k in range(len(group)):
                    value = builder.extract_element(lane_sums, ir.IntType(32)(k))
                    builder.store(value, builder.gep(sums_, [number(first + k)]), align=8)
        return context.get_dummy_value()

    return types.void(sums, acc, count), codegen


@intrinsic
def totals_of_pairs(typingctx, acc, where, k):
    """Return the lane sums of the pairs at where[k], where[k + 1], ..., one pair for each lane of the result."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        acc_, where_ = (pointer(context, builder, signature.args[k], args[k]) for k in range(2))
        values = []
        for lane in range(LANES_REGISTER):
            at = builder.load(builder.gep(where_, [builder.add(args[2], args[2].type(lane))]))
            values.append([load(builder, acc_, builder.add(at, at.type(part * LANES_REGISTER))) for part in (0, 1)])

        def join(x: Any, y: Any, part: int) -> Any:
            """Add the leading parts without error; add the errors to the small parts in float64."""
            s, error = two_sum(builder, *halves(builder, x[0], y[0], part))
            return s, builder.fadd(builder.fadd(*halves(builder, x[1], y[1], part)), error)

        return _joined(builder, *two_sum(builder, *in_lanes(values, join)))

    return Pair(VECTOR)(acc, where, types.intp), codegen


@intrinsic
def totals_above(typingctx, acc, above, k):
    """Return the lane sums of the pairs k, k + 1, ..., one pair for each lane of the result.

    Their starting values above[k], above[k + 1], ... are subtracted.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        acc_, above_ = (pointer(context, builder, signature.args[k], args[k]) for k in range(2))
        parts: list[list[Any]] = [[], []]
        for lane in range(LANES_REGISTER):
            k = builder.add(args[2], args[2].type(lane))
            for part in range(2):
                at = builder.mul(builder.add(builder.mul(k, k.type(2)), k.type(part)), k.type(LANES_REGISTER))
                parts[part].append(load(builder, acc_, at))
            parts[0][lane] = builder.fsub(parts[0][lane], broadcast(builder, above_, k))
        # leading parts are multiples of an ulp of the starting value: neither the difference nor their sums round
        return _joined(builder, *two_sum(builder, *(totals(builder, p) for p in parts)))

    return Pair(VECTOR)(acc, above, types.intp), codegen


@intrinsic
def partial_sums(typingctx):
    """Return a vector of zeros of the width of the partial sums."""
    return VECTOR(), lambda context, builder, signature, args: ir.Constant(llvm_type(VECTOR), None)
