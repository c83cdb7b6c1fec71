"""The reference engine of `fastvae.regression`: many problems at once, by QR, with rank, condition and status.

An engine is a module with `fit`, `accumulate`, `merge`, `solve` and `target_exponents` as here; `fastvae.regression`
checks the arguments and calls the one that serves them. All it hands over are tensors of one device:

    X              `[B, N, P]`  float32 or float64, any strides
    y              `[B, N, R]`  float32 or float64, of its own dtype, any strides
    sample_weight  `[B, N]`     float64, finite, >= 0; or None for ones

and all that comes back is float64, counts and status int64. Values of X and y are not looked at before: a problem with
inf or NaN comes back with NaN everywhere, and NONFINITE in its own status only; `solve` answers the targets beside
those that hold them. Status flags are the numbers of `fastvae.Status`. This engine also takes B = 0 and P = 0, and is
differentiable where the columns are independent.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import formulas
from .formulas import Centred, Solution
from .solve import EPS, by_rows, minimum_norm

NONFINITE, TOO_FEW_ROWS, RANK_DEFICIENT = 16, 32, 256
SMALL_RIDGE = 1e-2  # of the squared length of a column
UNEVEN = 2.0**20  # weights, of one another: QR without pivots may round light rows away
LEAST, MOST = 1e-140, 1e140  # magnitudes whose squares, and the small parts of these in double-double, are in range


class Fitted(NamedTuple):
    """What `fit` and `solve` return."""

    coef: Tensor  # [B, R, P]
    intercept: Tensor  # [B, R], 0 without one
    standard_errors: Tensor  # [B, R, P]
    intercept_standard_error: Tensor  # [B, R]
    sigma2: Tensor  # [B, R] RSS / N
    sigma2_unbiased: Tensor  # [B, R] RSS / df, NaN where df <= 0 or alpha > 0
    log_likelihood: Tensor  # [B, R]
    r2: Tensor  # [B, R]
    rss: Tensor  # [B, R]
    condition: Tensor  # [B] of the centred columns at unit norm; inf where they are dependent
    rank: Tensor  # [B] int64, of the centred columns
    rows: Tensor  # [B] int64, of positive weight
    df: Tensor  # [B] int64, rows - rank - fit_intercept
    status: Tensor  # [B] int64
    mean_x: Tensor  # [B, P], 0 without an intercept, as all of these
    small_mean_x: Tensor  # [B, P], what rounding left of these
    mean_y: Tensor  # [B, R]
    total_weight: Tensor  # [B]
    inverse_gram: Callable[[], Tensor]  # () -> [B, P, P]: V, with Var coef = sigma2_unbiased V


OF_TARGETS = ("intercept", "intercept_standard_error", "mean_y")  # in their units
OVER_TARGETS = (*Fitted._fields[:9], "mean_y")


class Sums(NamedTuple):
    """What is kept of rows: the triangle T of a QR of [1 X y], or [X y], each row times the root of its weight.

    T'T is the Gram matrix, which would have the square of T's condition. Picklable.
    """

    triangle: Tensor  # [B, K, K], K = P + R + fit_intercept
    rows: Tensor  # [B] int64, of positive weight
    total_weight: Tensor  # [B]
    log_weight: Tensor  # [B] sum_n log w_n over w_n > 0
    lost: Tensor  # [B, R] bool: targets with inf or NaN, in whose place are zeros
    P: int
    fit_intercept: bool


def fit(
    X: Tensor, y: Tensor, *, sample_weight: Tensor | None, alpha: float, fit_intercept: bool, precision: str
) -> Fitted:
    """Fit each problem. Every precision is QR in float64 here."""
    X, y, w = X.to(torch.float64), y.to(torch.float64), _weights(X, sample_weight)
    return _answered(formulas.centre(X, y, w[..., None], fit_intercept), alpha, fit_intercept, (X, y, w))


def accumulate(
    sums: Sums | None, X: Tensor, y: Tensor, *, sample_weight: Tensor | None, fit_intercept: bool, precision: str
) -> Sums:
    """The sums with the rows of X and y added; None for none yet."""
    w = _weights(X, sample_weight)  # [B, N]
    X, y = (formulas.without_ignored(t, w[..., None]) for t in (X, y))
    lost = ~y.isfinite().all(1)  # [B, R]
    y = y.masked_fill(lost[:, None], 0.0)
    root = w.sqrt()[..., None]
    columns = [root] if fit_intercept else []
    columns += [root * X, root * y]
    rows = torch.cat(columns, -1)  # [B, N, K]
    new = Sums(
        _triangle(rows.new_zeros(len(rows), rows.shape[-1], rows.shape[-1]), rows),
        (w > 0).sum(-1),
        w.sum(-1),
        formulas.log_weight(w).sum(-1),
        lost,
        X.shape[-1],
        fit_intercept,
    )
    return new if sums is None else merge(sums, new)


def merge(sums: Sums, other: Sums) -> Sums:
    """The sums of the rows of both."""
    return sums._replace(
        triangle=_triangle(sums.triangle, other.triangle),
        rows=sums.rows + other.rows,
        total_weight=sums.total_weight + other.total_weight,
        log_weight=sums.log_weight + other.log_weight,
        lost=sums.lost | other.lost,
    )


def target_exponents(sums: Sums) -> Tensor | None:
    """What `solve` takes the targets divided by, powers of two `[B, R]`; None where it takes them as they are."""
    peak = sums.triangle[..., sums.P + int(sums.fit_intercept) :].abs().amax(1)
    wild = ((peak > MOST) | (peak < LEAST) & (peak > 0)) & peak.isfinite()
    return torch.where(wild, torch.frexp(peak).exponent, 0) if wild.any() else None


def solve(sums: Sums, *, alpha: float) -> Fitted:
    """Fit each problem: the triangle is a data set of K rows with the same sums of squares, its first row the means.

    Targets and what follows from them are in units of 2^`target_exponents`.
    """
    T, P = sums.triangle, sums.P
    first = int(sums.fit_intercept)
    if (exponents := target_exponents(sums)) is not None:
        T = torch.cat([T[..., : first + P], times(T[..., first + P :], -exponents[:, None])], -1)
    mean_x, mean_y = torch.zeros_like(T[:, :1, first : first + P]), torch.zeros_like(T[:, :1, first + P :])
    if first:
        mean_x, mean_y = T[:, :1, 1 : 1 + P] / T[:, :1, :1], T[:, :1, 1 + P :] / T[:, :1, :1]
    A, c = T[:, first:, first : first + P], T[:, first:, first + P :]
    counts = (t[:, None] for t in (sums.total_weight, sums.log_weight, sums.rows))
    whole = sums.lost.all(1)
    c = c.masked_fill(whole[:, None, None], math.nan)
    fitted = _answered(Centred(A, c, mean_x, torch.zeros_like(mean_x), mean_y, *counts), alpha, sums.fit_intercept)
    some = sums.lost & ~whole[:, None]
    return mark_lost(fitted, some) if some.any() else fitted


def _weights(X: Tensor, sample_weight: Tensor | None) -> Tensor:
    return X.new_ones(X.shape[:2], dtype=torch.float64) if sample_weight is None else sample_weight


def _triangle(upper: Tensor, lower: Tensor) -> Tensor:
    return torch.linalg.qr(torch.cat([upper, lower], -2), mode="r").R


def _answered(
    data: Centred, alpha: float, fit_intercept: bool, rows: tuple[Tensor, Tensor, Tensor] | None = None
) -> Fitted:
    """Problems of independent columns by least squares, those of dependent ones by minimum norm, those of weights far
    apart, for which X, y and w as they are given have to be known, by QR with pivots, the others NaN.
    """
    empty = (data.total_weight == 0)[:, 0]  # [B]
    finite = torch.stack([t.detach().square().sum((1, 2)).isfinite() for t in (data.c, data.mean_y)]).all(0)
    finite &= data.A.detach().isfinite().all(-1).all(-1)  # by columns scaled, their squares are in range
    sound = finite & ~empty
    solution = formulas.least_squares(data, alpha)
    length, allowed = _lengths(data)
    independent = _are_independent(solution, length, allowed)
    alone = independent  # without the rows of a ridge, which are too small to tell dependent columns apart
    if alpha > 0:
        own = data.A.detach().norm(dim=-2)  # about the means: a ridge has its solution for whatever columns are left
        length = torch.where(own > allowed * length, own, length)
        if (alpha < SMALL_RIDGE * own.square()).any():
            few = data.A.shape[-2] < data.A.shape[-1]
            bare = solution if few else formulas.least_squares(data)
            alone = torch.zeros_like(alone) if few else _are_independent(bare, length, allowed)
    uneven, exact = torch.zeros_like(sound), None
    if rows is not None and rows[2].shape[1] > 0:
        uneven = sound & are_uneven(rows[2].detach(), UNEVEN)
        if uneven.any():
            X, y, w = (t.detach()[uneven] for t in rows)
            exact = by_rows(X, y, w, alpha, fit_intercept)
            independent = independent.clone()
            independent[uneven] = exact.independent | (alpha > 0)

    deficient = sound & ~independent
    status = NONFINITE * (~finite & ~empty) + TOO_FEW_ROWS * empty + RANK_DEFICIENT * deficient  # [B]
    if not status.any() and (alone & ~uneven).all():
        return _fitted(data, solution, alpha, fit_intercept, status)
    fitted = _blank(data, fit_intercept, status)

    def plain(part: Centred, at: Tensor) -> Solution:
        return formulas.least_squares(part, alpha)

    def shortest(part: Centred, at: Tensor) -> Solution:
        return minimum_norm(part, alpha, length[at], allowed[at])

    def with_ridge(part: Centred, at: Tensor) -> Solution:
        return _with_coef(plain(part, at), shortest(part, at).coef)

    def row_by_row(part: Centred, at: Tensor) -> Solution:
        assert exact is not None  # where there are such problems
        coef, root, total, _ = (t[independent[uneven]] for t in exact)
        own = _with_coef(plain(part, at), coef)
        if own.coef.requires_grad:
            return own
        # Of the squares left, those of a ridge are taken off; or RSS is summed up, where that loses fewer digits.
        rss, length = (part.c - part.A @ coef).square().sum(-2), part.c.square().sum(-2)  # [b, R]
        rss = torch.where(total < EPS * length, total - alpha * coef.square().sum(-2), rss)
        return own._replace(coef=coef, root=root * own.scale.mT, rss=rss if alpha > 0 else total)

    calm = ~uneven & ~deficient
    methods = {plain: calm & alone, with_ridge: calm & ~alone, row_by_row: uneven & ~deficient, shortest: deficient}
    for solve, problems in methods.items():
        at = (sound & problems).nonzero()[:, 0]
        if len(at):  # each method by itself: gradients of the others would be NaN
            part = Centred(*(t[at] for t in data))
            fitted = put(fitted, at, _fitted(part, solve(part, at), alpha, fit_intercept, status[at]))
    return fitted


def _lengths(data: Centred) -> tuple[Tensor, Tensor]:
    """The length of each column before centring, `[B, P]`, and what rounding leaves of 1 where a column is a
    combination of others, or constant: a few eps, `[B, 1]`.
    """
    A, mean_x, total_weight = (t.detach() for t in (data.A, data.mean_x, data.total_weight))
    unit = formulas.power_of_two(A, mean_x.abs())  # [B, 1, P]
    squares = (A / unit).square().sum(-2) + total_weight * (mean_x / unit)[:, 0].square()
    return squares.sqrt() * unit[:, 0], 8 * EPS * (A.shape[-1] + data.rows.sqrt())


def _are_independent(solution: Solution, length: Tensor, allowed: Tensor) -> Tensor:
    """Whether each column lies farther from the span of the others than rounding can tell, `[B]`."""
    distance = solution.scale[:, 0] / solution.root.detach().norm(dim=-1)  # [B, P]
    return (distance > allowed * length).all(-1)


def are_uneven(w: Tensor, ratio: float) -> Tensor:
    """Whether some of the weights `[B, N]` are more than so many times others, `[B]`."""
    return w.amax(1) > ratio * w.masked_fill(w == 0, math.inf).amin(1)


def _with_coef(solution: Solution, coef: Tensor) -> Solution:
    """The solution with more exact coefficients; gradients are its own."""
    own = solution.coef
    return solution._replace(coef=coef.detach() + torch.where(own.isfinite(), own - own.detach(), 0.0))


def _fitted(data: Centred, solution: Solution, alpha: float, fit_intercept: bool, status: Tensor) -> Fitted:
    estimates = formulas.estimates(data, solution, alpha, fit_intercept)
    rows = data.rows[:, 0]
    rank = torch.zeros_like(rows) + (solution.rank if isinstance(solution.rank, int) else solution.rank[:, 0])

    def inverse_gram() -> Tensor:
        F = solution.root / solution.scale.mT
        return F @ F.mT

    return Fitted(
        **estimates._asdict(),
        condition=_condition(solution),
        rank=rank,
        rows=rows,
        df=rows - rank - int(fit_intercept),
        status=status,
        mean_x=data.mean_x[:, 0],
        small_mean_x=data.small_mean_x[:, 0],
        mean_y=data.mean_y[:, 0],
        total_weight=data.total_weight[:, 0],
        inverse_gram=inverse_gram,
    )


def _condition(solution: Solution) -> Tensor:
    """sqrt(|G|_1 |G^-1|_1) for the Gram matrix G of the columns at unit norm, `[B]`."""
    if solution.triangle is None:
        return solution.root.new_full(solution.root.shape[:1], math.inf)
    T, inverse = solution.triangle.detach(), solution.root.detach()
    if T.shape[-1] == 0:
        return T.new_ones(T.shape[:1])
    length = T.norm(dim=-2, keepdim=True)  # [B, 1, P]
    T, inverse = T / length, inverse * length.mT
    norms = ((M.mT @ M).abs().sum(-1).amax(-1) for M in (T, inverse.mT))
    return math.prod(norms).sqrt()


def _blank(data: Centred, fit_intercept: bool, status: Tensor) -> Fitted:
    """NaN for all problems."""
    (B, _, P), R, rows = data.A.shape, data.c.shape[-1], data.rows[:, 0]
    over = {"RP": (B, R, P), "R": (B, R), "P": (B, P), "": (B,)}
    nan = {dims: data.A.new_full(shape, math.nan) for dims, shape in over.items()}
    return Fitted(
        coef=nan["RP"],
        intercept=nan["R"],
        standard_errors=nan["RP"],
        intercept_standard_error=nan["R"],
        sigma2=nan["R"],
        sigma2_unbiased=nan["R"],
        log_likelihood=nan["R"],
        r2=nan["R"],
        rss=nan["R"],
        condition=nan[""],
        rank=torch.zeros_like(rows),
        rows=rows,
        df=rows - int(fit_intercept),
        status=status,
        mean_x=nan["P"],
        small_mean_x=nan["P"],
        mean_y=nan["R"],
        total_weight=data.total_weight[:, 0],
        inverse_gram=lambda: data.A.new_full((B, P, P), math.nan),
    )


def put(fitted: Fitted, at: Tensor, part: Fitted) -> Fitted:
    """The results, with those of the problems `at`."""
    whole, parts = fitted._asdict(), part._asdict()
    inverse_gram, inverse_part = whole.pop("inverse_gram"), parts.pop("inverse_gram")
    tensors = {name: whole[name].index_copy(0, at, parts[name]) for name in whole}
    return Fitted(**tensors, inverse_gram=lambda: inverse_gram().index_copy(0, at, inverse_part()))


def times(t: Tensor, exponent: Tensor) -> Tensor:
    """t 2^exponent, in parts that do not overflow where the whole does not."""
    part = torch.div(exponent, 4, rounding_mode="trunc")
    rest = exponent - 3 * part
    for e in (part, part, part, rest):
        t = t * torch.exp2(e.to(torch.float64))
    return t


def scale_targets(fitted: Fitted, exponents: Tensor) -> Fitted:
    """The results for targets times 2^exponents, `[B, R]`."""
    by_log = math.log(2) * (fitted.rows[:, None] * exponents).to(torch.float64)
    scaled: dict[str, Any] = {name: times(getattr(fitted, name), exponents) for name in OF_TARGETS}
    scaled |= {name: times(getattr(fitted, name), exponents[..., None]) for name in ("coef", "standard_errors")}
    scaled |= {name: times(getattr(fitted, name), 2 * exponents) for name in ("sigma2", "sigma2_unbiased", "rss")}
    return fitted._replace(**scaled, log_likelihood=fitted.log_likelihood - by_log)


def mark_lost(fitted: Fitted, lost: Tensor) -> Fitted:
    """The results, NaN and NONFINITE in the problems `lost` `[B]`; or in the targets `[B, R]`."""

    def nan(t: Tensor) -> Tensor:
        return t.masked_fill(lost.reshape(*lost.shape, *[1] * (t.dim() - lost.dim())), math.nan)

    whole = fitted._asdict()
    inverse_gram = whole.pop("inverse_gram")
    names: tuple[str, ...] = OVER_TARGETS
    inverse = inverse_gram
    if lost.dim() == 2:
        whole["status"] = fitted.status | NONFINITE * lost.any(1)
    else:
        names, inverse = tuple(name for name, t in whole.items() if t.is_floating_point()), lambda: nan(inverse_gram())
        whole["status"] = torch.where(lost, NONFINITE, fitted.status)
    return Fitted(**whole | {name: nan(whole[name]) for name in names}, inverse_gram=inverse)
