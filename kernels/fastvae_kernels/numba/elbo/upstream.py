"""Upstream gradients of per-row values, as kernels receive them: a factor times a number for each row, or for all.

g[n] = factor weight[row n]        weight is an address, or 0 for weights of 1; row is 1, or 0 if all rows share one
"""

from ..language.jit import math_jit
from ..language.layout import Layout
from ..language.memory import weight_at

UPSTREAM = Layout("weight row factor:float")


@math_jit
def upstream_at(f, upstream, n):
    """Return the upstream gradient of row n, in the dtype of arithmetic."""
    return weight_at(upstream.weight, n * upstream.row, upstream.factor, f.T)
