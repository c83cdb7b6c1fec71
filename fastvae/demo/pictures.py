"""Pictures of a run: the curves, what the model draws, what it makes of data it has not seen, and its latent space."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..reference.elbo.formulas import kl_elements
from ..vae import VAE
from .storage import write_whole
from .training import Run

TRAIN, TEST, OTHER = "#7a869a", "#c2410c", "#0f766e"
GRID = 8  # tiles a side
COLUMNS = 12  # reconstructions a row
CURVES = 6  # reconstructions where rows are drawn as curves
MOST_POINTS = 1000  # of a t-SNE, which takes seconds beyond
STYLE = {"font.size": 10, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}


def draw_run(run: Run, log_p: float) -> list[Path]:
    """All four pictures of a run, into its folder."""
    test = run.x[run.test_rows.to(run.x.device)]
    shown, own = run.own_units(test), run.own_units
    labels = None if run.data.labels is None else run.data.labels[run.test_rows.numpy()]
    generator = torch.Generator(run.x.device).manual_seed(run.options.seed)
    pictures = {
        "elbo.png": draw_elbo(run.history, log_p, run.data.name),
        "samples.png": draw_samples(shown, own(run.model.sample(GRID * GRID, mean=True, generator=generator))),
        "reconstructions.png": draw_reconstructions(shown, own(run.model.reconstruct(test))),
        "latents.png": draw_latents(run.model, test, labels),
    }
    return [save(figure, run.out / name) for name, figure in pictures.items()]


def save(figure: Figure, path: Path) -> Path:
    """Write the figure whole, in the format of the path's suffix."""
    write_whole(path, lambda p: figure.savefig(p, dpi=150, facecolor="white"))
    return path


def new_figure(width: float, height: float) -> Figure:
    """A figure of no window and no global state."""
    with matplotlib.rc_context(STYLE):
        return Figure(figsize=(width, height), layout="constrained")


def axes_of(figure: Figure, *args: Any, **kwargs: Any) -> Any:
    """``figure.subplots`` in the house style."""
    with matplotlib.rc_context(STYLE):
        return figure.subplots(*args, **kwargs)


def draw_elbo(history: list[dict[str, Any]], log_p: float, name: str) -> Figure:
    """Left, the ELBO of training and test rows over the epochs; right, the two terms whose difference it is."""
    figure = new_figure(9, 3.6)
    left, right = axes_of(figure, 1, 2, width_ratios=(3, 2))
    epochs = [entry["epoch"] for entry in history]
    marker = "." if len(epochs) < 20 else ""
    for part, color in (("train", TRAIN), ("test", TEST)):
        values = [entry[part]["elbo"] for entry in history]
        left.plot(epochs, values, color=color, marker=marker, label=f"{part}, last {values[-1]:.1f}")
    left.axhline(log_p, color=TEST, linestyle=":", label=f"log p(x), test, about {log_p:.1f}")
    left.set(xlabel="epoch", ylabel="nats a row")
    left.set_title(f"ELBO, {name}", parse_math=False)  # of a file called $x$.csv, too
    left.legend(frameon=False, loc="lower right")
    for term, color, label in (("log_likelihood", OTHER, "E log p(x|z)"), ("kl", TEST, "KL(q || p)")):
        right.plot(epochs, [entry["test"][term] for entry in history], color=color, marker=marker, label=label)
    right.set(title="its two terms, test rows", xlabel="epoch")
    right.legend(frameon=False)
    return figure


def draw_samples(data: Tensor, samples: Tensor) -> Figure:
    """Real data and the model's own, side by side, on one scale."""
    figure = new_figure(9, 4.6)
    left, right = axes_of(figure, 1, 2, gridspec_kw={"wspace": 0.12})
    low, high = bounds(data)
    show_tiles(left, data[: len(samples)], GRID, low, high)
    show_tiles(right, samples, GRID, low, high)
    left.set_title("data the model has not seen")
    right.set_title("the model's own: E[x | z], z ~ N(0, I)")
    return figure


def draw_draws(samples: Tensor, title: str, bounds: tuple[float, float]) -> Figure:
    """One grid of samples, in the range of the data."""
    figure = new_figure(4.8, 5.1)
    axes = axes_of(figure)
    show_tiles(axes, samples, max(1, round(len(samples) ** 0.5)), *bounds)
    axes.set_title(title)
    return figure


