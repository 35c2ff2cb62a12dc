"""The check of a kernel of the selective scan before its first use on a GPU.

Small random cases are compared with PyTorch's scan in float64 on the CPU: the output and all gradients. A kernel that
raises or computes wrongly is not used, and one warning names the case, the GPU and the versions. The environment
variable ``NNUNET_DTC_SELF_CHECK=0`` skips the check.
"""

import contextlib
import importlib.metadata
import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nnunet_dtc.architectures.scan import operators

VARIABLE = "NNUNET_DTC_SELF_CHECK"
PASSES, NO_MEMORY, FAILS = range(3)
NAMES = ("y", *(f"the gradient of {name}" for name in ("u", "delta", "A", "B", "C", "D")))
verdicts: dict[tuple[str, str], str | None] = {}  # of kernels on devices


@dataclass(frozen=True)
class Case:
    """Sizes of a random case, the dtype of u, B and C, and the largest error that is allowed, relative to the largest
    element where that is greater than 1."""

    cases: int
    channels: int
    states: int
    length: int
    dtype: torch.dtype
    tolerance: float

    def __str__(self) -> str:
        sizes = f"{self.cases} x {self.channels} channels x {self.states} states x {self.length} steps"
        return f"{sizes} in {str(self.dtype).removeprefix('torch.')}"


CASES = (  # several chunks and blocks of channels, sizes that fill neither
    Case(2, 5, 16, 300, torch.float32, 1e-3),
    Case(1, 40, 3, 129, torch.float16, 1e-2),
)


def why_not(kernel: str, device: torch.device, missing: str | None = None) -> str | None:
    """Why a kernel cannot be used on a device, None where it can; computed once, and the same on all ranks.

    A check that runs out of memory says nothing about the kernel. It is repeated at the next use.

    Args:
        kernel: "triton" or "mamba_ssm".
        device: where it would compute.
        missing: why it cannot be checked; None where it can.
    """
    if os.environ.get(VARIABLE) == "0":
        return missing
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    key = kernel, str(device)
    if key in verdicts:
        return verdicts[key]
    with ThreadPoolExecutor(1) as thread:  # where none of the caller's modes is active: autocast, FakeTensorMode, ...
        problem, remember = thread.submit(_verdict, kernel, device, missing).result()
    if remember:
        verdicts[key] = problem
    if remember and problem not in (None, missing):
        warnings.warn(
            f"The selective scan's backend {kernel!r} is not used: {problem}. {describe(device)}. "
            f"{VARIABLE}=0 skips this check.",
            stacklevel=2,
        )
    return problem


def _verdict(kernel: str, device: torch.device, missing: str | None) -> tuple[str | None, bool]:
    """What is wrong with a kernel here or on another rank, and whether it is to be remembered."""
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        try:
            problem = find_problem(kernel, device) if missing is None else missing
            code = PASSES if problem is None else FAILS
        except torch.OutOfMemoryError:
            problem, code = "the GPU has too little free memory for its check", NO_MEMORY
        worst = _greatest_of_all_ranks(code, device)
    if worst > code:
        problem = f"its check {'fails' if worst == FAILS else 'runs out of memory'} on another rank"
    return problem, worst != NO_MEMORY


def find_problem(kernel: str, device: torch.device) -> str | None:
    """The first case in which a kernel raises or is wrong, and how; None if there is none.

    Raises:
        torch.OutOfMemoryError: the device has too little free memory.
    """
    for number, case in enumerate(CASES):
        inputs, into = _random_inputs(case, seed=number)
        try:
            got = _computed(kernel, [t.to(device) for t in inputs], into.to(device))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler's, the driver's, autograd's
            return f"{case}: {(str(error).strip() or repr(error)).splitlines()[0]}"
        wanted = _computed("torch", [t.double() for t in inputs], into.double())
        for name, ours, true in zip(NAMES, got, wanted, strict=True):
            error = (ours - true).abs().max().item() / max(1.0, true.abs().max().item())
            if not error <= case.tolerance:
                return f"{case}: {name} has an error of {error:.1e}, the tolerance is {case.tolerance:.0e}"
    return None


def _random_inputs(case: Case, seed: int) -> tuple[list[Tensor], Tensor]:
    """u, delta, A, B, C and D, and the gradient of y."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)

    maps, states = (case.cases, case.channels, case.length), (case.cases, case.states, case.length)
    u, B, C, into = (normal(*shape).to(case.dtype) for shape in (maps, states, states, maps))
    delta, A = normal(*maps).abs(), -normal(case.channels, case.states).abs()
    return [u, delta, A, B, C, normal(case.channels)], into


def _computed(backend: str, inputs: list[Tensor], into: Tensor) -> list[Tensor]:
    """y and the six gradients, in float64 on the CPU. The copy waits for the device, so its errors are raised here."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    y = operators.compute(backend, *inputs)
    grads = torch.autograd.grad(y, inputs, into)
    return [t.detach().cpu().double() for t in (y, *grads)]


def _greatest_of_all_ranks(code: int, device: torch.device) -> int:
    """Ranks of a distributed training must choose the same backend, and they all come here at the same step."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return code
    on = device if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
    codes = torch.tensor(code, device=on)
    torch.distributed.all_reduce(codes, torch.distributed.ReduceOp.MAX)
    return int(codes)


def describe(device: torch.device) -> str:
    """The GPU, its driver, and the versions of torch and Triton."""
    parts = [f"torch {torch.__version__}"]
    try:
        parts.append(f"Triton {importlib.metadata.version('triton')}")
    except importlib.metadata.PackageNotFoundError:
        parts.append("no Triton")
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability()
        parts.insert(0, f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}, driver {_driver()}")
    return ", ".join(parts)


def _driver() -> str:
    """The version of NVIDIA's driver on Linux."""
    try:
        found = re.search(r"\d+\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text(encoding="utf-8"))
    except OSError:
        return "unknown"
    return found[0] if found else "unknown"
