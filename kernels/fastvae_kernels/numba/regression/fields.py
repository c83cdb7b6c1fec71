"""The results of B regressions: their fields, and where these begin.

Fields that most callers ask for are arrays [B, size] of their own. Those from ``weight`` on, which few callers and the
next steps need, are the state: one array [B, sizes together], so that a problem's numbers are adjacent. In a kernel the
results of eight problems are a record, [all sizes, 8].
"""

from collections import namedtuple
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import Any

from ..language.layout import Layout


class Offsets:
    """Where each of several adjacent fields begins, and where the last ends: the sums of the sizes before it.

    ``sizes`` gives the fields' sizes by name, in order, for the numbers that describe a shape; ``example`` are any such
    numbers, from which the names are read. The end is rounded up to a multiple of ``unit``. `layout` is the group of a
    launch that `of` fills.
    """

    def __init__(self, sizes: Callable[..., dict[str, int]], *example: int, unit: int = 1) -> None:
        names = [*sizes(*example), "end"]
        named = _named(names)
        self.layout = Layout(" ".join(names))
        self.index = {name: k for k, name in enumerate(names)}

        def of(*shape: int) -> Any:
            *begins, end = accumulate(sizes(*shape).values(), initial=0)
            return named(*begins, -(-end // unit) * unit)

        self.of: Callable[..., Any] = lru_cache(256)(of)


def _named(names: list[str]) -> Any:
    return namedtuple("Begins", names)


def scratch_offsets(sizes: Callable[..., dict[str, int]], *example: int) -> Offsets:
    """Of a thread's scratch, in whole cache lines."""
    return Offsets(sizes, *example, unit=8)


def separate_sizes(P: int, R: int) -> dict[str, int]:
    """Fields with arrays of their own."""
    return {
        "coef": R * P,
        "intercept": R,
        "coef_error": R * P,
        "intercept_error": R,
        "sigma2": R,
        "unbiased": R,
        "log_likelihood": R,
        "r2": R,
        "rss": R,
        "condition": 1,
        "rank": 1,
        "flags": 1,
    }


def state_sizes(P: int, R: int) -> dict[str, int]:
    """Fields that are adjacent for each problem."""
    return {
        "weight": 1,  # of all rows
        "squares": R,  # sum w (y - ybar)^2
        "means": P + R,  # of the columns of X, then of y
        "small_means": P,  # the low parts of those of X: a mean may be large beside the spread about it
        "inverse": P * (P + 1) // 2,  # V, of the Gram matrix, a lower triangle
        "small_coef": R * P,  # low parts
        "small_intercept": R,
        "lengths": P,  # of the centered columns
        "spread": 1,  # variance of the intercept for noise of unit variance
    }


FIELDS = Offsets(lambda P, R: separate_sizes(P, R) | state_sizes(P, R), 1, 1)
SEPARATE = len(separate_sizes(1, 1))
RESULTS = Layout("out B", at=FIELDS.layout)
# The field ``flags``: what is to be done next, or what is wrong.
REFINE, TO_DOUBLE_DOUBLE, RECENTER, NONFINITE, DEPENDENT, REPEAT = 1, 2, 4, 8, 16, 32

PROBLEMS = Layout("row_counts log_weights N P R fit_intercept alpha:float")  # the first two: addresses, or 0
BATCH = Layout("active count")  # addresses of the numbers of the problems to work on, eight to a group
