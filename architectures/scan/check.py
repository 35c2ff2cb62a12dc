"""The random cases in which a kernel of the selective scan is compared with PyTorch's scan before its first use.

See :mod:`nnunet_dtc.ops.self_check`. A kernel that raises or computes wrongly is not used, and one warning names the
case, the GPU and the versions.
"""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_dtc.architectures.scan import operators
from nnunet_dtc.ops import self_check

NAMES = ("y", *(f"the gradient of {name}" for name in ("u", "delta", "A", "B", "C", "D")))


@dataclass(frozen=True)
class ScanCase:
    """One random case.

    Attributes:
        kernel: "triton" or "mamba_ssm".
        cases, channels, states, length: its sizes.
        dtype: dtype of u, B and C.
        tolerance: the largest error that is allowed, relative to the largest element where that is greater than 1.
        seed: seed of the random numbers.
    """

    kernel: str
    cases: int
    channels: int
    states: int
    length: int
    dtype: torch.dtype
    tolerance: float
    seed: int = 0

    def __str__(self) -> str:
        sizes = f"{self.cases} x {self.channels} channels x {self.states} states x {self.length} steps"
        return f"{sizes} in {str(self.dtype).removeprefix('torch.')}"

    def errors(self, device: torch.device) -> dict[str, float]:
        """The errors of y and of all gradients, relative to the largest element where that is greater than 1."""
        inputs, into = _random_inputs(self)
        got = _computed(self.kernel, [t.to(device) for t in inputs], into.to(device))
        wanted = _computed("torch", [t.double() for t in inputs], into.double())
        return {name: self_check.relative_error(*pair) for name, *pair in zip(NAMES, got, wanted, strict=True)}


def cases(kernel: str) -> Sequence[self_check.Case]:
    """Cases with several chunks and blocks of channels, and sizes that fill neither."""
    return (
        ScanCase(kernel, 2, 21, 16, 300, torch.float32, 1e-3),
        ScanCase(kernel, 1, 40, 3, 129, torch.float16, 1e-2, seed=1),
    )


def why_not(kernel: str, device: torch.device) -> str | None:
    """Why a kernel that is installed is not used on a device, None where it is."""
    alternative = "NNUNET_DTC_SELECTIVE_SCAN=torch"
    found = self_check.verdict(_title(kernel), device, cases(kernel), alternative)
    if found.problem is not None and found.is_final:
        _warn(
            f"The selective scan's backend {kernel!r} is not used: {found.problem}. "
            f"{self_check.describe(str(device))}. {self_check.VARIABLE}=0 skips this check."
        )
    return found.problem


def agree_across_ranks(kernel: str, device: torch.device, problem: str | None) -> None:
    """The same as :func:`nnunet_dtc.ops.self_check.agree_across_ranks`, for a kernel of the scan."""
    self_check.agree_across_ranks(_title(kernel), device, problem)


def forget() -> None:
    """Check all kernels anew at their next use."""
    _warn.cache_clear()
    self_check.forget()


def _title(kernel: str) -> str:
    return f"selective scan by {kernel}"


@functools.cache
def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def _random_inputs(case: ScanCase) -> tuple[list[Tensor], Tensor]:
    """u, delta, A, B, C and D, and the gradient of y."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)

    maps, states = (case.cases, case.channels, case.length), (case.cases, case.states, case.length)
    u, B, C, into = (normal(*shape).to(case.dtype) for shape in (maps, states, states, maps))
    delta, A = normal(*maps).abs(), -normal(case.channels, case.states).abs()
    return [u, delta, A, B, C, normal(case.channels)], into


def _computed(backend: str, inputs: list[Tensor], into: Tensor) -> list[Tensor]:
    """y and the six gradients, in float64 on the CPU. The copy waits for the device, so its errors are raised here."""
    if backend == "triton":  # without what takes its place where it does not compile
        from nnunet_dtc.architectures.scan import cuda

        y, starts = cuda.launch_forward(*inputs)
        grads = cuda.launch_backward(into, *inputs, starts)
    else:
        inputs = [t.detach().requires_grad_() for t in inputs]
        y = operators.compute(backend, *inputs)
        grads = torch.autograd.grad(y, inputs, into)
    return [t.detach().cpu().double() for t in (y, *grads)]
