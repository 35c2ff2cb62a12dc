"""The positions of DTC's samples: shifts and positions of Sun et al., arXiv:2601.17939, equation 1, in voxels.

Section 3.1 (equation 1), section 3.2 (receptive field) and table 4 (the variants). Decisions that the paper leaves
open (ours):

- ``lambda`` of equation 1 is ``(RF / 2) / S_a`` on every axis. This is consistent with sections 3.2, 4 and 5 and with
  table 5: the paper's lambdas 0.5, 1, 2 and 5 are its receptive fields 1, 2, 4 and 10. One unit of the normalised range
  [-1, 1] is half the map, so the longest shift is ``RF / 4`` voxels on every axis.
- ``RF = inf`` is ``lambda = 1`` (the paper's "unrestricted"), a shift of up to half the map.
- ``RF = 0`` means no shift: linear upsampling of the value, a control with the same parameters.
- An axis with stride 1 is not upsampled, but its samples are shifted.
- Positions are at least float32, whatever the dtype of the features: in half precision they would be off by up to a
  tenth of a voxel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Offset = Literal["tanh", "linear"]
Weight = Literal["sigmoid", "linear", "none"]

OFFSETS: tuple[str, ...] = get_args(Offset)
WEIGHTS: tuple[str, ...] = get_args(Weight)


@dataclass(frozen=True)
class Deformation:
    """The map from raw coordinates to shifts, lambda * Offset * Weight of equation 1.

    Attributes:
        receptive_field: RF of section 3.2 in voxels of the input map, 0 to ``float("inf")``.
        offset: "tanh" as in equation 1, or "linear" for table 4's rows without tanh.
        weight: "sigmoid" as in equation 1, "linear" for table 4's rows without sigmoid, "none" for its rows without
            weight.

    Raises:
        ValueError: an attribute has another value.

    Example:
        >>> deformation = Deformation(receptive_field=10, weight="none")
        >>> deformation.scale(size=64), deformation.is_bounded, deformation.channels(axes=3)
        (2.5, True, 3)
    """

    receptive_field: float = 2.0
    offset: Offset = "tanh"
    weight: Weight = "sigmoid"

    def __post_init__(self) -> None:
        rule = f"receptive_field must be a number >= 0 or infinity, got {self.receptive_field!r}"
        try:
            receptive_field = float(self.receptive_field)
        except (TypeError, ValueError):
            raise ValueError(rule) from None
        if not receptive_field >= 0:  # NaN is not >= 0 either
            raise ValueError(rule)
        object.__setattr__(self, "receptive_field", receptive_field)
        if self.offset not in OFFSETS:
            raise ValueError(f"offset must be one of {OFFSETS}, got offset={self.offset!r}")
        if self.weight not in WEIGHTS:
            raise ValueError(f"weight must be one of {WEIGHTS}, got weight={self.weight!r}")

    @property
    def is_bounded(self) -> bool:
        """Whether no shift is longer than :meth:`scale`: true with tanh and either a sigmoid or no weight."""
        return self.offset == "tanh" and self.weight != "linear"

    def channels(self, axes: int) -> int:
        """The number of channels of the coordinates: 2 per axis (section 3.1), or 1 per axis without weight."""
        return axes if self.weight == "none" else 2 * axes

    def scale(self, size: int) -> float:
        """``lambda`` of equation 1 in voxels, for an axis of ``size`` voxels: RF / 4, or size / 2 for an infinite RF.

        If shifts are bounded, this is the bound.
        """
        return size / 2 if math.isinf(self.receptive_field) else self.receptive_field / 4

    def activations(self, coords: Tensor, axes: int, axis: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Offset and Weight of equation 1 along one axis, after their activations.

        Args:
            coords (Tensor[N, channels(axes), ..]): raw coordinates, offsets first.
            axes: the number of spatial axes, g.
            axis: the index of the axis, in tensor order.
            dtype: the dtype of the computation and of the result.

        Returns:
            Tensor[N, ..] and Tensor[N, ..]: the offset and the weight; without weight, the second is None.
        """
        offset = coords[:, axis].to(dtype)
        offset = torch.tanh(offset) if self.offset == "tanh" else offset
        if self.weight == "none":
            return offset, None
        weight = coords[:, axes + axis].to(dtype)
        return offset, torch.sigmoid(weight) if self.weight == "sigmoid" else weight


