"""One case in one row: image, truth and every model, and below them boxes of it enlarged (figures 4 to 6 and 8)."""

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
"""Of the first and the second box, as in the paper's figure 8; they are numbered as well."""


@dataclass(frozen=True)
class Zoom:
    """A box to enlarge.

    Attributes:
        box: rows and columns of the picture.
        name: what is to be seen there, for its corner.
        notes: model to a short text for the corner of its column.
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
    """The whole picture in the first row, a box enlarged in each further row; the truth's outline is white there.

    Args:
        image: (rows, columns) or (rows, columns, 3), in [0, 1].
        segmentations: name to (rows, columns) integers; the truth first.
        labels: the organs; the ignore label is not drawn.
        aspect: height of a pixel over its width.
        zooms: at most as many as `BOX_COLOURS`.
        notes: name to a text for the upper right corner of its column, such as the Dice.
        where: for the corner of the image, such as `axial 41/89`.
        right_is_left: mark the left border as the patient's right (R).

    Returns:
        A matplotlib `Figure` with a dark ground; save it with `savefig`.

    Raises:
        ValueError: when shapes differ, there is no segmentation, or there are too many boxes.
    """
    shape = image.shape[:2]
    if image.ndim not in (2, 3) or not segmentations:
        raise ValueError(f"needs an image (rows, columns) or (rows, columns, 3) and a segmentation, got {image.shape=}")
    for name, segmentation in segmentations.items():
        if segmentation.shape != shape:
            raise ValueError(f"all must have one shape, got image {shape} and {name!r} {segmentation.shape}")
    if len(zooms) > len(BOX_COLOURS):
        raise ValueError(f"at most {len(BOX_COLOURS)} boxes, got {len(zooms)}")
    notes = notes or {}
    picture = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image  # (rows, columns, RGB)
    colours = [np.array(to_rgb(PALETTE[number % len(PALETTE)])) for number in range(len(labels.organs))]
    truth_name = next(iter(segmentations))
    columns = ["image", *segmentations]
    cell = float(
        np.clip(9.5 / len(columns), 1.5, 2.4)
    )  # inches: the more columns, the smaller, but texts stay readable
    titles = [_folded(name, int(cell * 13)) for name in columns]

    whole = shape[0] * aspect / shape[1] * cell
    heights = [whole] + [
        (z.box[0].stop - z.box[0].start) * aspect / (z.box[1].stop - z.box[1].start) * cell for z in zooms
    ]
    used = [
        number
        for number, organ in enumerate(labels.organs)
        if any(np.isin(segmentation, organ.values).any() for segmentation in segmentations.values())
    ]
    width = cell * len(columns)
    in_a_row = max(1, int(width / 1.45))
    head = 0.1 + 0.17 * max(title.count("\n") + 1 for title in titles)
    legend = 0.12 + 0.2 * -(-len(used) // in_a_row) if used else 0.05
    gap = 0.03
    height = head + sum(heights) + gap * (len(heights) - 1) + legend

    with style():
        figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
        top = height - head
        for row, high in enumerate(heights):
            zoom = zooms[row - 1] if row else None
            for column, name in enumerate(columns):
                ax = figure.add_axes(
                    ((column * cell + gap / 2) / width, (top - high) / height, (cell - gap) / width, high / height)
                )
                box = zoom.box if zoom else (slice(None), slice(None))
                ax.imshow(picture[box], aspect="auto", interpolation="bicubic", vmin=0, vmax=1)
                if column:
                    cropped = segmentations[name][box]
                    masks = [np.isin(cropped, organ.values) for organ in labels.organs]
                    overlay(ax, masks, colours, "auto", alpha=0.36 if zoom else 0.42, linewidth=1.3 if zoom else 0.9)
                    if zoom and name != truth_name:
                        for organ in labels.organs:
                            edge = np.isin(segmentations[truth_name][box], organ.values)
                            outline(ax, edge, "white", 0.9, (0, (3, 2)))
                _frame(ax, BOX_COLOURS[row - 1] if zoom else None)
                if zoom:
                    if column == 0:
                        corner(ax, 0.035, 0.03, f"{row}  {zoom.name}".rstrip(), "left", 8.5)
                    if name in zoom.notes:
                        corner(ax, 0.965, 0.97, zoom.notes[name], "right", 8.5, va="top")
                    continue
                ax.set_title(titles[column], color="white", fontsize=9.5, pad=4)
                for number, each in enumerate(zooms):
                    _rectangle(ax, each.box, number, numbered=column == 0)
                if name in notes:
                    corner(ax, 0.965, 0.97, notes[name], "right", 9.5, "bold", va="top")
                if column == 0 and where:
                    corner(ax, 0.035, 0.03, where, "left", 8)
                if column == 0 and right_is_left:
                    corner(ax, 0.03, 0.5, "R", "left", 9)
            top -= high + gap
        handles = [Patch(facecolor=colours[n], label=labels.organs[n].name.replace("_", " ")) for n in used]
        if handles:
            figure.legend(
                handles=handles,
                loc="lower center",
                bbox_to_anchor=(0.5, 0.0),
                borderaxespad=0.2,
                ncol=min(len(handles), in_a_row),
                frameon=False,
                labelcolor="white",
                fontsize=8.5,
                handlelength=1.1,
                handleheight=1.0,
                columnspacing=1.2,
                labelspacing=0.3,
            )
    return figure


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
    """A name in lines of at most `width` characters, broken at underscores where that is possible."""
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
