"""SegMamba: a U-shaped network whose encoder scans the whole map in three orders at every scale.

Xing et al., *SegMamba: Long-range Sequential Modeling Mamba For 3D Medical Image Segmentation*, MICCAI 2024,
arXiv:2401.13560, section 2 and figure 2: a stem (convolution 7, stride 2), four stages of tri-orientated spatial Mamba
blocks, feature-level uncertainty estimation and a residual block on every skip connection, and a decoder of transposed
convolutions and residual blocks. With z the map and LN a layer normalisation over channels::

    GSC(z) = z + C3(C3(z) * C1(z))                         gated spatial convolution
    ToM(z) = Mamba(z forward) + Mamba(z backward) + Mamba(z across slices)
    FUE(z) = z + z * (1 - u),  u = -m log m,  m = sigmoid(mean of z over channels)

    z = GSC(z);  z = z + ToM(LN(z));  z = z + MLP(LN(z))   a block

This implementation follows the paper. Where the paper is silent or contradicts its number of parameters (67.4 M), these
choices are ours:

- A stage has one GSC, ``depth`` times ToM, and one MLP (twice the channels, GELU), which reproduces the number of
  parameters; a GSC and an MLP in each of the two blocks of a stage would result in 79 M.
- The stem's convolution is dense. The paper calls it depthwise, which would need widths that are multiples of the
  image's channels.
- C3 and C1 are convolution, instance normalisation without parameters, and ReLU. An instance normalisation precedes
  every strided convolution between stages.
- The first skip connection is a residual block of the image itself, as in UNETR; the number of parameters fits this.
- In 2D a "slice" is a row: the third order follows the columns.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_dtc.architectures.mamba import ORDERS, Mamba
from nnunet_dtc.architectures.paper_network import PaperNetwork
from nnunet_dtc.architectures.patch_size import check_divisible
from nnunet_dtc.errors import NnunetDtcError

WIDTHS = (48, 96, 192, 384)
BOTTLENECK = 768
DEPTHS = (2, 2, 2, 2)
REDUCTION = 16  # from the image to the deepest map, on every axis

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def uncertainty_weighting(z: Tensor) -> Tensor:
    """FUE, (N, C, ..) to (N, C, ..): z times 2 - u, with the uncertainty u >= 0 from the mean over the channels."""
    mean = z.to(torch.promote_types(z.dtype, torch.float32)).mean(1, keepdim=True)  # (N, 1, ..)
    uncertainty = -torch.sigmoid(mean) * F.logsigmoid(mean)
    return z + z * (1 - uncertainty).to(z.dtype)


class GatedSpatialConvolution(nn.Module):
    """GSC: z + C3(C3(z) * C1(z)), (N, C, ..) to (N, C, ..)."""

    def __init__(self, channels: int, axes: int) -> None:
        super().__init__()
        self.features = self._block(channels, axes, 3)
        self.gate = self._block(channels, axes, 1)
        self.fuse = self._block(channels, axes, 3)

    @staticmethod
    def _block(channels: int, axes: int, kernel: int) -> nn.Sequential:
        return nn.Sequential(
            _CONV[axes](channels, channels, kernel, padding=kernel // 2), _NORM[axes](channels), nn.ReLU(inplace=True)
        )

    def forward(self, z: Tensor) -> Tensor:
        return z + self.fuse(self.features(z) * self.gate(z))


class TriOrientatedMamba(nn.Module):
    """z + ToM(LN(z)), (N, C, S_1, ..) to (N, C, S_1, ..): the map as a sequence, in three orders."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mamba = Mamba(channels, ORDERS)

    def forward(self, z: Tensor) -> Tensor:
        sequence = z.flatten(2).transpose(1, 2)  # (N, L, C)
        mixed = self.mamba(self.norm(sequence), slices=z.shape[2])
        return z + mixed.transpose(1, 2).reshape(z.shape)  # (N, C, L) to (N, C, S_1, ..)


