"""How a fit ended: one table of flags for mixtures and regression."""

import enum


class Status(enum.IntFlag):
    """How the fit of one problem ended. Several may hold: ``CONVERGED | RESCUED``. A batch has an int64 array of them.

    Attributes
    ----------
    CONVERGED
        The iterations stopped by their own criterion.
    MAX_ITER
        They were stopped after ``max_iter``; the parameters are those reached.
    RESCUED
        A degenerate component was replaced on the way, as ``on_degenerate="rescue"`` asks.
    SINGULAR
        A component lost all its rows, or a covariance is not positive definite; the parameters are the last sound ones,
        NaN where there were none.
    NONFINITE
        The problem's data hold inf or NaN: not fitted, parameters NaN. Of several targets of a regression, only those
        that hold them, unless X does.
    TOO_FEW_ROWS
        Fewer rows of positive weight than parameters need: not fitted, parameters NaN.
    REFINED
        The solution was corrected by residuals in double-double.
    DOUBLE_DOUBLE
        The solution was found in double-double throughout.
    RANK_DEFICIENT
        The columns are linearly dependent; the solution is that of minimum norm.

    Notes
    -----
    Equivalent to scikit-learn's ``converged_``, its ConvergenceWarning and its errors of fit, for each problem of a
    batch.

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
