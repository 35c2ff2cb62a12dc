"""`nnunet-dtc compare --test`: predictions by nnU-Net's commands, taken again, refused, averaged, fold by fold.

The commands are nnU-Net's own in the last test. In the others a small program stands in for them: it copies prepared
segmentations, or fails, and writes down how it was called.
"""

import gzip
import json
import os
import re
import shutil
import stat
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from model_folders import CONFIGURATION, DATASET, FOLDS, SHAPE, Folders, dice, draw, read_image, spoil, write_image
from plans import small_plans
from typer.testing import CliRunner

from nnunet_dtc.cli import app
from nnunet_dtc.study.comparison import ComparisonError, predictions
from nnunet_dtc.study.comparison.execution import compare
from nnunet_dtc.study.comparison.models import read_training
from nnunet_dtc.study.comparison.plan import Options, plan_comparison
from nnunet_dtc.study.evaluation import EvaluationError

HELD_OUT = ("test_1", "test_2", "test_3")
ORGANS = {"liver": 1, "spleen": 2}
TRAINERS = ("nnUNetTrainer", "nnUNetTrainerDTC")

STAND_IN = """#!{python}
import json, os, shutil, sys
from pathlib import Path
command, arguments = Path(sys.argv[0]).name, sys.argv[1:]
root = Path({root!r})
with (root / "calls.txt").open("a") as file:
    file.write(json.dumps([command, *arguments]) + "\\n")
value = lambda option: arguments[arguments.index(option) + 1]
target = Path(value("-o"))
if (root / "fail").exists():
    print("something is wrong with the network")
    sys.exit(3)
if command == "nnUNetv2_ensemble":
    inputs = arguments[arguments.index("-i") + 1:arguments.index("-o")]
    assert all((Path(folder) / "test_1.npz").is_file() for folder in inputs)
    source = root / "answers" / "softmax"
else:
    folds = []
    for text in arguments[arguments.index("-f") + 1:]:
        if text.startswith("-"):
            break
        folds.append(text)
    source = root / "answers" / Path(value("-m")).name.split("__")[0] / "_".join(folds)
target.mkdir(parents=True, exist_ok=True)
for file in source.iterdir():
    if not ((root / "forget").exists() and file.name.startswith("test_2")):
        shutil.copy(file, target)
        if "--save_probabilities" in arguments:
            (target / file.name.replace(".nii.gz", ".npz")).touch()
"""


class WithHeldOut(Folders):
    """With held-out cases, two models, and what the stand-in answers for them."""

    def __init__(self, root, monkeypatch):
        super().__init__(root, monkeypatch)
        for seed, case in enumerate(HELD_OUT):
            write_image(self.raw / DATASET / "labelsTs" / f"{case}.nii.gz", draw(50 + seed))
            write_image(self.raw / DATASET / "imagesTs" / f"{case}_0000.nii.gz", draw(70 + seed))
        self.models = [self.train(trainer) for trainer in TRAINERS]
        self.answers = root / "answers"
        sources = [(trainer, folds) for trainer in TRAINERS for folds in ("0", "1", "0_1")]
        for seed, (trainer, folds) in enumerate([*sources, ("softmax", "")]):
            folder = self.answers / trainer / folds
            folder.mkdir(parents=True)
            for number, case in enumerate(HELD_OUT):
                write_image(folder / f"{case}.nii.gz", spoil(self.truth(case), 0.03 + 0.02 * seed, 100 * seed + number))
        self.program = root / "stand_in"

    def truth(self, case):
        return read_image(self.raw / DATASET / "labelsTs" / f"{case}.nii.gz")

    def mean_dice(self, *answer):
        """Over organs, then cases, of what the stand-in answers."""
        folder = self.answers.joinpath(*answer)
        return np.mean(
            [
                np.mean(
                    [
                        dice(read_image(folder / f"{case}.nii.gz") == value, self.truth(case) == value)
                        for value in ORGANS.values()
                    ]
                )
                for case in HELD_OUT
            ]
        )

    def calls(self):
        return [json.loads(line) for line in (self.root / "calls.txt").read_text().splitlines()]

    def compare(self, output, progress=None, **options):
        commands = []
        plan = plan_comparison(self.models, Options(processes=1, device="cpu", **{"kind": "test", **options}))
        return compare(plan, output, progress, commands.append), commands


@pytest.fixture
def folders(tmp_path, monkeypatch):
    if sys.platform == "win32":
        pytest.skip("the stand-in is a script with a shebang")
    monkeypatch.chdir(tmp_path)
    made = WithHeldOut(tmp_path, monkeypatch)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("nnUNetv2_predict_from_modelfolder", "nnUNetv2_ensemble"):
        program = programs / name
        program.write_text(STAND_IN.format(python=sys.executable, root=str(tmp_path)))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(shutil, "which", lambda command, **options: str(programs / command))
    return made


