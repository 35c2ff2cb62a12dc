"""Deformable Transposed Convolution (DTC) for medical image segmentation, as a plug-in for nnU-Net v2.

Sun et al., *DTC: A Deformable Transposed Convolution Module for Medical Image Segmentation*, arXiv:2601.17939.

The operator needs torch alone: nothing here imports nnU-Net.
"""

from nnunet_dtc._version import __version__
from nnunet_dtc.convert import convert_dtc
from nnunet_dtc.dtc import DTC2d, DTC3d
from nnunet_dtc.sampling import deformable_upsample

__all__ = ["DTC2d", "DTC3d", "__version__", "convert_dtc", "deformable_upsample"]
