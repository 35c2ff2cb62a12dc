"""One trainer on one device, ready for training steps and forward passes on random data.

The trainer is nnU-Net's own, with its ``initialize`` (network, torch.compile on CUDA unless ``nnUNet_compile=f``,
optimizer, loss) and its ``train_step`` (autocast and gradient scaling on CUDA, gradient clipping, optimizer step), so
that the optimizer and loss of a trainer are part of the measurement. Data loading, augmentation and validation are not.
"""

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_dtc.ops.wrappers import unwrap
from nnunet_dtc.plugin.environment import environment
from nnunet_dtc.plugin.planned_networks import describe_error
from nnunet_dtc.study.complexity.planned import ComplexityError, PlannedTraining
from nnunet_dtc.torch_internals import is_compiled

__all__ = ["Bench", "nnunet_settings"]

WARM_UP = 3  # minimum of steps for compilation, choice of algorithms and the optimizer's state
WARM_UP_LIMIT = 20  # gradient scaling skips the first steps until its scale fits
SEED = 0


class Bench:
    """A trainer with a batch of random data.

    Args:
        trainer: class of the trainer.
        training: plans and sizes.
        device: device for the network.

    Attributes:
        trainer: the initialized trainer.
        batch: the batch, "data" (N, C, *patch) and "target".

    Raises:
        ComplexityError: the trainer cannot be set up. The methods raise it if a step or a forward pass fails, for
            example out of memory.
    """

    def __init__(self, trainer: type[nnUNetTrainer], training: PlannedTraining, device: torch.device) -> None:
        self.name = trainer.__name__
        self.device = device
        self._scratch = contextlib.ExitStack()
        try:
            with self._explained("set up"):
                self.trainer = self._initialized(trainer, training)
                self.batch = _random_batch(self.trainer, training)
        except BaseException:
            self.close()
            raise
        self._forward: nn.Module | None = None
        self._patch: torch.Tensor | None = None

    def _initialized(self, trainer: type[nnUNetTrainer], training: PlannedTraining) -> nnUNetTrainer:
        """Set the trainer up in temporary folders, because it creates folders and inspects preprocessed data."""
        scratch = Path(self._scratch.enter_context(tempfile.TemporaryDirectory(prefix="nnunet_dtc_complexity_")))
        folders = {"nnUNet_results": scratch / "results", "nnUNet_preprocessed": scratch / "preprocessed"}
        plans = training.manager
        data = plans.get_configuration(training.configuration).data_identifier
        data_folder = folders["nnUNet_preprocessed"] / plans.dataset_name / data
        data_folder.mkdir(parents=True)
        (data_folder / "case.b2nd").touch()  # the trainer chooses its data reader by this ending
        variables = {name: str(folder) for name, folder in folders.items()} | {"nnUNet_wandb_enabled": "0"}
        with environment(**variables), contextlib.redirect_stdout(io.StringIO()):
            made = trainer(
                deepcopy(training.plans) | {"continue_training": False},
                training.configuration,
                0,
                deepcopy(training.dataset_json),
                device=self.device,
            )
            made.initialize()
        made.network.train()
        return made

    @property
    def compiles(self) -> bool:
        """Whether the network is compiled by torch.compile."""
        return is_compiled(self.trainer.network)

    def step(self) -> float:
        """Do one training step, and return the loss."""
        with self._explained("train"):
            return float(self.trainer.train_step(self.batch)["loss"])

    def timed_step(self) -> tuple[float, float]:
        """Seconds of one training step and its loss; the batch is in host memory at the start.

        On CUDA an untimed step with an emptied cache precedes it. The time would otherwise include the release of
        memory that other trainers have cached.
        """
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            self.step()
        return self._timed(self.step)

    def timed_inference(self) -> float:
        """Seconds of one forward pass of one patch that is already on the device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            self.infer()
        return self._timed(self.infer)[0]

    def _timed(self, call: Callable[[], Any]) -> tuple[float, Any]:
        _synchronize(self.device)
        start = time.perf_counter()
        result = call()
        _synchronize(self.device)
        return time.perf_counter() - start, result

    def warm_up(self) -> None:
        """Do training steps until compilation and the state of the optimizer are complete."""
        for done in range(1, WARM_UP_LIMIT + 1):
            self.step()
            if done >= WARM_UP and self.trainer.optimizer.state:
                break

    def start_inference(self) -> None:
        """Switch from training to inference, and warm up.

        As in nnU-Net's predictor, the network has no deep supervision and is compiled only if ``nnUNet_compile`` is
        set.
        """
        with self._explained("predict"):
            self.trainer.set_deep_supervision_enabled(False)
            network = unwrap(self.trainer.network)
            if os.environ.get("nnUNet_compile", "").lower() in ("true", "1", "t"):
                network = torch.compile(network)
            self._forward = network.eval()
            self._patch = self.batch["data"][:1].to(self.device)
        for _ in range(WARM_UP):
            self.infer()

    def infer(self) -> torch.Tensor:
        """The logits (1, classes, *patch) of one patch, without mirroring."""
        if self._forward is None:
            raise RuntimeError("call start_inference before infer")
        with self._explained("predict"), torch.inference_mode(), _autocast(self.device):
            return self._forward(self._patch)

    def close(self) -> None:
        """Remove the temporary files."""
        self._scratch.close()

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # from the code of any trainer, most often out of memory
            raise ComplexityError(
                f"{self.name} cannot {what} on {self.device.type}: {describe_error(error)}"
            ) from error


def _random_batch(trainer: nnUNetTrainer, training: PlannedTraining) -> dict[str, Any]:
    """A batch like that of the trainer's data loader: noise, and random labels after the trainer's transforms."""
    random = torch.Generator().manual_seed(SEED)
    labels = trainer.label_manager
    transforms = trainer.get_validation_transforms(
        trainer._get_deep_supervision_scales(),
        is_cascaded=trainer.is_cascaded,
        foreground_labels=labels.foreground_labels,
        regions=labels.foreground_regions if labels.has_regions else None,
        ignore_label=labels.ignore_label,
    )
    size = training.patch_size
    images = len(training.dataset_json.get("channel_names", training.dataset_json.get("modality", ())))
    segmentations = 2 if trainer.is_cascaded else 1  # of the reference, and in a cascade of the first stage
    values = torch.tensor(labels.all_labels, dtype=torch.int16)
    cases = []
    for _ in range(training.batch_size):
        chosen = torch.randint(len(values), (segmentations, *size), generator=random)
        cases.append(transforms(image=torch.randn(images, *size, generator=random), segmentation=values[chosen]))
    data = torch.stack([case["image"] for case in cases])  # (N, C, *size)
    targets = [case["segmentation"] for case in cases]
    if isinstance(targets[0], list):  # one per level of deep supervision
        target: Any = [torch.stack(level) for level in zip(*targets, strict=True)]
    else:
        target = torch.stack(targets)
    if trainer.device.type == "cuda":  # as in nnU-Net's data loader
        data = data.pin_memory()
        target = [level.pin_memory() for level in target] if isinstance(target, list) else target.pin_memory()
    return {"data": data, "target": target}


@contextlib.contextmanager
def nnunet_settings() -> Iterator[None]:
    """Set the flags of cuDNN as ``nnUNetv2_train`` does."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = torch.cuda.is_available(), False
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def _synchronize(device: torch.device) -> None:
    """Wait for all work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _autocast(device: torch.device) -> contextlib.AbstractContextManager:
    return torch.autocast(device.type) if device.type == "cuda" else contextlib.nullcontext()
