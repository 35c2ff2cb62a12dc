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

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnunet_dtc.ops.checks import check_fits, check_value
from nnunet_dtc.ops.layout import merge_subpositions, split_subpositions, spread_subpositions
from nnunet_dtc.upsamplers.reassembly import (
    ARGUMENTS,
    Padding,
    SkipReassembly,
    check_kernel_size,
    reassemble,
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

    Raises:
        ValueError: a size or an argument is not as described.
        TypeError: a tensor is not floating.
    """
    stride, fine = check_value(value, stride)
    kernel_size = check_kernel_size(kernel_size, len(stride))
    (batch, channels, *sizes), window = value.shape, math.prod(kernel_size)
    check_fits("skip", skip, "(N, C, *(S * stride))", (batch, channels, *fine))
    check_fits("fine_logits", fine_logits, "(N, window, *(S * stride))", (batch, window, *fine))
    check_fits("coarse_logits", coarse_logits, "(N, window, *S)", (batch, window, *sizes))
    check_fits("gate", gate, "(N, 1, *S)", (batch, 1, *sizes))
    # (N, window, S_1, s_1, S_2, s_2, ..) + (N, window, S_1, 1, S_2, 1, ..)
    logits = split_subpositions(fine_logits, stride) + spread_subpositions(coarse_logits)
    reassembled = reassemble(value, window_weights(merge_subpositions(logits)), stride, kernel_size, padding)
    reassembled = split_subpositions(reassembled, stride)  # (N, C, S_1, s_1, S_2, s_2, ..)
    skip = split_subpositions(skip, stride).to(value.dtype)
    opened = spread_subpositions(gate.sigmoid().to(value.dtype))  # (N, 1, S_1, 1, S_2, 1, ..)
    return merge_subpositions(torch.lerp(reassembled, skip, opened))


class _FADE(SkipReassembly):
    """What FADE2d and FADE3d share.

    The state dict has ``compress_skip.*``, ``compress.weight``, ``encode.*``, ``gate.*``, ``project.*``, and
    ``project_skip.*`` where the skip has other channels than the result.
    """

    functional_conv: ClassVar

    def make_parts(self, embedding: int, **factory: Any) -> None:
        self.compress_skip = self.conv(self.skip_channels, embedding, 1, **factory)
        self.compress = self.conv(self.in_channels, embedding, 1, bias=False, **factory)
        self.encode = self.conv(embedding, math.prod(self.kernel_size), 3, padding=1, **factory)
        self.gate = self.conv(self.in_channels, 1, 1, **factory)
        other = self.skip_channels != self.out_channels
        self.project_skip = self.conv(self.skip_channels, self.out_channels, 1, **factory) if other else None

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
        embedding, window = self.compress.out_channels, math.prod(self.kernel_size)
        of_skip = 0 if self.project_skip is None else self.out_channels
        return embedding + window + 1, embedding + window + of_skip


class FADE2d(_FADE):
    __doc__ = "FADE of images: (N, C_in, H, W) and a skip to (N, C_out, H * s_1, W * s_2)." + ARGUMENTS

    axes = 2
    conv = nn.Conv2d
    functional_conv = nn.functional.conv2d


class FADE3d(_FADE):
    __doc__ = "FADE of volumes: (N, C_in, D, H, W) and a skip to (N, C_out, D * s_1, H * s_2, W * s_3)." + ARGUMENTS

    axes = 3
    conv = nn.Conv3d
    functional_conv = nn.functional.conv3d
