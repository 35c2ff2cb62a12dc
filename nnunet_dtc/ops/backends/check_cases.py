"""The random cases in which the Triton kernels are compared with the reference, see :mod:`nnunet_dtc.ops.self_check`.

Together they launch every kernel: 3D and 2D, half and full precision, with and without a base, the gather with and
without rolling rows, the scatter, and sizes that fill no block, DTC and DySample.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_dtc.ops.backends import reference
from nnunet_dtc.ops.deformation import Deformation, Offset, Weight
from nnunet_dtc.ops.self_check import relative_error

TOLERANCE = {torch.float32: 2e-4, torch.float16: 8e-3, torch.bfloat16: 6e-2}


@dataclass(frozen=True)
class OperatorCase:
    """One random case of the operator.

    Attributes:
        size: size of the value in voxels.
        stride: output voxels per voxel.
        receptive_field: in voxels of the value.
        channels: channels of the value.
        dtype: dtype of all tensors.
        has_base: whether there is a base.
        gathers: whether the gradient of the value is gathered, or added atomically.
        offset, weight: the activations of the coordinates, see :class:`nnunet_dtc.ops.deformation.Deformation`.
        seed: seed of the random numbers; no sample of these cases lies where the interpolation is not differentiable.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    receptive_field: float
    channels: int
    dtype: torch.dtype
    has_base: bool
    gathers: bool
    offset: Offset = "tanh"
    weight: Weight = "sigmoid"
    seed: int = 0

    @property
    def tolerance(self) -> float:
        """The largest error that is allowed, relative to the largest element where that is greater than 1."""
        return TOLERANCE[self.dtype]

    def __str__(self) -> str:
        size, stride = "x".join(map(str, self.size)), ", ".join(map(str, self.stride))
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{self.channels} channels of {size}, stride ({stride}), receptive field {self.receptive_field:g}, {dtype}"
        )

    def errors(self, device: torch.device) -> dict[str, float]:
        """The largest errors of the output and of both gradients."""
        from nnunet_dtc.ops.backends import cuda  # it needs Triton

        generator = torch.Generator().manual_seed(self.seed)
        out = [size * step for size, step in zip(self.size, self.stride, strict=True)]

        def normal(channels: int, size: tuple[int, ...] | list[int]) -> Tensor:
            numbers = torch.randn(2, channels, *size, generator=generator, device="cpu", dtype=torch.float32)
            return numbers.to(self.dtype)

        variant = self.stride, Deformation(self.receptive_field, self.offset, self.weight)
        value, coords = normal(self.channels, self.size), normal(variant[1].channels(len(self.size)), out)
        base, grad = normal(self.channels, out), normal(self.channels, out)
        there = [tensor.to(device) for tensor in (value, coords, base, grad)]
        exact = [tensor.double() for tensor in (value, coords, base, grad)]

        def results(
            forward: Callable[..., Tensor],
            backward: Callable[..., tuple[Tensor | None, Tensor | None]],
            tensors: Sequence[Tensor],
            *more: bool,
        ) -> list[Tensor]:
            value, coords, base, grad = tensors
            result = forward(base if self.has_base else None, value, coords, *variant)
            by_value, by_coords = backward(grad, value, coords, *variant, True, True, *more)
            assert by_value is not None
            assert by_coords is not None
            # copies to the CPU wait for the device, so that its errors are raised here
            return [tensor.cpu().double() for tensor in (result, by_value, by_coords)]

        got = results(cuda.launch_forward, cuda.launch_backward, there, self.gathers)
        wanted = results(reference.forward, reference.backward, exact)
        names = ("the output", "the gradient of the value", "the gradient of the coordinates")
        return {name: relative_error(ours, true) for name, ours, true in zip(names, got, wanted, strict=True)}


CASES = (  # with seeds for which no sample lies closer than 0.0007 voxels to the centre of a voxel
    OperatorCase((2, 5, 18), (1, 2, 2), 2.0, 64, torch.float16, True, True, seed=127),  # the gather of most networks
    OperatorCase((2, 3, 5), (2, 2, 2), 10.0, 32, torch.float32, False, False, seed=74),
    OperatorCase((9, 16), (2, 2), 2.0, 33, torch.float16, True, True, seed=288),
    OperatorCase((5, 7), (3, 1), math.inf, 5, torch.float32, False, True, seed=278),
    OperatorCase((4, 5), (1, 2), 4.0, 17, torch.float32, False, False, "linear", "none", seed=118),  # DySample
)
