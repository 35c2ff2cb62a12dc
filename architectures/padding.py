"""Any patch size for networks that need sizes divisible by 16 or 32: pad the input, crop the result.

nnU-Net plans patches such as 28 x 112 x 96 that fit its own strides. Here zeros are put around them, as many in front
as behind (one more behind where the number is odd), and the logits of those voxels are cut off again. Zero is what
nnU-Net itself puts outside an image. Both steps are exact and differentiable, and where nothing is missing neither is
done.
"""

from collections.abc import Sequence
from types import SimpleNamespace

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_dtc.architectures.patch_size import Normalization, PatchSizeError, check_deepest_map


def padded_size(size: Sequence[int], multiple: int) -> tuple[int, ...]:
    """The next sizes divisible by ``multiple``, axis by axis."""
    return tuple(-(-int(voxels) // multiple) * multiple for voxels in size)


def padding_note(patch_size: Sequence[int], multiple: int) -> str | None:
    """A sentence for the log where patches of this size are padded, else None."""
    given, size = tuple(int(voxels) for voxels in patch_size), padded_size(patch_size, multiple)
    if size == given:
        return None
    return (
        f"This network takes sizes divisible by {multiple}: patches of {given} voxels are padded with zeros to "
        f"{size}, and the logits are cut to the patch"
    )


def check_padded(
    name: str,
    size: Sequence[int],
    multiple: int,
    normalization: Normalization,
    batch_size: int | None = None,
) -> None:
    """Refuse a size that leaves one value per channel in the deepest map of a network of padded patches.

    Args:
        name: of the network, for the message.
        size: voxels per axis, before they are padded.
        multiple: what the network takes, and what the deepest map is smaller by.
        normalization, batch_size: see :func:`nnunet_dtc.architectures.patch_size.check_deepest_map`.

    Raises:
        PatchSizeError: there is one value per channel.
    """
    deepest = [voxels // multiple for voxels in padded_size(size, multiple)]
    remedy = f"a patch of more than {multiple} voxels along one axis"
    check_deepest_map(name, size, deepest, normalization, batch_size, remedy)


def pad_to(x: Tensor, size: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """Put zeros around (N, C, S_1, ..) up to (N, C, *size).

    Returns:
        The padded tensor (``x`` itself where nothing is missing), and where ``x`` stands in it: an index for tensors
        of this spatial size with any channels.

    Raises:
        ValueError: ``x`` is larger than ``size``, or has another number of axes.
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
    # F.pad wants the last axis first
    return F.pad(x, [margin for pair in reversed(margins) for margin in pair]), place


class PaddedNetwork(nn.Module):
    """A network for sizes divisible by ``multiple``, made to take others: (N, C, S) to (N, classes, S).

    It is always around the network, whether its patches need padding or not, so the state dict does not depend on the
    patch size. It has no deep supervision; nnU-Net's ``network.decoder.deep_supervision`` can be set, without effect.

    Args:
        network: from (N, C, S) to (N, classes, S) for S divisible by ``multiple``.
        multiple: what every size must be divisible by.
        patch_size: what it will be used for; for a network of one size the one that it was built for.
        one_size: whether the network takes no other size than ``padded_size(patch_size, multiple)``. Smaller inputs
            are padded to it, larger ones are refused.
        name: of the network, for messages.
        normalization: of its deepest map, see :func:`check_padded`.

    Raises:
        PatchSizeError: in ``forward``, an input that is larger than a network of one size takes, or that leaves one
            value per channel to be normalised.
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
        self.decoder = SimpleNamespace(deep_supervision=False)  # nnU-Net writes to it; nobody reads it

    def forward(self, x: Tensor) -> Tensor:
        batch_size = x.shape[0] if self.training and self.normalization == "batch" else None
        check_padded(self.name, x.shape[2:], self.multiple, self.normalization, batch_size)
        size = padded_size(self.patch_size if self.one_size else x.shape[2:], self.multiple)
        padded, place = pad_to(x, size)
        return self.network(padded)[place]
