"""The kernels of fastvae: Triton for the GPU, Numba for the CPU. They never import fastvae."""
