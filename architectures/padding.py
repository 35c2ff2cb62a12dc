"""Networks that need sizes divisible by 16 or 32 accept any patch size: the input is padded and the output cropped.

nnU-Net plans patches such as 28 x 112 x 96, which fit its own strides. They are padded with zeros, as nnU-Net pads
images, equally on both sides (one more at the end if the number is odd), and the logits of these voxels are removed.
Both steps are exact and differentiable, and are skipped if no padding is needed.
"""

from collections.abc import Sequence
from types import SimpleNamespace

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_dtc.architectures.patch_size import Normalization, PatchSizeError, check_deepest_map


def padded_size(size: Sequence[int], multiple: int) -> tuple[int, ...]:
    """Round each size up to a multiple.

    Example:
        >>> padded_size((28, 112, 97), 16)
        (32, 112, 112)
    """
    return tuple(-(-int(voxels) // multiple) * multiple for voxels in size)


def size_inside(network: nn.Module, size: Sequence[int]) -> tuple[int, ...]:
    """The size to which a network pads an input of this size; the size itself for networks that do not pad.

    Args:
        network: a network of this package, or any other.
        size: voxels per axis of the input.

    Example:
        >>> size_inside(PaddedNetwork(nn.Identity(), 16, (28, 112)), (28, 112))
        (32, 112)
    """
    pads = getattr(network, "size_inside", None)
    return tuple(int(voxels) for voxels in (size if pads is None else pads(size)))


def padding_note(patch_size: Sequence[int], multiple: int) -> str | None:
    """A sentence for the log if patches of this size are padded, otherwise None."""
    given, size = tuple(int(voxels) for voxels in patch_size), padded_size(patch_size, multiple)
    if size == given:
        return None
    return (
        f"This network takes sizes divisible by {multiple}: patches of {given} voxels are padded with zeros to "
        f"{size}, and the logits are cropped to the patch"
    )


def check_padded(
    name: str,
    size: Sequence[int],
    multiple: int,
    normalization: Normalization,
    batch_size: int | None = None,
) -> None:
    """Refuse a size that leaves one value per channel in the deepest map of a network that pads its input.

    Args:
        name: name of the network, for the message.
        size: voxels per axis before padding.
        multiple: number that padded sizes are divisible by, and factor by which the deepest map is smaller.
        normalization, batch_size: as for :func:`nnunet_dtc.architectures.patch_size.check_deepest_map`.

    Raises:
        PatchSizeError: the deepest map has one value per channel, which cannot be normalised.
    """
    deepest = [voxels // multiple for voxels in padded_size(size, multiple)]
    remedy = f"a patch of more than {multiple} voxels along one axis"
    check_deepest_map(name, size, deepest, normalization, batch_size, remedy)


def pad_to(x: Tensor, size: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad a tensor with zeros on both sides.

    Args:
        x (Tensor[N, C, ..]): the tensor.
        size: voxels per axis of the result.

    Returns:
        The padded tensor (Tensor[N, C, *size]), which is ``x`` itself if nothing is padded, and the index of ``x`` in
        it, for tensors of this spatial size with any channels.

    Raises:
        PatchSizeError: ``x`` is larger than ``size``, or has another number of axes.
    """
    given = tuple(x.shape[2:])
    if len(given) != len(size) or any(voxels > limit for voxels, limit in zip(given, size, strict=True)):
        raise PatchSizeError(f"an input of at most {tuple(size)} voxels can be padded to that size, got {given}")
    missing = [limit - voxels for voxels, limit in zip(given, size, strict=True)]
    if not any(missing):
        return x, (Ellipsis,)
    before = [voxels // 2 for voxels in missing]
    place = (..., *(slice(start, start + voxels) for start, voxels in zip(before, given, strict=True)))
    margins = [(start, total - start) for start, total in zip(before, missing, strict=True)]
    # F.pad takes the last axis first
    return F.pad(x, [margin for pair in reversed(margins) for margin in pair]), place


class PaddedNetwork(nn.Module):
    """A network for sizes divisible by ``multiple`` that accepts all sizes: (N, C, S) to (N, classes, S).

    Networks are wrapped whether their patches need padding or not, so that the state dict does not depend on the patch
    size. There is no deep supervision; setting nnU-Net's ``network.decoder.deep_supervision`` has no effect.

    Args:
        network: from (N, C, S) to (N, classes, S) for S divisible by ``multiple``.
        multiple: number that every size must be divisible by.
        patch_size: the size of the patches; with ``one_size`` the one that the network was built for.
        one_size: whether the network accepts only ``padded_size(patch_size, multiple)``. Smaller inputs are padded to
            it, larger ones are refused.
        name: name of the network, for messages.
        normalization: normalisation of its deepest map, see :func:`check_padded`.

    Raises:
        PatchSizeError: in ``forward``, if the input is larger than a network of one size accepts, or leaves one value
            per channel to a normalisation.
    """

    def __init__(
        self,
        network: nn.Module,
        multiple: int,
        patch_size: Sequence[int],
        one_size: bool = False,
        *,
        name: str = "this network",
        normalization: Normalization = "other",
    ) -> None:
        super().__init__()
        self.network = network
        self.multiple = multiple
        self.patch_size = tuple(int(voxels) for voxels in patch_size)
        self.one_size = one_size
        self.name = name
        self.normalization: Normalization = normalization
        self.decoder = SimpleNamespace(deep_supervision=False)  # nnU-Net sets it

    def size_inside(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size to which an input of this size is padded."""
        return padded_size(self.patch_size if self.one_size else size, self.multiple)

    def forward(self, x: Tensor) -> Tensor:
        batch_size = x.shape[0] if self.training and self.normalization == "batch" else None
        check_padded(self.name, x.shape[2:], self.multiple, self.normalization, batch_size)
        padded, place = pad_to(x, self.size_inside(x.shape[2:]))
        return self.network(padded)[place]
