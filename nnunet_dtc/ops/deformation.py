"""Where DTC samples: the shifts and positions of Sun et al., arXiv:2601.17939, equation 1, in voxels.

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
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Offset = Literal["tanh", "linear"]
Weight = Literal["sigmoid", "linear", "none"]

OFFSETS: tuple[str, ...] = ("tanh", "linear")
WEIGHTS: tuple[str, ...] = ("sigmoid", "linear", "none")


@dataclass(frozen=True)
class Deformation:
    """How raw coordinates become shifts, lambda * Offset * Weight of equation 1.

    Attributes:
        receptive_field: RF of section 3.2 in voxels of the input map, from 0 to ``float("inf")``.
        offset: "tanh" as in equation 1, or "linear" for table 4's rows without tanh.
        weight: "sigmoid" as in equation 1, "linear" for table 4's rows without sigmoid, "none" for its rows without
            weight.

    Raises:
        ValueError: an attribute is not one of these.
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
        """Whether no shift is longer than :meth:`scale`: with tanh, and with a sigmoid or no weight at all."""
        return self.offset == "tanh" and self.weight != "linear"

    def channels(self, axes: int) -> int:
        """Channels of the coordinates: 2 per axis (section 3.1: 4 in 2D, 6 in 3D), 1 per axis without weight."""
        return axes if self.weight == "none" else 2 * axes

    def scale(self, size: int) -> float:
        """``lambda`` of equation 1 in voxels of an axis of ``size`` voxels: RF / 4, for an infinite RF size / 2.

        It is the longest shift where shifts are bounded.
        """
        return size / 2 if math.isinf(self.receptive_field) else self.receptive_field / 4

    def activations(self, coords: Tensor, axes: int, axis: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Offset and Weight of equation 1 along one axis, after their activations.

        Args:
            coords (Tensor[N, channels(axes), ..]): raw, offsets first.
            axes: the number of axes.
            axis: which of them, in tensor order.
            dtype: in which they are computed.

        Returns:
            Two tensors (N, ..); None instead of the second without weight.
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
    """lambda * Offset * Weight of equation 1 in voxels: how far :func:`nnunet_dtc.deformable_upsample` shifts samples.

    The shifts are those before the positions are clamped to the map.

    Args:
        coords (Tensor[N, 2 * g, ..]): raw coordinates as there, for any number of positions in any shape.
        sizes: (S_1, .., S_g), voxels of the input map per axis.
        receptive_field, offset, weight: as there.

    Returns:
        Tensor[N, g, ..]: the shift along each axis in voxels of the input map, float32 at least. It is NaN where a
        coordinate is; such a sample is not shifted.

    Raises:
        TypeError: ``coords`` is not a floating tensor.
        ValueError: the channels do not fit the sizes, or an argument is out of range.
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
