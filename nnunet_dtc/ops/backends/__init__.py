"""The backends of the deformable upsampling: one function, computed where and how it is fastest.

=============  ==================  =====================================================================
``reference``  torch alone         every device, dtype and variant; the oracle of the others
``numba``      CPU                 compiled on the user's machine without a compiler: ``pip install numba``
``triton``     CUDA                fused kernels; Triton comes with torch's CUDA builds
=============  ==================  =====================================================================

The backend is chosen by the device of the tensors and by what is installed. The environment variable
``NNUNET_DTC_BACKEND`` or :func:`use_backend` force one by its name. All give the same numbers, up to round-off, and the
same gradient at voxel centres, where linear interpolation is not differentiable.
"""

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunet_dtc.ops import self_check
from nnunet_dtc.ops.backends import check_cases, reference
from nnunet_dtc.ops.backends.operators import define
from nnunet_dtc.ops.deformation import Deformation
from nnunet_dtc.torch_internals import constant_result

__all__ = [
    "BACKENDS",
    "VARIABLE",
    "Backend",
    "agree_across_ranks",
    "backend_for",
    "backend_note",
    "upsample",
    "use_backend",
]

VARIABLE = "NNUNET_DTC_BACKEND"
OLDEST_GPU = (7, 0)  # compute capability for which Triton and its atomic additions are made


@dataclass(frozen=True)
class Backend:
    """A way to compute the upsampling.

    Attributes:
        name: as users give it.
        device: the type of device that it is for; None for every.
        operator: ``(base, value, coords, stride, receptive_field, offset, weight) -> Tensor``.
        why_not: why it cannot be used here, None where it can. For Triton the first call checks the kernels on the
            current device, see :mod:`nnunet_dtc.ops.self_check`.
    """

    name: str
    device: str | None
    operator: Callable[..., Tensor]
    why_not: Callable[[], str | None]

    def takes(self, device: str) -> bool:
        """Whether it computes tensors of that type of device."""
        return self.device in (None, device)


def _lazily(module: str, function: str) -> Callable[..., Any]:
    """A function of a backend's module, imported when it is called first: numba and Triton take their time."""

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"nnunet_dtc.ops.backends.{module}"), function)(*arguments)

    return call


@functools.cache
def _numba_is_missing() -> str | None:
    try:
        importlib.import_module("nnunet_dtc.ops.backends.cpu")
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed: pip install nnunet-dtc[cpu]"
    except Exception as error:  # numba refuses a numpy that is too new, for example
        return f"numba cannot be used: {error}"
    return None


@functools.cache
def _triton_is_missing() -> str | None:
    """Why Triton's kernels cannot even be tried in this process."""
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return "torch sees no CUDA device"
    try:
        importlib.import_module("nnunet_dtc.ops.backends.cuda")
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed{'' if os.name == 'nt' else ': pip install triton'}"
    except Exception as error:
        return f"Triton cannot be used: {self_check.first_line(error)}"
    return None


def _triton_is_unusable() -> str | None:
    """Why Triton's kernels are not used on the current device: they are missing, or have not passed their check."""
    problem = _triton_is_missing() or _gpu_is_too_old()
    if problem is None and (problem := _problem_of_the_check()) is not None:
        index = torch.cuda.current_device() if _kernel_device() == "cuda" else None
        device = "cpu" if index is None else f"cuda:{index}"
        problem = f"Triton's kernels are not used: {problem}. {self_check.describe(device)}"
    return problem


def _problem_of_the_check() -> str | None:
    alternative = f"{VARIABLE}=reference"
    return self_check.verdict("triton", _kernel_device(), check_cases.CASES, alternative).problem


