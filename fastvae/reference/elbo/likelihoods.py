"""Log densities of one observed element, constants included, in nats: the formulas behind `fastvae.likelihoods`.

    Gaussian    log N(x; x_hat, e^(2 log_scale)) = -1/2 ((x - x_hat) e^-log_scale)^2 - log_scale - 1/2 log 2 pi
    Laplace     log Laplace(x; x_hat, e^log_scale)   = -|x - x_hat| e^-log_scale - log_scale - log 2
    Bernoulli   log p(x; logit x_hat) = x log s(x_hat) + (1 - x) log s(-x_hat),      s(a) = 1 / (1 + e^-a)

Every function is elementwise and broadcasts; arithmetic is in the dtype it is handed.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LINKS = {"identity": lambda a: a, "sigmoid": torch.sigmoid, "tanh": torch.tanh}
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
LOG_2 = math.log(2)


def over_scale(residual: Tensor, log_scale: Tensor | float) -> Tensor:
    """r = residual e^-log_scale, in three factors: none of them is infinite, so that 0 stays 0, and their product with
    any other number overflows. Its derivative in log_scale is -r, and formed as such.
    """
    dtype = residual.dtype
    if isinstance(log_scale, Tensor) and log_scale.dim() > 0:
        dtype = torch.promote_types(dtype, log_scale.dtype)
    most = math.log(torch.finfo(dtype).max) - 1
    if not isinstance(log_scale, Tensor):
        for _ in range(3):
            part = max(log_scale, -most)
            residual, log_scale = residual * math.exp(-part) if part else residual, min(log_scale + most, 0.0)
        return residual
    rest = fixed = log_scale.detach()
    for _ in range(3):
        residual = residual * torch.exp(-rest.clamp(min=-most))
        rest = (rest + most).clamp(max=0.0)
    # 1, of which the derivative is -1. By way of those factors it would leave the range where -r does not.
    return residual * torch.exp(torch.where(fixed.isinf(), 0.0, fixed - log_scale))


def gaussian_log_prob(x: Tensor, x_hat: Tensor, log_scale: Tensor | float = 0.0, link: str = "identity") -> Tensor:
    """log N(x; link(x_hat), e^(2 log_scale)).

    Equivalent to ``torch.distributions.Normal(link(x_hat), log_scale.exp()).log_prob(x)``.
    """
    residual = x - LINKS[link](x_hat)
    return -0.5 * over_scale(residual, log_scale).square() - log_scale - HALF_LOG_2PI


def laplace_log_prob(x: Tensor, x_hat: Tensor, log_scale: Tensor | float = 0.0, link: str = "identity") -> Tensor:
    """Log density of a Laplace variable about link(x_hat); its derivative there is 0 where x is that very number.

    Equivalent to ``torch.distributions.Laplace(link(x_hat), log_scale.exp()).log_prob(x)``.
    """
    return -over_scale(x - LINKS[link](x_hat), log_scale).abs() - log_scale - LOG_2


def bernoulli_log_prob(x: Tensor, x_hat: Tensor) -> Tensor:
    """Log p(x) of a Bernoulli variable with logit x_hat; for x between 0 and 1, minus the cross-entropy.

    Both terms are negative, so nothing cancels: log p keeps its digits where p is near one.
    Equivalent to ``torch.distributions.Bernoulli(logits=x_hat).log_prob(x)``.
    """
    return x * logsigmoid(x_hat) + (1 - x) * logsigmoid(-x_hat)
