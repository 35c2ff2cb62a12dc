"""Images and labels of held-out cases are checked before the first of them is predicted, which takes long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_dtc.study.evaluation.folders import Progress, check_label, default_processes, refuse
from nnunet_dtc.study.evaluation.images import EvaluationError, displacement, voxel_difference
from nnunet_dtc.study.evaluation.labels import LabelSet
from nnunet_dtc.study.evaluation.readers import Reader, check_image_file
from nnunet_dtc.study.evaluation.workers import Workers

if TYPE_CHECKING:
    from nnunet_dtc.study.comparison.plan import Options

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
    options: Options,
    progress: Progress | None = None,
) -> None:
    """Check that all images and labels are complete, that the labels hold known values, and that each has the size and
    spacing of its image: predictions have those of the image.

    Args:
        references: label file by case.
        images: files of the channels by case.
        options: how many processes to use, and whether origin and direction must agree, too.

    Raises:
        EvaluationError: naming every file that does not fit.
    """
    cases = [
        _Case(images[case], label, labels.known_in_reference, reader, options.strict_geometry)
        for case, label in references.items()
    ]
    with Workers(min(options.processes or default_processes(), len(cases))) as workers:
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
