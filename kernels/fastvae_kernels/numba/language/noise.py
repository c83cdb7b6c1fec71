"""Portable noise: a standard normal for each (seed, row, draw, latent element), the same on every device and backend.

    words    Philox-4x32-10, key (seed low, seed high), counter (l // 4, k, n low, n high); word l % 4
    normals  u = fl32(w) 2^-32 + 2^-33, t = fl32(int32(w')) 2^-32, r = sqrt(-2 log u):  (r cos 2 pi t, r sin 2 pi t)

u and t are float32 numbers in either dtype. Each lane computes one block of four words, of any row. With AVX-512 an
element takes about four vector instructions, half of them for Philox, half for the logarithm and the sine. The products
of successive rounds depend on each other, so several registers of counters are processed at once to hide their latency.
With AVX-512 a word is the low half of a uint64: the low word of a product is then in place for the next round, and its
high word takes one shift. AVX2 has half as many registers, and words are shuffled into place. A normal takes 0.67 ns in
float32 and 1.3 in float64 on a Zen 4 core with AVX-512; 1.1 and 1.9 with AVX2.
Specification: fastvae/reference/elbo/noise.py
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .jit import loop_jit, math_jit, outlined
from .math import fma, like, select, sincos_2pi, sqrt, twice_log_normal
from .memory import read
from .vector import (
    LANES_REGISTER,
    LANES_WORDS,
    Vector,
    element,
    interleave_order,
    lanes,
    llvm_type,
    parts,
    shuffle,
    splat,
    store_interleaved,
    with_element,
    words,
)

BLOCK = 4 * LANES_WORDS  # normals generated at a time
WIDE_WORDS = LANES_REGISTER == 8  # whether words are the low halves of uint64
LOW_WORD, HIGH_SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


@intrinsic
def from_unsigned(typingctx, x):
    """Return the float32 nearest to a uint32."""
    result = with_element(x, types.float32)
    return result(x), lambda context, builder, signature, args: builder.uitofp(args[0], llvm_type(result))


@intrinsic
def from_signed(typingctx, x):
    """Return the float32 nearest to the int32 with the bits of a uint32."""
    result = with_element(x, types.float32)
    return result(x), lambda context, builder, signature, args: builder.sitofp(args[0], llvm_type(result))


@intrinsic
def widen(typingctx, x, like):
    """Convert a float32 to the dtype of ``like``, float32 or float64."""
    result = with_element(x, element(like))

    def codegen(context, builder, signature, args):
        return args[0] if element(like) == types.float32 else builder.fpext(args[0], llvm_type(result))

    return result(x, like), codegen


@intrinsic
def _widen_words(typingctx, x):
    """Return words in the form that the rounds of Philox take.

    With AVX-512, which has enough registers, they are the low halves of uint64, and the high halves are ignored.
    """
    result = with_element(x, types.uint64) if WIDE_WORDS or not isinstance(x, Vector) else x

    def codegen(context, builder, signature, args):
        if not isinstance(x, Vector):
            return builder.zext(args[0], llvm_type(result))
        if not WIDE_WORDS:
            return args[0]
        half = Vector(types.uint64, x.lanes // 2)
        order = [first + j for first in range(0, x.lanes, 4) for j in (0, 2, 1, 3)]
        pairs = builder.bitcast(shuffle(builder, args[0], args[0], order), llvm_type(half))
        return shuffle(builder, pairs, builder.lshr(pairs, _uint64(builder, 32, half)), list(range(x.lanes)))

    return result(x), codegen


@intrinsic
def _narrow_words(typingctx, x):
    """Return the words as uint32: the inverse of `_widen_words`, with one shuffle for each register."""
    result = with_element(x, types.uint32)

    def codegen(context, builder, signature, args):
        if not isinstance(x, Vector):
            return builder.trunc(args[0], llvm_type(result))
        if not WIDE_WORDS:
            return args[0]
        n = x.lanes // 2
        halves = (shuffle(builder, args[0], args[0], list(range(k, k + n))) for k in (0, n))
        low, high = (builder.bitcast(half, llvm_type(result)) for half in halves)
        order = [first + side + j for first in range(0, x.lanes, 4) for side in (0, x.lanes) for j in (0, 2)]
        return shuffle(builder, low, high, order)

    return result(x), codegen


def _uint64(builder: Any, value: int, t: Any) -> Any:
    return splat(builder, ir.IntType(64)(value), t)


@intrinsic
def _multiply_wide(typingctx, x, factor):
    """Return the high and the low words of the products of words, as from `_widen_words`, and a uint32 constant."""
    wide = x if x.bitwidth == 64 else Vector(types.uint64, x.lanes // 2)

    def codegen(context, builder, signature, args):
        def product(a):  # one instruction, which multiplies the low halves only
            return builder.mul(builder.and_(a, _uint64(builder, 0xFFFFFFFF, wide)), factor_)

        def high(a):
            return builder.lshr(a, _uint64(builder, 32, wide))

        factor_ = splat(builder, context.cast(builder, args[1], factor, types.uint64), wide)
        if wide == x:
            low = product(args[0])
            return context.make_tuple(builder, signature.return_type, (high(low), low))
        # Multiply lanes 0, 2, ... and 1, 3, ... separately, in place: a widened vector would take shuffles both ways.
        # Collect the words by shuffles: if they were shifted and merged, the shift would become another product.
        pairs = builder.bitcast(args[0], llvm_type(wide))
        even, odd = (builder.bitcast(product(p), llvm_type(x)) for p in (pairs, high(pairs)))
        orders = ([j + side for j in range(half, x.lanes, 2) for side in (0, x.lanes)] for half in (1, 0))
        words = [shuffle(builder, even, odd, order) for order in orders]
        return context.make_tuple(builder, signature.return_type, words)

    return types.UniTuple(x, 2)(x, factor), codegen


@intrinsic
def xor3(typingctx, a, b, c):
    """Return a xor b xor c. Numba's own operator would widen scalars."""
    return a(a, a, a), lambda _, builder, signature, args: builder.xor(builder.xor(args[0], args[1]), args[2])


