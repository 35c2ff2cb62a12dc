"""The study of docs/evidence.md: its candidates as nnU-Net builds them, and what follows from its scores."""

import dataclasses
import hashlib
import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
import yaml
from model_folders import RGB, write_model
from plans import DATASET, small_plans
from scipy import stats

from nnunet_dtc import trainers
from nnunet_dtc.ops.coordinates import collect
from nnunet_dtc.ops.dtc import is_dtc
from nnunet_dtc.study.coordinates.trained_model import load_model

FOLDER = Path(__file__).parents[1] / "benchmarks" / "evidence"
WORDS = ("Guided", "Alone", "Logits")
SPLITS = {"hippocampus": "b5b5b92672ac911f", "isic2017": "17883e9ae076c292"}  # the beginnings of SHA-256


def script(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as dataclasses need it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def candidates():
    return script(FOLDER / "trainers" / "candidates.py")


@pytest.fixture
def network(candidates, tmp_path, monkeypatch):
    """The network of a trainer after nnU-Net's own `initialize`, from a fixed seed."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_compile", "f")
    (tmp_path / "preprocessed").mkdir()
    (tmp_path / "preprocessed" / "case.b2nd").touch()  # nnU-Net looks at the ending

    def network(word, configuration):
        name = f"nnUNetTrainer{word}_Adam1en3_8epochs_NoMirroring"
        trainer_class = getattr(candidates, name) if word in WORDS else getattr(trainers, name)
        plans = small_plans() | {"continue_training": False}
        trainer = trainer_class(plans, configuration, 0, DATASET, torch.device("cpu"))
        trainer.preprocessed_dataset_folder = str(tmp_path / "preprocessed")
        torch.manual_seed(0)
        trainer.initialize()
        assert trainer.num_epochs == 8
        return trainer.network, torch.randn(2, 1, *trainer.configuration_manager.patch_size)

    return network


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("word", WORDS)
def test_nnunet_builds_the_candidates_and_all_parameters_are_trained(word, configuration, network):
    made, data = network(word, configuration)
    if word == "Logits":
        torch.nn.init.ones_(made.decoder.seg_layers[-1].gamma)  # at 0 the coordinates have no gradient
    sum(output.square().mean() for output in made(data)).backward()
    without = [name for name, parameter in made.named_parameters() if not parameter.grad.any()]
    assert [name for name in without if not name.endswith("bias")] == []  # normalisation removes some biases
    stages = 0 if word == "Logits" else len(made.decoder.stages)
    assert len(collect(made, data)[1]) == stages


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_deformed_logits_start_as_those_of_the_planned_network(configuration, network):
    made, data = network("Logits", configuration)
    vanilla, _ = network("", configuration)
    with torch.no_grad():
        for ours, theirs in zip(made(data), vanilla(data), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_guided_coordinates_depend_on_the_encoder(network):
    """Where the guide is 0, they are those of DTC."""
    made, data = network("Guided", "3d_fullres")
    guided = [stage.coords for stage in collect(made, data)[1]]
    for block in made.decoder.transpconvs:
        torch.nn.init.zeros_(block.coords.guide.weight)
    plain = [stage.coords for stage in collect(made, data)[1]]
    assert all(not torch.equal(one, other) for one, other in zip(guided, plain, strict=True))
    base, _ = network("DTC", "3d_fullres")
    base.load_state_dict({key.replace("coords.coords", "coords"): value for key, value in made.state_dict().items()
                          if "guide" not in key})  # fmt: skip
    for one, other in zip(plain, [stage.coords for stage in collect(base, data)[1]], strict=True):
        torch.testing.assert_close(one, other)


def test_alone_has_no_transposed_convolution_but_that_of_the_coordinates(network):
    made, _ = network("Alone", "2d")
    found = [name for name, module in made.named_modules() if isinstance(module, torch.nn.ConvTranspose2d)]
    assert found == [f"decoder.transpconvs.{stage}.coords" for stage in range(2)]


# ------------------------------------------------------------------------------------------------------------------
# Scores.


@pytest.fixture
def trainings(tmp_path, monkeypatch):
    module = script(FOLDER / "trainings.py")
    monkeypatch.setattr(module, "TABLE", tmp_path / "trainings.csv")
    monkeypatch.setattr(module, "FIGURE", tmp_path / "evidence.svg")
    monkeypatch.setattr(module, "DROPPED", ())
    return module


def table_of(dice_of_arms):
    """Two classes, whose mean is the given Dice of each training."""
    rows = [
        (data_set, arm, repetition, label, 20, value + sign * 0.03, 0.9, math.nan if arm == "nnUNetTrainer" else 0.2)
        for data_set, arms in dice_of_arms.items()
        for arm, values in arms.items()
        for repetition, value in enumerate(values, 1)
        for label, sign in (("anterior", 1), ("posterior", -1))
    ]
    return pd.DataFrame(rows, columns=["data_set", "arm", "repetition", "label", "cases", "dice", "nsd", "shift"])


def test_what_is_missing_comes_next_one_repetition_after_the_other(trainings, monkeypatch):
    table_of({"hippocampus": {"nnUNetTrainer": [0.8], "nnUNetTrainerDTC": [0.8, 0.8]}}).to_csv(
        trainings.TABLE, index=False
    )
    monkeypatch.setattr(trainings, "DROPPED", ("nnUNetTrainerGuided", "nnUNetTrainerDySample"))
    found = list(trainings.missing("hippocampus", trainings.read_table()))
    end = "_Adam1en3_8epochs_NoMirroring"
    first = [f"nnUNetTrainer{word}{end}" for word in ("DTC_RF0", "DTC_RF10", "DySampleDTC", "Alone", "Logits")]
    assert found[:7] == [*first, f"nnUNetTrainer{end}_rep2", f"nnUNetTrainerDTC_RF0{end}_rep2"]
    assert len(found) == 7 * 8 - 3
    study = trainings.yaml.safe_load(trainings.next_study("hippocampus", 6))
    assert study["trainers"] == found[:6]
    assert study["repetitions"] == 1


def test_results_are_students_t_of_two_arms(trainings):
    rng = np.random.default_rng(3)
    vanilla, dtc = rng.normal(0.80, 0.01, 8), rng.normal(0.81, 0.01, 6)
    made = trainings.results(table_of({"isic2017": {"nnUNetTrainer": vanilla, "nnUNetTrainerDTC": dtc}}), "isic2017")
    row, wanted = made.loc["nnUNetTrainerDTC"], stats.ttest_ind(dtc, vanilla)
    assert (row["trainings"], row["shift"]) == (6, pytest.approx(0.2))
    assert row["mean"] == pytest.approx(dtc.mean() - vanilla.mean())
    assert row["p"] == row["p_holm"] == pytest.approx(wanted.pvalue)
    assert row["deviation"] == pytest.approx(dtc.std(ddof=1))
    assert math.isnan(made.loc["nnUNetTrainer", "p"])


def test_without_vanilla_there_is_no_difference(trainings):
    table = table_of({"isic2017": {"nnUNetTrainerDySample": [0.8, 0.82], "nnUNetTrainerDTC": [0.7, 0.75]}})
    made = trainings.results(table, "isic2017")
    assert made[["mean", "low", "high", "p", "p_holm"]].isna().all(axis=None)
    assert made.loc["nnUNetTrainerDySample", "dice"] == pytest.approx(0.81)


def test_one_data_set_is_drawn_where_the_other_has_no_vanilla_yet(trainings, capsys):
    arms = {"hippocampus": {"nnUNetTrainer": [0.8, 0.81], "nnUNetTrainerDTC": [0.82]},
            "isic2017": {"nnUNetTrainerDTC": [0.8, 0.82]}}  # fmt: skip
    table_of(arms).to_csv(trainings.TABLE, index=False)
    trainings.report()
    assert "**ISIC 2017**" in capsys.readouterr().out
    assert "Hippocampus" in trainings.FIGURE.read_text()
    assert "ISIC 2017" not in trainings.FIGURE.read_text()


def test_every_training_is_drawn_by_its_difference_to_the_mean_of_vanilla(trainings):
    table = table_of({"isic2017": {"nnUNetTrainer": [0.8, 0.82], "nnUNetTrainerDTC": [0.84, 0.81, 0.8]}})
    (panel,) = trainings.draw({"isic2017": trainings.results(table, "isic2017")}, table).axes
    drawn = [line.get_xdata() for line in panel.get_lines() if line.get_label() == "a training"]
    assert [list(each) for each in drawn] == [pytest.approx([-1, 1]), pytest.approx([3, 0, -1])]  # points
    assert [label.get_text() for label in panel.get_yticklabels()] == ["nnUNetTrainer", "DTC"]


def test_new_scores_are_added_and_those_that_are_there_stay(trainings, tmp_path, monkeypatch, capsys):
    """The oracle is the number of equal voxels of rectangles."""
    table_of({"isic2017": {"nnUNetTrainer": [0.8]}}).to_csv(trainings.TABLE, index=False)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setattr(trainings, "median_shift", lambda study, data, trainer: 0.25)
    data, folder = tmp_path / "Dataset117_Any", tmp_path / "next"
    data.mkdir()
    described = {"labels": {"background": 0, "lesion": 1}, "file_ending": ".png"}
    (data / "dataset.json").write_text(json.dumps(described))
    ends = ("DTC", ""), ("Logits", "_rep2"), ("", "")  # the last one is in the table
    names = [f"nnUNetTrainer{word}_Adam1en3_20epochs_NoMirroring{repetition}" for word, repetition in ends]
    folders = [folder / "comparison" / "test" / "predictions" / name / "ensemble" for name in names]
    for width, each in zip((12, 6, 12, 12), (data / "labelsTs", *folders), strict=True):
        each.mkdir(parents=True)
        for case in ("ISIC_0000000", "ISIC_0000031"):
            mask = np.zeros((20, 30), np.uint8)
            mask[4:8, 2 : 2 + width] = 1
            sitk.WriteImage(sitk.GetImageFromArray(mask), str(each / f"{case}.png"))
    trainings.collect("isic2017", folder)
    assert "nan" not in capsys.readouterr().out
    table = trainings.read_table()
    assert table["arm"].tolist() == ["nnUNetTrainer"] * 2 + ["nnUNetTrainerDTC", "nnUNetTrainerLogits"]
    added = table.tail(2)
    assert added["repetition"].tolist() == [1, 2]
    assert added["dice"].tolist() == [pytest.approx(2 / 3, abs=1e-6), 1]
    assert added["cases"].tolist() == [2, 2]
    assert added["shift"].iloc[0] == 0.25
    assert math.isnan(added["shift"].iloc[1])
    with pytest.raises(SystemExit, match="has no predictions of trainings that"):  # all are in the table now
        trainings.collect("isic2017", folder)


def test_the_shift_is_the_largest_median_of_a_stage_over_eight_cases(trainings, tmp_path, monkeypatch):
    """The oracle is equation 1 for the coordinates that the blocks predict, with a bound of RF / 4."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    data = tmp_path / "Dataset998_Test"
    rng = np.random.default_rng(0)
    for folder in ("imagesTs", "labelsTs"):
        (data / folder).mkdir(parents=True)
    for number in range(trainings.SHIFT_CASES):
        image, label = rng.integers(0, 255, (20, 30, 3), np.uint8), rng.integers(0, 3, (20, 30), np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(image, isVector=True), str(data / "imagesTs" / f"{number}_0000.png"))
        sitk.WriteImage(sitk.GetImageFromArray(label), str(data / "labelsTs" / f"{number}.png"))
    (data / "labelsTs" / "9.png").write_text("a case too many, which is not read")
    (data / "labelsTs" / "._0.png").write_text("of macOS")
    trainer = "nnUNetTrainerDTC_RF10_Adam1en3_20epochs_NoMirroring"
    write_model(tmp_path / "results", trainer, configuration="2d", dataset=RGB)
    lengths = {}

    def keep(head, _inputs, coords):
        offset, weight = coords.double().numpy().reshape(2, 2, -1)
        shift = 10 / 4 * np.tanh(offset) / (1 + np.exp(-weight))
        lengths.setdefault(head, []).append(np.hypot(*shift))

    def load_and_listen(*arguments):
        model = load_model(*arguments)
        for block in filter(is_dtc, model.network.modules()):
            block.coords.register_forward_hook(keep)
        return model

    monkeypatch.setattr(trainings, "load_model", load_and_listen)
    found = trainings.median_shift({"plans": "nnUNetPlans", "configuration": "2d", "folds": 0}, data, trainer)
    assert [len(each) for each in lengths.values()] == [trainings.SHIFT_CASES] * 2
    medians = [np.median(np.concatenate(each)) for each in lengths.values()]
    assert abs(medians[0] - medians[1]) > 0.01
    assert found == pytest.approx(max(medians), abs=1e-3)  # torch takes the lower one of the two middle values


def test_a_gain_is_one_on_both_data_sets_over_vanilla_and_the_control(trainings, capsys):
    noise = np.array([-0.002, 0.001, 0.0, 0.001, -0.001, 0.002, 0.0, -0.001])
    means = {
        "nnUNetTrainer": (0.80, 0.80),
        "nnUNetTrainerDTC_RF0": (0.82, 0.80),
        "nnUNetTrainerDTC": (0.83, 0.81),
        "nnUNetTrainerDTC_RF10": (0.81, 0.81),  # not above the control
        "nnUNetTrainerDySample": (0.83, 0.80),  # on one data set alone
        "nnUNetTrainerDySampleDTC": (0.79, 0.81),
        "nnUNetTrainerGuided": (0.83, 0.801),  # within the noise
        "nnUNetTrainerAlone": (0.77, 0.77),
        "nnUNetTrainerLogits": (0.80, 0.80),
    }
    arms = {
        name: {arm: pair[place] + noise for arm, pair in means.items()}
        for place, name in enumerate(trainings.DATA_SETS)
    }
    table = table_of(arms)
    table[table["repetition"] < 8].to_csv(trainings.TABLE, index=False)
    trainings.report()
    assert "not finished: 9 trainings of hippocampus are missing, 9 trainings of isic2017" in capsys.readouterr().out
    table.to_csv(trainings.TABLE, index=False)
    trainings.report()
    assert "gains by the protocol's rule: nnUNetTrainerDTC\n" in capsys.readouterr().out
    assert trainings.FIGURE.stat().st_size > 1000


# ------------------------------------------------------------------------------------------------------------------
# The data sets.


@pytest.fixture
def prepare():
    return script(FOLDER / "prepare.py")


def test_the_split_is_that_of_the_protocol(prepare):
    """The trainings of the table belong to it."""
    cases = yaml.safe_load((FOLDER / "cases.yaml").read_text())
    splits = {each.source: prepare.draw(each, sorted(cases[each.source])) for each in prepare.DATA_SETS}
    sizes = {name: [len(split[part]) for part in ("train", "val", "test")] for name, split in splits.items()}
    assert sizes == {"hippocampus": [34, 6, 20], "isic2017": [540, 60, 300]}
    hashes = {name: hashlib.sha256(json.dumps(split, sort_keys=True).encode()) for name, split in splits.items()}
    assert {name: each.hexdigest()[:16] for name, each in hashes.items()} == SPLITS


def write_images(folder, names, image_size=(128, 128), label_size=None, value=1):
    for part, size in (("images", image_size), ("labels", label_size or image_size)):
        (folder / part).mkdir(parents=True)
        for name in names:
            array = np.zeros((*reversed(size), 3) if part == "images" else tuple(reversed(size)), np.uint8)
            array[3:9, 5:20] = value
            sitk.WriteImage(
                sitk.GetImageFromArray(array, isVector=part == "images"), str(folder / part / f"{name}.png")
            )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": (256, 256)}, "must have .128, 128. pixels, got .256, 256."),
        ({"label_size": (128, 96)}, "as large as its image, got .128, 96."),
        ({"value": 255}, "labels must be among .0, 1., got .0, 255."),
    ],
)
def test_data_of_another_size_or_with_other_labels_is_refused(prepare, tmp_path, wrong, message):
    isic, names = prepare.DATA_SETS[1], ["ISIC_0000000", "ISIC_0000031"]
    write_images(tmp_path / "right", names)
    prepare.check(isic, tmp_path / "right", names)
    with pytest.raises(ValueError, match=r"got no .*ISIC_0000044\.png .2 are missing"):
        prepare.check(isic, tmp_path / "right", [*names, "ISIC_0000044"])
    write_images(tmp_path / "wrong", names, **wrong)
    with pytest.raises(ValueError, match=message):
        prepare.check(isic, tmp_path / "wrong", names)


def test_a_folder_prepared_from_other_cases_is_refused(prepare, tmp_path):
    isic = dataclasses.replace(prepare.DATA_SETS[1], validation=1, held_out=2)
    names = [f"ISIC_{number:07}" for number in range(6)]
    write_images(tmp_path / "data", names)
    raw = tmp_path / "raw"
    prepare.check_raw(isic, names, raw)  # there is nothing yet
    prepare.write_raw(isic, tmp_path / "data", prepare.draw(isic, names), raw)
    assert len(list((raw / "imagesTs").iterdir())) == 2
    prepare.check_raw(isic, names, raw)
    with pytest.raises(ValueError, match=r"or one of the cases of cases\.yaml, got .*labelsT"):
        prepare.check_raw(isic, [*names[:5], "ISIC_0000077"], raw)
