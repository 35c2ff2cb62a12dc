"""The selective scan by the kernel of the package mamba-ssm, in float32.

The kernel's own function for autograd computes the gradients. Only the arguments are kept for it, and its forward pass
is repeated in the backward pass.
"""

import importlib

import torch
from torch import Tensor

INTERFACE = "mamba_ssm.ops.selective_scan_interface"


def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y. The kernel needs arguments whose last axis is contiguous."""
    scan = importlib.import_module(INTERFACE).selective_scan_fn
    with torch.no_grad():
        return scan(*(t.contiguous() for t in (u, delta, A, B, C))).contiguous()


def backward(
    grad_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients with respect to u, delta, A, B and C.

    This works where ``selective_scan_fn`` returns the result of its function for autograd as it is: torch does not
    record other operations inside of an operator. The check before the first use notices another version.
    """
    scan = importlib.import_module(INTERFACE).selective_scan_fn
    inputs = [t.detach().contiguous().requires_grad_() for t in (u, delta, A, B, C)]
    with torch.enable_grad():
        y = scan(*inputs)
    u, delta, A, B, C = (t.contiguous() for t in torch.autograd.grad(y, inputs, grad_y.contiguous()))
    return u, delta, A, B, C


def empty_outputs(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """A tensor of the shape, dtype and strides that ``forward`` returns."""
    return u.new_empty(u.shape)


def empty_gradients(grad_y: Tensor, *arguments: Tensor) -> tuple[Tensor, ...]:
    """Tensors of the shapes, dtypes and strides that ``backward`` returns."""
    return tuple(t.new_empty(t.shape) for t in arguments)
