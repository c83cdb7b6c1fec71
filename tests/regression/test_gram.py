"""fastvae.regression.Gram: chunks, merged or not, give the fit of all rows."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch

from fastvae import Status, regression
from fastvae.regression._problems import RankWarning

from .problems import FIELDS, B, N, R, by_backend, close, problem, same

pytestmark = by_backend
VALUES = tuple(name for name in FIELDS if name != "status")
CUTS = (0, 2, 9, 9, 10, N)  # one row, no row, fewer rows than columns


def chunks(X, y, w):
    for a, b in itertools.pairwise(CUTS):
        weights = None if w is None else w[..., a:b]
        rows = y[..., a:b] if y.ndim < X.ndim else y[..., a:b, :]
        yield X[..., a:b, :], rows, weights


def whole(gram, X, y, w=None):
    for chunk in chunks(X, y, w):
        assert gram.update(*chunk) is gram
    return gram


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("batch", "targets"), [((), None), ((B, 5), R)])
@pytest.mark.parametrize("alpha", [0, 2.5])
def test_chunks_match_the_whole(backend, fit_intercept, weighted, batch, targets, alpha):
    X, y, w = problem(*batch, targets=targets)
    w = w if weighted else None
    gram = whole(regression.Gram(fit_intercept=fit_intercept, backend=backend), X, y, w)
    result = gram.solve(alpha=alpha)
    truth = regression.fit(X, y, sample_weight=w, alpha=alpha, fit_intercept=fit_intercept, backend=backend)
    same(result, truth, fields=VALUES)
    close(result.covariance, truth.covariance, atol=1e-11)
    close(result.predict(X), truth.predict(X))
    assert result.summary().splitlines()[0] == truth.summary().splitlines()[0]


@pytest.mark.parametrize("batch", [(), (3,)])
def test_merging_matches_updating(backend, batch):
    X, y, w = problem(*batch)
    first, second, third = (regression.Gram(backend=backend) for _ in range(3))
    for gram, chunk in zip((first, first, first, second, third), chunks(X, y, w), strict=True):
        gram.update(*chunk)
    truth = whole(regression.Gram(backend=backend), X, y, w).solve()
    kept = copy.deepcopy(second)
    left = copy.deepcopy(first).merge(second).merge(third).solve()
    right = copy.deepcopy(first).merge(copy.deepcopy(second).merge(third)).solve()
    same(left, truth, fields=VALUES)
    same(right, truth, fields=VALUES)
    same(second.solve(on_singular="ignore"), kept.solve(on_singular="ignore"), 0)
    empty = regression.Gram(backend=backend)
    assert repr(empty.merge(regression.Gram(backend=backend))) == "Gram(no rows yet)"
    empty.merge(second).update(X, y)  # a copy: second is not modified
    same(second.solve(on_singular="ignore"), kept.solve(on_singular="ignore"), 0)
    same(third.merge(regression.Gram(backend=backend)).solve(), third.solve(), 0)


def test_it_can_be_solved_at_any_time(backend):
    X, y, w = problem()
    gram = regression.Gram(backend=backend)
    for end in (9, N):
        start = 0 if end == 9 else 9
        result = gram.update(X[start:end], y[start:end], w[start:end]).solve()
        same(result, regression.fit(X[:end], y[:end], sample_weight=w[:end], backend=backend), fields=VALUES)
        same(gram.solve(), result, 0)


def test_it_pickles(backend):
    X, y, w = problem(B)
    gram = regression.Gram(backend=backend).update(X[:, :9], y[:, :9], w[:, :9])
    again = pickle.loads(pickle.dumps(gram))
    assert repr(again) == repr(gram) == "Gram(2 problems of 9 rows, P = 4)"
    rest = X[:, 9:], y[:, 9:], w[:, 9:]
    same(again.update(*rest).solve(), gram.update(*rest).solve(), 0)
    assert repr(pickle.loads(pickle.dumps(regression.Gram()))) == "Gram(no rows yet)"
    assert repr(regression.Gram(backend=backend).update(X[0], y[0][:, None])) == "Gram(23 rows, P = 4, R = 1)"


def test_containers_and_dtypes(backend):
    X, y, _ = problem(dtype=np.float32)
    gram = regression.Gram(backend=backend).update(torch.from_numpy(X), torch.from_numpy(y))
    assert gram.solve().coef.dtype == torch.float32
    gram.update(X.astype(np.float64), y)  # the container of the first chunk, the promoted dtype of all
    assert gram.solve().coef.dtype == torch.float64
    twice = regression.fit(np.r_[X, X].astype(np.float64), np.r_[y, y], backend=backend)
    same(gram.solve(), twice, fields=VALUES)
    column = regression.Gram(backend=backend).update(X[:9, 0], y[:9]).update(X[9:, 0], y[9:]).solve()
    same(column, regression.fit(X[:, 0], y, backend=backend), 1e-6, fields=VALUES)
    tracked = torch.from_numpy(X).requires_grad_()
    assert not regression.Gram(backend=backend).update(tracked, torch.from_numpy(y)).solve().coef.requires_grad


def test_dependent_columns_are_reported(backend):
    X, y, w = problem()
    X = np.c_[X, X[:, 0] + X[:, 2]]
    gram = whole(regression.Gram(backend=backend), X, y, w)
    with pytest.warns(RankWarning, match="rank 4 of 5"):
        result = gram.solve()
    with pytest.raises(np.linalg.LinAlgError, match="rank 4 of 5"):
        gram.solve(on_singular="raise")
    truth = regression.fit(X, y, sample_weight=w, on_singular="ignore", backend=backend)
    same(result, truth, 1e-8, fields=tuple(name for name in VALUES if name != "condition"))
    assert result.status & Status.RANK_DEFICIENT
    few = regression.Gram(backend=backend).update(X[:3], y[:3]).solve(on_singular="ignore")
    close(few.predict(X[:3]), y[:3], rtol=1e-8)


def test_bad_problems_do_not_affect_the_others(backend):
    X, y, w = problem(6)
    sound = regression.fit(X, y, sample_weight=w, backend=backend)
    X[0, 3, 1], X[1, 0, 0], y[2, 5], w[3, 1], w[4] = np.nan, -np.inf, np.nan, np.nan, 0.0
    result = whole(regression.Gram(backend=backend), X, y, w).solve()
    flags = [Status(int(s)) & ~(Status.REFINED | Status.DOUBLE_DOUBLE) for s in result.status]
    assert flags == [Status.NONFINITE] * 4 + [Status.TOO_FEW_ROWS, Status(0)]
    same(result[5], sound[5], fields=VALUES)
    assert np.isnan(result.coef[:5]).all()
    merged = (
        regression.Gram(backend=backend).update(*problem(6)).merge(whole(regression.Gram(backend=backend), X, y, w))
    )
    assert (merged.solve().status & Status.NONFINITE != 0).tolist() == [True] * 4 + [False] * 2


def test_offsets_cost_nothing(backend):
    X, y, _ = problem()
    X = np.round(X * 2**20) / 2**20  # a grid on which the shift is exact
    far = whole(regression.Gram(backend=backend), X + 1e6, y).solve()
    near = regression.fit(X, y, backend=backend)
    close(far.coef, near.coef, rtol=1e-7)
