"""Where the samples of the DTC blocks go: the paper's figure 7 for every decoder stage, with what it does not show.

A row a stage, from the deepest to the last: the image, the samples as the paper draws them (white where they gather,
black where none goes), a part of them enlarged with the way that each has gone, how often every voxel of the stage's
input is read, the length of the shifts, and how much of their bound they use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Annotation
from matplotlib.ticker import PercentFormatter
from scipy import ndimage

from nnunet_dtc.ops.coordinates import BINS, StageCoordinates, StageNumbers
from nnunet_dtc.study.figures.overlay import PALETTE
from nnunet_dtc.study.figures.views import informative_slices

__all__ = ["coordinates_figure"]

BACKGROUND, INK, FAINT = "#101114", "#e8e8ea", "#9a9ca3"
AXIS_COLOURS = ("#f2c14e", "#3fa7d6", "#ff8fab")
WAY, WARNING = "#ff9f1c", "#ff8f70"
ENLARGED = 24
"""Samples along the shorter side of the enlarged part."""

TITLES = (
    "image and prediction",
    "samples",
    "the frame enlarged",
    "how often a voxel is read",
    "length of the shift",
    "share of the bound",
)


@dataclass(frozen=True)
class _View:
    """The plane that is shown, in pixels of the network's input."""

    image: np.ndarray  # (rows, columns) in 0..1, or (rows, columns, 3)
    segmentation: np.ndarray  # (rows, columns)
    cut: int | None  # of a volume's first axis
    depth: int  # voxels along it
    spacing_mm: tuple[float, float]
    upside_down: bool  # the first row is below: the head is up

    @property
    def size(self) -> tuple[int, int]:
        return self.segmentation.shape

    @property
    def extent(self) -> tuple[float, float, float, float]:
        return (-0.5, self.size[1] - 0.5, self.size[0] - 0.5, -0.5)

    def frame(self, ax: Axes, rows: tuple[float, float] | None = None, columns: tuple[float, float] | None = None):
        """Show only these rows and columns, or all of them, without ticks."""
        low, high = rows or (-0.5, self.size[0] - 0.5)
        ax.set_ylim((low, high) if self.upside_down else (high, low))
        ax.set_xlim(columns or (-0.5, self.size[1] - 0.5))
        ax.set_aspect(self.spacing_mm[0] / self.spacing_mm[1])
        ax.set(xticks=[], yticks=[])
        ax.set_facecolor("black")
        for spine in ax.spines.values():
            spine.set_color("#3a3c42")

    def outline(self, ax: Axes, width: float = 1.0) -> None:
        rows, columns = (np.arange(-1, count + 1) for count in self.size)
        for number in np.unique(self.segmentation[self.segmentation > 0]):
            mask = np.pad((self.segmentation == number).astype(np.float32), 1)
            colour = PALETTE[(int(number) - 1) % len(PALETTE)]
            ax.contour(columns, rows, mask, levels=[0.5], colors=[colour], linewidths=width)


@dataclass(frozen=True)
class _Plane:
    """A stage in that plane; positions are in pixels of the network's input, (2, rows, columns)."""

    regular: np.ndarray
    sampled: np.ndarray
    reads: np.ndarray  # (rows, columns) of the stage's input
    length_mm: np.ndarray  # (rows, columns) of its output


