"""Everything that can be known before a study starts: what cannot work is refused here, not after days."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from nnunet_dtc.files import check_utf8, write_whole
from nnunet_dtc.plugin.finder import find_trainer
from nnunet_dtc.plugin.model_folder import ModelFolderError
from nnunet_dtc.plugin.nnunet_files import check_dataset_json, resolved_configuration
from nnunet_dtc.study.evaluation.folders import Progress
from nnunet_dtc.study.workflow.definition import MARKER, Study, StudyError
from nnunet_dtc.study.workflow.model_files import StudyFiles
from nnunet_dtc.study.workflow.nnunet_commands import PLANNERS, label_files, program

__all__ = ["COMMANDS", "check_own_folder", "check_single_stage", "check_study"]

COMMANDS = (
    "nnUNetv2_plan_and_preprocess",
    "nnUNetv2_preprocess",
    "nnUNetv2_train",
    "nnUNetv2_predict_from_modelfolder",
)
_NNUNETS_FOLDS = 5
_FEW_CASES = 5  # which are read sooner than processes have started


def check_study(study: Study, progress: Progress | None = None) -> StudyFiles:
    """Check the data set, plans, trainers, folds, held-out cases and folders; nothing of nnU-Net's is written.

    Args:
        study: the study; its environment must be set.
        progress: called with (step, done, total) while labels are read.

    Returns:
        The files of the study.

    Raises:
        NnunetDtcError: for the first thing that cannot work, with the reason.
        OSError: a folder cannot be written.
    """
    for path in (study.file, study.raw, study.preprocessed, study.results):
        check_utf8(path)
    for command in COMMANDS:
        program(command)
    for trainer in study.trainers:
        find_trainer(trainer)
    files = _files(study)
    _check_plans(files)
    _check_folds(files)
    for folder in (study.folder, study.results / files.dataset):
        _check_writable(folder)
    check_own_folder(study)
    for trainer in study.trainers:
        files.check_plans_unchanged(trainer)
        for fold in study.folds:
            files.check_split_unchanged(trainer, fold)
    _check_complexity(files)
    study.folder.mkdir(parents=True, exist_ok=True)
    (study.folder / MARKER).touch()
    _check_labels(files, progress)
    return files


def check_single_stage(files: StudyFiles) -> None:
    """Refuse the second stage of a cascade; the plans must be there.

    Raises:
        StudyError: the configuration is one.
    """
    configuration = files.study.configuration
    if resolved_configuration(files.plans, configuration, files.plans_file).get("previous_stage"):
        raise StudyError(
            f"{configuration} is the second stage of a cascade, which needs the predictions of the first: a study "
            "trains a single stage"
        )


def check_own_folder(study: Study) -> None:
    """Refuse a folder that holds something else than a study.

    Raises:
        StudyError: it has files, but not the marker of a study.
    """
    if study.folder.is_dir() and any(study.folder.iterdir()) and not (study.folder / MARKER).is_file():
        raise StudyError(
            f"{study.folder}, the folder of this study, has other files: give {study.file.name} another name (or, if "
            f"they are of a study, create an empty file {MARKER} there)"
        )


def _files(study: Study) -> StudyFiles:
    files = StudyFiles(study)
    if not (files.raw / "dataset.json").is_file() and not (files.preprocessed / "dataset.json").is_file():
        raise ModelFolderError(
            f"there is no data set {files.dataset} in {study.raw} (with dataset.json, imagesTr and labelsTr)"
        )
    check_dataset_json(files.dataset_json, "dataset.json")
    return files


def _check_plans(files: StudyFiles) -> None:
    """The plans are there, with the configuration, or can be made."""
    study = files.study
    if files.plans is None and study.plans not in PLANNERS:
        raise StudyError(
            f"there are no plans {files.plans_file}, and which planner makes them is not known (it is for "
            f"{', '.join(PLANNERS)}): plan by nnUNetv2_plan_experiment first"
        )
    if files.plans is None and not (files.raw / "labelsTr").is_dir():
        raise StudyError(f"there are no plans {files.plans_file}, and no data to plan for in {files.raw}")
    if files.plans is not None:
        check_single_stage(files)


def _check_complexity(files: StudyFiles) -> None:
    """The file of `nnunet-dtc complexity` is there and is of these plans, as the comparisons need it."""
    from nnunet_dtc.study.comparison.logs import read_peak_memory

    study = files.study
    if study.complexity is None:
        return
    if not study.complexity.is_file():
        raise StudyError(f"there is no file {study.complexity} (complexity)")
    if study.kinds:
        read_peak_memory(study.complexity, files.dataset, study.plans, study.configuration)


def _check_folds(files: StudyFiles) -> None:
    from nnunet_dtc.study.comparison.checks import check_disjoint_folds

    if files.splits is None and (files.raw / "labelsTr").is_dir() and "dataset" not in files.dataset_json:
        cases = label_files(files.raw / "labelsTr", files.dataset_json["file_ending"])
        if len(cases) < _NNUNETS_FOLDS:
            raise StudyError(
                f"nnU-Net needs at least {_NNUNETS_FOLDS} training cases for its {_NNUNETS_FOLDS} folds, "
                f"{files.dataset} has {len(cases)}: give it a splits_final.json of its own"
            )
    if "validation" in files.study.kinds and files.splits is not None:
        check_disjoint_folds(files.splits, [fold for fold in files.study.folds if fold < len(files.splits)])
    there = _NNUNETS_FOLDS if files.splits is None else len(files.splits)
    if beyond := [fold for fold in files.study.folds if fold >= there]:
        origin = "nnU-Net makes" if files.splits is None else f"{files.preprocessed / 'splits_final.json'} has"
        raise StudyError(f"folds {', '.join(map(str, beyond))} do not exist: {origin} the folds 0 to {there - 1}")


def _check_writable(folder: Path) -> None:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise StudyError(f"cannot write into {there}, which is needed for {folder}")


def _check_labels(files: StudyFiles, progress: Progress | None) -> None:
    """All labels that are compared at the end can be: they are complete, hold known values, and fit to their images.
    Files that were found good are not read again until they change."""
    from nnunet_dtc.study.comparison.case_images import image_cases, training_images

    ending = files.dataset_json["file_ending"]
    sets = []
    if (files.raw / "labelsTr").is_dir() and "dataset" not in files.dataset_json:  # which lists files anywhere
        sets.append((files.raw / "labelsTr", training_images(files.raw, ending)))
    if files.study.test:
        for name in ("imagesTs", "labelsTs"):
            if not (files.raw / name).is_dir():
                raise StudyError(f"test: true needs held-out cases, and there is no folder {files.raw / name}")
        sets.append((files.raw / "labelsTs", image_cases(files.raw / "imagesTs", ending)))
    for labels, images in sets:
        references = label_files(labels, ending)
        used = [file for case, file in references.items() for file in (file, *images.get(case, ()))]
        states: dict[str, object] = {str(file): [file.stat().st_size, file.stat().st_mtime] for file in used}
        states["labels"] = files.dataset_json["labels"]  # another meaning of a value makes other files wrong
        now = json.dumps(states, indent=0)
        record = files.study.folder / f"checked_{labels.name}.json"
        if not record.is_file() or record.read_text(encoding="utf-8") != now:
            _check_cases(files, references, images, progress)
            write_whole(record, now)


def _check_cases(
    files: StudyFiles,
    references: Mapping[str, Path],
    images: Mapping[str, tuple[Path, ...]],
    progress: Progress | None,
) -> None:
    from nnunet_dtc.study.comparison.case_images import training_images
    from nnunet_dtc.study.comparison.held_out_checks import check_held_out
    from nnunet_dtc.study.evaluation import find_reader
    from nnunet_dtc.study.evaluation.labels import labels_from_dataset_json
    from nnunet_dtc.study.evaluation.readers import reader_of_planner

    if missing := sorted(set(references) - set(images)):
        raise StudyError(f"labels without an image in {files.raw}: {', '.join(missing[:6])}")
    labels = labels_from_dataset_json(files.raw / "dataset.json")[0]
    ending = files.dataset_json["file_ending"]
    if files.plans is None and (training := training_images(files.raw, ending)):
        reader = reader_of_planner(next(iter(training.values()))[0], ending, files.dataset_json)
    else:
        reader = find_reader(ending, None, files.dataset_json, files.plans)
    processes = 1 if len(references) < _FEW_CASES else None
    check_held_out(references, images, labels, reader, processes=processes, progress=progress)
