"""The specification of Gaussian mixtures against torch.distributions, scikit-learn, NumPy, mpmath and theory."""

import math
from operator import itemgetter

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, kl_divergence

from fastvae.reference.gmm import formulas
from fastvae.reference.gmm.formulas import Mixture

KINDS = list(formulas.COVARIANCE_TYPES)
every_kind = pytest.mark.parametrize("kind", KINDS)
f64 = torch.float64
EPS = torch.finfo(f64).eps


def problem(kind, N, D, K, batch=(), seed=0):
    """Overlapping components with condition numbers of a few tens at most, without accidental symmetry."""
    g = torch.Generator().manual_seed(seed)
    A = torch.randn(*batch, K, D, D, generator=g, dtype=f64)
    full = A @ A.mT / D + 0.5 * torch.eye(D, dtype=f64)
    diag = full.diagonal(dim1=-2, dim2=-1)
    X, means, weights = (2 * torch.randn(*batch, *s, generator=g, dtype=f64) for s in ((N, D), (K, D), (K,)))
    covariances = {"full": full, "tied": full[..., 0, :, :], "diag": diag, "spherical": diag[..., 0]}[kind]
    return X, Mixture(weights.softmax(-1), means, covariances.contiguous(), kind)


def random_q(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=f64).mul(3).softmax(-1)


def each(function, mixture):
    weights, means, covariances, kind = mixture
    return Mixture(function(weights), function(means), function(covariances), kind)


def components(mixture, index):
    weights, means, covariances, kind = mixture
    return Mixture(weights[index], means[index], covariances if kind == "tied" else covariances[index], kind)


def dense(mixture):  # the covariances as K full matrices
    _, means, covariances, kind = mixture
    if kind in ("full", "tied"):
        return covariances if kind == "full" else covariances[..., None, :, :].expand(*means.shape, -1)
    return torch.diag_embed(covariances if kind == "diag" else covariances[..., None].expand_as(means))


def torch_e_step(X, mixture):
    normals, rows = MultivariateNormal(mixture.means, dense(mixture)), X.movedim(-2, 0)  # rows before batch dims
    log_prob = MixtureSameFamily(Categorical(mixture.weights), normals).log_prob(rows)  # [N, *batch]
    joint = mixture.weights.log() + normals.log_prob(rows[..., None, :])  # [N, *batch, K]
    return joint.log_softmax(-1).movedim(0, -2), log_prob.movedim(0, -1)


def close(got, want, eps=None):
    """Within 200 eps of the largest value: sums of tens of terms times condition numbers of tens."""
    got, want = torch.as_tensor(got), torch.as_tensor(want)
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 200 * (eps or torch.finfo(got.dtype).eps) * want.abs().max()


def all_close(got, want):
    for a, b in zip(got[:3], want[:3], strict=True):  # a Mixture's fourth is a string
        close(a, b)


@every_kind
# All sizes differ, so that axes cannot be confused; sizes of 1, which squeeze or broadcast; two batch dims in order.
@pytest.mark.parametrize(("N", "D", "K", "batch"), [(7, 3, 4, ()), (5, 1, 1, ()), (6, 2, 3, (2, 4))])
def test_e_step_and_gradients_match_torch_distributions(kind, N, D, K, batch):
    X, mixture = problem(kind, N, D, K, batch)
    leaves = [t.requires_grad_() for t in (X, mixture.means, mixture.covariances)]
    got, want = formulas.e_step(X, mixture), torch_e_step(X, mixture)
    all_close(got, want)
    all_close(torch.autograd.grad(got.log_prob.sum(), leaves), torch.autograd.grad(want[1].sum(), leaves))


@every_kind
@pytest.mark.parametrize("reg_covar", [0.0, 0.1])
def test_one_step_matches_scikit_learn(kind, reg_covar):
    X, start = problem(kind, N=200, D=3, K=4)  # many rows: with few per component, scikit-learn's 10 eps matter
    P = dense(start).inverse()
    w, m, p = map(np.asarray, (*start[:2], {"full": P, "tied": P[0]}.get(kind, 1 / start.covariances)))
    model = GaussianMixture(4, covariance_type=kind, reg_covar=reg_covar, max_iter=1)
    with pytest.warns(ConvergenceWarning):
        model.set_params(weights_init=w, means_init=m, precisions_init=p).fit(X.numpy())
    new, before = formulas.em_step(X, start, reg_covar=reg_covar)
    all_close(new, [model.weights_, model.means_, model.covariances_])
    close(before / 200, np.float64(model.lower_bound_))
    close(formulas.e_step(X, new).log_resp.exp(), model.predict_proba(X.numpy()))
    close(formulas.log_likelihood(X, new) / 200, np.float64(model.score(X.numpy())))


