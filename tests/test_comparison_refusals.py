"""What `nnunet-dtc compare` refuses, before anything is computed or written."""

import json

import pytest
from model_folders import CONFIGURATION, DATASET, EPOCHS, FOLDS, Folders, draw, read_image, write_image
from plans import small_plans
from typer.testing import CliRunner

from nnunet_dtc.cli import app
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.study.comparison import ComparisonError, models
from nnunet_dtc.study.comparison.execution import compare
from nnunet_dtc.study.comparison.logs import read_log, read_peak_memory
from nnunet_dtc.study.comparison.output_folder import default_output, for_this_process_alone
from nnunet_dtc.study.comparison.plan import Options, plan_comparison


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Folders(tmp_path, monkeypatch)


def plan(*given, **options):
    return plan_comparison(given, Options(**options))


def run(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "300"})


def test_other_plans_are_named(folders):
    a = folders.train("nnUNetTrainer")
    changed = small_plans()
    changed["configurations"][CONFIGURATION] |= {"batch_size": 3, "spacing": [3, 0.7, 0.7]}
    changed["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]["n_stages"] = 3
    b = folders.train("nnUNetTrainerDTC", plans=changed)
    with pytest.raises(ComparisonError, match="different plans") as error:
        plan(a, b)
    message = str(error.value)
    assert "batch_size: 2 and 3" in message
    assert "spacing: [3, 0.8, 0.8] and [3, 0.7, 0.7]" in message
    assert "architecture.arch_kwargs.n_stages: 4 and 3" in message


def test_the_same_plans_under_another_name_are_the_same(folders):
    a = folders.train("nnUNetTrainer")
    renamed = small_plans() | {"plans_name": "Mine"}
    renamed["configurations"][CONFIGURATION]["data_identifier"] = "Mine_3d_fullres"
    b = folders.train("nnUNetTrainerDTC", plans=renamed, plans_name="Mine")
    assert [model.name for model in plan(a, b).models] == ["nnUNetTrainer", "nnUNetTrainerDTC"]


def test_normalisation_of_other_data_is_another_plan(folders):
    a = folders.train("nnUNetTrainer")
    other = small_plans() | {"foreground_intensity_properties_per_channel": {"0": {"mean": 99.5}}}
    b = folders.train("nnUNetTrainerDTC", plans=other)
    with pytest.raises(ComparisonError, match="foreground_intensity_properties_per_channel"):
        plan(a, b)


def test_other_data(folders):
    a, b = folders.train("nnUNetTrainer"), folders.train("nnUNetTrainerDTC")
    content = json.loads((b / "dataset.json").read_text())
    (b / "dataset.json").write_text(json.dumps(content | {"labels": {"background": 0, "liver": 2, "spleen": 1}}))
    with pytest.raises(ComparisonError, match=r"labels.liver: 1 and 2"):
        plan(a, b)
    (b / "dataset.json").write_text(json.dumps(content))
    plans = small_plans() | {"dataset_name": "Dataset997_Other"}
    (b / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ComparisonError, match="different data sets: Dataset998_Test and Dataset997_Other"):
        plan(a, b)
    (b / "plans.json").write_text(json.dumps(small_plans()))
    (b / "dataset_fingerprint.json").write_text(json.dumps({"spacings": [[1, 1, 1]]}))
    with pytest.raises(ComparisonError, match="images changed between the trainings"):
        plan(a, b)


def test_other_splits(folders):
    a = folders.train("nnUNetTrainer")
    swapped = {0: ("case_a", "case_b", "case_d"), 1: ("case_c", "case_e", "case_f", "case_g")}
    b = folders.train("nnUNetTrainerDTC", folds=swapped)
    with pytest.raises(ComparisonError, match="different splits: fold 0") as error:
        plan(a, b)
    assert f"only in {a}: case_c" in str(error.value)
    assert f"only in {b}: case_d" in str(error.value)


def test_splits_that_changed_after_the_trainings(folders):
    a, b = folders.train("nnUNetTrainer"), folders.train("nnUNetTrainerDTC")
    folders.write_splits({0: ("case_a", "case_b"), 1: ("case_c", "case_d", "case_e", "case_f", "case_g")})
    with pytest.raises(ComparisonError, match=r"not validated on the cases of splits_final.json") as error:
        plan(a, b)
    assert "case_c" in str(error.value)


def test_a_case_in_two_folds(folders):
    a = folders.train("nnUNetTrainer")
    write_image(a / "fold_1" / "validation" / "case_a.nii.gz", draw(3))
    b = folders.train("nnUNetTrainerDTC")
    with pytest.raises(ComparisonError, match="case_a in the validation of both fold 0 and 1"):
        plan(a, b)


def test_folds_that_share_validation_cases_can_be_compared_on_held_out_cases(folders):
    """nnU-Net accepts any split, such as repeated draws."""
    folds = {0: ("case_a", "case_b", "case_c"), 1: ("case_c", "case_d")}
    a, b = (folders.train(name, folds=folds) for name in ("nnUNetTrainer", "nnUNetTrainerDTC"))
    folders.write_splits(folds)
    with pytest.raises(ComparisonError, match=r"in splits_final.json the folds 0 and 1 share case_c"):
        plan(a, b)
    assert plan(a, b, folds=(1,)).folds == (1,)
    for name in ("imagesTs/held_1_0000", "labelsTs/held_1"):
        write_image(folders.raw / DATASET / f"{name}.nii.gz", draw(3))
    assert plan(a, b, kind="test").splits_checked == "splits_final.json"


def test_other_folds_and_how_to_compare_the_common_ones(folders):
    a = folders.train("nnUNetTrainer")
    b = folders.train("nnUNetTrainerDTC", folds={1: FOLDS[1]})
    with pytest.raises(ComparisonError, match="different folds have a validation; folds that all have: 1"):
        plan(a, b)
    assert plan(a, b, folds=(1,)).folds == (1,)
    with pytest.raises(ComparisonError, match=r"fold 0 of .*DTC.* has no validation; folds with one: 1"):
        plan(a, b, folds=(0, 1))


def test_unfinished_validation(folders):
    a, b = folders.train("nnUNetTrainer"), folders.train("nnUNetTrainerDTC")
    (b / "fold_1" / "validation" / "summary.json").unlink()
    with pytest.raises(ComparisonError, match=r"validation of fold 1 of .* is not finished") as error:
        plan(a, b)
    assert f"nnUNetv2_train {DATASET} 3d_fullres 1 -tr nnUNetTrainerDTC -p nnUNetPlans --val" in str(error.value)
    assert "or compare the finished folds alone: 0" in str(error.value)
    (b / "fold_1" / "validation" / "case_f.nii.gz").unlink()  # killed before all cases were predicted
    with pytest.raises(ComparisonError, match=r"validation of fold 1 of .* is not finished, there is no summary.json"):
        plan(a, b)
    assert plan(a, b, folds=(0,)).folds == (0,)


def test_a_fold_beyond_the_splits_has_a_random_split(folders):
    """nnU-Net draws 80:20 for it, so that its cases are validated in other folds as well."""
    folds = {**FOLDS, 2: ("case_b", "case_g")}
    a, b = (folders.train(name, folds=folds) for name in ("nnUNetTrainer", "nnUNetTrainerDTC"))
    folders.write_splits(FOLDS)
    with pytest.raises(ComparisonError, match=r"fold 2 of .* is beyond the 2 folds of splits_final.json") as error:
        plan(a, b)
    assert "nnU-Net draws a random split for it" in str(error.value)
    assert str(error.value).endswith("compare the other folds alone: 0, 1")
    assert plan(a, b, folds=(0, 1)).folds == (0, 1)
    assert plan(a, b, folds=(2,)).folds == (2,)  # the same random split on both sides


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dataset_name", "/../../../escaped", "dataset_name must be a plain name"),
        ("dataset_name", "..", "dataset_name must be a plain name"),
        ("dataset_name", "", "dataset_name must be a plain name"),
        ("dataset_name", "Dataset001_\x1b[2J", r'got "Dataset001_\u001b[2J"'),
        ("plans_name", "a/b", "plans_name must be a plain name"),
        ("plans_name", "--help", "plans_name must be a plain name"),
        ("configurations", [], "configurations must be an object, got []"),
        ("configurations", {"2d": {}}, "there is no configuration 3d_fullres; the plans have: 2d"),
        ("configurations", {CONFIGURATION: None}, f"configurations.{CONFIGURATION} must be an object, got null"),
        (
            "configurations",
            {CONFIGURATION: {"inherits_from": CONFIGURATION}},
            "must not lead back to the configuration itself, got 3d_fullres -> 3d_fullres",
        ),
        (
            "configurations",
            {CONFIGURATION: {"inherits_from": None}},
            f"configurations.{CONFIGURATION}.inherits_from must be a configuration (3d_fullres), got null",
        ),
        (
            "configurations",
            {CONFIGURATION: {"patch_size": "x", "batch_size": 2}},
            f'configurations.{CONFIGURATION}.patch_size must be a list of 2 or 3 positive integers, got "x"',
        ),
        (
            "configurations",
            {CONFIGURATION: {"patch_size": [8, 8], "batch_size": 2}},
            f"configurations.{CONFIGURATION} has neither architecture nor the keys of the old format (UNet_class_name, "
            "...)",
        ),
    ],
)
def test_plans_that_nnunet_does_not_write(folders, monkeypatch, key, value, message):
    monkeypatch.chdir(folders.root)
    a, b = folders.train("nnUNetTrainer"), folders.train("nnUNetTrainerDTC")
    for folder in (a, b):
        (folder / "plans.json").write_text(json.dumps(small_plans() | {key: value}))
    before = sorted(folders.root.parent.rglob("*"))
    done = run(a, b)
    assert done.exit_code == 1
    assert f"Error: {a / 'plans.json'}: " in done.output
    assert message in done.output
    assert sorted(folders.root.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "liver": 3e9}, "labels.liver must be an integer from 0 to 65535"),
        ({"background": 0, "liver": 3_000_000_000}, "labels.liver must be an integer from 0 to 65535"),
        ({"background": 0, "liver": True}, "labels.liver must be an integer from 0 to 65535 (nnU-Net writes labels of"),
        ({"background": 0, "liver": 1.5}, "16 bits), got 1.5"),
        ({"background": 0, "liver": -1}, "16 bits), got -1"),
        ({"background": 0, "liver": "one"}, "labels.liver must be an integer from 0 to 65535"),
        ({"background": 0, "liver": 1, "ignore": "2"}, "labels.ignore must be an integer from 0 to 65535"),
        ({"background": 0, "whole": [1, [2]]}, "labels.whole[1] must be an integer"),
        ({"background": 0, "whole": []}, "labels.whole must be a list of label values, got []"),
        ({"background": 0, "": 1}, 'names of labels must be printable and not empty, got ""'),
        ({"background": 0, "li\x07ver": 1}, r'not empty, got "li\u0007ver"'),
        ({"background": 0, "\ud800": 1}, r'not empty, got "\ud800"'),
        ({"background": 0, "liver": 1, "ignore": 1}, "liver has the value 1 of the ignore label"),
        ({"background": 0}, "there must be at least one label besides the background"),
        ({"0": "background", "1": "liver"}, 'in the order of nnU-Net v1, number to name ("0": "background")'),
    ],
)
def test_labels_that_cannot_be(folders, labels, message):
    a, b = folders.train("nnUNetTrainer"), folders.train("nnUNetTrainerDTC")
    for folder in (a, b):
        (folder / "dataset.json").write_text(json.dumps(folders.dataset | {"labels": labels}))
    with pytest.raises(NnunetDtcError) as error:
        plan(a, b)
    assert message in str(error.value)
    assert str(a / "dataset.json") in str(error.value)