def draw_reconstructions(data: Tensor, reconstructed: Tensor) -> Figure:
    """Test rows above what the decoder makes of the mean of q(z|x); rows that are no images as pairs of curves."""
    figure = new_figure(9, 3.5)
    title = "test rows (x) and their reconstructions (x_hat, from the mean of q(z|x))"
    if as_images(data) is None:
        axes = axes_of(figure)
        for n, (x, x_hat) in enumerate(zip(data[:CURVES], reconstructed[:CURVES], strict=True)):
            color = matplotlib.colormaps["tab10"](n)
            axes.plot(x.flatten().cpu(), color=color, label="x" if n == 0 else None)
            axes.plot(x_hat.flatten().cpu(), color=color, linestyle="--", label="x_hat" if n == 0 else None)
        axes.set(title=title, xlabel="feature")
        axes.legend(frameon=False)
        return figure
    blocks = list(zip(data.split(COLUMNS), reconstructed.split(COLUMNS), strict=True))[:2]
    rows = axes_of(figure, len(blocks), 1, squeeze=False)[:, 0]
    for axes, (x, x_hat) in zip(rows, blocks, strict=True):
        show_tiles(axes, torch.cat((x, x_hat)), len(x), *bounds(data))
        for height, text in ((0.75, "x"), (0.25, "x_hat")):
            axes.text(-0.01, height, text, transform=axes.transAxes, ha="right", va="center")
    rows[0].set_title(title)
    return figure


def draw_latents(model: VAE, data: Tensor, labels: np.ndarray | None) -> Figure:
    """Left, the means of q(z|x) of the test rows in the plane; right, the KL each latent element carries."""
    with torch.no_grad():
        mu, logvar = (t.flatten(1) for t in model.encode(data))
        kl = kl_elements(mu, logvar).mean(0).cpu().numpy()
    points, names = in_the_plane(mu[:MOST_POINTS].cpu().numpy())
    labels = np.zeros(len(points), int) if labels is None else labels[: len(points)]
    values, groups = np.unique(labels, return_inverse=True)
    figure = new_figure(9, 4.2)
    left, right = axes_of(figure, 1, 2, width_ratios=(3, 2))
    if len(values) <= 10:
        for i, value in enumerate(values):
            chosen = points[groups == i]
            left.scatter(*chosen.T, s=14, color=matplotlib.colormaps["tab10"](i), alpha=0.8, linewidths=0)
            if len(values) > 1:
                centre = np.median(chosen, axis=0)
                left.annotate(str(value), centre, weight="bold", size=15, ha="center", va="center", parse_math=False)
    else:
        left.scatter(*points.T, s=14, c=labels if labels.dtype.kind in "fiu" else groups, alpha=0.8, linewidths=0)
    left.set(title="where the encoder puts test rows: mu", xlabel=names[0], ylabel=names[1])
    order = np.argsort(kl)[::-1]
    right.bar([str(i) for i in order] if len(kl) <= 32 else np.arange(len(kl)), kl[order], color=OTHER)
    right.set(title="what each latent element carries", xlabel="latent element", ylabel="KL, nats")
    return figure


def in_the_plane(mu: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """``[N, L]`` -> ``[N, 2]`` and the names of the axes: as it is for L <= 2, or one point, else by t-SNE."""
    if mu.shape[1] == 1:
        return np.column_stack((mu, np.zeros(len(mu)))), ("z[0]", "")
    if mu.shape[1] == 2 or not np.ptp(mu, axis=0).any():
        return mu[:, :2], ("z[0]", "z[1]")
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(mu) - 1) / 3)
    return TSNE(2, init="pca", perplexity=perplexity, random_state=0).fit_transform(mu), ("t-SNE 1", "t-SNE 2")


def bounds(data: Tensor) -> tuple[float, float]:
    """The range in which all tiles of a picture are drawn."""
    return float(data.min()), float(data.max())


def as_images(x: Tensor) -> np.ndarray | None:
    """``[N, H, W]`` or ``[N, H, W, 3]`` where x can be looked at as images, else None."""
    shape = tuple(x.shape[1:])
    side = round(shape[0] ** 0.5)
    if len(shape) == 1 and side >= 8 and side * side == shape[0]:
        return x.reshape(-1, side, side).cpu().numpy()
    if len(shape) == 3 and shape[0] in (1, 3):
        return x.movedim(1, -1).cpu().numpy().squeeze(-1) if shape[0] == 1 else x.movedim(1, -1).cpu().numpy()
    if len(shape) == 2 or (len(shape) == 3 and shape[2] == 3):
        return x.cpu().numpy()
    return None


def show_tiles(axes: Axes, x: Tensor, columns: int, low: float, high: float) -> None:
    """Rows as a grid of images with a gap between; rows that are no images as curves over their features."""
    axes.set_axis_off()
    if low == high:  # constant data
        low, high = low - 0.5, high + 0.5
    images = as_images(x)
    if images is None:
        axes.set_axis_on()
        axes.plot(x.flatten(1).cpu().numpy().T, color=OTHER, alpha=0.35, linewidth=0.8)
        axes.set(ylim=(low - 0.05 * (high - low), high + 0.05 * (high - low)), xlabel="feature")
        return
    N, H, W = images.shape[:3]
    rows = -(-N // columns)
    gap = max(1, H // 8)
    canvas = np.full((rows * (H + gap) - gap, columns * (W + gap) - gap, *images.shape[3:]), np.nan)
    for n, image in enumerate(images):
        top, left = n // columns * (H + gap), n % columns * (W + gap)
        canvas[top : top + H, left : left + W] = image
    if canvas.ndim == 3:
        canvas = np.nan_to_num((canvas - low) / (high - low), nan=1.0).clip(0, 1)
    axes.imshow(canvas, cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
