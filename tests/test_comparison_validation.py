"""`nnunet-dtc compare` on validation folders, from the command line to its files, against plain numpy."""

import csv
import json
import math
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from model_folders import (
    CONFIGURATION,
    DATASET,
    EPOCHS,
    FOLDS,
    PLANS,
    SPACING,
    Folders,
    dice,
    read_image,
    spoil,
    write_image,
)
from plans import small_plans
from scipy import stats
from typer.testing import CliRunner

from nnunet_dtc.cli import app
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.study.comparison.case_images import training_images
from nnunet_dtc.study.comparison.execution import compare
from nnunet_dtc.study.comparison.logs import count_parameters, epoch_rows, read_log
from nnunet_dtc.study.comparison.models import read_training
from nnunet_dtc.study.comparison.page import render_page
from nnunet_dtc.study.comparison.picture_choice import choose_cases
from nnunet_dtc.study.comparison.plan import Options, plan_comparison
from nnunet_dtc.study.comparison.verdicts import noise_sentences
from nnunet_dtc.study.evaluation import EvaluationError
from nnunet_dtc.study.evaluation.metrics import surface_distances

CASES = [case for cases in FOLDS.values() for case in cases]
ORGANS = {"liver": 1, "spleen": 2}
TWO = (("nnUNetTrainer", 0.2), ("nnUNetTrainerDTC", 0.1))


def run(*arguments):
    return CliRunner().invoke(app, ["compare", "-np", "1", *map(str, arguments)], env={"COLUMNS": "300"})


def compared(*folders, **options):
    plan = plan_comparison(folders, Options(processes=1, **options))
    return compare(plan, plan.first.path.parent / "out")


def case_dice(folders, model, case, organ):
    """Of one organ, from the files."""
    fold = next(fold for fold, cases in FOLDS.items() if case in cases)
    prediction = read_image(model / f"fold_{fold}" / "validation" / f"{case}{folders.ending}")
    return dice(prediction == ORGANS[organ], folders.label(case) == ORGANS[organ])


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Folders(tmp_path, monkeypatch)


