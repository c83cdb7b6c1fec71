"""Tests of Gaussian mixtures, on every backend."""
