"""A vector of lanes as a Numba type, which makes a kernel's speed and summation order explicit.

    v = vector(F32)               # made by `memory.py`, which reads and writes consecutive elements of an array as one
    w = v * v + like(v, 0.5)      # + - * / and comparisons, lane by lane; a comparison gives a mask for `select`

LLVM's loop vectorizer gives up on many arrays that might overlap, and what it can prove is hard to predict: the same
loop ran two to five times slower after a harmless change. Here each line is one instruction, or two where the
processor's registers are shorter. The functions of `math.py` take vectors as well as scalars.
"""

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from .target import LANES_REGISTER

LANES_F32, LANES_F64 = 16, 8  # one AVX-512 register, two AVX2 registers: the same summation order on both
LANES_WORDS = 4 * LANES_REGISTER  # uint32 lanes of two registers: two independent chains of products hide latency


class Vector(types.Type):
    """The type of a vector of ``lanes`` numbers of a scalar type; a vector of booleans is a mask."""

    def __init__(self, dtype: types.Type, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        self.bitwidth = getattr(dtype, "bitwidth", 1)
        super().__init__(name=f"Vector({dtype}, {lanes})")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """Represented in LLVM as a vector, in registers."""

    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, llvm_type(fe_type))


def llvm_type(t: Any) -> Any:
    """Return the LLVM type of a vector or of a number."""
    if isinstance(t, Vector):
        return ir.VectorType(llvm_type(t.dtype), t.lanes)
    if isinstance(t, types.Boolean):
        return ir.IntType(1)
    if isinstance(t, types.Float):
        return ir.DoubleType() if t.bitwidth == 64 else ir.FloatType()
    return ir.IntType(t.bitwidth)


def element(t: Any) -> Any:
    """Return the type of a vector's lanes, or a scalar type itself."""
    return t.dtype if isinstance(t, Vector) else t


def with_element(t: Any, dtype: Any) -> Any:
    """Return the type with as many lanes as t and another dtype."""
    return Vector(dtype, t.lanes) if isinstance(t, Vector) else dtype


def splat(builder: Any, value: Any, t: Any) -> Any:
    """Return a number in every lane of a vector type, or the number itself for a scalar type."""
    if not isinstance(t, Vector):
        return value
    one = builder.insert_element(ir.Constant(llvm_type(t), ir.Undefined), value, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), t.lanes), [0] * t.lanes)
    return builder.shuffle_vector(one, ir.Constant(llvm_type(t), ir.Undefined), zeros)


def call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    """Call an LLVM intrinsic whose name is overloaded on the type of its result."""
    lanes, scalar = (f"v{result.count}", result.element) if isinstance(result, ir.VectorType) else ("", result)
    name += f".{lanes}{scalar.intrinsic_name}"  # as llvm.fmuladd.v8f32
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [a.type for a in args]), name)
    return builder.call(function, args)


def _is_float(t: Any) -> bool:
    return isinstance(t.dtype, types.Float)


_ARITHMETIC = {  # for floats, for integers and masks
    operator.add: ("fadd", "add"),
    operator.sub: ("fsub", "sub"),
    operator.mul: ("fmul", "mul"),
    operator.truediv: ("fdiv", None),
    operator.xor: (None, "xor"),
    operator.and_: (None, "and_"),
    operator.or_: (None, "or_"),
}
_COMPARISONS = {
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.eq: "==",
    operator.ne: "!=",
}


def _define(function: Any, arguments: int, result: Any, generate: Any) -> None:
    class Template(AbstractTemplate):
        def generic(self, args: Any, kwargs: Any) -> Any:
            if not kwargs and len(args) == arguments and isinstance(args[0], Vector) and len(set(args)) == 1:
                return signature(result(args[0]), *args)
            return None

    infer_global(function)(Template)
    lower_builtin(function, *[Vector] * arguments)(
        lambda context, builder, signature, args: generate(builder, signature.args[0], *args)
    )


for _function, _names in _ARITHMETIC.items():
    _define(
        _function,
        2,
        lambda t: t,
        lambda builder, t, a, b, names=_names: getattr(builder, names[0 if _is_float(t) else 1])(a, b),
    )
for _function, _sign in _COMPARISONS.items():
    _define(
        _function,
        2,
        lambda t: Vector(types.boolean, t.lanes),
        lambda builder, t, a, b, sign=_sign: (
            (builder.fcmp_unordered if sign == "!=" else builder.fcmp_ordered)(sign, a, b)
            if _is_float(t)
            else builder.icmp_unsigned(sign, a, b)
        ),
    )
