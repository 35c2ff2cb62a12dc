"""Collect the coordinates that DTC blocks predict, and summarise them per decoder stage and axis.

Figure 7 of Sun et al., arXiv:2601.17939, shows the sampling positions of the last stage. The statistics and their
thresholds are ours. They describe the shift of :func:`nnunet_dtc.ops.deformation.sampling_shifts`, lambda * Offset *
Weight in voxels of the stage's input map, relative to its scale lambda (RF / 4 voxels, or half the map where RF is
infinite). An axis of a stage can have these states:

- ``constant``: the shift varies by less than ``CONSTANT_SHIFT`` times the scale over all positions, so no deformation
  is learned there, whatever the image.
- ``offset_saturated``: the absolute value of the offset's tanh exceeds ``SATURATED_OFFSET`` at more than
  ``MOST_POSITIONS`` of the positions. The gradient of the offset is below 4 % of its value at zero there.
- ``weight_at_0``: the weight's sigmoid is below ``WEIGHT_NEAR_0`` at more than ``MOST_POSITIONS`` of the positions. The
  shift and the gradients of offset and weight almost vanish there.
- ``weight_at_1``: the weight's sigmoid exceeds ``WEIGHT_NEAR_1`` at more than ``MOST_POSITIONS`` of the positions. The
  weight no longer modulates the offset there.
- ``not finite``: a coordinate is NaN or infinite.
- ``empty``: there is no position.
- ``fixed``: the receptive field is 0, the control without shifts.
- ``single``: the map has one voxel along the axis, so that a shift has no effect.

This module needs torch and numpy only.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_dtc.ops.checks import times
from nnunet_dtc.ops.deformation import Deformation, regular_positions, sampling_shifts, shifted_positions
from nnunet_dtc.ops.dtc import is_dtc
from nnunet_dtc.ops.sampling import deformable_upsample

CONSTANT_SHIFT = 1e-3
SATURATED_OFFSET = 0.98
WEIGHT_NEAR_0 = 0.02
WEIGHT_NEAR_1 = 0.98
MOST_POSITIONS = 0.5
BINS = 20


@dataclass(frozen=True)
class StageCoordinates:
    """The coordinates of one DTC block in one forward pass.

    Attributes:
        block: the block's name in the network, such as ``decoder.transpconvs.0``.
        sizes: (S_1, .., S_g), voxels of the block's input map per axis.
        stride: voxels of the output per voxel of the input, per axis.
        deformation: the block's receptive field and activations.
        coords (Tensor[N, channels, *(S * stride)] or Tensor[1, channels, P]): raw offsets and weights, float32, on the
            CPU, at all positions or at P of them.
    """

    block: str
    sizes: tuple[int, ...]
    stride: tuple[int, ...]
    deformation: Deformation
    coords: Tensor

    def shifts(self) -> Tensor:
        """Tensor[N, g, ..]: the shifts along each axis in voxels of the input map, before clamping."""
        return sampling_shifts(self.coords, self.sizes, **asdict(self.deformation))

    def regular_positions(self) -> Tensor:
        """Tensor[g, *(S * stride)]: the positions without shifts, in voxels of the input map."""
        axes = [
            regular_positions(size, step, torch.float32) for size, step in zip(self.sizes, self.stride, strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"))

    def positions(self) -> Tensor:
        """Tensor[N, g, *(S * stride)]: the sampling positions in voxels of the input map; needs all coordinates."""
        regular, shifts = self.regular_positions(), self.shifts()
        along = [
            shifted_positions(regular[axis], shifts[:, axis], size).clamp(0, size - 1)
            for axis, size in enumerate(self.sizes)
        ]
        return torch.stack(along, dim=1)

    def sampling_density(self) -> Tensor:
        """Tensor[N, *S]: how often each voxel of the input map is sampled, relative to the regular grid.

        It is the sum of the voxel's interpolation weights over all samples, divided by the product of the strides: 1
        everywhere without shifts, above 1 where samples gather, 0 where there is none. The mean is 1.
        """
        value = torch.ones(self.coords.shape[0], 1, *self.sizes, requires_grad=True)
        with torch.enable_grad():
            samples = deformable_upsample(value, self.coords, self.stride, **asdict(self.deformation))
            (weights,) = torch.autograd.grad(samples.sum(), value)
        return weights[:, 0] / math.prod(self.stride)


@dataclass(frozen=True)
class AxisStatistics:
    """Statistics of the shifts along one axis of one stage. A number that is not defined is NaN.

    Attributes:
        axis: the name of the axis, such as "z".
        size: voxels of the stage's input map along the axis.
        spacing_mm: spacing of these voxels.
        scale_voxels: lambda of equation 1 in these voxels.
        bound_voxels: the largest possible shift, which is lambda; NaN for table 4's variants without a bound.
        mean_voxels, p95_voxels, max_voxels: mean, 95th percentile and maximum of the absolute shift.
        used: mean of the absolute shift as a fraction of the scale; NaN with a receptive field of 0.
        histogram: number of positions by the absolute shift as a fraction of the scale, in ``BINS`` equal bins from 0
            to 1, and one more bin above 1, which is empty where shifts are bounded.
        offset_saturated: fraction of positions where the offset's absolute tanh exceeds ``SATURATED_OFFSET``; NaN
            without tanh.
        weight_at_0: fraction of positions where the weight's sigmoid is below ``WEIGHT_NEAR_0``; NaN without sigmoid.
        weight_at_1: fraction of positions where the weight's sigmoid exceeds ``WEIGHT_NEAR_1``; NaN without sigmoid.
        variation: largest minus smallest shift as a fraction of the scale; NaN with a receptive field of 0.
        states: the states of this module's description that apply.
    """

    axis: str
    size: int
    spacing_mm: float
    scale_voxels: float
    bound_voxels: float
    mean_voxels: float = math.nan
    p95_voxels: float = math.nan
    max_voxels: float = math.nan
    used: float = math.nan
    histogram: tuple[int, ...] = (0,) * (BINS + 1)
    offset_saturated: float = math.nan
    weight_at_0: float = math.nan
    weight_at_1: float = math.nan
    variation: float = math.nan
    states: tuple[str, ...] = ()

    @property
    def mean_mm(self) -> float:
        return self.mean_voxels * self.spacing_mm

    @property
    def p95_mm(self) -> float:
        return self.p95_voxels * self.spacing_mm

    @property
    def max_mm(self) -> float:
        return self.max_voxels * self.spacing_mm

    @property
    def bound_mm(self) -> float:
        return self.bound_voxels * self.spacing_mm


@dataclass(frozen=True)
class StageStatistics:
    """Statistics of the shifts of one decoder stage.

    Attributes:
        stage: number of the stage in the forward pass; 1 is the deepest one, ``stages`` the paper's "last upsampling
            layer".
        stages: number of stages.
        block, sizes, stride, deformation: as in :class:`StageCoordinates`.
        positions: number of positions that were measured.
        axes: statistics of each axis, in tensor order.
    """

    stage: int
    stages: int
    block: str
    sizes: tuple[int, ...]
    stride: tuple[int, ...]
    deformation: Deformation
    positions: int
    axes: tuple[AxisStatistics, ...]

    @property
    def output_sizes(self) -> tuple[int, ...]:
        """Voxels of the block's output map per axis."""
        return tuple(size * step for size, step in zip(self.sizes, self.stride, strict=True))

    @property
    def title(self) -> str:
        """The stage and its sizes, such as ``stage 1 of 2 (4 x 12 x 8 to 4 x 24 x 16)``."""
        return f"stage {self.stage} of {self.stages} ({times(self.sizes)} to {times(self.output_sizes)})"


