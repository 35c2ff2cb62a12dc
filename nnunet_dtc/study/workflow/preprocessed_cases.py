"""What nnU-Net has preprocessed: the cases that a study trains with, and those that its validation reads."""

from __future__ import annotations

import os
from pathlib import Path

from nnunet_dtc.plugin.file_rules import read_json
from nnunet_dtc.study.workflow.model_files import StudyFiles

__all__ = ["has_all_cases", "is_preprocessed", "other_plans_use", "remove_cut_off_labels"]


def is_preprocessed(files: StudyFiles, folder: Path) -> bool:
    """Whether all cases are in a folder of preprocessed cases, and there are the copies of their labels.

    nnU-Net validates with these copies. Without the raw data set, what is there counts as all.

    Args:
        files: the files of the study, with plans.
        folder: one of `StudyFiles.data_folders`.
    """
    return has_all_cases(files, folder) and all(
        copy.is_file() and not _is_cut_off(copy, label) for copy, label in _label_copies(files)
    )


def has_all_cases(files: StudyFiles, folder: Path) -> bool:
    """Whether all cases are in a folder of preprocessed cases, whatever their labels are now.

    Args:
        files, folder: as for `is_preprocessed`.
    """
    there = {file.stem for file in folder.glob("*.pkl")}  # of each case, nnU-Net writes the .pkl last
    labels = _training_labels(files)
    return bool(there) if labels is None else labels.keys() <= there


def remove_cut_off_labels(files: StudyFiles) -> None:
    """Remove copies of labels that were cut off: being newer than the labels, nnU-Net would keep them."""
    for copy, label in _label_copies(files):
        if copy.is_file() and _is_cut_off(copy, label):
            copy.unlink()


def other_plans_use(files: StudyFiles, folder: Path) -> bool:
    """Whether other plans have this folder of preprocessed cases, from which another study may train."""
    for file in files.preprocessed.glob("*.json"):
        content = read_json(file) if file != files.plans_file else None
        if isinstance(content, dict) and isinstance(content.get("configurations"), dict):
            for configuration in content["configurations"].values():
                if configuration.get("data_identifier") == folder.name:
                    return True
    return False


def _label_copies(files: StudyFiles) -> list[tuple[Path, Path]]:
    """The copy in gt_segmentations, which need not exist, and the label of each case; none without the raw data set."""
    copies, ending = files.preprocessed / "gt_segmentations", files.dataset_json["file_ending"]
    return [(copies / f"{case}{ending}", label) for case, label in (_training_labels(files) or {}).items()]


def _is_cut_off(copy: Path, label: Path) -> bool:
    return label.is_file() and copy.stat().st_size != label.stat().st_size


def _training_labels(files: StudyFiles) -> dict[str, Path] | None:
    """The label of each training case, by nnU-Net's rules: those that dataset.json lists, else those of imagesTr.

    None if the raw data set is not there. nnU-Net's own function forks processes for this, which can wait for ever in a
    process that handles signals.
    """
    if not (files.raw / "dataset.json").is_file():
        return None
    if "dataset" in files.dataset_json:
        listed = files.dataset_json["dataset"].items()
        return {case: files.raw / os.path.expandvars(entry["label"]) for case, entry in listed}
    if not (files.raw / "labelsTr").is_dir():
        return None
    ending = files.dataset_json["file_ending"]
    images = (files.raw / "imagesTr").glob(f"*_0000{ending}")
    cases = (image.name.removesuffix(f"_0000{ending}") for image in images)
    return {case: files.raw / "labelsTr" / f"{case}{ending}" for case in cases}
