"""Estimators with the interface of scikit-learn, computed by fastvae. They require the extra ``[sklearn]``."""

from ._mixture import GaussianMixture
from ._regression import LinearRegression

__all__ = ["GaussianMixture", "LinearRegression"]
