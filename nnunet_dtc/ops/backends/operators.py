"""Each backend as an operator of torch: with shapes for tracing, a gradient, and a count of its products.

``nnunet_dtc::upsample_<backend>(base, value, coords, stride, receptive_field, offset, weight) -> Tensor`` is opaque to
``torch.compile``, which therefore sees one node in one graph. Saved for the backward pass are value and coords alone;
positions and activations are computed again.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef, custom_op
from torch.utils.flop_counter import register_flop_formula

from nnunet_dtc.ops.deformation import Deformation, Offset, Weight

NAMESPACE = "nnunet_dtc"

# Written out, because what torch infers from annotations differs from version to version: 2.6 does not know
# collections.abc.Sequence. Programs saved by torch.export name the operators with these arguments.
SCHEMA = (
    "(Tensor? base, Tensor value, Tensor coords, SymInt[] stride, float receptive_field, str offset, str weight) "
    "-> Tensor"
)
SCHEMA_BACKWARD = (
    "(Tensor grad, Tensor value, Tensor coords, SymInt[] stride, float receptive_field, str offset, str weight, "
    "bool wants_value, bool wants_coords) -> (Tensor, Tensor)"
)


def define(
    name: str, forward: Callable[..., Tensor], backward: Callable[..., tuple[Tensor | None, Tensor | None]]
) -> CustomOpDef:
    """Register ``forward`` and ``backward`` (as those of the reference) as the operator of the backend ``name``.

    Returns:
        The operator ``(base, value, coords, stride, receptive_field, offset, weight) -> Tensor``.
    """
    operator = _forward_operator(name, forward)
    _differentiate(operator, _backward_operator(name, backward))
    _count_products(name)
    return operator


def _forward_operator(name: str, forward: Callable[..., Tensor]) -> CustomOpDef:
    def run(
        base: Tensor | None,
        value: Tensor,
        coords: Tensor,
        stride: Sequence[int],
        receptive_field: float,
        offset: Offset,
        weight: Weight,
    ) -> Tensor:
        deformation = Deformation(receptive_field, offset, weight)
        return forward(_plain(base), _plain(value), _plain(coords), stride, deformation)

    operator = custom_op(f"{NAMESPACE}::upsample_{name}", run, mutates_args=(), schema=SCHEMA)

    @operator.register_fake
    def _(base: Tensor | None, value: Tensor, coords: Tensor, *_: Any) -> Tensor:
        dtype = value.dtype if base is None else base.dtype
        return value.new_empty((*value.shape[:2], *coords.shape[2:]), dtype=dtype)

    return operator


def _backward_operator(name: str, backward: Callable[..., tuple[Tensor | None, Tensor | None]]) -> CustomOpDef:
    """The gradients with respect to value and coords; tensors without elements for those that are not wanted."""

    def run(
        grad: Tensor,
        value: Tensor,
        coords: Tensor,
        stride: Sequence[int],
        receptive_field: float,
        offset: Offset,
        weight: Weight,
        wants_value: bool,
        wants_coords: bool,
    ) -> tuple[Tensor, Tensor]:
        deformation = Deformation(receptive_field, offset, weight)
        tensors = (_plain(grad), _plain(value), _plain(coords))
        by_value, by_coords = backward(*tensors, stride, deformation, wants_value, wants_coords)
        return (
            value.new_empty(0) if by_value is None else _laid_out_like(value, by_value),
            coords.new_empty(0) if by_coords is None else by_coords,
        )

    operator = custom_op(f"{NAMESPACE}::upsample_{name}_backward", run, mutates_args=(), schema=SCHEMA_BACKWARD)

    @operator.register_fake
    def _(
        grad: Tensor,
        value: Tensor,
        coords: Tensor,
        stride: Sequence[int],
        receptive_field: float,
        offset: str,
        weight: str,
        wants_value: bool,
        wants_coords: bool,
    ) -> tuple[Tensor, Tensor]:
        return (
            torch.empty_like(value) if wants_value else value.new_empty(0),
            coords.new_empty(coords.shape if wants_coords else 0),
        )

    return operator


def _differentiate(operator: CustomOpDef, operator_backward: CustomOpDef) -> None:
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, value, coords, *ctx.variant = inputs
        ctx.save_for_backward(value, coords)

    def gradients(ctx: Any, grad: Tensor) -> tuple:
        wants_base, wants_value, wants_coords, *_ = ctx.needs_input_grad
        by_value = by_coords = None
        if wants_value or wants_coords:
            by_value, by_coords = operator_backward(grad, *ctx.saved_tensors, *ctx.variant, wants_value, wants_coords)
        return (
            grad if wants_base else None,
            by_value if wants_value else None,
            by_coords if wants_coords else None,
            None, None, None, None,
        )  # fmt: skip

    def no_second_derivatives(ctx: Any, *_: Any) -> tuple:
        raise NotImplementedError("the deformable upsampling of DTC has no second derivatives")

    operator.register_autograd(gradients, setup_context=setup_context)
    operator_backward.register_autograd(no_second_derivatives)


def _count_products(name: str) -> None:
    """Tell torch's FlopCounterMode: linear interpolation is a product for each neighbour of a sample and channel."""
    operators = getattr(torch.ops, NAMESPACE)

    @register_flop_formula(getattr(operators, f"upsample_{name}"))
    def _(*_: Any, out_shape: Sequence[int], **__: Any) -> int:
        return 2 * 2 ** (len(out_shape) - 2) * math.prod(out_shape)

    @register_flop_formula(getattr(operators, f"upsample_{name}_backward"))
    def _(grad: Sequence[int], *_: Any, **__: Any) -> int:  # both gradients are as many products
        return 2 * 2 * 2 ** (len(grad) - 2) * math.prod(grad)


def _plain(tensor: Tensor | None) -> Tensor | None:
    """The tensor without its subclass (MONAI's MetaTensor, for example), which would follow every small step."""
    return tensor if tensor is None or type(tensor) is Tensor else tensor.as_subclass(Tensor)


def _laid_out_like(tensor: Tensor, result: Tensor) -> Tensor:
    """``result`` with the strides that ``empty_like(tensor)`` has: torch.compile relies on what the fake one said."""
    wanted = torch.empty_like(tensor, device="meta").stride()
    if result.stride() == wanted:
        return result
    return torch.empty_like(tensor).copy_(result)
