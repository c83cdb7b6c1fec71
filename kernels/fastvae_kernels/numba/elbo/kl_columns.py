"""Sums of the KL over the rows, for free bits: Numba.

    columns[l] = sum_n kl_nl

Traffic, elements: mu and logvar are read once, 2 N L. Layout: as in `pieces.py`. Work unit: COLUMNS latent elements of
all rows, added in order in float64.
Specification: fastvae/reference/elbo/formulas.py (kl_elements, kl_penalty)
"""

from functools import cache

from ..language.jit import Kernel, by_constant, kernel, math_jit
from ..language.layout import Layout
from ..language.math import half_exponentials
from ..language.memory import F64, array_at, gather, on_stack, read, vector, write
from ..language.threads import take, worker
from ..language.vector import lanes
from .kl import kl_element, kl_element_to
from .pieces import INPUTS, PRIOR, SIZES, STANDARD

COLUMNS = 64  # whole vectors
COLUMN_SUMS = Layout("sums", inputs=INPUTS, sizes=SIZES)


@math_jit
def kl_to_standard(prior, i, m, s):
    """kl_nl to N(0, 1)."""
    return kl_element(m, half_exponentials(s)[2])


@math_jit
def kl_to_prior(prior, i, m, s):
    """kl_nl to N(mu_p, e^logvar_p)."""
    return kl_element_to(m, s, read(prior[0], i, m), read(prior[1], i, m))


kl_at = by_constant({STANDARD: kl_to_standard, PRIOR: kl_to_prior})


@math_jit
def load_row(f, rooms, n, first, length):
    """The elements of row n of mu, of logvar, and of the prior if there is one."""
    mu, logvar, mu_p, logvar_p = rooms
    inputs, sizes, v = f.inputs, f.sizes, vector(f.T)
    gather(mu, COLUMNS, inputs.mu, n, 1, sizes.mu_row, first, length, f.M, v)
    gather(logvar, COLUMNS, inputs.logvar, n, 1, sizes.logvar_row, first, length, f.M, v)
    if f.kl_form == PRIOR:
        gather(mu_p, COLUMNS, inputs.mu_p, n, 1, sizes.mu_p_row, first, length, f.T, v)
        gather(logvar_p, COLUMNS, inputs.logvar_p, n, 1, sizes.logvar_p_row, first, length, f.T, v)


@math_jit
def sum_columns(f, unit):
    """The sums of a unit's columns."""
    v, first = vector(f.T), unit * COLUMNS
    length = min(COLUMNS, f.sizes.L - first)
    mu, logvar, mu_p, logvar_p = (
        on_stack(COLUMNS, f.T),
        on_stack(COLUMNS, f.T),
        on_stack(COLUMNS, f.T),
        on_stack(COLUMNS, f.T),
    )
    sums = array_at(f.sums + 8 * first, length, F64)
    for j in range(length):
        sums[j] = 0
    for n in range(f.sizes.N):
        load_row(f, (mu, logvar, mu_p, logvar_p), n, first, length)
        for i in range(0, length, lanes(v)):
            write(mu, i, kl_at(f.kl_form, (mu_p, logvar_p), i, read(mu, i, v), read(logvar, i, v)))
        for j in range(length):
            sums[j] += mu[j]


@cache
def make_columns(M: int, T: int, kl_form: int) -> Kernel:
    """The kernel for the dtype codes of mu and logvar, and of arithmetic and the prior: ``[L]`` in float64."""

    @kernel(COLUMN_SUMS, M=M, T=T, kl_form=kl_form)
    def kl_columns(f):
        me = worker(f.header)
        start, stop = take(f.header, me)
        while start < stop:
            for unit in range(start, stop):
                sum_columns(f, unit)
            start, stop = take(f.header, me)

    return kl_columns
