"""Torch glue between the public functions and the kernels: one file an op."""
