"""The paper's other networks by name, with and without DTC: UNETR, SwinUNETRV2, NnMamba, SegMamba.

They have their published sizes unless the plans set others (``nnunet_dtc.architectures.settings``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from nnunet_dtc.architectures.padding import PaddedNetwork, check_padded, padded_size
from nnunet_dtc.architectures.paper_network import PaperNetwork
from nnunet_dtc.architectures.patch_size import PatchSizeError
from nnunet_dtc.architectures.settings import check_settings, read_settings
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.ops.deformation import Deformation
from nnunet_dtc.ops.dtc import dtc_class, is_dtc
from nnunet_dtc.registry import NETWORKS as ENTRIES
from nnunet_dtc.registry import load

NETWORKS: dict[str, PaperNetwork] = {
    name: load(entry.definition) for name, entry in ENTRIES.items() if entry.definition is not None
}
"""The paper's other networks by their names in the names of trainers."""


def planned_settings(configuration: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Read the settings of a network from the plans, for :func:`build_network`.

    Args:
        configuration: one configuration of nnU-Net's plans (``ConfigurationManager.configuration``).
        name: one of NETWORKS.

    Raises:
        NnunetDtcError: a network or a setting is unknown, or a setting is of another type than the published value.

    Example:
        >>> planned_settings({"architecture": {"nnunet_dtc": {"NnMamba": {"width": 8}}}}, "NnMamba")
        {'width': 8}
    """
    return read_settings(configuration, name, _network(name).settings)


def build_network(
    name: str,
    input_channels: int,
    classes: int,
    patch_size: Sequence[int],
    settings: Mapping[str, Any] | None = None,
    *,
    dtc: Mapping[str, Any] | None = None,
) -> PaddedNetwork:
    """Build one of the paper's networks for patches of any size: (N, input_channels, S) to logits (N, classes, S).

    Args:
        name: one of NETWORKS.
        input_channels: channels of the images.
        classes: channels of the logits, for classes or regions.
        patch_size: voxels per axis, in 2D or 3D.
        settings: sizes other than the published ones, see :func:`planned_settings`.
        dtc: None for the network as published; otherwise ``receptive_field``, ``offset`` and ``weight`` of its DTC
            blocks, with the defaults of :class:`nnunet_dtc.DTC3d`.

    Raises:
        NnunetDtcError: the name or a setting is unknown, or the network does not support the patch size.
        ImportError: MONAI is missing or too old (UNETR, SwinUNETRV2).

    Example:
        >>> import torch
        >>> network = build_network("NnMamba", 1, 3, (20, 24), {"width": 4}, dtc={"receptive_field": 1})
        >>> network(torch.zeros(2, 1, 20, 24)).shape
        torch.Size([2, 3, 20, 24])
    """
    kind = _network(name)
    patch_size = tuple(int(voxels) for voxels in patch_size)
    if len(patch_size) not in (2, 3) or min(patch_size) < 1:
        raise PatchSizeError(f"patch_size must be 2 or 3 positive integers, got patch_size={patch_size}")
    check_patch(name, patch_size)
    size = padded_size(patch_size, kind.multiple)
    settings = {**kind.settings, **check_settings(name, settings or {}, kind.settings)}
    network = PaddedNetwork(
        kind.build(input_channels, classes, size, **settings),
        kind.multiple,
        patch_size,
        kind.one_size,
        name=name,
        normalization=kind.normalization,
    )
    if dtc is not None:
        with_dtc_beside(network.network, kind.upsamplings(network.network, **settings), Deformation(**dtc))
    return network


def check_patch(name: str, patch_size: Sequence[int], batch_size: int | None = None) -> None:
    """Refuse patches that a network cannot be built for or trained with.

    Args:
        name: one of NETWORKS.
        patch_size: voxels per axis.
        batch_size: cases of a batch in training; None without training.

    Raises:
        PatchSizeError: the deepest map would have one value per channel, which cannot be normalised.
    """
    kind = _network(name)
    check_padded(name, patch_size, kind.multiple, kind.normalization, batch_size)


def with_dtc_beside(network: nn.Module, upsamplings: Sequence[str], deformation: Deformation) -> nn.Module:
    """Put a DTC block around some upsamplings, in place. Each upsampling becomes the base of its block.

    The value convolutions have torch's initialisation, as the other convolutions of these networks do.

    Args:
        network: the network, which is changed.
        upsamplings: names of modules with ``in_channels``, ``out_channels`` and ``stride``.
        deformation: receptive field and variant of the blocks.

    Raises:
        NnunetDtcError: one of them has a DTC block already.
    """
    bases = {name: network.get_submodule(name) for name in upsamplings}
    if present := [name for name, base in bases.items() if is_dtc(base)]:
        raise NnunetDtcError(f"{present[0]} has a DTC block already")
    for name, base in bases.items():
        block = dtc_class(len(base.stride))(
            base.in_channels, base.out_channels, base.stride, base=base, **asdict(deformation)
        )
        network.set_submodule(name, block)
    return network


def _network(name: str) -> PaperNetwork:
    if name not in NETWORKS:
        raise NnunetDtcError(f"the paper's networks are {', '.join(NETWORKS)}, got {name!r}")
    return NETWORKS[name]