def collect(network: nn.Module, data: Tensor, limit: int | None = None) -> tuple[object, list[StageCoordinates]]:
    """Run a network once, in eval mode and without gradients, and collect the coordinates of its DTC blocks.

    The network's modes, hooks and weights and the random state are unchanged afterwards. Pass the network without
    the wrappers of ``torch.compile`` and DistributedDataParallel (see :func:`nnunet_dtc.ops.wrappers.unwrap`), because
    hooks need eager mode.

    Args:
        network: a network with DTC blocks.
        data (Tensor[N, C, ..]): its input, on its device.
        limit: keep about this many positions of each block, evenly spread over the map and the same at every call. By
            default all positions are kept.

    Returns:
        The output of the network, and the coordinates of its blocks in the order of the forward pass. The list is empty
        for a network without DTC blocks.

    Raises:
        ValueError: ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    found: dict[str, tuple[torch.Size, Tensor]] = {}  # block to the sizes of its output, and its coordinates

    def keep(name: str) -> Callable[..., None]:
        def hook(_conv: nn.Module, _inputs: object, coords: Tensor) -> None:
            found[name] = coords.shape[2:], coords.detach() if limit is None else _subsample(coords.detach(), limit)

        return hook

    blocks = {name: module for name, module in network.named_modules() if is_dtc(module)}
    with contextlib.ExitStack() as hooks, _eval_mode(network), torch.no_grad():
        for name, block in blocks.items():
            hooks.enter_context(block.coords.register_forward_hook(keep(name)))
        result = network(data)
    return result, [
        StageCoordinates(
            block=name,
            sizes=tuple(size // step for size, step in zip(output, blocks[name].stride, strict=True)),
            stride=blocks[name].stride,
            deformation=blocks[name].deformation,
            coords=coords,
        )
        for (name, (output, _)), coords in zip(
            found.items(), _to_cpu([coords for _, coords in found.values()]), strict=True
        )
    ]


def measure(
    stages: Sequence[StageCoordinates], image_size: Sequence[int], spacing_mm: Sequence[float], names: Sequence[str]
) -> list[StageStatistics]:
    """Compute the statistics of all stages.

    Args:
        stages: coordinates from :func:`collect`.
        image_size: voxels of the network's input per axis, with those that it adds itself if it pads. The voxels of a
            stage are larger than those of the input by the ratio of the two sizes, which in nnU-Net's networks is the
            product of the strides before the stage.
        spacing_mm: spacing of the network's input per axis.
        names: names of the axes, see :func:`axis_names`.

    Raises:
        ValueError: the number of sizes, spacings or names is not the number of a stage's axes.
    """
    statistics = []
    for number, stage in enumerate(stages, start=1):
        count = len(stage.sizes)
        if not len(image_size) == len(spacing_mm) == len(names) == count:
            raise ValueError(
                f"needs a size, a spacing and a name for each of {count} axes, got {image_size=}, {spacing_mm=}, "
                f"{names=}"
            )
        axes = tuple(
            _measure_axis(stage, axis, names[axis], spacing_mm[axis] * image_size[axis] / stage.sizes[axis])
            for axis in range(count)
        )
        positions = stage.coords.shape[0] * math.prod(stage.coords.shape[2:])
        statistics.append(
            StageStatistics(
                number, len(stages), stage.block, stage.sizes, stage.stride, stage.deformation, positions, axes
            )
        )
    return statistics


def axis_names(transpose_forward: Sequence[int], axes: int) -> tuple[str, ...]:
    """The names of a network's axes in tensor order.

    nnU-Net reads images as (z, y, x) and transposes them by the ``transpose_forward`` of its plans. Its 2D networks
    see the last two axes.

    Example:
        >>> axis_names((0, 1, 2), 2)
        ('y', 'x')
    """
    return tuple("zyx"[axis] for axis in transpose_forward)[-axes:]


def _measure_axis(stage: StageCoordinates, axis: int, name: str, spacing_mm: float) -> AxisStatistics:
    deformation, size = stage.deformation, stage.sizes[axis]
    scale = deformation.scale(size)
    known = (name, size, spacing_mm, scale, scale if deformation.is_bounded else math.nan)
    offset, weight = deformation.activations(stage.coords, len(stage.sizes), axis, torch.float32)
    shifts = (offset if weight is None else offset * weight).flatten()  # in units of the scale
    if not shifts.numel():
        return AxisStatistics(*known, states=("empty",))
    if not bool(shifts.isfinite().all()):
        return AxisStatistics(*known, states=("not finite",))
    lengths = shifts.abs().numpy()
    mean, p95, longest = lengths.mean(dtype=np.float64), np.percentile(lengths, 95), lengths.max()
    saturation = _saturation(deformation, offset, weight)
    measured = (*known, scale * float(mean), scale * float(p95), scale * float(longest))
    if deformation.receptive_field == 0:
        return AxisStatistics(*measured, **saturation, states=("fixed",))
    variation = float(shifts.max() - shifts.min())
    states = ["constant"] if variation < CONSTANT_SHIFT else []
    states += [state for state, fraction in saturation.items() if fraction > MOST_POSITIONS]
    return AxisStatistics(
        *measured,
        used=float(mean),
        histogram=_histogram(lengths),
        variation=variation,
        states=("single",) if size == 1 else tuple(states),
        **saturation,
    )


def _saturation(deformation: Deformation, offset: Tensor, weight: Tensor | None) -> dict[str, Any]:
    """The fractions of positions with saturated activations, for the activations that can saturate."""
    masks = {}
    if deformation.offset == "tanh":
        masks["offset_saturated"] = offset.abs() > SATURATED_OFFSET
    if weight is not None and deformation.weight == "sigmoid":
        masks |= {"weight_at_0": weight < WEIGHT_NEAR_0, "weight_at_1": weight > WEIGHT_NEAR_1}
    return {state: mask.double().mean().item() for state, mask in masks.items()}


def _histogram(lengths: np.ndarray) -> tuple[int, ...]:
    counts, _ = np.histogram(lengths, bins=BINS, range=(0, 1))
    return (*counts.tolist(), int((lengths > 1).sum()))


@contextlib.contextmanager
def _eval_mode(network: nn.Module) -> Iterator[None]:
    """Put all modules into eval mode, and each one back into its own mode afterwards."""
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _subsample(coords: Tensor, limit: int) -> Tensor:
    """(N, channels, *O) to about (1, channels, limit), with positions evenly spread over all cases and the map."""
    flat = coords.flatten(2)  # (N, channels, positions of a case)
    step = max(1, math.ceil(flat.shape[0] * flat.shape[2] / limit))
    while any(math.gcd(step, size) > 1 for size in coords.shape[2:]):
        step += 1  # a common divisor would select the same columns in every row
    subsampled = flat[:, :, ::step]
    return subsampled.transpose(0, 1).reshape(1, flat.shape[1], -1)


def _to_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies on the CPU in float32, made by a single transfer from the device."""
    if not tensors:
        return []
    values = torch.cat([tensor.float().flatten() for tensor in tensors]).cpu()
    parts = values.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
