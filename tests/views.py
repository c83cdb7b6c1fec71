"""Tensors whose memory does not hold their values, because torch has deferred a negation or the filling with zeros."""

import torch


def negated(t):
    """A lazily negated view with the same values; gradients reach t."""
    return torch.complex(torch.zeros_like(t), -t).conj().imag


def zero(t):
    """Zeros without memory."""
    return torch._efficientzerotensor(t.shape, dtype=t.dtype)
