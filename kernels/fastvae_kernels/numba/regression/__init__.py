"""Linear regression."""

from .engine import Fitted, accumulate, fit, merge, solve, target_exponents

__all__ = ["Fitted", "accumulate", "fit", "merge", "solve", "target_exponents"]
