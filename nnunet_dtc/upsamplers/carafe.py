"""CARAFE: reassembly with weights that a small network predicts from the features themselves.

Wang et al., *CARAFE: Content-Aware ReAssembly of FEatures*, ICCV 2019 (arXiv:1905.02188). Section 3.2, kernel
prediction: a 1x1 convolution to 64 channels, a 3x3 convolution to ``window * prod(stride)`` channels, a pixel shuffle,
and a softmax over the window. Section 3.3, reassembly: see :mod:`nnunet_dtc.upsamplers.reassembly`. The window has 5
elements per axis.

The compression starts from Xavier's uniform distribution, the content encoder from a normal one with standard deviation
0.001 (as MMCV, the original's home, has it), biases at zero: a new block averages its window.

Ours: the form for 3D and for a stride per axis, where the window has 3 elements per axis (the reason stands beside
``DEFAULT_KERNEL_SIZE``); the repeated border; the change of channels before the reassembly.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_dtc.ops.checks import check_count, check_fits, check_value
from nnunet_dtc.ops.layout import pixel_shuffle
from nnunet_dtc.upsamplers.base import Upsampler
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
        value (Tensor[N, C, S_1, .., S_g]), stride, kernel_size, padding: see :func:`reassemble`; by default a window of
            5 elements per axis in 2D and of 3 in 3D.
        logits (Tensor[N, window, S_1 * stride_1, ..]): before the softmax.

    Returns:
        Tensor[N, C, S_1 * stride_1, ..]: in the dtype of ``value``. With "border" a constant stays the same constant.

    Raises:
        ValueError: a size or an argument is not as described.
        TypeError: a tensor is not floating.
    """
    stride, fine = check_value(value, stride)
    kernel_size = check_kernel_size(kernel_size, len(stride))
    check_fits("logits", logits, "(N, window, *(S * stride))", (value.shape[0], math.prod(kernel_size), *fine))
    return reassemble(value, window_weights(logits), stride, kernel_size, padding)


class _CARAFE(Upsampler):
    """What CARAFE2d and CARAFE3d share. The state dict has ``compress.*``, ``encode.*`` and ``project.*``."""

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
        """Draw the kernel prediction anew. A host's own initialisation must not overwrite it."""
        nn.init.xavier_uniform_(self.compress.weight)
        nn.init.normal_(self.encode.weight, std=ENCODER_INIT_STD)
        nn.init.zeros_(self.compress.bias)
        nn.init.zeros_(self.encode.bias)

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


_ARGUMENTS = """

    Args:
        in_channels, out_channels: channels of the input and of the output, each >= 1.
        stride: output elements per input element, one number or one per axis in tensor order, each >= 1.
        kernel_size: elements of the window, one odd number or one per axis; 5 in 2D and 3 in 3D.
        encoder_kernel_size: of the convolution that predicts the weights, an odd number.
        compressed_channels: before that convolution.
        padding: "border", or "zeros" as in the original.
        projection: whether a 1x1 convolution gives the channels; without it, as in the original, they stay.
        device, dtype: of the parameters, as everywhere in torch.
    """


class CARAFE2d(_CARAFE):
    __doc__ = "CARAFE of images: (N, C_in, H, W) to (N, C_out, H * s_1, W * s_2)." + _ARGUMENTS

    axes = 2
    conv = nn.Conv2d


class CARAFE3d(_CARAFE):
    __doc__ = "CARAFE of volumes: (N, C_in, D, H, W) to (N, C_out, D * s_1, H * s_2, W * s_3)." + _ARGUMENTS

    axes = 3
    conv = nn.Conv3d
