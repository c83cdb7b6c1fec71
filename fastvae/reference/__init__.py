"""The specification: every formula of fastvae as short plain torch, any float dtype, differentiable, batched.

It is what the kernels are measured against, and what answers wherever no kernel serves a call.
"""

from . import gmm as gmm
from . import regression as regression
from .elbo.formulas import ElboTerms, elbo, elbo_terms, kl_divergence, reparameterize

__all__ = ["ElboTerms", "elbo", "elbo_terms", "gmm", "kl_divergence", "regression", "reparameterize"]
