"""Reading label images with SimpleITK, and whether two of them are on the same grid."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_dtc.files import last_line

__all__ = [
    "ENDINGS",
    "PIXELS",
    "EvaluationError",
    "Grid",
    "grid_difference",
    "pixel_spacing",
    "read_grid",
    "read_labels",
]

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".gipl", ".png", ".bmp")
"""Label files that are looked for where no dataset.json says the ending."""

PIXELS = (".png", ".bmp", ".jpg", ".tif", ".tiff")
"""Images of these kinds have pixels, not mm; what their headers say is the resolution of a print. As in nnU-Net, the
spacing is 1 (NaturalImage2DIO), and of a TIFF with three axes that of the .json beside it (Tiff3DIO)."""

CORNER_TOLERANCE = 0.1
"""How far apart the corners of two equal grids may be, in voxels (of the shorter side). Headers round: NIfTI keeps
single precision, and its quaternions can lose half of it."""


class EvaluationError(ValueError):
    """Files that cannot be evaluated; the message names them."""


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an image are, in ITK's order of axes (x, y, z) and its LPS coordinates in mm."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @property
    def kept_axes(self) -> tuple[int, ...]:
        """Axes of the array (z, y, x) that are evaluated: those of size 1 are dropped while more than 2 remain. nnU-Net
        stores 2D images as volumes of one slice; as volumes, all of them would be surface."""
        axes = list(range(len(self.size)))
        for axis in tuple(axes):
            if self.size[::-1][axis] == 1 and len(axes) > 2:
                axes.remove(axis)
        return tuple(axes)

    @property
    def array_spacing_mm(self) -> tuple[float, ...]:
        """Spacing in mm of the array that `read_labels` returns."""
        return tuple(self.spacing[::-1][axis] for axis in self.kept_axes)

    def corners(self) -> np.ndarray:
        """The centres of the corner voxels in mm, float64[2^g, g]."""
        indices = np.array(list(itertools.product(*((0, size - 1) for size in self.size))), dtype=float)
        direction = np.array(self.direction).reshape(len(self.size), len(self.size))
        return np.array(self.origin) + (indices * self.spacing) @ direction.T


def read_grid(file: Path) -> Grid:
    """The grid of a label image, from its header alone.

    Raises:
        EvaluationError: if there is no such image, or it is not one of 2 or 3 axes and one number a voxel.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise EvaluationError(f"cannot read {file}: {last_line(error)}") from error
    dimension = reader.GetDimension()
    if dimension not in (2, 3) or reader.GetNumberOfComponents() != 1:
        raise EvaluationError(
            f"a label image must have 2 or 3 axes and one number a voxel, got {dimension} axes and "
            f"{reader.GetNumberOfComponents()} numbers a voxel in {file}"
        )
    if str(file).lower().endswith(PIXELS):
        identity = tuple(np.eye(dimension).ravel().tolist())
        return Grid(reader.GetSize(), pixel_spacing(file, dimension), (0.0,) * dimension, identity)
    return Grid(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def pixel_spacing(file: Path, axes: int) -> tuple[float, ...]:
    """The spacing (x, y, z) of a file of the kinds `PIXELS`: 1, or for a TIFF with three axes what nnU-Net has written
    into the .json of the same name, of an image without its channel's _0000.

    Raises:
        EvaluationError: if that file holds no spacing of three axes.
    """
    file = Path(file)
    beside = file.with_name(re.sub(r"_\d{4}$", "", file.stem) + ".json"), file.with_suffix(".json")
    found = next((path for path in beside if path.is_file()), None)
    if axes != 3 or found is None or file.suffix.lower() not in (".tif", ".tiff"):
        return (1.0,) * axes
    try:
        spacing = tuple(float(length) for length in json.loads(found.read_text(encoding="utf-8"))["spacing"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{found} must hold the spacing of {file.name}: {error!r}") from error
    if len(spacing) != 3 or min(spacing) <= 0:
        raise EvaluationError(f"{found} must hold a positive spacing of three axes, got {spacing}")
    return spacing[::-1]


def grid_difference(a: Grid, b: Grid) -> str | None:
    """What differs between two grids, with both values, or None if they are the same.

    Sizes must be equal; of origin, spacing and direction it matters where they put the corners (`CORNER_TOLERANCE`).
    """
    if a.size != b.size:
        return f"sizes {a.size} and {b.size}"
    distance = np.linalg.norm(a.corners() - b.corners(), axis=1).max()
    if distance <= CORNER_TOLERANCE * min(*a.spacing, *b.spacing):
        return None
    names = ("spacing", "origin", "direction")
    parts = [
        f"{name} {_numbers(getattr(a, name))} and {_numbers(getattr(b, name))}"
        for name in names
        if not np.allclose(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-5)
    ]
    return f"{'; '.join(parts)} (voxels are up to {distance:.3g} mm apart)"


def read_labels(file: Path) -> np.ndarray:
    """The numbers of a label image as they are stored, array[z, y, x] or [y, x] without axes of size 1, see `Grid`.

    Raises:
        EvaluationError: if it cannot be read.
    """
    grid = read_grid(file)
    try:
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    except RuntimeError as error:
        raise EvaluationError(f"cannot read {file}: {last_line(error)}") from error
    return array.squeeze(axis=tuple(set(range(array.ndim)) - set(grid.kept_axes)))


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
