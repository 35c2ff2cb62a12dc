"""Organs and other structures of the phantom as distances in a standard body.

The standard body has a half width of 158 mm, a half depth of 108 mm, and z = 0 at the first lumbar vertebra. The organs
are those of BTCV; the anatomy is our own rough sketch.
"""

from __future__ import annotations

import numpy as np

from nnunet_dtc.study.datasets.phantom_shapes import (
    Points,
    ellipsoid,
    mm,
    rotation_matrix,
    smooth_tube,
    smooth_union,
    tube,
)

__all__ = ["body_distances", "organ_distances"]


class _Variation:
    """Random positions, sizes and poses around typical ones."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.normal, self.uniform = rng.normal, rng.uniform

    def about(self, center, sd) -> np.ndarray:
        return np.asarray(center, float) + self.normal(0, 1.35 * np.asarray(sd, float), 3)

    def size(self, radii, spread: float = 0.10) -> np.ndarray:
        return np.asarray(radii, float) * np.exp(self.normal(0, spread / 2, 3) + self.normal(0, spread))

    def turn(self, angles, sd: float = 9) -> np.ndarray:
        return rotation_matrix(np.asarray(angles, float) + self.normal(0, sd, 3))


def organ_distances(rng: np.random.Generator, p: Points) -> dict[str, np.ndarray]:
    """Distance (mm) to every organ, to the sinus of each kidney, and to bowel and colon, at points of the body."""
    # The functions are called in this order because all of them draw from `rng`.
    vary = _Variation(rng)
    liver = vary.about((-80, 0, 42), (6, 8, 9))
    d = {"liver": _liver(vary, p, liver)}
    d["spleen"] = ellipsoid(
        p, vary.about((102, 44, 56), (5, 8, 11)), vary.size((33, 51, 50), 0.12), vary.turn((20, -8, 24), 12)
    )
    d |= _kidneys(vary, p)
    d["gallbladder"] = ellipsoid(
        p,
        liver + vary.about((30, -52, -42), (9, 7, 9)),
        vary.size((14, 17, 27), 0.2),
        vary.turn((-30, 10, 0), 16),
    )
    d["stomach"], fundus, pylorus = _stomach(vary, p)
    spine = vary.normal(0, 5)  # the vessels lie on the vertebral bodies
    d["aorta"] = _aorta(vary, p, spine)
    d["inferior_vena_cava"] = _cava(vary, p, spine)
    d["esophagus"] = _esophagus(vary, p, cardia=fundus + mm(-28, 2, -6))
    confluence = vary.about((-8, -14, 6), (6, 6, 8))
    splenic_hilum = vary.about((80, 24, 46), (6, 8, 10))
    sag = vary.normal(0, 8)
    d["portal_and_splenic_vein"] = _portal_and_splenic_vein(p, liver, confluence, splenic_hilum, sag)
    d["pancreas"] = _pancreas(vary, p, confluence, splenic_hilum, sag)
    d |= _adrenal_glands(vary, p, spine)
    loops = [_duodenum(p, pylorus, confluence), *(_bowel_loop(vary, p) for _ in range(9))]
    d["colon"] = _colon(vary, p)
    d["bowel"] = np.minimum.reduce(loops)
    return d


def _liver(vary: _Variation, p: Points, center: np.ndarray) -> np.ndarray:
    left = vary.uniform(-25, 25)  # the left lobe ends between the midline and the spleen
    right_lobe = ellipsoid(p, center, vary.size((66, 82, 70), 0.06), vary.turn((0, 8, 0), 6))
    left_lobe = ellipsoid(
        p,
        center + mm(68 + left / 2, -44, 14),
        vary.size((62 + left / 2, 34, 30)),
        vary.turn((0, -8, 0), 8),
    )
    tip = ellipsoid(p, center + mm(-18, 12, -62 + vary.normal(0, 14)), vary.size((34, 50, 46)), vary.turn((0, 0, 0), 8))
    return smooth_union([right_lobe, left_lobe, tip], blend_mm=22)


def _kidneys(vary: _Variation, p: Points) -> dict[str, np.ndarray]:
    d = {}
    for side, name, z in ((-1, "right_kidney", -34), (1, "left_kidney", -18)):
        center = vary.about((side * 62, 44, z), (5, 6, 13))
        pose = vary.turn((-8, side * 12, side * -18), 8)  # the upper pole points inwards and back
        radii = vary.size((27, 29, 54), 0.09)
        kidney = ellipsoid(p, center, radii, pose)
        hilum = center + pose.T @ (-side * 24.0, -8.0, 0.0)
        d[name] = np.maximum(kidney, -ellipsoid(p, hilum, vary.size((11, 9, 18)), pose))
        d[name + "_sinus"] = ellipsoid(p, hilum, vary.size((10, 8, 16)), pose)
    return d


def _stomach(vary: _Variation, p: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The stomach, its fundus and its pylorus."""
    fundus, body = vary.about((66, 4, 72), (7, 9, 7)), vary.about((64, -38, 36), (10, 9, 10))
    antrum, pylorus = vary.about((20, -60, 0), (12, 8, 14)), vary.about((-24, -48, 4), (7, 7, 8))
    filling = np.exp(vary.normal(0, 0.12) + vary.normal(0, 0.12, 4))
    return smooth_tube(p, [fundus, body, antrum, pylorus], np.array([34, 28, 21, 12]) * filling), fundus, pylorus


