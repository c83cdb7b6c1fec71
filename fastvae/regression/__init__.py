"""Linear regression by maximum likelihood, one problem or many: `fit`, and `Gram` for data in chunks.

The model of a target y_n given its regressors x_n is y_n = W x_n + b + eps_n with eps_n ~ N(0, sigma2 / w_n). The
maximum likelihood estimates of W and b are those of weighted least squares; that of sigma2 is RSS / N. Arguments common
to all functions:

    X              `[*batch, N, P]`  regressors without a column of ones, a NumPy array (memory-mapped ones included) or
                                     a torch tensor; float32 or float64; integers and bools are converted to float64
    y              `[*batch, N]`     one target, or `[*batch, N, R]`, several targets, if y has as many dims as X
    sample_weight  `[*batch, N]`     w >= 0, or anything that broadcasts to this shape, or None for ones

X and y may both be `[N]`: one regressor, for which estimates are scalars. Leading dims are independent problems, and
those of X and y broadcast. Results have the container type and device of X. Estimates and their errors have the
promoted dtype of X and y; log likelihoods (in nats), R^2, RSS and condition are float64; counts and status are int64.
Everything is computed in float64 at least. If an argument requires grad, estimates are differentiable and computed by
the reference.

References
----------
Björck, Numerical Methods for Least Squares Problems (1996). Accuracy is tested against the certified values of the NIST
Statistical Reference Datasets (StRD).
"""

from ._fit import fit
from ._gram import Gram
from ._result import RegressionFit

__all__ = ["Gram", "RegressionFit", "fit"]
