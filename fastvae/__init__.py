"""fastvae: the ELBO of a variational autoencoder in one pass over the data, for PyTorch training loops."""

from . import gmm as gmm
from . import reference as reference
from . import regression as regression
from ._backend import BackendError, show_config
from ._elbo import ElboTerms, elbo, elbo_terms, kl_divergence, reparameterize
from ._status import Status
from .likelihoods import Bernoulli, Gaussian, Laplace
from .vae import VAE

__all__ = [
    "VAE",
    "BackendError",
    "Bernoulli",
    "ElboTerms",
    "Gaussian",
    "Laplace",
    "Status",
    "elbo",
    "elbo_terms",
    "gmm",
    "kl_divergence",
    "reference",
    "regression",
    "reparameterize",
    "show_config",
]
