"""Gaussian mixtures fitted by EM, one or many at once.

`fit` and `sweep` fit mixtures; `e_step`, `m_step` and `em_step` are the single steps of EM, and `elbo` is the bound
that they increase. The other functions evaluate a mixture or sample from it.

A row x has the density p(x) = sum_k pi_k N(x; mu_k, Sigma_k). For any distribution q over the components

    log p(x) = ELBO(q) + KL(q || p(z | x)).

The E-step sets the KL to 0 and the M-step increases the ELBO, so the likelihood never decreases. Arguments common to
all functions:

    X              `[*batch, N, D]`  rows, a NumPy array (memory-mapped ones included) or a torch tensor; float32 or
                                     float64; integers and bools are converted to float64
    sample_weight  `[*batch, N]`     >= 0, or anything that broadcasts to this shape, or None for ones; a weight of 2 is
                                     equivalent to repeating the row
    mixture        a `Mixture`       weights, means, covariances and their type, with batch dims that broadcast

Leading dims are independent problems. Results have the container type, device and dtype of X, except that log
likelihoods and bounds are always float64, and labels int64. Log probabilities are in nats. Everything is computed in
float64, from residuals about the means, so that no precision is lost for data far from the origin. If X or a mixture
requires grad, the steps, the bound and the scores are differentiable and computed by the reference.

References
----------
Dempster, Laird & Rubin (1977); Neal & Hinton (1998); for the formulas, Bishop (2006), ch. 9.
"""

from ..reference.gmm.formulas import EStep, Mixture
from ._fit import MixtureFit, fit
from ._scores import aic, bic, n_parameters, predict, predict_proba, sample, score_samples
from ._steps import e_step, elbo, em_step, m_step
from ._sweep import MixtureSweep, sweep

__all__ = [
    "EStep",
    "Mixture",
    "MixtureFit",
    "MixtureSweep",
    "aic",
    "bic",
    "e_step",
    "elbo",
    "em_step",
    "fit",
    "m_step",
    "n_parameters",
    "predict",
    "predict_proba",
    "sample",
    "score_samples",
    "sweep",
]
