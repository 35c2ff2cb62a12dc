"""Segmentations side by side: the image, the truth, and what every model made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

__all__ = ["PALETTE", "informative_slices", "segmentation_panel"]

PALETTE = (
    "#e6553f",  # neighbours in the body, and so mostly in the numbers, get colours far apart
    "#f2c14e",
    "#3fa7d6",
    "#59cd90",
    "#c77dff",
    "#b5651d",
    "#ff8fab",
    "#ff2e2e",
    "#2f6bff",
    "#00d5c8",
    "#ffe45e",
    "#a3f75c",
    "#ff9f1c",
)
PLANES = {0: "axial", 1: "coronal", 2: "sagittal"}


def informative_slices(labels: np.ndarray, axis: int = 0, count: int = 1, apart: float = 0.2) -> list[int]:
    """The slices that show the most: the number of labels in a slice first, how much of each of them second.

    Args:
        labels: (z, y, x), integers, 0 is background.
        axis: the axis to cut.
        count: how many slices; fewer are returned when there is no room.
        apart: the least distance between two of them, as a share of the axis.

    Returns:
        Indices along `axis` in increasing order; the middle slice where nothing is labelled.
    """
    planes = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)  # (slices, pixels)
    numbers = [n for n in np.unique(labels) if n != 0]
    if not numbers:
        return [labels.shape[axis] // 2]
    areas = np.stack([(planes == n).sum(1) for n in numbers])  # (labels, slices)
    score = np.sqrt(areas / areas.max(1, keepdims=True)).sum(0)
    chosen: list[int] = []
    while len(chosen) < count and np.isfinite(score).any():
        best = int(np.argmax(score))
        if not np.isfinite(score[best]) or (chosen and score[best] <= 0):
            break
        chosen.append(best)
        near = np.abs(np.arange(len(score)) - best) < max(1, apart * len(score))
        score = np.where(near, -np.inf, score)
    return sorted(chosen)


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

    ys, xs = _body(image)  # what is around the body is not worth ink
    views = [_cut(image, axis, index, ys, xs) for axis, index in cuts]
    aspects = [_aspect(axis, spacing_mm) for axis, _ in cuts]
    heights = [v.shape[0] * a / v.shape[1] for v, a in zip(views, aspects, strict=True)]
    cell, legend = 3.3, 0.75
    head = 0.62 if title else 0.34
    width, height = cell * len(columns), cell * sum(heights) + head + legend
    figure = Figure(figsize=(width, height), facecolor="#101114")
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
                seg = _cut(segmentations[name], axis, index, ys, xs)
                _overlay(ax, seg, colours, aspect)
            if row == 0:
                ax.set_title(name, color="white", fontsize=11, pad=5)
                if notes and name in notes:
                    _corner(ax, 0.975, 0.03, notes[name], "right", 11, "bold")
            if column == 0:
                _corner(ax, 0.025, 0.03, f"{PLANES[axis]} {index + 1}/{image.shape[axis]}", "left", 8)
                if axis != 2:
                    _corner(ax, 0.02, 0.5, "R", "left", 9)
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


def _body(image: np.ndarray, margin: int = 3) -> tuple[slice, slice]:
    """Rows and columns that hold the body, if the image looks like a CT; otherwise all of them."""
    if image.min() > -500:
        return slice(None), slice(None)
    inside = (image > -350).mean(0) > 0.02  # (y, x)
    found = []
    for axis in (1, 0):
        hits = np.flatnonzero(inside.any(axis))
        if not len(hits):
            return slice(None), slice(None)
        found.append(slice(max(0, hits[0] - margin), hits[-1] + 1 + margin))
    return found[0], found[1]


def _cut(volume: np.ndarray, axis: int, index: int, ys: slice, xs: slice) -> np.ndarray:
    cropped = volume[:, ys, xs]
    if axis == 0:
        return cropped[index]
    start = (ys if axis == 1 else xs).start or 0
    plane = np.take(cropped, np.clip(index - start, 0, cropped.shape[axis] - 1), axis=axis)
    return plane[::-1]  # the head is up


def _aspect(axis: int, spacing_mm: tuple[float, float, float]) -> float:
    z, y, x = spacing_mm
    return {0: y / x, 1: z / x, 2: z / y}[axis]


def _overlay(ax, seg: np.ndarray, colours: Mapping[int, np.ndarray], aspect: float) -> None:
    rgba = np.zeros((*seg.shape, 4), np.float32)
    for n, colour in colours.items():
        rgba[seg == n] = (*colour, 0.42)
    ax.imshow(rgba, aspect=aspect, interpolation="nearest")
    for n, colour in colours.items():
        mask = seg == n
        if mask.any():
            framed = np.pad(mask.astype(np.float32), 1)
            y, x = np.arange(-1, seg.shape[0] + 1), np.arange(-1, seg.shape[1] + 1)
            ax.contour(x, y, framed, levels=[0.5], colors=[tuple(colour)], linewidths=1.1)
    ax.set_xlim(-0.5, seg.shape[1] - 0.5)
    ax.set_ylim(seg.shape[0] - 0.5, -0.5)


def _corner(ax, x: float, y: float, text: str, align: str, size: int, weight: str = "normal") -> None:
    ax.text(
        x,
        y,
        text,
        transform=ax.transAxes,
        ha=align,
        va="bottom",
        color="white",
        fontsize=size,
        fontweight=weight,
        bbox={"facecolor": "black", "alpha": 0.45, "edgecolor": "none", "pad": 2},
    )
