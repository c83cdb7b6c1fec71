"""Draws from q(z|x) = N(mu, e^logvar), with the KL to the prior in the same pass or without: Numba.

    z[k, n, l] = mu + e^(logvar/2) eps           kl[n] = sum_l 1/2 ((mu - mu_p)^2 e^-logvar_p + phi(logvar - logvar_p))

Traffic, elements: reads mu and logvar and writes z, (2 + K) N L. The noise eps is never stored: the way back makes it
again from (seed, row, draw, latent element). Floor: a copy of as many bytes.
Layout and work unit: as in `pieces.py`. Noise is made block by block, so that every stream of memory has arithmetic
beside it: apart from each other, streams took as long as the arithmetic.
Specification: fastvae/reference/elbo/formulas.py (reparameterize, kl_elements), fastvae/reference/elbo/noise.py
"""

from functools import cache

from ..language.jit import Kernel, kernel, math_jit
from ..language.math import fma, half_exponentials, like
from ..language.memory import I64, U32, array_at, on_stack, read, vector, wide_vector, write
from ..language.noise import BLOCK, KEYS, count, fill_keys, fill_noise
from ..language.threads import finished, take, worker
from ..language.vector import lanes
from .kl import add_kl, finish, sum_unit
from .pieces import FORWARD, PIECE, load_posterior, load_prior, place, store, unit_at

COUNTERS = PIECE // 4


@math_jit
def first_draw(f, z, eps, mu, logvar, scale, kl, prior, b, stop, sum_):
    """Elements b to stop of draw 0, their deviations for the other draws, and their KL, added to the sum."""
    v = wide_vector(f.T)
    for i in range(b, stop, lanes(v)):
        m, s = read(mu, i, v), read(logvar, i, v)
        half_root, _, half_phi = half_exponentials(s)
        root = half_root + half_root
        write(scale, i, root)
        sum_ = add_kl(f.kl_form, f, kl, prior, i, m, s, half_phi, sum_)
        write(z, i, fma(root, read(eps, i - b, v), m))
    return sum_


@math_jit
def next_draw(f, z, eps, mu, scale, b, stop):
    """The same elements of a later draw."""
    v = wide_vector(f.T)
    for i in range(b, stop, lanes(v)):
        write(z, i, fma(read(scale, i, v), read(eps, i - b, v), read(mu, i, v)))


@math_jit
def draw(f, k, where, noise, eps, z, mu, logvar, scale, kl, prior, sum_):
    """Draw k of a unit; of the first draw the sum of the KL as well."""
    (first, n, _, rows), (blocks, rows_of, keys), u = where, noise, vector(f.T)
    size = rows * f.sizes.width
    for b in range(0, size, BLOCK):
        fill_noise(eps, blocks, rows_of, b // 4, first // 4, f.noise.first_row + n, k, keys, u)
        stop = min(b + BLOCK, size)
        if k == 0:
            sum_ = first_draw(f, z, eps, mu, logvar, scale, kl, prior, b, stop, sum_)
        else:
            next_draw(f, z, eps, mu, scale, b, stop)
    return sum_


@cache
def make_sample(M: int, T: int, kl_form: int, sums: int) -> Kernel:
    """The kernel for the dtype codes of mu, logvar and z, and of arithmetic and the prior."""

    @kernel(FORWARD, M=M, T=T, kl_form=kl_form, sums=sums)
    def sample_pass(f):
        v, mu_s, logvar_s, z_s = wide_vector(f.T), on_stack(PIECE, f.T), on_stack(PIECE, f.T), on_stack(PIECE, f.T)
        scale, kl, eps = on_stack(PIECE, f.T), on_stack(PIECE, f.T), on_stack(BLOCK, f.T)
        prior = on_stack(PIECE, f.T), on_stack(PIECE, f.T)
        noise = blocks, rows, keys = on_stack(COUNTERS, U32), on_stack(COUNTERS, U32), on_stack(KEYS, I64)
        fill_keys(keys, f.noise.seed)
        count(blocks, rows, f.sizes.width // 4, f.sizes.group)
        me = worker(f.header)
        start, stop = take(f.header, me)
        while start < stop:
            for unit in range(start, stop):
                where = unit_at(f, unit)
                size, sum_ = where[3] * f.sizes.width, like(v, 0)
                mu, logvar = load_posterior(f, mu_s, logvar_s, where, v)
                load_prior(f.kl_form, f, prior, where, v)
                mu, logvar = array_at(mu, size, f.T), array_at(logvar, size, f.T)
                for k in range(f.sizes.K):
                    row = k * f.sizes.N + where[1]
                    z = array_at(place(f, z_s, f.z, row, where, v), size, f.T)
                    sum_ = draw(f, k, where, noise, eps, z, mu, logvar, scale, kl, prior, sum_)
                    store(f, z_s, f.z, row, where, v)
                sum_unit(f.sums, f, unit, where, kl, mu_s, sum_)
            if finished(f.header, stop - start):
                finish(f.sums, f)
            start, stop = take(f.header, me)

    return sample_pass
