"""Pictures of a case in a row: image, ground truth and every model, with enlarged boxes below (figures 4 to 6, 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from nnunet_dtc.study.evaluation.labels import LabelSet
from nnunet_dtc.study.figures.overlay import BACKGROUND, PALETTE, corner, outline, overlay
from nnunet_dtc.study.figures.style import style
from nnunet_dtc.study.figures.views import Box

__all__ = ["BOX_COLOURS", "Zoom", "case_panel"]

BOX_COLOURS = ("#ff3b30", "#4d7dff")
"""Colours of the first and the second box, as in the paper's figure 8; the boxes are also numbered."""

WHOLE = (slice(None), slice(None))
GAP = 0.03  # inches between cells


@dataclass(frozen=True)
class Zoom:
    """A box to enlarge.

    Attributes:
        box: rows and columns of the picture.
        name: text for the corner of the enlarged image.
        notes: model to a short text for the corner of its enlarged segmentation.
    """

    box: Box
    name: str
    notes: Mapping[str, str]


def case_panel(
    image: np.ndarray,
    segmentations: Mapping[str, np.ndarray],
    labels: LabelSet,
    aspect: float = 1.0,
    zooms: Sequence[Zoom] = (),
    notes: Mapping[str, str] | None = None,
    where: str = "",
    right_is_left: bool = False,
) -> Figure:
    """Draw the whole picture in the first row and an enlarged box in each further row.

    Enlarged boxes of models show the outline of the ground truth as a white dashed line.

    Args:
        image: (rows, columns) or (rows, columns, 3), in [0, 1].
        segmentations: name to (rows, columns) integers, the ground truth first.
        labels: the organs; the ignore label is not drawn.
        aspect: height of a pixel divided by its width.
        zooms: at most as many as `BOX_COLOURS`.
        notes: name to a text for the upper right corner of its picture, such as the Dice.
        where: text for the corner of the image, such as `axial 41/89`.
        right_is_left: mark the left border as the patient's right (R).

    Returns:
        A matplotlib `Figure` with a dark background; save it with `savefig`.

    Raises:
        ValueError: shapes differ, there is no segmentation, or there are too many boxes.
    """
    _check(image, segmentations, zooms)
    picture = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image  # (rows, columns, RGB)
    colours = [np.array(to_rgb(PALETTE[number % len(PALETTE)])) for number in range(len(labels.organs))]
    shown = [
        (organ.name, colour)
        for organ, colour in zip(labels.organs, colours, strict=True)
        if any(np.isin(segmentation, organ.values).any() for segmentation in segmentations.values())
    ]
    names = ["image", *segmentations]
    boxes = [WHOLE, *(zoom.box for zoom in zooms)]
    grid = _Grid(names, [_proportion(picture[box], aspect) for box in boxes], len(shown))
    truth = next(iter(segmentations.values()))
    with style():
        for row, zoom in enumerate((None, *zooms)):
            for column, name in enumerate(names):
                ax = grid.axes(row, column)
                box = boxes[row]
                ax.imshow(picture[box], aspect="auto", interpolation="bicubic", vmin=0, vmax=1)
                if column:
                    alpha, width = (0.36, 1.3) if zoom else (0.42, 0.9)
                    masks = _masks(segmentations[name][box], labels)
                    overlay(ax, masks, colours, "auto", alpha=alpha, linewidth=width)
                if zoom and column > 1:
                    for mask in _masks(truth[box], labels):
                        outline(ax, mask, "white", 0.9, (0, (3, 2)))
                _frame(ax, BOX_COLOURS[row - 1] if zoom else None)
                if zoom:
                    _label_zoom(ax, row, zoom, name if column else None)
                else:
                    ax.set_title(grid.titles[column], color="white", fontsize=9.5, pad=4)
                    for number, each in enumerate(zooms):
                        _rectangle(ax, each.box, number, numbered=column == 0)
                    if name in (notes or {}):
                        corner(ax, 0.965, 0.97, notes[name], "right", 9.5, "bold", va="top")
        _label_image(grid.figure.axes[0], where, right_is_left)
        _draw_legend(grid, shown)
    return grid.figure


