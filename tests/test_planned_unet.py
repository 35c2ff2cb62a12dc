import math

import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualUNet
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from plans import CONFIGURATIONS, small_plans
from torch import nn

from nnunet_dtc import DTC2d, DTC3d
from nnunet_dtc.architectures import with_dtc
from nnunet_dtc.ops.dtc import is_dtc

CHANNELS, CLASSES = 3, 5


def vanilla(configuration, deep_supervision=True, seed=0):
    """As nnU-Net's own trainer builds it."""
    plans = PlansManager(small_plans())
    torch.manual_seed(seed)
    return nnUNetTrainer.build_network_architecture(
        plans, plans.get_configuration(configuration), CHANNELS, CLASSES, deep_supervision
    )


def patch(configuration, batch=1):
    size = PlansManager(small_plans()).get_configuration(configuration).patch_size
    return torch.randn(batch, CHANNELS, *size, generator=torch.Generator().manual_seed(1))


def blocks(network):
    return {name: module for name, module in network.named_modules() if is_dtc(module)}


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_every_planned_upsampling_has_a_block_with_its_stride(configuration):
    plain = vanilla(configuration)
    network = with_dtc(vanilla(configuration), 4)
    kind = DTC2d if configuration.startswith("2d") else DTC3d
    found = list(blocks(network).values())
    assert [type(block) for block in found] == [kind] * len(plain.decoder.transpconvs)
    assert [block.stride for block in found] == [conv.stride for conv in plain.decoder.transpconvs]
    assert all(block.receptive_field == 4 for block in found)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_vanilla_weights_of_a_seed_stay_and_only_blocks_are_added(configuration):
    plain, network = vanilla(configuration), with_dtc(vanilla(configuration))
    state = network.state_dict()
    new = {key for key in state if ".value." in key or ".coords." in key}
    kept = {key.replace(".base.", ".") if "transpconvs" in key else key: state[key] for key in state if key not in new}
    expected = plain.state_dict()
    assert list(kept) == list(expected)  # the order, too
    assert all(torch.equal(kept[key], expected[key]) for key in expected)
    added = sum(p.numel() for b in blocks(network).values() for part in (b.value, b.coords) for p in part.parameters())
    assert sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in plain.parameters()) == added


@pytest.mark.parametrize("configuration", ["2d", "3d_residual"])
def test_coords_survive_nnunets_initialisation_and_the_value_has_it(configuration):
    for block in blocks(with_dtc(vanilla(configuration))).values():
        assert 0.0003 < block.coords.weight.std() < 0.003
        assert not block.coords.bias.any()
        gain = math.sqrt(2 / (1 + 0.01**2))
        assert block.value.weight.std().item() == pytest.approx(gain / math.sqrt(block.in_channels), rel=0.35)
        assert not block.value.bias.any()


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_without_branches_it_is_the_vanilla_network(configuration):
    plain, network = vanilla(configuration), with_dtc(vanilla(configuration))
    x = patch(configuration)
    assert not all(torch.equal(one, other) for one, other in zip(plain(x), network(x), strict=True))
    with torch.no_grad():
        for block in blocks(network).values():
            block.value.weight.zero_()
    for one, other in zip(plain(x), network(x), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_deep_supervision_on_and_off(configuration):
    on, off = (with_dtc(vanilla(configuration, supervised)) for supervised in (True, False))
    assert list(on.state_dict()) == list(off.state_dict())
    on.load_state_dict(off.state_dict())
    x = patch(configuration)
    supervised, alone = on(x), off(x)
    assert len(supervised) == len(on.decoder.transpconvs)
    assert alone.shape == (1, CLASSES, *x.shape[2:])
    assert torch.equal(supervised[0], alone)
    assert on.decoder.deep_supervision is True
    on.decoder.deep_supervision = False  # as nnU-Net switches it for prediction
    assert torch.equal(on(x), alone)


@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_feature_map_size_counts_what_hooks_see(configuration, deep_supervision):
    plain, network = vanilla(configuration, deep_supervision), with_dtc(vanilla(configuration, deep_supervision))
    seen = []
    for block in blocks(network).values():
        for part in (block.value, block.coords, block):  # the samples have the size of the block's result
            part.register_forward_hook(lambda module, args, result: seen.append(result.numel()))
    x = patch(configuration)
    network(x)
    assert len(seen) == 3 * len(blocks(network))
    difference = network.compute_conv_feature_map_size(x.shape[2:]) - plain.compute_conv_feature_map_size(x.shape[2:])
    assert difference == sum(seen)


def test_feature_map_size_of_a_plain_network_is_the_sum_of_all_its_convolutions():
    """The vanilla share too: together they are what a hook on every convolution and block sees."""
    network = with_dtc(vanilla("3d_fullres"))
    seen = []
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) or is_dtc(module):
            module.register_forward_hook(lambda module, args, result: seen.append(result.numel()))
    x = patch("3d_fullres")
    network(x)
    assert network.compute_conv_feature_map_size(x.shape[2:]) == sum(seen)


def test_trains_under_torch_compile_as_one_graph():
    torch.compiler.reset()
    network = with_dtc(vanilla("3d_fullres"))
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    x = patch("3d_fullres", batch=2)
    for one, other in zip(compiled(x), network(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    sum(out.square().mean() for out in compiled(x)).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_other_decoders_are_refused_by_name():
    network = ResidualUNet(1, 2, [4, 8], nn.Conv3d, 3, [1, 2], 1, 2, 1, True, nn.InstanceNorm3d, nonlin=nn.ReLU)
    before = list(network.state_dict())
    with pytest.raises(TypeError, match=r"UNetDecoder .* got ResidualUNet with UNetResDecoder"):
        with_dtc(network)
    assert list(network.state_dict()) == before
    with pytest.raises(TypeError, match="got Linear with no decoder"):
        with_dtc(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="got PlainConvUNet with PlannedDecoder"):
        with_dtc(with_dtc(vanilla("2d")))
