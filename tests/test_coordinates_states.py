"""The states of coordinates, and the sentences that explain them."""

import math

import torch
from coordinates_example import PATCH, build_network

from nnunet_dtc.ops.coordinates import BINS, StageCoordinates, collect, measure
from nnunet_dtc.ops.deformation import Deformation
from nnunet_dtc.ops.dtc import is_dtc
from nnunet_dtc.study.coordinates.state_sentences import describe


def states_of(coords, sizes=(4, 6), receptive_field=4.0, offset="tanh", weight="sigmoid"):
    stage = StageCoordinates("decoder.up", sizes, (2, 2), Deformation(receptive_field, offset, weight), coords)
    [number] = measure([stage], (16, 12), (1.0, 2.0), ("y", "x"))
    return number, "\n".join(describe([number]))


def test_constant_shifts_and_saturated_activations_are_reported():
    healthy = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    number, text = states_of(healthy)
    assert [axis.states for axis in number.axes] == [(), ()]
    assert text == "No shift is constant, and no offset or weight is saturated at most positions."

    coords = healthy.clone()
    coords[:, 1], coords[:, 3] = 0.2, 0.1
    number, text = states_of(coords)
    assert [axis.states for axis in number.axes] == [(), ("constant",)]
    assert "Stage 1 of 1 (4 x 6 to 8 x 12), decoder.up, axis x: the shift is the same at all positions" in text
    length = math.tanh(0.2) / (1 + math.exp(-0.1)) * 1 * (2.0 * 12 / 6)
    assert f"({length:.2g} mm)" in text

    coords = healthy.clone()
    coords[:, 0, :5] = -4.0  # 5 of 8 rows
    number, text = states_of(coords)
    assert [axis.states for axis in number.axes] == [("offset_saturated",), ()]
    assert "axis y: the offset is saturated (absolute tanh above 0.98) at 6" in text

    coords = healthy.clone()
    coords[:, 2:, :, :7], coords[:, 2:, :, 7:] = -6.0, 1.0
    number, text = states_of(coords)
    assert [axis.states for axis in number.axes] == [("weight_at_0",), ("weight_at_0",)]
    assert "axes y and x: the weight is saturated at 0 (below 0.02) at 58 % and 58 % of the positions" in text

    coords = healthy.clone()
    coords[:, 3] = 6.0
    number, text = states_of(coords)
    assert [axis.states for axis in number.axes] == [(), ("weight_at_1",)]
    assert "axis x: the weight is saturated at 1 (above 0.98) at 100 %" in text

    coords[:, 1] = 9.0  # all samples are at the bound
    assert states_of(coords)[0].axes[1].states == ("constant", "offset_saturated", "weight_at_1")


def test_the_shifts_of_a_new_block_are_not_constant():
    """Coordinates start from small weights, but vary more than a constant shift for features of ordinary size."""
    network = build_network(10)
    for block in filter(is_dtc, network.modules()):
        block.reset_coords()
    _, stages = collect(network, torch.randn(1, 1, *PATCH, generator=torch.Generator().manual_seed(1)))
    numbers = measure(stages, PATCH, (1, 1, 1), "zyx")
    assert all(axis.states == () for stage in numbers for axis in stage.axes)
    assert all(axis.used < 0.02 for stage in numbers for axis in stage.axes)


def test_special_fields_and_variants():
    coords = 2 * torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    number, text = states_of(coords, receptive_field=0)
    assert [axis.states for axis in number.axes] == [("fixed",)] * 2
    assert [axis.max_mm for axis in number.axes] == [0, 0]
    assert math.isnan(number.axes[0].used)
    assert text == "The receptive field is 0: no sample is shifted, this is the control with the same parameters."

    number, _ = states_of(coords, receptive_field=math.inf)
    assert [axis.bound_voxels for axis in number.axes] == [2, 3]

    for variant in ({"offset": "linear"}, {"weight": "linear"}):
        number, _ = states_of(coords, **variant)
        for axis in number.axes:
            assert math.isnan(axis.bound_voxels)
            assert axis.scale_voxels == 1
            assert axis.histogram[BINS] > 0  # longer than RF / 4
            assert sum(axis.histogram) == 8 * 12
            assert math.isnan(axis.offset_saturated) is ("offset" in variant)
            assert math.isnan(axis.weight_at_0) is ("weight" in variant)

    number, text = states_of(coords[:, :, :2], sizes=(1, 6))
    assert number.axes[0].states == ("single",)
    assert "axis y: the map has one voxel along it" in text

    coords[0, 1, 3, 3] = math.nan
    number, text = states_of(coords)
    assert [axis.states for axis in number.axes] == [(), ("not finite",)]
    assert "axis x: the coordinates are NaN or infinite" in text
