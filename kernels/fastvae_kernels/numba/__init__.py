"""Numba kernels, for CPU tensors."""
