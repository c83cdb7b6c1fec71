"""The M-step: from a mixture's sufficient statistics to its next parameters, with Cholesky factors and constants.

The statistics are those of `statistics.py`, about a center of each component. With n = sum r and d = sum r e / n,

    mean = center + d        full, diag   sum r e e' / n - d d'                   + reg_covar on the variances
                             tied         (sum_k sum r e e' - n_k d_k d_k') / sum_k n_k
                             spherical    (sum r |e|^2 / n - |d|^2) / D

The center is the previous mean, so d is small and there is little cancellation; otherwise the flag FAR is set.
P = L^-1 for Sigma = L L'. A parameter block holds, in this order, weights [K], c [K], means [K, D], the factors P and
the covariances, both in the shapes of `densities.py`; means are relative to a shift near the data, see `shift.py`.
Specification: fastvae/reference/gmm/formulas.py
"""

import math

from ..language.jit import loop_jit, math_jit, outlined
from .modes import DIAG, FULL
from .statistics import width

# Flags of a component. SINGULAR: it has no rows, or its covariance is not positive definite. FAR: its sums must be
# computed again about the new mean.
SINGULAR, FAR = 1, 2
SMALL, LARGE = 1e-150, 1e150  # within these limits, one logarithm of a product of factors is taken
CANCELLED = 1e-6  # fraction of a sum that is left by a subtraction: six digits are lost
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@loop_jit
def merge(statistics, first, length, stride, slots):
    """Add the statistics of all slots, or a part of them, to those of slot 0, in index order of the slots."""
    outlined()
    for s in range(1, slots):
        for i in range(first, first + length):
            statistics[i] += statistics[s * stride + i]


@loop_jit
def factor(covariance, P, u, D):
    """Compute P = L^-1 of a symmetric [D, D] matrix L L'; return log |P|, NaN if it is not positive definite.

    ``u`` is scratch.
    """
    outlined()
    log_det, product = 0.0, 1.0
    for i in range(D * D):
        u[i] = covariance[i]
    for j in range(D):  # u becomes L', row by row, so that all inner loops access contiguous memory
        pivot = u[j * D + j]
        if not 0 < pivot < math.inf:
            return math.nan
        inverse = 1 / math.sqrt(pivot)
        product *= inverse
        if not SMALL < product < LARGE:
            log_det, product = log_det + math.log(product), 1.0
        for i in range(j, D):
            u[j * D + i] *= inverse
        for i in range(j + 1, D):
            a = u[j * D + i]
            for m in range(i, D):
                u[i * D + m] -= a * u[j * D + m]
    for i in range(D):
        for j in range(D):
            P[i * D + j] = 0.0
        P[i * D + i] = 1.0
        for m in range(i):
            a = u[m * D + i]
            for j in range(m + 1):
                P[i * D + j] -= a * P[m * D + j]
        inverse = 1 / u[i * D + i]
        for j in range(i + 1):
            P[i * D + j] *= inverse
    return log_det + math.log(product)


@loop_jit
def covariance_of(covariance, square, linear, D, K, reg_covar):
    """Compute a full covariance from the products of one component, or of all K if tied. Return FAR or 0."""
    outlined()
    flag, n = 0, 0.0
    for k in range(K):
        n += linear[k * (D + 1) + D]
    for i in range(D):
        for j in range(i + 1):
            value = square[i * width(D) + j]
            before = value
            for k in range(K):
                n_k = linear[k * (D + 1) + D]
                if n_k > 0:
                    value -= linear[k * (D + 1) + i] * linear[k * (D + 1) + j] / n_k
            if i == j:
                if value < CANCELLED * before:
                    flag = FAR
                covariance[i * D + i] = value / n + reg_covar
            else:
                covariance[i * D + j] = value / n
                covariance[j * D + i] = value / n
    return flag


@loop_jit
def update_mean(k, statistics, parameters, centers, D, K):
    """Write the mean of a component, and its total weight n in place of pi; return n."""
    outlined()
    n = statistics[k * (D + 1) + D]
    parameters[k] = n
    for d in range(D):
        parameters[2 * K + k * D + d] = centers[k * D + d] + statistics[k * (D + 1) + d] / n
    return n


@math_jit
def flag_of(n, log_det, flag):
    """Return the flag, with SINGULAR set unless the total weight is positive and it and the determinant are finite."""
    valid = 0 < n < math.inf and -math.inf < log_det < math.inf
    return flag if valid else flag | SINGULAR