def _aorta(vary: _Variation, p: Points, spine: float) -> np.ndarray:
    line = [
        (9 + spine + vary.normal(0, 4), 25 + vary.normal(0, 3) + bow, z)
        for z, bow in ((150, 8), (70, 2), (0, -4), (-70, -4), (-150, 2))
    ]
    return smooth_tube(p, line, np.linspace(12.5, 9.5, 5) * np.exp(vary.normal(0, 0.1)))


def _cava(vary: _Variation, p: Points, spine: float) -> np.ndarray:
    line = [
        (-18 + spine + vary.normal(0, 3) + dx, 24 + vary.normal(0, 3) + dy, z)
        for z, dx, dy in ((150, 0, -18), (75, -4, -4), (0, 0, 2), (-70, 0, 6), (-150, 2, 8))
    ]
    flattened = Points(np.stack([p.p[0] * 0.85 - 0.15 * 18, p.p[1] * 1.15 - 0.15 * 24, p.p[2]]))
    return smooth_tube(flattened, line, np.full(5, 11.5) * np.exp(vary.normal(0, 0.12, 5)))


def _esophagus(vary: _Variation, p: Points, cardia: np.ndarray) -> np.ndarray:
    top = (6 + vary.normal(0, 5), 12 + vary.normal(0, 5), 150)
    return smooth_tube(p, [top, (10, 6, 105), cardia], (10.5, 10, 9.5))


def _portal_and_splenic_vein(
    p: Points, liver: np.ndarray, confluence: np.ndarray, splenic_hilum: np.ndarray, sag: float
) -> np.ndarray:
    portal = [liver + mm(28, -2, 4), confluence + mm(-22, -2, 14), confluence]
    splenic = [confluence, confluence + mm(30, 4, 8 + sag), splenic_hilum + mm(-20, -2, sag), splenic_hilum]
    return np.minimum(smooth_tube(p, portal, (7.5, 8, 7.5)), smooth_tube(p, splenic, (7, 6, 5.5, 5)))


def _pancreas(vary: _Variation, p: Points, confluence: np.ndarray, splenic_hilum: np.ndarray, sag: float) -> np.ndarray:
    thickness = np.exp(vary.normal(0, 0.16))
    line = [
        confluence + mm(-22, 2, -34) + vary.normal(0, 5, 3),
        confluence + mm(-20, -4, -14),
        confluence + mm(4, -13, -4),
        confluence + mm(34, -10, 2 + sag) + vary.normal(0, 4, 3),
        splenic_hilum + mm(-10, -8, -8 + sag / 2) + vary.normal(0, 5, 3),
    ]
    return smooth_tube(p, line, np.array([13, 15, 9.5, 11.5, 11]) * thickness)


def _adrenal_glands(vary: _Variation, p: Points, spine: float) -> dict[str, np.ndarray]:
    """Each an inverted Y: two limbs that run back and down from an apex."""
    d = {}
    for side, name, apex in ((-1, "right_adrenal_gland", (-34, 34, 46)), (1, "left_adrenal_gland", (36, 26, 38))):
        a = vary.about(apex, (3, 4, 7)) + mm(spine * 0.5, 0, 0)
        limb = vary.size((14, 20, 22), 0.15)
        d[name] = np.minimum(
            tube(p, [a, a + mm(side * 3, limb[1], -limb[2] * 0.5)], (5.0, 3.8)),
            tube(p, [a, a + mm(side * limb[0], limb[1] * 0.7, -limb[2])], (5.0, 3.8)),
        )
    return d


def _duodenum(p: Points, pylorus: np.ndarray, confluence: np.ndarray) -> np.ndarray:
    """The duodenum, which like the bowel and the colon has no label, but is as dense as labelled organs."""
    line = [
        pylorus + mm(-6, 4, -2),
        confluence + mm(-44, 6, -22),
        confluence + mm(-30, 14, -56),
        confluence + mm(20, 12, -58),
    ]
    return smooth_tube(p, line, (13, 12, 12, 12))


