"""The paper's other networks, with and without DTC, through nnU-Net's commands: train, resume, predict, export, import.

The commands' own entry points run one after the other in one process, which saves the imports; only the import of an
exported model has a process of its own. The networks are made small in the plans, epochs and pictures short in that
process, so the trainers are the very ones that a user names. Patches are of sizes that every network has to pad.
"""

import re

import numpy as np
import pytest
from plans import SMALL_NETWORKS

pytestmark = pytest.mark.nnunet

RUNS = {  # configuration, epochs
    "UNETR": ("2d", 1),
    "UNETRDTC": ("3d_fullres", 2),
    "SwinUNETRV2": ("3d_fullres", 1),
    "SwinUNETRV2DTC_RF4": ("2d", 1),
    "NnMamba": ("2d", 1),
    "NnMambaDTC_RF1": ("3d_fullres", 1),
    "SegMamba": ("3d_fullres", 1),
    "SegMambaDTC_RF10": ("2d", 2),
}
RESUMED = ("UNETRDTC", "SegMambaDTC_RF10")  # and two folds, mirrored predictions
VALIDATED = "UNETRDTC"  # its first fold, which is exported
PATCHES = {"2d": [24, 40], "3d_fullres": [12, 24, 33]}
UPSAMPLINGS = {"UNETR": 4, "SwinUNETRV2": 5, "NnMamba": 4, "SegMamba": 4}
ADAMW = {"UNETR": (1e-4, 1e-5), "SwinUNETRV2": (1e-4, 1e-5), "NnMamba": (2e-4, 3e-5), "SegMamba": (1e-4, 1e-5)}
TINY = (10, 12, 14)  # voxels of 1 mm, of which nnU-Net makes less than the patch on every axis, in 2D, too
COMMANDS = """
import shutil, sys
from pathlib import Path

from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

ITERATIONS = 4


class Stopped(Exception):
    pass


def shortened(init):
    def short(self, plans, configuration, fold, dataset_json, *device):
        init(self, plans, configuration, fold, dataset_json, *device)
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = ITERATIONS, 1
        if type(self).__name__ != validated:  # an export takes the picture along
            self.logger.plot_progress_png = lambda folder: None

    return short


def stopping(on_epoch_end):
    def stop(self):
        on_epoch_end(self)
        if stopped:
            for loader in (self.dataloader_train, self.dataloader_val):
                loader._finish()
            shutil.copy(Path(self.output_folder, "checkpoint_latest.pth"), Path(self.output_folder, "stopped.pth"))
            raise Stopped

    return stop


def chosen(validate):
    def maybe(self, *more):
        if type(self).__name__ == validated and self.fold == 0:
            validate(self, *more)

    return maybe


if __name__ == "__main__":  # nnU-Net's workers import this file
    nnUNetTrainer.__init__ = shortened(nnUNetTrainer.__init__)
    nnUNetTrainer.on_epoch_end = stopping(nnUNetTrainer.on_epoch_end)
    nnUNetTrainer.perform_actual_validation = chosen(nnUNetTrainer.perform_actual_validation)
    todo, validated = sys.argv[1:]
    for line in Path(todo).read_text().splitlines():
        sys.argv = line.split()
        stopped = sys.argv[0] == "stopped"
        sys.argv = sys.argv[stopped:]
        try:
            {"nnUNetv2_train": run_training_entry, "nnUNetv2_predict": predict_entry_point}[sys.argv[0]]()
        except Stopped:
            continue
        assert not stopped, "it was to stop"
"""


def trainer_name(name):
    return f"nnUNetTrainer{name}_{RUNS[name][1]}epochs"


def network_of(name):
    return name.partition("_")[0].removesuffix("DTC")


def lines(dataset, images, output):
    """What the one process does."""
    for name, (configuration, _) in RUNS.items():
        of = f"-tr {trainer_name(name)} -device cpu"
        train = f"nnUNetv2_train {dataset} {configuration}"
        if name in RESUMED:
            yield f"stopped {train} 0 {of}"
            yield f"{train} 0 --c {of}"
            yield f"{train} 1 {of}"
        else:
            yield f"{train} 0 {of}"
        more = "-f 0 1" if name in RESUMED else "-f 0 --disable_tta"
        predict = f"nnUNetv2_predict -i {images} -o {output / name} -d {dataset} -c {configuration} {of} {more}"
        yield f"{predict} -npp 0 -nps 0 --disable_progress_bar"


@pytest.fixture(scope="module")
def images(workspace):
    """A held-out volume, and a corner of another that is smaller than the patch."""
    import SimpleITK as sitk

    folder = workspace.root / "images"
    folder.mkdir()
    first, second = (
        sitk.ReadImage(str(workspace.images_held_out / f"{case}_0000.nii.gz")) for case in workspace.held_out
    )
    sitk.WriteImage(first, str(folder / "whole_0000.nii.gz"))
    sitk.WriteImage(second[: TINY[2], : TINY[1], : TINY[0]], str(folder / "tiny_0000.nii.gz"))
    return folder