def test_names_of_cases_that_cannot_be_shown(folders):
    a, b = folders.train("nnUNetTrainer"), folders.train("nnUNetTrainerDTC")
    for folder in (a, b):
        validation = folder / "fold_0" / "validation"
        (validation / "case_a.nii.gz").rename(validation / "case\x1b[2J_a.nii.gz")
    with pytest.raises(NnunetDtcError, match=r"names of cases must be printable and not empty") as error:
        plan(a, b)
    assert r"case\u001b[2J_a" in str(error.value)
    (folders.raw / DATASET / "labelsTs" / "\x07.nii.gz").touch()
    with pytest.raises(NnunetDtcError, match="names of cases must be printable"):
        plan(a, b, kind="test")


@pytest.mark.parametrize("memory", ["1e999", "NaN", "-1", '"x"', "[1]", "1" + "0" * 400])
def test_peak_memory_that_is_none(folders, memory):
    training = models.read_training(folders.train("nnUNetTrainer"))
    file = folders.root / "costs.json"
    of = f'"dataset": "{DATASET}", "plans": "nnUNetPlans", "configuration": "{CONFIGURATION}"'
    file.write_text(f'{{{of}, "trainers": {{"nnUNetTrainer": {{"peak_memory_mib": {memory}}}}}}}')
    with pytest.raises(NnunetDtcError, match=r"costs.json"):
        read_peak_memory(file, training.dataset_name, training.plans_name, training.configuration)


