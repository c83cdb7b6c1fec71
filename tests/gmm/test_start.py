"""The parts of the reference engine: starts, rescues, blocks of rows, batches of problems."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from fastvae import Status
from fastvae import gmm as public
from fastvae.reference.gmm import engine as reference_engine
from fastvae.reference.gmm import formulas
from fastvae.reference.gmm import start as reference_start
from fastvae.reference.gmm.formulas import Mixture

from .mixtures import EPS, KINDS, as_torch, data, start

N, K = 60, 4


def rows(seed=0):
    """Rows `[1, N, 2]`, and weights, every fifth of which is 0."""
    w = np.random.default_rng(seed).uniform(0.5, 2, size=N)
    w[::5] = 0
    return torch.tensor(data(N=N, K=K, seed=seed))[None], torch.tensor(w)[None]


def centres_of(X, resp, w):
    r = resp * w[..., None]
    return r.mT @ X / r.sum(1)[..., None]


def cost(X, w, centres):
    return (w * torch.cdist(X, centres).min(-1).values.square()).sum().item()


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_converges_and_is_no_worse_than_scikit_learn(seed):
    X, w = rows(seed)
    resp = reference_start.initial_responsibilities(X, w, K, "kmeans", [(seed, 0, 0)])
    assert resp.shape == (1, N, K)
    centres = centres_of(X, resp, w)
    assert torch.equal(resp.argmax(-1), torch.cdist(X, centres).argmin(-1))
    assert torch.equal(resp.sum(-1), torch.ones(1, N, dtype=torch.float64))
    theirs = [KMeans(K, n_init=1, random_state=s).fit(X[0], sample_weight=w[0]).inertia_ for s in range(5)]
    # A start is random: it must not be worse than all of these.
    assert cost(X, w, centres) <= max(theirs) * (1 + N * EPS)


def test_kmeans_plus_plus_draws_by_weighted_squared_distance():
    """With four rows, the second seed is the better of two candidates, drawn with probability w d^2."""
    X = torch.tensor([[0.0], [1.0], [2.0], [5.0]], dtype=torch.float64)[None]
    w = torch.tensor([1e9, 1.0, 4.0, 0.0], dtype=torch.float64)[None]  # the first is row 0; row 3 is never drawn
    n = 4000
    seeds = reference_start.kmeans_plusplus(
        X.expand(n, 4, 1), w.expand(n, 4), 2, [reference_start.generator(0, problem, 0) for problem in range(n)]
    )
    assert (seeds[:, 0] == 0).all()
    share = (seeds[:, 1] == 1).double().mean().item()
    p = 1 / 17  # row 1 has w d^2 = 1, row 2 has 16 and reduces the cost more, so both candidates must be row 1
    assert abs(share - p**2) < 5 * math.sqrt(p**2 / n)


def test_greedy_seeds_fall_into_separate_blobs():
    X = torch.tensor(data(N=N, K=K))[None] + 1000 * torch.arange(N)[None, :, None] % (1000 * K)
    for seed in range(20):
        resp = reference_start.initial_responsibilities(X, torch.ones(1, N), K, "k-means++", [(seed, 0, 0)])
        assert resp.sum().item() == K
        assert set((resp[0].argmax(0) % K).tolist()) == set(range(K))


def test_rows_from_the_data_are_distinct_and_have_weight():
    X, w = rows()
    drawn = [reference_start.initial_responsibilities(X, w, K, "random_from_data", [(s, 0, 0)])[0] for s in range(500)]
    assert all((resp.sum(0) == 1).all() and (resp.sum(1) <= 1).all() for resp in drawn)
    counts = torch.stack(drawn).sum((0, 2))
    assert (counts[w[0] == 0] == 0).all()
    assert (counts[w[0] > 0] > 0).all()
    assert torch.corrcoef(torch.stack([counts, w[0]]))[0, 1] > 0.7  # and drawn by weight


def test_random_responsibilities_are_normalised():
    X, w = rows()
    resp = reference_start.initial_responsibilities(X, w, K, "random", [(0, 0, 0)])
    assert (resp.sum(-1) - 1).abs().max() <= K * EPS
    assert resp.unique().numel() == N * K


def test_an_empty_cluster_takes_the_farthest_row():
    X = torch.tensor([[0.0], [0.1], [0.2], [9.0]], dtype=torch.float64)[None]
    resp = reference_start.lloyd(X, torch.ones(1, 4, dtype=torch.float64), torch.tensor([[0, 0, 0]]))  # two are empty
    assert resp.sum(1).min() > 0
    assert (resp[0, :3] @ resp[0, 3] == 0).all()  # far from all others


def test_a_cluster_takes_no_row_without_weight():
    X = torch.tensor([[0.0], [0.1], [0.2], [9.0]], dtype=torch.float64)[None]
    w = torch.tensor([[1.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    resp = reference_start.lloyd(X, w, torch.tensor([[0, 0]]))
    assert resp[0, :, 1].tolist() == [0, 0, 1, 1]  # row 2 is the farthest of positive weight


def test_a_rescue_splits_the_widest_component_at_its_mean():
    X = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, -1.0], [9.0, 0.0], [9.0, 1.0], [9.0, -1.0]], dtype=torch.float64)
    resp = torch.tensor([[1, 0, 0.0]] * 3 + [[0, 1, 0.0]] * 3, dtype=torch.float64)
    resp[0] = torch.tensor([0.25, 0.25, 0.5])  # the share of the degenerate third goes to the others in proportion
    faulty = torch.tensor([[False, False, True]])
    got = reference_engine._split_widest(X[None], torch.ones(1, 6, dtype=torch.float64), resp[None], faulty)[0]
    # The second is the widest, in x, and is split at its mean there, 9 * 3 / 3.25.
    want = torch.tensor([[0.5, 0.5, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]], dtype=torch.float64)
    assert torch.equal(got, want)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize(("at", "n_iter"), [(1, 3), (2, 4)])
def test_a_rescue_is_not_convergence(at, n_iter, backend):
    """With this tol any two bounds are close, but those before and after a rescue are not compared."""
    X = np.concatenate([np.random.default_rng(0).normal(size=(40, 1)), [[100.0], [103.0]]])
    means, variances = np.array([[0.0], [100.0], [50.0]]), np.array([[1.0], [0.3], [2000.0]])
    if at == 1:
        means[1] = 1e9  # without rows from the start; at 100, after one step
    first = Mixture(np.array([0.6, 0.1, 0.3]), means, variances, "diag")
    how: dict[str, Any] = {"covariance_type": "diag", "init": first, "reg_covar": 0, "backend": backend}
    assert public.fit(X, 3, on_degenerate="status", **how).n_iter == at - 1
    fit = public.fit(X, 3, on_degenerate="rescue", tol=1e9, **how)
    assert fit.status == Status.CONVERGED | Status.RESCUED
    assert fit.n_iter == n_iter


def test_random_streams_are_independent():
    streams = [(seed, problem, restart) for seed in (0, 1, 2**62) for problem in range(20) for restart in range(3)]
    draws = [torch.rand(1, generator=reference_start.generator(*s), dtype=torch.float64).item() for s in streams]
    assert len(set(draws)) == len(draws)
    again = [torch.rand(1, generator=reference_start.generator(*s), dtype=torch.float64).item() for s in streams]
    assert draws == again


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_rows_change_nothing_but_rounding(kind, monkeypatch):
    X = torch.tensor(data(N=50, D=3, batch=(2,)))
    mixture = as_torch(start(X.numpy(), kind=kind))
    new, before = formulas.em_step(X, mixture)
    shapes, whole = set(), formulas._residuals

    def watched(X, means):
        for residual in whole(X, means):
            shapes.add(tuple(residual.shape))
            yield residual

    monkeypatch.setattr(formulas, "BLOCK", 2 * 3 * 3 * 7)
    monkeypatch.setattr(formulas, "_residuals", watched)
    got, total = formulas.em_step(X, mixture)
    assert shapes == {(2, 3, 7, 3), (2, 3, 1, 3)}
    assert (total - before).abs().max() <= 50 * EPS * before.abs().max()
    for a, b in zip(got[:3], new[:3], strict=True):
        assert (a - b).abs().max() <= 50 * EPS * X.abs().max() ** 2


@pytest.mark.parametrize(
    ("kind", "init"),
    [
        pytest.param(kind, init, marks=[] if kind == "full" or init == "kmeans" else pytest.mark.long)
        for kind in KINDS
        for init in reference_start.STARTS
    ],
)
def test_all_problems_at_once_match_each_by_itself(kind, init, monkeypatch):
    """As on a GPU, where all problems run together and leave the batch when they end."""
    X = torch.tensor(data(N=40, batch=(5,)))
    X[3] = X[3, 0] + 1e-3 * X[3]
    options: dict[str, Any] = {"n_init": 2, "tol": 1e-6, "max_iter": 200, "reg_covar": 1e-6}
    w = torch.rand(5, 40, dtype=torch.float64)
    options |= {"sample_weight": w, "seed": 0, "problems": torch.arange(5), "rescue": True, "progress": None}
    want = reference_engine.fit(X, 3, kind, start=init, **options)
    assert want.n_iter.unique().numel() > 1
    monkeypatch.setattr(reference_engine, "_groups", lambda X: [slice(0, len(X))])
    got = reference_engine.fit(X, 3, kind, start=init, **options)
    assert torch.equal(got.n_iter, want.n_iter)
    assert torch.equal(got.status, want.status)
    for a, b in zip(got[:5], want[:5], strict=True):
        # one rounding error per row, times the condition numbers of the covariances
        torch.testing.assert_close(a, b, rtol=1e4 * 40 * EPS, atol=1e4 * 40 * EPS, equal_nan=True)
