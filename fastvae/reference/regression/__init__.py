"""Linear regression as maximum likelihood."""

from .formulas import RegressionFit, fit, log_likelihood, mse

__all__ = ["RegressionFit", "fit", "log_likelihood", "mse"]
