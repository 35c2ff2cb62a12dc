"""Which patches a network can be trained with: its strides must divide them, and its deepest map must be normalised.

nnU-Net plans only such patches. In plans that were edited by hand others stand, and torch would then say "Sizes of
tensors must match" or "Expected more than 1 value per channel when training" in the first step of a training. Here that
is said before it begins, with the patch, the axis and what would do.
"""

from collections.abc import Mapping, Sequence
from math import prod
from numbers import Integral
from typing import Any, Literal

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.ops.checks import times

Normalization = Literal["instance", "batch", "other"]


class PatchSizeError(NnunetDtcError):
    """A patch, or a batch of patches, that a network cannot be trained with, and what would do."""


def check_divisible(patch_size: Sequence[int], steps: Sequence[int], network: str = "the planned network") -> None:
    """Refuse a patch that the strides of a network do not divide.

    Args:
        patch_size: voxels per axis, in tensor order.
        steps: the product of all strides, per axis.
        network: for the message.

    Raises:
        PatchSizeError: with the patch, the products and the axes where it fails.
    """
    patch_size, steps = tuple(map(int, patch_size)), tuple(map(int, steps))
    if len(patch_size) != len(steps):
        raise PatchSizeError(f"the patch must have {len(steps)} axes for {network}, got {times(patch_size)}")
    uneven = [
        f"axis {axis}: {size} is not divisible by {step}"
        for axis, (size, step) in enumerate(zip(patch_size, steps, strict=True))
        if size % step
    ]
    if uneven:
        raise PatchSizeError(
            f"the patch must be divisible by the strides of {network}, {times(steps)}, got {times(patch_size)} "
            f"({'; '.join(uneven)})"
        )


def stride_products(strides: Sequence[int | Sequence[int]], axes: int) -> list[int]:
    """How many voxels of the patch one voxel of the deepest map stands for, per axis.

    Args:
        strides: of the stages, each one number or one per axis.
        axes: 2 or 3.
    """
    stages = [[stride] * axes if isinstance(stride, Integral) else stride for stride in strides]
    return [prod(stage[axis] for stage in stages) for axis in range(axes)]


def check_deepest_map(
    network: str,
    patch_size: Sequence[int],
    deepest: Sequence[int],
    normalization: Normalization,
    batch_size: int | None = None,
    remedy: str = "a patch of twice as many voxels along one axis",
) -> None:
    """Refuse a patch that leaves a normalisation with one value per channel, which has no deviation.

    Instance normalisation takes the voxels of one case, in training and in prediction. Batch normalisation takes those
    of all cases of the batch, in training alone.

    Args:
        network: its name, for the message.
        patch_size, deepest: voxels per axis of the patch, and of the deepest map that it leads to.
        normalization: of that map.
        batch_size: cases of a batch in training; None where nothing is trained.
        remedy: which patch would do, for the message.

    Raises:
        PatchSizeError: there is one value per channel.
    """
    if prod(deepest) != 1:
        return
    start = f"{network} with patch_size={tuple(map(int, patch_size))} has one voxel left in its deepest map"
    if normalization == "instance":
        raise PatchSizeError(f"{start}, which cannot be normalised; {remedy} will do")
    if normalization == "batch" and batch_size == 1:
        raise PatchSizeError(
            f"{start}, and with a batch of one case batch normalisation has one value per channel, which it cannot be "
            f"trained with; a batch size of 2 or {remedy} will do"
        )


def check_planned(patch_size: Sequence[int], arguments: Mapping[str, Any], batch_size: int | None = None) -> None:
    """Refuse patches that the U-Net of nnU-Net's plans cannot be built for, or trained with.

    Networks whose plans have no strides are not checked.

    Args:
        patch_size: voxels per axis, as in the plans.
        arguments: ``architecture.arch_kwargs`` of a configuration (``ConfigurationManager.network_arch_init_kwargs``).
        batch_size: cases of a batch in training; None where nothing is trained.

    Raises:
        PatchSizeError: the strides do not divide the patch, or the deepest map cannot be normalised.
    """
    strides = arguments.get("strides")
    if not strides:
        return
    if isinstance(strides, Integral):  # that of every stage
        strides = [strides] * arguments.get("n_stages", 1)
    steps = stride_products(strides, len(patch_size))
    check_divisible(patch_size, steps)
    deepest = [size // step for size, step in zip(patch_size, steps, strict=True)]
    norm = str(arguments.get("norm_op"))
    kind: Normalization = "instance" if "InstanceNorm" in norm else "batch" if "BatchNorm" in norm else "other"
    check_deepest_map("the planned network", patch_size, deepest, kind, batch_size)
