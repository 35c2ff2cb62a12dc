"""Where the DTC blocks sample an image: the paper's figure 7 for every decoder stage, with further panels.

Each row shows a stage, from the deepest to the last: the image, the samples as in the paper (white where they gather,
black where there are none), an enlarged part with the shift of every sample, the sampling density in the stage's input
map, the length of the shifts, and their distribution relative to the bound.
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

from nnunet_dtc.ops.coordinates import BINS, StageCoordinates, StageStatistics
from nnunet_dtc.study.figures.overlay import BACKGROUND, PALETTE, outline
from nnunet_dtc.study.figures.views import informative_slices

__all__ = ["coordinates_figure"]

INK, FAINT, LINE = "#e8e8ea", "#9a9ca3", "#3a3c42"
AXIS_COLOURS = ("#f2c14e", "#3fa7d6", "#ff8fab")
SHIFT, WARNING = "#ff9f1c", "#ff8f70"
ENLARGED = 24
"""Samples along the shorter side of the enlarged part."""

PANEL = 2.7
"""Width of a panel in inches."""

TITLES = (
    "image and prediction",
    "samples",
    "the frame enlarged",
    "sampling density",
    "length of the shift",
    "shift relative to the bound",
)


@dataclass(frozen=True)
class _View:
    """The image plane of the figure, in pixels of the network's input."""

    image: np.ndarray  # (rows, columns) in 0..1, or (rows, columns, 3)
    segmentation: np.ndarray  # (rows, columns)
    cut: int | None  # slice of a volume along its first axis
    depth: int  # number of such slices
    spacing_mm: tuple[float, float]
    upside_down: bool  # the first row is shown at the bottom, so that the head is up

    @property
    def size(self) -> tuple[int, int]:
        return self.segmentation.shape

    def frame(self, ax: Axes, rows: tuple[float, float] | None = None, columns: tuple[float, float] | None = None):
        """Show only these rows and columns, by default all of them, without ticks."""
        low, high = rows or (-0.5, self.size[0] - 0.5)
        ax.set_ylim((low, high) if self.upside_down else (high, low))
        ax.set_xlim(columns or (-0.5, self.size[1] - 0.5))
        ax.set_aspect(self.spacing_mm[0] / self.spacing_mm[1])
        ax.set(xticks=[], yticks=[])
        ax.set_facecolor("black")
        for spine in ax.spines.values():
            spine.set_color(LINE)

    def show(self, ax: Axes, pixels: np.ndarray, **options) -> AxesImage:
        """Draw an array over the whole plane, whatever its resolution."""
        extent = (-0.5, self.size[1] - 0.5, self.size[0] - 0.5, -0.5)
        return ax.imshow(pixels, extent=extent, interpolation="nearest", **options)

    def outline(self, ax: Axes, width: float = 1.0) -> None:
        for number in np.unique(self.segmentation[self.segmentation > 0]):
            colour = PALETTE[(int(number) - 1) % len(PALETTE)]
            outline(ax, self.segmentation == number, colour, width)


@dataclass(frozen=True)
class _Plane:
    """A stage in the image plane; positions are in pixels of the network's input, (2, rows, columns)."""

    regular: np.ndarray
    sampled: np.ndarray
    density: np.ndarray  # (rows, columns) of the stage's input
    length_mm: np.ndarray  # (rows, columns) of its output


