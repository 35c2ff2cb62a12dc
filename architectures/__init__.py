"""The networks: nnU-Net's planned U-Net with another upsampling in its decoder."""

from nnunet_dtc.architectures.planned_unet import PlannedDecoder, with_dtc, with_upsampling

__all__ = ["PlannedDecoder", "with_dtc", "with_upsampling"]
