"""Upsamplers for comparison with DTC, in 2D and 3D with any stride; torch is the only dependency.

Sun et al., arXiv:2601.17939, tables 1, 6 and 7, compare DTC with Linear, DySample and FADE in 2D with a stride of 2.
CARAFE and SAPA are our additions. All have the interface of a transposed convolution, see
:class:`nnunet_dtc.upsamplers.Upsampler`, and each can be the base of a DTC block.

Example:
    >>> import torch
    >>> from nnunet_dtc import DTC3d
    >>> from nnunet_dtc.upsamplers import DySample3d
    >>> block = DTC3d(8, 4, stride=(1, 2, 2), base=DySample3d(8, 4, stride=(1, 2, 2)))
    >>> block(torch.randn(1, 8, 3, 5, 7)).shape
    torch.Size([1, 4, 3, 10, 14])
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
"""The class by name (as in the names of trainers) and by the number of spatial axes."""


def upsampler_class(name: str, axes: int) -> type[Upsampler]:
    """Look up an upsampler.

    Args:
        name: a key of :data:`UPSAMPLERS`.
        axes: the number of spatial axes, 2 or 3.

    Returns:
        The class, a subclass of :class:`Upsampler`.

    Raises:
        ValueError: there is no such upsampler.

    Example:
        >>> from nnunet_dtc.upsamplers import upsampler_class
        >>> upsampler_class("DySample", axes=3).__name__
        'DySample3d'
    """
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
