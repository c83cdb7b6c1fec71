"""Linear regression as maximum likelihood: the specification.

The model of a target y_n given its regressors x_n is y_n = W x_n + b + eps_n with eps_n ~ N(0, sigma2 / w_n), so

    log L(W, b, sigma2) = sum_n log N(y_n; W x_n + b, sigma2 / w_n)
                        = -1/2 sum_n [log(2 pi sigma2) - log w_n + w_n (y_n - W x_n - b)^2 / sigma2].

W and b appear only in the squares, so for every sigma2 their maximum likelihood estimates minimise the (weighted) mean
square error. Setting d log L / d sigma2 = 0 there gives sigma2 = RSS / N, RSS = sum_n w_n (y_n - W x_n - b)^2.

Arguments, the same in every function, for N rows, P regressors, R targets:

    X              `[*batch, N, P]`                     regressors, without a column of ones
    y              `[*batch, N]` or `[*batch, N, R]`    one target, or several if y has as many dims as X
    coef           `[*batch, P]` or `[*batch, R, P]`    W, like scikit-learn's `coef_` and torch.nn.Linear's weight
    intercept      `[*batch]` or `[*batch, R]`          b
    sigma2         `[*batch]` or `[*batch, R]`          noise variance of a row of weight 1
    sample_weight  `[*batch, N]`                        w >= 0, or None for ones

Leading dims `*batch` are independent problems. Results have the promoted dtype of the arguments, float32 at least,
since there are no half-precision factorisations; log likelihoods are in nats. Arguments are not checked: an undefined
result is inf or NaN, and only in its own problem of a batch.
"""

import math
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor


class RegressionFit(NamedTuple):
    """A fitted regression, or a batch of them. N counts the rows with w > 0.

    Attributes
    ----------
    coef, intercept : Tensor
        W, `[*batch, P]` or `[*batch, R, P]`, and b, `[*batch]` or `[*batch, R]`; b is 0 if it is not estimated.
    sigma2 : Tensor
        The maximum likelihood estimate RSS / N, `[*batch]` or `[*batch, R]`, like all that follow but standard_errors.
    sigma2_unbiased : Tensor
        RSS / df, df = N - P - 1, or N - P without an intercept; statsmodels' `scale`. NaN if df <= 0, and with a ridge,
        for which no df makes it unbiased.
    standard_errors : Tensor
        Of coef, from sigma2_unbiased, `[*batch, P]` or `[*batch, R, P]`; statsmodels' `bse`. NaN if sigma2_unbiased is
        NaN: with a ridge, coef is biased, and its standard deviation alone would be mistaken for its error.
    intercept_standard_error : Tensor
        Of the intercept, likewise; 0 if it is not estimated.
    log_likelihood : Tensor
        log L at coef, intercept and sigma2, in nats, without the ridge; statsmodels' `llf`. +inf if RSS = 0.
    r2 : Tensor
        1 - RSS / TSS, TSS about the mean of y, or about 0 without an intercept; statsmodels' `rsquared`. NaN if TSS is
        0.
    rss : Tensor
        sum_n w_n (y_n - W x_n - b)^2; statsmodels' `ssr`.
    """

    coef: Tensor
    intercept: Tensor
    sigma2: Tensor
    sigma2_unbiased: Tensor
    standard_errors: Tensor
    intercept_standard_error: Tensor
    log_likelihood: Tensor
    r2: Tensor
    rss: Tensor