def test_the_log_of_a_trainer_whose_receptive_field_has_decimals(folders):
    log = read_log(models.read_training(folders.train("nnUNetTrainerDTC_RF2.5")), (0, 1))
    assert set(log.epochs.values()) == {EPOCHS}
    assert log.missing == ()


def test_two_comparisons_do_not_write_into_one_folder(folders):
    output = folders.root / "comparison"
    with for_this_process_alone(output):
        with pytest.raises(ComparisonError, match="another comparison writes into"), for_this_process_alone(output):
            pass
        assert output.is_dir()
    assert not output.exists()  # it was empty


def test_each_configuration_has_a_folder_of_its_own(folders):
    a, b = folders.train("nnUNetTrainer"), folders.train("nnUNetTrainerDTC")
    assert str(default_output(plan(a, b))) == f"comparison_{DATASET}_nnUNetPlans_{CONFIGURATION}_validation"


def test_no_validation_at_all(folders):
    a = folders.train("nnUNetTrainer")
    b = folders.train("nnUNetTrainerDTC", folds={})
    (b / "fold_all" / "validation").mkdir(parents=True)
    with pytest.raises(
        ComparisonError, match=r"no fold of .*DTC.* has a validation \(fold_all was trained on all cases"
    ):
        plan(a, b)


