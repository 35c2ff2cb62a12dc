"""Candidates for better upsampling, as trainers: prototypes for docs/evidence.md, not part of nnunet-dtc.

    nnUNet_extTrainer=benchmarks/evidence/trainers nnunet-dtc study benchmarks/evidence/hippocampus.yaml

The names are those of ``nnUNetTrainerDTC`` with another word in the place of DTC, and its suffixes, of which Logits
needs at least one:

==========  ============================================================================================================
Guided      the coordinates also see the encoder's features of the output's size, by a pointwise convolution whose
            weights start as those of the coordinate head
Alone       the deformed samples of the value alone, without the transposed convolution
Logits      vanilla, except that at full resolution the logits z become z + gamma * (z at learned positions - z), gamma
            starting at 0, which no convolution after it can imitate; shifts of up to 2.5 voxels, and no suffix _RF
==========  ============================================================================================================

nnU-Net asks this module for the class of a name, and the class is made then.
"""

import functools
import re

import torch
from torch import nn

from nnunet_dtc import DTC2d, DTC3d, deformable_upsample, trainers
from nnunet_dtc.ops.dtc import COORDS_INIT_STD
from nnunet_dtc.ops.sampling import upsample_checked

NAME = re.compile(r"nnUNetTrainer(Guided|Alone|Logits)(?=_|$)")


class _GuidedCoords(nn.Module):
    """A coordinate head that also sees the encoder's features of the output's size."""

    def __init__(self, coords, skip_channels, convolution):
        super().__init__()
        self.coords, self.guide = coords, convolution(skip_channels, coords.out_channels, 1)
        nn.init.normal_(self.guide.weight, std=COORDS_INIT_STD)
        nn.init.zeros_(self.guide.bias)

    def forward(self, x, skip):
        return self.coords(x) + self.guide(skip)


class _Guided:
    """A DTC block whose coordinates also see the encoder's features."""

    needs_skip = True

    def __init__(self, block, skip_channels):
        super().__init__(
            block.in_channels, block.out_channels, block.stride, block.receptive_field, block.base,
            offset=block.deformation.offset, weight=block.deformation.weight,
        )  # fmt: skip
        self.value = block.value
        self.coords = _GuidedCoords(block.coords, skip_channels, {2: nn.Conv2d, 3: nn.Conv3d}[self.axes])

    def forward(self, x, output_size=None, skip=None):
        return upsample_checked(self.base(x), self.value(x), self.coords(x, skip), self.stride, self.deformation)


class Guided2d(_Guided, DTC2d):
    pass


class Guided3d(_Guided, DTC3d):
    pass


class _Alone:
    """A DTC block without its base."""

    def __init__(self, block):
        super().__init__(
            block.in_channels, block.out_channels, block.stride, block.receptive_field, nn.Identity(),
            offset=block.deformation.offset, weight=block.deformation.weight,
        )  # fmt: skip
        self.value, self.coords = block.value, block.coords

    def forward(self, x, output_size=None, skip=None):
        return upsample_checked(None, self.value(x), self.coords(x), self.stride, self.deformation)


class Alone2d(_Alone, DTC2d):
    pass


class Alone3d(_Alone, DTC3d):
    pass


class DeformedLogits(nn.Module):
    """The segmentation layer at full resolution, whose logits are also taken from learned positions."""

    def __init__(self, layer, receptive_field=10.0):
        super().__init__()
        axes = layer.weight.ndim - 2
        self.layer, self.receptive_field, self.stride = layer, receptive_field, (1,) * axes
        self.coords = type(layer)(layer.in_channels, 2 * axes, 1)
        nn.init.normal_(self.coords.weight, std=COORDS_INIT_STD)
        nn.init.zeros_(self.coords.bias)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        logits = self.layer(x)
        moved = deformable_upsample(logits, self.coords(x), self.stride, receptive_field=self.receptive_field)
        return logits + self.gamma * (moved - logits)


def _guided(network):
    decoder, channels = network.decoder, network.encoder.output_channels
    for number, block in enumerate(decoder.transpconvs):
        kind = Guided2d if block.axes == 2 else Guided3d
        decoder.transpconvs[number] = kind(block, channels[-(number + 2)])
    return network


def _alone(network):
    for number, block in enumerate(network.decoder.transpconvs):
        network.decoder.transpconvs[number] = (Alone2d if block.axes == 2 else Alone3d)(block)
    return network


def _logits(network):
    network.decoder.seg_layers[-1] = DeformedLogits(network.decoder.seg_layers[-1])
    return network


CHANGES = {"Guided": _guided, "Alone": _alone, "Logits": _logits}


@functools.cache
def _trainer(name, word):
    base = trainers.trainer_class(NAME.sub("nnUNetTrainer" if word == "Logits" else "nnUNetTrainerDTC", name))

    # nnU-Net looks at the names of these parameters
    @classmethod
    def build_network_architecture(
        cls, plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ):
        network = super(made, cls).build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return CHANGES[word](network)

    made = type(name, (base,), {"build_network_architecture": build_network_architecture, "__module__": __name__})
    return made


def __getattr__(name):
    if (found := NAME.match(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _trainer(name, found[1])