def fit(
    X: Tensor,
    y: Tensor,
    *,
    fit_intercept: bool = True,
    sample_weight: Tensor | None = None,
    ridge: float = 0.0,
) -> RegressionFit:
    """Maximise the likelihood over W, b and sigma2, with standard errors of W and b.

    With Xc and yc the data minus their weighted means (without an intercept, the data themselves), and D = diag(w):

        W = (Xc'D Xc + ridge I)^-1 Xc'D yc,    b = ybar - W xbar,    sigma2 = RSS / N,

        Var W = sigma2_unbiased V,    V = (Xc'D Xc)^-1,    Var b = sigma2_unbiased (1 / sum_n w_n + xbar'V xbar).

    Several targets share only X and w: each has its own W, b and sigma2.

    Parameters
    ----------
    X, y, sample_weight
        See the module docstring. The variance of a row is sigma2 / w: a weight of 2 gives the same W and b as repeating
        the row, but counts as one row in N and df. Rows of weight 0 are ignored.
    fit_intercept : bool
        Whether to estimate b; otherwise it is 0.
    ridge : float
        Penalty on the sum of squares of W, in the units of X; b is not penalized.

    Returns
    -------
    RegressionFit
        Differentiable in X and y, and in sample_weight where it is > 0, if the columns are independent.

    Notes
    -----
    Rank deficiency is not detected. A pivot of exactly 0 (a zero column, fewer rows than columns) makes a coefficient
    inf or NaN, and RSS and everything computed from it NaN. If rounding leaves a pivot near 0 instead, the coefficients
    are meaningless, and very large standard errors are the only indication. With a ridge > 0 there is always a unique
    solution. P = 0 is allowed: b and sigma2 are then the mean and variance of y, the maximum likelihood fit of a normal
    distribution.

    Equivalent to ``statsmodels.api.WLS(y, add_constant(X), weights).fit()`` on the rows with w > 0, to
    ``LinearRegression`` and ``Ridge(alpha=ridge)`` in scikit-learn, and for W and b only to
    ``torch.linalg.lstsq(torch.cat([ones, X], -1), y)``.

    References
    ----------
    Björck, Numerical Methods for Least Squares Problems (1996), ch. 2.

    Examples
    --------
    >>> result = fit(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([1.0, 3.0, 5.0, 8.0]))
    >>> result.coef, result.intercept
    (tensor([2.3000]), tensor(0.8000))
    >>> result.sigma2, result.sigma2_unbiased  # RSS is 0.3: over N = 4, and over df = 2
    (tensor(0.0750), tensor(0.1500))
    """
    one_target = y.ndim < X.ndim
    w = X.new_ones(X.shape[:-1]) if sample_weight is None else sample_weight
    y = y[..., None] if one_target else y
    X, y, w = _promote(X, y, w[..., None])  # [*batch, N, P], [*batch, N, R], [*batch, N, 1]
    data = centre(X, y, w, fit_intercept)
    result = estimates(data, least_squares(data, ridge), ridge, fit_intercept)
    # Remove the dim of a single target: the last one, or the one before P (in a result with as many dims as X).
    return RegressionFit(*(t.squeeze(-2 if t.ndim == X.ndim else -1) for t in result)) if one_target else result


class Centred(NamedTuple):
    """Rows about their means, times the roots of their weights: the data of a least-squares problem."""

    A: Tensor  # [*batch, N, P] sqrt(w) (x - xbar)
    c: Tensor  # [*batch, N, R] sqrt(w) (y - ybar)
    mean_x: Tensor  # [*batch, 1, P] xbar, 0 without an intercept, like small_mean_x and mean_y
    small_mean_x: Tensor  # [*batch, 1, P] rounding error of xbar
    mean_y: Tensor  # [*batch, 1, R] ybar
    total_weight: Tensor  # [*batch, 1] sum_n w_n
    log_weight: Tensor  # [*batch, 1] sum_n log w_n over w_n > 0
    rows: Tensor  # [*batch, 1] number of rows with w_n > 0


class Solution(NamedTuple):
    """W, and the factor of its covariance: Var W = sigma2 V, V = F F' with F = root / scale'."""

    coef: Tensor  # [*batch, P, R] W'
    root: Tensor  # [*batch, P, P]
    scale: Tensor  # [*batch, 1, P] powers of two: the squares of F itself may be out of range
    triangle: Tensor | None  # [*batch, P, P] root^-1, if it exists
    rank: Tensor | int  # [*batch, 1] rank of A
    rss: Tensor | None = None  # [*batch, R], if it is known more accurately than from residuals


def centre(X: Tensor, y: Tensor, w: Tensor, fit_intercept: bool) -> Centred:
    """Centre X `[*batch, N, P]` and y `[*batch, N, R]`, with weights `[*batch, N, 1]`, all in one dtype."""
    X, y = zero_ignored_rows(X, w), zero_ignored_rows(y, w)
    # About the means, b drops out of the equations, and the condition number does not depend on the origin.
    total_weight = w.sum(-2)  # [*batch, 1]
    mean_x = small_x = torch.zeros_like(X[..., :1, :])  # [*batch, 1, P]
    mean_y = torch.zeros_like(y[..., :1, :])  # [*batch, 1, R]
    if fit_intercept:
        # Twice: the mean of the centred data is the rounding error of the first mean.
        mean_x, mean_y = ((w * v).sum(-2, keepdim=True) / total_weight[..., None] for v in (X, y))
        X, y = X - mean_x, y - mean_y
        small_x, small_y = ((w * v).sum(-2, keepdim=True) / total_weight[..., None] for v in (X, y))
        X, y, mean_y = X - small_x, y - small_y, mean_y + small_y
    root = w.sqrt()
    rows = (w > 0).sum(-2)
    return Centred(root * X, root * y, mean_x, small_x, mean_y, total_weight, log_weight(w).sum(-2), rows)


