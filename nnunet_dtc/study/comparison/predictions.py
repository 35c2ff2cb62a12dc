"""Predictions of the held-out cases, made by nnU-Net's own commands.

They are written into `predictions/TRAINER`: `ensemble` (all folds; nnU-Net averages their logits), `ensemble_softmax`
(the mean of the folds' softmax outputs, as in the paper) and `fold_<k>`. A folder has the name `NAME.unfinished` until
every case has been predicted. A file in it records what it was made from, so that only finished predictions of the same
checkpoints and images are used again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nnunet_dtc.files import write_whole
from nnunet_dtc.plugin.nnunet_files import resolved_configuration
from nnunet_dtc.plugin.registration import EXT_VARIABLE, environment_value
from nnunet_dtc.study.comparison.case_images import image_cases
from nnunet_dtc.study.comparison.models import ComparisonError, Training
from nnunet_dtc.study.evaluation.folders import Progress
from nnunet_dtc.study.processes import find_program, guarded, usable_cores

__all__ = [
    "AVERAGES",
    "Average",
    "HeldOutSet",
    "are_predicted",
    "check_predictable",
    "predict_ensemble",
    "predict_fold",
    "prediction_files",
]

Average = Literal["logits", "softmax"]
AVERAGES: tuple[Average, ...] = ("logits", "softmax")
RECORD = "made_from.json"
LOG_LINES = 15
WATCHED_EVERY_S = 1.0
NNUNETS_WORKERS = 3  # of each kind, by default
_FORMAT = 1

Announce = Callable[[str], None]


@dataclass(frozen=True)
class HeldOutSet:
    """The held-out cases, and what they are predicted with.

    Attributes:
        images: the folder of the images, with nnU-Net's channel numbers.
        cases: the cases that have a label and must be predicted.
        checkpoint: the file name of the checkpoints, the same for all models.
        device: `cuda`, `cpu` or `mps`.
        announce: called with every command before it is run, and with predictions that are used again.
        progress: called with the step, the number of images predicted and their total, while a command predicts.
    """

    images: Path
    cases: tuple[str, ...]
    checkpoint: str
    device: str
    announce: Announce
    progress: Progress | None = None


def check_predictable(trainings: Sequence[Training], folds: Sequence[int], held_out: HeldOutSet) -> None:
    """Check everything that can be checked before the first prediction.

    Raises:
        ComparisonError: a checkpoint, an image or a command of nnU-Net is missing, or the models are the second stage
            of a cascade, which needs the predictions of the first one.
    """
    for training in trainings:
        for fold in folds:
            if not (file := training.fold_path(fold) / held_out.checkpoint).is_file():
                raise ComparisonError(f"there is no {file}; checkpoint may be another file name")
        if resolved_configuration(training.plans, training.configuration, training.path).get("previous_stage"):
            raise ComparisonError(
                f"{training.configuration} is the second stage of a cascade: predict both stages by nnU-Net's commands "
                "and give the folders as predictions"
            )
    images = image_cases(held_out.images, trainings[0].file_ending)
    if missing := sorted(set(held_out.cases) - set(images)):
        raise ComparisonError(f"labels without an image in {held_out.images}: {', '.join(missing[:6])}")
    for command in ("nnUNetv2_predict_from_modelfolder", "nnUNetv2_ensemble"):
        _program(command)


def predict_fold(training: Training, fold: int, held_out: HeldOutSet, target: Path) -> Path:
    """Predict by the model of one fold, unless the predictions are already there.

    Returns:
        The folder of the predictions, `target/fold_<k>`.

    Raises:
        ComparisonError: nnU-Net fails, or the folder was not made by nnunet-dtc.
    """
    return _make(
        _folder(target, [fold], None),
        _record(training, [fold], None, held_out),
        held_out,
        training.file_ending,
        _predicting(training, [fold]),
    )


def predict_ensemble(
    training: Training, folds: Sequence[int], average: Average, held_out: HeldOutSet, target: Path
) -> Path:
    """Predict by the ensemble of all folds, unless the predictions are already there.

    Returns:
        The folder of the predictions, `target/ensemble` or `target/ensemble_softmax`.

    Raises:
        ComparisonError: nnU-Net fails, or the folder was not made by nnunet-dtc.
    """
    return _make(
        _folder(target, folds, average),
        _record(training, folds, average, held_out),
        held_out,
        training.file_ending,
        (_averaging_softmax if average == "softmax" else _predicting)(training, folds),
    )


def are_predicted(
    training: Training, folds: Sequence[int], average: Average | None, held_out: HeldOutSet, target: Path
) -> bool:
    """Whether `predict_ensemble`, or `predict_fold` with `average` None, would use predictions that are there."""
    if not set(held_out.cases) <= image_cases(held_out.images, training.file_ending).keys():
        return False
    record = _record(training, folds, average, held_out)
    return _is_made_from(_folder(target, folds, average), record, held_out.cases, training.file_ending)


def prediction_files(folder: Path, cases: Sequence[str], ending: str) -> dict[str, Path]:
    """The predictions of these cases in a folder.

    Raises:
        ComparisonError: there is no prediction of a case.
    """
    files = {case: folder / f"{case}{ending}" for case in cases}
    if missing := [case for case, file in files.items() if not file.is_file()]:
        raise ComparisonError(f"{folder} has no prediction of {', '.join(missing[:6])}")
    return files


def _folder(target: Path, folds: Sequence[int], average: Average | None) -> Path:
    if average is None:
        return target / f"fold_{folds[0]}"
    return target / ("ensemble_softmax" if average == "softmax" else "ensemble")


def _record(training: Training, folds: Sequence[int], average: Average | None, held_out: HeldOutSet) -> dict[str, Any]:
    """Everything that determines the predictions."""
    images = image_cases(held_out.images, training.file_ending)
    return {
        "format": _FORMAT,
        "model": str(training.path),
        "checkpoints": {
            str(training.fold_path(fold) / held_out.checkpoint): _stamp(training.fold_path(fold) / held_out.checkpoint)
            for fold in folds
        },
        "average": average or "none",
        "images": {str(file): _stamp(file) for case in held_out.cases for file in images[case]},
    }


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _make(
    folder: Path, record: Mapping[str, Any], held_out: HeldOutSet, ending: str, make: Callable[[Path, HeldOutSet], None]
) -> Path:
    if _is_made_from(folder, record, held_out.cases, ending):
        held_out.announce(f"{folder} is used again: it was made from the same checkpoints and images")
        return folder
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    for old in (folder, unfinished):
        if old.exists() and not (old / RECORD).is_file() and (not old.is_dir() or any(old.iterdir())):
            raise ComparisonError(f"{old} was not made by nnunet-dtc: move it away, or give another output folder")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _write_record(unfinished, {"unfinished": True})
    make(unfinished, held_out)
    prediction_files(unfinished, held_out.cases, ending)  # nnU-Net may exit with 0 although some are missing
    _write_record(unfinished, record)
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.rename(folder)
    return folder


def _predicting(training: Training, folds: Sequence[int], *more: str) -> Callable[[Path, HeldOutSet], None]:
    def make(folder: Path, held_out: HeldOutSet) -> None:
        command = ["nnUNetv2_predict_from_modelfolder", "-m", str(training.path), "-i", str(held_out.images)]
        command += ["-o", str(folder), "-f", *map(str, folds), "-chk", held_out.checkpoint, "-device", held_out.device]
        files = [
            folder / f"{case}{training.file_ending}" for case in image_cases(held_out.images, training.file_ending)
        ]
        step = f"{training.trainer}, fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"

        def watch() -> None:
            if held_out.progress:
                held_out.progress(step, sum(file.is_file() for file in files), len(files))

        command += _few_workers()
        _run([*command, "--disable_progress_bar", *more], _log_of(folder), held_out.announce, watch)

    return make


def _few_workers() -> list[str]:
    """Options for no more workers than cores: nnU-Net starts three to read and three to write, seconds for each."""
    cores = usable_cores()
    return ["-npp", str(cores), "-nps", str(cores)] if cores < NNUNETS_WORKERS else []


def _averaging_softmax(training: Training, folds: Sequence[int]) -> Callable[[Path, HeldOutSet], None]:
    """nnU-Net writes the probabilities of each fold, and its ensembling command averages them. They are removed
    afterwards, because they are a hundred times as large as the segmentations."""

    def make(folder: Path, held_out: HeldOutSet) -> None:
        parts = [folder / f"fold_{fold}" for fold in folds]
        for fold, part in zip(folds, parts, strict=True):
            part.mkdir()
            predict = _predicting(training, [fold], "--save_probabilities")
            predict(part, held_out)
        _run(["nnUNetv2_ensemble", "-i", *map(str, parts), "-o", str(folder)], _log_of(folder), held_out.announce)
        for part in parts:
            shutil.rmtree(part)

    return make


def _log_of(folder: Path) -> Path:
    """The log file beside a folder of predictions."""
    return folder.parent / f"{folder.name.removesuffix('.unfinished')}.log"


def _run(command: Sequence[str], log: Path, announce: Announce, watch: Callable[[], None] = lambda: None) -> None:
    """Run a command of nnU-Net, with its output in a file; ``watch`` is called once a second. If this process ends
    before, the command and its worker processes are ended as well.

    Raises:
        ComparisonError: the command fails; the message has the last lines of its output.
    """
    announce(f"{shlex.join(command)} > {log}")
    with log.open("a", encoding="utf-8") as output:
        output.write(f"$ {shlex.join(command)}\n")
        output.flush()
        with guarded(
            [_program(command[0]), *command[1:]],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, EXT_VARIABLE: environment_value()},  # finds our trainers, registered or not
        ) as process:
            status = _wait(process, watch)
    if status != 0:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        raise ComparisonError(
            f"{command[0]} failed with exit status {status}; the end of {log}:"
            + "".join(f"\n  {line}" for line in last)
        )


def _wait(process: subprocess.Popen, watch: Callable[[], None]) -> int:
    status = None
    while status is None:
        watch()
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(WATCHED_EVERY_S)
    watch()
    return status


def _program(command: str) -> str:
    """nnU-Net's command of this Python's environment, else the one on PATH."""
    program = find_program(command)
    if program is None:
        raise ComparisonError(f"there is no command {command} beside {sys.executable} or on PATH: install nnunetv2")
    return program


def _is_made_from(folder: Path, record: Mapping[str, Any], cases: Sequence[str], ending: str) -> bool:
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return found == record and all((folder / f"{case}{ending}").is_file() for case in cases)


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    write_whole(folder / RECORD, json.dumps(record, indent=2) + "\n")