def means(result, metric="dice"):
    summary = result.summary[result.summary["metric"] == metric].set_index("model")
    return summary["mean"].to_dict(), summary["std_folds"].to_dict()


def test_the_ensemble_is_predicted_once(folders, tmp_path):
    out = tmp_path / "out"
    result, commands = folders.compare(out)
    assert result.kind == "test"
    mean, deviation = means(result)
    for trainer in TRAINERS:
        assert mean[trainer] == pytest.approx(folders.mean_dice(trainer, "0_1"))
        assert np.isnan(deviation[trainer])
    assert result.scores["fold"].isna().all()
    calls = folders.calls()
    assert len(calls) == len(commands) == 2
    for call, line, model in zip(calls, commands, folders.models, strict=True):
        assert call[:3] == ["nnUNetv2_predict_from_modelfolder", "-m", str(model)]
        for option, values in (("-f", ["0", "1"]), ("-chk", ["checkpoint_final.pth"]), ("-device", ["cpu"])):
            place = call.index(option)
            assert call[place + 1 : place + 1 + len(values)] == values
        assert line.startswith(" ".join(call[:4]))
        assert not line.endswith("unfinished")
    assert {model.checkpoint for model in result.models} == {"checkpoint_final.pth"}
    assert any("logits of the folds were averaged, as in nnU-Net" in sentence for sentence in result.sentences)
    for trainer in TRAINERS:
        made = out / "predictions" / trainer
        assert sorted(entry.name for entry in made.iterdir()) == ["ensemble", "ensemble.log"]
    picture = result.pictures[0]
    assert picture.images == (folders.raw / DATASET / "imagesTs" / f"{picture.case}_0000.nii.gz",)

    folders.compare(out)  # the same again
    assert len(folders.calls()) == 2
    folders.write_checkpoint(folders.models[1], 1, small_plans(), epochs=4)
    _, commands = folders.compare(out)
    assert len(folders.calls()) == 3
    assert "nnUNetTrainer/ensemble is used again" in commands[0]
    assert str(folders.models[1]) in folders.calls()[-1]
    (out / "predictions" / TRAINERS[0] / "ensemble" / "test_3.nii.gz").unlink()
    folders.compare(out)
    assert str(folders.models[0]) in folders.calls()[-1]


def test_each_fold_alone(folders, tmp_path):
    """The form of the paper's tables 1 and 2."""
    result, _ = folders.compare(tmp_path / "out", kind="test per fold")
    mean, deviation = means(result)
    for trainer in TRAINERS:
        folds = [folders.mean_dice(trainer, fold) for fold in ("0", "1")]
        assert mean[trainer] == pytest.approx(np.mean(folds))
        assert deviation[trainer] == pytest.approx(np.std(folds, ddof=1))
    assert sorted(result.scores["fold"].unique()) == [0, 1]
    assert (result.differences["n"] == len(HELD_OUT)).all()
    made = tmp_path / "out" / "predictions" / "nnUNetTrainerDTC"
    assert sorted(entry.name for entry in made.iterdir()) == ["fold_0", "fold_0.log", "fold_1", "fold_1.log"]
    assert result.pictures[0].predictions["nnUNetTrainerDTC"].parent == made / "fold_0"
    limits = [sentence for sentence in result.sentences if "All folds predict the same held-out cases" in sentence]
    assert len(limits) == 1
    assert "not what other cases might give" in limits[0]
    one_fold, _ = folders.compare(tmp_path / "one", kind="test per fold", folds=(0,))
    assert not any("All folds" in sentence for sentence in one_fold.sentences)


def test_progress_by_image_while_nnunet_predicts(folders, tmp_path):
    shown = []
    folders.compare(tmp_path / "out", lambda *step: shown.append(step), kind="test per fold")
    for trainer in TRAINERS:
        for fold in (0, 1):
            counts = [(done, total) for step, done, total in shown if step == f"{trainer}, fold {fold}"]
            assert counts[0] == (0, len(HELD_OUT))
            assert counts[-1] == (len(HELD_OUT), len(HELD_OUT))
            assert counts == sorted(counts)


