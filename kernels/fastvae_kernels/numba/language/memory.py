"""Tensors as kernels see them: addresses, strides and dtype codes. Unboxing an int is much cheaper than an array.

A kernel is compiled for dtype codes, which are constants, and builds its 1-D arrays itself:

    x = array_at(x_address, length, X)      # float32, float64, uint16 (the bits of bfloat16) or uint8 elements
    c = row_at(c_address, i, width, F64)    # row i of a table
    one, v = number(T), vector(T)           # zeros of the compute dtype
    a = read(x, i, v)                       # elements i, i + 1, ..., one for each lane; a single number for ``one``
    write(x, i, a)                          # rounded to the dtype of the elements, to nearest even
    room = on_stack(1024, T)                # an array on the kernel's stack
    x = array_at(read_address(room, ...), n, T)   # rows in place or their copy in the room; `write_address` to write
"""

from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from .jit import loop_jit, math_jit, outlined
from .math import like
from .vector import (
    LANES_F32,
    LANES_F64,
    LANES_REGISTER,
    Vector,
    element,
    lanes,
    llvm_type,
    pointer_to,
    splat,
    total,
    with_element,
)

F32, F64, BF16, U8, U32, I64 = range(6)
CODES = {torch.float32: F32, torch.float64: F64, torch.bfloat16: BF16, torch.uint8: U8, torch.bool: U8}
ITEM_SIZES = {F32: 4, F64: 8, BF16: 2, U8: 1, U32: 4, I64: 8}
ELEMENTS = {
    F32: types.float32, F64: types.float64, BF16: types.uint16, U8: types.uint8, U32: types.uint32, I64: types.int64
}  # fmt: skip


BYTES = ir.IntType(8).as_pointer()


@intrinsic(prefer_literal=True)
def number(typingctx, code):
    """Return 0 in the dtype of a code."""
    t = ELEMENTS[code.literal_value]
    return t(code), lambda context, builder, signature, args: ir.Constant(llvm_type(t), None)


@intrinsic(prefer_literal=True)
def vector(typingctx, code):
    """Return a vector of zeros in the dtype of a code."""
    t = ELEMENTS[code.literal_value]
    t = Vector(t, LANES_F64 if t == types.float64 else LANES_F32)
    return t(code), lambda context, builder, signature, args: ir.Constant(llvm_type(t), None)


