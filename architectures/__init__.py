"""The networks: nnU-Net's planned U-Net with other upsamplings in its decoder, and the paper's networks."""

from nnunet_dtc.architectures.networks import NETWORKS, build_network, planned_settings
from nnunet_dtc.architectures.planned_unet import PlannedDecoder, with_dtc, with_upsampler, with_upsampling
from nnunet_dtc.architectures.unet import UNet

__all__ = [
    "NETWORKS",
    "PlannedDecoder",
    "UNet",
    "build_network",
    "planned_settings",
    "with_dtc",
    "with_upsampler",
    "with_upsampling",
]
