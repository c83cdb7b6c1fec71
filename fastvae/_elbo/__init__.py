"""The ELBO: the public functions, and the code that connects their kernels to torch."""
