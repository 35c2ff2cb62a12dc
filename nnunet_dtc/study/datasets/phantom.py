"""Synthetic abdominal CTs with the 13 organs of BTCV: for demonstrations and tests, no download, no licence.

Every case is drawn anew: body size and shape, fat, position and rotation in the scanner, scan range, voxel size,
contrast phase, and for every organ its place, size, pose, shape and density. Organs are ellipsoids and tubes in a
standard body (millimetres, the patient's own axes), bent by smooth random fields; they compete for space, so that
neighbours touch as organs do. Slices are more than twice as thick as pixels are wide, as in many clinical scans:
nnU-Net plans a stride of (1, 2, 2) for them. The densities are those of a portal venous scan, so most organs look
alike: where an organ is and which Hounsfield units it has is not enough to tell it, one must see what surrounds it.

Axes: x to the patient's left, y to the back, z to the head, which is SimpleITK's LPS with an identity direction
matrix. Arrays are (z, y, x).

The labels and their numbers are those of BTCV (Synapse syn3193805, "Beyond the Cranial Vault"). The anatomy is our
own rough sketch: these are no patients, and no result on them says anything about patients.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.files import WriteError
from nnunet_dtc.study.datasets.btcv_labels import LABELS, ORGANS
from nnunet_dtc.study.datasets.nnunet_raw import (
    check_dataset_id,
    check_nothing_there,
    check_raw_folder,
    new_raw_dataset,
    write_dataset_json,
)
from nnunet_dtc.study.label_files import ImageFileError, check_complete, last_line

__all__ = ["LABELS", "NAME", "PhantomCase", "draw_case", "write_phantom"]

NAME = "Phantom"

MIN_VOXELS = 12
"""A case in which an organ has fewer voxels is drawn again."""

# Mean density in HU, and how much of it is contrast agent (scaled by the case's phase).
DENSITY = {
    "spleen": (45, 82),
    "right_kidney": (32, 155),
    "left_kidney": (32, 155),
    "gallbladder": (12, 0),
    "esophagus": (38, 25),
    "liver": (55, 52),
    "stomach": (30, 10),
    "aorta": (42, 105),
    "inferior_vena_cava": (42, 84),
    "portal_and_splenic_vein": (42, 98),
    "pancreas": (38, 52),
    "right_adrenal_gland": (32, 50),
    "left_adrenal_gland": (32, 50),
}

FAT, MUSCLE, AIR, LUNG = -102.0, 58.0, -1000.0, -840.0

MARGIN_MM, FAR_MM = 16.0, 60.0  # distances are only computed up to about the margin, beyond it they are FAR_MM

# Who gives way where two structures overlap: millimetres by which this one pushes the other back.
PUSH = {
    "spleen": 6.0,
    "aorta": 5.0,
    "inferior_vena_cava": 4.0,
    "portal_and_splenic_vein": 4.0,
    "right_adrenal_gland": 9.0,
    "left_adrenal_gland": 9.0,
    "esophagus": 4.0,
    "gallbladder": 4.0,
    "pancreas": 2.0,
    "right_kidney": 6.0,
    "left_kidney": 6.0,
    "liver": -1.0,
}


class PhantomCase(NamedTuple):
    """`image` int16 HU and `labels` uint8 0..13, both (z, y, x); `spacing_mm` and `origin_mm` as (x, y, z)."""

    image: np.ndarray
    labels: np.ndarray
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]


def _mm(x: float, y: float, z: float) -> np.ndarray:
    return np.array([x, y, z], float)


# ------------------------------------------------------------------------------------------------------------------
# Distances. Every function takes points and returns (z, y, x), float32, in mm, negative inside.


class _Points:
    """Points p (3, z, y, x), float32 mm, axes x, y, z, and where on the grid a box of them can be."""

    def __init__(self, p: np.ndarray) -> None:
        self.p = p
        self.shape = p.shape[1:]
        planes = [(p[axis], tuple(a for a in range(3) if a != 2 - axis)) for axis in range(3)]  # x varies along axis 2
        self.low = [q.min(others) for q, others in planes]  # of every plane across the axis
        self.high = [q.max(others) for q, others in planes]

    def block(self, low: np.ndarray, high: np.ndarray) -> tuple[slice, slice, slice]:
        """Slices (z, y, x) that hold all points within `low`..`high` (mm) and `MARGIN_MM` more."""
        found = []
        for axis in (2, 1, 0):
            near = (self.high[axis] > low[axis] - MARGIN_MM) & (self.low[axis] < high[axis] + MARGIN_MM)
            hits = np.flatnonzero(near)
            found.append(slice(hits[0], hits[-1] + 1) if len(hits) else slice(0, 0))
        return tuple(found)


def _ellipsoid(points: _Points, center, radii, rotation: np.ndarray | None = None) -> np.ndarray:
    """Distance to an ellipsoid, exact on its surface and to first order near it; `FAR_MM` far away."""
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


def _tube(points: _Points, line, radii) -> np.ndarray:
    """Distance to a tube along a polyline (n, 3), its radius linear between the vertices; `FAR_MM` far away."""
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


def _bent(points, radii, per_segment: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """A polyline and its radii made smooth: Catmull-Rom, `per_segment` pieces for each given one."""
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


def _rotation(angles_deg) -> np.ndarray:
    """Rotation about x, then y, then z."""
    a, b, c = np.deg2rad(angles_deg)
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rz @ ry @ rx


def _union(distances: list[np.ndarray], blend_mm: float = 8.0) -> np.ndarray:
    """Smooth union (polynomial smooth minimum)."""
    d = distances[0]
    for e in distances[1:]:
        h = np.clip(0.5 + 0.5 * (e - d) / blend_mm, 0, 1)
        d = e + (d - e) * h - blend_mm * h * (1 - h)
    return d


def _crumbs(mask: np.ndarray) -> np.ndarray:
    """Whatever was cut off from an organ and is less than a tenth of what remains, and one voxel around it; bool."""
    pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if count < 2:
        return np.zeros_like(mask)
    sizes = np.bincount(pieces.ravel())[1:]
    crumbs = np.isin(pieces, 1 + np.flatnonzero(sizes < 0.1 * sizes.max()))
    return ndimage.binary_dilation(crumbs, np.ones((3, 3, 3)))


def _smooth_field(rng: np.random.Generator, shape, spacing_zyx, length_mm: float) -> np.ndarray:
    """Random field (z, y, x), float32, mean about 0, standard deviation 1, that varies over about `length_mm`."""
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


# ------------------------------------------------------------------------------------------------------------------
# Anatomy, in a standard body: half width 158 mm, half depth 108 mm, z = 0 at the first lumbar vertebra.


def _organ_distances(rng: np.random.Generator, p: _Points) -> dict[str, np.ndarray]:
    """Distance (mm) to every organ, and to the bowel, at points of the standard body."""

    def about(center, sd) -> np.ndarray:
        return np.asarray(center, float) + rng.normal(0, 1.35 * np.asarray(sd, float), 3)

    def size(radii, spread: float = 0.10) -> np.ndarray:
        return np.asarray(radii, float) * np.exp(rng.normal(0, spread / 2, 3) + rng.normal(0, spread))

    def turn(angles, sd: float = 9) -> np.ndarray:
        return _rotation(np.asarray(angles, float) + rng.normal(0, sd, 3))

    d: dict[str, np.ndarray] = {}

    right = about((-80, 0, 42), (6, 8, 9))
    left_reach = rng.uniform(-25, 25)  # the left lobe ends anywhere between the midline and the spleen
    d["liver"] = _union(
        [
            _ellipsoid(p, right, size((66, 82, 70), 0.06), turn((0, 8, 0), 6)),
            _ellipsoid(
                p, right + _mm(68 + left_reach / 2, -44, 14), size((62 + left_reach / 2, 34, 30)), turn((0, -8, 0), 8)
            ),
            _ellipsoid(p, right + _mm(-18, 12, -62 + rng.normal(0, 14)), size((34, 50, 46)), turn((0, 0, 0), 8)),
        ],
        blend_mm=22,
    )
    d["spleen"] = _ellipsoid(p, about((102, 44, 56), (5, 8, 11)), size((33, 51, 50), 0.12), turn((20, -8, 24), 12))

    for side, name, z in ((-1, "right_kidney", -34), (1, "left_kidney", -18)):
        center = about((side * 62, 44, z), (5, 6, 13))
        pose = turn((-8, side * 12, side * -18), 8)  # upper pole inwards and back
        radii = size((27, 29, 54), 0.09)
        kidney = _ellipsoid(p, center, radii, pose)
        hilum = center + pose.T @ (-side * 24.0, -8.0, 0.0)
        d[name] = np.maximum(kidney, -_ellipsoid(p, hilum, size((11, 9, 18)), pose))
        d[name + "_sinus"] = _ellipsoid(p, hilum, size((10, 8, 16)), pose)

    d["gallbladder"] = _ellipsoid(
        p, right + about((30, -52, -42), (9, 7, 9)), size((14, 17, 27), 0.2), turn((-30, 10, 0), 16)
    )

    fundus, body = about((66, 4, 72), (7, 9, 7)), about((64, -38, 36), (10, 9, 10))
    antrum, pylorus = about((20, -60, 0), (12, 8, 14)), about((-24, -48, 4), (7, 7, 8))
    filled = np.exp(rng.normal(0, 0.12) + rng.normal(0, 0.12, 4))
    d["stomach"] = _tube(p, *_bent([fundus, body, antrum, pylorus], np.array([34, 28, 21, 12]) * filled))

    spine = rng.normal(0, 5)  # vessels lie on the vertebral bodies
    aorta = [
        (9 + spine + rng.normal(0, 4), 25 + rng.normal(0, 3) + bow, z)
        for z, bow in ((150, 8), (70, 2), (0, -4), (-70, -4), (-150, 2))
    ]
    d["aorta"] = _tube(p, *_bent(aorta, np.linspace(12.5, 9.5, 5) * np.exp(rng.normal(0, 0.1))))
    cava = [
        (-18 + spine + rng.normal(0, 3) + dx, 24 + rng.normal(0, 3) + dy, z)
        for z, dx, dy in ((150, 0, -18), (75, -4, -4), (0, 0, 2), (-70, 0, 6), (-150, 2, 8))
    ]
    flat = _Points(np.stack([p.p[0] * 0.85 - 0.15 * 18, p.p[1] * 1.15 - 0.15 * 24, p.p[2]]))
    d["inferior_vena_cava"] = _tube(flat, *_bent(cava, np.full(5, 11.5) * np.exp(rng.normal(0, 0.12, 5))))

    cardia = fundus + _mm(-28, 2, -6)
    d["esophagus"] = _tube(
        p, *_bent([(6 + rng.normal(0, 5), 12 + rng.normal(0, 5), 150), (10, 6, 105), cardia], (10.5, 10, 9.5))
    )

    confluence = about((-8, -14, 6), (6, 6, 8))
    hilum_spleen = about((80, 24, 46), (6, 8, 10))
    sag = rng.normal(0, 8)
    d["portal_and_splenic_vein"] = np.minimum(
        _tube(p, *_bent([right + _mm(28, -2, 4), confluence + _mm(-22, -2, 14), confluence], (7.5, 8, 7.5))),
        _tube(
            p,
            *_bent(
                [confluence, confluence + _mm(30, 4, 8 + sag), hilum_spleen + _mm(-20, -2, sag), hilum_spleen],
                (7, 6, 5.5, 5),
            ),
        ),
    )
    thick = np.exp(rng.normal(0, 0.16))
    d["pancreas"] = _tube(
        p,
        *_bent(
            [
                confluence + _mm(-22, 2, -34) + rng.normal(0, 5, 3),
                confluence + _mm(-20, -4, -14),
                confluence + _mm(4, -13, -4),
                confluence + _mm(34, -10, 2 + sag) + rng.normal(0, 4, 3),
                hilum_spleen + _mm(-10, -8, -8 + sag / 2) + rng.normal(0, 5, 3),
            ],
            np.array([13, 15, 9.5, 11.5, 11]) * thick,
        ),
    )

    for side, name, apex in ((-1, "right_adrenal_gland", (-34, 34, 46)), (1, "left_adrenal_gland", (36, 26, 38))):
        a = about(apex, (3, 4, 7)) + _mm(spine * 0.5, 0, 0)
        limb = size((14, 20, 22), 0.15)
        d[name] = np.minimum(  # an inverted Y: the body and two limbs that run back and down
            _tube(p, [a, a + _mm(side * 3, limb[1], -limb[2] * 0.5)], (5.0, 3.8)),
            _tube(p, [a, a + _mm(side * limb[0], limb[1] * 0.7, -limb[2])], (5.0, 3.8)),
        )

    # Not labelled, but as dense as what is: the duodenum, and bowel loops in front and below.
    loops = [
        _tube(
            p,
            *_bent(
                [
                    pylorus + _mm(-6, 4, -2),
                    confluence + _mm(-44, 6, -22),
                    confluence + _mm(-30, 14, -56),
                    confluence + _mm(20, 12, -58),
                ],
                (13, 12, 12, 12),
            ),
        )
    ]
    for _ in range(9):
        start = np.array([rng.uniform(-85, 95), rng.uniform(-75, 10), rng.uniform(-135, -20)])
        steps = np.cumsum(rng.normal(0, (28, 18, 18), (4, 3)), axis=0)
        loops.append(_tube(p, *_bent([start, *(start + steps)], np.full(5, rng.uniform(10, 15)))))
    colon = [
        (96, 20, -140),
        (104, 14, -60),
        (98, -10, 0 + rng.normal(0, 12)),
        (40, -72, -45),
        (-40, -76, -50),
        (-98, -10, -62),
        (-100, 20, -140),
    ]
    d["colon"] = _tube(p, *_bent([about(c, (6, 5, 8)) for c in colon], rng.uniform(15, 24, 7)))
    d["bowel"] = np.minimum.reduce(loops)
    return d


def _body_distances(rng: np.random.Generator, p: _Points, fat_mm: float) -> dict[str, np.ndarray]:
    """Distance (mm) to the body's other parts, at points of the standard body."""
    x, y, z = p.p

    def wall(half_width: float, half_depth: float) -> np.ndarray:  # flattened at the back, as people lie
        depth = np.where(y > 0, half_depth * 0.98, half_depth * 1.02)
        k = (np.abs(x / half_width) ** 2.5 + np.abs(y / depth) ** 2.5) ** (1 / 2.5)
        return (k - 1) * min(half_width, half_depth)

    d = {"skin": wall(146 + fat_mm, 98 + 0.9 * fat_mm), "muscle": wall(146, 98), "cavity": wall(132, 86)}

    lift = rng.normal(0, 6)
    dome = (
        72
        + lift
        + 44 * np.exp(-(((x + 75) / 55) ** 2) - ((y + 5) / 60) ** 2)
        + 32 * np.exp(-(((x - 75) / 50) ** 2) - ((y - 5) / 60) ** 2)
        + 22 * np.exp(-((x / 60) ** 2) - ((y + 40) / 50) ** 2)
        - 0.35 * np.maximum(y - 20, 0)
    )
    d["diaphragm"] = (dome - z) * 0.8  # negative above the diaphragm
    d["mediastinum"] = np.abs(x - 6) - 34 + 0.25 * (y - 20)
    d["heart"] = _ellipsoid(p, (22 + rng.normal(0, 6), -38, 150 + lift), (62, 48, 45))

    phase = rng.uniform(0, 34)
    in_disc = np.abs((z + phase) % 34 - 17) < 4
    d["vertebra"] = _tube(p, [(0, 58, 200), (0, 52, 0), (0, 58, -200)], (20, 22, 24))
    d["disc"] = np.where(in_disc, d["vertebra"], 50.0)
    d["canal"] = _tube(p, [(0, 87, 200), (0, 82, 0), (0, 87, -200)], (8, 8, 9))
    level = np.abs((z + phase) % 34 - 17)
    spinous = np.maximum(np.abs(x) - 4, np.abs(y - 94) - 11)
    transverse = np.maximum(np.abs(np.abs(x) - 25) - 12, np.abs(y - 70 - 0.2 * np.abs(x)) - 4)
    d["process"] = np.maximum(np.minimum(spinous, transverse), 8 - level)
    d["back"] = np.minimum(
        _tube(p, [(38, 78, 200), (36, 80, -200)], (17, 24)), _tube(p, [(-38, 78, 200), (-36, 80, -200)], (17, 24))
    )
    d["psoas"] = np.minimum(
        _tube(p, [(30, 60, 10), (40, 54, -160)], (5, 27)), _tube(p, [(-30, 60, 10), (-40, 54, -160)], (5, 27))
    )
    # Ribs run forwards and down in the muscle of the chest wall, from the 7th to the 12th.
    slope = z + 0.75 * (-y) + rng.uniform(0, 30)
    along = np.abs(slope % 30 - 15) - 5.5
    middle = np.abs(wall(139, 92)) - 4.5
    stop = np.maximum(-z - 45 - 0.55 * y, np.maximum(-60 - y, 12 - np.abs(x)))  # none in front, none far below
    d["rib"] = np.maximum(np.maximum(along, middle), stop)
    return d


