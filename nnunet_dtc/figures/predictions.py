"""Segmentations side by side: the image, the truth, and what every model made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunet_dtc.figures.overlay import BACKGROUND, PALETTE, corner, overlay
from nnunet_dtc.figures.views import PLANES, body, cut, informative_slices, pixel_aspect

__all__ = ["PALETTE", "informative_slices", "segmentation_panel"]


def segmentation_panel(
    image: np.ndarray,
    segmentations: Mapping[str, np.ndarray],
    labels: Mapping[str, int],
    spacing_mm: tuple[float, float, float],
    cuts: Sequence[tuple[int, int]] | None = None,
    notes: Mapping[str, str] | None = None,
    window: tuple[float, float] | None = (-160.0, 240.0),
    title: str | None = None,
) -> Figure:
    """One row per cut through the volume; the image in the first column, one segmentation over it in each other.

    Shown as radiologists do when the arrays are in LPS order: the patient's right is on the left, the back is below,
    the head is at the top of coronal and sagittal cuts.

    Args:
        image: (z, y, x), any real type, in HU for the default window.
        segmentations: name to (z, y, x) integers; the first is used to choose the cuts, so give the truth first.
        labels: label name to number; 0 is not drawn.
        spacing_mm: voxel size along z, y, x.
        cuts: (axis, index) pairs, or None for two axial cuts and a coronal one that show many labels.
        notes: name to a short text for the corner of that column's first row.
        window: lowest and highest value shown, or None for the image's 1st and 99th percentile.
        title: a line above everything.

    Returns:
        A matplotlib `Figure` without any global state; save it with `savefig`.

    Raises:
        ValueError: when shapes differ or there is no segmentation.
    """
    if image.ndim != 3 or not segmentations:
        raise ValueError(
            f"needs a (z, y, x) image and at least one segmentation, got {image.shape=}, {len(segmentations)=}"
        )
    for name, seg in segmentations.items():
        if seg.shape != image.shape:
            raise ValueError(f"all arrays must have one shape, got image {image.shape} and {name!r} {seg.shape}")
    truth = next(iter(segmentations.values()))
    if cuts is None:
        cuts = [(0, i) for i in reversed(informative_slices(truth, 0, 2))] + [
            (1, i) for i in informative_slices(truth, 1)
        ]
    low, high = window if window is not None else np.percentile(image, [1, 99])
    shown = {number: name for name, number in labels.items() if number != 0}
    colours = {n: np.array(to_rgb(PALETTE[(n - 1) % len(PALETTE)])) for n in shown}
    columns = ["image", *segmentations]

    ys, xs = body(image)  # what is around the body is not worth ink
    views = [cut(image, axis, index, ys, xs) for axis, index in cuts]
    aspects = [pixel_aspect(axis, spacing_mm) for axis, _ in cuts]
    heights = [v.shape[0] * a / v.shape[1] for v, a in zip(views, aspects, strict=True)]
    cell, legend = 3.3, 0.75
    head = 0.62 if title else 0.34
    width, height = cell * len(columns), cell * sum(heights) + head + legend
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    grid = figure.add_gridspec(
        len(cuts),
        len(columns),
        height_ratios=heights,
        left=0.004,
        right=0.996,
        bottom=legend / height,
        top=1 - head / height,
        wspace=0.02,
        hspace=0.02,
    )
    for row, ((axis, index), view, aspect) in enumerate(zip(cuts, views, aspects, strict=True)):
        grey = np.clip((view.astype(np.float32) - low) / (high - low), 0, 1)
        for column, name in enumerate(columns):
            ax = figure.add_subplot(grid[row, column])
            ax.set_axis_off()
            picture = np.repeat(grey[..., None], 3, axis=2)  # (rows, columns, RGB)
            ax.imshow(picture, aspect=aspect, interpolation="bicubic")
            if column:
                seg = cut(segmentations[name], axis, index, ys, xs)
                overlay(ax, [seg == n for n in shown], [colours[n] for n in shown], aspect)
            if row == 0:
                ax.set_title(name, color="white", fontsize=11, pad=5)
                if notes and name in notes:
                    corner(ax, 0.975, 0.03, notes[name], "right", 11, "bold")
            if column == 0:
                corner(ax, 0.025, 0.03, f"{PLANES[axis]} {index + 1}/{image.shape[axis]}", "left", 8)
                if axis != 2:
                    corner(ax, 0.02, 0.5, "R", "left", 9)
    used = [n for n in shown if any((s == n).any() for s in segmentations.values())]
    handles = [Patch(facecolor=colours[n], label=shown[n].replace("_", " ")) for n in used]
    figure.legend(
        handles=handles,
        loc="lower center",
        ncol=max(1, min(len(handles), -(-len(handles) // 2), 2 + 2 * len(columns))),
        frameon=False,
        labelcolor="white",
        fontsize=9,
        handlelength=1.1,
        handleheight=1.1,
        columnspacing=1.5,
    )
    if title:
        figure.suptitle(title, color="white", fontsize=12, y=1 - 0.1 / height, va="top")
    return figure
