"""Elementary functions of scalars and vectors: exp, log, sin, ... for float32 and float64.

Numba has no vector math library: `math.exp` in a loop calls libm for each element. The functions here are straight-line
code, with selects in place of branches and explicit fma, for scalars and for the vectors of `vector.py`: an element
gets the same bits in a vector as alone. Every function takes float32 or float64 and computes in that type throughout.
NaN inputs give NaN.

    e^x        x = n ln 2 + r, |r| <= ln 2 / 2        2^n (1 + r + r^2 q(r))
    e^x - 1                                           (2^n - 1 + 2^n r) + 2^n r^2 q(r)
    e^s - 1    s = 2 x, w = e^r - 1, m = 2^2n         (m - 1 + m 2 r) + m (w^2 + 2 r^2 q(r))
    phi(s) = e^s - 1 - s                              (m - 1) (1 + 2 r) - 2 n ln 2 + m (w^2 + 2 r^2 q(r))
    log x      x = 2^e (1 + f), |log(1 + f)| <= 0.41  e ln 2 + f - h + s (h + z p(z)); s = f/(2 + f), z = s^2, h = f^2/2
    sin, cos   t = k / 4 + r, |r| <= 1 / 8            r S(r^2), C(r^2), exchanged and negated according to k mod 4

q, p, S, C are minimax polynomials. Largest errors found, in ulp, and ns per element (one Zen 4 core, vectors):

               exp   expm1  log   log1p  tanh  sigmoid  sin   cos     e^(s/2)  e^s - 1  phi(s)
    float32    1.01  1.16   0.83  0.88   3.43  2.14     1.6   1.7     0.85     1.30     2.57
               0.23  0.25   0.49  0.25   0.45  0.41     0.25, both    0.62, the three together
    float64    1.02  1.18   0.88  0.96   3.46  2.10     1.5   1.5     0.83     1.40     3.01
               0.63  0.61   0.96  0.68   0.92  0.84     0.71, both    1.26, the three together

Range limits: e^x has gradual underflow and overflows to infinity; log is accurate for subnormal numbers.
Specification: fastvae/reference/elbo/formulas.py (phi)
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...coefficients import (
    EXP_HALVED,
    EXP_LEAST,
    EXP_MAX,
    EXP_MIN,
    EXP_NORMAL,
    EXPM1_MIN,
    LN2_HI,
    LN2_LO,
    LOG2_E,
    Q_FINE,
    QUARTERS,
    RESCALE,
    RESCALE_LOG2,
    ROUND,
    TINY,
    C,
    P,
    Q,
    S,
)
from .jit import math_jit
from .vector import Vector, call, element, llvm_type, splat, with_element


@intrinsic
def like(typingctx, x, constant):
    """Return a constant, or the member of a (float32, float64) pair, in the type of x.

    A literal 0.5 would promote float32 to float64.
    """
    pair, i, t = isinstance(constant, types.BaseTuple), int(x.bitwidth == 64), element(x)

    def codegen(context, builder, signature, args):
        value = builder.extract_value(args[1], i) if pair else args[1]
        return splat(builder, context.cast(builder, value, constant[i] if pair else constant, t), x)

    return x(x, constant), codegen


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    # fmuladd, not fma: without an fma instruction it becomes a product and a sum, not a call to libm
    return call(builder, "llvm.fmuladd", a.type, a, b, c)


@intrinsic
def fma(typingctx, a, b, c):
    """Return a b + c, rounded once where the processor has an fma instruction."""
    return a(a, a, a), lambda context, builder, signature, args: _fma(builder, *args)


@intrinsic
def polynomial(typingctx, x, pair):
    """Evaluate a polynomial by Horner's rule, with the coefficients for the type of x."""
    i = int(x.bitwidth == 64)

    def codegen(context, builder, signature, args):
        tuple_ = builder.extract_value(args[1], i)
        numbers = [
            context.cast(builder, builder.extract_value(tuple_, j), t, element(x)) for j, t in enumerate(pair[i])
        ]
        value, *c = [splat(builder, number, x) for number in numbers]
        for c_j in c:
            value = _fma(builder, value, args[0], c_j)
        return value

    return x(x, pair), codegen


