"""Linear upsampling: a 1x1 convolution, then bilinear or trilinear interpolation.

The interpolation is that of Sun et al., arXiv:2601.17939, figure 1a, with ``align_corners=False`` as everywhere in this
package. The 1x1 convolution is ours: it gives the result the channels that a transposed convolution in the same place
would give. Without it, this is the upsampling of the U-Net in table 7.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_dtc.ops.checks import check_value
from nnunet_dtc.upsamplers.base import Upsampler


def linear_upsample(value: Tensor, stride: int | Sequence[int]) -> Tensor:
    """Interpolate linearly between the elements; at the border the outermost elements are repeated.

    Args:
        value (Tensor[N, C, S_1, .., S_g]): g = 2 or 3, any floating dtype.
        stride: output elements per input element, one integer or one per axis, each >= 1.

    Returns:
        Tensor[N, C, S_1 * stride_1, ..]: in the dtype of ``value``. A constant map stays constant.

    Raises:
        ValueError: a shape or the stride is not as described.
        TypeError: ``value`` is not floating.

    Note:
        On CUDA the gradient is summed with atomic additions and is therefore not bit-identical from run to run. With
        ``torch.use_deterministic_algorithms(True)`` torch uses a slower, deterministic implementation; in 3D this needs
        torch 2.9, and earlier versions raise RuntimeError.

    Example:
        >>> import torch
        >>> from nnunet_dtc.upsamplers import linear_upsample
        >>> linear_upsample(torch.tensor([[[[0.0, 4.0]]]]), stride=(1, 2))
        tensor([[[[0., 1., 3., 4.]]]])
    """
    _, sizes = check_value(value, stride)
    mode = {2: "bilinear", 3: "trilinear"}[len(sizes)]
    # autocast on CUDA computes interpolation in float32
    return F.interpolate(value, size=sizes, mode=mode, align_corners=False).to(value.dtype)


class _Linear(Upsampler):
    """The common part of Linear2d and Linear3d. The state dict has ``project.*``."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, S) to (N, out_channels, S * stride)."""
        self.check_input(x)
        return linear_upsample(self.value(x), self.stride)


class Linear2d(_Linear):
    """1x1 convolution and bilinear interpolation of images.

    It maps (N, C_in, H, W) to (N, C_out, H * s_1, W * s_2).

    Args:
        in_channels: channels of the input, >= 1.
        out_channels: channels of the output, >= 1.
        stride: output elements per input element, one integer or one per axis in tensor order, each >= 1.
        projection: whether a 1x1 convolution comes first; without it ``out_channels`` must be ``in_channels``.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> from nnunet_dtc.upsamplers import Linear2d
        >>> upsampler = Linear2d(8, 4, stride=(2, 1))
        >>> upsampler(torch.randn(1, 8, 5, 7)).shape
        torch.Size([1, 4, 10, 7])
    """

    axes = 2
    conv = nn.Conv2d


class Linear3d(_Linear):
    """1x1 convolution and trilinear interpolation of volumes.

    It maps (N, C_in, D, H, W) to (N, C_out, D * s_1, H * s_2, W * s_3).

    Args:
        in_channels: channels of the input, >= 1.
        out_channels: channels of the output, >= 1.
        stride: output elements per input element, one integer or one per axis in tensor order, each >= 1.
        projection: whether a 1x1 convolution comes first; without it ``out_channels`` must be ``in_channels``.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> from nnunet_dtc.upsamplers import Linear3d
        >>> upsampler = Linear3d(8, 4, stride=(1, 2, 2))
        >>> upsampler(torch.randn(1, 8, 3, 5, 7)).shape
        torch.Size([1, 4, 3, 10, 14])
    """

    axes = 3
    conv = nn.Conv3d
