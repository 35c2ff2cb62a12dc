"""Synthetic abdominal CTs with the 13 organs of BTCV, for demonstrations and tests without a download or licence.

Every case is drawn anew: size and shape of the body, fat, position and rotation in the scanner, scan range, voxel size,
contrast phase, and for every organ its position, size, pose, shape and density. Organs are ellipsoids and tubes in a
standard body (`phantom_anatomy`), bent by smooth random fields. They compete for space, so that neighbours touch as
organs do. Slices are more than twice as thick as pixels are wide, as in many clinical scans, for which nnU-Net plans a
stride of (1, 2, 2). The densities (`phantom_densities`) are those of a portal venous scan, in which most organs look
alike: neither the position nor the density of a voxel is enough to identify its organ.

Axes are x to the patient's left, y to the back and z to the head, which is SimpleITK's LPS with an identity direction
matrix. Arrays are (z, y, x).

The labels and their numbers are those of BTCV (Synapse syn3193805, "Beyond the Cranial Vault"). The anatomy is our own
rough sketch, so that results on these images say nothing about patients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    make_image_folders,
    new_raw_dataset,
    write_dataset_json,
)
from nnunet_dtc.study.datasets.phantom_anatomy import body_distances, organ_distances
from nnunet_dtc.study.datasets.phantom_densities import draw_image
from nnunet_dtc.study.datasets.phantom_shapes import FAR_MM, Points, mm, rotation_matrix, smooth_field
from nnunet_dtc.study.label_files import ImageFileError, check_complete, last_line

__all__ = ["LABELS", "NAME", "PhantomCase", "draw_case", "write_phantom"]

NAME = "Phantom"

MIN_VOXELS = 12
"""A case with fewer voxels of an organ is drawn again."""

HEIGHT, WIDTH = 88, 112  # pixels; a lying patient is wider than thick

# Millimetres by which a structure moves its border with another one where the two overlap.
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
    """A case of the phantom.

    Attributes:
        image: int16 HU, (z, y, x).
        labels: uint8 0..13, (z, y, x).
        spacing_mm: voxel size along x, y, z.
        origin_mm: position of the first voxel along x, y, z.
    """

    image: np.ndarray
    labels: np.ndarray
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]


def draw_case(rng: np.random.Generator) -> PhantomCase:
    """Draw a case with at least `MIN_VOXELS` voxels of each of the 13 organs; all randomness comes from `rng`."""
    while True:
        case = _draw_once(rng)
        if np.bincount(case.labels.ravel(), minlength=len(LABELS)).min() >= MIN_VOXELS:
            return case


def _draw_once(rng: np.random.Generator) -> PhantomCase:
    pixel = rng.uniform(3.15, 3.5)
    slice_mm = rng.uniform(7.1, 7.7)
    slices = int(np.round(rng.uniform(246, 262) / slice_mm))
    shape, spacing_zyx = (slices, HEIGHT, WIDTH), (slice_mm, pixel, pixel)
    z, y, x = (((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(shape, spacing_zyx, strict=True))
    world = np.stack(np.broadcast_arrays(x[None, None, :], y[None, :, None], z[:, None, None])).astype(np.float32)

    fat_mm = rng.uniform(7, 26)
    p = _in_standard_body(rng, world, pixel, fat_mm)
    body = body_distances(rng, Points(p), fat_mm)
    # soft organs are bent more than the trunk: slowly as a whole, and finely at their surfaces
    bend = np.stack([smooth_field(rng, shape, spacing_zyx, 75) for _ in range(3)])
    fine = np.stack([smooth_field(rng, shape, spacing_zyx, 26) for _ in range(3)])
    organs = _inside_body(organ_distances(rng, Points(p + 7.0 * bend + 1.6 * fine)), body)
    territory = _territories(organs)
    labels = np.zeros(shape, np.uint8)
    for name in ORGANS:
        territory[name][_fragments(territory[name] < 0)] = FAR_MM
        labels[territory[name] < 0] = LABELS[name]

    image = draw_image(rng, shape, spacing_zyx, body, organs, territory)
    origin = rng.normal(0, (8, 8, 200)) - (x.max(), y.max() + 150, z.max())
    return PhantomCase(
        image,
        labels,
        tuple(round(float(v), 4) for v in (pixel, pixel, slice_mm)),
        tuple(round(float(v), 3) for v in origin),
    )


def _in_standard_body(rng: np.random.Generator, world: np.ndarray, pixel: float, fat_mm: float) -> np.ndarray:
    """Points of the scanner (3, z, y, x) in the standard body, for a patient of random size and position."""
    stature = rng.normal(0, 0.05)
    stretch = np.exp(stature + rng.normal(0, (0.045, 0.06, 0.04)))
    half_width = pixel * WIDTH / 2 - 6
    stretch[0] = min(stretch[0], half_width / (146 + fat_mm))
    stretch[1] = min(stretch[1], (half_width - pixel * (WIDTH - HEIGHT) / 2) / (99 + fat_mm))
    shift = np.clip(rng.normal(0, (6, 8, 17)), -26, 26) + mm(0, 0, -6)  # the scan range varies most
    roll = rotation_matrix((rng.normal(0, 2.5), rng.normal(0, 2.5), rng.normal(0, 4.5)))
    centered = world - np.reshape(shift, (3, 1, 1, 1)).astype(np.float32)
    return np.tensordot((roll / stretch[:, None]).astype(np.float32), centered, 1)


def _inside_body(organs: Mapping[str, np.ndarray], body: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Organs inside the cavity, below the lungs and off the bones; three of them pass through the diaphragm."""
    inside = np.maximum(body["cavity"] + 3, -body["diaphragm"] + 1.5)
    solid = np.minimum(np.minimum(body["vertebra"], body["psoas"] + 2), np.minimum(body["back"], body["process"]))
    limited = {}
    for name, distance in organs.items():
        limit = body["cavity"] + 3 if name in ("aorta", "esophagus", "inferior_vena_cava") else inside
        limited[name] = np.maximum(np.maximum(distance, limit), 1.5 - solid)
    return limited


