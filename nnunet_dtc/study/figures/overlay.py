"""Elements of pictures of segmentations: colours of organs, organs drawn over an image, and texts in a corner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

__all__ = ["BACKGROUND", "PALETTE", "corner", "outline", "overlay"]

BACKGROUND = "#101114"

PALETTE = (
    "#e6553f",  # organs with consecutive numbers are often neighbours, and have very different colours
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


def overlay(
    ax: Axes,
    masks: Sequence[np.ndarray],
    colours: Sequence[np.ndarray],
    aspect: float | str,
    alpha: float = 0.42,
    linewidth: float = 1.1,
) -> None:
    """Draw organs over an image, filled and with an outline.

    Args:
        ax: the axes that show the image.
        masks: bool (rows, columns) each; later ones are drawn on top.
        colours: RGB in [0, 1], one per mask.
        aspect: height of a pixel divided by its width, or "auto" if the axes have the right shape.
        alpha: opacity of the fill.
        linewidth: width of the outline in points.
    """
    if not masks:
        return
    rows, columns = masks[0].shape
    rgba = np.zeros((rows, columns, 4), np.float32)
    for mask, colour in zip(masks, colours, strict=True):
        rgba[mask] = (*colour, alpha)
    ax.imshow(rgba, aspect=aspect, interpolation="nearest")
    for mask, colour in zip(masks, colours, strict=True):
        outline(ax, mask, tuple(colour), linewidth)
    ax.set_xlim(-0.5, columns - 0.5)
    ax.set_ylim(rows - 0.5, -0.5)


def outline(ax: Axes, mask: np.ndarray, colour, linewidth: float, linestyle="solid") -> None:
    """Draw the border of a mask (rows, columns), closed at the border of the image."""
    if mask.any():
        framed = np.pad(mask.astype(np.float32), 1)
        y, x = np.arange(-1, mask.shape[0] + 1), np.arange(-1, mask.shape[1] + 1)
        ax.contour(x, y, framed, levels=[0.5], colors=[colour], linewidths=linewidth, linestyles=[linestyle])


def corner(ax: Axes, x: float, y: float, text: str, align: str, size: float, weight: str = "normal", **other) -> None:
    """Write white text on a dark background at (x, y), in fractions of the axes from the lower left."""
    ax.text(
        x,
        y,
        text,
        transform=ax.transAxes,
        ha=align,
        va=other.pop("va", "bottom"),
        color="white",
        fontsize=size,
        fontweight=weight,
        bbox={"facecolor": "black", "alpha": 0.45, "edgecolor": "none", "pad": 2},
        **other,
    )
