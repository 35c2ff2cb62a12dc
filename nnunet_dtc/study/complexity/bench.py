"""One trainer on one device, ready to do real training steps and forward passes on random data.

It is nnU-Net's trainer itself: its ``initialize`` (network, torch.compile on CUDA unless ``nnUNet_compile=f``,
optimizer, loss) and its ``train_step`` (autocast and gradient scaling on CUDA, gradient clipping, the step), so that a
trainer's own optimizer or loss is measured, too. What a training does beside that (data loading, augmentation,
validation) is not.
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
from torch._dynamo import OptimizedModule

from nnunet_dtc.ops.wrappers import unwrap
from nnunet_dtc.plugin.environment import environment
from nnunet_dtc.plugin.planned_networks import describe_error
from nnunet_dtc.study.complexity.planned import ComplexityError, PlannedTraining

__all__ = ["Bench", "nnunet_settings"]

WARM_UP = 3  # steps at least: compilation, choice of algorithms, the optimizer's state
WARM_UP_LIMIT = 20  # with gradient scaling the first steps are skipped until the scale fits
SEED = 0


class Bench:
    """A trainer with a batch of random data.

    Args:
        trainer: its class.
        training: plans and sizes.
        device: of ``check_device``.

    Raises:
        ComplexityError: the trainer cannot be set up; here and in the methods also where a step or a forward pass
            fails, out of memory for example.
    """

    def __init__(self, trainer: type[nnUNetTrainer], training: PlannedTraining, device: torch.device) -> None:
        self.name = trainer.__name__
        self.device = device
        self._scratch = contextlib.ExitStack()
        try:
            with self._explained("set up"):
                self._trainer = self._initialized(trainer, training)
                self._batch = _random_batch(self._trainer, training)
        except BaseException:
            self.close()
            raise
        self._forward: nn.Module | None = None
        self._patch: torch.Tensor | None = None

    def _initialized(self, trainer: type[nnUNetTrainer], training: PlannedTraining) -> nnUNetTrainer:
        """In folders of its own, which are gone in the end: a trainer makes folders and looks at preprocessed data."""
        scratch = Path(self._scratch.enter_context(tempfile.TemporaryDirectory(prefix="nnunet_dtc_complexity_")))
        folders = {"nnUNet_results": scratch / "results", "nnUNet_preprocessed": scratch / "preprocessed"}
        plans = training.manager
        data = plans.get_configuration(training.configuration).data_identifier
        data_folder = folders["nnUNet_preprocessed"] / plans.dataset_name / data
        data_folder.mkdir(parents=True)
        (data_folder / "case.b2nd").touch()  # by the ending the trainer chooses the reader of its data
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
        """Whether the training runs through torch.compile."""
        return isinstance(self._trainer.network, OptimizedModule)

    def step(self) -> float:
        """One training step; returns the loss."""
        with self._explained("train"):
            return float(self._trainer.train_step(self._batch)["loss"])

    def timed_step(self) -> tuple[float, float]:
        """Seconds of one training step, and its loss; the batch starts in the memory of the host.

        On CUDA an untimed step comes before, with an emptied cache: the steps of several trainers in turn would
        otherwise have to give each other's memory back.
        """
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            self.step()
        return self._timed(self.step)

    def timed_inference(self) -> float:
        """Seconds of one forward pass of one patch that is on the device already."""
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
        """Steps until everything is in place that later steps find there."""
        for done in range(1, WARM_UP_LIMIT + 1):
            self.step()
            if done >= WARM_UP and self._trainer.optimizer.state:
                break

    def start_inference(self) -> None:
        """From now on ``infer``: the network as nnU-Net's predictor runs it, and one forward pass to warm up.

        That is without deep supervision, and through torch.compile only where ``nnUNet_compile`` asks for it.
        """
        with self._explained("predict"):
            self._trainer.set_deep_supervision_enabled(False)
            network = unwrap(self._trainer.network)
            if os.environ.get("nnUNet_compile", "").lower() in ("true", "1", "t"):
                network = torch.compile(network)
            self._forward = network.eval()
            self._patch = self._batch["data"][:1].to(self.device)
        for _ in range(WARM_UP):
            self.infer()

    def infer(self) -> torch.Tensor:
        """The logits (1, classes, *patch) of one patch, without mirroring."""
        if self._forward is None:
            raise RuntimeError("start_inference comes before infer")
        with self._explained("predict"), torch.inference_mode(), _autocast(self.device):
            return self._forward(self._patch)

    def close(self) -> None:
        """Remove its files."""
        self._scratch.close()

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # any trainer's own code; most often out of memory
            raise ComplexityError(
                f"{self.name} cannot {what} on {self.device.type}: {describe_error(error)}"
            ) from error


def _random_batch(trainer: nnUNetTrainer, training: PlannedTraining) -> dict[str, Any]:
    """A batch as the trainer's data loader gives it: noise, and random labels through the trainer's own transforms."""
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
    segmentations = 2 if trainer.is_cascaded else 1  # of the reference, and of the first stage
    values = torch.tensor(labels.all_labels, dtype=torch.int16)
    cases = []
    for _ in range(training.batch_size):
        chosen = torch.randint(len(values), (segmentations, *size), generator=random)
        cases.append(transforms(image=torch.randn(images, *size, generator=random), segmentation=values[chosen]))
    data = torch.stack([case["image"] for case in cases])  # (N, C, *size)
    targets = [case["segmentation"] for case in cases]
    if isinstance(targets[0], list):  # one a level of deep supervision
        target: Any = [torch.stack(level) for level in zip(*targets, strict=True)]
    else:
        target = torch.stack(targets)
    if trainer.device.type == "cuda":  # as nnU-Net's loader does
        data = data.pin_memory()
        target = [level.pin_memory() for level in target] if isinstance(target, list) else target.pin_memory()
    return {"data": data, "target": target}


@contextlib.contextmanager
def nnunet_settings() -> Iterator[None]:
    """Of cuDNN, as ``nnUNetv2_train`` sets them."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = torch.cuda.is_available(), False
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def _synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _autocast(device: torch.device) -> contextlib.AbstractContextManager:
    return torch.autocast(device.type) if device.type == "cuda" else contextlib.nullcontext()
