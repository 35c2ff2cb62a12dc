"""The selective scan by Triton's kernels, in float32 whatever the dtype of the arguments.

For the backward pass the state before each chunk is kept, S / CHUNK times as many elements as u has. The backward pass
itself needs the gradients of B and C for each block of channels, about twice as many elements as u has, and
``PROGRAMS`` times 32 KiB for states. Every sum is computed in one fixed order, so the result has the same bits in every
run.
"""

from collections.abc import Hashable
from typing import Any

import torch
import triton
from torch import Tensor

from nnunet_dtc.architectures.scan import reference, triton_kernels
from nnunet_dtc.ops.compiled_variants import launched_or

WHAT = "a kernel of the selective scan, which PyTorch computes instead"

CHUNK = 128  # steps of a program
TILE = 4  # steps whose states a program holds at once
CHANNELS, STATES = 32, 256  # of a program: the most channels, and the most channels times states
PROGRAMS = 2048  # of the backward pass that run at once
CHUNKS, ELEMENTS = 16, 128  # of a program of the scan from chunk to chunk
MOST_STATES = STATES  # of a channel


def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    """y, and the states before each chunk, (N, chunks, E, S).

    A variant of the kernels that does not compile is computed by PyTorch's scan, with a warning. The states are then
    zero, since the backward pass computes its own.
    """
    arguments = (u, delta, A, B, C, D)
    return launched_or(
        lambda: launch_forward(*arguments),
        lambda: _forward_by_reference(*arguments),
        WHAT,
        _variant(*arguments),
        u.device,
    )


