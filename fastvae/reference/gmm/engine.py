"""The reference engine of `fastvae.gmm`: complete fits, and the single steps of EM, for a batch of problems.

An engine is a module with the functions `e_step`, `m_step`, `em_step`, `stream` and `fit` of this one. `fastvae.gmm`
checks the arguments and calls the engine of the chosen backend. It passes tensors on one device:

    X              `[B, N, D]`  float32 or float64, any strides; B >= 1, N >= 1, D >= 1; finite if `fit` is called
    sample_weight  `[B, N]`     float64, finite, >= 0, at least K of them positive; or None for ones
    mixture        weights `[B, K]`, means `[B, K, D]`, covariances as in `gmm.Mixture` (tied `[B, D, D]`), all float64

Results are float64, labels and counts int64. Status flags are the integers of `fastvae.Status`.

Everything is computed in float64. Sums are taken over rows minus a shift: per feature, the number nearest 0 between the
minimum and the maximum over the rows of positive weight. So an offset costs no precision, and no row loses precision to
others far away. On a CPU problems are computed one after the other, so each gives the same bits alone and in any batch.
On other devices all are computed at once.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import formulas
from .formulas import Mixture
from .start import initial_responsibilities, whiten

CONVERGED, MAX_ITER, RESCUED, SINGULAR = 1, 2, 4, 8

Parameters = tuple[Tensor, Tensor, Tensor]  # weights, means, covariances


class Fitted(NamedTuple):
    """The result of `fit`: tensors over the B problems.

    Attributes
    ----------
    weights, means, covariances : Tensor
        The parameters; meaningless if log_likelihood is NaN, because the start was degenerate.
    log_likelihood : Tensor
        sum_n w_n log p(x_n) of these parameters, `[B]`.
    lower_bounds : Tensor
        `[B, m + 1]`, m the largest n_iter: the log likelihood per unit weight before each M-step, and of the returned
        parameters; padded with NaN.
    n_iter, status : Tensor
        int64 `[B]`.
    variances : Tensor
        Variances of the features of X, `[B, D]`.
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
    """log p(z=k | x_n) `[B, N, K]`, log p(x_n) `[B, N]`, and the most probable k `[B, N]`; None if not requested.

    -inf for a component of weight 0, NaN if a covariance is not positive definite. Differentiable.
    """
    results = []
    for group in _groups(X):
        mixture = Mixture(weights[group], means[group], covariances[group], covariance_type)
        log_resp, log_prob = formulas.e_step(X[group].to(torch.float64).contiguous(), mixture)
        results.append((log_resp if want_log_resp else None, log_prob, log_resp.argmax(-1) if want_labels else None))
    log_resp, log_prob, labels = zip(*results, strict=True)
    return (
        torch.cat(log_resp) if want_log_resp else None,
        torch.cat(log_prob),
        torch.cat(labels) if want_labels else None,
    )


def m_step(X: Tensor, resp: Tensor, covariance_type: str, sample_weight: Tensor | None, reg_covar: float) -> Parameters:
    """The parameters that maximise the bound for the responsibilities `[B, N, K]`, float64. Differentiable.

    A component without rows has weight 0, and its mean and covariance are NaN.
    """
    results = []
    for group in _groups(X):
        centred, shift, w = _centre(X[group], None if sample_weight is None else sample_weight[group])
        new = formulas.m_step(
            centred,
            resp[group].clone(),  # same alignment in any batch, on which the bits of a matrix product may depend
            covariance_type=covariance_type,
            sample_weight=w,
            reg_covar=reg_covar,
        )
        results.append((new.weights, new.means + shift, new.covariances))
    weights, means, covariances = (torch.cat(parts) for parts in zip(*results, strict=True))
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
    X = formulas.zero_ignored_rows(X, sample_weight)
    log_resp, log_prob, _ = e_step(X, weights, means, covariances, covariance_type)
    assert log_resp is not None  # computed by default
    total = (log_prob if sample_weight is None else log_prob * sample_weight).sum(-1)
    return m_step(X, log_resp.exp(), covariance_type, sample_weight, reg_covar), total


