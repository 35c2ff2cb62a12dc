"""What the jobs of the Snakefile do, each by nnU-Net's own commands or `nnunet-dtc compare`.

Every job finds out what is done already, so one that runs again repeats nothing. What it prints is its log.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_dtc.files import write_whole
from nnunet_dtc.study.processes import guarded
from nnunet_dtc.study.workflow.checks import check_single_stage
from nnunet_dtc.study.workflow.definition import MARKER, StudyError
from nnunet_dtc.study.workflow.held_out import (
    comparison_folder,
    drop_outdated_predictions,
    held_out_cases,
    predictions_folder,
)
from nnunet_dtc.study.workflow.machine import Lock, device_of_its_own, scheduler_job
from nnunet_dtc.study.workflow.model_files import CHECKPOINTS, StudyFiles, is_whole
from nnunet_dtc.study.workflow.nnunet_commands import PLANNERS, program
from nnunet_dtc.study.workflow.preprocessed_cases import is_preprocessed, other_plans_use, remove_cut_off_labels
from nnunet_dtc.study.workflow.status import HEARTBEAT_S, JobNote, note_file

__all__ = ["compare", "predict", "preprocess", "train", "validate"]


def preprocess(files: StudyFiles) -> None:
    """Plan and preprocess, as far as that is not done, and write the split that nnU-Net would make.

    Two trainings that begin at once would both write this split.

    Raises:
        StudyError: a command failed, or did not make what it should.
    """
    job = _Job(files, "preprocess")
    lock = files.study.preprocessed / f".{files.dataset}.study_lock"
    with job.noted():
        if not _all_is_preprocessed(files):  # so that nothing is written into a folder that is complete
            with Lock.waiting(lock, job.tell, "another study preprocesses this data set", job.beat) as held:
                job.holds(held)
                _preprocess(files, job)
        job.tell("planned, preprocessed and split")


def train(files: StudyFiles, trainer: str, fold: int) -> None:
    """Train one fold, from its last checkpoint if there is one.

    Raises:
        StudyError: plans or split changed since it began, or nnU-Net failed.
    """
    job = _Job(files, "train", trainer, f"fold_{fold}")
    with job.noted("waiting"), _this_training(job, trainer, fold):
        if not files.is_trained(trainer, fold):
            command = _train_command(files, trainer, fold)
            if files.has_begun(trainer, fold):
                command.append("--c")
            else:
                _write_split_record(files, trainer, fold)
            job.run_on_device(command, done=lambda: files.is_trained(trainer, fold))
        job.tell(f"{trainer} fold {fold} is trained")


def validate(files: StudyFiles, trainer: str, fold: int) -> None:
    """Validate one fold, if that was interrupted: nnU-Net does it at the end of the training.

    Raises:
        StudyError: nnU-Net failed.
    """
    job = _Job(files, "validate", trainer, f"fold_{fold}")
    with job.noted("waiting"), _this_training(job, trainer, fold):
        if not files.is_validated(trainer, fold):
            command = [*_train_command(files, trainer, fold), "--val"]
            job.run_on_device(command, done=lambda: files.is_validated(trainer, fold))
        job.tell(f"{trainer} fold {fold} is validated")


def predict(files: StudyFiles, trainer: str, fold: int | None) -> None:
    """Predict the held-out cases by one fold, or by all folds together, where `nnunet-dtc compare` looks for them.

    Raises:
        NnunetDtcError: nnU-Net failed, or something else is where the predictions belong.
    """
    from nnunet_dtc.study.comparison.models import read_training
    from nnunet_dtc.study.comparison.plan import Options, held_out_set
    from nnunet_dtc.study.comparison.predictions import predict_ensemble, predict_fold

    study = files.study
    job = _Job(files, "predict", trainer, "ensemble" if fold is None else f"fold_{fold}")
    with job.noted("waiting"), job.device():
        training = read_training(files.model_folder(trainer))
        test = held_out_set(
            Options(device=study.device), training, held_out_cases(files), job.tell, lambda *_: job.beat()
        )
        target = predictions_folder(files, trainer, fold)
        if fold is None:
            predict_ensemble(training, study.folds, "logits", test, target)
        else:
            predict_fold(training, fold, test, target)


def compare(files: StudyFiles, kind: str) -> None:
    """Score all cases and compare the models, by `nnunet-dtc compare`.

    Raises:
        StudyError: it failed, or predictions are gone or outdated.
    """
    study = files.study
    job = _Job(files, "compare", kind)
    command = ["nnunet-dtc", "compare", *(str(files.model_folder(trainer)) for trainer in study.trainers)]
    command += ["-f", *map(str, study.folds), "-o", str(comparison_folder(files, kind)), "--overwrite"]
    command += {"validation": [], "test": ["--test"], "test_per_fold": ["--test", "--per-fold"]}[kind]
    if kind != "validation":
        command += ["--device", "cpu"]  # all is predicted already
    if study.complexity is not None:
        command += ["--complexity", str(study.complexity)]
    with job.noted():
        folds = {"validation": (), "test": (None,), "test_per_fold": study.folds}[kind]
        outdated = drop_outdated_predictions(files, folds)
        if outdated:
            raise StudyError(
                f"predictions in {outdated[0]} are gone, or checkpoints or images changed since they were made: start "
                "the study again, which makes them"
            )
        job.run(command)


class _Job:
    """One job: its note, which `nnunet-dtc study status` reads, and the commands that it runs."""

    def __init__(self, files: StudyFiles, *name: str) -> None:
        self.files = files
        self.file = note_file(files.study, *name)
        self.log = files.study.folder.joinpath("logs", *name).with_suffix(".txt")
        scheduler = f"job {number}" if (number := scheduler_job()) else ""
        host = socket.gethostname()
        self.note = JobNote(" ".join(name), "running", host, os.getpid(), scheduler, str(self.log), 0.0)
        self.descriptors: list[int] = []

    def tell(self, line: str) -> None:
        print(line, flush=True)

    def holds(self, lock: Lock) -> None:
        """Its commands keep this lock if this process is killed, until they have ended themselves."""
        self.descriptors.append(lock.descriptor)

    def beat(self) -> None:
        """Report that it is alive."""
        with contextlib.suppress(OSError):
            os.utime(self.file)

    @contextlib.contextmanager
    def noted(self, state: str = "running") -> Iterator[None]:
        """Note the state, and how it ends; once this job does not run elsewhere, as after Snakemake was killed."""
        with Lock.waiting(self.file.with_suffix(".lock"), self.tell, "this job runs already") as held:
            self.holds(held)
            self._write(state)
            try:
                yield
            except Exception:
                self._write("failed")
                raise
            except BaseException:  # a signal
                self._write("interrupted")
                raise
            self._write("finished")

    @contextlib.contextmanager
    def device(self) -> Iterator[None]:
        """Wait for a GPU or a CPU core of its own."""
        with device_of_its_own(self.files.study.device, self.tell, self.beat) as (name, descriptors):
            self.note = replace(self.note, place=", ".join(filter(None, (name, self.note.place))))
            self.descriptors += descriptors
            self._write("running")
            yield

    def run_on_device(self, command: Sequence[str], done: Callable[[], bool]) -> None:
        """Run a command of nnU-Net on a device of its own.

        Args:
            done: says whether it has done its work, whatever its exit status: a validation may fail after a training.

        Raises:
            StudyError: it failed.
        """
        with self.device():
            self.run(command, done)

    def run(self, command: Sequence[str], done: Callable[[], bool] | None = None) -> None:
        """Run a command to its end; when this process ends before, so does the command.

        Raises:
            StudyError: it failed.
        """
        self.tell(f"$ {shlex.join(command)}")
        words = [sys.executable, "-m", "nnunet_dtc", *command[1:]] if command[0] == "nnunet-dtc" else None
        with guarded(words or [program(command[0]), *command[1:]], pass_fds=self.descriptors) as process:
            status = None
            while status is None:
                self.beat()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(HEARTBEAT_S)
        if not (status == 0 if done is None else done()):
            raise StudyError(f"{command[0]} failed with exit status {status}")

    def _write(self, state: str) -> None:
        self.note = replace(self.note, state=state)
        content = {key: value for key, value in vars(self.note).items() if key != "alive"}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        (self.files.study.folder / MARKER).touch()
        write_whole(self.file, json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def _this_training(job: _Job, trainer: str, fold: int) -> Iterator[None]:
    """Hold the fold's lock, with its plans and split unchanged and no checkpoint that is cut off."""
    files = job.files
    with Lock.waiting(files.lock_file(trainer, fold), job.tell, "this training runs already", job.beat) as held:
        job.holds(held)
        files.check_plans_unchanged(trainer)
        files.check_split_unchanged(trainer, fold)
        for name in CHECKPOINTS:
            file = files.fold_folder(trainer, fold) / name
            if file.is_file() and not is_whole(file):
                target = _unused(file.with_suffix(".cut_off"))
                file.replace(target)
                job.tell(f"{file} was cut off while it was written: it is set aside as {target.name}")
        yield


