import copy
import math

import pytest
import torch
from oracle import deformable_upsample_loops
from torch import nn

from nnunet_dtc import DTC2d, DTC3d, deformable_upsample

SIZES = {
    DTC2d: [((5, 3), (2, 2)), ((1, 7), (1, 3))],
    DTC3d: [((2, 3, 5), (1, 2, 2)), ((3, 1, 4), (2, 1, 3)), ((1, 1, 2), (1, 1, 4))],
}
CASES = [(block, size, stride) for block, cases in SIZES.items() for size, stride in cases]


def randomise_coords(block, seed=0):
    """Coordinates that really shift: a new block's are almost zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in block.coords.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return block


@pytest.mark.parametrize(("block", "size", "stride"), CASES)
@pytest.mark.parametrize("receptive_field", [0, 2, 10, math.inf])
def test_module_is_base_plus_branch(block, size, stride, receptive_field):
    torch.manual_seed(0)
    dtc = randomise_coords(block(4, 3, stride, receptive_field).double())
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    result = dtc(x)
    assert result.shape == (2, 3, *(n * s for n, s in zip(size, stride, strict=True)))
    branch = deformable_upsample_loops(dtc.value(x), dtc.coords(x), stride, receptive_field)
    torch.testing.assert_close(result, dtc.base(x) + branch, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("variant", "channels"),
    [({"weight": "none"}, 3), ({"weight": "linear"}, 6), ({"offset": "linear"}, 6)],
    ids=str,
)
def test_variants(variant, channels):
    dtc = randomise_coords(DTC3d(4, 2, (1, 2, 2), 4, **variant).double())
    assert dtc.coords.out_channels == channels
    x = torch.randn(1, 4, 2, 3, 4, dtype=torch.float64)
    branch = deformable_upsample_loops(dtc.value(x), dtc.coords(x), (1, 2, 2), 4, **variant)
    torch.testing.assert_close(dtc(x), dtc.base(x) + branch, rtol=0, atol=1e-11)


def test_state_dict_is_base_value_coords_and_parameters_fit_table_7():
    dtc = DTC2d(64, 32, 2)
    assert set(dtc.state_dict()) == {
        f"{part}.{kind}" for part in ("base", "value", "coords") for kind in ("weight", "bias")
    }
    assert sum(p.numel() for p in dtc.value.parameters()) == 64 * 32 + 32
    assert sum(p.numel() for p in dtc.coords.parameters()) == 64 * 4 * 2 * 2 + 4


def test_coords_start_small_but_not_at_zero():
    torch.manual_seed(0)
    dtc = DTC3d(64, 32, (1, 2, 2))
    assert 0.0005 < dtc.coords.weight.std() < 0.002
    assert not dtc.coords.bias.any()


def test_any_module_is_a_base():
    base = nn.Sequential(nn.Conv3d(4, 3, 1), nn.Upsample(scale_factor=(1, 2, 2), mode="trilinear"))
    dtc = DTC3d(4, 3, (1, 2, 2), base=base)
    assert dtc.base is base
    assert dtc(torch.randn(1, 4, 3, 4, 5)).shape == (1, 3, 3, 8, 10)


def test_gradients_reach_every_parameter():
    dtc = DTC3d(4, 3, (1, 2, 2))
    dtc(torch.randn(1, 4, 3, 4, 5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in dtc.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_float_dtype(dtype):
    dtc = randomise_coords(DTC3d(4, 3, (1, 2, 2), 4)).to(dtype)
    x = torch.randn(1, 4, 3, 4, 5).to(dtype)
    result = dtc(x)
    assert result.dtype == dtype
    exact = copy.deepcopy(dtc).double()(x.double())
    torch.testing.assert_close(result.double(), exact, rtol=0.1, atol=0.05 if dtype.itemsize == 2 else 1e-5)


def test_autocast_gives_the_dtype_of_the_base_and_float32_positions():
    dtc = DTC3d(1, 1, (1, 1, 2), 4)
    length = 300
    with torch.no_grad():
        for part in (dtc.base, dtc.coords, dtc.value):
            for parameter in part.parameters():
                parameter.zero_()
        dtc.value.weight.fill_(1)
    x = torch.zeros(1, 1, 2, 3, length)
    x[..., length // 2 + 1 :] = 1  # an edge between voxels 150 and 151
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = dtc(x)
    assert result.dtype == torch.bfloat16
    expected = nn.functional.interpolate(x, scale_factor=(1, 1, 2), mode="trilinear")
    torch.testing.assert_close(result.float(), expected, rtol=0, atol=0.01)


@pytest.mark.parametrize(("block", "size", "stride"), [CASES[0], CASES[2]])
@pytest.mark.parametrize("receptive_field", [2, math.inf])
def test_compiles_to_one_graph(block, size, stride, receptive_field):
    torch.manual_seed(0)
    torch.compiler.reset()
    eager = randomise_coords(block(4, 3, stride, receptive_field))
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True)
    x = torch.randn(2, 4, *size)
    results, gradients = [], []
    for module in (eager, compiled):
        leaf = x.clone().requires_grad_()
        result = module(leaf)
        result.square().sum().backward()
        results.append(result.detach())
        gradients.append([leaf.grad, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_function_compiles_to_one_graph():
    torch.compiler.reset()
    value, coords = torch.randn(2, 3, 2, 3, 4), torch.randn(2, 6, 2, 6, 8)
    compiled = torch.compile(deformable_upsample, fullgraph=True)
    torch.testing.assert_close(
        compiled(value, coords, (1, 2, 2), 10), deformable_upsample(value, coords, (1, 2, 2), 10), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("block", "size", "stride"), CASES)
def test_feature_map_size_is_what_hooks_see(block, size, stride):
    dtc = block(4, 3, stride)
    seen = []
    for part in (dtc.value, dtc.coords, dtc):  # the samples have the size of the block's result
        part.register_forward_hook(lambda module, args, result: seen.append(result.numel()))
    dtc(torch.zeros(1, 4, *size))
    assert dtc.compute_conv_feature_map_size(size) == sum(seen)


def test_repr_names_the_arguments():
    assert "2, 3, stride=(1, 2, 2), receptive_field=inf" in repr(DTC3d(2, 3, (1, 2, 2), math.inf))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "in_channels must be a positive integer, got in_channels=0"),
        ({"out_channels": 2.0}, "out_channels must be a positive integer"),
        ({"stride": (2, 0, 2)}, "stride must be positive on every axis"),
        ({"stride": (2, 2)}, r"one entry per spatial axis \(3\)"),
        ({"receptive_field": -2}, "receptive_field must be a number >= 0"),
        ({"offset": "none"}, "offset must be one of"),
        ({"weight": "tanh"}, "weight must be one of"),
        ({"base": DTC3d(4, 3, 2)}, "wrapped twice"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DTC3d(**{"in_channels": 4, "out_channels": 3, "stride": (1, 2, 2), **arguments})


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(1, 5, 2, 3, 4), ValueError, r"takes \(N, 4, D, H, W\), got \(1, 5, 2, 3, 4\)"),
        (torch.zeros(1, 4, 3, 4), ValueError, r"takes \(N, 4, D, H, W\), got \(1, 4, 3, 4\)"),
        (torch.zeros(1, 4, 2, 3, 4, dtype=torch.uint8), TypeError, "floating tensor, got torch.uint8"),
    ],
)
def test_bad_input(x, error, message):
    with pytest.raises(error, match=message):
        DTC3d(4, 3, (1, 2, 2))(x)


@pytest.mark.parametrize(
    "base", [nn.Identity(), nn.Upsample(scale_factor=2), nn.ConvTranspose3d(4, 1, (1, 2, 2), (1, 2, 2))]
)
def test_a_base_of_another_size_is_named(base):
    with pytest.raises(ValueError, match=f"base must upsample .* got .* from {type(base).__name__}"):
        DTC3d(4, 3, (1, 2, 2), base=base)(torch.zeros(1, 4, 2, 3, 4))


def test_networks_may_pass_the_output_size():
    dtc, x = DTC3d(4, 3, (1, 2, 2)), torch.randn(1, 4, 2, 3, 5)
    expected = dtc(x)
    for size in ([2, 6, 10], expected.shape):
        assert torch.equal(dtc(x, output_size=size), expected)
    with pytest.raises(
        ValueError, match=r"output_size must be size \* stride, \(2, 6, 10\), got output_size=\(2, 7, 10\)"
    ):
        dtc(x, output_size=[2, 7, 10])


class _NeedsSkip(nn.Module):
    """Nearest-neighbour upsampling plus the encoder's features."""

    needs_skip = True

    def forward(self, x, skip):
        return nn.functional.interpolate(x, scale_factor=2) + skip


def test_a_base_with_needs_skip_gets_the_encoders_features():
    torch.manual_seed(0)
    dtc = randomise_coords(DTC2d(3, 3, 2, base=_NeedsSkip()).double())
    assert dtc.needs_skip
    x, skip = torch.randn(1, 3, 2, 4, dtype=torch.float64), torch.randn(1, 3, 4, 8, dtype=torch.float64)
    branch = deformable_upsample_loops(dtc.value(x), dtc.coords(x), (2, 2), 2)
    torch.testing.assert_close(dtc(x, skip=skip), dtc.base(x, skip) + branch, rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match=r"_NeedsSkip needs the encoder's features of size \(4, 8\): pass skip="):
        dtc(x)
    assert not DTC2d(3, 3, 2).needs_skip
