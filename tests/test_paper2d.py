"""The paper's 2D recipe as a suffix: what it changes of nnU-Net's training, and that best epoch's checkpoint."""

import inspect

import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from plans import DATASET, small_plans

from nnunet_dtc import trainers
from nnunet_dtc.dtc import is_dtc
from nnunet_dtc.trainers.paper2d import BEST_CHECKPOINT

NAMES = ["nnUNetTrainer_paper2d", "nnUNetTrainerDTC_RF10_paper2d", "nnUNetTrainerUNetLinearDTC_paper2d"]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A trainer as nnU-Net makes it, with its results in a temporary folder."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)

    def make(name):
        content = small_plans() | {"continue_training": False}
        content["configurations"]["2d"]["architecture"]["nnunet_dtc"] = {"UNet": {"width": 4}}
        trainer = getattr(trainers, name)(content, "2d", 0, DATASET, torch.device("cpu"))
        trainer.network = trainer.build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, 1, 3, trainer.enable_deep_supervision
        )
        return trainer

    return make


@pytest.mark.parametrize("name", NAMES)
def test_ten_thousand_iterations_of_adamw_at_a_constant_rate(name, make):
    trainer = make(name)
    assert trainer.num_epochs * trainer.num_iterations_per_epoch == 10_000
    assert trainer.save_every == 2
    trainer.optimizer, scheduler = trainer.configure_optimizers()
    assert type(trainer.optimizer) is torch.optim.AdamW
    assert not trainer.optimizer.defaults["amsgrad"]
    for epoch in (0, 20, 39):
        scheduler.step(epoch)
        for group in trainer.optimizer.param_groups:
            assert (group["lr"], group["weight_decay"]) == (1e-4, 1e-5)
    given = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert given == len(list(trainer.network.parameters()))
    assert any(map(is_dtc, trainer.network.modules())) == ("DTC" in name)


@pytest.mark.parametrize("name", NAMES)
def test_no_augmentation_and_no_mirroring(name, make):
    trainer = make(name)
    for hook in ("get_training_transforms", "configure_rotation_dummyDA_mirroring_and_inital_patch_size"):
        assert inspect.getattr_static(type(trainer), hook) is vars(nnUNetTrainerNoDA)[hook]
    _, dummy_2d, size, mirrored = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert (list(size), mirrored, trainer.inference_allowed_mirroring_axes) == ([16, 24], None, None)
    transforms = trainer.get_training_transforms(size, (0, 0), None, mirrored, dummy_2d)
    assert isinstance(transforms, ComposeTransforms)
    image = torch.randn(1, 16, 24)
    labels = torch.randint(0, 3, (1, 16, 24))
    changed = transforms(image=image.clone(), segmentation=labels.clone())
    assert torch.equal(changed["image"], image)
    assert torch.equal(changed["segmentation"], labels)


def test_another_number_of_epochs(make):
    assert make("nnUNetTrainerUNet_paper2d_3epochs").num_epochs == 3
    assert make("nnUNetTrainerUNet_paper2d_1000epochs").num_epochs == 1000


def test_the_best_epoch_is_kept_also_after_a_resume(make, tmp_path):
    """Dice per epoch 0.5, nothing, 0.25, 0.75, 0.625, 0.75: kept are epochs 0 and 3."""
    trainer = make("nnUNetTrainerUNetLinear_paper2d_7epochs")
    kept = []

    def save(file):
        if str(file).endswith(BEST_CHECKPOINT):
            kept.append(trainer.current_epoch)

    def run(dice):
        for key in ("train_losses", "val_losses", "lrs", "epoch_start_timestamps"):
            trainer.logger.log(key, 1.0, trainer.current_epoch)
        trainer.logger.log("dice_per_class_or_region", [dice], trainer.current_epoch)
        trainer.logger.log("mean_fg_dice", dice, trainer.current_epoch)
        trainer.on_epoch_end()

    trainer.save_checkpoint, trainer.local_rank = save, 1  # no picture of the progress
    for dice in (0.5, float("nan"), 0.25, 0.75):
        run(dice)
    assert kept == [0, 3]
    logged = trainer.logger.get_checkpoint()
    trainer = make("nnUNetTrainerUNetLinear_paper2d_7epochs")
    trainer.save_checkpoint, trainer.local_rank = save, 1
    trainer.logger.load_checkpoint(logged)
    trainer.current_epoch = 4
    for dice in (0.625, 0.75):
        run(dice)
    assert kept == [0, 3]


def test_the_checkpoint_is_one_of_nnunets(make):
    """With everything that a prediction by -chk needs."""
    trainer = make("nnUNetTrainerUNetDTC_paper2d")
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    for key in ("train_losses", "val_losses", "lrs", "epoch_start_timestamps"):
        trainer.logger.log(key, 1.0, 0)
    trainer.logger.log("dice_per_class_or_region", [0.5], 0)
    trainer.logger.log("mean_fg_dice", 0.5, 0)
    trainer.logger.plot_progress_png = lambda folder: None
    trainer.on_epoch_end()
    (file,) = (path for path in trainer_files(trainer) if path.name == BEST_CHECKPOINT)
    checkpoint = torch.load(file, weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainerUNetDTC_paper2d"
    assert checkpoint["current_epoch"] == 1
    assert checkpoint["inference_allowed_mirroring_axes"] is None
    network = type(trainer).build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 3)
    network.load_state_dict(checkpoint["network_weights"])


def trainer_files(trainer):
    from pathlib import Path

    return Path(trainer.output_folder).glob("checkpoint_*.pth")