def _bowel_loop(vary: _Variation, p: Points) -> np.ndarray:
    """A loop in front of the organs and below them."""
    start = np.array([vary.uniform(-85, 95), vary.uniform(-75, 10), vary.uniform(-135, -20)])
    steps = np.cumsum(vary.normal(0, (28, 18, 18), (4, 3)), axis=0)
    return smooth_tube(p, [start, *(start + steps)], np.full(5, vary.uniform(10, 15)))


def _colon(vary: _Variation, p: Points) -> np.ndarray:
    line = [
        (96, 20, -140),
        (104, 14, -60),
        (98, -10, 0 + vary.normal(0, 12)),
        (40, -72, -45),
        (-40, -76, -50),
        (-98, -10, -62),
        (-100, 20, -140),
    ]
    return smooth_tube(p, [vary.about(vertex, (6, 5, 8)) for vertex in line], vary.uniform(15, 24, 7))


def body_distances(rng: np.random.Generator, p: Points, fat_mm: float) -> dict[str, np.ndarray]:
    """Distance (mm) to the other parts of the body at points of the body; `fat_mm` is the thickness of the fat."""
    d = {"skin": _wall(p, 146 + fat_mm, 98 + 0.9 * fat_mm), "muscle": _wall(p, 146, 98), "cavity": _wall(p, 132, 86)}
    d |= _chest(rng, p)
    d |= _spine(rng, p)
    d["back"] = _pair(p, [(38, 78, 200), (36, 80, -200)], (17, 24))
    d["psoas"] = _pair(p, [(30, 60, 10), (40, 54, -160)], (5, 27))
    d["rib"] = _ribs(rng, p)
    return d


def _wall(p: Points, half_width: float, half_depth: float) -> np.ndarray:
    """A layer of the trunk, flattened at the back as in a lying patient."""
    x, y, _ = p.p
    depth = np.where(y > 0, half_depth * 0.98, half_depth * 1.02)
    k = (np.abs(x / half_width) ** 2.5 + np.abs(y / depth) ** 2.5) ** (1 / 2.5)
    return (k - 1) * min(half_width, half_depth)


def _chest(rng: np.random.Generator, p: Points) -> dict[str, np.ndarray]:
    x, y, z = p.p
    lift = rng.normal(0, 6)
    dome = (
        72
        + lift
        + 44 * np.exp(-(((x + 75) / 55) ** 2) - ((y + 5) / 60) ** 2)
        + 32 * np.exp(-(((x - 75) / 50) ** 2) - ((y - 5) / 60) ** 2)
        + 22 * np.exp(-((x / 60) ** 2) - ((y + 40) / 50) ** 2)
        - 0.35 * np.maximum(y - 20, 0)
    )
    return {
        "diaphragm": (dome - z) * 0.8,  # negative above the diaphragm
        "mediastinum": np.abs(x - 6) - 34 + 0.25 * (y - 20),
        "heart": ellipsoid(p, (22 + rng.normal(0, 6), -38, 150 + lift), (62, 48, 45)),
    }


def _spine(rng: np.random.Generator, p: Points) -> dict[str, np.ndarray]:
    x, y, z = p.p
    phase = rng.uniform(0, 34)
    level = np.abs((z + phase) % 34 - 17)
    vertebra = tube(p, [(0, 58, 200), (0, 52, 0), (0, 58, -200)], (20, 22, 24))
    spinous = np.maximum(np.abs(x) - 4, np.abs(y - 94) - 11)
    transverse = np.maximum(np.abs(np.abs(x) - 25) - 12, np.abs(y - 70 - 0.2 * np.abs(x)) - 4)
    return {
        "vertebra": vertebra,
        "disc": np.where(level < 4, vertebra, 50.0),
        "canal": tube(p, [(0, 87, 200), (0, 82, 0), (0, 87, -200)], (8, 8, 9)),
        "process": np.maximum(np.minimum(spinous, transverse), 8 - level),
    }


def _pair(p: Points, line, radii) -> np.ndarray:
    """A tube on the left side and its mirror image on the right."""
    return np.minimum(tube(p, line, radii), tube(p, [(-x, y, z) for x, y, z in line], radii))


def _ribs(rng: np.random.Generator, p: Points) -> np.ndarray:
    """The 7th to 12th rib, which run forwards and down in the muscle of the chest wall."""
    x, y, z = p.p
    slope = z + 0.75 * (-y) + rng.uniform(0, 30)
    along = np.abs(slope % 30 - 15) - 5.5
    middle = np.abs(_wall(p, 139, 92)) - 4.5
    end = np.maximum(-z - 45 - 0.55 * y, np.maximum(-60 - y, 12 - np.abs(x)))  # none in front and far below
    return np.maximum(np.maximum(along, middle), end)
