"""The U-Net that nnU-Net has planned, with a decoder whose upsampling is ours.

nnU-Net builds and initialises the planned network first, and the blocks go in after it: its initialisation
(``InitWeights_He``) runs over every convolution and would overwrite what the blocks start from, and so the vanilla
weights of a seed are those that the vanilla network has with that seed.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor, nn

from nnunet_dtc.architectures.patch_size import check_divisible, stride_products
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.ops.deformation import Offset, Weight
from nnunet_dtc.ops.dtc import dtc_class
from nnunet_dtc.upsamplers import upsampler_class


class UnsupportedNetworkError(NnunetDtcError, TypeError):
    """A network whose decoder is not nnU-Net's ``UNetDecoder``."""


class PlannedDecoder(UNetDecoder):
    """nnU-Net's decoder, taken over module by module, with other upsamplings between its stages.

    The forward pass is nnU-Net's, but for an upsampler with ``needs_skip``, which is given the encoder's features of
    its result's size as well. The names in the state dict are nnU-Net's (``encoder``, ``stages``, ``transpconvs``,
    ``seg_layers``), so they do not depend on deep supervision: all segmentation layers are always there.
    """

    def __init__(self, planned: UNetDecoder, upsamplings: Sequence[nn.Module]) -> None:
        nn.Module.__init__(self)  # not UNetDecoder's: it would build and draw everything once more
        self.deep_supervision = planned.deep_supervision
        self.encoder = planned.encoder
        self.num_classes = planned.num_classes
        self.steps = stride_products(planned.encoder.strides, len(planned.transpconvs[0].stride))
        self.stages = planned.stages
        self.transpconvs = nn.ModuleList(upsamplings)
        self.seg_layers = planned.seg_layers

    def forward(self, skips: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """From the encoder's features to the logits, with deep supervision to those of all stages; finest first."""
        x = skips[-1]
        results = []
        last = len(self.stages) - 1
        for index, (upsampling, stage, seg_layer) in enumerate(
            zip(self.transpconvs, self.stages, self.seg_layers, strict=True)
        ):
            skip = skips[-(index + 2)]
            x = upsampling(x, skip=skip) if getattr(upsampling, "needs_skip", False) else upsampling(x)
            x = torch.cat((x, skip), 1)  # a line of its own: the upsampled map is gone before the stage begins
            x = stage(x)
            if self.deep_supervision or index == last:
                results.append(seg_layer(x))
        return results[::-1] if self.deep_supervision else results[0]

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """nnU-Net's measure of memory, in elements of feature maps of one case, with what the blocks add to it.

        ``input_size`` is the size of the network's input, in tensor order.
        """
        sizes = [tuple(int(size) for size in input_size)]
        for stride in self.encoder.strides:
            sizes.append(tuple(size // step for size, step in zip(sizes[-1], stride, strict=True)))
        added = sum(
            _added_feature_maps(upsampling, size)
            for upsampling, size in zip(self.transpconvs, sizes[:1:-1], strict=True)
        )
        return super().compute_conv_feature_map_size(input_size) + np.int64(added)


def with_upsampling(network: nn.Module, upsampling: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Replace every transposed convolution of a planned network's decoder by ``upsampling`` of it, in place.

    The network then refuses an input that its strides do not divide, with a PatchSizeError.

    Args:
        network: PlainConvUNet, ResidualEncoderUNet or another network of dynamic-network-architectures whose
            ``decoder`` is a ``UNetDecoder``, already initialised.
        upsampling: from the planned transposed convolution (in_channels, out_channels, stride) to the module in its
            place, with a ``compute_conv_feature_map_size`` of what it adds.

    Raises:
        UnsupportedNetworkError: the network has another decoder.
    """
    decoder = getattr(network, "decoder", None)
    if type(decoder) is not UNetDecoder:
        raise UnsupportedNetworkError(
            "Other upsamplings go into plans whose network has nnU-Net's UNetDecoder (PlainConvUNet, "
            f"ResidualEncoderUNet), got {type(network).__name__} with "
            f"{type(decoder).__name__ if decoder is not None else 'no decoder'}"
        )
    network.decoder = PlannedDecoder(decoder, [upsampling(planned) for planned in decoder.transpconvs])
    network.register_forward_pre_hook(_check_input)
    return network


def _check_input(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """As a hook in front of the network: its encoder, where the first sizes would not match, is nnU-Net's own."""
    check_divisible(inputs[0].shape[2:], network.decoder.steps)


def with_upsampler(network: nn.Module, upsampler: str) -> nn.Module:
    """Put an upsampler in the place of every transposed convolution of a planned network's decoder, in place.

    The 1x1 convolution to its channels starts as the network initialises its own convolutions (``network.initialize``),
    everything else as the upsampler starts it. ``upsampler`` is a name of ``nnunet_dtc.upsamplers.UPSAMPLERS``; errors
    as in :func:`with_upsampling`, and ValueError where there is no upsampler of that name.
    """
    return with_upsampling(network, lambda planned: _upsampler(network, planned, upsampler))


def with_dtc(
    network: nn.Module,
    receptive_field: float = 2.0,
    *,
    upsampler: str | None = None,
    offset: Offset = "tanh",
    weight: Weight = "sigmoid",
) -> nn.Module:
    """Put a DTC block around every transposed convolution of a planned network's decoder, in place.

    The value convolutions start as the network initialises its own convolutions (``network.initialize``), the
    coordinate heads as DTC starts them. With ``upsampler``, the blocks are around that upsampler instead, as in
    :func:`with_upsampler`. Arguments and errors as in :class:`nnunet_dtc.DTC3d` and :func:`with_upsampling`.
    """

    def block(planned: nn.Module) -> nn.Module:
        dtc = dtc_class(len(planned.stride))(
            planned.in_channels,
            planned.out_channels,
            planned.stride,
            receptive_field,
            planned if upsampler is None else _upsampler(network, planned, upsampler),
            offset=offset,
            weight=weight,
            device=planned.weight.device,
            dtype=planned.weight.dtype,
        )
        _initialize(network, dtc.value)
        return dtc

    return with_upsampling(network, block)


def _upsampler(network: nn.Module, planned: nn.Module, name: str) -> nn.Module:
    upsampler = upsampler_class(name, len(planned.stride))(
        planned.in_channels,
        planned.out_channels,
        planned.stride,
        device=planned.weight.device,
        dtype=planned.weight.dtype,
    )
    _initialize(network, upsampler.project)
    return upsampler


def _initialize(network: nn.Module, convolution: nn.Module) -> None:
    """As the network initialises its own convolutions, where it has an initialisation of its own."""
    initialize = getattr(network, "initialize", None)
    if initialize is not None:
        convolution.apply(initialize)


def _added_feature_maps(upsampling: nn.Module, size: Sequence[int]) -> int:
    """What an upsampling adds to the planned one: a DTC block what it adds to its base, and its base, if it is ours."""
    added = upsampling.compute_conv_feature_map_size(size)
    of_base = getattr(getattr(upsampling, "base", None), "compute_conv_feature_map_size", None)
    return added if of_base is None else added + of_base(size)
