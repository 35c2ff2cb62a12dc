"""SAPA: reassembly with weights from the similarity between encoder features and a window of decoder features.

Lu et al., *SAPA: Similarity-Aware Point Affiliation for Feature Upsampling*, NeurIPS 2022 (arXiv:2209.12866), in the
form with bilinear similarity (SAPA-B). Encoder and decoder features are normalised over their channels (LayerNorm).
Linear layers with 64 channels then give the queries q (encoder) and the keys k (decoder). The weight of the window
element m is ::

    softmax over m of  q(o) . k(floor(o / stride) + m)

With these weights the decoder features are reassembled, see :mod:`nnunet_dtc.upsamplers.reassembly`. The window has 5
elements per axis. The linear layers start from a truncated normal distribution with standard deviation 0.02, and their
biases at zero.

Ours: the form for 3D, where the window has 3 elements per axis (the comment at ``DEFAULT_KERNEL_SIZE`` gives the
reason), and for a stride per axis; the repeated border of keys and features (in the original, elements outside the map
are zeros and have a similarity of zero); the change of channels before the reassembly. Similarities are summed in
float32 at least.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_dtc.ops.checks import check_fits, check_value
from nnunet_dtc.ops.layout import merge_subpositions, split_subpositions, spread_subpositions
from nnunet_dtc.upsamplers.base import zero_biases
from nnunet_dtc.upsamplers.reassembly import (
    Padding,
    SkipReassembly,
    check_kernel_size,
    check_padding,
    neighbours,
    reassemble,
    window_weights,
)

LINEAR_INIT_STD = 0.02


def sapa(
    value: Tensor,
    queries: Tensor,
    keys: Tensor,
    stride: int | Sequence[int],
    kernel_size: int | Sequence[int] | None = None,
    padding: Padding = "border",
) -> Tensor:
    """Reassemble ``value`` with the softmax, over the window, of the similarities of queries and keys.

    Args:
        value (Tensor[N, C, S_1, .., S_g]): g = 2 or 3, any floating dtype.
        queries (Tensor[N, E, S_1 * stride_1, ..]): one vector per output element.
        keys (Tensor[N, E, S_1, ..]): one vector per input element.
        stride: output elements per input element, one integer or one per axis, each >= 1.
        kernel_size: elements of the window, one odd number or one per axis; by default 5 in 2D and 3 in 3D.
        padding: "border" repeats the border, "zeros" is the original's.

    Returns:
        Tensor[N, C, S_1 * stride_1, ..]: in the dtype of ``value``. With "border" a constant map stays constant.

    Raises:
        ValueError: a shape or an argument is not as described.
        TypeError: a tensor is not floating.

    Example:
        Queries of zero are equally similar to all keys, so the window is averaged:

        >>> import torch
        >>> from nnunet_dtc.upsamplers import sapa
        >>> value = torch.tensor([3.0, 6, 9]).view(1, 1, 1, 3)
        >>> queries, keys = torch.zeros(1, 2, 1, 6), torch.randn(1, 2, 1, 3)
        >>> sapa(value, queries, keys, stride=(1, 2), kernel_size=(1, 3)).flatten().tolist()
        [4.0, 4.0, 6.0, 6.0, 8.0, 8.0]
    """
    steps, fine = check_value(value, stride)
    window = check_kernel_size(kernel_size, len(steps))
    check_padding(padding)
    batch, embedding = value.shape[0], queries.shape[1:2]
    check_fits("queries", queries, "(N, E, *(S * stride))", (batch, *embedding, *fine))
    check_fits("keys", keys, "(N, E, *S)", (batch, *embedding, *value.shape[2:]))
    queries = split_subpositions(queries, steps)  # (N, E, S_1, s_1, S_2, s_2, ..)
    dtype = torch.promote_types(queries.dtype, torch.float32)
    similarities = [
        (queries * spread_subpositions(key)).sum(1, dtype=dtype)  # (N, S_1, s_1, S_2, s_2, ..)
        for key in neighbours(keys, window, padding)
    ]
    logits = merge_subpositions(torch.stack(similarities, dim=1))  # (N, window, *(S * stride))
    return reassemble(value, window_weights(logits), steps, window, padding)


class _SAPA(SkipReassembly):
    """The common part of SAPA2d and SAPA3d.

    The state dict has ``norm_skip.*``, ``norm.*``, ``query.*``, ``key.*`` and ``project.*``.
    """

    def make_layers(self, embedding: int, **factory: Any) -> None:
        self.norm_skip = nn.LayerNorm(self.skip_channels, **factory)
        self.norm = nn.LayerNorm(self.in_channels, **factory)
        self.query = nn.Linear(self.skip_channels, embedding, **factory)
        self.key = nn.Linear(self.in_channels, embedding, **factory)

    def reset_kernels(self) -> None:
        for layer in (self.query, self.key):
            nn.init.trunc_normal_(layer.weight, std=LINEAR_INIT_STD)
        zero_biases(self.query, self.key)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, in_channels, S) and (N, skip_channels, S * stride) to (N, out_channels, S * stride)."""
        self.check_input(x)
        self.check_skip(x, skip)
        # channels last and back: (N, C, S) to (N, S, C) to (N, S, E) to (N, E, S). The last axis has a positive index,
        # because torch's TorchScript exporter would write a negative one to ONNX's Transpose, where it is invalid
        last = x.ndim - 1
        queries = self.query(self.norm_skip(skip.movedim(1, last))).movedim(last, 1).contiguous()
        keys = self.key(self.norm(x.movedim(1, last))).movedim(last, 1).contiguous()
        return sapa(self.value(x), queries, keys, self.stride, self.kernel_size, self.padding)

    def added_channels(self) -> tuple[int, int]:
        embedding = self.query.out_features
        return embedding, embedding + math.prod(self.kernel_size)


class SAPA2d(_SAPA):
    """SAPA of images: (N, C_in, H, W) and a skip to (N, C_out, H * s_1, W * s_2).

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
        >>> from nnunet_dtc.upsamplers import SAPA2d
        >>> upsampler = SAPA2d(8, 4, stride=(2, 1))
        >>> upsampler(torch.randn(1, 8, 5, 7), torch.randn(1, 4, 10, 7)).shape
        torch.Size([1, 4, 10, 7])
    """

    axes = 2
    conv = nn.Conv2d


class SAPA3d(_SAPA):
    """SAPA of volumes: (N, C_in, D, H, W) and a skip to (N, C_out, D * s_1, H * s_2, W * s_3).

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
        >>> from nnunet_dtc.upsamplers import SAPA3d
        >>> upsampler = SAPA3d(8, 4, stride=(1, 2, 2))
        >>> upsampler(torch.randn(1, 8, 3, 5, 7), torch.randn(1, 4, 3, 10, 14)).shape
        torch.Size([1, 4, 3, 10, 14])
    """

    axes = 3
    conv = nn.Conv3d
