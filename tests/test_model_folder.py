import json
import subprocess
import sys

import pytest
from plans import DATASET, small_plans

from nnunet_dtc.plugin.file_rules import MalformedFileError
from nnunet_dtc.plugin.model_folder import ModelFolder, ModelFolderError, dataset_name, environment_folder, model_path

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture
def roots(tmp_path, monkeypatch):
    """nnU-Net's three folders, empty and set."""
    for variable in VARIABLES:
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return [tmp_path / variable for variable in VARIABLES]


@pytest.fixture
def model(tmp_path):
    """A model whose names have dots and single underscores, with some folds."""
    path = tmp_path / "Datasets" / "Dataset017_BTCV" / "nnUNetTrainerDTC_RF2.5_rep2__my_plans.v2__3d_fullres"
    for fold in ("fold_10", "fold_9", "fold_0", "fold_all", "fold_07"):
        (path / fold).mkdir(parents=True)
    (path / "fold_1").write_text("no folder")
    (path / "fold_9" / "checkpoint_best.pth").write_text("")
    (path / "fold_10" / "checkpoint_best.pth").write_text("")
    (path / "fold_all" / "checkpoint_best.pth").write_text("")
    (path / "plans.json").write_text(json.dumps(small_plans() | {"dataset_name": "Dataset021_Other"}))
    (path / "dataset.json").write_text(json.dumps(DATASET))
    return path


def test_names_and_files(model, monkeypatch):
    monkeypatch.chdir(model.parent)
    found = ModelFolder.read(model.name)
    assert found.path == model
    assert (found.trainer, found.plans_name) == ("nnUNetTrainerDTC_RF2.5_rep2", "my_plans.v2")
    assert found.configuration == "3d_fullres"
    assert found.dataset_name == "Dataset021_Other"  # of the plans: folders can be copied
    assert found.plans["configurations"]["2d"]["patch_size"] == [16, 24]
    assert found.dataset_json["labels"]["spleen"] == 2


def test_folds_and_checkpoints(model):
    found = ModelFolder.read(model)
    assert found.folds == ("0", "9", "10", "07", "all")
    assert found.folds_with("checkpoint_best.pth") == (9, 10)
    assert found.folds_with("validation") == ()
    assert found.fold_path("all") == model / "fold_all"
    assert found.checkpoint("all", "checkpoint_best.pth") == model / "fold_all" / "checkpoint_best.pth"
    with pytest.raises(ModelFolderError, match=r"has no fold 3; it has 0, 9, 10, 07, all$"):
        found.checkpoint(3)
    with pytest.raises(ModelFolderError, match=r"no checkpoint .*fold_9/checkpoint_final.pth; .* checkpoint_best.pth$"):
        found.checkpoint(9)
    with pytest.raises(ModelFolderError, match=r"fold_0/checkpoint_final.pth; the fold has none$"):
        found.checkpoint(0)


def test_the_configuration_must_be_complete(model):
    plans = small_plans()
    del plans["configurations"]["3d_fullres"]["patch_size"]
    del plans["configurations"]["2d"]["resampling_fn_data"]
    (model / "plans.json").write_text(json.dumps(plans))
    found = ModelFolder.read(model)
    with pytest.raises(MalformedFileError, match=r"plans.json: configurations.3d_fullres has no patch_size"):
        found.check_configuration()
    found.check_configuration("2d", ["spacing"])
    with pytest.raises(MalformedFileError, match=r"configurations.2d has no resampling_fn_data"):
        found.check_configuration("2d", ["resampling_fn_data"])
    with pytest.raises(MalformedFileError, match="no configuration 3d_highres"):
        found.check_configuration("3d_highres")


@pytest.mark.parametrize(
    "name", ["A__B", "A__B__C__D", "A__B__", "__B__C", "A____C", "A__B__C__", "fold_0", "best model"]
)
def test_a_folder_of_another_name_has_no_trainer(name, model):
    found = ModelFolder.read(model.rename(model.with_name(name)))
    assert found.folds_with("checkpoint_best.pth") == (9, 10)
    for attribute in ("trainer", "plans_name", "configuration"):
        with pytest.raises(ModelFolderError, match="named TRAINER__PLANS__CONFIGURATION, got"):
            getattr(found, attribute)
    with pytest.raises(ModelFolderError, match="named TRAINER__PLANS__CONFIGURATION, got"):
        found.check_configuration()


def test_a_name_that_cannot_be_printed(model):
    found = ModelFolder.read(model.rename(model.with_name("A__B\x1b[2J__C")))
    with pytest.raises(ModelFolderError, match=r'must be printable, got "A__B\\u001b\[2J__C"'):
        _ = found.trainer


def test_folders_of_no_model(model, tmp_path):
    with pytest.raises(ModelFolderError, match=r"there is no folder .*none"):
        ModelFolder.read(tmp_path / "none")
    with pytest.raises(ModelFolderError, match=r"no plans.json and no dataset.json in .*; give the folder that"):
        ModelFolder.read(model / "fold_0")
    (model / "dataset.json").rename(model / "dataset_fingerprint.json")
    with pytest.raises(ModelFolderError, match=r"there is no dataset.json in .*3d_fullres$"):
        ModelFolder.read(model)
    (model / "dataset.json").write_text('{"labels": {}}')
    with pytest.raises(MalformedFileError, match=r"dataset.json: labels"):
        ModelFolder.read(model)


def test_the_name_of_a_data_set(roots):
    raw, preprocessed, results = roots
    (raw / "Dataset017_BTCV").mkdir()
    (results / "Dataset017_BTCV").mkdir()
    (preprocessed / "Dataset117_Other").mkdir()
    assert dataset_name("17") == dataset_name("017") == "Dataset017_BTCV"
    assert type(dataset_name("117")) is str
    assert dataset_name("Dataset004_Not.there_yet") == "Dataset004_Not.there_yet"
    with pytest.raises(ModelFolderError, match=r"dataset 7: there must be one data set of this number, found none"):
        dataset_name("7")
    (preprocessed / "Dataset017_Second").mkdir()
    with pytest.raises(ModelFolderError, match="found several: Dataset017_BTCV, Dataset017_Second; give the name"):
        dataset_name("17")
    for other in ("BTCV", "", "-17", "1.5", "²"):
        with pytest.raises(ModelFolderError, match="by its number such as 17 or its name"):
            dataset_name(other)


def test_without_environment_variables(monkeypatch, tmp_path):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ModelFolderError, match="found none"):
        dataset_name("17")
    with pytest.raises(ModelFolderError, match=r"nnUNet_results is not set, which is needed for a test: "):
        environment_folder("nnUNet_results", "a test")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "none"))
    with pytest.raises(ModelFolderError, match=r"no folder nnUNet_results=.*none, which is needed for a test"):
        environment_folder("nnUNet_results", "a test")
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    assert environment_folder("nnUNet_results", "a test") == tmp_path


def test_the_place_of_a_model_is_nnunets(roots):
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    (roots[0] / "Dataset017_BTCV").mkdir()
    names = ("nnUNetTrainerDTC_RF2.5", "my_plans.v2", "2d")
    assert str(roots[2] / model_path("Dataset017_BTCV", *names, 4)) == get_output_folder(17, *names, 4)
    assert str(roots[2] / model_path("Dataset017_BTCV", *names)) == get_output_folder(17, *names)
    assert model_path("Dataset017_BTCV", *names, "all").name == "fold_all"


def test_it_imports_no_torch():
    code = "import nnunet_dtc.plugin.model_folder, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