class _Grid:
    """Sizes of the figure and the places of its cells, in inches."""

    def __init__(self, names: Sequence[str], proportions: Sequence[float], organs: int) -> None:
        self.cell = float(np.clip(9.5 / len(names), 1.5, 2.4))  # smaller with more columns, but with readable texts
        self.titles = [_folded(name, int(self.cell * 13)) for name in names]
        self.heights = [proportion * self.cell for proportion in proportions]
        self.width = self.cell * len(names)
        self.legend_columns = max(1, int(self.width / 1.45))
        self.head = 0.1 + 0.17 * max(title.count("\n") + 1 for title in self.titles)
        legend = 0.12 + 0.2 * -(-organs // self.legend_columns) if organs else 0.05
        self.height = self.head + sum(self.heights) + GAP * (len(self.heights) - 1) + legend
        self.figure = Figure(figsize=(self.width, self.height), facecolor=BACKGROUND)

    def axes(self, row: int, column: int) -> Axes:
        bottom = self.height - self.head - sum(self.heights[: row + 1]) - row * GAP
        return self.figure.add_axes(
            (
                (column * self.cell + GAP / 2) / self.width,
                bottom / self.height,
                (self.cell - GAP) / self.width,
                self.heights[row] / self.height,
            )
        )


def _check(image: np.ndarray, segmentations: Mapping[str, np.ndarray], zooms: Sequence[Zoom]) -> None:
    shape = image.shape[:2]
    if image.ndim not in (2, 3) or not segmentations:
        raise ValueError(f"needs an image (rows, columns) or (rows, columns, 3) and a segmentation, got {image.shape=}")
    for name, segmentation in segmentations.items():
        if segmentation.shape != shape:
            raise ValueError(f"all must have one shape, got image {shape} and {name!r} {segmentation.shape}")
    if len(zooms) > len(BOX_COLOURS):
        raise ValueError(f"at most {len(BOX_COLOURS)} boxes, got {len(zooms)}")


def _proportion(picture: np.ndarray, aspect: float) -> float:
    """Height divided by width of a picture (rows, columns, RGB)."""
    return picture.shape[0] * aspect / picture.shape[1]


def _masks(segmentation: np.ndarray, labels: LabelSet) -> list[np.ndarray]:
    return [np.isin(segmentation, organ.values) for organ in labels.organs]


def _label_image(ax: Axes, where: str, right_is_left: bool) -> None:
    if where:
        corner(ax, 0.035, 0.03, where, "left", 8)
    if right_is_left:
        corner(ax, 0.03, 0.5, "R", "left", 9)


def _label_zoom(ax: Axes, number: int, zoom: Zoom, name: str | None) -> None:
    """Label an enlarged box of the image (no name), or of the segmentation of this name."""
    if name is None:
        corner(ax, 0.035, 0.03, f"{number}  {zoom.name}".rstrip(), "left", 8.5)
    elif name in zoom.notes:
        corner(ax, 0.965, 0.97, zoom.notes[name], "right", 8.5, va="top")


def _draw_legend(grid: _Grid, organs: Sequence[tuple[str, np.ndarray]]) -> None:
    handles = [Patch(facecolor=colour, label=name.replace("_", " ")) for name, colour in organs]
    if handles:
        grid.figure.legend(
            handles=handles,
            loc="lower center",
            bbox_to_anchor=(0.5, 0.0),
            borderaxespad=0.2,
            ncol=min(len(handles), grid.legend_columns),
            frameon=False,
            labelcolor="white",
            fontsize=8.5,
            handlelength=1.1,
            handleheight=1.0,
            columnspacing=1.2,
            labelspacing=0.3,
        )


def _frame(ax: Axes, colour: str | None) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(colour is not None)
        spine.set_edgecolor(colour or BACKGROUND)
        spine.set_linewidth(2)


def _rectangle(ax: Axes, box: Box, number: int, numbered: bool) -> None:
    rows, columns = box
    colour = BOX_COLOURS[number]
    corner_at, size = (columns.start - 0.5, rows.start - 0.5), (columns.stop - columns.start, rows.stop - rows.start)
    ax.add_patch(Rectangle(corner_at, *size, fill=False, edgecolor=colour, linewidth=1.5, zorder=4))
    if numbered:
        ax.annotate(
            str(number + 1),
            corner_at,
            xytext=(2.5, -2),
            textcoords="offset points",
            ha="left",
            va="top",
            color="white",
            fontsize=8.5,
            fontweight="bold",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.2},
        )


def _folded(name: str, width: int) -> str:
    """A name in lines of at most `width` characters, broken at underscores where possible."""
    lines, line = [], ""
    for part in name.replace("_", "\0_").split("\0"):
        if line and len(line) + len(part) > width:
            lines.append(line)
            line = ""
        line += part
        while len(line) > width:
            lines.append(line[:width])
            line = line[width:]
    return "\n".join([*lines, line] if line else lines)
