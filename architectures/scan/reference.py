"""The selective scan in PyTorch's own functions, on every device, in float32 or float64.

- The sequence is cut into blocks, which follow each other; a block's states are computed together and then freed. Only
  the state before each block is kept, and the backward pass computes the block's states again. So the memory is that of
  one block, and of one state per block. A block has 2**25 states on CUDA (a buffer of 128 MiB in float32) and 2**20 on
  the CPU (4 MiB), but at least 64 steps. The forward pass holds two such buffers at once, the backward pass three, and
  both also hold what has no axis of states: less than one buffer with 16 states.
- A block is M chunks of K steps. All chunks take their K steps side by side from states of zero; the M states between
  the chunks follow from the last states of the chunks; and every state then gets what remains of the state before its
  chunk.
- There is no division and no difference of sums: every factor is exp(A * a sum of steps), which is at most 1 for
  negative A, so nothing overflows or cancels at any length.
- The gradient with respect to the states is the same recurrence in reversed time, with C and the gradient of y in place
  of B and delta * u.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# elements of a block's states (cases * channels * states * steps)
BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}


def traceable(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y, in a form for traces and ONNX files.

    All states are in memory at once, (N, E, S, L). After step k each state contains the contributions of the 2**k steps
    up to it, so the trace has log2(L) steps; L is a constant of the trace.
    """
    factors = torch.exp(delta.unsqueeze(2) * A.unsqueeze(-1))  # (N, E, S, L)
    states = (delta * u).unsqueeze(2) * B.unsqueeze(1)
    length, reach = int(u.shape[2]), 1
    while reach < length:
        states = states + factors * F.pad(states[..., : length - reach], (reach, 0))
        factors = factors * F.pad(factors[..., : length - reach], (reach, 0))
        reach *= 2
    return (states * C.unsqueeze(1)).sum(2)  # (N, E, L)


def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """y, and the states before each block, (blocks, N, E, S)."""
    steps = block_steps(u, A)
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


def backward(
    grad_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients with respect to u, delta, A, B and C, block by block from the end.

    Tensors of the size of a block's states are overwritten at their last use, or deleted after it.
    """
    length, steps = u.shape[2], block_steps(u, A)
    grad_u, grad_delta, grad_B, grad_C = (
        torch.empty_like(t, memory_format=torch.contiguous_format) for t in (u, delta, B, C)
    )
    grad_A = A.new_zeros(A.shape)
    later = u.new_zeros((u.shape[0], *A.shape))  # gradient of the first state after the block, (N, E, S)
    later_delta = u.new_zeros((*u.shape[:2], 1))  # the step into that state, (N, E, 1)
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
        grads = reverse.flip((0, -1))  # (K, N, E, S, M), steps as in `decayed`
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


def empty_outputs(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Tensors of the shapes, dtypes and strides that ``forward`` returns."""
    blocks = -(-u.shape[2] // block_steps(u, A))
    return u.new_empty(u.shape), u.new_empty((blocks, u.shape[0], *A.shape))


def empty_gradients(grad_y: Tensor, *arguments: Tensor) -> tuple[Tensor, ...]:
    """Tensors of the shapes, dtypes and strides that ``backward`` returns."""
    return tuple(t.new_empty(t.shape) for t in arguments[:5])


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
        pad_front: where T does not fill the chunks, steps that change nothing are added before the first step instead
            of after the last.
        with_decayed: whether to return the second result.

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
    before = torch.empty_like(whole)  # the state before each chunk
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
    """A copy, because a view would keep the whole tensor in memory."""
    return t.clone(memory_format=torch.contiguous_format)


def _chunks(steps: int) -> tuple[int, int]:
    """(K, M): M chunks of K steps hold at least ``steps``, both about their square root."""
    length = max(1, round(steps**0.5))
    return length, -(-steps // length)


def _chunked(t: Tensor, pad_front: bool = False) -> Tensor:
    """(N, X, T) to (K, N, X, M), padded with zeros; a delta of zero is a step that keeps the state."""
    length, count = _chunks(t.shape[2])
    missing = length * count - t.shape[2]
    t = F.pad(t, (missing, 0) if pad_front else (0, missing))
    return t.unflatten(2, (count, length)).permute(3, 0, 1, 2).contiguous()  # (N, X, M, K) to (K, N, X, M)


def _steps_last(t: Tensor, steps: int) -> Tensor:
    """(K, N, X, M) back to (N, X, T), without the padding at the end."""
    return t.permute(1, 2, 3, 0).flatten(2)[..., :steps]  # (N, X, M, K) to (N, X, M * K)


def block_steps(u: Tensor, A: Tensor) -> int:
    """The number of steps of a block."""
    budget = BLOCK_ELEMENTS.get(u.device.type, BLOCK_ELEMENTS["cuda"])
    return max(64, budget // max(1, u.shape[0] * A.shape[0] * A.shape[1]))
