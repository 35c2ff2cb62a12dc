"""The CPU backend: numba's kernels on all cores, also for a batch of one, and the same bits on any number of them.

The result's rows are independent of each other. For the gradient of the value each sample adds to the voxels around it;
the rows are therefore divided into blocks along one axis, so thick that every second block can be computed at the same
time: the blocks between them are as thick as the longest shift, which is its bound, or the longest that the coordinates
contain if shifts have no bound. Which blocks there are does not depend on the number of threads.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nnunet_dtc.ops.backends import cpu_kernels
from nnunet_dtc.ops.backends.threads import in_threads
from nnunet_dtc.ops.backends.volume import Volume
from nnunet_dtc.ops.deformation import OFFSETS, WEIGHTS, Deformation, regular_positions

MOST_BLOCKS = 64  # along the axis; more would be too thin to be worth a call


def forward(
    base: Tensor | None,
    value: Tensor,
    coords: Tensor,
    stride: Sequence[int],
    deformation: Deformation,
) -> Tensor:
    """The same as :func:`nnunet_dtc.ops.backends.reference.forward`."""
    geometry = Geometry(value, stride, deformation)
    dtype = value.dtype if base is None else base.dtype
    compute = _compute_dtype(value, coords, dtype)
    kept = _kept_dtype(dtype, compute)
    out = torch.empty((*value.shape[:2], *coords.shape[2:]), dtype=kept)
    in_threads(
        cpu_kernels.forward_rows, value.shape[0] * geometry.rows[0] * geometry.rows[1], out.numel(),
        _flat(out, kept), _flat(out if base is None else base, kept), base is not None,
        *geometry.arguments(value, coords, compute),
    )  # fmt: skip
    return out.to(dtype)


def backward(
    grad: Tensor,
    value: Tensor,
    coords: Tensor,
    stride: Sequence[int],
    deformation: Deformation,
    wants_value: bool,
    wants_coords: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The same as :func:`nnunet_dtc.ops.backends.reference.backward`."""
    geometry = Geometry(value, stride, deformation, coords)
    compute = _compute_dtype(value, coords, grad.dtype)
    kept = _kept_dtype(coords.dtype, compute)
    # channels-last, (N, *S, C), as the value
    by_value = torch.zeros((value.shape[0], *value.shape[2:], value.shape[1]) if wants_value else 0, dtype=compute)
    by_coords = torch.empty(coords.shape if wants_coords else 0, dtype=kept)
    arguments = (
        _flat(by_value, compute), _flat(by_coords, kept), wants_value, wants_coords,
        _flat(grad, _kept_dtype(grad.dtype, compute)), *geometry.arguments(value, coords, compute),
    )  # fmt: skip
    for blocks in geometry.blocks(value.shape[0]):
        in_threads(cpu_kernels.backward_blocks, len(blocks), grad.numel(), blocks, *arguments)
    return (
        by_value.movedim(-1, 1).to(value.dtype) if wants_value else None,  # (N, C, *S), strides of channels-last
        by_coords.to(coords.dtype) if wants_coords else None,
    )


class Geometry(Volume):
    """The volume, and the arguments that the kernels take from it.

    Args:
        coords: the coordinates, from which the longest shifts are taken if shifts have no bound. Without them any shift
            is expected.

    Attributes:
        activations: activations of the offset and of the weight, as the kernels take them.
        longest: the longest shift along each of three axes, in voxels.
    """

    def __init__(
        self, value: Tensor, stride: Sequence[int], deformation: Deformation, coords: Tensor | None = None
    ) -> None:
        super().__init__(value, stride, deformation)
        self.activations = OFFSETS.index(deformation.offset), WEIGHTS.index(deformation.weight)
        if deformation.is_bounded:
            self.longest = self.bounds
        elif coords is None or coords.numel() == 0:
            self.longest = [float(size) for size in self.extents]
        else:
            self.longest = self._longest_shifts(coords, deformation)
        self.rows = tuple(size * step for size, step in zip(self.extents, self.stride, strict=True))

    def arguments(self, value: Tensor, coords: Tensor, compute: torch.dtype) -> tuple:
        """The last arguments of every kernel, from ``value`` on."""
        starts = [regular_positions(size, step, compute) for size, step in zip(self.extents, self.stride, strict=True)]
        return (
            _flat(value.movedim(1, -1), compute),  # (N, *S, C)
            _flat(coords, _kept_dtype(coords.dtype, compute)),
            torch.cat(starts).numpy(),
            torch.tensor(self.bounds, dtype=compute).numpy(),
            torch.tensor([size - 1 for size in self.extents], dtype=compute).numpy(),
            self.activations,
            (self.channels, *self.extents),
            self.stride,
            self.axes,
        )

    def blocks(self, cases: int) -> list[np.ndarray]:
        """Ranges of output rows, (.., 5) as ``backward_blocks`` takes them: those of the first array can be computed at
        the same time, then those of the second."""
        axis = max((0, 1), key=lambda a: self.extents[a] // self._thickness(a))
        size, thick = self.extents[axis], self._thickness(axis)
        count = max(size // thick, 1)
        edges = [self.stride[axis] * (size * block // count) for block in range(count + 1)]
        whole = (0, self.rows[1 - axis])
        parts: list[list[tuple[int, ...]]] = [[], []]
        for case in range(cases):
            for block, ends in enumerate(itertools.pairwise(edges)):
                parts[block % 2].append((case, *ends, *whole) if axis == 0 else (case, *whole, *ends))
        return [np.array(part, dtype=np.int64) for part in parts if part]

    def _longest_shifts(self, coords: Tensor, deformation: Deformation) -> list[float]:
        """The longest shifts along three axes, from the largest offset and weight; at most the size of the map."""
        largest = torch.linalg.vector_norm(coords, math.inf, (0, *range(2, coords.ndim))).tolist()  # of each channel
        longest = []
        for axis, (size, scale) in enumerate(zip(self.extents, self.bounds, strict=True)):
            head = axis - (3 - self.axes)
            if head >= 0 and deformation.offset == "linear":
                scale *= largest[head]
            if head >= 0 and deformation.weight == "linear":
                scale *= largest[self.axes + head]
            longest.append(scale if scale < size else float(size))  # the size also where it is NaN
        return longest

    def _thickness(self, axis: int) -> int:
        """The fewest voxels of the value that a block has along an axis, so that its two neighbours never meet.

        Samples of voxel i lie less than half a voxel and the longest shift away from it. They touch the voxels from
        i - ceil(reach) to i + floor(reach) + 1.
        """
        reach = 0.5 + self.longest[axis]
        return max(math.ceil(reach) + math.floor(reach) + 1, -(-self.extents[axis] // MOST_BLOCKS))


def _compute_dtype(value: Tensor, coords: Tensor, result: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic: float64 if a tensor has it, else float32."""
    return torch.float64 if torch.float64 in (value.dtype, coords.dtype, result) else torch.float32


def _kept_dtype(dtype: torch.dtype, compute: torch.dtype) -> torch.dtype:
    """The dtype in which the kernels read or write a map of the output's size: they know bfloat16, but not float16."""
    return torch.bfloat16 if dtype == torch.bfloat16 else compute


def _flat(tensor: Tensor, dtype: torch.dtype) -> np.ndarray:
    """The tensor as a flat array, copied only if its layout or dtype is another; bfloat16 as its bits."""
    tensor = tensor.detach().to(dtype).contiguous().view(-1)
    return (tensor.view(torch.uint16) if dtype == torch.bfloat16 else tensor).numpy()
