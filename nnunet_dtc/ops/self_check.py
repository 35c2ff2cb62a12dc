"""The check of fast kernels before their first use on a device.

A kernel that nobody has run on a user's GPU may fail to compile there, read outside of its memory, or compute wrong
numbers. It is therefore first compared with the reference in float64 on the CPU, in a few small random cases: the
output and all gradients. A kernel that fails is not used in this process, and the problem names the case, the GPU and
the versions. Running out of memory says nothing about a kernel: the check is then repeated a minute later.

The environment variable ``NNUNET_DTC_SELF_CHECK=0`` skips the check.
"""

import functools
import importlib.metadata
import os
import re
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

__all__ = [
    "VARIABLE",
    "Case",
    "Verdict",
    "agree_across_ranks",
    "describe",
    "driver_version",
    "first_line",
    "forget",
    "relative_error",
    "triton_version",
    "verdict",
]

VARIABLE = "NNUNET_DTC_SELF_CHECK"
REPEAT_AFTER_S = 60.0  # a check that ran out of memory


class Case(Protocol):
    """A random case in which a kernel is compared with the reference; ``str(case)`` names it."""

    @property
    def tolerance(self) -> float:
        """The largest error that is allowed."""

    def errors(self, device: torch.device) -> Mapping[str, float]:
        """Compute the case on a device, and return the error of each result by its name."""


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        problem: why the kernel is not used, None where it passed.
        is_final: whether the check need not be repeated; it is repeated after it ran out of memory.
        worst: the largest error of all cases, divided by its tolerance; NaN where nothing was compared.
    """

    problem: str | None
    is_final: bool = True
    worst: float = float("nan")


_verdicts: dict[tuple[str, str], Verdict] = {}  # by kernel and device
_temporary: dict[tuple[str, str], tuple[float, Verdict]] = {}  # those to be repeated, and since when they hold
_agreed: dict[tuple[str, str], str] = {}  # why the ranks of this training do not use a kernel
_lock = threading.Lock()


def verdict(
    kernel: str, device: torch.device | str, cases: Sequence[Case], alternative: str = f"{VARIABLE}=0"
) -> Verdict:
    """Check a kernel on a device, at the first call; later calls return the same verdict.

    The check runs in a thread of its own, where none of the caller's modes (autocast, inference mode,
    ``FakeTensorMode``, a dispatch mode that counts) is active.

    Args:
        kernel: a name for it.
        device: where it computes; "cuda" is the current device.
        cases: in which it is checked.
        alternative: the environment variable and value with which the kernel is not used.

    Raises:
        RuntimeError: the kernel left the GPU in a state in which nothing can be computed, as after an illegal access.
    """
    device = _with_index(device)
    key = kernel, str(device)
    if key in _agreed:
        return Verdict(_agreed[key])
    if os.environ.get(VARIABLE, "").strip() == "0":
        return Verdict(None)
    if (known := _verdicts.get(key)) is not None:
        return known
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return Verdict("its self-check cannot run while a CUDA graph is captured", is_final=False)
    with _lock:
        if key in _verdicts:
            return _verdicts[key]
        since, found = _temporary.get(key, (0.0, Verdict(None)))
        if key in _temporary and time.monotonic() - since < REPEAT_AFTER_S:
            return found
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(_checked, cases, device, alternative).result()
        if found.is_final:
            _verdicts[key] = found
        else:
            _temporary[key] = time.monotonic(), found
        return found


def forget() -> None:
    """Check all kernels anew at their next use."""
    _verdicts.clear()
    _temporary.clear()
    _agreed.clear()


def agree_across_ranks(kernel: str, device: torch.device | str, problem: str | None) -> str | None:
    """Let all ranks of a distributed training use a kernel, or none of them.

    All ranks must call this function at the same step. Without ``torch.distributed`` it returns ``problem``.

    Args:
        kernel: its name, as of :func:`verdict`.
        device: where this rank computes.
        problem: why this rank cannot use the kernel, None where it can.

    Returns:
        Why no rank uses the kernel, None where all do. From now on :func:`verdict` returns it on this rank.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return problem
    device = _with_index(device)
    where = device if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
    fails = torch.tensor(int(problem is not None), device=where)
    torch.distributed.all_reduce(fails, torch.distributed.ReduceOp.MAX)
    if not fails.item():
        return None
    problem = problem or "another rank of this training cannot use them"
    _agreed[kernel, str(device)] = problem
    return problem


@functools.cache
def describe(device: torch.device | str) -> str:
    """The GPU, its driver, and the versions of torch and Triton."""
    parts = [f"torch {torch.__version__}", f"Triton {triton_version() or 'is not installed'}"]
    if torch.device(device).type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
        parts.insert(0, f"{name} (compute capability {major}.{minor}), driver {driver_version()}")
    return ", ".join(parts)


def triton_version() -> str | None:
    """The version of Triton under any of the names of its packages, None where it is not installed."""
    for package in ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm", "triton-windows"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return getattr(sys.modules.get("triton"), "__version__", None)


def driver_version() -> str:
    """The version of NVIDIA's driver on Linux, "unknown" elsewhere."""
    try:
        found = re.search(r"\d+\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text(encoding="utf-8"))
    except OSError:
        return "unknown"
    return found[0] if found else "unknown"


def relative_error(ours: torch.Tensor, true: torch.Tensor) -> float:
    """The largest difference of two tensors, relative to the largest element of ``true`` if that is greater than 1."""
    return (ours - true).abs().max().item() / max(1.0, true.abs().max().item())


def first_line(error: BaseException) -> str:
    """The first line of an error's message without its full stop, or its type where it has none.

    The message of Triton's compiler begins with a place and the source; its cause says what is wrong.
    """
    if str(error).startswith("at ") and error.__cause__ is not None:
        return first_line(error.__cause__)
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")


def _with_index(device: torch.device | str) -> torch.device:
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _is_out_of_memory(error: Exception) -> bool:
    """Whether it is torch's error for that, or one of Triton or the driver, which have no class of their own."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
    )


def _checked(cases: Sequence[Case], device: torch.device, alternative: str) -> Verdict:
    worst = 0.0
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for case in cases:
            try:
                errors = case.errors(device)
            except Exception as error:  # of the compiler, the driver, the file system, autograd
                if _is_out_of_memory(error):
                    return Verdict("the GPU has too little free memory for its self-check", is_final=False)
                _raise_if_unusable(device, case, error, alternative)
                return Verdict(f"its self-check fails ({case}): {type(error).__name__}: {first_line(error)}")
            for name, found in errors.items():
                if not found <= case.tolerance:  # NaN is not
                    return Verdict(
                        f"its self-check fails ({case}): {name} has an error of {found:.1e}, the tolerance is "
                        f"{case.tolerance:.0e}",
                        worst=found / case.tolerance,
                    )
                worst = max(worst, found / case.tolerance)
    return Verdict(None, worst=worst)


def _raise_if_unusable(device: torch.device, case: Case, error: Exception, alternative: str) -> None:
    """After an illegal access, every later call of CUDA in this process fails: there is nothing to fall back to."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except Exception:
        raise RuntimeError(
            f"the self-check of a kernel ({case}) left {device} unusable in this process ({first_line(error)}); "
            f"start again with {alternative}"
        ) from error
