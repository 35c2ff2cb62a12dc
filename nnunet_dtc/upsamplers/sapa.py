"""SAPA: reassembly with weights from the similarity of encoder features with a window of decoder features.

Lu et al., *SAPA: Similarity-Aware Point Affiliation for Feature Upsampling*, NeurIPS 2022 (arXiv:2209.12866), in the
form with bilinear similarity (SAPA-B): encoder and decoder features are normalised over their channels (LayerNorm),
and each goes through a linear layer to 64 channels, the queries q and the keys k. The weight of window element m is ::

    softmax over m of  q(o) . k(floor(o / stride) + m)

and the decoder's features are reassembled with it, see :mod:`nnunet_dtc.upsamplers.reassembly`. The window has 5
elements per axis. The linear layers start from a truncated normal distribution with standard deviation 0.02, biases at
zero.

Ours: the form for 3D and for a stride per axis, where the window has 3 elements per axis (the reason stands beside
``DEFAULT_KERNEL_SIZE``); the repeated border, of keys and features alike, where the original's elements outside of the
map have a similarity of zero and are zeros; the change of channels before the reassembly. Similarities are summed in
float32 at least.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_dtc.ops.checks import check_fits, check_value
from nnunet_dtc.ops.layout import merge_subpositions, split_subpositions, spread_subpositions
from nnunet_dtc.upsamplers.reassembly import (
    ARGUMENTS,
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
    """Reassemble ``value`` with the softmax of the similarities of queries and keys over the window.

    Args:
        value (Tensor[N, C, S_1, .., S_g]), stride, kernel_size, padding: see :func:`reassemble`; by default a window of
            5 elements per axis in 2D and of 3 in 3D.
        queries (Tensor[N, E, S_1 * stride_1, ..]): of the output's elements.
        keys (Tensor[N, E, S_1, ..]): of the input's.

    Returns:
        Tensor[N, C, S_1 * stride_1, ..]: in the dtype of ``value``. With "border" a constant stays the same constant.

    Raises:
        ValueError: a size or an argument is not as described.
        TypeError: a tensor is not floating.
    """
    stride, fine = check_value(value, stride)
    kernel_size = check_kernel_size(kernel_size, len(stride))
    check_padding(padding)
    batch, embedding = value.shape[0], queries.shape[1:2]
    check_fits("queries", queries, "(N, E, *(S * stride))", (batch, *embedding, *fine))
    check_fits("keys", keys, "(N, E, *S)", (batch, *embedding, *value.shape[2:]))
    queries = split_subpositions(queries, stride)  # (N, E, S_1, s_1, S_2, s_2, ..)
    dtype = torch.promote_types(queries.dtype, torch.float32)
    similarities = [
        (queries * spread_subpositions(key)).sum(1, dtype=dtype)  # (N, S_1, s_1, S_2, s_2, ..)
        for key in neighbours(keys, kernel_size, padding)
    ]
    logits = merge_subpositions(torch.stack(similarities, dim=1))  # (N, window, *(S * stride))
    return reassemble(value, window_weights(logits), stride, kernel_size, padding)


class _SAPA(SkipReassembly):
    """What SAPA2d and SAPA3d share.

    The state dict has ``norm_skip.*``, ``norm.*``, ``query.*``, ``key.*`` and ``project.*``.
    """

    def make_parts(self, embedding: int, **factory: Any) -> None:
        self.norm_skip = nn.LayerNorm(self.skip_channels, **factory)
        self.norm = nn.LayerNorm(self.in_channels, **factory)
        self.query = nn.Linear(self.skip_channels, embedding, **factory)
        self.key = nn.Linear(self.in_channels, embedding, **factory)

    def reset_kernels(self) -> None:
        """Draw queries and keys anew. A host's own initialisation must not overwrite them."""
        for part in (self.query, self.key):
            nn.init.trunc_normal_(part.weight, std=LINEAR_INIT_STD)
            nn.init.zeros_(part.bias)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, in_channels, S) and (N, skip_channels, S * stride) to (N, out_channels, S * stride)."""
        self.check_input(x)
        self.check_skip(x, skip)
        # channels last and back: (N, C, S) to (N, S, C) to (N, S, E) to (N, E, S). The last axis is counted from the
        # front, because torch's TorchScript exporter writes a negative one into ONNX's Transpose, which is not valid
        last = x.ndim - 1
        queries = self.query(self.norm_skip(skip.movedim(1, last))).movedim(last, 1).contiguous()
        keys = self.key(self.norm(x.movedim(1, last))).movedim(last, 1).contiguous()
        return sapa(self.value(x), queries, keys, self.stride, self.kernel_size, self.padding)

    def added_channels(self) -> tuple[int, int]:
        embedding = self.query.out_features
        return embedding, embedding + math.prod(self.kernel_size)


class SAPA2d(_SAPA):
    __doc__ = "SAPA of images: (N, C_in, H, W) and a skip to (N, C_out, H * s_1, W * s_2)." + ARGUMENTS

    axes = 2
    conv = nn.Conv2d


class SAPA3d(_SAPA):
    __doc__ = "SAPA of volumes: (N, C_in, D, H, W) and a skip to (N, C_out, D * s_1, H * s_2, W * s_3)." + ARGUMENTS

    axes = 3
    conv = nn.Conv3d
