"""What a study will do: how many trainings there are, which are done, and how long the others take."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from nnunet_dtc.study.workflow.index_page import duration
from nnunet_dtc.study.workflow.model_files import CHECKPOINTS, StudyFiles
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
    for trainer, fold in files.study.trainings:
        for job, is_done in (("train", files.is_trained), ("validate", files.is_validated)):
            if not is_done(trainer, fold):
                (done / job / trainer / f"fold_{fold}").unlink(missing_ok=True)
    if files.plans is None:
        (done / "preprocess").unlink(missing_ok=True)
    for kind in files.study.kinds:
        if not (files.study.folder / "comparison" / kind / "index.html").is_file():
            (done / "compare" / kind).unlink(missing_ok=True)
    for trainer, fold in files.study.trainings:
        folder = files.fold_folder(trainer, fold)
        results = [folder / CHECKPOINTS[0], folder / "validation" / "summary.json"]
        for name in (f"fold_{fold}", "ensemble"):
            _drop_if_older(done / "predict" / trainer / name, results[:1])
        for kind in files.study.kinds:
            _drop_if_older(done / "compare" / kind, results if kind == "validation" else results[:1])


def _drop_if_older(stamp: Path, results: Sequence[Path]) -> None:
    """Remove a mark that is older than a result that its job read."""
    if stamp.exists() and any(file.exists() and file.stat().st_mtime > stamp.stat().st_mtime for file in results):
        stamp.unlink()


def _time(trainings: Sequence[TrainingStatus], seconds: dict[str, float]) -> str:
    missing = [training for training in trainings if training.epochs < training.of]
    if not missing:
        return "all epochs are trained"
    unknown = "time: not known before the first epochs (or with complexity: FILE of nnunet-dtc complexity)"
    if not seconds:
        return unknown
    left = sum((training.of - training.epochs) * seconds[training.trainer] for training in missing)
    return f"time: about {duration(left)} of training, by earlier logs or complexity; divide by the trainings at a time"
