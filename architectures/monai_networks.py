"""MONAI's UNETR and SwinUNETR V2, and the names of their decoders' upsamplings.

UNETR: Hatamizadeh et al., WACV 2022, arXiv:2103.10504. SwinUNETR V2: He et al., MICCAI 2023,
doi:10.1007/978-3-031-43901-8_40, MONAI's ``SwinUNETR(use_v2=True)``. The default sizes are those of the papers; for
SwinUNETR the papers use feature size 48, MONAI's default is 24. MONAI is only imported when a network is built.
"""

from collections.abc import Sequence
from importlib import metadata
from types import ModuleType
from typing import Any

from packaging.version import Version
from torch import nn

from nnunet_dtc.architectures.paper_network import PaperNetwork

MONAI_AT_LEAST = "1.6"
UNETR_REDUCTION = 16  # the size of a token
SWIN_UNETR_REDUCTION = 32


def monai_nets() -> ModuleType:
    """Import ``monai.networks.nets``.

    Raises:
        ImportError: MONAI is missing or older than 1.6. The message says what to install.
    """
    install = 'pip install "nnunet-dtc[monai]"'
    try:
        found = metadata.version("monai")
    except metadata.PackageNotFoundError:
        raise ImportError(f"UNETR and SwinUNETR V2 need MONAI {MONAI_AT_LEAST} or later: {install}") from None
    if Version(found).release < Version(MONAI_AT_LEAST).release:
        raise ImportError(f"UNETR and SwinUNETR V2 need MONAI {MONAI_AT_LEAST} or later, found {found}: {install}")
    from monai.networks import nets

    return nets


def unetr(
    input_channels: int,
    classes: int,
    image_size: Sequence[int],
    *,
    feature_size: int = 16,
    hidden_size: int = 768,
    mlp_size: int = 3072,
    heads: int = 12,
) -> nn.Module:
    """Build MONAI's UNETR for 2D or 3D images of one size: (N, C, S) to logits (N, classes, S).

    Args:
        input_channels: channels of the images.
        classes: channels of the logits.
        image_size: voxels per axis, each a multiple of 16. The position embedding has an entry for each token of 16
            voxels per axis.
        feature_size: channels at full resolution.
        hidden_size, mlp_size, heads: sizes of the 12 transformer blocks.
    """
    network = monai_nets().UNETR(
        input_channels,
        classes,
        tuple(image_size),
        feature_size=feature_size,
        hidden_size=hidden_size,
        mlp_dim=mlp_size,
        num_heads=heads,
        spatial_dims=len(image_size),
    )
    for block in network.vit.blocks:
        unused = getattr(block, "norm_cross_attn", None)  # never called without cross attention
        if unused is not None:
            unused.requires_grad_(False)  # DistributedDataParallel would wait for its gradient
    return network


def unetr_upsamplings(network: nn.Module, skip_projections: bool = False) -> list[str]:
    """The names of the transposed convolutions of UNETR's decoder, deepest first.

    Args:
        network: the network.
        skip_projections: whether to add those that upsample tokens to the sizes of the skip connections.
    """
    names = [f"decoder{level}.transp_conv.conv" for level in (5, 4, 3, 2)]
    if skip_projections:
        names += [
            name
            for name, module in network.named_modules()
            if name.startswith("encoder") and isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d)
        ]
    return names


def swin_unetr_v2(
    input_channels: int,
    classes: int,
    axes: int,
    *,
    feature_size: int = 48,
    depths: Sequence[int] = (2, 2, 2, 2),
    heads: Sequence[int] = (3, 6, 12, 24),
    window_size: int = 7,
    checkpointing: bool = False,
) -> nn.Module:
    """Build MONAI's SwinUNETR V2 for sizes divisible by 32: (N, C, S) to logits (N, classes, S).

    Args:
        input_channels: channels of the images.
        classes: channels of the logits.
        axes: 2 or 3.
        feature_size: channels at full resolution, a multiple of 12.
        depths, heads: transformer blocks and attention heads of the four stages.
        window_size: voxels per axis of an attention window.
        checkpointing: whether activations of the blocks are recomputed in the backward pass, which saves memory and
            takes more time.
    """
    return monai_nets().SwinUNETR(
        input_channels,
        classes,
        feature_size=feature_size,
        depths=tuple(depths),
        num_heads=tuple(heads),
        window_size=window_size,
        use_checkpoint=checkpointing,
        spatial_dims=axes,
        use_v2=True,
    )


def swin_unetr_upsamplings() -> list[str]:
    """The names of the transposed convolutions of SwinUNETR's decoder, deepest first."""
    return [f"decoder{level}.transp_conv.conv" for level in (5, 4, 3, 2, 1)]


def _build_unetr(
    input_channels: int, classes: int, size: Sequence[int], *, dtc_in_skips: bool, **sizes: Any
) -> nn.Module:
    return unetr(input_channels, classes, size, **sizes)  # dtc_in_skips only selects upsamplings


UNETR = PaperNetwork(
    build=_build_unetr,
    upsamplings=lambda network, dtc_in_skips, **_: unetr_upsamplings(network, dtc_in_skips),
    multiple=UNETR_REDUCTION,
    settings={"feature_size": 16, "hidden_size": 768, "mlp_size": 3072, "heads": 12, "dtc_in_skips": False},
    one_size=True,
)
SWIN_UNETR_V2 = PaperNetwork(
    build=lambda input_channels, classes, size, **sizes: swin_unetr_v2(input_channels, classes, len(size), **sizes),
    upsamplings=lambda network, **_: swin_unetr_upsamplings(),
    multiple=SWIN_UNETR_REDUCTION,
    settings={
        "feature_size": 48,
        "depths": (2, 2, 2, 2),
        "heads": (3, 6, 12, 24),
        "window_size": 7,
        "checkpointing": False,
    },
    normalization="instance",
)
