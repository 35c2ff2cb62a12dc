"""A network with DTC blocks and the coordinates of one stage, for the tests of coordinates."""

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from plans import architecture
from torch import nn

from nnunet_dtc.architectures import with_dtc
from nnunet_dtc.ops.coordinates import StageCoordinates
from nnunet_dtc.ops.deformation import Deformation
from nnunet_dtc.ops.dtc import is_dtc

UNEVEN = {"kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 1]]}
PATCH = (6, 16, 24)


def draw_stage(sizes, stride, *, receptive_field=4.0, offset="tanh", weight="sigmoid", batch=2, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    channels = len(sizes) * (1 if weight == "none" else 2)
    shape = (batch, channels, *(size * step for size, step in zip(sizes, stride, strict=True)))
    coords = scale * torch.randn(shape, generator=generator)
    return StageCoordinates("up", tuple(sizes), tuple(stride), Deformation(receptive_field, offset, weight), coords)


def build_network(receptive_field=2.0, seed=0, strides=UNEVEN, **more):
    torch.manual_seed(seed)
    planned = architecture(**strides)
    arguments = planned["arch_kwargs"] | more
    network = get_network_from_plans(
        *(planned["network_class_name"], arguments, planned["_kw_requires_import"], 1, 3),
        allow_init=True,
        deep_supervision=False,
    )
    network = with_dtc(network, receptive_field)
    for block in filter(is_dtc, network.modules()):
        nn.init.normal_(block.coords.weight, std=0.5)  # as if the block had been trained
    return network
