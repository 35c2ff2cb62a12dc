"""A cascade: 3d_lowres with DTC, and 3d_cascade_fullres with DTC on what it predicts.

nnU-Net plans none for volumes this small, so both stages are written into the plans by hand.
"""

from copy import deepcopy

import numpy as np
import pytest

pytestmark = pytest.mark.nnunet

TRAINER = "nnUNetTrainerDTC_1epochs"
FACTOR = 1.5  # of the low resolution's spacing


@pytest.fixture(scope="module")
def cascade_plans(workspace, dataset):
    """The workspace with both stages in its plans, and 3d_lowres preprocessed."""
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
    workspace.run("nnUNetv2_preprocess", "-d", 4, "-c", "3d_lowres", "-np", 1, "--no_pbar")
    return plans


@pytest.fixture(scope="module")
def lowres(workspace, dataset, cascade_plans):
    """The first stage, of all cases, so that its validation predicts each case for the second stage."""
    return workspace.train(dataset, "3d_lowres", "all", TRAINER)


@pytest.fixture(scope="module")
def fullres(workspace, dataset, lowres):
    return workspace.train(dataset, "3d_cascade_fullres", 0, TRAINER)


@pytest.fixture(scope="module")
def predictions(workspace, dataset, lowres, fullres):
    """The held-out cases by each stage, the second one on the predictions of the first."""
    first = workspace.predict("predicted_lowres", dataset, "3d_lowres", TRAINER, folds=("all",))
    second = workspace.predict("predicted", dataset, "3d_cascade_fullres", TRAINER, "-prev_stage_predictions", first)
    return {"3d_lowres": workspace.read_predictions(first), "3d_cascade_fullres": workspace.read_predictions(second)}


def test_plans(workspace, dataset, cascade_plans):
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


@pytest.mark.parametrize("configuration", ["3d_lowres", "3d_cascade_fullres"])
def test_prediction(workspace, predictions, configuration):
    assert set(predictions[configuration]) == set(workspace.held_out)
    for labels in predictions[configuration].values():
        assert set(np.unique(labels)) <= {0, 1, 2}
