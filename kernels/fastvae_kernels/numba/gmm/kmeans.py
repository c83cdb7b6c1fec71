"""k-means with a metric for each problem: the parts of a pass that EM does not need, and random responsibilities.

    assignment   argmin_k |metric (x - center_k)|^2        center_k = the mean of its rows, unchanged if it has none

If only centers are computed, rows and centers are multiplied by the metric once, which takes fewer products than K
scaled distances.
Source: Lloyd (1982); the metric is 1 / standard deviation of each feature, or 1.
"""

import numpy as np

from ..language.jit import loop_jit, outlined
from ..language.math import like
from ..language.memory import F64, read, vector, write
from ..language.noise import HIGH_SHIFT, LOW_WORD, philox


@loop_jit
def move_centers(statistics, parameters, centers, metric, D, K):
    """Move each center to the mean of the rows nearest to it; a center without rows stays.

    Return the sum of the squared distances moved, and the number of centers without rows. The sums in ``statistics``
    are of features times ``metric``, and so are the distances.
    """
    outlined()
    moved, empty = 0.0, 0
    for k in range(K):
        n = statistics[k * (D + 1) + D]
        for d in range(D):
            step = statistics[k * (D + 1) + d] / n if n > 0 else 0.0
            parameters[2 * K + k * D + d] = centers[k * D + d] + step / metric[d]
            moved += step * step
        if not n > 0:
            empty += 1
    return moved, empty


@loop_jit
def scale_rows(xt, metric, T, D, S):
    """Multiply features by ``metric``."""
    outlined()
    v = vector(F64)
    for d in range(D):
        if metric[d] != 1:
            a = like(v, metric[d])
            for t in range(0, T, 8):
                write(xt, d * S + t, read(xt, d * S + t, v) * a)


@loop_jit
def random_responsibilities(logit, w, row, T, K, S, seed, restart, problem):
    """Compute normalized uniform numbers that depend on seed, problem, restart, row and component only."""
    outlined()
    key = np.uint64(seed)
    k0, k1 = np.uint32(key & LOW_WORD), np.uint32(key >> HIGH_SHIFT)
    for t in range(T):
        norm = 0.0
        for k in range(K):
            c2, c3 = np.uint32(problem), np.uint32(restart | (k // 2) << 12)
            at = np.uint64(row + t)
            words = philox(np.uint32(at & LOW_WORD), np.uint32(at >> HIGH_SHIFT), c2, c3, k0, k1)
            u = (words[2 * (k % 2)] + 0.5) * 2.0**-32
            logit[k * S + t] = u
            norm += u
        for k in range(K):
            logit[k * S + t] *= w[t] / norm
