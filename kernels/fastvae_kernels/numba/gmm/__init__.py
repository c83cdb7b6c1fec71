"""Gaussian mixtures."""

from .engine import Fitted, e_step, em_step, fit, m_step, stream

__all__ = ["Fitted", "e_step", "em_step", "fit", "m_step", "stream"]
