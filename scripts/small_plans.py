"""A small copy of nnU-Net's plans, for training on a CPU in minutes.

The same preprocessing, architecture class and strides as nnU-Net planned, but coarser voxels, so that one patch holds
a whole scan, and fewer stages, channels and convolutions. It compares two networks under equal conditions; it does not
show what nnU-Net reaches on this data.
"""

from __future__ import annotations

import copy
import math
from typing import Any

PLANS_NAME = "nnUNetPlansSmall"
PATCH_VOXELS = 16 * 48 * 48
FEATURES = (16, 32, 64, 128)
BATCH_SIZE = 2  # with 1, PyTorch takes its slow 3D convolution on a CPU, not oneDNN's: several times the time


def shrink_plans(
    plans: dict[str, Any],
    configuration: str = "3d_fullres",
    name: str = PLANS_NAME,
    features: tuple[int, ...] = FEATURES,
    patch_voxels: int = PATCH_VOXELS,
) -> dict[str, Any]:
    """A copy of nnU-Net `plans` with `configuration` made small, and no other configuration; the input stays as it is.

    The patch covers the median image: there are at most `len(features)` stages, and the voxels (mm) grow by about the
    same factor on every axis until the image fits into `patch_voxels`, rounded so that the strides divide it.

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

    median = [float(n) for n in config["median_image_size_in_voxels"]]
    factor = max(1.0, (math.prod(median) / patch_voxels) ** (1 / len(median)))
    divisors = [math.prod(stride[axis] for stride in kwargs["strides"]) for axis in range(len(median))]
    patch = [max(1, round(n / factor / d)) * d for n, d in zip(median, divisors, strict=True)]
    config["spacing"] = [
        max(s, s * n / p) for s, n, p in zip(config["spacing"], median, patch, strict=True)
    ]  # never finer than nnU-Net planned
    config["patch_size"] = patch
    config["median_image_size_in_voxels"] = [
        n * old / new
        for n, old, new in zip(
            median, plans["configurations"][configuration]["spacing"], config["spacing"], strict=True
        )
    ]
    config["batch_size"] = BATCH_SIZE
    config["data_identifier"] = f"{name}_{configuration}"
    small["plans_name"] = name
    small["configurations"] = {configuration: config}
    return small