@intrinsic
def select(typingctx, condition, a, b):
    """Return ``a if condition else b`` without a branch, lane by lane; a and b have the same type."""
    return a(with_element(a, types.boolean), a, a), lambda context, builder, signature, args: builder.select(*args)


@intrinsic
def sqrt(typingctx, x):
    """Return the square root, correctly rounded."""
    return x(x), lambda context, builder, signature, args: call(builder, "llvm.sqrt", args[0].type, *args)


@intrinsic
def bits(typingctx, x):
    """Return the bit pattern of a float32 as a uint32."""
    result = with_element(x, types.uint32)
    return result(x), lambda context, builder, signature, args: builder.bitcast(args[0], llvm_type(result))


@intrinsic
def from_bits(typingctx, x):
    """Return the float32 with a given bit pattern."""
    result = with_element(x, types.float32)
    return result(x), lambda context, builder, signature, args: builder.bitcast(args[0], llvm_type(result))


def _layout(x: Any) -> tuple[Any, Any, int, int]:
    # a function that makes constants of the integer type, that type, the mantissa width, the bits of 1.0
    width, mantissa, bias = (64, 52, 1023) if x.bitwidth == 64 else (32, 23, 127)
    integer = ir.IntType(width)
    if not isinstance(x, Vector):
        return integer, integer, mantissa, bias << mantissa
    lanes = ir.VectorType(integer, x.lanes)
    return (lambda value: ir.Constant(lanes, [value] * x.lanes)), lanes, mantissa, bias << mantissa


@intrinsic
def _half_power(typingctx, t):
    """Return 2^n / 2 for t = n + ROUND."""
    constant, integer, mantissa, one = _layout(t)
    offset = -one - (1 << mantissa)

    def codegen(context, builder, signature, args):
        exponent = builder.shl(builder.bitcast(args[0], integer), constant(mantissa))
        return builder.bitcast(builder.add(exponent, constant(offset)), args[0].type)

    return t(t), codegen


@intrinsic
def _scale(typingctx, y, t):
    """Return y 2^n for t = n + ROUND, in two steps, since 2^n may not be representable where y 2^n is."""
    constant, integer, mantissa, _ = _layout(t)

    def codegen(context, builder, signature, args):
        n = builder.bitcast(args[1], integer)  # its low bits hold n + 2 bias
        first = builder.lshr(n, constant(1))
        for part in (first, builder.sub(n, first)):
            power = builder.bitcast(builder.shl(part, constant(mantissa)), args[0].type)
            args = (builder.fmul(args[0], power),)
        return args[0]

    return y(y, t), codegen


@intrinsic
def _split(typingctx, x):
    """Return (e, 1 + f) for a positive normal x = 2^e (1 + f), 1 + f in [sqrt 1/2, sqrt 2)."""
    constant, integer, mantissa, one = _layout(x)
    sqrt_half = 0x3FE6A09E667F3BCD if x.bitwidth == 64 else 0x3F3504F3
    # AVX2 can neither convert 64-bit integers nor shift them arithmetically: put e + bias in the low bits of 2^mantissa
    magic, offset = one + (mantissa << mantissa), float(2**mantissa + (one >> mantissa))

    def codegen(context, builder, signature, args):
        pattern, float_ = builder.bitcast(args[0], integer), args[0].type
        e = builder.lshr(builder.add(pattern, constant(one - sqrt_half)), constant(mantissa))  # e + bias
        f = builder.sub(builder.add(pattern, constant(one)), builder.shl(e, constant(mantissa)))
        e = builder.bitcast(builder.or_(e, constant(magic)), float_)
        shift = splat(builder, llvm_type(element(x))(offset), x)
        return context.make_tuple(builder, signature.return_type, (builder.fsub(e, shift), builder.bitcast(f, float_)))

    return types.UniTuple(x, 2)(x), codegen


