"""Gaussian mixtures on the CPU: `fastvae.gmm` against scikit-learn, oneDAL and the reference.

`make bench` runs it. One iteration is an E-step and an M-step from the same parameters: a tenth of a `fastvae.gmm.fit`
of ten iterations, its checks, shift and final likelihood included; scikit-learn's own two steps; the reference's
`em_step`; and a tenth of ten iterations of oneDAL, which has no weights and only full and diagonal covariances.
scikit-learn runs at its best number of threads, one or all, tried first. `copy` and `dgemm` are the limits of memory
and of arithmetic. Run it alone.
"""

from typing import Any

import numpy as np
import pytest
from rivals import Parts, limited, output
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

import fastvae

try:
    import daal4py
except ImportError:  # said in the table's head
    daal4py = None

# N, D, K of DESIGN's targets and of the grid of measured prototypes
SIZES = {
    "full": [(100_000, 2, 4), (100_000, 8, 16), (100_000, 16, 16), (50_000, 32, 32), (20_000, 64, 64)],
    "tied": [(100_000, 6, 8)],
    "diag": [(100_000, 2, 4), (100_000, 8, 16), (100_000, 32, 32), (1_000_000, 4, 8)],
    "spherical": [(100_000, 6, 8)],
}
SETTLE = 0.1  # seconds
CASES = [(kind, *size) for kind, sizes in SIZES.items() for size in sizes]


def clusters(N: int, D: int, K: int, *batch: int) -> np.ndarray:
    """Rows of K overlapping clusters."""
    rng = np.random.default_rng(0)
    centers = 2 * rng.normal(size=(*batch, K, D))
    labels = rng.integers(K, size=(*batch, N))
    return np.take_along_axis(centers, labels[..., None], axis=-2) + rng.normal(size=(*batch, N, D))


def start(X: np.ndarray, K: int, kind: str) -> fastvae.gmm.Mixture:
    """Rows as means, the identity as covariances."""
    D = X.shape[1]
    shapes = {"full": (K, D, D), "tied": (D, D), "diag": (K, D), "spherical": (K,)}
    covariances = np.broadcast_to(np.eye(D) if kind in ("full", "tied") else 1.0, shapes[kind]).copy()
    return fastvae.gmm.Mixture(np.full(K, 1 / K), X[:K].copy(), covariances, kind)


def estimator(mixture: fastvae.gmm.Mixture, **options: Any) -> GaussianMixture:
    """scikit-learn's, from the same parameters; an identity is its own inverse."""
    weights, means, covariances, kind = mixture
    return GaussianMixture(
        len(weights),
        covariance_type=kind,
        weights_init=weights,
        means_init=means,
        precisions_init=covariances,
        **options,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: "em {} {}x{},{}".format(*case))
def bench_em_step(race, case):
    kind, N, D, K = case
    X = clusters(N, D, K)
    mixture = start(X, K, kind)
    model = estimator(mixture)
    model._initialize_parameters(X, np.random.RandomState(0))

    def scikit_learn() -> None:
        model._m_step(X, model._e_step(X)[1])

    rivals = {"scikit-learn": limited(scikit_learn)}
    if N * K * D * D < 5e8:
        rivals["reference"] = lambda: fastvae.gmm.em_step(X, mixture, reg_covar=1e-6, backend="reference")
    if daal4py is not None and kind in ("full", "diag") and D < 64:  # at D = 64 it fails
        weights, means, covariances, _ = mixture
        options = {"nComponents": K, "maxIterations": 10, "accuracyThreshold": 1e-300}
        em = daal4py.em_gmm(covarianceStorage="full" if kind == "full" else "diagonal", **options)
        listed = list(covariances) if kind == "full" else [row[None] for row in covariances]
        once = em.compute(X, weights[None], means, listed)
        rivals["oneDAL"] = Parts(lambda: em.compute(X, weights[None], means, listed), int(once.nIterations[0, 0]))
    # the limits: reading and writing X once, and a BLAS product of as many multiplications as the two triangles take
    room = np.empty_like(X)
    rivals["copy"] = lambda: np.copyto(room, X)
    if kind in ("full", "tied"):
        B = np.ones((512, 512))
        A = np.ones((max(1, N * K * D * (D + 1) // 512**2), 512))
        rivals["dgemm"] = lambda: A @ B
    options = {"covariance_type": kind, "init": mixture, "tol": 0.0, "max_iter": 10}
    race(SETTLE, fastvae=Parts(lambda: fastvae.gmm.fit(X, K, **options), 10), **rivals)


FITS = [case for case in CASES if case[1] <= 100_000 and case[2] <= 16]


@pytest.mark.parametrize("case", FITS, ids=lambda case: "fit {} {}x{},{}".format(*case))
def bench_fit(race, case):
    """A whole fit from k-means, each with its own k-means and its own number of iterations, to the same tolerance."""
    kind, N, D, K = case
    X = clusters(N, D, K)
    options = {"covariance_type": kind, "max_iter": 50}
    model = GaussianMixture(K, random_state=0, **options)
    race(
        SETTLE,
        **{"fastvae": lambda: fastvae.gmm.fit(X, K, seed=0, **options), "scikit-learn": limited(lambda: model.fit(X))},
    )


@pytest.mark.parametrize(
    "case", [(10_000, 200, 2, 3), (1_000, 1_000, 8, 4)], ids=lambda c: "batch {}x{}x{},{}".format(*c)
)
def bench_batch(race, case):
    """Whole fits of many small problems; scikit-learn's loop, of 20 of them, on one thread and as installed."""
    B, N, D, K = case
    X = clusters(N, D, K, B)
    some = 20

    def loop(limit: int | None) -> Any:
        def run() -> None:
            with threadpool_limits(limit):
                for rows in X[:some]:
                    GaussianMixture(K, random_state=0).fit(rows)

        return Parts(run, some / B)

    race(SETTLE, fastvae=lambda: fastvae.gmm.fit(X, K, seed=0), **{"one thread": loop(1), "as installed": loop(None)})


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
FIRST = """
import time, numpy as np, fastvae
X = np.random.default_rng(0).normal(size=(1000, 4))
start = time.perf_counter()
fastvae.gmm.fit(X, 3, covariance_type={kind!r}, seed=0)
print(time.perf_counter() - start)
"""


def bench_peak_memory(benchmark):
    """Of a fit of 1e7 rows of 8, K = 16, its start included, beyond X, in MB."""
    benchmark.extra_info["peak MB"] = benchmark.pedantic(output, args=(PEAK,), rounds=1)
    print(f"peak memory beyond X, N = 1e7, D = 8, K = 16: {benchmark.extra_info['peak MB']:.0f} MB")


@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])
def bench_first_call(benchmark, tmp_path, kind):
    """The first fit of a process, in seconds: compiling its kernels, and with them on disk."""
    code = FIRST.format(kind=kind)
    cold = output(code, NUMBA_CACHE_DIR=str(tmp_path))
    warm = benchmark.pedantic(output, args=(code,), kwargs={"NUMBA_CACHE_DIR": str(tmp_path)}, rounds=1)
    benchmark.extra_info.update(cold=cold, warm=warm)
    print(f"first fit, {kind}: {cold:.1f} s cold, {warm:.2f} s warm")
