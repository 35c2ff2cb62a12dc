"""The deformable branch of DTC: where to sample the low-resolution features, and the samples.

Sun et al., arXiv:2601.17939, section 3.1, equations 1 and 2, and section 3.2 (receptive field). Table 4's
variants are the two keyword arguments. Decisions that the paper leaves open (ours):

- ``lambda`` of equation 1 is ``(RF / 2) / S_a`` on every axis, which reads sections 3.2, 4, 5 and table 5
  together: the paper's lambdas 0.5, 1, 2 and 5 are its receptive fields 1, 2, 4 and 10. One unit of the
  normalised range [-1, 1] is half the map, so the longest shift is ``RF / 4`` voxels on every axis.
- ``RF = inf`` is ``lambda = 1`` (the paper's "unrestricted"): a shift of up to half the map.
- ``RF = 0`` is no shift: plain linear upsampling of the value, the control with the same parameters.
- ``align_corners=False`` and ``padding_mode="border"``.
- An axis with stride 1 is not upsampled, but still deforms.
- Positions are float32 at least, whatever the dtype of the features: in half precision they would be off
  by up to a tenth of a voxel.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Offset = Literal["tanh", "linear"]
Weight = Literal["sigmoid", "linear", "none"]

OFFSETS: tuple[str, ...] = ("tanh", "linear")
WEIGHTS: tuple[str, ...] = ("sigmoid", "linear", "none")


def deformable_upsample(
    value: Tensor,
    coords: Tensor,
    stride: int | Sequence[int],
    receptive_field: float = 2.0,
    *,
    offset: Offset = "tanh",
    weight: Weight = "sigmoid",
) -> Tensor:
    """Sample ``value`` at learned positions, ``stride`` times as densely as it is given.

    With ``g`` spatial axes, in tensor order (D, H, W), the position of output element ``o`` on axis ``a`` is::

        shift_a    = (RF / 4) * tanh(coords[a]) * sigmoid(coords[g + a])         voxels of the input map
        position_a = (o_a + 1/2) / stride_a - 1/2 + shift_a                      clamped to [0, S_a - 1]

    and the result is the linear interpolation of ``value`` there. With ``coords`` of zeros, or a receptive
    field of 0, that is ``F.interpolate(value, mode="bilinear" or "trilinear", align_corners=False)``.

    Args:
        value (Tensor[N, C, S_1, .., S_g]): features at low resolution, g = 2 or 3, any floating dtype.
        coords (Tensor[N, 2 * g, S_1 * stride_1, .., S_g * stride_g]): raw (before the activations) offsets in
            channels 0 to g - 1 and weights in channels g to 2 g - 1; with ``weight="none"`` the g offsets alone.
        stride: voxels of the output per voxel of the input, one number or one per axis, each >= 1.
        receptive_field: RF of section 3.2, in voxels of the input map, from 0 to ``float("inf")``. No shift is
            longer than RF / 4 voxels (for infinity: S_a / 2), unless ``offset`` or ``weight`` is "linear".
        offset: "tanh" as in equation 1, or "linear" for table 4's rows without tanh: a shift without bound.
        weight: "sigmoid" as in equation 1, "linear" for table 4's rows without sigmoid (a shift without
            bound), "none" for its rows without weight.

    Returns:
        Tensor[N, C, S_1 * stride_1, .., S_g * stride_g]: the samples, in the dtype of ``value``.

    Raises:
        TypeError: ``value`` or ``coords`` is not a floating tensor.
        ValueError: a size, the stride, the receptive field or a variant is not as described.

    Note:
        On CUDA the gradient with respect to ``value`` sums with atomic additions (torch's ``grid_sample``),
        so it is not bit-identical from run to run.
    """
    stride, receptive_field = check_stride(stride, value.ndim - 2), check_receptive_field(receptive_field)
    check_variant(offset, weight)
    _check_tensors(value, coords, stride, weight)

    sizes = value.shape[2:]
    axes = len(sizes)
    dtype = torch.promote_types(torch.promote_types(value.dtype, coords.dtype), torch.float32)

    grid = []  # one normalised coordinate per axis, each (N, *output)
    for axis, (size, step) in enumerate(zip(sizes, stride, strict=True)):
        shift = _unit_shift(*axis_activations(coords, axes, axis, dtype, offset=offset, weight=weight))
        start = _regular_positions(size * step, coords.device, dtype)
        shape = [1] * (axes + 1)
        shape[axis + 1] = size * step
        grid.append(normalised_lambda(receptive_field, size) * shift + start.view(shape))
    # grid_sample wants the last axis first: (N, *output, g), (x, y, z) = (W, H, D)
    samples = F.grid_sample(
        value.to(dtype), torch.stack(grid[::-1], dim=-1), mode="bilinear", padding_mode="border", align_corners=False
    )
    return samples.to(value.dtype)


def sampling_shifts(
    coords: Tensor,
    sizes: Sequence[int],
    receptive_field: float = 2.0,
    *,
    offset: Offset = "tanh",
    weight: Weight = "sigmoid",
) -> Tensor:
    """How far :func:`deformable_upsample` shifts its samples: lambda * Offset * Weight of equation 1, in voxels.

    The shifts are those before the positions are clamped to the map.

    Args:
        coords (Tensor[N, 2 * g, ..]): as there, for any number of positions in any shape.
        sizes: (S_1, .., S_g), voxels of the input map per axis.
        receptive_field, offset, weight: as there.

    Returns:
        Tensor[N, g, ..]: the shift along each axis in voxels of the input map, float32 at least.

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


def normalised_lambda(receptive_field: float, size: int) -> float:
    """``lambda`` of equation 1 for an axis of ``size`` voxels. One normalised unit is size / 2 voxels."""
    return 1.0 if math.isinf(receptive_field) else receptive_field / (2 * size)


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


def check_receptive_field(receptive_field: float) -> float:
    """The receptive field as a float; ValueError where it is negative or not a number."""
    try:
        number = float(receptive_field)
    except (TypeError, ValueError):
        raise ValueError(f"receptive_field must be a number >= 0 or infinity, got {receptive_field!r}") from None
    if math.isnan(number) or number < 0:
        raise ValueError(f"receptive_field must be a number >= 0 or infinity, got {receptive_field!r}")
    return number


def check_variant(offset: str, weight: str) -> None:
    """ValueError where the variant is none of table 4's."""
    if offset not in OFFSETS:
        raise ValueError(f"offset must be one of {OFFSETS}, got {offset=}")
    if weight not in WEIGHTS:
        raise ValueError(f"weight must be one of {WEIGHTS}, got {weight=}")


def _check_tensors(value: Tensor, coords: Tensor, stride: tuple[int, ...], weight: Weight) -> None:
    if not value.is_floating_point() or not coords.is_floating_point():
        raise TypeError(f"value and coords must be floating tensors, got {value.dtype=} and {coords.dtype=}")
    axes = value.ndim - 2
    if axes not in (2, 3):
        raise ValueError(f"value must be (N, C, H, W) or (N, C, D, H, W), got {tuple(value.shape)=}")
    if any(size < 1 for size in value.shape[2:]):
        raise ValueError(f"value must have at least one voxel on every axis, got {tuple(value.shape)=}")
    expected = (
        value.shape[0],
        coords_channels(axes, weight),
        *(size * step for size, step in zip(value.shape[2:], stride, strict=True)),
    )
    if tuple(coords.shape) != expected:
        raise ValueError(
            f"coords must be (N, {'g' if weight == 'none' else '2 * g'}, *(size * stride)) = {expected} "
            f"for value of {tuple(value.shape)} and {stride=}, got {tuple(coords.shape)}"
        )
    if value.device != coords.device:
        raise ValueError(f"value and coords must be on one device, got {value.device=} and {coords.device=}")


def _regular_positions(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Centres of ``count`` elements along an axis, normalised to [-1, 1]: P_grid of equation 1."""
    return (2 * torch.arange(count, device=device, dtype=dtype) + 1) / count - 1  # (count,)


def _unit_shift(moved: Tensor, gate: Tensor | None) -> Tensor:
    return moved if gate is None else moved * gate