@math_jit
def _reduce(x):
    """Return (n + ROUND, n, x - n LN2_HI); only n is rounded."""
    t = fma(x, like(x, LOG2_E), like(x, ROUND))
    n = t - like(x, ROUND)
    return t, n, fma(n, -like(x, LN2_HI), x)


@math_jit
def exp(x):
    """Return e^x, with gradual underflow."""
    x = select(x > like(x, EXP_MAX), like(x, EXP_MAX), x)  # in this order NaN is kept
    x = select(x < like(x, EXP_MIN), like(x, EXP_MIN), x)
    t, n, r = _reduce(x)
    r = fma(n, -like(x, LN2_LO), r)
    return _scale(like(x, 1.0) + fma(r * r, polynomial(r, Q), r), t)


@math_jit
def exp_negative(x):
    """Return e^x for x <= 0, a weight relative to 1, and 0 below EXP_LEAST. It takes fewer instructions than `exp`."""
    small = x < like(x, EXP_LEAST)
    t, n, r = _reduce(select(small, like(x, EXP_LEAST), x))
    r = fma(n, -like(x, LN2_LO), r)
    half = _half_power(t)
    y = like(x, 2.0) * fma(half, fma(r * r, polynomial(r, Q), r), half)
    return select(small, like(x, 0.0), y)


@math_jit
def times(x, factor):
    """Return x * factor, but 0 where x is 0, even if the factor is infinite or NaN."""
    return select(x == like(x, 0), x, x * factor)


@math_jit
def inverse_parts(s):
    """Return two factors of e^-s, the second usually 1; e^-s itself may overflow where x e^-s does not."""
    halved = s < like(s, EXP_HALVED)
    first = exp(-select(halved, like(s, 0.5) * s, s))
    return first, select(halved, first, like(s, 1))


@math_jit
def expm1(x):
    """Return e^x - 1."""
    x = select(x > like(x, EXP_MAX), like(x, EXP_MAX), x)
    x = select(x < like(x, EXPM1_MIN), like(x, EXPM1_MIN), x)
    t, n, r_hi = _reduce(x)
    r_lo = n * -like(x, LN2_LO)
    r = r_hi + r_lo
    half = _half_power(t)
    large = fma(half, r_hi, half - like(x, 0.5))  # terms that may cancel come first, small ones after
    return like(x, 2.0) * fma(half, fma(r * r, polynomial(r, Q), r_lo), large)


@math_jit
def half_exponentials(s):
    """Return the halves of e^(s/2), of e^s - 1 and of phi(s) = e^s - 1 - s for a log variance s, by one reduction.

    The first is 0 where e^(s/2) is not a normal number. phi is never negative; its derivative is e^s - 1.
    """
    x, least, infinite = like(s, 0.5) * s, like(s, EXP_NORMAL), s > like(s, EXP_MAX)
    tiny = x < least
    below = select(tiny, least - x, like(s, 0.0))  # e^s is negligible relative to s
    x = select(x > like(s, EXP_MAX), like(s, EXP_MAX), x)  # in this order NaN is kept
    t, n, r_hi = _reduce(select(tiny, least, x))
    r_lo = n * -like(s, LN2_LO)
    r = r_hi + r_lo
    small = fma(r * r, polynomial(r, Q_FINE), r_lo)
    half, w, line = _half_power(t), r_hi + small, r_hi + r_hi  # 2^n / 2, e^r - 1, the exact part of 2 r
    root = select(tiny, like(s, 0.0), fma(half, w, half))
    m = (half + half) * half  # half of m; ``above`` is half of m - 1
    above = m - like(s, 0.5)
    twice = small + small
    excess = fma(m, fma(w, w, twice), fma(m, line, above))
    phi = fma(m * w, w, fma(m, twice, fma(above, line, fma(n, -like(s, LN2_HI), above))))  # the innermost is 0 at n = 0
    return root, select(infinite, like(s, np.inf), excess), select(infinite, like(s, np.inf), phi + below)


