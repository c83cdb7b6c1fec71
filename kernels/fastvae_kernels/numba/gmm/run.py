"""EM and k-means of some problems side by side: which of them take which step next.

A pass over the rows of all that still run, then what follows, in Python; or, where a problem's rows are few, all passes
of a problem in one work unit, by the same steps and to the same bits, see `steps.py`.
Specification: fastvae/reference/gmm/engine.py
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .few_features import DIAG, FULL, SPHERICAL, TIED
from .launch import Mixtures
from .steps import (
    BEFORE,
    CENTERS,
    CLIMB,
    CONVERGED,
    COUNT,
    DEGENERATE,
    DONE,
    LIKELIHOOD,
    LIMIT,
    LINEAR,
    LLOYD,
    LLOYD_STEPS,
    LLOYD_TOL,
    MAX_ITER,
    MERGE,
    MOST_RESCUES,
    NEAREST,
    NOTHING,
    PARAMETERS,
    POSTERIOR,
    PRODUCTS,
    RANDOM,
    RECORD,
    RESCUED,
    STATUS,
    STEP,
    TOTAL,
)
from .update import FAR, HALF_LOG_2PI, SINGULAR
from .whiten import Whitened, can_tilt, rows_to_whiten

TOLD = 20  # how often progress is told of small problems
LLOYD_ROWS = 1 << 15  # of a problem, that k-means looks at


class Run:
    """EM for some problems, each with its restarts, side by side."""

    def __init__(self, mixtures: Mixtures, total: np.ndarray, variances: np.ndarray, how: Any) -> None:
        self.mixtures = m = mixtures
        variances = np.repeat(variances, m.restarts, axis=0)
        if how == "kmeans" and m.family != SPHERICAL:  # which knows no features of their own
            scaled = (np.arange(m.P) % m.restarts % 2 == 0)[:, None] & (variances > 0)  # they take turns
            np.sqrt(variances, out=m.scale, where=scaled)
            np.reciprocal(m.scale, out=m.scale, where=scaled)
        self.total = np.repeat(total, m.restarts)
        with np.errstate(over="ignore", invalid="ignore"):  # where variances are out of range
            self.spread = (variances * np.square(m.scale)).sum(1)
        self.now, self.next = m.parameters(), m.parameters()  # of the last pass, to be written in the next
        self.final, self.n_iter, self.status = m.parameters(), np.zeros(m.P, np.int64), np.zeros(m.P, np.int64)
        self.bounds = np.empty((m.P, 0))  # and one more column, for that of `final`
        self.rescues = np.zeros(m.P, np.int64)
        self.likelihood, self.waiting = np.empty(m.P), np.arange(m.P)  # of `final`, and the problems whose is missing

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
            self.cluster(active, m.sample(LLOYD_ROWS))
            source = NEAREST
        result = m.sweep(active, self.next, self.now, self.next, source, PRODUCTS, PARAMETERS, rescue=rescue)
        if how == "kmeans" and can_tilt(m):
            self.start_tilted(active[active % m.restarts % 2 == 0], result, rescue)
        self.status[result[:, 2] != 0] |= RESCUED
        return self.give_up(active, is_singular(result))

    def start_tilted(self, active: np.ndarray, result: np.ndarray, rescue: bool) -> None:
        """Parameters, and the pass's result, from clusters of whitened rows where these are likelier: by few rows."""
        m = self.mixtures
        few = m.sample(rows_to_whiten(m))
        white = Whitened(few)
        run = Run(white.mixtures, np.ones(m.B), np.ones((m.B, m.D)), "kmeans-raw")
        run.cluster(active, white.mixtures)
        hard, first, second = white.parameters(m, run.next), self.now, m.parameters()
        flags, wanted = result[active], (PRODUCTS, PARAMETERS)
        if few is not m:
            first = m.parameters()
            flags = few.sweep(active, self.next, first, self.next, NEAREST, *wanted, rescue=rescue)
        other = few.sweep(active, hard, second, hard, POSTERIOR, *wanted, rescue=rescue)
        likelier = promise(few, active, second, other, rescue) > promise(few, active, first, flags, rescue)
        at = active[likelier]
        if few is m:
            self.now[at], result[at] = second[at], other[likelier]
        elif len(at):
            result[at] = m.sweep(at, hard, self.now, hard, POSTERIOR, *wanted, rescue=rescue)

    def cluster(self, active: np.ndarray, few: Mixtures) -> None:
        """k-means by Lloyd's iterations over few of the rows, to centers that are the means in `next`."""
        self.mixtures.seeds(self.next, True, scaled=True)
        if few.small:
            self.cluster_small(active, few)
            return
        room = self.now
        for _ in range(LLOYD_STEPS):
            result = few.sweep(active, self.next, room, self.next, NEAREST, LINEAR, CENTERS)
            if (empty := result[:, 2] > 0).any():
                relocate(few, active[empty], room)
            self.next[active] = room[active]
            active = active[empty | (result[:, 1] > LLOYD_TOL * self.spread[active] / few.D)]
            if len(active) == 0:
                return

    def cluster_small(self, active: np.ndarray, few: Mixtures) -> None:
        """The same to the same bits, in one launch, but for centers that have no rows."""
        records, bounds = np.zeros((few.P, RECORD)), np.empty((few.P, 1))
        records[:, LIMIT] = LLOYD_TOL * self.spread / few.D
        while len(active):
            records[active, STEP] = LLOYD
            few.follow(active, self.next, self.now, self.next, records, bounds, 0.0, False)
            relocate(few, empty := active[few.result[active, 2] > 0], self.next)
            active = empty[records[empty, COUNT] < LLOYD_STEPS]

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
        bounds: list[np.ndarray] = []
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
            bounds.append(np.full(m.P, np.nan))
            bounds[-1][active] = bound
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
        self.bounds = np.stack([*bounds, np.full(m.P, np.nan)], axis=1)

    def settle(
        self, how: Any, tol: float, max_iter: int, rescue: bool, progress: Callable[[int, int], Any] | None
    ) -> None:
        """`start` and `climb` of small problems, and the likelihood, in one launch, or a few that tell of progress."""
        m, active = self.mixtures, self.start(how, rescue)
        records, bounds = np.zeros((m.P, RECORD)), np.empty((m.P, max_iter + 1))
        records[:, STEP], records[:, STATUS] = CLIMB, self.status
        records[:, BEFORE], records[:, TOTAL] = -np.inf, self.total
        for some in [active] if progress is None else np.array_split(active, max(1, min(TOLD, len(active)))):
            m.follow(some, self.now, self.next, self.final, records, bounds, tol, rescue)
            if progress is not None:
                progress(int((records[:, STEP] == DONE).sum()), m.P)
        self.status, self.n_iter = records[:, STATUS].astype(np.int64), records[:, COUNT].astype(np.int64)
        self.likelihood, self.waiting = records[:, LIKELIHOOD], np.flatnonzero(records[:, STEP] != DONE)
        self.bounds = bounds[:, : self.n_iter.max() + 1].copy()
        self.bounds[np.arange(self.bounds.shape[1]) >= self.n_iter[:, None]] = np.nan

    def outcome(self) -> tuple[Any, np.ndarray, np.ndarray]:
        """Of each problem the best restart, its bounds and its log-likelihood."""
        m, rest, final, last = self.mixtures, self.waiting, self.final, self.likelihood
        if len(rest):
            last[rest] = m.sweep(rest, final, final, final, POSTERIOR, NOTHING, MERGE)[:, 0]
        self.bounds[np.arange(m.P), self.n_iter] = last / self.total
        best: Any = slice(None)
        if m.restarts > 1:
            rank = np.where(self.status & DEGENERATE, -np.inf, np.nan_to_num(last, nan=-np.inf))
            best = m.restarts * np.arange(m.B) + rank.reshape(m.B, m.restarts).argmax(1)
        return best, self.bounds[best], last[best]


