"""fastvae.gmm.sweep: each fit matches `fit`, the criteria match `aic` and `bic`."""

import numpy as np
import pytest
import torch

from fastvae import Status, gmm

from .mixtures import data, identical


@pytest.mark.parametrize("weighted", [False, True])
def test_a_sweep_is_a_loop(each_backend, weighted):
    X = data(N=90, D=2, K=3, batch=(4,))
    w = np.random.default_rng(0).uniform(0.5, 1, size=(4, 90)) if weighted else None
    options: dict = {"seed": 3, "covariance_type": "diag", "tol": 1e-3, "max_iter": 20, "sample_weight": w}
    found = gmm.sweep(X, [1, 3, 2], n_init=2, **options)
    assert found.n_components == [1, 3, 2]
    for K, one, aic, bic in zip(found.n_components, found.fits, found.aic, found.bic, strict=True):
        identical(one, gmm.fit(X, K, n_init=2, on_degenerate="status", **options))
        np.testing.assert_allclose(aic, gmm.aic(X, one.mixture, sample_weight=w), rtol=1e-12)
        np.testing.assert_allclose(bic, gmm.bic(X, one.mixture, sample_weight=w), rtol=1e-12)
    np.testing.assert_array_equal(found.best, np.array([1, 3, 2])[found.bic.argmin(0)])


def test_one_problem_chunks_and_tensors():
    X = data(N=300, D=2, K=3)
    whole = gmm.sweep(X, range(1, 5), seed=0)
    parts = gmm.sweep(lambda: [X[:111], X[111:]], range(1, 5), seed=0)
    tensor = gmm.sweep(torch.from_numpy(X), range(1, 5), seed=0)
    assert whole.best == parts.best == tensor.best
    assert isinstance(whole.best, int)
    assert whole.bic.shape == (4,)
    np.testing.assert_array_equal(whole.bic, parts.bic)
    np.testing.assert_array_equal(whole.bic, tensor.bic.numpy())


def test_problems_without_a_fit_are_reported():
    X = data(N=40, D=2, batch=(3,))
    X[1, 7, 0] = np.nan
    found = gmm.sweep(X, [1, 2], seed=0)
    assert found.best[1] == 0
    assert np.isnan(found.bic[:, 1]).all()
    assert (found.best[[0, 2]] > 0).all()
    assert all(one.status[1] == Status.NONFINITE for one in found.fits)


@pytest.mark.parametrize(
    ("n_components", "error", "message"),
    [
        (3, TypeError, "n_components must be an iterable of ints, got 3"),
        ("12", TypeError, "n_components must be an iterable of ints"),
        ([], ValueError, "n_components must hold at least one number of components, got none"),
        ([1, 0], ValueError, "n_components must be"),
    ],
)
def test_numbers_refused(n_components, error, message):
    with pytest.raises(error, match=message):
        gmm.sweep(data(N=40), n_components)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("form", ["array", "tensor", "chunks"])
def test_more_components_than_rows_are_a_status(batch, form, each_backend):
    X = data(N=5, batch=batch)
    if form == "chunks" and batch:
        pytest.skip("chunks are of one problem")
    given = {"array": X, "tensor": torch.from_numpy(X), "chunks": lambda: [X[:2], X[2:]]}[form]
    found = gmm.sweep(given, [1, 6, 2], seed=0)
    assert (np.asarray(found.fits[1].status) == Status.TOO_FEW_ROWS).all()
    assert np.isnan(np.asarray(found.fits[1].mixture.means)).all()
    assert found.fits[1].mixture.means.shape == (*batch, 6, 2)
    assert np.isnan(np.asarray(found.bic)[1]).all()
    assert np.isfinite(np.asarray(found.bic)[[0, 2]]).all()
    assert (np.asarray(found.best) != 6).all()
    alone = gmm.sweep(given, [6], seed=0)
    assert (np.asarray(alone.best) == 0).all()
    with pytest.raises(ValueError, match="X must have at least n_components = 6 rows, got the shape"):
        gmm.sweep(given, [1, 6], on_degenerate="raise")


def cigars(seed, D=2):
    """Two parallel clusters, much longer than their distance."""
    g = np.random.default_rng(seed)
    X = g.normal(size=(400, D)) * [20.0, 0.3, *[1.0] * (D - 2)]
    X[:, 1] += np.repeat([-2.0, 2.0], 200)
    return X


@pytest.mark.parametrize("kind", ["full", "tied", "diag"])
@pytest.mark.parametrize("seed", range(5))
def test_two_cigars_are_two(seed, kind, each_backend):
    most = 2 if kind == "tied" else 3  # a tied covariance of three has the lower BIC by chance, 4274.0 to 4275.8
    found = gmm.sweep(cigars(seed), range(1, most + 1), covariance_type=kind, seed=seed)
    assert found.best == 2
    np.testing.assert_allclose(np.sort(found.fits[1].mixture.means[:, 1]), [-2, 2], atol=0.1)


def tilted(seed, D=2):
    """The same, rotated: k-means splits both clusters across, in any units of the features."""
    turn = np.array([[1.0, 1.0], [-1.0, 1.0]]) / np.sqrt(2)
    if D > 2:
        turn = np.linalg.qr(np.random.default_rng(100 + seed).normal(size=(D, D)))[0]
    return cigars(seed, D) @ turn, turn


