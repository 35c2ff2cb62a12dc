"""The image of the phantom: densities in Hounsfield units, blur and noise of a portal venous scan."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from nnunet_dtc.study.datasets.btcv_labels import ORGANS
from nnunet_dtc.study.datasets.phantom_shapes import smooth_field

__all__ = ["draw_image"]

# Mean density in HU, and the part of it that is contrast agent, which is scaled by the phase of the case.
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

Distances = Mapping[str, np.ndarray]


class _Canvas:
    """The image in HU, on which structures are painted over each other, and two random fields for their texture."""

    def __init__(self, rng: np.random.Generator, shape, spacing_zyx) -> None:
        self.rng, self.shape, self.spacing_zyx = rng, shape, spacing_zyx
        self.texture = smooth_field(rng, shape, spacing_zyx, 40)
        self.grain = smooth_field(rng, shape, spacing_zyx, 11)
        self.hu = np.full(shape, AIR, np.float32)

    def paint(self, distance: np.ndarray, value, edge_mm: float = 3.5) -> None:
        """Paint a structure over the image, with partial volumes in the voxels at its surface."""
        fraction = np.clip(0.5 - distance / edge_mm, 0, 1)
        self.hu += fraction * (value - self.hu)


def draw_image(
    rng: np.random.Generator, shape, spacing_zyx, body: Distances, organs: Distances, territory: Distances
) -> np.ndarray:
    """The image (z, y, x), int16 HU.

    Args:
        rng: source of all randomness.
        shape: (z, y, x) voxels.
        spacing_zyx: voxel size in mm.
        body: distances (mm) to the parts of the body.
        organs: distances to the organs before they compete for space.
        territory: distances to the organs after that.
    """
    canvas = _Canvas(rng, shape, spacing_zyx)
    _paint_trunk(canvas, body)
    _paint_bones(canvas, body)
    phase = np.exp(rng.normal(0, 0.18))  # amount of contrast agent, the same for all organs of a case
    arterial = rng.uniform(0.85, 1.35)
    oral_contrast = rng.random() < 0.2  # some patients drink contrast agent before the scan
    _paint_bowel(canvas, territory, phase, oral_contrast)
    for name in ORGANS:
        _paint_organ(canvas, name, organs, territory, phase, arterial, oral_contrast)
    for name, chance in (("liver", 0.4), ("right_kidney", 0.25), ("left_kidney", 0.25)):
        if rng.random() < chance:
            _paint_cyst(canvas, territory[name])
    return _scan(rng, canvas.hu)


def _paint_trunk(canvas: _Canvas, body: Distances) -> None:
    texture, grain, paint = canvas.texture, canvas.grain, canvas.paint
    paint(body["skin"], 20.0)
    paint(body["skin"] + 3, FAT + 5 * texture)
    marbling = 10 * grain + 6 * texture
    paint(body["muscle"], MUSCLE + marbling - canvas.rng.uniform(0, 12))
    paint(body["cavity"], FAT + 6 * texture + 7 * grain)
    chest = np.maximum(body["cavity"], body["diaphragm"])
    paint(np.maximum(chest, -body["mediastinum"]), LUNG + 25 * texture + 30 * np.maximum(grain, 0))
    paint(np.maximum(chest, body["mediastinum"]), FAT + 40.0)
    paint(np.maximum(np.maximum(body["heart"], body["cavity"]), body["diaphragm"]), 115.0 + 8 * texture)
    shell = np.abs(np.maximum(body["cavity"] + 1, -body["diaphragm"])) - 1.8  # diaphragm and peritoneum
    paint(np.maximum(shell, body["cavity"]), 45.0)
    paint(body["psoas"], MUSCLE + marbling)
    paint(body["back"], MUSCLE + marbling)


def _paint_bones(canvas: _Canvas, body: Distances) -> None:
    paint, bone = canvas.paint, canvas.rng.uniform(140, 230)
    paint(body["vertebra"], bone + 170.0 + 0 * canvas.texture)
    paint(body["vertebra"] + 4, bone + 18 * canvas.grain)
    paint(body["disc"], 85.0)
    paint(body["process"], bone + 110)
    paint(body["canal"], 35.0)
    paint(body["rib"], bone + 260)
    paint(body["rib"] + 3, bone + 60)


def _paint_bowel(canvas: _Canvas, territory: Distances, phase: float, oral_contrast: bool) -> None:
    rng = canvas.rng
    for name in ("bowel", "colon"):
        content = (rng.uniform(170, 290) if oral_contrast else rng.uniform(15, 45)) + 14 * canvas.grain
        canvas.paint(territory[name], 70.0 * phase + 20)
        canvas.paint(territory[name] + 4, content)
    gas = np.maximum(territory["colon"] + 6, 0.6 - canvas.texture)
    canvas.paint(np.where(gas < 4, gas * 4, 50.0), -780.0)


def _paint_organ(
    canvas: _Canvas,
    name: str,
    organs: Distances,
    territory: Distances,
    phase: float,
    arterial: float,
    oral_contrast: bool,
) -> None:
    rng, grain, paint = canvas.rng, canvas.grain, canvas.paint
    base, enhancement = DENSITY[name]
    enhanced = enhancement * phase * np.exp(rng.normal(0, 0.12))
    if name == "aorta":
        enhanced *= arterial
    value = base + rng.normal(0, 6) + enhanced + 5 * canvas.texture + 4 * grain
    if name == "stomach":
        paint(territory[name], 55 + 35 * phase)
        content = (rng.uniform(170, 290) if oral_contrast else rng.uniform(8, 50)) + 10 * grain
        paint(territory[name] + 5, content)
        return
    if name == "pancreas":  # lobules with fat between them
        value = value - 26 * np.maximum(grain - 0.2, 0)
    if name == "liver":
        value = value - rng.choice([0, 0, 0, 28])  # some livers are fatty
    paint(territory[name], value)
    if name.endswith("kidney"):
        paint(np.maximum(territory[name], organs[name] + 9), value - 24 * phase * rng.uniform(0, 1))  # medulla
        paint(np.maximum(organs[name + "_sinus"], organs[name] - 8), FAT + 45)
    if name == "esophagus":
        paint(organs[name] + 8, rng.choice([-300.0, 30.0, 30.0]), edge_mm=3)


def _paint_cyst(canvas: _Canvas, territory: np.ndarray) -> None:
    """A cyst, which is labelled as a part of its organ; none if the organ is too thin."""
    rng = canvas.rng
    inside = np.argwhere(territory < -7)
    if len(inside):
        center = inside[rng.integers(len(inside))]
        index = np.indices(canvas.shape, dtype=np.float32)
        distance = np.sqrt(sum(((index[a] - center[a]) * canvas.spacing_zyx[a]) ** 2 for a in range(3)))
        canvas.paint(np.maximum(distance - rng.uniform(7, 14), territory + 2), rng.uniform(5, 40))


def _scan(rng: np.random.Generator, hu: np.ndarray) -> np.ndarray:
    """Blur the image within and between slices, and add noise, which the reconstruction filter correlates."""
    hu = ndimage.gaussian_filter(hu, (0.35, 0.45, 0.45))
    noise = ndimage.gaussian_filter(rng.standard_normal(hu.shape).astype(np.float32), (0, 0.6, 0.6))
    hu += noise / noise.std() * rng.uniform(9, 15)
    return np.clip(np.rint(hu), -1024, 1500).astype(np.int16)
