"""One entry for each upsampler, network and optimizer that a trainer's name can contain.

The grammar of trainer names, the command line, the networks and the trainers read these tables, so one entry makes an
addition known everywhere. Only the standard library is imported: names can be parsed without torch.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["NETWORKS", "OPTIMIZERS", "UPSAMPLERS", "NetworkEntry", "OptimizerEntry", "UpsamplerEntry", "load"]


@dataclass(frozen=True)
class UpsamplerEntry:
    """An upsampler with a class for images and one for volumes, ``<name>2d`` and ``<name>3d``.

    Attributes:
        module: dotted name of the module that defines the two classes.
        meaning: description for ``nnunet-dtc trainers``.
    """

    module: str
    meaning: str


@dataclass(frozen=True)
class NetworkEntry:
    """A network. Names without one stand for the U-Net that nnU-Net has planned.

    Attributes:
        meaning: description for ``nnunet-dtc trainers``.
        example: the rest of an example name, after the network.
        definition: ``module:NAME`` of its :class:`nnunet_dtc.architectures.paper_network.PaperNetwork`; None for a
            network with its own trainer class.
        adamw: learning rate and weight decay of AdamW, the optimizer if the name contains none; None for nnU-Net's SGD.
        upsamplers: whether its upsampling can be chosen.
    """

    meaning: str
    example: str
    definition: str | None = None
    adamw: tuple[float, float] | None = None
    upsamplers: bool = False


@dataclass(frozen=True)
class OptimizerEntry:
    """An optimizer.

    Attributes:
        trainer: ``module:NAME`` of a subclass of nnU-Net's trainer that sets it up, in ``__init__`` and
            ``configure_optimizers``. It becomes a base class of the trainers with this optimizer.
        meaning: description for ``nnunet-dtc trainers``.
    """

    trainer: str
    meaning: str

    @property
    def nnunets_name(self) -> str | None:
        """The name of nnU-Net's own trainer that has only this optimizer; None if nnU-Net has no such trainer."""
        module, _, name = self.trainer.partition(":")
        return name if module.startswith("nnunetv2.") else None


UPSAMPLERS = {
    "Linear": UpsamplerEntry(
        "nnunet_dtc.upsamplers.linear",
        "1x1 convolution and linear interpolation instead of transposed convolutions",
    ),
    "DySample": UpsamplerEntry("nnunet_dtc.upsamplers.dysample", "DySample (ICCV 2023): samples at learned positions"),
    "CARAFE": UpsamplerEntry("nnunet_dtc.upsamplers.carafe", "CARAFE (ICCV 2019): windows with predicted weights"),
    "FADE": UpsamplerEntry(
        "nnunet_dtc.upsamplers.fade", "FADE (ECCV 2022): windows guided by the encoder's features, and a gate"
    ),
    "SAPA": UpsamplerEntry(
        "nnunet_dtc.upsamplers.sapa",
        "SAPA (NeurIPS 2022): windows weighted by similarity to the encoder's features",
    ),
}

# Sources of learning rate and weight decay. UNETR and SwinUNETRV2: UNETR/BTCV and SwinUNETR/BTCV in MONAI's
# research-contributions. NnMamba: its authors' nnU-Net trainer, which uses Adam. SegMamba: section 4.1 of the DTC paper
# (SegMamba's authors used nnU-Net's SGD).
NETWORKS = {
    "UNet": NetworkEntry(
        "the paper's 2D U-Net (64 to 1024 channels) for -c 2d; RF in the paper: 10, with Linear 10 (ISIC), inf (BUSI)",
        "LinearDTC_RF10",
        upsamplers=True,
    ),
    "UNETR": NetworkEntry(
        "MONAI's UNETR (WACV 2022); RF in the paper: 2",
        "DTC",
        "nnunet_dtc.architectures.monai_networks:UNETR",
        (1e-4, 1e-5),
    ),
    "SwinUNETRV2": NetworkEntry(
        "MONAI's SwinUNETR V2 (MICCAI 2023); RF in the paper: 2 (ISIC), 4 (BUSI)",
        "DTC_RF4",
        "nnunet_dtc.architectures.monai_networks:SWIN_UNETR_V2",
        (1e-4, 1e-5),
    ),
    "NnMamba": NetworkEntry(
        "nnMamba (2024) with linear upsampling; RF in the paper: 1",
        "DTC_RF1",
        "nnunet_dtc.architectures.nnmamba:NNMAMBA",
        (2e-4, 3e-5),
    ),
    "SegMamba": NetworkEntry(
        "SegMamba (MICCAI 2024); RF in the paper: 4 (ISIC), 10 (BUSI)",
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
    """Import an object that is given as ``module:NAME``.

    Example:
        >>> load("math:inf")
        inf
    """
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
