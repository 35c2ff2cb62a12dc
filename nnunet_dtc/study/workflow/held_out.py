"""A study's predictions of the held-out cases: where they are, and whether they are still those of its models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_dtc.study.workflow.model_files import StudyFiles
from nnunet_dtc.study.workflow.nnunet_commands import label_files

__all__ = ["comparison_folder", "drop_outdated_predictions", "held_out_cases", "predictions_folder"]


def comparison_folder(files: StudyFiles, kind: str) -> Path:
    """The folder of a comparison and its predictions."""
    return files.study.folder / "comparison" / kind


def predictions_folder(files: StudyFiles, trainer: str, fold: int | None) -> Path:
    """The folder of a trainer's predictions by one fold, or by all folds together (None)."""
    return comparison_folder(files, "test" if fold is None else "test_per_fold") / "predictions" / trainer


def held_out_cases(files: StudyFiles) -> tuple[str, ...]:
    """The cases in labelsTs."""
    return tuple(label_files(files.raw / "labelsTs", files.dataset_json["file_ending"]))


def drop_outdated_predictions(files: StudyFiles, folds: Sequence[int | None]) -> list[Path]:
    """Remove the marks of predictions that are gone or not those of the present checkpoints and images.

    Args:
        files: the files of the study.
        folds: the folds that predicted, None for all together.

    Returns:
        The folders of these predictions.
    """
    outdated = []
    for trainer in files.study.trainers:
        for fold in folds:
            mark = files.study.stamps / "predict" / trainer / ("ensemble" if fold is None else f"fold_{fold}")
            if mark.exists() and not _is_predicted(files, trainer, fold):
                mark.unlink()
                outdated.append(predictions_folder(files, trainer, fold))
    return outdated


def _is_predicted(files: StudyFiles, trainer: str, fold: int | None) -> bool:
    """Whether there are finished predictions, made from the present checkpoints and images."""
    from nnunet_dtc.study.comparison.models import read_training
    from nnunet_dtc.study.comparison.plan import Options, held_out_set
    from nnunet_dtc.study.comparison.predictions import are_predicted

    folds = files.study.folds if fold is None else [fold]
    if not all(files.is_trained(trainer, each) for each in folds):
        return False
    training = read_training(files.model_folder(trainer))
    held_out = held_out_set(Options(), training, held_out_cases(files))
    return are_predicted(
        training, folds, "logits" if fold is None else None, held_out, predictions_folder(files, trainer, fold)
    )
