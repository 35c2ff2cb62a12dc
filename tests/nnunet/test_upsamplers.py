"""Every upsampler and the 2D U-Net train and predict through nnU-Net's commands, in 2D and in 3D with an uneven stride.

The commands' own entry points run one after the other in one process, which saves the imports. Trainings are made
short as users do it: by subclasses in a folder on ``nnUNet_extTrainer``. nnU-Net's validation of whole cases starts a
process, and its picture of the progress takes seconds, so only two of them validate, and none draws.
"""

import os

import numpy as np
import pytest

from nnunet_dtc.plugin.registration import EXT_VARIABLE

pytestmark = pytest.mark.nnunet

RUNS = {
    "2d": ["Linear", "DySampleDTC", "CARAFE", "FADEDTC_RF10", "SAPA", "UNetDTC", "UNetLinear", "UNetFADEDTC_paper2d"],
    "3d_fullres": ["LinearDTC", "DySample", "CARAFEDTC", "FADE", "SAPADTC_RF4"],
}
VALIDATED = ("UNetDTC", "LinearDTC")
ITERATIONS = 4
LAB = """
import torch

from nnunet_dtc import trainers


class Short:
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = {iterations}, 1
        self.logger.plot_progress_png = lambda folder: None

    def perform_actual_validation(self, save_probabilities=False):
        if type(self).__name__ in {validated}:
            super().perform_actual_validation(save_probabilities)
"""
LAB_CLASS = """

class {name}_lab(Short, trainers.{name}):
    pass
"""
COMMANDS = """
import sys

from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.run.run_training import run_training_entry

if __name__ == "__main__":  # nnU-Net's workers import this file
    dataset, images, output, *runs = sys.argv[1:]
    for run in runs:
        configuration, trainer, checkpoint = run.split(":")
        of = ["-tr", trainer, "-device", "cpu"]
        sys.argv = ["nnUNetv2_train", dataset, configuration, "0", *of]
        run_training_entry()
        sys.argv = ["nnUNetv2_predict", "-i", images, "-o", f"{output}/{trainer}", "-d", dataset, "-c", configuration]
        sys.argv += ["-f", "0", "-npp", "0", "-nps", "0", "-chk", checkpoint, *of]
        sys.argv += ["--disable_progress_bar", "--disable_tta"]
        predict_entry_point()
"""


def trainer_name(name):
    return f"nnUNetTrainer{name}_1epochs"


@pytest.fixture(scope="module")
def trained(workspace, dataset):
    """All of them, trained for an epoch of a few iterations, and their predictions."""
    plans = workspace.read_plans(dataset)
    plans["configurations"]["2d"]["architecture"]["nnunet_dtc"] = {"UNet": {"width": 8}}
    workspace.write_plans(dataset, plans)

    lab = workspace.root / "lab"
    lab.mkdir()
    names = [trainer_name(name) for names in RUNS.values() for name in names]
    validated = [f"{trainer_name(name)}_lab" for name in VALIDATED]
    text = LAB.format(iterations=ITERATIONS, validated=validated) + "".join(
        LAB_CLASS.format(name=name) for name in names
    )
    (lab / "lab_trainers.py").write_text(text)
    (workspace.root / "commands.py").write_text(COMMANDS)
    env = workspace.environment()
    env[EXT_VARIABLE] = os.pathsep.join([env[EXT_VARIABLE], str(lab)])
    runs = [
        f"{configuration}:{trainer_name(name)}_lab:checkpoint_{'best_validation' if 'paper2d' in name else 'final'}.pth"
        for configuration, names in RUNS.items()
        for name in names
    ]
    workspace.run(
        "python", workspace.root / "commands.py", dataset, workspace.images_held_out, workspace.root / "out", *runs,
        env=env, timeout_s=1200,
    )  # fmt: skip
    return workspace


@pytest.mark.parametrize(("configuration", "name"), [(c, name) for c, names in RUNS.items() for name in names])
def test_trains_and_predicts(trained, dataset, configuration, name):
    trainer = f"{trainer_name(name)}_lab"
    fold = trained.fold_folder(dataset, configuration, 0, trainer)
    checkpoint = trained.read_checkpoint(fold / "checkpoint_final.pth")
    assert checkpoint["trainer_name"] == trainer
    assert checkpoint["current_epoch"] == 1
    assert all(np.isfinite(checkpoint["logging"][kind]).all() for kind in ("train_losses", "val_losses"))
    weights = checkpoint["network_weights"]
    assert all(value.isfinite().all() for value in weights.values())
    blocks = "upsamplings" if name.startswith("UNet") else "decoder.transpconvs"
    last = 3 if name.startswith("UNet") else 1
    for index in (0, last):
        assert (f"{blocks}.{index}.coords.weight" in weights) == ("DTC" in name)
    assert f"{blocks}.{last + 1}.coords.weight" not in weights
    parts = {key.split(".")[-2] for key in weights if key.startswith(f"{blocks}.0.")}
    for upsampler, part in (("DySample", "offset"), ("FADE", "gate"), ("SAPA", "query")):
        assert (part in parts) == (upsampler in name)
    assert ({"encode", "compress"} <= parts) == (("CARAFE" in name) or ("FADE" in name))
    assert (fold / "validation" / "summary.json").is_file() == (name in VALIDATED)
    assert (fold / "coordinates.csv").is_file() == ("DTC" in name)
    for labels in trained.read_predictions(trained.root / "out" / trainer).values():
        assert set(np.unique(labels)) <= {0, 1, 2}


def test_the_papers_recipe_has_its_own_checkpoint(trained, dataset):
    trainer = f"{trainer_name('UNetFADEDTC_paper2d')}_lab"
    fold = trained.fold_folder(dataset, "2d", 0, trainer)
    checkpoint = trained.read_checkpoint(fold / "checkpoint_best_validation.pth")
    dices = checkpoint["logging"]["mean_fg_dice"]
    assert checkpoint["current_epoch"] == len(dices)
    assert dices[-1] == max(dices)
    assert checkpoint["inference_allowed_mirroring_axes"] is None
    assert checkpoint["optimizer_state"]["param_groups"][0]["lr"] == 1e-4
