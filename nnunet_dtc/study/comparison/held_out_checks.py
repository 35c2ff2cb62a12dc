"""Checks of the images and labels of held-out cases, before the first case is predicted, which takes long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_dtc.study.evaluation.folders import Progress, check_label, default_processes, refuse
from nnunet_dtc.study.evaluation.images import EvaluationError, displacement, voxel_difference
from nnunet_dtc.study.evaluation.labels import LabelSet
from nnunet_dtc.study.evaluation.readers import Reader, check_image_file
from nnunet_dtc.study.evaluation.workers import Workers

__all__ = ["check_held_out"]


@dataclass(frozen=True)
class _Case:
    images: tuple[Path, ...]
    label: Path
    known: frozenset[int]
    reader: Reader
    strict: bool


def check_held_out(
    references: Mapping[str, Path],
    images: Mapping[str, tuple[Path, ...]],
    labels: LabelSet,
    reader: Reader,
    strict_geometry: bool = False,
    processes: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Check that all images and labels are complete, that the labels hold known values only, and that each label has
    the size and spacing of its image, because predictions will have those of the image.

    Args:
        references: label file by case.
        images: files of the channels by case.
        labels: the organs and the ignore label.
        reader: the reader of all files.
        strict_geometry: whether origin and direction must agree as well.
        processes: how many cases are checked at a time; by default one for each CPU, at most 8.
        progress: called with the step, the number of cases checked and their total.

    Raises:
        EvaluationError: files are damaged or do not fit; the message names them.
    """
    cases = [
        _Case(images[case], label, labels.known_in_reference, reader, strict_geometry)
        for case, label in references.items()
    ]
    with Workers(min(processes or default_processes(), len(cases))) as workers:
        problems = workers.map("checking held-out cases", _problems, cases, progress)
    refuse([problem for found in problems for problem in found])


def _problems(case: _Case) -> list[str]:
    grid, problem = check_label(case.label, case.known, case.reader)
    problems = [] if problem is None else [problem]
    for file in case.images:
        try:
            check_image_file(file)
            of_image = case.reader.image(file).grid
        except EvaluationError as error:
            problems.append(str(error))
            continue
        if grid is None:
            continue
        difference = voxel_difference(grid, of_image)
        if difference is None and case.strict and (found := displacement(grid, of_image)):
            difference = found.difference
        if difference is not None:
            problems.append(f"{case.label} is not on the grid of {file}: {difference}")
    return problems
