"""Deformable Transposed Convolution (DTC) for medical image segmentation, as a plug-in for nnU-Net v2.

Sun et al., *DTC: A Deformable Transposed Convolution Module for Medical Image Segmentation*, arXiv:2601.17939.

The operator needs only torch; nothing here imports nnU-Net. Names are imported when they are first used, so that the
command line answers ``--help`` without torch. The operators ``torch.ops.nnunet_dtc`` are defined by
``import nnunet_dtc.ops.backends``, which all names except ``__version__`` import. Import it before loading a program
that was saved by ``torch.export``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nnunet_dtc._version import __version__

if TYPE_CHECKING:
    from nnunet_dtc.ops.convert import convert_dtc
    from nnunet_dtc.ops.dtc import DTC2d, DTC3d
    from nnunet_dtc.ops.sampling import deformable_upsample

__all__ = ["DTC2d", "DTC3d", "__version__", "convert_dtc", "deformable_upsample"]

_MODULES = {
    "DTC2d": "nnunet_dtc.ops.dtc",
    "DTC3d": "nnunet_dtc.ops.dtc",
    "convert_dtc": "nnunet_dtc.ops.convert",
    "deformable_upsample": "nnunet_dtc.ops.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
