"""What `speed.py` compares: networks as nnU-Net plans them, with and without DTC, and one training step of them.

Needs torch, and dynamic-network-architectures for the networks. A clone of nnunet_dtc is enough.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import clone  # noqa: F401 (makes nnunet_dtc importable)
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_dtc.ops.backends import BACKENDS, use_backend
from nnunet_dtc.ops.deformation import Deformation
from nnunet_dtc.ops.dtc import is_dtc

CLASSES = 14  # BTCV's 13 organs and the background


@dataclass(frozen=True)
class Plan:
    """A network as nnU-Net plans it, with the sizes that are measured on a GPU and on a CPU.

    Attributes:
        strides, kernels: strides and kernel sizes of each stage, in tensor order.
        blocks: residual blocks of each encoder stage; None for a plain network.
        gpu, cpu: batch size and patch size there.
    """

    name: str
    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    gpu: tuple[int, tuple[int, ...]]
    cpu: tuple[int, tuple[int, ...]]
    blocks: tuple[int, ...] | None = None

    def size(self, device: str) -> tuple[int, tuple[int, ...]]:
        return self.gpu if device == "cuda" else self.cpu

    def build(self) -> nn.Module:
        from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
        from dynamic_network_architectures.initialization.weight_init import InitWeights_He

        axes, stages = len(self.strides[0]), len(self.features)
        arguments = {
            "input_channels": 1, "n_stages": stages, "features_per_stage": self.features,
            "conv_op": {2: nn.Conv2d, 3: nn.Conv3d}[axes], "kernel_sizes": self.kernels, "strides": self.strides,
            "num_classes": CLASSES, "conv_bias": True,
            "norm_op": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[axes],
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}, "deep_supervision": True,
        }  # fmt: skip
        if self.blocks is None:
            network = PlainConvUNet(n_conv_per_stage=2, n_conv_per_stage_decoder=2, **arguments)
        else:
            network = ResidualEncoderUNet(n_blocks_per_stage=self.blocks, n_conv_per_stage_decoder=1, **arguments)
        network.apply(InitWeights_He(1e-2))
        return network


UNEVEN = Plan(
    "uneven 3D (as BTCV)", (32, 64, 128, 256, 320, 320),
    ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
    ((1, 3, 3),) + ((3, 3, 3),) * 5,
    gpu=(2, (48, 192, 192)), cpu=(1, (32, 96, 96)),
)  # fmt: skip
PLANS = (
    UNEVEN,
    Plan(
        "isotropic 3D", (32, 64, 128, 256, 320), ((1, 1, 1),) + ((2, 2, 2),) * 4, ((3, 3, 3),) * 5,
        gpu=(2, (128, 128, 128)), cpu=(1, (48, 48, 48)),
    ),
    Plan(
        "2D", (32, 64, 128, 256, 512, 512, 512), ((1, 1),) + ((2, 2),) * 6, ((3, 3),) * 7,
        gpu=(12, (512, 512)), cpu=(2, (256, 256)),
    ),
    Plan(
        "residual encoder 3D", UNEVEN.features, UNEVEN.strides, UNEVEN.kernels,
        gpu=(2, (48, 192, 192)), cpu=(1, (24, 64, 64)), blocks=(1, 3, 4, 6, 6, 6),
    ),
)  # fmt: skip


def parts_forward(block: nn.Module, x: Tensor) -> Tensor:
    """A DTC block as one builds it from torch's parts: three convolutions, ``grid_sample`` and a sum."""
    convolution, transposed = (nn.Conv2d, nn.ConvTranspose2d) if block.axes == 2 else (nn.Conv3d, nn.ConvTranspose3d)
    branch = parts_upsample(
        convolution.forward(block.value, x), transposed.forward(block.coords, x), block.stride, block.receptive_field
    )
    return block.base(x) + branch


def parts_upsample(value: Tensor, coords: Tensor, stride: tuple[int, ...], receptive_field: float) -> Tensor:
    """The deformable branch from torch's parts."""
    axes, grid, deformation = value.ndim - 2, [], Deformation(receptive_field)
    for axis, (size, step) in enumerate(zip(value.shape[2:], stride, strict=True)):
        offset, weight = deformation.activations(coords, axes, axis, torch.float32)
        centres = (2 * torch.arange(size * step, device=coords.device) + 1) / (size * step) - 1
        shape = [-1 if a == axis else 1 for a in range(axes)]
        grid.append(2 * deformation.scale(size) / size * offset * weight + centres.view(shape))
    samples = F.grid_sample(
        value.float(), torch.stack(grid[::-1], -1), mode="bilinear", padding_mode="border", align_corners=False
    )
    return samples.to(value.dtype)


