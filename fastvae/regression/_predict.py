"""Predictions about the means, for data far from the origin.

    y = y0 + W (x - x0)        x0 the means of the fit, as stored in float64, and y0 the prediction there

is equal to b + W x, but avoids the rounding errors of terms as large as W x0, which far from the origin exceed the
errors of the fit. It needs another pass over the rows, so it is used only if these terms are `FAR` times as large as
their sum.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

FAR = 16.0  # ratio of W x to the prediction or the noise: below it, W x loses at most four bits


class Center(NamedTuple):
    """A point of the fit near the data: the means x0 and the prediction y0 there, float64."""

    x: Tensor  # [*batch, P]
    y: Tensor  # [*batch, R]

    def map(self, of: Any) -> "Center":
        """Apply a function to both tensors."""
        return Center(of(self.x), of(self.y))


def center_of(coef: Tensor, mean_x: Tensor, small_mean_x: Tensor, mean_y: Tensor) -> Center:
    """The center for coefficients `[*batch, R, P]` and means: x0 the means in float64, y0 the prediction there."""
    return Center(mean_x, mean_y - (coef * small_mean_x[..., None, :]).sum(-1))


def is_far(center: Center, coef: Tensor, intercept: Tensor, sigma2: Tensor) -> bool:
    """Whether any of the fits, `[*batch, R, P]` and `[*batch, R]`, needs predictions about its center."""
    size = center.y.abs() + sigma2.clamp(min=0).sqrt()
    terms = (coef * center.x[..., None, :]).abs().sum(-1) + intercept.abs()
    return bool((terms > FAR * size).any())


def predict_centered(rows: Tensor, coef: Tensor, center: Center) -> Tensor:
    """Predictions `[*batch, M, R]` about the center for rows `[*batch, M, P]`, in the dtype of rows and coef."""
    x0 = center.x.to(rows.dtype)
    shift = (coef.to(torch.float64) * (x0.to(torch.float64) - center.x)[..., None, :]).sum(-1)  # for x0 as rounded
    y0 = (center.y + shift).to(rows.dtype)
    return (rows - x0[..., None, :]) @ coef.mT + y0[..., None, :]