def stream(chunks: Any, sample_weight: Tensor | None) -> Tensor:
    """The argument X of `fit` for rows that come in chunks; here all rows in memory."""
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
    """Run EM from n_init starts for each problem, and keep the fit with the highest bound that is not degenerate.

    Each iteration is an E-step, the bound L of the parameters before it, and an M-step. It is the last one if L has
    changed by less than `tol`, as in scikit-learn. If a component has lost its rows or a covariance is not positive
    definite, the problem stops with the previous parameters (SINGULAR), or, with `rescue`, the component is
    reinitialized (RESCUED).

    Parameters
    ----------
    start : str or tuple of tensors
        One of `start.STARTS`, or weights, means and covariances. In the first, third, ... restart with "kmeans", unless
        the covariances are spherical, distances are in units of each feature's standard deviation. If the covariances
        are full or tied, k-means of whitened rows is tried as well, and the start with the higher likelihood after a
        step of EM is used.
    seed, problems : int, int64 tensor `[B]`
        The random numbers of a restart are a function of (seed, problems[b], restart).
    progress : callable or None
        Called with (done, total): fits if there are several, otherwise iterations.
    """
    total_fits = len(X) * n_init
    done = 0
    results = []
    for group in _groups(X):
        centred, shift, w = _centre(X[group], None if sample_weight is None else sample_weight[group])
        best, variances = None, _variances(centred, w)
        for restart in range(n_init):
            if isinstance(start, str):
                streams = [(seed, problem, restart) for problem in problems[group].tolist()]
                metric = start == "kmeans" and covariance_type != "spherical" and restart % 2 == 0
                rows = centred * torch.where(variances > 0, 1 / variances.sqrt(), 1.0)[:, None] if metric else centred
                resp = initial_responsibilities(rows, w, n_components, start, streams)
                first = _m_step_with_rescue(centred, w, resp, covariance_type, reg_covar, rescue)
                if metric and covariance_type != "diag" and n_components > 1 and X.shape[2] > 1:
                    resp = initial_responsibilities(whiten(centred, w), w, n_components, start, streams)
                    other = _m_step_with_rescue(centred, w, resp, covariance_type, reg_covar, rescue)
                    first = _more_likely_start(centred, w, first, other, reg_covar=reg_covar, rescue=rescue)
            else:
                weights, means, covariances = (t[group] for t in start)
                none = torch.zeros(len(centred), dtype=torch.bool, device=X.device)
                first = Mixture(weights, means - shift, covariances, covariance_type), none, none
            report = progress if total_fits == 1 else None
            result = _run_em(centred, w, variances, *first, tol, max_iter, reg_covar, rescue, report)
            best = result if best is None else _best_of(best, result)
            done += len(centred)
            if progress is not None and total_fits > 1:
                progress(done, total_fits)
        assert best is not None  # n_init >= 1
        results.append(best._replace(means=best.means + shift))
    length = max(part.lower_bounds.shape[1] for part in results)
    results = [part._replace(lower_bounds=_pad(part.lower_bounds, length)) for part in results]
    return Fitted._make(torch.cat(parts) for parts in zip(*results, strict=True))


def _groups(X: Tensor) -> Iterator[slice]:
    size = 1 if X.device.type == "cpu" else len(X)
    return (slice(b, b + size) for b in range(0, len(X), size))


