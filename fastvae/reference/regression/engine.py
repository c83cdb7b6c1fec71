"""The reference engine of `fastvae.regression`: a batch of problems by QR, with rank, condition and status.

An engine is a module with the functions `fit`, `accumulate`, `merge`, `solve` and `target_exponents` of this one.
`fastvae.regression` checks the arguments and calls the engine of the chosen backend. It passes tensors on one device:

    X              `[B, N, P]`  float32 or float64, any strides
    y              `[B, N, R]`  float32 or float64, of its own dtype, any strides
    sample_weight  `[B, N]`     float64, finite, >= 0; or None for ones

Results are float64, counts and status int64. The values of X and y are not checked before: the results of a problem
with inf or NaN are NaN, and only its own status is NONFINITE; `solve` still solves for targets without inf or NaN.
Status flags are the integers of `fastvae.Status`. This engine also supports B = 0 and P = 0, and is differentiable if
the columns are independent.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import formulas
from .formulas import Centred, Solution
from .solve import EPS, minimum_norm, rowwise_qr

NONFINITE, TOO_FEW_ROWS, RANK_DEFICIENT = 16, 32, 256
SMALL_RIDGE = 1e-2  # relative to the squared norm of a column
UNEVEN_RATIO = 2.0**20  # ratio of weights above which QR without pivoting may lose light rows to rounding
MIN_MAGNITUDE, MAX_MAGNITUDE = 1e-140, 1e140  # of numbers whose squares in double-double are in range


class Fitted(NamedTuple):
    """The result of `fit` and `solve`."""

    coef: Tensor  # [B, R, P]
    intercept: Tensor  # [B, R], 0 if not estimated
    standard_errors: Tensor  # [B, R, P]
    intercept_standard_error: Tensor  # [B, R]
    sigma2: Tensor  # [B, R] RSS / N
    sigma2_unbiased: Tensor  # [B, R] RSS / df, NaN where df <= 0 or alpha > 0
    log_likelihood: Tensor  # [B, R]
    r2: Tensor  # [B, R]
    rss: Tensor  # [B, R]
    condition: Tensor  # [B] of the centred columns at unit norm; inf if they are dependent
    rank: Tensor  # [B] int64, of the centred columns
    rows: Tensor  # [B] int64, of positive weight
    df: Tensor  # [B] int64, rows - rank - fit_intercept
    status: Tensor  # [B] int64
    mean_x: Tensor  # [B, P], 0 without an intercept, like small_mean_x and mean_y
    small_mean_x: Tensor  # [B, P], rounding error of mean_x
    mean_y: Tensor  # [B, R]
    total_weight: Tensor  # [B]
    inverse_gram: Callable[[], Tensor]  # () -> [B, P, P]: V, with Var coef = sigma2_unbiased V


SCALED_WITH_TARGETS = ("intercept", "intercept_standard_error", "mean_y")  # in the units of y
PER_TARGET = (*Fitted._fields[:9], "mean_y")


class Sums(NamedTuple):
    """A summary of rows: the triangular factor T of [1 X y], or [X y], with each row times the root of its weight.

    T'T is the Gram matrix, whose condition number is the square of T's. Picklable.
    """

    triangle: Tensor  # [B, K, K], K = P + R + fit_intercept
    rows: Tensor  # [B] int64, of positive weight
    total_weight: Tensor  # [B]
    log_weight: Tensor  # [B] sum_n log w_n over w_n > 0
    nonfinite: Tensor  # [B, R] bool: targets with inf or NaN, which are replaced by zeros
    P: int
    fit_intercept: bool


def fit(
    X: Tensor, y: Tensor, *, sample_weight: Tensor | None, alpha: float, fit_intercept: bool, precision: str
) -> Fitted:
    """Fit each problem, by QR in float64 for every ``precision``."""
    X, y, w = X.to(torch.float64), y.to(torch.float64), _weights(X, sample_weight)
    return _solve_problems(formulas.centre(X, y, w[..., None], fit_intercept), alpha, fit_intercept, (X, y, w))


def accumulate(
    sums: Sums | None, X: Tensor, y: Tensor, *, sample_weight: Tensor | None, fit_intercept: bool, precision: str
) -> Sums:
    """Add the rows of X and y to the sums, None if there are none yet."""
    w = _weights(X, sample_weight)  # [B, N]
    X, y = (formulas.zero_ignored_rows(t, w[..., None]) for t in (X, y))
    nonfinite = ~y.isfinite().all(1)  # [B, R]
    y = y.masked_fill(nonfinite[:, None], 0.0)
    root = w.sqrt()[..., None]
    columns = [root] if fit_intercept else []
    columns += [root * X, root * y]
    rows = torch.cat(columns, -1)  # [B, N, K]
    new = Sums(
        _triangle(rows.new_zeros(len(rows), rows.shape[-1], rows.shape[-1]), rows),
        (w > 0).sum(-1),
        w.sum(-1),
        formulas.log_weight(w).sum(-1),
        nonfinite,
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
        nonfinite=sums.nonfinite | other.nonfinite,
    )


def target_exponents(sums: Sums) -> Tensor | None:
    """Exponents `[B, R]` of the powers of two by which `solve` divides the targets; None if it does not scale them."""
    peak = sums.triangle[..., sums.P + int(sums.fit_intercept) :].abs().amax(1)
    extreme = ((peak > MAX_MAGNITUDE) | (peak < MIN_MAGNITUDE) & (peak > 0)) & peak.isfinite()
    return torch.where(extreme, torch.frexp(peak).exponent, 0) if extreme.any() else None


def solve(sums: Sums, *, alpha: float) -> Fitted:
    """Fit each problem: the triangle is a data set of K rows with the same sums of squares, its first row the means.

    Targets, and results in their units, are divided by 2^`target_exponents`.
    """
    T, P = sums.triangle, sums.P
    first = int(sums.fit_intercept)
    if (exponents := target_exponents(sums)) is not None:
        T = torch.cat([T[..., : first + P], ldexp(T[..., first + P :], -exponents[:, None])], -1)
    mean_x, mean_y = torch.zeros_like(T[:, :1, first : first + P]), torch.zeros_like(T[:, :1, first + P :])
    if first:
        mean_x, mean_y = T[:, :1, 1 : 1 + P] / T[:, :1, :1], T[:, :1, 1 + P :] / T[:, :1, :1]
    A, c = T[:, first:, first : first + P], T[:, first:, first + P :]
    counts = (t[:, None] for t in (sums.total_weight, sums.log_weight, sums.rows))
    all_nonfinite = sums.nonfinite.all(1)
    c = c.masked_fill(all_nonfinite[:, None, None], math.nan)
    data = Centred(A, c, mean_x, torch.zeros_like(mean_x), mean_y, *counts)
    fitted = _solve_problems(data, alpha, sums.fit_intercept)
    nonfinite_targets = sums.nonfinite & ~all_nonfinite[:, None]
    return mark_nonfinite(fitted, nonfinite_targets) if nonfinite_targets.any() else fitted


def _weights(X: Tensor, sample_weight: Tensor | None) -> Tensor:
    return X.new_ones(X.shape[:2], dtype=torch.float64) if sample_weight is None else sample_weight


def _triangle(upper: Tensor, lower: Tensor) -> Tensor:
    return torch.linalg.qr(torch.cat([upper, lower], -2), mode="r").R


def _solve_problems(
    data: Centred, alpha: float, fit_intercept: bool, rows: tuple[Tensor, Tensor, Tensor] | None = None
) -> Fitted:
    """Solve each problem by the method it needs; problems that cannot be fitted are NaN.

    Problems with independent columns are solved by least squares, those with dependent columns by minimum norm, and
    those with very uneven weights by QR with pivoting, which needs ``rows``: X, y and w as given.
    """
    empty = (data.total_weight == 0)[:, 0]  # [B]
    finite = torch.stack([t.detach().square().sum((1, 2)).isfinite() for t in (data.c, data.mean_y)]).all(0)
    finite &= data.A.detach().isfinite().all(-1).all(-1)  # columns are scaled before they are squared
    solvable = finite & ~empty
    solution = formulas.least_squares(data, alpha)
    length, allowed = _lengths(data)
    independent = _are_independent(solution, length, allowed)
    full_rank = independent  # without the rows of a ridge: if these are small, they cannot replace dependent columns
    if alpha > 0:
        norms = data.A.detach().norm(dim=-2)  # about the means: a ridge has a solution for whatever columns remain
        length = torch.where(norms > allowed * length, norms, length)
        if (alpha < SMALL_RIDGE * norms.square()).any():
            few_rows = data.A.shape[-2] < data.A.shape[-1]
            unpenalized = solution if few_rows else formulas.least_squares(data)
            full_rank = torch.zeros_like(full_rank) if few_rows else _are_independent(unpenalized, length, allowed)
    uneven, rowwise = torch.zeros_like(solvable), None
    if rows is not None and rows[2].shape[1] > 0:
        uneven = solvable & has_uneven_weights(rows[2].detach(), UNEVEN_RATIO)
        if uneven.any():
            X, y, w = (t.detach()[uneven] for t in rows)
            rowwise = rowwise_qr(X, y, w, alpha, fit_intercept)
            independent = independent.clone()
            independent[uneven] = rowwise.independent | (alpha > 0)

    deficient = solvable & ~independent
    status = NONFINITE * (~finite & ~empty) + TOO_FEW_ROWS * empty + RANK_DEFICIENT * deficient  # [B]
    if not status.any() and (full_rank & ~uneven).all():
        return _fitted(data, solution, alpha, fit_intercept, status)
    fitted = _blank(data, fit_intercept, status)

    def by_least_squares(part: Centred, at: Tensor) -> Solution:
        return formulas.least_squares(part, alpha)

    def by_minimum_norm(part: Centred, at: Tensor) -> Solution:
        return minimum_norm(part, alpha, length[at], allowed[at])

    def by_small_ridge(part: Centred, at: Tensor) -> Solution:
        return _with_coef(by_least_squares(part, at), by_minimum_norm(part, at).coef)

    def by_rowwise_qr(part: Centred, at: Tensor) -> Solution:
        assert rowwise is not None  # there are such problems
        coef, root, total, _ = (t[independent[uneven]] for t in rowwise)
        refined = _with_coef(by_least_squares(part, at), coef)
        if refined.coef.requires_grad:
            return refined
        # With a ridge, RSS is the total minus the squares of the ridge, or is summed, whichever is more accurate.
        rss, squares = (part.c - part.A @ coef).square().sum(-2), part.c.square().sum(-2)  # [b, R]
        rss = torch.where(total < EPS * squares, total - alpha * coef.square().sum(-2), rss)
        return refined._replace(coef=coef, root=root * refined.scale.mT, rss=rss if alpha > 0 else total)

    regular = ~uneven & ~deficient
    methods = {
        by_least_squares: regular & full_rank,
        by_small_ridge: regular & ~full_rank,
        by_rowwise_qr: uneven & ~deficient,
        by_minimum_norm: deficient,
    }
    for solve, problems in methods.items():
        at = (solvable & problems).nonzero()[:, 0]
        if len(at):  # only the problems of this method: gradients of the others would be NaN
            part = Centred(*(t[at] for t in data))
            fitted = insert(fitted, at, _fitted(part, solve(part, at), alpha, fit_intercept, status[at]))
    return fitted


def _lengths(data: Centred) -> tuple[Tensor, Tensor]:
    """The norm of each column before centring, `[B, P]`, and a relative tolerance of a few eps, `[B, 1]`.

    The tolerance is what rounding may leave of a column that is constant or a linear combination of others.
    """
    A, mean_x, total_weight = (t.detach() for t in (data.A, data.mean_x, data.total_weight))
    unit = formulas.power_of_two(A, mean_x.abs())  # [B, 1, P]
    squares = (A / unit).square().sum(-2) + total_weight * (mean_x / unit)[:, 0].square()
    return squares.sqrt() * unit[:, 0], 8 * EPS * (A.shape[-1] + data.rows.sqrt())


def _are_independent(solution: Solution, length: Tensor, allowed: Tensor) -> Tensor:
    """Whether the distance of each column from the span of the others exceeds rounding errors, `[B]`."""
    distance = solution.scale[:, 0] / solution.root.detach().norm(dim=-1)  # [B, P]
    return (distance > allowed * length).all(-1)


def has_uneven_weights(w: Tensor, ratio: float) -> Tensor:
    """Whether the largest of the weights `[B, N]` is more than ``ratio`` times the smallest positive one, `[B]`."""
    return w.amax(1) > ratio * w.masked_fill(w == 0, math.inf).amin(1)


def _with_coef(solution: Solution, coef: Tensor) -> Solution:
    """The solution with more accurate coefficients, but its own gradients."""
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
    """Condition number sqrt(|G|_1 |G^-1|_1) for the Gram matrix G of the columns at unit norm, `[B]`."""
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
    """Results that are NaN for all problems."""
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


def insert(fitted: Fitted, at: Tensor, part: Fitted) -> Fitted:
    """Replace the results of the problems ``at`` by those of ``part``."""
    fields, parts = fitted._asdict(), part._asdict()
    inverse_gram, inverse_part = fields.pop("inverse_gram"), parts.pop("inverse_gram")
    tensors = {name: fields[name].index_copy(0, at, parts[name]) for name in fields}
    return Fitted(**tensors, inverse_gram=lambda: inverse_gram().index_copy(0, at, inverse_part()))


def ldexp(t: Tensor, exponent: Tensor) -> Tensor:
    """t 2^exponent, in factors that do not overflow unless the result does."""
    part = torch.div(exponent, 4, rounding_mode="trunc")
    rest = exponent - 3 * part
    for e in (part, part, part, rest):
        t = t * torch.exp2(e.to(torch.float64))
    return t


def scale_targets(fitted: Fitted, exponents: Tensor) -> Fitted:
    """The results for targets times 2^exponents, `[B, R]`."""
    by_log = math.log(2) * (fitted.rows[:, None] * exponents).to(torch.float64)
    scaled: dict[str, Any] = {name: ldexp(getattr(fitted, name), exponents) for name in SCALED_WITH_TARGETS}
    scaled |= {name: ldexp(getattr(fitted, name), exponents[..., None]) for name in ("coef", "standard_errors")}
    scaled |= {name: ldexp(getattr(fitted, name), 2 * exponents) for name in ("sigma2", "sigma2_unbiased", "rss")}
    return fitted._replace(**scaled, log_likelihood=fitted.log_likelihood - by_log)


def mark_nonfinite(fitted: Fitted, mask: Tensor) -> Fitted:
    """Set the results of the problems in a mask `[B]`, or of the targets in a mask `[B, R]`, to NaN and NONFINITE."""

    def nan(t: Tensor) -> Tensor:
        return t.masked_fill(mask.reshape(*mask.shape, *[1] * (t.dim() - mask.dim())), math.nan)

    fields = fitted._asdict()
    inverse_gram = fields.pop("inverse_gram")
    names: tuple[str, ...] = PER_TARGET
    inverse = inverse_gram
    if mask.dim() == 2:
        fields["status"] = fitted.status | NONFINITE * mask.any(1)
    else:
        names, inverse = tuple(name for name, t in fields.items() if t.is_floating_point()), lambda: nan(inverse_gram())
        fields["status"] = torch.where(mask, NONFINITE, fitted.status)
    return Fitted(**fields | {name: nan(fields[name]) for name in names}, inverse_gram=inverse)
