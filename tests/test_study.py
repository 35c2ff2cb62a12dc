"""A study without Snakemake: what is read, refused and reported, and the locks of its jobs."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml
from model_folders import DATASET, FOLDS, Folders, write_image
from plans import small_plans
from typer.testing import CliRunner

from nnunet_dtc.cli import app
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.study.comparison import predictions
from nnunet_dtc.study.comparison.models import read_training
from nnunet_dtc.study.comparison.plan import Options, held_out_set
from nnunet_dtc.study.workflow import engine, jobs
from nnunet_dtc.study.workflow.checks import check_study
from nnunet_dtc.study.workflow.definition import MARKER, read_study
from nnunet_dtc.study.workflow.forecast import drop_outdated_stamps, forecast
from nnunet_dtc.study.workflow.held_out import predictions_folder
from nnunet_dtc.study.workflow.index_page import duration, render_index
from nnunet_dtc.study.workflow.machine import Lock, device_of_its_own
from nnunet_dtc.study.workflow.model_files import StudyFiles, is_whole
from nnunet_dtc.study.workflow.status import JobNote, epochs_of, failed_jobs, read_progress, read_status
from nnunet_dtc.study.workflow.study_targets import comparison_kinds, fold_numbers, study_folder, trainer_names

pytestmark = pytest.mark.skipif(os.name == "nt", reason="locks and signals of POSIX")

STUDY = {
    "dataset": 998,
    "configuration": "3d_fullres",
    "trainers": ["nnUNetTrainer_3epochs", "nnUNetTrainerDTC_3epochs"],
    "folds": [0, 1],
    "device": "cpu",
}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """nnU-Net's folders, planned and split, without a model."""
    folders = Folders(tmp_path, monkeypatch)
    (tmp_path / "locks").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "locks"))  # not those of studies that run on this machine
    plans = small_plans()
    plans["configurations"]["cascade_with_larger_batch"] = {"inherits_from": "3d_cascade_fullres", "batch_size": 4}
    (folders.preprocessed / DATASET / "nnUNetPlans.json").write_text(json.dumps(plans))
    return folders


def write(folder, **changes):
    file = Path(folder, "mine.yaml")
    file.write_text(yaml.safe_dump({key: value for key, value in (STUDY | changes).items() if value is not None}))
    return file


def study_of(folder, **changes):
    return read_study(write(folder, **changes))


# what STUDY.yaml says


@pytest.mark.parametrize(
    ("folds", "numbers"),
    [(2, [2]), ("3", [3]), ("0-4", [0, 1, 2, 3, 4]), ("4,0-2", [0, 1, 2, 4]), ([3, 1], [1, 3]), (" 1 , 3 ", [1, 3])],
)
def test_folds(folds, numbers):
    assert fold_numbers(folds) == numbers


@pytest.mark.parametrize(
    "folds", ["", "a", "0-", "-1", [], [0, 0], "0-2,1", "3-1", [1.5], True, None, {"a": 1}, [None]]
)
def test_folds_that_are_none(folds):
    with pytest.raises(ValueError, match="folds must"):
        fold_numbers(folds)


def test_repetitions_have_names_of_their_own():
    assert trainer_names(["A", "B_5epochs"], 3) == [
        "A",
        "A_rep2",
        "A_rep3",
        "B_5epochs",
        "B_5epochs_rep2",
        "B_5epochs_rep3",
    ]


def test_the_folder_is_beside_the_file():
    assert study_folder("/data/btcv.v2.yaml") == Path("/data/btcv.v2")


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        ({"trainers": ["A"], "test": True}, []),
        ({"trainers": ["A", "B"]}, ["validation"]),
        ({"trainers": ["A", "B"], "test": True}, ["validation", "test", "test_per_fold"]),
        ({"trainers": ["A", "B"], "test": True, "folds": [3]}, ["validation", "test"]),  # the ensemble is that fold
    ],
)
def test_comparisons(config, kinds):
    assert comparison_kinds(config) == kinds


def test_defaults_and_folders_of_the_environment(folders):
    study = study_of(folders.root, folds=None, device=None)
    assert (study.plans, study.repetitions, study.test, study.device) == ("nnUNetPlans", 1, False, "cuda")
    assert study.folds == (0, 1, 2, 3, 4)
    assert (study.raw, study.preprocessed, study.results) == (folders.raw, folders.preprocessed, folders.results)
    assert len(study.trainings) == 10


def test_folders_in_the_file_go_first_and_are_relative_to_it(folders, tmp_path):
    assert study_of(folders.root, nnUNet_results="elsewhere").results == folders.root / "elsewhere"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": None}, "has no dataset"),
        ({"trainer": "A"}, 'no key "trainer"'),
        ({"trainers": "nnUNetTrainer"}, "trainers must be a list"),
        ({"trainers": []}, "trainers must be a list"),
        ({"trainers": ["a/b"]}, "a plain name"),
        ({"trainers": ["nnUNetTrainer; touch x"]}, "the name of a class"),
        ({"trainers": ["5epochs"]}, "the name of a class"),
        ({"nnunet_dtc": "python -m nnunet_dtc"}, "nnunet_dtc must be an executable file"),
        ({"nnunet_dtc": "mine.yaml"}, "nnunet_dtc must be an executable file"),
        ({"trainers": ["A", "A"]}, "A twice"),
        ({"trainers": ["A", "A_rep2"], "repetitions": 2}, "A_rep2 twice"),
        ({"folds": "0-x"}, "folds must"),
        ({"repetitions": 0}, "repetitions must"),
        ({"repetitions": "2"}, "repetitions must"),
        ({"repetitions": 101}, "repetitions must"),
        ({"test": "yes please"}, "test must"),
        ({"device": "cuda:1"}, "device must"),
        ({"plans": "../x"}, "plans"),
        ({"dataset": [17]}, "dataset must"),
        ({"nnUNet_raw": 3}, "nnUNet_raw must be a path"),
    ],
)
def test_bad_values_are_refused_with_the_file_and_the_key(folders, changes, message):
    with pytest.raises(NnunetDtcError, match=message) as error:
        study_of(folders.root, **changes)
    assert "mine.yaml" in str(error.value)


@pytest.mark.parametrize(("key", "number"), [("dataset", "017"), ("repetitions", "0x2"), ("folds", "[1, 02]")])
def test_numbers_that_yaml_does_not_read_as_decimal_are_refused(folders, key, number):
    file = write(folders.root, **{key: None})
    file.write_text(file.read_text() + f"{key}: {number}\n")
    with pytest.raises(NnunetDtcError, match=r"mine\.yaml: .*write 17, or use quotes"):
        read_study(file)
    file.write_text(file.read_text().replace("017", "'017'"))
    if key == "dataset":
        assert read_study(file).dataset == "017"


