"""Number of parameters and multiply-accumulates (MACs) of a network, from shapes alone.

Table 7 of Sun et al. (arXiv:2601.17939) gives "Params (M)" and "FLOPs (G)". "Params (M)" are MiB of float32: the
17,262,977 parameters of a bilinear U-Net (3 -> 1 channels, 64 to 1024) are 65.85 MiB (65.95 in the table), with DTC
67.24 MiB (67.25). "FLOPs (G)" are multiply-accumulates: at 256 x 256 we count 40.01 G (40.13 in the table), with DTC
40.34 G (40.52).

We count the forward pass of one case:

- the products of convolutions, transposed convolutions and matrix multiplications by torch's ``FlopCounterMode``, which
  counts two operations per product;
- the products of linear interpolation by ``grid_sample`` or ``F.interpolate``, which torch does not count: one per
  neighbour for each sample and channel, 4 in 2D and 8 in 3D;
- one product for each element of a window that is reassembled (``addcmul`` in CARAFE, FADE and SAPA).

Biases, normalisations, activations, the positions and weights that are common to all channels, and products of other
kinds (the similarities of SAPA) are not counted.

An operator outside torch's namespaces needs a formula that is registered with its definition
(``torch.utils.flop_counter.register_flop_formula``). Operators without a formula are listed in :class:`Macs`.
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_dtc.ops.backends import use_backend
from nnunet_dtc.torch_internals import FAKE_TENSOR_ERRORS, FAKE_TENSOR_LOGGER, FakeTensorMode, TorchDispatchMode

__all__ = ["MIB", "Macs", "count_macs", "count_parameters", "parameters_mib"]

MIB = 1024**2
OPERATIONS_PER_MAC = 2  # a multiplication and an addition, as FlopCounterMode counts them

aten = torch.ops.aten
_TORCH_NAMESPACES = ("aten", "prim", "prims", "profiler", "c10d", "inductor", "debugprims")


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of the forward pass of one case.

    Attributes:
        total: number of multiply-accumulates.
        uncounted: names of the operators without a formula.
    """

    total: int
    uncounted: tuple[str, ...] = ()


def count_parameters(network: nn.Module) -> int:
    """The number of parameters. Parameters with two names, as in nnU-Net's decoders, are counted once.

    Example:
        >>> count_parameters(nn.Conv2d(3, 4, 1))
        16
    """
    return sum(parameter.numel() for parameter in network.parameters())


def parameters_mib(parameters: int) -> float:
    """The size of parameters in float32 in MiB, the "M" of table 7.

    Example:
        >>> round(parameters_mib(17_262_977), 2)
        65.85
    """
    return parameters * 4 / MIB


def count_macs(network: nn.Module, channels: int, size: Sequence[int]) -> Macs:
    """Count the multiply-accumulates of the forward pass of one case.

    Nothing is computed, so that no memory for features is needed. Networks that read numbers from their features
    (``.item()``) are an exception.

    Args:
        network: a network on the CPU with an input of (1, channels, *size) in float32. It is counted in eval mode; its
            mode is restored.
        channels: channels of the input.
        size: voxels of the input in tensor order, 2 or 3 axes.

    Raises:
        Exception: any exception of the network for an input of this size.

    Example:
        >>> count_macs(nn.Conv2d(3, 4, 1), 3, (5, 7)).total
        420
    """
    was_training = network.training
    network.eval()
    try:
        # The parameters are real tensors, which the mode converts. Networks that read numbers from tensors while they
        # are built could not be built under this mode.
        try:
            return _count(network, (1, channels, *size), FakeTensorMode(allow_non_fake_inputs=True))
        except FAKE_TENSOR_ERRORS:
            return _count(network, (1, channels, *size), contextlib.nullcontext())
    finally:
        network.train(was_training)


def _count(network: nn.Module, shape: Sequence[int], mode: contextlib.AbstractContextManager) -> Macs:
    counter = FlopCounterMode(display=False, custom_mapping=_PRODUCTS)
    uncounted = _UncountedOperators(counter)
    # All backends have the formula of the reference, and a backend that is forced may need another device.
    with torch.no_grad(), use_backend("reference"), _no_torch_log(), mode, uncounted, counter:
        network(torch.zeros(shape))
    return Macs(counter.get_total_flops() // OPERATIONS_PER_MAC, tuple(sorted(uncounted.names)))


@contextlib.contextmanager
def _no_torch_log() -> Iterator[None]:
    """Keep torch from logging a traceback for sizes that do not fit, in addition to the exception."""
    logger = logging.getLogger(FAKE_TENSOR_LOGGER)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class _UncountedOperators(TorchDispatchMode):
    """Collects the operators outside torch's namespaces that have no formula.

    It must be entered before the counter to see the operators that remain after the counter's decompositions.
    """

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.known = counter.flop_registry
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        if func.namespace not in _TORCH_NAMESPACES and packet not in self.known:
            self.names.add(str(packet))
        return func(*args, **(kwargs or {}))


def _grid_sample(
    _value: Sequence[int], _grid: Sequence[int], mode: int, *_: Any, out_shape: Sequence[int], **__: Any
) -> int:
    neighbours = {0: 2, 1: 0, 2: 4}[mode] ** (len(out_shape) - 2)  # of linear, nearest (a copy) and cubic
    return OPERATIONS_PER_MAC * neighbours * math.prod(out_shape)


def _products(*_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return OPERATIONS_PER_MAC * math.prod(out_shape)


def _interpolate(neighbours: int) -> Any:
    def formula(*_: Any, out_shape: Sequence[int], **__: Any) -> int:
        return OPERATIONS_PER_MAC * neighbours ** (len(out_shape) - 2) * math.prod(out_shape)

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