@intrinsic(prefer_literal=True)
def wide_vector(typingctx, code):
    """Return a vector of zeros that fills two registers: two independent dependency chains, to hide latency."""
    t = ELEMENTS[code.literal_value]
    t = Vector(t, 128 * LANES_REGISTER // t.bitwidth)
    return t(code), lambda context, builder, signature, args: ir.Constant(llvm_type(t), None)


@intrinsic(prefer_literal=True)
def item_size(typingctx, code):
    """Return the bytes of an element of a code."""
    size = ITEM_SIZES[code.literal_value]
    return types.intp(code), lambda context, builder, signature, args: ir.IntType(64)(size)


def _array(context: Any, builder: Any, result: Any, data: Any, length: Any) -> Any:
    array = context.make_array(result)(context, builder)
    size = context.get_constant(types.intp, result.dtype.bitwidth // 8)
    data = builder.bitcast(data, context.get_data_type(result.dtype).as_pointer())
    shape, strides = (cgutils.pack_array(builder, [n]) for n in (length, size))
    populate_array(array, data=data, shape=shape, strides=strides, itemsize=size, meminfo=None)
    return array._getvalue()


@intrinsic(prefer_literal=True)
def array_at(typingctx, address, length, code):
    """Return the 1-D array of ``length`` elements at ``address``, of the dtype ``code``, a constant of the kernel."""
    result = types.Array(ELEMENTS[code.literal_value], 1, "C")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _array(context, builder, result, builder.inttoptr(args[0], BYTES), args[1])

    return result(types.intp, types.intp, code), codegen


@intrinsic(prefer_literal=True)
def row_at(typingctx, address, i, width, code):
    """Return row i of the table at ``address``, with rows of ``width`` contiguous elements, as a 1-D array."""
    result = types.Array(ELEMENTS[code.literal_value], 1, "C")
    size = ITEM_SIZES[code.literal_value]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, i, width, _ = args
        offset = builder.mul(builder.mul(i, width), width.type(size))
        return _array(context, builder, result, builder.inttoptr(builder.add(address, offset), BYTES), width)

    return result(types.intp, types.intp, types.intp, code), codegen


@intrinsic
def section(typingctx, start, begin, end):
    """Return float64 elements ``begin`` to ``end`` of the memory at ``start``, as a 1-D array."""
    result, n = types.Array(types.float64, 1, "C"), types.intp

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = builder.add(args[0], builder.mul(args[1], args[1].type(8)))
        return _array(context, builder, result, builder.inttoptr(address, BYTES), builder.sub(args[2], args[1]))

    return result(n, n, n), codegen


@intrinsic(prefer_literal=True)
def on_stack(typingctx, length, code):
    """Return a 1-D array of ``length`` elements on the stack of the calling kernel; both arguments are constants."""
    result = types.Array(ELEMENTS[code.literal_value], 1, "C")
    size = length.literal_value * ITEM_SIZES[code.literal_value]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        with builder.goto_entry_block():  # not cgutils.alloca_once, which fills the array element by element
            room = builder.alloca(ir.ArrayType(ir.IntType(8), size))
            room.align = 64
        n = context.get_constant(types.intp, length.literal_value)
        return _array(context, builder, result, room, n)

    return result(length, code), codegen


@intrinsic
def read(typingctx, array, i, like):
    """Read elements i, i + 1, ... of a 1-D array, as many as ``like`` has lanes, and convert them to its type."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        stored = with_element(like, array.dtype)
        pointer = pointer_to(context, builder, signature.args[0], args[0], args[1], stored)
        value = builder.load(pointer, align=array.dtype.bitwidth // 8)
        if array.dtype == types.uint8:
            return builder.uitofp(value, llvm_type(like))
        if array.dtype == types.uint16:  # bfloat16 is the upper half of a float32
            word = with_element(like, types.uint32)
            value = builder.shl(builder.zext(value, llvm_type(word)), splat(builder, ir.IntType(32)(16), word))
            value = builder.bitcast(value, llvm_type(with_element(like, types.float32)))
        return value if value.type == llvm_type(like) else builder.fpext(value, llvm_type(like))

    return like(array, types.intp, like), codegen


@intrinsic
def write(typingctx, array, i, value):
    """Write a number, or the lanes of a vector, to elements i, i + 1, ... of a 1-D array, rounded to nearest even."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        stored, given = with_element(value, array.dtype), args[2]
        if array.dtype != types.float64 and element(value) == types.float64:
            given = builder.fptrunc(given, llvm_type(with_element(value, types.float32)))
        if array.dtype == types.uint16:
            given = to_bfloat16(builder, given, with_element(value, types.uint32), llvm_type(stored))
        pointer = pointer_to(context, builder, signature.args[0], args[0], args[1], stored)
        builder.store(given, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


def prefetch_line(builder: Any, address: Any) -> None:
    """Prefetch a cache line to the L2 cache; an invalid address is ignored."""
    pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [pointer, number, number, number]), "llvm.prefetch.p0"
    )
    builder.call(function, [builder.inttoptr(address, pointer), number(0), number(2), number(1)])


@intrinsic
def prefetch(typingctx, address):
    """Prefetch the cache line at an address to the L2 cache; an invalid address is ignored."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        prefetch_line(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.intp), codegen


def to_bfloat16(builder: Any, given: Any, word: Any, result: Any) -> Any:
    """Return the upper half of a float32, or of a vector of float32, rounded to nearest even."""

    def constant(value: int) -> Any:
        return splat(builder, ir.IntType(32)(value), word)

    bits = builder.bitcast(given, llvm_type(word))
    odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
    rounded = builder.lshr(builder.add(builder.add(bits, constant(0x7FFF)), odd), constant(16))
    return builder.trunc(builder.select(builder.fcmp_ordered("ord", given, given), rounded, constant(0x7FC0)), result)


@loop_jit
def gather(scratch, width, address, first_row, rows, stride, first, length, code, v):
    """Copy ``length`` elements of each of ``rows`` rows into a scratch with rows of ``width``, padded with zeros.

    ``v`` is a vector of the dtype of the scratch.
    """
    outlined()
    zero, size = like(scratch[0], 0), item_size(code)
    base = address + (first_row * stride + first) * size
    if stride == width and length == width:  # contiguous in the source and in the scratch: one long loop
        rows, length, width = 1, rows * length, rows * width
    for i in range(rows):
        source, at = array_at(base + i * stride * size, length, code), i * width
        whole = length - length % lanes(v)
        for j in range(0, whole, lanes(v)):
            write(scratch, at + j, read(source, j, v))
        for j in range(whole, length):
            scratch[at + j] = read(source, j, zero)
        for j in range(length, width):
            scratch[at + j] = zero


@loop_jit
def scatter(scratch, width, address, first_row, rows, stride, first, length, code, v):
    """Copy the rows of a scratch back; the inverse of `gather`."""
    outlined()
    zero, size = like(scratch[0], 0), item_size(code)
    base = address + (first_row * stride + first) * size
    if stride == width and length == width:
        rows, length = 1, rows * length
    for i in range(rows):
        target, at = array_at(base + i * stride * size, length, code), i * width
        whole = length - length % lanes(v)
        for j in range(0, whole, lanes(v)):
            write(target, j, read(scratch, at + j, v))
        for j in range(whole, length):
            write(target, j, read(scratch, at + j, zero))


@intrinsic
def address_of(typingctx, array):
    """Return the address of the first element of an array."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(context.make_array(array)(context, builder, args[0]).data, ir.IntType(64))

    return types.intp(array), codegen


@math_jit
def needs_scratch(width, rows, stride, length, code, T, v):
    """Whether rows cannot be used in place: they are not dense, not of the dtype T, or no whole number of vectors."""
    return code != T or length != width or (rows > 1 and stride != width) or rows * width % lanes(v) != 0


@math_jit
def read_address(scratch, width, address, first_row, rows, stride, first, length, code, T, v):
    """Return the address to read rows from: their own if they can be used in place, else a scratch with a copy."""
    if needs_scratch(width, rows, stride, length, code, T, v):
        gather(scratch, width, address, first_row, rows, stride, first, length, code, vector(T))
        return address_of(scratch)
    return address + (first_row * stride + first) * item_size(code)


@math_jit
def write_address(scratch, width, address, first_row, rows, stride, first, length, code, T, v):
    """Return the address to write rows to: their own, or a scratch, from which `copy_back` copies them."""
    if needs_scratch(width, rows, stride, length, code, T, v):
        return address_of(scratch)
    return address + (first_row * stride + first) * item_size(code)


@math_jit
def copy_back(scratch, width, address, first_row, rows, stride, first, length, code, T, v):
    """Copy rows to their destination, if `write_address` returned a scratch."""
    if needs_scratch(width, rows, stride, length, code, T, v):
        scatter(scratch, width, address, first_row, rows, stride, first, length, code, vector(T))


@math_jit
def sum_of(scratch, first, length, v):
    """Return the sum of ``length`` elements from ``first`` on, in a fixed order; ``v`` is a vector of their dtype."""
    acc, other, step = like(v, 0), like(v, 0), 2 * lanes(v)  # two sums, to hide the latency of an addition
    stop, whole = first + length - length % step, first + length - length % lanes(v)
    for j in range(first, stop, step):
        acc, other = acc + read(scratch, j, v), other + read(scratch, j + lanes(v), v)
    if stop < whole:
        acc = acc + read(scratch, stop, v)
    result = total(acc + other)
    for j in range(whole, first + length):
        result += scratch[j]
    return result


@math_jit
def weight_at(address, i, factor, code):
    """Return ``factor`` times element i of the upstream gradient at ``address``, in its dtype.

    Address 0 stands for an upstream gradient of 1.
    """
    weight = like(number(code), factor)
    return weight * array_at(address + i * item_size(code), 1, code)[0] if address else weight
