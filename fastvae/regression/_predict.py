"""Predictions about the means, where the intercept is left of far larger terms.

    y = y0 + W (x - x0)        x0 the means as they are stored, y0 the fit there, both of the fit

is b + W x, but for the roundings of terms as large as W x0, which far from the origin are more than the fit's own. It
takes a pass over the rows more, so it is taken only where these terms are `FAR` times what is left of them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

FAR = 16.0  # times a prediction, or the noise: closer to the origin W x costs no more than four bits


class Center(NamedTuple):
    """Where fits are given as well as at the origin; float64."""

    x: Tensor  # [*batch, P]
    y: Tensor  # [*batch, R]

    def map(self, of: Any) -> "Center":
        """Both tensors after the same function."""
        return Center(of(self.x), of(self.y))


def center_of(coef: Tensor, mean_x: Tensor, small_mean_x: Tensor, mean_y: Tensor) -> Center:
    """Of coefficients `[*batch, R, P]` and means: x0 is what float64 holds of the means, and y0 the fit there."""
    return Center(mean_x, mean_y - (coef * small_mean_x[..., None, :]).sum(-1))


def is_far(center: Center, coef: Tensor, intercept: Tensor, sigma2: Tensor) -> bool:
    """Whether any fit, `[*batch, R, P]` and `[*batch, R]`, is better taken about its center."""
    left = center.y.abs() + sigma2.clamp(min=0).sqrt()
    terms = (coef * center.x[..., None, :]).abs().sum(-1) + intercept.abs()
    return bool((terms > FAR * left).any())


def about(rows: Tensor, coef: Tensor, center: Center) -> Tensor:
    """Predictions `[*batch, M, R]` for rows `[*batch, M, P]`, in the dtype of both."""
    x0 = center.x.to(rows.dtype)
    shift = (coef.to(torch.float64) * (x0.to(torch.float64) - center.x)[..., None, :]).sum(-1)  # what that rounds
    y0 = (center.y + shift).to(rows.dtype)
    return (rows - x0[..., None, :]) @ coef.mT + y0[..., None, :]
