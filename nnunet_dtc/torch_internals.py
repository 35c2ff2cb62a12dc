"""The private names of torch that this package uses, each with the reason why no public name serves.

A release of torch may rename any of them: every other file imports them from here.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

Function = TypeVar("Function", bound=Callable[..., Any])

COMPILED_PREFIX = "_orig_mod."
"""What ``torch.compile`` puts in front of the names in a module's state dict. It stands in files that were saved from
compiled modules."""


def constant_result(function: Function) -> Function:
    """Let ``torch.compile`` call the function once, while it traces, and take its result for a constant.

    ``torch.compiler.assume_constant_result`` sets the same attribute, but imports all of ``torch.compile``, which takes
    seconds, where it is applied.
    """
    function.__dict__["_dynamo_marked_constant"] = True
    return function


GRID_SAMPLE_BACKWARD: dict[int, Callable[..., Any]] = {
    2: torch.ops.aten.grid_sampler_2d_backward,
    3: torch.ops.aten.grid_sampler_3d_backward,
}
"""The gradient of ``torch.nn.functional.grid_sample`` for 2 and 3 axes, ``(grad, value, grid, mode, padding_mode,
align_corners, output_mask)``. The public way, autograd, would compute the samples a second time."""

# ``FakeTensorMode`` runs networks on shapes alone, and ``TorchDispatchMode`` sees every operator that they call. torch
# documents both in its notes on extending it, but has no public module with them.

FAKE_TENSOR_ERRORS = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
"""What ``FakeTensorMode`` raises for a network that reads numbers from its tensors."""

FAKE_TENSOR_LOGGER = "torch._subclasses.fake_tensor"
"""The logger to which ``FakeTensorMode`` writes the tracebacks of errors that it raises as well."""


def is_compiled(network: nn.Module) -> bool:
    """Whether a network is the wrapper that ``torch.compile`` returns, for which torch has no public test."""
    from torch._dynamo import OptimizedModule  # imported here, because this takes seconds

    return isinstance(network, OptimizedModule)


def compiler_config() -> Any:
    """The configuration of ``torch.compile``, whose limits of recompilation have no public name in all versions."""
    import torch._dynamo

    return torch._dynamo.config
