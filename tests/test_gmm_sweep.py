"""fastvae.gmm.sweep: each fit is that of `fit`, the criteria are those of `aic` and `bic`."""

import numpy as np
import pytest
import torch
from mixtures import data, identical

from fastvae import Status, gmm


@pytest.mark.parametrize("weighted", [False, True])
def test_a_sweep_is_a_loop(each_backend, weighted):
    X = data(N=90, D=2, K=3, batch=(4,))
    w = np.random.default_rng(0).uniform(0.5, 1, size=(4, 90)) if weighted else None
    options: dict = {"seed": 3, "covariance_type": "diag", "max_iter": 20, "sample_weight": w}
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


def test_what_has_no_fit_is_said():
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
        (3, TypeError, "n_components must be several numbers of components, got 3"),
        ("12", TypeError, "n_components must be several numbers of components"),
        ([], ValueError, "n_components must hold at least one number of components, got none"),
        ([1, 0], ValueError, "n_components must be"),
        ([1, 41], ValueError, "X must have at least n_components = 41 rows"),
    ],
)
def test_numbers_refused(n_components, error, message):
    with pytest.raises(error, match=message):
        gmm.sweep(data(N=40), n_components)