def least_squares(data: Centred, ridge: float = 0.0) -> Solution:
    """The W that minimises sum_n w_n (y_n - ybar - W (x_n - xbar))^2 + ridge |W|^2, by QR."""
    # The kernels form the Gram matrix of these columns and its Cholesky factor, which is this triangle up to signs. A
    # Gram matrix squares the condition number; kernels accept that to need one pass over X and no Q, and recover the
    # accuracy by refinement. The reference, which they are tested against, must be accurate by itself, hence QR.
    # The ridge is P more rows, sqrt(ridge) I, with 0 for y: their squares add the penalty to the RSS. They come first,
    # because a reflection that starts with them keeps entries that are tiny relative to them, and one that ends with
    # them rounds these away. If they are 0 they come last, so that with too few rows a pivot is exactly 0.
    A, c = data[:2]
    N, P = A.shape[-2:]
    scale = power_of_two(A, math.sqrt(ridge))  # [*batch, 1, P]
    ridge_rows = torch.diag_embed(math.sqrt(ridge) / scale[..., 0, :])  # [*batch, P, P]
    stacked = [ridge_rows, A / scale] if ridge > 0 else [A / scale, ridge_rows]
    Q, triangle = torch.linalg.qr(torch.cat(stacked, -2))  # [*batch, N + P, P], [*batch, P, P]
    z = (Q[..., P:, :] if ridge > 0 else Q[..., :N, :]).mT @ c  # [*batch, P, R]
    coef = torch.linalg.solve_triangular(triangle, z, upper=True) / scale.mT  # [*batch, P, R]
    # V = T^-1 T^-T for the triangle T.
    root = torch.linalg.solve_triangular(triangle, torch.eye(P).to(triangle), upper=True)  # [*batch, P, P]
    return Solution(coef, root, scale, triangle, P)


def estimates(data: Centred, solution: Solution, ridge: float, fit_intercept: bool) -> RegressionFit:
    """All estimates, given W; every field has the dim of targets."""
    A, c, mean_x, small_mean_x, mean_y, total_weight, log_weight, rows = data
    coef, root, scale = solution[:3]
    intercept = (mean_y - small_mean_x @ coef - mean_x @ coef)[..., 0, :]  # [*batch, R]

    # From the residuals: c'c - W A'c would suffer from cancellation if the fit is good.
    rss = (c - A @ coef).square().sum(-2) if solution.rss is None else solution.rss  # [*batch, R]
    r2 = 1 - rss / c.square().sum(-2)
    sigma2 = rss / rows
    df = rows - solution.rank - int(fit_intercept)  # [*batch, 1]
    sigma2_unbiased = (rss / df).masked_fill((df <= 0) | (ridge > 0), math.nan)  # [*batch, R]

    # diag V has the squared norms of the rows of F, and xbar'V xbar is the squared norm of xbar'F.
    noise = sigma2_unbiased.sqrt()  # [*batch, R]
    coef_error = root.norm(dim=-1)[..., None] / scale.mT * noise[..., None, :]  # [*batch, P, R]
    intercept_error = torch.zeros_like(rss)
    if fit_intercept:
        leverage = 1 / total_weight + ((mean_x / scale) @ root).square().sum(-1)  # [*batch, 1]
        intercept_error = leverage.sqrt() * noise  # [*batch, R]

    # `log_likelihood` at the maximum, where the squares divided by sigma2 sum to N: avoids 0 / 0 at RSS = 0.
    log_l = -0.5 * rows * (torch.log(2 * math.pi * sigma2) + 1) + 0.5 * log_weight  # [*batch, R]

    errors = coef_error.mT, intercept_error
    return RegressionFit(coef.mT, intercept, sigma2, sigma2_unbiased, *errors, log_l, r2, rss)


