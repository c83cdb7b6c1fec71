"""Properties of the mixture kernels beyond their values: bits, chunks, layouts, memory, sums about a far mean."""

import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch

import fastvae
from fastvae import gmm
from fastvae_kernels.numba.gmm import launch, run

from .mixtures import KINDS, as_torch, data, identical, start

every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def fit(X, K=3, **options):
    return gmm.fit(X, K, seed=1, backend="numba", **{"max_iter": 4, **options})


@every_kind
@pytest.mark.parametrize("N", [1000, 40_000])  # a few tiles, the last one partial; more tiles than slots
def test_the_same_bits_for_any_number_of_threads_and_in_every_run(kind, N):
    X = data(N=N)
    fits = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        fits.append(fit(X, covariance_type=kind))
    for other in fits[1:]:
        identical(fits[0], other)


@every_kind
@pytest.mark.parametrize("init", ["kmeans", "k-means++", "random", "random_from_data"])
@pytest.mark.parametrize("weighted", [False, True])
def test_chunks_give_the_bits_of_the_whole_array(kind, init, weighted, monkeypatch):
    monkeypatch.setattr(launch, "PIECE_ELEMENTS", 2 * 1100)  # several pieces, of three tiles of 512 rows
    X = data(N=5003)
    w = np.random.default_rng(0).integers(0, 3, len(X)) if weighted else None
    cuts = [0, 1, 1, 600, 2500, 5003]  # one row, none, within a tile, across pieces
    options = {"covariance_type": kind, "init": init, "sample_weight": w, "n_init": 2}
    chunks = fit(lambda: (X[a:b] for a, b in itertools.pairwise(cuts)), **options)
    identical(fit(X, **options), chunks)


def test_chunks_of_a_sample_give_the_bits_of_the_whole_array(monkeypatch):
    monkeypatch.setattr(launch, "SEED_ROWS", 100)
    X = data(N=2000).astype(np.float32)
    identical(fit(X), fit(lambda: [X[:777], X[777:]]))


def test_chunks_may_be_tensors_and_reach_the_reference_as_one_array():
    X = torch.from_numpy(data(N=300))
    whole, chunks = (gmm.fit(x, 3, seed=0, backend="reference") for x in (X, lambda: X.split(70)))
    assert isinstance(chunks.mixture.means, torch.Tensor)
    assert torch.equal(whole.mixture.means, chunks.mixture.means)


X = data(N=40)
# Invalid functions X, the error and its message.
BAD_CHUNKS = {
    "one row": (
        lambda: [X[0]],
        ValueError,
        r"each chunk of X must have the shape \[n, D\] with at least 1 column, got",
    ),
    "other columns": (lambda: [X, X[:, :1]], ValueError, r"with 2 columns, as the first, got \[40, 1\]"),
    "other dtype": (
        lambda: [X, X.astype(np.float32)],
        TypeError,
        r"must be torch.float64, as the first, got torch.float32",
    ),
    "a list": (lambda: [X.tolist()], TypeError, r"each chunk of X must be a NumPy array or a torch.Tensor, got list"),
    "no iterable": (lambda: 3, TypeError, r"X must return an iterable of arrays \[n, D\] when called, got 3"),
    "infinity": (lambda: [X, X / 0.0], ValueError, r"X must be finite, got -?inf at \[40, 0\]"),
    "too few": (lambda: [X[:2]], ValueError, r"X must have at least n_components = 3 rows, got the shape \[2, 2\]"),
}


@pytest.mark.parametrize("bad", BAD_CHUNKS)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_chunks_refused(bad):
    chunks, error, message = BAD_CHUNKS[bad]
    with pytest.raises(error, match=message):
        gmm.fit(chunks, 3)


def test_an_iterator_that_can_run_only_once_is_refused():
    once = iter([X])
    with pytest.raises((TypeError, ValueError), match="the same iterator twice"):
        gmm.fit(lambda: once, 3)


def test_rows_that_change_between_passes_are_refused():
    calls = []

    def chunks():
        calls.append(1)
        return [X] if len(calls) < 4 else [X[:30]]

    with pytest.raises(ValueError, match="X must give the same rows each time, got 40 in the first pass, now 30"):
        fit(chunks)


@every_kind
def test_layouts_of_rows_change_no_bit(kind):
    """Strided rows, strided features, an expanded batch, a memory-mapped file."""
    X = data(N=600, D=3)
    want = fit(X, covariance_type=kind)
    wide = np.zeros((600, 7))
    wide[:, 2:5] = X
    identical(want, fit(wide[:, 2:5], covariance_type=kind))
    identical(want, fit(np.asfortranarray(X), covariance_type=kind))
    pair = fit(np.broadcast_to(X, (2, 600, 3)), covariance_type=kind, max_iter=0)
    assert np.array_equal(pair.mixture.means[0], fit(X, covariance_type=kind, max_iter=0).mixture.means)


