"""The private names of torch that this package uses, each with the reason why no public name serves.

A release of torch may rename any of them: every other file imports them from here.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

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
