"""The CUDA backend: Triton's kernels, fused, in float32 arithmetic whatever the dtype of the maps.

The gradient of the value is gathered where the shifts are short: each voxel sums the few samples that can reach it,
always in the same order, hence the same bits in every run. The window grows with the receptive field; beyond
``MOST_GATHERED`` samples it is summed by atomic additions instead, unless ``torch.use_deterministic_algorithms(True)``
asks for the same bits there, too; beyond ``MOST_GATHERED_SLOWLY`` that is refused.
"""

import contextlib
import math
import warnings
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from nnunet_dtc.ops.backends import reference, triton_kernels
from nnunet_dtc.ops.backends.volume import Volume
from nnunet_dtc.ops.deformation import Deformation

MOST_GATHERED = 256  # samples in reach of a voxel: 108 for stride (1, 2, 2) at RF 2, 216 for (2, 2, 2)
MOST_GATHERED_SLOWLY = 2**15  # where the same bits are asked for: 4096 at RF 10 for stride (2, 2, 2)
MOST_CASES = 65535  # of CUDA's grids
OLDEST = (7, 0)  # compute capability for which Triton and its atomic additions are made
SAMPLES, VOXELS, CHANNELS = 32, 64, 32  # of one program: as much as its registers hold


def forward(
    base: Tensor | None,
    value: Tensor,
    coords: Tensor,
    stride: Sequence[int],
    deformation: Deformation,
) -> Tensor:
    """As :func:`nnunet_dtc.ops.backends.reference.forward`, for shifts with a bound."""
    if torch.float64 in (value.dtype, coords.dtype, None if base is None else base.dtype):  # exact rather than fast
        return reference.forward(base, value, coords, stride, deformation)
    if value.shape[0] > MOST_CASES:
        parts = zip(_parts(base, value), _parts(value, value), _parts(coords, value), strict=True)
        return torch.cat([forward(*part, stride, deformation) for part in parts])
    geometry = Geometry(value, stride, deformation)
    shape, dtype = (*value.shape[:2], *coords.shape[2:]), value.dtype if base is None else base.dtype
    out = torch.empty(shape, dtype=dtype, device=value.device)
    if out.numel() == 0:
        return out
    with _on(value.device):
        triton_kernels.forward_kernel[geometry.sample_grid](
            out, out if base is None else base.contiguous(), geometry.channels_last(value), coords.contiguous(),
            *geometry.sizes, *geometry.bounds, *geometry.stride,
            AXES=geometry.axes, WEIGHTED=geometry.weighted, HAS_BASE=base is not None,
            BM=SAMPLES, BC=geometry.channel_block,
        )  # fmt: skip
    return out


