"""The CUDA backend: Triton's kernels, fused, in float32 arithmetic whatever the dtype of the maps.

The gradient of the value is gathered where the shifts are short: each voxel sums the few samples that can reach it,
always in the same order, hence the same bits in every run. The window grows with the receptive field; beyond
``MOST_GATHERED`` samples it is summed by atomic additions instead, unless ``torch.use_deterministic_algorithms(True)``
asks for the same bits there, too; beyond ``MOST_GATHERED_SLOWLY`` that is refused.
"""

import contextlib
import math
import warnings
from collections.abc import Hashable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from nnunet_dtc.ops.backends import reference, triton_kernels
from nnunet_dtc.ops.backends.volume import Volume
from nnunet_dtc.ops.compiled_variants import launched_or
from nnunet_dtc.ops.deformation import Deformation

MOST_GATHERED = 256  # samples in reach of a voxel: 108 for stride (1, 2, 2) at RF 2, 216 for (2, 2, 2)
MOST_GATHERED_SLOWLY = 2**15  # where the same bits are asked for: 2744 at RF 10 for stride (2, 2, 2)
MOST_CASES = 65535  # of CUDA's grids
LARGEST = 2**31  # elements of the coordinates of one case: the kernels count them in 32 bits

# What a program has. benchmarks/kernel_cost.py shows the instructions and the registers that this takes.
SAMPLES, CHANNELS = 32, 16  # one warp
TILE, TILE_CHANNELS, ROWS = 32, 32, 16  # of the gather: samples side by side, channels (two warps), rows of voxels
PROGRAMS, FEWEST_ROWS = 1024, 4  # a program of the gather has fewer rows where there would be too few programs


def forward(
    base: Tensor | None,
    value: Tensor,
    coords: Tensor,
    stride: Sequence[int],
    deformation: Deformation,
) -> Tensor:
    """The same as :func:`nnunet_dtc.ops.backends.reference.forward`, for shifts with a bound.

    A variant of the kernels that does not compile is computed by the reference, with a warning.
    """
    arguments = (base, value, coords, stride, deformation)
    if _is_the_references(value, coords, base):
        return reference.forward(*arguments)
    return launched_or(
        lambda: launch_forward(*arguments),
        lambda: reference.forward(*arguments),
        _what("forward", value),
        _variant(value, coords, base, stride, deformation),
        value.device,
    )


