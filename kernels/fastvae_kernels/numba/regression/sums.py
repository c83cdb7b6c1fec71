"""Sums of products that outlive a call: they can be added to, merged, sent to other processes and solved at any time.

With columns about centers c, sums of several parts add up where the centers are the same; about other centers c - d
they are, with z_i' = z_i + d_i,

    sum z_i' z_j' = sum z_i z_j + d_j sum z_i + d_i sum z_j + d_i d_j sum 1

All in double-double, in NumPy: there are only a few numbers for each part. Layout: as `gram.py`.
Targets whose squares leave the range of float64 are divided by a power of two, 2^exponent, before they are summed; two
parts that are merged take the larger exponent.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]  # high and low parts
SPLITTER = 2.0**27 + 1
LEAST, MOST = 1e-140, 1e140  # magnitudes whose squares, and the small parts of these, are in range
SMALL = 1e-125  # well above the smallest magnitude whose square is in range
NOTHING = -4000  # the exponent of a target that is 0 so far: less than any other


class Sums(NamedTuple):
    """Sums of B problems; ``numbers`` [B, F, 2] are pairs, whose low parts are 0 unless ``exact``."""

    numbers: np.ndarray
    centers: np.ndarray  # [B, 1 + P + R]
    rows: np.ndarray  # [B], of positive weight
    log_weights: np.ndarray  # [B], sums over these
    P: int
    R: int
    fit_intercept: bool
    exact: bool
    exponents: np.ndarray | None = None  # [B, R], the sums are of targets times 2^-exponent; None for 0


def add(p: Pair, q: Pair) -> Pair:
    """The sum of two pairs."""
    s, e = two_sum(p[0], q[0])
    t, f = two_sum(p[1], q[1])
    s, e = fast_two_sum(s, e + t)
    return fast_two_sum(s, e + f)


def multiply(p: Pair, q: Pair) -> Pair:
    """Their product."""
    s, e = two_product(p[0], q[0])
    return fast_two_sum(s, e + (p[0] * q[1] + p[1] * q[0]))


def two_sum(a: np.ndarray, b: np.ndarray) -> Pair:
    """a + b exactly."""
    s = a + b
    other = s - a
    return s, (a - (s - other)) + (b - other)


def fast_two_sum(a: np.ndarray, b: np.ndarray) -> Pair:
    """The same where a is no smaller than b, signs aside."""
    s = a + b
    return s, b - (s - a)


def two_product(a: np.ndarray, b: np.ndarray) -> Pair:
    """a b exactly: NumPy has no fma, so both are split into halves of 26 bits."""
    p = a * b
    (a1, a2), (b1, b2) = split(a), split(b)
    return p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


def split(a: np.ndarray) -> Pair:
    """The upper and the lower bits of numbers."""
    t = SPLITTER * a
    upper = t - (t - a)
    return upper, a - upper


def squares_of(s: Sums) -> np.ndarray:
    """The squares of targets, [B, R], the last of each P + 2 sums."""
    return s.numbers[:, (s.P + 1) * (s.P + 2) // 2 + s.P + 1 :: s.P + 2, 0]


@cache
def columns_of(P: int, R: int) -> tuple[np.ndarray, np.ndarray]:
    """Which two columns each number of the layout is a sum of products of."""
    pairs = [(i, j) for i in range(P + 1) for j in range(i + 1)]
    for i in range(P + 1, P + 1 + R):
        pairs += [*((i, j) for j in range(P + 1)), (i, i)]
    i, j = np.array(pairs).T
    return i, j


def moved(s: Sums, centers: np.ndarray) -> Pair:
    """The sums about other centers."""
    S = s.numbers[..., 0], s.numbers[..., 1]
    if np.array_equal(centers, s.centers):
        return S
    i, j = columns_of(s.P, s.R)
    first = np.array([np.flatnonzero((i == k) & (j == 0))[0] for k in range(1 + s.P + s.R)])  # of sum z_k
    d = two_sum(s.centers, -centers)
    d[0][:, 0] = d[1][:, 0] = 0.0  # the column of ones has no center
    sums = S[0][:, first], S[1][:, first]

    def of(p: Pair, k: np.ndarray) -> Pair:
        return p[0][:, k], p[1][:, k]

    all_ = of(sums, np.zeros_like(i))
    result = add(S, multiply(of(d, j), of(sums, i)))
    return add(result, multiply(of(d, i), add(of(sums, j), multiply(of(d, j), all_))))


def without_lost_targets(s: Sums) -> tuple[Sums, np.ndarray]:
    """The sums, with zeros for targets whose sums are inf or NaN, unless all are; and which these are, [B, R]."""
    of = columns_of(s.P, s.R)[0] - s.P - 1  # the target of each number
    lost = np.stack([~np.isfinite(s.numbers[:, of == r]).all((1, 2)) for r in range(s.R)], axis=1)
    lost &= ~lost.all(1, keepdims=True)
    centers = s.centers.copy()
    centers[:, s.P + 1 :][lost] = 0.0
    spoilt = np.where(of < 0, False, lost[:, np.maximum(of, 0)])  # [B, F]
    return s._replace(numbers=np.where(spoilt[..., None], 0.0, s.numbers), centers=centers), lost


def out_of_range(s: Sums) -> bool:
    """Whether squares of targets may have left the range of float64, or are 0."""
    squares = squares_of(s)
    least, most = np.minimum.reduce(squares, axis=None), np.maximum.reduce(squares, axis=None)  # both propagate NaN
    if least > SMALL**2 and most < np.inf:
        return False
    small = (squares <= SMALL**2) & (np.abs(s.centers[:, s.P + 1 :]) < SMALL)
    return bool((small | ~np.isfinite(squares)).any())


def exponents_of(y: np.ndarray, w: np.ndarray | None, s: Sums | None) -> np.ndarray:
    """Exponents by which to divide targets [B, N, R] of a part, given the sums so far: 0 where float64 is enough."""
    peak = np.abs(y if w is None else np.where(w[..., None] == 0, 0.0, y)).max(axis=1)
    if s:
        peak = np.maximum(peak, np.ldexp(np.abs(s.centers[:, s.P + 1 :]), exponents(s)))
    wild = ((peak < LEAST) | (peak > MOST)) & np.isfinite(peak)
    return np.where(peak == 0, NOTHING, np.where(wild, np.frexp(peak)[1], 0))


def exponents(s: Sums) -> np.ndarray:
    """The exponents of sums, NOTHING where targets were 0 so far."""
    if s.exponents is not None:
        return s.exponents
    squares = squares_of(s)
    return np.where((squares == 0) & (s.centers[:, s.P + 1 :] == 0), NOTHING, 0)


def scaled(s: Sums, to: np.ndarray) -> Sums:
    """The sums, rescaled to these exponents."""
    by = exponents(s) - to  # [B, R]
    i, j = columns_of(s.P, s.R)
    target = np.maximum(i - s.P - 1, 0)
    times = np.where(i > s.P, by[:, target] * np.where(i == j, 2, 1), 0)  # [B, F]
    centers = s.centers.copy()
    centers[:, s.P + 1 :] = np.ldexp(centers[:, s.P + 1 :], by)
    return s._replace(numbers=np.ldexp(s.numbers, times[..., None]), centers=centers, exponents=to)


def joined(a: Sums, b: Sums) -> Sums:
    """The sums of the rows of both, about the centers of the first."""
    if a.exponents is not None or b.exponents is not None:
        to = np.maximum(exponents(a), exponents(b))
        a, b = scaled(a, to), scaled(b, to)
    with np.errstate(invalid="ignore", over="ignore"):
        numbers = np.stack(add((a.numbers[..., 0], a.numbers[..., 1]), moved(b, a.centers)), axis=-1)
    return a._replace(numbers=numbers, rows=a.rows + b.rows, log_weights=a.log_weights + b.log_weights)