@pytest.fixture(scope="module")
def trained(workspace, dataset, images):
    plans = workspace.read_plans(dataset)
    for configuration, patch in PATCHES.items():
        plans["configurations"][configuration].update(patch_size=patch, batch_size=2)
        plans["configurations"][configuration]["architecture"]["nnunet_dtc"] = SMALL_NETWORKS
    workspace.write_plans(dataset, plans)
    (workspace.root / "commands.py").write_text(COMMANDS)
    todo = workspace.root / "commands.txt"
    todo.write_text("\n".join(lines(dataset, images, workspace.root / "out")))
    workspace.run("python", workspace.root / "commands.py", todo, trainer_name(VALIDATED), timeout_s=1200)
    return workspace


def read_labels(folder):
    import SimpleITK as sitk

    return {case: sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{case}.nii.gz"))) for case in ("whole", "tiny")}


@pytest.mark.parametrize("name", RUNS)
def test_trains(trained, dataset, name):
    configuration, epochs = RUNS[name]
    trainer, network = trainer_name(name), network_of(name)
    for index in (0, 1) if name in RESUMED else (0,):
        fold = trained.fold_folder(dataset, configuration, index, trainer)
        checkpoint = trained.read_checkpoint(fold / "checkpoint_final.pth")
        assert checkpoint["trainer_name"] == trainer
        assert checkpoint["current_epoch"] == epochs
        for kind in ("train_losses", "val_losses"):
            assert len(checkpoint["logging"][kind]) == epochs
            assert np.isfinite(checkpoint["logging"][kind]).all()
        weights = checkpoint["network_weights"]
        assert all(value.isfinite().all() for value in weights.values())
        assert sum(key.endswith(".coords.weight") for key in weights) == UPSAMPLINGS[network] * ("DTC" in name)
        assert checkpoint["inference_allowed_mirroring_axes"] == tuple(range(len(PATCHES[configuration])))
        [group] = checkpoint["optimizer_state"]["param_groups"]
        rate, decay = ADAMW[network]
        assert (checkpoint["logging"]["lrs"][0], group["weight_decay"]) == (rate, decay)
        assert (fold / "coordinates.csv").is_file() == ("DTC" in name)
        for log in fold.glob("training_log*.txt"):
            text = log.read_text()
            assert text.count("voxels are padded with zeros to") == 1
            assert text.count(f"Optimizer: AdamW, learning rate {rate:g}, weight decay {decay:g}") == 1
            assert "SGD" not in text
    assert (fold.parent / "fold_0" / "validation" / "summary.json").is_file() == (name == VALIDATED)


@pytest.mark.parametrize("name", RUNS)
def test_predicts_also_what_is_smaller_than_the_patch(trained, name):
    labels = read_labels(trained.root / "out" / name)
    assert labels["tiny"].shape == TINY
    assert min(labels["whole"].shape) > max(TINY)
    assert all(set(np.unique(found)) <= {0, 1, 2} for found in labels.values())


@pytest.mark.parametrize("name", RESUMED)
def test_goes_on_where_it_was_stopped(trained, dataset, name):
    configuration, epochs = RUNS[name]
    fold = trained.fold_folder(dataset, configuration, 0, trainer_name(name))
    stopped, final = (trained.read_checkpoint(fold / f"{file}.pth") for file in ("stopped", "checkpoint_final"))
    assert (stopped["current_epoch"], final["current_epoch"]) == (1, epochs)
    assert stopped["optimizer_state"]["state"]
    assert final["logging"]["train_losses"][:1] == stopped["logging"]["train_losses"]
    rate, _ = ADAMW[network_of(name)]
    assert final["logging"]["lrs"] == pytest.approx([rate, rate * 0.5**0.9])  # nnU-Net's schedule
    logs = sorted(fold.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime)
    assert [re.findall(r"Epoch (\d+) *$", log.read_text(), re.MULTILINE) for log in logs] == [["0"], ["1"]]


def test_exported_and_installed_elsewhere_it_predicts_the_same(trained, dataset, images):
    configuration, _ = RUNS[VALIDATED]
    archive, elsewhere = trained.root / "exported.zip", trained.root / "elsewhere"
    elsewhere.mkdir()
    of = ("-c", configuration, "-tr", trainer_name(VALIDATED), "-f", 0)
    predict = ("nnUNetv2_predict", "-i", images, "-d", dataset, *of, "-device", "cpu", "--disable_progress_bar")
    trained.run(*predict, "-npp", 0, "-nps", 0, "-o", trained.root / "here")
    trained.run("nnUNetv2_export_model_to_zip", "-d", dataset, "-o", archive, *of)
    env = trained.environment(results=elsewhere, only_results=True)
    trained.run("nnUNetv2_install_pretrained_model_from_zip", archive, env=env)
    trained.run(*predict, "-npp", 0, "-nps", 0, "-o", trained.root / "there", env=env)
    here, there = read_labels(trained.root / "here"), read_labels(trained.root / "there")
    for case, labels in here.items():
        np.testing.assert_array_equal(there[case], labels)
