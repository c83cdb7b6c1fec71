"""The reference engine of `fastvae.gmm`: whole fits, and the steps of EM, for many problems at once.

An engine is a module with `e_step`, `m_step`, `em_step`, `stream` and `fit` as here; `fastvae.gmm` checks the arguments
and calls the one that serves them. All it hands over are tensors of one device:

    X              `[B, N, D]`  float32 or float64, any strides; B >= 1, N >= 1, D >= 1; finite where `fit` is called
    sample_weight  `[B, N]`     float64, finite, >= 0, at least K of them positive; or None for ones
    mixture        weights `[B, K]`, means `[B, K, D]`, covariances as in `gmm.Mixture` (tied `[B, D, D]`), all float64

and all that comes back is float64, labels and counts int64. Status flags are the numbers of `fastvae.Status`.

Everything is computed in float64. Sums are of rows less a shift: per feature, the number nearest 0 between the least
and the largest that count. So an offset costs nothing, and no row loses digits to others that lie far away. On a CPU
one problem is computed after the other: its bits are the same alone and in any batch. Elsewhere all go at once.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import formulas
from .formulas import Mixture
from .start import responsibilities, whiten

CONVERGED, MAX_ITER, RESCUED, SINGULAR = 1, 2, 4, 8

Parameters = tuple[Tensor, Tensor, Tensor]  # weights, means, covariances


class Fitted(NamedTuple):
    """What `fit` returns, in tensors over the B problems.

    Attributes
    ----------
    weights, means, covariances : Tensor
        The parameters; they mean nothing where log_likelihood is NaN, since the start was degenerate.
    log_likelihood : Tensor
        sum_n w_n log p(x_n) of these parameters, `[B]`.
    lower_bounds : Tensor
        `[B, m + 1]`, m the largest n_iter: the log likelihood per unit weight before each M-step, and of the parameters
        returned; NaN behind it.
    n_iter, status : Tensor
        int64 `[B]`.
    variances : Tensor
        Of the features of X, `[B, D]`.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    log_likelihood: Tensor
    lower_bounds: Tensor
    n_iter: Tensor
    status: Tensor
    variances: Tensor


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
    """log p(z=k | x_n) `[B, N, K]`, log p(x_n) `[B, N]`, and the most probable k `[B, N]`; None for what is not wanted.

    -inf for a component of weight 0, NaN where a covariance is not positive definite. Differentiable.
    """
    found = []
    for group in _groups(X):
        mixture = Mixture(weights[group], means[group], covariances[group], covariance_type)
        log_resp, log_prob = formulas.e_step(X[group].to(torch.float64).contiguous(), mixture)
        found.append((log_resp if want_log_resp else None, log_prob, log_resp.argmax(-1) if want_labels else None))
    log_resp, log_prob, labels = zip(*found, strict=True)
    return (
        torch.cat(log_resp) if want_log_resp else None,
        torch.cat(log_prob),
        torch.cat(labels) if want_labels else None,
    )


def m_step(X: Tensor, resp: Tensor, covariance_type: str, sample_weight: Tensor | None, reg_covar: float) -> Parameters:
    """The parameters that maximise the bound for these responsibilities `[B, N, K]`, float64. Differentiable.

    A component without rows has weight 0, and mean and covariance NaN.
    """
    found = []
    for group in _groups(X):
        centred, shift, w = _centre(X[group], None if sample_weight is None else sample_weight[group])
        new = formulas.m_step(
            centred,
            resp[group].clone(),  # as aligned as it is alone: bits of a matrix product may depend on that
            covariance_type=covariance_type,
            sample_weight=w,
            reg_covar=reg_covar,
        )
        found.append((new.weights, new.means + shift, new.covariances))
    weights, means, covariances = (torch.cat(parts) for parts in zip(*found, strict=True))
    return weights, means, covariances


def em_step(
    X: Tensor,
    weights: Tensor,
    means: Tensor,
    covariances: Tensor,
    covariance_type: str,
    sample_weight: Tensor | None,
    reg_covar: float,
) -> tuple[Parameters, Tensor]:
    """The next parameters, and the log likelihood `[B]` of the given ones."""
    X = formulas.counted(X, sample_weight)
    log_resp, log_prob, _ = e_step(X, weights, means, covariances, covariance_type)
    assert log_resp is not None  # it is wanted by default
    total = (log_prob if sample_weight is None else log_prob * sample_weight).sum(-1)
    return m_step(X, log_resp.exp(), covariance_type, sample_weight, reg_covar), total


