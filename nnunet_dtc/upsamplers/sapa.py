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

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_dtc.upsamplers.base import SkipUpsampler, check_count
from nnunet_dtc.upsamplers.layout import merge_subpositions, split_subpositions, spread_subpositions
from nnunet_dtc.upsamplers.reassembly import (
    Padding,
    check_kernel_size,
    check_padding,
    neighbours,
    reassemble,
    window_elements,
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
    """
    kernel_size = check_kernel_size(kernel_size, value.ndim - 2)
    ratio = [large // small for large, small in zip(queries.shape[2:], keys.shape[2:], strict=True)]
    queries = split_subpositions(queries, ratio)  # (N, E, S_1, s_1, S_2, s_2, ..)
    dtype = torch.promote_types(queries.dtype, torch.float32)
    similarities = [
        (queries * spread_subpositions(key)).sum(1, dtype=dtype)  # (N, S_1, s_1, S_2, s_2, ..)
        for key in neighbours(keys, kernel_size, padding)
    ]
    logits = merge_subpositions(torch.stack(similarities, dim=1))  # (N, window, *(S * stride))
    return reassemble(value, window_weights(logits), stride, kernel_size, padding)


class _SAPA(SkipUpsampler):
    """What SAPA2d and SAPA3d share.

    The state dict has ``norm_skip.*``, ``norm.*``, ``query.*``, ``key.*`` and ``project.*``.
    """

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
        self.norm_skip = nn.LayerNorm(self.skip_channels, **factory)
        self.norm = nn.LayerNorm(in_channels, **factory)
        self.query = nn.Linear(self.skip_channels, embedding, **factory)
        self.key = nn.Linear(in_channels, embedding, **factory)
        self.reset_kernels()

    def reset_kernels(self) -> None:
        """Draw queries and keys anew. A host's own initialisation must not overwrite them."""
        for part in (self.query, self.key):
            nn.init.trunc_normal_(part.weight, std=LINEAR_INIT_STD)
            nn.init.zeros_(part.bias)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, in_channels, S) and (N, skip_channels, S * stride) to (N, out_channels, S * stride)."""
        self.check_input(x)
        self.check_skip(x, skip)
        # channels last and back: (N, C, S) to (N, S, C) to (N, S, E) to (N, E, S)
        queries = self.query(self.norm_skip(skip.movedim(1, -1))).movedim(-1, 1).contiguous()
        keys = self.key(self.norm(x.movedim(1, -1))).movedim(-1, 1).contiguous()
        return sapa(self.value(x), queries, keys, self.stride, self.kernel_size, self.padding)

    def added_channels(self) -> tuple[int, int]:
        embedding = self.query.out_features
        return embedding, embedding + window_elements(self.kernel_size)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, skip_channels={self.skip_channels}, kernel_size={self.kernel_size}"


_ARGUMENTS = """

    Args:
        in_channels, out_channels: channels of the input and of the output, each >= 1.
        stride: output elements per input element, one number or one per axis in tensor order, each >= 1.
        skip_channels: of the encoder's features; out_channels where none are given.
        kernel_size: elements of the window, one odd number or one per axis; 5 in 2D and 3 in 3D.
        embedding_channels: of queries and keys.
        padding: "border", or "zeros" as in the original.
        projection: whether a 1x1 convolution gives the channels; without it, as in the original, they stay.
        device, dtype: of the parameters, as everywhere in torch.
    """


class SAPA2d(_SAPA):
    __doc__ = "SAPA of images: (N, C_in, H, W) and a skip to (N, C_out, H * s_1, W * s_2)." + _ARGUMENTS

    axes = 2
    conv = nn.Conv2d


class SAPA3d(_SAPA):
    __doc__ = "SAPA of volumes: (N, C_in, D, H, W) and a skip to (N, C_out, D * s_1, H * s_2, W * s_3)." + _ARGUMENTS

    axes = 3
    conv = nn.Conv3d