def contestants(device: str) -> list[str]:
    """ "vanilla", "parts" and the backends that can be used on the device."""
    usable = [name for name, backend in BACKENDS.items() if backend.takes(device) and backend.why_not() is None]
    return ["vanilla", "parts", *usable]


@contextlib.contextmanager
def as_contestant(name: str) -> Iterator[None]:
    """Compute DTC by that contestant's backend inside the ``with``."""
    with use_backend(name) if name in BACKENDS else contextlib.nullcontext():
        yield


class Contestant:
    """One network on one device, ready for what is measured.

    Args:
        name: of ``contestants``.
        plan, device: what and where.
        dtype: dtype of the convolutions; half precision is by autocast, as in nnU-Net, float16 with gradient scaling.
        compiled: whether through torch.compile, as in nnU-Net's training on CUDA.
        receptive_field: receptive field of the DTC blocks.
    """

    def __init__(
        self, name: str, plan: Plan, device: str, dtype: torch.dtype, compiled: bool, receptive_field: float = 2.0
    ) -> None:
        torch.manual_seed(0)
        self.name, self.device, self.dtype = name, device, dtype
        network = plan.build()
        if name != "vanilla":
            from nnunet_dtc.architectures import with_dtc

            network = with_dtc(network, receptive_field)
            if name == "parts":
                for block in filter(is_dtc, network.modules()):
                    block.forward = parts_forward.__get__(block)
        batch, patch = plan.size(device)
        self.network = network.to(device)
        self.training = torch.compile(self.network) if compiled else self.network
        self.optimizer = torch.optim.SGD(network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
        self.scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
        self.x = torch.randn(batch, 1, *patch, device=device)
        self.patch = self.x[:1].clone()
        self.target: list[Tensor] = []

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)

    def step(self) -> None:
        """A training step as nnU-Net's: forward, Dice and cross entropy at every resolution, backward, clip, SGD."""
        self._mode(True)
        with as_contestant(self.name):
            self.optimizer.zero_grad(set_to_none=True)
            with self.autocast():
                outputs = self.training(self.x)
                if not self.target:
                    self.target = [torch.randint(CLASSES, (len(o), *o.shape[2:]), device=self.device) for o in outputs]
                loss = sum(
                    dice_and_cross_entropy(output, target) / 2**level
                    for level, (output, target) in enumerate(zip(outputs, self.target, strict=True))
                )
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), 12)
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def forward(self) -> None:
        """The forward pass of training alone, with what it saves for the backward pass."""
        self._mode(True)
        with as_contestant(self.name), self.autocast():
            self.training(self.x)

    def infer(self) -> None:
        """One patch as nnU-Net's predictor does it: without gradients, without torch.compile."""
        self._mode(False)
        with as_contestant(self.name), torch.inference_mode(), self.autocast():
            self.network(self.patch)

    def _mode(self, training: bool) -> None:
        self.network.train(training)
        self.network.decoder.deep_supervision = training


def dice_and_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """nnU-Net's loss: (N, K, *S) logits against (N, *S) classes, averaged over cases and classes but the background."""
    logits = logits.float()
    probabilities = logits.softmax(1)
    one_hot = torch.zeros_like(probabilities, dtype=torch.bool).scatter_(1, target[:, None], True)
    axes = tuple(range(2, logits.ndim))
    overlap = (probabilities * one_hot).sum(axes)[:, 1:]
    total = (probabilities.sum(axes) + one_hot.sum(axes))[:, 1:]
    return F.cross_entropy(logits, target) - ((2 * overlap + 1e-5) / (total + 1e-5)).mean()


class Operator:
    """The deformable branch alone, forward and backward, added to a base."""

    def __init__(
        self, name: str, batch: int, channels: int, size: tuple[int, ...], stride: tuple[int, ...],
        receptive_field: float, device: str, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        torch.manual_seed(0)
        self.name, self.stride, self.receptive_field = name, stride, receptive_field
        out = [extent * step for extent, step in zip(size, stride, strict=True)]
        make: Callable[..., Tensor] = lambda *shape: torch.randn(*shape, device=device).to(dtype).requires_grad_()  # noqa: E731
        self.base, self.coords = make(batch, channels, *out), make(batch, 2 * len(size), *out)
        self.value = make(batch, channels, *size)
        if name == "numba":  # as the block's value head lays it out
            self.value = self.value.detach().movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_()
        self.upstream = torch.randn_like(self.base)

    def step(self) -> None:
        from nnunet_dtc import deformable_upsample

        arguments = self.value, self.coords, self.stride, self.receptive_field
        with as_contestant(self.name):
            if self.name == "parts":
                result = self.base + parts_upsample(*arguments)
            else:
                result = deformable_upsample(*arguments, base=self.base)
            torch.autograd.grad(result, [self.base, self.value, self.coords], self.upstream)
