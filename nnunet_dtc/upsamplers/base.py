"""What all upsamplers share: the interface of a transposed convolution whose kernel is its stride.

The originals keep the number of channels. Ours (all of it): where other channels are asked for, or always with
``projection=True``, a 1x1 convolution changes them at low resolution, before the samples are taken. For weights that
sum to one that is the same as changing them afterwards, and costs ``prod(stride)`` times less.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_dtc.ops.checks import check_count, check_stride


class Upsampler(nn.Module):
    """(N, in_channels, S_1, .., S_g) to (N, out_channels, S_1 * stride_1, .., S_g * stride_g).

    Attributes:
        axes: g, 2 or 3.
        conv: the convolution of that many axes.
        needs_skip: whether ``forward`` takes the encoder's features of the finer level as well, (N, skip_channels,
            S_1 * stride_1, ..).
        project: the 1x1 convolution to ``out_channels``; it has no parameters with ``projection=False``. A host
            network with an initialisation of its own should apply that to it, and to nothing else here.
    """

    axes: ClassVar[int]
    conv: ClassVar[type[nn.Module]]
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
        """ValueError where x is not (N, in_channels, S_1, .., S_g), TypeError where it is not floating."""
        if x.ndim != self.axes + 2 or x.shape[1] != self.in_channels:
            shape = ", ".join(["N", str(self.in_channels), *"DHW"[-self.axes :]])
            raise ValueError(f"{type(self).__name__} takes ({shape}), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"{type(self).__name__} takes a floating tensor, got {x.dtype}")

    def added_channels(self) -> tuple[int, int]:
        """Channels of the feature maps inside, at low and at high resolution, without the projection and the result."""
        return 0, 0

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """What it adds to a transposed convolution in its place, in elements of feature maps of one case.

        Counted are, as nnU-Net does it, the results of its convolutions, and with SAPA the similarities; the result
        itself is as large as the transposed convolution's. ``input_size`` is (S_1, .., S_g).
        """
        low, high = self.added_channels()
        low += 0 if self.project is None else self.out_channels
        return (low + high * math.prod(self.stride)) * math.prod(int(size) for size in input_size)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"


class SkipUpsampler(Upsampler):
    """An upsampler that is led by the encoder's features of the finer level: ``forward(x, skip)``.

    ``skip_channels`` are as many as ``out_channels`` where they are not given, as in every U-Net.
    """

    needs_skip = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int | Sequence[int],
        *,
        skip_channels: int | None = None,
        projection: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, stride, projection=projection, device=device, dtype=dtype)
        self.skip_channels = check_count("skip_channels", out_channels if skip_channels is None else skip_channels)

    def check_skip(self, x: Tensor, skip: Tensor) -> None:
        """ValueError where the skip is not (N, skip_channels, S_1 * stride_1, ..)."""
        sizes = (size * step for size, step in zip(x.shape[2:], self.stride, strict=True))
        expected = (x.shape[0], self.skip_channels, *sizes)
        if tuple(skip.shape) != expected:
            raise ValueError(
                f"{type(self).__name__} takes a skip of {expected} with an input of {tuple(x.shape)}, "
                f"got {tuple(skip.shape)}"
            )
