"""The time of the operator on a device: each implementation itself, without the choice of a backend and autograd."""

import functools
import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunet_dtc.ops.backends import BACKENDS, reference
from nnunet_dtc.ops.deformation import Deformation

__all__ = ["GATHER", "SCATTER", "Implementation", "Passes", "Stage", "implementations", "median_ms"]

GATHER, SCATTER = "triton, gather", "triton, scatter"  # of the gradient with respect to the value
FEWEST_ROUNDS = 3

Implementation = tuple[Callable[..., Tensor], Callable[..., tuple[Tensor | None, Tensor | None]]]
"""``forward`` and ``backward``, as in :mod:`nnunet_dtc.ops.backends.reference`."""


@dataclass(frozen=True)
class Stage:
    """An upsampling of a decoder.

    Attributes:
        channels: channels of the value.
        size: size of the value in voxels.
        stride: output voxels per voxel.
        batch: cases.
    """

    channels: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    batch: int = 2

    def __str__(self) -> str:
        size, stride = "x".join(map(str, self.size)), ", ".join(map(str, self.stride))
        return f"{self.batch} x {self.channels} channels of {size}, stride ({stride})"

    @property
    def fine(self) -> tuple[int, ...]:
        """The size of the output, in voxels."""
        return tuple(size * step for size, step in zip(self.size, self.stride, strict=True))


class Passes:
    """The forward and the backward pass of a stage with random tensors.

    Args:
        stage: sizes.
        device: where it is computed.
        dtype: dtype of all tensors.
        receptive_field: in voxels of the value.
    """

    def __init__(self, stage: Stage, device: torch.device, dtype: torch.dtype, receptive_field: float) -> None:
        def normal(*shape: int) -> Tensor:
            return torch.randn(stage.batch, *shape, device=device).to(dtype)

        self.stage, self.deformation = stage, Deformation(receptive_field)
        self.value = normal(*stage.size, stage.channels).movedim(-1, 1)  # channels-last, as the value head returns it
        self.coords = normal(2 * len(stage.size), *stage.fine)
        self.base, self.grad = normal(stage.channels, *stage.fine), normal(stage.channels, *stage.fine)

    def forward(self, implementation: Implementation) -> Tensor:
        """The output, (N, C, *fine)."""
        return implementation[0](self.base, self.value, self.coords, self.stage.stride, self.deformation)

    def backward(
        self, implementation: Implementation, wants_value: bool = True, wants_coords: bool = True
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients with respect to the value and the coordinates."""
        arguments = (self.grad, self.value, self.coords, self.stage.stride, self.deformation)
        return implementation[1](*arguments, wants_value, wants_coords)

    @property
    def forward_bytes(self) -> int:
        """Bytes that the forward pass must read and write: base, value and coordinates; the output."""
        return sum(tensor.nbytes for tensor in (self.base, self.value, self.coords, self.base))

    @property
    def backward_bytes(self) -> int:
        """Bytes that the backward pass must read and write: gradient, value and coordinates; both gradients."""
        return self.grad.nbytes + 2 * (self.value.nbytes + self.coords.nbytes)


def implementations(device: torch.device) -> dict[str, Implementation]:
    """The implementations that can be used on a device, by name; Triton's with the gather and with the scatter.

    The first call for a GPU checks Triton's kernels, see :mod:`nnunet_dtc.ops.self_check`.
    """
    found: dict[str, Implementation] = {"reference": (reference.forward, reference.backward)}
    if device.type == "cpu" and BACKENDS["numba"].why_not() is None:
        numba = importlib.import_module("nnunet_dtc.ops.backends.cpu")
        found["numba"] = numba.forward, numba.backward
    if device.type in ("cuda", "cpu") and BACKENDS["triton"].why_not() is None:  # on the CPU by Triton's interpreter
        cuda = importlib.import_module("nnunet_dtc.ops.backends.cuda")
        for name, gathers in ((GATHER, True), (SCATTER, False)):
            found[name] = cuda.launch_forward, functools.partial(cuda.launch_backward, gathers=gathers)
    return found


def median_ms(
    call: Callable[[], Any], device: torch.device, rounds: int = 20, warm_up: int = 3, seconds: float = 1.0
) -> float:
    """The median time of a call in milliseconds, by CUDA's events where the device is one of CUDA.

    Args:
        call: the function to time.
        device: where it computes.
        rounds: calls that are timed.
        warm_up: calls before, which may compile.
        seconds: after this time, at least three rounds are enough.
    """
    for _ in range(warm_up):
        call()
    timed = _cuda_ms if device.type == "cuda" else _cpu_ms
    start, times = time.perf_counter(), list[float]()
    while len(times) < rounds and (len(times) < FEWEST_ROUNDS or time.perf_counter() - start < seconds):
        times.append(timed(call))
    return statistics.median(times)


def _cuda_ms(call: Callable[[], Any]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _cpu_ms(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)
