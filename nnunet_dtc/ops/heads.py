"""The two heads of a DTC block: torch's convolutions, computed on the CPU as matrix products.

A pointwise convolution is one, and a transposed convolution whose kernel is its stride is one followed by a shuffle of
pixels: every input voxel gives ``stride`` output voxels of its own. On the CPU this is faster than torch's transposed
convolution, and the value comes out with its channels last in memory, as the CPU backend reads it. Weights and state
dict are those of the convolutions, and so is what a hook sees; on other devices, and where a network is traced or
exported to ONNX, they are the convolutions.
"""

import math

import torch
from torch import Tensor, nn


class _ValueHead:
    """A pointwise convolution: (N, C_in, S_1, .., S_g) to (N, C_out, S_1, .., S_g)."""

    def forward(self, x: Tensor) -> Tensor:
        if not _as_product(x):
            return super().forward(x)
        low = x.flatten(2).transpose(1, 2)  # (N, S, C_in)
        weight = self.weight.flatten(1).t().expand(x.shape[0], -1, -1)  # (N, C_in, C_out)
        value = torch.baddbmm(self.bias.view(1, 1, -1), low, weight)  # (N, S, C_out)
        return value.transpose(1, 2).unflatten(2, x.shape[2:])


class _CoordinateHead:
    """A transposed convolution whose kernel is its stride: (N, C_in, S_1, ..) to (N, C_out, S_1 * stride_1, ..)."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None or not _as_product(x):
            return super().forward(x, output_size)
        axes, steps = x.ndim - 2, math.prod(self.stride)
        weight = self.weight.flatten(1).t().expand(x.shape[0], -1, -1)  # (N, C_out * steps, C_in)
        bias = self.bias.repeat_interleave(steps).view(1, -1, 1)
        coords = torch.baddbmm(bias, weight, x.flatten(2))  # (N, C_out * steps, S)
        coords = coords.view(x.shape[0], self.out_channels, *self.stride, *x.shape[2:])
        order = [axis for a in range(axes) for axis in (2 + axes + a, 2 + a)]  # S_1, stride_1, S_2, stride_2, ..
        out = [size * step for size, step in zip(x.shape[2:], self.stride, strict=True)]
        return coords.permute(0, 1, *order).reshape(x.shape[0], self.out_channels, *out)


class ValueHead2d(_ValueHead, nn.Conv2d):
    """See the module."""


class ValueHead3d(_ValueHead, nn.Conv3d):
    """See the module."""


class CoordinateHead2d(_CoordinateHead, nn.ConvTranspose2d):
    """See the module."""


class CoordinateHead3d(_CoordinateHead, nn.ConvTranspose3d):
    """See the module."""


def _as_product(x: Tensor) -> bool:
    # an exported network is computed elsewhere: it has the convolutions, for any size of the batch
    return x.device.type == "cpu" and not (torch.jit.is_tracing() or torch.onnx.is_in_onnx_export())
