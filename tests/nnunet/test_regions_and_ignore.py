"""Regions as nnU-Net's training target, and labels that are to be ignored."""

import json

import numpy as np
import pytest

pytestmark = pytest.mark.nnunet

TRAINER = "nnUNetTrainerDTC_1epochs"
REGIONS_ID, IGNORE_ID = 5, 6
IGNORE = 3
ITERATIONS = 40  # enough to find some foreground


def ignore_slabs(labels: np.ndarray) -> np.ndarray:
    """Every other block of six slices is not annotated."""
    changed = labels.copy()
    changed[np.arange(len(labels)) // 6 % 2 == 1] = IGNORE
    return changed


@pytest.fixture(scope="module")
def datasets(empty_workspace):
    """The names of both data sets, planned and preprocessed by one command, with small plans."""
    regions = empty_workspace.write_raw(
        REGIONS_ID,
        "PhantomRegions",
        {"background": 0, "whole": [1, 2], "posterior": 2},
        regions_class_order=[1, 2],
    )
    ignore = empty_workspace.write_raw(
        IGNORE_ID,
        "PhantomIgnore",
        {"background": 0, "anterior": 1, "posterior": 2, "ignore": IGNORE},
        ignore_slabs,
    )
    planning = empty_workspace.plan_and_preprocess_command("-d", REGIONS_ID, IGNORE_ID, "-c", "3d_fullres")
    empty_workspace.run_in_one_process([planning])
    for dataset in (regions, ignore):
        empty_workspace.shrink_plans(dataset)
    return {"regions": regions, "ignore": ignore}


@pytest.fixture(scope="module")
def finished(empty_workspace, datasets):
    """The folder after both trainings and predictions of the held-out cases."""
    root, of = empty_workspace.root, ("3d_fullres", TRAINER)
    trainings = [empty_workspace.train_command(name, "3d_fullres", 0, TRAINER) for name in datasets.values()]
    predictions = [
        empty_workspace.predict_command(root / f"predicted_{kind}", name, *of) for kind, name in datasets.items()
    ]
    empty_workspace.run_in_one_process([*trainings, *predictions], iterations=ITERATIONS)
    return root


@pytest.fixture(scope="module")
def folds(empty_workspace, datasets, finished):
    """Both kinds' trained folds."""
    return {kind: empty_workspace.fold_folder(name, "3d_fullres", 0, TRAINER) for kind, name in datasets.items()}


@pytest.fixture(scope="module")
def predictions(empty_workspace, finished):
    """Both kinds' label maps of the held-out cases."""
    return {kind: empty_workspace.read_predictions(finished / f"predicted_{kind}") for kind in ("regions", "ignore")}


def test_labels_to_train_with(empty_workspace, datasets):
    import SimpleITK as sitk

    for kind, there in (("regions", {0, 1, 2}), ("ignore", {0, 1, 2, IGNORE})):
        for case in empty_workspace.training:
            given = sitk.ReadImage(str(empty_workspace.raw / datasets[kind] / "labelsTr" / f"{case}.nii.gz"))
            assert set(np.unique(sitk.GetArrayFromImage(given))) == there


@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        ("regions", 2),  # whole and posterior, no background
        ("ignore", 3),  # background and two labels, none for what is ignored
    ],
)
def test_training(empty_workspace, folds, kind, heads):
    checkpoint = empty_workspace.check_model(folds[kind], epochs=1)
    assert len(checkpoint["network_weights"]["decoder.seg_layers.1.bias"]) == heads


@pytest.mark.parametrize(("kind", "evaluated"), [("regions", {"(1, 2)", "2"}), ("ignore", {"1", "2"})])
def test_validation(folds, kind, evaluated):
    import SimpleITK as sitk

    validation = folds[kind] / "validation"
    assert set(json.loads((validation / "summary.json").read_text())["mean"]) == evaluated
    files = list(validation.glob("*.nii.gz"))
    assert len(files) == 2
    for file in files:
        assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(file))))) <= {0, 1, 2}


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", ["regions", "ignore"])
def test_prediction(empty_workspace, predictions, kind, number):
    labels = predictions[kind][empty_workspace.held_out[number]]
    assert set(np.unique(labels)) <= {0, 1, 2}  # what is ignored in training is never predicted