@every_kind
def test_e_step_is_accurate_if_densities_underflow(kind):
    """Condition number 1e6, a weight of 1e-300, an offset of 1e6, rows up to 1e5 away; truth to 60 decimal digits."""
    D = 3  # the smallest with an element of a Cholesky factor below the diagonal that depends on another
    Q = torch.linalg.qr(random_q(D, D)).Q
    full = Q @ torch.diag(torch.tensor([1e-3, 1.0, 1e3], dtype=f64)) @ Q.mT
    X, mixture = problem(kind, N=4, D=D, K=3)
    X = 1e6 + X * torch.tensor([1.0, 10.0, 1e3, 1e5], dtype=f64)[:, None]
    covariances = {"full": full.expand(3, D, D), "tied": full}.get(kind, mixture.covariances)
    mixture = Mixture(torch.tensor([1e-300, 0.25, 0.75], dtype=f64), mixture.means + 1e6, covariances, kind)
    parameters = [t.tolist() for t in (mixture.weights, mixture.means, dense(mixture))]
    cond = 1e6 if kind in ("full", "tied") else 1.0  # a Cholesky factor loses that much accuracy, variances none
    got = formulas.e_step(X, mixture)
    with mpmath.workdps(60):
        for n, x in enumerate(X.tolist()):
            joint = []
            for w, mu, Sigma in zip(*parameters, strict=True):
                e, S = mpmath.matrix(x) - mpmath.matrix(mu), mpmath.matrix(Sigma)
                quadratic = (e.T * S**-1 * e)[0] + mpmath.log(mpmath.det(S)) + D * mpmath.log(2 * mpmath.pi)
                joint.append(mpmath.log(w) - quadratic / 2)
            log_prob = mpmath.log(sum(map(mpmath.exp, joint)))
            allowed = 8 * D * cond * EPS * max(map(abs, joint))
            errors = [r + log_prob - j for r, j in zip(got.log_resp[n].tolist(), joint, strict=True)]
            assert max(map(abs, [*errors, got.log_prob[n].item() - log_prob])) <= allowed


@every_kind
def test_m_step_is_a_stationary_point_of_the_bound(kind):
    X, _ = problem(kind, N=30, D=3, K=2, batch=(2,))  # two problems: their bounds are maximised separately
    w, q = random_q(2, 30, seed=1), random_q(2, 30, 2, seed=2)
    mixture = each(torch.Tensor.requires_grad_, formulas.m_step(X, q, covariance_type=kind, sample_weight=w))
    d_weights, *rest = torch.autograd.grad(formulas.elbo(X, q, mixture, sample_weight=w).sum(), mixture[:3])
    # On the simplex all elements of the gradient of the weights equal the Lagrange multiplier: the total weight, 1.
    close(d_weights, torch.ones_like(d_weights))
    assert all(g.abs().max() <= 200 * EPS for g in rest)  # their terms are of order 1
    assert kind not in ("full", "tied") or torch.equal(mixture.covariances, mixture.covariances.mT)


@every_kind
def test_integer_sample_weights_match_repeated_rows(kind):
    X, mixture = problem(kind, N=12, D=2, K=3)
    w = torch.arange(12) % 4  # 0 (row absent) to 3, and integers: they must be promoted
    rows, q = torch.arange(12).repeat_interleave(w), random_q(12, 3)
    close(formulas.elbo(X, q, mixture, sample_weight=w), formulas.elbo(X[rows], q[rows], mixture))
    (got, before), (want, before_rows) = (
        formulas.em_step(X, mixture, sample_weight=w),
        formulas.em_step(X[rows], mixture),
    )
    all_close(got, want)
    close(before, before_rows)


