"""Sub-positions: the ``prod(stride)`` output elements that lie in one input element, for any stride.

In 2D with one stride for both axes ``pixel_shuffle`` is torch's. The general form is ours.
"""

import math
from collections.abc import Sequence

from torch import Tensor


def pixel_shuffle(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Rearrange channels to sub-positions.

    Args:
        x (Tensor[N, C * stride_1 * .. * stride_g, S_1, .., S_g]): the last index of the channels is the sub-position
            along the last axis, as in ``torch.nn.functional.pixel_shuffle``.
        stride: one per axis.

    Returns:
        Tensor[N, C, S_1 * stride_1, .., S_g * stride_g]: a copy.

    Example:
        >>> import torch
        >>> pixel_shuffle(torch.arange(6).view(1, 6, 1, 1), (2, 3))
        tensor([[[[0, 1, 2],
                  [3, 4, 5]]]])
    """
    axes = len(stride)
    x = x.reshape(x.shape[0], x.shape[1] // math.prod(stride), *stride, *x.shape[2:])  # (N, C, s_1, .., S_1, ..)
    order = [index for axis in range(axes) for index in (2 + axes + axis, 2 + axis)]  # S_1, s_1, S_2, s_2, ..
    return merge_subpositions(x.permute(0, 1, *order))


def split_subpositions(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Reshape (N, C, S_1 * stride_1, ..) to (N, C, S_1, stride_1, S_2, stride_2, ..)."""
    shape = [part for size, step in zip(x.shape[2:], stride, strict=True) for part in (size // step, step)]
    return x.reshape(*x.shape[:2], *shape)


def merge_subpositions(x: Tensor) -> Tensor:
    """Reshape (N, C, S_1, stride_1, S_2, stride_2, ..) to (N, C, S_1 * stride_1, ..)."""
    shape = [size * step for size, step in zip(x.shape[2::2], x.shape[3::2], strict=True)]
    return x.reshape(*x.shape[:2], *shape)


def spread_subpositions(x: Tensor) -> Tensor:
    """Reshape (N, C, S_1, S_2, ..) to (N, C, S_1, 1, S_2, 1, ..), which broadcasts over the sub-positions."""
    for axis in range(3, 2 * x.ndim - 1, 2):
        x = x.unsqueeze(axis)
    return x
