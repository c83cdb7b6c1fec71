"""What the Numba kernels are written in."""
