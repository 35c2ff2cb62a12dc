"""A cascade: 3d_lowres with DTC, and 3d_cascade_fullres with DTC on what it predicts.

nnU-Net plans none for volumes this small, so both stages are written into the plans by hand.
"""

from copy import deepcopy

import numpy as np
import pytest

pytestmark = pytest.mark.nnunet

TRAINER = "nnUNetTrainerDTC_1epochs"
STAGES = ("3d_lowres", "3d_cascade_fullres")
FACTOR = 1.5  # of the low resolution's spacing


@pytest.fixture(scope="module")
def cascade_plans(workspace, dataset):
    """Both stages in the workspace's plans."""
    plans = workspace.read_plans(dataset)
    configurations = plans["configurations"]
    lowres = deepcopy(configurations["3d_fullres"])
    lowres.update(
        data_identifier="nnUNetPlans_3d_lowres",
        spacing=[spacing * FACTOR for spacing in lowres["spacing"]],
        median_image_size_in_voxels=[size / FACTOR for size in lowres["median_image_size_in_voxels"]],
        next_stage="3d_cascade_fullres",
    )
    configurations["3d_lowres"] = lowres
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    workspace.write_plans(dataset, plans)


@pytest.fixture(scope="module")
def finished(workspace, dataset, cascade_plans):
    """The folder with the predictions of the held-out cases, those of the second stage made with those of the first.

    The first stage is trained on all cases, so that its validation predicts each case for the second stage.
    """
    first, second = (workspace.root / f"predicted_{stage}" for stage in STAGES)
    previous = ("-prev_stage_predictions", first)
    workspace.run_in_one_process(
        [
            ("nnUNetv2_preprocess", "-d", 4, "-c", "3d_lowres", "-np", 1, "--no_pbar"),
            workspace.train_command(dataset, "3d_lowres", "all", TRAINER),
            workspace.train_command(dataset, "3d_cascade_fullres", 0, TRAINER),
            workspace.predict_command(first, dataset, "3d_lowres", TRAINER, folds=("all",)),
            workspace.predict_command(second, dataset, "3d_cascade_fullres", TRAINER, *previous),
        ]
    )
    return workspace.root


@pytest.fixture(scope="module")
def lowres(workspace, dataset, finished):
    return workspace.fold_folder(dataset, "3d_lowres", "all", TRAINER)


@pytest.fixture(scope="module")
def fullres(workspace, dataset, finished):
    return workspace.fold_folder(dataset, "3d_cascade_fullres", 0, TRAINER)


def test_plans(workspace, dataset, finished):
    preprocessed = workspace.preprocessed / dataset / "nnUNetPlans_3d_lowres"
    assert {file.stem for file in preprocessed.glob("*.pkl")} == set(workspace.training)


def test_first_stage(workspace, lowres):
    workspace.check_model(lowres, epochs=1)


def test_first_stage_is_handed_on(workspace, lowres):
    handed_on = lowres.parent / "predicted_next_stage" / "3d_cascade_fullres"
    assert {file.name.partition(".")[0] for file in handed_on.iterdir()} == set(workspace.training)


def test_second_stage_takes_the_first_as_channels(workspace, fullres):
    checkpoint = workspace.check_model(fullres, epochs=1)
    first = checkpoint["network_weights"]["encoder.stages.0.0.convs.0.conv.weight"]
    assert first.shape[1] == 1 + 2  # the image, and one channel per label of the first stage


@pytest.mark.parametrize("configuration", STAGES)
def test_prediction(workspace, finished, configuration):
    predictions = workspace.read_predictions(finished / f"predicted_{configuration}")
    assert set(predictions) == set(workspace.held_out)
    for labels in predictions.values():
        assert set(np.unique(labels)) <= {0, 1, 2}
