"""Score all organs of one case, each cropped to its voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from nnunet_dtc.study.evaluation.labels import LabelSet
from nnunet_dtc.study.evaluation.metrics import Absent, Metric, OrganMasks

__all__ = ["score_case"]

_ABSENT = {(True, True): "", (True, False): "reference", (False, True): "prediction", (False, False): "both"}
"""Where an organ is absent, by whether the prediction and the reference have it."""


def score_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    labels: LabelSet,
    metrics: Sequence[Metric],
    absent: Absent = "skip",
) -> list[dict[str, Any]]:
    """Score every organ of a case.

    Args:
        prediction, reference (unsigned integers[*S]): label images, S = (H, W) or (D, H, W).
        spacing_mm: voxel size in mm of each axis, in the order of the array's axes.
        labels: the organs and the ignore label.
        metrics: the metrics, see `metrics_for`.
        absent: the rule for organs that are absent in both, see `metrics`.

    Returns:
        One row for each organ: `organ`, the score of each metric by its key, `absent` (`prediction`, `reference`,
        `both`, or empty), and `prediction_voxels` and `reference_voxels`, the organ's voxels outside the ignore label.

    Raises:
        ValueError: the arrays have different shapes, or the spacing does not fit them.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"label images must have the same shape, got {prediction.shape=}, {reference.shape=}")
    spacing_mm = tuple(float(length) for length in spacing_mm)
    images = (prediction, reference)
    boxes = [ndimage.find_objects(image, max_label=max(labels.values)) for image in images]
    rows = []
    for organ in labels.organs:
        box = _box(organ.values, boxes, reference.shape)
        masks = [np.logical_or.reduce([image[box] == value for value in organ.values]) for image in images]
        ignored = None if labels.ignore is None else reference[box] == labels.ignore
        if ignored is not None:
            masks = [mask & ~ignored for mask in masks]
        voxels = [int(np.count_nonzero(mask)) for mask in masks]
        where = _ABSENT[voxels[0] > 0, voxels[1] > 0]
        if where == "":
            organ_masks = OrganMasks(organ.name, *masks, spacing_mm, ignored)
            scores = {metric.key: metric.compute(organ_masks) for metric in metrics}
        elif where == "both":
            scores = {metric.key: metric.absent_in_both[absent] for metric in metrics}
        else:
            scores = {metric.key: metric.absent_in_one for metric in metrics}
        counts = {"prediction_voxels": voxels[0], "reference_voxels": voxels[1]}
        rows.append({"organ": organ.name, **scores, "absent": where, **counts})
    return rows


def _box(
    values: Sequence[int], boxes: Sequence[Sequence[tuple[slice, ...] | None]], shape: Sequence[int]
) -> tuple[slice, ...]:
    """The box around all voxels of an organ, with one more on each side: ignored voxels there touch its surface.

    Args:
        values: the values of the organ's voxels.
        boxes: for each image, the boxes around the voxels of each value from 1 on.
        shape: the shape of the images.
    """
    if 0 in values:  # a region with the background, which is everywhere
        found = [tuple(slice(0, size) for size in shape)]
    else:
        found = [box for image in boxes for value in values if (box := image[value - 1])]
    sides = zip(*(found or [(slice(0, 0),) * len(shape)]), strict=True)
    return tuple(slice(max(min(s.start for s in side) - 1, 0), max(s.stop for s in side) + 1) for side in sides)
