"""Where the voxels of label images are, and whether a prediction and its label can be compared voxel by voxel."""

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
"""Label files that are looked for where no dataset.json says the ending."""

CORNER_TOLERANCE = 0.1
"""How far apart the corners of two equal grids may be, in voxels (of the shorter side). Headers round: NIfTI keeps
single precision, and its quaternions can lose half of it."""

SPACING_TOLERANCE = 1e-3
"""By how much two equal spacings may differ, as a ratio: text headers keep as few as three digits."""


class EvaluationError(NnunetDtcError):
    """Files that cannot be evaluated; the message names them."""


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an image are, in ITK's order of axes (x, y, z) and its LPS coordinates in mm.

    A 2D image is a volume of one slice, as nnU-Net reads it.

    Attributes:
        size: voxels along x, y, z.
        spacing: in mm along x, y, z.
        origin: the centre of the first voxel in mm.
        direction: the matrix of 3 x 3 numbers, row by row, whose columns are the directions of x, y and z.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    @property
    def kept_axes(self) -> tuple[int, ...]:
        """Axes of the array (z, y, x) that are evaluated: those of size 1 are dropped while more than 2 remain. As
        volumes of one slice, 2D images would be surface everywhere."""
        axes = list(range(len(self.size)))
        for axis in tuple(axes):
            if self.size[::-1][axis] == 1 and len(axes) > 2:
                axes.remove(axis)
        return tuple(axes)

    @property
    def array_spacing_mm(self) -> tuple[float, ...]:
        """Spacing in mm of the array without the axes that are dropped."""
        return tuple(self.spacing[::-1][axis] for axis in self.kept_axes)

    @property
    def matrix(self) -> np.ndarray:
        """From voxel indices (x, y, z) to mm, float64[3, 3]; the origin is added to it."""
        return np.array(self.direction, dtype=float).reshape(3, 3) * self.spacing

    def corners(self) -> np.ndarray:
        """The centres of the corner voxels in mm, float64[8, 3]."""
        indices = np.array(list(itertools.product(*((0, size - 1) for size in self.size))), dtype=float)
        return np.array(self.origin) + indices @ self.matrix.T


@dataclass(frozen=True)
class Displacement:
    """How far the voxels of two images of one size and spacing are apart.

    Attributes:
        distance_mm: the largest distance between two voxels of the same index.
        turned: axes of one image have other directions in the other: they are flipped, permuted or turned by more than
            45 degrees.
        difference: of the headers, with both values.
    """

    distance_mm: float
    turned: bool
    difference: str


def voxel_difference(a: Grid, b: Grid) -> str | None:
    """The difference of two grids that cannot be compared voxel by voxel, with both values; None if they can be.

    Sizes must be equal, and spacings up to `SPACING_TOLERANCE` along every axis that has more than one voxel.
    """
    if a.size != b.size:
        return f"sizes {a.size} and {b.size}"
    axes = [axis for axis, size in enumerate(a.size) if size > 1]
    if any(not np.isclose(a.spacing[axis], b.spacing[axis], rtol=SPACING_TOLERANCE, atol=0) for axis in axes):
        return f"spacing {_numbers(a.spacing)} and {_numbers(b.spacing)}"
    return None


def displacement(a: Grid, b: Grid) -> Displacement | None:
    """How far apart two grids of the same size and spacing put their voxels; None if it is no more than rounding
    (`CORNER_TOLERANCE`)."""
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
    """One sentence or two about the cases whose prediction and label are not in the same place.

    Args:
        displaced: by the case's name; not empty.
        cases: how many cases there are in all.
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
        note += f" In {len(turned)} of them ({names}) axes are flipped, permuted or turned: check that they fit."
    return note


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
