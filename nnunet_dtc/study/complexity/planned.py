"""Plans and the configuration for which trainers are counted and measured."""

import shlex
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_dtc.architectures.patch_size import PatchSizeError, check_planned
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.ops.checks import times
from nnunet_dtc.plugin import planned_networks
from nnunet_dtc.plugin.file_rules import MalformedFileError, read_json
from nnunet_dtc.plugin.model_folder import dataset_name, environment_folder
from nnunet_dtc.plugin.nnunet_files import check_dataset_json, check_plans
from nnunet_dtc.plugin.plans_safety import check_names
from nnunet_dtc.trainers.base import NamedTrainer

__all__ = ["ComplexityError", "PlannedTraining", "is_vanilla", "read_plans"]


class ComplexityError(NnunetDtcError):
    """Plans, a trainer or a device that nothing can be counted or measured with."""


@dataclass(frozen=True)
class PlannedTraining:
    """One configuration of plans, possibly with another patch or batch size. It can be stored as JSON.

    Attributes:
        plans: nnU-Net's plans, with the other sizes if there are any.
        dataset_json: content of dataset.json.
        configuration: name of the configuration.
        planned_patch_size: patch size of nnU-Net's plans.
        planned_batch_size: batch size of nnU-Net's plans.
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
        """Check plans, and set other sizes in a copy of them.

        Args:
            plans: content of the plans.
            dataset_json: content of dataset.json.
            configuration: name of the configuration, such as "3d_fullres".
            patch_size: voxels in the plans' order of axes; by default the planned size.
            batch_size: cases in a batch; by default the planned number.
            origin: the file of the plans, for messages.

        Raises:
            MalformedFileError: there is no such configuration, or the content is not as nnU-Net writes it.
            UnsafePlansError: the plans name a class that is not nnU-Net's.
            ComplexityError: the number of axes is not that of the planned patch, or a size is less than 1.
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
        own = plans["configurations"][configuration]  # takes precedence over what it inherits
        if patch_size is not None:
            own["patch_size"] = _checked_axes(patch_size, planned_patch_size)
        if batch_size is not None:
            if batch_size < 1:
                raise ComplexityError(f"a batch has at least one case, got {batch_size}")
            own["batch_size"] = batch_size
        return training

    @property
    def manager(self) -> PlansManager:
        """nnU-Net's manager for a copy of the plans, because it may modify them."""
        return PlansManager(deepcopy(self.plans))

    @property
    def patch_size(self) -> tuple[int, ...]:
        """Voxels of the patch in the plans' order of axes."""
        return tuple(map(int, self.manager.get_configuration(self.configuration).patch_size))

    @property
    def batch_size(self) -> int:
        """Cases in a batch."""
        return int(self.manager.get_configuration(self.configuration).batch_size)

    @property
    def changed(self) -> bool:
        """Whether the sizes differ from the planned ones."""
        return (self.patch_size, self.batch_size) != (self.planned_patch_size, self.planned_batch_size)

    @property
    def input_channels(self) -> int:
        """Channels of the network's input, with the segmentation of the previous stage in a cascade."""
        plans = self.manager
        return determine_num_input_channels(plans, plans.get_configuration(self.configuration), self.dataset_json)

    def build_network(self, trainer: type[nnUNetTrainer], deep_supervision: bool) -> nn.Module:
        """Build the network of a trainer on the CPU as nnU-Net does.

        Raises:
            NetworkError: the network cannot be built, or does not fit into memory.
        """
        return planned_networks.build_network(
            trainer, self.plans, self.configuration, self.dataset_json, deep_supervision, self.origin
        )

    def check_patch(self, trainer: type[nnUNetTrainer], trains: bool) -> None:
        """Check that the network of a trainer accepts the patch, as far as this is known before it is built.

        The strides of the planned network must divide its patches, while the paper's other networks pad theirs. For
        trainers of other packages nothing is known.

        Args:
            trainer: class of the trainer.
            trains: also check that the network can be trained with such batches.

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
        """The error for a patch that the network of a trainer does not accept."""
        return ComplexityError(f"{self.origin}: the network of {trainer.__name__} does not take this patch: {reason}")

    def why_not_planned(self) -> str:
        """Why nnU-Net's planned network does not accept the patch; empty if it does."""
        try:
            self._check_planned(None)
        except PatchSizeError as error:
            return str(error)
        return ""

    def _check_planned(self, batch_size: int | None) -> None:
        configuration = self.manager.get_configuration(self.configuration)
        check_planned(configuration.patch_size, configuration.network_arch_init_kwargs, batch_size)

    def check_memory(self) -> None:
        """Check that a batch fits into memory: images, labels, and the features of the first stage with their gradient.

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
    """Read plans and dataset.json, of a data set in ``nnUNet_preprocessed`` or from two files.

    Args:
        dataset: number or name of a data set; None to read files.
        plans_name: name of the plans of the data set.
        plans_file: file of plans; None to read those of a data set.
        dataset_json: file of the data set's description; by default dataset.json in the folder of ``plans_file``.

    Returns:
        The content of the plans, that of dataset.json, and the file of the plans.

    Raises:
        ComplexityError: neither or both of ``dataset`` and ``plans_file`` are given, or there are no such plans.
        ModelFolderError: there is no such data set, or ``nnUNet_preprocessed`` is not set.
        MalformedFileError: a file is missing or is not as nnU-Net writes it.
    """
    if (dataset is None) == (plans_file is None):
        raise ComplexityError("give either a data set or a file of plans")
    if plans_file is None:
        if dataset_json is not None:
            raise ComplexityError("a data set has its own dataset.json; give another one only with a file of plans")
        folder = environment_folder("nnUNet_preprocessed", f"the plans of data set {dataset}") / dataset_name(dataset)
        plans_file, dataset_json = folder / f"{plans_name}.json", folder / "dataset.json"
        if not plans_file.is_file():
            others = sorted(file.stem for file in folder.glob("*.json") if _is_plans(file))
            raise ComplexityError(
                f"there are no plans {plans_file}: run nnUNetv2_plan_and_preprocess -d {shlex.quote(dataset)}"
                + (f", or use the plans {' or '.join(others)}" if others else "")
            )
    plans = read_json(plans_file)
    check_plans(plans, plans_file)
    if dataset_json is None and not (dataset_json := plans_file.with_name("dataset.json")).is_file():
        raise ComplexityError(f"there is no dataset.json beside {plans_file}: copy it there, or give its file")
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
    """Whether a trainer builds the same network as nnU-Net's own trainer."""
    return trainer.build_network_architecture is nnUNetTrainer.build_network_architecture