class ChannelMLP(nn.Module):
    """z + MLP(LN(z)), (N, C, ..) to (N, C, ..), at each position separately."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, z: Tensor) -> Tensor:
        last = z.ndim - 1  # not -1, which torch's TorchScript exporter would write into ONNX
        return z + self.mlp(self.norm(z.movedim(1, last))).movedim(last, 1)  # (N, .., C) inside


class ResidualBlock(nn.Module):
    """Two convolutions of size 3 and a shortcut, with instance normalisation.

    The shortcut is the identity, or a convolution of size 1 if the channels change.
    """

    def __init__(self, in_channels: int, out_channels: int, axes: int) -> None:
        super().__init__()
        conv, norm = _CONV[axes], _NORM[axes]
        self.convs = nn.Sequential(
            conv(in_channels, out_channels, 3, padding=1, bias=False),
            norm(out_channels),
            nn.LeakyReLU(0.01, inplace=True),
            conv(out_channels, out_channels, 3, padding=1, bias=False),
            norm(out_channels),
        )
        self.shortcut = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Sequential(conv(in_channels, out_channels, 1, bias=False), norm(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.convs(x) + self.shortcut(x), 0.01)


class DecoderBlock(nn.Module):
    """Upsampling by 2, concatenation with the skip connection, residual block."""

    def __init__(self, in_channels: int, out_channels: int, axes: int) -> None:
        super().__init__()
        self.upsampling = _TRANSPOSED[axes](in_channels, out_channels, 2, 2, bias=False)
        self.block = ResidualBlock(2 * out_channels, out_channels, axes)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(torch.cat([self.upsampling(x), skip], dim=1))


class SegMamba(nn.Module):
    """SegMamba for images and volumes: (N, C_in, S_1, ..) to logits (N, classes, S_1, ..), each S_a divisible by 16.

    Args:
        input_channels, classes: channels of the image and of the logits.
        axes: 2 or 3.
        widths: channels of the four stages.
        bottleneck: channels of the deepest map behind its residual block.
        depths: how often each stage has ToM.

    Raises:
        NnunetDtcError: not four widths and four depths, or one that is not positive; in ``forward``, a size that is not
            divisible by 16.
    """

    def __init__(
        self,
        input_channels: int,
        classes: int,
        axes: int = 3,
        *,
        widths: Sequence[int] = WIDTHS,
        bottleneck: int = BOTTLENECK,
        depths: Sequence[int] = DEPTHS,
    ) -> None:
        super().__init__()
        widths, depths = tuple(widths), tuple(depths)
        if len(widths) != 4 or len(depths) != 4 or min(*widths, *depths, bottleneck) < 1:
            raise NnunetDtcError(
                "SegMamba has four stages, with positive widths and depths, "
                f"got widths={widths}, depths={depths}, bottleneck={bottleneck}"
            )
        conv = _CONV[axes]
        reductions = [conv(input_channels, widths[0], 7, 2, padding=3)]
        for before, after in itertools.pairwise(widths):
            reductions.append(nn.Sequential(_NORM[axes](before), conv(before, after, 2, 2)))
        self.stages = nn.ModuleList(
            nn.Sequential(
                reduction,
                GatedSpatialConvolution(width, axes),
                *(TriOrientatedMamba(width) for _ in range(depth)),
                ChannelMLP(width),
            )
            for reduction, width, depth in zip(reductions, widths, depths, strict=True)
        )
        channels = [*widths, bottleneck]  # of the skip connections, from the image down
        self.skips = nn.ModuleList(
            ResidualBlock(before, after, axes)
            for before, after in zip([input_channels, *widths], channels, strict=True)
        )
        self.decoder = nn.ModuleList(
            DecoderBlock(below, here, axes) for below, here in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.last = ResidualBlock(widths[0], widths[0], axes)
        self.logits = conv(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_divisible(x.shape[2:], [REDUCTION] * (x.ndim - 2), "SegMamba")
        skips, z = [self.skips[0](x)], x
        for stage, skip in zip(self.stages, self.skips[1:], strict=True):
            z = stage(z)
            skips.append(skip(uncertainty_weighting(z)))
        z = skips.pop()
        for block in self.decoder:
            z = block(z, skips.pop())
        return self.logits(self.last(z))

    def upsamplings(self) -> list[str]:
        """The names of the decoder's upsamplings, deepest first."""
        return [f"decoder.{index}.upsampling" for index in range(len(self.decoder))]


SEGMAMBA = PaperNetwork(
    build=lambda input_channels, classes, size, **sizes: SegMamba(input_channels, classes, len(size), **sizes),
    upsamplings=lambda network, **_: network.upsamplings(),
    multiple=REDUCTION,
    settings={"widths": WIDTHS, "bottleneck": BOTTLENECK, "depths": DEPTHS},
    normalization="instance",
)