def is_singular(result: np.ndarray) -> np.ndarray:
    """By the flags in the result of a pass."""
    return (result[:, 1].astype(np.int64) & SINGULAR) != 0


def promise(m: Mixtures, active: np.ndarray, theta: np.ndarray, result: np.ndarray, rescue: bool) -> np.ndarray:
    """Log-likelihoods a step of EM after the parameters that a pass left, with its result; -inf of singular ones."""
    then = m.parameters()
    step = m.sweep(active, theta, then, theta, POSTERIOR, PRODUCTS, PARAMETERS, rescue=rescue)
    likelihood = m.sweep(active, then, then, then, POSTERIOR, NOTHING, MERGE)[:, 0]
    return np.where(is_singular(result) | is_singular(step) | np.isnan(likelihood), -np.inf, likelihood)


def relocate(m: Mixtures, problems: np.ndarray, theta: np.ndarray) -> None:
    """Put each center without rows on a row that lies farthest from the others."""
    for p in problems:
        counts = m.statistics[p, 0, : m.K * (m.D + 1)].reshape(m.K, m.D + 1)[:, m.D]
        centers, data = m.parts(theta[p : p + 1])[2][0], p // m.restarts
        rows = m.X[data].double().numpy()
        if m.w is not None:
            rows = rows[m.w[data].numpy() > 0]  # K of them at least
        rows = rows - m.shift[data]
        distance = np.full(len(rows), np.inf)
        for k in np.flatnonzero(counts > 0):
            np.minimum(distance, np.square((rows - centers[k]) * m.scale[p]).sum(1), out=distance)
        empty = np.flatnonzero(~(counts > 0))
        farthest = np.argsort(-distance, kind="stable")[: len(empty)]
        centers[empty] = rows[farthest]


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
