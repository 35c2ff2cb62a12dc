"""Measure the time and the memory that scoring BTCV-sized cases takes.

    python benchmarks/metrics.py                       12 cases of 512 x 512 x 140 with 13 organs, 2 processes
    python benchmarks/metrics.py --cases 2 --islands   fewer; false islands far away, so that cropping does not help

The organs are ellipsoids of realistic sizes and the predictions have wavy surfaces; writing the files is not measured.
Memory is the peak of the proportional set size of all processes together, in which shared pages count once. It is
sampled from /proc, which only Linux has.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_dtc.study import evaluation

SHAPE, SPACING = (140, 512, 512), (3.0, 0.76, 0.76)  # z, y, x
RADII_MM = {
    "spleen": (50, 45, 30),
    "right_kidney": (55, 28, 28),
    "left_kidney": (55, 28, 28),
    "gallbladder": (25, 18, 16),
    "esophagus": (60, 9, 9),
    "liver": (85, 90, 85),
    "stomach": (60, 45, 45),
    "aorta": (140, 12, 12),
    "inferior_vena_cava": (120, 12, 12),
    "portal_and_splenic_vein": (20, 12, 50),
    "pancreas": (20, 18, 60),
    "right_adrenal_gland": (12, 8, 12),
    "left_adrenal_gland": (12, 8, 12),
}


def ellipsoid(array: np.ndarray, value: int, center_mm: np.ndarray, radii_mm: np.ndarray, waves: float) -> None:
    """Draw an ellipsoid into array[z, y, x]; `waves` is the height of its surface's waves relative to the radius."""
    spacing = np.array(SPACING)
    start = np.maximum(np.floor((center_mm - 1.1 * radii_mm) / spacing).astype(int), 0)
    stop = np.minimum(np.ceil((center_mm + 1.1 * radii_mm) / spacing).astype(int), array.shape)
    z, y, x = (np.arange(a, b) * s for a, b, s in zip(start, stop, spacing, strict=True))
    z, y, x = z[:, None, None], y[:, None], x
    distance = sum(((p - c) / r) ** 2 for p, c, r in zip((z, y, x), center_mm, radii_mm, strict=True))
    distance = distance + waves * np.sin(z / 9) * np.sin(y / 5) * np.sin(x / 5)
    array[tuple(map(slice, start, stop))][distance < 1] = value


def draw(rng: np.random.Generator, islands: bool) -> tuple[np.ndarray, np.ndarray]:
    prediction, label = np.zeros((2, *SHAPE), np.uint8)
    extent = np.array(SHAPE) * SPACING
    by_size = sorted(enumerate(RADII_MM.values(), start=1), key=lambda organ: -np.prod(organ[1]))
    for value, radii in by_size:  # small organs last, so that they are not covered
        center, radii = extent * rng.uniform(0.3, 0.7, 3), np.array(radii) * rng.uniform(0.8, 1.2)
        ellipsoid(label, value, center, radii, 0.0)
        ellipsoid(prediction, value, center + rng.normal(0, 0.8, 3), radii * rng.normal(1, 0.02, 3), 0.12)
        if islands:
            for corner in (0.02, 0.98):
                ellipsoid(prediction, value, extent * corner + 2.0 * value * (1 - 2 * corner), np.full(3, 6.0), 0.0)
    return prediction, label


def write(array: np.ndarray, file: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(image, str(file))


def proportional_bytes(pid: int) -> int:
    """The proportional set size of a process and all its descendants, in bytes."""
    total = 0
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(map(proportional_bytes, map(int, (task / "children").read_text().split())))
    except OSError:
        pass  # it has ended
    return total


class PeakMemory(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.ended = 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.25):
            self.peak = max(self.peak, proportional_bytes(os.getpid()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--islands", action="store_true")
    parser.add_argument("-np", dest="processes", type=int, default=2)
    options = parser.parse_args()

    labels = evaluation.LabelSet(tuple(evaluation.Organ(name, (i,)) for i, name in enumerate(RADII_MM, start=1)))
    with tempfile.TemporaryDirectory() as temporary:
        folders = Path(temporary, "predictions"), Path(temporary, "labels")
        for folder in folders:
            folder.mkdir()
        for case in range(options.cases):
            for array, folder in zip(draw(np.random.default_rng(case), options.islands), folders, strict=True):
                write(array, folder / f"case_{case:02}.nii.gz")
        memory = PeakMemory()
        memory.start()
        start, steps = time.perf_counter(), {}
        result = evaluation.evaluate_pairs(
            evaluation.find_pairs(*folders),
            labels,
            processes=options.processes,
            progress=lambda what, done, total: steps.update({what: time.perf_counter() - start}),
        )
        seconds = time.perf_counter() - start
        memory.ended.set()
        memory.join()
    size = " x ".join(map(str, SHAPE[::-1]))
    print(f"{options.cases} cases of {size}, {len(RADII_MM)} organs, {options.processes} processes")
    print(
        f"{seconds:.1f} s (files checked after {steps['checking files']:.1f} s), {memory.peak / 2**30:.2f} GiB at most"
    )
    print(result.mean.round(4).to_dict())


if __name__ == "__main__":
    main()