# ------------------------------------------------------------------------------------------------------------------
# The scan.


def draw_case(rng: np.random.Generator) -> PhantomCase:
    """Draw one case. All randomness comes from `rng`; all 13 organs are there with at least 12 voxels each."""
    while True:
        case = _draw_once(rng)
        if np.bincount(case.labels.ravel(), minlength=len(LABELS)).min() >= MIN_VOXELS:
            return case


def _draw_once(rng: np.random.Generator) -> PhantomCase:
    # The scanner: field of view, slices, and where the body lies in it.
    height, width = 88, 112  # a patient lying down is wider than thick
    pixel = rng.uniform(3.15, 3.5)
    slice_mm = rng.uniform(7.1, 7.7)
    slices = int(np.round(rng.uniform(246, 262) / slice_mm))
    shape, spacing_zyx = (slices, height, width), (slice_mm, pixel, pixel)
    z, y, x = (((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(shape, spacing_zyx, strict=True))
    world = np.stack(np.broadcast_arrays(x[None, None, :], y[None, :, None], z[:, None, None])).astype(np.float32)

    # The patient: world to standard body.
    fat_mm = rng.uniform(7, 26)
    stature = rng.normal(0, 0.05)
    stretch = np.exp(stature + rng.normal(0, (0.045, 0.06, 0.04)))
    room = pixel * width / 2 - 6
    stretch[0] = min(stretch[0], room / (146 + fat_mm))
    stretch[1] = min(stretch[1], (room - pixel * (width - height) / 2) / (99 + fat_mm))
    shift = np.clip(rng.normal(0, (6, 8, 17)), -26, 26) + _mm(0, 0, -6)  # the scan range varies most
    roll = _rotation((rng.normal(0, 2.5), rng.normal(0, 2.5), rng.normal(0, 4.5)))
    p = np.tensordot(
        (roll / stretch[:, None]).astype(np.float32), world - np.reshape(shift, (3, 1, 1, 1)).astype(np.float32), 1
    )
    body = _body_distances(rng, _Points(p), fat_mm)

    # Soft organs are bent more than the trunk is: slowly as a whole, and finely at their surfaces.
    bend = np.stack([_smooth_field(rng, shape, spacing_zyx, 75) for _ in range(3)])
    fine = np.stack([_smooth_field(rng, shape, spacing_zyx, 26) for _ in range(3)])
    organs = _organ_distances(rng, _Points(p + 7.0 * bend + 1.6 * fine))

    # Organs stay inside the cavity, below the lungs and off the bones.
    inside = np.maximum(body["cavity"] + 3, -body["diaphragm"] + 1.5)
    solid = np.minimum(np.minimum(body["vertebra"], body["psoas"] + 2), np.minimum(body["back"], body["process"]))
    for name in organs:
        limit = body["cavity"] + 3 if name in ("aorta", "esophagus", "inferior_vena_cava") else inside
        organs[name] = np.maximum(np.maximum(organs[name], limit), 1.5 - solid)

    # Where structures overlap, the border is halfway between their surfaces, moved by PUSH.
    names = [*ORGANS, "bowel", "colon"]
    depth = np.stack([organs[n] for n in names])
    depth = np.where(depth < -8, -8 + 0.02 * (depth + 8), depth)  # thin ones hold their place inside large ones
    pushed = depth - np.array([PUSH.get(n, 0.0) for n in names], np.float32)[:, None, None, None]
    first = pushed.argmin(0)
    two = np.partition(pushed, 1, axis=0)[:2]
    territory = {}
    for i, n in enumerate(names):
        rival = np.where(first == i, two[1], two[0])
        territory[n] = np.maximum(organs[n], (pushed[i] - rival) / 2)

    labels = np.zeros(shape, np.uint8)
    for n in ORGANS:
        territory[n][_crumbs(territory[n] < 0)] = FAR_MM
        labels[territory[n] < 0] = LABELS[n]

    image = _densities(rng, shape, spacing_zyx, body, organs, territory)
    origin = rng.normal(0, (8, 8, 200)) - (x.max(), y.max() + 150, z.max())
    return PhantomCase(
        image,
        labels,
        tuple(round(float(v), 4) for v in (pixel, pixel, slice_mm)),
        tuple(round(float(v), 3) for v in origin),
    )


def _densities(rng, shape, spacing_zyx, body, organs, territory) -> np.ndarray:
    """The image (z, y, x), int16 HU, from distances in mm."""
    texture = _smooth_field(rng, shape, spacing_zyx, 40)
    grain = _smooth_field(rng, shape, spacing_zyx, 11)
    hu = np.full(shape, AIR, np.float32)

    def paint(distance: np.ndarray, value, edge_mm: float = 3.5) -> None:
        """Lay a structure over the image; a voxel that its surface cuts gets its share (partial volume)."""
        share = np.clip(0.5 - distance / edge_mm, 0, 1)
        hu[...] += share * (value - hu)

    paint(body["skin"], 20.0)
    paint(body["skin"] + 3, FAT + 5 * texture)
    marbling = 10 * grain + 6 * texture
    paint(body["muscle"], MUSCLE + marbling - rng.uniform(0, 12))
    paint(body["cavity"], FAT + 6 * texture + 7 * grain)
    chest = np.maximum(body["cavity"], body["diaphragm"])
    paint(np.maximum(chest, -body["mediastinum"]), LUNG + 25 * texture + 30 * np.maximum(grain, 0))
    paint(np.maximum(chest, body["mediastinum"]), FAT + 40.0)
    paint(np.maximum(np.maximum(body["heart"], body["cavity"]), body["diaphragm"]), 115.0 + 8 * texture)
    shell = np.abs(np.maximum(body["cavity"] + 1, -body["diaphragm"])) - 1.8  # diaphragm and peritoneum
    paint(np.maximum(shell, body["cavity"]), 45.0)

    paint(body["psoas"], MUSCLE + marbling)
    paint(body["back"], MUSCLE + marbling)
    bone = rng.uniform(140, 230)
    paint(body["vertebra"], bone + 170.0 + 0 * texture)
    paint(body["vertebra"] + 4, bone + 18 * grain)
    paint(body["disc"], 85.0)
    paint(body["process"], bone + 110)
    paint(body["canal"], 35.0)
    paint(body["rib"], bone + 260)
    paint(body["rib"] + 3, bone + 60)

    phase = np.exp(rng.normal(0, 0.18))  # how much contrast agent has arrived: the same for all organs of a case
    arterial = rng.uniform(0.85, 1.35)
    contrast = rng.random() < 0.2  # some drink a contrast agent before the scan
    for n in ("bowel", "colon"):
        content = (rng.uniform(170, 290) if contrast else rng.uniform(15, 45)) + 14 * grain
        paint(territory[n], 70.0 * phase + 20)
        paint(territory[n] + 4, content)
    gas = np.maximum(territory["colon"] + 6, 0.6 - texture)
    paint(np.where(gas < 4, gas * 4, 50.0), -780.0)

    for n in ORGANS:
        base, enhancement = DENSITY[n]
        own = enhancement * phase * np.exp(rng.normal(0, 0.12))
        if n == "aorta":
            own *= arterial
        value = base + rng.normal(0, 6) + own + 5 * texture + 4 * grain
        if n == "stomach":
            paint(territory[n], 55 + 35 * phase)
            value = (rng.uniform(170, 290) if contrast else rng.uniform(8, 50)) + 10 * grain
            paint(territory[n] + 5, value)
            continue
        if n == "pancreas":  # lobules with fat between them
            value = value - 26 * np.maximum(grain - 0.2, 0)
        if n == "liver":
            value = value - rng.choice([0, 0, 0, 28])  # some livers are fatty
        paint(territory[n], value)
        if n.endswith("kidney"):
            paint(np.maximum(territory[n], organs[n] + 9), value - 24 * phase * rng.uniform(0, 1))  # medulla
            paint(np.maximum(organs[n + "_sinus"], organs[n] - 8), FAT + 45)
        if n == "esophagus":
            paint(organs[n] + 8, rng.choice([-300.0, 30.0, 30.0]), edge_mm=3)
    for n, chance in (("liver", 0.4), ("right_kidney", 0.25), ("left_kidney", 0.25)):  # cysts, part of their organ
        if rng.random() < chance:
            inside = np.argwhere(territory[n] < -7)
            if len(inside):
                at = inside[rng.integers(len(inside))]
                index = np.indices(shape, dtype=np.float32)
                away = np.sqrt(sum(((index[a] - at[a]) * spacing_zyx[a]) ** 2 for a in range(3)))
                paint(np.maximum(away - rng.uniform(7, 14), territory[n] + 2), rng.uniform(5, 40))

    # The scanner: blur in the slice and between slices, then noise, which the reconstruction filter colours.
    hu = ndimage.gaussian_filter(hu, (0.35, 0.45, 0.45))
    noise = ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), (0, 0.6, 0.6))
    hu += noise / noise.std() * rng.uniform(9, 15)
    return np.clip(np.rint(hu), -1024, 1500).astype(np.int16)


