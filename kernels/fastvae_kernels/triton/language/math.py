"""Elementary functions in `tl` primitives: exp, expm1, phi, log, sine and cosine, for float32 and float64.

They use the range reductions and polynomials of `numba/language/math.py`, which describes them; errors are a few ulp.
libdevice is not used: the interpreter has none, and its sine needs a table. fma is explicit, since kernels are compiled
without automatic fusion. Code after a constant `if` that returns is compiled nevertheless, so write `else`.
Specification: fastvae/reference/elbo/formulas.py (phi)
"""

import triton
import triton.language as tl

import fastvae_kernels.coefficients as coefficients

from .launch import INTERPRET

LOG2_E = tl.constexpr(coefficients.LOG2_E)
LN2_HI = tl.constexpr(coefficients.LN2_HI)
LN2_LO = tl.constexpr(coefficients.LN2_LO)
Q = tl.constexpr(coefficients.Q)
P = tl.constexpr(coefficients.P)
S = tl.constexpr(coefficients.S)
C = tl.constexpr(coefficients.C)
PHI = tl.constexpr(coefficients.PHI)
PHI_LIMIT = tl.constexpr(coefficients.PHI_LIMIT)
ROUND = tl.constexpr(coefficients.ROUND)
QUARTERS = tl.constexpr(coefficients.QUARTERS)
EXP_MIN, EXP_MAX = tl.constexpr(coefficients.EXP_MIN), tl.constexpr(coefficients.EXP_MAX)
EXP_HALVED = tl.constexpr(coefficients.EXP_HALVED)
EXPM1_MIN = tl.constexpr(coefficients.EXPM1_MIN)
SQRT_HALF = tl.constexpr((0x3F3504F3, 0x3FE6A09E667F3BCD))  # the bits of sqrt 1/2
INTERPRETED = tl.constexpr(INTERPRET)
ONE = tl.constexpr((127 << 23, 1023 << 52))  # the bits of 1
# minus the bits of 2, as unsigned integers that wrap around
MINUS_TWO = tl.constexpr((2**32 - (128 << 23), 2**64 - (1024 << 52)))


@triton.jit
def number(x, value: tl.constexpr):
    """Return a constant in the dtype and shape of x (a literal would be float32)."""
    return tl.full(x.shape, value, x.dtype)


@triton.jit
def times(x, factor):
    """Return x * factor, but 0 where x is 0, even if the factor is infinite or NaN."""
    return tl.where(x == 0.0, x, x * factor)


