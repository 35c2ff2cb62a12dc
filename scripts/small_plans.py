"""A small copy of nnU-Net's plans, for training on a CPU in minutes.

It has the preprocessing, architecture class and strides of nnU-Net's plans, but coarser voxels, small patches, and
fewer stages, channels and convolutions. With it two networks can be compared under equal conditions, but the results
are not those that nnU-Net achieves on the data.

Patches are smaller than the image. nnU-Net centres a third of them on a random organ, which is a larger fraction of the
voxels in a small patch, so that small organs are learned earlier (measured on the phantom).
"""

from __future__ import annotations

import copy
import math
from typing import Any

PLANS_NAME = "nnUNetPlansSmall"
IMAGE_VOXELS = 22 * 44 * 56  # of the median image with coarser voxels
PATCH_VOXELS = 16 * 32 * 40
FEATURES = (16, 32, 64, 128)
FLAT_STAGES = 2  # number of the finest stages whose convolutions are within the slice
BATCH_SIZE = 2  # with 1, PyTorch's 3D convolution on a CPU does not use oneDNN and is several times slower


def shrink_plans(
    plans: dict[str, Any],
    configuration: str = "3d_fullres",
    name: str = PLANS_NAME,
    features: tuple[int, ...] = FEATURES,
    image_voxels: int = IMAGE_VOXELS,
    patch_voxels: int = PATCH_VOXELS,
) -> dict[str, Any]:
    """A copy of nnU-Net's plans with one configuration, which is made small.

    Dice is computed over the batch, as in nnU-Net's plans for patches that are a small part of the image.

    Args:
        plans: nnU-Net's plans, which are not modified.
        configuration: name of the configuration.
        name: name of the new plans.
        features: channels of each stage; the network has at most this number of stages.
        image_voxels: voxels of the median image. The spacing becomes the geometric mean of its values and of a common
            length, so that short sides grow more than long ones; no side shrinks.
        patch_voxels: approximate number of voxels of a patch, which has the proportions of the image and is divisible
            by the strides.

    Raises:
        ValueError: the plans have no such configuration, or its architecture has no `features_per_stage`.
    """
    if configuration not in plans.get("configurations", {}):
        raise ValueError(
            f"the plans must have the configuration {configuration!r}, got {sorted(plans.get('configurations', {}))}"
        )
    small = copy.deepcopy(plans)
    config = small["configurations"][configuration]
    kwargs = config.get("architecture", {}).get("arch_kwargs", {})
    if "features_per_stage" not in kwargs or "strides" not in kwargs:
        raise ValueError(f"the plans must have features_per_stage and strides, got {sorted(kwargs)}")
    _shrink_network(kwargs, features)
    _shrink_sizes(config, kwargs["strides"], image_voxels, patch_voxels)
    config["batch_dice"] = True
    config["batch_size"] = BATCH_SIZE
    config["data_identifier"] = f"{name}_{configuration}"
    small["plans_name"] = name
    small["configurations"] = {configuration: config}
    return small


def _shrink_network(kwargs: dict[str, Any], features: tuple[int, ...]) -> None:
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


def _shrink_sizes(config: dict[str, Any], strides: list[list[int]], image_voxels: int, patch_voxels: int) -> None:
    """Set spacing, patch size and median image size."""
    median = [float(n) for n in config["median_image_size_in_voxels"]]
    axes = len(median)
    lengths = [n * s for n, s in zip(median, config["spacing"], strict=True)]  # mm
    product = math.prod(length / math.sqrt(s) for length, s in zip(lengths, config["spacing"], strict=True))
    common = (product / image_voxels) ** (2 / axes)  # mm; a spacing of sqrt(spacing * common) gives image_voxels
    config["spacing"] = [max(s, math.sqrt(s * common)) for s in config["spacing"]]
    image = [length / s for length, s in zip(lengths, config["spacing"], strict=True)]
    fraction = min(1.0, (patch_voxels / math.prod(image)) ** (1 / axes))
    divisors = [math.prod(stride[axis] for stride in strides) for axis in range(axes)]
    config["patch_size"] = [max(1, round(n * fraction / d)) * d for n, d in zip(image, divisors, strict=True)]
    config["median_image_size_in_voxels"] = image
