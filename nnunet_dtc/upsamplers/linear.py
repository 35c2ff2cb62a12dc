"""Linear upsampling: a 1x1 convolution, then bilinear or trilinear interpolation.

Sun et al., arXiv:2601.17939, figure 1a, is the interpolation (``align_corners=False`` here, as everywhere in this
package). The 1x1 convolution, which gives it the channels of the transposed convolution in its place, is ours; without
it this is the upsampling of table 7's U-Net.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_dtc.ops.checks import check_value
from nnunet_dtc.upsamplers.base import Upsampler


def linear_upsample(value: Tensor, stride: int | Sequence[int]) -> Tensor:
    """Interpolate linearly between the elements, borders repeated.

    Args:
        value (Tensor[N, C, S_1, .., S_g]): g = 2 or 3, any floating dtype.
        stride: elements of the output per element of the input, one number or one per axis, each >= 1.

    Returns:
        Tensor[N, C, S_1 * stride_1, ..]: in the dtype of ``value``. A constant stays the same constant.

    Raises:
        ValueError: a size or an argument is not as described.
        TypeError: ``value`` is not floating.

    Note:
        On CUDA the gradient is summed with atomic additions, so it is not bit-identical from run to run. Under
        ``torch.use_deterministic_algorithms(True)`` torch takes a slower form that is; in 3D only from torch 2.9 on,
        before it raises a RuntimeError.
    """
    _, sizes = check_value(value, stride)
    mode = {2: "bilinear", 3: "trilinear"}[len(sizes)]
    # CUDA's autocast makes interpolation float32
    return F.interpolate(value, size=sizes, mode=mode, align_corners=False).to(value.dtype)


class _Linear(Upsampler):
    """What Linear2d and Linear3d share."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, S) to (N, out_channels, S * stride)."""
        self.check_input(x)
        return linear_upsample(self.value(x), self.stride)


_ARGUMENTS = """

    Args:
        in_channels, out_channels: channels of the input and of the output, each >= 1.
        stride: output elements per input element, one number or one per axis in tensor order, each >= 1.
        projection: whether a 1x1 convolution comes first; without it the channels stay.
        device, dtype: of the parameters, as everywhere in torch.
    """


class Linear2d(_Linear):
    __doc__ = (
        "1x1 convolution and bilinear interpolation: (N, C_in, H, W) to (N, C_out, H * s_1, W * s_2)." + _ARGUMENTS
    )

    axes = 2
    conv = nn.Conv2d


class Linear3d(_Linear):
    __doc__ = (
        "1x1 convolution and trilinear interpolation: (N, C_in, D, H, W) to (N, C_out, D * s_1, H * s_2, W * s_3)."
        + _ARGUMENTS
    )

    axes = 3
    conv = nn.Conv3d
