"""Tests of the ELBO, on every backend."""
