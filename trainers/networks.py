"""The trainer class of each network."""

from nnunet_dtc.trainers.base import NamedTrainer
from nnunet_dtc.trainers.paper_networks import PaperNetworkTrainer
from nnunet_dtc.trainers.planned_unet import PlannedUNetTrainer
from nnunet_dtc.trainers.unet import UNetTrainer


def network_trainer(network: str) -> type[NamedTrainer]:
    """The trainer class of a network in ``nnunet_dtc.registry.NETWORKS``, or of "", nnU-Net's planned U-Net."""
    return {"": PlannedUNetTrainer, "UNet": UNetTrainer}.get(network, PaperNetworkTrainer)
