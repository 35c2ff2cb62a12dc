"""The description that each of the paper's other networks ends in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from nnunet_dtc.architectures.patch_size import Normalization


@dataclass(frozen=True)
class PaperNetwork:
    """How a network is built. An entry in ``nnunet_dtc.registry`` makes it known.

    Attributes:
        build: function of ``(input_channels, classes, padded patch size, **settings)`` that returns the network.
        upsamplings: function of ``(network, **settings)`` that returns the names of the upsamplings for DTC blocks.
        multiple: number that sizes must be divisible by.
        settings: the settings that plans can change, with their published values.
        one_size: whether the network accepts only the size that it is built for.
        normalization: normalisation of the deepest map, which needs more than one value per channel.
    """

    build: Callable[..., nn.Module]
    upsamplings: Callable[..., list[str]]
    multiple: int
    settings: Mapping[str, Any]
    one_size: bool = False
    normalization: Normalization = "other"
