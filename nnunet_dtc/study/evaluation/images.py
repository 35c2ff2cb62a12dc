"""The grids of label images, and whether a prediction and its label can be compared voxel by voxel."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nnunet_dtc.errors import NnunetDtcError

__all__ = [
    "ENDINGS",
    "Displacement",
    "EvaluationError",
    "Grid",
    "displacement",
    "displacement_note",
    "voxel_difference",
]

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".gipl", ".png", ".bmp", ".tif", ".tiff")
"""The endings of label files that are looked for where no dataset.json gives one."""

CORNER_TOLERANCE = 0.1
"""The largest distance between the corners of two equal grids, in voxels (of the shortest side). Headers round: NIfTI
stores single precision, and its quaternions can lose half of it."""

SPACING_TOLERANCE = 1e-3
"""The largest relative difference of two equal spacings: text headers store as few as three digits."""


class EvaluationError(NnunetDtcError):
    """Files that cannot be evaluated; the message names them."""


@dataclass(frozen=True)
class Grid:
    """The places of the voxels of an image, in ITK's order of axes (x, y, z) and its LPS coordinates in mm.

    A 2D image is a volume of one slice, as nnU-Net reads it.

    Attributes:
        size: the number of voxels along x, y, z.
        spacing: voxel size in mm along x, y, z.
        origin: the centre of the first voxel in mm.
        direction: the 3 x 3 matrix, row by row, whose columns are the directions of x, y and z.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    @property
    def kept_axes(self) -> tuple[int, ...]:
        """The axes of the array (z, y, x) that are evaluated.

        Axes of size 1 are dropped while more than 2 remain: as volumes of one slice, 2D images would be surface
        everywhere.
        """
        axes = list(range(len(self.size)))
        for axis in tuple(axes):
            if self.size[::-1][axis] == 1 and len(axes) > 2:
                axes.remove(axis)
        return tuple(axes)

    @property
    def array_spacing_mm(self) -> tuple[float, ...]:
        """The spacing in mm along `kept_axes`."""
        return tuple(self.spacing[::-1][axis] for axis in self.kept_axes)

    @property
    def matrix(self) -> np.ndarray:
        """The matrix that takes voxel indices (x, y, z) to mm from the origin, float64[3, 3]."""
        return np.array(self.direction, dtype=float).reshape(3, 3) * self.spacing

    def corners(self) -> np.ndarray:
        """The centres of the corner voxels in mm, float64[8, 3]."""
        indices = np.array(list(itertools.product(*((0, size - 1) for size in self.size))), dtype=float)
        return np.array(self.origin) + indices @ self.matrix.T


@dataclass(frozen=True)
class Displacement:
    """How far apart the voxels of two images of the same size and spacing are.

    Attributes:
        distance_mm: the largest distance in mm between two voxels of the same index.
        turned: whether axes are flipped, permuted or turned by more than 45 degrees between the images.
        difference: the difference of the headers, with both values.
    """

    distance_mm: float
    turned: bool
    difference: str


def voxel_difference(a: Grid, b: Grid) -> str | None:
    """Check whether two grids can be compared voxel by voxel.

    Sizes must be equal, and so must spacings, up to `SPACING_TOLERANCE`, along every axis with more than one voxel.

    Returns:
        The difference, with both values; None if the grids can be compared.
    """
    if a.size != b.size:
        return f"sizes {a.size} and {b.size}"
    axes = [axis for axis, size in enumerate(a.size) if size > 1]
    if any(not np.isclose(a.spacing[axis], b.spacing[axis], rtol=SPACING_TOLERANCE, atol=0) for axis in axes):
        return f"spacing {_numbers(a.spacing)} and {_numbers(b.spacing)}"
    return None


def displacement(a: Grid, b: Grid) -> Displacement | None:
    """How far apart the voxels of two grids of the same size and spacing are.

    Returns:
        The displacement; None if it is within rounding (`CORNER_TOLERANCE`).
    """
    distance = float(np.linalg.norm(a.corners() - b.corners(), axis=1).max())
    sides = [side for grid in (a, b) for side, size in zip(grid.spacing, grid.size, strict=True) if size > 1]
    if distance <= CORNER_TOLERANCE * min(sides, default=1.0):
        return None
    parts = [
        f"{name} {_numbers(getattr(a, name))} and {_numbers(getattr(b, name))}"
        for name in ("spacing", "origin", "direction")
        if not np.allclose(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-5)
    ]
    directions = [grid.matrix / np.linalg.norm(grid.matrix, axis=0) for grid in (a, b)]
    cosines = np.diag(directions[0].T @ directions[1])
    turned = bool((cosines < np.sqrt(0.5)).any())
    return Displacement(distance, turned, f"{'; '.join(parts)} (voxels are up to {distance:.3g} mm apart)")


def displacement_note(displaced: Mapping[str, Displacement], cases: int) -> str:
    """One or two sentences about the cases whose prediction and label are not in the same place.

    Args:
        displaced: the displacements by case; not empty.
        cases: the number of all cases.
    """
    farthest = max(displaced, key=lambda case: displaced[case].distance_mm)
    note = (
        f"In {len(displaced)} of {cases} case{'s' * (cases != 1)} the prediction and the label have the same size and "
        f"spacing, but not the same origin or direction: their voxels are up to "
        f"{displaced[farthest].distance_mm:.3g} mm apart ({farthest}). They were compared voxel by "
        "voxel, as in nnU-Net."
    )
    if turned := [case for case, entry in displaced.items() if entry.turned]:
        names = ", ".join(turned[:3]) + (", ..." if len(turned) > 3 else "")
        note += f" In {len(turned)} of them ({names}) axes are flipped, permuted or turned: check these files."
    return note


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