def _centre(X: Tensor, sample_weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The rows minus a shift in float64, the shift `[B, 1, D]`, and the weights, ones if there are none."""
    X = formulas.zero_ignored_rows(X.to(torch.float64), sample_weight)
    w = torch.ones_like(X[..., 0]) if sample_weight is None else sample_weight.clone()  # [B, N]
    if X.shape[1] == 0:
        return X, X.new_zeros(len(X), 1, X.shape[2]), w
    ignored = (w == 0)[..., None]
    lowest = X.detach().masked_fill(ignored, math.inf).amin(1, keepdim=True)
    highest = X.detach().masked_fill(ignored, -math.inf).amax(1, keepdim=True)
    shift = lowest.clamp(min=0).minimum(highest)
    return (X - shift).contiguous(), shift, w


def _variances(X: Tensor, w: Tensor) -> Tensor:
    """The variance of each feature, `[P, D]`."""
    share = (w / w.sum(-1, keepdim=True))[..., None]  # [P, N, 1]
    return (share * (X - (share * X).sum(1, keepdim=True)).square()).sum(1)


def _run_em(
    X: Tensor,
    w: Tensor,
    variances: Tensor,
    mixture: Mixture,
    degenerate: Tensor,
    rescued: Tensor,
    tol: float,
    max_iter: int,
    reg_covar: float,
    rescue: bool,
    report: Callable[[int, int], None] | None,
) -> Fitted:
    """Run EM from one start for each problem; problems whose start is `degenerate` stay at it."""
    kind, device = mixture.covariance_type, X.device
    parameters = [t.clone() for t in mixture[:3]]
    log_likelihood = X.new_full((len(X),), math.nan)
    bounds: list[Tensor] = []
    n_iter = torch.zeros(len(X), dtype=torch.int64, device=device)
    status = RESCUED * rescued.long() + SINGULAR * degenerate.long()
    active = (~degenerate).nonzero()[:, 0]  # indices of the problems still running; the tensors below hold only these
    X, w, done = X[active], w[active], degenerate[active]
    last = torch.full_like(w[:, 0], -math.inf)
    for iteration in range(max_iter + 1):
        weights, means, covariances = (t[active] for t in parameters)
        mixture = Mixture(weights, means, covariances, kind)
        log_resp, log_prob = formulas.e_step(X, mixture)
        total = (w * log_prob).sum(-1)
        bound = total / w.sum(-1)
        log_likelihood[active] = total
        bounds.append(torch.full_like(log_likelihood, math.nan).index_copy_(0, active, bound))
        status[active] |= SINGULAR * bound.isnan()
        running = ~(done | bound.isnan())
        if iteration == max_iter:
            status[active] |= MAX_ITER * running
            break
        active, X, w, log_resp, bound, last = _select(running, active, X, w, log_resp, bound, last)
        if len(active) == 0:
            break
        new, degenerate, rescued = _m_step_with_rescue(X, w, log_resp.exp(), kind, reg_covar, rescue)
        status[active] |= SINGULAR * degenerate | RESCUED * rescued
        done = ((bound - last).abs() < tol) & ~rescued
        last = bound.masked_fill(rescued, -math.inf)  # after a rescue the bound may fall: no convergence test
        active, X, w, last, done, *updated = _select(~degenerate, active, X, w, last, done, *new[:3])
        for t, part in zip(parameters, updated, strict=True):
            t[active] = part
        n_iter[active] += 1
        status[active] |= CONVERGED * done
        if report is not None:
            report(iteration + 1, max_iter)
        if len(active) == 0:
            break
    lower_bounds = torch.stack(bounds, 1)[:, : int(n_iter.max()) + 1]
    return Fitted._make((*parameters, log_likelihood, lower_bounds, n_iter, status, variances))


def _m_step_with_rescue(
    X: Tensor, w: Tensor, resp: Tensor, kind: str, reg_covar: float, rescue: bool
) -> tuple[Mixture, Tensor, Tensor]:
    """The M-step, whether it is degenerate, and whether a component was reinitialized to prevent that, both `[P]`."""
    new = formulas.m_step(X, resp, covariance_type=kind, sample_weight=w, reg_covar=reg_covar)
    degenerate = degenerate_components(new)  # [P, K]
    rescued = torch.zeros_like(degenerate[:, 0])
    for _ in range(resp.shape[-1] if rescue else 0):
        fixable = degenerate.any(-1) & ~degenerate.all(-1)
        if not fixable.any():
            break
        resp = torch.where(fixable[:, None, None], _split_widest(X, w, resp, degenerate), resp)
        new = formulas.m_step(X, resp, covariance_type=kind, sample_weight=w, reg_covar=reg_covar)
        degenerate, rescued = degenerate_components(new), rescued | fixable
    return new, degenerate.any(-1), rescued & ~degenerate.any(-1)


def _more_likely_start(
    X: Tensor, w: Tensor, *starts: tuple[Mixture, Tensor, Tensor], reg_covar: float, rescue: bool
) -> tuple[Mixture, Tensor, Tensor]:
    """Of two starts of each problem, the one with the higher likelihood after a step of EM, or the first in a tie.

    Starts are as returned by `_m_step_with_rescue`; the likelihood of a degenerate one counts as 0.
    """
    likelihood = []
    for mixture, degenerate, _ in starts:
        log_resp, _ = formulas.e_step(X, mixture)
        next_mixture, next_degenerate, _ = _m_step_with_rescue(
            X, w, log_resp.exp(), mixture.covariance_type, reg_covar, rescue
        )
        total = (w * formulas.e_step(X, next_mixture)[1]).sum(-1).nan_to_num(-math.inf)
        likelihood.append(total.masked_fill(degenerate | next_degenerate, -math.inf))
    use_second = likelihood[1] > likelihood[0]
    (a, *flags_a), (b, *flags_b) = starts
    weights, means, covariances = (
        torch.where(_broadcastable(use_second, s), t, s) for s, t in zip(a[:3], b[:3], strict=True)
    )
    degenerate, rescued = (torch.where(use_second, t, s) for s, t in zip(flags_a, flags_b, strict=True))
    return Mixture(weights, means, covariances, a.covariance_type), degenerate, rescued


def degenerate_components(mixture: Mixture) -> Tensor:
    """Whether each component has no rows or no density, `[*batch, K]`; all if a tied covariance is degenerate."""
    weights, _, covariances, kind = mixture
    empty = weights == 0
    if kind in ("full", "tied"):
        valid = torch.linalg.cholesky_ex(covariances.nan_to_num()).info == 0
        valid &= covariances.isfinite().all(-1).all(-1)
    else:
        valid = (covariances > 0) & covariances.isfinite()
        valid = valid.all(-1) if kind == "diag" else valid
    if kind == "tied":
        valid = valid[..., None] | empty.any(-1, keepdim=True)
    return empty | ~valid


def _split_widest(X: Tensor, w: Tensor, resp: Tensor, degenerate: Tensor) -> Tensor:
    """Responsibilities with the first degenerate component of each problem reinitialized.

    Its rows are assigned to the other components. It then takes the upper half of the component with the largest
    weighted variance, split at the mean of its widest feature.
    Source: VLFeat's Gaussian mixtures (2013), which does this for an empty mode.
    """
    i = degenerate.long().argmax(-1)  # [P]
    p = torch.arange(len(X), device=X.device)
    split = formulas.m_step(X, resp, covariance_type="diag", sample_weight=w)
    variance, feature = split.covariances.max(-1)  # [P, K]
    j = (split.weights * variance).nan_to_num(-1.0).masked_fill(degenerate, -1.0).argmax(-1)  # [P]
    d = feature[p, j]  # [P]
    upper = X[p, :, d] > split.means[p, j, d][:, None]  # [P, N]
    rest = resp.clone()
    rest[p, :, i] = 0.0
    total = rest.sum(-1, keepdim=True)
    rest = torch.where(total > 0, rest / total, torch.nn.functional.one_hot(j, resp.shape[-1]).to(resp)[:, None])
    rest[p, :, i] = rest[p, :, j] * upper
    rest[p, :, j] *= ~upper
    return rest


def _best_of(a: Fitted, b: Fitted) -> Fitted:
    """Of two fits of each problem, the one that is not degenerate, or with the higher bound; `a` in a tie."""

    def rank(fitted: Fitted) -> tuple[Tensor, Tensor]:
        last = fitted.lower_bounds.gather(1, fitted.n_iter[:, None])[:, 0]
        return fitted.status & SINGULAR == 0, last.nan_to_num(-math.inf, posinf=math.inf, neginf=-math.inf)

    (valid_a, bound_a), (valid_b, bound_b) = rank(a), rank(b)
    use_second = torch.where(valid_a == valid_b, bound_b > bound_a, valid_b)
    length = max(a.lower_bounds.shape[1], b.lower_bounds.shape[1])
    a, b = (f._replace(lower_bounds=_pad(f.lower_bounds, length)) for f in (a, b))
    best = Fitted._make(torch.where(_broadcastable(use_second, s), t, s) for s, t in zip(a, b, strict=True))
    return best._replace(lower_bounds=best.lower_bounds[:, : int(best.n_iter.max()) + 1])


def _pad(bounds: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(bounds, (0, length - bounds.shape[1]), value=math.nan)


def _broadcastable(mask: Tensor, t: Tensor) -> Tensor:
    """A mask `[B]`, reshaped to broadcast against t `[B, ...]`."""
    return mask.reshape(-1, *[1] * (t.dim() - 1))


def _select(mask: Tensor, *tensors: Tensor) -> list[Tensor]:
    """The problems selected by the mask; no copy if all are."""
    return list(tensors) if mask.all() else [t[mask] for t in tensors]
