"""A small copy of nnU-Net's plans, for training on a CPU in minutes.

The same preprocessing, architecture class and strides as nnU-Net planned, but coarser voxels, small patches, and fewer
stages, channels and convolutions. It compares two networks under equal conditions; it does not show what nnU-Net
reaches on this data.

Patches are a part of the image: nnU-Net centres a third of them on an organ drawn at random, and in a part of the image
that organ is a larger share of the voxels, so small organs start to be learned earlier (measured on the phantom).
"""

from __future__ import annotations

import copy
import math
from typing import Any

PLANS_NAME = "nnUNetPlansSmall"
IMAGE_VOXELS = 22 * 44 * 56  # of the median image with the coarser voxels
PATCH_VOXELS = 16 * 32 * 40
FEATURES = (16, 32, 64, 128)
FLAT_STAGES = 2  # stages, from the finest on, whose convolutions do not look beyond the slice
BATCH_SIZE = 2  # with 1, PyTorch takes its slow 3D convolution on a CPU, not oneDNN's: several times the time


def shrink_plans(
    plans: dict[str, Any],
    configuration: str = "3d_fullres",
    name: str = PLANS_NAME,
    features: tuple[int, ...] = FEATURES,
    image_voxels: int = IMAGE_VOXELS,
    patch_voxels: int = PATCH_VOXELS,
) -> dict[str, Any]:
    """A copy of nnU-Net `plans` with `configuration` made small, and no other configuration; the input stays as it is.

    The voxels (mm) grow until the median image has `image_voxels`, the small sides more than the long ones (to the
    geometric mean of what they are and one common length), and never shrink. The patch has the proportions of the
    image and about `patch_voxels`, rounded so that the strides divide it. There are at most `len(features)` stages.
    Dice is taken over the batch, as nnU-Net itself plans it where a patch is a small part of an image.

    Raises:
        ValueError: if the plans have no such configuration or its architecture has no `features_per_stage`.
    """
    if configuration not in plans.get("configurations", {}):
        raise ValueError(
            f"the plans must have the configuration {configuration!r}, got {sorted(plans.get('configurations', {}))}"
        )
    small = copy.deepcopy(plans)
    config = small["configurations"][configuration]
    kwargs = config.get("architecture", {}).get("arch_kwargs", {})
    if "features_per_stage" not in kwargs or "strides" not in kwargs:
        raise ValueError(f"the plans must hold features_per_stage and strides, got {sorted(kwargs)}")

    stages = min(len(features), len(kwargs["features_per_stage"]))
    kwargs["n_stages"] = stages
    kwargs["features_per_stage"] = list(features[:stages])
    for key in ("kernel_sizes", "strides"):
        kwargs[key] = kwargs[key][:stages]
    for key in ("n_conv_per_stage", "n_blocks_per_stage"):
        if key in kwargs:
            kwargs[key] = [1] * stages
    kwargs["n_conv_per_stage_decoder"] = [1] * (stages - 1)

    for stage in range(min(FLAT_STAGES, stages)):
        kwargs["kernel_sizes"][stage] = [1, *kwargs["kernel_sizes"][stage][1:]]

    median = [float(n) for n in config["median_image_size_in_voxels"]]
    axes = len(median)
    lengths = [n * s for n, s in zip(median, config["spacing"], strict=True)]  # mm
    product = math.prod(length / math.sqrt(s) for length, s in zip(lengths, config["spacing"], strict=True))
    common = (product / image_voxels) ** (2 / axes)  # mm; sqrt(spacing * common) gives image_voxels
    config["spacing"] = [max(s, math.sqrt(s * common)) for s in config["spacing"]]
    image = [length / s for length, s in zip(lengths, config["spacing"], strict=True)]
    share = min(1.0, (patch_voxels / math.prod(image)) ** (1 / axes))
    divisors = [math.prod(stride[axis] for stride in kwargs["strides"]) for axis in range(axes)]
    config["patch_size"] = [max(1, round(n * share / d)) * d for n, d in zip(image, divisors, strict=True)]
    config["median_image_size_in_voxels"] = image
    config["batch_dice"] = True
    config["batch_size"] = BATCH_SIZE
    config["data_identifier"] = f"{name}_{configuration}"
    small["plans_name"] = name
    small["configurations"] = {configuration: config}
    return small