@every_kind
def test_batch_is_a_loop(kind):
    X, mixture = problem(kind, N=20, D=2, K=3, batch=(2, 4))  # two batch dims, of unique sizes
    w, q = random_q(2, 4, 20), random_q(2, 4, 20, 3)
    new, before = formulas.em_step(X, mixture, sample_weight=w)
    shared, _ = formulas.em_step(X[1, 2], mixture, sample_weight=w[1, 2])  # one X, many starts
    for b in np.ndindex(2, 4):
        alone = each(itemgetter(b), mixture)
        want, before_alone = formulas.em_step(X[b], alone, sample_weight=w[b])
        all_close(each(itemgetter(b), new), want)
        close(before[b], before_alone)
        close(formulas.elbo(X, q, mixture, sample_weight=w)[b], formulas.elbo(X[b], q[b], alone, sample_weight=w[b]))
        all_close(each(itemgetter(b), shared), formulas.em_step(X[1, 2], alone, sample_weight=w[1, 2])[0])


@every_kind
def test_gradcheck(kind):
    X, (weights, means, covariances, _) = problem(kind, N=4, D=2, K=2)  # small: two calls for every element
    matrix = kind in ("full", "tied")
    root = torch.linalg.cholesky(covariances) if matrix else covariances.sqrt()
    inputs = [t.detach().requires_grad_() for t in (X, weights, means, root, random_q(4, 2), random_q(4))]

    def values(X, weights, means, root, q, w):
        mixture = Mixture(weights, means, root @ root.mT if matrix else root.square(), kind)  # valid for any root
        log_p, bound = (
            formulas.log_likelihood(X, mixture, sample_weight=w),
            formulas.elbo(X, q, mixture, sample_weight=w),
        )
        return log_p, bound, *formulas.m_step(X, q, covariance_type=kind, sample_weight=w)[:3]

    assert torch.autograd.gradcheck(values, inputs)


@given(st.sampled_from(KINDS), st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_log_likelihood_is_elbo_plus_kl_to_the_posterior(kind, seed, D, K, zeros):
    X, mixture = problem(kind, N=20, D=D, K=K, seed=seed)
    absent = int(zeros and K > 1)  # components
    q = torch.cat([torch.zeros(20, absent, dtype=f64), random_q(20, K - absent, seed=seed)], -1)
    w = random_q(20, seed=seed + 1)
    log_p, bound = formulas.log_likelihood(X, mixture, sample_weight=w), formulas.elbo(X, q, mixture, sample_weight=w)
    log_resp, _ = torch_e_step(X, mixture)
    gap = (w * kl_divergence(Categorical(q), Categorical(logits=log_resp))).sum()
    # Worst-case rounding: the size of the terms, times the number of additions, times the condition number of Sigma.
    rounding = (20 + K + D) * EPS * (w[:, None] * (formulas.joint_log_prob(X, mixture).abs() + log_resp.abs())).sum()
    assert bound <= log_p + rounding
    assert (log_p - bound - gap).abs() <= torch.linalg.cond(dense(mixture)).max() * rounding
    posterior, turn = formulas.e_step(X, mixture).log_resp.exp(), torch.arange(K).roll(1)  # for another q:
    assert (formulas.elbo(X, posterior, mixture, sample_weight=w) - log_p).abs() <= rounding
    assert (formulas.elbo(X, q[:, turn], components(mixture, turn), sample_weight=w) - bound).abs() <= rounding
    all_close(formulas.m_step(X, posterior[:, turn]), components(formulas.m_step(X, posterior), turn))


@given(st.sampled_from(KINDS), st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 3), st.integers(-3, 3))
def test_em_never_decreases_the_likelihood(kind, seed, D, K, exponent):
    X, _ = problem(kind, N=60, D=D, K=K, seed=seed)  # N = 5 K D at least: ten steps reach no singularity
    X, w = 10.0**exponent * X, random_q(60, seed=seed)
    mixture = formulas.m_step(X, random_q(60, K, seed=seed), covariance_type=kind, sample_weight=w)
    last = torch.tensor(-math.inf)
    for _ in range(10):
        size = formulas.e_step(X, mixture).log_prob.abs().max() * torch.linalg.cond(dense(mixture)).max()
        mixture, now = formulas.em_step(X, mixture, sample_weight=w)
        assert now >= last - 60 * EPS * size
        last = now


