"""The building blocks of the Triton kernels: launches, mathematics, tiles."""