def backward(
    grad: Tensor,
    value: Tensor,
    coords: Tensor,
    stride: Sequence[int],
    deformation: Deformation,
    wants_value: bool,
    wants_coords: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The same as :func:`nnunet_dtc.ops.backends.reference.backward`, for shifts with a bound.

    A variant of the kernels that does not compile is computed by the reference, with a warning.
    """
    arguments = (grad, value, coords, stride, deformation, wants_value, wants_coords)
    if _is_the_references(value, coords, grad):
        return reference.backward(*arguments)
    gathers = wants_value and gathers_gradient(Geometry(value, stride, deformation), deformation)
    return launched_or(
        lambda: launch_backward(*arguments, gathers),
        lambda: reference.backward(*arguments),
        _what("backward", value),
        _variant(value, coords, grad, stride, deformation),
        value.device,
    )


def launch_forward(
    base: Tensor | None, value: Tensor, coords: Tensor, stride: Sequence[int], deformation: Deformation
) -> Tensor:
    """:func:`forward` by the kernels, which may fail to compile."""
    if value.shape[0] > MOST_CASES:
        parts = zip(_parts(base, value), _parts(value, value), _parts(coords, value), strict=True)
        return torch.cat([launch_forward(*part, stride, deformation) for part in parts])
    geometry = Geometry(value, stride, deformation)
    shape, dtype = (*value.shape[:2], *coords.shape[2:]), value.dtype if base is None else base.dtype
    out = torch.empty(shape, dtype=dtype, device=value.device)
    if out.numel() == 0:
        return out
    with _on(value.device):
        triton_kernels.forward_kernel[geometry.sample_grid](
            out, out if base is None else base.contiguous(), geometry.channels_last(value), coords.contiguous(),
            *geometry.sizes, *geometry.bounds, *geometry.stride,
            AXES=geometry.axes, OFFSET=deformation.offset, WEIGHT=deformation.weight, HAS_BASE=base is not None,
            BM=SAMPLES, BC=CHANNELS, num_warps=1,
        )  # fmt: skip
    return out


def launch_backward(
    grad: Tensor,
    value: Tensor,
    coords: Tensor,
    stride: Sequence[int],
    deformation: Deformation,
    wants_value: bool,
    wants_coords: bool,
    gathers: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """:func:`backward` by the kernels, which may fail to compile; the value's is gathered or added atomically."""
    if value.shape[0] > MOST_CASES:
        gradients = [
            launch_backward(*part, stride, deformation, wants_value, wants_coords, gathers)
            for part in zip(_parts(grad, value), _parts(value, value), _parts(coords, value), strict=True)
        ]
        by_values, all_by_coords = (
            [each for each in kind if each is not None] for kind in zip(*gradients, strict=True)
        )
        return torch.cat(by_values) if wants_value else None, torch.cat(all_by_coords) if wants_coords else None
    geometry = Geometry(value, stride, deformation)
    gathers = gathers and wants_value
    grad, coords = grad.contiguous(), coords.contiguous()
    on: dict[str, Any] = {"device": value.device}
    low = (value.shape[0], *value.shape[2:], geometry.pitch)  # (N, *S, P)
    written = torch.empty if grad.numel() > 0 else torch.zeros  # without elements no kernel runs
    if gathers:
        by_value = written(low, dtype=value.dtype, **on)
    else:
        by_value = torch.zeros(low if wants_value else (0,), dtype=torch.float32, **on)
    by_coords = written(coords.shape if wants_coords else (0,), dtype=coords.dtype, **on)
    positions = torch.empty(
        (value.shape[0], geometry.axes, *coords.shape[2:]) if wants_value else (0,), dtype=torch.float32, **on
    )
    if grad.numel() > 0:
        block = {"AXES": geometry.axes, "BM": SAMPLES, "BC": CHANNELS, "num_warps": 1}
        with _on(value.device):
            triton_kernels.coords_kernel[geometry.sample_grid](
                by_coords, positions, grad, geometry.channels_last(value), coords,
                *geometry.sizes, *geometry.bounds, *geometry.stride,
                OFFSET=deformation.offset, WEIGHT=deformation.weight,
                COORDS=wants_coords, POSITIONS=wants_value, **block,
            )  # fmt: skip
            if gathers:
                tile = Tile(geometry)
                triton_kernels.gather_kernel[tile.grid](
                    by_value, grad, positions, *geometry.sizes, tile.rows, *geometry.reaches, *geometry.stride,
                    SLOTS=tile.slots, ROLLED=tile.rolled, AXES=geometry.axes, BX=tile.voxels, BC=tile.channels,
                    num_warps=tile.channels // CHANNELS,
                )  # fmt: skip
            elif wants_value:
                triton_kernels.scatter_kernel[geometry.scatter_grid](
                    by_value, grad, positions, *geometry.sizes, *geometry.stride, **block
                )
    return (
        # (N, C, *S), strides of channels-last
        by_value[..., : value.shape[1]].movedim(-1, 1).to(value.dtype) if wants_value else None,
        by_coords if wants_coords else None,
    )


class Geometry(Volume):
    """The volume, and how the kernels divide it.

    Attributes:
        pitch: elements of a voxel in memory, its channels rounded up to whole blocks.
        reaches: for each of three axes, how many voxels beside its own a sample can touch. The samples of voxel i lie
            less than half a voxel from its centre, are shifted by the bound at most, and touch voxels less than one
            voxel away.
        samples_in_reach: how many samples can touch a voxel.
    """

    def __init__(self, value: Tensor, stride: Sequence[int], deformation: Deformation) -> None:
        super().__init__(value, stride, deformation)
        self.pitch = triton.cdiv(self.channels, CHANNELS) * CHANNELS
        self.sizes = (self.channels, self.pitch, *self.extents)
        self.batch = value.shape[0]
        blocks = triton.cdiv(math.prod(self.extents) * math.prod(self.stride), SAMPLES)
        self.sample_grid = (blocks, self.batch)
        self.scatter_grid = (blocks, self.pitch // CHANNELS, self.batch)
        longest = self.bounds if deformation.is_bounded else self.extents  # the whole map
        axes = list(zip(self.extents, self.stride, longest, strict=True))
        self.reaches = tuple(
            min(math.ceil(1.5 + bound - 1 / (2 * step)) - 1, size - 1) if axis >= 3 - self.axes else 0
            for axis, (size, step, bound) in enumerate(axes)
        )
        self.samples_in_reach = math.prod(
            min(2 * reach + 1, size) * step for reach, (size, step, _) in zip(self.reaches, axes, strict=True)
        )

    def channels_last(self, value: Tensor) -> Tensor:
        """(N, C, *S) as (N, *S, P) in one block of memory."""
        rows = value.movedim(1, -1)
        if self.pitch == self.channels:
            return rows.contiguous()
        return torch.nn.functional.pad(rows, (0, self.pitch - self.channels)).contiguous()  # it keeps other layouts


class Tile:
    """The part of the map that one program of the gather computes: voxels side by side in rows of a slice, channels.

    Attributes:
        slots: places for the samples of a voxel along the last axis, its stride rounded up to a power of two.
        voxels: the number of voxels side by side.
        rolled: whether the rows above and below are summed at the same time; then each program reads two rows of
            cells more than it stores.
        channels: the number of channels, a multiple of ``CHANNELS``.
        rows: the number of rows of voxels of a program.
        grid: the grid of programs.
    """

    def __init__(self, geometry: Geometry) -> None:
        depth, rows, row = geometry.extents
        self.slots = triton.next_power_of_2(geometry.stride[-1])
        self.voxels = max(TILE // self.slots, 1)
        self.rolled = geometry.reaches[1] == 1 >= geometry.reaches[2]  # the last axis is unrolled there
        self.channels = TILE_CHANNELS if geometry.pitch % TILE_CHANNELS == 0 else CHANNELS
        others = geometry.pitch // self.channels * geometry.batch
        tiles = triton.cdiv(row, self.voxels) * depth
        self.rows = ROWS if self.rolled else 1
        while self.rows > FEWEST_ROWS and tiles * triton.cdiv(rows, self.rows) * others < PROGRAMS:
            self.rows //= 2
        self.grid = (tiles * triton.cdiv(rows, self.rows), geometry.pitch // self.channels, geometry.batch)


def gathers_gradient(geometry: Geometry, deformation: Deformation) -> bool:
    """Whether the gradient of the value is gathered; otherwise it is added atomically.

    Raises:
        RuntimeError: deterministic algorithms were asked for, and the window is too large to be gathered.
    """
    if geometry.samples_in_reach <= MOST_GATHERED:
        return True
    if not torch.are_deterministic_algorithms_enabled():
        return False
    if geometry.samples_in_reach <= MOST_GATHERED_SLOWLY:
        return True
    message = (
        f"DTC with receptive field {deformation.receptive_field:g} has no deterministic gradient on CUDA for maps as "
        f"large as {geometry.extents[-geometry.axes :]}, but torch.use_deterministic_algorithms(True) is set"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)
    return False


def _what(direction: str, value: Tensor) -> str:
    return (
        f"the {direction} kernel of a {value.ndim - 2}D deformable upsampling, which torch's grid_sample computes "
        "instead"
    )


def _variant(
    value: Tensor, coords: Tensor, high: Tensor | None, stride: Sequence[int], deformation: Deformation
) -> tuple[Hashable, ...]:
    """A key for the kernels that are compiled for these tensors."""
    kinds = (value.dtype, coords.dtype, None if high is None else high.dtype)
    return value.ndim - 2, tuple(stride), deformation, *kinds, value.shape[1] % TILE_CHANNELS == 0


def _is_the_references(value: Tensor, coords: Tensor, high: Tensor | None) -> bool:
    """Whether the reference computes: float64 is exact rather than fast, and the kernels count in 32 bits."""
    is_exact = torch.float64 in (value.dtype, coords.dtype, None if high is None else high.dtype)
    return is_exact or math.prod(coords.shape[1:]) >= LARGEST


def _parts(tensor: Tensor | None, value: Tensor) -> Sequence[Any]:
    """The cases of a batch as parts of ``MOST_CASES``; as many times None, where there is no tensor."""
    count = triton.cdiv(value.shape[0], MOST_CASES)
    return [None] * count if tensor is None else tensor.split(MOST_CASES)


def _on(device: torch.device) -> contextlib.AbstractContextManager:
    """Make the device the current one, on which Triton launches; its interpreter has none."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
