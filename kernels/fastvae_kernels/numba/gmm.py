"""Gaussian mixtures by EM, one or thousands at once: Numba.

    E and M in one pass    r_nk = pi_k N(x_n; mu_k, Sigma_k) / p(x_n);  sum_n of r, r e, r e e' for e = x - mu_k
    then                   pi, mu, Sigma, its Cholesky factor and the constants of the next pass

Traffic, elements a pass: reads N D; the [N, K] responsibilities live in tiles that fit a cache. Launches: one a pass,
for all problems that still run. Each step of the algorithm is a mode of one kernel, `_mixture_pass`; here stands which
problems take which step next. All sums are float64.
Specification: fastvae/reference/gmm.py, fastvae/reference/gmm_fit.py
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._buffers import address, scratch
from ._memory import CODES
from ._mixture_few import DIAG, FULL, SPHERICAL, TIED
from ._mixture_launch import Mixtures, Stream, moments
from ._mixture_pass import (
    CENTERS,
    GIVEN,
    LINEAR,
    MERGE,
    NEAREST,
    NOTHING,
    PARAMETERS,
    POSTERIOR,
    PRODUCTS,
    RANDOM,
)
from ._mixture_rows import make_rows
from ._mixture_update import FAR, HALF_LOG_2PI, SINGULAR
from ._threads import run

FAMILIES = {"full": FULL, "tied": TIED, "diag": DIAG, "spherical": SPHERICAL}
CONVERGED, MAX_ITER, RESCUED, DEGENERATE = 1, 2, 4, 8  # of a fit: the values of fastvae.Status
BATCH_ELEMENTS = 1 << 23  # partial sums of the problems that run side by side
LLOYD_ROWS = 1 << 15  # of a problem, that k-means looks at
LLOYD_STEPS, LLOYD_TOL = 300, 1e-3  # of the variance of a feature, that all centers move; EM goes on from there
MOST_RESCUES = 10  # of a problem, before it is given up


class Fitted(NamedTuple):
    """Parameters and history of B problems, float64: see fastvae.gmm.MixtureFit."""

    weights: Tensor
    means: Tensor
    covariances: Tensor
    log_likelihood: Tensor  # [B], sum of w log p of these parameters
    lower_bounds: Tensor  # [B, most iterations + 1], NaN behind the last
    n_iter: Tensor
    status: Tensor


class Run:
    """EM for some problems, each with its restarts, side by side."""

    def __init__(self, mixtures: Mixtures, total: np.ndarray, spread: np.ndarray) -> None:
        self.mixtures = m = mixtures
        self.total, self.spread = np.repeat(total, m.restarts), np.repeat(spread, m.restarts)
        self.now, self.next = m.parameters(), m.parameters()  # of the last pass, to be written in the next
        self.final, self.n_iter, self.status = m.parameters(), np.zeros(m.P, np.int64), np.zeros(m.P, np.int64)
        self.bounds: list[np.ndarray] = []
        self.rescues = np.zeros(m.P, np.int64)

    def start(self, how: Any, rescue: bool) -> np.ndarray:
        """Initial parameters, in `now`; the problems that have some."""
        m, active = self.mixtures, np.arange(self.mixtures.P)
        if not isinstance(how, str):
            self.now[:] = given(m, *how)
            return active
        if how in ("k-means++", "random_from_data"):
            m.seeds(self.next, how == "k-means++")
            weights = np.full((m.P, m.K), 1 / m.K)
            one = np.eye(m.D) if m.family in (FULL, TIED) else np.ones(m.shape)
            V = np.broadcast_to(m.reg_covar * one, (m.P, *([] if m.family == TIED else [m.K]), *m.shape))
            self.now[:] = pack(m, weights, m.parts(self.next)[2], V)
            return self.give_up(active, np.full(m.P, m.reg_covar == 0))
        if how == "random":
            m.sweep(active, self.now, self.next, self.next, RANDOM, LINEAR, CENTERS)
            source = RANDOM
        else:
            m.seeds(self.next, True)
            self.cluster(active, m.sample(LLOYD_ROWS))
            source = NEAREST
        result = m.sweep(active, self.next, self.now, self.next, source, PRODUCTS, PARAMETERS, rescue=rescue)
        self.status[result[:, 2] != 0] |= RESCUED
        return self.give_up(active, (result[:, 1].astype(np.int64) & SINGULAR) != 0)

    def cluster(self, active: np.ndarray, few: Mixtures) -> None:
        """k-means by Lloyd's iterations over few of the rows, from the means in `next`, where the last are left."""
        room = self.now
        for _ in range(LLOYD_STEPS):
            result = few.sweep(active, self.next, room, self.next, NEAREST, LINEAR, CENTERS)
            if (empty := result[:, 2] > 0).any():
                relocate(few, active[empty], room)
            self.next[active] = room[active]
            active = active[empty | (result[:, 1] > LLOYD_TOL * self.spread[active] / few.D)]
            if len(active) == 0:
                return

    def give_up(self, active: np.ndarray, bad: np.ndarray) -> np.ndarray:
        """Note that those have no parameters, or none better than `now`; the others."""
        self.status[active[bad]] |= DEGENERATE
        self.final[active[bad]] = self.now[active[bad]]
        return active[~bad]

    def climb(
        self, active: np.ndarray, tol: float, max_iter: int, rescue: bool, progress: Callable[[int, int], Any] | None
    ) -> None:
        """EM from the parameters in `now`, to `final`."""
        m, before = self.mixtures, np.full(self.mixtures.P, -np.inf)
        for iteration in range(1, max_iter + 1):
            if len(active) == 0:
                break
            result = m.sweep(active, self.now, self.next, self.now, POSTERIOR, PRODUCTS, PARAMETERS, rescue=rescue)
            bound = result[:, 0] / self.total[active]
            flags = result[:, 1].astype(np.int64)
            if (far := (flags & FAR) != 0).any():  # the same responsibilities, about the new means
                about = self.next.copy()
                again = m.sweep(active[far], self.now, self.next, about, POSTERIOR, PRODUCTS, PARAMETERS, rescue=rescue)
                flags[far], result[far, 2] = again[:, 1].astype(np.int64) & SINGULAR, again[:, 2]
            self.bounds.append(np.full(m.P, np.nan))
            self.bounds[-1][active] = bound
            split = result[:, 2] != 0
            self.rescues[active[split]] += 1
            self.status[active[split]] |= RESCUED
            bad = ((flags & SINGULAR) != 0) | ~np.isfinite(bound) | (self.rescues[active] > MOST_RESCUES)
            bound, split = bound[~bad], split[~bad]
            active = self.give_up(active, bad)
            self.n_iter[active] = iteration
            done = (np.abs(bound - before[active]) < tol) & ~split
            before[active] = np.where(split, -np.inf, bound)  # the next may be lower, and says nothing
            finished = active[done]
            self.status[finished] |= CONVERGED
            self.final[finished] = self.next[finished]
            active = active[~done]
            self.now, self.next = self.next, self.now
            if progress is not None:
                progress(iteration, max_iter)
        self.status[active] |= MAX_ITER
        self.final[active] = self.now[active]

    def outcome(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each problem the best restart, its bounds and its log-likelihood."""
        m, active = self.mixtures, np.arange(self.mixtures.P)
        last = m.sweep(active, self.final, self.final, self.final, POSTERIOR, NOTHING, MERGE)[:, 0]
        bounds = np.stack([*self.bounds, np.full(m.P, np.nan)], axis=1)
        bounds[active, self.n_iter] = last / self.total
        rank = np.where(self.status & DEGENERATE, -np.inf, np.nan_to_num(last, nan=-np.inf))
        best = active.reshape(m.B, m.restarts)[np.arange(m.B), rank.reshape(m.B, m.restarts).argmax(1)]
        return best, bounds[best], last[best]


def relocate(m: Mixtures, problems: np.ndarray, theta: np.ndarray) -> None:
    """Put each center without rows on a row that lies farthest from the others."""
    for p in problems:
        counts = m.statistics[p, 0, : m.K * (m.D + 1)].reshape(m.K, m.D + 1)[:, m.D]
        centers, data = m.parts(theta[p : p + 1])[2][0], p // m.restarts
        rows = m.X[data].double().numpy() - m.shift[data]
        distance = np.full(len(rows), np.inf)
        for k in np.flatnonzero(counts > 0):
            np.minimum(distance, np.square(rows - centers[k]).sum(1), out=distance)
        if m.w is not None:
            distance = distance * (m.w[data].numpy() > 0)
        empty = np.flatnonzero(~(counts > 0))
        farthest = np.argsort(-distance, kind="stable")[: len(empty)]
        centers[empty[: len(farthest)]] = rows[farthest]


def pack(m: Mixtures, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """Parameter blocks ``[len(weights), size]``, means given less the shift; NaN where a covariance is not positive
    definite.
    """
    theta = np.zeros((len(weights), m.size))
    w, c, mu, factors, V = m.parts(theta)
    w[:], V[:], mu[:] = weights, covariances, means
    if m.family in (FULL, TIED):
        L, info = torch.linalg.cholesky_ex(torch.from_numpy(V))
        L.masked_fill_((info != 0)[..., None, None], math.nan)
        eye = torch.eye(m.D, dtype=torch.float64).expand_as(L)
        factors[:] = torch.linalg.solve_triangular(L, eye, upper=False).numpy()
        log_det = np.log(factors.diagonal(0, -2, -1)).sum(-1)
    else:
        with np.errstate(invalid="ignore", divide="ignore"):
            factors[:] = 1 / np.sqrt(np.where(V > 0, V, np.nan))
            log_det = np.log(factors).sum(-1) if m.family == DIAG else m.D * np.log(factors)
    with np.errstate(divide="ignore", invalid="ignore"):
        c[:] = np.log(w) + (log_det[:, None] if m.family == TIED else log_det) - m.D * HALF_LOG_2PI
    return theta


def given(m: Mixtures, weights: Tensor, means: Tensor, covariances: Tensor) -> np.ndarray:
    """Parameter blocks of mixtures as a user has them, float64."""
    weights, means, covariances = weights.detach(), means.detach(), covariances.detach()
    return pack(m, weights.numpy(), means.numpy() - m.shift[:, None], covariances.numpy())


def unpack(m: Mixtures, theta: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and covariances of parameter blocks."""
    weights, _, means, _, covariances = m.parts(theta)
    parts = weights, means + m.shift[:, None], covariances
    return tuple(torch.from_numpy(np.ascontiguousarray(part)) for part in parts)  # type: ignore[return-value]


def fit(
    X: Tensor | Stream,
    n_components: int,
    covariance_type: str,
    *,
    start: Any,
    n_init: int,
    tol: float,
    max_iter: int,
    reg_covar: float,
    sample_weight: Tensor | None,
    seed: int,
    problems: Tensor,
    rescue: bool,
    progress: Callable[[int, int], Any] | None = None,
) -> Fitted:
    """Fit each of B problems, X ``[B, N, D]``, or one that comes in chunks; keep the best of its restarts."""
    B = X.shape[0] if isinstance(X, Tensor) else 1
    ids, family = np.ascontiguousarray(problems.numpy()), FAMILIES[covariance_type]
    restarts = n_init if isinstance(start, str) else 1
    parts: list[list[Tensor]] = []
    one = Mixtures(X[:0] if isinstance(X, Tensor) else X, None, n_components, family)
    at_once = max(1, BATCH_ELEMENTS // (one.slots * one.F * restarts))
    for first in range(0, B, at_once):
        rows = slice(first, min(first + at_once, B))
        w = None if sample_weight is None else sample_weight[rows]
        some = X[rows] if isinstance(X, Tensor) else X
        m = Mixtures(some, w, n_components, family, restarts, ids[rows], seed=seed, reg_covar=reg_covar)
        em = Run(m, *moments(m))
        how = start if isinstance(start, str) else [t[rows] for t in start]
        em.climb(em.start(how, rescue), tol, max_iter, rescue, progress)
        best, bounds, log_likelihood = em.outcome()
        history = log_likelihood, bounds, em.n_iter[best], em.status[best]
        parts.append([*unpack(m, em.final[best]), *map(torch.from_numpy, history)])
    widest = max(int(part[5].max()) for part in parts) + 1
    for part in parts:
        part[4] = torch.nn.functional.pad(part[4], (0, widest - part[4].shape[1]), value=math.nan)  # or cut
    return Fitted(*map(torch.cat, zip(*parts, strict=True)))


def stream(chunks: Any, sample_weight: Tensor | None) -> Stream:
    """What `fit` takes for rows that come in chunks: a function that gives them, with their N, D and dtype."""
    return Stream(chunks, chunks.N, chunks.D, chunks.dtype, sample_weight)


def e_step(
    X: Tensor,
    weights: Tensor,
    means: Tensor,
    covariances: Tensor,
    covariance_type: str,
    *,
    want_log_resp: bool = True,
    want_labels: bool = False,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Log responsibilities ``[B, N, K]``, log densities ``[B, N]`` and labels ``[B, N]`` of the rows of X."""
    m = Mixtures(X, None, weights.shape[1], FAMILIES[covariance_type])
    theta = given(m, weights, means, covariances)
    dtype = torch.promote_types(X.dtype, means.dtype)
    log_resp = X.new_empty((m.B, m.N, m.K), dtype=dtype) if want_log_resp else None
    log_prob = X.new_empty((m.B, m.N), dtype=torch.float64)
    labels = X.new_empty((m.B, m.N), dtype=torch.int64) if want_labels else None
    args = (
        0, m.X.data_ptr(), CODES[X.dtype], m.X.stride(1), m.X.stride(0), m.N, m.D, m.K, m.T, m.tiles,
        address(m.shift), address(theta), m.size, m.size, 0 if log_resp is None else log_resp.data_ptr(), CODES[dtype],
        log_prob.data_ptr(), 0 if labels is None else labels.data_ptr(),
        scratch(m.room * torch.get_num_threads()), m.room, m.D, m.matrices,
    )  # fmt: skip
    if X.numel():
        run(make_rows(m.kernel_family), args, m.B * m.tiles, m.B * m.N * m.ns_per_row / 2)
    return log_resp, log_prob.to(dtype), labels


def em_step(
    X: Tensor,
    weights: Tensor,
    means: Tensor,
    covariances: Tensor,
    covariance_type: str,
    sample_weight: Tensor | None,
    reg_covar: float,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """The next weights, means and covariances, float64, and the log-likelihood ``[B]`` of the given ones: one pass."""
    m = Mixtures(X, sample_weight, weights.shape[1], FAMILIES[covariance_type], reg_covar=reg_covar)
    theta = given(m, weights, means, covariances)
    new, active = m.parameters(), np.arange(m.B)
    result = m.sweep(active, theta, new, theta, POSTERIOR, PRODUCTS, PARAMETERS)
    log_likelihood = torch.from_numpy(result[:, 0].copy())
    if len(far := active[(result[:, 1].astype(np.int64) & FAR) != 0]):
        m.sweep(far, theta, new, new.copy(), POSTERIOR, PRODUCTS, PARAMETERS)
    return unpack(m, new), log_likelihood


def m_step(
    X: Tensor, resp: Tensor, covariance_type: str, sample_weight: Tensor | None, reg_covar: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and covariances from responsibilities ``[B, N, K]``; NaN for a component without rows."""
    m = Mixtures(X, sample_weight, resp.shape[2], FAMILIES[covariance_type], reg_covar=reg_covar)
    resp, active = resp.contiguous(), np.arange(m.B)
    theta, new = m.parameters(), m.parameters()
    for _ in range(2):  # about the shift, then about the means
        m.sweep(active, theta, new, theta, GIVEN, LINEAR, CENTERS, resp=resp)
        theta, new = new, theta
    m.sweep(active, theta, new, theta, GIVEN, PRODUCTS, PARAMETERS, resp=resp)
    return unpack(m, new)
