"""The likelihoods, one file each: the log density of an element, and its derivatives.

    value, slope, scale_slope = log_density(x, a, inverse, rest, log_scale, LIKELIHOOD, LINK)

    x, a             a datum and the decoder's output there
    inverse, rest    two factors of 1 / scale: see `language.math.inverse_parts`
    LIKELIHOOD       the code of `plans.LIKELIHOODS`, a constant, as is LINK: nothing but the one is compiled
    value            log p(x | a), without the constant of `plans.LIKELIHOODS`
    slope            its derivative in a
    scale_slope      its derivative in log_scale; 0 where the likelihood has no scale

A likelihood is a file here and a branch below. The tiles of `likelihood_pass.py` know no likelihood by name.
"""

import triton
import triton.language as tl

from ....plans import LIKELIHOODS
from .bernoulli import bernoulli
from .gaussian import gaussian
from .laplace import laplace

GAUSSIAN = tl.constexpr(LIKELIHOODS["gaussian"].code)
BERNOULLI = tl.constexpr(LIKELIHOODS["bernoulli"].code)
LAPLACE = tl.constexpr(LIKELIHOODS["laplace"].code)


@triton.jit
def log_density(x, a, inverse, rest, log_scale, LIKELIHOOD: tl.constexpr, LINK: tl.constexpr):
    """The log density of one of them, and its derivatives in a and in log_scale."""
    if LIKELIHOOD == GAUSSIAN:
        return gaussian(x, a, inverse, rest, log_scale, LINK)
    elif LIKELIHOOD == BERNOULLI:
        return bernoulli(x, a)
    else:
        tl.static_assert(LIKELIHOOD == LAPLACE, "a likelihood without a branch here")
        return laplace(x, a, inverse, rest, log_scale, LINK)
