"""What can stand in the name of a trainer: one entry for each upsampler, network and optimizer.

The grammar of trainer names, the command line, the networks and the trainers all read these tables, so that one that is
added here is known everywhere. Standard library only: names can be read without torch.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["NETWORKS", "OPTIMIZERS", "UPSAMPLERS", "NetworkEntry", "OptimizerEntry", "UpsamplerEntry", "load"]


@dataclass(frozen=True)
class UpsamplerEntry:
    """An upsampler: a class for images and one for volumes, ``<name>2d`` and ``<name>3d``.

    Attributes:
        module: dotted name of the module that defines them.
        meaning: what it is, for ``nnunet-dtc trainers``.
    """

    module: str
    meaning: str


@dataclass(frozen=True)
class NetworkEntry:
    """A network that stands in a name. Where none does, it is the U-Net that nnU-Net has planned.

    Attributes:
        meaning: what it is, for ``nnunet-dtc trainers``.
        example: what follows the network in an example of a name.
        definition: ``module:NAME`` of its :class:`nnunet_dtc.architectures.paper_network.PaperNetwork`; None for one
            that has trainers of its own.
        adamw: learning rate and weight decay of AdamW, with which it is trained where the name has no optimizer; None
            for nnU-Net's SGD.
        upsamplers: whether its upsampling can be chosen.
    """

    meaning: str
    example: str
    definition: str | None = None
    adamw: tuple[float, float] | None = None
    upsamplers: bool = False


@dataclass(frozen=True)
class OptimizerEntry:
    """An optimizer that stands in a name.

    Attributes:
        trainer: ``module:NAME`` of a subclass of nnU-Net's trainer that sets it up, in ``__init__`` and
            ``configure_optimizers``. It is mixed into the trainers with this optimizer.
        meaning: what it is, for ``nnunet-dtc trainers``.
    """

    trainer: str
    meaning: str

    @property
    def nnunets_name(self) -> str | None:
        """The name of nnU-Net's own trainer with this optimizer and nothing else; None where nnU-Net has none."""
        module, _, name = self.trainer.partition(":")
        return name if module.startswith("nnunetv2.") else None


UPSAMPLERS = {
    "Linear": UpsamplerEntry(
        "nnunet_dtc.upsamplers.linear",
        "1x1 convolution and linear interpolation instead of the transposed convolutions",
    ),
    "DySample": UpsamplerEntry(
        "nnunet_dtc.upsamplers.dysample", "DySample (ICCV 2023) instead: samples at learned positions"
    ),
    "CARAFE": UpsamplerEntry(
        "nnunet_dtc.upsamplers.carafe", "CARAFE (ICCV 2019) instead: windows with predicted weights"
    ),
    "FADE": UpsamplerEntry(
        "nnunet_dtc.upsamplers.fade", "FADE (ECCV 2022) instead: windows led by the encoder's features, and a gate"
    ),
    "SAPA": UpsamplerEntry(
        "nnunet_dtc.upsamplers.sapa",
        "SAPA (NeurIPS 2022) instead: windows weighted by similarity with the encoder's features",
    ),
}

# Learning rates and weight decays. UNETR and SwinUNETRV2: MONAI's research-contributions, UNETR/BTCV and
# SwinUNETR/BTCV. NnMamba: its authors' nnU-Net trainer (there with Adam). SegMamba: the DTC paper, section 4.1 (its
# authors used nnU-Net's own SGD).
NETWORKS = {
    "UNet": NetworkEntry(
        "the paper's 2D U-Net with 64 to 1024 channels, for -c 2d; its RF there: 10, with Linear 10 (ISIC), inf (BUSI)",
        "LinearDTC_RF10",
        upsamplers=True,
    ),
    "UNETR": NetworkEntry(
        "UNETR (WACV 2022), MONAI's; its RF in the paper: 2",
        "DTC",
        "nnunet_dtc.architectures.monai_networks:UNETR",
        (1e-4, 1e-5),
    ),
    "SwinUNETRV2": NetworkEntry(
        "SwinUNETR V2 (MICCAI 2023), MONAI's; its RF in the paper: 2 (ISIC), 4 (BUSI)",
        "DTC_RF4",
        "nnunet_dtc.architectures.monai_networks:SWIN_UNETR_V2",
        (1e-4, 1e-5),
    ),
    "NnMamba": NetworkEntry(
        "nnMamba (2024), linear upsampling; its RF in the paper: 1",
        "DTC_RF1",
        "nnunet_dtc.architectures.nnmamba:NNMAMBA",
        (2e-4, 3e-5),
    ),
    "SegMamba": NetworkEntry(
        "SegMamba (MICCAI 2024); its RF in the paper: 4 (ISIC), 10 (BUSI)",
        "DTC_RF10",
        "nnunet_dtc.architectures.segmamba:SEGMAMBA",
        (1e-4, 1e-5),
    ),
}

_ADAM = "nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam"
OPTIMIZERS = {
    "Adam1en3": OptimizerEntry(f"{_ADAM}:nnUNetTrainerAdam1en3", "AdamW, learning rate 1e-3, as nnU-Net's Adam1en3"),
    "Adam3en4": OptimizerEntry(f"{_ADAM}:nnUNetTrainerAdam3en4", "AdamW, learning rate 3e-4, as nnU-Net's Adam3en4"),
}


def load(place: str) -> Any:
    """Import what an entry names as ``module:NAME``.

    Example:
        >>> load("math:inf")
        inf
    """
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
