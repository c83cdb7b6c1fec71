"""Constants and polynomial coefficients of exp, log, sine and related functions, shared by all backends.

The formulas are in `numba/language/math.py`.
"""

# Pairs are (float32, float64). Polynomials are listed from the highest power down.
LOG2_E = 1.4426950408889634
LN2_HI = (0.69314575, 0.693147180559890330187045037746429443359375)  # 16 and 42 bits: n LN2_HI is exact
LN2_LO = (1.4286068e-06, 5.497923018708371e-14)
Q = (
    (0.0013950448, 0.008368886, 0.041666206, 0.1666652, 0.5),
    (
        *(2.5117727375782973e-08, 2.763098945654461e-07, 2.7557216832165856e-06, 2.4801490912037002e-05),
        *(0.00019841269916626972, 0.00138888889458829, 0.008333333333307658, 0.041666666666520795),
        *(0.166666666666667, 0.5000000000000012),
    ),
)
Q_FINE = (  # accurate relative to q itself; Q is accurate relative to e^x only
    (0.00019857887, 0.0013933837, 0.0083333608, 0.041666463, 0.16666667, 0.5),
    (
        *(2.0889442750779698e-09, 2.5105457783296457e-08, 2.755734994143008e-07, 2.7557254830387326e-06),
        *(2.4801587244846025e-05, 0.0001984126987526067, 0.0013888888888918584, 0.008333333333326013),
        *(0.041666666666666616, 0.1666666666666667, 0.5),
    ),
)
P = (
    (0.3033952, 0.39959148, 0.6666693),
    (
        *(0.15332138082745045, 0.15255499543186554, 0.1818604714441981, 0.22222147465342945),
        *(0.28571429261019415, 0.39999999997117863, 0.666666666666703),
    ),
)
S = (
    (-75.49702, 81.594955, -41.34168, 6.2831853),
    (
        *(3.782950991049455, -15.093905429713741, 42.05868688034821, -76.70585972020704),
        *(81.60524927601067, -41.34170224039973, 6.283185307179586),
    ),
)
C = (
    (59.285774, -85.44501, 64.93934, -19.739208, 1.0),
    (
        *(-1.697681816446875, 7.903138674720297, -26.42625195661717, 60.24464134054501, -85.45681720659017),
        *(64.93939402266814, -19.739208802178716, 1.0),
    ),
)
PHI_LIMIT = 0.9  # used by the reference and by the Triton kernels
PHI = (  # the coefficients of fastvae.reference.elbo.formulas
    (
        *(2.7966073e-06, 2.5251802e-05, 1.9839196e-04, 1.3886604e-03),
        *(8.333337e-03, 4.1666705e-02, 1.6666667e-01, 0.5),
    ),
    (
        *(7.727270990930746e-13, 1.1607008688019208e-11, 1.605815017780149e-10, 2.0875236573890073e-09),
        *(2.5052113324751672e-08, 2.7557327628184386e-07, 2.7557319209976874e-06, 2.4801587277749853e-05),
        *(1.9841269841288758e-04, 1.388888888892108e-03, 8.333333333333325e-03, 4.1666666666666505e-02),
        *(1.6666666666666666e-01, 0.5),
    ),
)
# x + ROUND has round(x) + 2 bias in its low bits; (x + ROUND) - ROUND is round(x), in strict arithmetic
ROUND = (1.5 * 2**23 + 2 * 127, 1.5 * 2**52 + 2 * 1023)
# x + QUARTERS has round(4 x) in its low bits; (x + QUARTERS) - QUARTERS is a quarter of that
QUARTERS = (1.5 * 2**21, 1.5 * 2**50)
EXP_MIN, EXP_MAX = (-104.0, -746.0), (89.0, 710.0)  # e^x is 0 at the minimum and infinite at the maximum
# For x below this limit e^-x is computed as two factors e^(-x/2): e^-x may overflow where its product does not.
EXP_HALVED = (-60.0, -600.0)
EXP_NORMAL = (-86.5, -707.0)  # for x above, e^x and half of it are normal numbers
EXPM1_MIN = (-18.0, -38.0)  # e^x - 1 rounds to -1
EXP_LEAST = (-70.0, -650.0)  # e^x is taken as 0 below: its products with small numbers would be subnormal, and slow
TINY = (2.0**-126, 2.0**-1022)  # the smallest normal number
RESCALE, RESCALE_LOG2 = (2.0**24, 2.0**54), (24.0, 54.0)
