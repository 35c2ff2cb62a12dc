"""Planning, preprocessing and training with DTC: 2D, 3D with an uneven stride, residual encoder."""

import numpy as np
import pytest

pytestmark = pytest.mark.nnunet

TRAINER = "nnUNetTrainerDTC_1epochs"
RESIDUAL_PLANS = "nnUNetResEncUNetMPlans"


@pytest.fixture(scope="module")
def short(workspace, dataset):
    """The folder after short trainings in 2D, with predictions, and with a residual encoder."""
    workspace.run_in_one_process([workspace.plan_command("nnUNetPlannerResEncM", "-d", 4)])
    workspace.shrink_plans(dataset, RESIDUAL_PLANS)
    workspace.run_in_one_process(
        [
            workspace.train_command(dataset, "2d", 0, TRAINER),
            workspace.predict_command(workspace.root / "predicted_2d", dataset, "2d", TRAINER),
            workspace.train_command(dataset, "3d_fullres", 0, TRAINER, plans=RESIDUAL_PLANS),
        ]
    )
    return workspace.root


def test_plans_stay_nnunets_own(preprocessed_once, dataset):
    plans = preprocessed_once.read_plans(dataset)
    assert set(plans["configurations"]) >= {"2d", "3d_fullres"}
    for configuration in ("2d", "3d_fullres"):
        architecture = plans["configurations"][configuration]["architecture"]
        assert architecture["network_class_name"].startswith("dynamic_network_architectures.")
        preprocessed = (
            preprocessed_once.preprocessed / dataset / plans["configurations"][configuration]["data_identifier"]
        )
        assert {file.stem for file in preprocessed.glob("*.pkl")} == set(preprocessed_once.training)


def test_3d_fullres_with_an_uneven_stride(workspace, dataset):
    fold = workspace.train(dataset, "3d_fullres", 0, TRAINER)
    checkpoint = workspace.check_model(fold, epochs=1)
    block = "decoder.transpconvs.0"  # from the deepest stage, whose stride is (1, 2, 2)
    weights = checkpoint["network_weights"]
    assert weights[f"{block}.coords.weight"].shape == (16, 6, 1, 2, 2)
    assert weights[f"{block}.value.weight"].shape == (16, 16, 1, 1, 1)
    assert weights[f"{block}.base.weight"].shape == (16, 16, 1, 2, 2)
    # the shifts are learned: the weights moved from a start with standard deviation 0.001
    assert weights[f"{block}.coords.weight"].std() > 0.002
    predicted = workspace.root / "predicted_3d"
    workspace.run(*workspace.predict_command(predicted, dataset, "3d_fullres", TRAINER))
    for case, labels in workspace.read_predictions(predicted).items():
        truth = workspace.read_label(case)
        assert 2 * ((labels > 0) & (truth > 0)).sum() / ((labels > 0).sum() + (truth > 0).sum()) > 0.5


def test_2d(workspace, short, dataset):
    checkpoint = workspace.check_model(workspace.fold_folder(dataset, "2d", 0, TRAINER), epochs=1)
    assert checkpoint["network_weights"]["decoder.transpconvs.0.coords.weight"].shape == (32, 4, 2, 2)
    for labels in workspace.read_predictions(short / "predicted_2d").values():
        assert set(np.unique(labels)) <= {0, 1, 2}


def test_residual_encoder(workspace, short, dataset):
    checkpoint = workspace.check_model(
        workspace.fold_folder(dataset, "3d_fullres", 0, TRAINER, RESIDUAL_PLANS), epochs=1
    )
    configuration = checkpoint["init_args"]["plans"]["configurations"]["3d_fullres"]
    assert configuration["architecture"]["network_class_name"].endswith("ResidualEncoderUNet")
    assert "encoder.stages.1.blocks.0.conv1.conv.weight" in checkpoint["network_weights"]
