"""The reference backend: torch's ``grid_sample``, on every device and in every dtype, for every variant of table 4.

It is the oracle of the others, and what they fall back to. Positions are computed in voxels and only then normalised to
the [-1, 1] of ``grid_sample``, whose round-off moves a sample by some millionths of a voxel. For a value that does not
matter, but at a voxel's centre, where the interpolation is not differentiable, it would choose the side of the
gradient. The backward pass therefore evaluates the slope a small step away from the centres of voxels, on the side with
the higher index, where all backends take the gradient. The gradient of the value is taken there, too: 4 eps S voxels
away, a hundred-thousandth of a voxel on an axis of 32.

``grid_sample`` and its gradient are given finite positions alone, by
:func:`nnunet_dtc.ops.deformation.shifted_positions`: from others torch computes addresses outside of the map.

On the CPU ``grid_sample`` gives each case of the batch to one core; channels are given to further cores as more cases.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_dtc.ops.deformation import Deformation, regular_positions, shifted_positions
from nnunet_dtc.torch_internals import GRID_SAMPLE_BACKWARD

_BORDER, _LINEAR = 1, 0  # as grid_sample's own operators call them


def forward(
    base: Tensor | None,
    value: Tensor,
    coords: Tensor,
    stride: Sequence[int],
    deformation: Deformation,
) -> Tensor:
    """``base`` plus the samples, from torch's own differentiable functions; arguments as in ``deformable_upsample``."""
    dtype, sizes = _dtype(value, coords), value.shape[2:]
    positions = [axis.position for axis in _axes(value, coords, stride, deformation)]
    split = _channel_groups(value)
    samples = F.grid_sample(
        _split_channels(value.to(dtype), split),
        _shared(_grid(positions, sizes), split),
        mode="bilinear", padding_mode="border", align_corners=False,
    ).reshape(*value.shape[:2], *coords.shape[2:])  # fmt: skip
    result = samples.to(value.dtype) if base is None else base + samples.to(base.dtype)
    return result.contiguous()  # also where the base is not, as all backends


def backward(
    grad: Tensor,
    value: Tensor,
    coords: Tensor,
    stride: Sequence[int],
    deformation: Deformation,
    wants_value: bool,
    wants_coords: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients with respect to value and coords, in their dtypes; None for what is not wanted."""
    dtype, sizes = _dtype(value, coords), value.shape[2:]
    axes = len(sizes)
    small_step = 4 * torch.finfo(dtype).eps
    positions, through = [], []  # where the slope is taken, and the derivatives of the position
    for size, (offset, weight, scale, shift, position) in zip(
        sizes, _axes(value, coords, stride, deformation), strict=True
    ):
        below = position.floor()  # positions outside the map stay outside
        positions.append(below + (position - below).clamp(small_step * size, 1 - small_step * size))
        if wants_coords:
            inside = (position >= 0) & (position < size - 1)
            by_offset = scale * (1 - offset * offset) if deformation.offset == "tanh" else scale
            by_offset = by_offset if weight is None else by_offset * weight
            by_weight = None
            if weight is not None:
                by_weight = scale * offset * (weight * (1 - weight) if deformation.weight == "sigmoid" else 1)
            through.append((inside & ~shift.isnan(), by_offset, by_weight))
    split = _channel_groups(value)
    by_value, by_grid = GRID_SAMPLE_BACKWARD[axes](
        _split_channels(grad.to(dtype), split),
        _split_channels(value.to(dtype), split),
        _shared(_grid(positions, sizes), split),
        _LINEAR, _BORDER, False, [wants_value, wants_coords],
    )  # fmt: skip
    grad_value = by_value.reshape(value.shape).to(value.dtype) if wants_value else None
    if not wants_coords:
        return grad_value, None
    by_grid = by_grid.unflatten(0, (value.shape[0], split)).sum(1) if split > 1 else by_grid  # (N, *output, g)
    grad_coords = torch.empty_like(coords, memory_format=torch.contiguous_format)
    for axis, (has_gradient, by_offset, by_weight) in enumerate(through):
        slope = by_grid[..., axes - 1 - axis]
        to_voxels = 2 / sizes[axis]  # the slope is per normalised unit
        # selected, not multiplied by zero: the factors may be NaN or infinite where there is no gradient
        grad_coords[:, axis] = torch.where(has_gradient, slope * (to_voxels * by_offset), 0)
        if by_weight is not None:
            grad_coords[:, axes + axis] = torch.where(has_gradient, slope * (to_voxels * by_weight), 0)
    return grad_value, grad_coords


def _dtype(value: Tensor, coords: Tensor) -> torch.dtype:
    """The dtype of the arithmetic, at least float32."""
    return torch.promote_types(torch.promote_types(value.dtype, coords.dtype), torch.float32)


class _Axis(NamedTuple):
    """Equation 1 along one axis: Offset, Weight, and in voxels lambda, the shift, and the position without NaN."""

    offset: Tensor
    weight: Tensor | None
    scale: float
    shift: Tensor
    position: Tensor


def _axes(value: Tensor, coords: Tensor, stride: Sequence[int], deformation: Deformation) -> Iterator[_Axis]:
    dtype, sizes = _dtype(value, coords), value.shape[2:]
    for axis, (size, step) in enumerate(zip(sizes, stride, strict=True)):
        offset, weight = deformation.activations(coords, len(sizes), axis, dtype)
        scale = deformation.scale(size)
        regular = regular_positions(size, step, dtype, coords.device)
        regular = regular.view([-1 if other == axis else 1 for other in range(len(sizes))])
        shift = scale * (offset if weight is None else offset * weight)
        yield _Axis(offset, weight, scale, shift, shifted_positions(regular, shift, size))


def _grid(positions: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """The grid of ``grid_sample``, (N, *output, g): normalised positions, last axis first, (x, y, z) = (W, H, D)."""
    normalised = [(2 * position + 1) / size - 1 for position, size in zip(positions, sizes, strict=True)]
    return torch.stack(normalised[::-1], dim=-1)


def _channel_groups(value: Tensor) -> int:
    """The number of parts into which the channels are split, so that every core has a part."""
    if value.device.type != "cpu" or value.shape[0] == 0 or torch.jit.is_tracing():
        return 1
    wanted = min(value.shape[1], -(-torch.get_num_threads() // value.shape[0]))
    return next((groups for groups in range(max(wanted, 1), 0, -1) if value.shape[1] % groups == 0), 1)


def _split_channels(features: Tensor, groups: int) -> Tensor:
    """Reshape (N, C, *S) to (N * groups, C / groups, *S)."""
    if groups == 1:
        return features
    return features.reshape(features.shape[0] * groups, features.shape[1] // groups, *features.shape[2:])


def _shared(grid: Tensor, groups: int) -> Tensor:
    """Expand (N, *output, g) to (N * groups, *output, g), without copies of the numbers where N is 1."""
    if groups == 1:
        return grid
    return grid.unsqueeze(1).expand(-1, groups, *grid.shape[1:]).flatten(0, 1)
