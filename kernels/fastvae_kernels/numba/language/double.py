"""Double-double numbers, lane by lane: the unevaluated sum of a vector and a much smaller one, 106 bits together.

    p = exact_product(a, b)              # a b of two vectors, without rounding error
    p = exact_sum(a, b)                  # a + b of two vectors, without rounding error
    p + q, p - q, p * q, p / q, -p       # relative error of about 2^-102
    high(p), low(p)                      # the parts of p; |low| is at most half an ulp of high

`constant`, `high`, `choose`, `root`, `load_number` and `store_number` take vectors as well, so that one source serves
both precisions.
Nothing here may be compiled with fastmath, which would simplify a + b - a to b. Exact products need a true fma, rounded
once.
Source: Dekker (1971), Knuth (1969); Joldes, Muller & Popescu, Tight and rigorous error bounds for basic building blocks
of double-word arithmetic (2017).
"""

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from .vector import Vector, call, llvm_type, pointer_to, splat, with_element

WORDS = 8  # lanes of the numbers that `load_number` and `store_number` access


class Pair(types.Type):
    """The type of a pair of vectors that represents their sum."""

    def __init__(self, part: Vector) -> None:
        self.part = part
        super().__init__(name=f"Pair({part})")


@register_model(Pair)
class PairModel(models.PrimitiveModel):
    """Represented in LLVM as a struct of two vectors, in registers."""

    def __init__(self, manager: Any, fe_type: Any) -> None:
        part = llvm_type(fe_type.part)
        super().__init__(manager, fe_type, ir.LiteralStructType([part, part]))


