"""The trainings that are compared, from nnU-Net's folders, and which of them are repetitions of one model.

Trainers whose names differ in `_rep<k>` alone, of this package or of others, are repetitions and belong to one model.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.plugin.model_folder import ModelFolder, dataset_name, model_path
from nnunet_dtc.study.evaluation.labels import LabelSet, labels_from_dataset_json
from nnunet_dtc.trainers.names import (
    DEFAULT_EPOCHS,
    PAPER2D,
    PAPER2D_EPOCHS,
    TrainerNameError,
    UnknownSuffixError,
    parse,
    split_repetition,
)

__all__ = [
    "ComparisonError",
    "Model",
    "Training",
    "common_end",
    "find_trainings",
    "full_name",
    "group_repeats",
    "model_names",
    "read_training",
]


class ComparisonError(NnunetDtcError):
    """Models, files or options that cannot be compared; the message gives the reason."""


@dataclass(frozen=True, eq=False)
class Training(ModelFolder):
    """One training: the folder of a trained model, with its folds.

    Attributes:
        labels: the organs and the ignore label of its data set.
    """

    labels: LabelSet

    @property
    def file_ending(self) -> str:
        """The file ending of images, labels and predictions, such as ``.nii.gz``."""
        return self.dataset_json["file_ending"]

    @property
    def family(self) -> str:
        """The trainer's name without `_rep<k>`."""
        return split_repetition(self.trainer)[0]

    @property
    def same_step(self) -> tuple[str, ...]:
        """Trainers with the same training step, which does not depend on epochs, mirroring and repetition."""
        spec = _spec(self.trainer)
        if spec is None:
            return tuple(dict.fromkeys((self.trainer, self.family)))
        paper2d = spec.optimizer == PAPER2D  # has its own number of epochs, and never mirrors
        epochs = PAPER2D_EPOCHS if paper2d else DEFAULT_EPOCHS
        plain = replace(spec, epochs=epochs, mirroring=not paper2d, repetition=1)
        return self.trainer, self.family, str(plain)

    @property
    def repetition(self) -> int:
        """The number k of `_rep<k>`, 1 without it."""
        return split_repetition(self.trainer)[1]


@dataclass(frozen=True)
class Model:
    """One training or several repetitions of it, which are compared with other models.

    Attributes:
        name: as shown, see `model_names`.
        trainings: in the order of their repetitions.
    """

    name: str
    trainings: tuple[Training, ...]

    @property
    def left_out(self) -> str:
        """The end of the trainer's name that is left out of `name`, because the names of all models have it."""
        full = full_name(self.trainings)
        return full.removeprefix(self.name) if full.startswith(self.name) else ""


def find_trainings(dataset: str, configuration: str, trainers: Sequence[str], plans: str, results: Path) -> list[Path]:
    """The folders of trained models in ``nnUNet_results``.

    Args:
        dataset: the number or the name of the data set.
        configuration, trainers, plans: nnU-Net's names.
        results: the folder ``nnUNet_results``.

    Raises:
        ComparisonError: a trainer has no model there; the message lists those that have one.
        ModelFolderError: there is no such data set.
    """
    name = dataset_name(dataset)
    folders = [results / model_path(name, trainer, plans, configuration) for trainer in trainers]
    for trainer, folder in zip(trainers, folders, strict=True):
        if not folder.is_dir():
            suffix = f"__{plans}__{configuration}"
            others = sorted(path.name for path in folder.parent.glob("*__*__*") if path.is_dir())
            there = [name.removesuffix(suffix) for name in others if name.endswith(suffix)]
            found = f"trained there: {', '.join(there)}" if there else f"there are: {', '.join(others) or 'no models'}"
            if elsewhere := [name for name in others if name.startswith(f"{trainer}__")]:
                advice = f"it has {', '.join(elsewhere)}: give their plans and configuration"
            else:
                command = ["nnUNetv2_train", name, configuration, "FOLD", "-tr", trainer, "-p", plans]
                advice = f"train it by {shlex.join(command)}"
            raise ComparisonError(
                f"{trainer} has no model of {plans} and {configuration} in {folder.parent} ({found}); {advice}"
            )
    return folders


def read_training(path: Path) -> Training:
    """Read the folder of a trained model and check everything that a comparison needs of it.

    Raises:
        ModelFolderError: it is not the folder of a trained model, ``TRAINER__PLANS__CONFIGURATION``.
        MalformedFileError: its plans.json or dataset.json is not what nnU-Net writes.
        NnunetDtcError: the labels in dataset.json cannot be used.
    """
    folder = ModelFolder.read(path)
    folder.check_configuration()
    labels, _ = labels_from_dataset_json(folder.path / "dataset.json")
    return Training(folder.path, folder.plans, folder.dataset_json, labels)


def group_repeats(trainings: Sequence[Training]) -> tuple[Model, ...]:
    """The models of these trainings, in the order in which they were given; repetitions are sorted by their numbers.

    Raises:
        ComparisonError: a folder was given twice, or there are fewer than two models.
    """
    folders = [training.path.resolve() for training in trainings]
    if twice := sorted({str(folder) for folder in folders if folders.count(folder) > 1}):
        raise ComparisonError(f"every model must be given once, got twice: {', '.join(twice)}")
    keys = [(training.family, training.plans_name, training.configuration) for training in trainings]
    exact = [(training.trainer, *key[1:]) for training, key in zip(trainings, keys, strict=True)]
    if len(set(exact)) < len(exact):  # one trainer's name in several places: these are not repetitions
        keys = [(*key, str(training.path.parent)) for training, key in zip(trainings, keys, strict=True)]
    groups: dict[tuple, list[Training]] = {}
    for training, key in zip(trainings, keys, strict=True):
        groups.setdefault(key, []).append(training)
    members = [sorted(group, key=lambda training: training.repetition) for group in groups.values()]
    if len(members) < 2:
        given = ", ".join(training.trainer for training in trainings)
        raise ComparisonError(f"at least two models are needed (_rep<k> is a repetition of one), got {given or 'none'}")
    return tuple(
        Model(name, tuple(group)) for name, group in zip(model_names(members, list(groups)), members, strict=True)
    )


def model_names(members: Sequence[Sequence[Training]], keys: Sequence[tuple]) -> list[str]:
    """The shortest names that are unique: those of the trainers without their common end, of the folders, or the paths.

    Args:
        members: the trainings of each model.
        keys: what identifies each model.
    """
    first = [group[0] for group in members]
    trainers = [full_name(group) for group in members]
    whole = [
        f"{trainer}__{training.plans_name}__{training.configuration}"
        for trainer, training in zip(trainers, first, strict=True)
    ]
    paths = [str(training.path) for training in first]
    names = next(names for names in (trainers, whole, paths) if len(set(names)) == len(keys))
    if names is trainers:
        end = common_end(trainers)
        return [name.removesuffix(end) for name in trainers]
    return names


def full_name(trainings: Sequence[Training]) -> str:
    """The trainer's name, without `_rep<k>` if there are repetitions."""
    return trainings[0].family if len(trainings) > 1 else trainings[0].trainer


def common_end(trainers: Sequence[str]) -> str:
    """The suffixes that the names of all trainers end in, such as `_Adam1en3_5epochs`, without their first parts."""
    common = []
    for words in zip(*(reversed(name.split("_")[1:]) for name in trainers), strict=False):
        if len(set(words)) > 1:
            break
        common.append(f"_{words[0]}")
    return "".join(reversed(common))


def _spec(trainer: str) -> Any:
    try:
        return parse(trainer)
    except (UnknownSuffixError, TrainerNameError):
        return None  # a user's own trainer
