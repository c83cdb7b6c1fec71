"""Log densities of one observed element, including constants, in nats: the formulas of `fastvae.likelihoods`.

    Gaussian    log N(x; x_hat, e^(2 log_scale)) = -1/2 ((x - x_hat) e^-log_scale)^2 - log_scale - 1/2 log 2 pi
    Laplace     log Laplace(x; x_hat, e^log_scale)   = -|x - x_hat| e^-log_scale - log_scale - log 2
    Bernoulli   log p(x; logit x_hat) = x log s(x_hat) + (1 - x) log s(-x_hat),      s(a) = 1 / (1 + e^-a)

Every function is elementwise and broadcasts; arithmetic is in the dtype of the arguments.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LINKS = {"identity": lambda a: a, "sigmoid": torch.sigmoid, "tanh": torch.tanh}
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
LOG_2 = math.log(2)


def over_scale(residual: Tensor, log_scale: Tensor | float) -> Tensor:
    """r = residual e^-log_scale, without 0 * inf and with the derivative -r with respect to log_scale.

    It is multiplied by three factors, none of them infinite: a residual of 0 stays 0, and any other one overflows if r
    does.
    """
    dtype = residual.dtype
    if isinstance(log_scale, Tensor) and log_scale.dim() > 0:
        dtype = torch.promote_types(dtype, log_scale.dtype)
    limit = math.log(torch.finfo(dtype).max) - 1
    if not isinstance(log_scale, Tensor):
        for _ in range(3):
            part = max(log_scale, -limit)
            residual, log_scale = residual * math.exp(-part) if part else residual, min(log_scale + limit, 0.0)
        return residual
    remainder = constant = log_scale.detach()
    for _ in range(3):
        residual = residual * torch.exp(-remainder.clamp(min=-limit))
        remainder = (remainder + limit).clamp(max=0.0)
    # A factor of 1 with the derivative -1. The derivative of the factors above could overflow although -r does not.
    return residual * torch.exp(torch.where(constant.isinf(), 0.0, constant - log_scale))


def gaussian_log_prob(x: Tensor, x_hat: Tensor, log_scale: Tensor | float = 0.0, link: str = "identity") -> Tensor:
    """log N(x; link(x_hat), e^(2 log_scale)).

    Equivalent to ``torch.distributions.Normal(link(x_hat), log_scale.exp()).log_prob(x)``.
    """
    residual = x - LINKS[link](x_hat)
    return -0.5 * over_scale(residual, log_scale).square() - log_scale - HALF_LOG_2PI


def laplace_log_prob(x: Tensor, x_hat: Tensor, log_scale: Tensor | float = 0.0, link: str = "identity") -> Tensor:
    """Log density of a Laplace variable with location link(x_hat); its derivative is 0 where x equals the location.

    Equivalent to ``torch.distributions.Laplace(link(x_hat), log_scale.exp()).log_prob(x)``.
    """
    return -over_scale(x - LINKS[link](x_hat), log_scale).abs() - log_scale - LOG_2


def bernoulli_log_prob(x: Tensor, x_hat: Tensor) -> Tensor:
    """Log p(x) of a Bernoulli variable with logits x_hat; for x between 0 and 1, the negative cross-entropy.

    Neither term is positive, so there is no cancellation: log p is accurate where p is near one.
    Equivalent to ``torch.distributions.Bernoulli(logits=x_hat).log_prob(x)``.
    """
    return x * logsigmoid(x_hat) + (1 - x) * logsigmoid(-x_hat)