def test_labels_that_changed_between_the_validations(folders):
    a = folders.train("nnUNetTrainer")
    label = folders.label("case_b")
    before = int((label == 2).sum())
    label[tuple(index[0] for index in (label == 2).nonzero())] = 0
    write_image(folders.gt / "case_b.nii.gz", label)
    b = folders.train("nnUNetTrainerDTC")
    with pytest.raises(ComparisonError, match="the labels changed between the trainings") as error:
        plan(a, b)
    assert f"label 2 of case_b had {before} voxels" in str(error.value)
    assert f"{before - 1} for {b}" in str(error.value)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("label", "the labels changed after the training"),
        ("prediction", "the predictions changed after the validation"),
    ],
)
def test_files_that_changed_since_nnunet_validated(folders, which, message):
    a, b = folders.train("nnUNetTrainer"), folders.train("nnUNetTrainerDTC")
    file = folders.gt / "case_e.nii.gz" if which == "label" else b / "fold_1" / "validation" / "case_e.nii.gz"
    array = read_image(file)
    place = tuple(index[0] for index in (array == 2).nonzero())
    array[place] = 0
    write_image(file, array)
    with pytest.raises(ComparisonError, match=message) as error:
        compare(plan(a, b, processes=1), folders.root / "out")
    assert "spleen of case_e" in str(error.value)


def test_checkpoints_of_something_else(folders):
    a, b = folders.train("nnUNetTrainer"), folders.train("nnUNetTrainerDTC")
    other = small_plans()
    other["configurations"][CONFIGURATION]["batch_size"] = 7
    folders.write_checkpoint(b, 1, other)
    with pytest.raises(ComparisonError, match=r"trained with other plans than .*batch_size differ"):
        compare(plan(a, b, processes=1), folders.root / "out")
    (a / "fold_0" / "checkpoint_final.pth").replace(b / "fold_1" / "checkpoint_final.pth")
    with pytest.raises(ComparisonError, match="is of the trainer nnUNetTrainer, but its folder of nnUNetTrainerDTC"):
        compare(plan(a, b, processes=1), folders.root / "out")


def test_too_few_models(folders):
    a, again = folders.train("nnUNetTrainer"), folders.train("nnUNetTrainer_rep2")
    with pytest.raises(ComparisonError, match="at least two models are needed"):
        plan(a, again)
    with pytest.raises(ComparisonError, match="given once, got twice"):
        plan(a, again, a)
    with pytest.raises(ComparisonError, match="got none"):
        plan()


@pytest.mark.parametrize("name", ["fold_0", "nothing"])
def test_no_model_folder(folders, name):
    a = folders.train("nnUNetTrainer")
    with pytest.raises(NnunetDtcError, match=r"TRAINER__PLANS__CONFIGURATION|there is no folder"):
        plan(a, a / name)


def test_missing_environment(folders, monkeypatch):
    a, b = folders.train("nnUNetTrainer"), folders.train("nnUNetTrainerDTC")
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(NnunetDtcError, match="nnUNet_raw is not set"):
        plan(a, b, kind="test")
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(NnunetDtcError, match=r"nnUNet_preprocessed is not set, .*give labels"):
        plan(a, b)
    assert plan(a, b, labels=folders.gt).splits_checked == "each other"
    monkeypatch.delenv("nnUNet_results")
    result = run("-d", 998, "-c", CONFIGURATION, "-tr", "nnUNetTrainer", "nnUNetTrainerDTC")
    assert result.exit_code == 1
    assert "nnUNet_results is not set" in result.output