@every_kind
@pytest.mark.parametrize(("dtype", "offset", "bits"), [(torch.float64, 1e6, 30), (torch.float32, 1e3, 12)])
def test_an_offset_costs_nothing(kind, dtype, offset, bits):
    X, mixture = problem(kind, N=40, D=3, K=2)
    # on a grid on which adding the offset is exact
    X, means = ((t * 2**bits).round().to(dtype) / 2**bits for t in (X, mixture.means))
    mixture = each(lambda t: t.to(dtype), mixture)._replace(means=means)
    there = formulas.e_step(X + offset, mixture._replace(means=means + offset))
    here = formulas.e_step(X, mixture)
    assert all(map(torch.equal, there, here))
    got, want = (formulas.m_step(x, here.log_resp.exp(), covariance_type=kind) for x in (X + offset, X))
    close(got.means, want.means + offset, eps=torch.finfo(dtype).eps / 20)  # ten rounding errors of the mean
    close(got.covariances, want.covariances)


@every_kind
def test_a_weight_of_zero_is_an_absent_component(kind):
    X, rest = problem(kind, N=20, D=2, K=2)
    padded = components(rest, [0, 1, 1])._replace(weights=torch.cat([rest.weights, torch.zeros(1, dtype=f64)]))
    leaves = [[t.requires_grad_() for t in (X, *m[:3])] for m in (padded, rest)]
    got, want = formulas.e_step(X, padded), formulas.e_step(X, rest)
    all_close((got.log_resp[:, :2], got.log_prob), want)
    assert (got.log_resp[:, 2] == -math.inf).all()
    q = torch.cat([random_q(20, 2), torch.zeros(20, 1, dtype=f64)], -1).requires_grad_()
    for function in (formulas.log_likelihood, lambda X, m: formulas.elbo(X, q[:, : len(m.weights)], m)):
        values = function(X, padded), function(X, rest)
        close(*values)
        for a, b in zip(*map(torch.autograd.grad, values, leaves), strict=True):
            close(a, torch.cat([b, torch.zeros_like(b[:1])]) if len(a) == 3 else b)  # only components are three
    assert torch.autograd.grad(formulas.elbo(X, q, padded), q)[0].isfinite().all()
    new, _ = formulas.em_step(X, padded)  # the third has no rows: 0 / 0 there, and nowhere else
    close(new.means[:2], formulas.em_step(X, rest)[0].means)
    assert new.means[2].isnan().all()
    assert (new.covariances if kind == "tied" else new.covariances[2]).isnan().all()
    assert formulas.elbo(X, random_q(20, 3), padded) == -math.inf  # q > 0 where p = 0: the KL is infinite


def test_one_component_is_the_sample_mean_and_covariance():
    X, _ = problem("full", N=50, D=3, K=1)
    for w in (None, random_q(50)):
        _, means, covariances, _ = formulas.fit_normal(X, sample_weight=w)
        close(means[0], np.average(X, axis=0, weights=w))
        close(covariances[0], np.cov(X.T, ddof=0, aweights=w))


@every_kind
def test_float32_loses_no_more_than_torch_distributions(kind):
    X, mixture = problem(kind, N=1000, D=8, K=4)  # many rows, for a reliable maximum
    X, mixture = X.float(), each(torch.Tensor.float, mixture)
    _, want = torch_e_step(X.double(), each(torch.Tensor.double, mixture))
    got, (_, theirs) = formulas.e_step(X, mixture).log_prob, torch_e_step(X, mixture)
    limit = 2 * (theirs - want).abs().max() + 2 * torch.finfo(torch.float32).eps * want.abs().max()
    assert (got - want).abs().max() <= limit


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_float32(kind, dtype):
    X, mixture = problem(kind, N=10, D=2, K=2)
    X, mixture = X.to(dtype), each(lambda t: t.to(dtype), mixture)
    (got, a), (want, b) = formulas.em_step(X, mixture), formulas.em_step(X.float(), each(torch.Tensor.float, mixture))
    assert all(map(torch.equal, (a, *got[:3]), (b, *want[:3])))


@every_kind
def test_a_bad_covariance_affects_only_its_own_problem(kind):
    X, mixture = problem(kind, N=10, D=2, K=2, batch=(3,))
    want = formulas.log_likelihood(X, mixture)
    want[1] = math.nan
    mixture.covariances[1] *= -1
    torch.testing.assert_close(formulas.log_likelihood(X, mixture), want, rtol=0, atol=0, equal_nan=True)


def test_unknown_covariance_type():
    X, bad = torch.ones(2, 2), "round"
    for call in (
        lambda: formulas.e_step(X, Mixture(X[0], X, X, bad)),
        lambda: formulas.m_step(X, X, covariance_type=bad),
    ):
        with pytest.raises(ValueError, match=r"covariance_type must be one of .*'round'"):
            call()
