"""The DTC block: an upsampling with a deformable branch beside it (Sun et al., arXiv:2601.17939, figure 3).

::

    out = base(x) + deformable_upsample(value(x), coords(x))

``base`` is figure 3a, the upsampling that a network has anyway; ``value`` is the 1x1 convolution and ``coords`` the
transposed convolution of figure 3b. Ours, where the paper is silent: the kernel of the coordinate convolution is its
stride (this fits table 7's parameters), both convolutions have biases, and the coordinates start from weights of a
normal distribution with standard deviation 0.001 (DySample's choice) and biases of zero. They do not start at exactly
zero: on an axis with stride 1 the block would sample at voxel centres, where linear interpolation is not
differentiable.

``base`` may be any upsampling. One that also wants the encoder's features of the output's size says so by an attribute
``needs_skip = True`` and takes them as its second argument; the block then takes them, too, and hands them on.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_dtc.ops.checks import check_count, check_stride
from nnunet_dtc.ops.deformation import Deformation, Offset, Weight
from nnunet_dtc.ops.heads import CoordinateHead2d, CoordinateHead3d, ValueHead2d, ValueHead3d
from nnunet_dtc.ops.sampling import upsample_checked

COORDS_INIT_STD = 0.001


class _DTC(nn.Module):
    """What DTC2d and DTC3d share. The state dict has ``base.*``, ``value.*`` and ``coords.*``."""

    axes: ClassVar[int]
    transposed_conv: ClassVar[type[nn.Module]]
    value_head: ClassVar[type[nn.Module]]
    coordinate_head: ClassVar[type[nn.Module]]

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

        factory = {"device": device, "dtype": dtype}
        if base is None:
            base = self.transposed_conv(in_channels, out_channels, self.stride, self.stride, **factory)
        self.base = base
        self.value = self.value_head(in_channels, out_channels, 1, **factory)
        self.coords = self.coordinate_head(
            in_channels, self.deformation.channels(self.axes), self.stride, self.stride, **factory
        )
        self.reset_coords()

    def reset_coords(self) -> None:
        """Draw the coordinate head anew, as a new block has it. A host's own initialisation must not overwrite it."""
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
        """(N, in_channels, S_1, .., S_g) to (N, out_channels, S_1 * stride_1, ..), in the dtype of the base.

        ``output_size`` is what hosts may pass to a transposed convolution; it must be that size (or end in it).
        ``skip`` (N, any channels, S_1 * stride_1, ..) is for a base that ``needs_skip``.
        """
        if x.ndim != self.axes + 2 or x.shape[1] != self.in_channels:
            shape = ", ".join(["N", str(self.in_channels), *"DHW"[-self.axes :]])
            raise ValueError(f"{type(self).__name__} takes ({shape}), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"{type(self).__name__} takes a floating tensor, got {x.dtype}")
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
        """What the block adds to its base, in elements of feature maps of one case (nnU-Net's measure of memory).

        Counted are the value, the coordinates and the samples. ``input_size`` is the size of the block's input,
        (S_1, .., S_g).
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


_ARGUMENTS = """

    Args:
        in_channels, out_channels: channels of the input and of the output, each >= 1.
        stride: output voxels per input voxel, one number or one per axis in tensor order, each >= 1.
        receptive_field: RF of section 3.2, 0 to ``float("inf")``; the bound of a shift is RF / 4 input voxels.
        base: the upsampling of figure 3a, any module from (N, in_channels, S) to (N, out_channels, S * stride); a
            transposed convolution whose kernel is its stride where none is given.
        offset, weight: table 4's variants, see :func:`nnunet_dtc.deformable_upsample`.
        device, dtype: of the new parameters, as everywhere in torch.

    Raises:
        ValueError: channels, stride, receptive field or variant out of range; in ``forward``: an input, or a result
            of the base, of another shape.
        TypeError: in ``forward``: an input that is not floating.
    """


class DTC2d(_DTC):
    __doc__ = (
        "Deformable transposed convolution of images: (N, C_in, H, W) to (N, C_out, H * s_1, W * s_2)." + _ARGUMENTS
    )

    axes = 2
    transposed_conv = nn.ConvTranspose2d
    value_head = ValueHead2d
    coordinate_head = CoordinateHead2d


class DTC3d(_DTC):
    __doc__ = (
        "Deformable transposed convolution of volumes: (N, C_in, D, H, W) to (N, C_out, D * s_1, H * s_2, W * s_3)."
        + _ARGUMENTS
    )

    axes = 3
    transposed_conv = nn.ConvTranspose3d
    value_head = ValueHead3d
    coordinate_head = CoordinateHead3d


def dtc_class(axes: int) -> type[_DTC]:
    """DTC2d or DTC3d."""
    return {2: DTC2d, 3: DTC3d}[axes]


def is_dtc(module: nn.Module) -> bool:
    """Whether the module is a DTC block."""
    return isinstance(module, _DTC)