def stream(chunks: Any, sample_weight: Tensor | None) -> Tensor:
    """What `fit` takes for rows that come in chunks: here all of them."""
    return chunks.whole()


def fit(
    X: Tensor,
    n_components: int,
    covariance_type: str,
    *,
    start: str | Parameters,
    n_init: int,
    tol: float,
    max_iter: int,
    reg_covar: float,
    sample_weight: Tensor | None,
    seed: int,
    problems: Tensor,
    rescue: bool,
    progress: Callable[[int, int], None] | None,
) -> Fitted:
    """EM from n_init starts, for each problem by itself: of those not degenerate the one of the highest bound.

    Each iteration is an E-step, the bound L of the parameters it saw, and an M-step; it is the last where L has changed
    by less than `tol`, as in scikit-learn. Where a component has no rows left or a covariance is not positive definite,
    the problem stops at the parameters before (SINGULAR), or, with `rescue`, the component is placed anew (RESCUED).

    Parameters
    ----------
    start : str or tuple of tensors
        One of `gmm_start.STARTS`, or weights, means and covariances. In the first, third, ... restart by k-means,
        unless the covariances are spherical, distances are in units of each feature's standard deviation; where they
        are full or tied, k-means of whitened rows is tried as well, and the start is taken that is likelier after a
        step of EM.
    seed, problems : int, int64 tensor `[B]`
        The random numbers of a restart are a function of (seed, problems[b], restart).
    progress : callable or None
        Called with how much is done, and of how much: fits where there are several, else iterations.
    """
    fits = len(X) * n_init
    done = 0
    found = []
    for group in _groups(X):
        centred, shift, w = _centre(X[group], None if sample_weight is None else sample_weight[group])
        best, variances = None, _variances(centred, w)
        for restart in range(n_init):
            if isinstance(start, str):
                streams = [(seed, problem, restart) for problem in problems[group].tolist()]
                metric = start == "kmeans" and covariance_type != "spherical" and restart % 2 == 0
                rows = centred * torch.where(variances > 0, 1 / variances.sqrt(), 1.0)[:, None] if metric else centred
                resp = responsibilities(rows, w, n_components, start, streams)
                first = _maximise(centred, w, resp, covariance_type, reg_covar, rescue)
                if metric and covariance_type != "diag" and n_components > 1 and X.shape[2] > 1:
                    resp = responsibilities(whiten(centred, w), w, n_components, start, streams)
                    other = _maximise(centred, w, resp, covariance_type, reg_covar, rescue)
                    first = _likelier(centred, w, first, other, reg_covar=reg_covar, rescue=rescue)
            else:
                weights, means, covariances = (t[group] for t in start)
                none = torch.zeros(len(centred), dtype=torch.bool, device=X.device)
                first = Mixture(weights, means - shift, covariances, covariance_type), none, none
            tick = progress if fits == 1 else None
            got = _climb(centred, w, variances, *first, tol, max_iter, reg_covar, rescue, tick)
            best = got if best is None else _better(best, got)
            done += len(centred)
            if progress is not None and fits > 1:
                progress(done, fits)
        assert best is not None  # n_init >= 1
        found.append(best._replace(means=best.means + shift))
    length = max(part.lower_bounds.shape[1] for part in found)
    found = [part._replace(lower_bounds=_pad(part.lower_bounds, length)) for part in found]
    return Fitted._make(torch.cat(parts) for parts in zip(*found, strict=True))


def _groups(X: Tensor) -> Iterator[slice]:
    size = 1 if X.device.type == "cpu" else len(X)
    return (slice(b, b + size) for b in range(0, len(X), size))


