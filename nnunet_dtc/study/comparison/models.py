"""Trained models in nnU-Net's folders: which trainings were given, and which of them are repetitions of one model.

A training is a folder `TRAINER__PLANS__CONFIGURATION` with `plans.json`, `dataset.json` and `fold_0`, `fold_1`, ...
Trainers whose names differ in `_rep<k>` alone are repetitions (see `nnunet_dtc.trainers.names`), and belong to one
model; any other trainer, nnU-Net's or a user's own, is a model of its own.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.plugin.nnunet_files import check_dataset_json, check_plans, is_printable, read_json, shown
from nnunet_dtc.study.evaluation.labels import LabelSet, labels_from_dataset_json
from nnunet_dtc.trainers.names import (
    DEFAULT_EPOCHS,
    PAPER2D,
    PAPER2D_EPOCHS,
    TrainerNameError,
    UnknownSuffixError,
    parse,
)

__all__ = [
    "ComparisonError",
    "Model",
    "Training",
    "dataset_name",
    "environment_folder",
    "find_trainings",
    "group_repeats",
    "model_names",
    "read_training",
]


class ComparisonError(NnunetDtcError):
    """What cannot be compared, and why."""


@dataclass(frozen=True, eq=False)
class Training:
    """One training: a trainer's folder with its folds.

    Attributes:
        folder: `.../TRAINER__PLANS__CONFIGURATION`, absolute.
        trainer, plans_name, configuration: the three parts of its name.
        plans, dataset_json: what the folder holds.
    """

    folder: Path
    trainer: str
    plans_name: str
    configuration: str
    plans: Mapping[str, Any]
    dataset_json: Mapping[str, Any]

    @property
    def dataset(self) -> str:
        """The name of the data set that it was planned for."""
        return self.plans["dataset_name"]

    @property
    def file_ending(self) -> str:
        return self.dataset_json["file_ending"]

    @cached_property
    def labels(self) -> LabelSet:
        return labels_from_dataset_json(self.folder / "dataset.json")[0]

    @property
    def family(self) -> str:
        """The trainer's name without `_rep<k>`."""
        spec = _spec(self.trainer)
        return self.trainer if spec is None else str(replace(spec, repetition=1))

    @property
    def same_step(self) -> tuple[str, ...]:
        """Trainers with the same training step: it does not know epochs, mirroring and repetitions."""
        spec = _spec(self.trainer)
        if spec is None:
            return (self.trainer,)
        paper2d = spec.optimizer == PAPER2D  # has its own number of epochs, and never mirrors
        epochs = PAPER2D_EPOCHS if paper2d else DEFAULT_EPOCHS
        plain = replace(spec, epochs=epochs, mirroring=not paper2d, repetition=1)
        return self.trainer, self.family, str(plain)

    @property
    def repetition(self) -> int:
        spec = _spec(self.trainer)
        return 1 if spec is None else spec.repetition

    def fold_folder(self, fold: int) -> Path:
        return self.folder / f"fold_{fold}"

    def folds_with(self, name: str) -> tuple[int, ...]:
        """The folds whose folders hold a file or folder of this name. `fold_all` is none: it has no held-out cases."""
        found = []
        for folder in self.folder.glob("fold_*"):
            if re.fullmatch(r"fold_(0|[1-9]\d*)", folder.name) and (folder / name).exists():
                found.append(int(folder.name.removeprefix("fold_")))
        return tuple(sorted(found))


@dataclass(frozen=True)
class Model:
    """What is compared: one training or its repetitions, in their order."""

    name: str
    trainings: tuple[Training, ...]

    @property
    def left_out(self) -> str:
        """The end of the trainer's name that `name` is without, since all models' have it."""
        full = full_name(self.trainings)
        return full.removeprefix(self.name) if full.startswith(self.name) else ""


def environment_folder(variable: str, needed_for: str) -> Path:
    """The folder that one of nnU-Net's environment variables names.

    Raises:
        ComparisonError: if it is not set or there is no such folder; says what it is needed for.
    """
    value = os.environ.get(variable)
    if not value:
        raise ComparisonError(f"{variable} is not set, which is needed for {needed_for}: export {variable}=/a/folder")
    if not Path(value).is_dir():
        raise ComparisonError(f"there is no folder {variable}={value}, which is needed for {needed_for}")
    return Path(value)


def dataset_name(dataset: str, results: Path) -> str:
    """The name of a data set with trained models, from its number (`17`) or its name (`Dataset017_BTCV`).

    Raises:
        ComparisonError: if there is none, or several of one number.
    """
    if dataset.isdecimal():
        found = sorted(folder.name for folder in results.glob(f"Dataset{int(dataset):03d}_*") if folder.is_dir())
        if len(found) == 1:
            return found[0]
        there = f"several: {', '.join(found)}; give the name" if found else f"none in {results}"
        raise ComparisonError(f"-d {dataset}: there must be one data set of this number, found {there}")
    if not (results / dataset).is_dir():
        raise ComparisonError(f"-d {dataset}: there is no such data set in {results}")
    return dataset


