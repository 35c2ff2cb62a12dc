"""The paper's other networks by name, with and without DTC: UNETR, SwinUNETRV2, NnMamba, SegMamba.

Their sizes are the published ones, unless the plans say otherwise (``nnunet_dtc.architectures.settings``).
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
"""The paper's other networks by the name that stands in the names of trainers."""


def planned_settings(configuration: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the plans set for one of NETWORKS, for :func:`build_network`.

    Args:
        configuration: one configuration of nnU-Net's plans (``ConfigurationManager.configuration``).
        name: one of NETWORKS.

    Raises:
        ValueError: a network or a setting that is not there, or a setting of another kind than the published one.
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
    """One of the paper's networks for patches of any size: (N, input_channels, S) to logits (N, classes, S).

    Args:
        name: one of NETWORKS.
        input_channels, classes: channels of the images, and segmentation heads (classes or regions).
        patch_size: voxels per axis, in 2D or 3D.
        settings: other sizes than the published ones, see :func:`planned_settings`.
        dtc: None for the network as published; else what its DTC blocks get: ``receptive_field``, ``offset``,
            ``weight`` (each with the default of :class:`nnunet_dtc.DTC3d`).

    Raises:
        ValueError: another name or setting; a patch size that the network cannot work with.
        ImportError: MONAI is missing or too old (UNETR, SwinUNETRV2).
    """
    kind = _network(name)
    patch_size = tuple(int(voxels) for voxels in patch_size)
    if len(patch_size) not in (2, 3) or min(patch_size) < 1:
        raise PatchSizeError(f"patch_size must be 2 or 3 positive numbers, got patch_size={patch_size}")
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
    """Refuse patches that one of NETWORKS cannot be built for, or trained with.

    Args:
        name: one of NETWORKS.
        patch_size: voxels per axis.
        batch_size: cases of a batch in training; None where nothing is trained.

    Raises:
        PatchSizeError: its deepest map would have one value per channel, which cannot be normalised.
    """
    kind = _network(name)
    check_padded(name, patch_size, kind.multiple, kind.normalization, batch_size)


def with_dtc_beside(
    network: nn.Module,
    upsamplings: Sequence[str],
    deformation: Deformation,
) -> nn.Module:
    """Put a DTC block around the upsamplings of these names, in place; each stays as its block's base.

    The value convolutions start as torch initialises convolutions, as these networks' own do.

    Args:
        upsamplings: names of modules with ``in_channels``, ``out_channels`` and ``stride``.
        deformation: the blocks' receptive field and variant.

    Raises:
        ValueError: one of them has a DTC block already.
    """
    for name in upsamplings:
        base = network.get_submodule(name)
        if is_dtc(base):
            raise NnunetDtcError(f"{name} has a DTC block already")
    for name in upsamplings:
        base = network.get_submodule(name)
        block = dtc_class(len(base.stride))(
            base.in_channels, base.out_channels, base.stride, base=base, **asdict(deformation)
        )
        network.set_submodule(name, block)
    return network


def _network(name: str) -> PaperNetwork:
    if name not in NETWORKS:
        raise NnunetDtcError(f"the paper's networks are {', '.join(NETWORKS)}, got {name!r}")
    return NETWORKS[name]