def coordinates_figure(
    stages: Sequence[StageCoordinates],
    numbers: Sequence[StageNumbers],
    image: np.ndarray,
    segmentation: np.ndarray,
    spacing_mm: Sequence[float],
    cut: int | None = None,
    title: str | None = None,
    unit: str = "mm",
) -> Figure:
    """One row a decoder stage.

    Args:
        stages: the coordinates of all positions, of one case (``collect`` without a limit).
        numbers: of these stages.
        image: (\\*S) or (\\*S, 3), what the network saw; the 1st to 99th percentile is shown.
        segmentation: (\\*S), integers; 0 is not outlined.
        spacing_mm: of the image, per axis.
        cut: the slice of a volume along its first axis; by default the one that shows most of the segmentation.
        title: a line above everything.
        unit: "mm", or "pixels" for images without a spacing.

    Returns:
        A matplotlib `Figure` without any global state; save it with `savefig`.

    Raises:
        ValueError: there is no stage, or shapes do not fit.
    """
    axes = len(spacing_mm)
    if not stages or len(stages) != len(numbers):
        raise ValueError(f"needs stages and numbers of each, got {len(stages)} and {len(numbers)}")
    if segmentation.ndim != axes or image.shape[:axes] != segmentation.shape or axes not in (2, 3):
        raise ValueError(
            f"image and segmentation must have one shape of {axes} axes, got {image.shape}, {segmentation.shape}"
        )
    view = _view(image, segmentation, spacing_mm, cut, numbers[0].axes[-2].axis == "z")
    rows, columns = view.size
    panel = 2.7
    shape = rows * view.spacing_mm[0] / (columns * view.spacing_mm[1])
    height = panel * float(np.clip(shape, 0.55, 1.5))
    top, head, foot, bar = 0.5 if title else 0.12, 0.34, 0.42, 0.72
    gap = 0.66  # below a row: the ticks of the histogram, and the next row's heading
    widths = [panel, panel, panel, panel, bar, panel, bar, panel]
    spaces = [0.1, 0.1, 0.1, 0.07, 0.1, 0.07, 0.38, 0.3]
    total = (0.15 + sum(widths) + sum(spaces), top + head + len(stages) * (height + gap) + foot - 0.3)
    figure = Figure(figsize=total, facecolor=BACKGROUND)
    if title:
        figure.text(0.15 / total[0], 1 - 0.16 / total[1], title, color=INK, fontsize=13, weight="bold", va="top")

    def place(column: int, row: int, width: float | None = None) -> Axes:
        left = 0.15 + sum(widths[:column]) + sum(spaces[:column])
        bottom = total[1] - top - head - row * (height + gap) - height - 0.28
        return figure.add_axes(
            (left / total[0], bottom / total[1], (width or widths[column]) / total[0], height / total[1])
        )

    for row, (stage, number) in enumerate(zip(stages, numbers, strict=True)):
        panels = [place(column, row) for column in (0, 1, 2, 3, 5, 7)]
        if row == 0:
            for ax, text in zip(panels, TITLES, strict=True):
                _above(ax, text, 26, FAINT, 10)
        heading = _above(panels[0], f"S{number.title[1:]}, RF {number.deformation.receptive_field:g}", 7, INK, 11)
        states = ", ".join(f"{axis.axis} {' and '.join(axis.states)}" for axis in number.axes if axis.states)
        panels[0].annotate(
            f"   {states}", (1, 0), xycoords=heading, color=WARNING, fontsize=11, va="bottom", annotation_clip=False
        )
        _draw_histogram(panels[5], stage, number, unit)
        if not bool(stage.coords.isfinite().all()):
            for ax in panels[:5]:
                view.frame(ax)
            _draw_image(panels[0], view, None)
            continue
        bars = [place(column, row, 0.11) for column in (4, 6)]
        plane = _plane(stage, number, view)
        window = _window(plane, view)
        whole = all(part.stop == count for part, count in zip(window, plane.length_mm.shape, strict=True))
        _draw_image(panels[0], view, None if whole else _limits(plane, window))
        _draw_samples(panels[1], plane, view, panel * 72)
        _draw_enlarged(panels[2], plane, view, window)
        _draw_reads(panels[3], bars[0], plane, view)
        _draw_length(panels[4], bars[1], plane, view, unit)
    note = (
        "White: samples; orange lines: the way each has come from the regular grid. Brown: read more often "
        "than by the regular grid (1); violet: less. Dotted: the means."
    )
    if view.cut is not None:
        note = f"Slice {view.cut + 1} of {view.depth} of the patch, samples with their shifts within it. {note}"
    figure.text(0.15 / total[0], 0.12 / total[1], note, color=FAINT, fontsize=9, va="bottom")
    return figure


def _view(
    image: np.ndarray, segmentation: np.ndarray, spacing_mm: Sequence[float], cut: int | None, upside_down: bool
) -> _View:
    low, high = np.percentile(image, [1, 99], axis=tuple(range(segmentation.ndim)))
    grey = np.clip((image - low) / np.maximum(high - low, 1e-6), 0, 1)
    depth = segmentation.shape[0] if segmentation.ndim == 3 else 1
    if segmentation.ndim == 3:
        cut = informative_slices(segmentation)[0] if cut is None else cut
        grey, segmentation = grey[cut], segmentation[cut]
    else:
        cut = None
    return _View(grey, segmentation, cut, depth, tuple(spacing_mm[-2:]), upside_down)


