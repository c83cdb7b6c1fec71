"""scikit-learn estimators over the kernels. They need scikit-learn, the extra ``[sklearn]``."""

from ._mixture import GaussianMixture
from ._regression import LinearRegression

__all__ = ["GaussianMixture", "LinearRegression"]
