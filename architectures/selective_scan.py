"""The selective scan of Mamba: a linear recurrence along a sequence whose coefficients depend on the input.

Gu and Dao, *Mamba: Linear-Time Sequence Modeling with Selective State Spaces*, arXiv:2312.00752, equations 2a and 2b
with the discretisation of its algorithm 2: zero-order hold for A, and Delta * B for B. Per case, with channels e and
states s, the state starting at zero::

    h_t[e, s] = exp(delta_t[e] * A[e, s]) * h_(t-1)[e, s] + delta_t[e] * B_t[s] * u_t[e]
    y_t[e]    = sum over s of C_t[s] * h_t[e, s] + D[e] * u_t[e]

=============  ======  ================================================================================
``torch``      any     PyTorch's own functions, ours; the oracle of the others
``triton``     CUDA    kernels of ours; Triton comes with torch's CUDA builds
``mamba_ssm``  CUDA    the kernel of the package mamba-ssm, where it is installed
=============  ======  ================================================================================

"auto" takes mamba-ssm, then Triton, then PyTorch. mamba-ssm comes first because its kernel has been measured on many
GPUs, which ours has not yet, and because it is there only where a user has installed it for this purpose. Before either
is first used on a GPU, it is compared with PyTorch's scan; one that fails is not used.

Each is an operator of torch, see :mod:`nnunet_dtc.architectures.scan.operators`. Traces and ONNX files contain torch's
own functions instead.
"""

import functools
import importlib
import os

import torch
from torch import Tensor

from nnunet_dtc.architectures.scan import check, mamba_ssm, operators
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.torch_internals import constant_result

