import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from nnunet_dtc import DTC2d, DTC3d, convert_dtc
from nnunet_dtc.ops.dtc import is_dtc


def blocks(network):
    return {name: module for name, module in network.named_modules() if is_dtc(module)}


def zero_branches(network):
    """Without their branches, the blocks are the upsamplings that they wrap."""
    with torch.no_grad():
        for block in blocks(network).values():
            block.value.weight.zero_()
            block.value.bias.zero_()


def dynunet(**options):
    strides = [1, 2, 2, [1, 2, 2]]
    nets = pytest.importorskip("monai.networks.nets")
    return nets.DynUNet(3, 1, 2, [3] * 4, strides, strides[1:], filters=[4, 8, 12, 16], **options)


def basic_unet(upsample, dims=3):
    nets = pytest.importorskip("monai.networks.nets")
    return nets.BasicUNet(dims, 1, 2, features=(4, 4, 8, 8, 12, 4), upsample=upsample)


@pytest.mark.parametrize(
    ("make", "size", "count", "example"),
    [
        (lambda: dynunet(), (8, 16, 24), 3, False),
        (lambda: dynunet(deep_supervision=True, deep_supr_num=2), (8, 16, 24), 3, False),
        (lambda: basic_unet("deconv"), (16, 32, 48), 4, False),
        (lambda: basic_unet("nontrainable"), (16, 32, 48), 4, True),
        (lambda: basic_unet("nontrainable", 2), (32, 48), 4, True),
    ],
)
def test_networks_of_monai(make, size, count, example):
    torch.manual_seed(0)
    network = make().eval()
    x = torch.randn(1, 1, *size)
    expected = network(x)
    parameters = {id(p) for p in network.parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converted = convert_dtc(network, 10, x if example else None)
    assert converted is network
    assert len(blocks(network)) == count
    assert all(block.receptive_field == 10 for block in blocks(network).values())
    assert parameters < {id(p) for p in network.parameters()}  # the old ones are all still there
    assert not torch.equal(network(x), expected)

    before = {name: id(module) for name, module in network.named_modules()}
    convert_dtc(network, 2, x)  # a second time
    assert {name: id(module) for name, module in network.named_modules()} == before

    zero_branches(network)
    torch.testing.assert_close(network(x), expected, rtol=0, atol=0)


def test_upsample_without_example_is_an_error_that_names_it_and_changes_nothing():
    network = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear")))
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=r"example_input=\.\.\. to convert '1\.0'"):
        convert_dtc(network)
    assert network.state_dict().keys() == before.keys()


@pytest.mark.parametrize(
    ("left", "reason"),
    [
        (nn.ConvTranspose2d(3, 3, 4, 2, 1), r"kernel must be the stride.*kernel_size=\(4, 4\), stride=\(2, 2\)"),
        (nn.ConvTranspose2d(3, 3, 2, 2, output_padding=1), r"output_padding=\(1, 1\)"),
        (nn.ConvTranspose2d(3, 3, 1), "stride is 1 on every axis"),
        (nn.ConvTranspose1d(3, 3, 2, 2), "this is ConvTranspose1d"),
        (nn.LazyConvTranspose2d(3, 2, 2), "it is lazy"),
        (nn.Upsample(scale_factor=2, mode="nearest"), "mode='nearest'"),
        (nn.Upsample(scale_factor=1.5, mode="bilinear"), "scale_factor must be whole numbers"),
        (nn.Upsample(size=(8, 8), mode="bilinear"), r"fixed size and no scale_factor, got size=\(8, 8\)"),
        (nn.PixelShuffle(2), "pixel shuffle"),
    ],
)
def test_upsamplings_that_cannot_be_wrapped_are_named_and_left_alone(left, reason):
    network = nn.Sequential(nn.ConvTranspose2d(3, 3, 2, 2), left)
    with pytest.warns(UserWarning, match=f"left these upsamplings as they are: 1 .*{reason}"):
        convert_dtc(network)
    assert isinstance(network[0], DTC2d)
    assert network[1] is left


def test_a_network_without_upsampling_gets_a_warning():
    with pytest.warns(UserWarning, match="found no upsampling"):
        convert_dtc(nn.Sequential(nn.Conv2d(3, 3, 3)))


def test_upsample_that_the_example_does_not_reach_or_that_has_two_numbers_of_channels():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Upsample(scale_factor=2, mode="bilinear")
            self.shared = nn.Upsample(scale_factor=2, mode="bilinear")
            self.used = nn.Upsample(scale_factor=(1, 2), mode="bilinear", align_corners=True)

        def forward(self, x):
            return self.used(x), self.shared(x), self.shared(torch.cat([x, x], 1))

    network = Network()
    with pytest.warns(UserWarning, match=r"unused \(.*does not reach it\); shared \(.*different channels, \[3, 6\]\)"):
        convert_dtc(network, example_input=torch.zeros(1, 3, 4, 4))
    assert list(blocks(network)) == ["used"]
    assert network.used.stride == (1, 2)


def test_the_module_itself_and_a_module_with_two_names():
    conv = nn.ConvTranspose3d(4, 3, (1, 2, 2), (1, 2, 2))
    assert isinstance(convert_dtc(conv), DTC3d)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = self.same = nn.ConvTranspose2d(4, 4, 2, 2)
            self.inner = nn.ModuleList([self.up])

    network = convert_dtc(Network())
    assert isinstance(network.up, DTC2d)
    assert network.up is network.same is network.inner[0]


def test_modules_inside_a_dtc_block_are_not_converted():
    network = nn.Sequential(DTC3d(4, 3, 2, base=nn.Sequential(nn.ConvTranspose3d(4, 3, 2, 2))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_dtc(network)
    assert len(blocks(network)) == 1
    assert isinstance(network[0].base[0], nn.ConvTranspose3d)


@pytest.mark.parametrize("like", [{"device": "meta"}, {"dtype": torch.float64}], ids=str)
def test_blocks_have_the_device_dtype_and_mode_of_what_they_wrap(like):
    network = convert_dtc(nn.Sequential(nn.ConvTranspose2d(3, 3, 2, 2, **like)).eval())
    for parameter in network.parameters():
        assert parameter.device == network[0].base.weight.device
        assert parameter.dtype == network[0].base.weight.dtype
    assert not any(module.training for module in network.modules())


def test_a_block_around_an_upsample_has_the_dtype_of_its_input():
    network = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"))
    convert_dtc(network, example_input=torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    assert network[0].value.weight.dtype == torch.float64


def test_the_example_run_leaves_modes_hooks_and_statistics_alone():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Upsample(scale_factor=2, mode="bilinear"))
    network[1].eval()
    convert_dtc(network, example_input=torch.randn(2, 3, 4, 4))
    assert [module.training for module in network] == [True, False, True]
    assert not network[0].running_mean.any()
    pickle.dumps(network)  # a remaining hook would be a local function, which cannot be pickled


def test_bad_receptive_field():
    with pytest.raises(ValueError, match="receptive_field must be"):
        convert_dtc(nn.Sequential(nn.ConvTranspose2d(3, 3, 2, 2)), -1)
