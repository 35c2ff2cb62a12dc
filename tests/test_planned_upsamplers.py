"""Every upsampler in the U-Net that nnU-Net has planned, alone and under DTC."""

import math

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from plans import small_plans
from torch import nn

from nnunet_dtc import trainers
from nnunet_dtc.architectures import with_dtc, with_upsampler, with_upsampling
from nnunet_dtc.ops.dtc import is_dtc
from nnunet_dtc.upsamplers import UPSAMPLERS, Upsampler

CONFIGURATIONS = ["2d", "3d_fullres", "3d_residual"]
CHANNELS, CLASSES = 3, 5


def plans_of(configuration):
    plans = PlansManager(small_plans())
    return plans, plans.get_configuration(configuration)


def vanilla(configuration, deep_supervision=True, seed=0):
    """As nnU-Net's own trainer builds it."""
    torch.manual_seed(seed)
    return nnUNetTrainer.build_network_architecture(*plans_of(configuration), CHANNELS, CLASSES, deep_supervision)


def patch(configuration, batch=1):
    size = plans_of(configuration)[1].patch_size
    return torch.randn(batch, CHANNELS, *size, generator=torch.Generator().manual_seed(1))


def built(name, configuration, deep_supervision=True):
    """By the trainer of a name, as nnU-Net does."""
    torch.manual_seed(0)
    trainer = getattr(trainers, name)
    return trainer.build_network_architecture(*plans_of(configuration), CHANNELS, CLASSES, deep_supervision)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("dtc", ["", "DTC_RF4"])
@pytest.mark.parametrize("name", UPSAMPLERS)
def test_a_network_of_every_upsampler(name, dtc, configuration):
    plain, network = vanilla(configuration), built(f"nnUNetTrainer{name}{dtc}", configuration)
    planned = plain.decoder.transpconvs
    bases = list(network.decoder.transpconvs)
    if dtc:
        assert all(is_dtc(block) and block.receptive_field == 4 for block in bases)
        bases = [block.base for block in bases]
    assert {type(base) for base in bases} == {UPSAMPLERS[name][len(planned[0].stride)]}
    for base, conv in zip(bases, planned, strict=True):
        assert (base.in_channels, base.out_channels, base.stride) == (conv.in_channels, conv.out_channels, conv.stride)
    # everything else is the vanilla network's, with its weights of the seed
    state, expected = network.state_dict(), plain.state_dict()
    kept = {key for key in expected if ".transpconvs." not in key}
    assert kept == {key for key in state if ".transpconvs." not in key}
    assert all(torch.equal(state[key], expected[key]) for key in kept)

    x = patch(configuration)
    results = network(x)
    assert [result.shape for result in results] == [result.shape for result in plain(x)]
    sum(result.square().mean() for result in results).backward()
    for key, parameter in network.decoder.transpconvs.named_parameters():
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("configuration", ["2d", "3d_residual"])
@pytest.mark.parametrize("name", ["LinearDTC", "FADE"])
def test_deep_supervision_on_and_off(name, configuration):
    on, off = (built(f"nnUNetTrainer{name}", configuration, supervised) for supervised in (True, False))
    assert list(on.state_dict()) == list(off.state_dict())
    on.load_state_dict(off.state_dict())
    x = patch(configuration)
    supervised, alone = on(x), off(x)
    assert len(supervised) == len(on.decoder.transpconvs)
    assert torch.equal(supervised[0], alone)
    on.decoder.deep_supervision = False  # as nnU-Net switches it for prediction
    assert torch.equal(on(x), alone)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_the_decoder_with_the_planned_upsamplings_is_the_vanilla_one(configuration, deep_supervision):
    """Bit for bit: the forward pass of the decoder is ours."""
    plain = vanilla(configuration, deep_supervision)
    network = with_upsampling(vanilla(configuration, deep_supervision), lambda planned: planned)
    assert list(network.state_dict()) == list(plain.state_dict())
    x = patch(configuration)
    results = [out if deep_supervision else [out] for out in (plain(x), network(x))]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


class Probe(nn.Module):
    """Takes what the decoder gives an upsampler that wants the skip."""

    needs_skip = True

    def __init__(self, planned):
        super().__init__()
        self.planned, self.seen = planned, None

    def forward(self, x, skip):
        self.seen = skip
        return self.planned(x)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_the_skip_is_the_encoders_of_the_results_size(configuration):
    network = with_upsampling(vanilla(configuration), Probe)
    x = patch(configuration)
    network(x)
    skips = network.encoder(x)
    for probe, skip in zip(network.decoder.transpconvs, skips[-2::-1], strict=True):
        assert torch.equal(probe.seen, skip)


def test_the_projection_has_the_networks_initialisation_and_the_rest_its_own():
    for base in with_upsampler(vanilla("3d_fullres"), "DySample").decoder.transpconvs:
        gain = math.sqrt(2 / (1 + 0.01**2))
        assert base.project.weight.std().item() == pytest.approx(gain / math.sqrt(base.in_channels), rel=0.35)
        assert not base.project.bias.any()
        assert 0.0003 < base.offset.weight.std() < 0.003


CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("dtc", [False, True])
@pytest.mark.parametrize("name", ["Linear", "DySample", "CARAFE"])
def test_feature_map_size_is_that_of_every_convolution_and_upsampling(name, dtc, configuration):
    network = vanilla(configuration)
    network = with_dtc(network, upsampler=name) if dtc else with_upsampler(network, name)
    parts = {part for part in network.modules() if isinstance(part, (*CONVOLUTIONS, Upsampler))}
    for block in filter(is_dtc, network.modules()):
        parts |= {block, block.coords, block.value}
    seen = []
    for part in parts:
        part.register_forward_hook(lambda module, args, result: seen.append(result.numel()))
    x = patch(configuration)
    network(x)
    assert network.compute_conv_feature_map_size(x.shape[2:]) == sum(seen)


def test_one_graph_for_torch_compile():
    torch.compiler.reset()
    network = with_dtc(vanilla("2d"), upsampler="FADE")
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    x = patch("2d", batch=2)
    for one, other in zip(compiled(x), network(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_unknown_upsamplers_are_refused():
    with pytest.raises(ValueError, match="an upsampler is one of Linear, DySample, CARAFE, FADE, SAPA, got 'Nearest'"):
        with_upsampler(vanilla("2d"), "Nearest")
