"""Gaussian mixtures by EM."""

from .formulas import (
    COVARIANCE_TYPES,
    EStep,
    Mixture,
    e_step,
    elbo,
    em_step,
    fit_normal,
    joint_log_prob,
    log_likelihood,
    m_step,
)

__all__ = [
    "COVARIANCE_TYPES",
    "EStep",
    "Mixture",
    "e_step",
    "elbo",
    "em_step",
    "fit_normal",
    "joint_log_prob",
    "log_likelihood",
    "m_step",
]