def _centre(X: Tensor, sample_weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The data less a shift in float64, that shift `[B, 1, D]`, and the weights, ones if there are none."""
    X = formulas.counted(X.to(torch.float64), sample_weight)
    w = torch.ones_like(X[..., 0]) if sample_weight is None else sample_weight.clone()  # [B, N]
    if X.shape[1] == 0:
        return X, X.new_zeros(len(X), 1, X.shape[2]), w
    out = (w == 0)[..., None]
    least = X.detach().masked_fill(out, math.inf).amin(1, keepdim=True)
    most = X.detach().masked_fill(out, -math.inf).amax(1, keepdim=True)
    shift = least.clamp(min=0).minimum(most)
    return (X - shift).contiguous(), shift, w


def _variances(X: Tensor, w: Tensor) -> Tensor:
    """Of each feature, `[P, D]`."""
    share = (w / w.sum(-1, keepdim=True))[..., None]  # [P, N, 1]
    return (share * (X - (share * X).sum(1, keepdim=True)).square()).sum(1)


def _climb(
    X: Tensor,
    w: Tensor,
    variances: Tensor,
    mixture: Mixture,
    faulty: Tensor,
    rescued: Tensor,
    tol: float,
    max_iter: int,
    reg_covar: float,
    rescue: bool,
    tick: Callable[[int, int], None] | None,
) -> Fitted:
    """EM from one start for each problem; those whose start is `faulty` stay there."""
    kind, device = mixture.covariance_type, X.device
    parameters = [t.clone() for t in mixture[:3]]
    log_likelihood = X.new_full((len(X),), math.nan)
    bounds: list[Tensor] = []
    n_iter = torch.zeros(len(X), dtype=torch.int64, device=device)
    status = RESCUED * rescued.long() + SINGULAR * faulty.long()
    alive = (~faulty).nonzero()[:, 0]  # numbers of the problems that go on; what follows is of these alone
    X, w, done = X[alive], w[alive], faulty[alive]
    last = torch.full_like(w[:, 0], -math.inf)
    for iteration in range(max_iter + 1):
        weights, means, covariances = (t[alive] for t in parameters)
        mixture = Mixture(weights, means, covariances, kind)
        log_resp, log_prob = formulas.e_step(X, mixture)
        total = (w * log_prob).sum(-1)
        bound = total / w.sum(-1)
        log_likelihood[alive] = total
        bounds.append(torch.full_like(log_likelihood, math.nan).index_copy_(0, alive, bound))
        status[alive] |= SINGULAR * bound.isnan()
        going = ~(done | bound.isnan())
        if iteration == max_iter:
            status[alive] |= MAX_ITER * going
            break
        alive, X, w, log_resp, bound, last = _where(going, alive, X, w, log_resp, bound, last)
        if len(alive) == 0:
            break
        new, faulty, rescued = _maximise(X, w, log_resp.exp(), kind, reg_covar, rescue)
        status[alive] |= SINGULAR * faulty | RESCUED * rescued
        done = ((bound - last).abs() < tol) & ~rescued
        last = bound.masked_fill(rescued, -math.inf)  # the next bound may be lower, and says nothing of convergence
        alive, X, w, last, done, *fresh = _where(~faulty, alive, X, w, last, done, *new[:3])
        for t, part in zip(parameters, fresh, strict=True):
            t[alive] = part
        n_iter[alive] += 1
        status[alive] |= CONVERGED * done
        if tick is not None:
            tick(iteration + 1, max_iter)
        if len(alive) == 0:
            break
    lower_bounds = torch.stack(bounds, 1)[:, : int(n_iter.max()) + 1]
    return Fitted._make((*parameters, log_likelihood, lower_bounds, n_iter, status, variances))


def _maximise(
    X: Tensor, w: Tensor, resp: Tensor, kind: str, reg_covar: float, rescue: bool
) -> tuple[Mixture, Tensor, Tensor]:
    """The M-step; whether it is degenerate, and whether a component was placed anew so that it is not, `[P]` both."""
    new = formulas.m_step(X, resp, covariance_type=kind, sample_weight=w, reg_covar=reg_covar)
    faulty = faulty_components(new)  # [P, K]
    rescued = torch.zeros_like(faulty[:, 0])
    for _ in range(resp.shape[-1] if rescue else 0):
        hurt = faulty.any(-1) & ~faulty.all(-1)
        if not hurt.any():
            break
        resp = torch.where(hurt[:, None, None], _replace(X, w, resp, faulty), resp)
        new = formulas.m_step(X, resp, covariance_type=kind, sample_weight=w, reg_covar=reg_covar)
        faulty, rescued = faulty_components(new), rescued | hurt
    return new, faulty.any(-1), rescued & ~faulty.any(-1)


def _likelier(
    X: Tensor, w: Tensor, *starts: tuple[Mixture, Tensor, Tensor], reg_covar: float, rescue: bool
) -> tuple[Mixture, Tensor, Tensor]:
    """Of two starts of each problem, as `_maximise` returns them, the one that is likelier after a step of EM, or else
    the first; the likelihood of a degenerate one is 0.
    """
    likelihood = []
    for mixture, faulty, _ in starts:
        log_resp, _ = formulas.e_step(X, mixture)
        then, also_faulty, _ = _maximise(X, w, log_resp.exp(), mixture.covariance_type, reg_covar, rescue)
        total = (w * formulas.e_step(X, then)[1]).sum(-1).nan_to_num(-math.inf)
        likelihood.append(total.masked_fill(faulty | also_faulty, -math.inf))
    take = likelihood[1] > likelihood[0]
    (a, *flags_a), (b, *flags_b) = starts
    weights, means, covariances = (torch.where(_like(take, s), t, s) for s, t in zip(a[:3], b[:3], strict=True))
    faulty, rescued = (torch.where(take, t, s) for s, t in zip(flags_a, flags_b, strict=True))
    return Mixture(weights, means, covariances, a.covariance_type), faulty, rescued


def faulty_components(mixture: Mixture) -> Tensor:
    """Which components have no rows or no density, `[*batch, K]`; all, where the covariance they share is to blame."""
    weights, _, covariances, kind = mixture
    empty = weights == 0
    if kind in ("full", "tied"):
        sound = torch.linalg.cholesky_ex(covariances.nan_to_num()).info == 0
        sound &= covariances.isfinite().all(-1).all(-1)
    else:
        sound = (covariances > 0) & covariances.isfinite()
        sound = sound.all(-1) if kind == "diag" else sound
    if kind == "tied":
        sound = sound[..., None] | empty.any(-1, keepdim=True)
    return empty | ~sound


def _replace(X: Tensor, w: Tensor, resp: Tensor, faulty: Tensor) -> Tensor:
    """Responsibilities with the first faulty component of each problem placed anew.

    Its rows go to the other components, and it takes the upper half of the one of the largest weighted spread, cut at
    the mean of its widest feature. Source: VLFeat's Gaussian mixtures (2013), which does so with an empty mode.
    """
    i = faulty.long().argmax(-1)  # [P]
    p = torch.arange(len(X), device=X.device)
    split = formulas.m_step(X, resp, covariance_type="diag", sample_weight=w)
    variance, feature = split.covariances.max(-1)  # [P, K]
    j = (split.weights * variance).nan_to_num(-1.0).masked_fill(faulty, -1.0).argmax(-1)  # [P]
    d = feature[p, j]  # [P]
    upper = X[p, :, d] > split.means[p, j, d][:, None]  # [P, N]
    rest = resp.clone()
    rest[p, :, i] = 0.0
    total = rest.sum(-1, keepdim=True)
    rest = torch.where(total > 0, rest / total, torch.nn.functional.one_hot(j, resp.shape[-1]).to(resp)[:, None])
    rest[p, :, i] = rest[p, :, j] * upper
    rest[p, :, j] *= ~upper
    return rest


def _better(a: Fitted, b: Fitted) -> Fitted:
    """Of two fits of each problem the one that did not degenerate, or else the one of the higher bound, or else a."""

    def rank(fitted: Fitted) -> tuple[Tensor, Tensor]:
        last = fitted.lower_bounds.gather(1, fitted.n_iter[:, None])[:, 0]
        return fitted.status & SINGULAR == 0, last.nan_to_num(-math.inf, posinf=math.inf, neginf=-math.inf)

    (sound_a, bound_a), (sound_b, bound_b) = rank(a), rank(b)
    take = torch.where(sound_a == sound_b, bound_b > bound_a, sound_b)
    length = max(a.lower_bounds.shape[1], b.lower_bounds.shape[1])
    a, b = (f._replace(lower_bounds=_pad(f.lower_bounds, length)) for f in (a, b))
    best = Fitted._make(torch.where(_like(take, s), t, s) for s, t in zip(a, b, strict=True))
    return best._replace(lower_bounds=best.lower_bounds[:, : int(best.n_iter.max()) + 1])


def _pad(bounds: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(bounds, (0, length - bounds.shape[1]), value=math.nan)


def _like(mask: Tensor, t: Tensor) -> Tensor:
    """A mask `[B]` that broadcasts against t `[B, ...]`."""
    return mask.reshape(-1, *[1] * (t.dim() - 1))


def _where(mask: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Their problems under the mask; no copy where that is all of them."""
    return list(tensors) if mask.all() else [t[mask] for t in tensors]
