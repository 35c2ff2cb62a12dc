"""The paper's 2D recipe as a suffix: what it changes of nnU-Net's training, and that best epoch's checkpoint."""

import inspect
from pathlib import Path

import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from plans import DATASET, small_plans

from nnunet_dtc import trainers
from nnunet_dtc.ops.dtc import is_dtc
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


def begin(make, latest=None, started=1000.0):
    """A training at its first epoch, or resumed from a checkpoint as nnU-Net resumes it."""
    trainer = make("nnUNetTrainerUNetLinear_paper2d")  # saved every second epoch
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.was_initialized = True
    trainer.logger.plot_progress_png = lambda folder: None
    trainer.started = started
    if latest is not None:
        trainer.load_checkpoint(str(latest))
    return trainer


def run(trainer, *dices):
    """Epochs of these Dice. The weights are set to the epoch's number, so that a checkpoint tells where it is from."""
    for dice in dices:
        epoch = trainer.current_epoch
        with torch.no_grad():
            for parameter in trainer.network.parameters():
                parameter.fill_(epoch)
        for key, value in {
            "epoch_start_timestamps": trainer.started + epoch,
            "train_losses": 1.0,
            "val_losses": 1.0,
            "lrs": 1.0,
            "dice_per_class_or_region": [dice],
            "mean_fg_dice": dice,
        }.items():
            trainer.logger.log(key, value, epoch)
        trainer.on_epoch_end()


def kept(trainer):
    """The epoch that the checkpoint is from, by its own word and by its weights."""
    checkpoint = torch.load(Path(trainer.output_folder) / BEST_CHECKPOINT, weights_only=False)
    epoch = checkpoint["current_epoch"] - 1
    assert all((checkpoint["network_weights"][name] == epoch).all() for name, _ in trainer.network.named_parameters())
    return epoch


def latest_of(trainer):
    return Path(trainer.output_folder) / "checkpoint_latest.pth"


def test_the_best_epoch_is_kept(make):
    """Nothing has foreground: NaN, which is no best. As good as before is not better."""
    trainer = begin(make)
    for dice, best in ((0.5, 0), (float("nan"), 0), (0.25, 0), (0.75, 3), (0.625, 3), (0.75, 3)):
        run(trainer, dice)
        assert kept(trainer) == best


def test_no_foreground_at_first(make):
    trainer = begin(make)
    run(trainer, float("nan"))
    assert not (Path(trainer.output_folder) / BEST_CHECKPOINT).exists()
    run(trainer, 0.0)
    assert kept(trainer) == 1


def test_a_resumed_training_does_not_replace_a_better_epoch(make):
    """0.5, 0.4, saved, 0.9, killed: epoch 2 comes once more, and the log knows nothing of its 0.9."""
    trainer = begin(make)
    run(trainer, 0.5, 0.4, 0.9)
    assert kept(trainer) == 2
    killed = (Path(trainer.output_folder) / BEST_CHECKPOINT).read_bytes()
    resumed = begin(make, latest_of(trainer))
    assert resumed.current_epoch == 2
    resumed.started += 500
    run(resumed, 0.85)
    assert (Path(trainer.output_folder) / BEST_CHECKPOINT).read_bytes() == killed
    run(resumed, 0.95)
    assert kept(resumed) == 3
    again = begin(make, latest_of(trainer))
    assert again.current_epoch == 4
    run(again, 0.92, 0.96)
    assert kept(again) == 5


def test_a_new_training_in_the_same_folder_keeps_its_own_best(make):
    """Also where its first epochs have no Dice and it is resumed before its first best."""
    run(begin(make), 0.5, 0.4, 0.9)
    trainer = begin(make, started=2000.0)
    run(trainer, float("nan"), float("nan"))
    assert kept(trainer) == 2  # still the old one
    trainer = begin(make, latest_of(trainer), started=2000.0)
    run(trainer, float("nan"), 0.3)
    assert kept(trainer) == 3
    run(begin(make, started=3000.0), 0.2)
    assert kept(trainer) == 0


def test_a_kill_while_it_is_written_leaves_the_one_before(make, monkeypatch):
    trainer = begin(make)
    run(trainer, 0.5)

    def killed(checkpoint, file):
        Path(file).write_bytes(b"half a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(trainer, 0.6)
    assert kept(trainer) == 0


@pytest.mark.parametrize(("attribute", "value"), [("local_rank", 1), ("disable_checkpointing", True)])
def test_only_the_process_that_writes_checkpoints_keeps_one(make, attribute, value):
    trainer = begin(make)
    setattr(trainer, attribute, value)
    run(trainer, 0.5)
    assert list(trainer_files(trainer)) == []


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
    return Path(trainer.output_folder).glob("checkpoint_*.pth")