def _unused(file: Path) -> Path:
    """The path, or the first of .2, .3, ... appended to it that does not exist."""
    number, target = 1, file
    while target.exists():
        number += 1
        target = file.with_name(f"{file.name}.{number}")
    return target


def _all_is_preprocessed(files: StudyFiles) -> bool:
    if files.plans is None or files.splits is None:
        return False
    return all(is_preprocessed(files, folder) for folder in files.data_folders().values())


def _preprocess(files: StudyFiles, job: _Job) -> None:
    study = files.study
    number = str(int(files.dataset[7:10]))
    planned = files.plans_file.is_file()
    if not planned:
        command = ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", study.configuration, "--no_pp"]
        job.run([*command, "-pl", PLANNERS[study.plans], "--verify_dataset_integrity"])
    files = StudyFiles(study)  # with the new plans
    folders = files.data_folders()
    check_single_stage(files)
    for configuration, folder in folders.items():
        # nnU-Net deletes what is there
        if not is_preprocessed(files, folder) or not (planned or other_plans_use(files, folder)):
            remove_cut_off_labels(files)
            job.run(["nnUNetv2_preprocess", "-d", number, "-c", configuration, "-plans_name", study.plans])
    _write_split(files)


def _train_command(files: StudyFiles, trainer: str, fold: int) -> list[str]:
    study = files.study
    command = ["nnUNetv2_train", files.dataset, study.configuration, str(fold), "-tr", trainer, "-p", study.plans]
    return [*command, "-device", study.device]


def _write_split(files: StudyFiles) -> None:
    from nnunet_dtc.study.datasets.splits import five_folds, write_splits

    if files.splits is not None:
        return
    data = files.data_folders()[files.study.configuration]
    cases = [file.stem for file in data.glob("*.pkl")]
    if not cases:
        raise StudyError(f"nnU-Net preprocessed no case into {data}")
    write_splits(files.preprocessed / "splits_final.json", five_folds(cases))


def _write_split_record(files: StudyFiles, trainer: str, fold: int) -> None:
    record = files.split_record(trainer, fold)
    record.parent.mkdir(parents=True, exist_ok=True)
    write_whole(record, json.dumps(files.splits[fold], indent=1) + "\n")
