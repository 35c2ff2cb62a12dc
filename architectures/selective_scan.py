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
  and their gradients the memory is that of one block and of one state per block.
- A block is M chunks of K steps. All chunks take their K steps side by side from states of zero, the M true states
  between chunks follow from the last ones, and every state then gets what the state before its chunk has become.
- No division and no difference of sums: every factor is exp(A * a sum of steps), which is at most 1 for negative A, so
  nothing overflows or cancels at any length.
- The gradient with respect to the states is the same recurrence in reversed time, with C and the gradient of y in the
  place of B and delta * u.

It is an operator of torch's own kind (``nnunet_dtc::selective_scan``): ``torch.compile`` sees one node.
"""

import functools
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BACKEND_VARIABLE = "NNUNET_DTC_SELECTIVE_SCAN"
BACKENDS = ("auto", "torch", "mamba_ssm")
# elements of the states (cases * channels * states * steps) that are held at once
_BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**27}


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
        backend: "torch", "mamba_ssm" (its CUDA kernel), or "auto": the kernel where it is installed and ``u`` is on
            CUDA, else PyTorch. None takes the environment variable NNUNET_DTC_SELECTIVE_SCAN, "auto" where it is not
            set.

    Returns:
        Tensor[N, E, L]: y, in the dtype of ``u``. The scan itself is in float32 at least, under autocast too.

    Raises:
        ValueError: shapes that do not fit, or another backend.
        TypeError: a tensor that is not floating.
        ImportError: ``backend="mamba_ssm"`` without that package.
    """
    _check(u, delta, A, B, C, D)
    scan = _scan_of(backend, u)
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in (delta, A, B, C)), u.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    wide = u.to(dtype)
    y = scan(wide, delta.to(dtype), A.to(dtype), B.to(dtype), C.to(dtype))
    if D is not None:
        y = y + D.to(dtype)[:, None] * wide  # (E, 1) * (N, E, L)
    return y.to(u.dtype)


def _scan_of(backend: str | None, u: Tensor) -> Callable[..., Tensor]:
    """The function of a backend's name, for these tensors."""
    name = os.environ.get(BACKEND_VARIABLE, "auto") if backend is None else backend
    if name not in BACKENDS:
        source = f"{BACKEND_VARIABLE}=" if backend is None else "backend="
        raise ValueError(f"the backend of the selective scan is one of {', '.join(BACKENDS)}, got {source}{name!r}")
    if name == "torch" or (name == "auto" and not u.is_cuda):
        return torch_selective_scan
    kernel = _mamba_kernel()
    if kernel is None and name == "mamba_ssm":
        raise ImportError(
            "the selective scan's CUDA kernel is in the package mamba-ssm: pip install mamba-ssm; "
            f"without it use backend='torch' ({BACKEND_VARIABLE}=torch)"
        )
    return torch_selective_scan if kernel is None else kernel


@functools.cache
def _mamba_kernel() -> Callable[..., Tensor] | None:
    """mamba-ssm's kernel, None where the package is missing or does not load (it is built for one torch version)."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except Exception:  # a kernel of another torch version fails with other errors than ImportError, too
        return None

    @torch.compiler.disable  # it is no operator of torch's own kind: torch.compile goes around it
    def kernel(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        # its kernel wants the last axis of these to be contiguous
        return selective_scan_fn(u.contiguous(), delta.contiguous(), A.contiguous(), B.contiguous(), C.contiguous())

    return kernel


def torch_selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The PyTorch backend, without D: tensors of one dtype, float32 or float64, with the shapes of above."""
    return _forward(u, delta, A, B, C)[0]


@torch.library.custom_op("nnunet_dtc::selective_scan", mutates_args=())
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
        state = states[-1, ..., -1].contiguous()  # the last step of the last chunk
        # (K, N, E, S, M) * (K, N, 1, S, M), summed over S
        y[..., block] = _steps_last((states * _chunked(C[..., block]).unsqueeze(2)).sum(3), d.shape[2])
    return y, torch.stack(starts) if starts else u.new_zeros((0, u.shape[0], *A.shape))