def test_from_the_command_line_to_the_files(folders, tmp_path):
    vanilla = folders.train("nnUNetTrainer", share=0.2, seed=1)
    other = folders.train("nnUNetTrainerDTC_RF10", share=0.1, seed=2, extra=11, seconds=14.0)
    memory = tmp_path / "complexity.json"
    memory.write_text(
        json.dumps(
            {"dataset": DATASET, "plans": PLANS, "configuration": CONFIGURATION}
            | {"trainers": {"nnUNetTrainer": {"peak_memory_mib": 1234.5}}}
        )
    )
    arguments = [
        "-d",
        998,
        "-c",
        CONFIGURATION,
        "-tr",
        "nnUNetTrainer",
        "nnUNetTrainerDTC_RF10",
        "--complexity",
        memory,
    ]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    out = tmp_path / f"comparison_{DATASET}_{PLANS}_{CONFIGURATION}_validation"
    names = ["comparison.json", "comparison.md", "differences.csv", "index.html", "scores.csv"]
    assert sorted(file.name for file in out.iterdir()) == names

    expected = {
        model: {case: [case_dice(folders, folder, case, organ) for organ in ORGANS] for case in CASES}
        for model, folder in (("nnUNetTrainer", vanilla), ("nnUNetTrainerDTC_RF10", other))
    }
    means = {model: np.mean([np.mean(values) for values in cases.values()]) for model, cases in expected.items()}
    content = json.loads((out / "comparison.json").read_text())
    assert (content["dataset"], content["kind"]) == (DATASET, "validation")
    summary = {(row["model"], row["metric"]): row for row in content["summary"]}
    for model, mean in means.items():
        assert summary[model, "dice"]["mean"] == pytest.approx(mean)
        folds = [np.mean([np.mean(expected[model][case]) for case in cases]) for cases in FOLDS.values()]
        assert summary[model, "dice"]["std_folds"] == pytest.approx(np.std(folds, ddof=1))
        shown = f"{100 * mean:.2f} ± {100 * np.std(folds, ddof=1):.2f}"
        assert shown in (out / "comparison.md").read_text()
        assert shown in result.output
    difference = means["nnUNetTrainerDTC_RF10"] - means["nnUNetTrainer"]
    assert summary["nnUNetTrainerDTC_RF10", "dice"]["difference"] == pytest.approx(difference)
    assert f"{100 * difference:+.2f}" in result.output

    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(CASES) * len(ORGANS)
    for row in rows:
        place = list(ORGANS).index(row["organ"])
        assert float(row["dice"]) == pytest.approx(expected[row["model"]][row["case"]][place])
        assert row["case"] in FOLDS[int(row["fold"])]
    differences = {
        (row["metric"], row["organ"]): row for row in content["differences"] if row["model"] == "nnUNetTrainerDTC_RF10"
    }
    for place, organ in enumerate(ORGANS):
        pairs = [
            expected["nnUNetTrainerDTC_RF10"][case][place] - expected["nnUNetTrainer"][case][place] for case in CASES
        ]
        row = differences["dice", organ]
        assert row["mean"] == pytest.approx(np.mean(pairs))
        assert (row["n"], row["better"], row["worse"]) == (7, sum(p > 0 for p in pairs), sum(p < 0 for p in pairs))
        assert row["low"] < row["mean"] < row["high"]
        assert row["p"] <= row["p_holm"] <= 1

    first, second = content["models"]
    # 7 * 3 * 2 numbers under four names, 7 more, and `extra`; neither buffers nor second names
    assert (first["parameters"], second["parameters"]) == (49, 60)
    assert (first["epochs"], second["epochs"]) == (EPOCHS, EPOCHS)
    # folds 0 and 1, epochs 0 to 2: 10, 11, 12, 12, 13, 14 seconds
    assert (first["epoch_seconds"], second["epoch_seconds"]) == (pytest.approx(12), pytest.approx(16))
    assert (first["peak_memory_mib"], second["peak_memory_mib"]) == (1234.5, None)
    assert first["checkpoint"] == "not recorded by nnU-Net"
    assert first["folds"] == [0, 1]
    sentences = " ".join(content["sentences"])
    assert "does not record which checkpoint" in sentences
    assert "No training was repeated" in sentences
    assert "no peak memory of nnUNetTrainerDTC_RF10" in sentences
    assert {row["method"] for row in content["noise"]} == {"folds"}
    assert all(row["run_to_run"] is None for row in content["noise"])
    assert "over folds" in content["verdicts"][0]
    assert sentences.split(".")[0] in result.output

    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "is not empty" in refused.output
    (out / "notes.txt").write_text("mine")
    again = run(*arguments, "-f", 0, 1, "--overwrite", "--tolerance", "0.5voxel")
    assert again.exit_code == 0, again.output
    assert json.loads((out / "comparison.json").read_text())["metrics"] == ["dice", "nsd_0.5voxel", "hd95_mm"]
    assert (out / "notes.txt").read_text() == "mine"
    assert not list(out.glob(".*"))


def test_all_metrics_are_those_of_the_files(folders):
    vanilla, other = folders.train("nnUNetTrainer", seed=1), folders.train("nnUNetTrainerDTC", seed=2)
    result = compared(vanilla, other, folds=(1,))
    assert result.metrics == ("dice", "nsd_1mm", "nsd_2mm", "hd95_mm")
    assert set(result.scores["case"]) == set(FOLDS[1])
    for row in result.scores.itertuples():
        folder = vanilla if row.model == "nnUNetTrainer" else other
        masks = [
            array == ORGANS[row.organ]
            for array in (
                read_image(folder / "fold_1" / "validation" / f"{row.case}.nii.gz"),
                folders.label(row.case),
            )
        ]
        surfaces = surface_distances(*masks, SPACING)
        assert row.nsd_1mm == pytest.approx(surfaces.nsd(1))
        assert row.hd95_mm == pytest.approx(surfaces.hausdorff(95))
    assert result.summary["std_folds"].isna().all()  # of one fold
    assert str(result.scores["fold"].dtype) == "Int64"


