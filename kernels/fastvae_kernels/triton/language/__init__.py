"""What the Triton kernels are written in."""