@loop_jit
def update_full(k, statistics, parameters, centers, u, D, K, tied, reg_covar):
    """Write mean, covariance, factor, and log |P| in place of c. A tied covariance is written with component 0."""
    outlined()
    n, flag, log_det = update_mean(k, statistics, parameters, centers, D, K), 0, 0.0
    square, P = statistics[K * (D + 1) :], parameters[2 * K + K * D :]
    if tied and k == 0:
        covariance = P[D * D :]
        flag = covariance_of(covariance, square, statistics, D, K, reg_covar)
        log_det = factor(covariance, P, u, D)
    elif not tied:
        covariance, linear = P[(K + k) * D * D :], statistics[k * (D + 1) :]
        flag = covariance_of(covariance, square[k * width(D) * width(D) :], linear, D, 1, reg_covar)
        log_det = factor(covariance, P[k * D * D :], u, D)
    parameters[K + k] = log_det
    return flag_of(n, log_det, flag)


@loop_jit
def update_diag(k, statistics, parameters, centers, u, D, K, tied, reg_covar):
    """Write the parameters of a component with a diagonal covariance, as `update_full`."""
    outlined()
    n, flag = update_mean(k, statistics, parameters, centers, D, K), 0
    log_det, product = 0.0, 1.0
    linear, square = statistics[k * (D + 1) :], statistics[K * (D + 1) + k * D :]
    P = parameters[2 * K + K * D + k * D :]
    covariance = P[K * D :]
    for d in range(D):
        value = square[d] - linear[d] * linear[d] / n
        if value < CANCELLED * square[d]:
            flag = FAR
        covariance[d] = value / n + reg_covar
        P[d] = 1 / math.sqrt(covariance[d])
        product *= P[d]
        if not SMALL < product < LARGE:
            log_det, product = log_det + math.log(product), 1.0
    log_det += math.log(product)
    parameters[K + k] = log_det
    return flag_of(n, log_det, flag)


@loop_jit
def update_spherical(k, statistics, parameters, centers, u, D, K, tied, reg_covar):
    """Write the parameters of a component with a spherical covariance, as `update_full`."""
    outlined()
    n = update_mean(k, statistics, parameters, centers, D, K)
    linear, square = statistics[k * (D + 1) :], statistics[K * (D + 1) + k]
    value = square
    for d in range(D):
        value -= linear[d] * linear[d] / n
    P = 2 * K + K * D + k
    parameters[P + K] = value / (n * D) + reg_covar
    parameters[P] = 1 / math.sqrt(parameters[P + K])
    log_det = D * math.log(parameters[P])
    parameters[K + k] = log_det
    return flag_of(n, log_det, FAR if value < CANCELLED * square else 0)


@loop_jit
def split_component(bad, parameters, flags, D, K, tied, family):
    """Replace a singular component: split the component with the largest spread along its widest dimension."""
    outlined()
    full, matrices = family == FULL, 1 if tied else K
    size = D * D if full else D if family == DIAG else 1
    P = 2 * K + K * D
    V = P + matrices * size
    donor, axis, widest = -1, 0, 0.0
    for k in range(K):
        if not flags[k] & SINGULAR:
            for d in range(D):
                at = 0 if tied else k * size
                at += d * D + d if full else d if family == DIAG else 0
                spread = parameters[k] * parameters[V + at]
                if spread > widest:
                    donor, axis, widest = k, d, spread
    if donor < 0:
        return False
    parameters[donor] /= 2
    parameters[bad], parameters[K + bad] = parameters[donor], parameters[K + donor]
    half = 0.5 * math.sqrt(widest / (2 * parameters[donor]))  # half of a standard deviation
    for d in range(D):
        parameters[2 * K + bad * D + d] = parameters[2 * K + donor * D + d]
    parameters[2 * K + bad * D + axis] += half
    parameters[2 * K + donor * D + axis] -= half
    if not tied:
        for i in range(size):
            parameters[P + bad * size + i] = parameters[P + donor * size + i]
            parameters[V + bad * size + i] = parameters[V + donor * size + i]
    return True


@loop_jit
def finish_parameters(parameters, flags, D, K, tied, family, rescue):
    """Compute weights and c, after `update_full` or its like for other families.

    Return the flags of all components combined, and whether a component was split.
    """
    outlined()
    flag, split_, total_weight = 0, False, 0.0
    if tied and flags[0] & SINGULAR and parameters[0] > 0:
        rescue = False  # all components share the covariance
    for k in range(K):
        if flags[k] & SINGULAR and rescue and split_component(k, parameters, flags, D, K, tied, family):
            flags[k], split_ = 0, True
        flag |= flags[k]
    for k in range(K):
        total_weight += parameters[k]
    for k in range(K):
        parameters[k] /= total_weight
        log_det = parameters[K if tied else K + k]
        if not tied:
            parameters[K + k] = math.log(parameters[k]) + log_det - D * HALF_LOG_2PI
    if tied:
        log_det = parameters[K]
        for k in range(K):
            parameters[K + k] = math.log(parameters[k]) + log_det - D * HALF_LOG_2PI
    return flag, split_