def test_a_memory_mapped_file_is_read_in_place(tmp_path):
    X = data(N=600)
    np.save(tmp_path / "rows.npy", X)
    identical(fit(X), fit(np.load(tmp_path / "rows.npy", mmap_mode="r")))


@every_kind
# There is separate code for each D up to 8; then blocks of four features, with or without a remainder.
@pytest.mark.parametrize("D", [*range(1, 9), 9, 12, 14])
def test_one_step_matches_the_reference(kind, D):
    X = data(N=700, D=D, seed=D)  # two tiles, the second ends within a vector
    mixture = start(X, kind=kind, seed=D)
    w = np.random.default_rng(D).uniform(size=len(X))
    for weights in (None, w):
        got, want = (gmm.em_step(X, mixture, sample_weight=weights, backend=b) for b in ("numba", "reference"))
        for a, b in zip((*got[0][:3], got[1]), (*want[0][:3], want[1]), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-13 * np.abs(b).max())


@every_kind
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_an_m_step_reads_the_responsibilities_of_its_rows(kind, dtype, weighted):
    g = np.random.default_rng(0)
    X, resp = data(N=40_000, batch=(2,)), g.dirichlet(np.ones(3), size=(2, 40_000)).astype(dtype)  # 79 tiles, 32 slots
    w = g.uniform(size=X.shape[:2]) if weighted else None
    got, want = (gmm.m_step(X, resp, covariance_type=kind, sample_weight=w, backend=b) for b in ("numba", "reference"))
    for a, b in zip(got[:3], want[:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["full", "diag"])
@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_a_determinant_out_of_range_has_a_finite_logarithm(kind, unit):
    X = data(N=200, D=41) * unit  # the product of 41 factors overflows, or underflows
    how = {"covariance_type": kind, "init": start(X, 1, kind), "reg_covar": 0.0, "on_degenerate": "status"}
    fits = [gmm.fit(X, 1, max_iter=3, tol=0.0, backend=b, **how) for b in ("numba", "reference")]
    for found in fits:
        assert (found.status, found.n_iter) == (fastvae.Status.MAX_ITER, 3)
    np.testing.assert_allclose(fits[0].lower_bounds, fits[1].lower_bounds, rtol=1e-11)


@every_kind
def test_a_component_that_jumps_far_keeps_its_accuracy(kind):
    """Sums about a mean 1e8 standard deviations away would lose the variance, so they are computed again."""
    X = np.random.default_rng(0).normal(size=(300, 2))
    V = np.eye(2) * 1e16
    covariances = {"full": V[None], "tied": V, "diag": np.full((1, 2), 1e16), "spherical": np.full(1, 1e16)}[kind]
    far = gmm.Mixture(np.ones(1), np.full((1, 2), 1e8), covariances, kind)
    mixture, _ = gmm.em_step(X, far, backend="numba")
    want = np.cov(X.T, ddof=0)
    want = {"full": want[None], "tied": want, "diag": want.diagonal()[None], "spherical": want.trace()[None] / 2}[kind]
    np.testing.assert_allclose(mixture.covariances, want, rtol=1e-7)  # the accuracy of x in x - 1e8
    fitted = gmm.fit(X, 1, covariance_type=kind, init=far, reg_covar=0.0, backend="numba")
    np.testing.assert_allclose(fitted.mixture.covariances, want, rtol=1e-13)


def step_by_step(m, active, steps, rescue, whole, progress=None, take_steps=run.take_steps):
    """What `run.take_steps` does in one work unit a problem, in a launch for each step."""
    take_steps(m, active, steps, rescue, False, progress)


SMALL: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "one tile": (data(N=120, batch=(20,)), {}),
    "several tiles": (data(N=1500, D=3, batch=(9,)), {}),
    "alone": (data(), {}),
    "more features than fit in registers": (data(N=60, D=11, batch=(9,)), {"n_init": 2}),
    "float32": (data(batch=(9,)).astype(np.float32), {}),
    "weights": (data(batch=(9,)), {"sample_weight": np.random.default_rng(0).integers(0, 3, 120)}),
    "few iterations": (data(batch=(9,)), {"max_iter": 2}),
    "centers without rows": (data(N=40, batch=(9,)).round(-1), {"reg_covar": 1e-2}),
    "components that shrink": (data(N=12, K=2, batch=(30,)), {"reg_covar": 0, "on_degenerate": "status"}),
    "put elsewhere": (data(N=12, K=2, batch=(30,)), {"reg_covar": 0, "on_degenerate": "rescue"}),
}


@every_kind
@pytest.mark.parametrize("init", ["kmeans", "k-means++", "random", "random_from_data"])
@pytest.mark.parametrize("case", SMALL)
def test_all_steps_in_one_unit_give_the_bits_of_one_launch_each(case, init, kind, monkeypatch):
    X, options = SMALL[case]
    how = {"covariance_type": kind, "init": init, "max_iter": 100, **options}
    if "reg_covar" in how and init in ("k-means++", "random_from_data") and how["reg_covar"] == 0:
        pytest.skip("these start from reg_covar")
    torch.set_num_threads(2)  # fewer threads than problems
    found = fit(X, **how)
    monkeypatch.setattr(run, "take_steps", step_by_step)
    identical(found, fit(X, **how))


