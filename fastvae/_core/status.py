"""Status flags of fits, shared by mixtures and regression."""

import enum


class Status(enum.IntFlag):
    """How the fit of one problem ended. Flags can be combined: ``CONVERGED | RESCUED``. A batch has an int64 array.

    Attributes
    ----------
    CONVERGED
        The convergence criterion was met.
    MAX_ITER
        EM stopped after ``max_iter`` iterations; the parameters are the last ones.
    RESCUED
        A degenerate component was replaced during EM, as requested by ``on_degenerate="rescue"``.
    SINGULAR
        A component lost all its rows, or a covariance is not positive definite. The parameters are the last valid ones,
        or NaN if there were none.
    NONFINITE
        The data of the problem contain inf or NaN: not fitted, parameters are NaN. In a regression with several
        targets, only the targets that contain them are not fitted, unless X contains them.
    TOO_FEW_ROWS
        Too few rows of positive weight (fewer than components of a mixture, none in a regression): not fitted,
        parameters are NaN.
    REFINED
        The solution was corrected with residuals in double-double.
    DOUBLE_DOUBLE
        The problem was solved in double-double throughout.
    RANK_DEFICIENT
        The columns are linearly dependent; the solution is the minimum-norm solution.

    Notes
    -----
    Corresponds to scikit-learn's ``converged_``, its ConvergenceWarning and the errors of its ``fit``, for each problem
    of a batch.

    Examples
    --------
    >>> import fastvae
    >>> fastvae.Status(5)
    <Status.CONVERGED|RESCUED: 5>
    """

    CONVERGED = 1
    MAX_ITER = 2
    RESCUED = 4
    SINGULAR = 8
    NONFINITE = 16
    TOO_FEW_ROWS = 32
    REFINED = 64
    DOUBLE_DOUBLE = 128
    RANK_DEFICIENT = 256
