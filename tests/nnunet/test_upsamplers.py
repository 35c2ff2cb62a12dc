"""Every upsampler and the 2D U-Net train and predict through nnU-Net's commands, in 2D and 3D with an uneven stride."""

import numpy as np
import pytest

pytestmark = pytest.mark.nnunet

RUNS = {
    "2d": ["Linear", "DySampleDTC", "CARAFE", "FADEDTC_RF10", "SAPA", "UNetDTC", "UNetLinear", "UNetFADEDTC_paper2d"],
    "3d_fullres": ["LinearDTC", "DySample", "CARAFEDTC", "FADE", "SAPADTC_RF4"],
}


def trainer_name(name):
    return f"nnUNetTrainer{name}_1epochs"


@pytest.fixture(scope="module")
def trained(workspace, dataset):
    """All of them, trained for an epoch of a few iterations, and their predictions."""
    plans = workspace.read_plans(dataset)
    plans["configurations"]["2d"]["architecture"]["nnunet_dtc"] = {"UNet": {"width": 8}}
    workspace.write_plans(dataset, plans)

    commands = []
    for configuration, names in RUNS.items():
        for name in names:
            of = f"-tr {trainer_name(name)} -device cpu"
            commands.append(f"nnUNetv2_train {dataset} {configuration} 0 {of}")
            predict = f"nnUNetv2_predict -i {workspace.images_held_out} -o {workspace.root / 'out' / name} -d {dataset}"
            checkpoint = f"-chk checkpoint_{'best_validation' if 'paper2d' in name else 'final'}.pth"
            quickly = "--disable_tta --disable_progress_bar -npp 0 -nps 0"
            commands.append(f"{predict} -c {configuration} -f 0 {of} {checkpoint} {quickly}")
    workspace.run_in_one_process(commands)
    return workspace


@pytest.mark.parametrize(("configuration", "name"), [(c, name) for c, names in RUNS.items() for name in names])
def test_trains_and_predicts(trained, dataset, configuration, name):
    trainer = trainer_name(name)
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
    assert (fold / "validation" / "summary.json").is_file()
    assert (fold / "coordinates.csv").is_file() == ("DTC" in name)
    for labels in trained.read_predictions(trained.root / "out" / name).values():
        assert set(np.unique(labels)) <= {0, 1, 2}


def test_the_papers_recipe_has_its_own_checkpoint(trained, dataset):
    trainer = trainer_name("UNetFADEDTC_paper2d")
    fold = trained.fold_folder(dataset, "2d", 0, trainer)
    checkpoint = trained.read_checkpoint(fold / "checkpoint_best_validation.pth")
    dices = checkpoint["logging"]["mean_fg_dice"]
    assert checkpoint["current_epoch"] == len(dices)
    assert dices[-1] == max(dices)
    assert checkpoint["inference_allowed_mirroring_axes"] is None
    assert checkpoint["optimizer_state"]["param_groups"][0]["lr"] == 1e-4
