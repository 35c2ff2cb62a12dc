"""What every one of the paper's other networks must do, with and without DTC."""

import copy
from importlib import metadata
from pathlib import Path

import pytest
import torch
from plans import SMALL_NETWORKS as SMALL
from plans import small_plans
from torch import nn

from nnunet_dtc.architectures import NETWORKS, build_network, monai_networks, planned_settings
from nnunet_dtc.architectures.networks import with_dtc_beside
from nnunet_dtc.architectures.padding import padded_size
from nnunet_dtc.architectures.segmamba import ChannelMLP, GatedSpatialConvolution
from nnunet_dtc.architectures.settings import PLANS_KEY
from nnunet_dtc.ops.deformation import Deformation
from nnunet_dtc.ops.dtc import is_dtc
from nnunet_dtc.upsamplers import Linear2d

CHANNELS, CLASSES = 2, 3
UPSAMPLINGS = {"UNETR": 4, "SwinUNETRV2": 5, "NnMamba": 4, "SegMamba": 4}
SIZES = [(5, 33, 17), (20, 40)]

every_network = pytest.mark.parametrize("name", NETWORKS)
both_axes = pytest.mark.parametrize("size", SIZES, ids=["3d", "2d"])
plain_and_dtc = pytest.mark.parametrize("dtc", [None, {"receptive_field": 4}], ids=["plain", "DTC"])


def small(name, size, dtc=None, seed=0, **settings):
    torch.manual_seed(seed)
    return build_network(name, CHANNELS, CLASSES, size, {**SMALL[name], **settings}, dtc=dtc)


def patch(size, batch=2):
    return torch.randn(batch, CHANNELS, *size, generator=torch.Generator().manual_seed(1))


def blocks(network):
    return {name: module for name, module in network.named_modules() if is_dtc(module)}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def settle(network, x):
    """Give batch normalisations the statistics of this batch, so that a new network says something in eval mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = None  # the mean over all batches, here one
    with torch.no_grad():
        assert network.train()(x).std() > 0
    return network.eval()


@every_network
@pytest.mark.parametrize("size", [(28, 112, 96), (48, 160, 160), (513, 70)], ids=str)
def test_shapes_forward_and_backward_at_planned_patches(name, size):
    """On torch's meta device: all shapes, no numbers."""
    network = small(name, size, {}).to("meta")
    logits = network(patch(size).to("meta"))
    assert logits.shape == (2, CLASSES, *size)
    logits.square().mean().backward()
    for key, parameter in network.named_parameters():
        assert not parameter.requires_grad or parameter.grad.shape == parameter.shape, key


@every_network
@both_axes
def test_every_parameter_gets_a_gradient(name, size):
    network = small(name, size, {"receptive_field": 10})
    logits = network(patch(size))
    assert logits.shape == (2, CLASSES, *size)
    (logits.square().mean() + logits[:, 0].mean()).backward()
    for key, parameter in network.named_parameters():
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), key
        # zero up to round-off is right for a bias in front of a normalisation; and nnMamba's scales squeeze these few
        # channels to one, whose ReLU may be shut
        may_be_zero = parameter.ndim == 1 or ".scales." in key
        assert not parameter.requires_grad or may_be_zero or parameter.grad.any(), key


@every_network
@both_axes
def test_without_dtc_there_are_no_blocks(name, size):
    assert not blocks(small(name, size))


@every_network
@both_axes
@pytest.mark.parametrize(("weight", "kinds"), [("sigmoid", 2), ("none", 1)])
def test_dtc_adds_its_blocks_and_nothing_else(name, size, weight, kinds):
    plain = small(name, size)
    network = small(name, size, {"receptive_field": 4, "weight": weight})
    found = blocks(network)
    assert len(found) == UPSAMPLINGS[name]
    axes = len(size)
    extra = 0
    for block in found.values():
        channels, out = block.in_channels, block.out_channels
        assert block.stride == (2,) * axes
        assert block.receptive_field == 4
        extra += channels * out + out + (channels * 2**axes + 1) * axes * kinds  # value, coordinates
    assert count(network) - count(plain) == extra

    state, expected = network.state_dict(), plain.state_dict()  # of one seed: the same weights in the same order
    new = {key for key in state if ".value." in key or ".coords." in key}
    bases = tuple(f"{key}.base." for key in found)
    kept = {key.replace(".base.", ".") if key.startswith(bases) else key: state[key] for key in state if key not in new}
    assert list(kept) == list(expected)
    assert all(torch.equal(kept[key], expected[key]) for key in expected)


