"""Select the part of a volume to show: a slice, the body in it, and boxes around the errors of models.

Volumes are (z, y, x) in LPS order (z to the head, y to the back, x to the patient's left). Slices are shown in
radiological convention: the patient's right on the left, the head or the front at the top.
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
    "most_different_slice",
    "pixel_aspect",
    "zoom_boxes",
]

PLANES = {0: "axial", 1: "coronal", 2: "sagittal"}
"""Name of the plane of a slice through a (z, y, x) array in LPS order, by the axis that is cut."""

Box = tuple[slice, slice]
"""Rows and columns of a picture."""

AIR_HU, TISSUE_HU = -500, -350


def body(image: np.ndarray, margin: int = 3) -> tuple[slice, slice]:
    """Rows and columns with the body if the image looks like a CT; otherwise all rows and columns.

    Args:
        image: (z, y, x), in HU if it is a CT.
        margin: pixels to keep around the body.
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
    """The slices that show the most labels, and the largest areas of them.

    Args:
        labels: (z, y, x), integers, 0 is background.
        axis: the axis to cut.
        count: number of slices; fewer are returned if they would be too close to each other.
        apart: minimum distance between two slices as a fraction of the axis.

    Returns:
        Indices along `axis` in increasing order; the middle slice if nothing is labelled.

    Example:
        >>> labels = np.zeros((5, 4, 4), int)
        >>> labels[3, 1:3, 2] = 1
        >>> informative_slices(labels)
        [3]
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
    """Weighted errors of predictions, and those where the predictions differ.

    A wrong voxel has the weight 1 / sqrt(n) for each of its two labels, the true and the predicted one, where n is the
    number of voxels of that label in the truth (in the prediction if the truth has none). A missed gland thus outweighs
    small errors along the surface of a liver. The weight of the background is 0.

    Args:
        truth: integers >= 0, any shape.
        predictions: at least one array of the same shape.
        ignore: voxels with this label in the truth have no error.

    Returns:
        Two float32 arrays of the truth's shape: the sum over all predictions, and the same sum restricted to voxels
        where the predictions differ from each other.
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


def most_different_slice(
    truth: np.ndarray, predictions: Sequence[np.ndarray], axis: int = 0, ignore: int | None = None
) -> int:
    """The slice in which the predictions differ most.

    If they do not differ, it is the slice with the largest errors, and without errors the one with the most labels.

    Args:
        truth: (z, y, x), integers >= 0.
        predictions: arrays of the same shape.
        axis: the axis to cut.
        ignore: the ignore label, see `errors`.
    """
    labelled = np.logical_or.reduce([truth != 0, *(prediction != 0 for prediction in predictions)])
    box = ndimage.find_objects(labelled.astype(np.uint8))
    if box:  # most of a volume is background
        cropped = [array[box[0]] for array in (truth, *predictions)]
        for error in errors(cropped[0], cropped[1:], ignore)[::-1]:
            total = np.moveaxis(error, axis, 0).reshape(error.shape[axis], -1).sum(1, dtype=np.float64)
            if total.any():
                return int(total.argmax()) + box[0][axis].start
    return informative_slices(truth, axis)[0]


def zoom_boxes(error: np.ndarray, count: int = 2, fraction: float = 0.3, least: float = 0.15) -> list[Box]:
    """Boxes around the largest errors in a picture. They have the picture's proportions and do not overlap.

    Args:
        error: (rows, columns), see `errors`.
        count: maximum number of boxes.
        fraction: side of a box as a fraction of the picture's side; a side has at least 12 pixels.
        least: minimum error in a further box as a fraction of the error in the first box.

    Returns:
        The boxes in the order of decreasing error; none without errors, or if the picture is too small to be enlarged.
    """
    rows, columns = error.shape
    part = max(fraction, 12 / min(rows, columns))
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
    """A slice of a (z, y, x) volume, cropped to `ys` and `xs`, with the head (in axial slices the front) at the top.

    Args:
        volume: (z, y, x), or (z, y, x, channels).
        axis: the axis to cut.
        index: index along `axis` of the whole volume.
        ys: voxels to keep along y.
        xs: voxels to keep along x.
    """
    cropped = volume[:, ys, xs]
    if axis == 0:
        return cropped[index]
    start = (ys if axis == 1 else xs).start or 0
    plane = np.take(cropped, np.clip(index - start, 0, cropped.shape[axis] - 1), axis=axis)
    return plane[::-1]  # the head is at the top


def pixel_aspect(axis: int, spacing_mm: Sequence[float]) -> float:
    """Height of a pixel divided by its width in a slice across `axis`; `spacing_mm` is along z, y, x.

    Example:
        >>> pixel_aspect(1, (5.0, 1.0, 2.5))
        2.0
    """
    z, y, x = spacing_mm
    return {0: y / x, 1: z / x, 2: z / y}[axis]
