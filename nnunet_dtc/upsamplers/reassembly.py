"""Reassembly: every output element is a sum of a window of input elements, weighted by its own weights.

Wang et al., *CARAFE: Content-Aware ReAssembly of FEatures*, ICCV 2019 (arXiv:1905.02188), section 3.3: the window of
``kernel_size`` elements is centred at the input element in which the output element lies. CARAFE, FADE and SAPA differ
in how they predict the weights.

Ours: the form for 3D and for a stride per axis, and the border. In the original, elements outside the map are zeros, so
a constant map fades towards its borders. Here the border is repeated (``padding="border"``), so weights that sum to one
keep a constant map constant everywhere; ``padding="zeros"`` is the original. The sums are computed in float32 at least.
The window is never unfolded: apart from the weights, only one sum of the size of the result is in memory.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_dtc.ops.checks import check_count, check_fits, check_value
from nnunet_dtc.ops.layout import merge_subpositions, split_subpositions, spread_subpositions
from nnunet_dtc.upsamplers.base import Upsampler

Padding = Literal["border", "zeros"]

# Elements of the window per axis. In 2D, 5 as in CARAFE, FADE and SAPA. In 3D, 3, because every output element has as
# many weights as its window has elements: 3^3 = 27 is about as many as 5^2 = 25, whereas 5^3 = 125 weights for a patch
# of 128^3 elements take 1 GiB per case in float32, and their convolution has 4.6 times as many parameters
DEFAULT_KERNEL_SIZE = {2: 5, 3: 3}


def reassemble(
    value: Tensor,
    weights: Tensor,
    stride: int | Sequence[int],
    kernel_size: int | Sequence[int],
    padding: Padding = "border",
) -> Tensor:
    """Compute a weighted sum of the window around an element of ``value`` for each of the element's sub-positions.

    Args:
        value (Tensor[N, C, S_1, .., S_g]): g = 2 or 3, any floating dtype.
        weights (Tensor[N, k_1 * .. * k_g, S_1 * stride_1, ..]): elements of the window in row-major order, first axis
            first; they are not normalised. If they sum to one, a constant map stays constant (with "border").
        stride: output elements per input element, one integer or one per axis, each >= 1.
        kernel_size: k, elements of the window, one odd number or one per axis.
        padding: "border" repeats the border, "zeros" is the original's.

    Returns:
        Tensor[N, C, S_1 * stride_1, ..]: in the dtype of ``value``.

    Raises:
        ValueError: a shape or an argument is not as described.
        TypeError: a tensor is not floating.

    Note:
        On CUDA the gradient of a repeated border is summed with atomic additions and is therefore not bit-identical
        from run to run. With ``torch.use_deterministic_algorithms(True)`` torch uses a deterministic implementation.

    Example:
        The first of the two sub-positions reads the left neighbour, the second one reads the right neighbour:

        >>> import torch
        >>> from nnunet_dtc.upsamplers import reassemble
        >>> value = torch.tensor([1.0, 2, 3]).view(1, 1, 1, 3)
        >>> weights = torch.tensor([[1.0, 0], [0, 0], [0, 1]]).repeat(1, 3).view(1, 3, 1, 6)
        >>> reassemble(value, weights, stride=(1, 2), kernel_size=(1, 3)).flatten().tolist()
        [1.0, 2.0, 1.0, 3.0, 2.0, 3.0]
    """
    steps, fine = check_value(value, stride)
    window = check_kernel_size(kernel_size, len(steps))
    check_padding(padding)
    check_fits("weights", weights, "(N, window, *(S * stride))", (value.shape[0], math.prod(window), *fine))
    dtype = torch.promote_types(torch.promote_types(value.dtype, weights.dtype), torch.float32)
    each = split_subpositions(weights.to(dtype), steps).unbind(1)  # window times (N, S_1, s_1, S_2, s_2, ..)
    total = value.new_zeros((), dtype=dtype)
    for weight, neighbour in zip(each, neighbours(value.to(dtype), window, padding), strict=True):
        weight = weight.unsqueeze(1)  # (N, 1, S_1, s_1, S_2, s_2, ..)
        neighbour = spread_subpositions(neighbour)  # (N, C, S_1, 1, S_2, 1, ..)
        total = torch.addcmul(total, weight, neighbour)
    return merge_subpositions(total).to(value.dtype)  # (N, C, *(S * stride))


def neighbours(x: Tensor, kernel_size: Sequence[int], padding: Padding) -> Iterator[Tensor]:
    """Yield, for each element of the window in row-major order, ``x`` shifted by it: (N, C, S), a view."""
    pads = [size // 2 for size in reversed(kernel_size) for _ in range(2)]  # last axis first
    padded = F.pad(x, pads, mode="replicate") if padding == "border" else F.pad(x, pads)
    for start in itertools.product(*(range(size) for size in kernel_size)):
        neighbour = padded
        for axis, first in enumerate(start):
            neighbour = neighbour.narrow(2 + axis, first, x.shape[2 + axis])
        yield neighbour


def window_weights(logits: Tensor) -> Tensor:
    """Softmax over the window (the channels), computed in float32 at least."""
    return logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))


def check_kernel_size(kernel_size: int | Sequence[int] | None, axes: int) -> tuple[int, ...]:
    """Return the window as one odd number per axis, by default ``DEFAULT_KERNEL_SIZE``; raise ValueError otherwise."""
    given = DEFAULT_KERNEL_SIZE[axes] if kernel_size is None else kernel_size
    sizes = tuple(given) if hasattr(given, "__iter__") else (given,) * axes
    if len(sizes) != axes or any(not isinstance(size, int) or size < 1 or size % 2 == 0 for size in sizes):
        raise ValueError(f"kernel_size must be an odd number, or one per axis ({axes}), got {kernel_size=}")
    return sizes


def check_padding(padding: Padding) -> Padding:
    """Return ``padding``; raise ValueError if it is neither "border" nor "zeros"."""
    if padding not in get_args(Padding):
        raise ValueError(f"padding must be 'border' or 'zeros', got {padding=}")
    return padding


class SkipReassembly(Upsampler):
    """The common part of FADE and SAPA: the weights come from embeddings of the input and of the encoder's features.

    Attributes:
        skip_channels: channels of the encoder's features; by default ``out_channels``, as in every U-Net.
        kernel_size: elements of the window per axis.
        padding: "border" or "zeros".
    """

    needs_skip = True

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
        super().__init__(in_channels, out_channels, stride, projection=projection, device=device, dtype=dtype)
        self.skip_channels = check_count("skip_channels", out_channels if skip_channels is None else skip_channels)
        self.kernel_size = check_kernel_size(kernel_size, self.axes)
        self.padding = check_padding(padding)
        self.make_layers(check_count("embedding_channels", embedding_channels), device=device, dtype=dtype)
        self.reset_kernels()

    def make_layers(self, embedding: int, **factory: Any) -> None:
        """Create the layers that predict the weights, with ``embedding`` channels in both embeddings."""
        raise NotImplementedError

    def reset_kernels(self) -> None:
        """Initialise these layers as in a new module. A network's own initialisation must not overwrite them."""
        raise NotImplementedError

    def check_skip(self, x: Tensor, skip: Tensor) -> None:
        """Raise ValueError if the skip is not (N, skip_channels, S_1 * stride_1, ..)."""
        sizes = (size * step for size, step in zip(x.shape[2:], self.stride, strict=True))
        expected = (x.shape[0], self.skip_channels, *sizes)
        if tuple(skip.shape) != expected:
            raise ValueError(
                f"{type(self).__name__} takes a skip of {expected} with an input of {tuple(x.shape)}, "
                f"got {tuple(skip.shape)}"
            )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, skip_channels={self.skip_channels}, kernel_size={self.kernel_size}"
