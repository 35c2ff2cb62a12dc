"""FADE: reassembly with weights from decoder and encoder features, and a gate between the two.

Lu et al., *FADE: Fusing the Assets of Decoder and Encoder for Task-Agnostic Upsampling*, ECCV 2022 (arXiv:2207.10392).

- Kernels by the semi-shift convolution: 1x1 convolutions (with one bias for both) compress the encoder features E and
  the decoder features D to 64 channels each. One 3x3 convolution with the same weights for both predicts the logits of
  the window: from the encoder features around the output element, and from the decoder features around the input
  element in which it lies. Their sum goes through a softmax over the window of 5 elements per axis::

      logits(o) = conv(E)(o) + conv(D)(floor(o / stride)) + bias

- Reassembly of the decoder features: see :mod:`nnunet_dtc.upsamplers.reassembly`.
- A gate from the decoder features, ``G = sigmoid(conv 1x1 (D))`` at the nearest input element::

      out = G * E + (1 - G) * reassembled

This implementation follows the description in the paper. The authors published two PyTorch implementations. One of them
computes the encoder's part at low resolution, shift by shift, and confuses shifts and channels when it joins the
shifts. The other one computes the sum above, but adds the bias twice, which is equivalent to a bias of twice the size.

All weights start from Xavier's uniform distribution, and the biases at zero. The 3x3 convolution pads with zeros.

Ours: the form for 3D, where the window has 3 elements per axis (the comment at ``DEFAULT_KERNEL_SIZE`` gives the
reason), and for a stride per axis; the repeated border of the window; the change of channels before the reassembly, and
a 1x1 convolution of the encoder features before the gate if they have other channels than the result.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_dtc.ops.checks import check_fits, check_value
from nnunet_dtc.ops.layout import merge_subpositions, split_subpositions, spread_subpositions
from nnunet_dtc.upsamplers.base import zero_biases
from nnunet_dtc.upsamplers.reassembly import (
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
    """Reassemble ``value`` with the softmax of the sum of both logits, and mix it with ``skip`` by the gate.

    Args:
        value (Tensor[N, C, S_1, .., S_g]): g = 2 or 3, any floating dtype.
        skip (Tensor[N, C, S_1 * stride_1, ..]): the encoder's features.
        fine_logits (Tensor[N, window, S_1 * stride_1, ..]): logits from the encoder, elements of the window in
            row-major order.
        coarse_logits (Tensor[N, window, S_1, ..]): logits from the decoder, which all sub-positions of an element use.
        gate (Tensor[N, 1, S_1, ..]): weight of ``skip`` before the sigmoid; with 0, both terms have the same weight.
        stride: output elements per input element, one integer or one per axis, each >= 1.
        kernel_size: elements of the window, one odd number or one per axis; by default 5 in 2D and 3 in 3D.
        padding: "border" repeats the border, "zeros" is the original's.

    Returns:
        Tensor[N, C, S_1 * stride_1, ..]: in the dtype of ``value``. If both maps are constant and equal, so is
        the result (with "border").

    Raises:
        ValueError: a shape or an argument is not as described.
        TypeError: a tensor is not floating.

    Example:
        Logits of zero average the window, and a gate of zero averages the result with the skip:

        >>> import torch
        >>> from nnunet_dtc.upsamplers import fade
        >>> value, skip = torch.tensor([3.0, 6, 9]).view(1, 1, 1, 3), torch.ones(1, 1, 1, 6)
        >>> logits = {"fine_logits": torch.zeros(1, 3, 1, 6), "coarse_logits": torch.zeros(1, 3, 1, 3)}
        >>> gate = torch.zeros(1, 1, 1, 3)
        >>> fade(value, skip, **logits, gate=gate, stride=(1, 2), kernel_size=(1, 3)).flatten().tolist()
        [2.5, 2.5, 3.5, 3.5, 4.5, 4.5]
    """
    steps, fine = check_value(value, stride)
    sides = check_kernel_size(kernel_size, len(steps))
    (batch, channels, *sizes), window = value.shape, math.prod(sides)
    check_fits("skip", skip, "(N, C, *(S * stride))", (batch, channels, *fine))
    check_fits("fine_logits", fine_logits, "(N, window, *(S * stride))", (batch, window, *fine))
    check_fits("coarse_logits", coarse_logits, "(N, window, *S)", (batch, window, *sizes))
    check_fits("gate", gate, "(N, 1, *S)", (batch, 1, *sizes))
    # (N, window, S_1, s_1, S_2, s_2, ..) + (N, window, S_1, 1, S_2, 1, ..)
    logits = split_subpositions(fine_logits, steps) + spread_subpositions(coarse_logits)
    reassembled = reassemble(value, window_weights(merge_subpositions(logits)), steps, sides, padding)
    reassembled = split_subpositions(reassembled, steps)  # (N, C, S_1, s_1, S_2, s_2, ..)
    skip = split_subpositions(skip, steps).to(value.dtype)
    weight = spread_subpositions(gate.sigmoid().to(value.dtype))  # (N, 1, S_1, 1, S_2, 1, ..)
    return merge_subpositions(torch.lerp(reassembled, skip, weight))


class _FADE(SkipReassembly):
    """The common part of FADE2d and FADE3d.

    The state dict has ``compress_skip.*``, ``compress.weight``, ``encode.*``, ``gate.*``, ``project.*``, and
    ``project_skip.*`` if the skip has other channels than the result.
    """

    def make_layers(self, embedding: int, **factory: Any) -> None:
        self.compress_skip = self.conv(self.skip_channels, embedding, 1, **factory)
        self.compress = self.conv(self.in_channels, embedding, 1, bias=False, **factory)
        self.encode = self.conv(embedding, math.prod(self.kernel_size), 3, padding=1, **factory)
        self.gate = self.conv(self.in_channels, 1, 1, **factory)
        other = self.skip_channels != self.out_channels
        self.project_skip = self.conv(self.skip_channels, self.out_channels, 1, **factory) if other else None

    def reset_kernels(self) -> None:
        layers = (self.compress_skip, self.compress, self.encode, self.gate)
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
        zero_biases(*layers)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, in_channels, S) and (N, skip_channels, S * stride) to (N, out_channels, S * stride)."""
        self.check_input(x)
        self.check_skip(x, skip)
        conv = F.conv2d if self.axes == 2 else F.conv3d
        coarse = conv(self.compress(x), self.encode.weight, padding=1)  # without the bias, which must count once
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
    """FADE of images: (N, C_in, H, W) and a skip to (N, C_out, H * s_1, W * s_2).

    Args:
        in_channels: channels of the input, >= 1.
        out_channels: channels of the output, >= 1.
        stride: output elements per input element, one integer or one per axis in tensor order, each >= 1.
        skip_channels: channels of the encoder's features; by default ``out_channels``.
        kernel_size: elements of the window, one odd number or one per axis; by default 5.
        embedding_channels: channels of both embeddings.
        padding: "border" repeats the border, "zeros" is the original's.
        projection: whether a 1x1 convolution changes the channels; without it, as in the original, they stay.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> from nnunet_dtc.upsamplers import FADE2d
        >>> upsampler = FADE2d(8, 4, stride=(2, 1))
        >>> upsampler(torch.randn(1, 8, 5, 7), torch.randn(1, 4, 10, 7)).shape
        torch.Size([1, 4, 10, 7])
    """

    axes = 2
    conv = nn.Conv2d


class FADE3d(_FADE):
    """FADE of volumes: (N, C_in, D, H, W) and a skip to (N, C_out, D * s_1, H * s_2, W * s_3).

    Args:
        in_channels: channels of the input, >= 1.
        out_channels: channels of the output, >= 1.
        stride: output elements per input element, one integer or one per axis in tensor order, each >= 1.
        skip_channels: channels of the encoder's features; by default ``out_channels``.
        kernel_size: elements of the window, one odd number or one per axis; by default 3.
        embedding_channels: channels of both embeddings.
        padding: "border" repeats the border, "zeros" is the original's.
        projection: whether a 1x1 convolution changes the channels; without it, as in the original, they stay.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> from nnunet_dtc.upsamplers import FADE3d
        >>> upsampler = FADE3d(8, 4, stride=(1, 2, 2))
        >>> upsampler(torch.randn(1, 8, 3, 5, 7), torch.randn(1, 4, 3, 10, 14)).shape
        torch.Size([1, 4, 3, 10, 14])
    """

    axes = 3
    conv = nn.Conv3d
