"""The specification: every formula of fastvae in short, plain torch; for any float dtype, differentiable, batched.

The kernels are tested against it, and it computes every call that no kernel supports.
"""

from . import gmm as gmm
from . import regression as regression
from .elbo.formulas import ElboTerms, elbo, elbo_terms, kl_divergence, reparameterize

__all__ = ["ElboTerms", "elbo", "elbo_terms", "gmm", "kl_divergence", "regression", "reparameterize"]
