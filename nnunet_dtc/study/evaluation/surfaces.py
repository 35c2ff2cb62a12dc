"""Surface Dice at a tolerance (NSD) and the 95th-percentile Hausdorff distance (HD95) of two binary masks.

Surfaces are those of Nikolov et al., *Clinically Applicable Segmentation of Head and Neck Anatomy for Radiotherapy:
Deep Learning Algorithm Development and Validation Study* (arXiv:1809.04430; J Med Internet Res 2021), whose reference
implementation is github.com/google-deepmind/surface-distance:

- Surface elements lie at the corners of voxels. If the 2 x 2 (x 2) voxels around a corner are not all inside or all
  outside, they give the element's shape (marching cubes), and with the spacing its area in mm^2 (2D: length in mm).
- The distance of an element is that of its corner to the nearest corner that has an element of the other surface.
- Everything beyond the image is outside: an organ that is cut off by the image's border has a surface there.

The areas are computed by `surface_elements` and equal those of the reference; the nearest elements are found by SciPy's
KD-tree. HD95 is the reference's robust Hausdorff distance: the percentile is weighted by area and taken for each
direction, and the larger one counts. Other tools weight voxels equally or pool both directions. The treatment of absent
organs (see `metrics`) and of the ignore label is ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from nnunet_dtc.study.evaluation.overlap import check_masks
from nnunet_dtc.study.evaluation.surface_elements import element_areas

__all__ = ["SurfaceDistances", "surface_distances"]

ROUNDING = 1e-6
"""By which part of it a distance may exceed a tolerance and still count as equal. Files store spacings in single
precision: ten voxels of 0.1 mm are 1.0000000149 mm."""


@dataclass(frozen=True)
class SurfaceDistances:
    """The elements of two surfaces: the distance to the other surface, and the area.

    Distances are infinite if the other mask is empty.

    Attributes:
        prediction_to_reference (float64[P]): the distance in mm of each element of the prediction's surface.
        prediction_areas (float64[P]): its area in mm^2 (2D: length in mm).
        reference_to_prediction (float64[R]): the distance in mm of each element of the reference's surface.
        reference_areas (float64[R]): its area in mm^2 (2D: length in mm).
    """

    prediction_to_reference: np.ndarray
    prediction_areas: np.ndarray
    reference_to_prediction: np.ndarray
    reference_areas: np.ndarray

    def nsd(self, tolerance_mm: float) -> float:
        """Surface Dice: the part of the area of both surfaces within a distance of the other surface, in [0, 1].

        Args:
            tolerance_mm: the distance in mm.

        Returns:
            NaN if there is no surface at all, 0 if one of the masks is empty.

        Raises:
            ValueError: the tolerance is negative or not finite.
        """
        if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
            raise ValueError(f"the tolerance must be finite and not negative, got {tolerance_mm=}")
        limit = tolerance_mm * (1 + ROUNDING)
        total = self.prediction_areas.sum() + self.reference_areas.sum()
        within = (
            self.prediction_areas[self.prediction_to_reference <= limit].sum()
            + self.reference_areas[self.reference_to_prediction <= limit].sum()
        )
        return float(within / total) if total > 0 else math.nan

    def hausdorff(self, percent: float = 95.0) -> float:
        """The robust Hausdorff distance in mm, within which each surface has `percent` % of its area.

        Returns:
            NaN if there is no surface at all, infinity if one of the masks is empty.

        Raises:
            ValueError: `percent` is not in 0..100.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"percent must be in 0..100, got {percent=}")
        directions = [
            _weighted_percentile(distances, areas, percent)
            for distances, areas in (
                (self.prediction_to_reference, self.prediction_areas),
                (self.reference_to_prediction, self.reference_areas),
            )
            if len(distances)
        ]
        return max(directions, default=math.nan)


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float], ignored: np.ndarray | None = None
) -> SurfaceDistances:
    """The distances between the surfaces of two masks.

    Time and memory grow with the arrays, which are therefore best cropped to the masks.

    Args:
        prediction, reference (bool[*S]): the masks, S = (H, W) or (D, H, W).
        spacing_mm: voxel size in mm of each axis, in the order of the array's axes.
        ignored (bool[*S]): voxels whose label is not known. Both masks are emptied there, so that both surfaces follow
            the border of these voxels. Elements that touch one are not counted, but other elements are measured to
            them: a surface close to unknown voxels gets the benefit of the doubt (ours).

    Raises:
        ValueError: the arrays are not boolean, have different shapes or not 2 or 3 axes, or the spacing is not positive
            or has another number of axes.

    Example:
        >>> import numpy as np
        >>> reference = np.zeros((4, 6, 8), dtype=bool)
        >>> reference[1:3, 1:4, 1:5] = True
        >>> prediction = np.roll(reference, 1, axis=0)  # one slice further: 3 mm
        >>> surfaces = surface_distances(prediction, reference, spacing_mm=(3.0, 0.8, 0.8))
        >>> surfaces.hausdorff(95)
        3.0
        >>> surfaces.nsd(tolerance_mm=3)
        1.0
    """
    masks = [prediction, reference] if ignored is None else [prediction, reference, ignored]
    check_masks(*masks)
    spacing_mm = tuple(float(length) for length in spacing_mm)
    if prediction.ndim not in (2, 3) or len(spacing_mm) != prediction.ndim:
        raise ValueError(f"masks must have 2 or 3 axes and the spacing as many, got {prediction.shape=}, {spacing_mm=}")
    if not all(math.isfinite(length) and length > 0 for length in spacing_mm):
        raise ValueError(f"the spacing must be positive, got {spacing_mm=}")
    areas = element_areas(spacing_mm)

    unknown = None
    if ignored is not None and ignored.any():
        prediction, reference = prediction & ~ignored, reference & ~ignored
        unknown = _codes(ignored).ravel()
    codes = [_codes(mask) for mask in (prediction, reference)]
    full = len(areas) - 1
    elements = [np.flatnonzero((code != 0) & (code != full)) for code in codes]  # flat positions of the corners
    shape = codes[0].shape
    codes = [code.ravel() for code in codes]

    result = []
    for mine, other in ((0, 1), (1, 0)):
        counted = elements[mine] if unknown is None else elements[mine][unknown[elements[mine]] == 0]
        distances = np.full(len(counted), math.inf)
        if len(elements[other]) and len(counted):
            of_other = codes[other][counted]
            apart = (of_other == 0) | (of_other == full)
            distances[~apart] = 0.0  # both surfaces have an element at this corner
            if apart.any():
                # splitting at midpoints is faster than at medians, and queries on surfaces do not get slower
                tree = KDTree(_positions(elements[other], shape, spacing_mm), balanced_tree=False, compact_nodes=False)
                distances[apart] = tree.query(_positions(counted[apart], shape, spacing_mm))[0]
        result += [distances, areas[codes[mine][counted]]]
    return SurfaceDistances(*result)


def _codes(mask: np.ndarray) -> np.ndarray:
    """The code of the voxels around each corner, see `element_areas`: bool[*S] to uint8[S_1 + 1, ...]."""
    padded = np.pad(mask, 1).view(np.uint8)
    code = np.zeros([size + 1 for size in mask.shape], np.uint8)
    for offset in itertools.product((0, 1), repeat=mask.ndim):
        voxels = padded[tuple(slice(o, o + size) for o, size in zip(offset, code.shape, strict=True))]
        code <<= 1
        code |= voxels
    return code


def _positions(flat: np.ndarray, shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Flat positions int[N] to mm, float64[N, g]."""
    return np.stack(np.unravel_index(flat, shape), axis=-1) * np.asarray(spacing_mm)


def _weighted_percentile(values: np.ndarray, weights: np.ndarray, percent: float) -> float:
    """The smallest value such that values up to it have at least `percent` % of the weight."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    index = np.searchsorted(cumulative, cumulative[-1] * (percent / 100))
    return float(values[order[min(index, len(order) - 1)]])