M0, M1 = np.uint32(0xD2511F53), np.uint32(0xCD9E8D57)
W0, W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
ROUNDS = 10
KEYS = 2 * ROUNDS + 1  # length of the array of `fill_keys`


@math_jit
def _round(c0, c1, c2, c3, k0, k1):
    high_0, low_0 = _multiply_wide(c0, M0)
    high_1, low_1 = _multiply_wide(c2, M1)
    return xor3(high_1, c1, like(c0, k0)), low_1, xor3(high_0, c3, like(c0, k1)), low_0


@math_jit
def philox(c0, c1, c2, c3, k0, k1):
    """Return the four words of Philox-4x32-10 for a counter of four uint32 or vectors of uint32, and a key of two."""
    c0, c1, c2, c3 = _widen_words(c0), _widen_words(c1), _widen_words(c2), _widen_words(c3)
    for _ in range(ROUNDS):
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + W0), np.uint32(k1 + W1)
    return _narrow_words(c0), _narrow_words(c1), _narrow_words(c2), _narrow_words(c3)


@loop_jit
def fill_keys(keys, seed):
    """Write the keys of all rounds, two words each, then their number; loads from memory broadcast them for free."""
    outlined()
    key = np.uint64(seed)
    k0, k1 = np.uint32(key & LOW_WORD), np.uint32(key >> HIGH_SHIFT)
    for i in range(0, 2 * ROUNDS, 2):
        keys[i], keys[i + 1] = k0, k1
        k0, k1 = np.uint32(k0 + W0), np.uint32(k1 + W1)
    keys[2 * ROUNDS] = 2 * ROUNDS


@math_jit
def box_muller(w, w_signed, type_of):
    """Return two standard normals from two uint32 words, in the dtype of ``type_of``, whose value is ignored.

    The uniforms u in (0, 1] and t in [-0.5, 0.5] are float32 numbers in either dtype.
    """
    u, t = from_unsigned(w), from_signed(w_signed)
    u = widen(fma(u, like(u, 2.0**-32), like(u, 2.0**-33)), type_of)
    t = widen(t * like(t, 2.0**-32), type_of)
    radius = sqrt(-twice_log_normal(u))
    sin, cos = sincos_2pi(t)
    return radius * cos, radius * sin


@math_jit
def normal4(w0, w1, w2, w3, type_of):
    """Return the four standard normals from the words of a counter: latent elements 4 c0 .. 4 c0 + 3."""
    return (*box_muller(w0, w1, type_of), *box_muller(w2, w3, type_of))


@loop_jit
def count(blocks, rows, of_a_row, n):
    """Number the Philox blocks of n rows: write each block's index within its row, of ``of_a_row``, and its row."""
    outlined()
    for i in range(n):
        for b in range(of_a_row):
            blocks[i * of_a_row + b] = b
            rows[i * of_a_row + b] = i


@math_jit
def fill_noise(eps, blocks, rows, at, first, n, k, keys, v):
    """Write BLOCK standard normals of draw k, four for each Philox block from number ``at`` on.

    Blocks are numbered by `count`; number 0 is block ``first`` of row n.
    """
    u, row = words(LANES_WORDS), np.uint64(n)
    low, high = like(u, np.uint32(row & LOW_WORD)), like(u, np.uint32(row >> HIGH_SHIFT))
    c0 = interleave_order(read(blocks, at, u) + like(u, np.uint32(first)), v)
    c2 = interleave_order(read(rows, at, u) + low, v)
    c3 = select(c2 < low, high + like(u, np.uint32(1)), high)
    c0, c1, c2, c3 = _widen_words(c0), _widen_words(like(u, np.uint32(k))), _widen_words(c2), _widen_words(c3)
    for i in range(0, keys[2 * ROUNDS], 2):  # a constant bound would be unrolled, and interleaved with what follows
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, keys[i], keys[i + 1])
    z0, z1, z2, z3 = normal4(_narrow_words(c0), _narrow_words(c1), _narrow_words(c2), _narrow_words(c3), v)
    z0, z1, z2, z3 = parts(z0, v), parts(z1, v), parts(z2, v), parts(z3, v)
    for j in range(len(z0)):
        store_interleaved(eps, 4 * j * lanes(v), z0[j], z1[j], z2[j], z3[j])
