"""The 2D U-Net of the paper's tables 1 and 4 to 7, with a choice of upsamplings.

Ronneberger et al., *U-Net*, MICCAI 2015, in today's usual form: 3x3 convolutions with padding and without bias, each
followed by batch normalisation and ReLU; 64, 128, 256, 512 and 1024 channels; max pooling. Transposed convolutions
halve the channels. Other upsamplings keep them, so that with one the deepest stage and the decoder's stages return half
as many channels: with bilinear interpolation, 3 input channels and 1 class the network has 17,262,977 parameters, as
the U-Net of table 7 (65.85 MiB of float32).

Inputs whose sizes are not divisible by 16 are padded with zeros, and the logits are cropped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_dtc.architectures.padding import check_padded, pad_to, padded_size
from nnunet_dtc.architectures.settings import read_settings
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.ops.deformation import Offset, Weight
from nnunet_dtc.ops.dtc import DTC2d
from nnunet_dtc.upsamplers import upsampler_class
from nnunet_dtc.upsamplers.base import upsample_in_decoder

WIDTH = 64
STAGES = 5
REDUCTION = 2 ** (STAGES - 1)


class UNet(nn.Module):
    """(N, input_channels, H, W) to logits (N, classes, H, W).

    The state dict has ``encoder.*``, ``upsamplings.*``, ``decoder.*`` and ``head.*``. There is no deep supervision.

    Args:
        input_channels: channels of the images.
        classes: channels of the logits.
        upsampler: None for transposed convolutions, or a name in ``nnunet_dtc.upsamplers.UPSAMPLERS``. The upsampler
            has no 1x1 convolution, because the number of channels does not change.
        receptive_field: None without DTC, otherwise RF of the DTC blocks around the upsamplings.
        offset, weight: variant of the DTC blocks, see :class:`nnunet_dtc.DTC2d`.
        width: channels of the first stage; each following stage has twice as many.

    Raises:
        NnunetDtcError: there is no such upsampler, the width is not even, or an argument of DTC is out of range.
        PatchSizeError: in ``forward`` in training, if batch normalisation has one value per channel.

    Example:
        >>> network = UNet(1, 3, "DySample", receptive_field=10, width=4).eval()
        >>> network(torch.zeros(1, 1, 20, 33)).shape
        torch.Size([1, 3, 20, 33])
    """

    def __init__(
        self,
        input_channels: int,
        classes: int,
        upsampler: str | None = None,
        receptive_field: float | None = None,
        *,
        offset: Offset = "tanh",
        weight: Weight = "sigmoid",
        width: int = WIDTH,
    ) -> None:
        super().__init__()
        if isinstance(width, bool) or not isinstance(width, int) or width < 2 or width % 2:
            raise NnunetDtcError(f"width must be a positive even number, got {width=}")
        widths = [width * 2**stage for stage in range(STAGES)]
        divisor = 1 if upsampler is None else 2
        encoder = [_double_convolution(input_channels, width, width)]
        for stage in range(1, STAGES):
            out = widths[stage] // (divisor if stage == STAGES - 1 else 1)
            encoder.append(_double_convolution(widths[stage - 1], out, out))
        self.encoder = nn.ModuleList(encoder)

        self.upsamplings, self.decoder = nn.ModuleList(), nn.ModuleList()
        for stage in range(STAGES - 2, -1, -1):
            deeper, skip = widths[stage + 1] // divisor, widths[stage]
            if upsampler is None:
                upsampling: nn.Module = nn.ConvTranspose2d(deeper, skip, 2, 2)
            else:
                upsampling = upsampler_class(upsampler, 2)(deeper, skip, 2, projection=False)
            if receptive_field is not None:
                upsampling = DTC2d(deeper, skip, 2, receptive_field, upsampling, offset=offset, weight=weight)
            self.upsamplings.append(upsampling)
            self.decoder.append(_double_convolution(2 * skip, skip, skip // (divisor if stage else 1)))
        self.head = nn.Conv2d(width, classes, 1)

    def size_inside(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size to which an input of this size is padded."""
        return padded_size(size, REDUCTION)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            check_patch(x.shape[2:], x.shape[0])
        x, place = pad_to(x, self.size_inside(x.shape[2:]))
        skips = []
        for stage, convolutions in enumerate(self.encoder):
            x = convolutions(F.max_pool2d(x, 2) if stage else x)
            skips.append(x)
        for upsampling, convolutions, skip in zip(self.upsamplings, self.decoder, skips[-2::-1], strict=True):
            x = upsample_in_decoder(upsampling, x, skip)
            x = convolutions(torch.cat((skip, x), dim=1))
        return self.head(x)[place]


def _double_convolution(inputs: int, middle: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, middle, 3, padding=1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(inplace=True),
        nn.Conv2d(middle, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def check_patch(patch_size: Sequence[int], batch_size: int) -> None:
    """Refuse a training batch that leaves batch normalisation with one value per channel in the deepest map.

    Args:
        patch_size: voxels per axis.
        batch_size: cases of a batch.

    Raises:
        PatchSizeError: there is one value per channel.
    """
    check_padded("the paper's U-Net", patch_size, REDUCTION, "batch", batch_size)


def planned_width(configuration: Mapping[str, Any]) -> int:
    """The width in ``architecture.nnunet_dtc.UNet.width`` of a configuration of the plans; 64 if there is none.

    Args:
        configuration: one configuration of nnU-Net's plans (``ConfigurationManager.configuration``).

    Raises:
        NnunetDtcError: there are other settings, or the width is not a positive integer.
    """
    return read_settings(configuration, "UNet", {"width": WIDTH}).get("width", WIDTH)
