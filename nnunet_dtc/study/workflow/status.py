"""How far the trainings of a study are, read from nnU-Net's logs and from what the jobs note of themselves.

Nothing is computed or loaded, so it can be asked for while jobs run elsewhere.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_dtc.study.workflow.definition import Study
from nnunet_dtc.study.workflow.model_files import StudyFiles
from nnunet_dtc.trainers import names

__all__ = [
    "HEARTBEAT_S",
    "JobNote",
    "TrainingStatus",
    "counted",
    "epochs_of",
    "failed_jobs",
    "log_end",
    "note_file",
    "read_progress",
    "read_status",
    "seconds_per_epoch",
    "summary_line",
]

HEARTBEAT_S = 20.0
"""How often a job says that it is alive."""

SILENT_S = 8 * HEARTBEAT_S  # a job on another machine that is silent for so long is gone
STATES = ("finished", "validating", "training", "waiting", "interrupted", "failed", "begun", "to do")
"""The states of a training; "begun" is one that nnU-Net began without the study."""

_LOG_LINES = 15
_ERROR = re.compile(r"[\w.]*(Error|Exception)\b")
_RECENT = 20  # epochs whose median duration is the one to come
_EPOCH = re.compile(r": Epoch (\d+) *$")
_SECONDS = re.compile(r": Epoch time: ([\d.]+) s")
_DICE = re.compile(r": Pseudo dice \[(.*)\]")
_NUMBER = re.compile(r"(?<![\w.])(?:nan|\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?=\)|,|$)")  # nnU-Net also prints np.float32(0.5)


@dataclass(frozen=True)
class JobNote:
    """What a job notes of itself, in `jobs/...json` of the study's folder.

    Attributes:
        job: such as "train nnUNetTrainerDTC fold 0".
        state: `waiting` (for a GPU), `running`, `finished`, `interrupted` or `failed`.
        host, process: where it runs.
        place: GPU or CPU, and the number of the scheduler's job.
        log: its output.
        alive: when it last reported this (seconds since 1970).
    """

    job: str
    state: str
    host: str
    process: int
    place: str
    log: str
    alive: float

    @property
    def is_alive(self) -> bool:
        """Whether it runs or waits, as far as can be seen from this machine."""
        if self.state not in ("waiting", "running"):
            return False
        if self.host == socket.gethostname():
            return _process_exists(self.process)
        return time.time() - self.alive < SILENT_S

    @property
    def where(self) -> str:
        return f"{self.host}, {self.place}" if self.place else self.host


@dataclass(frozen=True)
class Progress:
    """The progress of one fold, from its training logs.

    Attributes:
        epochs: the number of finished epochs.
        dice: mean pseudo Dice of the last one; NaN if there is none.
        seconds: the duration of each epoch; an epoch that was interrupted and repeated is there twice.
    """

    epochs: int
    dice: float
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class TrainingStatus:
    """The state of one training.

    Attributes:
        trainer, fold: which training it is.
        state: one of STATES.
        epochs, of: the number of finished epochs, and of all epochs.
        dice: mean pseudo Dice of the last epoch.
        seconds_left: how long the training will still take, from the median duration of its last epochs; None if that
            is not known.
        where: host and device, if it is running.
    """

    trainer: str
    fold: int
    state: str
    epochs: int
    of: int
    dice: float
    seconds_left: float | None
    where: str


def note_file(study: Study, *job: str) -> Path:
    """Where a job notes its state."""
    return _notes(study).joinpath(*job).with_suffix(".json")


def _notes(study: Study) -> Path:
    """The folder of the notes of jobs: another data set, plans or configuration has another."""
    return study.folder / "jobs" / study.stamps.name


def read_note(file: Path) -> JobNote | None:
    """None where there is none that is whole."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return JobNote(**content, alive=file.stat().st_mtime)
    except (OSError, ValueError, TypeError):
        return None


def read_progress(fold_folder: Path) -> Progress:
    """What nnU-Net's logs say. A training that went on from an earlier checkpoint repeats epochs."""
    epochs, dice, seconds = 0, math.nan, []
    for log in sorted(fold_folder.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime):
        epoch, current = None, math.nan
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if found := _EPOCH.search(line):
                epoch = int(found[1])
            elif found := _DICE.search(line):
                current = _mean([float(number) for number in _NUMBER.findall(found[1])])
            elif (found := _SECONDS.search(line)) and epoch is not None:
                epochs, dice = epoch + 1, current
                seconds.append(float(found[1]))
    return Progress(epochs, dice, tuple(seconds))


def epochs_of(trainer: str) -> int | None:
    """How many epochs a trainer has, by its name; None for a trainer of others whose name does not say so."""
    try:
        spec = names.parse(trainer)
    except (names.TrainerNameError, names.UnknownSuffixError):
        spec = None
    if spec is not None:
        return spec.epochs
    found = re.search(r"_(\d+)epochs?(?=_|$)", trainer)
    if found is not None:
        return int(found[1])
    return names.DEFAULT_EPOCHS if trainer == names.PREFIX else None