def find_trainings(dataset: str, configuration: str, trainers: Sequence[str], plans: str, results: Path) -> list[Path]:
    """Their folders in `nnUNet_results`.

    Raises:
        ComparisonError: for a trainer that was not trained; names those that were.
    """
    parent = results / dataset_name(dataset, results)
    folders = [parent / f"{trainer}__{plans}__{configuration}" for trainer in trainers]
    for trainer, folder in zip(trainers, folders, strict=True):
        if not folder.is_dir():
            suffix = f"__{plans}__{configuration}"
            there = sorted(path.name.removesuffix(suffix) for path in parent.glob(f"*{suffix}") if path.is_dir())
            others = sorted(path.name for path in parent.glob("*__*__*") if path.is_dir())
            found = f"trained there: {', '.join(there)}" if there else f"there are: {', '.join(others) or 'no models'}"
            if elsewhere := [name for name in others if name.startswith(f"{trainer}__")]:
                advice = f"it has {', '.join(elsewhere)}: say so by -p and -c"
            else:
                command = ["nnUNetv2_train", parent.name, configuration, "FOLD", "-tr", trainer, "-p", plans]
                advice = f"train it by {shlex.join(command)}"
            raise ComparisonError(
                f"{trainer} has no model of {plans} and {configuration} in {parent} ({found}); {advice}"
            )
    return folders


def read_training(folder: Path) -> Training:
    """What a model's folder says about itself.

    Raises:
        ComparisonError: if it is no folder of a trained model, with the reason.
        MalformedFileError: if its plans.json or dataset.json is not what nnU-Net writes.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise ComparisonError(f"there is no folder {folder}")
    parts = folder.name.split("__")
    if len(parts) != 3 or not all(parts):
        hint = "; give the folder that holds the folds" if folder.name.startswith("fold_") else ""
        raise ComparisonError(f"a model's folder is named TRAINER__PLANS__CONFIGURATION, got {folder}{hint}")
    if not is_printable(folder.name):
        raise ComparisonError(f"the name of a model's folder must be printable, got {shown(folder.name)}")
    files = [folder / name for name in ("plans.json", "dataset.json")]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ComparisonError(f"{folder} is no folder of a trained model: there is no {' and no '.join(missing)}")
    plans, dataset_json = map(read_json, files)
    check_plans(plans, files[0], parts[2])
    check_dataset_json(dataset_json, files[1])
    training = Training(folder, *parts, plans, dataset_json)
    _ = training.labels  # refuses labels that cannot be
    return training


def group_repeats(trainings: Sequence[Training]) -> tuple[Model, ...]:
    """The models of these trainings, in the order in which they were given; repetitions in theirs.

    Raises:
        ComparisonError: for a folder that was given twice, or fewer than two models.
    """
    folders = [training.folder.resolve() for training in trainings]
    if twice := sorted({str(folder) for folder in folders if folders.count(folder) > 1}):
        raise ComparisonError(f"every model is given once, got twice: {', '.join(twice)}")
    keys = [(training.family, training.plans_name, training.configuration) for training in trainings]
    exact = [(training.trainer, *key[1:]) for training, key in zip(trainings, keys, strict=True)]
    if len(set(exact)) < len(exact):  # one trainer's name in several places: these are not repetitions
        keys = [(*key, str(training.folder.parent)) for training, key in zip(trainings, keys, strict=True)]
    groups: dict[tuple, list[Training]] = {}
    for training, key in zip(trainings, keys, strict=True):
        groups.setdefault(key, []).append(training)
    members = [sorted(group, key=lambda training: training.repetition) for group in groups.values()]
    if len(members) < 2:
        given = ", ".join(training.trainer for training in trainings)
        raise ComparisonError(f"at least two models are needed (_rep<k> repeats one), got {given or 'none'}")
    return tuple(
        Model(name, tuple(group)) for name, group in zip(model_names(members, list(groups)), members, strict=True)
    )


def model_names(members: Sequence[Sequence[Training]], keys: Sequence[tuple]) -> list[str]:
    """The shortest names that tell them apart: the trainer's without what all end in, the folder's, the whole path."""
    first = [group[0] for group in members]
    trainers = [full_name(group) for group in members]
    whole = [
        f"{trainer}__{training.plans_name}__{training.configuration}"
        for trainer, training in zip(trainers, first, strict=True)
    ]
    paths = [str(training.folder) for training in first]
    names = next(names for names in (trainers, whole, paths) if len(set(names)) == len(keys))
    if names is trainers:
        end = common_end(trainers)
        return [name.removesuffix(end) for name in trainers]
    return names


def full_name(trainings: Sequence[Training]) -> str:
    """The trainer's name, of repetitions without `_rep<k>`."""
    return trainings[0].family if len(trainings) > 1 else trainings[0].trainer


def common_end(trainers: Sequence[str]) -> str:
    """The suffixes that different names of trainers all end in, such as `_Adam1en3_5epochs`; without the first part."""
    parts = [name.split("_") for name in trainers]
    shared = 0
    while len({tuple(words[len(words) - shared - 1 :]) for words in parts}) == 1 and all(
        shared + 1 < len(words) for words in parts
    ):
        shared += 1
    return "".join(f"_{word}" for word in parts[0][len(parts[0]) - shared :])


def _spec(trainer: str) -> Any:
    try:
        return parse(trainer)
    except (UnknownSuffixError, TrainerNameError):
        return None  # somebody's own
