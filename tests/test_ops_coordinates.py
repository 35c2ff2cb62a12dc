"""The coordinates of DTC blocks: shifts and positions, how they are collected, and their statistics."""

import itertools
import math

import numpy as np
import pytest
import torch
from coordinates_example import PATCH, build_network, draw_stage
from torch import nn

from nnunet_dtc import DTC2d, DTC3d, deformable_upsample
from nnunet_dtc.ops.coordinates import BINS, axis_names, collect, measure
from nnunet_dtc.ops.deformation import Deformation, sampling_shifts
from nnunet_dtc.ops.dtc import is_dtc

VARIANTS = [("tanh", "sigmoid"), ("tanh", "none"), ("tanh", "linear"), ("linear", "sigmoid"), ("linear", "none")]


@pytest.mark.parametrize(("offset", "weight"), VARIANTS)
@pytest.mark.parametrize("receptive_field", [0, 2.5, 10, math.inf])
def test_shifts_element_by_element(offset, weight, receptive_field):
    sizes = (3, 1, 5)
    stage = draw_stage(sizes, (2, 1, 3), receptive_field=receptive_field, offset=offset, weight=weight)
    found = stage.shifts()
    assert found.shape == (2, 3, *stage.coords.shape[2:])
    for index in itertools.product(*map(range, found.shape)):
        case, axis, *place = index
        raw = stage.coords[(case, axis, *place)].item()
        expected = math.tanh(raw) if offset == "tanh" else raw
        if weight != "none":
            gate = stage.coords[(case, 3 + axis, *place)].item()
            expected *= 1 / (1 + math.exp(-gate)) if weight == "sigmoid" else gate
        expected *= sizes[axis] / 2 if math.isinf(receptive_field) else receptive_field / 4
        assert found[index].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("sizes", "stride"), [((5, 3), (2, 2)), ((1, 7), (3, 1)), ((3, 1, 4), (2, 1, 3))])
@pytest.mark.parametrize("receptive_field", [0, 10, math.inf])
def test_positions_are_those_that_the_operator_samples(sizes, stride, receptive_field):
    stage = draw_stage(sizes, stride, receptive_field=receptive_field)
    ramps = torch.stack(torch.meshgrid(*(torch.arange(float(size)) for size in sizes), indexing="ij"))  # (g, *S)
    sampled = deformable_upsample(ramps.expand(2, *ramps.shape), stage.coords, stride, receptive_field)
    torch.testing.assert_close(stage.positions(), sampled, rtol=0, atol=2e-6)


def test_sampling_density_is_the_sum_of_interpolation_weights():
    stage = draw_stage((3, 4), (2, 3), receptive_field=10, scale=2)
    expected = np.zeros((2, 3, 4))
    for case, sample in enumerate(stage.positions().flatten(2).numpy()):  # (2, samples)
        for place in sample.T:
            low = np.minimum(np.floor(place).astype(int), (1, 2))
            for corner in itertools.product((0, 1), repeat=2):
                part = np.where(corner, place - low, 1 - (place - low))
                expected[(case, *(low + corner))] += part.prod() / 6
    np.testing.assert_allclose(stage.sampling_density().numpy(), expected, atol=2e-5)
    assert stage.sampling_density().mean().item() == pytest.approx(1)
    assert np.ptp(expected) > 0.5
    regular = draw_stage((3, 4), (2, 3), receptive_field=0)
    torch.testing.assert_close(regular.sampling_density(), torch.ones(2, 3, 4))


def test_shifts_refuse_wrong_shapes_and_types():
    with pytest.raises(ValueError, match=r"coords must be \(N, 4, \.\.\) for 2 axes"):
        sampling_shifts(torch.zeros(1, 6, 4, 4), (2, 2))
    with pytest.raises(TypeError, match=r"coords\.dtype=torch\.int64"):
        sampling_shifts(torch.zeros(1, 4, 4, 4, dtype=torch.long), (2, 2))
    assert sampling_shifts(torch.zeros(1, 4, 3, dtype=torch.float16), (2, 2)).dtype == torch.float32
    assert Deformation(math.inf).scale(7) == 3.5


# ---- collecting ----------------------------------------------------------------------------------------------------


