"""Tests of the building blocks of kernels."""
