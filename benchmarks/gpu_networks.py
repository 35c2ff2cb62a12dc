"""The networks of `gpu_report.py` and one training step of them; neither nnU-Net nor its networks are needed."""

from __future__ import annotations

import contextlib
import gc
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import clone  # noqa: F401 (makes nnunet_dtc importable)
import torch
from contestants import CLASSES, UNEVEN, Plan, dice_and_cross_entropy
from torch import Tensor, nn

from nnunet_dtc.ops.dtc import DTC3d
from nnunet_dtc.upsamplers import upsampler_class

TINY = replace(UNEVEN, features=(4, 8, 8), strides=UNEVEN.strides[:3], kernels=UNEVEN.kernels[:3])

TINY_MAMBAS = {
    "NnMamba": {"width": 4, "blocks": 2},
    "SegMamba": {"widths": (4, 4, 8, 8), "bottleneck": 8, "depths": (1, 1, 1, 1)},
}


@dataclass(frozen=True)
class Variant:
    """An upsampling.

    Attributes:
        upsampler: None for transposed convolutions.
        receptive_field: None without DTC.
    """

    upsampler: str | None = None
    receptive_field: float | None = None

    @property
    def name(self) -> str:
        if self.is_vanilla:
            return "vanilla"
        return f"{self.upsampler or ''}DTC, RF {self.receptive_field:g}"

    @property
    def is_vanilla(self) -> bool:
        return self == Variant()

    def upsampling(self, inputs: int, outputs: int, stride: tuple[int, ...]) -> nn.Module:
        """A module from (N, inputs, S) to (N, outputs, S * stride), in 3D."""
        if self.upsampler is None:
            base: nn.Module = nn.ConvTranspose3d(inputs, outputs, stride, stride)
        else:
            base = upsampler_class(self.upsampler, 3)(inputs, outputs, stride)
        return base if self.receptive_field is None else DTC3d(inputs, outputs, stride, self.receptive_field, base)


class PlainUNet(nn.Module):
    """The layers of nnU-Net's plain 3D U-Net with deep supervision, for a plan; (N, 1, S) to a list of logits."""

    def __init__(self, plan: Plan, variant: Variant) -> None:
        super().__init__()
        channels = (1, *plan.features)
        stages = range(len(plan.features))
        self.encoder = nn.ModuleList(
            convolutions(channels[stage], channels[stage + 1], plan.kernels[stage], plan.strides[stage])
            for stage in stages
        )
        self.upsamplings, self.decoder, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for stage in reversed(stages[:-1]):
            deeper, skip = plan.features[stage + 1], plan.features[stage]
            self.upsamplings.append(variant.upsampling(deeper, skip, plan.strides[stage + 1]))
            self.decoder.append(convolutions(2 * skip, skip, plan.kernels[stage], (1, 1, 1)))
            self.heads.append(nn.Conv3d(skip, CLASSES, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        logits = []
        for upsampling, stage, head, skip in zip(
            self.upsamplings, self.decoder, self.heads, skips[-2::-1], strict=True
        ):
            x = stage(torch.cat((upsampling(x), skip), 1))
            logits.append(head(x))
        return logits[::-1]  # the finest first


def convolutions(inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels, step in ((inputs, tuple(stride)), (outputs, (1, 1, 1))):
        padding = tuple(size // 2 for size in kernel)
        layers += [nn.Conv3d(channels, outputs, tuple(kernel), step, padding)]
        layers += [nn.InstanceNorm3d(outputs, affine=True), nn.LeakyReLU(inplace=True)]
    return nn.Sequential(*layers)


def unet_3d(variant: Variant, quick: bool) -> tuple[nn.Module, tuple[int, ...]]:
    plan = TINY if quick else UNEVEN
    return PlainUNet(plan, variant), (1, 1, 2, 8, 8) if quick else (2, 1, 48, 192, 192)


def unet_2d(variant: Variant, quick: bool) -> tuple[nn.Module, tuple[int, ...]]:
    UNet = importlib.import_module("nnunet_dtc.architectures.unet").UNet
    network = UNet(1, CLASSES, variant.upsampler, variant.receptive_field, width=8 if quick else 64)
    return network, (2, 1, 32, 32) if quick else (12, 1, 256, 256)


def mamba(name: str) -> Callable[[Variant, bool], tuple[nn.Module, tuple[int, ...]]]:
    def build(variant: Variant, quick: bool) -> tuple[nn.Module, tuple[int, ...]]:
        networks = importlib.import_module("nnunet_dtc.architectures.networks")
        patch = (16, 16, 32) if quick else (48, 96, 96)
        dtc = None if variant.receptive_field is None else {"receptive_field": variant.receptive_field}
        network = networks.build_network(name, 1, CLASSES, patch, TINY_MAMBAS[name] if quick else None, dtc=dtc)
        return network, (1 if quick else 2, 1, *patch)

    return build


BUILDERS = {
    "3D U-Net as planned for BTCV": unet_3d,
    "the paper's 2D U-Net": unet_2d,
    "SegMamba": mamba("SegMamba"),
    "NnMamba": mamba("NnMamba"),
}
U_NETS = (Variant(), Variant(None, 2.0), Variant(None, 10.0), Variant("DySample", 2.0))
NETWORKS = {name: U_NETS if "U-Net" in name else U_NETS[:2] for name in BUILDERS}


def measure(
    name: str,
    variant: Variant,
    device: torch.device,
    quick: bool,
    compiled: bool,
    ms: Callable[[Callable[[], object]], float],
) -> dict[str, float | None]:
    """Seconds of the first step, milliseconds of a later one, and on CUDA its peak memory in MiB.

    A step is forward, Dice and cross entropy at every resolution, backward, clipping and SGD; on CUDA under float16
    autocast with gradient scaling.
    """
    torch.manual_seed(0)
    torch.compiler.reset()
    gc.collect()  # the network before
    network, shape = BUILDERS[name](variant, quick)
    network = network.to(device).train()
    training = torch.compile(network, backend="aot_eager" if quick else "inductor") if compiled else network
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, momentum=0.99, nesterov=True)
    is_half = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=is_half)
    x, targets = torch.randn(shape, device=device), []

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.float16) if is_half else contextlib.nullcontext():
            outputs = training(x)
            outputs = outputs if isinstance(outputs, list) else [outputs]
            if not targets:
                targets.extend(torch.randint(CLASSES, (len(o), *o.shape[2:]), device=device) for o in outputs)
            pairs = enumerate(zip(outputs, targets, strict=True))
            loss = sum(dice_and_cross_entropy(output, target) / 2**level for level, (output, target) in pairs)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()

    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    first, peak = time.perf_counter() - start, None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    milliseconds = ms(step)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1024**2
    return {"first_step_s": first, "step_ms": milliseconds, "peak_mib": peak}
