"""Checks that all models were trained and validated on the same data, folds and plans.

Plans are compared by their content: plans with different names may be the same, and plans of one name may have been
made again between two trainings. nnU-Net does not store the split with a model. The files in a validation folder show
which cases a fold was validated on, and the `summary.json` there how large each label was.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from nnunet_dtc.plugin.file_rules import is_printable, read_json, shown
from nnunet_dtc.plugin.nnunet_files import check_splits, check_summary, label_values_of
from nnunet_dtc.study.comparison.models import ComparisonError, Training

__all__ = [
    "VALIDATION",
    "Sizes",
    "check_case_names",
    "check_case_sets",
    "check_disjoint_folds",
    "check_finished",
    "check_reference_sizes",
    "check_same_task",
    "check_validated_once",
    "choose_folds",
    "plans_of",
    "read_splits",
    "reference_sizes",
    "validation_cases",
]

Sizes = Mapping[str, Mapping[frozenset[int], tuple[int, int]]]
"""The numbers of voxels in the reference and the prediction by case and label values, from nnU-Net's summary.json."""

VALIDATION = "validation"
_IRRELEVANT = ("data_identifier", "inherits_from", "next_stage", "median_image_size_in_voxels")  # names and statistics
_OF_ALL_CONFIGURATIONS = (
    "transpose_forward",
    "image_reader_writer",
    "label_manager",
    "foreground_intensity_properties_per_channel",
)
_OF_DATASET = ("labels", "regions_class_order", "channel_names", "file_ending")
_NAMED = 6


def check_same_task(trainings: Sequence[Training]) -> None:
    """Refuse trainings with different data sets or plans.

    Raises:
        ComparisonError: they differ; the message gives both values.
    """
    first = trainings[0]
    for other in trainings[1:]:
        where = f"{first.path} and {other.path}"
        if first.dataset_name != other.dataset_name:
            raise ComparisonError(f"different data sets: {first.dataset_name} and {other.dataset_name} ({where})")
        _refuse_differences(f"different data in dataset.json ({where})", _dataset_of(first), _dataset_of(other))
        _refuse_differences(
            f"different plans ({where})",
            plans_of(first.plans, first.configuration),
            plans_of(other.plans, other.configuration),
        )
        fingerprints = [training.path / "dataset_fingerprint.json" for training in (first, other)]
        if all(file.is_file() for file in fingerprints):
            _refuse_differences(
                f"the images changed between the trainings: different dataset_fingerprint.json ({where})",
                *map(read_json, fingerprints),
            )


