"""Gaussian mixtures on the CPU: `fastvae.gmm` against scikit-learn, oneDAL and the reference.

One iteration is an E-step and an M-step from the same parameters: a tenth of a `fastvae.gmm.fit` of ten iterations,
including its checks, shift and final likelihood; scikit-learn's own two steps; `em_step` of the reference; and a tenth
of ten iterations of oneDAL, which has no weights and only full and diagonal covariances. Before timing, the parameters
after one iteration are compared with scikit-learn's. scikit-learn runs with one thread or all, whichever is faster.
`read` and `dgemm` are the limits of memory and of arithmetic. Run it on an idle machine.
"""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import fastvae
from bench.measure import dgemm_of
from bench.rivals import Limited, Parts, cases, first_call, optional, output

daal4py, mixture_of = optional("daal4py"), optional("sklearn.mixture")

# N, D, K
SIZES = {
    "full": [(100_000, 2, 4), (100_000, 8, 16), (100_000, 16, 16), (50_000, 32, 32), (20_000, 64, 64)],
    "tied": [(100_000, 6, 8)],
    "diag": [(100_000, 2, 4), (100_000, 8, 16), (100_000, 32, 32), (1_000_000, 4, 8)],
    "spherical": [(100_000, 6, 8)],
}
REST = 0.1  # seconds
CASES = [(kind, *size) for kind, sizes in SIZES.items() for size in sizes]


def clusters(N: int, D: int, K: int, *batch: int) -> np.ndarray:
    """Rows of K overlapping clusters."""
    rng = np.random.default_rng(0)
    centers = 2 * rng.normal(size=(*batch, K, D))
    labels = rng.integers(K, size=(*batch, N))
    return np.take_along_axis(centers, labels[..., None], axis=-2) + rng.normal(size=(*batch, N, D))


def start(X: np.ndarray, K: int, kind: str) -> fastvae.gmm.Mixture:
    """A mixture with rows as means and the identity as covariances."""
    D = X.shape[1]
    shapes = {"full": (K, D, D), "tied": (D, D), "diag": (K, D), "spherical": (K,)}
    covariances = np.broadcast_to(np.eye(D) if kind in ("full", "tied") else 1.0, shapes[kind]).copy()
    return fastvae.gmm.Mixture(np.full(K, 1 / K), X[:K].copy(), covariances, kind)


def multiplications(kind: str, N: int, D: int, K: int) -> int:
    """Multiplications of an iteration: squared distances, and sums of products, triangular for full matrices."""
    triangle = D * (D + 1) // 2
    each = {"full": 2 * K * triangle, "tied": (K + 1) * triangle, "diag": 4 * K * D, "spherical": 2 * K * D}
    return N * each[kind]


def estimator(X: np.ndarray, mixture: fastvae.gmm.Mixture) -> Any:
    """scikit-learn's estimator with these parameters (identity covariances), or None if it is not installed."""
    if mixture_of is None:
        return None
    weights, means, covariances, kind = mixture
    given = {"weights_init": weights, "means_init": means, "precisions_init": covariances}
    model = mixture_of.GaussianMixture(len(weights), covariance_type=kind, **given)
    model._initialize_parameters(X, np.random.RandomState(0))
    return model


@cases(CASES, [("full", 100_000, 8, 16), ("diag", 100_000, 8, 16)], "em {} {}x{} K={}")
def bench_em_step(race, case):
    kind, N, D, K = case
    X = clusters(N, D, K)
    mixture = start(X, K, kind)
    model = estimator(X, mixture)

    def scikit_learn() -> None:
        model._m_step(X, model._e_step(X)[1])

    def check() -> None:
        ours = fastvae.gmm.em_step(X, mixture, reg_covar=1e-6)[0]
        if model is None:
            theirs = fastvae.gmm.em_step(X, mixture, reg_covar=1e-6, backend="reference")[0]
        else:
            fresh = estimator(X, mixture)
            fresh._m_step(X, fresh._e_step(X)[1])
            theirs = fastvae.gmm.Mixture(fresh.weights_, fresh.means_, fresh.covariances_, kind)
        for a, b in zip(ours[:3], theirs[:3], strict=True):
            assert_allclose(a, b, rtol=1e-8, atol=1e-9)

    rivals: dict[str, Any] = {"scikit-learn": None if model is None else Limited(scikit_learn)}
    if N * K * D * D < 2e8:
        rivals["reference"] = lambda: fastvae.gmm.em_step(X, mixture, reg_covar=1e-6, backend="reference")
    if kind in ("full", "diag") and D < 64:  # at D = 64 oneDAL fails
        rivals["oneDAL"] = None if daal4py is None else one_dal(X, mixture)
    flops = 2 * multiplications(*case)
    limits = {"read": torch.from_numpy(X).sum} | ({"dgemm": dgemm_of(flops)} if kind in ("full", "tied") else {})
    options = {"covariance_type": kind, "init": mixture, "tol": 0.0, "max_iter": 10}
    contenders = {"fastvae": Parts(lambda: fastvae.gmm.fit(X, K, **options), 10), **rivals, **limits}
    size = {"elements": N * D, "bytes": X.nbytes, "flops": flops}
    race(contenders, check=check, limits=list(limits), opaque=["oneDAL"], rest=REST, **size)


