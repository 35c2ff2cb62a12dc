"""The Mamba block: a selective scan between two projections, in one or several orders of the same sequence.

Gu and Dao, arXiv:2312.00752, figure 3 and section 3.4: the input is projected to E = expansion * C channels and to a
gate of the same size. The channels pass a causal depthwise convolution, SiLU and the scan, are multiplied by SiLU of
the gate and projected back to C channels. Sizes (state 16, expansion 2, convolution width 4, rank of the step sizes
C / 16) and initialisation (A = -1 .. -S, steps from 0.001 to 0.1, D = 1) are those of that paper and its section 3.6.

Several orders share both projections and the gate, as in SegMamba's tri-orientated scan (Xing et al., arXiv:2401.13560,
section 2.2). Each has its own convolution, coefficients and scan; the results are summed.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_dtc.architectures.selective_scan import selective_scan
from nnunet_dtc.errors import NnunetDtcError

ORDERS = ("forward", "backward", "slices")
STEP_RANGE = (0.001, 0.1)


def reorder(x: Tensor, order: str, slices: int = 1) -> Tensor:
    """Reorder the steps of a sequence.

    "forward" keeps the order and "backward" reverses it. "slices" visits all slices at one position before the next
    position, so that neighbours in the sequence are neighbours across slices.

    Args:
        x (Tensor[N, E, L]): the sequence.
        order: one of ORDERS.
        slices: size of the first of the axes that L was flattened from.

    Returns:
        Tensor[N, E, L]
    """
    if order == "backward":
        return x.flip(-1)
    if order == "slices":
        return x.unflatten(2, (slices, -1)).transpose(2, 3).flatten(2)  # (N, E, slices, rest) to (N, E, rest, slices)
    return x


def restore(x: Tensor, order: str, slices: int = 1) -> Tensor:
    """Undo :func:`reorder`."""
    if order == "backward":
        return x.flip(-1)
    if order == "slices":
        return x.unflatten(2, (-1, slices)).transpose(2, 3).flatten(2)  # (N, E, rest, slices) to (N, E, slices, rest)
    return x


class SelectiveSSM(nn.Module):
    """The part of the Mamba block for one order: causal depthwise convolution, SiLU and selective scan.

    Args:
        channels: E, the channels of input and output.
        rank: rank of the projection to step sizes.
        state: S, the states per channel.
        width: size of the convolution, which sees the present step and earlier ones.
    """

    def __init__(self, channels: int, rank: int, state: int = 16, width: int = 4) -> None:
        super().__init__()
        self.rank, self.state = rank, state
        self.conv = nn.Conv1d(channels, channels, width, padding=width - 1, groups=channels)
        self.coefficients = nn.Linear(channels, rank + 2 * state, bias=False)
        self.step = nn.Linear(rank, channels)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(channels, 1))  # (E, S)
        self.D = nn.Parameter(torch.ones(channels))
        nn.init.uniform_(self.step.weight, -(rank**-0.5), rank**-0.5)
        low, high = (math.log(step) for step in STEP_RANGE)
        steps = torch.exp(low + (high - low) * torch.rand(channels))
        with torch.no_grad():
            self.step.bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # inverse of softplus

    def forward(self, x: Tensor) -> Tensor:
        """(N, E, L) to (N, E, L)."""
        x = F.silu(self.conv(x)[..., : x.shape[2]])  # without the padding at the end: step t sees t - width + 1 .. t
        step, into, out = self.coefficients(x.transpose(1, 2)).split([self.rank, self.state, self.state], dim=-1)
        # (N, E, L); contiguous, since torch.compile takes the backward of softplus for contiguous in any case
        delta = F.softplus(_wide(self.step(step)).transpose(1, 2).contiguous())
        return selective_scan(
            x,
            delta,
            -torch.exp(_wide(self.A_log)),
            into.transpose(1, 2),  # (N, S, L)
            out.transpose(1, 2),
            self.D,
        )


class Mamba(nn.Module):
    """The Mamba block for sequences in one or several orders.

    Args:
        channels: C, the channels of input and output.
        orders: some of "forward", "backward", "slices" (:func:`reorder`), each with its own scan.
        state: S, the states per channel.
        expansion: E / C.
        width: size of the convolution.

    Raises:
        NnunetDtcError: there is no order, or an unknown one.
    """

    def __init__(
        self,
        channels: int,
        orders: Sequence[str] = ("forward",),
        *,
        state: int = 16,
        expansion: int = 2,
        width: int = 4,
    ) -> None:
        super().__init__()
        self.orders = tuple(orders)
        if not self.orders or not set(self.orders) <= set(ORDERS):
            raise NnunetDtcError(f"orders must be some of {', '.join(ORDERS)}, got {self.orders}")
        inner, rank = expansion * channels, math.ceil(channels / 16)
        self.project_in = nn.Linear(channels, 2 * inner, bias=False)
        self.scans = nn.ModuleList(SelectiveSSM(inner, rank, state, width) for _ in self.orders)
        self.project_out = nn.Linear(inner, channels, bias=False)

    def forward(self, x: Tensor, slices: int = 1) -> Tensor:
        """(N, L, C) to (N, L, C); ``slices`` is the size of the first of the axes that L was flattened from."""
        x, gate = self.project_in(x).transpose(1, 2).chunk(2, dim=1)  # (N, E, L) each
        y = sum(
            restore(scan(reorder(x, order, slices)), order, slices)
            for order, scan in zip(self.orders, self.scans, strict=True)
        )
        return self.project_out((y * F.silu(gate)).transpose(1, 2))


def _wide(t: Tensor) -> Tensor:
    """At least float32, also under autocast."""
    return t.to(torch.promote_types(t.dtype, torch.float32))
