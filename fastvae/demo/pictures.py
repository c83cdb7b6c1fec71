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
from .features import Names, draw_distributions, draw_pairs
from .figures import MODEL, TEST, TRAIN, axes_of, new_figure
from .storage import write_whole
from .training import TEST_SAMPLES, Run

GRID = 8  # tiles a side
COLUMNS = 12  # reconstructions a row
DRAWS = 2000  # samples of which the distribution of each feature is drawn
MOST_POINTS = 1000  # of a t-SNE, which takes seconds beyond


def draw_run(run: Run, log_p: float) -> list[Path]:
    """All four pictures of a run, into its folder; ``log_p`` is that of the test rows."""
    test, names = run.x[run.test_rows.to(run.x.device)], run.data.names
    shown, own = run.own_units(test), run.own_units
    labels = None if run.data.labels is None else run.data.labels[run.test_rows.numpy()]
    generator = torch.Generator(run.x.device).manual_seed(run.options.seed)
    images = as_images(shown) is not None
    samples = own(run.model.sample(GRID * GRID if images else DRAWS, mean=images, generator=generator))
    log_ps = {"train": run.log_likelihood(run.train_rows[: len(test)]), "test": log_p}
    pictures = {
        "elbo.png": draw_elbo(run.history, log_ps, run.data.name),
        "samples.png": draw_samples(shown, samples, names),
        "reconstructions.png": draw_reconstructions(shown, own(run.model.reconstruct(test)), names),
        "latents.png": draw_latents(run.model, test, labels, run.log_jacobian),
    }
    return [save(figure, run.out / name) for name, figure in pictures.items()]


def save(figure: Figure, path: Path) -> Path:
    """Write the figure whole, in the format of the path's suffix."""
    write_whole(path, lambda p: figure.savefig(p, dpi=200, facecolor="white"))
    return path


def draw_elbo(history: list[dict[str, Any]], log_p: dict[str, float], name: str) -> Figure:
    """Above, the ELBO over the epochs and the log p(x) that it bounds; below, the two terms whose difference it is.

    Training rows are in one colour and test rows in another. The ELBO of training rows is the mean over the steps of an
    epoch; both log p(x) are estimates with the last weights.
    """
    figure = new_figure(5.6)
    above, below = axes_of(figure, 2, 1, height_ratios=(3, 2), sharex=True)
    epochs = [entry["epoch"] for entry in history]
    marker = "." if len(epochs) < 20 else ""
    for part, rows, color, lw in (("train", "training rows", TRAIN, 2.4), ("test", "test rows", TEST, 1.4)):
        line = {"color": color, "lw": lw, "marker": marker}
        terms = {term: [entry[part][term] for entry in history] for term in ("elbo", "log_likelihood", "kl")}
        above.axhline(
            log_p[part], color=color, lw=lw, linestyle=":", label=f"log p(x), {rows}: about {log_p[part]:.1f}"
        )
        last = terms["elbo"][-1]
        above.plot(epochs, terms["elbo"], label=f"ELBO, {rows}: {last:.1f} at the end", **line)
        below.plot(epochs, terms["log_likelihood"], label=f"E log p(x|z), {rows}", **line)
        below.plot(epochs, terms["kl"], linestyle="--", label=f"KL(q || p), {rows}", **line)
    above.set(ylabel="nats per row")
    above.set_title(f"ELBO, {name}", parse_math=False)  # of a file called $x$.csv, too
    below.set(title="ELBO = E log p(x|z) - KL(q || p)", xlabel="epoch", ylabel="nats per row")
    for axes in (above, below):
        axes.legend(frameon=False, fontsize=9)
    return figure


def draw_samples(data: Tensor, samples: Tensor, names: Names = None) -> Figure:
    """Real data and the model's samples: images side by side on one scale, else the distribution of each feature."""
    if as_images(data) is None:
        parts = {"test rows": data, "samples, x ~ p(x)": samples}
        return draw_distributions(parts, "features of test rows and of samples", names)
    figure = new_figure(3.4)
    left, right = axes_of(figure, 1, 2, gridspec_kw={"wspace": 0.1})
    low, high = bounds(data)
    show_tiles(left, data[: len(samples)], GRID, low, high)
    show_tiles(right, samples, GRID, low, high)
    left.set_title("test data,\nnot used in training")
    right.set_title("samples from the model,\nE[x | z] with z ~ N(0, I)")
    return figure