@every_network
@both_axes
def test_without_branches_it_is_the_plain_network(name, size):
    plain, network = small(name, size), small(name, size, {})
    x = patch(size)
    assert not torch.equal(network(x), plain(x))
    with torch.no_grad():
        for block in blocks(network).values():
            assert block.receptive_field == 2  # the default
            assert 0.0003 < block.coords.weight.std() < 0.003
            block.value.weight.zero_()
            block.value.bias.zero_()
    assert torch.equal(network(x), plain(x))


@every_network
@both_axes
@plain_and_dtc
def test_state_dict_of_training_loads_for_prediction(name, size, dtc, tmp_path):
    trained, predicting = small(name, size, dtc), small(name, size, dtc, seed=1).eval()
    settle(trained, patch(size))
    assert list(trained.state_dict()) == list(predicting.state_dict())
    torch.save(trained.state_dict(), tmp_path / "checkpoint.pth")
    predicting.load_state_dict(torch.load(tmp_path / "checkpoint.pth", weights_only=True))
    logits = trained(patch(size))
    assert torch.equal(predicting(patch(size)), logits)
    predicting.decoder.deep_supervision = True  # as nnU-Net sets it
    assert torch.equal(predicting(patch(size)), logits)


@every_network
@plain_and_dtc
def test_the_patch_size_is_not_in_the_state_dict_but_for_unetrs_positions(name, dtc):
    one, other = small(name, (32, 64), dtc).state_dict(), small(name, (33, 70), dtc).state_dict()
    assert list(one) == list(other)
    differing = {key for key in one if one[key].shape != other[key].shape}
    assert differing == ({"network.vit.patch_embedding.position_embeddings"} if name == "UNETR" else set())


@every_network
@both_axes
def test_cases_do_not_see_each_other(name, size):
    x = patch(size)
    network = settle(small(name, size, {"receptive_field": 10}), x)
    together, alone = network(x), network(x[1:])
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


@every_network
def test_the_network_sees_the_padded_patch(name):
    size = (7, 40, 23)
    x = patch(size)
    network, seen = settle(small(name, size), x), []
    network.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    logits = network(x)
    target = padded_size(size, NETWORKS[name].multiple)
    assert seen[0].shape == (2, CHANNELS, *target)
    before = [(whole - part) // 2 for whole, part in zip(target, size, strict=True)]
    place = (..., *(slice(start, start + part) for start, part in zip(before, size, strict=True)))
    assert torch.equal(seen[0][place], x)
    assert seen[0].abs().sum() == pytest.approx(x.abs().sum().item())
    assert torch.equal(network.network(seen[0])[place], logits)


@every_network
def test_trains_under_bfloat16_autocast_without_nan(name):
    network, x = small(name, (20, 40), {"receptive_field": 10}), patch((20, 40))
    target = (x[:, 0] > 0).long()
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    losses = []
    for _ in range(15):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(x)
        assert logits.dtype == torch.bfloat16
        loss = nn.functional.cross_entropy(logits.float(), target)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("name", "inputs", "classes", "ours", "published"),
    [
        ("UNETR", 1, 14, 92_802_478, 92.8),
        ("SwinUNETRV2", 1, 14, 72_762_656, 72.8),
        ("NnMamba", 1, 14, 15_956_210, 15.94),  # the published code with 2 classes; the authors' table says 15.55 M
        ("SegMamba", 4, 4, 67_221_076, 67.4),
    ],
)
def test_parameters_at_the_published_sizes(name, inputs, classes, ours, published):
    with torch.device("cpu" if name == "SwinUNETRV2" else "meta"):  # MONAI's SwinUNETR reads numbers as it is built
        found = count(build_network(name, inputs, classes, (96, 96, 96)))
    assert found == ours
    assert found / 1e6 == pytest.approx(published, rel=0.005)


