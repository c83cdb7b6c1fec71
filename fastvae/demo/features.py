"""Pictures of rows that are not images: a small panel for each feature, or, for signals, curves over the features."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .figures import MODEL, TRAIN, axes_of, new_figure

PANELS = 16  # features that have a panel
COLUMNS = 4
CURVES = 6  # rows that are drawn as curves
ONE_SCALE = 50.0  # the range of all features over the spread of a single one, up to which curves show them
BINS = 24  # at most
NAME = 16  # letters of a feature's name
Names = Sequence[str] | None


def draw_distributions(parts: dict[str, Tensor], title: str, names: Names = None) -> Figure:
    """The distribution of each feature, in the rows of each part: data, and what the model draws.

    Features are histograms; those of signals are a curve of the median, in a band that holds nine tenths of the rows.
    """
    rows = {name: flat(x) for name, x in parts.items()}
    first = next(iter(rows.values()))
    D = first.shape[1]
    colors = [MODEL] if len(rows) == 1 else [TRAIN, MODEL]
    if is_signal(first):
        figure = new_figure(3.4)
        axes = axes_of(figure)
        for (name, x), color in zip(rows.items(), colors, strict=True):
            low, median, high = np.quantile(x, [0.05, 0.5, 0.95], axis=0)
            axes.fill_between(range(D), low, high, color=color, alpha=0.25, linewidth=0)
            axes.plot(median, color=color, label=f"{name}: median, and 5 to 95 %")
        axes.set(xlabel="feature")
        figure.legend(loc="outside lower center", frameon=False)
    else:
        figure, panels = feature_panels(D, names)
        bins = min(BINS, max(8, round(1.5 * len(first) ** 0.5)))
        for d, axes in enumerate(panels):
            edges = np.linspace(*limits(np.concatenate([x[:, d] for x in rows.values()])), bins + 1)
            for i, ((name, x), color) in enumerate(zip(rows.items(), colors, strict=True)):
                shares = np.histogram(x[:, d], edges)[0] / len(x)
                filled = i == 0
                axes.stairs(shares, edges, fill=filled, color=color, alpha=0.5 if filled else 1, lw=1.3, label=name)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
        title += left_out(D)
        if len(rows) > 1:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(title, parse_math=False, size=10)
    return figure


def draw_pairs(data: Tensor, reconstructed: Tensor, title: str, names: Names = None) -> Figure:
    """Each feature of the reconstructions over that of the data, with its R²; of signals, some rows as curves."""
    x, x_hat = flat(data), flat(reconstructed)
    D = x.shape[1]
    if is_signal(x):
        shown = min(CURVES, len(x))
        figure = new_figure(0.7 + 1.3 * -(-shown // 2))
        panels = axes_of(figure, -(-shown // 2), 2, squeeze=False, sharex=True, sharey=True).ravel()
        for n, axes in enumerate(panels[:shown]):
            axes.plot(x[n], color=TRAIN, lw=2.2, alpha=0.7, label="x")
            axes.plot(x_hat[n], color=MODEL, lw=1.1, label="x_hat")
        for axes in panels[shown:]:
            axes.set_axis_off()
        for axes in panels[-2:]:
            axes.set_xlabel("feature")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    else:
        figure, panels = feature_panels(D, names)
        for d, axes in enumerate(panels):
            ends = limits(x[:, d])
            axes.plot(ends, ends, color=TRAIN, lw=1, zorder=1)
            axes.scatter(x[:, d], x_hat[:, d], s=7, color=MODEL, alpha=0.6, linewidths=0)
            axes.set(xlim=ends, ylim=limits(np.concatenate((x[:, d], x_hat[:, d]))))
            if (spread := np.square(x[:, d] - x[:, d].mean()).sum()) > 0:
                r2 = 1 - np.square(x[:, d] - x_hat[:, d]).sum() / spread
                axes.text(0.04, 0.94, f"R² {r2:.2f}", transform=axes.transAxes, va="top", size=9)
        title += left_out(D)
        figure.supxlabel("x", size=10)
        figure.supylabel("x_hat", size=10)
    figure.suptitle(title, parse_math=False, size=10)
    return figure


def feature_panels(D: int, names: Names) -> tuple[Figure, list[Axes]]:
    """A panel for each feature, up to `PANELS`, with its name."""
    D = min(D, PANELS)
    columns = min(D, COLUMNS)
    rows = -(-D // columns)
    figure = new_figure(1.0 + 1.35 * rows)
    panels = axes_of(figure, rows, columns, squeeze=False).ravel()
    for d, axes in enumerate(panels[:D]):
        name = f"feature {d}" if names is None else names[d]
        axes.set_title(name if len(name) <= NAME else f"{name[: NAME - 1]}…", parse_math=False, size=9)
        axes.tick_params(labelsize=8)
        axes.locator_params("x", nbins=2)
        axes.locator_params("y", nbins=3)
    for axes in panels[D:]:
        axes.set_axis_off()
    return figure, list(panels[:D])


def is_signal(x: np.ndarray) -> bool:
    """Whether many features ``[N, D]`` are on one scale, so that they can be drawn as curves."""
    spread = float(np.median(x.std(axis=0)))
    return x.shape[1] > PANELS and np.ptp(x) <= ONE_SCALE * spread


def left_out(D: int) -> str:
    """What a title says of features without a panel."""
    return f"\n(the first {PANELS} of {D} features)" if D > PANELS else ""


def limits(values: np.ndarray) -> tuple[float, float]:
    """The ends of an axis: a little beyond the values, also where all are the same."""
    low, high = float(values.min()), float(values.max())
    pad = max(0.03 * (high - low), 1e-6 * max(abs(low), abs(high)), 1e-30)
    return low - pad, high + pad


def flat(x: Tensor) -> np.ndarray:
    """``[N, *event]`` -> ``[N, D]`` in float64."""
    return x.flatten(1).cpu().double().numpy()