@_forward.register_fake
def _(u, delta, A, B, C):
    blocks = -(-u.shape[2] // _block_steps(u, A))
    return torch.empty_like(u, memory_format=torch.contiguous_format), u.new_empty((blocks, u.shape[0], *A.shape))


@torch.library.custom_op("nnunet_dtc::selective_scan_backward", mutates_args=())
def _backward(
    grad_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients with respect to u, delta, A, B and C; block after block from the end."""
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
        states, decayed = _block_states(d, A, d * v, b, starts[index])  # (K, N, E, S, M), twice

        # G_t = C_t * dy_t + exp(delta_(t+1) A) * G_(t+1): the same recurrence on reversed steps
        following = torch.cat([d[..., 1:], later_delta], dim=-1)  # delta_(t+1)
        reverse, _ = _block_states(following.flip(-1), A, dy.flip(-1), c.flip(-1), later, pad_front=True)
        grads = reverse.flip((0, -1))  # (K, N, E, S, M), step t in the place of `states`
        later, later_delta = grads[0, ..., 0].contiguous(), d[..., :1]

        dv, d_chunks, dy_chunks = _chunked(d * v), _chunked(d), _chunked(dy)  # (K, N, E, M) each
        grad_C[..., block] = _steps_last((states * dy_chunks.unsqueeze(3)).sum(2), count)
        grad_B[..., block] = _steps_last((grads * dv.unsqueeze(3)).sum(2), count)
        into = _steps_last((grads * _chunked(b).unsqueeze(2)).sum(3), count)  # gradient of delta * u, (N, E, steps)
        grad_u[..., block] = d * into
        decayed.mul_(grads)  # gradient of delta_t * A, through the exponential
        grad_delta[..., block] = v * into + _steps_last((decayed * A[..., None]).sum(3), count)
        grad_A += (decayed * d_chunks.unsqueeze(3)).sum((0, 1, 4))
    return grad_u, grad_delta, grad_A, grad_B, grad_C


@_backward.register_fake
def _(grad_y, u, delta, A, B, C, starts):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (u, delta, A, B, C))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _autograd_backward(ctx, grad_y, _):
    return _backward(grad_y, *ctx.saved_tensors)


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


def _block_states(
    delta: Tensor, A: Tensor, left: Tensor, right: Tensor, start: Tensor, pad_front: bool = False
) -> tuple[Tensor, Tensor]:
    """All states h_t = exp(delta_t A) h_(t-1) + left_t right_t of one block.

    Args:
        delta, left (Tensor[N, E, T]), A (Tensor[E, S]), right (Tensor[N, S, T]), start (Tensor[N, E, S]).
        pad_front: where T does not fill the chunks: steps that change nothing before the first step, not after the
            last.

    Returns:
        The states, and exp(delta_t A) h_(t-1), both (K, N, E, S, M): step m * K + k stands at [k, .., m].
    """
    delta, left, right = (_chunked(t, pad_front) for t in (delta, left, right))  # (K, N, E or S, M)
    A = A[..., None]  # (E, S, 1)
    factors = torch.exp(delta.unsqueeze(3) * A)  # (K, N, E, S, M)
    states = left.unsqueeze(3) * right.unsqueeze(2)  # (K, N, E, 1, M) * (K, N, 1, S, M)
    for k in range(1, len(states)):  # from states of zero, in all chunks at once
        states[k].addcmul_(factors[k], states[k - 1])

    passed = delta.cumsum(0)  # time since before the chunk, (K, N, E, M)
    whole = torch.exp(passed[-1].unsqueeze(2) * A)  # (N, E, S, M)
    before = torch.empty_like(whole)  # the true state before each chunk
    before[..., 0] = start
    for m in range(1, before.shape[-1]):
        torch.addcmul(states[-1, ..., m - 1], whole[..., m - 1], before[..., m - 1], out=before[..., m])
    states += torch.exp(passed.unsqueeze(3) * A).mul_(before)

    factors[0].mul_(before)
    factors[1:].mul_(states[:-1])
    return states, factors


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
