"""What is measured: the trainers' networks for one configuration of one data set's plans."""

import json
import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

__all__ = ["ComplexityError", "PlannedTraining", "is_vanilla", "read_plans"]


class ComplexityError(ValueError):
    """Plans, a trainer or a device that nothing can be measured with, and the reason."""


@dataclass(frozen=True)
class PlannedTraining:
    """One configuration of plans, perhaps with another patch or batch size. Plain values: JSON can hold it.

    Attributes:
        plans: nnU-Net's, changed where another size was asked for.
        dataset_json: of the data set.
        configuration: its name.
        planned_patch_size, planned_batch_size: those that nnU-Net planned.
    """

    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str
    planned_patch_size: tuple[int, ...]
    planned_batch_size: int

    @classmethod
    def of(
        cls,
        plans: dict[str, Any],
        dataset_json: dict[str, Any],
        configuration: str,
        patch_size: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> "PlannedTraining":
        """Check plans, and put other sizes into a copy of them.

        Args:
            plans, dataset_json: what nnU-Net wrote.
            configuration: "3d_fullres", ...
            patch_size: voxels in the plans' order of axes, instead of the planned ones.
            batch_size: cases, instead of the planned ones.

        Raises:
            ComplexityError: there is no such configuration, or the network cannot take such a patch or batch.
        """
        plans = deepcopy(plans)
        if configuration not in plans.get("configurations", {}):
            there = ", ".join(plans.get("configurations", {})) or "none"
            raise ComplexityError(f"the plans have no configuration {configuration}; they have: {there}")
        try:
            planned = PlansManager(deepcopy(plans)).get_configuration(configuration)
        except (RuntimeError, ValueError, KeyError) as error:  # what it inherits from, or an old format
            raise ComplexityError(f"nnU-Net cannot read the configuration {configuration}: {error}") from error
        if missing := [key for key in ("patch_size", "batch_size") if key not in planned.configuration]:
            raise ComplexityError(f"the configuration {configuration} has no {' and no '.join(missing)}")
        training = cls(plans, dataset_json, configuration, tuple(map(int, planned.patch_size)), int(planned.batch_size))
        own = plans["configurations"][configuration]  # over what it may inherit
        if patch_size is not None:
            own["patch_size"] = _checked_patch(planned, patch_size)
        if batch_size is not None:
            if batch_size < 1:
                raise ComplexityError(f"a batch has at least one case, got {batch_size}")
            own["batch_size"] = batch_size
        return training

    @property
    def manager(self) -> PlansManager:
        """nnU-Net's view of a copy of the plans: it may change what it is given."""
        return PlansManager(deepcopy(self.plans))

    @property
    def patch_size(self) -> tuple[int, ...]:
        """Voxels of the patch that is measured, in the plans' order of axes."""
        return tuple(map(int, self.manager.get_configuration(self.configuration).patch_size))

    @property
    def batch_size(self) -> int:
        """Cases of the batch that is measured."""
        return int(self.manager.get_configuration(self.configuration).batch_size)

    @property
    def changed(self) -> bool:
        """Whether the sizes are other than the planned ones."""
        return (self.patch_size, self.batch_size) != (self.planned_patch_size, self.planned_batch_size)

    @property
    def input_channels(self) -> int:
        """Of the network's input: a cascade's second stage also has those of the first stage's segmentation."""
        plans = self.manager
        return determine_num_input_channels(plans, plans.get_configuration(self.configuration), self.dataset_json)

    def build_network(self, trainer: type[nnUNetTrainer], deep_supervision: bool) -> nn.Module:
        """The network that nnU-Net builds with this trainer, on the CPU.

        Raises:
            ComplexityError: it cannot be built.
        """
        plans = self.manager
        try:
            return trainer.build_network_architecture(
                plans,
                plans.get_configuration(self.configuration),
                self.input_channels,
                plans.get_label_manager(self.dataset_json).num_segmentation_heads,
                deep_supervision,
            )
        except Exception as error:  # any trainer's own code
            raise ComplexityError(f"{trainer.__name__} cannot build its network from these plans: {error}") from error


def _checked_patch(planned: ConfigurationManager, patch_size: Sequence[int]) -> list[int]:
    sizes = [int(size) for size in patch_size]
    if len(sizes) != len(planned.patch_size) or min(sizes) < 1:
        raise ComplexityError(
            f"the patch has {len(planned.patch_size)} axes (planned: {_by(planned.patch_size)}), each at least 1; "
            f"got {_by(sizes)}"
        )
    strides = planned.network_arch_init_kwargs.get("strides", [])
    steps = [prod(axis) for axis in zip(*strides, strict=True)] if strides else [1] * len(sizes)
    if any(size % step for size, step in zip(sizes, steps, strict=True)):
        raise ComplexityError(
            f"the patch must be divisible by the strides of the planned network, {_by(steps)}, got {_by(sizes)}"
        )
    return sizes


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def read_plans(
    dataset: str | None, plans_name: str = "nnUNetPlans", plans_file: Path | None = None,
    dataset_json: Path | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Plans and dataset.json: of a data set in ``nnUNet_preprocessed``, or two files.

    Args:
        dataset: its number or name; None with files.
        plans_name: of the plans in the data set's folder.
        plans_file: instead of a data set.
        dataset_json: beside ``plans_file`` where it is not given.

    Raises:
        ComplexityError: there is neither or both, a file is missing or no plans, or the folder is not known.
    """
    if (dataset is None) == (plans_file is None):
        raise ComplexityError("give either a data set (-d) or the file of plans (--plans)")
    if plans_file is None:
        if dataset_json is not None:
            raise ComplexityError("--dataset-json belongs to --plans; a data set (-d) has its own")
        root = os.environ.get("nnUNet_preprocessed")
        if not root:
            raise ComplexityError("nnUNet_preprocessed is not set: export it, or give the files by --plans")
        try:
            name = maybe_convert_to_dataset_name(dataset)
        except (RuntimeError, ValueError) as error:
            raise ComplexityError(str(error)) from error
        folder = Path(root) / name
        plans_file, dataset_json = folder / f"{plans_name}.json", folder / "dataset.json"
        if not plans_file.is_file():
            others = sorted(file.stem for file in folder.glob("*.json") if _is_plans(file))
            raise ComplexityError(
                f"there are no plans {plans_file}: run nnUNetv2_plan_and_preprocess -d {dataset}"
                + (f", or take one of {', '.join(others)} (-p)" if others else "")
            )
    plans = _load(plans_file, "configurations", "plans")
    if dataset_json is None and not (dataset_json := plans_file.with_name("dataset.json")).is_file():
        raise ComplexityError(f"there is no dataset.json beside {plans_file}: copy it there, or give --dataset-json")
    return plans, _load(dataset_json, "labels", "a dataset.json")


def _is_plans(file: Path) -> bool:
    try:
        return "configurations" in json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _load(file: Path, needed: str, kind: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ComplexityError(f"{file} cannot be read ({error})") from error
    if not isinstance(content, dict) or needed not in content:
        raise ComplexityError(f"{file} is not {kind} of nnU-Net: it has no {needed!r}")
    return content


def is_vanilla(trainer: type[nnUNetTrainer]) -> bool:
    """Whether its network is the one that nnU-Net's own trainer builds."""
    return trainer.build_network_architecture is nnUNetTrainer.build_network_architecture
