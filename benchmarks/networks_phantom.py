"""What do the paper's other networks cost on a CPU, and do they train? With and without DTC, on patches of the phantom.

    python benchmarks/networks_phantom.py                    all eight, 3D, small widths, two threads
    python benchmarks/networks_phantom.py --axes 2           the same on axial slices
    python benchmarks/networks_phantom.py --only SegMamba --iterations 1000 --threads 8
    python benchmarks/networks_phantom.py --published --iterations 5    at the published widths

Prints a table in Markdown. A step is nnU-Net's: forward, Dice and cross entropy, backward, clipping, optimizer; in
float32, without torch.compile. Its time is that of the fastest step, which other work on the machine disturbs least.
The loss is the mean of the first and of the last ten steps. Every network sees the same patches in the same order:
around random organ voxels of eight phantom cases. All have AdamW with one learning rate, that of --rate, since a few
hundred steps at their authors' own rates show little.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

from nnunet_dtc.architectures import NETWORKS, build_network
from nnunet_dtc.study.datasets.phantom import LABELS, PhantomCase, draw_case

SMALL = {
    "UNETR": {"feature_size": 8, "hidden_size": 48, "mlp_size": 96, "heads": 4},
    "SwinUNETRV2": {"feature_size": 12, "depths": (1, 1, 1, 1), "heads": (1, 2, 3, 4), "window_size": 3},
    "NnMamba": {"width": 8, "blocks": 2},
    "SegMamba": {"widths": (8, 12, 16, 20), "bottleneck": 24, "depths": (1, 1, 1, 1)},
}
RECEPTIVE_FIELD = {"UNETR": 2.0, "SwinUNETRV2": 4.0, "NnMamba": 1.0, "SegMamba": 10.0}  # of the paper
PATCH = {2: (48, 80), 3: (16, 40, 56)}
CASES, AVERAGED = 8, 10


class PhantomPatches:
    """Patches of phantom cases, each around a random voxel of a random organ.

    Args:
        cases: the phantoms.
        size: voxels per axis, (z, y, x), or (y, x) for axial slices.
        seed: seed of the patches.

    Raises:
        ValueError: a phantom is smaller than a patch.
    """

    def __init__(self, cases: Sequence[PhantomCase], size: Sequence[int], seed: int = 0) -> None:
        self.size = (1,) * (3 - len(size)) + tuple(size)
        self.axes = len(size)
        self.rng = np.random.default_rng(seed)
        self.cases = []
        for case in cases:
            if any(length > whole for length, whole in zip(self.size, case.image.shape, strict=True)):
                raise ValueError(f"a patch of {self.size} voxels does not fit a phantom of {case.image.shape}")
            foreground = case.image[case.labels > 0]
            image = np.clip(case.image, *np.percentile(foreground, (0.5, 99.5)))  # as nnU-Net normalises CTs
            image = ((image - foreground.mean()) / foreground.std()).astype(np.float32)
            places = [np.argwhere(case.labels == label) for label in range(1, len(LABELS))]
            self.cases.append((image, case.labels, places))

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Images and labels, (N, 1, *size) each; float32 and int64."""
        drawn = [self._one() for _ in range(count)]
        images, labels = (np.stack(arrays)[:, None] for arrays in zip(*drawn, strict=True))  # (N, 1, z, y, x)
        if self.axes == 2:
            images, labels = images[:, :, 0], labels[:, :, 0]  # (N, 1, y, x)
        return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))

    def _one(self) -> tuple[np.ndarray, np.ndarray]:
        image, labels, places = self.cases[self.rng.integers(len(self.cases))]
        voxels = places[self.rng.integers(len(places))]
        middle = voxels[self.rng.integers(len(voxels))]
        start = np.clip(middle - np.array(self.size) // 2, 0, np.array(image.shape) - self.size)
        place = tuple(slice(begin, begin + length) for begin, length in zip(start, self.size, strict=True))
        return image[place], labels[place]


def train(
    network: nn.Module, patches: PhantomPatches, iterations: int, batch: int, rate: float, bfloat16: bool = False
) -> tuple[list[float], list[float]]:
    """Train the network, with bfloat16 under autocast. Returns the loss and the seconds of every step."""
    loss_of = DC_and_CE_loss(
        {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    losses, seconds = [], []
    for _ in range(iterations):
        images, labels = patches.draw(batch)
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = loss_of(network(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    return losses, seconds


def build(name: str, size: Sequence[int], dtc: bool, published: bool = False) -> nn.Module:
    """One of NETWORKS for the phantom, small or with its published widths; its DTC blocks with the paper's RF."""
    torch.manual_seed(0)
    return build_network(
        name, 1, len(LABELS), size, {} if published else SMALL[name],
        dtc={"receptive_field": RECEPTIVE_FIELD[name]} if dtc else None,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", type=int, choices=(2, 3), default=3)
    parser.add_argument("--patch", type=int, nargs="+", help="default: 16 40 56, or 48 80 in 2D")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=tuple(NETWORKS), action="append")
    parser.add_argument("--published", action="store_true", help="published widths instead of the small ones")
    options = parser.parse_args()
    size = tuple(options.patch or PATCH[options.axes])
    if len(size) != options.axes:
        parser.error(f"--patch needs {options.axes} numbers with --axes {options.axes}, got {size}")
    if options.iterations < 1:
        parser.error(f"--iterations must be positive, got {options.iterations}")

    rng = np.random.default_rng(0)
    cases = [draw_case(rng) for _ in range(CASES)]
    torch.set_num_threads(options.threads)
    try:
        PhantomPatches(cases, size)
    except ValueError as error:
        parser.error(f"--patch: {error}")
    print(f"patch {' x '.join(map(str, size))}, batch {options.batch}, {options.iterations} steps, ", end="")
    print(f"AdamW {options.rate:g}, {options.threads} threads, torch {torch.__version__}\n")
    print("| network | parameters | ms per step | loss at the start | at the end |\n|---|--:|--:|--:|--:|")
    for name, dtc in product(options.only or NETWORKS, (False, True)):
        network = build(name, size, dtc, options.published)
        losses, seconds = train(network, PhantomPatches(cases, size), options.iterations, options.batch, options.rate)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        first, last = statistics.mean(losses[:AVERAGED]), statistics.mean(losses[-AVERAGED:])
        title = f"{name} + DTC, RF {RECEPTIVE_FIELD[name]:g}" if dtc else name
        milliseconds = 1000 * min(seconds)
        print(f"| {title} | {parameters:,} | {milliseconds:.0f} | {first:.3f} | {last:.3f} |", flush=True)


if __name__ == "__main__":
    main()
