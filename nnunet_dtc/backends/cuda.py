"""The CUDA backend: Triton's kernels, fused, in float32 arithmetic whatever the dtype of the maps.

The gradient of the value is gathered where the shifts are short: each voxel sums the few samples that can reach it,
always in the same order, hence the same bits in every run. The window grows with the receptive field; beyond
``MOST_GATHERED`` samples it is summed by atomic additions instead, unless ``torch.use_deterministic_algorithms(True)``
asks for the same bits there, too.
"""

import contextlib
import math
import warnings
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from nnunet_dtc.backends import reference, triton_kernels
from nnunet_dtc.shifts import shift_scale

MOST_GATHERED = 256  # samples in reach of a voxel: 108 for stride (1, 2, 2) at RF 2, 216 for (2, 2, 2)
SAMPLES, VOXELS, CHANNELS = 32, 64, 32  # of one program: as much as its registers hold


def forward(
    base: Tensor | None,
    value: Tensor,
    coords: Tensor,
    stride: Sequence[int],
    receptive_field: float,
    offset: str,
    weight: str,
) -> Tensor:
    """As :func:`nnunet_dtc.backends.reference.forward`, for shifts with a bound."""
    if torch.float64 in (value.dtype, coords.dtype):  # for exactness, not for speed
        return reference.forward(base, value, coords, stride, receptive_field, offset, weight)
    geometry = Geometry(value, stride, receptive_field)
    shape, dtype = (*value.shape[:2], *coords.shape[2:]), value.dtype if base is None else base.dtype
    out = torch.empty(shape, dtype=dtype, device=value.device)
    if out.numel() == 0:
        return out
    with _on(value.device):
        triton_kernels.forward_kernel[geometry.sample_grid](
            out, out if base is None else base.contiguous(), geometry.channels_last(value), coords.contiguous(),
            *geometry.sizes, *geometry.bounds, *geometry.stride,
            AXES=geometry.axes, WEIGHTED=weight != "none", HAS_BASE=base is not None,
            BM=SAMPLES, BC=geometry.channel_block,
        )  # fmt: skip
    return out


def backward(
    grad: Tensor,
    value: Tensor,
    coords: Tensor,
    stride: Sequence[int],
    receptive_field: float,
    offset: str,
    weight: str,
    wants_value: bool,
    wants_coords: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """As :func:`nnunet_dtc.backends.reference.backward`, for shifts with a bound."""
    if torch.float64 in (value.dtype, coords.dtype):
        return reference.backward(
            grad, value, coords, stride, receptive_field, offset, weight, wants_value, wants_coords
        )
    geometry = Geometry(value, stride, receptive_field)
    gathers = wants_value and _gathers(geometry, receptive_field)
    grad, coords, on = grad.contiguous(), coords.contiguous(), {"device": value.device}
    low = (value.shape[0], *value.shape[2:], geometry.pitch)  # (N, *S, P)
    if gathers:
        by_value = torch.empty(low, dtype=value.dtype, **on)
    else:
        by_value = torch.zeros(low if wants_value else 0, dtype=torch.float32, **on)
    by_coords = torch.empty_like(coords)
    positions = torch.empty(
        (value.shape[0], geometry.axes, *coords.shape[2:]) if wants_value else 0, dtype=torch.float32, **on
    )
    if grad.numel() > 0:
        kinds = {"AXES": geometry.axes, "BC": geometry.channel_block}
        with _on(value.device):
            triton_kernels.coords_kernel[geometry.sample_grid](
                by_coords, positions, grad, geometry.channels_last(value), coords,
                *geometry.sizes, *geometry.bounds, *geometry.stride,
                WEIGHTED=weight != "none", COORDS=wants_coords, POSITIONS=wants_value, BM=SAMPLES, **kinds,
            )  # fmt: skip
            if gathers:
                leads, reaches = zip(*geometry.windows, strict=True)
                triton_kernels.gather_kernel[geometry.channel_grid(VOXELS)](
                    by_value, grad, positions, *geometry.sizes, *leads, *reaches, *geometry.stride, BM=VOXELS, **kinds
                )
            elif wants_value:
                triton_kernels.scatter_kernel[geometry.channel_grid(SAMPLES, samples=True)](
                    by_value, grad, positions, *geometry.sizes, *geometry.stride, BM=SAMPLES, **kinds
                )
    return (
        # (N, C, *S), strides of channels-last
        by_value[..., : value.shape[1]].movedim(-1, 1).to(value.dtype) if wants_value else None,
        by_coords if wants_coords else None,
    )


class Geometry:
    """Sizes, strides, bounds and grids, with a first axis of one voxel that never moves where there are two."""

    def __init__(self, value: Tensor, stride: Sequence[int], receptive_field: float) -> None:
        batch, channels, *sizes = value.shape
        self.axes = len(sizes)
        missing = 3 - self.axes
        extents = (1,) * missing + tuple(sizes)
        self.stride = (1,) * missing + tuple(stride)
        self.bounds = [0.0] * missing + [float(shift_scale(receptive_field, size)) for size in sizes]
        self.channels = channels
        self.channel_block = min(CHANNELS, max(16, triton.next_power_of_2(channels)))
        self.pitch = triton.cdiv(channels, self.channel_block) * self.channel_block
        self.sizes = (channels, self.pitch, *extents)
        self.batch, self.voxels, self.samples = batch, math.prod(extents), math.prod(extents) * math.prod(self.stride)
        self.sample_grid = (triton.cdiv(self.samples, SAMPLES), batch)

    def channel_grid(self, block: int, samples: bool = False) -> tuple[int, int, int]:
        """Of programs for a block of voxels, or samples, and a block of channels each."""
        count = self.samples if samples else self.voxels
        return triton.cdiv(count, block), self.pitch // self.channel_block, self.batch

    def channels_last(self, value: Tensor) -> Tensor:
        """(N, C, *S) as (N, *S, P) in one block of memory."""
        rows = value.movedim(1, -1)
        if self.pitch == self.channels:
            return rows.contiguous()
        return torch.nn.functional.pad(rows, (0, self.pitch - self.channels))

    @property
    def windows(self) -> list[tuple[int, int]]:
        """For each axis: the samples that can touch voxel i are ``reach`` many, from ``i * stride - lead`` on.

        Sample o lies at (o + 1/2) / stride - 1/2, moves by the bound at most, and touches voxels less than 1 away.
        """
        windows = [(0, 1)] * (3 - self.axes)
        for step, bound in zip(self.stride[-self.axes :], self.bounds[-self.axes :], strict=True):
            first = math.ceil(-(0.5 + bound) * step - 0.5)
            last = math.floor((1.5 + bound) * step - 0.5)
            windows.append((-first, last - first + 1))
        return windows


def _gathers(geometry: Geometry, receptive_field: float) -> bool:
    """Whether the gradient of the value is gathered."""
    if math.prod(reach for _, reach in geometry.windows) <= MOST_GATHERED:
        return True
    if not torch.are_deterministic_algorithms_enabled():
        return False
    if not math.isinf(receptive_field):
        return True
    message = (
        "DTC with an unrestricted receptive field (RF = inf) has no deterministic gradient on CUDA, but "
        "torch.use_deterministic_algorithms(True) is set"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)
    return False


def _on(device: torch.device) -> contextlib.AbstractContextManager:
    """Triton launches on the current device; in its interpreter there is none."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
