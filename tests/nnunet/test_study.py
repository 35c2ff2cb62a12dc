"""A whole study by Snakemake and nnU-Net: killed in the middle, it goes on and ends as if it had not been."""

import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from nnunet_dtc.study.workflow.machine import Lock

SNAKEMAKE = shutil.which("snakemake", path=str(Path(sys.executable).parent)) or shutil.which("snakemake")

pytestmark = [
    pytest.mark.nnunet,
    pytest.mark.skipif(SNAKEMAKE is None, reason="no Snakemake (pip install 'nnunet-dtc[study]')"),
]

VANILLA, DTC, FAILING = "nnUNetTrainer_4epochs", "nnUNetTrainerDTC_4epochs", "nnUNetTrainer_4epochs_rep9"
PATIENCE_S = 1800
# nnU-Net's trainers, short, and one that fails; a user's own trainers go before those that nnunet-dtc makes of a name
TRAINERS = f"""
import time
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunet_dtc.trainers import nnUNetTrainerDTC


class Short:
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.save_every = 4, 1
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 4, 1
        self.logger.plot_progress_png = lambda folder: Path(folder, "progress.png").touch()
        self.print_to_log_file(f"threads: {{torch.get_num_threads()}}")

    def on_train_epoch_start(self):
        time.sleep(0.5)  # an epoch takes 0.2 s: the test must have time to end it in the middle
        super().on_train_epoch_start()

    def perform_actual_validation(self, *more):
        self.inference_allowed_mirroring_axes = None
        super().perform_actual_validation(*more)


class {VANILLA}(Short, nnUNetTrainer):
    pass


class {DTC}(Short, nnUNetTrainerDTC):
    pass


class {FAILING}(Short, nnUNetTrainer):
    def on_train_epoch_start(self):
        raise RuntimeError("this training was made to fail")
"""


@pytest.fixture(scope="module")
def env(workspace, dataset, folder_for_locks):
    """The environment of a study, with the short trainers."""
    workspace.shrink_plans(dataset, features_2d=(4, 8, 16))
    trainers = workspace.root / "trainers"
    trainers.mkdir()
    (trainers / "short_trainers.py").write_text(TRAINERS)
    env = workspace.environment()
    env["TMPDIR"] = folder_for_locks
    del env["PYTHON_CPU_COUNT"]
    env["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")  # without the workspace's: processes must end without help
    return env | {"nnUNet_extTrainer": os.pathsep.join((str(trainers), env["nnUNet_extTrainer"])), "COLUMNS": "200"}


@pytest.fixture(scope="module")
def study(workspace):
    """STUDY.yaml of two models."""
    return write_study(workspace, "two", trainers=[VANILLA, DTC])


def write_study(workspace, name, **content):
    file = workspace.root / f"{name}.yaml"
    folders = {f"nnUNet_{part}": str(getattr(workspace, part)) for part in ("raw", "preprocessed", "results")}
    content = {
        "dataset": next(workspace.raw.iterdir()).name,
        "configuration": "2d",
        "folds": [0],
        "device": "cpu",
        **folders,
        **content,
    }
    file.write_text(yaml.safe_dump(content))
    return file


def epochs_in(log):
    return [int(number) for number in re.findall(r": Epoch (\d+) *$", log.read_text(), re.MULTILINE)]


def logs_of(fold):
    return sorted(fold.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime)


@pytest.fixture(scope="module")
def killed(workspace, dataset, env, study):
    """The folds' folders after SIGKILL to everything in the middle of the trainings, and the processes are gone."""
    folds = {trainer: workspace.fold_folder(dataset, "2d", 0, trainer) for trainer in (VANILLA, DTC)}
    with workspace.start("nnunet-dtc", "study", study, env=env) as (process, log):
        until = time.monotonic() + PATIENCE_S
        while not any(2 in epochs_in(file) for fold in folds.values() for file in logs_of(fold)):
            assert process.poll() is None, workspace.describe(log, process.returncode)
            assert time.monotonic() < until, workspace.describe(log, f"none after {PATIENCE_S} s")
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    for lock in (workspace.results / dataset / ".study_locks").iterdir():
        wait_until_free(lock)
    return folds