def draw_draws(samples: Tensor, title: str, bounds: tuple[float, float], names: Names = None) -> Figure:
    """Samples alone: images as one grid, in the range of the data, else the distribution of each feature."""
    if as_images(samples) is None:
        return draw_distributions({title: samples}, f"features of {len(samples)} samples, {title}", names)
    figure = new_figure(5.1, 4.8)
    axes = axes_of(figure)
    show_tiles(axes, samples, max(1, round(len(samples) ** 0.5)), *bounds)
    axes.set_title(title)
    return figure


def draw_reconstructions(data: Tensor, reconstructed: Tensor, names: Names = None) -> Figure:
    """Test rows and what the decoder makes of the mean of q(z|x): images in pairs, else feature by feature."""
    title = "test rows x, and x_hat, reconstructed from the mean of q(z|x)"
    if as_images(data) is None:
        return draw_pairs(data, reconstructed, title, names)
    figure = new_figure(2.3)
    blocks = list(zip(data.split(COLUMNS), reconstructed.split(COLUMNS), strict=True))[:2]
    rows = axes_of(figure, len(blocks), 1, squeeze=False)[:, 0]
    for axes, (x, x_hat) in zip(rows, blocks, strict=True):
        show_tiles(axes, torch.cat((x, x_hat)), len(x), *bounds(data))
        for height, text in ((0.75, "x"), (0.25, "x_hat")):
            axes.text(-0.01, height, text, transform=axes.transAxes, ha="right", va="center")
    rows[0].set_title(title)
    return figure


def draw_latents(model: VAE, data: Tensor, labels: np.ndarray | None, log_jacobian: float = 0.0) -> Figure:
    """Above, the means of q(z|x) of the test rows in the plane; below, the KL of each latent element.

    Points are coloured by label. Without labels the colour is the ELBO of the row, which shows the regions that the
    model describes well, and the rows that it does not; ``log_jacobian`` takes it to the units of the data.
    """
    with torch.no_grad():
        mu, logvar = (t.flatten(1) for t in model.encode(data))
        kl = kl_elements(mu, logvar).mean(0).cpu().numpy()
    points, names = in_the_plane(mu[:MOST_POINTS].cpu().numpy())
    figure, size = new_figure(6.2), 14 if len(points) > 300 else 28
    above, below = axes_of(figure, 2, 1, height_ratios=(5, 2))
    if labels is None:
        with torch.no_grad():
            elbo = model.elbo(data[:MOST_POINTS], num_samples=TEST_SAMPLES, seed=0, reduction="none")
        values = (elbo + log_jacobian).cpu().numpy()
        low, high = np.quantile(values, [0.02, 0.98])  # so that an outlier does not take all the colours
        found = above.scatter(
            points[:, 0], points[:, 1], s=size, c=values, vmin=low, vmax=high, alpha=0.9, linewidths=0
        )
        figure.colorbar(found, ax=above, extend="both", label="ELBO of the row, nats", pad=0.01)
    else:
        colour_by_label(figure, above, points, labels[: len(points)])
    above.set(title="test rows in the latent space: mean of q(z|x)", xlabel=names[0], ylabel=names[1])
    order = np.argsort(kl)[::-1]
    below.bar([str(i) for i in order] if len(kl) <= 20 else np.arange(len(kl)), kl[order], color=MODEL)
    title = "KL of each latent element: the information that it carries"
    below.set(title=title, xlabel="latent element" + (", by rank" if len(kl) > 20 else ""), ylabel="KL, nats")
    return figure


def colour_by_label(figure: Figure, axes: Axes, points: np.ndarray, labels: np.ndarray) -> None:
    """Up to ten labels as groups with their names, more as a scale of colours."""
    values, groups = np.unique(labels, return_inverse=True)
    if len(values) > 10:
        numbers = labels.dtype.kind in "fiu"
        found = axes.scatter(points[:, 0], points[:, 1], s=14, c=labels if numbers else groups, alpha=0.8, linewidths=0)
        figure.colorbar(found, ax=axes, label="label" if numbers else "label, in alphabetical order", pad=0.01)
        return
    for i, value in enumerate(values):
        chosen = points[groups == i]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=14, color=matplotlib.colormaps["tab10"](i), alpha=0.8, linewidths=0)
        if len(values) > 1:
            centre = np.median(chosen, axis=0)
            axes.annotate(str(value), centre, weight="bold", size=15, ha="center", va="center", parse_math=False)


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
    """Images as a grid with a gap between."""
    axes.set_axis_off()
    if low == high:  # constant data
        pad = max(0.5, 1e-6 * abs(low))
        low, high = low - pad, high + pad
    images = as_images(x)
    assert images is not None
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
