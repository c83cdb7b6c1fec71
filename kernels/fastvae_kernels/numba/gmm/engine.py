"""Gaussian mixtures by EM, for one problem or thousands at once: Numba.

    E and M in one pass    r_nk = pi_k N(x_n; mu_k, Sigma_k) / p(x_n);  sum_n of r, r e, r e e' for e = x - mu_k
    then                   pi, mu, Sigma, its Cholesky factor and the constants of the next pass

Traffic, elements per pass: reads N D; the [N, K] responsibilities exist only in tiles that fit a cache. One launch is a
pass over all problems that have not converged, or a whole fit where problems are small. The kernel is in `row_pass.py`,
the sequence of steps in `steps.py`, initialization and restarts in `run.py`. All sums are float64.
Specification: fastvae/reference/gmm/formulas.py, fastvae/reference/gmm/engine.py
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..language.buffers import address, scratch
from ..language.memory import CODES
from ..language.threads import run
from .families import FAMILIES
from .launch import Mixtures, Stream, moments
from .modes import CENTERS, GIVEN, LINEAR, PARAMETERS, POSTERIOR, PRODUCTS
from .rows import SCORES, make_rows
from .run import Run, pack_mixtures, unpack_mixtures
from .update import FAR
from .whiten import can_tilt, rows_to_whiten

BATCH_ELEMENTS = 1 << 23  # limit on the partial sums of a batch of problems, and on a quarter of their whitened rows


class Fitted(NamedTuple):
    """Parameters and history of B problems, float64, see fastvae.gmm.MixtureFit."""

    weights: Tensor
    means: Tensor
    covariances: Tensor
    log_likelihood: Tensor  # [B], sum of w log p under these parameters
    lower_bounds: Tensor  # [B, largest n_iter + 1], NaN after the last iteration
    n_iter: Tensor
    status: Tensor
    variances: Tensor  # [B, D], of the data


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
    """Fit B problems, X ``[B, N, D]``, or one problem in chunks, and keep the best restart of each."""
    B = X.shape[0] if isinstance(X, Tensor) else 1
    ids, family = np.ascontiguousarray(problems.numpy()), FAMILIES[covariance_type]
    restarts = n_init if isinstance(start, str) else 1
    parts: list[list[Tensor]] = []
    one = Mixtures(X[:0] if isinstance(X, Tensor) else X, None, n_components, family)
    whitened = min(one.N, 2 * rows_to_whiten(one)) * one.D // 4 if start == "kmeans" and can_tilt(one) else 0
    at_once = max(1, BATCH_ELEMENTS // max(one.slots * one.F * restarts, whitened))
    for first in range(0, B, at_once):
        rows = slice(first, min(first + at_once, B))
        w = None if sample_weight is None else sample_weight[rows]
        batch = X[rows] if isinstance(X, Tensor) else X
        m = Mixtures(batch, w, n_components, family, restarts, ids[rows], seed=seed, reg_covar=reg_covar)
        m.compute_shift()
        how = start if isinstance(start, str) else [t[rows] for t in start]
        total, variances = moments(m)
        em = Run(m, total, variances, how)
        em.fit(em.start(how, rescue), tol, max_iter, rescue, progress)
        best, log_likelihood, bounds, n_iter, status = em.outcome()
        history = log_likelihood, bounds, n_iter, status
        parts.append([*unpack_mixtures(m, em.found[best]), *map(torch.from_numpy, (*history, variances))])
    widest = max(int(part[5].max()) for part in parts) + 1
    for part in parts:
        if part[4].shape[1] != widest:
            part[4] = torch.nn.functional.pad(part[4], (0, widest - part[4].shape[1]), value=math.nan)  # or truncate
    return Fitted(*parts[0]) if len(parts) == 1 else Fitted(*map(torch.cat, zip(*parts, strict=True)))


def stream(chunks: Any, sample_weight: Tensor | None) -> Stream:
    """Return the X of `fit` for data in chunks: ``chunks`` is a function that returns them, with N, D and dtype."""
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
    """Return log responsibilities ``[B, N, K]``, log densities ``[B, N]`` and labels ``[B, N]`` of the rows of X."""
    m = Mixtures(X, None, weights.shape[1], FAMILIES[covariance_type])
    theta = pack_mixtures(m, weights, means, covariances)
    dtype = torch.promote_types(X.dtype, means.dtype)
    log_resp = X.new_empty((m.B, m.N, m.K), dtype=dtype) if want_log_resp else None
    log_prob = X.new_empty((m.B, m.N), dtype=torch.float64)
    labels = X.new_empty((m.B, m.N), dtype=torch.int64) if want_labels else None
    numbers = SCORES.pack(
        rows=m.rows(m.X, None), theta=address(theta), size=m.size, K=m.K, T=m.T, tiles=m.tiles,
        tied=int(m.shapes.matrices < m.K), log_resp=0 if log_resp is None else log_resp.data_ptr(),
        resp_code=CODES[dtype], log_prob=log_prob.data_ptr(), labels=0 if labels is None else labels.data_ptr(),
        room=scratch(m.room * torch.get_num_threads()), room_size=m.room,
    )  # fmt: skip
    if X.numel():
        run(make_rows(m.shapes.kernel), numbers, m.B * m.tiles, m.B * m.N * m.shapes.ns_per_row / 2)
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
    """Return the next weights, means and covariances, float64, and the log-likelihood ``[B]`` of the given ones.

    It takes one pass over the rows; problems with the flag FAR take a second one.
    """
    m = Mixtures(X, sample_weight, weights.shape[1], FAMILIES[covariance_type], reg_covar=reg_covar)
    theta = pack_mixtures(m, weights, means, covariances)
    new, active = m.parameters(), np.arange(m.B)
    result = m.sweep(active, theta, new, theta, POSTERIOR, PRODUCTS, PARAMETERS)
    log_likelihood = torch.from_numpy(result[:, 0].copy())
    if len(far := active[(result[:, 1].astype(np.int64) & FAR) != 0]):
        m.sweep(far, theta, new, new.copy(), POSTERIOR, PRODUCTS, PARAMETERS)
    return unpack_mixtures(m, new), log_likelihood


def m_step(
    X: Tensor, resp: Tensor, covariance_type: str, sample_weight: Tensor | None, reg_covar: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights, means and covariances from responsibilities ``[B, N, K]``; NaN for a component without rows."""
    m = Mixtures(X, sample_weight, resp.shape[2], FAMILIES[covariance_type], reg_covar=reg_covar)
    resp, active = resp.contiguous(), np.arange(m.B)
    theta, new = m.parameters(), m.parameters()
    for _ in range(2):  # about the shift, then about the means
        m.sweep(active, theta, new, theta, GIVEN, LINEAR, CENTERS, resp=resp)
        theta, new = new, theta
    m.sweep(active, theta, new, theta, GIVEN, PRODUCTS, PARAMETERS, resp=resp)
    return unpack_mixtures(m, new)
