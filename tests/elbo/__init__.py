"""Of the ELBO, on every backend."""
