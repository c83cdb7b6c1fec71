"""What the pictures have in common: colours, fonts, and figures without global state."""

from typing import Any

import matplotlib
from matplotlib.figure import Figure

TRAIN, TEST, MODEL = "#7a869a", "#c2410c", "#0f766e"  # training rows or data; test rows; what the model makes
WIDTH = 6.0  # inches, so that text is still readable at the width of a phone
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """A figure of no window and no global state."""
    with matplotlib.rc_context(STYLE):
        return Figure(figsize=(width, height), layout="constrained")


def axes_of(figure: Figure, *args: Any, **kwargs: Any) -> Any:
    """``figure.subplots`` in this style."""
    with matplotlib.rc_context(STYLE):
        return figure.subplots(*args, **kwargs)
