"""The pictures of the page: a case's files are read, turned, cut where it matters, and drawn by `figures.cases`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib.figure import Figure

from nnunet_dtc.comparison.result import CasePicture
from nnunet_dtc.evaluation.images import PIXELS, pixel_spacing
from nnunet_dtc.evaluation.labels import LabelSet
from nnunet_dtc.figures.cases import Zoom, case_panel
from nnunet_dtc.figures.views import PLANES, body, cut, errors, pixel_aspect, telling_slice, zoom_boxes

__all__ = ["PictureError", "draw_picture", "is_ct"]

CT_WINDOW_HU = (-160.0, 240.0)

THICK = 1.5
"""Slices that are so many times thicker than pixels are wide are cut along, whichever way they lie."""


class PictureError(ValueError):
    """Why a case cannot be shown; the message names the file."""


@dataclass(frozen=True)
class _Volume:
    """An image or label map.

    Attributes:
        array: (z, y, x) or (z, y, x, components), in LPS order if it has three axes; z = 1 for a 2D image.
        spacing_mm: along z, y, x.
        flat: a 2D image, whose directions in the body are not known.
    """

    array: np.ndarray
    spacing_mm: tuple[float, float, float]
    flat: bool


def is_ct(model_folder: Path) -> bool:
    """Whether the first channel is a CT, as nnU-Net decides it: by its name in the model's dataset.json. False where
    that file cannot be read."""
    try:
        description = json.loads((Path(model_folder) / "dataset.json").read_text(encoding="utf-8"))
        channels = description.get("channel_names", description.get("modality"))
        return str(channels["0"]).lower() == "ct"
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return False


def draw_picture(picture: CasePicture, labels: LabelSet, ct: bool) -> tuple[Figure, str]:
    """Image, truth and predictions of a case, with up to two boxes around what the models got wrong.

    Args:
        picture: its files; only the first channel is shown, or all of a colour image's.
        labels: the organs.
        ct: show the soft tissue window, and only where the body is.

    Returns:
        The figure, and which slice it is ("" for a 2D image).

    Raises:
        PictureError: if a file is not there or cannot be read, or they are not on one grid.
    """
    if not picture.images:
        raise PictureError("its image was not found")
    image = _read(picture.images[0])
    truth = _labels(_read(picture.reference), picture.reference, image)
    predictions = {model: _labels(_read(file), file, image) for model, file in picture.predictions.items()}
    cropped = ct and not image.flat and image.array.ndim == 3
    ys, xs = body(image.array) if cropped else (slice(None), slice(None))
    axis = 0 if image.flat else _axis(image.spacing_mm)
    index = telling_slice(truth, list(predictions.values()), axis, labels.ignore)
    where = "" if image.flat else f"{PLANES[axis]} {index + 1}/{truth.shape[axis]}"
    segmentations = {"truth": truth, **predictions}
    flat = {name: cut(array, axis, index, ys, xs) for name, array in segmentations.items()}
    error, _ = errors(flat["truth"], [flat[model] for model in predictions], labels.ignore)
    zooms = [_zoom(box, flat, picture, labels) for box in zoom_boxes(error)]
    figure = case_panel(
        _shown(cut(image.array, axis, index, ys, xs), ct),
        flat,
        labels,
        pixel_aspect(axis, image.spacing_mm),
        zooms,
        {model: f"{_percent(value)} %" for model, value in picture.dice.items() if model in predictions},
        where,
        right_is_left=not image.flat and axis != 2,
    )
    return figure, where


def _read(file: Path) -> _Volume:
    try:
        image = sitk.ReadImage(str(file))
    except RuntimeError as error:
        if not Path(file).is_file():
            raise PictureError(f"{file} is not there") from error
        raise PictureError(f"{file} cannot be read ({str(error).strip().splitlines()[-1]})") from error
    dimension = image.GetDimension()
    if dimension not in (2, 3):
        raise PictureError(f"{file} has {dimension} axes, 2 or 3 can be shown")
    flat = dimension == 2 or 1 in image.GetSize()
    if not flat:
        image = sitk.DICOMOrient(image, "LPS")
    array, spacing = sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]
    if str(file).lower().endswith(PIXELS):
        spacing = pixel_spacing(file, dimension)[::-1]
    if flat and dimension == 3:
        axis = array.shape[:3].index(1)
        array, spacing = array.squeeze(axis), tuple(s for a, s in enumerate(spacing) if a != axis)
    if flat:
        array, spacing = array[None], (1.0, *spacing)
    return _Volume(array, spacing, flat)


def _labels(volume: _Volume, file: Path, image: _Volume) -> np.ndarray:
    """As unsigned integers, on the image's grid."""
    if volume.array.shape != image.array.shape[:3]:
        raise PictureError(f"{file} has the shape {volume.array.shape}, its image {image.array.shape[:3]}")
    return volume.array.astype(np.min_scalar_type(int(volume.array.max(initial=0))), copy=False)


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
            if picture.dtype == np.uint8:
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
