"""The two convolutions of a DTC block, computed as matrix products.

A pointwise convolution is a matrix product. A transposed convolution whose kernel is its stride is a matrix product
followed by a pixel shuffle, because every input voxel gives ``prod(stride)`` output voxels of its own. On the CPU this
is faster than torch's transposed convolution. It also leaves the channels of the value last in memory, where the CPU
and the CUDA backend read them and write their gradient: neither the value nor its gradient is copied.

In every other respect these classes are torch's convolutions: they have the same weights, state dict and results. On
other devices, and while a network is traced or exported to ONNX, torch's convolutions compute the result. So they do on
CUDA under ``torch.use_deterministic_algorithms(True)``, because torch then refuses matrix products unless
``CUBLAS_WORKSPACE_CONFIG`` is set.
"""

import math

import torch
from torch import Tensor, nn

from nnunet_dtc.ops.layout import pixel_shuffle


class ValueHead2d(nn.Conv2d):
    """A pointwise convolution of images, (N, C_in, H, W) to (N, C_out, H, W), with a bias."""

    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return _pointwise(x, self.weight, self.bias) if _as_product(x) else super().forward(x)


class ValueHead3d(nn.Conv3d):
    """A pointwise convolution of volumes, (N, C_in, D, H, W) to (N, C_out, D, H, W), with a bias."""

    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return _pointwise(x, self.weight, self.bias) if _as_product(x) else super().forward(x)


class CoordinateHead2d(nn.ConvTranspose2d):
    """A transposed convolution of images whose kernel is its stride, with a bias.

    It maps (N, C_in, H, W) to (N, C_out, H * stride_1, W * stride_2).
    """

    bias: Tensor

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is None and _as_product(x):
            return _transposed(x, self.weight, self.bias, self.stride)
        return super().forward(x, output_size)


class CoordinateHead3d(nn.ConvTranspose3d):
    """A transposed convolution of volumes whose kernel is its stride, with a bias.

    It maps (N, C_in, D, H, W) to (N, C_out, D * stride_1, H * stride_2, W * stride_3).
    """

    bias: Tensor

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is None and _as_product(x):
            return _transposed(x, self.weight, self.bias, self.stride)
        return super().forward(x, output_size)


def _as_product(x: Tensor) -> bool:
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return False  # an exported network runs elsewhere and for any batch size: it gets the convolutions
    return x.device.type == "cpu" or (x.device.type == "cuda" and not torch.are_deterministic_algorithms_enabled())


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N, C_in, S_1, .., S_g) to (N, C_out, S_1, .., S_g), with the channels last in memory."""
    low = x.flatten(2).transpose(1, 2)  # (N, S, C_in)
    matrix = weight.flatten(1).t().expand(x.shape[0], -1, -1)  # (N, C_in, C_out)
    value = torch.baddbmm(bias.view(1, 1, -1), low, matrix)  # (N, S, C_out)
    return value.transpose(1, 2).unflatten(2, x.shape[2:])


def _transposed(x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...]) -> Tensor:
    """(N, C_in, S_1, .., S_g) to (N, C_out, S_1 * stride_1, .., S_g * stride_g)."""
    matrix = weight.flatten(1).t().expand(x.shape[0], -1, -1)  # (N, C_out * prod(stride), C_in)
    bias = bias.repeat_interleave(math.prod(stride)).view(1, -1, 1)
    coords = torch.baddbmm(bias, matrix, x.flatten(2))  # (N, C_out * prod(stride), S)
    return pixel_shuffle(coords.unflatten(2, x.shape[2:]), stride)