def _plane(stage: StageCoordinates, number: StageNumbers, view: _View) -> _Plane:
    regular, sampled = stage.regular_positions().numpy(), stage.positions()[0].numpy()  # (g, *O)
    reads = stage.reads()[0].numpy()  # (*S)
    spacing = np.array([axis.spacing_mm for axis in number.axes])
    shifts = stage.shifts()[0].numpy()  # (g, *O)
    length = np.sqrt(np.square(shifts * spacing.reshape(-1, *[1] * (shifts.ndim - 1))).sum(0))
    if view.cut is not None:  # the slice of each map that lies at the cut
        share = (view.cut + 0.5) / view.depth
        out, low = (min(int(share * count), count - 1) for count in (length.shape[0], reads.shape[0]))
        regular, sampled, length, reads = regular[1:, out], sampled[1:, out], length[out], reads[low]
    ratio = np.array([full / size for full, size in zip(view.size, stage.sizes[-2:], strict=True)]).reshape(2, 1, 1)
    return _Plane((regular + 0.5) * ratio - 0.5, (sampled + 0.5) * ratio - 0.5, reads, length)


def _window(plane: _Plane, view: _View) -> tuple[slice, slice]:
    """The part that is enlarged: at a border of the segmentation, where the shifts are long."""
    shape = plane.length_mm.shape
    shorter = min(shape)
    part = tuple(max(1, min(count, round(ENLARGED * count / shorter))) for count in shape)
    interest = plane.length_mm + 1e-6 * plane.length_mm.max(initial=1e-6)
    borders = np.zeros(view.size, bool)
    for axis in (0, 1):
        change = np.diff(view.segmentation, axis=axis) != 0
        borders |= np.pad(change, [(0, 1) if each == axis else (0, 0) for each in (0, 1)])
    if borders.any():
        zoom = [count / full for count, full in zip(shape, view.size, strict=True)]
        near = ndimage.zoom(
            ndimage.gaussian_filter(borders.astype(np.float32), 2), zoom, order=1, grid_mode=True, mode="nearest"
        )
        interest = interest * near
    score = ndimage.uniform_filter(interest, part, mode="constant")
    middle = np.unravel_index(int(score.argmax()), shape)
    starts = [int(np.clip(m - p // 2, 0, c - p)) for m, p, c in zip(middle, part, shape, strict=True)]
    return tuple(slice(start, start + count) for start, count in zip(starts, part, strict=True))


def _limits(plane: _Plane, window: tuple[slice, slice]) -> list[tuple[float, float]]:
    """First and last row, first and last column of a window, in pixels, half a sample beyond."""
    limits = []
    for axis, part in enumerate(window):
        line = plane.regular[axis].mean(axis=1 - axis)  # regular positions along this axis
        half = (line[1] - line[0]) / 2 if len(line) > 1 else 0.5
        limits.append((line[part.start] - half, line[part.stop - 1] + half))
    return limits


def _above(ax: Axes, text: str, points: float, colour: str, size: float) -> Annotation:
    return ax.annotate(
        text, (0, 1), (0, points), "axes fraction", textcoords="offset points", color=colour, fontsize=size
    )


def _draw_image(ax: Axes, view: _View, frame: list[tuple[float, float]] | None) -> None:
    ax.imshow(view.image, cmap="gray", vmin=0, vmax=1, extent=view.extent, interpolation="nearest")
    view.outline(ax, 1.3)
    view.frame(ax)
    if frame is not None:
        (top, bottom), (left, right) = frame
        ax.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=WAY, linewidth=1.4)


def _draw_samples(ax: Axes, plane: _Plane, view: _View, points: float) -> None:
    view.frame(ax)
    spacing = points / plane.sampled.shape[2]  # of neighbours, in points on paper
    size = min(0.62 * spacing, 5) ** 2
    ax.scatter(plane.sampled[1], plane.sampled[0], s=size, c="white", linewidths=0, rasterized=True)
    view.outline(ax)


def _draw_enlarged(ax: Axes, plane: _Plane, view: _View, window: tuple[slice, slice]) -> None:
    ax.imshow(0.15 + 0.4 * view.image, cmap="gray", vmin=0, vmax=1, extent=view.extent, interpolation="nearest")
    view.outline(ax, 1.3)
    regular, sampled = (
        positions[(slice(None), *window)].reshape(2, -1)[::-1].T for positions in (plane.regular, plane.sampled)
    )  # (samples, 2), (x, y)
    ax.add_collection(LineCollection(np.stack([regular, sampled], 1), colors=WAY, linewidths=0.8))
    ax.scatter(*sampled.T, s=5, c="white", linewidths=0, zorder=3)
    view.frame(ax, *_limits(plane, window))


def _draw_reads(ax: Axes, bar: Axes, plane: _Plane, view: _View) -> None:
    ax.imshow(view.image, cmap="gray", vmin=0, vmax=1, extent=view.extent, interpolation="nearest")
    reach = max(0.05, float(np.percentile(np.abs(plane.reads - 1), 99)))
    norm = TwoSlopeNorm(1, max(0.0, 1 - reach), 1 + reach)
    strength = np.clip(np.abs(plane.reads - 1) / reach, 0, 1)  # where nothing changes the image stays visible
    shown = ax.imshow(
        plane.reads, cmap="PuOr_r", norm=norm, alpha=0.08 + 0.82 * strength, extent=view.extent, interpolation="nearest"
    )
    view.outline(ax)
    view.frame(ax)
    _colour_bar(shown, bar, "times", [norm.vmin, 1, norm.vmax])


def _draw_length(ax: Axes, bar: Axes, plane: _Plane, view: _View, unit: str) -> None:
    top = float(np.percentile(plane.length_mm, 99.5)) or 1.0
    shown = ax.imshow(plane.length_mm, cmap="magma", vmin=0, vmax=top, extent=view.extent, interpolation="nearest")
    view.outline(ax)
    view.frame(ax)
    _colour_bar(shown, bar, unit, [0, top / 2, top])


def _colour_bar(shown: AxesImage, bar: Axes, label: str, ticks: Sequence[float]) -> None:
    scale = ScalarMappable(shown.norm, shown.cmap)  # without the transparency
    drawn = bar.figure.colorbar(scale, cax=bar, ticks=ticks)
    drawn.ax.set_yticklabels([f"{tick:.2g}" for tick in ticks])
    drawn.ax.tick_params(colors=FAINT, labelsize=8, length=2)
    drawn.ax.set_title(label, color=FAINT, fontsize=8, loc="left", pad=4)
    drawn.outline.set_visible(False)


def _draw_histogram(ax: Axes, stage: StageCoordinates, number: StageNumbers, unit: str) -> None:
    ax.set_facecolor("#17181c")
    edges = np.linspace(0, 1, BINS + 1)
    for axis, colour in zip(number.axes, AXIS_COLOURS, strict=False):
        counts = np.array(axis.histogram[:BINS])
        if counts.sum() and math.isfinite(axis.used):
            share = counts / sum(axis.histogram)
            ax.stairs(share, edges, color=colour, linewidth=1.6, label=f"{axis.axis}  {axis.mean_mm:.2g}")
            ax.stairs(share, edges, color=colour, fill=True, alpha=0.16)
            ax.axvline(min(axis.used, 1), color=colour, linewidth=1, linestyle=":")
    ax.set_xlim(0, 1)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.tick_params(colors=FAINT, labelsize=8, length=2)
    for name, spine in ax.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color("#3a3c42")
    if ax.get_legend_handles_labels()[0]:
        legend = ax.legend(title=f"mean {unit}", fontsize=8.5, title_fontsize=8, frameon=False, labelcolor=INK)
        legend.get_title().set_color(FAINT)
    else:
        word = "no shift" if number.deformation.receptive_field == 0 else "not finite"
        ax.text(0.5, 0.5, word, color=FAINT, ha="center", va="center", transform=ax.transAxes)
    if not stage.deformation.is_bounded:
        ax.annotate(
            "of lambda: no bound",
            (1, 1),
            (0, 5),
            "axes fraction",
            textcoords="offset points",
            color=FAINT,
            fontsize=8,
            ha="right",
        )
