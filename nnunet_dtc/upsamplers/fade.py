"""FADE: reassembly with weights from decoder and encoder features together, and a gate between the two.

Lu et al., *FADE: Fusing the Assets of Decoder and Encoder for Task-Agnostic Upsampling*, ECCV 2022 (arXiv:2207.10392).

- Kernels by the semi-shift convolution: encoder and decoder features are each compressed to 64 channels by a 1x1
  convolution (one bias for both), and one 3x3 convolution, shared by both, goes to the window's weights: over the
  encoder's features around the output element, and over the decoder's around the input element in which it lies. The
  two are summed; then a softmax over the window of 5 elements per axis::

      logits(o) = conv(E)(o) + conv(D)(floor(o / stride)) + bias

- Reassembly of the decoder's features: see :mod:`nnunet_dtc.upsamplers.reassembly`.
- A gate from the decoder's features, ``G = sigmoid(conv 1x1 (x))`` at the nearest input element::

      out = G * skip + (1 - G) * reassembled

This is written from the paper's description. Of the two PyTorch forms that its authors published, one computes the
encoder's share at low resolution, shift by shift, and mixes up shifts and channels when it puts the shifts together;
the other one is the sum above (it adds the bias twice, which is the same as a bias of twice the size).

Everything starts from Xavier's uniform distribution, biases at zero. The 3x3 convolution pads with zeros.

Ours: the form for 3D and for a stride per axis, where the window has 3 elements per axis (the reason stands beside
``DEFAULT_KERNEL_SIZE``); the repeated border of the window; the change of channels before the reassembly, and of the
skip's before the gate where it has others.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnunet_dtc.upsamplers.base import SkipUpsampler, check_count
from nnunet_dtc.upsamplers.layout import merge_subpositions, split_subpositions, spread_subpositions
from nnunet_dtc.upsamplers.reassembly import (
    Padding,
    check_kernel_size,
    check_padding,
    reassemble,
    window_elements,
    window_weights,
)


def fade(
    value: Tensor,
    skip: Tensor,
    fine_logits: Tensor,
    coarse_logits: Tensor,
    gate: Tensor,
    stride: int | Sequence[int],
    kernel_size: int | Sequence[int] | None = None,
    padding: Padding = "border",
) -> Tensor:
    """Reassemble ``value`` with the softmax of both logits, and pass the skip where the gate is open.

    Args:
        value (Tensor[N, C, S_1, .., S_g]), stride, kernel_size, padding: see :func:`reassemble`; by default a window of
            5 elements per axis in 2D and of 3 in 3D.
        skip (Tensor[N, C, S_1 * stride_1, ..]): the encoder's features.
        fine_logits (Tensor[N, window, S_1 * stride_1, ..]): the encoder's share, before the softmax.
        coarse_logits (Tensor[N, window, S_1, ..]): the decoder's share, the same for all sub-positions.
        gate (Tensor[N, 1, S_1, ..]): before the sigmoid; 0 is half of each.

    Returns:
        Tensor[N, C, S_1 * stride_1, ..]: in the dtype of ``value``. Where ``value`` and ``skip`` are the same constant
        per channel, it stays that constant (with "border").
    """
    kernel_size = check_kernel_size(kernel_size, value.ndim - 2)
    # (N, window, S_1, s_1, S_2, s_2, ..) + (N, window, S_1, 1, S_2, 1, ..)
    logits = split_subpositions(fine_logits, spatial_ratio(fine_logits, value)) + spread_subpositions(coarse_logits)
    reassembled = reassemble(value, window_weights(merge_subpositions(logits)), stride, kernel_size, padding)
    reassembled = split_subpositions(reassembled, spatial_ratio(skip, value))  # (N, C, S_1, s_1, S_2, s_2, ..)
    skip = split_subpositions(skip, spatial_ratio(skip, value)).to(value.dtype)
    opened = spread_subpositions(gate.sigmoid().to(value.dtype))  # (N, 1, S_1, 1, S_2, 1, ..)
    return merge_subpositions(torch.lerp(reassembled, skip, opened))


def spatial_ratio(fine: Tensor, coarse: Tensor) -> tuple[int, ...]:
    """How many elements of ``fine`` there are per element of ``coarse``, per axis."""
    return tuple(large // small for large, small in zip(fine.shape[2:], coarse.shape[2:], strict=True))


class _FADE(SkipUpsampler):
    """What FADE2d and FADE3d share.

    The state dict has ``compress_skip.*``, ``compress.weight``, ``encode.*``, ``gate.*``, ``project.*``, and
    ``project_skip.*`` where the skip has other channels than the result.
    """

    functional_conv: ClassVar

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int | Sequence[int],
        *,
        skip_channels: int | None = None,
        kernel_size: int | Sequence[int] | None = None,
        embedding_channels: int = 64,
        padding: Padding = "border",
        projection: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory = {"device": device, "dtype": dtype}
        super().__init__(
            in_channels, out_channels, stride, skip_channels=skip_channels, projection=projection, **factory
        )
        self.kernel_size = check_kernel_size(kernel_size, self.axes)
        check_padding(padding)
        self.padding = padding
        embedding = check_count("embedding_channels", embedding_channels)
        self.compress_skip = self.conv(self.skip_channels, embedding, 1, **factory)
        self.compress = self.conv(in_channels, embedding, 1, bias=False, **factory)
        self.encode = self.conv(embedding, window_elements(self.kernel_size), 3, padding=1, **factory)
        self.gate = self.conv(in_channels, 1, 1, **factory)
        other = self.skip_channels != out_channels
        self.project_skip = self.conv(self.skip_channels, out_channels, 1, **factory) if other else None
        self.reset_kernels()

    def reset_kernels(self) -> None:
        """Draw the kernel prediction and the gate anew. A host's own initialisation must not overwrite them."""
        for part in (self.compress_skip, self.compress, self.encode, self.gate):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, in_channels, S) and (N, skip_channels, S * stride) to (N, out_channels, S * stride)."""
        self.check_input(x)
        self.check_skip(x, skip)
        coarse = type(self).functional_conv(self.compress(x), self.encode.weight, padding=1)  # the bias counts once
        return fade(
            self.value(x),
            skip if self.project_skip is None else self.project_skip(skip),
            self.encode(self.compress_skip(skip)),
            coarse,
            self.gate(x),
            self.stride,
            self.kernel_size,
            self.padding,
        )

    def added_channels(self) -> tuple[int, int]:
        embedding, window = self.compress.out_channels, window_elements(self.kernel_size)
        of_skip = 0 if self.project_skip is None else self.out_channels
        return embedding + window + 1, embedding + window + of_skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, skip_channels={self.skip_channels}, kernel_size={self.kernel_size}"


_ARGUMENTS = """

    Args:
        in_channels, out_channels: channels of the input and of the output, each >= 1.
        stride: output elements per input element, one number or one per axis in tensor order, each >= 1.
        skip_channels: of the encoder's features; out_channels where none are given.
        kernel_size: elements of the window, one odd number or one per axis; 5 in 2D and 3 in 3D.
        embedding_channels: to which both features are compressed.
        padding: "border", or "zeros" as in the original.
        projection: whether a 1x1 convolution gives the channels; without it, as in the original, they stay.
        device, dtype: of the parameters, as everywhere in torch.
    """


class FADE2d(_FADE):
    __doc__ = "FADE of images: (N, C_in, H, W) and a skip to (N, C_out, H * s_1, W * s_2)." + _ARGUMENTS

    axes = 2
    conv = nn.Conv2d
    functional_conv = nn.functional.conv2d


class FADE3d(_FADE):
    __doc__ = "FADE of volumes: (N, C_in, D, H, W) and a skip to (N, C_out, D * s_1, H * s_2, W * s_3)." + _ARGUMENTS

    axes = 3
    conv = nn.Conv3d
    functional_conv = nn.functional.conv3d
