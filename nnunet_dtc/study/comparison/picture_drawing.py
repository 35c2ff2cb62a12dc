"""The pictures of cases: files are read, turned to LPS order, and the slice with the most errors is drawn."""

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
"""Volumes whose slices are at least this many times thicker than their pixels are shown slice by slice as scanned."""


class PictureError(NnunetDtcError):
    """A case cannot be shown; the message gives the reason and names the file."""


@dataclass(frozen=True)
class _View:
    """Turns arrays from the stored order of an image's voxels to the order in which they are shown.

    Labels are turned like their image, whatever their own headers say, because they are compared voxel by voxel.

    Attributes:
        grid: the grid of the image.
    """

    grid: Grid

    @property
    def flat(self) -> bool:
        """Whether it is a 2D image, whose directions in the body are unknown."""
        return 1 in self.grid.size

    @property
    def orientation(self) -> np.ndarray:
        """From the stored axes x, y, z to LPS, as `nibabel.orientations` describes it, float64[3, 2]."""
        affine = np.eye(4)
        affine[:3, :3] = self.grid.matrix
        return io_orientation(affine)

    def turn(self, array: np.ndarray) -> np.ndarray:
        """Turn an array (z, y, x) or (z, y, x, components) to LPS order. The single slice of a 2D image comes first."""
        if self.flat:
            return np.moveaxis(array, array.shape[:3].index(1), 0)
        return np.swapaxes(apply_orientation(np.swapaxes(array, 0, 2), self.orientation), 0, 2)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The spacing of the turned array along z, y, x."""
        z, y, x = self.grid.spacing[::-1]
        if self.flat:
            axis = self.grid.size[::-1].index(1)
            return (1.0, *(step for each, step in enumerate((z, y, x)) if each != axis))
        turned = np.zeros(3)
        turned[self.orientation[:, 0].astype(int)] = (x, y, z)
        return tuple(turned[::-1].tolist())


def is_ct(model_folder: Path) -> bool:
    """Whether the first channel is a CT, which nnU-Net recognises by its name in the model's dataset.json. False if
    that file cannot be read."""
    try:
        description = json.loads((Path(model_folder) / "dataset.json").read_text(encoding="utf-8"))
        channels = description.get("channel_names", description.get("modality"))
        return str(channels["0"]).lower() == "ct"
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return False


def draw_picture(picture: CasePicture, labels: LabelSet, ct: bool, reader: Reader | None = None) -> tuple[Figure, str]:
    """Draw image, truth and predictions of a case, with up to two boxes around the largest errors of the models.

    Args:
        picture: the files of the case. The first channel is shown, or all components of a colour image.
        labels: the organs and the ignore label.
        ct: whether to use the soft tissue window and to crop to the body.
        reader: the reader of the files; by default the one that nnU-Net uses for their ending.

    Returns:
        The figure, and the name of the slice ("" for a 2D image).

    Raises:
        PictureError: a file is missing, damaged or incomplete, or the files differ in size.
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
    """The axis of the slices: that of thick slices, as they were scanned, otherwise axial."""
    return int(np.argmax(spacing_mm)) if max(spacing_mm) >= THICK * float(np.median(spacing_mm)) else 0


def _shown(picture: np.ndarray, ct: bool) -> np.ndarray:
    """An image (rows, columns) or (rows, columns, components) as floats in [0, 1], with 1 or 3 components."""
    if picture.ndim == 3:
        if picture.shape[2] < 3:
            picture = picture[..., 0]
        else:
            picture = picture[..., :3]
            if picture.min() >= 0 and picture.max() <= 255 and not (picture % 1).any():  # colours of 8 bits
                return picture / np.float32(255)
    low, high = CT_WINDOW_HU if ct else np.percentile(picture, (0.5, 99.5))
    return np.clip((picture.astype(np.float32) - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)


def _zoom(box: tuple[slice, slice], flat: dict[str, np.ndarray], picture: CasePicture, labels: LabelSet) -> Zoom:
    """A box with the name of the organ with the most errors in it, and the Dice of that organ in the whole case."""
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
