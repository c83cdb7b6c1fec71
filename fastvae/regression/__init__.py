"""Linear regression by maximum likelihood, one problem or many: `fit`, and `Gram` for data in chunks.

The model of a target y_n given its regressors x_n is y_n = W x_n + b + eps_n with eps_n ~ N(0, sigma2 / w_n). W and b
of maximum likelihood are those of least weighted squares; sigma2 is RSS / N. What all functions share:

    X              `[*batch, N, P]`  regressors without a column of ones, a NumPy array (memory-mapped ones included) or
                                     a torch tensor; float32 or float64; integers and bools become float64
    y              `[*batch, N]`     one target, or `[*batch, N, R]`, several: read from y.ndim against X.ndim
    sample_weight  `[*batch, N]`     w >= 0, or what broadcasts to it, or None for ones

X and y may both be `[N]`: one regressor, whose results are numbers. Leading dims are independent problems, and those of
X and y broadcast. Results are of the container and device of X. Estimates and their errors have the promoted dtype of X
and y; log likelihoods (in nats), R^2, RSS and condition are float64; counts and status int64. All is computed in
float64 at least. Where an argument requires grad, estimates are differentiable and computed by the reference.

Source: Björck, Numerical Methods for Least Squares Problems (1996); digits as certified by NIST's StRD.
"""

from ._fit import fit
from ._gram import Gram
from ._result import RegressionFit

__all__ = ["Gram", "RegressionFit", "fit"]
