"""The paper's 2D U-Net: table 7's parameters, and its trainers."""

import math

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from plans import small_plans
from torch import nn

from nnunet_dtc import DTC2d, trainers
from nnunet_dtc.architectures import UNet
from nnunet_dtc.ops.dtc import is_dtc
from nnunet_dtc.upsamplers import UPSAMPLERS

MIB = 2**20


def count(*arguments):
    return sum(parameter.numel() for parameter in UNet(3, 1, *arguments).parameters())


def test_table_7():
    """Its columns are MiB of float32; the two that differ by 0.1 and 0.01 are said in docs/upsamplers.md."""
    plain = count("Linear")
    assert plain == 17_262_977
    assert count("DySample") - plain == 30_848
    assert count("FADE") - plain == 181_800
    assert count("Linear", 2.0) - plain == 364_496
    mib = {name: round(4 * count(*arguments) / MIB, 2) for name, arguments in (
        ("plain", ("Linear",)), ("DySample", ("DySample",)), ("FADE", ("FADE",)), ("DTC", ("Linear", 10.0)),
    )}  # fmt: skip
    assert mib == {"plain": 65.85, "DySample": 65.97, "FADE": 66.55, "DTC": 67.24}


def test_with_transposed_convolutions_nothing_is_halved():
    network = UNet(3, 1)
    assert [(up.in_channels, up.out_channels) for up in network.upsamplings] == [
        (1024, 512), (512, 256), (256, 128), (128, 64)
    ]  # fmt: skip
    assert count() == 31_037_633


def test_the_upsampler_stands_where_the_bilinear_interpolation_was():
    linear, other = UNet(3, 2, "Linear", width=8), UNet(3, 2, "CARAFE", width=8)
    names = set(linear.state_dict())
    assert names == {name for name in other.state_dict() if not name.startswith("upsamplings.")}
    assert all(linear.state_dict()[name].shape == other.state_dict()[name].shape for name in names)


@pytest.mark.parametrize("receptive_field", [None, 4])
@pytest.mark.parametrize("upsampler", [None, *UPSAMPLERS])
def test_every_upsampling(upsampler, receptive_field):
    torch.manual_seed(0)
    network = UNet(3, 2, upsampler, receptive_field, width=8)
    blocks = list(network.upsamplings)
    assert all(is_dtc(block) == (receptive_field is not None) for block in blocks)
    if receptive_field is not None:
        assert all(type(block) is DTC2d and block.receptive_field == receptive_field for block in blocks)
        blocks = [block.base for block in blocks]
    assert {type(base) for base in blocks} == {nn.ConvTranspose2d if upsampler is None else UPSAMPLERS[upsampler][2]}
    result = network(torch.randn(2, 3, 32, 16))
    assert result.shape == (2, 2, 32, 16)
    result.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_forward_pass_step_by_step():
    """By hand, from the parts of the network: pooling down, up with the skips in front."""
    torch.manual_seed(0)
    network = UNet(2, 3, "Linear", width=2).eval()
    x = torch.randn(1, 2, 16, 32)
    skips = [network.encoder[0](x)]
    for stage in range(1, 5):
        skips.append(network.encoder[stage](nn.functional.max_pool2d(skips[-1], 2)))
    y = skips[4]
    for index, skip in enumerate((skips[3], skips[2], skips[1], skips[0])):
        y = nn.functional.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        y = network.decoder[index](torch.cat([skip, y], dim=1))
    torch.testing.assert_close(network(x), network.head(y))


@pytest.mark.parametrize("size", [(20, 37), (1, 16), (5, 3)])
def test_any_size(size):
    """Padded to what is divisible by 16, cut again: as by hand."""
    torch.manual_seed(0)
    network = UNet(3, 2, "FADE", 2, width=4).eval()
    x = torch.randn(1, 3, *size)
    padded = torch.zeros(1, 3, *(-(-n // 16) * 16 for n in size))
    place = tuple(slice((full - n) // 2, (full - n) // 2 + n) for full, n in zip(padded.shape[2:], size, strict=True))
    padded[(..., *place)] = x
    result = network(x)
    assert result.shape == (1, 2, *size)
    torch.testing.assert_close(result, network(padded)[(..., *place)])


@pytest.mark.parametrize("width", [3, 0, True, 2.0])
def test_bad_width(width):
    with pytest.raises(ValueError, match="width must be a positive even number"):
        UNet(3, 1, width=width)


def plans_with(width, configuration="2d"):
    content = small_plans()
    if width is not None:
        content["configurations"][configuration]["architecture"]["nnunet_dtc"] = {"UNet": width}
    plans = PlansManager(content)
    return plans, plans.get_configuration(configuration)


def test_the_trainer_builds_what_its_name_and_the_plans_say():
    for name, upsampler, receptive_field in (
        ("nnUNetTrainerUNet", None, None),
        ("nnUNetTrainerUNetDTC", None, 2),
        ("nnUNetTrainerUNetLinear", "Linear", None),
        ("nnUNetTrainerUNetDySampleDTC_RFinf", "DySample", math.inf),
    ):
        trainer = getattr(trainers, name)
        network = trainer.build_network_architecture(*plans_with({"width": 8}), 3, 2, False)
        expected = UNet(3, 2, upsampler, receptive_field, width=8)
        assert str(network) == str(expected)
        assert network(torch.zeros(1, 3, 16, 24)).shape == (1, 2, 16, 24)


def test_without_a_word_in_the_plans_it_is_the_papers():
    network = trainers.nnUNetTrainerUNetLinear.build_network_architecture(*plans_with(None), 3, 1)
    assert sum(parameter.numel() for parameter in network.parameters()) == 17_262_977


def test_what_it_cannot_build_is_said():
    with pytest.raises(
        ValueError, match=r"nnUNetTrainerUNetDTC trains the paper's 2D U-Net and needs a 2d .*, got .* 3 axes"
    ):
        trainers.nnUNetTrainerUNetDTC.build_network_architecture(*plans_with(None, "3d_fullres"), 1, 2)
    with pytest.raises(ValueError, match=r"UNet has the settings width, got depth"):
        trainers.nnUNetTrainerUNet.build_network_architecture(*plans_with({"depth": 3}), 1, 2)