def sampling_shifts(
    coords: Tensor,
    sizes: Sequence[int],
    receptive_field: float = 2.0,
    *,
    offset: Offset = "tanh",
    weight: Weight = "sigmoid",
) -> Tensor:
    """The shifts of :func:`nnunet_dtc.deformable_upsample`, lambda * Offset * Weight of equation 1, in voxels.

    These are the shifts before the positions are clamped to the map.

    Args:
        coords (Tensor[N, 2 * g, ..]): raw coordinates as in :func:`nnunet_dtc.deformable_upsample`, for positions in
            any number and shape.
        sizes: (S_1, .., S_g), voxels of the input map per axis.
        receptive_field: RF of section 3.2 in voxels of the input map, 0 to ``float("inf")``.
        offset: "tanh" or "linear", as in :class:`Deformation`.
        weight: "sigmoid", "linear" or "none", as in :class:`Deformation`.

    Returns:
        Tensor[N, g, ..]: the shift along each axis in voxels of the input map, at least float32. It is NaN where a
        coordinate is NaN; such a sample is not shifted.

    Raises:
        TypeError: ``coords`` is not a floating tensor.
        ValueError: the channels do not fit the sizes, or an argument is out of range.

    Example:
        An offset of infinity has a tanh of 1, and a raw weight of 0 has a sigmoid of 1/2:

        >>> import torch
        >>> from nnunet_dtc.ops.deformation import sampling_shifts
        >>> coords = torch.tensor([0.0, torch.inf, 0.0, 0.0]).view(1, 4, 1)
        >>> sampling_shifts(coords, sizes=(5, 7), receptive_field=2).tolist()
        [[[0.0], [0.25]]]
    """
    deformation, axes = Deformation(receptive_field, offset, weight), len(sizes)
    if not coords.is_floating_point():
        raise TypeError(f"coords must be a floating tensor, got {coords.dtype=}")
    channels = deformation.channels(axes)
    if coords.ndim < 2 or coords.shape[1] != channels:
        raise ValueError(f"coords must be (N, {channels}, ..) for {axes} axes and {weight=}, got {tuple(coords.shape)}")
    dtype = torch.promote_types(coords.dtype, torch.float32)
    shifts = []
    for axis, size in enumerate(sizes):
        offsets, weights = deformation.activations(coords, axes, axis, dtype)
        shifts.append(deformation.scale(size) * (offsets if weights is None else offsets * weights))
    return torch.stack(shifts, dim=1)  # (N, g, ..)


def regular_positions(size: int, step: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """P_grid of equation 1 along one axis, ``(o + 1/2) / step - 1/2``, in voxels of the input map.

    Args:
        size: voxels of the input map along the axis.
        step: the stride along the axis.
        dtype: dtype of the result, at least float32.
        device: device of the result.

    Returns:
        Tensor[size * step]: with a ``step`` of 1 these are exactly the voxel centres.

    Example:
        >>> regular_positions(3, 2, torch.float32).tolist()
        [-0.25, 0.25, 0.75, 1.25, 1.75, 2.25]
    """
    return (torch.arange(size * step, dtype=dtype, device=device) + 0.5) / step - 0.5


def shifted_positions(regular: Tensor, shift: Tensor, size: int) -> Tensor:
    """P_new of equation 1 along one axis, made safe for ``grid_sample``: finite, and at most one voxel outside the map.

    torch's ``grid_sample`` computes addresses even from positions that are not finite, and its backward pass then reads
    and writes memory outside the map. Ours: a shift of NaN counts as zero, so that no sample leaves the neighbourhood
    that the backends derive from the bound of the shifts. Positions outside the map stay outside, where
    ``padding_mode="border"`` samples the border voxel and the gradient is zero.

    Args:
        regular (Tensor): P_grid along the axis in voxels, from :func:`regular_positions`, broadcastable to ``shift``.
        shift (Tensor[..]): the shift in voxels, any floating dtype.
        size: voxels of the map along the axis.

    Returns:
        Tensor[..]: the position in voxels, in [-1, size].

    Example:
        >>> shifted_positions(torch.tensor(2.75), torch.tensor([0.5, torch.nan, torch.inf]), size=4).tolist()
        [3.25, 2.75, 4.0]
    """
    return (regular + torch.where(shift.isnan(), 0, shift)).clamp(-1, size)