class _Grid:
    """Places of the panels and colour bars of all rows, in inches."""

    BAR = 0.72
    WIDTHS = (PANEL, PANEL, PANEL, PANEL, BAR, PANEL, BAR, PANEL)
    SPACES = (0.1, 0.1, 0.1, 0.07, 0.1, 0.07, 0.38, 0.3)
    PANELS, BARS = (0, 1, 2, 3, 5, 7), (4, 6)  # columns
    LEFT, HEAD, FOOT = 0.15, 0.34, 0.42
    GAP = 0.66  # below a row, for the ticks of the histogram and the next row's heading

    def __init__(self, view: _View, rows: int, has_title: bool) -> None:
        shape = view.size[0] * view.spacing_mm[0] / (view.size[1] * view.spacing_mm[1])
        self.panel_height = PANEL * float(np.clip(shape, 0.55, 1.5))
        self.top = self.HEAD + (0.5 if has_title else 0.12)
        self.width = self.LEFT + sum(self.WIDTHS) + sum(self.SPACES)
        self.height = self.top + rows * (self.panel_height + self.GAP) + self.FOOT - 0.3
        self.figure = Figure(figsize=(self.width, self.height), facecolor=BACKGROUND)

    def panels(self, row: int) -> list[Axes]:
        return [self._axes(column, row, self.WIDTHS[column]) for column in self.PANELS]

    def bars(self, row: int) -> list[Axes]:
        return [self._axes(column, row, 0.11) for column in self.BARS]

    def _axes(self, column: int, row: int, width: float) -> Axes:
        left = self.LEFT + sum(self.WIDTHS[:column]) + sum(self.SPACES[:column])
        bottom = self.height - self.top - row * (self.panel_height + self.GAP) - self.panel_height - 0.28
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, self.panel_height / self.height)
        )

    def text(self, inches_from_bottom: float, text: str, **options) -> None:
        self.figure.text(self.LEFT / self.width, inches_from_bottom / self.height, text, **options)


def coordinates_figure(
    stages: Sequence[StageCoordinates],
    statistics: Sequence[StageStatistics],
    image: np.ndarray,
    segmentation: np.ndarray,
    spacing_mm: Sequence[float],
    cut: int | None = None,
    title: str | None = None,
    unit: str = "mm",
) -> Figure:
    """Draw one row of panels per decoder stage.

    Args:
        stages: the coordinates of one case at all positions (``collect`` without a limit).
        statistics: statistics of these stages.
        image: (\\*S) or (\\*S, 3), the network's input, shown from its 1st to its 99th percentile.
        segmentation: (\\*S), integers; 0 is not outlined.
        spacing_mm: spacing of the image per axis.
        cut: slice of a volume along its first axis; by default the one with the most segmentation.
        title: title of the figure.
        unit: "mm", or "pixels" for images without a spacing.

    Returns:
        A matplotlib `Figure` without any global state; save it with `savefig`.

    Raises:
        ValueError: there is no stage, or shapes do not fit.
    """
    axes = len(spacing_mm)
    if not stages or len(stages) != len(statistics):
        raise ValueError(f"needs stages and statistics of each, got {len(stages)} and {len(statistics)}")
    if segmentation.ndim != axes or image.shape[:axes] != segmentation.shape or axes not in (2, 3):
        raise ValueError(
            f"image and segmentation must have one shape of {axes} axes, got {image.shape}, {segmentation.shape}"
        )
    view = _view(image, segmentation, spacing_mm, cut, statistics[0].axes[-2].axis == "z")
    grid = _Grid(view, len(stages), bool(title))
    if title:
        grid.text(grid.height - 0.16, title, color=INK, fontsize=13, weight="bold", va="top")
    for row, (stage, numbers) in enumerate(zip(stages, statistics, strict=True)):
        panels = grid.panels(row)
        if row == 0:
            for ax, text in zip(panels, TITLES, strict=True):
                _above(ax, text, 26, FAINT, 10)
        _draw_heading(panels[0], numbers)
        _draw_histogram(panels[5], numbers, unit)
        if bool(stage.coords.isfinite().all()):
            _draw_maps(panels, grid.bars(row), _plane(stage, numbers, view), view, unit)
        else:
            for ax in panels[:5]:
                view.frame(ax)
            _draw_image(panels[0], view, None)
    grid.text(0.12, _note(view), color=FAINT, fontsize=9, va="bottom")
    return grid.figure


