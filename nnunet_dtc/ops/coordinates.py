"""Collect the coordinates of DTC blocks, and what they amount to, per decoder stage and axis.

Sun et al., arXiv:2601.17939, figure 7, show where the samples of the last stage go. The numbers and their thresholds
are ours. With the shift of :func:`nnunet_dtc.ops.deformation.sampling_shifts`, lambda * Offset * Weight in voxels of
the stage's input map, and its scale lambda (RF / 4 voxels, for infinity half the map), an axis of a stage is

- **dead** where its shift is the same at all positions, within ``DEAD_VARIATION`` of the scale: no deformation is
  learned there, whatever the image;
- **saturated** where the offset's tanh is beyond ``SATURATED_OFFSET`` at more than ``NAMED_SHARE`` of the positions:
  the offset's gradient is nearly gone (4 % of what it is at zero), and the shift would go farther if it could;
- **shut** where the weight's sigmoid is below ``SHUT_WEIGHT`` at more than ``NAMED_SHARE`` of the positions: the
  offset hardly counts, and the weight's gradient is nearly gone;
- **open** where the weight is above ``OPEN_WEIGHT`` there: it no longer chooses;
- **not finite** where a coordinate is NaN or infinite;
- **fixed** with a receptive field of 0, the control: no shift, by its definition;
- **single** where the map has one voxel along the axis: a shift along it changes nothing.

Torch and numpy only.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_dtc.ops.checks import times
from nnunet_dtc.ops.deformation import Deformation, regular_positions, sampling_shifts, shifted_positions
from nnunet_dtc.ops.dtc import is_dtc
from nnunet_dtc.ops.sampling import deformable_upsample

SATURATED_OFFSET = 0.98
SHUT_WEIGHT = 0.02
OPEN_WEIGHT = 0.98
DEAD_VARIATION = 1e-3
NAMED_SHARE = 0.5
BINS = 20


@dataclass(frozen=True)
class StageCoordinates:
    """The coordinates of one DTC block in one forward pass.

    Attributes:
        block: the block's name in the network, such as ``decoder.transpconvs.0``.
        sizes: (S_1, .., S_g), voxels of the block's input map per axis.
        stride: voxels of the output per voxel of the input, per axis.
        deformation: of the block: its receptive field and variant.
        coords (Tensor[N, channels, *(S * stride)] or Tensor[1, channels, P]): raw offsets and weights, float32, on the
            CPU; of all positions, or of P of them.
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
        """Tensor[g, *(S * stride)]: where the positions would be without shifts, in voxels of the input map."""
        axes = [
            regular_positions(size, step, torch.float32) for size, step in zip(self.sizes, self.stride, strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"))

    def positions(self) -> Tensor:
        """Tensor[N, g, *(S * stride)]: where the samples are taken, in voxels of the input map; of all positions."""
        regular, shifts = self.regular_positions(), self.shifts()
        along = [
            shifted_positions(regular[axis], shifts[:, axis], size).clamp(0, size - 1)
            for axis, size in enumerate(self.sizes)
        ]
        return torch.stack(along, dim=1)

    def reads(self) -> Tensor:
        """Tensor[N, *S]: how often each voxel of the input map is read, as a multiple of the regular grid's share.

        The sum of the interpolation weights that a voxel has in all samples, divided by the product of the strides:
        1 everywhere without shifts, above 1 where samples gather, 0 where no sample goes. The mean is 1.
        """
        value = torch.ones(self.coords.shape[0], 1, *self.sizes, requires_grad=True)
        with torch.enable_grad():
            samples = deformable_upsample(value, self.coords, self.stride, **asdict(self.deformation))
            (weights,) = torch.autograd.grad(samples.sum(), value)
        return weights[:, 0] / math.prod(self.stride)


@dataclass(frozen=True)
class AxisNumbers:
    """One axis of one stage. What cannot be said of it is NaN.

    Attributes:
        axis: its name, such as "z".
        size: voxels of the input map.
        spacing_mm: of these voxels.
        scale_voxels: lambda of equation 1 in these voxels; the bound of a shift where it has one.
        bound_voxels: that bound, NaN where there is none (table 4's variants without tanh or sigmoid).
        mean_voxels, p95_voxels, max_voxels: of the length of the shift along this axis.
        used: mean length as a share of the scale, of the bound where there is one; NaN with a receptive field of 0.
        histogram: positions by the length as a share of the scale, in ``BINS`` equal bins from 0 to 1, and in one more
            those beyond 1 (none where there is a bound).
        saturated: share of positions whose tanh is beyond ``SATURATED_OFFSET``; NaN without tanh.
        shut, open: share of positions whose sigmoid is below ``SHUT_WEIGHT``, above ``OPEN_WEIGHT``; NaN without it.
        variation: largest minus smallest shift as a share of the scale; NaN with a receptive field of 0.
        states: which of the words in this module's description hold.
    """

    axis: str
    size: int
    spacing_mm: float
    scale_voxels: float
    bound_voxels: float
    mean_voxels: float
    p95_voxels: float
    max_voxels: float
    used: float
    histogram: tuple[int, ...]
    saturated: float
    shut: float
    open: float
    variation: float
    states: tuple[str, ...]

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
class StageNumbers:
    """One decoder stage.

    Attributes:
        stage: 1 is the first in the forward pass, the deepest; ``stages`` is the paper's "last upsampling layer".
        stages: how many there are.
        block, sizes, stride, deformation: as in :class:`StageCoordinates`.
        positions: how many were measured.
        axes: in tensor order.
    """

    stage: int
    stages: int
    block: str
    sizes: tuple[int, ...]
    stride: tuple[int, ...]
    deformation: Deformation
    positions: int
    axes: tuple[AxisNumbers, ...]

    @property
    def title(self) -> str:
        """Such as ``stage 1 of 2 (4 x 12 x 8 to 4 x 24 x 16)``."""
        output = [size * step for size, step in zip(self.sizes, self.stride, strict=True)]
        return f"stage {self.stage} of {self.stages} ({times(self.sizes)} to {times(output)})"


def collect(network: nn.Module, data: Tensor, limit: int | None = None) -> tuple[object, list[StageCoordinates]]:
    """Run a network once, in eval mode and without gradients, and keep the coordinates of its DTC blocks.

    The network's modes, hooks, weights and the random state are afterwards what they were before. A network that
    ``torch.compile`` or DistributedDataParallel has wrapped must be given unwrapped, since hooks belong to eager mode.

    Args:
        network: any network with DTC blocks.
        data (Tensor[N, C, ..]): its input, on its device.
        limit: keep about as many positions of each block, evenly spread over the map, the same ones at every call; by
            default all of them.

    Returns:
        What the network returned, and the blocks in the order in which they ran; none where the network has no DTC.

    Raises:
        ValueError: ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    found: dict[str, tuple[nn.Module, tuple[int, ...], Tensor]] = {}

    def keep(name: str, block: nn.Module):
        def hook(_conv: nn.Module, _inputs: object, coords: Tensor) -> None:
            output = tuple(coords.shape[2:])
            found[name] = (block, output, coords.detach() if limit is None else _thin(coords.detach(), limit))

        return block.coords.register_forward_hook(hook)

    blocks = [(name, module) for name, module in network.named_modules() if is_dtc(module)]
    training = [module for module in network.modules() if module.training]
    hooks = []
    try:
        for name, block in blocks:
            hooks.append(keep(name, block))
        for module in training:
            module.training = False
        with torch.no_grad():
            result = network(data)
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    if not found:
        return result, []
    shapes = [coords.shape for _, _, coords in found.values()]
    # one copy from the device for all stages
    values = torch.cat([coords.float().flatten() for _, _, coords in found.values()]).cpu()
    parts = values.split([shape.numel() for shape in shapes])
    return result, [
        StageCoordinates(
            block=name,
            sizes=tuple(size // step for size, step in zip(output, block.stride, strict=True)),
            stride=block.stride,
            deformation=block.deformation,
            coords=part.view(shape),
        )
        for (name, (block, output, _)), part, shape in zip(found.items(), parts, shapes, strict=True)
    ]


def measure(
    stages: Sequence[StageCoordinates], image_size: Sequence[int], spacing_mm: Sequence[float], names: Sequence[str]
) -> list[StageNumbers]:
    """The numbers of all stages.

    Args:
        stages: from :func:`collect`.
        image_size: voxels of the network's input per axis. A stage's voxels are as much larger than the input's as its
            map is smaller, which for nnU-Net's networks is the product of the strides before it.
        spacing_mm: of the network's input.
        names: of the axes.

    Raises:
        ValueError: not as many sizes, spacings and names as a stage has axes.
    """
    numbers = []
    for index, stage in enumerate(stages):
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
        numbers.append(
            StageNumbers(
                stage=index + 1,
                stages=len(stages),
                block=stage.block,
                sizes=stage.sizes,
                stride=stage.stride,
                deformation=stage.deformation,
                positions=positions,
                axes=axes,
            )
        )
    return numbers


def axis_names(transpose_forward: Sequence[int], axes: int) -> tuple[str, ...]:
    """Names of a network's axes, in tensor order, from the order in which nnU-Net's plans put those of the image.

    nnU-Net reads images as (z, y, x), transposes them by ``transpose_forward``, and its 2D networks see the last two.
    """
    return tuple("zyx"[axis] for axis in transpose_forward)[-axes:]


def _measure_axis(stage: StageCoordinates, axis: int, name: str, spacing_mm: float) -> AxisNumbers:
    deformation = stage.deformation
    offset, weight = deformation.activations(stage.coords, len(stage.sizes), axis, torch.float32)
    scale = deformation.scale(stage.sizes[axis])
    unit = (offset if weight is None else offset * weight).flatten()  # the shift as a fraction of its scale
    size, nan = stage.sizes[axis], math.nan
    shares = dict.fromkeys(("saturated", "shut", "open"), nan)
    histogram = [0] * (BINS + 1)
    mean = p95 = longest = used = variation = nan
    states = []
    if not unit.numel() or not bool(unit.isfinite().all()):
        states.append("not finite" if unit.numel() else "empty")
    else:
        if deformation.offset == "tanh":
            shares["saturated"] = _share(offset.abs() > SATURATED_OFFSET)
        if deformation.weight == "sigmoid":
            shares |= {"shut": _share(weight < SHUT_WEIGHT), "open": _share(weight > OPEN_WEIGHT)}
        lengths = unit.abs().numpy()
        mean, p95, longest = (
            scale * float(value)
            for value in (lengths.mean(dtype=np.float64), np.percentile(lengths, 95), lengths.max())
        )
        if deformation.receptive_field > 0:
            used = float(lengths.mean(dtype=np.float64))
            variation = float(unit.max() - unit.min())
            histogram = _histogram(lengths)
        states += [word for word, share in shares.items() if share > NAMED_SHARE]
        if variation < DEAD_VARIATION:
            states.insert(0, "dead")
        if size == 1:
            states = ["single"]
        if deformation.receptive_field == 0:
            states = ["fixed"]
    return AxisNumbers(
        axis=name,
        size=size,
        spacing_mm=spacing_mm,
        scale_voxels=scale,
        bound_voxels=scale if deformation.is_bounded else nan,
        mean_voxels=mean,
        p95_voxels=p95,
        max_voxels=longest,
        used=used,
        histogram=tuple(histogram),
        variation=variation,
        states=tuple(states),
        **shares,
    )


def _histogram(lengths: np.ndarray) -> list[int]:
    counts, _ = np.histogram(lengths, bins=BINS, range=(0, 1))
    return [*counts.tolist(), int((lengths > 1).sum())]


def _share(mask: Tensor) -> float:
    return mask.double().mean().item()


def _thin(coords: Tensor, limit: int) -> Tensor:
    """(N, channels, *O) to about (1, channels, limit), the positions evenly spread over all cases and the map."""
    flat = coords.flatten(2)  # (N, channels, positions of a case)
    step = max(1, math.ceil(flat.shape[0] * flat.shape[2] / limit))
    while any(math.gcd(step, size) > 1 for size in coords.shape[2:]):
        step += 1  # else it would meet the same columns in every row, and not all places within a stride
    thinned = flat[:, :, ::step]
    return thinned.transpose(0, 1).reshape(1, flat.shape[1], -1)
