"""All scores of one case: every organ, cropped to where it is.

The contract for organs that are absent, i.e. have no voxel (outside the ignore label):

| | Dice | NSD | HD95 |
|---|---|---|---|
| absent in both, `skip` (default) | not counted (NaN) | not counted (NaN) | not counted (NaN) |
| absent in both, `flare` | 1 | 1 | not counted (NaN) |
| absent in one | 0 | 0 | infinite |

`flare` is the rule in the evaluation code of the MICCAI FLARE challenges (github.com/JunMa11/FLARE) for absent organs,
and only that: FLARE has no HD95; it scores aorta, vena cava and esophagus only in slices that are labelled, and from
2023 on sets NSD to 0 where Dice is below 0.1. Those two are not done here.

An organ that is there, but whose surface touches the ignore label everywhere, has an NSD and HD95 of NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from nnunet_dtc.study.evaluation.labels import LabelSet
from nnunet_dtc.study.evaluation.metrics import ElementTable, dice, element_table, surface_distances
from nnunet_dtc.study.evaluation.tolerances import Tolerance

__all__ = ["ABSENT_RULES", "Absent", "OrganScores", "metric_names", "score_case"]

Absent = Literal["skip", "flare"]
ABSENT_RULES: tuple[Absent, ...] = ("skip", "flare")


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


def metric_names(tolerances: Iterable[str]) -> list[str]:
    """The keys of `OrganScores.scores` for tolerances of these names, in the order of the table."""
    return ["dice", *(f"nsd_{name}" for name in tolerances), "hd95_mm"]


def score_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    labels: LabelSet,
    tolerances: Sequence[Tolerance],
    absent: Absent = "skip",
    tables: Mapping[tuple[float, ...], ElementTable] | None = None,
) -> dict[str, OrganScores]:
    """The scores of each organ, by its name.

    Args:
        prediction, reference (unsigned integers[*S]): label images, S = (H, W) or (D, H, W).
        spacing_mm: voxel size in mm of each axis, in the order of the array's axes.
        tables: `element_table` by spacing, where they are there already (for this spacing, and for all ones if a
            tolerance is in voxels).

    Raises:
        ValueError: for arrays of different shapes or a spacing that does not fit, see `surface_distances`.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"label images must have the same shape, got {prediction.shape=}, {reference.shape=}")
    spacing_mm = tuple(float(length) for length in spacing_mm)
    most = max(labels.values)
    boxes = [ndimage.find_objects(array, max_label=most) for array in (prediction, reference)]
    metrics = metric_names(tolerance.name for tolerance in tolerances)
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
            scores = _present(
                *masks, ignored, spacing_mm, [tolerance.of(organ.name) for tolerance in tolerances], tables
            )
        elif any(voxels):
            scores = [0.0] * (1 + len(tolerances)) + [math.inf]
        else:
            scores = [1.0 if absent == "flare" else math.nan] * (1 + len(tolerances)) + [math.nan]
        result[organ.name] = OrganScores(dict(zip(metrics, scores, strict=True)), *voxels)
    return result


def _present(prediction, reference, ignored, spacing_mm, distances, tables) -> list[float]:
    """Dice, NSD at each distance, HD95 of an organ that both masks have."""
    by_unit = {}
    for unit in {"mm", *(distance.unit for distance in distances)}:
        spacing = spacing_mm if unit == "mm" else (1.0,) * len(spacing_mm)
        table = (tables or {}).get(spacing) or element_table(spacing)
        by_unit[unit] = surface_distances(prediction, reference, spacing, ignored, table)
    nsd = [by_unit[distance.unit].nsd(distance.value) for distance in distances]
    return [dice(prediction, reference), *nsd, by_unit["mm"].hausdorff(95)]


def _mask(array: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    mask = array == values[0]
    for value in values[1:]:
        mask |= array == value
    return mask


def _union(boxes: list[tuple[slice, ...]]) -> tuple[slice, ...] | None:
    if not boxes:
        return None
    return tuple(slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*boxes, strict=True))
