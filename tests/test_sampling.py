import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import deformable_upsample_loops

from nnunet_dtc import deformable_upsample

CASES = [  # size, stride: deliberately asymmetrical
    ((5, 3), (2, 2)),
    ((1, 7), (3, 1)),
    ((3, 5), (1, 2)),
    ((1, 1), (1, 4)),
    ((2, 3, 5), (1, 2, 2)),
    ((3, 1, 4), (2, 1, 3)),
    ((1, 1, 1), (1, 1, 1)),
    ((3, 2, 2), (2, 2, 2)),
    ((2, 5, 1), (4, 1, 2)),
]
FIELDS = [0, 1, 2, 2.5, 10, math.inf]
VARIANTS = [
    {},
    {"weight": "none"},
    {"weight": "linear"},
    {"offset": "linear"},
    {"weight": "none", "offset": "linear"},
    {"weight": "linear", "offset": "linear"},
]
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def inputs(size, stride, *, batch=2, channels=3, weight="sigmoid", dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    heads = len(size) * (1 if weight == "none" else 2)
    out = [n * step for n, step in zip(size, stride, strict=True)]
    value = torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)
    coords = torch.randn(batch, heads, *out, generator=generator, dtype=torch.float64) * scale
    return value.to(dtype), coords.to(dtype)


def interpolate(value, stride):
    mode = {4: "bilinear", 5: "trilinear"}[value.ndim]
    return F.interpolate(value, scale_factor=tuple(map(float, stride)), mode=mode, align_corners=False)


