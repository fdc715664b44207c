"""Parts that the displays' figures share: panels, legends, grids of images."""

import math
from textwrap import wrap

import numpy as np

COLORS = [  # Petroff (2021), "Accessible color sequences for data visualization", arXiv:2107.02270: the ten colours
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
]  # fmt: skip


def panels(ax, n_panels, size=(2.4, 2.2)):
    """The axes given, checked, or those of a new figure with room of `size` inches for each panel."""
    if ax is None:
        import matplotlib.pyplot as plt

        n_columns = n_panels if n_panels <= 4 else math.ceil(math.sqrt(n_panels))
        n_rows = math.ceil(n_panels / n_columns)
        figsize = (size[0] * n_columns, size[1] * n_rows)
        axes = plt.subplots(n_rows, n_columns, figsize=figsize, squeeze=False, layout="constrained")[1].ravel()
        for spare in axes[n_panels:]:
            spare.remove()
        return axes[:n_panels]
    axes = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
    if len(axes) != n_panels:
        raise ValueError(f"Expected ax to have {n_panels} axes, got {len(axes)}.")
    return axes


def legend(axes, **params):
    """A legend beside the top right panel."""
    corner = max(axes, key=lambda ax: np.round(ax.get_position().max[::-1], 3).tolist())
    handles, labels = axes[0].get_legend_handles_labels()
    corner.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.02, 1.02), borderaxespad=0, **params)


def set_title(ax, name):
    """Name a panel, in letters that fit it."""
    lines = wrap(str(name), 28)
    ax.set_title("\n".join(lines), fontsize=min(10, 220 / max(map(len, lines))))


def label_edges(axes, xlabel, ylabel=None):
    """Name the coordinates once for each column and row of panels."""
    corners = np.round([ax.get_position().min for ax in axes], 3)
    for ax, (left, bottom) in zip(axes, corners, strict=True):
        if bottom == corners[corners[:, 0] == left, 1].min():
            ax.set_xlabel(xlabel)
        if left == corners[corners[:, 1] == bottom, 0].min():
            ax.set_ylabel(ylabel)


def style(i):
    """A colour and a line style for the i-th line."""
    return {"color": COLORS[i % len(COLORS)], "linestyle": ["-", "--", "-.", ":"][i % 4]}


def image_panel(ax, grid, image_shape, margins=(0.1, 0.1)):
    """One axes for a grid of images, (n_rows, n_columns) of them; `margins` is the room for labels, in inches."""
    height, width = image_shape[:2]
    tile = 0.65 * np.array([width, height]) / max(height, width)
    size = tile * grid[::-1] + margins
    return panels(ax, 1, size * min(1, 8 / max(size)))


def tiled(images, grid, image_shape):
    """Rows of X as one picture: (n_rows, n_columns) images, row by row, one pixel apart."""
    n_rows, n_columns = grid
    height, width, *channels = [size for i, size in enumerate(image_shape) if i < 2 or size > 1]
    images = images.reshape(-1, height, width, *channels)
    if channels:
        images = np.clip(images / (255 if images.max() > 2 else 1), 0, 1)
    canvas = np.full((n_rows * n_columns, height + 1, width + 1, *channels), 1.0 if channels else np.nan)
    canvas[: len(images), :height, :width] = images
    canvas = canvas.reshape(n_rows, n_columns, *canvas.shape[1:]).swapaxes(1, 2)
    return canvas.reshape(n_rows * (height + 1), n_columns * (width + 1), *channels)[:-1, :-1]


def show_images(ax, images, grid, image_shape, im_kw):
    """Draw rows of X as a grid of images in one axes; returns the artist."""
    params = {"cmap": "gray", "interpolation": "nearest", **(im_kw or {})}
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax.imshow(tiled(images, grid, image_shape), **params)


def label_images(axis, labels, n_pixels, places=None):
    """Name rows or columns of images of `n_pixels`: all, or those at `places`."""
    places = np.arange(len(labels)) if places is None else places
    axis.set_ticks((n_pixels + 1) * places + (n_pixels - 1) / 2, labels)
    axis.set_tick_params(length=0)


def show_lines(axes, x, paths, names, labels, xlabel, line_kw):
    """Draw a line for each path in each feature's panel; paths is (n_paths, n_steps, n_features)."""
    lines = np.empty((len(paths), len(axes)), dtype=object)
    for i, j in np.ndindex(lines.shape):
        params = {**style(i), "label": labels[i], **(line_kw or {})}
        (lines[i, j],) = axes[j].plot(x, paths[i, :, j], **params)
    for ax, name in zip(axes, names, strict=True):
        set_title(ax, name)
    label_edges(axes, xlabel)
    legend(axes)
    return lines
