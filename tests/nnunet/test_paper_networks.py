"""The paper's other networks, with and without DTC, through nnU-Net's commands: train, resume, predict, export.

The networks are made small in the plans, so the trainers are the very ones that a user names (one_process.py makes
nnU-Net short, not them). The exported models are installed and used in a process of its own. Patches are of sizes that
every network has to pad.
"""

import re
from importlib.util import find_spec

import numpy as np
import pytest
from plans import SMALL_NETWORKS

pytestmark = pytest.mark.nnunet

RUNS = {
    "UNETR": "2d",
    "UNETRDTC": "3d_fullres",
    "SwinUNETRV2": "3d_fullres",
    "SwinUNETRV2DTC_RF4": "2d",
    "NnMamba": "2d",
    "NnMambaDTC_RF1": "3d_fullres",
    "SegMamba": "3d_fullres",
    "SegMambaDTC_RF10": "2d",
}
EPOCHS = 2  # the first fold is stopped after one, and resumed
RUNNABLE = [name for name in RUNS if "UNETR" not in name or find_spec("monai")]
MIRRORED = ("UNETRDTC", "SegMambaDTC_RF10")  # in the prediction by two folds
PATCHES = {"2d": [24, 40], "3d_fullres": [12, 24, 33]}
UPSAMPLINGS = {"UNETR": 4, "SwinUNETRV2": 5, "NnMamba": 4, "SegMamba": 4}
ADAMW = {"UNETR": (1e-4, 1e-5), "SwinUNETRV2": (1e-4, 1e-5), "NnMamba": (2e-4, 3e-5), "SegMamba": (1e-4, 1e-5)}
TINY = (10, 12, 14)  # voxels of 1 mm, of which nnU-Net makes less than the patch on every axis, in 2D, too
SLICES = 15  # of the held-out volume, more than the patch has


every_run = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in RUNNABLE else pytest.mark.skip(reason="needs MONAI")) for name in RUNS],
)


def trainer_name(name):
    return f"nnUNetTrainer{name}_{EPOCHS}epochs"


def network_of(name):
    return name.partition("_")[0].removesuffix("DTC")


def predict(name, dataset, images, output, *more):
    command = ("nnUNetv2_predict", "-i", images, "-o", output / name, "-d", dataset, "-c", RUNS[name])
    return (*command, "-tr", trainer_name(name), "-device", "cpu", "-npp 0 -nps 0 --disable_progress_bar", *more)


def commands_here(dataset, images, root):
    for name in RUNNABLE:
        configuration = RUNS[name]
        of = ("-tr", trainer_name(name))
        train = ("nnUNetv2_train", dataset, configuration)
        yield ("stopped", *train, 0, *of, "-device cpu")
        yield (*train, 0, *of, "-device cpu --c")
        yield ("unvalidated", *train, 1, *of, "-device cpu")
        yield predict(name, dataset, images, root / "folds", "-f 0 1", "" if name in MIRRORED else "--disable_tta")
        yield predict(name, dataset, images, root / "here", "-f 0 --disable_tta")
        archive = root / f"{name}.zip"
        yield ("nnUNetv2_export_model_to_zip", "-d", dataset, "-c", configuration, *of, "-f 0 -o", archive)


def commands_elsewhere(dataset, images, root):
    for name in RUNNABLE:
        yield ("nnUNetv2_install_pretrained_model_from_zip", root / f"{name}.zip")
        yield predict(name, dataset, images, root / "elsewhere", "-f 0 --disable_tta")


@pytest.fixture(scope="module")
def images(workspace):
    """A held-out volume, and a corner of another that is smaller than the patch."""
    import SimpleITK as sitk

    folder = workspace.root / "images"
    folder.mkdir()
    first, second = (
        sitk.ReadImage(str(workspace.images_held_out / f"{case}_0000.nii.gz")) for case in workspace.held_out
    )
    sitk.WriteImage(first[:, :, :SLICES], str(folder / "whole_0000.nii.gz"))
    sitk.WriteImage(second[: TINY[2], : TINY[1], : TINY[0]], str(folder / "tiny_0000.nii.gz"))
    return folder


@pytest.fixture(scope="module")
def trained(workspace, dataset, images):
    plans = workspace.read_plans(dataset)
    for configuration, patch in PATCHES.items():
        plans["configurations"][configuration].update(patch_size=patch, batch_size=2)
        plans["configurations"][configuration]["architecture"]["nnunet_dtc"] = SMALL_NETWORKS
    workspace.write_plans(dataset, plans)
    workspace.run_in_one_process(commands_here(dataset, images, workspace.root))
    return workspace


@pytest.fixture(scope="module")
def installed(trained, dataset, images):
    """The exported models in an nnU-Net that has nothing else."""
    results = trained.root / "installed"
    results.mkdir()
    env = trained.environment(results=results, only_results=True)
    trained.run_in_one_process(commands_elsewhere(dataset, images, trained.root), env=env)
    return trained


def read_labels(folder):
    import SimpleITK as sitk

    return {case: sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{case}.nii.gz"))) for case in ("whole", "tiny")}


@every_run
def test_trains(trained, dataset, name):
    configuration, trainer, network = RUNS[name], trainer_name(name), network_of(name)
    for index in (0, 1):
        fold = trained.fold_folder(dataset, configuration, index, trainer)
        checkpoint = trained.read_checkpoint(fold / "checkpoint_final.pth")
        assert checkpoint["trainer_name"] == trainer
        assert checkpoint["current_epoch"] == EPOCHS
        for kind in ("train_losses", "val_losses"):
            assert len(checkpoint["logging"][kind]) == EPOCHS
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
            scans = network in ("NnMamba", "SegMamba")
            assert text.count("The selective scan is computed by PyTorch.") == scans
            assert "SGD" not in text
    assert (fold.parent / "fold_0" / "validation" / "summary.json").is_file()


@every_run
def test_goes_on_where_it_was_stopped(trained, dataset, name):
    fold = trained.fold_folder(dataset, RUNS[name], 0, trainer_name(name))
    stopped, final = (trained.read_checkpoint(fold / f"{file}.pth") for file in ("stopped", "checkpoint_final"))
    assert (stopped["current_epoch"], final["current_epoch"]) == (1, EPOCHS)
    assert stopped["optimizer_state"]["state"]
    assert final["logging"]["train_losses"][:1] == stopped["logging"]["train_losses"]
    rate, _ = ADAMW[network_of(name)]
    assert final["logging"]["lrs"] == pytest.approx([rate, rate * 0.5**0.9])  # nnU-Net's schedule
    logs = sorted(fold.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime)
    assert [re.findall(r"Epoch (\d+) *$", log.read_text(), re.MULTILINE) for log in logs] == [["0"], ["1"]]


@every_run
def test_two_folds_predict_also_what_is_smaller_than_the_patch(trained, name):
    labels = read_labels(trained.root / "folds" / name)
    assert labels["tiny"].shape == TINY
    assert len(labels["whole"]) == SLICES
    assert min(labels["whole"].shape) > max(TINY)
    assert all(set(np.unique(found)) <= {0, 1, 2} for found in labels.values())


@every_run
def test_exported_and_installed_elsewhere_it_predicts_the_same(installed, dataset, name):
    fold = f"{dataset}/{trainer_name(name)}__nnUNetPlans__{RUNS[name]}/fold_0"
    assert {file.name for file in (installed.root / "installed" / fold).iterdir()} >= {"checkpoint_final.pth"}
    here, elsewhere = (read_labels(installed.root / place / name) for place in ("here", "elsewhere"))
    for case, labels in here.items():
        np.testing.assert_array_equal(elsewhere[case], labels)
