"""Regressions with tensors whose memory does not hold their values: lazily negated ones, and zeros without memory."""

import pytest
import torch

from fastvae import regression

from ..views import negated, zero
from .problems import B, by_backend, problem, same

pytestmark = by_backend


def tensors(dtype=torch.float64):
    X, y, w = (torch.from_numpy(t) for t in problem(B))
    return X.to(dtype), y.to(dtype), w


@pytest.mark.parametrize("which", ["X", "y", "sample_weight", "all"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_negated_tensors_are_read_correctly(backend, which, dtype):
    plain = dict(zip(("X", "y", "sample_weight"), tensors(dtype), strict=True))
    lazy = {name: negated(t) if which in (name, "all") else t for name, t in plain.items()}
    assert any(t.is_neg() for t in lazy.values())
    truth = regression.fit(**plain, backend=backend)
    same(regression.fit(**lazy, backend=backend), truth, 0)
    gram = regression.Gram(backend=backend).update(*lazy.values()).solve()
    same(gram, regression.Gram(backend=backend).update(*plain.values()).solve(), 0)
    torch.testing.assert_close(truth.predict(lazy["X"]), truth.predict(plain["X"]), rtol=0, atol=0)
    for name, t in lazy.items():
        torch.testing.assert_close(t.resolve_neg(), plain[name], rtol=0, atol=0)


def test_gradients_reach_negated_tensors(backend):
    if backend != "reference":
        pytest.skip("gradients are the reference's")
    grads = []
    for view in (torch.Tensor.clone, negated):
        leaves = [t.clone().requires_grad_() for t in tensors()[:2]]
        regression.fit(*(view(t) for t in leaves)).coef.sum().backward()
        grads.append([t.grad for t in leaves])
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=0)


def test_zeros_without_memory(backend):
    X, y, w = tensors()
    fit = regression.fit(X, zero(y), sample_weight=w, backend=backend)
    same(fit, regression.fit(X, torch.zeros_like(y), sample_weight=w, backend=backend), 0)
    assert (
        regression.fit(X, y, backend=backend).predict(zero(X)) == regression.fit(X, y, backend=backend).predict(0 * X)
    ).all()
    with pytest.raises(ValueError, match=r"^sample_weight must be positive for at least one row, got 0$"):
        regression.fit(X[0], y[0], sample_weight=zero(w[0]), backend=backend)