def test_softmax_is_averaged_by_nnunets_command(folders, tmp_path):
    result, _ = folders.compare(tmp_path / "out", average="softmax")
    mean, _ = means(result)
    assert mean["nnUNetTrainer"] == mean["nnUNetTrainerDTC"] == pytest.approx(folders.mean_dice("softmax"))
    assert [call[0] for call in folders.calls()] == [
        *["nnUNetv2_predict_from_modelfolder"] * 2,
        "nnUNetv2_ensemble",
    ] * 2
    assert all("--save_probabilities" in call for call in folders.calls() if "-m" in call)
    assert not list((tmp_path / "out").rglob("*.npz"))
    assert any(
        "softmax outputs of the folds were averaged, as in the paper" in sentence for sentence in result.sentences
    )
    folders.compare(tmp_path / "out")  # the other average is another folder
    assert sorted(entry.name for entry in (tmp_path / "out" / "predictions" / TRAINERS[0]).iterdir()) == [
        *("ensemble", "ensemble.log", "ensemble_softmax", "ensemble_softmax.log"),
    ]


@pytest.mark.parametrize("what", ["fail", "forget"])
def test_an_unfinished_folder_is_never_taken_for_a_finished_one(folders, tmp_path, what):
    (tmp_path / what).touch()
    with pytest.raises(ComparisonError) as error:
        folders.compare(tmp_path / "out")
    if what == "fail":
        assert "failed with exit status 3" in str(error.value)
        assert "something is wrong with the network" in str(error.value)
    else:
        assert "has no prediction of test_2" in str(error.value)
    made = tmp_path / "out" / "predictions" / "nnUNetTrainer"
    assert not (made / "ensemble").exists()
    assert (made / "ensemble.unfinished").is_dir()
    (tmp_path / what).unlink()
    result, _ = folders.compare(tmp_path / "out")
    assert len(result.models) == 2
    assert not (made / "ensemble.unfinished").exists()


def test_what_somebody_else_put_there_stays(folders, tmp_path):
    mine = tmp_path / "out" / "predictions" / "nnUNetTrainer" / "ensemble" / "test_1.nii.gz"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ComparisonError, match="was not made by nnunet-dtc"):
        folders.compare(tmp_path / "out")
    assert mine.read_text() == "mine"


def test_given_predictions(folders, tmp_path):
    given = {trainer: folders.answers / trainer / "0" for trainer in TRAINERS}
    result, commands = folders.compare(tmp_path / "out", predictions=given)
    assert commands == []
    assert [model.folds for model in result.models] == [(), ()]
    mean, _ = means(result)
    assert mean["nnUNetTrainerDTC"] == pytest.approx(folders.mean_dice("nnUNetTrainerDTC", "0"))
    assert any("It is not known which folds and checkpoints they were made with" in line for line in result.sentences)
    result, commands = folders.compare(tmp_path / "out", predictions={TRAINERS[1]: given[TRAINERS[1]]})
    assert len(commands) == 1
    assert [model.folds for model in result.models] == [(0, 1), ()]


def test_held_out_cases_of_the_training_are_named(folders, tmp_path):
    for part in ("imagesTs", "labelsTs"):
        number = "_0000" if part == "imagesTs" else ""
        write_image(folders.raw / DATASET / part / f"case_a{number}.nii.gz", draw(0))
    for answer in folders.answers.glob("*/*"):
        if answer.is_dir():
            write_image(answer / "case_a.nii.gz", draw(0))
    result, _ = folders.compare(tmp_path / "out")
    assert any("have names of cases in splits_final.json (case_a)" in sentence for sentence in result.sentences)


def test_by_the_command_line(folders, tmp_path):
    shutil.rmtree(folders.models[0] / "fold_0" / "validation")
    arguments = ["compare", *map(str, folders.models), "--test", "--device", "cpu", "-np", "1", "-o", "out"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    assert "nnUNetv2_predict_from_modelfolder -m" in result.output
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "could not be checked whether the models were trained on the same splits" in text
    assert f"{100 * folders.mean_dice('nnUNetTrainerDTC', '0_1'):.2f}" in text
    again = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
    assert again.exit_code == 1
    assert "--overwrite" in again.output
    for file in (tmp_path / "out").iterdir():
        if file.is_file():
            file.unlink()
    resumed = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})  # predictions alone: an interrupted run
    assert resumed.exit_code == 0, resumed.output
    assert "ensemble is used again" in resumed.output


