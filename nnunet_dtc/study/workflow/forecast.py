"""What a study will do: how many trainings there are, which are done, and how long the others take."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from nnunet_dtc.study.workflow.held_out import comparison_folder, drop_outdated_predictions
from nnunet_dtc.study.workflow.index_page import duration
from nnunet_dtc.study.workflow.model_files import CHECKPOINTS, StudyFiles
from nnunet_dtc.study.workflow.preprocessed_cases import has_all_cases
from nnunet_dtc.study.workflow.status import TrainingStatus, counted, read_status, seconds_per_epoch, summary_line

__all__ = ["drop_outdated_stamps", "forecast"]


def forecast(files: StudyFiles) -> list[str]:
    """The sentences that a study begins with."""
    study, trainings = files.study, read_status(files)
    lines = [
        f"{files.dataset}, {study.configuration}, {study.plans}, on {study.device}; files in {study.folder}",
        f"{counted(len(study.models), 'model')} x {counted(study.repetitions, 'repetition')} x "
        f"{counted(len(study.folds), 'fold')} = "
        f"{summary_line(trainings)}",
        _time(trainings, seconds_per_epoch(files)),
    ]
    if study.test:
        by_each = "by each fold and by all folds together"
        lines.append(f"held-out cases are predicted {by_each if len(study.folds) > 1 else 'as well'}")
    if files.plans is None:
        lines.append(f"{study.plans} are not there yet: nnU-Net plans and preprocesses first")
    if not study.kinds:
        lines.append("there is one model, so nothing is compared")
    return lines


def drop_outdated_stamps(files: StudyFiles) -> None:
    """Remove the marks of jobs whose results are gone or outdated, so that Snakemake runs them again.

    Those are also all marks of another data set, plans or configuration, as the comparisons are in the same folders.
    """
    done = files.study.stamps
    for other in done.parent.glob("*"):
        if other != done and other.is_dir():
            shutil.rmtree(other)
    unfinished = False
    for trainer, fold in files.study.trainings:
        for job, is_done in (("train", files.is_trained), ("validate", files.is_validated)):
            if not is_done(trainer, fold):
                (done / job / trainer / f"fold_{fold}").unlink(missing_ok=True)
                unfinished = True
    if files.plans is None or (unfinished and not _cases_are_there(files)):
        (done / "preprocess").unlink(missing_ok=True)
    if files.study.test:
        drop_outdated_predictions(files, (*files.study.folds, None))
    for kind in files.study.kinds:
        if not (comparison_folder(files, kind) / "index.html").is_file():
            (done / "compare" / kind).unlink(missing_ok=True)
        _drop_if_older(done / "compare" / kind, _compared_files(files, kind))


def _cases_are_there(files: StudyFiles) -> bool:
    return all(has_all_cases(files, folder) for folder in files.data_folders().values())


def _compared_files(files: StudyFiles, kind: str) -> list[Path]:
    """The files that a comparison has read and that may change without another training."""
    results = [files.fold_folder(trainer, fold) / CHECKPOINTS[0] for trainer, fold in files.study.trainings]
    if kind == "validation":  # nnU-Net has scored it: other labels would need another validation
        return [*results, *(checkpoint.parent / "validation" / "summary.json" for checkpoint in results)]
    return [*results, *(files.raw / "labelsTs").glob(f"*{files.dataset_json['file_ending']}")]


def _drop_if_older(stamp: Path, read: Sequence[Path]) -> None:
    """Remove a mark that is older than a file that its job read. A copy may keep the time of its content."""
    if stamp.exists() and any(_changed(file) > stamp.stat().st_mtime for file in read if file.exists()):
        stamp.unlink()


def _changed(file: Path) -> float:
    status = file.stat()
    return max(status.st_mtime, status.st_ctime)


def _time(trainings: Sequence[TrainingStatus], seconds: dict[str, float]) -> str:
    missing = [training for training in trainings if training.epochs < training.of]
    if not missing:
        return "all epochs are trained"
    unknown = "time: not known before the first epochs (or with complexity: FILE of nnunet-dtc complexity)"
    if not seconds:
        return unknown
    left = sum((training.of - training.epochs) * seconds[training.trainer] for training in missing)
    return f"time: about {duration(left)} of training, by earlier logs or complexity; divide by the trainings at a time"
