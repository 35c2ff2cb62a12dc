"""STUDY.yaml: what is trained, and with which of nnU-Net's folders."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.plugin.file_rules import check_plain_name, shown
from nnunet_dtc.plugin.registration import EXT_VARIABLE, environment_value
from nnunet_dtc.study.workflow.study_targets import (
    command_file,
    comparison_kinds,
    fold_numbers,
    stamp_folder,
    study_folder,
    trainer_names,
)
from nnunet_dtc.trainers.names import is_class_name

__all__ = ["FOLDERS", "MARKER", "Study", "StudyError", "parse_study", "read_study", "study_yaml"]

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
"""nnU-Net's environment variables, and the keys of STUDY.yaml that replace them."""

MARKER = ".nnunet_dtc_study"
"""The empty file in the folder of a study by which that is known as one."""

_REQUIRED = ("dataset", "configuration", "trainers")
_DEFAULTS = {"plans": "nnUNetPlans", "repetitions": 1, "folds": "0-4", "test": False, "device": "cuda"}
_OPTIONAL = (*FOLDERS, "complexity", "nnunet_dtc")
_DEVICES = ("cuda", "cpu", "mps")
_MAX_REPETITIONS = 100


class StudyError(NnunetDtcError):
    """A study that cannot be run, and why."""


@dataclass(frozen=True)
class Study:
    """What STUDY.yaml says.

    Attributes:
        file: STUDY.yaml, absolute.
        dataset: number or name, as given.
        configuration, plans: nnU-Net's names.
        models: the trainers as given, without repetitions.
        repetitions: trainings of each model and fold.
        folds: their numbers, sorted.
        test: whether the held-out cases (imagesTs, labelsTs) are predicted.
        device: `cuda`, `cpu` or `mps`.
        raw, preprocessed, results: nnU-Net's folders.
        complexity: a JSON of `nnunet-dtc complexity`, for times and peak memory.
    """

    file: Path
    dataset: str
    configuration: str
    plans: str
    models: tuple[str, ...]
    repetitions: int
    folds: tuple[int, ...]
    test: bool
    device: str
    raw: Path
    preprocessed: Path
    results: Path
    complexity: Path | None

    @property
    def folder(self) -> Path:
        """The folder of the study's own files."""
        return study_folder(self.file)

    @property
    def stamps(self) -> Path:
        """The folder of the marks of finished jobs."""
        names = {"dataset": self.dataset, "plans": self.plans, "configuration": self.configuration}
        return self.folder / "done" / stamp_folder(names)

    @property
    def trainers(self) -> list[str]:
        """The names of all trainers, with those of repetitions."""
        return trainer_names(self.models, self.repetitions)

    @property
    def trainings(self) -> list[tuple[str, int]]:
        """Trainer and fold of each training."""
        return [(trainer, fold) for trainer in self.trainers for fold in self.folds]

    @property
    def kinds(self) -> list[str]:
        """The comparisons."""
        return comparison_kinds({"trainers": self.models, "test": self.test, "folds": self.folds})

    @property
    def environment(self) -> dict[str, str]:
        """The variables that nnU-Net's commands need."""
        folders = dict(zip(FOLDERS, map(str, (self.raw, self.preprocessed, self.results)), strict=True))
        return {**folders, EXT_VARIABLE: environment_value()}


def read_study(file: Path) -> Study:
    """Read STUDY.yaml and check what can be checked without looking at the data.

    Raises:
        StudyError: it is not there, no YAML, or a value is not what its key takes.
    """
    file = _absolute(file)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise StudyError(f"cannot read {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise StudyError(f"{file} is no YAML: {error}") from error
    return parse_study(file, text)


def parse_study(file: Path, text: str) -> Study:
    """Check the text of a STUDY.yaml, which need not be written yet.

    Raises:
        StudyError: it is no YAML, or a value is not what its key takes.
    """
    file = _absolute(file)
    try:
        return _study(file, yaml.load(text, _DecimalLoader))
    except (yaml.YAMLError, RecursionError) as error:
        raise StudyError(f"{file} is no YAML: {error}") from error
    except NnunetDtcError as error:
        raise StudyError(f"{file}: {error}") from error


def _absolute(file: Path) -> Path:
    if file.suffix not in (".yaml", ".yml"):
        raise StudyError(f"a study is a YAML file, STUDY.yaml, got {file}")
    return Path(os.path.abspath(file))


class _DecimalLoader(yaml.SafeLoader):
    """Reads decimal integers only: YAML 1.1 reads 017 as 15."""


def _decimal(loader: _DecimalLoader, node: yaml.ScalarNode) -> int:
    if not re.fullmatch(r"[-+]?(0|[1-9]\d*)", node.value):
        raise StudyError(
            f"{shown(node.value)} is not a decimal number in YAML, which reads 017 as 15: write 17, or use quotes"
        )
    return int(node.value)


_DecimalLoader.add_constructor("tag:yaml.org,2002:int", _decimal)


def study_yaml(content: Mapping[str, Any]) -> str:
    """The text of a STUDY.yaml."""
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)


