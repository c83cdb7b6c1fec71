"""fastvae: the ELBO of a variational autoencoder in one pass over the data, for PyTorch training loops."""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

# The command line (`python -m fastvae`, or the script `fastvae`) imports torch only when a command needs it: importing
# it takes seconds, which `--help` should not.
_PROGRAM = os.path.basename(sys.argv[0]) if sys.argv else ""
_IS_COMMAND = _PROGRAM == "fastvae" or (_PROGRAM == "-m" and "fastvae" in sys.orig_argv)

if TYPE_CHECKING or not _IS_COMMAND:
    from . import gmm as gmm
    from . import reference as reference
    from . import regression as regression
    from ._core.backend import BackendError, show_config
    from ._core.status import Status
    from ._elbo.api import ElboTerms, elbo, elbo_terms
    from ._elbo.latent import kl_divergence, reparameterize
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

# For the command line: the module of each public name, imported when the name is first accessed.
_MODULES = {
    **dict.fromkeys(("BackendError", "show_config"), "_core.backend"),
    **dict.fromkeys(("ElboTerms", "elbo", "elbo_terms"), "_elbo.api"),
    **dict.fromkeys(("kl_divergence", "reparameterize"), "_elbo.latent"),
    **dict.fromkeys(("Bernoulli", "Gaussian", "Laplace"), "likelihoods"),
    "Status": "_core.status",
    "VAE": "vae",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first access."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}")
    value = globals()[name] = getattr(module, name) if name in _MODULES else module
    return value


def __dir__() -> list[str]:
    """All names, including public ones that are not imported yet."""
    return sorted({*globals(), *__all__})