def test_repeats_belong_to_one_model(folders):
    trainings = {
        "nnUNetTrainer": (0.20, 1),
        "nnUNetTrainer_rep2": (0.16, 2),
        "nnUNetTrainerDTC": (0.08, 3),
        "nnUNetTrainerDTC_rep2": (0.06, 4),
    }
    made = {name: folders.train(name, share, seed) for name, (share, seed) in trainings.items()}
    result = compared(*made.values())
    assert [model.name for model in result.models] == ["nnUNetTrainer", "nnUNetTrainerDTC"]
    assert result.models[1].repeats == ("nnUNetTrainerDTC", "nnUNetTrainerDTC_rep2")
    assert sorted(result.scores["repeat"].unique()) == [1, 2]
    assert len(result.scores) == 4 * len(CASES) * len(ORGANS)

    means = {
        name: np.mean([np.mean([case_dice(folders, folder, case, organ) for organ in ORGANS]) for case in CASES])
        for name, folder in made.items()
    }
    a, b = (np.array([means[name], means[f"{name}_rep2"]]) for name in ("nnUNetTrainer", "nnUNetTrainerDTC"))
    summary = result.summary.set_index(["model", "metric"])
    assert summary.loc[("nnUNetTrainerDTC", "dice"), "mean"] == pytest.approx(b.mean())
    noise = result.noise.set_index("metric").loc["dice"]
    assert noise["difference"] == pytest.approx(b.mean() - a.mean())
    assert noise["run_to_run"] == pytest.approx(
        math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2) * math.sqrt(1 / 2 + 1 / 2)
    )
    assert noise["p_noise"] == pytest.approx(stats.ttest_ind(b, a).pvalue)
    assert bool(noise["exceeds"]) == (noise["p_noise"] < 0.05)
    assert "2 and 2 trainings" in noise_sentences(result.noise, result.trainings)[0]
    assert any("2 of nnUNetTrainer, 2 of nnUNetTrainerDTC" in sentence for sentence in result.sentences)
    assert not any("number of models" in sentence for sentence in result.sentences)  # there is one difference
    curves = result.curves
    assert len(curves) == 4 * len(FOLDS) * EPOCHS
    assert curves["epoch"].max() == EPOCHS - 1
    second = curves[(curves["model"] == "nnUNetTrainerDTC") & (curves["repeat"] == 2) & (curves["fold"] == 1)]
    assert second["train_loss"].to_list() == pytest.approx([0, -0.2, -0.4])
    assert second["seconds"].to_list() == pytest.approx([12, 13, 14])


def test_what_is_said_of_several_models_depends_on_what_was_trained(folders):
    names = ("nnUNetTrainer", "nnUNetTrainerDTC", "nnUNetTrainerDTC_RF10")
    made = [folders.train(name, 0.1, seed) for seed, name in enumerate(names)]
    corrected, one_fold = (" ".join(compared(*made, folds=folds).sentences) for folds in (None, (0,)))
    assert "based on p-values corrected over the models, by Holm's method" in corrected
    assert "corrected over the models" not in one_fold
    assert "Intervals and p over cases are not corrected for the number of models." in one_fold


def test_without_checkpoints_the_scores_are_compared_all_the_same(folders):
    made = [folders.train(name) for name in ("nnUNetTrainer", "nnUNetTrainerDTC")]
    for fold in FOLDS:
        (made[1] / f"fold_{fold}" / "checkpoint_final.pth").unlink()
    folders.write_checkpoint(made[0], 1, json.loads((made[0] / "plans.json").read_text()), epochs=5)
    result = compared(*made)
    assert result.models[1].epochs is result.models[1].parameters is result.models[1].epoch_seconds is None
    assert result.models[0].epochs == 5
    text = " ".join(result.sentences)
    assert "same number of epochs (nnUNetTrainer: 3, 5; nnUNetTrainerDTC: not known)" in text
    assert "no training log, of nnUNetTrainerDTC fold 0, nnUNetTrainerDTC fold 1" in text