@triton.jit
def of(x, pair: tl.constexpr):
    """Return the member of a (float32, float64) pair for the dtype of x."""
    return tl.full(x.shape, pair[x.dtype.primitive_bitwidth // 64], x.dtype)


@triton.jit
def polynomial(x, pair: tl.constexpr):
    """Evaluate a polynomial by Horner's rule; coefficients are given from the highest power down."""
    c: tl.constexpr = pair[x.dtype.primitive_bitwidth // 64]
    y = tl.full(x.shape, c[0], x.dtype)
    for i in tl.static_range(1, len(c)):
        y = tl.fma(y, x, tl.full(x.shape, c[i], x.dtype))
    return y


@triton.jit
def divide(a, b):
    """Return the quotient, correctly rounded."""
    if a.dtype.primitive_bitwidth == 32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def bits(x):
    """Return the bit pattern as an unsigned integer."""
    if x.dtype.primitive_bitwidth == 32:
        return x.to(tl.uint32, bitcast=True)
    else:
        return x.to(tl.uint64, bitcast=True)


@triton.jit
def constant_bits(x, pair: tl.constexpr):
    """Return a constant in the unsigned integer type of the width of x."""
    if x.dtype.primitive_bitwidth == 32:
        return tl.full(x.shape, pair[0], tl.uint32)
    else:
        return tl.full(x.shape, pair[1], tl.uint64)


@triton.jit
def to_element(x, pointer):
    """Convert x to the element dtype of a pointer, rounded to nearest even; the interpreter truncates to bfloat16."""
    if INTERPRETED and pointer.dtype.element_ty == tl.bfloat16:
        word = x.to(tl.float32).to(tl.uint32, bitcast=True)
        word = (word + 0x7FFF + ((word >> 16) & 1)) & 0xFFFF0000
        return tl.where(x == x, word.to(tl.float32, bitcast=True), x.to(tl.float32)).to(tl.bfloat16)
    else:
        return x.to(pointer.dtype.element_ty)


@triton.jit
def reduce(x):
    """Return (n + ROUND, n, x - n LN2_HI) for n = round(x / ln 2)."""
    t = tl.fma(x, number(x, LOG2_E), of(x, ROUND))
    n = t - of(x, ROUND)
    return t, n, tl.fma(n, -of(x, LN2_HI), x)


@triton.jit
def scale(y, t):
    """Return y 2^n for t = n + ROUND, in two steps, since 2^n may not be representable where y 2^n is."""
    mantissa: tl.constexpr = 23 if y.dtype.primitive_bitwidth == 32 else 52
    n = bits(t)
    first = n >> 1
    y = y * (first << mantissa).to(y.dtype, bitcast=True)
    return y * ((n - first) << mantissa).to(y.dtype, bitcast=True)


@triton.jit
def exp(x):
    """Return e^x, with gradual underflow."""
    x = tl.where(x > of(x, EXP_MAX), of(x, EXP_MAX), x)  # in this order NaN is kept
    x = tl.where(x < of(x, EXP_MIN), of(x, EXP_MIN), x)
    t, n, r = reduce(x)
    r = tl.fma(n, -of(x, LN2_LO), r)
    return scale(number(x, 1.0) + tl.fma(r * r, polynomial(r, Q), r), t)


@triton.jit
def inverse_parts(s):
    """Return two factors of e^-s, the second usually 1; e^-s itself may overflow where x e^-s does not."""
    halved = s < of(s, EXP_HALVED)
    first = exp(-tl.where(halved, number(s, 0.5) * s, s))
    return first, tl.where(halved, first, number(s, 1.0))


@triton.jit
def expm1(x):
    """Return e^x - 1."""
    mantissa: tl.constexpr = 23 if x.dtype.primitive_bitwidth == 32 else 52
    x = tl.where(x > of(x, EXP_MAX), of(x, EXP_MAX), x)
    x = tl.where(x < of(x, EXPM1_MIN), of(x, EXPM1_MIN), x)
    t, n, r_hi = reduce(x)
    r_lo = n * -of(x, LN2_LO)
    r = r_hi + r_lo
    half = ((bits(t) << mantissa) + constant_bits(x, MINUS_TWO)).to(x.dtype, bitcast=True)  # 2^n / 2
    large = tl.fma(half, r_hi, half - number(x, 0.5))  # terms that may cancel come first, small ones after
    return number(x, 2.0) * tl.fma(half, tl.fma(r * r, polynomial(r, Q), r_lo), large)


@triton.jit
def phi(t):
    """Return e^t - 1 - t, which is never negative; its derivative is expm1(t)."""
    large = expm1(t) - tl.where(t > number(t, 1000.0), number(t, 1000.0), t)  # inf, not inf - inf
    return tl.where(tl.abs(t) <= number(t, PHI_LIMIT), t * t * polynomial(t, PHI), large)


@triton.jit
def log_of_parts(e, f):
    """Return e ln 2 + log(1 + f)."""
    s = divide(f, f + number(f, 2.0))
    z, h = s * s, f * f * number(f, 0.5)
    tail = tl.fma(s, tl.fma(z, polynomial(z, P), h), -h)
    return tl.fma(e, of(f, LN2_HI), f + tl.fma(e, of(f, LN2_LO), tail))


@triton.jit
def log_normal(x):
    """Return the logarithm of a positive normal number x = 2^e (1 + f), 1 + f in [sqrt 1/2, sqrt 2)."""
    mantissa: tl.constexpr = 23 if x.dtype.primitive_bitwidth == 32 else 52
    bias: tl.constexpr = 127.0 if x.dtype.primitive_bitwidth == 32 else 1023.0
    up = bits(x) + constant_bits(x, ONE)
    e = (up - constant_bits(x, SQRT_HALF)) >> mantissa
    m = (up - (e << mantissa)).to(x.dtype, bitcast=True)
    return log_of_parts(e.to(x.dtype) - number(x, bias), m - number(x, 1.0))


@triton.jit
def log1p(a):
    """Return log(1 + a) for a in [0, 1] only, as in softplus: max(x, 0) + log1p(exp(-abs(x)))."""
    upper = a >= number(a, 0.5)
    f = tl.where(upper, tl.fma(a, number(a, 0.5), number(a, -0.5)), a)  # 1 + a = 2 (1 + f), exactly
    return log_of_parts(tl.where(upper, number(a, 1.0), number(a, 0.0)), f)


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + e^-x)."""
    e = exp(-tl.abs(x))
    return divide(tl.where(x < number(x, 0.0), e, number(x, 1.0)), number(x, 1.0) + e)


@triton.jit
def tanh(x):
    """Return tanh x = (e^2x - 1) / (e^2x + 1)."""
    m = expm1(number(x, -2.0) * tl.abs(x))
    y = divide(m, m + number(x, 2.0))
    return tl.where(x < number(x, 0.0), y, -y)


@triton.jit
def sqrt(x):
    """Return the square root, correctly rounded."""
    if x.dtype.primitive_bitwidth == 32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def sincos_2pi(t):
    """Return (sin 2 pi t, cos 2 pi t) for t in [-0.5, 0.5]: with t = k / 4 + r, the low bits of k give the quadrant."""
    shifted = t + of(t, QUARTERS)
    r = t - (shifted - of(t, QUARTERS))  # exact
    z = r * r
    s, c = r * polynomial(z, S), polynomial(z, C)
    k = bits(shifted)
    odd = (k & 1) != 0
    sin, cos = tl.where(odd, c, s), tl.where(odd, s, c)
    return tl.where((k & 2) != 0, -sin, sin), tl.where(((k + 1) & 2) != 0, -cos, cos)


@triton.jit
def box_muller(w, w_signed, T: tl.constexpr):
    """Return two standard normals from two words; the uniforms u in (0, 1] and t in [-0.5, 0.5] are always float32."""
    u = w.to(tl.float32)
    u = tl.fma(u, number(u, 2.0**-32), number(u, 2.0**-33)).to(T)
    t = w_signed.to(tl.int32, bitcast=True).to(tl.float32)
    t = (t * number(t, 2.0**-32)).to(T)
    radius = sqrt(number(u, -2.0) * log_normal(u))
    sin, cos = sincos_2pi(t)
    return radius * cos, radius * sin


@triton.jit
def normal4(seed, block, k, row, T: tl.constexpr):
    """Return standard normals of latent elements 4 block .. 4 block + 3 in draw k of an int64 row: Philox-4x32-10."""
    low, high = (row & 0xFFFFFFFF).to(tl.uint32), (row >> 32).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, block.to(tl.uint32), k.to(tl.uint32), low, high)
    e0, e1 = box_muller(w0, w1, T)
    e2, e3 = box_muller(w2, w3, T)
    return e0, e1, e2, e3
