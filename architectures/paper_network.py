"""What is common to the paper's other networks: how one is described."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from nnunet_dtc.architectures.patch_size import Normalization


@dataclass(frozen=True)
class PaperNetwork:
    """How a network is built. It becomes known by an entry in ``nnunet_dtc.registry``.

    Attributes:
        build: ``(input_channels, classes, padded patch size, **settings)`` to the network.
        upsamplings: ``(network, **settings)`` to the names of its upsamplings, beside which DTC goes.
        multiple: what sizes must be divisible by.
        settings: what the plans may set, with the published values.
        one_size: whether a network takes no other size than the one that it is built for.
        normalization: of the deepest map, which needs more than one value per channel.
    """

    build: Callable[..., nn.Module]
    upsamplings: Callable[..., list[str]]
    multiple: int
    settings: Mapping[str, Any]
    one_size: bool = False
    normalization: Normalization = "other"