def test_segmambas_difference_to_its_published_size_is_what_the_docs_say():
    """The published code's C1 behind the sum, and layer normalisations in front of the MLPs that it has not."""
    with torch.device("meta"):
        network = build_network("SegMamba", 4, 4, (96, 96, 96))
    gates = [module.gate for module in network.modules() if isinstance(module, GatedSpatialConvolution)]
    norms = [module.norm for module in network.modules() if isinstance(module, ChannelMLP)]
    assert len(gates) == len(norms) == 4  # one of each per stage
    another_one, of_norms = sum(map(count, gates)), sum(map(count, norms))
    assert (count(network) + another_one - of_norms) / 1e6 == pytest.approx(67.42, abs=0.005)
    text = " ".join((Path(__file__).parents[1] / "docs" / "networks.md").read_text().split())
    for said in (
        f"67.42 M is for the published code with 4 channels and 4 classes; ours has {count(network):,} parameters",
        f"one convolution of kernel 1 less per stage, {another_one:,} parameters",
        f"which have no parameters in the published code, have {of_norms:,}.",
    ):
        assert said in text


def test_which_upsamplings_have_dtc():
    def kinds(name, size=(32, 64), **settings):
        return {
            key.removeprefix("network."): type(b.base) for key, b in blocks(small(name, size, {}, **settings)).items()
        }

    transposed = nn.ConvTranspose2d
    assert kinds("UNETR") == {f"decoder{n}.transp_conv.conv": transposed for n in (5, 4, 3, 2)}
    assert kinds("SwinUNETRV2") == {f"decoder{n}.transp_conv.conv": transposed for n in (5, 4, 3, 2, 1)}
    assert kinds("SegMamba") == {f"decoder.{n}.upsampling": transposed for n in range(4)}
    assert kinds("NnMamba") == {f"decoder_upsamplings.{n}": Linear2d for n in range(4)}
    with_skips = kinds("UNETR", dtc_in_skips=True)
    assert {key for key in with_skips if key.startswith("encoder")} == {
        "encoder2.transp_conv_init.conv",
        "encoder2.blocks.0.0.conv",
        "encoder2.blocks.1.0.conv",
        "encoder3.transp_conv_init.conv",
        "encoder3.blocks.0.0.conv",
        "encoder4.transp_conv_init.conv",
    }
    assert len(with_skips) == 10


def test_dtc_goes_in_once():
    network = small("SegMamba", (32, 32), {})
    before = list(network.state_dict())
    with pytest.raises(ValueError, match=r"decoder.0.upsampling has a DTC block already"):
        with_dtc_beside(network.network, network.network.upsamplings(), Deformation())
    assert list(network.state_dict()) == before


@pytest.mark.parametrize(("name", "multiple"), [("SegMamba", 16), ("SwinUNETRV2", 32)])
@pytest.mark.parametrize("axes", [2, 3])
def test_one_voxel_in_the_deepest_map_is_refused_with_what_would_do(name, multiple, axes):
    size = (multiple,) * axes
    with pytest.raises(
        ValueError, match=rf"{name} with patch_size=\(.*\) has one voxel .* more than {multiple} voxels"
    ):
        small(name, size)
    size = (*size[:-1], multiple + 1)
    assert small(name, size)(patch(size, 1)).shape == (1, CLASSES, *size)


@pytest.mark.parametrize("name", ["UNETR", "NnMamba"])
def test_one_voxel_in_the_deepest_map_is_enough_for_others(name):
    assert small(name, (5, 16, 9))(patch((5, 16, 9))).isfinite().all()


def test_unetr_has_no_parameter_that_waits_for_a_gradient_in_vain():
    network = small("UNETR", (16, 32))
    network(patch((16, 32))).sum().backward()
    idle = {key for key, p in network.named_parameters() if p.grad is None}
    assert all("norm_cross_attn" in key for key in idle)
    assert not any(p.requires_grad for key, p in network.named_parameters() if key in idle)


