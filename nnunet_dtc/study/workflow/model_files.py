"""What nnU-Net has written for a training of a study, and whether plans and split are still those it began with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_dtc.plugin.file_rules import read_json
from nnunet_dtc.plugin.model_folder import dataset_name, model_path
from nnunet_dtc.plugin.nnunet_files import check_plans, check_splits, resolved_configuration
from nnunet_dtc.study.workflow.definition import Study, StudyError

__all__ = ["CHECKPOINTS", "StudyFiles", "is_whole"]

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
"""In the order in which nnU-Net looks for one to go on from."""

_ZIP_END, _ZIP_END_SIZE = b"PK\x05\x06", 65557  # the end of a zip file: its mark, and its size with the longest comment
_COARSE_S = 2.0  # the resolution of file times on some file systems


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint exists and was written to its end: it is a zip file, which ends with its directory.

    Raises:
        OSError: it exists and cannot be read.
    """
    try:
        with checkpoint.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _ZIP_END_SIZE))
            return _ZIP_END in file.read()
    except FileNotFoundError:
        return False


class StudyFiles:
    """The files of a study in nnU-Net's folders.

    Attributes:
        study: the study; its environment must be set, as nnU-Net's helpers read it.
        dataset: the name of the data set.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.dataset = dataset_name(study.dataset)
        self.raw = study.raw / self.dataset
        self.preprocessed = study.preprocessed / self.dataset

    @property
    def plans_file(self) -> Path:
        return self.preprocessed / f"{self.study.plans}.json"

    @cached_property
    def plans(self) -> Mapping[str, Any] | None:
        """The plans, checked; None before nnU-Net has planned.

        Raises:
            MalformedFileError: they are none, or do not have the configuration.
        """
        if not self.plans_file.is_file():
            return None
        plans = read_json(self.plans_file)
        check_plans(plans, self.plans_file, self.study.configuration)
        return plans

    @cached_property
    def dataset_json(self) -> Mapping[str, Any]:
        """The content of dataset.json: that of nnUNet_raw, or else nnU-Net's copy of it."""
        folders = (self.raw, self.preprocessed)
        return read_json(next((f for f in folders if (f / "dataset.json").is_file()), self.raw) / "dataset.json")

    @cached_property
    def splits(self) -> list[Mapping[str, Any]] | None:
        """The content of splits_final.json; None where it is not there.

        Raises:
            MalformedFileError: it is something else.
        """
        file = self.preprocessed / "splits_final.json"
        if not file.is_file():
            return None
        splits = read_json(file)
        check_splits(splits, file)
        return splits

    def data_folders(self) -> dict[str, Path]:
        """The folders of preprocessed cases by configuration, that of the study first; the plans must be there.

        They include those of the next stages of a cascade: when nnU-Net validates 3d_lowres, it resamples the
        predictions to these cases.

        Raises:
            MalformedFileError: the plans do not have a next stage that they name.
        """
        plans, configuration = read_json(self.plans_file), self.study.configuration
        resolved = resolved_configuration(plans, configuration, self.plans_file)
        following = resolved.get("next_stage") or []
        names = [configuration, *([following] if isinstance(following, str) else following)]
        return {name: self._data_folder(plans, name) for name in names}

    def _data_folder(self, plans: Mapping[str, Any], configuration: str) -> Path:
        resolved = resolved_configuration(plans, configuration, self.plans_file)
        return self.preprocessed / resolved.get("data_identifier", f"{self.study.plans}_{configuration}")

    def model_folder(self, trainer: str) -> Path:
        return self.study.results / model_path(self.dataset, trainer, self.study.plans, self.study.configuration)

    def fold_folder(self, trainer: str, fold: int) -> Path:
        return self.model_folder(trainer) / f"fold_{fold}"

    def lock_file(self, trainer: str, fold: int) -> Path:
        """For all studies in these results."""
        return self.study.results / self.dataset / ".study_locks" / f"{self.model_folder(trainer).name}__fold_{fold}"

    def is_trained(self, trainer: str, fold: int) -> bool:
        """Whether there is a whole final checkpoint."""
        return is_whole(self.fold_folder(trainer, fold) / CHECKPOINTS[0])

    def is_validated(self, trainer: str, fold: int) -> bool:
        """Whether the final checkpoint is validated: nnU-Net writes the summary last, and one that is older than the
        checkpoint is of an earlier training.

        Raises:
            OSError: a file exists and cannot be read.
        """
        folder = self.fold_folder(trainer, fold)
        summary = folder / "validation" / "summary.json"
        try:
            json.loads(summary.read_text(encoding="utf-8"))
            return summary.stat().st_mtime + _COARSE_S >= (folder / CHECKPOINTS[0]).stat().st_mtime
        except (FileNotFoundError, ValueError):
            return False

    def has_begun(self, trainer: str, fold: int) -> bool:
        """Whether there is a checkpoint to go on from."""
        return any(is_whole(self.fold_folder(trainer, fold) / name) for name in CHECKPOINTS)

    def split_record(self, trainer: str, fold: int) -> Path:
        """Where the study notes the split that a training began with; nnU-Net keeps it nowhere."""
        model = self.model_folder(trainer)  # whose name has the plans and the configuration
        return self.study.folder / "splits" / model.parent.name / model.name / f"fold_{fold}.json"

    def check_plans_unchanged(self, trainer: str) -> None:
        """Refuse plans that changed since this model was trained.

        Raises:
            StudyError: naming the keys.
        """
        from nnunet_dtc.study.comparison.checks import plans_of

        file = self.model_folder(trainer) / "plans.json"
        if self.plans is None or not file.is_file() or not any(self.model_folder(trainer).glob("fold_*/*.pth")):
            return
        theirs = read_json(file)
        check_plans(theirs, file, self.study.configuration)
        before, now = (plans_of(plans, self.study.configuration) for plans in (theirs, self.plans))
        if changed := sorted(key for key in {*before, *now} if before.get(key) != now.get(key)):
            raise StudyError(
                f"the plans changed since {trainer} was trained: {', '.join(changed)} differ between {file} and "
                f"{self.plans_file}; restore the plans, or plan under another name (-overwrite_plans_name) for a "
                f"new study. If {trainer} changes its plans itself, it cannot be compared with trainers of these plans"
            )

    def check_split_unchanged(self, trainer: str, fold: int) -> None:
        """Refuse a split that changed since this training began, as far as that is known.

        Raises:
            StudyError: naming the fold and cases.
        """
        if self.splits is None or fold >= len(self.splits) or not self.has_begun(trainer, fold):
            return
        record = self.split_record(trainer, fold)
        now = self.splits[fold]
        if record.is_file():
            before = read_json(record)
        elif self.is_validated(trainer, fold):  # by hand, or by another study
            ending = self.dataset_json["file_ending"]
            folder = self.fold_folder(trainer, fold) / "validation"
            before = {"val": [file.name.removesuffix(ending) for file in folder.glob(f"*{ending}")]}
        else:
            return
        if changed := sorted(set().union(*(set(before[part]) ^ set(now[part]) for part in before))):
            raise StudyError(
                f"the split changed since fold {fold} of {trainer} was begun: {', '.join(changed[:6])} "
                f"{'was' if len(changed) == 1 else 'were'} added, removed or moved between train and val; restore "
                f"{self.preprocessed / 'splits_final.json'}, or move {self.fold_folder(trainer, fold)} away to train "
                "it again"
            )
