"""The plan of a comparison: all files are found and checked before anything is predicted or scored."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nnunet_dtc.plugin.model_folder import environment_folder
from nnunet_dtc.study.comparison import checks
from nnunet_dtc.study.comparison.models import (
    ComparisonError,
    Model,
    Training,
    group_repeats,
    read_training,
)
from nnunet_dtc.study.comparison.predictions import AVERAGES, Average, HeldOutSet, check_predictable
from nnunet_dtc.study.evaluation import DEFAULT_TOLERANCES, LabelSet, Reader, Tolerance, find_pairs, find_reader
from nnunet_dtc.study.evaluation.folders import Progress
from nnunet_dtc.study.evaluation.metrics import ABSENT_RULES, Absent
from nnunet_dtc.study.evaluation.tolerances import check_tolerances

__all__ = ["KINDS", "Kind", "Options", "Plan", "held_out_set", "plan_comparison"]

Kind = Literal["validation", "test", "test per fold"]
KINDS: tuple[Kind, ...] = ("validation", "test", "test per fold")


@dataclass(frozen=True)
class Options:
    """How to compare.

    Attributes:
        kind: `validation` compares on the validation cases of the folds, `test` on the held-out cases by the ensemble
            of all folds, `test per fold` on the held-out cases by the model of each fold alone.
        folds: the folds to use; None uses all that are there.
        labels: the folder of the true segmentations; by default nnU-Net's `gt_segmentations`, or `labelsTs`.
        images: the folder of the held-out images; by default `imagesTs`.
        predictions: folders of ensembled predictions given by the user, by training (see `Plan.names`); for `test`.
        checkpoint: the file name of the checkpoints that predict; the same for all models.
        average: whether the folds' logits are averaged, as in nnU-Net, or their softmax outputs, as in the paper.
        device: where nnU-Net predicts: `cuda`, `cpu` or `mps`.
        complexity: the file that `nnunet-dtc complexity` wrote.
        tolerances, absent, processes, strict_geometry: as for `evaluate_pairs`.
        seed: the seed of the bootstrap.
    """

    kind: Kind = "validation"
    folds: tuple[int, ...] | None = None
    labels: Path | None = None
    images: Path | None = None
    predictions: Mapping[str, Path] = field(default_factory=dict)
    checkpoint: str = "checkpoint_final.pth"
    average: Average = "logits"
    device: str = "cuda"
    complexity: Path | None = None
    tolerances: tuple[Tolerance, ...] = DEFAULT_TOLERANCES
    absent: Absent = "skip"
    processes: int | None = None
    strict_geometry: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """What will be compared.

    Attributes:
        options: as given.
        models: the first is the one that the others are compared with.
        names: the name of each training: that of the trainer where it is unique.
        folds: the folds that are used; () if all predictions were given by the user.
        references: label file by case.
        sizes: the number of voxels of each label when nnU-Net validated, by training and fold.
        splits_checked: what the folds' cases were compared with: `splits_final.json`, `each other`, or nothing ("").
        seen_in_training: held-out cases that are cases of the cross-validation as well.
        validation_ratio: the number of validation cases over that of training cases, the mean over the folds; None
            where there is no split.
    """

    options: Options
    models: tuple[Model, ...]
    names: Mapping[Training, str]
    folds: tuple[int, ...]
    references: Mapping[str, Path]
    sizes: Mapping[tuple[Training, int], checks.Sizes]
    splits_checked: str
    seen_in_training: tuple[str, ...]
    validation_ratio: float | None

    @property
    def trainings(self) -> tuple[Training, ...]:
        return tuple(training for model in self.models for training in model.trainings)

    @property
    def first(self) -> Training:
        return self.models[0].trainings[0]

    @property
    def dataset(self) -> str:
        return self.first.dataset_name

    @property
    def reader(self) -> Reader:
        """The reader of all files: the one that the plans name, which nnU-Net uses."""
        return find_reader(self.first.file_ending, None, self.first.dataset_json, self.first.plans)

    @property
    def labels(self) -> LabelSet:
        return self.first.labels


def plan_comparison(folders: Sequence[Path], options: Options) -> Plan:
    """Find all files and check that the models can be compared.

    Args:
        folders: the folders of the trained models; the first model is the one that the others are compared with.
        options: how to compare.

    Raises:
        ComparisonError: the models cannot be compared, or an option is invalid.
        ModelFolderError: a folder is not that of a trained model, or an environment variable is not set.
        MalformedFileError: a file is not what nnU-Net writes.
    """
    for what, allowed in (("kind", KINDS), ("average", AVERAGES), ("absent", ABSENT_RULES)):
        if getattr(options, what) not in allowed:
            raise ComparisonError(f"{what} must be one of {', '.join(allowed)}, got {getattr(options, what)!r}")
    if options.predictions and options.kind != "test":
        raise ComparisonError(
            f"predictions must be those of ensembles on the held-out cases (kind test), got kind {options.kind!r}"
        )
    if options.average == "softmax" and options.kind != "test":
        raise ComparisonError(
            f"average softmax is for the ensemble of all folds (kind test), got kind {options.kind!r}"
        )
    trainings = [read_training(folder) for folder in folders]
    models = group_repeats(trainings)
    names = _training_names(models)
    check_tolerances(options.tolerances, trainings[0].labels.names)
    checks.check_same_task(trainings)
    find_reader(trainings[0].file_ending, None, trainings[0].dataset_json, trainings[0].plans)
    if unknown := sorted(set(options.predictions) - set(names.values())):
        raise ComparisonError(
            f"predictions were given for {', '.join(unknown)}; the models are {', '.join(names.values())}"
        )
    predicting = [training for training in trainings if names[training] not in options.predictions]
    if options.kind == "validation":
        return _plan_validation(options, models, names, trainings)
    return _plan_test(options, models, names, trainings, predicting)


def _plan_validation(
    options: Options, models: tuple[Model, ...], names: Mapping[Training, str], trainings: Sequence[Training]
) -> Plan:
    first = trainings[0]
    folds = checks.choose_folds(trainings, options.folds, checks.VALIDATION)
    preprocessed = os.environ.get("nnUNet_preprocessed")
    labels = options.labels or (
        environment_folder("nnUNet_preprocessed", "the labels in gt_segmentations (or give labels)")
        / first.dataset_name
        / "gt_segmentations"
    )
    splits = checks.read_splits(Path(preprocessed), first.dataset_name) if preprocessed else None
    checks.check_finished(trainings, folds)
    checks.check_validated_once(trainings, folds, splits)
    checks.check_case_sets(trainings, folds, splits)
    sizes = checks.check_reference_sizes(trainings, folds)
    if not labels.is_dir():
        raise ComparisonError(f"there is no folder of labels {labels}")
    cases = sorted(case for fold in folds for case in checks.validation_cases(first, fold))
    references = {case: labels / f"{case}{first.file_ending}" for case in cases}
    if missing := [str(file) for file in references.values() if not file.is_file()]:
        raise ComparisonError(f"there is no label {', '.join(missing[:3])}")
    checked = "splits_final.json" if splits is not None else "each other"
    return Plan(
        options=options,
        models=models,
        names=names,
        folds=folds,
        references=references,
        sizes=sizes,
        splits_checked=checked,
        seen_in_training=(),
        validation_ratio=checks.validation_ratio(splits, folds),
    )


def _plan_test(
    options: Options,
    models: tuple[Model, ...],
    names: Mapping[Training, str],
    trainings: Sequence[Training],
    predicting: Sequence[Training],
) -> Plan:
    first = trainings[0]
    raw = None
    if options.labels is None or (options.images is None and predicting):
        needed_for = "labelsTs and imagesTs (or give labels and images)"
        raw = environment_folder("nnUNet_raw", needed_for) / first.dataset_name
    labels = options.labels or raw / "labelsTs"
    if not labels.is_dir():
        raise ComparisonError(f"there is no folder of labels {labels}")
    ending = first.file_ending
    files = sorted(file for file in labels.glob(f"*{ending}") if not file.name.startswith("."))
    references = {file.name.removesuffix(ending): file for file in files}
    checks.check_case_names(references, labels)
    if not references:
        raise ComparisonError(f"there is no label (*{ending}) in {labels}")
    folds: tuple[int, ...] = ()
    if predicting or options.folds is not None:  # for given predictions: those that the user reports
        folds = checks.choose_folds(predicting or trainings, options.folds, options.checkpoint)
    if predicting:
        check_predictable(predicting, folds, held_out_set(options, first, tuple(references)))
    for folder in options.predictions.values():
        find_pairs(folder, labels, ending)
    preprocessed = os.environ.get("nnUNet_preprocessed")
    splits = checks.read_splits(Path(preprocessed), first.dataset_name) if preprocessed else None
    validated = folds or first.folds_with(checks.VALIDATION)
    checked = ""
    if validated and all(checks.is_validated(training, fold) for training in trainings for fold in validated):
        checks.check_case_sets(trainings, validated, splits)
        checked = "splits_final.json" if splits is not None else "each other"
    known = {case for fold in splits or () for part in ("train", "val") for case in fold.get(part, ())}
    return Plan(
        options=options,
        models=models,
        names=names,
        folds=folds,
        references=references,
        sizes={},
        splits_checked=checked,
        seen_in_training=tuple(sorted(known & references.keys())),
        validation_ratio=checks.validation_ratio(splits, folds),
    )


def _training_names(models: Sequence[Model]) -> dict[Training, str]:
    """The trainer's name where it is unique, else the model folder's name with a number: it also names a folder."""
    trainings = [training for model in models for training in model.trainings]
    trainers = [training.trainer for training in trainings]
    return {
        training: training.trainer if trainers.count(training.trainer) == 1 else f"{training.path.name}__{number}"
        for number, training in enumerate(trainings, 1)
    }


def held_out_set(
    options: Options,
    training: Training,
    cases: tuple[str, ...],
    announce: Callable[[str], None] = lambda line: None,
    progress: Progress | None = None,
) -> HeldOutSet:
    """The held-out cases that a training predicts.

    Args:
        options: their folder of images, the checkpoint and the device.
        training: whose data set it is.
        cases: the cases that have a label.
        announce, progress: as in `HeldOutSet`.
    """
    images = options.images or environment_folder("nnUNet_raw", "imagesTs") / training.dataset_name / "imagesTs"
    return HeldOutSet(images, cases, options.checkpoint, options.device, announce, progress)
