"""The ELBO: the public calls, and the glue between torch and their kernels."""
