"""The DTC block: an upsampling plus a deformable branch (Sun et al., arXiv:2601.17939, figure 3).

::

    out = base(x) + deformable_upsample(value(x), coords(x))

``base`` is the upsampling of figure 3a, usually the one that the network already has. ``value``, a 1x1 convolution, and
``coords``, a transposed convolution, are those of figure 3b. Decisions that the paper leaves open (ours): the kernel of
the coordinate convolution is its stride, which agrees with the parameters of table 7; both convolutions have biases;
the coordinates start from weights of a normal distribution with standard deviation 0.001 (DySample's choice) and from
biases of zero. They do not start at exactly zero because, on an axis with stride 1, the block would then sample at
voxel centres, where linear interpolation is not differentiable.

``base`` may be any upsampling module. A base that also needs the encoder's features at the output size declares this by
an attribute ``needs_skip = True`` and takes them as its second argument. The block then takes them as ``skip`` and
passes them on.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor, nn

from nnunet_dtc.ops.checks import check_count, check_features, check_stride
from nnunet_dtc.ops.deformation import Deformation, Offset, Weight
from nnunet_dtc.ops.heads import CoordinateHead2d, CoordinateHead3d, ValueHead2d, ValueHead3d
from nnunet_dtc.ops.sampling import upsample_checked

COORDS_INIT_STD = 0.001


class _DTC(nn.Module):
    """The common part of DTC2d and DTC3d. The state dict has ``base.*``, ``value.*`` and ``coords.*``."""

    axes: ClassVar[int]
    transposed_conv: ClassVar[Callable[..., nn.Module]]
    value_head: ClassVar[Callable[..., ValueHead2d | ValueHead3d]]
    coordinate_head: ClassVar[Callable[..., CoordinateHead2d | CoordinateHead3d]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int | Sequence[int],
        receptive_field: float = 2.0,
        base: nn.Module | None = None,
        *,
        offset: Offset = "tanh",
        weight: Weight = "sigmoid",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_count("in_channels", in_channels)
        self.out_channels = check_count("out_channels", out_channels)
        self.stride = check_stride(stride, self.axes)
        self.deformation = Deformation(receptive_field, offset, weight)
        if isinstance(base, _DTC):
            raise ValueError("base must be an upsampling without DTC, got a DTC block: it would be wrapped twice")

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        if base is None:
            base = self.transposed_conv(in_channels, out_channels, self.stride, self.stride, **factory)
        self.base = base
        self.value = self.value_head(in_channels, out_channels, 1, **factory)
        self.coords = self.coordinate_head(
            in_channels, self.deformation.channels(self.axes), self.stride, self.stride, **factory
        )
        self.reset_coords()

    def reset_coords(self) -> None:
        """Initialise the coordinate head as in a new block. A network's own initialisation must not overwrite it."""
        nn.init.normal_(self.coords.weight, std=COORDS_INIT_STD)
        nn.init.zeros_(self.coords.bias)

    @property
    def receptive_field(self) -> float:
        """RF of section 3.2 in voxels of the input map."""
        return self.deformation.receptive_field

    @property
    def needs_skip(self) -> bool:
        """Whether ``forward`` needs the encoder's features, because the base does."""
        return getattr(self.base, "needs_skip", False)

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None, skip: Tensor | None = None) -> Tensor:
        """Upsample ``x``.

        Args:
            x (Tensor[N, in_channels, S_1, .., S_g]): features at low resolution, any floating dtype.
            output_size: accepted because networks may pass it to a transposed convolution; it must be (or end in) the
                size of the output, (S_1 * stride_1, .., S_g * stride_g).
            skip (Tensor[N, any, S_1 * stride_1, .., S_g * stride_g]): the encoder's features, required if the base has
                ``needs_skip``.

        Returns:
            Tensor[N, out_channels, S_1 * stride_1, .., S_g * stride_g]: in the dtype of the result of the base.

        Raises:
            ValueError: a tensor, ``output_size`` or the result of the base has another shape, or ``skip`` is missing.
            TypeError: ``x`` is not floating.
        """
        check_features(type(self).__name__, x, self.in_channels, self.axes)
        out = tuple(size * step for size, step in zip(x.shape[2:], self.stride, strict=True))
        if output_size is not None and tuple(output_size)[-self.axes :] != out:
            raise ValueError(f"output_size must be size * stride, {out}, got output_size={tuple(output_size)}")
        if self.needs_skip and skip is None:
            raise ValueError(f"{type(self.base).__name__} needs the encoder's features of size {out}: pass skip=...")
        base = self.base(x, skip) if self.needs_skip else self.base(x)
        if tuple(base.shape) != (x.shape[0], self.out_channels, *out):
            raise ValueError(
                f"base must upsample {tuple(x.shape)} by stride {self.stride} to {self.out_channels} channels, "
                f"{(x.shape[0], self.out_channels, *out)}, got {tuple(base.shape)} from {type(self.base).__name__}"
            )
        return upsample_checked(base, self.value(x), self.coords(x), self.stride, self.deformation)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Count the elements of feature maps that the block adds to its base, for one case (nnU-Net's memory estimate).

        Args:
            input_size: the size of the block's input, (S_1, .., S_g), in voxels.

        Returns:
            The number of elements of the value, the coordinates and the samples.
        """
        low = high = 1
        for size, step in zip(input_size, self.stride, strict=True):
            low, high = low * int(size), high * int(size) * step
        return self.out_channels * low + (self.coords.out_channels + self.out_channels) * high

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}", f"{self.out_channels}", f"stride={self.stride}"]
        parts.append(f"receptive_field={self.receptive_field:g}")
        if self.deformation.offset != "tanh":
            parts.append(f"offset={self.deformation.offset!r}")
        if self.deformation.weight != "sigmoid":
            parts.append(f"weight={self.deformation.weight!r}")
        return ", ".join(parts)


class DTC2d(_DTC):
    """Deformable transposed convolution of images: (N, C_in, H, W) to (N, C_out, H * s_1, W * s_2).

    Args:
        in_channels: channels of the input, >= 1.
        out_channels: channels of the output, >= 1.
        stride: output voxels per input voxel, one integer or one per axis in tensor order, each >= 1.
        receptive_field: RF of section 3.2 in voxels of the input map, 0 to ``float("inf")``. No shift is longer than
            RF / 4 voxels.
        base: the upsampling of figure 3a, any module from (N, in_channels, S) to (N, out_channels, S * stride); by
            default a transposed convolution whose kernel is its stride.
        offset: "tanh" or "linear", see :func:`nnunet_dtc.deformable_upsample`.
        weight: "sigmoid", "linear" or "none", see :func:`nnunet_dtc.deformable_upsample`.
        device: device of the new parameters.
        dtype: dtype of the new parameters.

    Raises:
        ValueError: an argument is out of range, or ``base`` is a DTC block itself.

    Example:
        >>> import torch
        >>> from nnunet_dtc import DTC2d
        >>> block = DTC2d(8, 4, stride=(2, 1), receptive_field=4)
        >>> block(torch.randn(1, 8, 5, 7)).shape
        torch.Size([1, 4, 10, 7])
    """

    axes = 2
    transposed_conv = nn.ConvTranspose2d
    value_head = ValueHead2d
    coordinate_head = CoordinateHead2d


class DTC3d(_DTC):
    """Deformable transposed convolution of volumes: (N, C_in, D, H, W) to (N, C_out, D * s_1, H * s_2, W * s_3).

    Args:
        in_channels: channels of the input, >= 1.
        out_channels: channels of the output, >= 1.
        stride: output voxels per input voxel, one integer or one per axis in tensor order, each >= 1.
        receptive_field: RF of section 3.2 in voxels of the input map, 0 to ``float("inf")``. No shift is longer than
            RF / 4 voxels.
        base: the upsampling of figure 3a, any module from (N, in_channels, S) to (N, out_channels, S * stride); by
            default a transposed convolution whose kernel is its stride.
        offset: "tanh" or "linear", see :func:`nnunet_dtc.deformable_upsample`.
        weight: "sigmoid", "linear" or "none", see :func:`nnunet_dtc.deformable_upsample`.
        device: device of the new parameters.
        dtype: dtype of the new parameters.

    Raises:
        ValueError: an argument is out of range, or ``base`` is a DTC block itself.

    Example:
        >>> import torch
        >>> from nnunet_dtc import DTC3d
        >>> block = DTC3d(8, 4, stride=(1, 2, 2), receptive_field=4)
        >>> block(torch.randn(1, 8, 3, 5, 7)).shape
        torch.Size([1, 4, 3, 10, 14])
    """

    axes = 3
    transposed_conv = nn.ConvTranspose3d
    value_head = ValueHead3d
    coordinate_head = CoordinateHead3d


def dtc_class(axes: int) -> type[_DTC]:
    """The class of the blocks for 2 or 3 spatial axes."""
    return {2: DTC2d, 3: DTC3d}[axes]


def is_dtc(module: nn.Module) -> TypeGuard[_DTC]:
    """Whether the module is a DTC block."""
    return isinstance(module, _DTC)