def read_status(files: StudyFiles) -> list[TrainingStatus]:
    """The state of every training of the study.

    Where the name does not say how many epochs a trainer has, they are those of a finished training of the same model,
    or else nnU-Net's 1000.
    """
    epochs: dict[str, int] = {}
    for trainer, fold in files.study.trainings:
        if (model := _model(trainer)) in epochs:
            continue
        named = epochs_of(trainer)
        if named is None and files.is_trained(trainer, fold):
            named = read_progress(files.fold_folder(trainer, fold)).epochs or None
        if named is not None:
            epochs[model] = named
    return [
        _training(files, trainer, fold, epochs.get(_model(trainer), names.DEFAULT_EPOCHS))
        for trainer, fold in files.study.trainings
    ]


def failed_jobs(study: Study) -> list[JobNote]:
    """The jobs whose last try failed."""
    notes = (read_note(file) for file in sorted(_notes(study).rglob("*.json")))
    return [note for note in notes if note is not None and note.state == "failed"]


def log_end(log: Path) -> list[str]:
    """The last lines of a job's log. The first error of its last try stands before them: nnU-Net's worker processes
    print errors of their own after it.
    """
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = text.rpartition("\n$ ")[2].splitlines()
    end = lines[-_LOG_LINES:]
    first = next((line for line in lines[:-_LOG_LINES] if _ERROR.match(line)), None)
    return end if first is None else [first, "...", *end]


def seconds_per_epoch(files: StudyFiles) -> dict[str, float]:
    """The median duration of an epoch by trainer: from the logs of these trainers' trainings, whoever ran them, else
    from `nnunet-dtc complexity`, else of the other trainers of the study. Trainers of which nothing is known are
    missing."""
    known = {}
    for trainer in files.study.trainers:
        found = [s for fold in files.model_folder(trainer).glob("fold_*") for s in read_progress(fold).seconds]
        if found:
            known[trainer] = statistics.median(found)
    for trainer, seconds in _of_complexity(files.study).items():
        known.setdefault(trainer, seconds)
    if known:
        rest = statistics.median(known.values())
        for trainer in files.study.trainers:
            same = [known[other] for other in known if _model(other) == _model(trainer)]
            known.setdefault(trainer, same[0] if same else rest)
    return known


def summary_line(trainings: Sequence[TrainingStatus]) -> str:
    """Such as "30 trainings: 12 finished, 2 training, 16 to do"."""
    count = Counter(training.state for training in trainings)
    return f"{counted(len(trainings), 'training')}: " + ", ".join(
        f"{count[state]} {state}" for state in STATES if count[state]
    )


def counted(number: int, noun: str) -> str:
    """Such as "1 fold" or "5 folds"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _training(files: StudyFiles, trainer: str, fold: int, of: int) -> TrainingStatus:
    progress = read_progress(files.fold_folder(trainer, fold))
    notes = [read_note(note_file(files.study, part, trainer, f"fold_{fold}")) for part in ("validate", "train")]
    alive = next((note for note in notes if note is not None and note.is_alive), None)
    if files.is_trained(trainer, fold):
        epochs = of
        state = "finished" if files.is_validated(trainer, fold) else "validating" if alive else _ended(notes)
    else:
        epochs = progress.epochs
        state = ("training" if alive.state == "running" else "waiting") if alive else _ended(notes[1:])
    if state == "to do" and epochs:
        state = "begun"
    left = None
    if epochs < of and progress.seconds:
        left = (of - epochs) * statistics.median(progress.seconds[-_RECENT:])
    return TrainingStatus(trainer, fold, state, epochs, of, progress.dice, left, alive.where if alive else "")


def _ended(notes: Sequence[JobNote | None]) -> str:
    """The state of a training that nobody works on."""
    states = [note.state for note in notes if note is not None]
    if not states:
        return "to do"
    return "failed" if states[0] == "failed" else "interrupted"


def _of_complexity(study: Study) -> dict[str, float]:
    """Seconds of an epoch of nnU-Net's 250 iterations, from what `nnunet-dtc complexity` measured."""
    if study.complexity is None:
        return {}
    try:
        measured = json.loads(study.complexity.read_text(encoding="utf-8"))["trainers"]
        steps = {name: costs.get("step_seconds") for name, costs in measured.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: 250 * float(step) for name, step in steps.items() if step and name in study.trainers}


def _model(trainer: str) -> str:
    return names.split_repetition(trainer)[0]


def _mean(numbers: Sequence[float]) -> float:
    numbers = [number for number in numbers if not math.isnan(number)]
    return statistics.fmean(numbers) if numbers else math.nan


def _process_exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True
