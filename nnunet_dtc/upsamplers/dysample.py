"""DySample: sample the features at positions whose offsets a 1x1 convolution predicts from the features.

Liu et al., *Learning to Upsample by Learning to Sample*, ICCV 2023 (arXiv:2308.15085). With the regular grid G and the
offsets O, ``X' = grid_sample(X, G + O)`` (equations 1 to 3), where

- static scope (equation 4): ``O = 0.25 * linear(X)``;
- dynamic scope (equation 5): ``O = 0.5 * sigmoid(linear_1(X)) * linear_2(X)``;
- style "lp" applies the 1x1 convolution at low resolution and then a pixel shuffle; style "pl" applies the pixel
  shuffle first and then a 1x1 convolution at high resolution, which has fewer parameters;
- each group of channels has its own offsets (here 4 groups with both styles).

The grid positions are spread evenly over the sub-positions of an element (section 3.2, bilinear initialisation), so
offsets of zero give linear interpolation. The offset weights start from a normal distribution with standard deviation
0.001 and the biases at zero. The scope layer starts at zero, where the dynamic scope equals the static one.

Ours: the form for 3D and for a stride per axis, with ``g * groups * prod(stride)`` offset channels. On an axis with
stride 1 the grid consists of the element centres, and the samples are still shifted. The offset channels are in the
order (axis, group, sub-position), with axes in tensor order (D, H, W), whereas the original starts with x. A 1x1
convolution before the sampling may change the channels; the groups divide the sampled channels. Positions are at least
float32.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from nnunet_dtc.ops.checks import check_count, check_fits, check_value
from nnunet_dtc.ops.deformation import Deformation
from nnunet_dtc.ops.layout import pixel_shuffle
from nnunet_dtc.ops.sampling import upsample_checked
from nnunet_dtc.upsamplers.base import Upsampler, zero_biases

Style = Literal["lp", "pl"]

STATIC_SCOPE = 0.25
DYNAMIC_SCOPE = 0.5
OFFSET_INIT_STD = 0.001
PLAIN_OFFSETS = Deformation(receptive_field=4, offset="linear", weight="none")  # the shift is the offset, in elements


def dysample(value: Tensor, offsets: Tensor, stride: int | Sequence[int], groups: int = 4) -> Tensor:
    """Sample ``value`` at a regular grid plus offsets, with ``stride`` samples per element along each axis.

    The position of output element o on axis a is ``(o_a + 1/2) / stride_a - 1/2 + offset``, clamped to the map. An
    offset of NaN counts as zero and has a gradient of zero.

    Args:
        value (Tensor[N, C, S_1, .., S_g]): g = 2 or 3, any floating dtype.
        offsets (Tensor[N, g * groups, S_1 * stride_1, ..]): in elements of the input map; channel ``a * groups + k`` is
            axis a of group k.
        stride: output elements per input element, one integer or one per axis, each >= 1.
        groups: the number of groups of consecutive channels; the channels of a group have the same positions. It must
            divide C.

    Returns:
        Tensor[N, C, S_1 * stride_1, ..]: in the dtype of ``value``. A constant map stays constant.

    Raises:
        ValueError: a shape or an argument is not as described.
        TypeError: a tensor is not floating.
        NotImplementedError: second derivatives were requested.

    Note:
        :mod:`nnunet_dtc.ops.backends` computes the samples as those of DTC, with the offsets as shifts. On the CPU,
        numba's backend gives the same bits in every run and with any number of threads. On CUDA the gradient with
        respect to ``value`` is summed with atomic additions, because offsets have no bound, and is therefore not
        bit-identical from run to run. With ``torch.use_deterministic_algorithms(True)`` it is gathered from the whole
        map, which is slow, or refused with a RuntimeError where the map is too large. At the centre of an element,
        where linear interpolation is not differentiable, the gradient is that of the side with the higher index.

    Example:
        Offsets of half an element along W, for both channels:

        >>> import torch
        >>> from nnunet_dtc.upsamplers import dysample
        >>> value = torch.tensor([[0.0, 1, 2], [0, 10, 20]]).view(1, 2, 1, 3)
        >>> offsets = torch.tensor([0.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 1, 6)
        >>> dysample(value, offsets, stride=(1, 2), groups=1)[0, :, 0]
        tensor([[ 0.2500,  0.7500,  1.2500,  1.7500,  2.0000,  2.0000],
                [ 2.5000,  7.5000, 12.5000, 17.5000, 20.0000, 20.0000]])
    """
    steps, fine = check_value(value, stride)
    batch, channels, *sizes = value.shape
    axes = len(sizes)
    if channels % check_count("groups", groups):
        raise ValueError(f"groups must divide the channels that are sampled, got {groups=} for {channels} channels")
    check_fits("offsets", offsets, "(N, g * groups, *(S * stride))", (batch, axes * groups, *fine))
    offsets = offsets.reshape(batch, axes, groups, *fine).transpose(1, 2)  # (N, groups, g, *out)
    samples = upsample_checked(
        None,
        value.reshape(batch * groups, channels // groups, *sizes),  # (N * groups, C / groups, *S)
        offsets.reshape(batch * groups, axes, *fine),  # (N * groups, g, *out)
        steps,
        PLAIN_OFFSETS,
    )
    return samples.reshape(batch, channels, *fine)  # (N, C, *out)


class _DySample(Upsampler):
    """The common part of DySample2d and DySample3d.

    The state dict has ``offset.*``, with a projection ``project.*`` and with the dynamic scope ``scope.*``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int | Sequence[int],
        *,
        style: Style = "lp",
        groups: int = 4,
        dynamic_scope: bool = False,
        projection: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, stride, projection=projection, device=device, dtype=dtype)
        if style not in ("lp", "pl"):
            raise ValueError(f"style must be 'lp' or 'pl', got {style=}")
        if out_channels % check_count("groups", groups):
            raise ValueError(f"groups must divide out_channels, got {groups=} and {out_channels=}")
        subpositions = math.prod(self.stride)
        if style == "pl" and in_channels % subpositions:
            raise ValueError(
                f"style 'pl' shuffles the channels into {subpositions} sub-positions (stride={self.stride}), which "
                f"must divide in_channels, got {in_channels=}"
            )
        self.style, self.groups = style, groups
        of = (in_channels, self.axes * groups * subpositions)
        if style == "pl":
            of = (in_channels // subpositions, self.axes * groups)
        self.offset = self.conv(*of, 1, device=device, dtype=dtype)
        self.scope = self.conv(*of, 1, device=device, dtype=dtype) if dynamic_scope else None
        self.reset_offsets()

    def reset_offsets(self) -> None:
        """Initialise the offsets as in a new module. A network's own initialisation must not overwrite them."""
        nn.init.normal_(self.offset.weight, std=OFFSET_INIT_STD)
        zero_biases(self.offset)
        if self.scope is not None:
            nn.init.zeros_(self.scope.weight)
            zero_biases(self.scope)

    def offsets(self, x: Tensor) -> Tensor:
        """(N, in_channels, S) to the offsets in elements of the input map, (N, g * groups, S * stride)."""
        if self.style == "pl":
            x = pixel_shuffle(x, self.stride)
        if self.scope is None:
            offsets = STATIC_SCOPE * self.offset(x)
        else:
            offsets = DYNAMIC_SCOPE * self.scope(x).sigmoid() * self.offset(x)
        return pixel_shuffle(offsets, self.stride) if self.style == "lp" else offsets

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, S) to (N, out_channels, S * stride)."""
        self.check_input(x)
        return dysample(self.value(x), self.offsets(x), self.stride, self.groups)

    def added_channels(self) -> tuple[int, int]:
        return 0, self.axes * self.groups * (1 if self.scope is None else 2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, style={self.style!r}, groups={self.groups}"


class DySample2d(_DySample):
    """DySample of images: (N, C_in, H, W) to (N, C_out, H * s_1, W * s_2).

    Args:
        in_channels: channels of the input, >= 1.
        out_channels: channels of the output, >= 1.
        stride: output elements per input element, one integer or one per axis in tensor order, each >= 1.
        style: "lp" or "pl" as described in the module; for "pl" the product of the strides must divide ``in_channels``.
        groups: the number of groups of output channels with their own offsets; it must divide ``out_channels``.
        dynamic_scope: whether the magnitude of the offsets is learned as well; off by default, as in the original.
        projection: whether a 1x1 convolution changes the channels; without it, as in the original, they stay.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> from nnunet_dtc.upsamplers import DySample2d
        >>> upsampler = DySample2d(8, 4, stride=(2, 1))
        >>> upsampler(torch.randn(1, 8, 5, 7)).shape
        torch.Size([1, 4, 10, 7])
    """

    axes = 2
    conv = nn.Conv2d


class DySample3d(_DySample):
    """DySample of volumes: (N, C_in, D, H, W) to (N, C_out, D * s_1, H * s_2, W * s_3).

    Args:
        in_channels: channels of the input, >= 1.
        out_channels: channels of the output, >= 1.
        stride: output elements per input element, one integer or one per axis in tensor order, each >= 1.
        style: "lp" or "pl" as described in the module; for "pl" the product of the strides must divide ``in_channels``.
        groups: the number of groups of output channels with their own offsets; it must divide ``out_channels``.
        dynamic_scope: whether the magnitude of the offsets is learned as well; off by default, as in the original.
        projection: whether a 1x1 convolution changes the channels; without it, as in the original, they stay.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> from nnunet_dtc.upsamplers import DySample3d
        >>> upsampler = DySample3d(8, 4, stride=(1, 2, 2))
        >>> upsampler(torch.randn(1, 8, 3, 5, 7)).shape
        torch.Size([1, 4, 3, 10, 14])
    """

    axes = 3
    conv = nn.Conv3d