def backward(
    grad_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients with respect to u, delta, A, B, C and D, the last without elements where D is None.

    A variant of the kernels that does not compile, in either direction, is computed by PyTorch's scan.
    """
    arguments = (u, delta, A, B, C, D)
    return launched_or(
        lambda: launch_backward(grad_y, *arguments, starts),
        lambda: _backward_by_reference(grad_y, *arguments, starts),
        WHAT,
        _variant(*arguments),
        u.device,
    )


def launch_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None
) -> tuple[Tensor, Tensor]:
    """:func:`forward` by the kernels, which may fail to compile."""
    sizes = Sizes(u, A)
    y, starts = empty_outputs(u, delta, A, B, C, D)
    if y.numel() == 0:
        return y, starts
    u, delta, A, B, C = _laid_out(u, delta, A, B, C)
    with torch.cuda.device_of(u):
        _scan_chunks(starts, delta, u, B, A, sizes, reverse=False)
        triton_kernels.outputs_kernel[(sizes.programs,)](
            y.transpose(1, 2), starts, u, delta, A, B, C, A if D is None else D.contiguous(), *sizes.numbers,
            HAS_D=D is not None, **sizes.blocks,
        )  # fmt: skip
    return y, starts


def launch_backward(
    grad_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:func:`backward` by the kernels, which may fail to compile."""
    if u.numel() == 0:
        return tuple(grad.zero_() for grad in empty_gradients(grad_y, u, delta, A, B, C, D, starts))
    sizes, of_A, of_B, of_C = Sizes(u, A), A.dtype, B.dtype, C.dtype
    grad_u, grad_delta = _empty_channels_last(u), _empty_channels_last(delta)
    u, delta, A, B, C = _laid_out(u, delta, A, B, C)
    grad_y = grad_y.transpose(1, 2).contiguous()  # (N, L, E)
    laters, by_A, by_D = torch.empty_like(starts), torch.empty_like(starts), starts.new_empty(starts.shape[:3])
    by_B, by_C = (starts.new_empty((sizes.channel_blocks, *B.shape)) for _ in range(2))
    programs = min(PROGRAMS, sizes.programs)
    scratch = starts.new_empty((programs, CHUNK // TILE, sizes.blocks["BE"], sizes.blocks["BS"]))
    with torch.cuda.device_of(u):
        _scan_chunks(laters, delta, grad_y, C, A, sizes, reverse=True)
        for first in range(0, sizes.programs, programs):
            triton_kernels.gradients_kernel[(min(programs, sizes.programs - first),)](
                grad_u.transpose(1, 2), grad_delta.transpose(1, 2), by_A, by_B, by_C, by_D, scratch,
                grad_y, starts, laters, u, delta, A, B, C, A if D is None else D.contiguous(),
                *sizes.numbers, sizes.cases, first, HAS_D=D is not None, **sizes.blocks,
            )  # fmt: skip
    return (
        grad_u,
        grad_delta,
        by_A.sum((0, 1)).to(of_A),
        by_B.sum(0).to(of_B).transpose(1, 2),  # (N, L, S) to (N, S, L)
        by_C.sum(0).to(of_C).transpose(1, 2),
        starts.new_empty(0) if D is None else by_D.sum((0, 1)).to(D.dtype),
    )


def empty_outputs(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tensors of the shapes, dtypes and strides that ``forward`` returns."""
    chunks = -(-u.shape[2] // CHUNK)
    return _empty_channels_last(u), u.new_empty((u.shape[0], chunks, *A.shape), dtype=torch.float32)


def empty_gradients(
    grad_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tensors of the shapes, dtypes and strides that ``backward`` returns."""
    u, delta, B, C = (_empty_channels_last(t) for t in (u, delta, B, C))
    return u, delta, A.new_empty(A.shape), B, C, starts.new_empty(0) if D is None else D.new_empty(D.shape)


def _forward_by_reference(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None
) -> tuple[Tensor, Tensor]:
    y, starts = empty_outputs(u, delta, A, B, C, D)
    wide, *others = (t.float() for t in (u, delta, A, B, C))
    result, _ = reference.forward(wide, *others)
    y.copy_(result if D is None else result + D.float()[:, None] * wide)  # (E, 1) * (N, E, L)
    return y, starts.zero_()


def _backward_by_reference(
    grad_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_y, *wide = (t.float() for t in (grad_y, u, delta, A, B, C))
    _, blocks = reference.forward(*wide)
    by_u, *by_others = reference.backward(grad_y, *wide, blocks)
    if D is not None:
        by_u = by_u + D.float()[:, None] * grad_y
        by_others.append((grad_y * wide[0]).sum((0, 2)))
    gradients = empty_gradients(grad_y, u, delta, A, B, C, D, starts)
    for gradient, result in zip(gradients, (by_u, *by_others), strict=False):  # that of D has no elements without D
        gradient.copy_(result)
    return gradients


def _variant(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> Hashable:
    """What decides which kernels are compiled. B and C are converted before."""
    sizes = Sizes(u, A)
    return u.dtype, delta.dtype, A.dtype, None if D is None else D.dtype, sizes.blocks["BE"], sizes.blocks["BS"]


class Sizes:
    """The sizes that the kernels are launched with."""

    def __init__(self, u: Tensor, A: Tensor) -> None:
        self.cases, channels, length = u.shape
        states = triton.next_power_of_2(A.shape[1])
        block = min(CHANNELS, max(1, STATES // states), triton.next_power_of_2(channels))
        self.chunks, self.channel_blocks = triton.cdiv(length, CHUNK), triton.cdiv(channels, block)
        self.programs = self.cases * self.chunks * self.channel_blocks
        self.numbers = (length, channels, A.shape[1], self.chunks, self.channel_blocks)
        self.blocks: dict[str, Any] = {"CHUNK": CHUNK, "BT": TILE, "BE": block, "BS": states, "num_warps": 1}


def _scan_chunks(
    starts: Tensor, delta: Tensor, left: Tensor, right: Tensor, A: Tensor, sizes: Sizes, reverse: bool
) -> None:
    """Fill ``starts`` with the states before all chunks; in reversed time with the gradients after them."""
    ends, times = torch.empty_like(starts), starts.new_empty(starts.shape[:3])
    triton_kernels.ends_kernel[(sizes.programs,)](
        ends, times, delta, left, right, A, *sizes.numbers, REVERSE=reverse, **sizes.blocks
    )
    blocks = triton.cdiv(A.numel(), ELEMENTS)
    triton_kernels.starts_kernel[(sizes.cases * blocks,)](
        starts, ends, times, A, *A.shape, sizes.chunks, blocks,
        REVERSE=reverse, BC=CHUNKS, BM=ELEMENTS, num_warps=1,
    )  # fmt: skip


def _laid_out(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, ...]:
    """The tensors as the kernels read them: (N, L, E), (N, L, E), (E, S), and twice (N, L, S) in float32."""
    return (
        *(t.transpose(1, 2).contiguous() for t in (u, delta)),
        A.contiguous(),
        *(t.transpose(1, 2).to(torch.float32).contiguous() for t in (B, C)),
    )


def _empty_channels_last(t: Tensor) -> Tensor:
    """(N, X, L) with the strides of (N, L, X), as the kernels write it."""
    return t.new_empty((t.shape[0], t.shape[2], t.shape[1])).transpose(1, 2)
