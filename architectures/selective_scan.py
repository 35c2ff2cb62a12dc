"""The selective scan of Mamba: a linear recurrence along a sequence whose coefficients depend on the input.

Gu and Dao, *Mamba: Linear-Time Sequence Modeling with Selective State Spaces*, arXiv:2312.00752, equations 2a and 2b
with the discretisation of its algorithm 2: zero-order hold for A, and Delta * B for B. Per case, with channels e and
states s, the state starting at zero::

    h_t[e, s] = exp(delta_t[e] * A[e, s]) * h_(t-1)[e, s] + delta_t[e] * B_t[s] * u_t[e]
    y_t[e]    = sum over s of C_t[s] * h_t[e, s] + D[e] * u_t[e]

Two backends compute it: the kernel of the package mamba-ssm, where that is installed and the tensors are on CUDA, and
PyTorch everywhere else. The PyTorch one is ours:

- The sequence is cut into blocks, which follow each other; a block's states are computed at once and forgotten. Only
  the state before each block is kept, and the backward pass computes the block's states anew. So beside the arguments
  and their gradients the memory is that of one block and of one state per block. A block has 2**25 states on CUDA (a
  buffer of 128 MiB in float32) and 2**20 on the CPU (4 MiB), but 64 steps at least. The forward pass holds two such
  buffers at once, the backward pass three, and both what has no axis of states: less than a buffer with 16 states.
- A block is M chunks of K steps. All chunks take their K steps side by side from states of zero, the M true states
  between chunks follow from the last ones, and every state then gets what the state before its chunk has become.
- No division and no difference of sums: every factor is exp(A * a sum of steps), which is at most 1 for negative A, so
  nothing overflows or cancels at any length.
- The gradient with respect to the states is the same recurrence in reversed time, with C and the gradient of y in the
  place of B and delta * u.

Both are operators of torch's own kind (``nnunet_dtc::selective_scan``, ``nnunet_dtc::selective_scan_mamba_ssm``) with
a count of their products: ``torch.compile`` sees one node of one graph. The kernel's operator keeps its arguments alone
and runs the kernel's forward pass once more in the backward pass.

Where a network is traced or exported to ONNX neither is used, but a form of torch's own functions, whose trace has
log2(L) steps and whose memory is that of all states at once.
"""

import functools
import importlib
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from nnunet_dtc.errors import NnunetDtcError

BACKEND_VARIABLE = "NNUNET_DTC_SELECTIVE_SCAN"
BACKENDS = ("auto", "torch", "mamba_ssm")
KERNEL_DEVICE, KERNEL_DTYPE = "cuda", torch.float32  # of mamba-ssm's kernel (it takes halves, too: we scan wider)
_KERNEL_MODULE = "mamba_ssm.ops.selective_scan_interface"
# elements of a block's states (cases * channels * states * steps): see the module's docstring
_BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Scan the sequences ``u``, see the module's docstring.

    Args:
        u (Tensor[N, E, L]): E channels along L steps, any floating dtype.
        delta (Tensor[N, E, L]): the step sizes, after their softplus: each >= 0.
        A (Tensor[E, S]): how fast the S states of each channel decay, each <= 0.
        B (Tensor[N, S, L]): how the input enters the states.
        C (Tensor[N, S, L]): how the states are read.
        D (Tensor[E]): the share of ``u`` that passes by; None for none.
        backend: see :func:`scan_backend`.

    Returns:
        Tensor[N, E, L]: y, in the dtype of ``u``. The scan itself is in float32 at least, under autocast too.

    Raises:
        ValueError: shapes that do not fit, or another backend.
        TypeError: a tensor that is not floating, or ``backend="mamba_ssm"`` with float64.
        ImportError: ``backend="mamba_ssm"`` without that package.
    """
    _check(u, delta, A, B, C, D)
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in (delta, A, B, C)), u.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    wide = u.to(dtype)
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        scan = _traceable_scan
    else:
        scan = torch_selective_scan if scan_backend(u.device.type, dtype, backend) == "torch" else _kernel_operator
    y = scan(wide, delta.to(dtype), A.to(dtype), B.to(dtype), C.to(dtype))
    if D is not None:
        y = y + D.to(dtype)[:, None] * wide  # (E, 1) * (N, E, L)
    return y.to(u.dtype)


def scan_backend(device: str, dtype: torch.dtype = torch.float32, backend: str | None = None) -> str:
    """Which backend scans tensors on a type of device: "torch" or "mamba_ssm".

    Args:
        device: its type, "cpu", "cuda", ...
        dtype: of the scan: the widest of the arguments, float32 at least.
        backend: "torch", "mamba_ssm" (its CUDA kernel), or "auto": the kernel where it is installed, the tensors are on
            CUDA and the scan is in float32, else PyTorch. None takes the environment variable
            NNUNET_DTC_SELECTIVE_SCAN, "auto" where it is not set.

    Raises:
        ValueError: another backend.
        TypeError: "mamba_ssm" with another dtype than float32.
        ImportError: "mamba_ssm" where it is missing or does not load.
    """
    name = os.environ.get(BACKEND_VARIABLE, "auto") if backend is None else backend
    if name not in BACKENDS:
        source = f"{BACKEND_VARIABLE}=" if backend is None else "backend="
        raise NnunetDtcError(f"the backend of the selective scan is one of {', '.join(BACKENDS)}, got {source}{name!r}")
    if name == "auto":
        takes = device == KERNEL_DEVICE and dtype == KERNEL_DTYPE and why_no_kernel() is None
        return "mamba_ssm" if takes else "torch"
    if name == "mamba_ssm" and dtype != KERNEL_DTYPE:
        raise TypeError(f"mamba-ssm's kernel scans in {KERNEL_DTYPE}, got {dtype}")
    if name == "mamba_ssm" and (reason := why_no_kernel()) is not None:
        raise ImportError(
            f"the selective scan's CUDA kernel: {reason}; without it use backend='torch' ({BACKEND_VARIABLE}=torch)"
        )
    return name


# torch.compile asks once and takes the answer for a constant of the arguments, as in nnunet_dtc.ops.backends
scan_backend._dynamo_marked_constant = True


@functools.cache
def why_no_kernel() -> str | None:
    """Why mamba-ssm's kernel cannot be used here, None where it can."""
    try:
        importlib.import_module(_KERNEL_MODULE)
    except ModuleNotFoundError as error:
        return f'{error.name} is not installed: pip install "nnunet-dtc[mamba]"'
    except Exception as error:  # it is built for one version of torch, and fails with all kinds of errors with others
        return f"mamba-ssm cannot be used: {error}"
    return None


