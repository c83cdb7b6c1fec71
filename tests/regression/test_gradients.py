"""Gradients of fastvae.regression.fit, which are computed by the reference."""

import math

import pytest
import torch

from fastvae import regression

from .problems import FIELDS, B, by_backend, close, problem

pytestmark = by_backend
intercept_or_not = pytest.mark.parametrize("fit_intercept", [True, False])


@intercept_or_not
@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_gradients(backend, fit_intercept, alpha):
    X, y, w = problem(rows=7)
    X, y, w = (torch.from_numpy(t).requires_grad_() for t in (X / X.std(0), y, w + 0.5))

    def fields(X, y, w):
        result = regression.fit(X, y, sample_weight=w, alpha=alpha, fit_intercept=fit_intercept)
        values = (getattr(result, name) for name in FIELDS[:9])
        return tuple(v for v in (*values, result.covariance) if v.requires_grad and not v.isnan().any())

    assert len(fields(X, y, w)) == (6 if alpha else 9 + fit_intercept)
    assert torch.autograd.gradcheck(fields, (X, y, w))
    with torch.no_grad():
        assert not regression.fit(X, y, backend=backend).coef.requires_grad


def test_torch_func_gradients(backend):
    X, y, _ = (torch.from_numpy(t) for t in problem(B))
    rss = torch.func.grad(lambda y: regression.fit(X, y).rss.sum())(y)
    close(rss, 2 * (y - regression.fit(X, y, backend=backend).predict(X)), rtol=1e-7)


def test_gradients_of_good_problems_ignore_bad_ones(backend):
    X, y, _ = (torch.from_numpy(t) for t in problem(3))
    X[1, 0, 0] = math.nan
    X[2, :, 1] = X[2, :, 0]
    X.requires_grad_()
    regression.fit(X, y, on_singular="ignore").coef[0].sum().backward()
    alone = X.detach()[0].requires_grad_()
    regression.fit(alone, y[0]).coef.sum().backward()
    assert X.grad is not None
    close(X.grad[0], alone.grad)
    assert (X.grad[1:] == 0).all()
