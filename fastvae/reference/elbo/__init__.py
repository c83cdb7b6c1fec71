"""The ELBO of a variational autoencoder."""
