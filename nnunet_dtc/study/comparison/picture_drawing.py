"""The pictures of the page: a case's files are read, turned, cut where it matters, and drawn by `figures.cases`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from nibabel.orientations import apply_orientation, io_orientation

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.study.comparison.result import CasePicture
from nnunet_dtc.study.evaluation.folders import ending_of
from nnunet_dtc.study.evaluation.images import EvaluationError, Grid
from nnunet_dtc.study.evaluation.labels import LabelSet
from nnunet_dtc.study.evaluation.readers import Image, Reader, check_image_file, find_reader
from nnunet_dtc.study.figures.cases import Zoom, case_panel
from nnunet_dtc.study.figures.views import PLANES, body, cut, errors, most_different_slice, pixel_aspect, zoom_boxes

__all__ = ["PictureError", "draw_picture", "is_ct"]

CT_WINDOW_HU = (-160.0, 240.0)

THICK = 1.5
"""Slices that are so many times thicker than pixels are wide are cut along, whichever way they lie."""


class PictureError(NnunetDtcError):
    """A case that cannot be shown; the message says why and names the file."""


@dataclass(frozen=True)
class _View:
    """How arrays in the stored order of an image's voxels are turned to be looked at.

    Labels are turned as their image is, whatever their own headers say: they are compared voxel by voxel.

    Attributes:
        grid: of the image.
    """

    grid: Grid

    @property
    def flat(self) -> bool:
        """Whether it is a 2D image, whose directions in the body are not known."""
        return 1 in self.grid.size

    @property
    def orientation(self) -> np.ndarray:
        """From the stored axes x, y, z to LPS, as `nibabel.orientations` describes it, float64[3, 2]."""
        affine = np.eye(4)
        affine[:3, :3] = self.grid.matrix
        return io_orientation(affine)

    def turn(self, array: np.ndarray) -> np.ndarray:
        """(z, y, x) or (z, y, x, components) in LPS order; of a 2D image the axis of the single slice comes first."""
        if self.flat:
            return np.moveaxis(array, array.shape[:3].index(1), 0)
        return np.swapaxes(apply_orientation(np.swapaxes(array, 0, 2), self.orientation), 0, 2)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Of the turned array, along z, y, x."""
        z, y, x = self.grid.spacing[::-1]
        if self.flat:
            axis = self.grid.size[::-1].index(1)
            return (1.0, *(step for each, step in enumerate((z, y, x)) if each != axis))
        turned = np.zeros(3)
        turned[self.orientation[:, 0].astype(int)] = (x, y, z)
        return tuple(turned[::-1].tolist())


def is_ct(model_folder: Path) -> bool:
    """Whether the first channel is a CT, as nnU-Net decides it: by its name in the model's dataset.json. False where
    that file cannot be read."""
    try:
        description = json.loads((Path(model_folder) / "dataset.json").read_text(encoding="utf-8"))
        channels = description.get("channel_names", description.get("modality"))
        return str(channels["0"]).lower() == "ct"
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return False


