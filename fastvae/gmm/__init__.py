"""Gaussian mixtures by EM, one or many at once: `fit` and `sweep`, the steps of EM, the bound, and what to do
with a mixture.

A row x has the density p(x) = sum_k pi_k N(x; mu_k, Sigma_k). For any distribution q over the components

    log p(x) = ELBO(q) + KL(q || p(z | x)),

the E-step makes the KL 0 and the M-step raises the ELBO, so that the likelihood never falls. What all functions share:

    X              `[*batch, N, D]`  rows, a NumPy array (memory-mapped ones included) or a torch tensor; float32 or
                                     float64; integers and bools become float64
    sample_weight  `[*batch, N]`     >= 0, or what broadcasts to it, or None for ones; a weight of 2 is the row twice
    mixture        a `Mixture`       weights, means, covariances and their type, with batch dims that broadcast

Leading dims are independent problems. Results are of the container, device and dtype of X, log likelihoods and bounds
always float64, labels int64; log probabilities are in nats. All is computed in float64, of residuals from the means, so
that data far from the origin lose nothing. Where X or a mixture requires grad, the steps, the bound and the scores are
differentiable and computed by the reference.

Source: Dempster, Laird & Rubin (1977); Neal & Hinton (1998); the formulas in Bishop (2006), ch. 9.
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
