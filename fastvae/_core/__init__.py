"""Shared by all jobs: argument checks, array conversion, the choice of backend, status flags."""