def _territories(organs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Organs without overlap: the border is halfway between the surfaces of two structures, moved by `PUSH`."""
    names = [*ORGANS, "bowel", "colon"]
    depth = np.stack([organs[name] for name in names])
    depth = np.where(depth < -8, -8 + 0.02 * (depth + 8), depth)  # thin structures keep their place inside large ones
    pushed = depth - np.array([PUSH.get(name, 0.0) for name in names], np.float32)[:, None, None, None]
    first = pushed.argmin(0)
    two = np.partition(pushed, 1, axis=0)[:2]
    territory = {}
    for i, name in enumerate(names):
        rival = np.where(first == i, two[1], two[0])
        territory[name] = np.maximum(organs[name], (pushed[i] - rival) / 2)
    return territory


def _fragments(mask: np.ndarray) -> np.ndarray:
    """bool (z, y, x): pieces of an organ below a tenth of its largest piece, and one voxel around them."""
    pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if count < 2:
        return np.zeros_like(mask)
    sizes = np.bincount(pieces.ravel())[1:]
    fragments = np.isin(pieces, 1 + np.flatnonzero(sizes < 0.1 * sizes.max()))
    return ndimage.binary_dilation(fragments, np.ones((3, 3, 3)))


def write_phantom(
    folder_raw: Path,
    dataset_id: int = 917,
    cases: int = 12,
    test_cases: int = 4,
    seed: int = 917,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a data set of synthetic abdominal CTs in nnU-Net's raw layout.

    The same arguments give the same bytes with the same versions of numpy, scipy and SimpleITK on the same kind of
    processor. A case does not depend on the number of cases.

    Args:
        folder_raw: nnU-Net's `nnUNet_raw`; it is created if it does not exist.
        dataset_id: number of the data set, 1 to 999.
        cases: number of training cases (`imagesTr`, `labelsTr`), at least 5 for nnU-Net's five folds.
        test_cases: number of held-out cases (`imagesTs`, `labelsTs`), at least 1.
        seed: a non-negative integer.
        progress: called after every case with the number of finished cases and of all cases.

    Returns:
        The new folder, `folder_raw / Dataset<ID>_Phantom`. Images are int16 HU, labels uint8 0..13 (`LABELS`), both
        .nii.gz, 32 to 37 slices of about 7.4 mm with 88 x 112 pixels (y, x) of about 3.3 mm.

    Raises:
        NnunetDtcError: an argument is outside these limits; nothing was written.
        FileExistsError: `folder_raw` has a data set with this number; nothing was written.
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
        make_image_folders(folder)
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
        check_complete(file)  # ITK does not always raise an error if the disk is full
    except RuntimeError as error:
        raise WriteError(file, OSError(last_line(error))) from error
    except ImageFileError as error:
        raise WriteError(file, OSError(f"{error} (is the disk full?)")) from error
