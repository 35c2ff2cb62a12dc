"""What computes where Triton cannot compile a kernel.

Triton compiles a kernel anew for each combination of dtypes and constants, so a kernel that passed its check
(:mod:`nnunet_dtc.ops.self_check`) may still fail to compile later, in the middle of a training. The reference then
computes that variant, and one warning says so; the other variants are not affected.
"""

import re
import warnings
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

from nnunet_dtc.ops.self_check import describe, first_line

__all__ = ["forget", "is_of_the_compiler", "launched_or"]

Result = TypeVar("Result")

_not_compiled: set[tuple[str, Hashable]] = set()  # what the reference computes from now on, and which variant of it


def launched_or(
    launch: Callable[[], Result],
    reference: Callable[[], Result],
    what: str,
    variant: Hashable,
    device: torch.device,
) -> Result:
    """The result of ``launch``, or of ``reference`` if the kernels of this variant do not compile, now or before.

    Args:
        launch: computes by kernels that Triton compiles at their first use.
        reference: computes the same without them.
        what: a name for what they compute, with what computes it instead, for the warning.
        variant: everything that decides which kernels are compiled.
        device: where they compute.

    Raises:
        Exception: whatever else ``launch`` raises, such as an error of the GPU.
    """
    if (what, variant) in _not_compiled:
        return reference()
    try:
        return launch()
    except Exception as error:
        if not is_of_the_compiler(error):
            raise
        _not_compiled.add((what, variant))
        warnings.warn(
            f"Triton cannot compile {what}: {type(error).__name__}: {first_line(error)}. {describe(device)}",
            stacklevel=3,
        )
    return reference()


def forget() -> None:
    """Compile all variants anew at their next use."""
    _not_compiled.clear()


def is_of_the_compiler(error: Exception) -> bool:
    """Whether a launch failed before it reached the GPU: no C compiler, a full disk, a kernel that Triton refuses, ...

    Errors of the GPU itself (illegal addresses, its memory) are not: after them nothing can be computed there.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    if not isinstance(error, RuntimeError):
        return True
    if "kernel image" in str(error) or "PTX" in str(error):  # compiled, but not for this GPU
        return True
    return re.search(r"Triton Error \[|(CUDA|HIP) error|CUDACachingAllocator", str(error)) is None