def test_collect_returns_the_coordinates_of_the_blocks(monkeypatch):
    network = build_network()
    data = torch.randn(2, 1, *PATCH, generator=torch.Generator().manual_seed(1))
    seen = {}
    for name, block in network.named_modules():
        if is_dtc(block):
            monkeypatch.setattr(
                block, "forward", lambda x, name=name, forward=block.forward: (seen.update({name: x}), forward(x))[1]
            )
    logits, stages = collect(network, data)
    assert [stage.block for stage in stages] == list(seen) == ["decoder.transpconvs.0", "decoder.transpconvs.1"]
    assert [stage.sizes for stage in stages] == [(3, 4, 12), (6, 8, 12)]
    assert [stage.stride for stage in stages] == [(2, 2, 1), (1, 2, 2)]
    for stage in stages:
        block = network.get_submodule(stage.block)
        torch.testing.assert_close(stage.coords, block.coords(seen[stage.block]).detach(), rtol=0, atol=0)
        assert not stage.coords.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(logits, network.eval()(data), rtol=0, atol=0)


def test_collect_does_not_change_the_network_or_the_random_state():
    network = build_network(
        norm_op="torch.nn.BatchNorm3d", dropout_op="torch.nn.Dropout3d", dropout_op_kwargs={"p": 0.5}
    )
    network.decoder.stages.eval()  # mixed modes
    before = {name: module.training for name, module in network.named_modules()}
    state = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    _, stages = collect(network, torch.randn(1, 1, *PATCH, generator=torch.Generator().manual_seed(1)), 100)
    assert len(stages) == 2
    assert {name: module.training for name, module in network.named_modules()} == before
    assert len(set(before.values())) == 2
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    with pytest.raises(RuntimeError, match="expected"):
        collect(network, torch.zeros(1, 5, *PATCH))  # an input that does not fit
    assert not any(module._forward_hooks for module in network.modules())
    assert {name: module.training for name, module in network.named_modules()} == before


def test_collect_returns_an_empty_list_without_dtc():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 1, 2, 2))
    result, stages = collect(network, torch.zeros(1, 1, 5, 5))
    assert result.shape == (1, 1, 6, 6)
    assert stages == []


class Predicted(nn.Module):
    """Replaces the convolution of a DTC block, and predicts given coordinates."""

    def __init__(self, coords):
        super().__init__()
        self.predicted = coords

    def forward(self, _x):
        return self.predicted