def two_sum(builder: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Return ``(s, e)`` with s = fl(a + b) and s + e = a + b exactly."""
    s = builder.fadd(a, b)
    other = builder.fsub(s, a)
    return s, builder.fadd(builder.fsub(a, builder.fsub(s, other)), builder.fsub(b, other))


def two_sum_mixed(builder: Any, a: Any, b: Any, one: Any) -> tuple[Any, Any]:
    """Like `two_sum`, for loops: half of the operations are fma, which many processors execute in units of their own.

    ``one`` is 1, as a value that the compiler does not know.
    """
    s = builder.fadd(a, b)
    other = fma(builder, s, one, builder.fneg(a))
    mine = fma(builder, builder.fneg(builder.fsub(s, other)), one, a)
    return s, fma(builder, mine, one, builder.fsub(b, other))


def fast_two_sum(builder: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Like `two_sum`, for |a| >= |b|."""
    s = builder.fadd(a, b)
    return s, builder.fsub(b, builder.fsub(s, a))


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a b + c, rounded once; a call to libm where the processor has no fma instruction."""
    return call(builder, "llvm.fma", a.type, a, b, c)


def two_product(builder: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Return ``(p, e)`` with p = fl(a b) and p + e = a b exactly."""
    p = builder.fmul(a, b)
    return p, fma(builder, a, b, builder.fneg(p))


def accumulate(
    builder: Any, s: Any, rest: Any, a: Any, small_a: Any, b: Any, small_b: Any, one: Any
) -> tuple[Any, Any]:
    """Add the product of the pairs a and b to the sum ``(s, rest)``, and return it."""
    product, error = two_product(builder, a, b)
    s, more = two_sum_mixed(builder, s, product, one)
    error = fma(builder, small_a, b, fma(builder, a, small_b, builder.fadd(error, more)))
    return s, builder.fadd(rest, error)


def accumulate_above(builder: Any, s: Any, rest: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Like `accumulate` for a and b without small parts, in a third of the steps; requires |s| larger than |a b|.

    Both the part of the product that is absorbed into s and the remainder are then computed without error.
    """
    after = fma(builder, a, b, s)
    return after, builder.fadd(rest, fma(builder, a, b, builder.fneg(builder.fsub(after, s))))


def _parts(builder: Any, p: Any) -> tuple[Any, Any]:
    return builder.extract_value(p, 0), builder.extract_value(p, 1)


def _joined(builder: Any, high: Any, low: Any) -> Any:
    p = ir.Constant(ir.LiteralStructType([high.type, high.type]), ir.Undefined)
    return builder.insert_value(builder.insert_value(p, high, 0), low, 1)


def _add(builder: Any, p: Any, q: Any) -> Any:
    (a, b), (c, d) = _parts(builder, p), _parts(builder, q)
    s, e = two_sum(builder, a, c)
    t, f = two_sum(builder, b, d)
    s, e = fast_two_sum(builder, s, builder.fadd(e, t))
    return _joined(builder, *fast_two_sum(builder, s, builder.fadd(e, f)))


def _negative(builder: Any, p: Any) -> Any:
    return _joined(builder, *map(builder.fneg, _parts(builder, p)))


def _multiply(builder: Any, p: Any, q: Any) -> Any:
    (a, b), (c, d) = _parts(builder, p), _parts(builder, q)
    s, e = two_product(builder, a, c)
    e = builder.fadd(e, fma(builder, a, d, builder.fmul(b, c)))
    return _joined(builder, *fast_two_sum(builder, s, e))


def _divide(builder: Any, p: Any, q: Any) -> Any:
    (a, _), (c, _) = _parts(builder, p), _parts(builder, q)
    first = builder.fdiv(a, c)
    zero = ir.Constant(first.type, None)
    rest = _add(builder, p, _negative(builder, _multiply(builder, q, _joined(builder, first, zero))))
    return _joined(builder, *fast_two_sum(builder, first, builder.fdiv(builder.extract_value(rest, 0), c)))


def _root(builder: Any, p: Any) -> Any:
    a, _ = _parts(builder, p)
    first = call(builder, "llvm.sqrt", a.type, a)
    square = _joined(builder, *two_product(builder, first, first))
    rest = builder.extract_value(_add(builder, p, _negative(builder, square)), 0)
    return _joined(builder, *fast_two_sum(builder, first, builder.fdiv(rest, builder.fadd(first, first))))


def _define(function: Any, arguments: int, generate: Any) -> None:
    class Template(AbstractTemplate):
        def generic(self, args: Any, kwargs: Any) -> Any:
            if not kwargs and len(args) == arguments and isinstance(args[0], Pair) and len(set(args)) == 1:
                return signature(args[0], *args)
            return None

    infer_global(function)(Template)
    lower_builtin(function, *[Pair] * arguments)(lambda context, builder, signature, args: generate(builder, *args))


_define(operator.add, 2, _add)
_define(operator.sub, 2, lambda builder, p, q: _add(builder, p, _negative(builder, q)))
_define(operator.mul, 2, _multiply)
_define(operator.truediv, 2, _divide)
_define(operator.neg, 1, _negative)


def part_of(t: Any) -> Any:
    """Return the vector type of a pair's parts, or the vector type itself."""
    return t.part if isinstance(t, Pair) else t


@intrinsic
def pair(typingctx, a, b):
    """Make a pair of two parts, which are not normalized."""
    return Pair(a)(a, a), lambda context, builder, signature, args: _joined(builder, *args)


@intrinsic
def exact_product(typingctx, a, b):
    """Return a b of two vectors as a pair."""
    return Pair(a)(a, a), lambda context, builder, signature, args: _joined(builder, *two_product(builder, *args))


@intrinsic
def exact_sum(typingctx, a, b):
    """Return a + b of two vectors as a pair."""
    return Pair(a)(a, a), lambda context, builder, signature, args: _joined(builder, *two_sum(builder, *args))


@intrinsic
def constant(typingctx, x, value):
    """Return a number in every lane, in the type of x."""
    part = part_of(x)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = splat(builder, context.cast(builder, args[1], value, part.dtype), part)
        return _joined(builder, number, ir.Constant(number.type, None)) if isinstance(x, Pair) else number

    return x(x, value), codegen


@intrinsic
def high(typingctx, x):
    """Return the leading part of a pair, or a vector unchanged."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_value(args[0], 0) if isinstance(x, Pair) else args[0]

    return part_of(x)(x), codegen


@intrinsic
def low(typingctx, x):
    """Return the small part of a pair, or zeros for a vector."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_value(args[0], 1) if isinstance(x, Pair) else ir.Constant(args[0].type, None)

    return part_of(x)(x), codegen


@intrinsic
def number(typingctx, x, a, b):
    """Return the parts a and b in the type of x: as a pair, or a alone."""
    return x(
        x, a, a
    ), lambda context, builder, signature, args: _joined(builder, *args[1:]) if isinstance(x, Pair) else args[1]


@intrinsic
def add_product(typingctx, p, a, b):
    """Return the pair p + a b for vectors a and b, without normalizing its parts.

    For long sums that start at a number more than 3 times as large as any sum to come, see `accumulate_above`.
    """
    return p(p, a, a), lambda context, builder, signature, args: _joined(
        builder, *accumulate_above(builder, *_parts(builder, args[0]), *args[1:])
    )


@intrinsic
def add_part(typingctx, p, a):
    """Return the pair p + a, for p a sum as in `add_product`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        s, rest = _parts(builder, args[0])
        s, left = fast_two_sum(builder, s, args[1])
        return _joined(builder, s, builder.fadd(rest, left))

    return p(p, a), codegen


@intrinsic(prefer_literal=True)
def number_zero(typingctx, pairs):
    """Return zeros in eight lanes of float64, as a pair if ``pairs``, a constant of the kernel, is not 0."""
    v = Vector(types.float64, WORDS)
    result = Pair(v) if pairs.literal_value else v

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero = ir.Constant(llvm_type(v), None)
        return _joined(builder, zero, zero) if pairs.literal_value else zero

    return result(pairs), codegen


@intrinsic
def choose(typingctx, condition, a, b):
    """Return ``a if condition else b``, lane by lane, for vectors or pairs."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not isinstance(a, Pair):
            return builder.select(*args)
        parts = zip(_parts(builder, args[1]), _parts(builder, args[2]), strict=True)
        return _joined(builder, *(builder.select(args[0], x, y) for x, y in parts))

    return a(with_element(part_of(a), types.boolean), a, a), codegen


@intrinsic
def root(typingctx, x):
    """Return the square root of positive numbers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _root(builder, args[0]) if isinstance(x, Pair) else call(builder, "llvm.sqrt", args[0].type, *args)

    return x(x), codegen


def _places(context: Any, builder: Any, array: Any, value: Any, i: Any, x: Any) -> Any:
    parts = 2 if isinstance(x, Pair) else 1
    first = builder.mul(i, i.type(parts * WORDS))
    at = (builder.add(first, i.type(k * WORDS)) for k in range(parts))
    return [pointer_to(context, builder, array, value, k, part_of(x)) for k in at]


@intrinsic
def load_number(typingctx, array, i, x):
    """Return number i of an array of vectors or pairs of 8 lanes, in the type of x. A pair's parts are adjacent."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        parts = [builder.load(p, align=8) for p in _places(context, builder, signature.args[0], args[0], args[1], x)]
        return _joined(builder, *parts) if isinstance(x, Pair) else parts[0]

    return x(array, types.intp, x), codegen


@intrinsic
def store_number(typingctx, array, i, x):
    """Write x as number i of an array of vectors or pairs of 8 lanes, see `load_number`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        parts = _parts(builder, args[2]) if isinstance(x, Pair) else [args[2]]
        places = _places(context, builder, signature.args[0], args[0], args[1], x)
        for part, place in zip(parts, places, strict=True):
            builder.store(part, place, align=8)
        return context.get_dummy_value()

    return types.void(array, types.intp, x), codegen


@intrinsic
def words(typingctx, x):
    """Return how many float64 values a number of the type of x takes: 8, or 16 for a pair."""
    n = WORDS * (2 if isinstance(x, Pair) else 1)
    return types.intp(x), lambda context, builder, signature, args: ir.IntType(64)(n)
