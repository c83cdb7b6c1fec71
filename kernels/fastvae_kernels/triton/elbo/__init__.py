"""The ELBO: its log-likelihood, sampling and the KL."""
