"""Patches and batches that a network cannot be trained with are refused in one sentence, before the first step."""

import pytest
import torch
from plans import DATASET, SMALL_NETWORKS, small_plans
from torch import nn

from nnunet_dtc import trainers
from nnunet_dtc.architectures import NETWORKS, UNet, build_network
from nnunet_dtc.architectures.nnmamba import NnMamba
from nnunet_dtc.architectures.patch_size import PatchSizeError, check_planned
from nnunet_dtc.architectures.segmamba import SegMamba

PLANNED = ["nnUNetTrainerDTC", "nnUNetTrainerLinear", "nnUNetTrainerFADEDTC_RF10", "nnUNetTrainer_7epochs"]
PADDED = ["UNet", *NETWORKS]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A trainer of plans with another patch and batch size."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)

    def make(name, configuration, patch_size, batch_size=2, norm=None):
        plans = small_plans() | {"continue_training": False}
        changed = plans["configurations"][configuration]
        changed |= {"patch_size": list(patch_size), "batch_size": batch_size}
        changed["architecture"]["nnunet_dtc"] = SMALL_NETWORKS | {"UNet": {"width": 4}}
        if norm is not None:
            changed["architecture"]["arch_kwargs"]["norm_op"] = norm
        return getattr(trainers, name)(plans, configuration, 0, DATASET, torch.device("cpu"))

    return make


def build(trainer):
    return trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 3, False)


UNEVEN = [
    ("2d", (16, 22), r"strides of the planned network, 2 x 4, got 16 x 22 \(axis 1: 22 is not divisible by 4\)"),
    ("3d_fullres", (5, 16, 20), r"2 x 8 x 4, got 5 x 16 x 20 \(axis 0: 5 is not divisible by 2\)"),
    ("3d_residual", (7, 12, 24), r"\(axis 0: 7 is not divisible by 2; axis 1: 12 is not divisible by 8\)"),
]


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize(("configuration", "patch_size", "message"), UNEVEN)
def test_the_planned_strides_must_divide_the_patch_at_the_start_of_a_training(
    name, configuration, patch_size, message, make
):
    trainer = make(name, configuration, patch_size)
    with pytest.raises(PatchSizeError, match=message):
        trainer.initialize()
    assert trainer.network is None


@pytest.mark.parametrize(("configuration", "patch_size", "message"), UNEVEN)
def test_and_where_a_network_is_built_for_prediction(configuration, patch_size, message, make):
    with pytest.raises(PatchSizeError, match=message):
        build(make("nnUNetTrainerDTC", configuration, patch_size))