@pytest.mark.parametrize(("cores", "workers"), [(1, " -npp 1 -nps 1 "), (2, " -npp 2 -nps 2 "), (3, " "), (8, " ")])
def test_nnunet_starts_no_more_workers_than_there_are_cores(folders, tmp_path, monkeypatch, cores, workers):
    """By default it starts three of each kind."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    _, commands = folders.compare(tmp_path / "out")
    assert len(commands) == 2
    assert all(f"-device cpu{workers}--disable_progress_bar" in command for command in commands)


@pytest.mark.nnunet
def test_nnunet_itself_averages_softmax(tmp_path, monkeypatch):
    """Two folds of random weights; the oracle is the mean of the softmax of nnU-Net's networks on one patch."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)  # one worker, which starts sooner
    folders = Folders(tmp_path, monkeypatch)
    plans = small_plans()
    plans["configurations"][CONFIGURATION] |= {"spacing": [3.0, 0.8, 0.8], "normalization_schemes": ["NoNormalization"]}
    plans["foreground_intensity_properties_per_channel"] = {"0": {}}
    shape, spacing = (6, 16, 24), (3.0, 0.8, 0.8)  # one patch
    image = np.random.default_rng(1).random(shape, dtype=np.float32) + 0.5  # nowhere zero, so not cropped
    for part, array in (("imagesTs/test_1_0000", image), ("labelsTs/test_1", draw(3, shape))):
        write_image(folders.raw / DATASET / f"{part}.nii.gz", array, spacing)
    model = folders.train("nnUNetTrainer", plans=plans)
    manager = PlansManager(plans)
    logits = []
    for fold in FOLDS:
        torch.manual_seed(10 + fold)
        network = nnUNetTrainer.build_network_architecture(
            manager, manager.get_configuration(CONFIGURATION), 1, 3, False
        ).eval()
        for parameter in network.decoder.seg_layers.parameters():
            parameter.data *= 1 + 9 * fold  # a sure and an unsure network: the mean of logits is another prediction
        with torch.no_grad():
            logits.append(network(torch.from_numpy(image)[None, None])[0])
        file = model / f"fold_{fold}" / "checkpoint_final.pth"
        torch.save(torch.load(file, weights_only=False) | {"network_weights": network.state_dict()}, file)
    mean = sum(each.softmax(0) for each in logits).numpy() / 2
    of_softmax, of_logits = mean.argmax(0), sum(logits).numpy().argmax(0)
    largest = np.sort(mean, axis=0)
    clear = largest[-1] - largest[-2] > 5e-3  # nnU-Net adds up logits in half precision
    assert clear.mean() > 0.9
    assert (of_softmax != of_logits)[clear].any()

    test = predictions.HeldOutSet(folders.raw / DATASET / "imagesTs", ("test_1",), "checkpoint_final.pth", "cpu", print)
    made = predictions.predict_ensemble(read_training(model), (0, 1), "softmax", test, tmp_path / "made")
    predicted = read_image(made / "test_1.nii.gz")
    assert predicted.shape == shape
    np.testing.assert_array_equal(predicted[clear], of_softmax[clear])
    assert not list(made.rglob("*.npz"))


# ---- held-out images and labels are checked before the first prediction ----


def refused(folders, tmp_path, **options):
    with pytest.raises(EvaluationError) as error:
        folders.compare(tmp_path / "out", **options)
    assert not (tmp_path / "calls.txt").exists()  # none of nnU-Net's commands was called
    return str(error.value)


def test_a_cut_off_image_is_named_before_anything_is_predicted(folders, tmp_path):
    """nnU-Net would predict on it as if the rest were background."""
    image = folders.raw / DATASET / "imagesTs" / "test_2_0000.nii.gz"
    content = gzip.decompress(image.read_bytes())
    image.write_bytes(gzip.compress(content[:-100]))
    message = refused(folders, tmp_path)
    assert f"cannot read {image}: it is cut off" in message
    assert "test_1" not in message


def test_labels_that_could_not_be_scored_afterwards(folders, tmp_path):
    labels = folders.raw / DATASET / "labelsTs"
    write_image(labels / "test_1.nii.gz", folders.truth("test_1"), (3.0, 0.8, 0.95))
    write_image(labels / "test_2.nii.gz", folders.truth("test_2") + np.uint8(2))
    write_image(labels / "test_3.nii.gz", folders.truth("test_3")[:-1])
    message = refused(folders, tmp_path)
    assert re.search(r"test_1.nii.gz is not on the grid of .*: spacing \(0.95, 0.8, 3\) and \(0.9, 0.8, 3\)", message)
    assert f"unknown label values 3, 4 (known: 0, 1, 2) in {labels / 'test_2.nii.gz'}" in message
    assert re.search(rf"test_3.nii.gz is not on the grid of .*: sizes .* and {re.escape(str(SHAPE[::-1]))}", message)


def test_labels_in_another_place_are_scored_or_refused(folders, tmp_path):
    file = folders.raw / DATASET / "labelsTs" / "test_1.nii.gz"
    image = sitk.ReadImage(str(file))
    image.SetOrigin((3.0, 4.0, 0.0))
    sitk.WriteImage(image, str(file))
    assert "origin (3, 4, 0) and (0, 0, 0)" in refused(folders, tmp_path, strict_geometry=True)
    found, _ = folders.compare(tmp_path / "out")
    assert any("In 1 of 3 cases" in line and "up to 5 mm apart (test_1)" in line for line in found.sentences)
    assert len(json.loads((tmp_path / "calls.txt").read_text().splitlines()[0])) > 3
