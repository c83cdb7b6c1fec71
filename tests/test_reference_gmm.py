"""The specification of Gaussian mixtures against torch.distributions, scikit-learn, NumPy, mpmath and its own theorems."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, kl_divergence

from fastvae.reference import gmm
from fastvae.reference.gmm import Mixture

KINDS = list(gmm.COVARIANCE_TYPES)
every_kind = pytest.mark.parametrize("kind", KINDS)
properties = settings(deadline=None, max_examples=25, derandomize=True)


def problem(kind, N, D, K, batch=(), seed=0, dtype=torch.float64):
    """Overlapping components, covariances of condition number at most some tens, nothing symmetric by accident."""
    g = torch.Generator().manual_seed(seed)
    A = torch.randn(*batch, K, D, D, generator=g, dtype=torch.float64)
    full = A @ A.mT / D + 0.5 * torch.eye(D, dtype=torch.float64)
    diag = full.diagonal(dim1=-2, dim2=-1)
    means = 2 * torch.randn(*batch, K, D, generator=g, dtype=torch.float64)
    weights = torch.randn(*batch, K, generator=g, dtype=torch.float64).softmax(-1)
    X = 2 * torch.randn(*batch, N, D, generator=g, dtype=torch.float64)
    covariances = {"full": full, "tied": full[..., 0, :, :], "diag": diag, "spherical": diag[..., 0]}[kind]
    return X.to(dtype), cast(Mixture(weights, means, covariances.contiguous(), kind), dtype)


def random_q(*shape, seed=0, zeros=False):
    q = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    if zeros:
        q[..., 0] = 0.0
    return q / q.sum(-1, keepdim=True)


def cast(mixture, dtype):
    return Mixture(*(t.to(dtype) for t in mixture[:3]), mixture.covariance_type)


def pick(mixture, *index):
    return Mixture(*(t[index] for t in mixture[:3]), mixture.covariance_type)


def components(mixture, index):
    weights, means, covariances, kind = mixture
    return Mixture(weights[index], means[index], covariances if kind == "tied" else covariances[index], kind)


def dense(mixture):
    """The covariances as K full matrices."""
    _, means, covariances, kind = mixture
    K, D = means.shape[-2:]
    if kind in ("full", "tied"):
        return covariances if kind == "full" else covariances[..., None, :, :].expand(*means.shape, D)
    return torch.diag_embed(covariances if kind == "diag" else covariances[..., None].expand(*means.shape[:-2], K, D))


def normals(mixture):
    return MultivariateNormal(mixture.means, dense(mixture))


def torch_log_prob(X, mixture):
    """`[*batch, N]`; torch wants the rows in front of the batch dims."""
    truth = MixtureSameFamily(Categorical(mixture.weights), normals(mixture))
    return truth.log_prob(X.movedim(-2, 0)).movedim(0, -1)


def torch_log_resp(X, mixture):
    rows_first = X.movedim(-2, 0)[..., None, :]  # [N, *batch, 1, D]
    return (mixture.weights.log() + normals(mixture).log_prob(rows_first)).log_softmax(-1).movedim(0, -2)


def close(got, want, eps=None):
    """Within 200 eps of the largest value: sums of some tens of terms times condition numbers of some tens."""
    got, want = torch.as_tensor(got), torch.as_tensor(want)
    assert got.shape == want.shape
    eps = eps or torch.finfo(got.dtype).eps
    assert (got - want).abs().max() <= 200 * eps * want.abs().max()


def all_close(got, want):
    for a, b in zip(got[:3], want[:3], strict=True):
        close(a, b)


SHAPES = [
    pytest.param(7, 3, 4, (), id="all sizes differ, so no axis can pass for another"),
    pytest.param(5, 1, 1, (), id="one feature, one component: axes that squeeze or broadcast by mistake"),
    pytest.param(6, 2, 3, (2, 4), id="two batch dims: their order counts, and none may meet N, K or D"),
]


@every_kind
@pytest.mark.parametrize(("N", "D", "K", "batch"), SHAPES)
def test_e_step_and_gradients_are_those_of_torch_distributions(kind, N, D, K, batch):
    X, mixture = problem(kind, N, D, K, batch)
    leaves = [t.requires_grad_() for t in (X, mixture.means, mixture.covariances)]
    got, want = gmm.e_step(X, mixture), torch_log_prob(X, mixture)
    close(got.log_prob, want)
    close(got.log_resp, torch_log_resp(X, mixture))
    for a, b in zip(torch.autograd.grad(got.log_prob.sum(), leaves), torch.autograd.grad(want.sum(), leaves)):
        close(a, b)


@every_kind
@pytest.mark.parametrize("reg_covar", [0.0, 0.1])
def test_one_step_is_that_of_scikit_learn(kind, reg_covar):
    X, start = problem(kind, N=60, D=3, K=4)  # N >> K D, so that no component comes near collapse
    precisions = dense(start).inverse()
    precisions = {
        "full": precisions,
        "tied": precisions[0],
        "diag": 1 / start.covariances,
        "spherical": 1 / start.covariances,
    }[kind]
    inits = {"weights_init": start.weights, "means_init": start.means, "precisions_init": precisions}
    model = GaussianMixture(
        4, covariance_type=kind, reg_covar=reg_covar, max_iter=1, **{k: v.numpy() for k, v in inits.items()}
    )
    with pytest.warns(ConvergenceWarning):
        model.fit(X.numpy())
    new, before = gmm.em_step(X, start, reg_covar=reg_covar)
    all_close(new, [torch.from_numpy(a) for a in (model.weights_, model.means_, model.covariances_)])
    close(before, torch.tensor(60 * model.lower_bound_, dtype=torch.float64))
    close(gmm.e_step(X, new).log_resp.exp(), model.predict_proba(X.numpy()))
    close(gmm.e_step(X, new).log_prob, model.score_samples(X.numpy()))
    close(gmm.log_likelihood(X, new), torch.tensor(60 * model.score(X.numpy()), dtype=torch.float64))


@every_kind
def test_e_step_keeps_its_digits_where_densities_underflow(kind):
    """Condition 1e6, a weight of 1e-300, an offset of 1e6, rows up to 1e5 away; truth with 60 decimal digits."""
    D = 3  # the smallest where a Cholesky factor has an element below the diagonal that depends on another one
    Q = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    full = Q @ torch.diag(torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)) @ Q.mT
    X, mixture = problem(kind, N=4, D=D, K=3)
    X = 1e6 + X * torch.tensor([1.0, 10.0, 1e3, 1e5], dtype=torch.float64)[:, None]
    hard = {"full": full.expand(3, D, D), "tied": full, "diag": mixture.covariances, "spherical": mixture.covariances}
    weights = torch.tensor([1e-300, 0.25, 0.75], dtype=torch.float64)
    mixture = Mixture(weights, mixture.means + 1e6, hard[kind], kind)
    joint = [[mpmath.mpf(0)] * 3 for _ in range(4)]
    with mpmath.workdps(60):
        for k, Sigma in enumerate(dense(mixture).tolist()):
            P, log_det = mpmath.matrix(Sigma) ** -1, mpmath.log(mpmath.det(mpmath.matrix(Sigma)))
            for n, row in enumerate(X.tolist()):
                e = mpmath.matrix(row) - mpmath.matrix(mixture.means[k].tolist())
                quadratic = (e.T * P * e)[0] + log_det + D * mpmath.log(2 * mpmath.pi)
                joint[n][k] = mpmath.log(mpmath.mpf(weights[k].item())) - quadratic / 2
        log_prob = [mpmath.log(sum(mpmath.exp(v) for v in row)) for row in joint]
        log_resp = [[float(v - p) for v in row] for row, p in zip(joint, log_prob, strict=True)]
    scale = torch.tensor([[float(v) for v in row] for row in joint], dtype=torch.float64).abs().amax(-1)
    cond = 1e6 if kind in ("full", "tied") else 1.0  # a Cholesky factor loses that, variances lose nothing
    allowed = 8 * D * cond * torch.finfo(torch.float64).eps * scale  # [N]
    got = gmm.e_step(X, mixture)
    assert ((got.log_prob - torch.tensor([float(p) for p in log_prob], dtype=torch.float64)).abs() <= allowed).all()
    assert ((got.log_resp - torch.tensor(log_resp, dtype=torch.float64)).abs() <= allowed[:, None]).all()


@every_kind
def test_m_step_is_a_stationary_point_of_the_bound(kind):
    X, mixture = problem(kind, N=30, D=3, K=2, batch=(2,))
    w, q = random_q(2, 30, seed=1), random_q(2, 30, 2, seed=2)
    mixture = gmm.m_step(X, q, covariance_type=kind, sample_weight=w)
    leaves = [t.requires_grad_() for t in mixture[:3]]
    d_weights, *rest = torch.autograd.grad(gmm.elbo(X, q, mixture, sample_weight=w).sum(), leaves)
    # On the simplex the gradient in the weights is one Lagrange multiplier: the total weight of the rows, here 1.
    close(d_weights, torch.ones_like(d_weights))
    assert all(g.abs().max() <= 200 * torch.finfo(g.dtype).eps for g in rest)  # their terms are of order 1


@every_kind
def test_integer_sample_weights_are_repeated_rows(kind):
    X, mixture = problem(kind, N=12, D=2, K=3)
    w = torch.arange(12) % 4  # 0 (row absent) to 3, and integers: they must be promoted
    rows, q = torch.arange(12).repeat_interleave(w), random_q(12, 3)
    all_close(
        gmm.m_step(X, q, covariance_type=kind, sample_weight=w), gmm.m_step(X[rows], q[rows], covariance_type=kind)
    )
    close(gmm.elbo(X, q, mixture, sample_weight=w), gmm.elbo(X[rows], q[rows], mixture))
    close(gmm.log_likelihood(X, mixture, sample_weight=w), gmm.log_likelihood(X[rows], mixture))
    (got, before), (want, before_rows) = gmm.em_step(X, mixture, sample_weight=w), gmm.em_step(X[rows], mixture)
    all_close(got, want)
    close(before, before_rows)


@every_kind
def test_batch_is_a_loop(kind):
    X, mixture = problem(kind, N=20, D=2, K=3, batch=(2, 4))  # two batch dims, sizes met nowhere else
    w, q = random_q(2, 4, 20), random_q(2, 4, 20, 3)
    new, before = gmm.em_step(X, mixture, sample_weight=w)
    bound = gmm.elbo(X, q, mixture, sample_weight=w)
    shared, _ = gmm.em_step(X[1, 2], mixture, sample_weight=w[1, 2])  # one X, many starts
    for b in [(i, j) for i in range(2) for j in range(4)]:
        alone, before_alone = gmm.em_step(X[b], pick(mixture, *b), sample_weight=w[b])
        all_close(pick(new, *b), alone)
        close(before[b], before_alone)
        close(bound[b], gmm.elbo(X[b], q[b], pick(mixture, *b), sample_weight=w[b]))
        all_close(pick(shared, *b), gmm.em_step(X[1, 2], pick(mixture, *b), sample_weight=w[1, 2])[0])


@every_kind
def test_gradcheck(kind):
    X, mixture = problem(kind, N=4, D=2, K=2)  # small: gradcheck calls the function twice for every element
    root = torch.linalg.cholesky(mixture.covariances) if kind in ("full", "tied") else mixture.covariances.sqrt()
    logits, w = random_q(4, 2).log(), random_q(4)
    inputs = [t.detach().requires_grad_() for t in (X, mixture.weights, mixture.means, root, logits, w)]

    def mix(weights, means, root):  # any root gives a symmetric positive covariance
        return Mixture(weights, means, root @ root.mT if kind in ("full", "tied") else root.square(), kind)

    def values(X, weights, means, root, logits, w):
        mixture, q = mix(weights, means, root), logits.softmax(-1)
        likelihood, bound = gmm.log_likelihood(X, mixture, sample_weight=w), gmm.elbo(X, q, mixture, sample_weight=w)
        return likelihood, bound, *gmm.m_step(X, q, covariance_type=kind, sample_weight=w)[:3]

    assert torch.autograd.gradcheck(values, inputs)


@properties
@given(st.sampled_from(KINDS), st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_log_likelihood_is_elbo_plus_kl_to_the_posterior(kind, seed, D, K, zeros):
    X, mixture = problem(kind, N=20, D=D, K=K, seed=seed)
    q = random_q(20, K, seed=seed, zeros=zeros and K > 1)
    w = random_q(20, seed=seed + 1)
    log_p, bound = gmm.log_likelihood(X, mixture, sample_weight=w), gmm.elbo(X, q, mixture, sample_weight=w)
    log_resp = torch_log_resp(X, mixture)
    gap = (w * kl_divergence(Categorical(q), Categorical(logits=log_resp))).sum()
    # Rounding, worst case: each of the terms summed, times the number of additions, times the condition of Sigma.
    size = (w[:, None] * (gmm.joint_log_prob(X, mixture).abs() + log_resp.abs())).sum()
    rounding = (20 + K + D) * torch.finfo(torch.float64).eps * size
    assert bound <= log_p + rounding
    assert (log_p - bound - gap).abs() <= torch.linalg.cond(dense(mixture)).max() * rounding
    posterior = gmm.e_step(X, mixture).log_resp.exp()
    assert (gmm.elbo(X, posterior, mixture, sample_weight=w) - log_p).abs() <= rounding


@properties
@given(st.sampled_from(KINDS), st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 3), st.integers(-3, 3))
def test_em_never_lowers_the_likelihood(kind, seed, D, K, exponent):
    X, _ = problem(kind, N=60, D=D, K=K, seed=seed)  # N = 5 K D at least: ten steps reach no singularity
    X, w = 10.0**exponent * X, random_q(60, seed=seed)
    mixture = gmm.m_step(X, random_q(60, K, seed=seed), covariance_type=kind, sample_weight=w)
    last = -math.inf
    for _ in range(10):
        size = gmm.e_step(X, mixture).log_prob.abs().max() * torch.linalg.cond(dense(mixture)).max()
        mixture, now = gmm.em_step(X, mixture, sample_weight=w)
        assert now >= last - 60 * torch.finfo(torch.float64).eps * size
        last = now
    assert gmm.log_likelihood(X, mixture, sample_weight=w) >= last - 60 * torch.finfo(torch.float64).eps * size


@every_kind
def test_components_have_no_order(kind):
    X, mixture = problem(kind, N=20, D=2, K=3)
    turn = [2, 0, 1]  # not its own inverse
    (got, before), (want, before_turned) = gmm.em_step(X, components(mixture, turn)), gmm.em_step(X, mixture)
    all_close(got, components(want, turn))
    close(before, before_turned)


@every_kind
@pytest.mark.parametrize(("dtype", "offset", "bits"), [(torch.float64, 1e6, 30), (torch.float32, 1e3, 12)])
def test_an_offset_costs_nothing(kind, dtype, offset, bits):
    X, mixture = problem(kind, N=40, D=3, K=2, dtype=dtype)
    X, means = ((t * 2**bits).round() / 2**bits for t in (X, mixture.means))  # a grid on which adding it is exact
    mixture = mixture._replace(means=means)
    there = gmm.e_step(X + offset, mixture._replace(means=means + offset))
    here = gmm.e_step(X, mixture)
    assert torch.equal(there.log_prob, here.log_prob)
    assert torch.equal(there.log_resp, here.log_resp)
    got = gmm.m_step(X + offset, here.log_resp.exp(), covariance_type=kind)
    want = gmm.m_step(X, here.log_resp.exp(), covariance_type=kind)
    close(got.means, want.means + offset, eps=torch.finfo(dtype).eps / 20)  # ten roundings of the mean itself
    close(got.covariances, want.covariances)


@every_kind
def test_a_weight_of_zero_is_an_absent_component(kind):
    X, rest = problem(kind, N=20, D=2, K=2)
    padded = Mixture(
        torch.cat([rest.weights, torch.zeros(1, dtype=torch.float64)]),
        torch.cat([rest.means, rest.means[:1]]),
        rest.covariances if kind == "tied" else torch.cat([rest.covariances, rest.covariances[:1]]),
        kind,
    )
    leaves = [[t.requires_grad_() for t in (X, *m[:3])] for m in (rest, padded)]
    close(gmm.log_likelihood(X, padded), gmm.log_likelihood(X, rest))
    log_resp = gmm.e_step(X, padded).log_resp
    close(log_resp[:, :2], gmm.e_step(X, rest).log_resp)
    assert (log_resp[:, 2] == -math.inf).all()
    q = torch.cat([random_q(20, 2), torch.zeros(20, 1, dtype=torch.float64)], -1).requires_grad_()
    close(gmm.elbo(X, q, padded), gmm.elbo(X, q[:, :2], rest))
    for function in (gmm.log_likelihood, lambda X, m: gmm.elbo(X, q[:, : len(m.weights)], m)):
        want = torch.autograd.grad(function(X, rest), leaves[0])
        got = torch.autograd.grad(function(X, padded), leaves[1])
        for a, b in zip(got, want, strict=True):
            close(a[:2] if len(a) == 3 else a, b)  # only components are three
            assert len(a) != 3 or (a[2] == 0).all()
    (d_q,) = torch.autograd.grad(gmm.elbo(X, q, padded), q)
    assert d_q.isfinite().all()
    new, _ = gmm.em_step(X, padded)  # no row belongs to the third: 0 / 0 there, and nowhere else
    assert new.weights[2] == 0
    assert new.means[2].isnan().all()
    close(new.means[:2], gmm.em_step(X, rest)[0].means)
    assert new.covariances.isnan().all() if kind == "tied" else new.covariances[2].isnan().all()
    assert gmm.elbo(X, random_q(20, 3), padded) == -math.inf  # q on what p excludes: the KL is infinite


def test_one_component_is_the_sample_mean_and_covariance():
    X, _ = problem("full", N=50, D=3, K=1)
    w = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for weight in (None, w):
        normal = gmm.fit_normal(X, sample_weight=weight)
        close(normal.means[0], np.average(X, axis=0, weights=weight))
        close(normal.covariances[0], np.cov(X.T, ddof=0, aweights=weight))
        close(normal.weights, torch.ones(1, dtype=torch.float64))
    m_step = gmm.m_step(X, torch.ones(50, 1), covariance_type="spherical")  # float32 q is promoted
    close(m_step.covariances[0], np.var(X.numpy(), axis=0).mean())


@every_kind
def test_float32_loses_no_more_than_torch_distributions(kind):
    X, mixture = problem(kind, N=1000, D=8, K=4)  # many rows, so that the worst of them is no accident
    X32, mixture32 = X.float(), cast(mixture, torch.float32)
    want = torch_log_prob(X32.double(), cast(mixture32, torch.float64))
    got, theirs = gmm.e_step(X32, mixture32).log_prob, torch_log_prob(X32, mixture32)
    assert got.dtype == torch.float32
    allowed = 2 * (theirs - want).abs().max() + 2 * torch.finfo(torch.float32).eps * want.abs().max()
    assert (got - want).abs().max() <= allowed


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_float32(kind, dtype):
    X, mixture = problem(kind, N=10, D=2, K=2, dtype=dtype)
    wide = X.float(), cast(mixture, torch.float32)
    assert torch.equal(gmm.e_step(X, mixture).log_resp, gmm.e_step(*wide).log_resp)
    for a, b in zip(gmm.em_step(X, mixture)[0][:3], gmm.em_step(*wide)[0][:3], strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@every_kind
def test_a_bad_covariance_spoils_only_its_own_problem(kind):
    X, mixture = problem(kind, N=10, D=2, K=2, batch=(3,))
    want = gmm.log_likelihood(X, mixture)
    mixture.covariances[1] = -mixture.covariances[1]
    got = gmm.log_likelihood(X, mixture)
    assert got[1].isnan()
    assert torch.equal(got[::2], want[::2])


def test_unknown_covariance_type():
    X, mixture = problem("diag", N=3, D=2, K=2)
    with pytest.raises(ValueError, match="covariance_type must be one of .*'round'"):
        gmm.log_likelihood(X, mixture._replace(covariance_type="round"))
    with pytest.raises(ValueError, match="covariance_type"):
        gmm.m_step(X, random_q(3, 2), covariance_type="round")
