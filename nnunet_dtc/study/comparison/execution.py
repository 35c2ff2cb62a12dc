"""The execution of a plan: predictions are made where they are missing, all are scored, and the models compared."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nnunet_dtc.files import check_utf8
from nnunet_dtc.study.comparison import checks, statistics
from nnunet_dtc.study.comparison.between_trainings import between_trainings
from nnunet_dtc.study.comparison.case_images import image_cases, training_images
from nnunet_dtc.study.comparison.held_out_checks import check_held_out
from nnunet_dtc.study.comparison.logs import CURVES, TrainingLog, read_log, read_peak_memory
from nnunet_dtc.study.comparison.models import ComparisonError, Model, Training
from nnunet_dtc.study.comparison.picture_choice import make_pictures
from nnunet_dtc.study.comparison.plan import Plan, held_out_set
from nnunet_dtc.study.comparison.predictions import predict_ensemble, predict_fold, prediction_files
from nnunet_dtc.study.comparison.result import CasePicture, ComparedModel, Comparison
from nnunet_dtc.study.comparison.sentences import GIVEN, Facts, write_sentences
from nnunet_dtc.study.evaluation import Displacement, Pair, evaluate_pairs
from nnunet_dtc.study.evaluation.folders import Progress

__all__ = ["NOT_RECORDED", "compare"]

NOT_RECORDED = "not recorded by nnU-Net"


@dataclass(frozen=True)
class _Source:
    """The files of the predictions of one training (and fold) by case."""

    training: Training
    fold: int | None
    files: Mapping[str, Path]


def compare(
    plan: Plan, output: Path, progress: Progress | None = None, announce: Callable[[str], None] = lambda line: None
) -> Comparison:
    """Predict held-out cases where necessary, score all predictions, and compare the models.

    Args:
        plan: the models, folds and cases that are compared.
        output: the folder in which predictions are written into `predictions`.
        progress: as for `evaluate_pairs`.
        announce: called with every command before it is run, and with predictions that are used again.

    Raises:
        ComparisonError: a checkpoint does not belong to its model, labels or predictions changed, or a command fails.
        EvaluationError: a file cannot be evaluated.
        NnunetDtcError: the path of a model, a label or the output is not UTF-8.
    """
    for path in (output, *(training.path for training in plan.trainings), *plan.references.values()):
        check_utf8(path)
    options, names = plan.options, [model.name for model in plan.models]
    memory: Mapping[str, float | None] = {}
    if options.complexity:
        memory = read_peak_memory(options.complexity, plan.dataset, plan.first.plans_name, plan.first.configuration)
    logs = _read_logs(plan, progress)
    sources = _sources(plan, output, announce, progress)
    scores, metrics, displaced = _score(plan, sources, progress)
    per_fold = options.kind == "test per fold"
    summary = statistics.summarise(scores, metrics, names, per_fold)
    differences = statistics.paired_differences(scores, metrics, names, plan.labels.names, options.seed)
    repeats = {model.name: len(model.trainings) for model in plan.models}
    noise = between_trainings(scores, metrics, repeats, summary, per_fold, plan.validation_ratio)
    models = tuple(_compared(plan, model, logs, memory) for model in plan.models)
    shown, no_images = _pictures(plan, sources, scores)
    facts = Facts(
        plan=plan,
        models=models,
        metrics=metrics,
        scores=scores,
        differences=differences,
        logs=logs,
        memory_given=options.complexity is not None,
        no_images=no_images,
        displaced=displaced,
    )
    return Comparison(
        dataset=plan.dataset,
        kind=options.kind,
        labels=plan.labels,
        metrics=metrics,
        models=models,
        scores=scores,
        summary=summary,
        differences=differences,
        noise=noise,
        curves=_curves(plan, logs),
        pictures=shown,
        sentences=write_sentences(facts),
    )


def _read_logs(plan: Plan, progress: Progress | None) -> dict[Training, TrainingLog]:
    """The log of every training; if its predictions were given by the user, of all folds that are there."""
    wanted = {}
    for training in plan.trainings:
        given = plan.names[training] in plan.options.predictions
        wanted[training] = (
            training.folds_with("checkpoint_final.pth") if given and plan.options.folds is None else plan.folds
        )
    total, done = sum(map(len, wanted.values())), 0
    logs = {}

    def one_more() -> None:
        nonlocal done
        done += 1
        if progress:
            progress("reading training logs", done, total)

    for training, folds in wanted.items():
        exactly = None
        if plan.options.kind != "validation" and plan.names[training] not in plan.options.predictions:
            exactly = plan.options.checkpoint
        logs[training] = read_log(training, folds, exactly, one_more)
    return logs


def _sources(plan: Plan, output: Path, announce: Callable[[str], None], progress: Progress | None) -> list[_Source]:
    """The predictions of all trainings. Those of held-out cases are made after their images and labels were checked."""
    options, sources = plan.options, []
    if options.kind == "validation":
        return [
            _Source(training, fold, checks.validation_cases(training, fold))
            for training in plan.trainings
            for fold in plan.folds
        ]
    cases = tuple(plan.references)
    if any(plan.names[training] not in options.predictions for training in plan.trainings):
        images = image_cases(held_out_set(options, plan.first, cases).images, plan.first.file_ending)
        check_held_out(
            plan.references, images, plan.labels, plan.reader, options.strict_geometry, options.processes, progress
        )
    for training in plan.trainings:
        name, ending = plan.names[training], training.file_ending
        if name in options.predictions:
            sources.append(_Source(training, None, prediction_files(options.predictions[name], cases, ending)))
            continue
        held_out = held_out_set(options, training, cases, announce, progress)
        target = output / "predictions" / name
        if options.kind == "test":
            folder = predict_ensemble(training, plan.folds, options.average, held_out, target)
            sources.append(_Source(training, None, prediction_files(folder, cases, ending)))
        else:
            for fold in plan.folds:
                folder = predict_fold(training, fold, held_out, target)
                sources.append(_Source(training, fold, prediction_files(folder, cases, ending)))
    return sources


def _score(
    plan: Plan, sources: Sequence[_Source], progress: Progress | None
) -> tuple[pd.DataFrame, tuple[str, ...], dict[str, Displacement]]:
    """`Comparison.scores`, the keys of the metrics, and the cases whose prediction and label are not in the same place,
    each with the largest distance. All files are scored by one call, so that processes start once."""
    options = plan.options
    entries = [(source, case) for source in sources for case in source.files]
    pairs = [
        Pair(str(index), source.files[case], plan.references[case]) for index, (source, case) in enumerate(entries)
    ]
    result = evaluate_pairs(
        pairs,
        plan.labels,
        options.tolerances,
        options.absent,
        options.processes,
        progress,
        plan.reader,
        options.strict_geometry,
    )
    place = {
        training: (model.name, repeat) for model in plan.models for repeat, training in enumerate(model.trainings, 1)
    }
    values = {organ.name: frozenset(organ.values) for organ in plan.labels.organs}
    rows = []
    for row in result.scores.to_dict("records"):
        source, case = entries[int(row["case"])]
        sizes = plan.sizes.get((source.training, source.fold), {}).get(case, {})
        if before := sizes.get(values[row["organ"]]):
            _check_unchanged(source, case, row["organ"], before, (row["reference_voxels"], row["prediction_voxels"]))
        model, repeat = place[source.training]
        rows.append(
            {"model": model, "repeat": repeat, "fold": source.fold, "case": case, "organ": row["organ"]}
            | {key: row[key] for key in result.metrics}
        )
    displaced: dict[str, Displacement] = {}
    for index, found in sorted(result.displaced.items(), key=lambda item: item[1].distance_mm):
        displaced[entries[int(index)][1]] = found  # the farthest comes last
    return pd.DataFrame(rows).astype({"fold": "Int64"}), result.metrics, displaced


def _check_unchanged(source: _Source, case: str, organ: str, before: tuple[int, int], now: tuple[int, int]) -> None:
    where = (
        f"{organ} of {case} had {{}} voxels when nnU-Net validated {source.training.fold_path(source.fold)}, {{}} now"
    )
    if before[0] != now[0]:
        raise ComparisonError("the labels changed after the training: " + where.format(before[0], now[0]))
    if before[1] != now[1]:
        raise ComparisonError("the predictions changed after the validation: " + where.format(before[1], now[1]))


def _compared(
    plan: Plan, model: Model, logs: Mapping[Training, TrainingLog], memory: Mapping[str, float | None]
) -> ComparedModel:
    first = model.trainings[0]
    own = [logs[training] for training in model.trainings]
    given = any(plan.names[training] in plan.options.predictions for training in model.trainings)
    seconds = pd.concat([log.rows["seconds"] for log in own]).astype(float).median()
    checkpoint = NOT_RECORDED if plan.options.kind == "validation" else GIVEN if given else plan.options.checkpoint
    return ComparedModel(
        name=model.name,
        trainer=first.trainer,
        plans=first.plans_name,
        configuration=first.configuration,
        folder=first.path,
        folds=() if given and plan.options.folds is None else plan.folds,
        repeats=tuple(training.trainer for training in model.trainings),
        checkpoint=checkpoint,
        epochs=max((epochs for log in own for epochs in log.epochs.values()), default=None),
        parameters=max((count for log in own for count in log.parameters.values()), default=None),
        epoch_seconds=None if math.isnan(seconds) else float(seconds),
        left_out=model.left_out,
        peak_memory_mib=next((memory[name] for name in first.same_step if name in memory), None),
    )


def _curves(plan: Plan, logs: Mapping[Training, TrainingLog]) -> pd.DataFrame:
    columns = ["model", "repeat", "fold", "epoch", *CURVES.values(), "seconds"]
    frames = [
        logs[training].rows.assign(model=model.name, repeat=repeat)
        for model in plan.models
        for repeat, training in enumerate(model.trainings, 1)
        if len(logs[training].rows)
    ]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def _pictures(plan: Plan, sources: Sequence[_Source], scores: pd.DataFrame) -> tuple[tuple[CasePicture, ...], bool]:
    """The pictures of each model's first training (and first fold), and whether images of them are missing."""
    first_fold = plan.folds[0] if plan.options.kind == "test per fold" else None
    used = scores[scores["repeat"] == 1]
    if first_fold is not None:
        used = used[used["fold"] == first_fold]
    first = {model.trainings[0]: model.name for model in plan.models}
    files = {
        (first[source.training], case): file
        for source in sources
        if source.training in first and (first_fold is None or source.fold == first_fold)
        for case, file in source.files.items()
    }
    images: Mapping[str, tuple[Path, ...]] = {}
    if plan.options.images is not None:
        images = image_cases(plan.options.images, plan.first.file_ending)
    elif raw := os.environ.get("nnUNet_raw"):
        folder = Path(raw) / plan.dataset
        if plan.options.kind == "validation":
            images = training_images(folder, plan.first.file_ending)
        elif (folder / "imagesTs").is_dir():
            images = image_cases(folder / "imagesTs", plan.first.file_ending)

    def images_of(case: str) -> tuple[Path, ...]:
        found = images.get(case, ())
        return found if all(file.is_file() for file in found) else ()

    averaged = statistics.average_repeats(scores, ["dice"], over_folds=True)
    names = [model.name for model in plan.models]
    made = make_pictures(used, names, files, plan.references, images_of, averaged)
    return made, any(not picture.images for picture in made)
