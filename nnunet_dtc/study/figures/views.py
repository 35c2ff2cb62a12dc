"""Which part of a volume is worth looking at: the cut, the body in it, and boxes around what models got wrong.

Volumes are (z, y, x) in LPS order (z to the head, y to the back, x to the patient's left), so that a cut is shown as
radiologists do: the patient's right on the left, the head or the front at the top.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

__all__ = [
    "PLANES",
    "Box",
    "body",
    "cut",
    "errors",
    "informative_slices",
    "pixel_aspect",
    "telling_slice",
    "zoom_boxes",
]

PLANES = {0: "axial", 1: "coronal", 2: "sagittal"}
"""The plane of a cut through a (z, y, x) array in LPS order, by the axis that is cut."""

Box = tuple[slice, slice]
"""Rows and columns of a picture."""

AIR_HU, TISSUE_HU = -500, -350


def body(image: np.ndarray, margin: int = 3) -> tuple[slice, slice]:
    """Rows and columns that hold the body, if the image looks like a CT; otherwise all of them.

    Args:
        image: (z, y, x), in HU if it is a CT.
        margin: pixels that are left around the body.
    """
    if image.min() > AIR_HU:
        return slice(None), slice(None)
    inside = (image > TISSUE_HU).mean(0) > 0.02  # (y, x)
    found = []
    for axis in (1, 0):
        hits = np.flatnonzero(inside.any(axis))
        if not len(hits):
            return slice(None), slice(None)
        found.append(slice(max(0, hits[0] - margin), hits[-1] + 1 + margin))
    return found[0], found[1]


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


def errors(
    truth: np.ndarray, predictions: Sequence[np.ndarray], ignore: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Where predictions are wrong, and where they are wrong in different ways.

    A wrong voxel counts 1 / sqrt(n) for each of the two labels that it was taken for and belongs to, where n is how
    many voxels that label has in the truth (or else in the prediction): a missed gland is to be found beside a liver
    whose whole surface is a little off. The background counts nothing.

    Args:
        truth: integers >= 0, any shape.
        predictions: the same shape each, at least one.
        ignore: voxels that have this value in the truth are never wrong.

    Returns:
        Two float32 arrays of the truth's shape: the sum over all predictions, and the same where not all predictions
        agree with each other, 0 elsewhere.
    """
    predictions = [np.asarray(prediction) for prediction in predictions]
    values = max(int(array.max(initial=0)) for array in (truth, *predictions)) + 1
    counts = np.bincount(truth.ravel(), minlength=values)
    for prediction in predictions:
        counts = np.where(counts == 0, np.bincount(prediction.ravel(), minlength=values), counts)
    weight = np.where(counts > 0, 1 / np.sqrt(np.maximum(counts, 1)), 0).astype(np.float32)
    weight[0] = 0
    total = np.zeros(truth.shape, np.float32)
    differ = np.zeros(truth.shape, bool)
    for prediction in predictions:
        wrong = prediction != truth
        if ignore is not None:
            wrong &= truth != ignore
        total[wrong] += weight[truth[wrong]] + weight[prediction[wrong]]
        differ |= prediction != predictions[0]
    return total, np.where(differ, total, 0)


def telling_slice(
    truth: np.ndarray, predictions: Sequence[np.ndarray], axis: int = 0, ignore: int | None = None
) -> int:
    """The slice in which the models differ most; if they do not, in which they are most wrong; else the one that
    shows the most labels.

    Args:
        truth, predictions: (z, y, x), integers >= 0.
        axis: the axis to cut.
        ignore: see `errors`.
    """
    labelled = np.logical_or.reduce([truth != 0, *(prediction != 0 for prediction in predictions)])
    box = ndimage.find_objects(labelled.astype(np.uint8))
    if box:  # most of a volume is background
        cropped = [array[box[0]] for array in (truth, *predictions)]
        for error in errors(cropped[0], cropped[1:], ignore)[::-1]:
            share = np.moveaxis(error, axis, 0).reshape(error.shape[axis], -1).sum(1, dtype=np.float64)
            if share.any():
                return int(share.argmax()) + box[0][axis].start
    return informative_slices(truth, axis)[0]


def zoom_boxes(error: np.ndarray, count: int = 2, share: float = 0.3, least: float = 0.15) -> list[Box]:
    """Boxes around the most that is wrong in a picture. They have the picture's proportions and do not overlap.

    Args:
        error: (rows, columns), see `errors`.
        count: at most so many; fewer where less is wrong.
        share: side of a box as a share of the picture's, at least 12 pixels.
        least: how much must be wrong in a further box, as a share of what is in the first.

    Returns:
        The worst first; none where nothing is wrong, or a picture is too small to show more of it in a box.
    """
    rows, columns = error.shape
    part = max(share, 12 / min(rows, columns))
    if part > 0.6:
        return []
    height, width = round(rows * part), round(columns * part)
    smooth = ndimage.gaussian_filter(error.astype(np.float64), (height / 5, width / 5), mode="constant")
    y, x = np.ogrid[:rows, :columns]
    top, left = np.clip(y - height // 2, 0, rows - height), np.clip(x - width // 2, 0, columns - width)
    free = np.ones(error.shape, bool)
    boxes: list[Box] = []
    while len(boxes) < count and free.any():
        row, column = np.unravel_index(np.where(free, smooth, -1).argmax(), error.shape)
        at = int(top[row, 0]), int(left[0, column])
        box = slice(at[0], at[0] + height), slice(at[1], at[1] + width)
        inside = error[box].sum(dtype=np.float64)
        if inside <= (least * error[boxes[0]].sum(dtype=np.float64) if boxes else 0):
            break
        boxes.append(box)
        free &= (np.abs(top - at[0]) >= height) | (np.abs(left - at[1]) >= width)
    return boxes


def cut(volume: np.ndarray, axis: int, index: int, ys: slice = slice(None), xs: slice = slice(None)) -> np.ndarray:
    """A slice of a (z, y, x) volume, cropped to rows `ys` and columns `xs`, with the head (or the front) up.

    Args:
        index: along `axis` of the whole volume.
    """
    cropped = volume[:, ys, xs]
    if axis == 0:
        return cropped[index]
    start = (ys if axis == 1 else xs).start or 0
    plane = np.take(cropped, np.clip(index - start, 0, cropped.shape[axis] - 1), axis=axis)
    return plane[::-1]  # the head is up


def pixel_aspect(axis: int, spacing_mm: Sequence[float]) -> float:
    """Height of a pixel over its width in a cut through `axis`; spacing_mm along z, y, x."""
    z, y, x = spacing_mm
    return {0: y / x, 1: z / x, 2: z / y}[axis]
