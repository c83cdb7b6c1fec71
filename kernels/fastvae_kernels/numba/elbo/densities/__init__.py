"""The likelihoods, one file each: the log density of an element, and its derivatives.

    value, slope, scale_slope = log_density(f.likelihood, f, x, a, scale)

    x, a           a datum and the decoder's output there: numbers, or vectors of as many elements as they have lanes
    scale          (inverse, rest, log_scale), with inverse * rest = e^-log_scale: see `language.math.inverse_parts`
    f              the kernel's block: ``f.link`` is the code of the link, a constant
    value          log p(x | a), without the constant of `plans.LIKELIHOODS`
    slope          its derivative in a
    scale_slope    its derivative in log_scale; 0 where the likelihood has no scale

A likelihood is a file here and a line in the table below. Links, draws, dtypes, chunks, threads and sums are the
business of `likelihood_pass.py`, which knows no likelihood by name.
"""

from ....plans import LIKELIHOODS, LINKS
from ...language.jit import by_constant
from .bernoulli import bernoulli
from .gaussian import gaussian
from .laplace import laplace

DENSITIES = {
    "gaussian": gaussian,
    "bernoulli": bernoulli,
    "laplace": laplace,
}
log_density = by_constant({LIKELIHOODS[name].code: density for name, density in DENSITIES.items()})

# Nanoseconds of an element on one thread, by the codes of likelihood and link, with one scale for all elements; what is
# not named here has an exponential, and takes about 1.
NS_PER_ELEMENT = {(LIKELIHOODS[name].code, LINKS["identity"]): 0.25 for name in ("gaussian", "laplace")}