def test_unknown_trainer_and_data_set(folders):
    folders.train("nnUNetTrainer")
    result = run("-d", 998, "-c", CONFIGURATION, "-tr", "nnUNetTrainer", "nnUNetTrainerDTC_RF3")
    assert result.exit_code == 1
    assert "nnUNetTrainerDTC_RF3 has no model of nnUNetPlans and 3d_fullres" in result.output
    assert "trained there: nnUNetTrainer)" in result.output
    result = run("-d", 17, "-c", CONFIGURATION, "-tr", "nnUNetTrainer", "nnUNetTrainerDTC")
    assert "there must be one data set of this number, found none" in result.output
    (folders.results / "Dataset998_Second").mkdir()
    result = run("-d", 998, "-c", CONFIGURATION, "-tr", "nnUNetTrainer", "nnUNetTrainerDTC")
    assert "several: Dataset998_Second, Dataset998_Test" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--per-fold", "A", "B"], "--per-fold belongs to --test"),
        (["-tr", "nnUNetTrainer", "nnUNetTrainerDTC"], "-tr needs -d and -c"),
        (["-d", "998", "-c", CONFIGURATION], "-d and -c need -tr"),
        (["--predictions", "nnUNetTrainer", "A", "B"], "--predictions takes TRAINER=FOLDER"),
        (["A", "-d", "998", "-c", CONFIGURATION, "-tr", "nnUNetTrainer"], "either folders or"),
        (["--tolerance", "near", "A", "B"], "a tolerance is a distance"),
        (["--average", "median", "A", "B"], "average must be one of logits, softmax, got 'median'"),
        (["--absent", "count", "A", "B"], "absent must be one of skip, flare, got 'count'"),
    ],
)
def test_options_that_cannot_be(folders, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 1
    assert message in result.output


def test_output_that_is_in_use(folders):
    a, b = folders.train("nnUNetTrainer"), folders.train("nnUNetTrainerDTC")
    out = folders.root / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    result = run(a, b, "-o", out)
    assert result.exit_code == 1
    assert "is not empty (notes.txt)" in result.output
    assert [file.name for file in out.iterdir()] == ["notes.txt"]
    result = run(a, b, "-o", out / "notes.txt")
    assert "must be a folder" in result.output


def test_held_out_cases_that_cannot_be_predicted(folders):
    a, b = folders.train("nnUNetTrainer"), folders.train("nnUNetTrainerDTC")
    with pytest.raises(ComparisonError, match="there is no label"):
        plan(a, b, kind="test")
    write_image(folders.raw / DATASET / "labelsTs" / "held_out.nii.gz", draw(4))
    with pytest.raises(ComparisonError, match=r"labels without an image in .*: held_out"):
        plan(a, b, kind="test")
    write_image(folders.raw / DATASET / "imagesTs" / "held_out_0000.nii.gz", draw(4))
    assert plan(a, b, kind="test").folds == (0, 1)
    with pytest.raises(ComparisonError, match=r"no fold of .* has a checkpoint_best.pth"):
        plan(a, b, kind="test", checkpoint="checkpoint_best.pth")
    with pytest.raises(ComparisonError, match="predictions were given for nnUNetTrainerDTC_RF1; the models are"):
        plan(a, b, kind="test", predictions={"nnUNetTrainerDTC_RF1": folders.root})
    with pytest.raises(ComparisonError, match="average softmax is for the ensemble"):
        plan(a, b, average="softmax")


def test_a_cascade_is_predicted_by_hand(tmp_path, monkeypatch):
    folders = Folders(tmp_path, monkeypatch)
    plans = small_plans()
    plans["configurations"][CONFIGURATION]["previous_stage"] = "3d_lowres"
    given = [folders.train(trainer, plans=plans) for trainer in ("nnUNetTrainer", "nnUNetTrainerDTC")]
    for name in ("labelsTs/held_out.nii.gz", "imagesTs/held_out_0000.nii.gz"):
        write_image(folders.raw / DATASET / name, draw(4))
    with pytest.raises(ComparisonError, match=r"second stage of a cascade: .* give the folders as predictions"):
        plan(*given, kind="test")


def test_names_of_models_that_share_a_trainer(tmp_path, monkeypatch):
    """In two places they are two models, and no repetitions."""
    here, there = Folders(tmp_path / "a", monkeypatch), Folders(tmp_path / "b", monkeypatch)
    given = [folders.train("nnUNetTrainer") for folders in (here, there)]
    named = [model.name for model in plan(*given).models]
    assert named == [str(folder) for folder in given]


def test_grouping_of_repeats(folders):
    trainers = [
        "nnUNetTrainer_rep2",
        "nnUNetTrainerDTC_RF10",
        "nnUNetTrainer",
        "nnUNetTrainerDTC_RF10_rep3",
        "MyTrainer_rep2",
        "nnUNetTrainerDA5_rep10",
        "nnUNetTrainerDTC_mylab",
        "nnUNetTrainerDA5_rep2",
        "nnUNetTrainerDTC_mylab_rep2",
    ]
    found = plan(*(folders.train(trainer) for trainer in trainers)).models
    assert [model.name for model in found] == [
        "nnUNetTrainer",
        "nnUNetTrainerDTC_RF10",
        "MyTrainer_rep2",
        "nnUNetTrainerDA5",
        "nnUNetTrainerDTC_mylab",
    ]
    assert [[training.trainer for training in model.trainings] for model in found] == [
        ["nnUNetTrainer", "nnUNetTrainer_rep2"],
        ["nnUNetTrainerDTC_RF10", "nnUNetTrainerDTC_RF10_rep3"],
        ["MyTrainer_rep2"],
        ["nnUNetTrainerDA5_rep2", "nnUNetTrainerDA5_rep10"],
        ["nnUNetTrainerDTC_mylab", "nnUNetTrainerDTC_mylab_rep2"],
    ]


def test_names_are_shown_without_what_all_end_in(folders):
    """Names of short trainings are long, and their ends tell no model from another."""
    end = "_Adam1en3_4epochs_NoMirroring"
    given = [folders.train(name + end) for name in ("nnUNetTrainer", "nnUNetTrainerDTC", "nnUNetTrainerDTC_RF10")]
    given.append(folders.train(f"nnUNetTrainer{end}_rep2"))
    found = plan(*given).models
    assert [model.name for model in found] == ["nnUNetTrainer", "nnUNetTrainerDTC", "nnUNetTrainerDTC_RF10"]
    assert {model.left_out for model in found} == {end}
    for names, shared in (
        (("nnUNetTrainer", "nnUNetTrainerDTC"), ""),
        (("nnUNetTrainer", "nnUNetTrainer_5epochs"), ""),  # nothing is left out that tells them apart
        (("nnUNetTrainer_5epochs", "nnUNetTrainer_Adam1en3_5epochs"), "_5epochs"),
        (("nnUNetTrainerDTC_RF1_5epochs", "nnUNetTrainerDTC_RF4_5epochs"), "_5epochs"),
    ):
        assert models.common_end(names) == shared


def test_a_training_step_knows_no_epochs(folders):
    """What `complexity` measured for the plain name holds for shorter trainings, but not for another optimizer."""
    steps = [models.read_training(folders.train(name)).same_step for name in (
        "nnUNetTrainerDTC_RF4_5epochs_NoMirroring_rep2", "nnUNetTrainerDTC_Adam1en3_5epochs", "nnUNetTrainerDA5",
        "nnUNetTrainerUNetDTC_paper2d_5epochs_rep2",
    )]  # fmt: skip
    assert steps[0][-1] == "nnUNetTrainerDTC_RF4"
    assert steps[1][-1] == "nnUNetTrainerDTC_Adam1en3"
    assert steps[2] == ("nnUNetTrainerDA5",)
    assert steps[3][-1] == "nnUNetTrainerUNetDTC_paper2d"  # its 40 epochs are not in the name


def test_the_memory_of_other_plans_is_not_shown(folders, tmp_path):
    a, b = folders.train("nnUNetTrainer"), folders.train("nnUNetTrainerDTC")
    file = tmp_path / "complexity.json"
    measured = {"dataset": DATASET, "plans": "nnUNetPlans", "configuration": "2d", "trainers": {}}
    file.write_text(json.dumps(measured))
    result = run(a, b, "--complexity", file)
    assert result.exit_code == 1
    assert f"is of {DATASET}, nnUNetPlans, 2d; the models are of {DATASET}, nnUNetPlans, 3d_fullres" in result.output
    file.write_text("[]")
    assert "was not written by nnunet-dtc complexity" in run(a, b, "--complexity", file).output
