"""The upsamplers that the paper compares DTC with, and two more of their kind, in 2D and in 3D with any stride.

Sun et al., arXiv:2601.17939, tables 1, 6 and 7, have Linear, DySample and FADE in 2D with a stride of 2; CARAFE and
SAPA are ours to add. All have the interface of the transposed convolution, see
:class:`nnunet_dtc.upsamplers.base.Upsampler`; each is a base of DTC, too (``DTC3d(..., base=DySample3d(...))``). Torch
alone.
"""

from nnunet_dtc.registry import UPSAMPLERS as ENTRIES
from nnunet_dtc.registry import load
from nnunet_dtc.upsamplers.base import Upsampler
from nnunet_dtc.upsamplers.carafe import CARAFE2d, CARAFE3d, carafe
from nnunet_dtc.upsamplers.dysample import DySample2d, DySample3d, dysample
from nnunet_dtc.upsamplers.fade import FADE2d, FADE3d, fade
from nnunet_dtc.upsamplers.linear import Linear2d, Linear3d, linear_upsample
from nnunet_dtc.upsamplers.reassembly import reassemble
from nnunet_dtc.upsamplers.sapa import SAPA2d, SAPA3d, sapa

UPSAMPLERS: dict[str, dict[int, type[Upsampler]]] = {
    name: {axes: load(f"{entry.module}:{name}{axes}d") for axes in (2, 3)} for name, entry in ENTRIES.items()
}
"""Name (as in the names of trainers) to the class per number of spatial axes."""


def upsampler_class(name: str, axes: int) -> type[Upsampler]:
    """The class of a name of :data:`UPSAMPLERS` for 2 or 3 spatial axes; ValueError where there is none."""
    if name not in UPSAMPLERS:
        raise ValueError(f"an upsampler is one of {', '.join(UPSAMPLERS)}, got {name!r}")
    if axes not in UPSAMPLERS[name]:
        raise ValueError(f"{name} is there for 2 and 3 spatial axes, got {axes=}")
    return UPSAMPLERS[name][axes]


__all__ = [
    "UPSAMPLERS",
    "CARAFE2d",
    "CARAFE3d",
    "DySample2d",
    "DySample3d",
    "FADE2d",
    "FADE3d",
    "Linear2d",
    "Linear3d",
    "SAPA2d",
    "SAPA3d",
    "Upsampler",
    "carafe",
    "dysample",
    "fade",
    "linear_upsample",
    "reassemble",
    "sapa",
    "upsampler_class",
]
