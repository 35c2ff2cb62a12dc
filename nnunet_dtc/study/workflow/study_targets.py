"""What a study consists of: its trainers, folds, comparisons and folder, from the content of STUDY.yaml.

Snakemake imports this file by itself, perhaps in an environment without nnunet_dtc: standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "command_file",
    "comparison_kinds",
    "fold_numbers",
    "prediction_kinds",
    "stamp_folder",
    "study_folder",
    "trainer_names",
]


def study_folder(file: str | Path) -> Path:
    """The folder of a study's own files: beside STUDY.yaml, named like it without the ending."""
    return Path(file).absolute().with_suffix("")


def stamp_folder(config: Mapping[str, Any]) -> str:
    """The name of the folder with the marks of finished jobs: another data set, plans or configuration has another.

    Example:
        >>> stamp_folder({"dataset": 17, "configuration": "3d_fullres"})
        '17__nnUNetPlans__3d_fullres'
    """
    names = (config["dataset"], config.get("plans", "nnUNetPlans"), config["configuration"])
    return re.sub(r"[^\w.-]", "_", "__".join(map(str, names)))


def command_file(file: str | Path, value: str) -> str:
    """The path of the command nnunet-dtc that STUDY.yaml gives, relative to STUDY.yaml.

    Raises:
        ValueError: it is no executable file.
    """
    command = Path(file).absolute().parent / os.path.expanduser(value)
    if not command.is_file() or not os.access(command, os.X_OK):
        raise ValueError(f"nnunet_dtc must be an executable file, got {command}")
    return str(command)


def trainer_names(trainers: Sequence[str], repetitions: int = 1) -> list[str]:
    """The trainers with their repetitions.

    Example:
        >>> trainer_names(["nnUNetTrainer", "nnUNetTrainerDTC"], 2)
        ['nnUNetTrainer', 'nnUNetTrainer_rep2', 'nnUNetTrainerDTC', 'nnUNetTrainerDTC_rep2']
    """
    return [name if k == 1 else f"{name}_rep{k}" for name in trainers for k in range(1, repetitions + 1)]


def fold_numbers(folds: int | str | Sequence[int]) -> list[int]:
    """The folds, sorted.

    Args:
        folds: one number, a list of numbers, or a text such as "0-4" or "0,2-4".

    Raises:
        ValueError: it is something else, empty, or names a fold twice.
    """
    items: Sequence[Any] = folds.split(",") if isinstance(folds, str) else folds if _is_list(folds) else [folds]
    numbers: list[int] = []
    for item in items:
        found = re.fullmatch(r"\s*(\d{1,3})\s*(?:-\s*(\d{1,3})\s*)?", str(item))
        if found is None or isinstance(item, bool):
            raise ValueError(f'folds must be numbers such as [0, 1] or a range such as "0-4", got {folds!r}')
        first, last = int(found[1]), int(found[2] or found[1])
        numbers += range(first, last + 1)
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"folds must name at least one fold, and each once, got {folds!r}")
    return sorted(numbers)


def prediction_kinds(config: Mapping[str, Any]) -> list[str]:
    """What is predicted: the validation cases, and the held-out cases by all folds together and by each fold.

    With one fold the last two are the same, and the held-out cases are predicted once.

    Example:
        >>> prediction_kinds({"test": True, "folds": [0]})
        ['validation', 'test']
    """
    if not config.get("test"):
        return ["validation"]
    several = len(fold_numbers(config.get("folds", "0-4"))) > 1
    return ["validation", "test", *["test_per_fold"] * several]


def comparison_kinds(config: Mapping[str, Any]) -> list[str]:
    """The comparisons at the end of a study; none for a single model."""
    return prediction_kinds(config) if len(config["trainers"]) > 1 else []


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))
