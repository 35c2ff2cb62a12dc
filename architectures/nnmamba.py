"""nnMamba: a residual convolutional network with Mamba across the whole map in each stage, and linear upsampling.

Gong et al., *nnMamba: 3D Biomedical Image Segmentation, Classification and Landmark Detection with State Space Model*,
arXiv:2402.03526: a stem of two convolutions (the first with stride 2), three stages of residual blocks (each halves the
map and doubles the channels), skip connections that are scaled channel by channel, and a decoder of trilinear
upsampling and two convolutions per step. Inside a stage, MICCSS (Mamba in convolution with channel-spatial siamese
learning) is added to the output of a block's convolutions::

    a = ReLU(BN(C1(x)))
    MICCSS(x) = ReLU(BN(C1(a + mean of f^-1(Mamba(f(a))) over four f)))

where f keeps the sequence, reverses it, reverses its channels, or both. All four share one Mamba.

This implementation follows the paper. Where the paper is silent, these choices are ours. They reproduce the number of
parameters of the published code (15.94 M with 2 classes; the authors' table gives 15.55 M, which we cannot explain):

- The blocks of a stage after the first one share one MICCSS; the first, which changes size and channels, has none.
- The skip connections are scaled by squeeze and excitation: mean over the map, C to C / 16 to C, sigmoid.
- The last convolution returns the logits. A normalisation and ReLU after it, as after all others, would forbid negative
  logits.
- Batch normalisation is used as published, so a batch should have at least two cases, as in nnU-Net's plans. The
  trainer refuses batches of one case that have one voxel in the deepest map.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_dtc.architectures.mamba import Mamba
from nnunet_dtc.architectures.paper_network import PaperNetwork
from nnunet_dtc.architectures.patch_size import check_divisible
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.upsamplers import upsampler_class

WIDTH = 32
BLOCKS = 3
REDUCTION = 16  # from the image to the deepest map, on every axis

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class MICCSS(nn.Module):
    """Mamba on a map and its reversals along the sequence and the channels, (N, C, ..) to (N, C, ..)."""

    def __init__(self, channels: int, axes: int) -> None:
        super().__init__()
        self.enter = self._block(channels, axes)
        self.mamba = Mamba(channels)
        self.leave = self._block(channels, axes)

    @staticmethod
    def _block(channels: int, axes: int) -> nn.Sequential:
        return nn.Sequential(_CONV[axes](channels, channels, 1, bias=False), _NORM[axes](channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        sequence = entered.flatten(2).transpose(1, 2)  # (N, L, C)
        reversals = [(), (1,), (2,), (1, 2)]
        mixed = self.mamba(torch.cat([_flip(sequence, axes) for axes in reversals]))  # (4 * N, L, C)
        mixed = mixed.unflatten(0, (4, -1)).unbind(0)  # chunk() would fix the batch size of an exported network
        mean = sum(_flip(part, axes) for part, axes in zip(mixed, reversals, strict=True)) / 4
        return self.leave(entered + mean.transpose(1, 2).reshape(entered.shape))  # (N, C, L) to (N, C, ..)


def _flip(x: Tensor, axes: Sequence[int]) -> Tensor:
    """``x.flip(axes)``, and ``x`` for no axes, which torch's TorchScript exporter cannot flip."""
    return x.flip(axes) if axes else x


