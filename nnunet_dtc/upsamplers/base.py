"""The common interface of all upsamplers: that of a transposed convolution whose kernel is its stride.

The original upsamplers keep the number of channels. Ours (all of this): a 1x1 convolution changes the channels at low
resolution, before the samples are taken, unless ``projection=False``. For weights that sum to one the result is the
same as with a 1x1 convolution afterwards, which would cost ``prod(stride)`` times as much.
"""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_dtc.ops.checks import check_count, check_features, check_stride


def upsample_in_decoder(upsampling: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
    """Apply the upsampling between two stages of a decoder.

    Args:
        upsampling: a transposed convolution, an upsampler, a DTC block, or any other module.
        x (Tensor[N, C, S_1, .., S_g]): the decoder's features.
        skip (Tensor[N, any, S_1 * stride_1, .., S_g * stride_g]): the encoder's features of the output's size, for
            modules with ``needs_skip``.

    Example:
        >>> upsample_in_decoder(nn.Upsample(scale_factor=2), torch.zeros(1, 3, 2, 5), torch.zeros(1, 2, 4, 10)).shape
        torch.Size([1, 3, 4, 10])
    """
    return upsampling(x, skip=skip) if getattr(upsampling, "needs_skip", False) else upsampling(x)


class Upsampler(nn.Module):
    """Base class of all upsamplers: (N, in_channels, S_1, .., S_g) to (N, out_channels, S_1 * stride_1, ..).

    Attributes:
        axes: the number of spatial axes g, 2 or 3.
        conv: the class of convolutions with that number of axes.
        needs_skip: whether ``forward`` also takes the encoder's features at the output size, (N, skip_channels,
            S_1 * stride_1, ..), as its second argument.
        project: the 1x1 convolution to ``out_channels``, or None with ``projection=False``. If your network has an
            initialisation of its own, apply it to this convolution and to nothing else in the upsampler.

    Args:
        in_channels: channels of the input, >= 1.
        out_channels: channels of the output, >= 1.
        stride: output elements per input element, one integer or one per axis in tensor order, each >= 1.
        projection: whether a 1x1 convolution changes the channels; without it ``out_channels`` must be ``in_channels``.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> from nnunet_dtc.upsamplers import Linear3d, Upsampler
        >>> upsampler: Upsampler = Linear3d(8, 4, stride=(1, 2, 2))
        >>> upsampler.axes, upsampler.stride, upsampler.needs_skip
        (3, (1, 2, 2), False)
    """

    axes: ClassVar[int]
    conv: ClassVar[Callable[..., nn.Conv2d | nn.Conv3d]]
    needs_skip: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int | Sequence[int],
        *,
        projection: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_count("in_channels", in_channels)
        self.out_channels = check_count("out_channels", out_channels)
        self.stride = check_stride(stride, self.axes)
        if not projection and in_channels != out_channels:
            raise ValueError(f"without projection the channels stay, got {in_channels=} and {out_channels=}")
        self.project = self.conv(in_channels, out_channels, 1, device=device, dtype=dtype) if projection else None

    def value(self, x: Tensor) -> Tensor:
        """The features that are sampled: (N, in_channels, ..) to (N, out_channels, ..)."""
        return x if self.project is None else self.project(x)

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError if x is not (N, in_channels, S_1, .., S_g), and TypeError if it is not floating."""
        check_features(type(self).__name__, x, self.in_channels, self.axes)

    def added_channels(self) -> tuple[int, int]:
        """Channels of the inner feature maps at low and at high resolution, without the projection and the result."""
        return 0, 0

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Count the elements of feature maps that the upsampler has in addition to its result, for one case.

        As in nnU-Net's memory estimate, these are the results of convolutions (for SAPA also the similarities).

        Args:
            input_size: the size of the input, (S_1, .., S_g).

        Returns:
            The number of elements.
        """
        low, high = self.added_channels()
        low += 0 if self.project is None else self.out_channels
        return (low + high * math.prod(self.stride)) * math.prod(int(size) for size in input_size)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"


def zero_biases(*layers: nn.Conv2d | nn.Conv3d | nn.Linear) -> None:
    """Set the biases of the layers, where they have one, to zero."""
    for layer in layers:
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
