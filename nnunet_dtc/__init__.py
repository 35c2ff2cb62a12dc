"""Deformable Transposed Convolution (DTC) for medical image segmentation, as a plug-in for nnU-Net v2.

Sun et al., *DTC: A Deformable Transposed Convolution Module for Medical Image Segmentation*, arXiv:2601.17939.

The operator needs only torch: nothing here imports nnU-Net. Each name is imported at its first use, so that the command
line can answer ``--help`` without torch. The operators ``torch.ops.nnunet_dtc`` are defined by
``import nnunet_dtc.ops.backends``, which every name except ``__version__`` implies. Import it before you load a program
that was saved by ``torch.export``.

Example:
    >>> import torch
    >>> from nnunet_dtc import DTC3d
    >>> block = DTC3d(in_channels=8, out_channels=4, stride=(1, 2, 2))
    >>> block(torch.randn(1, 8, 3, 5, 7)).shape
    torch.Size([1, 4, 3, 10, 14])
"""

from importlib import import_module
from typing import TYPE_CHECKING

from nnunet_dtc._version import __version__

__all__ = ["DTC2d", "DTC3d", "__version__", "convert_dtc", "deformable_upsample"]

_MODULES = {
    "DTC2d": "nnunet_dtc.ops.dtc",
    "DTC3d": "nnunet_dtc.ops.dtc",
    "convert_dtc": "nnunet_dtc.ops.convert",
    "deformable_upsample": "nnunet_dtc.ops.sampling",
}

if TYPE_CHECKING:
    from nnunet_dtc.ops.convert import convert_dtc
    from nnunet_dtc.ops.dtc import DTC2d, DTC3d
    from nnunet_dtc.ops.sampling import deformable_upsample
else:  # hidden from type checkers, for which any name would exist

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
