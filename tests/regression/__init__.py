"""Tests of linear regression, on every backend."""
