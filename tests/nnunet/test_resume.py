"""A training that is killed in the middle, and goes on with ``--c`` where it stopped."""

import re
import time

import pytest

pytestmark = pytest.mark.nnunet

TRAINER, EPOCHS = "nnUNetTrainerDTC_5epochs", 5
FINISHED = 3  # epochs that are over when the training is killed
ITERATIONS = 60  # of an epoch, so that it takes a second
PATIENCE_S = 400


def epochs_in(log):
    return [int(number) for number in re.findall(r"Epoch (\d+) *$", log.read_text(), re.MULTILINE)]


def training_logs(fold):
    return sorted(fold.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime)


@pytest.fixture(scope="module")
def killed(workspace, dataset):
    """The fold's folder after SIGKILL in the middle of epoch 3 (nnU-Net counts from 0)."""
    workspace.shrink_plans(dataset, features_2d=(4, 8, 16))  # five epochs, and nobody asks how good they are
    fold = workspace.fold_folder(dataset, "2d", 0, TRAINER)
    command = workspace.one_process_command([workspace.train_command(dataset, "2d", 0, TRAINER)], ITERATIONS)
    with workspace.start(*command) as (process, log):
        until = time.monotonic() + PATIENCE_S
        while not any(FINISHED in epochs_in(file) for file in training_logs(fold)):
            assert process.poll() is None, workspace.describe(log, process.returncode)
            assert time.monotonic() < until, workspace.describe(log, f"none after {PATIENCE_S} s")
            time.sleep(0.05)
        time.sleep(0.2)
        assert process.poll() is None, workspace.describe(log, process.returncode)
    return fold


@pytest.fixture(scope="module")
def latest(workspace, killed):
    """The checkpoint that the killed training left; nnU-Net removes the file when the training has ended."""
    return workspace.read_checkpoint(killed / "checkpoint_latest.pth")


@pytest.fixture(scope="module")
def resumed(workspace, dataset, killed, latest):
    """The fold's folder after ``--c``, and the log of that second run."""
    before = set(training_logs(killed))
    assert workspace.train_shortly(dataset, "2d", 0, TRAINER, "--c") == killed
    [log] = set(training_logs(killed)) - before
    return killed, log


def test_killed_training_leaves_a_checkpoint_of_its_last_epoch(workspace, killed, latest):
    assert not (killed / "checkpoint_final.pth").exists()
    assert latest["trainer_name"] == TRAINER
    assert latest["current_epoch"] == FINISHED
    assert len(latest["logging"]["train_losses"]) == FINISHED
    workspace.check_decoder(latest, dtc=True)
    assert latest["optimizer_state"]["state"]


def test_goes_on_where_it_stopped(resumed):
    _, log = resumed
    assert epochs_in(log) == list(range(FINISHED, EPOCHS))


def test_ends_as_one_training(workspace, resumed, latest):
    fold, _ = resumed
    checkpoint = workspace.check_model(fold, epochs=EPOCHS)
    for key in ("train_losses", "val_losses", "mean_fg_dice"):
        assert checkpoint["logging"][key][:FINISHED] == latest["logging"][key]
    rates = [0.01 * (1 - epoch / EPOCHS) ** 0.9 for epoch in range(EPOCHS)]  # nnU-Net's schedule
    assert checkpoint["logging"]["lrs"] == pytest.approx(rates)
    rows = (fold / "coordinates.csv").read_text(encoding="utf-8").splitlines()[1:]
    epochs = [int(row.split(",")[0]) for row in rows]
    assert epochs == sorted(epochs)
    assert {epochs.count(epoch) for epoch in range(EPOCHS)} == {len(rows) // EPOCHS}  # each epoch is there once