def test_empty_values_are_the_defaults(folders):
    file = write(folders.root, folds=None, device=None)
    file.write_text(file.read_text() + "folds:\ndevice:\nrepetitions:\nnnunet_dtc:\n")
    study = read_study(file)
    assert (study.folds, study.device, study.repetitions) == ((0, 1, 2, 3, 4), "cuda", 1)


def test_paths_may_begin_with_the_home_folder(folders, monkeypatch):
    monkeypatch.setenv("HOME", str(folders.root / "home"))
    study = study_of(folders.root, nnUNet_results="~/results", complexity="~/costs.json")
    assert study.results == folders.root / "home" / "results"
    assert study.complexity == folders.root / "home" / "costs.json"


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "!!python/object/apply:os.getcwd []", "a: &x [*x, *x]"])
def test_what_is_no_study_is_refused(tmp_path, text):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(NnunetDtcError, match=r"bad\.yaml"):
        read_study(file)


def test_an_unset_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(NnunetDtcError, match="nnUNet_raw is not known"):
        study_of(tmp_path)


# what is refused before anything starts


def test_a_study_that_can_run(folders):
    files = check_study(study_of(folders.root))
    assert files.dataset == DATASET
    assert not list((folders.results / DATASET).iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": 5}, "5"),
        ({"trainers": ["nnUNetTrainerDTCX"]}, "no trainer nnUNetTrainerDTCX"),
        ({"trainers": ["nnUNetTrainerDTC_RF2"]}, "nnUNetTrainerDTC"),
        ({"configuration": "3d_half"}, "there is no configuration"),
        ({"configuration": "3d_cascade_fullres"}, "second stage of a cascade"),
        ({"plans": "myPlans"}, "which planner makes them is not known"),
        ({"folds": "0-2"}, "folds 2 do not exist.*0 to 1"),
        ({"complexity": "none.json"}, "no file .*none.json"),
        ({"complexity": "mine.yaml"}, "cannot read .*mine.yaml"),
        ({"configuration": "cascade_with_larger_batch"}, "second stage of a cascade"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(folders, changes, message):
    with pytest.raises(NnunetDtcError, match=message):
        check_study(study_of(folders.root, **changes))


def test_folds_with_the_same_validation_cases_are_refused_at_the_start(folders):
    """nnU-Net accepts any split, such as repeated draws."""
    folders.write_splits({0: ("case_a", "case_b", "case_c"), 1: ("case_c", "case_d"), 2: ("case_e",)})
    with pytest.raises(NnunetDtcError, match=r"folds 0 and 1 share case_c: compare one fold at a time, or held-out"):
        check_study(study_of(folders.root))
    check_study(study_of(folders.root, folds=[1, 2]))


def test_a_complexity_file_of_other_plans_is_refused_at_the_start(folders):
    of = {"dataset": DATASET, "plans": "nnUNetPlans", "configuration": "3d_fullres", "trainers": {}}
    (folders.root / "costs.json").write_text(json.dumps(of))
    check_study(study_of(folders.root, complexity="costs.json"))
    (folders.root / "costs.json").write_text(json.dumps(of | {"configuration": "2d"}))
    with pytest.raises(NnunetDtcError, match=r"costs.json is of .* 2d; the models are of .* 3d_fullres"):
        check_study(study_of(folders.root, complexity="costs.json"))


def test_a_receptive_field_with_decimals(folders):
    trainer = "nnUNetTrainerDTC_RF2.5_3epochs"
    study = study_of(folders.root, trainers=["nnUNetTrainer_3epochs", trainer])
    files = check_study(study)
    folders.train(trainer)
    jobs.train(files, trainer, 1)
    assert [training.state for training in read_status(files)] == ["to do", "to do", "finished", "finished"]


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_results_that_cannot_be_written(folders):
    folders.results.chmod(0o500)
    try:
        with pytest.raises(NnunetDtcError, match="cannot write"):
            check_study(study_of(folders.root))
    finally:
        folders.results.chmod(0o700)


def test_results_that_are_a_file(folders):
    (folders.root / "file").write_text("")
    with pytest.raises(NnunetDtcError, match="cannot write"):
        check_study(study_of(folders.root, nnUNet_results="file"))


def test_unknown_labels_of_held_out_cases_are_named(folders):
    label = folders.label("case_a")
    for case in ("held_1", "held_2"):
        write_image(folders.raw / DATASET / "labelsTs" / f"{case}.nii.gz", label)
        write_image(folders.raw / DATASET / "imagesTs" / f"{case}_0000.nii.gz", label)
    write_image(folders.raw / DATASET / "labelsTs" / "held_2.nii.gz", label + 7)
    with pytest.raises(NnunetDtcError, match=r"unknown label values 7, 8, 9.*held_2"):
        check_study(study_of(folders.root, test=True))
    (folders.raw / DATASET / "imagesTs" / "held_1_0000.nii.gz").unlink()
    with pytest.raises(NnunetDtcError, match=r"without an image .*held_1"):
        check_study(study_of(folders.root, test=True))


def test_labels_are_checked_again_when_dataset_json_gives_values_another_meaning(folders):
    label = folders.label("case_a")
    write_image(folders.raw / DATASET / "labelsTs" / "held_1.nii.gz", label)
    write_image(folders.raw / DATASET / "imagesTs" / "held_1_0000.nii.gz", label)
    check_study(study_of(folders.root, test=True))
    described = folders.dataset | {"labels": dict(list(folders.dataset["labels"].items())[:-1])}
    (folders.raw / DATASET / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(NnunetDtcError, match=r"unknown label value.*held_1"):
        check_study(study_of(folders.root, test=True))


def test_fewer_cases_than_folds_need_a_split_of_their_own(folders):
    (folders.raw / DATASET / "labelsTr").mkdir()
    for number in range(4):
        write_image(folders.raw / DATASET / "labelsTr" / f"case_{'abcd'[number]}.nii.gz", folders.label("case_a"))
    check_study(study_of(folders.root))  # it has one
    (folders.preprocessed / DATASET / "splits_final.json").unlink()
    with pytest.raises(NnunetDtcError, match=r"at least 5 training cases for its 5 folds, .* has 4"):
        check_study(study_of(folders.root))


def test_changed_plans_are_named(folders):
    folders.train("nnUNetTrainerDTC_3epochs")
    check_study(study_of(folders.root))
    plans = small_plans()
    plans["configurations"]["3d_fullres"]["batch_size"] = 5
    (folders.preprocessed / DATASET / "nnUNetPlans.json").write_text(json.dumps(plans))
    with pytest.raises(NnunetDtcError, match="plans changed since nnUNetTrainerDTC_3epochs was trained: batch_size"):
        check_study(study_of(folders.root))


def test_a_changed_split_is_named(folders):
    folders.train("nnUNetTrainerDTC_3epochs")
    folders.write_splits({0: ("case_a", "case_b", "case_d"), 1: ("case_c", "case_e", "case_f", "case_g")})
    with pytest.raises(NnunetDtcError, match=r"split changed since fold 0 of nnUNetTrainerDTC_3epochs.*case_c, case_d"):
        check_study(study_of(folders.root))


def test_a_changed_split_of_an_interrupted_training_is_named(folders):
    folder = folders.train("nnUNetTrainer_3epochs", folds={1: FOLDS[1]})
    (folder / "fold_1" / "checkpoint_final.pth").rename(folder / "fold_1" / "checkpoint_latest.pth")
    (folder / "fold_1" / "validation" / "summary.json").unlink()
    study = study_of(folders.root)
    record = StudyFiles(study).split_record("nnUNetTrainer_3epochs", 1)
    record.parent.mkdir(parents=True)
    (study.folder / MARKER).touch()
    record.write_text(json.dumps({"train": [*FOLDS[0][1:], "case_d"], "val": [*FOLDS[1][1:], "case_a"]}))
    with pytest.raises(NnunetDtcError, match=r"split changed since fold 1.*: case_a, case_d were"):
        check_study(study)


def test_the_split_of_another_data_set_is_no_change(folders):
    study = study_of(folders.root)
    (folders.raw / "Dataset005_Other").mkdir()
    other, same = study_of(folders.root, dataset=5), study_of(folders.root, dataset=DATASET)
    assert other.folder == same.folder == study.folder
    records = [StudyFiles(each).split_record("nnUNetTrainer_3epochs", 1) for each in (study, other, same)]
    assert records[0] != records[1]
    assert records[0] == records[2]


def test_a_case_that_left_the_training_set_is_named(folders):
    folders.train("nnUNetTrainer_3epochs")
    study = study_of(folders.root)
    record = StudyFiles(study).split_record("nnUNetTrainer_3epochs", 1)
    jobs._write_split_record(StudyFiles(study), "nnUNetTrainer_3epochs", 1)
    StudyFiles(study).check_split_unchanged("nnUNetTrainer_3epochs", 1)
    split = json.loads(record.read_text())
    record.write_text(json.dumps(split | {"train": [*split["train"], "case_h"]}))
    with pytest.raises(NnunetDtcError, match="case_h was added, removed or moved between train and val"):
        StudyFiles(study).check_split_unchanged("nnUNetTrainer_3epochs", 1)


def test_a_folder_with_other_files_is_no_study_s(folders):
    study = study_of(folders.root)
    study.folder.mkdir()
    check_study(study)
    check_study(study)  # a study's own folder
    other = read_study(write(folders.root).rename(folders.root / "imagesTr.yaml"))
    other.folder.mkdir()
    (other.folder / "case.txt").touch()
    with pytest.raises(NnunetDtcError, match="imagesTr, the folder of this study, has other files"):
        check_study(other)
    assert [file.name for file in other.folder.iterdir()] == ["case.txt"]


# status


LOG = """
2026-01-01 10:00:00.000001: Epoch 0
2026-01-01 10:00:00.000001: Current learning rate: 0.01
2026-01-01 10:00:10.000001: train_loss 0.1
2026-01-01 10:00:10.000001: val_loss 0.2
2026-01-01 10:00:10.000001: Pseudo dice [np.float32(0.25), np.float64(nan)]
2026-01-01 10:00:10.000001: Epoch time: 10.0 s
2026-01-01 10:00:20.000001: Epoch 1
2026-01-01 10:00:20.000001: Pseudo dice [0.5, 0.75, 1e-05]
2026-01-01 10:00:20.000001: Epoch time: 20.0 s
2026-01-01 10:00:20.000001: Epoch 2
"""


def write_log(fold, text=LOG, number=1):
    fold.mkdir(parents=True, exist_ok=True)
    file = fold / f"training_log_{number}.txt"
    file.write_text(text)
    os.utime(file, (1000 + number, 1000 + number))


def test_progress_from_logs(tmp_path):
    assert math.isnan(read_progress(tmp_path).dice)
    write_log(tmp_path)
    progress = read_progress(tmp_path)
    assert (progress.epochs, progress.seconds) == (2, (10.0, 20.0))
    assert progress.dice == pytest.approx((0.5 + 0.75 + 1e-05) / 3, abs=1e-6)


def test_progress_of_a_training_that_went_back_to_its_checkpoint(tmp_path):
    write_log(tmp_path, LOG.replace("Epoch 1", "Epoch 7"))
    write_log(tmp_path, LOG.replace("Epoch 0", "Epoch 5").split("2026-01-01 10:00:20", 1)[0], number=2)
    progress = read_progress(tmp_path)
    assert progress.epochs == 6
    assert progress.dice == 0.25


@pytest.mark.parametrize(
    ("trainer", "epochs"),
    [
        ("nnUNetTrainer", 1000),
        ("nnUNetTrainer_rep2", 1000),
        ("nnUNetTrainerDTC_RF10_7epochs_rep3", 7),
        ("nnUNetTrainerUNetDTC_paper2d", 40),
        ("nnUNetTrainer_250epochs_NoMirroring", 250),
        ("theirTrainer_20epochs", 20),
        ("nnUNetTrainerDTC_mylab", None),
        ("nnUNetTrainerDTC_mylab_rep2", None),
    ],
)
def test_epochs_of_a_name(trainer, epochs):
    assert epochs_of(trainer) == epochs


def note(study, *job, state, host=None, process=None, log="", old=0.0):
    import socket

    file = study.folder.joinpath("jobs", study.stamps.name, *job).with_suffix(".json")
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "job": " ".join(job),
        "state": state,
        "host": host or socket.gethostname(),
        "process": process or os.getpid(),
        "place": "GPU 1",
        "log": log,
    }
    file.write_text(json.dumps(content))
    os.utime(file, (time.time() - old, time.time() - old))


def test_states_of_trainings(folders):
    vanilla, dtc = STUDY["trainers"]
    study = study_of(folders.root, folds="0-1", repetitions=2)
    files = StudyFiles(study)
    folders.train(vanilla, folds={0: FOLDS[0]})
    write_log(files.fold_folder(vanilla, 1))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    note(study, "train", vanilla, "fold_1", state="running")
    note(study, "train", f"{vanilla}_rep2", "fold_0", state="running", process=gone.pid)
    note(study, "train", f"{vanilla}_rep2", "fold_1", state="failed", log="nowhere")
    note(study, "train", dtc, "fold_0", state="running", host="far away", old=5)
    note(study, "train", dtc, "fold_1", state="running", host="far away", old=3600)
    note(study, "train", f"{dtc}_rep2", "fold_0", state="waiting")
    found = {(training.trainer, training.fold): training for training in read_status(files)}
    assert [training.state for training in found.values()] == [
        "finished", "training", "interrupted", "failed", "training", "interrupted", "waiting", "to do",
    ]  # fmt: skip
    running = found[vanilla, 1]
    assert (running.epochs, running.of, running.seconds_left) == (2, 3, 15.0)
    assert running.where.endswith("GPU 1")
    assert found[dtc, 0].where == "far away, GPU 1"
    assert [job.job for job in failed_jobs(study)] == [f"train {vanilla}_rep2 fold_1"]


def test_epochs_of_a_user_s_own_trainer_are_those_of_a_finished_training(folders):
    own = "nnUNetTrainerOwn"
    study = study_of(folders.root, trainers=[own, STUDY["trainers"][0]], folds="0-1", repetitions=2)
    files = StudyFiles(study)
    assert {(training.epochs, training.of) for training in read_status(files) if own in training.trainer} == {(0, 1000)}
    folders.train(own, folds={0: FOLDS[0]})
    write_log(files.fold_folder(own, 0), LOG.replace("Epoch 1", "Epoch 6"))
    write_log(files.fold_folder(own, 1))  # the first two epochs
    found = {(training.trainer, training.fold): training for training in read_status(files)}
    assert (found[own, 0].epochs, found[own, 0].of) == (7, 7)
    assert (found[own, 1].epochs, found[own, 1].of) == (2, 7)
    assert [found[f"{own}_rep2", fold].of for fold in (0, 1)] == [7, 7]


def test_a_validation_that_was_interrupted(folders):
    trainer = STUDY["trainers"][0]
    study = study_of(folders.root)
    folder = folders.train(trainer)
    (folder / "fold_0" / "validation" / "summary.json").write_text("{")  # cut off
    assert [training.state for training in read_status(StudyFiles(study))][:2] == ["begun", "finished"]
    note(study, "train", trainer, "fold_0", state="interrupted")
    assert [training.state for training in read_status(StudyFiles(study))][:2] == ["interrupted", "finished"]


def test_the_status_names_what_failed_with_the_end_of_its_log(folders):
    study = study_of(folders.root)
    log = folders.root / "log.txt"
    lines = ["$ first try", "OSError: of the first try", "$ second try", "RuntimeError: the cause"]
    log.write_text("\n".join([*lines, *(f"line {k}" for k in range(40)), "CUDA out of memory", ""]))
    note(study, "train", STUDY["trainers"][1], "fold_1", state="failed", log=str(log))
    done = CliRunner().invoke(app, ["study", "status", str(study.file)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "4 trainings: 1 failed, 3 to do" in done.output
    assert "failed: train nnUNetTrainerDTC_3epochs fold_1" in done.output
    assert "CUDA out of memory" in done.output
    assert "line 39" in done.output
    assert "line 3\n" not in done.output
    assert "RuntimeError: the cause" in done.output
    assert "of the first try" not in done.output


# what it will do


def test_the_forecast_counts_what_is_left(folders):
    vanilla, dtc = STUDY["trainers"]
    study = study_of(folders.root, repetitions=2)
    files = StudyFiles(study)
    folders.train(vanilla)
    write_log(files.fold_folder(vanilla, 0))
    text = "\n".join(forecast(files))
    assert "2 models x 2 repetitions x 2 folds = 8 trainings: 2 finished, 6 to do" in text
    assert "about 4 min" in text  # 6 trainings of 3 epochs, 15 s each
    (folders.root / "complexity.json").write_text(json.dumps({"trainers": {dtc: {"step_seconds": 0.2}}}))
    text = "\n".join(forecast(StudyFiles(study_of(folders.root, repetitions=2, complexity="complexity.json"))))
    assert "about 12 min" in text  # 6 epochs of 15 s, 12 of 250 x 0.2 s


def test_marks_of_jobs_whose_results_are_gone(folders):
    vanilla, _ = STUDY["trainers"]
    study = study_of(folders.root)
    folders.train(vanilla)
    stamps = [study.stamps / job / vanilla / f"fold_{fold}" for job in ("train", "validate") for fold in (0, 1)]
    for stamp in stamps:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()
    drop_outdated_stamps(StudyFiles(study))
    assert all(stamp.exists() for stamp in stamps)
    files = StudyFiles(study)
    (files.fold_folder(vanilla, 1) / "checkpoint_final.pth").write_bytes(b"PK\3\4 cut off")
    os.utime(files.fold_folder(vanilla, 1) / "checkpoint_final.pth", (1000, 1000))  # before its validation
    (files.fold_folder(vanilla, 0) / "validation" / "summary.json").unlink()
    drop_outdated_stamps(StudyFiles(study))
    assert [stamp.exists() for stamp in stamps] == [True, False, False, True]


@pytest.fixture
def compared(folders):
    """A finished study of one model whose predictions and pages are stand-ins: its marks, by name."""
    vanilla, _ = STUDY["trainers"]
    folders.train(vanilla)
    label = folders.label("case_a")
    for name in ("imagesTs/held_1_0000", "labelsTs/held_1"):
        write_image(folders.raw / DATASET / f"{name}.nii.gz", label)
    files = StudyFiles(study_of(folders.root, test=True))
    training = read_training(files.model_folder(vanilla))
    for fold in (0, 1, None):
        folds, average = ((0, 1), "logits") if fold is None else ([fold], None)
        folder = predictions_folder(files, vanilla, fold) / ("ensemble" if fold is None else f"fold_{fold}")
        folder.mkdir(parents=True)
        write_image(folder / "held_1.nii.gz", label)
        record = predictions._record(training, folds, average, held_out_set(Options(), training, ("held_1",)))
        (folder / "made_from.json").write_text(json.dumps(record))
    for kind in files.study.kinds:
        page = files.study.folder / "comparison" / kind / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.touch()
    names = ("predict/{}/fold_0", "predict/{}/fold_1", "predict/{}/ensemble", "compare/validation", "compare/test")
    marks = [files.study.stamps / name.format(vanilla) for name in names]
    for mark in marks:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()

    def remaining(made=None):
        """The marks that are not dropped, one character each; they were made then, by default after all files."""
        made = time.time() + 100 if made is None else made
        for mark in marks:
            if mark.exists():
                os.utime(mark, (made, made))
        drop_outdated_stamps(StudyFiles(files.study))
        return "".join("01ecC"[number] for number, mark in enumerate(marks) if mark.exists())

    assert remaining() == "01ecC"
    return files, remaining


def test_marks_that_are_older_than_results_are_removed(compared):
    files, remaining = compared
    later = time.time() + 1000
    vanilla, _ = STUDY["trainers"]
    os.utime(files.fold_folder(vanilla, 0) / "validation" / "summary.json", (later, later))
    assert remaining() == "01eC"
    os.utime(files.fold_folder(vanilla, 1) / "checkpoint_final.pth", (later, later))
    assert remaining() == "0"


def test_predictions_that_are_gone_or_of_other_images_are_made_again(compared):
    """Otherwise the comparison would predict, on a CPU."""
    files, remaining = compared
    vanilla, _ = STUDY["trainers"]
    shutil.rmtree(predictions_folder(files, vanilla, None))
    assert remaining() == "01cC"
    (mark := files.study.stamps / "predict" / vanilla / "ensemble").touch()
    with pytest.raises(NnunetDtcError, match="are gone, or checkpoints or images changed"):
        jobs.compare(files, "test")
    assert not mark.exists()  # the next run of Snakemake makes them
    os.utime(files.raw / "imagesTs" / "held_1_0000.nii.gz", (5000, 5000))
    assert remaining() == "cC"


def test_corrected_labels_of_held_out_cases_are_scored_again(compared):
    """Even where the copy keeps the time of its content."""
    files, remaining = compared
    made = time.time()
    time.sleep(0.05)
    os.utime(files.raw / "labelsTs" / "held_1.nii.gz", (5000, 5000))
    assert remaining(made) == "01ec"


def test_a_study_that_predicts_no_more_starts_without_held_out_cases(compared):
    files, _ = compared
    for name in ("imagesTs", "labelsTs"):
        shutil.rmtree(files.raw / name)
    drop_outdated_stamps(StudyFiles(study_of(files.study.file.parent, test=False)))


def test_deleted_preprocessed_cases_are_noticed_where_something_is_left_to_train(compared):
    files, remaining = compared
    vanilla, dtc = STUDY["trainers"]
    mark = files.study.stamps / "preprocess"
    mark.touch()
    remaining()
    assert not mark.exists()  # DTC is not trained
    mark.touch()
    (files.model_folder(dtc)).symlink_to(files.model_folder(vanilla))
    remaining()
    assert mark.exists()


@pytest.mark.parametrize("changes", [{"configuration": "2d"}, {"plans": "myPlans"}, {"dataset": 5}])
def test_another_configuration_plans_or_data_set_has_marks_of_its_own(folders, changes):
    study = study_of(folders.root)
    other = study_of(folders.root, **changes)
    assert other.folder == study.folder
    assert other.stamps != study.stamps
    other.stamps.mkdir(parents=True)
    drop_outdated_stamps(StudyFiles(study))
    assert not other.stamps.exists()


@pytest.mark.parametrize(("older_s", "state"), [(0.0, "finished"), (1.5, "finished"), (60.0, "begun")])
def test_a_validation_of_an_earlier_checkpoint_does_not_count(folders, older_s, state):
    trainer = STUDY["trainers"][0]
    files = StudyFiles(study_of(folders.root))
    folders.train(trainer)
    fold = files.fold_folder(trainer, 0)
    os.utime(fold / "checkpoint_final.pth", (5000.0, 5000.0))
    os.utime(fold / "validation" / "summary.json", (5000.0 - older_s, 5000.0 - older_s))
    assert read_status(files)[0].state == state


@pytest.mark.parametrize("comment", [b"", b"x" * 65535])
def test_whole_checkpoints(tmp_path, comment):
    file = tmp_path / "checkpoint.pth"
    assert not is_whole(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", bytes(200_000))
        archive.comment = comment
    assert is_whole(file)
    file.write_bytes(file.read_bytes()[:150_000])
    assert not is_whole(file)


def test_a_checkpoint_that_cannot_be_read_is_not_cut_off(tmp_path):
    (tmp_path / "checkpoint.pth").mkdir()
    with pytest.raises(OSError, match="checkpoint"):
        is_whole(tmp_path / "checkpoint.pth")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (math.nan, ""), (45, "45 s"), (600, "10 min"), (3 * 3600, "3.0 h"), (86_400 * 21, "21.0 d")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_index_page(folders):
    study = study_of(folders.root)
    comparison = {
        "metrics": ["dice", "hd95_mm"],
        "models": [
            {"name": "nnUNetTrainer", "left_out": "_3epochs", "repeats": ["a", "b"], "epochs": 3, "parameters": 1234567,
             "epoch_seconds": 40.0, "peak_memory_mib": None},
            {"name": "<i>DTC</i>", "left_out": "", "repeats": ["c"], "epochs": None, "parameters": None,
             "epoch_seconds": None, "peak_memory_mib": None},
        ],
        "summary": [
            {"model": "nnUNetTrainer", "metric": "dice", "mean": 0.8125},
            {"model": "<i>DTC</i>", "metric": "dice", "mean": 0.834},
            {"model": "nnUNetTrainer", "metric": "hd95_mm", "mean": 7.25},
            {"model": "<i>DTC</i>", "metric": "hd95_mm", "mean": None},
        ],
        "noise": [{"model": "<i>DTC</i>", "metric": "dice", "run_to_run": 0.011}],
        "verdicts": ["<i>DTC</i> against vanilla"],
    }  # fmt: skip
    page = render_index(StudyFiles(study), {"validation": comparison}, read_status(StudyFiles(study)))
    for text in (
        "81.25",
        "83.40",
        "7.25",
        "1,234,567",
        "2 min",
        "1.10",
        "&lt;i&gt;DTC&lt;/i&gt; against vanilla",
        "fold 1",
        "to do 0/3",
    ):
        assert text in page, text
    assert 'href="comparison/validation/index.html"' in page
    assert "<i>DTC" not in page
    assert "memory" not in page.split("</style>")[1]  # nobody measured it


@pytest.mark.parametrize(("folds", "title"), [([0], "Held-out cases"), ([0, 1], "Held-out cases, all folds together")])
def test_the_index_page_names_folds_where_there_are_several(folders, folds, title):
    study = study_of(folders.root, folds=folds)
    comparison = {"metrics": [], "models": [], "summary": [], "noise": [], "verdicts": []}
    assert f"<h2>{title}</h2>" in render_index(StudyFiles(study), {"test": comparison}, [])


# locks and devices


HOLD = """
import sys, time
from pathlib import Path
from nnunet_dtc.study.workflow.machine import Lock, device_of_its_own
what, where = sys.argv[1:]
if what == "lock":
    with Lock.waiting(Path(where), print, "another"):
        print("held", flush=True); time.sleep(100)
with device_of_its_own(what, lambda line: print(line, flush=True)) as (name, _):
    import os
    print("held", name, os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True); time.sleep(100)
"""


def holder(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLD, *arguments],
        stdout=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path):
    file = tmp_path / "there" / "lock"
    first = holder("lock", str(file))
    try:
        assert first.stdout.readline() == "held\n"
        lock = Lock(file)
        assert not lock.taken()
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert lock.taken()
        lock.release()
    finally:
        first.kill()


def test_each_job_has_a_gpu_of_its_own_and_waits_when_all_are_taken(tmp_path):
    environment = {"CUDA_VISIBLE_DEVICES": "3,5", "TMPDIR": str(tmp_path)}
    processes = [holder("cuda", "", **environment)]
    try:
        assert processes[0].stdout.readline() == "held GPU 3 3\n"
        processes.append(holder("cuda", "", **environment))
        assert processes[1].stdout.readline() == "held GPU 5 5\n"
        processes.append(holder("cuda", "", **environment))
        assert processes[2].stdout.readline().startswith("waiting: all of cuda 3, 5 are in use")
        processes[0].kill()
        assert processes[2].stdout.readline() == "held GPU 3 3\n"
        # jobs of a scheduler may number their GPUs from 0, each for itself
        processes.append(holder("cuda", "", **environment, SLURM_JOB_ID="77"))
        assert processes[3].stdout.readline() == "held GPU 3 3\n"
    finally:
        for process in processes:
            process.kill()


def test_the_gpu_of_a_mac_has_one_job(tmp_path):
    environment = {"TMPDIR": str(tmp_path)}
    processes = [holder("mps", "", **environment)]
    try:
        assert processes[0].stdout.readline().startswith("held GPU 0")
        processes.append(holder("mps", "", **environment))
        assert processes[1].stdout.readline().startswith("waiting: all of mps 0 are in use")
        processes[0].kill()
        assert processes[1].stdout.readline().startswith("held GPU 0")
    finally:
        for process in processes:
            process.kill()


def test_a_gpu_is_the_same_by_its_number_and_by_its_uuid(tmp_path):
    """nvidia-smi is a stand-in here."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-aaaa-1'\necho '1, GPU-bbbb-2'\n")
    program.chmod(0o755)
    environment = {"TMPDIR": str(tmp_path), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    processes = [holder("cuda", "", **environment, CUDA_VISIBLE_DEVICES="1")]
    try:
        assert processes[0].stdout.readline() == "held GPU 1 1\n"
        processes.append(holder("cuda", "", **environment, CUDA_VISIBLE_DEVICES="GPU-bbbb"))
        assert processes[1].stdout.readline().startswith("waiting: all of cuda GPU-bbbb are in use")
        processes.append(holder("cuda", "", **environment, CUDA_VISIBLE_DEVICES="GPU-bbbb,GPU-aaaa"))
        assert processes[2].stdout.readline() == "held GPU GPU-aaaa GPU-aaaa\n"
        processes[0].kill()
        assert processes[1].stdout.readline() == "held GPU GPU-bbbb GPU-bbbb\n"
    finally:
        for process in processes:
            process.kill()


def test_a_job_of_a_scheduler_does_not_wait_for_ever(tmp_path, monkeypatch):
    """Its time limit runs; the scheduler tries again later. While it waits it reports that it is alive."""
    first, beats = holder("lock", str(tmp_path / "lock")), []
    monkeypatch.setattr("nnunet_dtc.study.workflow.machine.RETRY_S", 0.01)
    monkeypatch.setattr("nnunet_dtc.study.workflow.machine.PATIENCE_S", 0.1)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    try:
        assert first.stdout.readline() == "held\n"
        waiting = Lock.waiting(tmp_path / "lock", print, "this training runs already", lambda: beats.append(1))
        with pytest.raises(NnunetDtcError, match=r"still waiting after .* for this training runs already"), waiting:
            pass
        assert len(beats) > 1
    finally:
        first.kill()


@pytest.mark.parametrize(
    ("profile", "more", "here"),
    [
        ("default", [], True),
        ("gpus", ["--executor", "local"], True),
        ("default", ["--executor=local", "--retries", "3"], True),
        ("default", ["-e", "slurm"], False),
        ("default", ["--executor=lsf"], False),
        ("default", ["--profile", "mine"], False),
        ("slurm", [], False),
    ],
)
def test_where_the_jobs_run(profile, more, here, monkeypatch):
    monkeypatch.delenv("SNAKEMAKE_PROFILE", raising=False)
    assert engine.is_on_this_machine(profile, more) is here
    monkeypatch.setenv("SNAKEMAKE_PROFILE", "cluster")  # which may name any executor
    assert not engine.is_on_this_machine(profile, more)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU affinity")
def test_a_job_on_the_cpu_has_one_core(tmp_path, monkeypatch):
    before = os.sched_getaffinity(0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        with device_of_its_own("cpu", print) as (name, descriptors):
            assert os.sched_getaffinity(0) == {int(name.removeprefix("CPU "))}
            assert len(descriptors) == 1
    finally:
        os.sched_setaffinity(0, before)


# jobs


def test_what_is_done_is_not_done_again(folders, capsys):
    """Jobs of a finished training run no command: there is no data to train with."""
    trainer = STUDY["trainers"][1]
    folders.train(trainer)
    files = StudyFiles(study_of(folders.root))
    before = {file: file.stat().st_mtime_ns for file in files.model_folder(trainer).rglob("*")}
    jobs.train(files, trainer, 1)
    jobs.validate(files, trainer, 1)
    assert "$" not in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in files.model_folder(trainer).rglob("*")} == before


def test_checkpoints_that_were_cut_off_are_all_kept(folders):
    trainer = STUDY["trainers"][1]
    fold = folders.train(trainer) / "fold_1"
    files = StudyFiles(study_of(folders.root))
    for content in (b"first", b"second", b"third"):
        (fold / "checkpoint_latest.pth").write_bytes(content)
        jobs.train(files, trainer, 1)
    kept = {file.name: file.read_bytes() for file in fold.glob("checkpoint_latest*")}
    assert kept == {
        "checkpoint_latest.cut_off": b"first",
        "checkpoint_latest.cut_off.2": b"second",
        "checkpoint_latest.cut_off.3": b"third",
    }


@pytest.mark.parametrize(
    ("planned", "shared", "complete", "commands"),
    [
        (True, False, True, []),
        (True, False, False, ["nnUNetv2_preprocess"]),
        (False, True, True, ["nnUNetv2_plan_and_preprocess"]),
        (False, True, False, ["nnUNetv2_plan_and_preprocess", "nnUNetv2_preprocess"]),
        (False, False, True, ["nnUNetv2_plan_and_preprocess", "nnUNetv2_preprocess"]),
    ],
)
def test_only_what_is_missing_is_preprocessed(folders, monkeypatch, planned, shared, complete, commands):
    """nnU-Net deletes the data folder first, from which another study may train."""
    plans = folders.preprocessed / DATASET / "nnUNetPlans.json"
    text = plans.read_text()
    data = folders.preprocessed / DATASET / json.loads(text)["configurations"]["3d_fullres"]["data_identifier"]
    data.mkdir()
    (folders.raw / DATASET / "labelsTr").mkdir()
    for file in folders.gt.iterdir():
        (data / file.name.replace(".nii.gz", ".pkl")).touch()
        (folders.raw / DATASET / "labelsTr" / file.name).write_bytes(file.read_bytes())
    if not complete:
        (data / "case_c.pkl").unlink()
    if shared:
        plans.with_name("otherPlans.json").write_text(text)
    if not planned:
        plans.unlink()
    ran = []

    def run(job, command):
        ran.append(command[0])
        if command[0] == "nnUNetv2_plan_and_preprocess":
            assert "--no_pp" in command
            plans.write_text(text)

    monkeypatch.setattr(jobs._Job, "run", run)
    jobs.preprocess(StudyFiles(study_of(folders.root)))
    assert ran == commands


def test_the_next_stage_is_preprocessed_too(folders, monkeypatch):
    """When nnU-Net validates 3d_lowres, it resamples the predictions to these cases, and fails without them."""
    plans = small_plans()
    plans["configurations"]["3d_lowres"]["data_identifier"] = "low"
    plans["configurations"]["3d_fullres"]["data_identifier"] = "full"
    (folders.preprocessed / DATASET / "nnUNetPlans.json").write_text(json.dumps(plans))
    (folders.raw / DATASET / "labelsTr").mkdir()
    for file in folders.gt.iterdir():
        (folders.raw / DATASET / "labelsTr" / file.name).write_bytes(file.read_bytes())
    ran = []

    def run(job, command):
        ran.append(command[command.index("-c") + 1])
        folder = folders.preprocessed / DATASET / {"3d_lowres": "low"}.get(ran[-1], "full")
        folder.mkdir()
        for file in folders.gt.iterdir():
            (folder / file.name.replace(".nii.gz", ".pkl")).touch()

    monkeypatch.setattr(jobs._Job, "run", run)
    for _ in range(2):  # the second time all is there
        jobs.preprocess(StudyFiles(study_of(folders.root, configuration="3d_lowres")))
    assert ran == ["3d_lowres", "3d_cascade_fullres"]


@pytest.mark.parametrize("listed", [False, True])
def test_nothing_is_written_where_all_is_preprocessed(folders, monkeypatch, listed):
    """The folder may be read-only, and the raw data set gone."""
    folder = folders.preprocessed / DATASET
    data = folder / small_plans()["configurations"]["3d_fullres"]["data_identifier"]
    data.mkdir()
    entries = {}
    for file in folders.gt.iterdir():
        (data / file.name.replace(".nii.gz", ".pkl")).touch()
        entries[file.name.removesuffix(".nii.gz")] = {"images": [], "label": f"labelsTr/{file.name}"}
    (folder / "dataset.json").write_text(json.dumps(folders.dataset | ({"dataset": entries} if listed else {})))
    shutil.rmtree(folders.raw / DATASET)
    before = sorted(folders.preprocessed.rglob("*"))
    monkeypatch.setattr(jobs._Job, "run", lambda *_: pytest.fail("a command was run"))
    jobs.preprocess(StudyFiles(study_of(folders.root, dataset=DATASET)))
    assert sorted(folders.preprocessed.rglob("*")) == before


def test_held_out_cases_are_predicted_where_the_comparison_looks_for_them(folders, monkeypatch):
    trainer = STUDY["trainers"][1]
    folders.train(trainer)
    (folders.raw / DATASET / "labelsTs" / "held_1.nii.gz").touch()
    made = []
    for name in ("predict_fold", "predict_ensemble"):
        monkeypatch.setattr(f"nnunet_dtc.study.comparison.predictions.{name}", lambda *given: made.append(given))
    files = StudyFiles(study_of(folders.root, test=True))
    before = os.sched_getaffinity(0)
    try:
        jobs.predict(files, trainer, 1)
        jobs.predict(files, trainer, None)
    finally:
        os.sched_setaffinity(0, before)
    (_, fold, test, target), (_, folds, average, same, ensemble_target) = made
    comparison = files.study.folder / "comparison"
    assert (fold, target) == (1, comparison / "test_per_fold" / "predictions" / trainer)
    assert (folds, average) == ((0, 1), "logits")
    assert ensemble_target == comparison / "test" / "predictions" / trainer
    assert test.cases == same.cases == ("held_1",)
    assert test.device == "cpu"


def test_a_job_refuses_to_go_on_with_other_plans(folders):
    trainer = STUDY["trainers"][0]
    folders.train(trainer)
    plans = small_plans()
    plans["configurations"]["3d_fullres"]["patch_size"] = [6, 16, 32]
    (folders.preprocessed / DATASET / "nnUNetPlans.json").write_text(json.dumps(plans))
    study = study_of(folders.root)
    with pytest.raises(NnunetDtcError, match="patch_size"):
        jobs.train(StudyFiles(study), trainer, 0)
    assert [job.state for job in failed_jobs(study)] == ["failed"]


def test_a_note_of_another_version_is_none(folders):
    study = study_of(folders.root)
    notes = study.folder / "jobs" / study.stamps.name
    notes.mkdir(parents=True)
    (notes / "train.json").write_text('{"unknown": 1}')
    assert failed_jobs(study) == []
    assert JobNote("train", "finished", "a", 1, "", "", 0.0).is_alive is False


# the command


def test_the_snakefile_is_part_of_the_package():
    done = CliRunner().invoke(app, ["study", "--snakefile"])
    assert done.exit_code == 0
    file = Path(done.output.replace("\n", ""))
    assert file.name == "Snakefile"
    assert "nnUNetv2_train" in file.read_text()
    for profile in engine.PROFILES:
        content = yaml.safe_load((file.parent / "profiles" / profile / "config.yaml").read_text())
        assert content["keep-going"] is True
        assert content["rerun-incomplete"] is True


def test_everything_that_the_snakefile_puts_into_a_shell_is_quoted():
    lines = [line for line in engine.SNAKEFILE.read_text().splitlines() if "{NNUNET_DTC" in line]
    assert len(lines) == 9  # 7 jobs, and the status after success or an error
    for line in lines:
        assert all(field.endswith(":q") for field in re.findall(r"{(.*?)}", line)), line


def test_without_snakemake_one_sentence_says_what_to_install(folders, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    done = CliRunner().invoke(app, ["study", str(write(folders.root))], env={"COLUMNS": "500"})
    assert done.exit_code == 1
    assert "pip install 'nnunet-dtc[study]'" in done.output
    monkeypatch.setattr(engine.sys, "version_info", (3, 10, 4))
    done = CliRunner().invoke(app, ["study", str(write(folders.root))], env={"COLUMNS": "500"})
    assert "needs Python 3.11" in done.output


@pytest.fixture
def started(monkeypatch):
    """The command lines that would have become Snakemake."""
    lines = []
    monkeypatch.setattr(engine, "find_snakemake", lambda: "/bin/snakemake")
    monkeypatch.setattr(engine, "lock_study", lambda study: None)
    monkeypatch.setattr(engine, "run_snakemake", lambda study, command: lines.append(command))
    return lines


def test_a_study_runs_once_at_a_time(folders):
    study = study_of(folders.root)
    lock = engine.lock_study(study)
    with pytest.raises(NnunetDtcError, match=f"runs already, as process {os.getpid()}"):
        engine.lock_study(study)
    lock.release()
    engine.lock_study(study).release()


def test_options_write_a_study_and_the_rest_goes_to_snakemake(folders, started, monkeypatch):
    monkeypatch.chdir(folders.root)
    words = ["study", "-d", "998", "-c", "3d_fullres", "-tr", *STUDY["trainers"], "--folds", "0-1", "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--", "--jobs", "7", "-k"])
    assert done.exit_code == 0, done.output
    assert started[0][-3:] == ["--jobs", "7", "-k"]
    assert "1 repetition x 2 folds = 4 trainings: 4 to do" in " ".join(done.output.split())
    file = folders.root / "study_998_3d_fullres.yaml"
    assert read_study(file).models == tuple(STUDY["trainers"])
    assert CliRunner().invoke(app, words).exit_code == 0  # the same again
    changed = CliRunner().invoke(app, [*words, "--repetitions", "2"], env={"COLUMNS": "500"})
    assert changed.exit_code == 1
    assert "with other options" in changed.output


@pytest.mark.skipif(shutil.which("snakemake", path=str(Path(sys.executable).parent)) is None, reason="no Snakemake")
def test_snakemake_reads_keys_without_values_and_resources_of_one_rule(folders):
    """An empty value means the default; --set-resources leaves the other resources as they are."""
    text = "".join(f"{key}:\n" for key in ("folds", "repetitions", "plans", "test", "device", "nnunet_dtc"))
    file = folders.root / "nulls.yaml"
    file.write_text(text + "dataset: 998\nconfiguration: 3d_fullres\ntrainers: [nnUNetTrainer_3epochs]\n")
    program = shutil.which("snakemake", path=str(Path(sys.executable).parent))
    command = [program, "--snakefile", engine.SNAKEFILE, "--configfile", file, "--dry-run", "--cores", "1"]
    done = subprocess.run(
        [*command, "--set-resources", "train:runtime=60"], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"^train +5$", done.stdout, re.MULTILINE), done.stdout
    job = done.stdout[done.stdout.index("rule train:") :].split("\n\n")[0]
    assert {"gpu=1", "runtime=60", "mem_mb=48000"} <= set(re.split(r"[\s,]+", job)), job


def test_a_dry_run_of_options_writes_nothing(folders, started, monkeypatch):
    (folders.root / "work").mkdir()
    monkeypatch.chdir(folders.root / "work")
    words = ["study", "-d", "998", "-c", "3d_fullres", "-tr", *STUDY["trainers"], "--folds", "0-1", "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert started[0][-1] == "--dry-run"
    assert list(Path().iterdir()) == []


def test_options_that_are_no_study_are_not_written(folders, started, monkeypatch):
    (folders.root / "work").mkdir()
    monkeypatch.chdir(folders.root / "work")
    done = CliRunner().invoke(app, ["study", "-d", "998", "-c", "3d_fullres", "-tr", "A;B"], env={"COLUMNS": "500"})
    assert done.exit_code == 1
    assert "name of a class" in done.output
    assert list(Path().iterdir()) == []


def test_a_device_that_is_not_there_is_refused_only_on_this_machine(folders, started, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    file = str(write(folders.root, device="cuda"))
    done = CliRunner().invoke(app, ["study", file])
    assert done.exit_code == 1
    assert "cuda" in done.output
    for words in (["--profile", "slurm"], ["--", "--executor", "slurm"], ["--", "--executor=slurm"]):
        assert CliRunner().invoke(app, ["study", file, *words]).exit_code == 0
    assert len(started) == 3
    assert not any(word.startswith("gpu=") for command in started for word in command)


@pytest.mark.parametrize(
    ("more", "limits"),
    [
        ([], {"gpu": 2}),
        (["--jobs", "3"], {"gpu": 2}),
        (["--resources", "mem_mb=9000", "--jobs", "3"], {"gpu": 2, "mem_mb": 9000}),
        (["--resources=mem_mb=9000"], {"gpu": 2, "mem_mb": 9000}),
        (["--resources", "mem_mb=9000", "gpu=1"], {"gpu": 1, "mem_mb": 9000}),
        (["--res=gpu=1", "--jobs", "3"], {"gpu": 1}),
        (["--resources", "gpu=1", "--resources", "mem_mb=9000"], {"gpu": 2, "mem_mb": 9000}),
        (["--resource", "gpu=1", "mem_mb=9000"], {"gpu": 1, "mem_mb": 9000}),  # abbreviated
        (["--resources=mem_mb=9000", "index.html"], {"gpu": 2, "mem_mb": 9000}),  # and a target
        (["index.html", "--res=gpu=1"], {"gpu": 1}),
    ],
)
def test_jobs_are_limited_to_the_gpus_of_this_machine(folders, started, monkeypatch, more, limits):
    """The user may limit other resources as well. The oracle is Snakemake's own parser."""
    snakemake = pytest.importorskip("snakemake.cli")
    monkeypatch.delenv("SNAKEMAKE_PROFILE", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    done = CliRunner().invoke(app, ["study", str(write(folders.root, device="cuda")), "--", *more])
    assert done.exit_code == 0, done.output
    parsed = snakemake.get_argument_parser().parse_args(started[0][1:])
    assert {name: int(each.value) for name, each in parsed.resources.items()} == limits
    assert set(parsed.targets) == {"index.html"} & set(more)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Usage"),
        (["none.yaml"], "cannot read"),
        (["-d", "3"], "needs STUDY.yaml"),
        (["none.yaml", "-d", "3"], "give either"),
        (["none.yaml", "--folds", "0-4"], "give either"),
        (["none.yaml", "--test"], "give either"),
        (["none.yaml", "-o", "other.yaml"], "give either"),
        (["none.yaml", "--profile", "lsf"], "--profile is one of"),
        (["none.txt"], "YAML"),
    ],
)
def test_bad_command_lines(started, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["study", *words], env={"COLUMNS": "500"})
    assert done.exit_code != 0
    assert message in done.output
    assert not started
