"""Hippocampus volumes of the Medical Segmentation Decathlon: planned, trained and predicted with DTC."""

import numpy as np
import pytest

pytestmark = pytest.mark.nnunet

TRAINER = "nnUNetTrainerDTC_1epochs"


def test_one_epoch_finds_the_hippocampus(real_workspace):
    dataset = real_workspace.write_raw(name="Hippocampus")
    real_workspace.run_in_one_process([real_workspace.plan_and_preprocess_command("-d", 4, "-c", "3d_fullres")])
    real_workspace.shrink_plans(dataset)
    predicted, of = real_workspace.root / "predicted", (dataset, "3d_fullres")
    train = real_workspace.train_command(*of, 0, TRAINER)
    real_workspace.run_in_one_process([train, real_workspace.predict_command(predicted, *of, TRAINER)], iterations=250)
    real_workspace.check_model(real_workspace.fold_folder(*of, 0, TRAINER), epochs=1)
    overlap = sizes = 0
    for case, labels in real_workspace.read_predictions(predicted).items():
        truth = real_workspace.read_label(case)
        assert set(np.unique(labels)) <= {0, 1, 2}
        overlap += ((labels > 0) & (truth > 0)).sum()
        sizes += (labels > 0).sum() + (truth > 0).sum()
    assert 2 * overlap / sizes > 0.5  # of the whole: after one epoch its two parts are not always told apart