def wait_until_free(file):
    """The guards of nnU-Net's commands hold the lock until these have ended."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        lock = Lock(file)
        free = lock.taken()
        lock.release()
        if free:
            return
        time.sleep(0.2)
    raise AssertionError(f"a training outlived its study: {file}")


@pytest.fixture(scope="module")
def finished(workspace, dataset, env, study, killed):
    """What the study printed when it was started again."""
    before = {trainer: logs_of(fold) for trainer, fold in killed.items()}
    began = {trainer: (fold / "checkpoint_latest.pth").exists() for trainer, fold in killed.items()}
    assert any(began.values())
    printed = workspace.run("nnunet-dtc", "study", study, env=env, timeout_s=PATIENCE_S)
    return printed, before, began


def test_a_dry_run_lists_the_jobs_and_makes_nothing(workspace, dataset, env):
    file = write_study(workspace, "dry", trainers=[VANILLA, DTC], folds="0-1", repetitions=1)
    printed = workspace.run("nnunet-dtc", "study", file, "--dry-run", env=env)
    assert "2 models x 1 repetition x 2 folds = 4 trainings: 4 to do" in printed
    assert re.search(r"^train +4$", printed, re.MULTILINE)
    assert not list(workspace.results.rglob("*.pth"))


def test_a_killed_study_goes_on_from_its_checkpoints(workspace, killed, finished):
    _, before, began = finished
    for trainer, fold in killed.items():
        checkpoint = workspace.read_checkpoint(fold / "checkpoint_final.pth")
        assert checkpoint["current_epoch"] == 4
        assert len(checkpoint["logging"]["train_losses"]) == 4
        if began[trainer]:
            [log] = [log for log in logs_of(fold) if log not in before[trainer]]
            assert epochs_in(log)[0] >= 1
            assert epochs_in(log)[-1] == 3


def test_a_training_on_one_core_has_one_thread(killed, finished):
    """nnU-Net starts as many as the machine has cores."""
    logs = "".join(log.read_text() for fold in killed.values() for log in logs_of(fold))
    assert set(re.findall(r": threads: (\d+) *$", logs, re.MULTILINE)) == {"1"}


def test_the_study_ends_with_its_pages(study, finished):
    folder = study.with_suffix("")
    link = "comparison/validation/index.html"
    assert f'href="{link}"' in (folder / "index.html").read_text()
    assert (folder / link).is_file()
    assert "2 trainings: 2 finished" in finished[0]


def test_what_is_finished_does_not_run_again(workspace, env, study, killed, finished):
    before = {file: file.stat().st_mtime_ns for fold in killed.values() for file in fold.rglob("*")}
    printed = workspace.run("nnunet-dtc", "study", study, env=env)
    assert "Nothing to be done" in printed
    shutil.rmtree(study.with_suffix("") / "done")  # even where the study has forgotten what it did
    workspace.run("nnunet-dtc", "study", study, "--", "--until", "validate", env=env)
    assert {file: file.stat().st_mtime_ns for fold in killed.values() for file in fold.rglob("*")} == before


def test_a_failed_training_stops_no_other_and_is_named_with_the_end_of_its_log(workspace, dataset, env, finished):
    shutil.rmtree(workspace.fold_folder(dataset, "2d", 0, VANILLA))
    file = write_study(workspace, "failing", trainers=[FAILING, VANILLA])
    with workspace.start("nnunet-dtc", "study", file, env=env) as (process, log):
        assert process.wait(PATIENCE_S) == 1
    printed = log.read_text()
    assert "2 trainings: 1 finished, 1 failed" in printed
    assert f"failed: train {FAILING} fold_0" in printed
    assert "RuntimeError: this training was made to fail" in printed
    assert (workspace.fold_folder(dataset, "2d", 0, VANILLA) / "checkpoint_final.pth").is_file()
