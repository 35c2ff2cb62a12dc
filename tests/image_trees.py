"""Made-up ISIC 2018 and BUSI sources of the published layouts, with few and small images."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
ISIC = {"counts": {"Training": 4, "Validation": 1, "Test": 2}, "training": 5, "test": 2}
IDS = {"Training": (0, 1, 3, 16072), "Validation": (12255,), "Test": (12169, 12236)}
BUSI = {"counts": {"benign": 4, "malignant": 3}, "training": 4, "test": 2}


def save(file: Path, array: np.ndarray, mode: str | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file)
    return file


def colours(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)


def mask(height: int, width: int) -> np.ndarray:
    return (RNG.random((height, width)) < 0.4).astype(np.uint8) * 255


def isic_image(source: Path, part: str, number: int) -> Path:
    return source / f"ISIC2018_Task1-2_{part}_Input" / f"ISIC_{number:07d}.jpg"


def isic_mask(source: Path, part: str, number: int) -> Path:
    return source / f"ISIC2018_Task1_{part}_GroundTruth" / f"ISIC_{number:07d}_segmentation.png"


def write_isic_source(source: Path) -> Path:
    for part, numbers in IDS.items():
        for k, number in enumerate(numbers):
            save(isic_image(source, part, number), colours(20 + k, 31))
            save(isic_mask(source, part, number), mask(20 + k, 31))
        (isic_image(source, part, 0).parent / "LICENSE.txt").write_text("CC-0")
    return source


def busi_file(source: Path, kind: str, number: int, more: str = "") -> Path:
    return source / kind / f"{kind} ({number}){more}.png"


def write_busi_source(source: Path) -> Path:
    for kind, count in (("benign", 4), ("malignant", 3), ("normal", 2)):
        for number in range(1, count + 1):
            save(busi_file(source, kind, number), colours(18, 20 + number))
            save(busi_file(source, kind, number, "_mask"), mask(18, 20 + number))
    save(busi_file(source, "benign", 2), mask(18, 22))  # a grey file
    save(busi_file(source, "benign", 3), colours(18, 23), "RGBA")
    save(busi_file(source, "benign", 1, "_mask"), mask(18, 21), "1")
    save(busi_file(source, "benign", 3, "_mask"), mask(18, 23), "RGB")
    save(busi_file(source, "malignant", 1, "_mask"), mask(18, 21), "RGBA")
    save(busi_file(source, "malignant", 2, "_mask"), mask(18, 22), "P")
    save(busi_file(source, "malignant", 3, "_mask_1"), mask(18, 23))
    save(busi_file(source, "malignant", 3, "_mask_2"), mask(18, 23))
    return source


def write_zip(file: Path, folder: Path) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return file


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
