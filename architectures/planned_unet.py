"""The U-Net that nnU-Net has planned, with a decoder whose upsampling is ours.

nnU-Net builds and initialises the planned network first, and the blocks go in after it: its initialisation
(``InitWeights_He``) runs over every convolution and would overwrite the coordinate heads, and so the vanilla weights
of a seed are those that the vanilla network has with that seed.
"""

from collections.abc import Callable, Sequence

import numpy as np
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import nn

from nnunet_dtc.dtc import dtc_class
from nnunet_dtc.sampling import Offset, Weight


class PlannedDecoder(UNetDecoder):
    """nnU-Net's decoder, taken over module by module, with other upsamplings between its stages.

    The forward pass and the names in the state dict are nnU-Net's (``encoder``, ``stages``, ``transpconvs``,
    ``seg_layers``), so they do not depend on deep supervision: all segmentation layers are always there.
    """

    def __init__(self, planned: UNetDecoder, upsamplings: Sequence[nn.Module]) -> None:
        nn.Module.__init__(self)  # not UNetDecoder's: it would build and draw everything once more
        self.deep_supervision = planned.deep_supervision
        self.encoder = planned.encoder
        self.num_classes = planned.num_classes
        self.stages = planned.stages
        self.transpconvs = nn.ModuleList(upsamplings)
        self.seg_layers = planned.seg_layers

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """nnU-Net's measure of memory, in elements of feature maps of one case, with what the blocks add to it.

        ``input_size`` is the size of the network's input, in tensor order.
        """
        sizes = [tuple(int(size) for size in input_size)]
        for stride in self.encoder.strides:
            sizes.append(tuple(size // step for size, step in zip(sizes[-1], stride, strict=True)))
        added = sum(
            upsampling.compute_conv_feature_map_size(size)
            for upsampling, size in zip(self.transpconvs, sizes[:1:-1], strict=True)
        )
        return super().compute_conv_feature_map_size(input_size) + np.int64(added)


def with_upsampling(network: nn.Module, upsampling: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Replace every transposed convolution of a planned network's decoder by ``upsampling`` of it, in place.

    Args:
        network: PlainConvUNet, ResidualEncoderUNet or another network of dynamic-network-architectures whose
            ``decoder`` is a ``UNetDecoder``, already initialised.
        upsampling: from the planned transposed convolution (in_channels, out_channels, stride) to the module in its
            place, with a ``compute_conv_feature_map_size`` of what it adds.

    Raises:
        TypeError: the network has another decoder.
    """
    decoder = getattr(network, "decoder", None)
    if type(decoder) is not UNetDecoder:
        raise TypeError(
            "DTC goes into plans whose network has nnU-Net's UNetDecoder (PlainConvUNet, ResidualEncoderUNet), "
            f"got {type(network).__name__} with {type(decoder).__name__ if decoder is not None else 'no decoder'}"
        )
    network.decoder = PlannedDecoder(decoder, [upsampling(planned) for planned in decoder.transpconvs])
    return network


def with_dtc(
    network: nn.Module, receptive_field: float = 2.0, *, offset: Offset = "tanh", weight: Weight = "sigmoid"
) -> nn.Module:
    """Put a DTC block around every transposed convolution of a planned network's decoder, in place.

    The value convolutions start as the network initialises its own convolutions (``network.initialize``), the
    coordinate heads as DTC starts them. Arguments and errors as in :class:`nnunet_dtc.DTC3d` and
    :func:`with_upsampling`.
    """

    def block(planned: nn.Module) -> nn.Module:
        dtc = dtc_class(len(planned.stride))(
            planned.in_channels,
            planned.out_channels,
            planned.stride,
            receptive_field,
            planned,
            offset=offset,
            weight=weight,
            device=planned.weight.device,
            dtype=planned.weight.dtype,
        )
        initialize = getattr(network, "initialize", None)
        if initialize is not None:
            dtc.value.apply(initialize)
        return dtc

    return with_upsampling(network, block)