def one_dal(X: np.ndarray, mixture: fastvae.gmm.Mixture) -> Parts:
    """Ten iterations of oneDAL, or as many as it runs."""
    weights, means, covariances, kind = mixture
    options = {"nComponents": len(weights), "maxIterations": 10, "accuracyThreshold": 1e-300}
    em = daal4py.em_gmm(covarianceStorage="full" if kind == "full" else "diagonal", **options)
    listed = list(covariances) if kind == "full" else [row[None] for row in covariances]
    once = em.compute(X, weights[None], means, listed)
    return Parts(lambda: em.compute(X, weights[None], means, listed), int(once.nIterations[0, 0]))


def check_fit(X: np.ndarray, fit: fastvae.gmm.MixtureFit, some: Any = ...) -> None:
    """Check by the reference: the likelihood is that of the parameters, and another step hardly raises it."""
    weights, means, covariances = (a[some] for a in fit.mixture[:3])
    mixture = fastvae.gmm.Mixture(weights, means, covariances, fit.mixture.covariance_type)
    following, likelihood = fastvae.gmm.em_step(X[some], mixture, backend="reference")
    assert_allclose(np.asarray(fit.log_likelihood)[some], likelihood, rtol=1e-9)
    raised = fastvae.gmm.e_step(X[some], following, backend="reference").log_prob.sum(-1) - likelihood
    converged = np.asarray(fit.converged)[some]
    assert (np.asarray(raised / X.shape[-2])[converged] < 2e-3).all()  # twice the default `tol`


FITS = [case for case in CASES if case[1] <= 100_000 and case[2] <= 16]


@cases(FITS, FITS[:1], "fit {} {}x{} K={}")
def bench_fit(race, case):
    """A complete fit to the same tolerance, each with its own k-means and its own number of iterations."""
    kind, N, D, K = case
    X = clusters(N, D, K)
    options = {"covariance_type": kind, "max_iter": 50}
    model = None if mixture_of is None else mixture_of.GaussianMixture(K, random_state=0, **options)

    def fit() -> fastvae.gmm.MixtureFit:
        return fastvae.gmm.fit(X, K, seed=0, **options)

    def check() -> None:
        check_fit(X, fit())

    theirs = None if model is None else Limited(lambda: model.fit(X))
    race({"fastvae": fit, "scikit-learn": theirs}, check=check, elements=N * D, rest=REST)


BATCHES = [(10_000, 200, 2, 3), (1_000, 1_000, 8, 4)]


@cases(BATCHES, BATCHES[:1], "mixtures {}x{}x{} K={}")
def bench_batch(race, case):
    """Complete fits of many small problems; scikit-learn in a loop over some, with one thread and by default."""
    B, N, D, K = case
    X = clusters(N, D, K, B)

    def loop(limit: int | None, some: int) -> Any:
        def run() -> None:
            for rows in X[:some]:
                mixture_of.GaussianMixture(K, random_state=0).fit(rows)

        return None if mixture_of is None else Parts(Limited(run, [limit]), some / B)

    def fit() -> fastvae.gmm.MixtureFit:
        return fastvae.gmm.fit(X, K, seed=0)

    def check() -> None:
        check_fit(X, fit(), slice(50))

    rivals = {"scikit-learn (1 thread)": loop(1, 20), "scikit-learn": loop(None, 5)}
    race({"fastvae": fit, **rivals}, check=check, elements=X.size, rest=REST)


PEAK = """
import os, threading, torch, fastvae
X = torch.empty(10_000_000, 8).normal_()
fastvae.gmm.fit(X[:1000], 16, seed=0, max_iter=2)  # code is no data
held = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
before, most, over = held(), 0.0, threading.Event()
def watch():
    global most
    while not over.wait(0.002):
        most = max(most, held())
watcher = threading.Thread(target=watch)
watcher.start()
fastvae.gmm.fit(X, 16, seed=0, max_iter=2)
over.set()
watcher.join()
print(most - before)
"""


def bench_peak_memory(note):
    """Peak memory, besides X, of a fit of 1e7 rows of 8 features, K = 16, including its start."""
    note("notes", {"MB beyond X in a fit of 1e7 rows of 8, K = 16": round(output(PEAK))})


@pytest.mark.parametrize("kind", ["full", "diag", "spherical"], ids="first fit of mixtures, {}".format)
def bench_first_call(note, tmp_path, kind):
    setup = "import numpy as np, fastvae\nX = np.random.default_rng(0).normal(size=(1000, 4))"
    note("first calls", first_call(setup, f"fastvae.gmm.fit(X, 3, covariance_type={kind!r}, seed=0)", tmp_path))