def draw_picture(picture: CasePicture, labels: LabelSet, ct: bool, reader: Reader | None = None) -> tuple[Figure, str]:
    """Image, truth and predictions of a case, with up to two boxes around what the models got wrong.

    Args:
        picture: its files; only the first channel is shown, or all of a colour image's.
        labels: the organs.
        ct: show the soft tissue window, and only where the body is.
        reader: of the files; by default what nnU-Net takes for their ending.

    Returns:
        The figure, and which slice it is ("" for a 2D image).

    Raises:
        PictureError: if a file is not there, cannot be read or is cut off, or they are not of one size.
    """
    if not picture.images:
        raise PictureError("its image was not found")
    reader = reader or find_reader(ending_of(picture.images[0]), picture.images[0])
    stored = _read(picture.images[0], reader, labels=False)
    view = _View(stored.grid)
    image = view.turn(stored.array)
    truth = view.turn(_labels(picture.reference, reader, stored))
    predictions = {model: view.turn(_labels(file, reader, stored)) for model, file in picture.predictions.items()}
    cropped = ct and not view.flat and image.ndim == 3
    ys, xs = body(image) if cropped else (slice(None), slice(None))
    axis = 0 if view.flat else _axis(view.spacing_mm)
    index = most_different_slice(truth, list(predictions.values()), axis, labels.ignore)
    where = "" if view.flat else f"{PLANES[axis]} {index + 1}/{truth.shape[axis]}"
    segmentations = {"truth": truth, **predictions}
    flat = {name: cut(array, axis, index, ys, xs) for name, array in segmentations.items()}
    error, _ = errors(flat["truth"], [flat[model] for model in predictions], labels.ignore)
    zooms = [_zoom(box, flat, picture, labels) for box in zoom_boxes(error)]
    figure = case_panel(
        _shown(cut(image, axis, index, ys, xs), ct),
        flat,
        labels,
        pixel_aspect(axis, view.spacing_mm),
        zooms,
        {model: f"{_percent(value)} %" for model, value in picture.dice.items() if model in predictions},
        where,
        right_is_left=not view.flat and axis != 2,
    )
    return figure, where


def _read(file: Path, reader: Reader, labels: bool) -> Image:
    if not Path(file).is_file():
        raise PictureError(f"{file} is not there")
    try:
        check_image_file(file)
        return reader.labels(file) if labels else reader.image(file)
    except EvaluationError as error:
        raise PictureError(str(error)) from error


def _labels(file: Path, reader: Reader, image: Image) -> np.ndarray:
    """The labels of an image as unsigned integers, in the stored order (z, y, x)."""
    array = _read(file, reader, labels=True).array
    if array.shape != image.array.shape[:3]:
        raise PictureError(f"{file} has the shape {array.shape}, its image {image.array.shape[:3]}")
    return array.astype(np.min_scalar_type(int(array.max(initial=0))), copy=False)


def _axis(spacing_mm: tuple[float, float, float]) -> int:
    """Along thick slices, as they were scanned; else axial."""
    return int(np.argmax(spacing_mm)) if max(spacing_mm) >= THICK * float(np.median(spacing_mm)) else 0


def _shown(picture: np.ndarray, ct: bool) -> np.ndarray:
    """(rows, columns) or (rows, columns, components) as floats in [0, 1], the latter with 3 components."""
    if picture.ndim == 3:
        if picture.shape[2] < 3:
            picture = picture[..., 0]
        else:
            picture = picture[..., :3]
            if picture.min() >= 0 and picture.max() <= 255 and not (picture % 1).any():  # 8 bits, as colours mostly are
                return picture / np.float32(255)
    low, high = CT_WINDOW_HU if ct else np.percentile(picture, (0.5, 99.5))
    return np.clip((picture.astype(np.float32) - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)


def _zoom(box: tuple[slice, slice], flat: dict[str, np.ndarray], picture: CasePicture, labels: LabelSet) -> Zoom:
    """A box, named after the organ that most of its errors belong to, with that organ's Dice in the whole case."""
    truth = flat["truth"][box]
    counted = truth != labels.ignore if labels.ignore is not None else np.ones(truth.shape, bool)

    def wrong(values: tuple[int, ...]) -> float:
        here = np.isin(truth, values)
        total = sum(np.count_nonzero((np.isin(flat[m][box], values) != here) & counted) for m in picture.predictions)
        return total / np.sqrt(max(1, np.count_nonzero(np.isin(flat["truth"], values))))

    organ = max(labels.organs, key=lambda organ: wrong(organ.values)).name
    notes = {
        model: f"{_percent(picture.organ_dice[model][organ])} %"
        for model in picture.predictions
        if organ in picture.organ_dice.get(model, {})
    }
    return Zoom(box, organ.replace("_", " "), notes)


def _percent(value: float) -> str:
    return "\N{EN DASH}" if np.isnan(value) else f"{100 * value:.1f}"
