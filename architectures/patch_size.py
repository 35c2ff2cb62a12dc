"""Check that a network can be trained with a patch size.

The strides must divide the patch, and a normalisation must have more than one value per channel. nnU-Net plans only
such patches, but plans can be edited. torch would then raise "Sizes of tensors must match" or "Expected more than 1
value per channel when training" in the first training step. These functions raise an error before the training, with
the patch size, the axis and a remedy.
"""

from collections.abc import Mapping, Sequence
from math import prod
from numbers import Integral
from typing import Any, Literal

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.ops.checks import times

Normalization = Literal["instance", "batch", "other"]


class PatchSizeError(NnunetDtcError):
    """A patch size or batch size that a network cannot be trained with; the message gives a remedy."""


def check_divisible(patch_size: Sequence[int], steps: Sequence[int], network: str = "the planned network") -> None:
    """Refuse a patch size that the strides of a network do not divide.

    Args:
        patch_size: voxels per axis, in tensor order.
        steps: the product of all strides per axis.
        network: name of the network, for the message.

    Raises:
        PatchSizeError: the strides do not divide the patch size, or it has another number of axes.

    Example:
        >>> check_divisible((28, 112, 96), (4, 16, 16))
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
    """The product of all strides per axis.

    Args:
        strides: stride of each stage, one number or one per axis.
        axes: number of axes.

    Example:
        >>> stride_products([1, (1, 2, 2), 2], 3)
        [2, 4, 4]
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
    """Refuse a patch size that leaves a normalisation with one value per channel, which has no variance.

    Instance normalisation uses the voxels of one case, in training and in prediction. Batch normalisation uses those of
    all cases of the batch, in training only.

    Args:
        network: name of the network, for the message.
        patch_size: voxels per axis of the patch.
        deepest: voxels per axis of the deepest map.
        normalization: normalisation of the deepest map.
        batch_size: cases of a batch in training; None without training.
        remedy: a patch that can be used, for the message.

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
    """Refuse a patch size that the U-Net of nnU-Net's plans cannot be built for or trained with.

    Networks whose plans have no strides are not checked.

    Args:
        patch_size: voxels per axis, as in the plans.
        arguments: ``architecture.arch_kwargs`` of a configuration (``ConfigurationManager.network_arch_init_kwargs``).
        batch_size: cases of a batch in training; None without training.

    Raises:
        PatchSizeError: the strides do not divide the patch size, or the deepest map cannot be normalised.
    """
    strides = arguments.get("strides")
    if not strides:
        return
    if isinstance(strides, Integral):  # the same for every stage
        strides = [strides] * arguments.get("n_stages", 1)
    steps = stride_products(strides, len(patch_size))
    check_divisible(patch_size, steps)
    deepest = [size // step for size, step in zip(patch_size, steps, strict=True)]
    norm = str(arguments.get("norm_op"))
    kind: Normalization = "instance" if "InstanceNorm" in norm else "batch" if "BatchNorm" in norm else "other"
    check_deepest_map("the planned network", patch_size, deepest, kind, batch_size)
