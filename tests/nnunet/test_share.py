"""From two models with two folds each to a comparison, a prediction, and a prediction elsewhere.

The DTC trainer's name has a dot in it (receptive field 2.5), which must survive everywhere.
"""

import json
import zipfile

import numpy as np
import pytest

pytestmark = pytest.mark.nnunet

VANILLA, DTC = "nnUNetTrainer_1epochs", "nnUNetTrainerDTC_RF2.5_1epochs"
CONFIGURATION, FOLDS = "3d_fullres", (0, 1)


ITERATIONS = 40  # enough to find some foreground


@pytest.fixture(scope="module")
def finished(workspace, dataset):
    """The folder after all commands, the export after the comparison, so that nnU-Net finds the ensembles as well."""
    root, of = workspace.root, ("-c", CONFIGURATION, "-f", *FOLDS)
    predicted = root / "predicted"
    described = ("-djfile", predicted / "dataset.json", "-pfile", predicted / "plans.json")
    workspace.run_in_one_process(
        [
            *(
                workspace.train_command(dataset, CONFIGURATION, fold, trainer, "--npz")
                for trainer in (VANILLA, DTC)
                for fold in FOLDS
            ),
            workspace.predict_command(
                predicted, dataset, CONFIGURATION, DTC, "--save_probabilities", folds=FOLDS, workers=1
            ),
            ("nnUNetv2_evaluate_folder", workspace.labels_held_out, predicted, "-np", 1, *described),
            ("nnUNetv2_find_best_configuration", dataset, *of, "-tr", VANILLA, DTC, "-np", 1),
            ("nnUNetv2_export_model_to_zip", "-d", dataset, *of, "-tr", DTC, "-o", root / "model.zip"),
        ],
        iterations=ITERATIONS,
    )
    return root


@pytest.fixture(scope="module")
def models(workspace, dataset, finished):
    """Two folds of both trainers with ``--npz``: trainer to the folders of its folds."""
    return {
        trainer: [workspace.fold_folder(dataset, CONFIGURATION, fold, trainer) for fold in FOLDS]
        for trainer in (VANILLA, DTC)
    }


@pytest.fixture(scope="module")
def predicted(finished):
    """The held-out cases by both folds of the DTC model, with probabilities, by nnU-Net's worker processes."""
    return finished / "predicted"


@pytest.fixture(scope="module")
def best(workspace, dataset, finished):
    """What nnUNetv2_find_best_configuration found."""
    return json.loads((workspace.results / dataset / "inference_information.json").read_text())


@pytest.fixture(scope="module")
def exported(finished):
    """The DTC model as a zip file."""
    return finished / "model.zip"


@pytest.mark.parametrize(("trainer", "dtc"), [(VANILLA, False), (DTC, True)])
def test_models(workspace, models, trainer, dtc):
    validated = set()
    for fold in models[trainer]:
        workspace.check_model(fold, epochs=1, dtc=dtc)
        cases = {file.stem for file in (fold / "validation").glob("*.npz")}
        assert cases == {file.name.removesuffix(".nii.gz") for file in (fold / "validation").glob("*.nii.gz")}
        assert len(cases) == 2
        validated |= cases
    assert len(validated) == 4
    assert validated < set(workspace.training)


def test_prediction_by_two_folds(workspace, predicted):
    for case, labels in workspace.read_predictions(predicted).items():
        assert set(np.unique(labels)) <= {0, 1, 2}
        probabilities = np.load(predicted / f"{case}.npz")["probabilities"]
        assert probabilities.shape == (3, *labels.shape)
        assert np.isfinite(probabilities).all()
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-3)
        np.testing.assert_array_equal(probabilities.argmax(0), labels)


def test_evaluation(workspace, predicted):
    summary = json.loads((predicted / "summary.json").read_text())
    predictions = workspace.read_predictions(predicted)
    assert len(summary["metric_per_case"]) == len(predictions)
    for entry in summary["metric_per_case"]:
        case = entry["prediction_file"].rpartition("/")[2].removesuffix(".nii.gz")
        truth = workspace.read_label(case)
        for label in (1, 2):
            ours, theirs = predictions[case] == label, truth == label
            dice = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
            assert entry["metrics"][str(label)]["Dice"] == pytest.approx(dice)


def test_comparison_and_ensemble(workspace, dataset, models, best):
    names = {trainer: f"{trainer}__nnUNetPlans__{CONFIGURATION}" for trainer in (VANILLA, DTC)}
    ensemble = f"ensemble___{names[VANILLA]}___{names[DTC]}___0_1"
    assert set(best["all_results"]) == {*names.values(), ensemble}
    assert all(0 <= dice <= 1 for dice in best["all_results"].values())
    assert [model["trainer"] for model in best["considered_models"]] == [VANILLA, DTC]

    validated = {file.name for folds in models.values() for fold in folds for file in fold.glob("validation/*.nii.gz")}
    folder = workspace.results / dataset / "ensembles" / ensemble
    assert {file.name for file in folder.glob("*.nii.gz")} == validated
    merged = workspace.model_folder(dataset, CONFIGURATION, DTC) / "crossval_results_folds_0_1"
    assert {file.name for file in merged.glob("*.nii.gz")} == validated

    winner = max(best["all_results"], key=best["all_results"].get)
    chosen = [model["trainer"] for model in best["best_model_or_ensemble"]["selected_model_or_models"]]
    assert chosen == [trainer for trainer in (VANILLA, DTC) if names[trainer] in winner]
    instructions = (workspace.results / dataset / "inference_instructions.txt").read_text()
    assert all(f"-tr {trainer} " in instructions for trainer in chosen)


def test_export(dataset, exported):
    model = f"{dataset}/{DTC}__nnUNetPlans__{CONFIGURATION}"
    with zipfile.ZipFile(exported) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
    assert {f"{model}/{file}" for file in ("plans.json", "dataset.json", "dataset_fingerprint.json")} <= names
    assert {f"{model}/fold_{fold}/checkpoint_final.pth" for fold in FOLDS} <= names
    assert not any(VANILLA + "__" in name.split("/")[1] for name in names if name.count("/") > 1)


def test_installed_elsewhere_it_predicts_the_same(workspace, predicted, exported):
    elsewhere = workspace.root / "elsewhere"
    elsewhere.mkdir()
    env = workspace.environment(results=elsewhere, only_results=True)
    assert {key for key in env if key.startswith("nnUNet") and "n_proc" not in key} == {
        "nnUNet_results",
        "nnUNet_extTrainer",
    }
    again = workspace.root / "predicted_elsewhere"
    workspace.run_in_one_process(
        [
            ("nnUNetv2_install_pretrained_model_from_zip", exported),
            workspace.predict_command(again, "4", CONFIGURATION, DTC, "--save_probabilities", folds=FOLDS),
        ],
        env=env,
    )

    first, second = workspace.read_predictions(predicted), workspace.read_predictions(again)
    for case in workspace.held_out:
        np.testing.assert_array_equal(second[case], first[case])
        there, here = (np.load(folder / f"{case}.npz")["probabilities"] for folder in (again, predicted))
        assert there.dtype == here.dtype
        np.testing.assert_array_equal(there, here)