@pytest.mark.parametrize(("size", "stride"), CASES)
@pytest.mark.parametrize("receptive_field", FIELDS)
def test_agrees_with_loops_forward_and_gradients(size, stride, receptive_field):
    value, coords = inputs(size, stride)
    leaves = [value.requires_grad_(), coords.requires_grad_()]
    result = deformable_upsample(value, coords, stride, receptive_field)
    expected = deformable_upsample_loops(value, coords, stride, receptive_field)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-11)
    upstream = torch.randn(result.shape, dtype=result.dtype, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(
        torch.autograd.grad(result, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize(("size", "stride"), [((3, 5), (1, 2)), ((2, 3, 5), (2, 1, 3))])
def test_variants_of_table_4_agree_with_loops(size, stride, variant):
    value, coords = inputs(size, stride, weight=variant.get("weight", "sigmoid"), scale=2)
    result = deformable_upsample(value, coords, stride, 4, **variant)
    expected = deformable_upsample_loops(value, coords, stride, 4, **variant)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-11)


def test_the_six_rows_of_table_4_are_six_functions():
    results = []
    for variant in VARIANTS:
        value, coords = inputs((4, 5), (2, 2), scale=2)
        channels = 2 if variant.get("weight") == "none" else 4
        results.append(deformable_upsample(value, coords[:, :channels], (2, 2), 4, **variant))
    for one, other in itertools.combinations(results, 2):
        assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("size", "stride"), CASES)
def test_zero_coords_and_rf_0_are_linear_interpolation(size, stride, dtype):
    value, coords = inputs(size, stride, dtype=dtype)
    expected = interpolate(value.double(), stride)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(
        deformable_upsample(value, torch.zeros_like(coords), stride, 10).double(), expected, **tolerance
    )
    torch.testing.assert_close(deformable_upsample(value, coords, stride, 0).double(), expected, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("size", "stride"), [((9, 31), (3, 1)), ((5, 14, 40), (1, 2, 2))])
def test_lower_precisions_agree_with_float64(size, stride, dtype):
    value, coords = inputs(size, stride, dtype=dtype)
    result = deformable_upsample(value, coords, stride, 10)
    assert result.dtype == dtype
    expected = deformable_upsample(value.double(), coords.double(), stride, 10)
    torch.testing.assert_close(result.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_are_float32_in_half_precision(dtype):
    """Sampling a ramp gives the positions, which in half precision would be off by voxels."""
    length = 400
    ramp = torch.arange(length, dtype=torch.float32).expand(1, 1, 3, length).contiguous()
    coords = torch.zeros(1, 4, 3, length, dtype=dtype)
    sampled = deformable_upsample(ramp, coords, (1, 1), 2)
    torch.testing.assert_close(sampled, ramp, rtol=0, atol=1e-3)


@pytest.mark.parametrize("receptive_field", FIELDS)
@pytest.mark.parametrize(("size", "stride"), [((9, 12), (1, 2)), ((9, 12, 16), (2, 1, 3))])
def test_no_shift_is_longer_than_the_bound(size, stride, receptive_field):
    """Sampling ramps along each axis gives the positions; offsets and weights are saturated."""
    axes = len(size)
    value = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij"))[None]
    _, coords = inputs(size, stride, batch=1, seed=3)
    coords = torch.cat([coords[:, :axes].sign() * 50, torch.full_like(coords[:, axes:], 50)], dim=1)
    positions = deformable_upsample(value, coords, stride, receptive_field)[0]
    for a in range(axes):
        bound = size[a] / 2 if math.isinf(receptive_field) else receptive_field / 4
        shape = [1] * axes
        shape[a] = -1
        start = ((torch.arange(size[a] * stride[a], dtype=torch.float64) + 0.5) / stride[a] - 0.5).view(shape)
        shift = (positions[a] - start.clamp(0, size[a] - 1)).abs()
        assert shift.max() <= bound + 1e-9
        inside = (start > bound) & (start < size[a] - 1 - bound)
        if bound > 0 and inside.any():  # away from the border the saturated shift is the bound
            reached = shift.movedim(a, 0)[inside.flatten()]
            torch.testing.assert_close(reached, torch.full_like(reached, bound), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("size", "stride"), [((4, 3), (1, 2)), ((2, 3, 4), (1, 2, 2))])
def test_cases_of_a_batch_are_independent(size, stride):
    value, coords = inputs(size, stride, batch=3)
    together = deformable_upsample(value, coords, stride, 10)
    for n in range(3):
        alone = deformable_upsample(value[n : n + 1], coords[n : n + 1], stride, 10)
        torch.testing.assert_close(together[n : n + 1], alone, rtol=0, atol=0)
    value[1] = math.nan
    assert not deformable_upsample(value, coords, stride, 10)[[0, 2]].isnan().any()


@pytest.mark.parametrize(("size", "stride"), CASES)
def test_batch_of_zero(size, stride):
    value, coords = inputs(size, stride, batch=0)
    result = deformable_upsample(value.requires_grad_(), coords.requires_grad_(), stride)
    assert result.shape == (0, 3, *(n * step for n, step in zip(size, stride, strict=True)))
    result.sum().backward()
    assert value.grad.shape == value.shape


@pytest.mark.parametrize("receptive_field", [0, 2, math.inf])
@pytest.mark.parametrize(
    ("size", "stride"), [((3, 2), (2, 1)), ((1, 3), (1, 3)), ((2, 3, 2), (1, 2, 2)), ((2, 2, 1), (2, 1, 3))]
)
def test_gradcheck(size, stride, receptive_field):
    value, coords = inputs(size, stride, batch=1, channels=2)
    assert torch.autograd.gradcheck(
        lambda v, c: deformable_upsample(v, c, stride, receptive_field),
        (value.requires_grad_(), coords.requires_grad_()),
        atol=1e-6,
    )


def test_at_rf_0_coords_have_zero_gradients_not_none():
    value, coords = inputs((2, 3, 4), (1, 2, 2))
    deformable_upsample(value, coords.requires_grad_(), (1, 2, 2), 0).sum().backward()
    assert coords.grad is not None
    assert not coords.grad.any()


def test_memory_layout_does_not_matter():
    value, coords = inputs((3, 4, 5), (1, 2, 2), dtype=torch.float32)
    expected = deformable_upsample(value, coords, (1, 2, 2))
    last = torch.channels_last_3d
    result = deformable_upsample(value.to(memory_format=last), coords.to(memory_format=last), (1, 2, 2))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"stride": (0, 2, 2)}, ValueError, r"stride must be positive on every axis, got stride=\(0, 2, 2\)"),
        ({"stride": (2, 2)}, ValueError, r"one entry per spatial axis \(3\), got stride=\(2, 2\)"),
        ({"stride": (1, 2.5, 2)}, ValueError, "stride must be integers"),
        ({"receptive_field": -1}, ValueError, "receptive_field must be a number >= 0 or infinity, got -1"),
        ({"receptive_field": math.nan}, ValueError, "got nan"),
        ({"receptive_field": "wide"}, ValueError, "got 'wide'"),
        ({"offset": "sigmoid"}, ValueError, "offset must be one of"),
        ({"weight": None}, ValueError, "weight must be one of"),
        ({"value": torch.zeros(2, 3, 2, 3, 4, dtype=torch.int64)}, TypeError, "floating tensors, got value.dtype"),
        ({"value": torch.zeros(2, 3, 4)}, ValueError, "one entry per spatial axis|value must be"),
        ({"coords": torch.zeros(2, 6, 2, 6, 7)}, ValueError, r"= \(2, 6, 2, 6, 8\).*got \(2, 6, 2, 6, 7\)"),
        ({"coords": torch.zeros(1, 6, 2, 6, 8)}, ValueError, r"got \(1, 6, 2, 6, 8\)"),
        ({"coords": torch.zeros(2, 3, 2, 6, 8)}, ValueError, r"got \(2, 3, 2, 6, 8\)"),
        ({"weight": "none"}, ValueError, r"= \(2, 3, 2, 6, 8\)"),
        ({"value": torch.zeros(2, 3, 0, 3, 4), "coords": torch.zeros(2, 6, 0, 6, 8)}, ValueError, "at least one voxel"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"value": torch.zeros(2, 3, 2, 3, 4), "coords": torch.zeros(2, 6, 2, 6, 8), "stride": (1, 2, 2)}
    deformable_upsample(**arguments)
    with pytest.raises(error, match=message):
        deformable_upsample(**{**arguments, **change})


def test_numpy_integers_are_integers():
    value, coords = inputs((3, 4), (2, 2))
    expected = deformable_upsample(value, coords, 2)
    assert torch.equal(deformable_upsample(value, coords, np.int64(2)), expected)
    assert torch.equal(deformable_upsample(value, coords, np.array([2, 2])), expected)
