"""All scores of one case: every organ, cropped to where it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from nnunet_dtc.study.evaluation.labels import LabelSet
from nnunet_dtc.study.evaluation.metrics import ABSENT_RULES, Absent, OrganMasks, metrics_for
from nnunet_dtc.study.evaluation.tolerances import Tolerance

__all__ = ["ABSENT_RULES", "Absent", "OrganScores", "score_case"]


@dataclass(frozen=True)
class OrganScores:
    """One organ of one case.

    Attributes:
        scores: `dice` and `nsd_<tolerance>` in [0, 1], `hd95_mm` in mm; NaN is not counted, see the contract above.
        prediction_voxels, reference_voxels: how many voxels it has, without those to ignore.
    """

    scores: Mapping[str, float]
    prediction_voxels: int
    reference_voxels: int

    @property
    def absent(self) -> Literal["both", "prediction", "reference"] | None:
        """Where there is no voxel of this organ."""
        if self.prediction_voxels == 0:
            return "both" if self.reference_voxels == 0 else "prediction"
        return "reference" if self.reference_voxels == 0 else None


def score_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    labels: LabelSet,
    tolerances: Sequence[Tolerance],
    absent: Absent = "skip",
) -> dict[str, OrganScores]:
    """The scores of each organ, by its name.

    Args:
        prediction, reference (unsigned integers[*S]): label images, S = (H, W) or (D, H, W).
        spacing_mm: voxel size in mm of each axis, in the order of the array's axes.

    Raises:
        ValueError: for arrays of different shapes or a spacing that does not fit, see `surface_distances`.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"label images must have the same shape, got {prediction.shape=}, {reference.shape=}")
    spacing_mm = tuple(float(length) for length in spacing_mm)
    most = max(labels.values)
    boxes = [ndimage.find_objects(array, max_label=most) for array in (prediction, reference)]
    metrics = metrics_for(tolerances)
    result = {}
    for organ in labels.organs:
        if 0 in organ.values:  # a region with the background, which is everywhere
            box = tuple(slice(0, size) for size in reference.shape)
        else:
            box = _union([found[value - 1] for found in boxes for value in organ.values if found[value - 1]])
        masks = None
        if box is not None:
            # One voxel more on each side where the image has it: a voxel to ignore there touches the organ's surface.
            box = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
            ignored = None if labels.ignore is None else reference[box] == labels.ignore
            masks = [_mask(array[box], organ.values) for array in (prediction, reference)]
            if ignored is not None:
                masks = [mask & ~ignored for mask in masks]
        voxels = [int(np.count_nonzero(mask)) for mask in masks] if masks else [0, 0]
        if all(voxels):
            organ_masks = OrganMasks(organ.name, *masks, spacing_mm, ignored)
            scores = {metric.key: metric.compute(organ_masks) for metric in metrics}
        elif any(voxels):
            scores = {metric.key: metric.absent_in_one for metric in metrics}
        else:
            scores = {metric.key: metric.absent_in_both[absent] for metric in metrics}
        result[organ.name] = OrganScores(scores, *voxels)
    return result


def _mask(array: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    mask = array == values[0]
    for value in values[1:]:
        mask |= array == value
    return mask


def _union(boxes: list[tuple[slice, ...]]) -> tuple[slice, ...] | None:
    if not boxes:
        return None
    return tuple(slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*boxes, strict=True))
