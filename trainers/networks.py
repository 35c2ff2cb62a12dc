"""Which trainer class builds a network that stands in a name."""

from nnunet_dtc.trainers.base import NamedTrainer
from nnunet_dtc.trainers.paper_networks import PaperNetworkTrainer
from nnunet_dtc.trainers.planned_unet import PlannedUNetTrainer
from nnunet_dtc.trainers.unet import UNetTrainer


def network_trainer(network: str) -> type[NamedTrainer]:
    """The trainer class of one of ``nnunet_dtc.registry.NETWORKS``, or of "", the U-Net that nnU-Net has planned."""
    return {"": PlannedUNetTrainer, "UNet": UNetTrainer}.get(network, PaperNetworkTrainer)