def _study(file: Path, content: Any) -> Study:
    if not isinstance(content, dict):
        raise StudyError(f"it must be an object with {', '.join(_REQUIRED)}, got {shown(content)}")
    known = (*_REQUIRED, *_DEFAULTS, *_OPTIONAL)
    if unknown := [shown(key) for key in content if key not in known]:
        raise StudyError(f"there is no key {', '.join(unknown)}; the keys are {', '.join(known)}")
    if missing := [key for key in _REQUIRED if content.get(key) is None]:
        raise StudyError(f"it has no {', '.join(missing)}")
    values = _DEFAULTS | {key: value for key, value in content.items() if value is not None}
    _check_values(values)
    try:
        folds = tuple(fold_numbers(values["folds"]))
        if "nnunet_dtc" in values:
            command_file(file, values["nnunet_dtc"])
    except ValueError as error:
        raise StudyError(str(error)) from error
    return Study(
        file=file,
        dataset=str(values["dataset"]),
        configuration=values["configuration"],
        plans=values["plans"],
        models=tuple(values["trainers"]),
        repetitions=values["repetitions"],
        folds=folds,
        test=values["test"],
        device=values["device"],
        **{key: folder for key, folder in zip(("raw", "preprocessed", "results"), _folders(file, values), strict=True)},
        complexity=file.parent / os.path.expanduser(values["complexity"]) if "complexity" in values else None,
    )


def _check_values(values: Mapping[str, Any]) -> None:
    """Check the types of the values."""
    trainers = values["trainers"]
    if not isinstance(trainers, list) or not trainers:
        raise StudyError(f"trainers must be a list of names, got {shown(trainers)}")
    for key, names in (("configuration", [values["configuration"]]), ("plans", [values["plans"]])):
        check_plain_name(names[0], key)
    for name in trainers:
        check_plain_name(name, "a trainer")
        if not is_class_name(name):
            raise StudyError(f"a trainer must be the name of a class, got {shown(name)}")
    if not isinstance(values["dataset"], (int, str)) or isinstance(values["dataset"], bool):
        raise StudyError(f"dataset must be a number or a name, got {shown(values['dataset'])}")
    check_plain_name(str(values["dataset"]), "dataset")
    repetitions = values["repetitions"]
    if not isinstance(repetitions, int) or isinstance(repetitions, bool) or not 1 <= repetitions <= _MAX_REPETITIONS:
        raise StudyError(f"repetitions must be a number from 1 to {_MAX_REPETITIONS}, got {shown(repetitions)}")
    if not isinstance(values["test"], bool):
        raise StudyError(f"test must be true or false, got {shown(values['test'])}")
    if values["device"] not in _DEVICES:
        raise StudyError(f"device must be one of {', '.join(_DEVICES)}, got {shown(values['device'])}")
    for key in _OPTIONAL:
        if key in values and not isinstance(values[key], str):
            raise StudyError(f"{key} must be a path, got {shown(values[key])}")
    counts = Counter(trainer_names(trainers, repetitions))
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise StudyError(f"each trainer is given once, got {', '.join(twice)} twice")


def _folders(file: Path, values: Mapping[str, Any]) -> list[Path]:
    """nnU-Net's folders, from the file (relative to it) or else from the environment."""
    folders = []
    for variable in FOLDERS:
        value = os.path.expanduser(values.get(variable) or os.environ.get(variable, ""))
        if not value:
            raise StudyError(f"{variable} is not known: give it in the file, or export {variable}=/a/folder")
        folders.append(Path(os.path.abspath(file.parent / value if variable in values else value)))
    return folders