def _view(
    image: np.ndarray, segmentation: np.ndarray, spacing_mm: Sequence[float], cut: int | None, upside_down: bool
) -> _View:
    low, high = np.percentile(image, [1, 99], axis=tuple(range(segmentation.ndim)))
    grey = np.clip((image - low) / np.maximum(high - low, 1e-6), 0, 1)
    if segmentation.ndim == 2:
        return _View(grey, segmentation, None, 1, tuple(spacing_mm), upside_down)
    cut = informative_slices(segmentation)[0] if cut is None else cut
    return _View(grey[cut], segmentation[cut], cut, len(segmentation), tuple(spacing_mm[-2:]), upside_down)


def _plane(stage: StageCoordinates, numbers: StageStatistics, view: _View) -> _Plane:
    regular, sampled = stage.regular_positions().numpy(), stage.positions()[0].numpy()  # (g, *O)
    density = stage.sampling_density()[0].numpy()  # (*S)
    spacing = np.array([axis.spacing_mm for axis in numbers.axes])
    shifts = stage.shifts()[0].numpy()  # (g, *O)
    length = np.sqrt(np.square(shifts * spacing.reshape(-1, *[1] * (shifts.ndim - 1))).sum(0))
    if view.cut is not None:  # the slice of each map that lies at the cut
        depth = (view.cut + 0.5) / view.depth
        out, low = (min(int(depth * count), count - 1) for count in (length.shape[0], density.shape[0]))
        regular, sampled, length, density = regular[1:, out], sampled[1:, out], length[out], density[low]
    ratio = np.array([full / size for full, size in zip(view.size, stage.sizes[-2:], strict=True)]).reshape(2, 1, 1)
    return _Plane((regular + 0.5) * ratio - 0.5, (sampled + 0.5) * ratio - 0.5, density, length)


def _window(plane: _Plane, view: _View) -> tuple[slice, slice]:
    """The part to enlarge: at a border of the segmentation, where the shifts are long."""
    shape = plane.length_mm.shape
    part = tuple(max(1, min(count, round(ENLARGED * count / min(shape)))) for count in shape)
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
    """First and last row, first and last column of a window in pixels, with a margin of half a sample."""
    limits = []
    for axis, part in enumerate(window):
        line = plane.regular[axis].mean(axis=1 - axis)  # regular positions along this axis
        half = (line[1] - line[0]) / 2 if len(line) > 1 else 0.5
        limits.append((line[part.start] - half, line[part.stop - 1] + half))
    return limits


def _note(view: _View) -> str:
    note = (
        "White: samples; orange lines: their shifts from the regular grid. Brown: sampled more densely than by the "
        "regular grid (1); violet: less densely. Dotted: means."
    )
    if view.cut is None:
        return note
    return f"Slice {view.cut + 1} of {view.depth} of the patch; shifts are shown within the slice. {note}"


def _above(ax: Axes, text: str, points: float, colour: str, size: float) -> Annotation:
    return ax.annotate(
        text, (0, 1), (0, points), "axes fraction", textcoords="offset points", color=colour, fontsize=size
    )


def _draw_heading(ax: Axes, numbers: StageStatistics) -> None:
    heading = _above(ax, f"S{numbers.title[1:]}, RF {numbers.deformation.receptive_field:g}", 7, INK, 11)
    states = ", ".join(f"{axis.axis} {' and '.join(axis.states)}" for axis in numbers.axes if axis.states)
    ax.annotate(
        f"   {states.replace('_', ' ')}",
        (1, 0),
        xycoords=heading,
        color=WARNING,
        fontsize=11,
        va="bottom",
        annotation_clip=False,
    )


def _draw_maps(panels: Sequence[Axes], bars: Sequence[Axes], plane: _Plane, view: _View, unit: str) -> None:
    """The five panels that show the image plane."""
    window = _window(plane, view)
    shows_all = all(part.stop == count for part, count in zip(window, plane.length_mm.shape, strict=True))
    _draw_image(panels[0], view, None if shows_all else _limits(plane, window))
    _draw_samples(panels[1], plane, view)
    _draw_enlarged(panels[2], plane, view, window)
    _draw_density(panels[3], bars[0], plane, view)
    _draw_length(panels[4], bars[1], plane, view, unit)