@functools.cache
def _kernel_device() -> str:
    """The type of device on which the kernels compute; on the CPU, Triton's interpreter computes them."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _gpu_is_too_old() -> str | None:
    if _kernel_device() == "cpu":
        return None
    capability = torch.cuda.get_device_capability()
    if torch.version.hip is None and capability < OLDEST_GPU:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, and Triton needs 7.0 or later"
    return None


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("reference", None, define("reference", reference.forward, reference.backward), lambda: None),
        Backend(
            "numba",
            "cpu",
            define("numba", _lazily("cpu", "forward"), _lazily("cpu", "backward")),
            _numba_is_missing,
        ),
        Backend(
            "triton",
            "cuda",
            define("triton", _lazily("cuda", "forward"), _lazily("cuda", "backward")),
            _triton_is_unusable,
        ),
    )
}
_FASTEST_FIRST = ("triton", "numba", "reference")
_forced: str | None = None  # by use_backend; the variable is read where this is None


def agree_across_ranks(device: torch.device) -> None:
    """Let all ranks of a distributed training choose the same backend; all of them must call this at the same step.

    The nnU-Net trainers of this package do when they are initialised. If one rank cannot use Triton's kernels, all
    ranks compute with the reference. Nothing happens without ``torch.distributed``, on another device than the
    kernels', or where a backend is forced.
    """
    if _forced_by(_forced) is None and (BACKENDS["triton"].takes(device.type) or _interprets(BACKENDS["triton"])):
        problem = _triton_is_missing() or _gpu_is_too_old() or _problem_of_the_check()
        self_check.agree_across_ranks("triton", device, problem)


def backend_note(device: torch.device) -> str:
    """A sentence for the log of a training: which backend computes DTC and DySample, and why it is not a faster one.

    Args:
        device: where the network is.
    """
    name = backend_for(device.type, device.index).name
    note = f"Deformable upsampling is computed by the backend {name!r} on {device.type}"
    if name != "reference":
        return note
    if (forced := _forced_by(_forced)) is not None:
        _, source = forced
        return f"{note}, because it was chosen by {source}"
    fast = [backend for backend in BACKENDS.values() if backend.device == device.type]
    reasons = [reason for backend in fast if (reason := backend.why_not()) is not None]
    return f"{note}: {'; '.join(reasons)}" if reasons else note


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute with one backend inside the ``with``, in all threads, the backward pass of what was computed there, too.

    A network that ``torch.compile`` has compiled before is compiled anew.

    Args:
        name: one of ``BACKENDS``.

    Raises:
        ValueError: there is none of that name.
        RuntimeError: it cannot be used here; when something is computed also where it is of another device.
    """
    global _forced
    _usable(name, "use_backend")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def backend_for(device: str, index: int | None = None) -> Backend:
    """The backend for tensors on a type of device, "cpu", "cuda", ...

    Args:
        device: the type of the device.
        index: which of several GPUs; None for the current one.

    Raises:
        ValueError: a name was forced that no backend has.
        RuntimeError: the backend that was forced cannot be used here, or not on that device.
    """
    return BACKENDS[_choice(_forced, device, index)]


@constant_result
def _choice(forced: str | None, device: str, index: int | None) -> str:
    """The backend's name."""
    other_gpu = device == "cuda" and index is not None and torch.cuda.is_available()  # fake tensors need no GPU
    if other_gpu and index != torch.cuda.current_device():
        with torch.cuda.device(index):
            return _choice(forced, device, None)
    if (by := _forced_by(forced)) is not None:
        name, source = by
        backend = _usable(name, source)
        if not backend.takes(device) and not _interprets(backend):
            raise RuntimeError(
                f"{source} forces the backend {name!r}, which computes on {backend.device}, got tensors on {device}"
            )
        chosen = backend
    else:
        usable = (BACKENDS[name] for name in _FASTEST_FIRST if BACKENDS[name].takes(device))
        reasons: dict[str, str] = {}
        for chosen in usable:
            if (reason := chosen.why_not()) is None:
                break
            reasons[chosen.name] = reason
        if chosen.name == "reference" and "triton" in reasons:
            _say_slow(reasons["triton"])
    return chosen.name


def _forced_by(forced: str | None) -> tuple[str, str] | None:
    """The name of the backend that is forced, and what forces it: ``use_backend``, else the variable."""
    if forced is not None:
        return forced, "use_backend"
    variable = os.environ.get(VARIABLE, "").strip()
    return (variable, VARIABLE) if variable else None


def _usable(name: str, source: str) -> Backend:
    if name not in BACKENDS:
        raise ValueError(f"{source} takes one of {', '.join(BACKENDS)}, got {name!r}")
    reason = BACKENDS[name].why_not()
    if reason is not None:
        raise RuntimeError(f"{source} forces the backend {name!r}, but {reason}")
    return BACKENDS[name]


def _interprets(backend: Backend) -> bool:
    """Whether the backend is Triton's interpreter, which computes on the CPU."""
    return backend.name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _say_slow(reason: str) -> None:
    warnings.warn(f"DTC is computed by torch's grid_sample, which is slow in 3D: {reason}", stacklevel=2)


def upsample(
    base: Tensor | None,
    value: Tensor,
    coords: Tensor,
    stride: tuple[int, ...],
    deformation: Deformation,
) -> Tensor:
    """``base`` plus the samples of ``value`` at ``coords``, by the backend for their device.

    Arguments as in :func:`nnunet_dtc.deformable_upsample`, checked before.
    """
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():  # for others to read: torch's own functions alone
        return reference.forward(base, value, coords, stride, deformation)
    backend = backend_for(value.device.type, value.device.index)
    return backend.operator(
        base, value, coords, stride, deformation.receptive_field, deformation.offset, deformation.weight
    )
