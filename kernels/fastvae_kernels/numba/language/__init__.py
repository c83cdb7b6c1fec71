"""The building blocks of the Numba kernels: compilation, vectors, mathematics, memory, threads."""
