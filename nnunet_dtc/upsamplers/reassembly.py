"""Reassembly: every output element is a weighted sum of a window of input elements, with weights of its own.

Wang et al., *CARAFE: Content-Aware ReAssembly of FEatures*, ICCV 2019 (arXiv:1905.02188), section 3.3: the window of
``kernel_size`` elements is centred at the input element in which the output element lies. CARAFE, FADE and SAPA differ
in where the weights come from.

Ours: the form for 3D and for a stride per axis; and the border. The original takes elements outside of the map for
zeros, so that a constant map fades towards its borders. Here the border is repeated (``padding="border"``), so that
weights which sum to one keep a constant everywhere; ``padding="zeros"`` is the original. The sums are float32 at least.
Memory: the window is never unfolded; beside the weights one sum of the size of the result is kept.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_dtc.ops.checks import check_count, check_fits, check_value
from nnunet_dtc.ops.layout import merge_subpositions, split_subpositions, spread_subpositions
from nnunet_dtc.upsamplers.base import SkipUpsampler

Padding = Literal["border", "zeros"]

# elements of the window per axis: CARAFE's, FADE's and SAPA's 5 in 2D. In 3D, 3: the weights are as large as the
# window at full resolution, and 27 of them are about what 25 are in 2D; 125, of a patch of 128^3 elements, are 1 GiB
# a case in float32, and the convolution to them has 4.6 times as many parameters
DEFAULT_KERNEL_SIZE = {2: 5, 3: 3}


def reassemble(
    value: Tensor,
    weights: Tensor,
    stride: int | Sequence[int],
    kernel_size: int | Sequence[int],
    padding: Padding = "border",
) -> Tensor:
    """Sum the window around every element of ``value`` with the weights of each of its sub-positions.

    Args:
        value (Tensor[N, C, S_1, .., S_g]): g = 2 or 3, any floating dtype.
        weights (Tensor[N, k_1 * .. * k_g, S_1 * stride_1, ..]): window elements in row-major order, first axis first;
            used as they are. Where they sum to one, a constant stays the same constant (with "border").
        stride: elements of the output per element of the input, one number or one per axis, each >= 1.
        kernel_size: k, elements of the window, one odd number or one per axis.
        padding: "border" repeats the border, "zeros" is the original's.

    Returns:
        Tensor[N, C, S_1 * stride_1, ..]: in the dtype of ``value``.

    Raises:
        ValueError: a size or an argument is not as described.
        TypeError: a tensor is not floating.

    Note:
        On CUDA the gradient of a repeated border is summed with atomic additions, so it is not bit-identical from run
        to run. Under ``torch.use_deterministic_algorithms(True)`` torch takes a form that is.
    """
    stride, fine = check_value(value, stride)
    kernel_size = check_kernel_size(kernel_size, len(stride))
    check_padding(padding)
    check_fits("weights", weights, "(N, window, *(S * stride))", (value.shape[0], math.prod(kernel_size), *fine))
    dtype = torch.promote_types(torch.promote_types(value.dtype, weights.dtype), torch.float32)
    each = split_subpositions(weights.to(dtype), stride).unbind(1)  # window times (N, S_1, s_1, S_2, s_2, ..)
    total = value.new_zeros((), dtype=dtype)
    for weight, neighbour in zip(each, neighbours(value.to(dtype), kernel_size, padding), strict=True):
        weight = weight.unsqueeze(1)  # (N, 1, S_1, s_1, S_2, s_2, ..)
        neighbour = spread_subpositions(neighbour)  # (N, C, S_1, 1, S_2, 1, ..)
        total = torch.addcmul(total, weight, neighbour)
    return merge_subpositions(total).to(value.dtype)  # (N, C, *(S * stride))


def neighbours(x: Tensor, kernel_size: Sequence[int], padding: Padding) -> Iterator[Tensor]:
    """For every element of the window, in row-major order, the map of that neighbour: each (N, C, S), a view."""
    pads = [size // 2 for size in reversed(kernel_size) for _ in range(2)]  # last axis first
    padded = F.pad(x, pads, mode="replicate") if padding == "border" else F.pad(x, pads)
    for start in itertools.product(*(range(size) for size in kernel_size)):
        neighbour = padded
        for axis, first in enumerate(start):
            neighbour = neighbour.narrow(2 + axis, first, x.shape[2 + axis])
        yield neighbour


def window_weights(logits: Tensor) -> Tensor:
    """Softmax over the window (channels), float32 at least: positive weights that sum to one."""
    return logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))


def check_kernel_size(kernel_size: int | Sequence[int] | None, axes: int) -> tuple[int, ...]:
    """One odd number per axis, the default's where it is None; ValueError where it is something else."""
    sizes = DEFAULT_KERNEL_SIZE[axes] if kernel_size is None else kernel_size
    sizes = tuple(sizes) if hasattr(sizes, "__iter__") else (sizes,) * axes
    if len(sizes) != axes or any(not isinstance(size, int) or size < 1 or size % 2 == 0 for size in sizes):
        raise ValueError(f"kernel_size must be an odd number, or one per axis ({axes}), got {kernel_size=}")
    return sizes


def check_padding(padding: Padding) -> Padding:
    """The padding; ValueError where it is neither "border" nor "zeros"."""
    if padding not in ("border", "zeros"):
        raise ValueError(f"padding must be 'border' or 'zeros', got {padding=}")
    return padding


class SkipReassembly(SkipUpsampler):
    """What FADE and SAPA share: a window whose weights come from two embeddings, of the skip and of the input.

    Attributes:
        kernel_size: elements of the window per axis.
        padding: "border" or "zeros".
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
        self.padding = check_padding(padding)
        self.make_parts(check_count("embedding_channels", embedding_channels), **factory)
        self.reset_kernels()

    def make_parts(self, embedding: int, **factory: Any) -> None:
        """Make the layers that give the weights, with that many channels in both embeddings."""
        raise NotImplementedError

    def reset_kernels(self) -> None:
        """Draw these layers anew. A host's own initialisation must not overwrite them."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, skip_channels={self.skip_channels}, kernel_size={self.kernel_size}"


ARGUMENTS = """

    Args:
        in_channels, out_channels: channels of the input and of the output, each >= 1.
        stride: output elements per input element, one number or one per axis in tensor order, each >= 1.
        skip_channels: of the encoder's features; out_channels where none are given.
        kernel_size: elements of the window, one odd number or one per axis; 5 in 2D and 3 in 3D.
        embedding_channels: of both embeddings.
        padding: "border", or "zeros" as in the original.
        projection: whether a 1x1 convolution gives the channels; without it, as in the original, they stay.
        device, dtype: of the parameters, as everywhere in torch.
    """
