"""Shapes and smooth random fields of the phantom.

Distances are (z, y, x), float32, in mm, and negative inside a shape.
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "FAR_MM",
    "Points",
    "ellipsoid",
    "mm",
    "rotation_matrix",
    "smooth_field",
    "smooth_tube",
    "smooth_union",
    "tube",
]

MARGIN_MM, FAR_MM = 16.0, 60.0  # distances are computed up to about the margin, and are FAR_MM beyond it


def mm(x: float, y: float, z: float) -> np.ndarray:
    """A position or displacement in mm."""
    return np.array([x, y, z], float)


class Points:
    """Points `p` (3, z, y, x), float32, in mm along x, y, z, with a fast search for the points in a box."""

    def __init__(self, p: np.ndarray) -> None:
        self.p = p
        self.shape = p.shape[1:]
        planes = [(p[axis], tuple(a for a in range(3) if a != 2 - axis)) for axis in range(3)]  # x varies along axis 2
        self.low = [q.min(others) for q, others in planes]  # for every plane across the axis
        self.high = [q.max(others) for q, others in planes]

    def block(self, low: np.ndarray, high: np.ndarray) -> tuple[slice, slice, slice]:
        """Slices (z, y, x) with all points between `low` and `high` (mm), extended by `MARGIN_MM`."""
        found = []
        for axis in (2, 1, 0):
            near = (self.high[axis] > low[axis] - MARGIN_MM) & (self.low[axis] < high[axis] + MARGIN_MM)
            hits = np.flatnonzero(near)
            found.append(slice(hits[0], hits[-1] + 1) if len(hits) else slice(0, 0))
        return tuple(found)


def ellipsoid(points: Points, center, radii, rotation: np.ndarray | None = None) -> np.ndarray:
    """Distance to an ellipsoid: exact on its surface, first order near it, and `FAR_MM` far away."""
    center, radii = np.asarray(center, np.float32), np.asarray(radii, np.float32)
    out = np.full(points.shape, FAR_MM, np.float32)
    block = points.block(center - radii.max(), center + radii.max())
    q = [points.p[(a, *block)] - center[a] for a in range(3)]
    if rotation is not None:
        r = rotation.astype(np.float32)
        q = [r[i, 0] * q[0] + r[i, 1] * q[1] + r[i, 2] * q[2] for i in range(3)]
    q = [(q[a] / radii[a]) ** 2 for a in range(3)]
    k0 = np.sqrt(q[0] + q[1] + q[2])
    k1 = np.sqrt(q[0] / radii[0] ** 2 + q[1] / radii[1] ** 2 + q[2] / radii[2] ** 2)
    out[block] = k0 * (k0 - 1) / np.maximum(k1, 1e-6)
    return out


def tube(points: Points, line, radii) -> np.ndarray:
    """Distance to a tube along a polyline (n, 3) whose radius is linear between the vertices; `FAR_MM` far away."""
    line, radii = np.asarray(line, np.float32), np.asarray(radii, np.float32)
    out = np.full(points.shape, FAR_MM, np.float32)
    for a, b, ra, rb in zip(line[:-1], line[1:], radii[:-1], radii[1:], strict=True):
        thick = max(ra, rb)
        block = points.block(np.minimum(a, b) - thick, np.maximum(a, b) + thick)
        ab = b - a
        q = [points.p[(i, *block)] - a[i] for i in range(3)]
        t = (ab[0] * q[0] + ab[1] * q[1] + ab[2] * q[2]) / max(ab @ ab, np.float32(1e-6))
        np.clip(t, 0, 1, out=t)
        d = np.sqrt((q[0] - t * ab[0]) ** 2 + (q[1] - t * ab[1]) ** 2 + (q[2] - t * ab[2]) ** 2)
        np.minimum(out[block], d - (ra + t * (rb - ra)), out=out[block])
    return out


def smooth_tube(points: Points, line, radii) -> np.ndarray:
    """Distance to a tube along a smooth line through the vertices (n, 3), with a smooth radius."""
    return tube(points, *_smooth_line(line, radii))


def rotation_matrix(angles_deg) -> np.ndarray:
    """Rotation about x, then y, then z."""
    a, b, c = np.deg2rad(angles_deg)
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rz @ ry @ rx


def _smooth_line(points, radii, per_segment: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """A smooth polyline and its radii: Catmull-Rom splines, with `per_segment` pieces for each segment."""
    pts = np.column_stack([np.asarray(points, float), np.asarray(radii, float)])
    ext = np.vstack([2 * pts[0] - pts[1], pts, 2 * pts[-1] - pts[-2]])
    t = np.linspace(0, 1, per_segment, endpoint=False)[:, None]
    out = []
    for p0, p1, p2, p3 in zip(ext[:-3], ext[1:-2], ext[2:-1], ext[3:], strict=True):
        out.append(
            0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
        )
    out = np.vstack([*out, pts[-1:]])
    return out[:, :3], out[:, 3]


def smooth_union(distances: list[np.ndarray], blend_mm: float = 8.0) -> np.ndarray:
    """Smooth union (polynomial smooth minimum)."""
    d = distances[0]
    for e in distances[1:]:
        h = np.clip(0.5 + 0.5 * (e - d) / blend_mm, 0, 1)
        d = e + (d - e) * h - blend_mm * h * (1 - h)
    return d


def smooth_field(rng: np.random.Generator, shape, spacing_zyx, length_mm: float) -> np.ndarray:
    """Random field (z, y, x), float32, with mean 0 and standard deviation 1, that varies over about `length_mm`."""
    coarse = [max(3, int(np.ceil(n * s / length_mm)) + 3) for n, s in zip(shape, spacing_zyx, strict=True)]
    values = rng.standard_normal(coarse).astype(np.float32)
    for axis, (n, s) in enumerate(zip(shape, spacing_zyx, strict=True)):
        at = 1 + np.arange(n) * s / length_mm  # in coarse steps
        values = _cubic_axis(values, at, axis)
    return values / max(float(values.std()), 1e-6)


def _cubic_axis(values: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Cubic B-spline along one axis: `values` are coefficients, `at` are positions in their index, >= 1."""
    i = np.floor(at).astype(int)
    t = at - i
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6  # (4, n)
    matrix = np.zeros((len(at), values.shape[axis]), np.float32)
    for k in range(4):
        index = np.clip(i - 1 + k, 0, values.shape[axis] - 1)
        np.add.at(matrix, (np.arange(len(at)), index), weights[k].astype(np.float32))
    return np.moveaxis(np.tensordot(matrix, values, (1, axis)), 0, axis)
