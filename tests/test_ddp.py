"""DTC networks under torch's DistributedDataParallel with nnU-Net's loss, in two processes on the CPU."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

STRIDES = [[1, 1, 1], [2, 2, 2], [1, 2, 2]]
PATCH = (8, 16, 8)
WORLD = 2
SEED, ITERATIONS = 7, 2
RECEPTIVE_FIELDS = (2.0, 0.0, float("inf"))
TIMEOUT_S = 300


def build_network(receptive_field):
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    from nnunet_dtc.architectures import with_dtc

    network = get_network_from_plans(
        "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        {
            "n_stages": len(STRIDES),
            "features_per_stage": [4, 6, 8],
            "conv_op": "torch.nn.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * len(STRIDES),
            "strides": STRIDES,
            "n_conv_per_stage": [1] * len(STRIDES),
            "n_conv_per_stage_decoder": [1] * (len(STRIDES) - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        ["conv_op", "norm_op", "dropout_op", "nonlin"],
        1,
        3,
        allow_init=True,
        deep_supervision=True,
    )
    return with_dtc(network, receptive_field)


def build_loss():
    """As nnU-Net's trainer builds it under DDP without torch.compile: the last weight is tiny instead of zero."""
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    loss = DC_and_CE_loss(
        {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": True},
        {},
        weight_ce=1,
        weight_dice=1,
        ignore_label=None,
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    weights = np.array([1 / 2**index for index in range(len(STRIDES) - 1)])
    weights[-1] = 1e-6
    return DeepSupervisionWrapper(loss, weights / weights.sum())


def make_batch(rank, iteration):
    """(2, 1, D, H, W) and the labels (2, 1, D, H, W) at both resolutions; other data on every rank."""
    generator = torch.Generator().manual_seed(100 * rank + iteration)
    data = torch.randn(2, 1, *PATCH, generator=generator)
    labels = torch.randint(0, 3, (2, 1, *PATCH), generator=generator)
    return data, [labels, labels[:, :, ::2, ::2, ::2]]


def train(rank, folder):
    """One rank: for each receptive field two iterations, the gradients of the last one into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    for receptive_field in RECEPTIVE_FIELDS:
        torch.manual_seed(SEED)
        network = DistributedDataParallel(build_network(receptive_field), find_unused_parameters=False)
        optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)
        loss = build_loss()
        for iteration in range(ITERATIONS):  # DDP complains about unused parameters in the second one
            optimizer.zero_grad(set_to_none=True)
            data, target = make_batch(rank, iteration)
            value = loss(network(data), target)
            assert value.isfinite()
            value.backward()
            if iteration < ITERATIONS - 1:
                optimizer.step()
        gradients = {name: parameter.grad for name, parameter in network.module.named_parameters()}
        torch.save(gradients, folder / f"gradients_{receptive_field:g}_{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """Receptive field to the gradients of each rank, by the names of the parameters."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo backend")
    folder = tmp_path_factory.mktemp("ddp")
    logs = [folder / f"rank_{rank}.txt" for rank in range(WORLD)]
    ranks = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as output:
                command = [sys.executable, __file__, str(rank), str(folder)]
                ranks.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))
        codes = [process.wait(timeout=TIMEOUT_S) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert codes == [0] * WORLD, "\n".join(log.read_text()[-4000:] for log in logs)
    return {
        receptive_field: [torch.load(folder / f"gradients_{receptive_field:g}_{rank}.pth") for rank in range(WORLD)]
        for receptive_field in RECEPTIVE_FIELDS
    }


@pytest.mark.parametrize("receptive_field", RECEPTIVE_FIELDS)
def test_every_parameter_takes_part(gradients, receptive_field):
    for ours in gradients[receptive_field]:
        assert [name for name, gradient in ours.items() if gradient is None] == []
        assert all(gradient.isfinite().all() for gradient in ours.values())
        assert sum(".coords." in name for name in ours) == 2 * (len(STRIDES) - 1)
        assert all(gradient.any() for name, gradient in ours.items() if ".value." in name or ".base." in name)


@pytest.mark.parametrize("receptive_field", RECEPTIVE_FIELDS)
def test_the_ranks_agree(gradients, receptive_field):
    first, second = gradients[receptive_field]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("receptive_field", RECEPTIVE_FIELDS)
def test_coordinates_move_unless_the_receptive_field_is_zero(gradients, receptive_field):
    coords = {name: gradient for name, gradient in gradients[receptive_field][0].items() if ".coords." in name}
    assert all(gradient.any().item() is (receptive_field != 0) for gradient in coords.values())


if __name__ == "__main__":
    train(int(sys.argv[1]), Path(sys.argv[2]))