def test_an_absent_organ_is_counted_and_reported(folders):
    vanilla, other = folders.train("nnUNetTrainer", seed=1), folders.train("nnUNetTrainerDTC", seed=2)
    file = other / "fold_0" / "validation" / "case_a.nii.gz"
    array = read_image(file)
    array[array == 2] = 0
    write_image(file, array)
    folders.write_summary(file.parent)
    result = compared(vanilla, other)
    row = result.differences.set_index(["metric", "organ"]).loc[("hd95_mm", "spleen")]
    assert (row["n"], row["left_out"]) == (len(CASES) - 1, 1)
    assert any("0 of nnUNetTrainer, 1 of nnUNetTrainerDTC" in sentence for sentence in result.sentences)
    assert result.differences["n"].max() == len(CASES)


def test_an_invented_organ_is_counted_and_reported(folders):
    label = folders.label("case_e")
    label[label == 2] = 0
    write_image(folders.gt / "case_e.nii.gz", label)
    vanilla, other = folders.train("nnUNetTrainer", seed=1), folders.train("nnUNetTrainerDTC", seed=2)
    again = folders.train("nnUNetTrainerDTC_rep2", seed=3)
    for model, spleen in ((vanilla, 0), (other, 5), (again, 0)):
        file = model / "fold_1" / "validation" / "case_e.nii.gz"
        array = read_image(file)
        array[array == 2] = 0
        array[:, 0, :spleen] = 2
        write_image(file, array)
        folders.write_summary(file.parent)
    result = compared(vanilla, other, again)
    row = result.differences.set_index(["metric", "organ"]).loc[("dice", "spleen")]
    assert (row["n"], row["counted_as_1"]) == (len(CASES), 1)
    paired = []
    for case in CASES:
        spleen = {vanilla: 1.0, other: 0.0, again: 1.0}  # of case_e
        of = {
            model: [
                spleen[model] if (case, organ) == ("case_e", "spleen") else case_dice(folders, model, case, organ)
                for organ in ORGANS
            ]
            for model in spleen
        }
        paired.append(np.mean([of[other], of[again]]) - np.mean(of[vanilla]))
    overall = result.differences.set_index(["metric", "organ"]).loc[("dice", "")]
    assert overall["mean"] == pytest.approx(np.mean(paired))
    text = " ".join(result.sentences)
    assert "but not in the means (pairs of a case and an organ: 1 of nnUNetTrainerDTC and nnUNetTrainer)" in text
    assert "count as Dice 1 and NSD 1 in the mean over them (predictions of an organ: 0 of nnUNetTrainer, 1 of" in text
    plain = result.summary.set_index(["model", "metric"]).loc[("nnUNetTrainerDTC", "dice"), "difference"]
    expected = f"Dice of nnUNetTrainerDTC {100 * np.mean(paired):+.2f} instead of {100 * plain:+.2f} points"
    expected = expected.replace("-", "\N{MINUS SIGN}")
    assert f"The mean paired difference is therefore not the difference of the means: {expected}" in text


def test_empty_organs_are_not_mentioned_where_there_are_none(folders):
    result = compared(folders.train("nnUNetTrainer", seed=1), folders.train("nnUNetTrainerDTC", seed=2))
    assert not any("empty" in sentence for sentence in result.sentences)
    assert (result.differences["counted_as_1"] == 0).all()