def _draw_image(ax: Axes, view: _View, frame: list[tuple[float, float]] | None) -> None:
    view.show(ax, view.image, cmap="gray", vmin=0, vmax=1)
    view.outline(ax, 1.3)
    view.frame(ax)
    if frame is not None:
        (top, bottom), (left, right) = frame
        ax.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=SHIFT, linewidth=1.4)


def _draw_samples(ax: Axes, plane: _Plane, view: _View) -> None:
    view.frame(ax)
    distance = 72 * PANEL / plane.sampled.shape[2]  # of neighbours, in points on paper
    size = min(0.62 * distance, 5) ** 2
    ax.scatter(plane.sampled[1], plane.sampled[0], s=size, c="white", linewidths=0, rasterized=True)
    view.outline(ax)


def _draw_enlarged(ax: Axes, plane: _Plane, view: _View, window: tuple[slice, slice]) -> None:
    view.show(ax, 0.15 + 0.4 * view.image, cmap="gray", vmin=0, vmax=1)
    view.outline(ax, 1.3)
    regular, sampled = (
        positions[(slice(None), *window)].reshape(2, -1)[::-1].T for positions in (plane.regular, plane.sampled)
    )  # (samples, 2), (x, y)
    ax.add_collection(LineCollection(np.stack([regular, sampled], 1), colors=SHIFT, linewidths=0.8))
    ax.scatter(*sampled.T, s=5, c="white", linewidths=0, zorder=3)
    view.frame(ax, *_limits(plane, window))


def _draw_density(ax: Axes, bar: Axes, plane: _Plane, view: _View) -> None:
    view.show(ax, view.image, cmap="gray", vmin=0, vmax=1)
    reach = max(0.05, float(np.percentile(np.abs(plane.density - 1), 99)))
    norm = TwoSlopeNorm(1, max(0.0, 1 - reach), 1 + reach)
    strength = np.clip(np.abs(plane.density - 1) / reach, 0, 1)  # the image stays visible where the density is 1
    shown = view.show(ax, plane.density, cmap="PuOr_r", norm=norm, alpha=0.08 + 0.82 * strength)
    view.outline(ax)
    view.frame(ax)
    _colour_bar(shown, bar, "times", [norm.vmin, 1, norm.vmax])


def _draw_length(ax: Axes, bar: Axes, plane: _Plane, view: _View, unit: str) -> None:
    top = float(np.percentile(plane.length_mm, 99.5)) or 1.0
    shown = view.show(ax, plane.length_mm, cmap="magma", vmin=0, vmax=top)
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


def _draw_histogram(ax: Axes, numbers: StageStatistics, unit: str) -> None:
    ax.set_facecolor("#17181c")
    edges = np.linspace(0, 1, BINS + 1)
    for axis, colour in zip(numbers.axes, AXIS_COLOURS, strict=False):
        counts = np.array(axis.histogram[:BINS])
        if counts.sum() and math.isfinite(axis.used):
            fraction = counts / sum(axis.histogram)
            ax.stairs(fraction, edges, color=colour, linewidth=1.6, label=f"{axis.axis}  {axis.mean_mm:.2g}")
            ax.stairs(fraction, edges, color=colour, fill=True, alpha=0.16)
            ax.axvline(min(axis.used, 1), color=colour, linewidth=1, linestyle=":")
    ax.set_xlim(0, 1)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.tick_params(colors=FAINT, labelsize=8, length=2)
    for name, spine in ax.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(LINE)
    if ax.get_legend_handles_labels()[0]:
        legend = ax.legend(title=f"mean {unit}", fontsize=8.5, title_fontsize=8, frameon=False, labelcolor=INK)
        legend.get_title().set_color(FAINT)
    else:
        word = "no shift" if numbers.deformation.receptive_field == 0 else "not finite"
        ax.text(0.5, 0.5, word, color=FAINT, ha="center", va="center", transform=ax.transAxes)
    if not numbers.deformation.is_bounded:
        _above(ax, "relative to lambda (no bound)", 5, FAINT, 8)
