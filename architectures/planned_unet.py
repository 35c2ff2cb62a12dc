"""nnU-Net's planned U-Net with other upsamplings in its decoder.

nnU-Net builds and initialises the planned network, and the upsamplings are replaced afterwards. Its initialisation
(``InitWeights_He``) applies to every convolution and would overwrite that of the new blocks. In this order the weights
outside the blocks are also those that the vanilla network has with the same seed.
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
from nnunet_dtc.upsamplers.base import upsample_in_decoder


class UnsupportedNetworkError(NnunetDtcError, TypeError):
    """The decoder of a network is not nnU-Net's ``UNetDecoder``."""


class PlannedDecoder(UNetDecoder):
    """nnU-Net's decoder with other upsamplings between its stages.

    The forward pass is nnU-Net's, except that an upsampler with ``needs_skip`` also gets the encoder's features of the
    size of its output. The names in the state dict are nnU-Net's (``encoder``, ``stages``, ``transpconvs``,
    ``seg_layers``). They do not depend on deep supervision, because all segmentation layers always exist.

    Args:
        planned: nnU-Net's decoder, whose modules are used.
        upsamplings: the upsamplings in the place of ``planned.transpconvs``, deepest first.

    Example:
        >>> from dynamic_network_architectures.architectures.unet import PlainConvUNet
        >>> network = PlainConvUNet(1, 2, (4, 6), nn.Conv2d, 3, (1, 2), 1, 3, 1, nonlin=nn.ReLU)
        >>> decoder = PlannedDecoder(network.decoder, network.decoder.transpconvs)
        >>> decoder([torch.zeros(1, 4, 8, 6), torch.zeros(1, 6, 4, 3)]).shape
        torch.Size([1, 3, 8, 6])
    """

    def __init__(self, planned: UNetDecoder, upsamplings: Sequence[nn.Module]) -> None:
        nn.Module.__init__(self)  # UNetDecoder.__init__ would build all modules again
        self.deep_supervision = planned.deep_supervision
        self.encoder = planned.encoder
        self.num_classes = planned.num_classes
        self.steps = stride_products(planned.encoder.strides, len(planned.transpconvs[0].stride))
        self.stages = planned.stages
        self.transpconvs = nn.ModuleList(upsamplings)
        self.seg_layers = planned.seg_layers

    def forward(self, skips: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Compute the logits from the encoder's features.

        Args:
            skips (list of Tensor[N, C, ..]): features of the encoder's stages, full resolution first.

        Returns:
            The logits (Tensor[N, classes, ..]); with deep supervision those of all stages, full resolution first.
        """
        x = skips[-1]
        results = []
        last = len(self.stages) - 1
        for index, (upsampling, stage, seg_layer) in enumerate(
            zip(self.transpconvs, self.stages, self.seg_layers, strict=True)
        ):
            skip = skips[-(index + 2)]
            x = upsample_in_decoder(upsampling, x, skip)
            x = torch.cat((x, skip), 1)  # on its own line, so that the upsampled map is freed before the stage runs
            x = stage(x)
            if self.deep_supervision or index == last:
                results.append(seg_layer(x))
        return results[::-1] if self.deep_supervision else results[0]

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Number of elements of all feature maps of one case, nnU-Net's measure of memory.

        Args:
            input_size: voxels per axis of the network's input, in tensor order.
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
    """Replace every transposed convolution in the decoder of a planned network, in place.

    Afterwards the network raises a PatchSizeError for inputs that its strides do not divide.

    Args:
        network: initialised network with a ``UNetDecoder`` as ``decoder``, such as PlainConvUNet or ResidualEncoderUNet
            of dynamic-network-architectures.
        upsampling: function of the planned transposed convolution (with ``in_channels``, ``out_channels``, ``stride``)
            that returns the module in its place, whose ``compute_conv_feature_map_size`` counts what it adds.

    Returns:
        The network.

    Raises:
        UnsupportedNetworkError: the network has another decoder.

    Example:
        >>> from dynamic_network_architectures.architectures.unet import PlainConvUNet
        >>> network = PlainConvUNet(1, 2, (4, 6), nn.Conv2d, 3, (1, 2), 1, 3, 1, nonlin=nn.ReLU)
        >>> with_upsampling(network, lambda planned: planned.requires_grad_(False)).decoder.transpconvs
        ModuleList(
          (0): ConvTranspose2d(6, 4, kernel_size=(2, 2), stride=(2, 2), bias=False)
        )
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
    """Check the input's size before the forward pass; the encoder is nnU-Net's own and does not check it."""
    check_divisible(inputs[0].shape[2:], network.decoder.steps)


def with_upsampler(network: nn.Module, upsampler: str) -> nn.Module:
    """Replace every transposed convolution in the decoder of a planned network by an upsampler, in place.

    The upsampler's 1x1 convolution is initialised like the network's own convolutions (``network.initialize``); the
    rest has the upsampler's initialisation.

    Args:
        network: as for :func:`with_upsampling`.
        upsampler: a name in ``nnunet_dtc.upsamplers.UPSAMPLERS``.

    Returns:
        The network.

    Raises:
        NnunetDtcError: there is no such upsampler, or the network has another decoder.

    Example:
        >>> from dynamic_network_architectures.architectures.unet import PlainConvUNet
        >>> network = PlainConvUNet(1, 2, (4, 6), nn.Conv2d, 3, (1, 2), 1, 3, 1, nonlin=nn.ReLU)
        >>> with_upsampler(network, "CARAFE")(torch.zeros(1, 1, 8, 6)).shape
        torch.Size([1, 3, 8, 6])
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
    """Put a DTC block around every transposed convolution in the decoder of a planned network, in place.

    The value convolutions are initialised like the network's own convolutions (``network.initialize``), the coordinate
    heads as in :class:`nnunet_dtc.DTC3d`.

    Args:
        network: as for :func:`with_upsampling`.
        receptive_field, offset, weight: as for :class:`nnunet_dtc.DTC3d`.
        upsampler: a name in ``nnunet_dtc.upsamplers.UPSAMPLERS``, to replace the transposed convolutions as
            :func:`with_upsampler` does; None to keep them.

    Returns:
        The network.

    Raises:
        NnunetDtcError: an argument is out of range, there is no such upsampler, or the network has another decoder.

    Example:
        >>> from dynamic_network_architectures.architectures.unet import PlainConvUNet
        >>> network = PlainConvUNet(1, 2, (4, 6), nn.Conv2d, 3, (1, 2), 1, 3, 1, nonlin=nn.ReLU)
        >>> with_dtc(network, receptive_field=10)(torch.zeros(1, 1, 8, 6)).shape
        torch.Size([1, 3, 8, 6])
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
    """Initialise a convolution like the network's own, if the network has an initialisation."""
    initialize = getattr(network, "initialize", None)
    if initialize is not None:
        convolution.apply(initialize)


def _added_feature_maps(upsampling: nn.Module, size: Sequence[int]) -> int:
    """Elements that an upsampling adds to the transposed convolution: those of a DTC block and of its base."""
    added = upsampling.compute_conv_feature_map_size(size)
    of_base = getattr(getattr(upsampling, "base", None), "compute_conv_feature_map_size", None)
    return added if of_base is None else added + of_base(size)