@pytest.mark.parametrize("known", [{0: FOLDS[0]}, None])
def test_what_the_folds_were_checked_against_is_reported(folders, known):
    """Fold 1 is not in the file: it is the same for both models, and no more is known of it."""
    file = folders.preprocessed / DATASET / "splits_final.json"
    folders.write_splits(known) if known else file.unlink()
    result = compared(folders.train("nnUNetTrainer", seed=1), folders.train("nnUNetTrainerDTC", seed=2))
    same = "The folds' validation cases are the same for all models"
    more = (
        ", and agree with splits_final.json in the folds that it has." if known else ". There was no splits_final.json"
    )
    assert any(sentence.startswith(same + more) for sentence in result.sentences)


def test_the_interval_over_folds_follows_from_the_split(folders):
    """The compared folds have 3 of 10 and 4 of 10 cases here, whose other folds were not trained; without a file, the
    two folds count as all. The interval's half is in proportion to sqrt(1/2 + r)."""
    models = folders.train("nnUNetTrainer", seed=1), folders.train("nnUNetTrainerDTC", seed=2)
    folders.write_splits({**FOLDS, 2: ("case_h", "case_i", "case_j")})
    known = compared(*models).noise.iloc[0]
    (folders.preprocessed / DATASET / "splits_final.json").unlink()
    unknown = compared(*models).noise.iloc[0]
    assert known["mean"] == unknown["mean"]
    ratio = (3 / 7 + 4 / 6) / 2
    widths = (known["high"] - known["low"]) / (unknown["high"] - unknown["low"])
    assert widths == pytest.approx(math.sqrt((1 / 2 + ratio) / (1 / 2 + 1)))


def test_pictures_without_images_are_left_out_and_reported(folders):
    for file in (folders.raw / DATASET / "imagesTr").iterdir():
        file.unlink()
    result = compared(folders.train("nnUNetTrainer", seed=1), folders.train("nnUNetTrainerDTC", seed=2))
    assert any(sentence.endswith("their pictures are left out of the page.") for sentence in result.sentences)
    page = render_page(result)
    assert "The picture is left out: its image was not found" in page
    assert "<img" not in page


def test_pictures_are_of_the_cases_that_the_rule_names(folders):
    vanilla, other = folders.train("nnUNetTrainer", share=0.1), folders.train("nnUNetTrainerDTC", share=0.1, seed=9)
    for model, case, share in ((vanilla, "case_b", 0.6), (other, "case_d", 0.5), (other, "case_f", 0.0)):
        fold = next(fold for fold, cases in FOLDS.items() if case in cases)
        file = model / f"fold_{fold}" / "validation" / f"{case}.nii.gz"
        write_image(file, spoil(folders.label(case), share, 5))
        folders.write_summary(file.parent)
    pictures = {picture.why: picture for picture in compared(vanilla, other).pictures}
    assert pictures["worst, largest gain"].case == "case_b"
    assert pictures["largest loss"].case == "case_d"
    assert "best" in pictures
    worst = pictures["worst, largest gain"]
    assert worst.images == (folders.raw / DATASET / "imagesTr" / "case_b_0000.nii.gz",)
    assert worst.reference == folders.gt / "case_b.nii.gz"
    assert worst.predictions["nnUNetTrainerDTC"] == other / "fold_0" / "validation" / "case_b.nii.gz"
    expected = {organ: case_dice(folders, vanilla, "case_b", organ) for organ in ORGANS}
    assert worst.organ_dice["nnUNetTrainer"] == pytest.approx(expected)
    assert worst.dice["nnUNetTrainer"] == pytest.approx(np.mean(list(expected.values())))


def test_choice_of_cases():
    dice = pd.DataFrame({"A": [0.5, 0.9, 0.7, math.nan], "B": [0.6, 0.9, 0.4, 0.1]}, index=list("wxyz"))
    assert choose_cases(dice) == {"w": "worst, largest gain", "x": "best", "y": "largest loss"}
    assert choose_cases(dice.assign(B=dice["A"])) == {"w": "worst", "x": "best"}
    assert choose_cases(dice.loc[["z"]]) == {}


