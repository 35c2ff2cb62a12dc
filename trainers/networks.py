"""Which trainer a network in a name has. A new network is one line here and one in ``names.NETWORKS``."""

from nnunet_dtc.trainers.base import NamedTrainer
from nnunet_dtc.trainers.paper_networks import PaperNetworkTrainer
from nnunet_dtc.trainers.planned_unet import PlannedUNetTrainer
from nnunet_dtc.trainers.unet import UNetTrainer

NETWORK_TRAINERS: dict[str, type[NamedTrainer]] = {
    "": PlannedUNetTrainer,
    "UNet": UNetTrainer,
    "UNETR": PaperNetworkTrainer,
    "SwinUNETRV2": PaperNetworkTrainer,
    "NnMamba": PaperNetworkTrainer,
    "SegMamba": PaperNetworkTrainer,
}
