"""The covariance families and their functions. To add a family, start here.

    log_densities       log pi_k + log N(x_t; mu_k, Sigma_k) of a tile's rows          `densities.py`
    add_statistics      the sums of r, r e and products of e that its M-step needs     `statistics.py`
    update_component    from these to mean, covariance, factor and log |P|             `update.py`
    nearest_centers     minus half the squared distances that k-means compares         `densities.py`

A kernel is compiled for one family. TIED uses the kernel of FULL with f.tied set: all components share one covariance.
A parameter block theta holds, in this order, weights [K], c [K], means [K, D], the factors P and the covariances: one
number, [D] or [D, D] for each component, or once for all if tied.
"""

import math
from typing import NamedTuple

from ..language.jit import by_constant, math_jit
from .densities import logits_of_distances, logits_of_products, logits_of_squares
from .modes import DIAG, FULL, SPHERICAL, TIED
from .statistics import add_all_distances, add_all_products, add_all_squares, width
from .update import update_diag, update_full, update_spherical

FAMILIES = {"full": FULL, "tied": TIED, "diag": DIAG, "spherical": SPHERICAL}


class Shapes(NamedTuple):
    """Sizes of the parameters and statistics of a mixture."""

    kernel: int  # the family that its kernel is compiled for
    matrices: int  # number of covariances: K, or 1 if tied
    covariance: tuple[int, ...]  # shape of one covariance
    products: int  # number of products in its statistics
    ns_per_row: float  # nanoseconds per row of a pass, on one thread

    @classmethod
    def of(cls, family: int, D: int, K: int) -> "Shapes":
        """Return the sizes for K components of D features."""
        if family in (FULL, TIED):
            matrices = 1 if family == TIED else K
            return cls(FULL, matrices, (D, D), matrices * width.py_func(D) ** 2, K * (0.06 * D * (D + 1) + 2.0))
        if family == DIAG:
            return cls(DIAG, K, (D,), K * D, K * (0.42 * D + 2.0))
        return cls(SPHERICAL, K, (), K, K * (0.3 * D + 2.0))

    @property
    def factor(self) -> int:
        """Number of elements of a factor, or of a covariance."""
        return math.prod(self.covariance)


@math_jit
def log_densities_full(logit, xt, theta, T, D, K, S, tied, ahead):
    """Compute the log joint densities of a tile's rows and all components; meanwhile the rows ahead are prefetched."""
    step = 0 if tied else D * D
    logits_of_products(logit, xt, theta[2 * K :], theta[2 * K + K * D :], theta[K:], T, D, K, S, step, ahead)


@math_jit
def log_densities_diag(logit, xt, theta, T, D, K, S, tied, ahead):
    """Compute the log joint densities for diagonal covariances, as `log_densities_full`."""
    logits_of_squares(logit, xt, theta[2 * K :], theta[2 * K + K * D :], theta[K:], T, D, K, S, ahead)


@math_jit
def log_densities_spherical(logit, xt, theta, T, D, K, S, tied, ahead):
    """Compute the log joint densities for spherical covariances, as `log_densities_full`."""
    logits_of_distances(logit, xt, theta[2 * K :], theta[2 * K + K * D :], theta[K:], T, D, K, S, ahead)


@math_jit
def add_statistics_full(sums, panel, xt, centers, r, T, D, K, S, tied):
    """Add sum r, sum r e, sum r e e' for e = x - center."""
    step = 0 if tied else width(D) * width(D)
    add_all_products(sums[K * (D + 1) :], sums, panel, xt, centers, r, T, D, K, S, step)


@math_jit
def add_statistics_diag(sums, panel, xt, centers, r, T, D, K, S, tied):
    """Add sum r, sum r e, sum r e_d^2."""
    add_all_squares(sums[K * (D + 1) :], sums, xt, centers, r, T, D, K, S)


@math_jit
def add_statistics_spherical(sums, panel, xt, centers, r, T, D, K, S, tied):
    """Add sum r, sum r e, sum r |e|^2."""
    add_all_distances(sums[K * (D + 1) :], sums, xt, centers, r, T, D, K, S)


@math_jit
def nearest_centers_scaled(logit, xt, centers, metric, one, zero, T, D, K, S, ahead):
    """Compute -|metric (x - center)|^2 / 2, with one factor per feature."""
    logits_of_squares(logit, xt, centers, metric, zero, T, D, K, S, ahead)


@math_jit
def nearest_centers_plain(logit, xt, centers, metric, one, zero, T, D, K, S, ahead):
    """Compute -|x - center|^2 / 2."""
    logits_of_distances(logit, xt, centers, one, zero, T, D, K, S, ahead)


log_densities = by_constant({FULL: log_densities_full, DIAG: log_densities_diag, SPHERICAL: log_densities_spherical})
add_statistics = by_constant(
    {FULL: add_statistics_full, DIAG: add_statistics_diag, SPHERICAL: add_statistics_spherical}
)
nearest_centers = by_constant(
    {FULL: nearest_centers_scaled, DIAG: nearest_centers_scaled, SPHERICAL: nearest_centers_plain}
)
update_component = by_constant({FULL: update_full, DIAG: update_diag, SPHERICAL: update_spherical})