class ResidualBlock(nn.Module):
    """Two convolutions of size 3 and a shortcut, with batch normalisation.

    The shortcut is the identity, or a convolution of size 1 if size or channels change.
    """

    def __init__(self, in_channels: int, out_channels: int, axes: int, stride: int = 1) -> None:
        super().__init__()
        conv, norm = _CONV[axes], _NORM[axes]
        self.convs = nn.Sequential(
            conv(in_channels, out_channels, 3, stride, padding=1, bias=False),
            norm(out_channels),
            nn.ReLU(inplace=True),
            conv(out_channels, out_channels, 3, padding=1, bias=False),
            norm(out_channels),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(conv(in_channels, out_channels, 1, stride, bias=False), norm(out_channels))

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        """Compute the block; ``beside`` (Tensor of the output's shape) is added before the last ReLU."""
        result = self.convs(x) + self.shortcut(x)
        return torch.relu(result if beside is None else result + beside)


class Stage(nn.Module):
    """Residual blocks, the first with stride 2. The stage's MICCSS is added in the others."""

    def __init__(self, in_channels: int, out_channels: int, axes: int, blocks: int) -> None:
        super().__init__()
        self.first = ResidualBlock(in_channels, out_channels, axes, stride=2)
        self.others = nn.ModuleList(ResidualBlock(out_channels, out_channels, axes) for _ in range(blocks - 1))
        self.miccss = MICCSS(out_channels, axes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.others:
            x = block(x, self.miccss(x))
        return x


class ChannelScale(nn.Module):
    """Squeeze and excitation, (N, C, ..) to (N, C, ..): factors in [0, 1] for each channel from the channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(1, channels // 16)
        self.factors = nn.Sequential(
            nn.Linear(channels, squeezed), nn.ReLU(), nn.Linear(squeezed, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        factors = self.factors(x.flatten(2).mean(2))  # (N, C)
        return x * factors.reshape(*factors.shape, *[1] * (x.ndim - 2))  # (N, C, 1, ..)


def _double_conv(in_channels: int, out_channels: int, axes: int, stride: int = 1) -> nn.Sequential:
    conv, norm = _CONV[axes], _NORM[axes]
    return nn.Sequential(
        conv(in_channels, out_channels, 3, stride, padding=1),
        norm(out_channels),
        nn.ReLU(inplace=True),
        conv(out_channels, out_channels, 3, padding=1),
        norm(out_channels),
        nn.ReLU(inplace=True),
    )


class NnMamba(nn.Module):
    """nnMamba for images and volumes: (N, C_in, S_1, ..) to logits (N, classes, S_1, ..), each S_a divisible by 16.

    Args:
        input_channels: channels of the images.
        classes: channels of the logits.
        axes: 2 or 3.
        width: channels of the stem; the stages have two, four and eight times as many.
        blocks: residual blocks per stage, at least two.

    Raises:
        NnunetDtcError: ``width`` or ``blocks`` is out of range; in ``forward``, a size is not divisible by 16.
    """

    def __init__(
        self, input_channels: int, classes: int, axes: int = 3, *, width: int = WIDTH, blocks: int = BLOCKS
    ) -> None:
        super().__init__()
        if width < 1 or blocks < 2:
            raise NnunetDtcError(
                f"nnMamba needs width >= 1 and at least two blocks per stage, got width={width}, blocks={blocks}"
            )
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.stem = _double_conv(input_channels, width, axes, stride=2)
        self.stages = nn.ModuleList(Stage(before, after, axes, blocks) for before, after in itertools.pairwise(widths))
        self.scales = nn.ModuleList(ChannelScale(channels) for channels in widths[:-1])
        self.decoder_upsamplings = nn.ModuleList(
            upsampler_class("Linear", axes)(channels, channels, 2, projection=False) for channels in widths[::-1]
        )
        self.decoder_convs = nn.ModuleList(
            _double_conv(below + here, here, axes) for below, here in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.logits = _double_conv(width, classes, axes)[:4]  # without the last normalisation and ReLU

    def forward(self, x: Tensor) -> Tensor:
        check_divisible(x.shape[2:], [REDUCTION] * (x.ndim - 2), "nnMamba")
        x = self.stem(x)
        skips = []
        for scale, stage in zip(self.scales, self.stages, strict=True):
            skips.append(scale(x))
            x = stage(x)
        *upsamplings, last = self.decoder_upsamplings
        for upsampling, convs in zip(upsamplings, self.decoder_convs, strict=True):
            x = convs(torch.cat([upsampling(x), skips.pop()], dim=1))
        return self.logits(last(x))

    def upsamplings(self) -> list[str]:
        """The names of the decoder's upsamplings, deepest first."""
        return [f"decoder_upsamplings.{index}" for index in range(len(self.decoder_upsamplings))]


NNMAMBA = PaperNetwork(
    build=lambda input_channels, classes, size, **sizes: NnMamba(input_channels, classes, len(size), **sizes),
    upsamplings=lambda network, **_: network.upsamplings(),
    multiple=REDUCTION,
    settings={"width": WIDTH, "blocks": BLOCKS},
    normalization="batch",
)