_define(operator.neg, 1, lambda t: t, lambda builder, t, a: builder.fneg(a))
_define(abs, 1, lambda t: t, lambda builder, t, a: call(builder, "llvm.fabs", a.type, a))


def pointer_to(context: Any, builder: Any, array: Any, value: Any, i: Any, t: Any) -> Any:
    """Return the address of elements i, i + 1, ... of an array, as a pointer to a number or vector type."""
    data = context.make_array(array)(context, builder, value).data
    return builder.bitcast(builder.gep(data, [i]), llvm_type(t).as_pointer())


@intrinsic
def lanes(typingctx, vector):
    """Return the number of lanes of a vector."""
    return types.intp(vector), lambda context, builder, signature, args: ir.IntType(64)(vector.lanes)


@intrinsic(prefer_literal=True)
def words(typingctx, count):
    """Return a vector of uint32 zeros with ``count`` lanes, a constant."""
    result = Vector(types.uint32, count.literal_value)
    return result(count), lambda context, builder, signature, args: ir.Constant(llvm_type(result), None)


def shuffle(builder: Any, x: Any, y: Any, mask: list[int]) -> Any:
    """Return the lanes of two vectors that ``mask`` selects by index."""
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), len(mask)), mask))


def _interleave(builder: Any, x: Any, y: Any, unit: int, group: int) -> list[Any]:
    # alternate units of x and y: from the first half of each group of lanes, then from the second
    n, half = x.type.count, group // 2
    order = [
        first + side + i
        for part in (0, half)
        for start in range(part, n, group)
        for first in range(start, start + half, unit)
        for side in (0, n)
        for i in range(unit)
    ]
    return [shuffle(builder, x, y, order[:n]), shuffle(builder, x, y, order[n:])]


@intrinsic
def interleave_order(typingctx, x, like):
    """Return the lanes of x in the order that `store_interleaved` expects for vectors of the type of ``like``.

    For float32, each four consecutive lanes are placed a quarter of a vector apart: the numbers then stay within their
    128 bits when they are interleaved, which is half the work.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if like.bitwidth != 32:
            return args[0]
        n = like.lanes
        order = [first + n // 4 * j + q for first in range(0, x.lanes, n) for q in range(n // 4) for j in range(4)]
        return shuffle(builder, args[0], args[0], order)

    return x(x, like), codegen


@intrinsic
def store_interleaved(typingctx, array, i, a, b, c, d):
    """Write a[0], b[0], c[0], d[0], a[1], ... of vectors with lanes in `interleave_order` to elements i, i + 1, ..."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        group = 4 if a.bitwidth == 32 else a.lanes
        ab, cd = (_interleave(builder, args[k], args[k + 1], 1, group) for k in (2, 4))
        vectors = [v for x, y in zip(ab, cd, strict=True) for v in _interleave(builder, x, y, 2, group)]
        for j, vector in enumerate(vectors):
            at = builder.add(args[1], args[1].type(j * a.lanes))
            pointer = pointer_to(context, builder, signature.args[0], args[0], at, a)
            builder.store(vector, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, a, b, c, d), codegen


@intrinsic
def parts(typingctx, x, like):
    """Split a vector into vectors with as many lanes as ``like``."""
    n = like.lanes
    result = types.UniTuple(Vector(x.dtype, n), x.lanes // n)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pieces = [shuffle(builder, args[0], args[0], list(range(k, k + n))) for k in range(0, x.lanes, n)]
        return context.make_tuple(builder, result, pieces)

    return result(x, like), codegen


@intrinsic
def total(typingctx, vector):
    """Return the sum of the lanes, by repeated halving."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, n = args[0], vector.lanes
        while n > 1:
            n //= 2
            low, high = (shuffle(builder, value, value, list(range(k, k + n))) for k in (0, n))
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.IntType(32)(0))

    return vector.dtype(vector), codegen


@intrinsic
def register(typingctx, vector):
    """Return a vector of zeros as long as a register, or as ``vector`` if that is shorter."""
    result = Vector(vector.dtype, min(LANES_REGISTER, vector.lanes))
    return result(vector), lambda context, builder, signature, args: ir.Constant(llvm_type(result), None)


@intrinsic
def deinterleave(typingctx, a, b):
    """Return the even lanes and the odd lanes of the concatenation of a and b."""
    result = types.UniTuple(a, 2)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        parts = [shuffle(builder, args[0], args[1], list(range(k, 2 * a.lanes, 2))) for k in (0, 1)]
        return context.make_tuple(builder, result, parts)

    return result(a, a), codegen