# ------------------------------------------------------------------------------------------------------------------
# The data set.


def write_phantom(
    folder_raw: Path,
    dataset_id: int = 917,
    cases: int = 12,
    test_cases: int = 4,
    seed: int = 917,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a data set of synthetic abdominal CTs in nnU-Net's raw layout.

    The same arguments give the same bytes (with the same versions of numpy, scipy and SimpleITK on the same kind of
    processor); a case does not depend on how many others there are.

    Args:
        folder_raw: nnU-Net's `nnUNet_raw`; made if missing.
        dataset_id: 1..999.
        cases: training cases, at least 5 for nnU-Net's five folds; `imagesTr`, `labelsTr`.
        test_cases: held-out cases, at least 1; `imagesTs`, `labelsTs`.
        seed: any non-negative integer.
        progress: called after every case with (cases done, cases in all).

    Returns:
        The new folder, `folder_raw / Dataset<ID>_Phantom`. Images are int16 HU, labels uint8 0..13 (`LABELS`), both
        .nii.gz, 32 to 37 slices of about 7.4 mm with 88 x 112 pixels (y, x) of about 3.3 mm.

    Raises:
        NnunetDtcError: for arguments outside these limits; no file has been touched.
        FileExistsError: if `folder_raw` holds a data set of this id already; it is left alone.
    """
    check_dataset_id(dataset_id)
    for what, value, least in (("cases", cases, 5), ("test_cases", test_cases, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            why = " (nnU-Net trains five folds)" if what == "cases" else ""
            raise NnunetDtcError(f"{what} must be an integer of at least {least}{why}, got {value!r}")
    folder_raw = Path(folder_raw)
    check_raw_folder(folder_raw)
    check_nothing_there(folder_raw, dataset_id, NAME)

    with new_raw_dataset(folder_raw, dataset_id, NAME) as folder:
        for sub in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
            (folder / sub).mkdir()
        for k in range(cases + test_cases):
            held_out = k >= cases
            number = k - cases if held_out else k
            case = draw_case(np.random.default_rng([seed, int(held_out), number]))
            part, name = ("Ts", "phantom_test") if held_out else ("Tr", "phantom")
            name = f"{name}_{number + 1:03d}"
            _write(case.image, case, folder / f"images{part}" / f"{name}_0000.nii.gz")
            _write(case.labels, case, folder / f"labels{part}" / f"{name}.nii.gz")
            if progress is not None:
                progress(k + 1, cases + test_cases)
        write_dataset_json(
            folder,
            ["CT"],
            LABELS,
            cases,
            name=NAME,
            description="Synthetic abdominal CTs with the 13 organs of BTCV, for demonstrations and tests; no patients",
        )
    return folder_raw / f"Dataset{dataset_id:03d}_{NAME}"


def _write(array: np.ndarray, case: PhantomCase, file: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(case.spacing_mm)
    image.SetOrigin(case.origin_mm)
    try:
        sitk.WriteImage(image, str(file), useCompression=True)
        check_complete(file)  # where the disk is full, ITK may raise nothing
    except RuntimeError as error:
        raise WriteError(file, OSError(last_line(error))) from error
    except ImageFileError as error:
        raise WriteError(file, OSError(f"{error} (is the disk full?)")) from error
