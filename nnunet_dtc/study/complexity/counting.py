"""Parameters and multiply-accumulates (MACs) of a network, from shapes alone.

Table 7 of Sun et al. (arXiv:2601.17939) gives "Params (M)" and "FLOPs (G)". The first are MiB of float32: 17,262,977
parameters of a bilinear U-Net (3 -> 1 channels, 64 to 1024) are 65.85 MiB, its 65.95, and with DTC 67.24, its 67.25.
The second are multiply-accumulates: at 256 x 256 we count 40.01 G and with DTC 40.34 G, its 40.13 and 40.52.

What is counted, for the forward pass of one case: the products of convolutions, transposed convolutions and matrix
multiplications (torch's ``FlopCounterMode``, which counts two operations a product), and of linear interpolation (ours:
torch counts none), be it ``grid_sample`` or ``F.interpolate``: every sample of every channel costs one product a
neighbour, 4 in 2D and 8 in 3D. So does every element of a window that is reassembled (``addcmul``: CARAFE, FADE,
SAPA). Biases, normalisations, activations, positions and weights, which all channels share, and what is no such product
(SAPA's similarities, a product and a sum of their own) are not counted.

An operator of another namespace than torch's own needs a formula, by ``torch.utils.flop_counter.register_flop_formula``
beside its definition; one without is named in :class:`Macs`, never silently counted as nothing.
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from nnunet_dtc.ops.backends import use_backend

__all__ = ["MIB", "Macs", "count_macs", "count_parameters", "parameters_mib"]

MIB = 1024**2
OPERATIONS_A_MAC = 2  # a multiplication and an addition, as FlopCounterMode counts them

aten = torch.ops.aten
_TORCHS_NAMESPACES = ("aten", "prim", "prims", "profiler", "c10d", "inductor", "debugprims")


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of the forward pass of one case.

    Attributes:
        total: their number.
        uncounted: names of the operators that have no formula.
    """

    total: int
    uncounted: tuple[str, ...] = ()


def count_parameters(network: nn.Module) -> int:
    """Every parameter once, also where a network has it under two names, as nnU-Net's decoders do."""
    return sum(parameter.numel() for parameter in network.parameters())


def parameters_mib(parameters: int) -> float:
    """Their size in float32: the "M" of table 7."""
    return parameters * 4 / MIB


def count_macs(network: nn.Module, channels: int, size: Sequence[int]) -> Macs:
    """Count the forward pass of one case without computing it, so that it needs no memory but the parameters'.

    A network that reads numbers from its features (``.item()``) has to be computed.

    Args:
        network: takes (1, channels, *size) in float32, on the CPU. It is counted as in prediction (``eval``); its
            mode is restored.
        channels: of the input.
        size: of the input in tensor order, 2 or 3 axes.

    Raises:
        Exception: whatever the network raises for an input of this size.
    """
    was_training = network.training
    network.eval()
    try:
        # parameters stay as they are, and are taken for fake ones; networks that read numbers from tensors while they
        # are built could not be built among fake tensors
        try:
            return _count(network, (1, channels, *size), FakeTensorMode(allow_non_fake_inputs=True))
        except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException):
            return _count(network, (1, channels, *size), contextlib.nullcontext())
    finally:
        network.train(was_training)


def _count(network: nn.Module, shape: Sequence[int], mode: contextlib.AbstractContextManager) -> Macs:
    counter = FlopCounterMode(display=False, custom_mapping=_PRODUCTS)
    watch = _Watch(counter)
    # by the reference, whose formula all backends share: a backend that was forced may be for another device
    with torch.no_grad(), use_backend("reference"), _no_torch_log(), mode, watch, counter:
        network(torch.zeros(shape))
    return Macs(counter.get_total_flops() // OPERATIONS_A_MAC, tuple(sorted(watch.uncounted)))


@contextlib.contextmanager
def _no_torch_log() -> Iterator[None]:
    """Keep torch from printing a traceback of its own for sizes that do not fit: the exception says it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class _Watch(TorchDispatchMode):
    """Notes operators that neither torch nor a registered formula accounts for. Entered before the counter, it sees
    them after the counter has decomposed what it can."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.known = counter.flop_registry
        self.uncounted: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        if func.namespace not in _TORCHS_NAMESPACES and packet not in self.known:
            self.uncounted.add(str(packet))
        return func(*args, **(kwargs or {}))


def _grid_sample(
    _value: Sequence[int], _grid: Sequence[int], mode: int, *_: Any, out_shape: Sequence[int], **__: Any
) -> int:
    neighbours = {0: 2, 1: 0, 2: 4}[mode] ** (len(out_shape) - 2)  # of linear, nearest (a copy) and cubic
    return OPERATIONS_A_MAC * neighbours * math.prod(out_shape)


def _products(*_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return OPERATIONS_A_MAC * math.prod(out_shape)


def _interpolate(neighbours: int) -> Any:
    def formula(*_: Any, out_shape: Sequence[int], **__: Any) -> int:
        return OPERATIONS_A_MAC * neighbours ** (len(out_shape) - 2) * math.prod(out_shape)

    return formula


_PRODUCTS = {
    aten.addcmul: _products,
    aten.grid_sampler_2d: _grid_sample,
    aten.grid_sampler_3d: _grid_sample,
    aten.upsample_linear1d: _interpolate(2),
    aten.upsample_bilinear2d: _interpolate(2),
    aten.upsample_trilinear3d: _interpolate(2),
    aten.upsample_bicubic2d: _interpolate(4),
}
