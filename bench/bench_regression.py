"""Linear regression on the CPU: `fastvae.regression` against NumPy, torch, scikit-learn and statsmodels.

fastvae fits the intercept, and returns standard errors, log-likelihood and everything else. The rivals get [1 X] and
return only coefficients: NumPy's batched matmul and solve, torch's bmm and Cholesky, which are as accurate as
"float64", and `torch.linalg.lstsq`. "refined" is fastvae with data for which nearly every problem needs residuals in
double-double, because these are small; "deep" is fastvae in double-double throughout. Loops of scikit-learn and
statsmodels fit some of the problems. Before timing, coefficients are compared with LAPACK's. Run it on an idle machine.
"""

import numpy as np
import torch
from numpy.testing import assert_allclose

import fastvae
from bench.rivals import Limited, Parts, cases, first_call, optional
from fastvae import Status

linear_model, sm = optional("sklearn.linear_model"), optional("statsmodels.api")

# B, N, P
BATCHES = [(10_000, 64, 4), (10_000, 256, 8), (10_000, 50, 1), (20_000, 50, 4), (5_000, 200, 8), (1_000, 1_000, 16)]
TALL = [(500_000, 32), (200_000, 128), (1_000_000, 32), (1_000_000, 4)]
REST = 0.1  # seconds
SOME = 50  # problems that a loop fits


def problems(B: int, N: int, P: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Random problems, by default with as much noise as signal; coefficients of about 1, none near 0."""
    rng = np.random.default_rng(0)
    X, coef = rng.normal(size=(B, N, P)), rng.uniform(0.5, 2, size=(B, P))
    return X, np.einsum("bnp,bp->bn", X, coef) + noise * rng.normal(size=(B, N)) + 1


@cases(BATCHES, BATCHES[:2], "regressions {}x{}x{}")
def bench_batch(race, case):
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
            linear_model.LinearRegression().fit(X[b], y[b])

    def statsmodels() -> None:
        for b in range(SOME):
            sm.OLS(y[b], A[b]).fit().bse  # noqa: B018 - computed when read

    def ours(X: np.ndarray, y: np.ndarray, precision: str) -> fastvae.regression.RegressionFit:
        return fastvae.regression.fit(X, y, precision=precision)

    def check() -> None:
        plain, refined = ours(X, y, "auto"), ours(X, close, "auto")
        exact = torch.linalg.lstsq(At, yt).solution[:, 1:, 0].numpy()
        assert_allclose(plain.coef, exact, rtol=1e-11, atol=1e-12)
        assert_allclose(ours(X, y, "double-double").coef, exact, rtol=1e-11, atol=1e-12)
        assert (refined.status == Status.REFINED).mean() > 0.99

    contenders = {
        "fastvae": lambda: ours(X, y, "auto"),
        "float64": lambda: ours(X, y, "float64"),
        "refined": lambda: ours(X, close, "auto"),
        "deep": lambda: ours(X, y, "double-double"),
        "numpy": numpy,
        "bmm": bmm,
        "lstsq": Limited(lambda: torch.linalg.lstsq(At, yt)),
        "scikit-learn": linear_model and Parts(Limited(scikit_learn), SOME / B),
        "statsmodels": sm and Parts(Limited(statsmodels), SOME / B),
        "read": torch.from_numpy(X).sum,
    }
    size = {"elements": X.size, "bytes": X.nbytes + y.nbytes, "flops": B * N * (P + 1) * (P + 2)}
    variants = ["float64", "refined", "deep"]
    race(contenders, check=check, limits=["read"], variants=variants, rest=REST, **size)


@cases(TALL, TALL[:1], "tall {}x{}")
def bench_tall(race, case):
    """One problem, against only the product X'X by BLAS, and against scikit-learn."""
    N, P = case
    X, y = (a[0] for a in problems(1, N, P))
    model = linear_model and linear_model.LinearRegression()
    chunks = [slice(n, n + 50_000) for n in range(0, len(y), 50_000)]

    def stream() -> fastvae.regression.RegressionFit:
        gram = fastvae.regression.Gram()
        for rows in chunks:
            gram.update(X[rows], y[rows])
        return gram.solve()

    def check() -> None:
        exact = np.linalg.lstsq(X - X.mean(0), y - y.mean(), rcond=None)[0]
        for fit in (fastvae.regression.fit(X, y), stream()):
            assert_allclose(fit.coef, exact, rtol=1e-8)

    contenders = {
        "fastvae": lambda: fastvae.regression.fit(X, y),
        "float64": lambda: fastvae.regression.fit(X, y, precision="float64"),
        "deep": lambda: fastvae.regression.fit(X, y, precision="double-double"),
        "stream": stream,
        "BLAS X'X": lambda: X.T @ X,
        "scikit-learn": model and Limited(lambda: model.fit(X, y)),
        "read": torch.from_numpy(X).sum,
    }
    size = {"elements": X.size, "bytes": X.nbytes + y.nbytes, "flops": N * (P + 1) * (P + 2)}
    race(contenders, check=check, limits=["read"], variants=["float64", "deep", "stream"], rest=REST, **size)


def bench_first_call_of_regression(note, tmp_path):
    setup = "import numpy as np, fastvae\nX = np.random.default_rng(0).normal(size=(100, 50, 4))"
    note("first calls", first_call(setup, "fastvae.regression.fit(X, X.sum(-1))", tmp_path))
