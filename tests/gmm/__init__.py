"""Of Gaussian mixtures, on every backend."""