@pytest.mark.parametrize("name", ["nnUNetTrainerDTC", "nnUNetTrainerSAPA"])
@pytest.mark.parametrize(("configuration", "patch_size", "message"), UNEVEN)
def test_and_where_a_network_is_given_another_size(name, configuration, patch_size, message, make):
    even = [max(16, -(-size // 8) * 8) for size in patch_size]
    network = build(make(name, configuration, even))
    network(torch.zeros(1, 1, *even))
    with pytest.raises(PatchSizeError, match="the patch must be divisible by the strides"):
        network(torch.zeros(1, 1, *patch_size))


def test_the_rule_refuses_exactly_what_the_planned_network_cannot_compute(make):
    """Against torch itself: sizes from 4 to 16 in the vanilla network."""
    network = build(make("nnUNetTrainer_7epochs", "2d", (16, 16)))
    arguments = small_plans()["configurations"]["2d"]["architecture"]["arch_kwargs"]
    outcomes = set()
    for size in [(height, width) for height in range(3, 9) for width in range(4, 14)]:
        try:
            network(torch.zeros(1, 1, *size))
            computed = True
        except RuntimeError:  # torch's: sizes of tensors must match
            computed = False
        try:
            check_planned(size, arguments)
            accepted = True
        except PatchSizeError:
            accepted = False
        assert accepted == computed, size
        outcomes.add(computed)
    assert outcomes == {True, False}


@pytest.mark.parametrize("name", PADDED)
@pytest.mark.parametrize("size", [(17, 40), (7, 33, 18)], ids=["2d", "3d"])
def test_networks_that_pad_take_every_patch(name, size, make):
    if name == "UNet" and len(size) == 3:
        pytest.skip("the paper's U-Net is for images")
    trainer = make(f"nnUNetTrainer{name}DTC", "2d" if len(size) == 2 else "3d_fullres", size)
    trainer.check_patch(trainer.configuration_manager)
    assert build(trainer)(torch.zeros(2, 1, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("network", [NnMamba(1, 2, 2, width=4, blocks=2), SegMamba(1, 2, 2, widths=(4,) * 4)], ids=str)
def test_networks_without_their_padding_say_what_they_take(network):
    with pytest.raises(PatchSizeError, match=r"nMamba|SegMamba, 16 x 16, got 32 x 40 \(axis 1: 40 is not divisible"):
        network(torch.zeros(2, 1, 32, 40))


def test_a_larger_input_than_unetr_is_built_for_is_refused():
    network = build_network("UNETR", 1, 2, (20, 30), SMALL_NETWORKS["UNETR"])
    with pytest.raises(PatchSizeError, match=r"an input of at most \(32, 32\) voxels .* got \(33, 30\)"):
        network(torch.zeros(1, 1, 33, 30))


MORE_THAN_16 = "a batch size of 2 or a patch of more than 16 voxels along one axis"
BATCH_NORM = "torch.nn.modules.batchnorm.BatchNorm2d"


@pytest.mark.parametrize(
    ("name", "configuration", "patch_size", "norm", "remedy"),
    [
        ("NnMamba", "3d_fullres", (16, 16, 16), None, MORE_THAN_16),
        ("NnMambaDTC_RF1", "2d", (9, 16), None, MORE_THAN_16),
        ("UNetLinearDTC", "2d", (16, 5), None, MORE_THAN_16),
        ("DTC", "2d", (2, 4), BATCH_NORM, "a batch size of 2 or a patch of twice as many voxels along one axis"),
    ],
)
def test_one_voxel_and_one_case_in_batch_normalisation(name, configuration, patch_size, norm, remedy, make):
    trainer = make(f"nnUNetTrainer{name}", configuration, patch_size, batch_size=1, norm=norm)
    with pytest.raises(PatchSizeError, match=f"one voxel left in its deepest map, and with a batch of one .*{remedy}"):
        trainer.initialize()
    assert trainer.network is None
    # torch's own word for it, and what the message promises
    network = build(trainer)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d)]
    assert norms
    x = torch.zeros(1, 1, *patch_size)
    with pytest.raises(ValueError, match=r"Expected more than 1 value per channel|one voxel left in its deepest map"):
        network.train()(x)
    assert network.eval()(x).isfinite().all()  # a prediction takes it
    network.train()(torch.cat([x, x]))
    wider = torch.zeros(1, 1, *patch_size[:-1], 2 * patch_size[-1] + 16 * (norm is None))
    network.train()(wider)
    two = make(f"nnUNetTrainer{name}", configuration, patch_size, batch_size=2, norm=norm)
    two.check_patch(two.configuration_manager)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(
    ("name", "configuration", "patch_size"),
    [
        ("DTC", "3d_fullres", (2, 8, 4)),
        ("CARAFE", "2d", (2, 4)),
        ("_7epochs", "3d_residual", (2, 8, 4)),
        ("SegMamba", "3d_fullres", (16, 9, 16)),
        ("SwinUNETRV2DTC", "2d", (32, 32)),
    ],
)
def test_one_voxel_in_instance_normalisation(name, configuration, patch_size, batch_size, make):
    trainer = make(f"nnUNetTrainer{name}", configuration, patch_size, batch_size)
    with pytest.raises(
        PatchSizeError, match="one voxel left in its deepest map, which cannot be normalised; a patch of"
    ):
        trainer.initialize()
    if name != "_7epochs":  # nnU-Net's own class builds anything
        with pytest.raises(PatchSizeError, match="cannot be normalised"):
            build(trainer)


@pytest.mark.parametrize("name", ["SegMamba", "SwinUNETRV2"])
def test_a_smaller_input_than_the_patch_in_instance_normalisation(name):
    network = build_network(name, 1, 2, (40, 40), SMALL_NETWORKS[name]).eval()
    with pytest.raises(PatchSizeError, match=rf"{name} with patch_size=\(9, 12\) has one voxel left"):
        network(torch.zeros(2, 1, 9, 12))


def test_unet_and_nnmamba_outside_of_a_trainer():
    for network in (UNet(1, 2, width=4), build_network("NnMamba", 1, 2, (16, 16), SMALL_NETWORKS["NnMamba"])):
        with pytest.raises(PatchSizeError, match="a batch size of 2 or a patch of more than 16 voxels"):
            network(torch.zeros(1, 1, 16, 13))
        network(torch.zeros(2, 1, 16, 13))
        network(torch.zeros(1, 1, 17, 13))
        network.eval()(torch.zeros(1, 1, 16, 13))
