"""Evaluate all cases of two folders: pair the files, check every one of them, then score in parallel processes.

Nothing is computed before all files have been checked: predictions and labels must be complete, have the same size and
spacing, and hold known values only. As in nnU-Net, they are compared voxel by voxel. If their headers have different
origins or directions, a note reports it, or with `strict_geometry` an error. Processes are started by `spawn`, so a
script that uses more than one needs Python's ``if __name__ == "__main__":``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.study.evaluation.images import (
    ENDINGS,
    Displacement,
    EvaluationError,
    Grid,
    displacement,
    voxel_difference,
)
from nnunet_dtc.study.evaluation.labels import LabelSet
from nnunet_dtc.study.evaluation.metrics import ABSENT_RULES, Absent, metrics_for
from nnunet_dtc.study.evaluation.readers import Reader, find_reader
from nnunet_dtc.study.evaluation.score_report import Evaluation
from nnunet_dtc.study.evaluation.scoring import score_case
from nnunet_dtc.study.evaluation.tolerances import DEFAULT_TOLERANCES, Tolerance, check_tolerances
from nnunet_dtc.study.evaluation.workers import Progress, Workers
from nnunet_dtc.study.label_files import shown_values
from nnunet_dtc.study.processes import usable_cores

__all__ = [
    "Pair",
    "Progress",
    "check_label",
    "default_processes",
    "ending_of",
    "evaluate_pairs",
    "find_pairs",
    "refuse",
]

NAMED_PROBLEMS = 10


@dataclass(frozen=True)
class Pair:
    """The name of a case, its prediction and its reference label."""

    case: str
    prediction: Path
    reference: Path


@dataclass(frozen=True)
class _Check:
    file: Path
    known: frozenset[int]
    reader: Reader


@dataclass(frozen=True)
class _Job:
    pair: Pair
    reader: Reader
    spacing_mm: tuple[float, ...]
    labels: LabelSet
    tolerances: tuple[Tolerance, ...]
    absent: Absent


def default_processes() -> int:
    """The number of CPUs that this process may use, at most 8."""
    return min(usable_cores(), 8)


def find_pairs(predictions: Path, labels: Path, ending: str | None = None, subset: bool = False) -> list[Pair]:
    """Pair the files of two folders by their names.

    Hidden files and those with other endings (dataset.json, .npz, ...) are ignored.

    Args:
        predictions: the folder of the predictions.
        labels: the folder of the reference labels.
        ending: such as `.nii.gz`; by default the ending of the labels.
        subset: leave out labels without a prediction, as for the validation folder of one fold.

    Returns:
        The cases, sorted by name.

    Raises:
        EvaluationError: a folder does not exist, there is no case, a label has no prediction (unless `subset`), a
            prediction has no label, or the labels have different endings.
    """
    predictions, labels = Path(predictions), Path(labels)
    for folder in (predictions, labels):
        if not folder.is_dir():
            raise EvaluationError(f"there is no folder {folder}")
    if ending is None:
        endings = [ending for ending in ENDINGS if _files(labels, ending)]
        if len(endings) != 1:
            found = ", ".join(endings) or f"none of {', '.join(ENDINGS)}"
            raise EvaluationError(f"all labels must have the same file ending, found {found} in {labels}")
        ending = endings[0]
    predicted, labelled = _files(predictions, ending), _files(labels, ending)
    if not labelled:
        raise EvaluationError(f"there is no label (*{ending}) in {labels}")
    if not predicted:
        raise EvaluationError(f"there is no prediction (*{ending}) in {predictions}")
    problems = [f"prediction without a label: {predicted[case]}" for case in sorted(predicted.keys() - labelled.keys())]
    if not subset:
        missing = sorted(labelled.keys() - predicted.keys())
        if missing:
            problems.append(
                f"{len(missing)} of {len(labelled)} labels in {labels} have no prediction in {predictions} (set subset "
                "to leave them out; the folder of predictions is the first one)"
            )
        problems += [f"label without a prediction: {labelled[case]}" for case in missing]
    refuse(problems)
    return [Pair(case, predicted[case], labelled[case]) for case in sorted(predicted)]


def evaluate_pairs(
    pairs: Sequence[Pair],
    labels: LabelSet,
    tolerances: Sequence[Tolerance] = DEFAULT_TOLERANCES,
    absent: Absent = "skip",
    processes: int | None = None,
    progress: Progress | None = None,
    reader: Reader | None = None,
    strict_geometry: bool = False,
) -> Evaluation:
    """Score all organs of all cases, voxel by voxel.

    Args:
        pairs: the cases, each with its own name. They may come from several folders, such as the validation folders of
            all folds.
        labels: the organs and the ignore label.
        tolerances: the distances of NSD.
        absent: the rule for organs that are absent in both, see `nnunet_dtc.study.evaluation.metrics`.
        processes: how many cases are processed at a time, by default `default_processes`; 1 works in this process. A
            case takes at most about 20 bytes of memory per voxel, in addition to 0.5 GB for Python with torch.
        progress: called with the step, the number of its items that are done, and the number of all.
        reader: the reader of the files, see `find_reader`; by default the one that nnU-Net takes for their ending.
        strict_geometry: refuse cases whose prediction and label have different origins or directions. By default they
            are scored, and listed in `Evaluation.displaced`. Different sizes or spacings are always refused.

    Raises:
        EvaluationError: files cannot be evaluated (unreadable, cut off, different sizes or spacings, unknown values),
            which is checked for all of them before anything is computed; or a process was killed.
        NnunetDtcError: the tolerances do not fit the organs, or another argument is out of range.
    """
    tolerances = tuple(tolerances)
    check_tolerances(tolerances, labels.names)
    if absent not in ABSENT_RULES:
        raise NnunetDtcError(f"absent must be one of {', '.join(ABSENT_RULES)}, got {absent!r}")
    if processes is not None and processes < 1:
        raise NnunetDtcError(f"processes must be at least 1, got {processes}")
    if not pairs:
        raise EvaluationError("there is no case to evaluate")
    if len({pair.case for pair in pairs}) < len(pairs):
        raise EvaluationError("every case must have its own name")

    reader = reader or find_reader(ending_of(pairs[0].reference), pairs[0].reference)
    count = min(processes or default_processes(), len(pairs))
    with Workers(count) as workers:
        checks = [
            _Check(file, known, reader)
            for pair in pairs
            for file, known in ((pair.prediction, labels.values), (pair.reference, labels.known_in_reference))
        ]
        checked = workers.map("checking files", _check_content, checks, progress)
        predictions = checked[::2]
        references = [
            _with_spacing_of(prediction, reference, pair, reader)
            for pair, prediction, reference in zip(pairs, predictions, checked[1::2], strict=True)
        ]
        displaced = _compare_grids(pairs, predictions, references, strict_geometry)
        jobs = [
            _Job(pair, reader, grid.array_spacing_mm, labels, tolerances, absent)
            for pair, (grid, _) in zip(pairs, references, strict=True)
        ]
        scored = workers.map("scoring cases", _score, jobs, progress)
    return Evaluation(
        scores=pd.DataFrame(
            [{"case": pair.case} | row for pair, rows in zip(pairs, scored, strict=True) for row in rows]
        ),
        metrics=tuple(metric.key for metric in metrics_for(tolerances)),
        files={pair.case: (str(pair.prediction), str(pair.reference)) for pair in pairs},
        labels=labels,
        tolerances=tuple(tolerance.name for tolerance in tolerances),
        absent=absent,
        displaced=displaced,
    )


def ending_of(file: Path) -> str:
    """The ending of an image file: `.nii.gz` for compressed NIfTI files, otherwise the part after the last dot."""
    return ".nii.gz" if file.name.lower().endswith(".nii.gz") else file.suffix


def _files(folder: Path, ending: str) -> dict[str, Path]:
    """The files with this ending, by the name of their case."""
    return {
        file.name.removesuffix(ending): file
        for file in sorted(folder.iterdir())
        if file.name.endswith(ending) and not file.name.startswith(".") and file.is_file()
    }


def refuse(problems: Sequence[str]) -> None:
    """Raise an EvaluationError if there are problems. It lists the first ones and counts the others."""
    if problems:
        more = len(problems) - NAMED_PROBLEMS
        raise EvaluationError("\n".join([*problems[:NAMED_PROBLEMS], *([f"... and {more} more"] if more > 0 else [])]))


_Checked = tuple[Grid | None, str | None]
"""The grid of a file, None if it cannot be read; and its problem, None if there is none."""


def _check_content(check: _Check) -> _Checked:
    return check_label(check.file, check.known, check.reader)


def check_label(file: Path, known: frozenset[int], reader: Reader) -> _Checked:
    """Read a label image to its end, and compare its values with the known ones.

    Returns:
        Its grid, None if it cannot be read; and its problem, None if there is none.
    """
    try:
        grid, strange = reader.check_labels(file, set(known))
    except EvaluationError as error:
        return None, str(error)
    if not strange:
        return grid, None
    values = ", ".join(map(str, sorted(known)))
    return grid, f"unknown label values {shown_values(strange)} (known: {values}) in {file}"


def _with_spacing_of(prediction: _Checked, reference: _Checked, pair: Pair, reader: Reader) -> _Checked:
    """The reference, with the spacing of the prediction if it has none: nnU-Net copies the labels of TIFF volumes
    without the file that holds their spacing."""
    grid, problem = reference
    if grid is None or prediction[0] is None or reader.has_spacing(pair.reference):
        return reference
    return replace(grid, spacing=prediction[0].spacing), problem


def _compare_grids(
    pairs: Sequence[Pair], predictions: Sequence[_Checked], references: Sequence[_Checked], strict: bool
) -> dict[str, Displacement]:
    """The cases whose prediction and label have the same size and spacing, but not the same place.

    Raises:
        EvaluationError: a file has a problem, or a prediction and its label cannot be compared.
    """
    problems, displaced = [], {}
    for pair, prediction, reference in zip(pairs, predictions, references, strict=True):
        problems += [problem for _, problem in (prediction, reference) if problem is not None]
        if prediction[0] is None or reference[0] is None:
            continue
        difference = voxel_difference(prediction[0], reference[0])
        if difference is None and (found := displacement(prediction[0], reference[0])):
            if strict:
                difference = found.difference
            else:
                displaced[pair.case] = found
        if difference is not None:
            problems.append(f"{pair.prediction} is not on the grid of {pair.reference}: {difference}")
    refuse(problems)
    return displaced


def _score(job: _Job) -> list[dict[str, Any]]:
    files = (job.pair.prediction, job.pair.reference)
    dtype = np.min_scalar_type(max(job.labels.known_in_reference))
    prediction, reference = (job.reader.labels(file).evaluated.astype(dtype, copy=False) for file in files)
    return score_case(prediction, reference, job.spacing_mm, job.labels, metrics_for(job.tolerances), job.absent)
