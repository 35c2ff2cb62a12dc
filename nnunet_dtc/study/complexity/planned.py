"""What is measured: the trainers' networks for one configuration of one data set's plans."""

import os
import shlex
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_dtc.architectures.patch_size import PatchSizeError, check_planned
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.ops.checks import times
from nnunet_dtc.plugin import planned_networks
from nnunet_dtc.plugin.nnunet_files import MalformedFileError, check_dataset_json, check_plans, read_json
from nnunet_dtc.plugin.plans_safety import check_names
from nnunet_dtc.trainers.base import NamedTrainer

__all__ = ["ComplexityError", "PlannedTraining", "is_vanilla", "read_plans"]


class ComplexityError(NnunetDtcError):
    """Plans, a trainer or a device that nothing can be measured with, and the reason."""


@dataclass(frozen=True)
class PlannedTraining:
    """One configuration of plans, perhaps with another patch or batch size. Plain values: JSON can hold it.

    Attributes:
        plans: nnU-Net's, changed where another size was asked for.
        dataset_json: of the data set.
        configuration: its name.
        planned_patch_size, planned_batch_size: those that nnU-Net planned.
        origin: the file of the plans, for messages.
    """

    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str
    planned_patch_size: tuple[int, ...]
    planned_batch_size: int
    origin: str = "the plans"

    @classmethod
    def of(
        cls,
        plans: dict[str, Any],
        dataset_json: dict[str, Any],
        configuration: str,
        patch_size: Sequence[int] | None = None,
        batch_size: int | None = None,
        origin: object = "the plans",
    ) -> "PlannedTraining":
        """Check plans, and put other sizes into a copy of them.

        Args:
            plans, dataset_json: what nnU-Net wrote.
            configuration: "3d_fullres", ...
            patch_size: voxels in the plans' order of axes, instead of the planned ones.
            batch_size: cases, instead of the planned ones.
            origin: the file of the plans, for messages.

        Raises:
            MalformedFileError: there is no such configuration, or something is not as nnU-Net writes it.
            UnsafePlansError: the plans name something else than nnU-Net's classes.
            ComplexityError: the patch has other axes than the planned one, or a size is less than 1.
        """
        plans = deepcopy(plans)
        check_plans(plans, origin, configuration)
        check_dataset_json(dataset_json, "dataset.json")
        check_names(plans, configuration, origin)
        planned = PlansManager(deepcopy(plans)).get_configuration(configuration)
        planned_patch_size = tuple(map(int, planned.patch_size))
        training = cls(
            plans, dataset_json, configuration, planned_patch_size, int(planned.batch_size), origin=str(origin)
        )
        own = plans["configurations"][configuration]  # over what it may inherit
        if patch_size is not None:
            own["patch_size"] = _checked_axes(patch_size, planned_patch_size)
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
            NetworkError: it cannot be built, or does not fit into the machine's memory.
        """
        return planned_networks.build_network(
            trainer, self.plans, self.configuration, self.dataset_json, deep_supervision, self.origin
        )

    def check_patch(self, trainer: type[nnUNetTrainer], trains: bool) -> None:
        """Refuse a patch that the network of this trainer does not take.

        The strides of the plans are those of the planned network: they must divide its patches, while the paper's other
        networks pad theirs. What the network of somebody else's trainer takes is not known before it is tried.

        Args:
            trainer: its class.
            trains: whether it must also be possible to train with such batches; else the network is only counted.

        Raises:
            ComplexityError: the strides do not divide the patch, or a normalisation has one value per channel.
        """
        try:
            if trains and issubclass(trainer, NamedTrainer):
                trainer.check_patch(self.manager.get_configuration(self.configuration))
            elif is_vanilla(trainer):
                self._check_planned(self.batch_size if trains else None)
        except PatchSizeError as error:
            raise self.patch_refused(trainer, str(error)) from error

    def patch_refused(self, trainer: type[nnUNetTrainer], reason: str) -> ComplexityError:
        """The error that names the plans, the trainer, and what is wrong with the patch."""
        return ComplexityError(f"{self.origin}: the network of {trainer.__name__} does not take this patch: {reason}")

    def why_not_planned(self) -> str:
        """What is wrong with the patch for the network that nnU-Net has planned; empty where it takes it."""
        try:
            self._check_planned(None)
        except PatchSizeError as error:
            return str(error)
        return ""

    def _check_planned(self, batch_size: int | None) -> None:
        configuration = self.manager.get_configuration(self.configuration)
        check_planned(configuration.patch_size, configuration.network_arch_init_kwargs, batch_size)

    def check_memory(self) -> None:
        """Refuse a batch that does not fit into the machine's memory: its images and labels, and in training on the
        CPU at least the features of the first stage with their gradient.

        Raises:
            NetworkError: it does not fit.
        """
        voxels = self.batch_size * prod(self.patch_size)
        features = self.manager.get_configuration(self.configuration).network_arch_init_kwargs.get("features_per_stage")
        first = next(iter(_listed(features)), None)
        values = self.input_channels + 2 * (first if isinstance(first, int) else 1)
        planned_networks.check_fits(
            4 * voxels * values,
            f"a training step of a batch of {self.batch_size} with patches of {times(self.patch_size)} voxels",
        )


def _checked_axes(patch_size: Sequence[int], planned: Sequence[int]) -> list[int]:
    sizes = [int(size) for size in patch_size]
    if len(sizes) != len(planned) or min(sizes) < 1:
        raise ComplexityError(
            f"the patch has {len(planned)} axes (planned: {times(planned)}), each at least 1; got {times(sizes)}"
        )
    return sizes


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def read_plans(
    dataset: str | None, plans_name: str = "nnUNetPlans", plans_file: Path | None = None,
    dataset_json: Path | None = None,
) -> tuple[dict[str, Any], dict[str, Any], Path]:  # fmt: skip
    """Plans and dataset.json: of a data set in ``nnUNet_preprocessed``, or two files.

    Args:
        dataset: its number or name; None with files.
        plans_name: of the plans in the data set's folder.
        plans_file: instead of a data set.
        dataset_json: beside ``plans_file`` where it is not given.

    Returns:
        The plans, dataset.json, and the file of the plans, for messages.

    Raises:
        ComplexityError: there is neither or both, or the folder is not known.
        MalformedFileError: a file is missing, or is not what nnU-Net writes.
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
                f"there are no plans {plans_file}: run nnUNetv2_plan_and_preprocess -d {shlex.quote(dataset)}"
                + (f", or take one of {', '.join(others)} (-p)" if others else "")
            )
    plans = read_json(plans_file)
    check_plans(plans, plans_file)
    if dataset_json is None and not (dataset_json := plans_file.with_name("dataset.json")).is_file():
        raise ComplexityError(f"there is no dataset.json beside {plans_file}: copy it there, or give --dataset-json")
    content = read_json(dataset_json)
    check_dataset_json(content, dataset_json)
    return plans, content, plans_file


def _is_plans(file: Path) -> bool:
    try:
        check_plans(read_json(file), file)
    except MalformedFileError:
        return False
    return True


def is_vanilla(trainer: type[nnUNetTrainer]) -> bool:
    """Whether its network is the one that nnU-Net's own trainer builds."""
    return trainer.build_network_architecture is nnUNetTrainer.build_network_architecture