def scan_note(device: str) -> str:
    """A sentence on what scans on a type of device in float32, for the log of a training.

    Raises:
        ValueError, ImportError: as :func:`scan_backend`.
    """
    if scan_backend(device) == "mamba_ssm":
        return "The selective scan is computed by mamba-ssm's kernel."
    note = "The selective scan is computed by PyTorch"
    if device == KERNEL_DEVICE and (reason := why_no_kernel()) is not None:
        return f"{note}; for the kernel: {reason}"
    return f"{note}."


def _kernel_forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y by mamba-ssm's kernel, which wants the last axis of its arguments to be contiguous."""
    scan = importlib.import_module(_KERNEL_MODULE).selective_scan_fn
    with torch.no_grad():
        return scan(*(t.contiguous() for t in (u, delta, A, B, C))).contiguous()


def _kernel_backward(
    grad_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients with respect to u, delta, A, B and C, by the autograd function that is mamba-ssm's own."""
    scan = importlib.import_module(_KERNEL_MODULE).selective_scan_fn
    inputs = [t.detach().contiguous().requires_grad_() for t in (u, delta, A, B, C)]
    with torch.enable_grad():
        y = scan(*inputs)
    u, delta, A, B, C = (t.contiguous() for t in torch.autograd.grad(y, inputs, grad_y.contiguous()))
    return u, delta, A, B, C


def torch_selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The PyTorch backend, without D: tensors of one dtype, float32 or float64, with the shapes of above."""
    return _operator(u, delta, A, B, C)[0]


def _traceable_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The scan without D in torch's own functions, for a trace or an ONNX file that others read.

    All states stand at once in memory, (N, E, S, L). After step k each holds what the 2**k steps up to it give to it,
    so the trace has log2(L) steps; L is a constant of it.
    """
    factors = torch.exp(delta.unsqueeze(2) * A.unsqueeze(-1))  # (N, E, S, L)
    states = (delta * u).unsqueeze(2) * B.unsqueeze(1)
    length, reach = int(u.shape[2]), 1
    while reach < length:
        states = states + factors * F.pad(states[..., : length - reach], (reach, 0))
        factors = factors * F.pad(factors[..., : length - reach], (reach, 0))
        reach *= 2
    return (states * C.unsqueeze(1)).sum(2)  # (N, E, L)


def _forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """y, and the states before each block, (blocks, N, E, S)."""
    steps = _block_steps(u, A)
    y, starts = torch.empty_like(u, memory_format=torch.contiguous_format), []
    state = u.new_zeros((u.shape[0], *A.shape))  # (N, E, S)
    for begin in range(0, u.shape[2], steps):
        block = slice(begin, begin + steps)
        starts.append(state)
        d = delta[..., block]
        states, _ = _block_states(d, A, d * u[..., block], B[..., block], state)
        state = _kept(states[-1, ..., -1])  # the last step of the last chunk
        # (K, N, E, S, M) * (K, N, 1, S, M), summed over S
        y[..., block] = _steps_last(states.mul_(_chunked(C[..., block]).unsqueeze(2)).sum(3), d.shape[2])
        del states  # before the next block has its own
    return y, torch.stack(starts) if starts else u.new_zeros((0, u.shape[0], *A.shape))


def _backward(
    grad_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients with respect to u, delta, A, B and C; block after block from the end.

    What has the size of a block's states is overwritten where its last use allows it, and deleted behind it.
    """
    length, steps = u.shape[2], _block_steps(u, A)
    grad_u, grad_delta, grad_B, grad_C = (
        torch.empty_like(t, memory_format=torch.contiguous_format) for t in (u, delta, B, C)
    )
    grad_A = torch.zeros_like(A)
    later = u.new_zeros((u.shape[0], *A.shape))  # gradient of the first state after the block, (N, E, S)
    later_delta = u.new_zeros((*u.shape[:2], 1))  # and the step into it, (N, E, 1)
    for index, begin in reversed(list(enumerate(range(0, length, steps)))):
        block = slice(begin, begin + steps)
        d, v, dy, b, c = delta[..., block], u[..., block], grad_y[..., block], B[..., block], C[..., block]
        count = d.shape[2]
        # (K, N, E, S, M), twice
        states, decayed = _block_states(d, A, d * v, b, starts[index], with_decayed=True)
        grad_C[..., block] = _steps_last(states.mul_(_chunked(dy).unsqueeze(3)).sum(2), count)
        del states

        # G_t = C_t * dy_t + exp(delta_(t+1) A) * G_(t+1): the same recurrence on reversed steps
        following = torch.cat([d[..., 1:], later_delta], dim=-1)  # delta_(t+1)
        reverse, _ = _block_states(following.flip(-1), A, dy.flip(-1), c.flip(-1), later, pad_front=True)
        grads = reverse.flip((0, -1))  # (K, N, E, S, M), step t in the place of `decayed`
        del reverse
        later, later_delta = _kept(grads[0, ..., 0]), d[..., :1]

        grad_B[..., block] = _steps_last((grads * _chunked(d * v).unsqueeze(3)).sum(2), count)
        into = _steps_last((grads * _chunked(b).unsqueeze(2)).sum(3), count)  # gradient of delta * u, (N, E, steps)
        grad_u[..., block] = d * into
        decayed.mul_(grads)  # gradient of delta_t * A, through the exponential
        del grads
        grad_delta[..., block] = v * into + _steps_last((decayed * A[..., None]).sum(3), count)
        grad_A += decayed.mul_(_chunked(d).unsqueeze(3)).sum((0, 1, 4))
        del decayed
    return grad_u, grad_delta, grad_A, grad_B, grad_C


_operator = torch.library.custom_op("nnunet_dtc::selective_scan", _forward, mutates_args=())
_operator_backward = torch.library.custom_op("nnunet_dtc::selective_scan_backward", _backward, mutates_args=())
_kernel_operator = torch.library.custom_op("nnunet_dtc::selective_scan_mamba_ssm", _kernel_forward, mutates_args=())
_kernel_operator_backward = torch.library.custom_op(
    "nnunet_dtc::selective_scan_mamba_ssm_backward", _kernel_backward, mutates_args=()
)


@_operator.register_fake
def _(u, delta, A, B, C):
    blocks = -(-u.shape[2] // _block_steps(u, A))
    return torch.empty_like(u, memory_format=torch.contiguous_format), u.new_empty((blocks, u.shape[0], *A.shape))


@_kernel_operator.register_fake
def _(u, delta, A, B, C):
    return torch.empty_like(u, memory_format=torch.contiguous_format)


@_operator_backward.register_fake
@_kernel_operator_backward.register_fake
def _(grad_y, u, delta, A, B, C, starts=None):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (u, delta, A, B, C))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx, grad_y, _):
    return _operator_backward(grad_y, *ctx.saved_tensors)


def _kernel_setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _kernel_gradients(ctx, grad_y):
    return _kernel_operator_backward(grad_y, *ctx.saved_tensors)


_operator.register_autograd(_gradients, setup_context=_setup_context)
_kernel_operator.register_autograd(_kernel_gradients, setup_context=_kernel_setup_context)


@register_flop_formula([torch.ops.nnunet_dtc.selective_scan, torch.ops.nnunet_dtc.selective_scan_mamba_ssm])
def _(u: Sequence[int], delta: Sequence[int], A: Sequence[int], *_: Any, **__: Any) -> int:
    """Three products for every state of every step: of its decay, of the input and of the read-out."""
    return 2 * 3 * u[0] * u[2] * A[0] * A[1]


@register_flop_formula(
    [torch.ops.nnunet_dtc.selective_scan_backward, torch.ops.nnunet_dtc.selective_scan_mamba_ssm_backward]
)
def _(grad_y: Sequence[int], u: Sequence[int], delta: Sequence[int], A: Sequence[int], *_: Any, **__: Any) -> int:
    """Ten: two for the states anew, two for their gradients, one each for the gradients of C, B, delta * u and
    delta * A, and the last of these times A and times delta."""
    return 2 * 10 * u[0] * u[2] * A[0] * A[1]


def _block_states(
    delta: Tensor,
    A: Tensor,
    left: Tensor,
    right: Tensor,
    start: Tensor,
    pad_front: bool = False,
    with_decayed: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """All states h_t = exp(delta_t A) h_(t-1) + left_t right_t of one block.

    Args:
        delta, left (Tensor[N, E, T]), A (Tensor[E, S]), right (Tensor[N, S, T]), start (Tensor[N, E, S]).
        pad_front: where T does not fill the chunks: steps that change nothing before the first step, not after the
            last.
        with_decayed: whether the second result is wanted.

    Returns:
        The states, and exp(delta_t A) h_(t-1) or None, both (K, N, E, S, M): step m * K + k stands at [k, .., m].
    """
    delta, left, right = (_chunked(t, pad_front) for t in (delta, left, right))  # (K, N, E or S, M)
    A = A[..., None]  # (E, S, 1)
    factors = (delta.unsqueeze(3) * A).exp_()  # (K, N, E, S, M)
    states = left.unsqueeze(3) * right.unsqueeze(2)  # (K, N, E, 1, M) * (K, N, 1, S, M)
    for k in range(1, len(states)):  # from states of zero, in all chunks at once
        states[k].addcmul_(factors[k], states[k - 1])
    if not with_decayed:
        del factors

    passed = delta.cumsum(0)  # time since before the chunk, (K, N, E, M)
    whole = torch.exp(passed[-1].unsqueeze(2) * A)  # (N, E, S, M)
    before = torch.empty_like(whole)  # the true state before each chunk
    before[..., 0] = start
    for m in range(1, before.shape[-1]):
        torch.addcmul(states[-1, ..., m - 1], whole[..., m - 1], before[..., m - 1], out=before[..., m])
    states.addcmul_((passed.unsqueeze(3) * A).exp_(), before)

    if not with_decayed:
        return states, None
    factors[0].mul_(before)
    factors[1:].mul_(states[:-1])
    return states, factors


def _kept(t: Tensor) -> Tensor:
    """A copy in any case: not a view that holds what it was taken from."""
    return t.clone(memory_format=torch.contiguous_format)


def _chunks(steps: int) -> tuple[int, int]:
    """(K, M): M chunks of K steps hold at least ``steps``, both about their square root."""
    length = max(1, round(steps**0.5))
    return length, -(-steps // length)


def _chunked(t: Tensor, pad_front: bool = False) -> Tensor:
    """(N, X, T) to (K, N, X, M), filled up with zeros: for delta a step that keeps the state."""
    length, count = _chunks(t.shape[2])
    missing = length * count - t.shape[2]
    t = F.pad(t, (missing, 0) if pad_front else (0, missing))
    return t.unflatten(2, (count, length)).permute(3, 0, 1, 2).contiguous()  # (N, X, M, K) to (K, N, X, M)


def _steps_last(t: Tensor, steps: int) -> Tensor:
    """(K, N, X, M) back to (N, X, T), without what was filled up at the end."""
    return t.permute(1, 2, 3, 0).flatten(2)[..., :steps]  # (N, X, M, K) to (N, X, M * K)


def _block_steps(u: Tensor, A: Tensor) -> int:
    """How many steps a block has."""
    budget = _BLOCK_ELEMENTS.get(u.device.type, _BLOCK_ELEMENTS["cuda"])
    return max(64, budget // max(1, u.shape[0] * A.shape[0] * A.shape[1]))


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