def test_images_of_a_data_set_that_lists_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", "elsewhere")
    listed = {"a": {"images": ["$PLACE/a_ct.nii.gz", str(tmp_path / "a_pet.nii.gz")], "label": "a.nii.gz"}}
    (tmp_path / "dataset.json").write_text(json.dumps({"dataset": listed}))
    expected = (tmp_path / "elsewhere" / "a_ct.nii.gz", tmp_path / "a_pet.nii.gz")
    assert training_images(tmp_path, ".nii.gz") == {"a": expected}


def test_png_images_of_two_axes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = Folders(tmp_path, monkeypatch, ending=".png", shape=(12, 17))
    vanilla, other = folders.train("nnUNetTrainer", seed=1), folders.train("nnUNetTrainerDTC", share=0.03, seed=2)
    result = run(vanilla, other, "-o", "out")
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    mean = np.mean([np.mean([case_dice(folders, other, case, organ) for organ in ORGANS]) for case in CASES])
    assert content["summary"][4]["mean"] == pytest.approx(mean)


def test_regions_and_the_ignore_label(tmp_path, monkeypatch):
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    folders = Folders(tmp_path, monkeypatch, labels=labels)
    for case in CASES:
        label = folders.label(case)
        label[:, :2] = 3
        write_image(folders.gt / f"{case}.nii.gz", label)
    made = []
    for seed, trainer in enumerate(("nnUNetTrainer", "nnUNetTrainerDTC")):
        made.append(folders.train(trainer, folds={}))
        for fold, cases in FOLDS.items():
            validation = made[-1] / f"fold_{fold}" / "validation"
            validation.mkdir(parents=True)
            for case in cases:
                label = folders.label(case)
                write_image(validation / f"{case}.nii.gz", spoil(np.where(label == 3, 1, label), 0.1, seed))
            folders.write_summary(validation)
    result = compared(*made)
    row = result.scores.set_index(["model", "case", "organ"]).loc[("nnUNetTrainer", "case_e", "whole")]
    prediction = read_image(made[0] / "fold_1" / "validation" / "case_e.nii.gz")
    label = folders.label("case_e")
    seen = label != 3
    assert row["dice"] == pytest.approx(dice(np.isin(prediction, (1, 2)) & seen, np.isin(label, (1, 2)) & seen))


def test_epochs_of_an_interrupted_training():
    log = {
        "train_losses": [1.0, 0.5],
        "val_losses": [2.0],
        "epoch_start_timestamps": [10, 20],
        "epoch_end_timestamps": [14],
    }
    rows = epoch_rows(log)
    assert [row["epoch"] for row in rows] == [0, 1]
    assert rows[0]["seconds"] == 4
    assert math.isnan(rows[1]["seconds"])
    assert math.isnan(rows[1]["val_loss"])
    assert math.isnan(rows[0]["pseudo_dice"])
    assert epoch_rows({}) == []


def test_a_trainer_that_logs_other_things_is_compared(folders):
    """Its curve is left out; nnU-Net itself does not mind what its trainers log."""
    made = [folders.train(name) for name in ("nnUNetTrainer", "nnUNetTrainerDTC")]
    file = made[1] / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    content["logging"]["train_losses"] = [None, [1.0]]
    torch.save(content, file)
    log = read_log(read_training(made[1]), (0,))
    assert log.missing == ()
    assert log.rows["train_loss"].isna().all()
    assert log.rows["val_loss"].notna().any()


def test_parameters_are_those_of_the_network():
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from plans import small_plans

    from nnunet_dtc.trainers import nnUNetTrainerDTC

    plans = PlansManager(small_plans())
    for trainer in (nnUNetTrainer, nnUNetTrainerDTC):
        for configuration in ("3d_fullres", "3d_residual", "2d"):
            arguments = (plans, plans.get_configuration(configuration), 1, 3, True)
            network = trainer.build_network_architecture(*arguments)
            expected = sum(parameter.numel() for parameter in network.parameters())
            assert count_parameters(network.state_dict()) == expected


# ---- what nnU-Net accepted is compared ---------------------------------------------------------------------------