@every_network
def test_settings_come_from_the_plans(name):
    plans = small_plans()["configurations"]["2d"]
    assert planned_settings(plans, name) == {}
    vanilla = copy.deepcopy(plans["architecture"])
    plans["architecture"][PLANS_KEY] = {name: SMALL[name]}
    settings = planned_settings(plans, name)
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()} == SMALL[name]
    plans["architecture"][PLANS_KEY]["UNet"] = {"width": 8}  # the paper's own U-Net reads it from there, too
    other = next(key for key in NETWORKS if key != name)
    assert planned_settings(plans, other) == {}
    assert {key: plans["architecture"][key] for key in vanilla} == vanilla
    assert count(build_network(name, CHANNELS, CLASSES, (40, 40), settings)) < 2 * 10**6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"VNet": {}, "UNet": {}}, r"architecture.nnunet_dtc of the plans must be among UNet, UNETR, .* got VNet$"),
        ({"SegMamba": {"width": 4}}, r"SegMamba has the settings widths, bottleneck, depths, got width"),
        ({"SegMamba": {"widths": [4, 8]}}, r"SegMamba's widths must be like its published \(48, .*got \(4, 8\)"),
        ({"SegMamba": {"bottleneck": 0}}, r"SegMamba's bottleneck must be like its published 768, got 0"),
        ({"SegMamba": {"bottleneck": 8.5}}, r"bottleneck must be like its published 768, got 8.5"),
        ({"SegMamba": {"bottleneck": True}}, r"bottleneck must be like its published 768, got True"),
        ({"SegMamba": {"depths": [1, 1, 1, "2"]}}, r"depths must be like its published \(2, 2, 2, 2\)"),
        ({"SegMamba": [8, 16]}, r"must map names of networks to their settings, got \{'SegMamba': \[8, 16\]\}"),
        (["SegMamba"], r"must map names of networks to their settings, got \['SegMamba'\]"),
    ],
    ids=str,
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        planned_settings({"architecture": {PLANS_KEY: settings}}, "SegMamba")


def test_other_errors():
    for asked in (lambda: build_network("VNet", 1, 2, (32, 32)), lambda: planned_settings({}, "VNet")):
        with pytest.raises(ValueError, match="networks are UNETR, SwinUNETRV2, NnMamba, SegMamba, got 'VNet'"):
            asked()
    for size in ((32,), (32, 32, 32, 32), (32, 0)):
        with pytest.raises(ValueError, match="patch_size must be 2 or 3 positive integers, got patch_size="):
            build_network("NnMamba", 1, 2, size)
    with pytest.raises(ValueError, match="UNETR's dtc_in_skips must be like its published False, got 1"):
        small("UNETR", (32, 32), dtc_in_skips=1)
    with pytest.raises(ValueError, match="receptive_field"):
        small("NnMamba", (32, 32), {"receptive_field": -1})


@pytest.mark.parametrize("name", ["UNETR", "SwinUNETRV2"])
@pytest.mark.parametrize("found", ["1.5.2", None])
def test_a_missing_or_older_monai_is_said_in_one_sentence(name, found, monkeypatch):
    def version(package):
        if found is None:
            raise metadata.PackageNotFoundError(package)
        return found

    monkeypatch.setattr(monai_networks.metadata, "version", version)
    rule = r'^UNETR and SwinUNETR V2 need MONAI 1.6 or later.*: pip install "nnunet-dtc\[monai\]"$'
    with pytest.raises(ImportError, match=rule) as caught:
        small(name, (64, 64))
    assert ("found 1.5.2" in str(caught.value)) == (found is not None)
    assert small("NnMamba", (32, 32)) is not None  # the others do not need it


@pytest.mark.parametrize("found", ["1.6", "1.6.0rc1", "1.6.1", "1.10.0", "2.0", "1.6.1+local"])
def test_monais_that_will_do(found, monkeypatch):
    monkeypatch.setattr(monai_networks.metadata, "version", lambda package: found)
    assert hasattr(monai_networks.monai_nets(), "UNETR")
