"""The area of the surface element in every neighbourhood of 2 x 2 (x 2) voxels, by marching squares and marching cubes.

The centres of the voxels are the corners of the unit square (cube), each inside or outside of the organ. The surface
cuts an edge in its middle if one end is inside and the other outside.

- In a square, one line connects the cuts. Two lines do where the two corners inside are diagonal neighbours: each
  corner is then cut off alone.
- The lines on the six faces of a cube form closed loops. A loop is filled with triangles between its points: of all
  such fillings, the one with the largest area in the unit cube.
- Exchanging inside and outside gives the same element: the side with fewer corners counts as the inside.

For every neighbourhood and spacing, these rules give the areas in the table of Nikolov et al.
(github.com/google-deepmind/surface-distance), of which MONAI has a copy.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache

import numpy as np

__all__ = ["element_areas"]

Point = tuple[float, ...]


@lru_cache(maxsize=256)
def element_areas(spacing_mm: tuple[float, ...]) -> np.ndarray:
    """The area of the surface element of each neighbourhood.

    Args:
        spacing_mm: voxel size in mm of each of the g = 2 or 3 axes, in the order of the array's axes.

    Returns:
        float64[2^(2^g)], areas in mm^2 (2D: lengths in mm) by code; 0 where all voxels are alike. A code has a bit for
        each voxel, in the order of itertools.product((0, 1), repeat=g), the first being the most significant. The areas
        are rounded to single precision, so that the sum of millions of them is exact and does not depend on the order.
    """
    spacing = np.asarray(spacing_mm, np.float64)
    across = np.prod(spacing) / spacing  # how much the spacing stretches lengths or areas at right angles to each axis
    areas = [np.linalg.norm(normals * across, axis=1).sum() for normals in _elements(len(spacing))]
    return np.array(areas, np.float32).astype(np.float64)


@cache
def _elements(axes: int) -> list[np.ndarray]:
    """The normals of the lines (2D) or triangles (3D) in the unit cube by code, float64[pieces, axes].

    The length of a normal is the length or area of its piece; its signs are dropped. All numbers are exact.
    """
    corners = list(itertools.product((0, 1), repeat=axes))
    elements = []
    for inside in itertools.product((False, True), repeat=len(corners)):
        fewer = inside.count(True) <= len(corners) // 2
        group = {corner for corner, is_inside in zip(corners, inside, strict=True) if is_inside == fewer}
        if axes == 2:
            pieces = _lines(corners, group)
        else:
            lines = [line for face in _faces(corners) for line in _lines(face, group)]
            pieces = [triangle for loop in _loops(lines) for triangle in _fill(loop)]
        elements.append(np.array(sorted(map(_normal, pieces))).reshape(-1, axes))
    return elements


def _faces(corners: list[Point]) -> Iterator[list[Point]]:
    """The four corners of each of the six faces of the cube."""
    for axis, side in itertools.product(range(3), (0, 1)):
        yield [corner for corner in corners if corner[axis] == side]


def _lines(square: list[Point], inside: set[Point]) -> list[tuple[Point, Point]]:
    """The lines between the corners inside and those outside, each from the middle of an edge to that of another."""
    cuts = {
        tuple((a + b) / 2 for a, b in zip(corner, other, strict=True)): corner
        for corner, other in itertools.product(inside.intersection(square), set(square) - inside)
        if sum(a != b for a, b in zip(corner, other, strict=True)) == 1
    }
    if len(cuts) < 4:
        return [tuple(cuts)] if cuts else []
    return [tuple(cut for cut, owner in cuts.items() if owner == corner) for corner in set(cuts.values())]


def _loops(lines: list[tuple[Point, Point]]) -> Iterator[list[Point]]:
    """The points, in order, of each closed loop that the lines form."""
    left = list(lines)
    while left:
        loop = list(left.pop())
        while loop[0] != loop[-1]:
            line = next(line for line in left if loop[-1] in line)
            left.remove(line)
            loop.append(line[line[0] == loop[-1]])
        yield loop[:-1]


def _fill(loop: list[Point]) -> list[tuple[Point, Point, Point]]:
    """Triangles between the points of a loop, with the largest possible area."""

    def area(triangles: list[tuple[Point, Point, Point]]) -> float:
        return sum(float(np.linalg.norm(_normal(triangle))) for triangle in triangles)

    return max(_triangulations(loop), key=area)


def _triangulations(polygon: list[Point]) -> Iterator[list[tuple[Point, Point, Point]]]:
    """All ways to divide a polygon into triangles.

    Any point can be the third of the triangle at the edge from the last point to the first; the polygons on both sides
    of it are divided in the same way.
    """
    if len(polygon) < 3:
        yield []
        return
    for third in range(1, len(polygon) - 1):
        for left, right in itertools.product(
            list(_triangulations(polygon[: third + 1])), list(_triangulations(polygon[third:]))
        ):
            yield [(polygon[0], polygon[third], polygon[-1]), *left, *right]


def _normal(piece: Sequence[Point]) -> Point:
    """The normal of a line or triangle without signs; its length is the length of the line or the triangle's area."""
    first, *others = np.array(piece)
    along = [other - first for other in others]
    normal = along[0][::-1] if len(along) == 1 else np.cross(*along) / 2
    return tuple(np.abs(normal).tolist())
