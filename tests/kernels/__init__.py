"""Of what kernels are written in."""