def move(file, origin, direction=(1.0, 0, 0, 0, 1, 0, 0, 0, 1)):
    """Write the file again with another origin and direction."""
    image = sitk.ReadImage(str(file))
    image.SetOrigin(origin)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(file))


def test_labels_in_another_place_are_compared_by_voxels_and_noted(folders):
    """nnU-Net has trained on them with a warning; its summary.json has their numbers of voxels."""
    models = [folders.train(name, share, seed) for seed, (name, share) in enumerate(TWO)]
    expected = compared(*models)
    assert not any("same size and spacing" in sentence for sentence in expected.sentences)
    move(folders.gt / "case_b.nii.gz", (3.0, 0, 4.0))
    move(folders.gt / "case_e.nii.gz", (0, 0, 0), (-1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    found = compared(*models)
    pd.testing.assert_frame_equal(found.scores, expected.scores)
    (note,) = (sentence for sentence in found.sentences if "same size and spacing" in sentence)
    assert note.startswith("In 2 of 7 cases the prediction and the label have the same size and spacing")
    assert f"up to {2 * 0.9 * 10:g} mm apart (case_e)" in note  # 11 voxels along x, there and back
    assert "In 1 of them (case_e) axes are flipped" in note
    with pytest.raises(
        EvaluationError, match=r"case_b.nii.gz is not on the grid of .*origin \(0, 0, 0\) and \(3, 0, 4\)"
    ):
        compared(*models, strict_geometry=True)


def test_the_command_writes_the_note_and_can_be_strict(folders):
    models = [folders.train(name, share, seed) for seed, (name, share) in enumerate(TWO)]
    move(folders.gt / "case_b.nii.gz", (3.0, 0, 4.0))
    done = run(*models, "-o", "out", "--strict-geometry")
    assert done.exit_code == 1
    assert "is not on the grid of" in done.output
    assert not Path("out").exists()
    done = run(*models, "-o", "out")
    assert done.exit_code == 0, done.output
    for name in ("comparison.md", "comparison.json", "index.html"):
        assert "up to 5 mm apart (case_b)" in (Path("out") / name).read_text()


def test_labels_of_another_spacing_are_refused(folders):
    models = [folders.train(name, share, seed) for seed, (name, share) in enumerate(TWO)]
    write_image(folders.gt / "case_b.nii.gz", folders.label("case_b"), (3.0, 0.8, 0.91))
    with pytest.raises(EvaluationError, match=r"case_b.nii.gz: spacing \(0.9, 0.8, 3\) and \(0.91, 0.8, 3\)"):
        compared(*models)


def test_the_reader_of_the_plans_reads_labels_predictions_and_pictures(folders):
    """Axes that are not orthogonal: SimpleITK refuses such files, and nnU-Net reads them with NibabelIO."""
    plans = small_plans() | {"image_reader_writer": "NibabelIO"}
    models = [folders.train(name, share, seed, plans=plans) for seed, (name, share) in enumerate(TWO)]
    expected = compared(*models)
    affine = np.array([[0.9, 0.3, 0, 5], [0, np.sqrt(0.8**2 - 0.3**2), 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    for file in folders.root.rglob("*.nii.gz"):
        array = read_image(file)
        nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), affine), file)
    with pytest.raises(RuntimeError, match="orthonormal"):
        read_image(folders.gt / "case_a.nii.gz")
    found = compared(*models)
    pd.testing.assert_frame_equal(found.scores, expected.scores)
    page = render_page(found)
    assert page.count("data:image/jpeg") == len(found.pictures) > 0
    assert "left out" not in page.split('id="pictures"')[1].split("</section>")[0]

    for model in models:
        content = json.loads((model / "plans.json").read_text())
        (model / "plans.json").write_text(json.dumps(content | {"image_reader_writer": "os.system"}))
    with pytest.raises(NnunetDtcError, match="must be one of nnU-Net's readers, NaturalImage2DIO, SimpleITKIO"):
        compared(*models)