@every_kind
def test_sums_about_means_that_jumped_are_redone_in_one_unit_too(kind, monkeypatch):
    X = data(batch=(9,))
    first = start(X, kind=kind)
    first.means[:] += 1e9
    first.covariances[:] = first.covariances * 1e18
    how = {"covariance_type": kind, "init": first, "max_iter": 30, "on_degenerate": "status"}
    found = fit(X, **how)
    monkeypatch.setattr(run, "take_steps", step_by_step)
    identical(found, fit(X, **how))


def test_progress_counts_problems(capsys):
    fit(data(N=40, batch=(50,)), progress=True)
    assert "50/50" in capsys.readouterr().err


@pytest.mark.parametrize("B", [1, 3])
def test_a_separate_m_step_gives_the_same_bits(B, monkeypatch):
    """Finished component by component on all threads, or by the thread of the last slot."""
    X = data(N=3000, D=5, batch=(B,))
    want = fit(X, 4)
    monkeypatch.setattr(launch, "SEPARATE_UPDATE", 0)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        identical(want, fit(X, 4))


@pytest.mark.parametrize("chunks", [False, True])
def test_a_sample_without_weight_is_not_drawn_from(chunks):
    X, w = torch.from_numpy(data(N=2000)), torch.zeros(1, 2000, dtype=torch.float64)
    w[0, 1::23] = 1.0  # every 23rd row would be sampled, but these have weight 0
    found = []
    for u in (None, w):
        rows = launch.Stream(lambda: X.split(700), 2000, 2, X.dtype, u) if chunks else X[None]
        found.append(launch.Mixtures(rows, u, 3, 0).sample(100).N)
    assert found == [87, 2000]


def test_responsibilities_are_never_stored():
    """Peak memory of torch and NumPy in a fit: far below one [N, K] matrix."""
    import tracemalloc

    X = torch.randn(200_000, 2)
    fit(X, 16, max_iter=1)
    tracemalloc.start()
    fit(X, 16, max_iter=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000 * 16 * 8 / 4


def test_show_config_names_the_backend_of_mixtures(capsys):
    fastvae.show_config()
    assert re.search(r"gmm +numba", capsys.readouterr().out)


@every_kind
def test_an_outlier_costs_no_accuracy(kind):
    """A row or a mean 1e15 away is not used as a shift: results for all other rows keep their accuracy."""
    X = data(N=300)
    X[0] = 1e15
    near = start(X[1:], kind=kind)
    far = near._replace(means=np.concatenate([near.means[:2], [[1e15, 1e15]]]))
    for mixture in (near, far):
        got, want = (gmm.score_samples(X, mixture, backend=b)[1:] for b in ("numba", "reference"))
        np.testing.assert_allclose(got, want, rtol=1e-13)
    resp = np.eye(3)[np.arange(300) % 3]
    resp[0] = 0  # without responsibility
    got, want = (gmm.m_step(X[i:], resp[i:], covariance_type=kind, backend="numba") for i in (0, 1))
    np.testing.assert_allclose(got.covariances, want.covariances, rtol=1e-13)


@every_kind
@pytest.mark.parametrize("streamed", [False, True])
def test_ignored_rows_cost_no_accuracy(kind, streamed):
    X = data(N=300)
    rows = np.concatenate([np.full((7, 2), 1e15), X])
    how: dict[str, Any] = {"covariance_type": kind, "init": start(X, kind=kind)}
    for counted in (300, 4):  # of the other rows; there may be fewer than five
        w = np.concatenate([np.zeros(7), np.ones(counted), np.zeros(300 - counted)])
        got = fit((lambda: [rows[:4], rows[4:]]) if streamed else rows, sample_weight=w, max_iter=1, **how)
        want = fit(X, sample_weight=w[7:], max_iter=1, **how)
        for a, b in zip(got.mixture[:3], want.mixture[:3], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_a_nan_row_does_not_affect_the_others():
    X = data(N=300)
    mixture = start(X)
    want = gmm.score_samples(X, mixture, backend="numba")
    X[:2] = np.nan
    got = gmm.score_samples(X, mixture, backend="numba")
    assert np.isnan(got[:2]).all()
    np.testing.assert_array_equal(got[2:], gmm.score_samples(X, mixture, backend="numba")[2:])
    np.testing.assert_allclose(got[2:], want[2:], rtol=1e-13)


def test_parameters_that_require_grad_are_accepted_without_a_graph():
    X = torch.from_numpy(data(N=50))
    mixture = as_torch(start(X.numpy()))
    for t in mixture[:3]:
        t.requires_grad_()
    with torch.no_grad():
        got = gmm.score_samples(X, mixture, backend="numba")
    assert torch.allclose(got, gmm.score_samples(X, mixture, backend="reference"), rtol=1e-13)