def log_likelihood(
    X: Tensor,
    y: Tensor,
    coef: Tensor,
    intercept: Tensor,
    sigma2: Tensor,
    *,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Log likelihood of any W, b and sigma2: log L = sum_n log N(y_n; W x_n + b, sigma2 / w_n), over w_n > 0.

    `[*batch]` or `[*batch, R]`, in nats. Without weights it is -N/2 (log(2 pi sigma2) + mse / sigma2), so for any fixed
    sigma2 it is maximised by the W and b that minimise `mse`. Parameters may have leading dims that the data lack.

    Notes
    -----
    Equivalent to ``Normal(X @ coef + intercept, (sigma2 / w).sqrt()).log_prob(y).sum(-1)`` in `torch.distributions`. At
    the `fit` it is statsmodels' ``llf``.

    Examples
    --------
    >>> X, y = torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 1.0])
    >>> log_likelihood(X, y, torch.tensor([1.0]), torch.tensor(0.0), torch.tensor(1.0))  # no residual: -log(2 pi)
    tensor(-1.8379)
    """
    w = X.new_ones(X.shape[:-1]) if sample_weight is None else sample_weight
    X, y, coef, intercept, sigma2, w = _promote(X, y, coef, intercept, sigma2, w)
    one_target = y.ndim < X.ndim
    X, y = zero_ignored_rows(X, w[..., None]), zero_ignored_rows(y, w if one_target else w[..., None])
    residual, axis = _residual(X, y, coef, intercept)
    w = w if one_target else w[..., None]  # [*batch, N] or [*batch, N, 1]
    sigma2 = sigma2.unsqueeze(axis)  # [*batch, 1] or [*batch, 1, R]
    log_normal = -0.5 * (torch.log(2 * math.pi * sigma2) - log_weight(w) + w * residual.square() / sigma2)
    return log_normal.masked_fill(w == 0, 0.0).sum(axis)


def mse(X: Tensor, y: Tensor, coef: Tensor, intercept: Tensor) -> Tensor:
    """Mean square error 1/N sum_n (y_n - W x_n - b)^2, `[*batch]` or `[*batch, R]`, in squared units of y.

    `fit` minimises it; its minimum is sigma2.

    Notes
    -----
    Equivalent to ``torch.nn.functional.mse_loss(X @ coef + intercept, y)`` and to scikit-learn's
    ``mean_squared_error(y, X @ coef + intercept)``, problem by problem.

    Examples
    --------
    >>> mse(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 3.0]), torch.tensor([1.0]), torch.tensor(0.0))
    tensor(2.)
    """
    residual, axis = _residual(*_promote(X, y, coef, intercept))
    return residual.square().mean(axis)


def _residual(X: Tensor, y: Tensor, coef: Tensor, intercept: Tensor) -> tuple[Tensor, int]:
    """Return y - W x - b, shaped like y, and the axis of the rows."""
    if y.ndim < X.ndim:
        return y - (X @ coef[..., None])[..., 0] - intercept[..., None], -1
    return y - X @ coef.mT - intercept[..., None, :], -2


def power_of_two(A: Tensor, minimum: float | Tensor = 0.0) -> Tensor:
    """For each column, the power of two at or below its largest entry, or ``minimum`` if larger, `[*batch, 1, P]`.

    1 for a zero column. Dividing by it is exact, and keeps squares in range: that of 1e20 overflows in float32. The fit
    does not depend on it, so it has no gradient.
    """
    peak = A.detach().abs().amax(-2, keepdim=True)
    peak = torch.maximum(peak, torch.as_tensor(minimum, dtype=peak.dtype, device=peak.device))
    mantissa, _ = torch.frexp(peak)  # in [1/2, 1)
    return torch.where(peak > 0, peak / (2 * mantissa), 1.0)


def zero_ignored_rows(rows: Tensor, w: Tensor) -> Tensor:
    """Set rows of weight 0 to zero, w `[*batch, N, 1]`: they may contain inf or NaN, and 0 times these is NaN."""
    return rows.masked_fill(w == 0, 0.0)


def log_weight(w: Tensor) -> Tensor:
    """Logarithm of w, and 0 where w is 0, since such rows are ignored. A negative weight gives NaN."""
    return w.masked_fill(w == 0, 1.0).log()


def _promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Convert all tensors to the promoted dtype, float32 at least."""
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    return tuple(t.to(dtype) for t in tensors)
