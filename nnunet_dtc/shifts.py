"""Where DTC samples: the shifts and positions of Sun et al., arXiv:2601.17939, equation 1, in voxels, and their rules.

Section 3.1 (equation 1), section 3.2 (receptive field) and table 4 (the variants). Decisions that the paper leaves
open (ours):

- ``lambda`` of equation 1 is ``(RF / 2) / S_a`` on every axis, which reads sections 3.2, 4, 5 and table 5
  together: the paper's lambdas 0.5, 1, 2 and 5 are its receptive fields 1, 2, 4 and 10. One unit of the
  normalised range [-1, 1] is half the map, so the longest shift is ``RF / 4`` voxels on every axis.
- ``RF = inf`` is ``lambda = 1`` (the paper's "unrestricted"): a shift of up to half the map.
- ``RF = 0`` is no shift: plain linear upsampling of the value, the control with the same parameters.
- An axis with stride 1 is not upsampled, but still deforms.
- Positions are float32 at least, whatever the dtype of the features: in half precision they would be off
  by up to a tenth of a voxel.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Offset = Literal["tanh", "linear"]
Weight = Literal["sigmoid", "linear", "none"]

OFFSETS: tuple[str, ...] = ("tanh", "linear")
WEIGHTS: tuple[str, ...] = ("sigmoid", "linear", "none")


def sampling_shifts(
    coords: Tensor,
    sizes: Sequence[int],
    receptive_field: float = 2.0,
    *,
    offset: Offset = "tanh",
    weight: Weight = "sigmoid",
) -> Tensor:
    """lambda * Offset * Weight of equation 1 in voxels: how far :func:`nnunet_dtc.deformable_upsample` shifts samples.

    The shifts are those before the positions are clamped to the map.

    Args:
        coords (Tensor[N, 2 * g, ..]): as there, for any number of positions in any shape.
        sizes: (S_1, .., S_g), voxels of the input map per axis.
        receptive_field, offset, weight: as there.

    Returns:
        Tensor[N, g, ..]: the shift along each axis in voxels of the input map, float32 at least. It is NaN where a
        coordinate is; such a sample is not shifted.

    Raises:
        TypeError: ``coords`` is not a floating tensor.
        ValueError: the channels do not fit the sizes, or an argument is out of range.
    """
    receptive_field, axes = check_receptive_field(receptive_field), len(sizes)
    check_variant(offset, weight)
    if not coords.is_floating_point():
        raise TypeError(f"coords must be a floating tensor, got {coords.dtype=}")
    channels = coords_channels(axes, weight)
    if coords.ndim < 2 or coords.shape[1] != channels:
        raise ValueError(f"coords must be (N, {channels}, ..) for {axes} axes and {weight=}, got {tuple(coords.shape)}")
    dtype = torch.promote_types(coords.dtype, torch.float32)
    shifts = [
        shift_scale(receptive_field, size)
        * _unit_shift(*axis_activations(coords, axes, axis, dtype, offset=offset, weight=weight))
        for axis, size in enumerate(sizes)
    ]
    return torch.stack(shifts, dim=1)  # (N, g, ..)


def axis_activations(
    coords: Tensor, axes: int, axis: int, dtype: torch.dtype, *, offset: Offset, weight: Weight
) -> tuple[Tensor, Tensor | None]:
    """Offset and Weight of equation 1 for one axis of ``axes``, after their activations; None without weight.

    ``coords`` is (N, channels, ..) as in :func:`sampling_shifts`, the results are (N, ..) in ``dtype``.
    """
    moved = coords[:, axis].to(dtype)
    moved = torch.tanh(moved) if offset == "tanh" else moved
    if weight == "none":
        return moved, None
    gate = coords[:, axes + axis].to(dtype)
    return moved, torch.sigmoid(gate) if weight == "sigmoid" else gate


def shift_scale(receptive_field: float, size: int) -> float:
    """``lambda`` of equation 1 in voxels of an axis of ``size``: RF / 4, for infinity size / 2.

    It is the bound of a shift where there is one, with tanh and with a weight that is none or has its sigmoid.
    """
    return size / 2 if math.isinf(receptive_field) else receptive_field / 4


def is_bounded(offset: Offset, weight: Weight) -> bool:
    """Whether no shift is longer than :func:`shift_scale`: with tanh, and a weight that is none or has its sigmoid."""
    return offset == "tanh" and weight != "linear"


def regular_positions(size: int, step: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """P_grid of equation 1 along an axis: ``(o + 1/2) / step - 1/2``, in voxels of the input map.

    Returns:
        Tensor[size * step]: exact on the centres of voxels, where ``step`` is 1, so that a shift of zero stays there.
    """
    return (torch.arange(size * step, dtype=dtype, device=device) + 0.5) / step - 0.5


def shifted_positions(regular: Tensor, shift: Tensor, size: int) -> Tensor:
    """P_new of equation 1 along one axis, as ``grid_sample`` can be given it: finite, and at most a voxel off the map.

    torch's ``grid_sample`` computes addresses from positions that are not finite, and its backward pass then reads and
    writes memory outside of the map. Ours: a shift of NaN is a shift of zero, so that no sample leaves the
    neighbourhood that the bound of the shifts promises to the backends. Positions outside of the map are kept outside,
    where ``padding_mode="border"`` samples the voxel at that end, and where the gradient is zero.

    Args:
        regular (Tensor): P_grid along the axis, in voxels, from :func:`regular_positions`; broadcast to ``shift``.
        shift (Tensor[..]): in voxels, any floating dtype.
        size: of the map along the axis, in voxels.

    Returns:
        Tensor[..]: in [-1, size].
    """
    return (regular + torch.where(shift.isnan(), 0, shift)).clamp(-1, size)


def coords_channels(axes: int, weight: Weight) -> int:
    """Channels of the coordinate head: 2 per axis (section 3.1: 4 in 2D, 6 in 3D), 1 per axis without weight."""
    return axes if weight == "none" else 2 * axes


def check_stride(stride: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """The stride as a tuple, one per axis; ValueError where it is not, or a stride is not an integer >= 1."""
    steps = tuple(stride) if hasattr(stride, "__iter__") else (stride,) * axes
    if len(steps) != axes:
        raise ValueError(f"stride must have one entry per spatial axis ({axes}), got {stride=}")
    if not all(hasattr(step, "__index__") for step in steps):
        raise ValueError(f"stride must be integers, got {stride=}")
    steps = tuple(int(step) for step in steps)
    if any(step < 1 for step in steps):
        raise ValueError(f"stride must be positive on every axis, got {stride=}")
    return steps


def check_count(name: str, count: int) -> int:
    """The count; ValueError where it is not a positive integer."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"{name} must be a positive integer, got {name}={count!r}")
    return count


def check_receptive_field(receptive_field: float) -> float:
    """The receptive field as a float; ValueError where it is negative or not a number."""
    try:
        number = float(receptive_field)
    except (TypeError, ValueError):
        raise ValueError(f"receptive_field must be a number >= 0 or infinity, got {receptive_field!r}") from None
    if not number >= 0:  # also where it is not a number
        raise ValueError(f"receptive_field must be a number >= 0 or infinity, got {receptive_field!r}")
    return number


def check_variant(offset: str, weight: str) -> None:
    """ValueError where the variant is none of table 4's."""
    if offset not in OFFSETS:
        raise ValueError(f"offset must be one of {OFFSETS}, got {offset=}")
    if weight not in WEIGHTS:
        raise ValueError(f"weight must be one of {WEIGHTS}, got {weight=}")


def _unit_shift(moved: Tensor, gate: Tensor | None) -> Tensor:
    return moved if gate is None else moved * gate
