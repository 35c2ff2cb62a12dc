"""What ``nnunet-dtc doctor`` reports of a GPU: the card, what Triton needs there, the self-check and times."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nnunet_dtc.ops import self_check
from nnunet_dtc.ops.backends import BACKENDS, check_cases
from nnunet_dtc.ops.backends.timing import Passes, Stage, implementations, median_ms

STAGE, DTYPE, RECEPTIVE_FIELD = Stage(64, (24, 48, 48), (2, 2, 2)), torch.float16, 2.0  # of BTCV's plan, half way


@dataclass(frozen=True)
class GpuFacts:
    """What was found on a machine with a GPU, or with Triton's interpreter.

    Attributes:
        card: the GPU's name; None for Triton's interpreter.
        capability: the GPU's compute capability; None for Triton's interpreter.
        driver: version of NVIDIA's driver.
        triton: version; None where it is not installed.
        compiler: the C compiler that Triton will call; None where there is none.
        compiler_exists: whether it is a program.
        cache: Triton's folder for compiled kernels.
        cache_problem: why nothing can be written there; None where it can.
        problem: why Triton's kernels are not used; None where they are.
        worst: the largest error of a self-check that was passed, divided by its tolerance; NaN where nothing was
            compared.
        times: milliseconds of the operator, forward and backward, by implementation.
        times_problem: why times are missing; None where none are.
    """

    card: str | None
    capability: tuple[int, int] | None
    driver: str
    triton: str | None
    compiler: str | None
    compiler_exists: bool
    cache: Path
    cache_problem: str | None
    problem: str | None
    worst: float
    times: Mapping[str, float] = field(default_factory=dict)
    times_problem: str | None = None


def gather_facts() -> GpuFacts | None:
    """Examine the current GPU, or Triton's interpreter; None on a machine without them.

    The first time on a machine this takes some ten seconds, because kernels are compiled.
    """
    has_gpu = torch.cuda.is_available()
    if not has_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        return None
    device = torch.device("cuda", torch.cuda.current_device()) if has_gpu else torch.device("cpu")
    compiler = c_compiler()
    problem, worst = BACKENDS["triton"].why_not(), float("nan")
    if problem is None:
        worst = self_check.verdict("triton", device, check_cases.CASES).worst
    times, times_problem = operator_times(device) if has_gpu else ({}, None)  # an interpreter's times say nothing
    return GpuFacts(
        card=torch.cuda.get_device_name(device) if has_gpu else None,
        capability=torch.cuda.get_device_capability(device) if has_gpu else None,
        driver=self_check.driver_version(),
        triton=self_check.triton_version(),
        compiler=compiler,
        compiler_exists=compiler is not None and shutil.which(compiler) is not None,
        cache=triton_cache(),
        cache_problem=why_not_writable(triton_cache()),
        problem=problem,
        worst=worst,
        times=times,
        times_problem=times_problem,
    )


def c_compiler() -> str | None:
    """The C compiler that Triton calls to build what launches its kernels: CC, else gcc, else clang; None for none."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def triton_cache() -> Path:
    """The folder in which Triton keeps compiled kernels."""
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")
    return Path(os.environ.get("TRITON_CACHE_DIR") or Path(home, ".triton", "cache"))


def why_not_writable(folder: Path) -> str | None:
    """Why a file cannot be written in a folder, or in the one that it would be made in; None where it can."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if os.path.exists(parent))
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None


def operator_times(
    device: torch.device, stage: Stage = STAGE, dtype: torch.dtype = DTYPE
) -> tuple[dict[str, float], str | None]:
    """Milliseconds of the operator, forward and backward, by implementation; and why some are missing."""
    times: dict[str, float] = {}
    try:
        passes = Passes(stage, device, dtype, RECEPTIVE_FIELD)
        for name, each in implementations(device).items():
            times[name] = median_ms(lambda each=each: (passes.forward(each), passes.backward(each)), device)
    except Exception as error:  # of the GPU, its memory or the compiler: reported, like all that the doctor finds
        return times, f"{type(error).__name__}: {self_check.first_line(error)}"
    return times, None