@pytest.mark.parametrize("kind", ["full", "tied"])
@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(s, marks=pytest.mark.long) for s in range(4, 10))])
def test_two_tilted_cigars_are_two(seed, kind, each_backend):
    X, turn = tilted(seed)
    most = 2 if kind == "tied" else 3  # as above
    found = gmm.sweep(X, range(1, most + 1), covariance_type=kind, seed=seed, n_init=3)
    assert found.best == 2
    np.testing.assert_allclose(np.sort((found.fits[1].mixture.means @ turn.T)[:, 1]), [-2, 2], atol=0.1)


@pytest.mark.parametrize("kind", ["full", "tied"])
@pytest.mark.parametrize(
    "rows", ["all", "weighted", "many", "in chunks", "a feature twice", "a constant", "far away", "in a batch"]
)
def test_k_means_of_whitened_rows_starts_along_tilted_cigars(kind, rows, each_backend):
    """The best of several starts, before any step of EM; only starts from whitened rows are this good."""
    X, turn = tilted(0, 3)
    how = {"covariance_type": kind, "seed": 0, "max_iter": 0, "n_init": 7, "on_degenerate": "raise"}
    given, shift = X, 0.0
    if rows == "many":  # more than are whitened
        given = np.concatenate([X + 1e-3 * k for k in range(60)])
    elif rows == "weighted":
        given, how["sample_weight"] = np.concatenate([X, X[:50] * np.nan]), np.r_[np.ones(400), np.zeros(50)]
    elif rows == "in chunks":
        given = lambda: [X[:111], X[111:]]  # noqa: E731
    elif rows == "a feature twice":
        given = np.concatenate([X, X[:, :1]], axis=1)
    elif rows == "a constant":
        given = np.concatenate([X, np.full((400, 1), 0.1)], axis=1)
    elif rows == "far away":
        given = X + (shift := 1e6)
    elif rows == "in a batch":
        given = np.stack([X, 8 * X, X[::-1]])
    mixture = gmm.fit(given, 2, **how).mixture
    means = mixture.means[0] if rows == "in a batch" else mixture.means
    np.testing.assert_allclose(np.sort(((means[:, :3] - shift) @ turn.T)[:, 1]), [-2, 2], atol=0.15)
    if rows == "in a batch":
        np.testing.assert_array_equal(means, gmm.fit(X, 2, **how).mixture.means)


@pytest.mark.parametrize("kind", ["full", "tied", "diag"])
@pytest.mark.parametrize("D", [2, 11])
@pytest.mark.parametrize("units", ["one", "each its own"])
def test_k_means_starts_in_the_scale_of_the_data(kind, D, units, each_backend):
    """The start, before any step of EM, has the same clusters in any units, here powers of 2."""
    X = cigars(0, D)
    c = 2.0 ** np.random.default_rng(1).integers(-40, 40, D if units == "each its own" else 1)
    how = {"covariance_type": kind, "seed": 3, "max_iter": 0, "reg_covar": 0}
    want, got = (gmm.fit(x, 2, **how).mixture for x in (X, c * X))
    if D == 2:
        np.testing.assert_allclose(np.sort(want.means[:, 1]), [-2, 2], atol=0.1)
    np.testing.assert_allclose(got.means, c * want.means, rtol=1e-9, atol=1e-9 * c.max())
    many = gmm.fit(np.stack([X, c * X]), 2, **how).mixture.means
    np.testing.assert_array_equal(many[0], want.means)


def test_a_constant_feature_and_a_far_row_do_not_hinder_k_means(each_backend):
    shift = np.array([0.0, 1e9, 0.0])
    X = np.concatenate([cigars(0), np.full((400, 1), 0.1)], axis=1) + shift
    found = gmm.fit(X, 2, seed=0, max_iter=0)
    np.testing.assert_allclose(np.sort(found.mixture.means[:, 1] - 1e9), [-2, 2], atol=0.1)
    # Rows on both sides of 0 are not shifted, and sums about 0 would lose the variance completely.
    both, w = np.concatenate([[[0.0, -7.0, 0.1]], X]), np.concatenate([[1e-30], np.ones(400)])
    found = gmm.fit(both, 2, seed=0, max_iter=0, sample_weight=w)
    np.testing.assert_allclose(np.sort(found.mixture.means[:, 1] - 1e9), [-2, 2], atol=0.1)


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_restarts_of_k_means_take_turns(kind, each_backend):
    """Twelve redundant features outweigh the informative one, but not in the units of X."""
    g = np.random.default_rng(0)
    same = g.normal(size=(400, 1)) + 0.5 * g.normal(size=(400, 12))
    X = np.concatenate([np.repeat([[-10.0], [10.0]], 200, axis=0) + 0.1 * g.normal(size=(400, 1)), same], axis=1)
    how = {"covariance_type": kind, "max_iter": 0, "seed": 0}
    one, two = (np.sort(gmm.fit(X, 2, n_init=n, **how).mixture.means[:, 0]) for n in (1, 2))
    if kind == "diag":  # full ones may start from whitened rows, which separate the clusters
        assert np.abs(one).max() < 5
    np.testing.assert_allclose(two, [-10, 10], atol=0.1)
