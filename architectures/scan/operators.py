"""Each way to compute the selective scan as an operator of torch, which ``torch.compile`` sees as one node.

=====================================  =========================================
``nnunet_dtc::selective_scan``         :mod:`nnunet_dtc.architectures.scan.reference`
``nnunet_dtc::selective_scan_triton``     :mod:`nnunet_dtc.architectures.scan.cuda`
``nnunet_dtc::selective_scan_mamba_ssm``  :mod:`nnunet_dtc.architectures.scan.mamba_ssm`
=====================================  =========================================

Triton and mamba-ssm are imported when their operator is called first.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef, custom_op
from torch.utils.flop_counter import register_flop_formula

from nnunet_dtc.architectures.scan.reference import traceable

ARGUMENTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C"
WITH_D = f"{ARGUMENTS}, Tensor? D"
FIVE, SIX = "(Tensor, Tensor, Tensor, Tensor, Tensor)", "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"


def define(name: str, module: str, arguments: str, kept: str, gradients: str) -> CustomOpDef:
    """Register the functions of a module of this package as an operator.

    Args:
        name: name of the operator in the namespace ``nnunet_dtc``.
        module: with the functions ``forward(*arguments)``, ``backward(grad_y, *arguments, *kept)``, ``empty_outputs``
            and ``empty_gradients``. The last two take the same arguments as the first two, and return tensors of the
            shapes, dtypes and strides that those return.
        arguments: the operator's arguments.
        kept: what ``forward`` returns after y for ``backward``; empty for nothing.
        gradients: what ``backward`` returns, a gradient for each argument.

    Returns:
        The operator, with the result of ``forward``.
    """

    def function(function_name: str) -> Callable[..., Any]:
        def call(*inputs: Tensor | None) -> Any:
            return getattr(importlib.import_module(f"nnunet_dtc.architectures.scan.{module}"), function_name)(*inputs)

        return call

    result = "(Tensor, Tensor)" if kept else "Tensor"
    operator = custom_op(
        f"nnunet_dtc::{name}", function("forward"), mutates_args=(), schema=f"({arguments}) -> {result}"
    )
    operator.register_fake(function("empty_outputs"))
    operator_backward = custom_op(
        f"nnunet_dtc::{name}_backward",
        function("backward"),
        mutates_args=(),
        schema=f"(Tensor grad_y, {arguments}{kept}) -> {gradients}",
    )
    operator_backward.register_fake(function("empty_gradients"))

    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        states = output[1:] if kept else ()
        ctx.save_for_backward(*inputs, *states)
        ctx.mark_non_differentiable(*states)

    def differentiate(ctx: Any, grad_y: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        grads = operator_backward(grad_y, *saved)
        return tuple(None if tensor is None else grad for tensor, grad in zip(saved, grads, strict=False))

    operator.register_autograd(differentiate, setup_context=setup_context)
    _count_products(name)
    return operator


def _count_products(name: str) -> None:
    """Register the products for torch's FlopCounterMode: those of the recurrence, not those of recomputed states."""

    @register_flop_formula(getattr(torch.ops.nnunet_dtc, name))
    def _(u: Sequence[int], delta: Sequence[int], A: Sequence[int], *_: Any, **__: Any) -> int:
        """Three for each state of each step: its decay, the input and the output."""
        return 2 * 3 * u[0] * u[2] * A[0] * A[1]

    @register_flop_formula(getattr(torch.ops.nnunet_dtc, f"{name}_backward"))
    def _(grad_y: Sequence[int], u: Sequence[int], delta: Sequence[int], A: Sequence[int], *_: Any, **__: Any) -> int:
        """Ten: two for the states again, two for their gradients, one each for the gradients of C, B, delta * u and
        delta * A, and the last of these times A and times delta."""
        return 2 * 10 * u[0] * u[2] * A[0] * A[1]


reference = define("selective_scan", "reference", ARGUMENTS, ", Tensor starts", FIVE)
triton = define("selective_scan_triton", "cuda", WITH_D, ", Tensor starts", SIX)
mamba_ssm = define("selective_scan_mamba_ssm", "mamba_ssm", ARGUMENTS, "", FIVE)


def compute(backend: str, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """y by a backend ("torch", "triton" or "mamba_ssm"), or by "traceable" in a form for traces, in the dtype of u."""
    if backend == "triton":
        return triton(u, delta, A, B, C, D)[0]
    dtype = widest_dtype(u, delta, A, B, C)
    wide = u.to(dtype)
    arguments = (wide, delta.to(dtype), A.to(dtype), B.to(dtype), C.to(dtype))
    if backend == "torch":
        y = reference(*arguments)[0]
    else:
        y = mamba_ssm(*arguments) if backend == "mamba_ssm" else traceable(*arguments)
    if D is not None:
        y = y + D.to(dtype)[:, None] * wide  # (E, 1) * (N, E, L)
    return y.to(u.dtype)


def widest_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype in which tensors are scanned, at least float32."""
    return functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
