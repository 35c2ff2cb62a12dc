"""Surface Dice at a tolerance (NSD) and the 95th-percentile Hausdorff distance (HD95) of two binary masks.

Surfaces are those of Nikolov et al., *Clinically Applicable Segmentation of Head and Neck Anatomy for Radiotherapy:
Deep Learning Algorithm Development and Validation Study* (arXiv:1809.04430; J Med Internet Res 2021), whose reference
implementation is github.com/google-deepmind/surface-distance:

- surface elements sit at the corners of voxels. The 2 x 2 (x 2) voxels around a corner, if they are not all inside or
  all outside, give the element's shape (marching cubes), and with the spacing its area in mm^2 (2D: length in mm);
- the distance of an element is that of its corner to the nearest corner that has an element of the other surface;
- whatever is beyond the image is outside: an organ cut off by the image's border has a surface there.

The table of areas is made by `surface_elements` and is equal to the reference's; the nearest elements are found by
SciPy's KD-tree. Ours: HD95 is that reference's robust Hausdorff distance, i.e. the percentile is weighted by
area, taken for each direction, and the larger one counts (other tools weight voxels equally or pool both directions);
the contract for absent organs; what is done at voxels of the ignore label.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.spatial import KDTree

from nnunet_dtc.study.evaluation.overlap import check_masks
from nnunet_dtc.study.evaluation.surface_elements import element_areas

__all__ = ["ElementTable", "SurfaceDistances", "element_table", "surface_distances"]

ROUNDING = 1e-6
"""Relative: how far above a tolerance a distance still counts as equal. Files store spacings in single precision: ten
voxels of 0.1 mm are 1.0000000149 mm."""


@dataclass(frozen=True)
class SurfaceDistances:
    """Two surfaces, element by element: how far the other surface is, and how large the element is.

    Attributes:
        prediction_to_reference (float64[P]): distance in mm of each element of the prediction's surface.
        prediction_areas (float64[P]): its area in mm^2 (2D: length in mm).
        reference_to_prediction (float64[R]), reference_areas (float64[R]): the same the other way round.

    Distances are infinite if the other mask is empty.
    """

    prediction_to_reference: np.ndarray
    prediction_areas: np.ndarray
    reference_to_prediction: np.ndarray
    reference_areas: np.ndarray

    def nsd(self, tolerance_mm: float) -> float:
        """Surface Dice: the share, by area, of both surfaces together that is at most `tolerance_mm` off, in [0, 1].

        Returns:
            NaN if there is no surface at all, 0 if one of the masks is empty.

        Raises:
            ValueError: unless the tolerance is finite and not negative.
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
        """The robust Hausdorff distance in mm: `percent` % of each surface's area is at most so far from the other.

        Returns:
            NaN if there is no surface at all, infinity if one of the masks is empty.

        Raises:
            ValueError: unless 0 <= percent <= 100.
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


@dataclass(frozen=True)
class ElementTable:
    """Area of a surface element by its neighbourhood code, for one spacing.

    Attributes:
        weights: what each voxel around a corner adds to the code, in the order of itertools.product((0, 1), repeat=g).
        areas (float64[2^(2^g)]): mm^2 in 3D (g = 3), mm in 2D (g = 2).
    """

    weights: tuple[int, ...]
    areas: np.ndarray


@lru_cache(maxsize=256)
def element_table(spacing_mm: tuple[float, ...]) -> ElementTable:
    """The table for a spacing in mm, 2 or 3 positive numbers in the order of the array's axes."""
    weights = tuple(2**bit for bit in reversed(range(2 ** len(spacing_mm))))
    return ElementTable(weights, element_areas(spacing_mm))


def surface_distances(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    ignored: np.ndarray | None = None,
) -> SurfaceDistances:
    """The distances between the surfaces of two masks. Time and memory grow with the arrays: crop them (see `scoring`).

    Args:
        prediction, reference (bool[*S]): the masks, S = (H, W) or (D, H, W).
        spacing_mm: voxel size in mm of each axis, in the order of the array's axes.
        ignored (bool[*S]): voxels of which nothing is known. Both masks are emptied there, so that beyond its border
            both surfaces are the same; elements that touch such a voxel are not counted, yet the other surface's
            distances may lead to them: a surface close to the unknown is given the benefit of the doubt (ours).

    Raises:
        ValueError: unless the arrays are boolean, of one shape with 2 or 3 axes, and the spacing is positive and fits.
    """
    masks = [prediction, reference] if ignored is None else [prediction, reference, ignored]
    check_masks(*masks)
    spacing_mm = tuple(float(length) for length in spacing_mm)
    if prediction.ndim not in (2, 3) or len(spacing_mm) != prediction.ndim:
        raise ValueError(f"masks must have 2 or 3 axes and the spacing as many, got {prediction.shape=}, {spacing_mm=}")
    if not all(math.isfinite(length) and length > 0 for length in spacing_mm):
        raise ValueError(f"the spacing must be positive, got {spacing_mm=}")
    table = element_table(spacing_mm)

    unknown = None
    if ignored is not None and ignored.any():
        prediction, reference = prediction & ~ignored, reference & ~ignored
        unknown = _codes(ignored, table).ravel()
    codes = [_codes(mask, table) for mask in (prediction, reference)]
    full = len(table.areas) - 1
    elements = [np.flatnonzero((code != 0) & (code != full)) for code in codes]  # flat positions of the corners
    shape = codes[0].shape
    codes = [code.ravel() for code in codes]

    result = []
    for mine, other in ((0, 1), (1, 0)):
        counted = elements[mine] if unknown is None else elements[mine][unknown[elements[mine]] == 0]
        distances = np.full(len(counted), math.inf)
        if len(elements[other]) and len(counted):
            there = codes[other][counted]
            apart = (there == 0) | (there == full)
            distances[~apart] = 0.0  # both surfaces have an element here
            if apart.any():
                # sliding midpoints split faster than medians, and the query does not suffer on surfaces
                tree = KDTree(_positions(elements[other], shape, spacing_mm), balanced_tree=False, compact_nodes=False)
                distances[apart] = tree.query(_positions(counted[apart], shape, spacing_mm))[0]
        result += [distances, table.areas[codes[mine][counted]]]
    return SurfaceDistances(*result)


def _codes(mask: np.ndarray, table: ElementTable) -> np.ndarray:
    """bool[*S] to uint8[S_1 + 1, ...]: for each corner which of the voxels around it are inside."""
    padded = np.pad(mask, 1).view(np.uint8)
    code = np.zeros([size + 1 for size in mask.shape], np.uint8)
    for offset, weight in zip(itertools.product((0, 1), repeat=mask.ndim), table.weights, strict=True):
        voxels = padded[tuple(slice(o, o + size) for o, size in zip(offset, code.shape, strict=True))]
        code |= voxels * np.uint8(weight)
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
