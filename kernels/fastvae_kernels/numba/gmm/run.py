"""A fit of several problems and their restarts: initialization, steps until convergence, the best restart.

The kernel decides what a step computes and which step follows, see `steps.py`. This module does the launches: one for
all steps if problems have few rows, else one for each step of all problems that have not converged.
Specification: fastvae/reference/gmm/engine.py
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .launch import Mixtures, Steps
from .modes import (
    CENTERS,
    DIAG,
    FULL,
    LINEAR,
    MERGE,
    NEAREST,
    NOTHING,
    PARAMETERS,
    POSTERIOR,
    PRODUCTS,
    RANDOM,
    SPHERICAL,
    TIED,
)
from .steps import (
    BEFORE,
    COUNT,
    DEGENERATE,
    DONE,
    EM,
    LAST,
    LIKELIHOOD,
    LIMIT,
    LLOYD,
    LLOYD_DONE,
    LLOYD_STEPS,
    LLOYD_TOL,
    MAX_ITER,
    RESCUED,
    STATUS,
    STEP,
    TOTAL,
    TURN,
)
from .update import HALF_LOG_2PI, SINGULAR
from .whiten import Whitened, can_tilt, rows_to_whiten

REPORTS = 20  # progress updates if problems take all steps in one launch
LLOYD_ROWS = 1 << 15  # rows in the sample for k-means
WHOLE_BOUNDS = 1 << 23  # most lower bounds, P max_iter, of fits that take all steps in one launch


class Run:
    """EM for several problems at once, each with its restarts."""

    def __init__(self, mixtures: Mixtures, total: np.ndarray, variances: np.ndarray, how: Any) -> None:
        self.mixtures = m = mixtures
        variances = np.repeat(variances, m.restarts, axis=0)
        if how == "kmeans" and m.family != SPHERICAL:  # spherical covariances have no variances by feature
            scaled = (np.arange(m.P) % m.restarts % 2 == 0)[:, None] & (variances > 0)  # every other restart
            np.sqrt(variances, out=m.scale, where=scaled)
            np.reciprocal(m.scale, out=m.scale, where=scaled)
        self.total = np.repeat(total, m.restarts)
        with np.errstate(over="ignore", invalid="ignore"):  # variances may overflow
            self.spread = (variances * np.square(m.scale)).sum(1)
        self.now, self.next, self.found = m.parameters(), m.parameters(), m.parameters()
        self.status = np.zeros(m.P, np.int64)
        self.steps: Steps  # set by `fit`

    def start(self, how: Any, rescue: bool) -> np.ndarray:
        """Write initial parameters to `now`; return the problems whose parameters are valid."""
        m, active = self.mixtures, np.arange(self.mixtures.P)
        if not isinstance(how, str):
            self.now[:] = pack_mixtures(m, *how)
            return active
        if how in ("k-means++", "random_from_data"):
            m.seeds(self.next, how == "k-means++")
            weights = np.full((m.P, m.K), 1 / m.K)
            one = np.eye(m.D) if m.family in (FULL, TIED) else np.ones(m.shapes.covariance)
            V = np.broadcast_to(m.reg_covar * one, (m.P, *([] if m.family == TIED else [m.K]), *m.shapes.covariance))
            self.now[:] = pack(m, weights, m.parts(self.next)[2], V)
            return self.drop_degenerate(active, np.full(m.P, m.reg_covar == 0))
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
        return self.drop_degenerate(active, is_singular(result))

    def start_tilted(self, active: np.ndarray, result: np.ndarray, rescue: bool) -> None:
        """Use initial parameters and results from clusters of whitened rows where these have a higher likelihood."""
        m = self.mixtures
        sampled = m.sample(rows_to_whiten(m))
        white = Whitened(sampled)
        run = Run(white.mixtures, np.ones(m.B), np.ones((m.B, m.D)), "kmeans-raw")
        run.cluster(active, white.mixtures)
        hard, first, second = white.parameters(m, run.next), self.now, m.parameters()
        flags, mode = result[active], (PRODUCTS, PARAMETERS)
        if sampled is not m:
            first = m.parameters()
            flags = sampled.sweep(active, self.next, first, self.next, NEAREST, *mode, rescue=rescue)
        other = sampled.sweep(active, hard, second, hard, POSTERIOR, *mode, rescue=rescue)
        likelier = likelihood_after_step(sampled, active, second, other, rescue) > likelihood_after_step(
            sampled, active, first, flags, rescue
        )
        at = active[likelier]
        if sampled is m:
            self.now[at], result[at] = second[at], other[likelier]
        elif len(at):
            result[at] = m.sweep(at, hard, self.now, hard, POSTERIOR, *mode, rescue=rescue)

    def cluster(self, active: np.ndarray, sampled: Mixtures) -> None:
        """Run k-means by Lloyd's iterations on a sample of the rows; the centers are the means in `next`."""
        self.mixtures.seeds(self.next, True, scaled=True)
        steps = Steps(self.next, self.now, self.next, LLOYD)
        steps.records[:, LIMIT] = LLOYD_TOL * self.spread / sampled.D
        while len(active):
            steps.records[active, STEP], steps.records[active, TURN] = LLOYD, 0
            take_steps(sampled, active, steps, False, sampled.small)
            empty = active[sampled.result[active, 2] > 0]
            relocate(sampled, empty, self.next)
            active = empty[steps.records[empty, COUNT] < LLOYD_STEPS]

    def drop_degenerate(self, active: np.ndarray, bad: np.ndarray) -> np.ndarray:
        """Mark the bad active problems as degenerate, with `now` as their final parameters; return the others."""
        self.status[active[bad]] |= DEGENERATE
        self.found[active[bad]] = self.now[active[bad]]
        return active[~bad]

    def fit(
        self, active: np.ndarray, tol: float, max_iter: int, rescue: bool, progress: Callable[[int, int], Any] | None
    ) -> None:
        """Run EM from the parameters in `now`; write the final ones to `found`, and compute their log-likelihood."""
        m, every = self.mixtures, np.arange(self.mixtures.P)
        self.steps = steps = Steps(self.now, self.next, self.found, LAST, max_iter, tol)
        if max_iter > 0:
            steps.records[active, STEP] = EM
        else:
            self.status[active] |= MAX_ITER
            self.found[active] = self.now[active]
        steps.records[:, STATUS], steps.records[:, BEFORE], steps.records[:, TOTAL] = self.status, -np.inf, self.total
        if not (m.small and m.P * max_iter <= WHOLE_BOUNDS):
            take_steps(m, every, steps, rescue, False, progress)
        elif progress is None:
            take_steps(m, every, steps, rescue, True)
        else:
            for group in np.array_split(every, min(REPORTS, m.P)):
                take_steps(m, group, steps, rescue, True)
                progress(int(group[-1]) + 1, m.P)

    def outcome(self) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the best restart of each problem: index, log-likelihood, lower bounds, iterations and status."""
        m, steps = self.mixtures, self.steps
        last, n_iter, status = steps.records[:, LIKELIHOOD].copy(), steps.column(COUNT), steps.column(STATUS)
        best: Any = slice(None)
        if m.restarts > 1:
            rank = np.where(status & DEGENERATE, -np.inf, np.nan_to_num(last, nan=-np.inf))
            best = m.restarts * np.arange(m.B) + rank.reshape(m.B, m.restarts).argmax(1)
        bounds = steps.bounds[best, : n_iter.max() + 1].copy()
        last, n_iter, total = last[best], n_iter[best], self.total[best]
        bounds[np.arange(bounds.shape[1]) >= n_iter[:, None]] = np.nan
        bounds[np.arange(m.B), n_iter] = last / total
        return best, last, bounds, n_iter, status[best]


def take_steps(
    m: Mixtures,
    active: np.ndarray,
    steps: Steps,
    rescue: bool,
    whole: bool,
    progress: Callable[[int, int], Any] | None = None,
) -> None:
    """Take steps until all active problems are done."""
    done = 0
    while len(active):
        m.advance(active, steps, rescue, whole)
        step = steps.records[active, STEP]
        active = active[(step != LLOYD_DONE) & (step != DONE)]
        if steps.max_iter and (now := int(steps.records[:, COUNT].max())) > done:
            done = now
            steps.make_room(done)
            if progress is not None:
                progress(done, steps.max_iter)


def is_singular(result: np.ndarray) -> np.ndarray:
    """Return whether the result of a pass has the flag SINGULAR."""
    return (result[:, 1].astype(np.int64) & SINGULAR) != 0


def likelihood_after_step(
    m: Mixtures, active: np.ndarray, theta: np.ndarray, result: np.ndarray, rescue: bool
) -> np.ndarray:
    """Return the log-likelihoods after one more EM step from the parameters theta of a pass; -inf for singular ones."""
    then = m.parameters()
    step = m.sweep(active, theta, then, theta, POSTERIOR, PRODUCTS, PARAMETERS, rescue=rescue)
    likelihood = m.sweep(active, then, then, then, POSTERIOR, NOTHING, MERGE)[:, 0]
    return np.where(is_singular(result) | is_singular(step) | np.isnan(likelihood), -np.inf, likelihood)


def relocate(m: Mixtures, problems: np.ndarray, theta: np.ndarray) -> None:
    """Move each center without rows to one of the rows farthest from all other centers."""
    for p in problems:
        counts = m.statistics[p, 0, : m.K * (m.D + 1)].reshape(m.K, m.D + 1)[:, m.D]
        centers, data = m.parts(theta[p : p + 1])[2][0], p // m.restarts
        rows = m.X[data].double().numpy()
        if m.w is not None:
            rows = rows[m.w[data].numpy() > 0]  # at least K
        rows = rows - m.shift[data]
        distance = np.full(len(rows), np.inf)
        for k in np.flatnonzero(counts > 0):
            np.minimum(distance, np.square((rows - centers[k]) * m.scale[p]).sum(1), out=distance)
        empty = np.flatnonzero(~(counts > 0))
        farthest = np.argsort(-distance, kind="stable")[: len(empty)]
        centers[empty] = rows[farthest]


def pack(m: Mixtures, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """Return parameter blocks ``[len(weights), size]``; NaN where a covariance is not positive definite.

    The means are relative to the shift.
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


def pack_mixtures(m: Mixtures, weights: Tensor, means: Tensor, covariances: Tensor) -> np.ndarray:
    """Return parameter blocks from weights, means and covariances in the user's form, float64."""
    weights, means, covariances = weights.detach(), means.detach(), covariances.detach()
    return pack(m, weights.numpy(), means.numpy() - m.shift[:, None], covariances.numpy())


def unpack_mixtures(m: Mixtures, theta: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights, means and covariances of parameter blocks, in the user's form."""
    weights, _, means, _, covariances = m.parts(theta)
    parts = weights, means + m.shift[:, None], covariances
    return tuple(torch.from_numpy(np.ascontiguousarray(part)) for part in parts)  # type: ignore[return-value]
