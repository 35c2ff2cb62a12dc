"""Sub-positions: the ``prod(stride)`` output elements that lie in one element of the input, for any stride.

In 2D with one stride for both axes ``pixel_shuffle`` is torch's. The general form is ours.
"""

from collections.abc import Sequence

from torch import Tensor


def pixel_shuffle(x: Tensor, stride: Sequence[int]) -> Tensor:
    """(N, C * stride_1 * .. * stride_g, S_1, .., S_g) to (N, C, S_1 * stride_1, .., S_g * stride_g).

    The last index of the channels is the sub-position of the last axis, as in ``torch.nn.functional.pixel_shuffle``.
    """
    axes = len(stride)
    channels = x.shape[1]
    for step in stride:
        channels //= step
    x = x.reshape(x.shape[0], channels, *stride, *x.shape[2:])  # (N, C, s_1, .., s_g, S_1, .., S_g)
    order = [index for axis in range(axes) for index in (2 + axes + axis, 2 + axis)]
    return merge_subpositions(x.permute(0, 1, *order))


def split_subpositions(x: Tensor, stride: Sequence[int]) -> Tensor:
    """(N, C, S_1 * stride_1, ..) to (N, C, S_1, stride_1, S_2, stride_2, ..)."""
    shape = [part for size, step in zip(x.shape[2:], stride, strict=True) for part in (size // step, step)]
    return x.reshape(*x.shape[:2], *shape)


def merge_subpositions(x: Tensor) -> Tensor:
    """(N, C, S_1, stride_1, S_2, stride_2, ..) to (N, C, S_1 * stride_1, ..)."""
    shape = [size * step for size, step in zip(x.shape[2::2], x.shape[3::2], strict=True)]
    return x.reshape(*x.shape[:2], *shape)


def spread_subpositions(x: Tensor) -> Tensor:
    """(N, C, S_1, S_2, ..) to (N, C, S_1, 1, S_2, 1, ..), which broadcasts over the sub-positions."""
    for axis in range(3, 2 * x.ndim - 1, 2):
        x = x.unsqueeze(axis)
    return x
