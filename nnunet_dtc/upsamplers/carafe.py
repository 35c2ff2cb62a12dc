"""CARAFE: reassembly with weights that a small network predicts from the features.

Wang et al., *CARAFE: Content-Aware ReAssembly of FEatures*, ICCV 2019 (arXiv:1905.02188). Section 3.2, kernel
prediction: a 1x1 convolution to 64 channels, a 3x3 convolution to ``window * prod(stride)`` channels, a pixel shuffle,
and a softmax over the window. Section 3.3, reassembly: see :mod:`nnunet_dtc.upsamplers.reassembly`. The window has 5
elements per axis.

As in MMCV, where the original was published, the compression starts from Xavier's uniform distribution, the content
encoder from a normal distribution with standard deviation 0.001, and the biases at zero: a new module averages its
window.

Ours: the form for 3D, where the window has 3 elements per axis (the comment at ``DEFAULT_KERNEL_SIZE`` gives the
reason), and for a stride per axis; the repeated border; the change of channels before the reassembly.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_dtc.ops.checks import check_count, check_fits, check_value
from nnunet_dtc.ops.layout import pixel_shuffle
from nnunet_dtc.upsamplers.base import Upsampler, zero_biases
from nnunet_dtc.upsamplers.reassembly import (
    Padding,
    check_kernel_size,
    check_padding,
    reassemble,
    window_weights,
)

ENCODER_INIT_STD = 0.001


def carafe(
    value: Tensor,
    logits: Tensor,
    stride: int | Sequence[int],
    kernel_size: int | Sequence[int] | None = None,
    padding: Padding = "border",
) -> Tensor:
    """Reassemble ``value`` with the softmax of the logits over the window.

    Args:
        value (Tensor[N, C, S_1, .., S_g]): g = 2 or 3, any floating dtype.
        logits (Tensor[N, window, S_1 * stride_1, ..]): before the softmax, elements of the window in row-major order.
        stride: output elements per input element, one integer or one per axis, each >= 1.
        kernel_size: elements of the window, one odd number or one per axis; by default 5 in 2D and 3 in 3D.
        padding: "border" repeats the border, "zeros" is the original's.

    Returns:
        Tensor[N, C, S_1 * stride_1, ..]: in the dtype of ``value``. With "border" a constant map stays constant.

    Raises:
        ValueError: a shape or an argument is not as described.
        TypeError: a tensor is not floating.

    Example:
        Logits that are all the same average the window:

        >>> import torch
        >>> from nnunet_dtc.upsamplers import carafe
        >>> value = torch.tensor([3.0, 6, 9]).view(1, 1, 1, 3)
        >>> carafe(value, torch.zeros(1, 3, 1, 6), stride=(1, 2), kernel_size=(1, 3)).flatten().tolist()
        [4.0, 4.0, 6.0, 6.0, 8.0, 8.0]
    """
    steps, fine = check_value(value, stride)
    window = check_kernel_size(kernel_size, len(steps))
    check_fits("logits", logits, "(N, window, *(S * stride))", (value.shape[0], math.prod(window), *fine))
    return reassemble(value, window_weights(logits), steps, window, padding)


class _CARAFE(Upsampler):
    """The common part of CARAFE2d and CARAFE3d. The state dict has ``compress.*``, ``encode.*`` and ``project.*``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int | Sequence[int],
        *,
        kernel_size: int | Sequence[int] | None = None,
        encoder_kernel_size: int = 3,
        compressed_channels: int = 64,
        padding: Padding = "border",
        projection: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, stride, projection=projection, device=device, dtype=dtype)
        self.kernel_size = check_kernel_size(kernel_size, self.axes)
        self.padding = check_padding(padding)
        around = check_kernel_size(encoder_kernel_size, self.axes)
        compressed = check_count("compressed_channels", compressed_channels)
        logits = math.prod(self.kernel_size) * math.prod(self.stride)
        self.compress = self.conv(in_channels, compressed, 1, device=device, dtype=dtype)
        self.encode = self.conv(
            compressed, logits, around, padding=[size // 2 for size in around], device=device, dtype=dtype
        )
        self.reset_kernels()

    def reset_kernels(self) -> None:
        """Initialise the kernel prediction as in a new module. A network's own initialisation must not overwrite it."""
        nn.init.xavier_uniform_(self.compress.weight)
        nn.init.normal_(self.encode.weight, std=ENCODER_INIT_STD)
        zero_biases(self.compress, self.encode)

    def logits(self, x: Tensor) -> Tensor:
        """(N, in_channels, S) to (N, window, S * stride)."""
        return pixel_shuffle(self.encode(self.compress(x)), self.stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, S) to (N, out_channels, S * stride)."""
        self.check_input(x)
        return carafe(self.value(x), self.logits(x), self.stride, self.kernel_size, self.padding)

    def added_channels(self) -> tuple[int, int]:
        return self.compress.out_channels, math.prod(self.kernel_size)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kernel_size={self.kernel_size}"


class CARAFE2d(_CARAFE):
    """CARAFE of images: (N, C_in, H, W) to (N, C_out, H * s_1, W * s_2).

    Args:
        in_channels: channels of the input, >= 1.
        out_channels: channels of the output, >= 1.
        stride: output elements per input element, one integer or one per axis in tensor order, each >= 1.
        kernel_size: elements of the window, one odd number or one per axis; by default 5.
        encoder_kernel_size: kernel size of the convolution that predicts the weights, odd.
        compressed_channels: channels before that convolution.
        padding: "border" repeats the border, "zeros" is the original's.
        projection: whether a 1x1 convolution changes the channels; without it, as in the original, they stay.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> from nnunet_dtc.upsamplers import CARAFE2d
        >>> upsampler = CARAFE2d(8, 4, stride=(2, 1))
        >>> upsampler(torch.randn(1, 8, 5, 7)).shape
        torch.Size([1, 4, 10, 7])
    """

    axes = 2
    conv = nn.Conv2d


class CARAFE3d(_CARAFE):
    """CARAFE of volumes: (N, C_in, D, H, W) to (N, C_out, D * s_1, H * s_2, W * s_3).

    Args:
        in_channels: channels of the input, >= 1.
        out_channels: channels of the output, >= 1.
        stride: output elements per input element, one integer or one per axis in tensor order, each >= 1.
        kernel_size: elements of the window, one odd number or one per axis; by default 3.
        encoder_kernel_size: kernel size of the convolution that predicts the weights, odd.
        compressed_channels: channels before that convolution.
        padding: "border" repeats the border, "zeros" is the original's.
        projection: whether a 1x1 convolution changes the channels; without it, as in the original, they stay.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> from nnunet_dtc.upsamplers import CARAFE3d
        >>> upsampler = CARAFE3d(8, 4, stride=(1, 2, 2))
        >>> upsampler(torch.randn(1, 8, 3, 5, 7)).shape
        torch.Size([1, 4, 3, 10, 14])
    """

    axes = 3
    conv = nn.Conv3d
