"""DySample: sample the features at positions that a 1x1 convolution of themselves moves.

Liu et al., *Learning to Upsample by Learning to Sample*, ICCV 2023 (arXiv:2308.15085). With the offsets O of the
regular grid G, ``X' = grid_sample(X, G + O)`` (equations 1 to 3), and

- static scope (equation 4): ``O = 0.25 * linear(X)``;
- dynamic scope (equation 5): ``O = 0.5 * sigmoid(linear_1(X)) * linear_2(X)``;
- style "lp": the 1x1 convolution at low resolution, then a pixel shuffle; "pl": first the pixel shuffle, then a 1x1
  convolution at high resolution with fewer parameters;
- groups of channels have offsets of their own, 4 with both styles here.

The grid's positions are spread evenly over the sub-positions of an element (section 3.2's bilinear initialisation), so
an offset of zero is linear interpolation. Offset weights start from a normal distribution with standard deviation
0.001, biases at zero; the scope starts at zero, where the dynamic one is the static one.

Ours: the form for 3D and for a stride per axis, with ``g * groups * prod(stride)`` offset channels. On an axis with
stride 1 the grid is the elements' centres, and the axis still deforms. Channels of the offsets are in the order (axis,
group, sub-position), axes in tensor order (D, H, W), where the original starts with x. The channels may change, by a
1x1 convolution before the sampling; groups divide the channels that are sampled. Positions are float32 at least.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_dtc.ops.checks import check_count, check_fits, check_value
from nnunet_dtc.ops.deformation import regular_positions, shifted_positions
from nnunet_dtc.ops.layout import pixel_shuffle
from nnunet_dtc.upsamplers.base import Upsampler

Style = Literal["lp", "pl"]

STATIC_SCOPE = 0.25
DYNAMIC_SCOPE = 0.5
OFFSET_INIT_STD = 0.001


def dysample(value: Tensor, offsets: Tensor, stride: int | Sequence[int], groups: int = 4) -> Tensor:
    """Sample ``value`` where the offsets say, ``stride`` times as densely as it is given.

    The position of output element o on axis a is ``(o_a + 1/2) / stride_a - 1/2 + offset``, clamped to the map. An
    offset of NaN counts as zero, and has a gradient of zero.

    Args:
        value (Tensor[N, C, S_1, .., S_g]): g = 2 or 3, any floating dtype.
        offsets (Tensor[N, g * groups, S_1 * stride_1, ..]): in voxels of the input map; channel ``a * groups + k`` is
            axis a of group k.
        stride: elements of the output per element of the input, one number or one per axis, each >= 1.
        groups: of consecutive channels, which share their positions; a divisor of C.

    Returns:
        Tensor[N, C, S_1 * stride_1, ..]: in the dtype of ``value``. A constant stays the same constant.

    Raises:
        ValueError: a size or an argument is not as described.
        TypeError: a tensor is not floating.

    Note:
        On CUDA the gradient is summed with atomic additions, so it is not bit-identical from run to run. Torch has no
        other form there: it raises a RuntimeError under ``torch.use_deterministic_algorithms(True)``.
    """
    stride, fine = check_value(value, stride)
    batch, channels, *sizes = value.shape
    axes = len(sizes)
    if channels % check_count("groups", groups):
        raise ValueError(f"groups must divide the channels that are sampled, got {groups=} for {channels} channels")
    check_fits("offsets", offsets, "(N, g * groups, *(S * stride))", (batch, axes * groups, *fine))
    dtype = torch.promote_types(torch.promote_types(value.dtype, offsets.dtype), torch.float32)
    offsets = offsets.to(dtype).reshape(batch, axes, groups, *fine)  # (N, g, groups, *out)
    grid = []  # one normalised coordinate per axis, each (N, groups, *out)
    for axis, (size, step) in enumerate(zip(sizes, stride, strict=True)):
        start = regular_positions(size, step, dtype, value.device)
        start = start.view([-1 if other == axis else 1 for other in range(axes)])
        grid.append((2 * shifted_positions(start, offsets[:, axis], size) + 1) / size - 1)
    samples = F.grid_sample(
        value.to(dtype).reshape(batch * groups, channels // groups, *sizes),  # (N * groups, C / groups, *S)
        torch.stack(grid[::-1], dim=-1).flatten(0, 1),  # last axis first: (N * groups, *out, g)
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return samples.reshape(batch, channels, *fine).to(value.dtype)  # (N, C, *out)


class _DySample(Upsampler):
    """What DySample2d and DySample3d share. The state dict has ``offset.*``, and ``project.*``, ``scope.*``."""

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
        """Draw the offsets anew, as the original has them. A host's own initialisation must not overwrite them."""
        nn.init.normal_(self.offset.weight, std=OFFSET_INIT_STD)
        nn.init.zeros_(self.offset.bias)
        if self.scope is not None:
            nn.init.zeros_(self.scope.weight)
            nn.init.zeros_(self.scope.bias)

    def offsets(self, x: Tensor) -> Tensor:
        """(N, in_channels, S) to the offsets in voxels, (N, g * groups, S * stride)."""
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


_ARGUMENTS = """

    Args:
        in_channels, out_channels: channels of the input and of the output, each >= 1.
        stride: output elements per input element, one number or one per axis in tensor order, each >= 1.
        style: "lp" or "pl", see the module; "pl" needs in_channels that the product of the strides divides.
        groups: of output channels, which have offsets of their own; a divisor of out_channels.
        dynamic_scope: whether the length of the offsets is learned, too; off by default, as in the original.
        projection: whether a 1x1 convolution gives the channels; without it, as in the original, they stay.
        device, dtype: of the parameters, as everywhere in torch.
    """


class DySample2d(_DySample):
    __doc__ = "DySample of images: (N, C_in, H, W) to (N, C_out, H * s_1, W * s_2)." + _ARGUMENTS

    axes = 2
    conv = nn.Conv2d


class DySample3d(_DySample):
    __doc__ = "DySample of volumes: (N, C_in, D, H, W) to (N, C_out, D * s_1, H * s_2, W * s_3)." + _ARGUMENTS

    axes = 3
    conv = nn.Conv3d