def plans_of(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """The part of plans that determines how a configuration is trained: spacing, patch, batch, network and so on.

    Args:
        plans: checked plans, see ``nnunet_files.check_plans``.
        configuration: the name of the configuration.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    resolved = PlansManager(deepcopy(dict(plans))).get_configuration(configuration).configuration
    common = {key: plans.get(key) for key in _OF_ALL_CONFIGURATIONS}
    return common | {key: value for key, value in resolved.items() if key not in _IRRELEVANT}


def choose_folds(trainings: Sequence[Training], wanted: Sequence[int] | None, part: str) -> tuple[int, ...]:
    """The folds to compare.

    Args:
        trainings: all trainings.
        wanted: the folds that the user wants; None uses all folds, which must then be the same for all trainings.
        part: what a fold must have: `validation`, or the file name of a checkpoint.

    Raises:
        ComparisonError: folds are missing, or are not the same for all trainings.
    """
    by_training = {training: training.folds_with(part) for training in trainings}
    for training, folds in by_training.items():
        if wanted is not None and (missing := sorted(set(wanted) - set(folds))):
            raise ComparisonError(
                f"fold {_list(missing)} of {training.path} has no {part}; folds with one: {_list(folds) or 'none'}"
            )
        if not folds:
            whole = ""
            if (training.path / "fold_all").is_dir():
                whole = (
                    " (fold_all was trained on all cases)"
                    if part == VALIDATION
                    else " (predict with fold_all by nnUNetv2_predict and give the folder as predictions)"
                )
            raise ComparisonError(f"no fold of {training.path} has a {part}{whole}")
    if wanted is not None:
        if not wanted:
            raise ComparisonError("at least one fold is needed")
        return tuple(sorted(set(wanted)))
    if len(set(by_training.values())) > 1:
        lines = [f"\n  {training.path}: {_list(folds)}" for training, folds in by_training.items()]
        common = set.intersection(*(set(folds) for folds in by_training.values()))
        hint = f"; folds that all have: {_list(sorted(common))}" if common else ""
        raise ComparisonError(f"different folds have a {part}{hint}:{''.join(lines)}")
    return next(iter(by_training.values()))


def validation_cases(training: Training, fold: int) -> dict[str, Path]:
    """The predictions of the validation cases of a fold, by case.

    Raises:
        ComparisonError: the name of a file cannot be printed.
    """
    folder, ending = training.fold_path(fold) / VALIDATION, training.file_ending
    if not folder.is_dir():
        return {}
    files = (file for file in folder.iterdir() if file.name.endswith(ending) and not file.name.startswith("."))
    cases = {file.name.removesuffix(ending): file for file in sorted(files)}
    check_case_names(cases, folder)
    return cases


def check_case_names(cases: Iterable[str], folder: Path) -> None:
    """Refuse names of cases that cannot be shown in reports.

    Args:
        cases: the names.
        folder: where they are from, for the message.

    Raises:
        ComparisonError: a name is empty or has characters that cannot be printed.
    """
    for case in cases:
        if not case.strip() or not is_printable(case):
            raise ComparisonError(f"names of cases must be printable and not empty, got {shown(case)} in {folder}")


def is_validated(training: Training, fold: int) -> bool:
    """Whether the validation of a fold is complete, which is when nnU-Net writes its summary."""
    return (training.fold_path(fold) / VALIDATION / "summary.json").is_file()


def check_finished(trainings: Sequence[Training], folds: Sequence[int]) -> None:
    """Refuse validations that were interrupted.

    Raises:
        ComparisonError: a validation is incomplete; the message has the command that repeats it.
    """
    for training in trainings:
        for fold in folds:
            if not is_validated(training, fold):
                command = ["nnUNetv2_train", training.dataset_name, training.configuration, str(fold)]
                command += ["-tr", training.trainer, "-p", training.plans_name, "--val"]
                finished = [other for other in folds if all(is_validated(one, other) for one in trainings)]
                hint = f", or compare the finished folds alone: {_list(finished)}" if finished else ""
                raise ComparisonError(
                    f"the validation of fold {fold} of {training.path} is not finished, there is no summary.json: "
                    f"repeat it by {shlex.join(command)}{hint}"
                )


def check_disjoint_folds(splits: Sequence[Mapping], folds: Sequence[int]) -> None:
    """Refuse a split in which a case is a validation case of several folds.

    Raises:
        ComparisonError: there is one; the message names the folds and the cases.
    """
    for number, fold in enumerate(folds):
        for other in folds[:number]:
            if twice := sorted(set(splits[fold]["val"]) & set(splits[other]["val"])):
                raise ComparisonError(
                    f"folds that are compared together must have different validation cases, and in splits_final.json "
                    f"the folds {other} and {fold} share {_list(twice)}: compare one fold at a time, or held-out cases"
                )


def check_case_sets(trainings: Sequence[Training], folds: Iterable[int], splits: Sequence[Mapping] | None) -> None:
    """Refuse folds whose validation cases are not the same for all trainings, or not those of splits_final.json.

    Args:
        trainings: all trainings.
        folds: the folds that are compared.
        splits: the content of splits_final.json; None if there is none. For a fold beyond it nnU-Net draws a random
            split.

    Raises:
        ComparisonError: they differ; the message names the fold and the cases.
    """
    for training in trainings:
        for fold in folds:
            if not validation_cases(training, fold):
                raise ComparisonError(f"there is no prediction in {training.fold_path(fold) / VALIDATION}")
    first = trainings[0]
    for fold in folds:
        expected = validation_cases(first, fold).keys()
        for other in trainings[1:]:
            _refuse_case_difference(
                f"different splits: fold {fold}", first.path, expected, other.path, validation_cases(other, fold)
            )
        if splits is not None and fold < len(splits):
            _refuse_case_difference(
                f"fold {fold} was not validated on the cases of splits_final.json (another split, or not finished)",
                first.path,
                expected,
                "splits_final.json",
                splits[fold]["val"],
            )


def check_validated_once(trainings: Sequence[Training], folds: Sequence[int], splits: Sequence[Mapping] | None) -> None:
    """Refuse folds in which a case was validated twice.

    Args:
        trainings, folds, splits: as for `check_case_sets`.

    Raises:
        ComparisonError: there is such a case; the message names the folds and the cases.
    """
    if splits is not None:
        check_disjoint_folds(splits, [fold for fold in folds if fold < len(splits)])
    for training in trainings:
        seen: dict[str, int] = {}
        for fold in folds:
            cases = validation_cases(training, fold)
            if twice := sorted(cases.keys() & seen.keys()):
                if beyond := [one for one in folds if splits is not None and one >= len(splits)]:
                    raise ComparisonError(_random_split(training, beyond, folds, len(splits), twice))
                raise ComparisonError(
                    f"{training.path}: {_list(twice)} in the validation of both fold {seen[twice[0]]} and {fold}: "
                    "they were trained with different splits"
                )
            seen |= dict.fromkeys(cases, fold)


def read_splits(preprocessed: Path, dataset: str) -> list[Mapping] | None:
    """The content of splits_final.json; None if there is none.

    Raises:
        MalformedFileError: the file is not what nnU-Net writes.
    """
    file = preprocessed / dataset / "splits_final.json"
    if not file.is_file():
        return None
    splits = read_json(file)
    check_splits(splits, file)
    return splits


def validation_ratio(splits: Sequence[Mapping] | None, folds: Sequence[int]) -> float | None:
    """The number of validation cases over that of training cases, the mean over those folds that the split has.

    Args:
        splits: the result of `read_splits`.
        folds: the numbers of the folds.

    Returns:
        None where the split has none of the folds, or names no training cases.
    """
    known = [splits[fold] for fold in folds if fold < len(splits)] if splits else []
    if not known or not all(fold.get("train") for fold in known):
        return None
    return sum(len(fold["val"]) / len(fold["train"]) for fold in known) / len(known)


def reference_sizes(training: Training, fold: int) -> Sizes:
    """The numbers of voxels that nnU-Net counted when it validated a fold.

    Raises:
        MalformedFileError: there is no summary.json (see ``check_finished``), or it is not what nnU-Net writes.
    """
    file = training.fold_path(fold) / VALIDATION / "summary.json"
    summary = read_json(file)
    check_summary(summary, file)
    return {
        Path(case["prediction_file"]).name.removesuffix(training.file_ending): {
            label_values_of(label): (round(scores["n_ref"]), round(scores["n_pred"]))
            for label, scores in case["metrics"].items()
        }
        for case in summary["metric_per_case"]
    }


def check_reference_sizes(trainings: Sequence[Training], folds: Iterable[int]) -> dict[tuple[Training, int], Sizes]:
    """Refuse trainings that were validated against different labels.

    Returns:
        The sizes by training and fold, to be compared with those of the current files.

    Raises:
        ComparisonError: the labels differ; the message names the case and the label.
    """
    sizes = {(training, fold): reference_sizes(training, fold) for training in trainings for fold in folds}
    for training in trainings:
        for fold in folds:
            own, first = sizes[training, fold], sizes[trainings[0], fold]
            _refuse_case_difference(
                f"fold {fold}: summary.json is from another validation than the predictions in its folder",
                training.fold_path(fold) / VALIDATION,
                validation_cases(training, fold),
                "summary.json",
                own,
            )
            for case, labels in own.items():
                for values, (voxels, _) in labels.items():
                    before = first.get(case, {}).get(values, (voxels,))[0]
                    if voxels != before:
                        raise ComparisonError(
                            f"the labels changed between the trainings: label {_values(values)} of {case} had {before} "
                            f"voxels when {trainings[0].path} was validated, {voxels} for {training.path}"
                        )
    return sizes


def _random_split(
    training: Training, beyond: Sequence[int], folds: Iterable[int], there: int, cases: Sequence[str]
) -> str:
    rest = [fold for fold in folds if fold not in beyond]
    advice = f"compare the other folds alone: {_list(rest)}" if rest else "compare one such fold at a time"
    return (
        f"fold {_list(beyond)} of {training.path} is beyond the {there} folds of splits_final.json: nnU-Net draws a "
        f"random split for it, and its validation cases are in other folds as well (here {_list(cases)}); {advice}"
    )


def _dataset_of(training: Training) -> dict[str, Any]:
    return {key: training.dataset_json.get(key) for key in _OF_DATASET}


def _refuse_differences(title: str, a: Any, b: Any) -> None:
    lines = list(_differences(a, b))
    if lines:
        more = [f"... and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
        raise ComparisonError(f"{title}:" + "".join(f"\n  {line}" for line in lines[:_NAMED] + more))


def _differences(a: Any, b: Any, path: str = "") -> Iterable[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys((*a, *b)):
            yield from _differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    elif a != b and json.dumps(a) != json.dumps(b):  # NaN is not equal to itself
        yield f"{path or 'content'}: {_short(a)} and {_short(b)}"


def _refuse_case_difference(title: str, first: object, a: Iterable[str], second: object, b: Iterable[str]) -> None:
    only = [sorted(set(a) - set(b)), sorted(set(b) - set(a))]
    if any(only):
        lines = [f"\n  only in {name}: {_list(cases)}" for name, cases in zip((first, second), only, strict=True)]
        raise ComparisonError(title + ":" + "".join(line for line, cases in zip(lines, only, strict=True) if cases))


def _list(items: Iterable[object]) -> str:
    items = [str(item) for item in items]
    return ", ".join(items[:_NAMED]) + (f" and {len(items) - _NAMED} more" if len(items) > _NAMED else "")


def _values(values: Iterable[int]) -> str:
    return "+".join(map(str, sorted(values)))


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
