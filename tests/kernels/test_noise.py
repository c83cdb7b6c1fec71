"""The portable noise: known answers, the layout of its counters, its accuracy, its distribution."""

import itertools
import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

import fastvae
from fastvae.reference import reparameterize as reference_reparameterize
from fastvae.reference.elbo import noise

SEED = 0x1234_5678_9ABC_DEF0  # both words are nonzero
BOUND = 6.77  # sqrt(-2 log 2^-33) = 6.764

# Known answers for philox4x32-10 by Salmon et al. (kat_vectors of Random123): counter, key, words.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words_of(hexadecimal):
    return [int(word, 16) for word in hexadecimal.split()]


def python_philox(counter, key):
    """The algorithm of the paper in Python integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def box_muller(word, partner, which):
    """Element ``which`` (0 cos, 1 sin) of a pair: u and t are float32 numbers, the rest is computed to 50 digits."""
    u = np.float32(word) * np.float32(2**-32) + np.float32(2**-33)
    t = np.float32(partner - 2**32 * (partner >= 2**31)) * np.float32(2**-32)
    with mpmath.workdps(50):
        angle = 2 * mpmath.pi * mpmath.mpf(float(t))
        return float(mpmath.sqrt(-2 * mpmath.log(float(u))) * (mpmath.sin(angle) if which else mpmath.cos(angle)))


def expected(seed, n, k, element):
    """The number at row n, draw k and latent element l, from the definition."""
    words = python_philox((element // 4, k, n % 2**32, n >> 32), (seed % 2**32, seed >> 32))
    pair = element % 4 // 2
    return box_muller(words[2 * pair], words[2 * pair + 1], element % 2)


def expected_block(seed, rows, draws, elements):
    return torch.tensor(
        [[[expected(seed, n, k, e) for e in range(elements)] for n in rows] for k in range(draws)], dtype=torch.float64
    )


def same(actual, truth, tolerance=2e-6):
    """Check to the documented accuracy; wrong words would give errors of about 1."""
    torch.testing.assert_close(actual, truth, rtol=0, atol=tolerance)


def normal(*shape, seed=SEED, num_samples=None, dtype=torch.float32):
    """The noise, through the public function: z at mu = 0 and logvar = 0."""
    zero = torch.zeros(shape, dtype=dtype)
    return fastvae.reparameterize(zero, zero, num_samples=num_samples, seed=seed)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, answer):
    assert python_philox(words_of(counter), words_of(key)) == tuple(words_of(answer))
    words = noise.philox(torch.tensor(words_of(counter)), torch.tensor(words_of(key)))
    assert words.tolist() == words_of(answer)


# Part of a block, a pair and a half, one block, a block and a part, two latent dims over more than two blocks.
@pytest.mark.parametrize("latent", [(1,), (3,), (4,), (6,), (2, 5)])
@pytest.mark.parametrize("seed", [0, 7, SEED, 2**63 - 1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_each_number_is_where_the_definition_says(latent, seed, dtype, tolerance):
    eps = normal(3, *latent, seed=seed, num_samples=2, dtype=dtype)
    assert eps.dtype == dtype
    assert eps.shape == (2, 3, *latent)
    truth = expected_block(seed, range(3), 2, math.prod(latent))
    same(eps.flatten(2).double(), truth, tolerance)


@pytest.mark.parametrize("first_row", [1, 2**32 - 1, 2**32, 2**40 + 3])  # 2^32 - 1: the high word changes in the call
def test_rows_are_counted_from_first_row_beyond_32_bits(first_row):
    zero = torch.zeros(2, 5, dtype=torch.float64)
    eps = reference_reparameterize(zero, zero, seed=SEED, first_row=first_row)
    truth = expected_block(SEED, range(first_row, first_row + 2), 1, 5)[0]
    same(eps, truth, 1e-14)


@pytest.mark.parametrize("num_samples", [None, 3])
def test_a_batch_in_pieces_gives_the_same_numbers(num_samples):
    zero = torch.zeros(9, 7)
    pieces = [
        reference_reparameterize(rows, rows, num_samples=num_samples, seed=SEED, first_row=4 * i)
        for i, rows in enumerate(zero.split(4))
    ]
    same(torch.cat(pieces, -2), normal(9, 7, num_samples=num_samples))
    same(normal(4, 7, num_samples=num_samples), pieces[0])


@pytest.mark.parametrize(
    ("backend", "num_samples", "first_row"),
    [
        *itertools.product(["reference", "numba"], [None, 3], [0, 5, 2**32 - 2]),
        ("triton", 3, 2**32 - 2),
        *(pytest.param("triton", None, n, marks=pytest.mark.long) for n in (0, 5)),
    ],
)
def test_a_batch_in_pieces_has_the_noise_and_the_gradients_of_the_whole(first_row, num_samples, backend):
    x, W = torch.randn(5, 6), torch.randn(7, 6)
    mu, logvar = (torch.randn(5, 7, requires_grad=True) for _ in range(2))
    options = {"seed": SEED, "num_samples": num_samples, "backend": backend}

    def draw(rows):
        return fastvae.reparameterize(mu[rows], logvar[rows], first_row=first_row + rows.start, **options)

    def bound(rows, function=fastvae.elbo):
        here = {"first_row": first_row + rows.start, "reduction": "none", **options}
        return function(x[rows], lambda z: z @ W, mu[rows], logvar[rows], **here)

    whole, pieces = slice(0, 5), (slice(0, 2), slice(2, 5))
    assert torch.equal(draw(whole), torch.cat([draw(rows) for rows in pieces], 0 if num_samples is None else 1))
    assert not torch.equal(draw(slice(0, 2)), draw(slice(2, 4)))
    torch.testing.assert_close(bound(whole), torch.cat([bound(rows) for rows in pieces]))
    torch.testing.assert_close(bound(whole, fastvae.elbo_terms).elbo, bound(whole))
    want = torch.autograd.grad(bound(whole).sum(), (mu, logvar))
    again = torch.autograd.grad(sum(bound(rows).sum() for rows in pieces), (mu, logvar))
    for ours, theirs in zip(again, want, strict=True):
        torch.testing.assert_close(ours, theirs)
    twice = torch.autograd.grad(bound(pieces[1]).sum(), (mu, logvar), create_graph=True)  # by the formula
    for ours, theirs in zip(twice, want, strict=True):
        torch.testing.assert_close(ours[2:], theirs[2:])


def test_first_row_is_a_number_of_a_row():
    zero = torch.zeros(2, 2)
    value: Any
    for value, error in ((-1, ValueError), (2**62, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match=r"^first_row must be"):
            fastvae.reparameterize(zero, zero, first_row=value)
        with pytest.raises(error, match=r"^first_row must be"):
            fastvae.elbo(zero, zero, zero, zero, first_row=value)


def test_more_draws_or_elements_leave_the_earlier_ones_alone():
    five = normal(4, 6, num_samples=5)
    same(normal(4, 6, num_samples=2), five[:2])
    same(normal(4, 6), five[0])
    same(normal(4, 6, num_samples=1), five[:1])
    same(normal(4, 3), normal(4, 6)[:, :3])
    same(normal(4, 2, 3), normal(4, 6).view(4, 2, 3))


def test_float32_and_float64_are_one_noise_to_2e_6():
    same(normal(20_000, 8).double(), normal(20_000, 8, dtype=torch.float64))


def test_the_extreme_words_stay_finite_and_in_bounds(monkeypatch):
    # The smallest u, 2^-33, gives the largest number; the largest u rounds to 1. t has its extremes of both signs.
    extremes = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]
    pairs = torch.tensor([(w, v) for w in extremes for v in extremes]).T  # [2, 25]
    words = torch.cat([pairs, pairs]).view(4, 1, 25, 1)  # one latent block, 25 rows
    monkeypatch.setattr(noise, "philox", lambda counter, key: words)
    for dtype, tolerance in [(torch.float32, 2e-6), (torch.float64, 1e-14)]:
        eps = noise.standard_normal((25, 4), torch.tensor(0), dtype=dtype)
        truth = [[box_muller(int(w), int(v), which) for which in (0, 1, 0, 1)] for w, v in pairs.T]
        same(eps.double(), torch.tensor(truth, dtype=torch.float64), tolerance)
        assert 6.76 < eps.abs().max() <= BOUND


# 2^20 numbers with a fixed seed. Limits: five standard errors for moments, p = 0.001 for goodness-of-fit tests.
@pytest.fixture(scope="module")
def sample():
    return normal(2**17, 8)


def test_moments_are_those_of_a_standard_normal(sample):
    x, N = sample.double(), sample.numel()
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs(x.pow(power).mean() - moment) < 5 * math.sqrt(variance / N)
    assert x.abs().max() <= BOUND


@pytest.mark.parametrize("word", range(4))  # each of the four words is used differently in Box-Muller
def test_each_word_is_normal_by_kolmogorov_and_smirnov(sample, word):
    assert stats.kstest(sample[:, word::4].flatten().numpy(), "norm").pvalue > 1e-3


def test_tails_have_their_share(sample):
    for limit in (3.0, 4.0):
        count, share = int((sample.abs() > limit).sum()), 2 * stats.norm.sf(limit)
        assert stats.binomtest(count, sample.numel(), share).pvalue > 1e-3


# Squares too: numbers that share a radius are uncorrelated, but their squares are not.
@pytest.mark.parametrize("function", [torch.clone, torch.square])
def test_elements_draws_rows_and_seeds_are_uncorrelated(function):
    N = 2**14
    draws = normal(N + 1, 9, num_samples=2)  # 9 elements: two blocks and a part
    columns = [
        *draws[:, :N].permute(0, 2, 1).flatten(0, 1),  # 18 columns: each draw and element
        *draws[0, 1:].T,  # the next row: 9 columns
        *normal(N, 2, seed=SEED + 1).T,  # the next seed, in the low word of the key
        *normal(N, 2, seed=SEED + 2**32).T,  # and in the high word
        reference_reparameterize(torch.zeros(N, 1), torch.zeros(N, 1), seed=SEED, first_row=2**32)[:, 0],
    ]
    correlation = torch.corrcoef(function(torch.stack(columns).double()))
    assert (correlation - torch.eye(len(columns))).abs().max() < 5 / math.sqrt(N)


@pytest.mark.parametrize("other", [SEED + 1, SEED + 2**32, SEED ^ 1 << 62])
def test_every_part_of_the_seed_matters(other):
    assert not torch.isclose(normal(4, 5), normal(4, 5, seed=other), atol=1e-4).any()


def test_a_seed_may_be_an_int_or_a_tensor():
    assert torch.equal(normal(4, 5, seed=SEED), normal(4, 5, seed=torch.tensor(SEED)))


def test_manual_seed_governs_and_two_calls_differ():
    torch.manual_seed(3)
    first, second = normal(4, 5, seed=None), normal(4, 5, seed=None)
    torch.manual_seed(3)
    assert torch.equal(normal(4, 5, seed=None), first)
    assert not torch.isclose(first, second, atol=1e-4).any()
    torch.manual_seed(4)
    assert not torch.isclose(normal(4, 5, seed=None), first, atol=1e-4).any()


def test_a_seed_given_leaves_torchs_generator_alone():
    before = torch.get_rng_state()
    normal(4, 5, seed=SEED)
    assert torch.equal(torch.get_rng_state(), before)


# mu + e^(logvar/2) eps, and its gradients.
@pytest.mark.parametrize("num_samples", [None, 3])
def test_z_is_mu_plus_sigma_eps_with_its_gradients(num_samples):
    mu, logvar = (torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    z = fastvae.reparameterize(mu, logvar, num_samples=num_samples, seed=SEED)
    eps = normal(4, 5, num_samples=num_samples, dtype=torch.float64)
    truth = torch.distributions.Normal(mu, torch.exp(logvar / 2))
    torch.testing.assert_close(z, truth.loc + truth.scale * eps, rtol=1e-14, atol=1e-14)
    upstream = torch.randn_like(z)
    dmu, dlogvar = torch.autograd.grad(z, (mu, logvar), upstream)
    over_draws = (lambda t: t) if num_samples is None else (lambda t: t.sum(0))
    torch.testing.assert_close(dmu, over_draws(upstream))
    torch.testing.assert_close(dlogvar, over_draws(upstream * 0.5 * truth.scale * eps))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_z_is_the_float32_z_rounded(dtype):
    mu, logvar = (torch.randn(6, 5).to(dtype) for _ in range(2))
    z = fastvae.reparameterize(mu, logvar, seed=SEED)
    wide = fastvae.reparameterize(mu.float(), logvar.float(), seed=SEED)
    assert z.dtype == dtype
    # exp may differ by one rounding error
    torch.testing.assert_close(z, wide.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


# Nothing to draw: no row, or no latent element.
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
@pytest.mark.parametrize("num_samples", [None, 2])
def test_empty_shapes_stay_empty(shape, num_samples):
    assert normal(*shape, num_samples=num_samples).shape == (shape if num_samples is None else (2, *shape))