def subsampled(coords, limit, stride):
    """Collect the coordinates (N, channels, *O) of a block that predicts them."""
    axes = coords.ndim - 2
    variant = "none" if coords.shape[1] == axes else "sigmoid"
    block = (DTC2d if axes == 2 else DTC3d)(1, 1, stride, weight=variant)
    block.coords = Predicted(coords)
    sizes = (size // step for size, step in zip(coords.shape[2:], stride, strict=True))
    _, [stage] = collect(block, torch.zeros(coords.shape[0], 1, *sizes), limit)
    return stage.coords


@pytest.mark.parametrize(
    ("shape", "stride"), [((2, 4, 30, 42), (2, 3)), ((1, 6, 12, 20, 30), (1, 2, 2)), ((3, 2, 6, 10), (1, 2))]
)
def test_positions_below_a_limit_are_evenly_spread(shape, stride):
    places = torch.stack(torch.meshgrid(*(torch.arange(size) for size in shape[2:]), indexing="ij"))  # (g, *O)
    coords = places[:1].float().expand(shape[0], shape[1], *shape[2:]).clone()
    total = shape[0] * math.prod(shape[2:])
    for limit in (50, 300, 10**6):
        kept = subsampled(coords, limit, stride)
        assert kept.shape[:2] == (1, shape[1])
        assert kept.shape[2] <= max(limit + shape[0], 1)
        assert kept.shape[2] >= min(total, limit / 6)
        if limit >= total:
            assert kept.shape[2] == total
    # every place within a stride is kept equally often, along every axis
    for axis in range(len(shape) - 2):
        coords[:] = places[axis]
        kept = subsampled(coords, max(1, total // 7), stride)[0, 0]
        for remainder in range(2):
            assert (kept % 2 == remainder).float().mean() == pytest.approx(0.5, abs=0.15)


def test_statistics_of_a_part_of_the_positions_are_close_to_those_of_all():
    network = build_network(10)
    data = torch.randn(1, 1, 12, 32, 48, generator=torch.Generator().manual_seed(1))
    everything, sample = (
        measure(collect(network, data, limit)[1], (12, 32, 48), (3, 1, 1), "zyx") for limit in (None, 2000)
    )
    assert [stage.positions for stage in sample] != [stage.positions for stage in everything]
    for one, other in zip(everything, sample, strict=True):
        assert one.sizes == other.sizes
        for all_of_it, part in zip(one.axes, other.axes, strict=True):
            assert part.mean_mm == pytest.approx(all_of_it.mean_mm, rel=0.1)
            assert part.used == pytest.approx(all_of_it.used, rel=0.1)


def test_autocast_gives_float32_numbers():
    network = build_network(10)
    data = torch.randn(1, 1, *PATCH, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, stages = collect(network, data, 500)
    _, exact = collect(network, data, 500)
    for stage, expected in zip(stages, exact, strict=True):
        assert stage.coords.dtype == torch.float32
        assert (stage.coords - expected.coords).abs().mean() < 0.05 * expected.coords.abs().mean()
        assert not torch.equal(stage.coords, expected.coords)


# ---- statistics ----------------------------------------------------------------------------------------------------


def test_statistics_by_hand():
    stage = draw_stage((3, 4, 6), (1, 2, 2), receptive_field=10, scale=3)
    [number] = measure([stage], (6, 16, 24), (3.0, 0.8, 0.5), ("z", "y", "x"))
    assert number.positions == 2 * 3 * 8 * 12
    assert number.title == "stage 1 of 1 (3 x 4 x 6 to 3 x 8 x 12)"
    coords = stage.coords.double().numpy()
    for index, axis in enumerate(number.axes):
        tanh = np.tanh(coords[:, index])
        sigmoid = 1 / (1 + np.exp(-coords[:, 3 + index]))
        length = np.abs(2.5 * tanh * sigmoid).ravel()
        spacing = (6.0, 3.2, 2.0)[index]
        assert axis.spacing_mm == pytest.approx(spacing)
        assert (axis.scale_voxels, axis.bound_voxels) == (2.5, 2.5)
        assert axis.bound_mm == pytest.approx(2.5 * spacing)
        assert axis.mean_voxels == pytest.approx(length.mean(), rel=1e-5)
        assert axis.mean_mm == pytest.approx(length.mean() * spacing, rel=1e-5)
        assert axis.p95_mm == pytest.approx(np.sort(length)[round(0.95 * (len(length) - 1))] * spacing, rel=0.02)
        assert axis.max_mm == pytest.approx(length.max() * spacing, rel=1e-5)
        assert axis.used == pytest.approx(length.mean() / 2.5, rel=1e-5)
        assert axis.offset_saturated == pytest.approx((np.abs(tanh) > 0.98).mean())
        assert axis.weight_at_0 == pytest.approx((sigmoid < 0.02).mean())
        assert axis.weight_at_1 == pytest.approx((sigmoid > 0.98).mean())
        bins = [(length >= 2.5 * k / BINS) & (length < 2.5 * (k + 1) / BINS) for k in range(BINS)]
        assert axis.histogram == (*(inside.sum() for inside in bins), 0)
        assert 0 < axis.offset_saturated < 0.5
        assert axis.weight_at_0 > 0
        assert axis.states == ()


@pytest.mark.parametrize(
    ("transpose", "axes", "names"),
    [((0, 1, 2), 3, "zyx"), ((2, 0, 1), 3, "xzy"), ((0, 1, 2), 2, "yx"), ((1, 0, 2), 2, "zx")],
)
def test_axis_names(transpose, axes, names):
    assert "".join(axis_names(transpose, axes)) == names


def test_measure_needs_a_size_a_spacing_and_a_name_per_axis():
    with pytest.raises(ValueError, match="a size, a spacing and a name for each of 2 axes"):
        measure([draw_stage((3, 4), (2, 2))], (6, 8), (1, 1, 1), "yx")
