"""The KL of q(z|x) = N(mu, e^logvar) to the prior, without draws: Numba.

    kl[n]   = sum_l 1/2 ((mu - mu_p)^2 e^-logvar_p + phi(logvar - logvar_p))
    dmu     = beta mu        dlogvar = beta/2 expm1(logvar)        of the KL to N(0, I), in the units of the ELBO

Traffic, elements: reads mu and logvar, 2 N L; writes as many with the gradients, which a loss will want: 4 N L. Floor:
a copy of as many bytes. Layout and work unit: as in `pieces.py`. A row's pieces are added in float64 in index order.
Specification: fastvae/reference/elbo/formulas.py (kl_elements, kl_penalty)
"""

from functools import cache

from ..language.jit import Kernel, by_constant, kernel, math_jit
from ..language.math import half_exponentials, like
from ..language.memory import array_at, on_stack, read, wide_vector, write
from ..language.threads import finished, take, worker
from ..language.vector import lanes
from .kl import add_kl, finish, sum_unit
from .pieces import FORWARD, PIECE, load_posterior, load_prior, place, store, unit_at


@math_jit
def write_nothing(f, dmu, dlogvar, i, m, half_excess):
    """The gradients are not requested."""


@math_jit
def write_gradients(f, dmu, dlogvar, i, m, half_excess):
    """Those of minus the KL term, for elements i, i + 1, ..."""
    g = like(m, f.values.beta * (1.0 if f.sizes.mean == 0 else f.sizes.mean))
    write(dmu, i, g * m)
    write(dlogvar, i, g * half_excess)


@math_jit
def store_nothing(f, mu_s, logvar_s, where, v):
    """The gradients are not requested."""


@math_jit
def store_both(f, mu_s, logvar_s, where, v):
    """Bring them to where they belong."""
    store(f, mu_s, f.dmu, where[1], where, v)
    store(f, logvar_s, f.dlogvar, where[1], where, v)


put_gradients = by_constant({0: write_nothing, 1: write_gradients})
store_gradients = by_constant({0: store_nothing, 1: store_both})


@cache
def make_kl(M: int, T: int, kl_form: int, sums: int, gradients: int) -> Kernel:
    """The kernel for the dtype codes of mu and logvar, and of arithmetic and the prior. With 1 for ``gradients`` it
    writes those of minus the KL term, for the KL to N(0, I) without free bits.
    """

    @kernel(FORWARD, M=M, T=T, kl_form=kl_form, sums=sums, gradients=gradients)
    def kl_pass(f):
        v, mu_s, logvar_s, kl = wide_vector(f.T), on_stack(PIECE, f.T), on_stack(PIECE, f.T), on_stack(PIECE, f.T)
        prior = on_stack(PIECE, f.T), on_stack(PIECE, f.T)
        me = worker(f.header)
        start, stop = take(f.header, me)
        while start < stop:
            for unit in range(start, stop):
                where = unit_at(f, unit)
                size, sum_ = where[3] * f.sizes.width, like(v, 0)
                mu, logvar = load_posterior(f, mu_s, logvar_s, where, v)
                load_prior(f.kl_form, f, prior, where, v)
                mu, logvar = array_at(mu, size, f.T), array_at(logvar, size, f.T)
                dmu = array_at(place(f, mu_s, f.dmu, where[1], where, v), size, f.T)
                dlogvar = array_at(place(f, logvar_s, f.dlogvar, where[1], where, v), size, f.T)
                for i in range(0, size, lanes(v)):
                    m, s = read(mu, i, v), read(logvar, i, v)
                    _, half_excess, half_phi = half_exponentials(s)
                    sum_ = add_kl(f.kl_form, f, kl, prior, i, m, s, half_phi, sum_)
                    put_gradients(f.gradients, f, dmu, dlogvar, i, m, half_excess)
                store_gradients(f.gradients, f, mu_s, logvar_s, where, v)
                sum_unit(f.sums, f, unit, where, kl, mu_s, sum_)
            if finished(f.header, stop - start):
                finish(f.sums, f)
            start, stop = take(f.header, me)

    return kl_pass