BACKEND_VARIABLE = "NNUNET_DTC_SELECTIVE_SCAN"
BACKENDS = ("auto", "torch", "triton", "mamba_ssm")
KERNELS = ("mamba_ssm", "triton")  # in the order of preference
KERNEL_DEVICE, KERNEL_DTYPE = "cuda", torch.float32  # of the kernels; half precision is computed in float32
TITLES = {"torch": "PyTorch", "triton": "Triton", "mamba_ssm": "mamba-ssm's kernel"}
MOST_STATES = 256  # of a channel, for the kernels; PyTorch computes larger ones


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Scan the sequences ``u`` by the equations of this module.

    Args:
        u (Tensor[N, E, L]): E channels along L steps, any floating dtype.
        delta (Tensor[N, E, L]): the step sizes, after their softplus: each >= 0.
        A (Tensor[E, S]): how fast the S states of each channel decay, each <= 0.
        B (Tensor[N, S, L]): how the input enters the states.
        C (Tensor[N, S, L]): how the states are read.
        D (Tensor[E]): the factor of ``u`` in the output; None for zero.
        backend: see :func:`scan_backend`.

    Returns:
        Tensor[N, E, L]: y, in the dtype of ``u``. The scan itself is at least in float32, also under autocast.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.
        TypeError: a tensor that is not floating, or a kernel as ``backend`` with float64.
        ImportError: a kernel as ``backend`` that cannot be used here.
    """
    _check(u, delta, A, B, C, D)
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        name = "traceable"
    else:
        name = scan_backend(u.device.type, operators.widest_dtype(u, delta, A, B, C), backend)
        if not 0 < A.shape[1] <= MOST_STATES:
            name = "torch"
    return operators.compute(name, u, delta, A, B, C, D)


@constant_result  # as in nnunet_dtc.ops.backends
def scan_backend(device: str, dtype: torch.dtype = torch.float32, backend: str | None = None) -> str:
    """The backend that scans tensors on a type of device: "torch", "triton" or "mamba_ssm".

    Args:
        device: its type, "cpu", "cuda", ...
        dtype: dtype of the scan: the widest of the arguments' dtypes, at least float32.
        backend: "torch", "triton", "mamba_ssm", or "auto": the first of the kernels that can be used, where the tensors
            are on CUDA and the scan is in float32, and otherwise PyTorch. None takes the environment variable
            NNUNET_DTC_SELECTIVE_SCAN, and "auto" where it is not set.

    Raises:
        ValueError: an unknown backend.
        TypeError: a kernel with another dtype than float32.
        ImportError: a kernel that is not installed, does not load, or fails its check.
    """
    name = os.environ.get(BACKEND_VARIABLE, "auto") if backend is None else backend
    if name not in BACKENDS:
        source = f"{BACKEND_VARIABLE}=" if backend is None else "backend="
        raise NnunetDtcError(f"the backend of the selective scan is one of {', '.join(BACKENDS)}, got {source}{name!r}")
    if name == "auto":
        fits = device == KERNEL_DEVICE and dtype == KERNEL_DTYPE
        return next((kernel for kernel in KERNELS if fits and why_not(kernel) is None), "torch")
    if name in KERNELS and dtype != KERNEL_DTYPE:
        raise TypeError(f"the selective scan's backend {name!r} computes in {KERNEL_DTYPE}, got {dtype}")
    if name in KERNELS and (reason := why_not(name)) is not None:
        raise ImportError(
            f"the selective scan's backend {name!r} cannot be used: {reason}; another one is backend='torch' "
            f"({BACKEND_VARIABLE}=torch)"
        )
    return name


def why_not(kernel: str) -> str | None:
    """Why one of the ``KERNELS`` cannot be used here, None where it can."""
    missing = why_missing(kernel)
    if missing is not None or (KERNEL_DEVICE == "cuda" and not torch.cuda.is_available()):
        return missing
    return check.why_not(kernel, torch.device(KERNEL_DEVICE))


def agree_across_ranks(device: torch.device) -> None:
    """Let all ranks of a distributed training choose the same backend; all of them must call this at the same step.

    The trainers of this package do when they are initialised.
    """
    if device.type == KERNEL_DEVICE and os.environ.get(BACKEND_VARIABLE, "auto") == "auto":
        for kernel in KERNELS:
            check.agree_across_ranks(kernel, device, why_not(kernel))


@functools.cache
def why_missing(kernel: str) -> str | None:
    """Why one of the ``KERNELS`` cannot be imported, None where it can."""
    if kernel == "triton" and not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return "torch sees no CUDA device"
    module, title, package = {
        "triton": ("nnunet_dtc.architectures.scan.cuda", "Triton", "triton"),
        "mamba_ssm": (mamba_ssm.INTERFACE, "mamba-ssm", '"nnunet-dtc[mamba]"'),
    }[kernel]
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        return f"{(error.name or module).partition('.')[0]} is not installed: pip install {package}"
    except Exception as error:  # mamba-ssm is built for one version of torch, and fails in many ways with others
        return f"{title} cannot be used: {error}"
    return None


def scan_note(device: str) -> str:
    """A sentence for the log of a training on what computes the scan on a type of device in float32.

    Raises:
        ValueError, ImportError: as :func:`scan_backend`.
    """
    name = scan_backend(device)
    note = f"The selective scan is computed by {TITLES[name]}"
    if name != "torch" or device != KERNEL_DEVICE or os.environ.get(BACKEND_VARIABLE) == "torch":
        return f"{note}."
    return f"{note}, which is slow on CUDA. {why_no_kernel()}."


def why_no_kernel() -> str | None:
    """Why no kernel can be used here, None where one can."""
    reasons = {kernel: why_not(kernel) for kernel in KERNELS}
    if None in reasons.values():
        return None
    return "; ".join(f"{TITLES[kernel]}: {reason}" for kernel, reason in reasons.items())


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> None:
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C} | ({} if D is None else {"D": D})
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"the selective scan takes floating tensors, got {name} of {tensor.dtype}")
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(f"u must be (N, E, L) and A (E, S), got u {tuple(u.shape)} and A {tuple(A.shape)}")
    (cases, channels, length), state = u.shape, A.shape[1]
    rules = {
        "delta": (cases, channels, length),
        "A": (channels, state),
        "B": (cases, state, length),
        "C": (cases, state, length),
        "D": (channels,),
    }
    for name, shape in rules.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"with u {tuple(u.shape)} and {state} states {name} must be {shape}, got {tuple(tensors[name].shape)}"
            )