def backward(
    grad: Tensor,
    value: Tensor,
    coords: Tensor,
    stride: Sequence[int],
    deformation: Deformation,
    wants_value: bool,
    wants_coords: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """As :func:`nnunet_dtc.ops.backends.reference.backward`, for shifts with a bound."""
    more = (stride, deformation, wants_value, wants_coords)
    if torch.float64 in (value.dtype, coords.dtype, grad.dtype):
        return reference.backward(grad, value, coords, *more)
    if value.shape[0] > MOST_CASES:
        parts = zip(_parts(grad, value), _parts(value, value), _parts(coords, value), strict=True)
        by_value, by_coords = zip(*(backward(*part, *more) for part in parts), strict=True)
        return torch.cat(by_value) if wants_value else None, torch.cat(by_coords) if wants_coords else None
    geometry = Geometry(value, stride, deformation)
    gathers = wants_value and gathers_gradient(geometry, deformation)
    grad, coords, on = grad.contiguous(), coords.contiguous(), {"device": value.device}
    low = (value.shape[0], *value.shape[2:], geometry.pitch)  # (N, *S, P)
    written = torch.empty if grad.numel() > 0 else torch.zeros  # without elements no kernel runs
    if gathers:
        by_value = written(low, dtype=value.dtype, **on)
    else:
        by_value = torch.zeros(low if wants_value else 0, dtype=torch.float32, **on)
    by_coords = written(coords.shape if wants_coords else 0, dtype=coords.dtype, **on)
    positions = torch.empty(
        (value.shape[0], geometry.axes, *coords.shape[2:]) if wants_value else 0, dtype=torch.float32, **on
    )
    if grad.numel() > 0:
        kinds = {"AXES": geometry.axes, "BC": geometry.channel_block}
        with _on(value.device):
            triton_kernels.coords_kernel[geometry.sample_grid](
                by_coords, positions, grad, geometry.channels_last(value), coords,
                *geometry.sizes, *geometry.bounds, *geometry.stride,
                WEIGHTED=geometry.weighted, COORDS=wants_coords, POSITIONS=wants_value, BM=SAMPLES, **kinds,
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


class Geometry(Volume):
    """The volume, and the kernels' grids and blocks."""

    def __init__(self, value: Tensor, stride: Sequence[int], deformation: Deformation) -> None:
        super().__init__(value, stride, deformation)
        self.channel_block = min(CHANNELS, max(16, triton.next_power_of_2(self.channels)))
        self.pitch = triton.cdiv(self.channels, self.channel_block) * self.channel_block
        self.sizes = (self.channels, self.pitch, *self.extents)
        self.batch, self.voxels = value.shape[0], math.prod(self.extents)
        self.samples = self.voxels * math.prod(self.stride)
        self.sample_grid = (triton.cdiv(self.samples, SAMPLES), self.batch)

    def channel_grid(self, block: int, samples: bool = False) -> tuple[int, int, int]:
        """Of programs for a block of voxels, or samples, and a block of channels each."""
        count = self.samples if samples else self.voxels
        return triton.cdiv(count, block), self.pitch // self.channel_block, self.batch

    def channels_last(self, value: Tensor) -> Tensor:
        """(N, C, *S) as (N, *S, P) in one block of memory."""
        rows = value.movedim(1, -1)
        if self.pitch == self.channels:
            return rows.contiguous()
        return torch.nn.functional.pad(rows, (0, self.pitch - self.channels)).contiguous()  # it keeps other layouts

    @property
    def windows(self) -> list[tuple[int, int]]:
        """For each axis: the samples that can touch voxel i are ``reach`` many, from ``i * stride - lead`` on.

        Sample o lies at (o + 1/2) / stride - 1/2, moves by the bound at most, and touches voxels less than 1 away. No
        window is longer than what can be seen of the axis from its ends.
        """
        windows = [(0, 1)] * (3 - self.axes)
        missing = len(windows)
        for size, step, bound in zip(self.extents[missing:], self.stride[missing:], self.bounds[missing:], strict=True):
            first = max(math.ceil(-(0.5 + bound) * step - 0.5), step - size * step)
            last = min(math.floor((1.5 + bound) * step - 0.5), size * step - 1)
            windows.append((-first, last - first + 1))
        return windows


def gathers_gradient(geometry: Geometry, deformation: Deformation) -> bool:
    """Whether the gradient of the value is gathered; otherwise it is added atomically.

    Raises:
        RuntimeError: deterministic algorithms were asked for, and the window is too large to be gathered.
    """
    in_reach = math.prod(reach for _, reach in geometry.windows)
    if in_reach <= MOST_GATHERED:
        return True
    if not torch.are_deterministic_algorithms_enabled():
        return False
    if in_reach <= MOST_GATHERED_SLOWLY:
        return True
    message = (
        f"DTC with receptive field {deformation.receptive_field:g} has no deterministic gradient on CUDA for maps as "
        f"large as {geometry.extents[-geometry.axes :]}, but torch.use_deterministic_algorithms(True) is set"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)
    return False


def why_not() -> str | None:
    """Why the kernels cannot be used on the current GPU: they are compiled and run once, forward and backward."""
    capability = torch.cuda.get_device_capability()
    if torch.version.hip is None and capability < OLDEST:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, and Triton needs 7.0 or later"
    try:
        value, coords = torch.zeros(1, 1, 1, 2, device="cuda"), torch.zeros(1, 4, 1, 4, device="cuda")
        variant = ((1, 2), Deformation())
        backward(forward(None, value, coords, *variant), value, coords, *variant, True, True)
    except Exception as error:  # no C compiler, no headers of Python, a driver that is too old, ...
        return f"Triton cannot compile for this GPU: {(str(error).strip() or repr(error)).splitlines()[0]}"
    return None


def _parts(tensor: Tensor | None, value: Tensor) -> Sequence[Tensor | None]:
    """The cases of a batch as parts of ``MOST_CASES``; as many times None, where there is no tensor."""
    count = triton.cdiv(value.shape[0], MOST_CASES)
    return [None] * count if tensor is None else tensor.split(MOST_CASES)


def _on(device: torch.device) -> contextlib.AbstractContextManager:
    """Triton launches on the current device; in its interpreter there is none."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