@math_jit
def _twice_log_of_parts(e, f):
    """Return 2 (e ln 2 + log(1 + f)); the factor 2 saves multiplications by 1/2."""
    s = f / (f + like(f, 2.0))
    z, square, e = s * s, f * f, e + e
    tail = fma(s, fma(z + z, polynomial(z, P), square), -square)
    return fma(e, like(f, LN2_HI), f + f + fma(e, like(f, LN2_LO), tail))


@math_jit
def _log_of_parts(e, f):
    return like(f, 0.5) * _twice_log_of_parts(e, f)


@math_jit
def twice_log_normal(x):
    """Return the logarithm of the square of a positive normal number."""
    e, m = _split(x)
    return _twice_log_of_parts(e, m - like(x, 1.0))


@math_jit
def log_normal(x):
    """Return the logarithm of a positive normal number."""
    return like(x, 0.5) * twice_log_normal(x)


@math_jit
def log(x):
    """Return the natural logarithm; -inf at 0, NaN below."""
    small = x < like(x, TINY)
    e, m = _split(select(small, x * like(x, RESCALE), x))
    e = e - select(small, like(x, RESCALE_LOG2), like(x, 0.0))
    y = _log_of_parts(e, m - like(x, 1.0))
    y = select(x < like(x, np.inf), y, x)  # inf and NaN
    y = select(x == like(x, 0.0), like(x, -np.inf), y)
    return select(x < like(x, 0.0), like(x, np.nan), y)


@math_jit
def log1p(a):
    """Return log(1 + a) for a in [0, 1] only, as in softplus: max(x, 0) + log1p(exp(-abs(x)))."""
    upper = a >= like(a, 0.5)
    f = select(upper, fma(a, like(a, 0.5), like(a, -0.5)), a)  # 1 + a = 2 (1 + f), exactly
    return _log_of_parts(select(upper, like(a, 1.0), like(a, 0.0)), f)


@math_jit
def sigmoid(x):
    """Return 1 / (1 + e^-x)."""
    e = exp(-abs(x))
    return select(x < like(x, 0.0), e, like(x, 1.0)) / (like(x, 1.0) + e)


@math_jit
def tanh(x):
    """Return tanh x = (e^2x - 1) / (e^2x + 1)."""
    m = expm1(like(x, -2.0) * abs(x))
    y = m / (m + like(x, 2.0))
    return select(x < like(x, 0.0), y, -y)


@intrinsic
def _rotate(typingctx, sin, cos, q):
    """Return (sin, cos) of an angle increased by k quarter turns, k being in the low bits of q = k + 1.5 2^mantissa."""
    constant, integer, mantissa, _ = _layout(sin)
    sign = 31 if mantissa == 23 else 63

    def codegen(context, builder, signature, args):
        s, c = args[:2]
        k, float_ = builder.bitcast(args[2], integer), args[0].type
        odd = builder.icmp_signed("<", builder.shl(k, constant(sign)), constant(0))
        rotated = []
        for value, count in ((builder.select(odd, c, s), k), (builder.select(odd, s, c), builder.add(k, constant(1)))):
            bit = builder.shl(builder.and_(count, constant(2)), constant(sign - 1))
            rotated.append(builder.bitcast(builder.xor(builder.bitcast(value, integer), bit), float_))
        return context.make_tuple(builder, signature.return_type, rotated)

    return types.UniTuple(sin, 2)(sin, cos, q), codegen


@math_jit
def sincos_2pi(t):
    """Return (sin 2 pi t, cos 2 pi t) for t in [-0.5, 0.5]."""
    shifted = t + like(t, QUARTERS)
    r = t - (shifted - like(t, QUARTERS))  # exact
    z = r * r
    return _rotate(r * polynomial(z, S), polynomial(z, C), shifted)
