"""Linear regression on the CPU: `fastvae.regression` against NumPy, torch, scikit-learn and statsmodels.

`make bench` runs it. Ours fits the intercept, and returns standard errors, log-likelihood and all the rest. The rivals
are given a ready [1 X] and return coefficients alone: NumPy's batched matmul and solve, torch's bmm and Cholesky, which
share their digits with "float64", and `torch.linalg.lstsq`. "refined" is ours where every problem needs residuals in
double-double, since they are small; "deep" is ours in double-double throughout. Loops of scikit-learn and
statsmodels fit some of the problems. Run it alone.
"""

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from rivals import Parts, limited
from sklearn.linear_model import LinearRegression

import fastvae
from fastvae import Status

# B, N, P: the targets of DESIGN, and the grid of measured prototypes
BATCHES = [(10_000, 64, 4), (10_000, 256, 8), (10_000, 50, 1), (20_000, 50, 4), (5_000, 200, 8), (1_000, 1_000, 16)]
TALL = [(500_000, 32), (200_000, 128), (1_000_000, 32), (1_000_000, 4)]
SETTLE = 0.1  # seconds
SOME = 50  # problems of a loop


def problems(B: int, N: int, P: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """By default as much noise as signal; coefficients of about 1, none of them near 0."""
    rng = np.random.default_rng(0)
    X, coef = rng.normal(size=(B, N, P)), rng.uniform(0.5, 2, size=(B, P))
    return X, np.einsum("bnp,bp->bn", X, coef) + noise * rng.normal(size=(B, N)) + 1


@pytest.mark.parametrize("case", BATCHES, ids=lambda case: "regression {}x{}x{}".format(*case))
def bench_batch(race, benchmark, case):
    B, N, P = case
    (X, y), (_, close) = problems(B, N, P), problems(B, N, P, noise=1e-3)
    A = np.concatenate([np.ones((*X.shape[:2], 1)), X], axis=-1)
    At, yt = torch.from_numpy(A), torch.from_numpy(y)[..., None]

    def numpy() -> np.ndarray:
        transposed = A.transpose(0, 2, 1)
        return np.linalg.solve(transposed @ A, transposed @ y[..., None])

    def bmm() -> torch.Tensor:
        return torch.cholesky_solve(At.mT @ yt, torch.linalg.cholesky(At.mT @ At))

    def scikit_learn() -> None:
        for b in range(SOME):
            LinearRegression().fit(X[b], y[b])

    def statsmodels() -> None:
        for b in range(SOME):
            sm.OLS(y[b], A[b]).fit().bse  # noqa: B018 - computed when read

    def ours(X: np.ndarray, y: np.ndarray, precision: str) -> fastvae.regression.RegressionFit:
        return fastvae.regression.fit(X, y, precision=precision)

    plain, refined = ours(X, y, "auto"), ours(X, close, "auto")
    np.testing.assert_allclose(plain.coef, numpy()[:, 1:, 0], rtol=1e-6, atol=1e-9)
    benchmark.extra_info["refined"] = float((plain.status & Status.REFINED != 0).mean())
    assert (refined.status == Status.REFINED).all()
    race(
        SETTLE,
        fastvae=lambda: ours(X, y, "auto"),
        float64=lambda: ours(X, y, "float64"),
        refined=lambda: ours(X, close, "auto"),
        deep=lambda: ours(X, y, "double-double"),
        numpy=numpy,
        bmm=bmm,
        lstsq=limited(lambda: torch.linalg.lstsq(At, yt)),
        read=lambda: X.sum(),
        sklearn=Parts(limited(scikit_learn), SOME / B),
        statsmodels=Parts(limited(statsmodels), SOME / B),
    )


@pytest.mark.parametrize("case", TALL, ids=lambda case: "tall {}x{}".format(*case))
def bench_tall(race, case):
    """One problem: against the product X'X of BLAS alone, and scikit-learn."""
    N, P = case
    X, y = (a[0] for a in problems(1, N, P))
    model = LinearRegression()
    chunks = [slice(n, n + 50_000) for n in range(0, len(y), 50_000)]

    def stream() -> None:
        gram = fastvae.regression.Gram()
        for rows in chunks:
            gram.update(X[rows], y[rows])
        gram.solve()

    np.testing.assert_allclose(fastvae.regression.fit(X, y).coef, model.fit(X, y).coef_, rtol=1e-8)
    rivals = {
        "float64": lambda: fastvae.regression.fit(X, y, precision="float64"),
        "deep": lambda: fastvae.regression.fit(X, y, precision="double-double"),
        "stream": stream,
        "gram": lambda: X.T @ X,
        "read": lambda: X.sum(),
        "sklearn": limited(lambda: model.fit(X, y)),
    }
    race(SETTLE, fastvae=lambda: fastvae.regression.fit(X, y), **rivals)
