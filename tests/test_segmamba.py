import pytest
import torch
from torch import nn

from nnunet_dtc.architectures.segmamba import (
    ChannelMLP,
    GatedSpatialConvolution,
    SegMamba,
    TriOrientatedMamba,
    uncertainty_weighting,
)

SMALL = {"widths": (4, 6, 8, 10), "bottleneck": 12, "depths": (1, 2, 1, 1)}


def test_uncertainty_by_hand():
    z = torch.tensor([[[0.0, 4.0], [0.0, 2.0]]])  # one case, two channels, two places
    certain = 1 / (1 + torch.exp(torch.tensor(-3.0)))  # the sigmoid of the second place's mean
    first, second = 0.5 * torch.log(torch.tensor(2.0)), -certain * torch.log(certain)
    expected = z * (2 - torch.stack([first, second]))
    torch.testing.assert_close(uncertainty_weighting(z), expected)


def test_uncertainty_of_large_values_is_finite():
    z = torch.tensor([-3e4, -100.0, 0, 100, 3e4]).reshape(1, 1, 5).requires_grad_()
    for dtype in (torch.float32, torch.bfloat16):
        result = uncertainty_weighting(z.to(dtype))
        assert result.dtype == dtype
        torch.testing.assert_close(result[..., [0, 1, 3, 4]].float(), 2 * z[..., [0, 1, 3, 4]], rtol=0.01, atol=0)
        result.float().sum().backward()
        assert z.grad.isfinite().all()


def instance_norm(x):
    axes = tuple(range(2, x.ndim))
    mean = x.mean(axes, keepdim=True)
    return (x - mean) / torch.sqrt(x.var(axes, unbiased=False, keepdim=True) + 1e-5)


@pytest.mark.parametrize("axes", [2, 3])
def test_gated_spatial_convolution_is_the_papers_equation(axes):
    torch.manual_seed(0)
    gsc = GatedSpatialConvolution(3, axes)
    z = torch.randn(2, 3, *(5, 4, 3)[:axes])
    conv = {2: nn.functional.conv2d, 3: nn.functional.conv3d}[axes]

    def block(part, x, padding):
        return torch.relu(instance_norm(conv(x, part[0].weight, part[0].bias, padding=padding)))

    expected = z + block(gsc.fuse, block(gsc.features, z, 1) * block(gsc.gate, z, 0), 1)
    torch.testing.assert_close(gsc(z), expected)
    kernels = [part[0].kernel_size for part in (gsc.features, gsc.gate, gsc.fuse)]
    assert kernels == [(3,) * axes, (1,) * axes, (3,) * axes]


@pytest.mark.parametrize("size", [(2, 3, 4), (5, 3)])
def test_tri_orientated_mamba_sums_three_orders(size):
    """Each order by itself: the other scans are silenced by C = 0 and D = 0."""
    torch.manual_seed(0)
    tom = TriOrientatedMamba(4).double()
    z = torch.randn(1, 4, *size, dtype=torch.float64)

    def alone(kept, volume):
        scans = tom.mamba.scans
        saved = [{key: value.clone() for key, value in scan.state_dict().items()} for scan in scans]
        with torch.no_grad():
            for index, scan in enumerate(scans):
                if index != kept:
                    scan.coefficients.weight[-scan.state :] = 0
                    scan.D.zero_()
        result = tom(volume) - volume
        for scan, state in zip(scans, saved, strict=True):
            scan.load_state_dict(state)
        return result

    torch.testing.assert_close(tom(z), z + sum(alone(kept, z) for kept in range(3)))

    def changed_places(kept):
        """Which places a change at the middle place reaches, in row-major order."""
        other = z.clone()
        places = z[0, 0].numel()
        other.view(1, 4, -1)[:, 1, places // 2] += 1  # in one channel: the normalisation would undo it in all
        reached = ((alone(kept, other) - alone(kept, z)).abs().amax(1) > 1e-12).flatten()
        return reached, places // 2

    reached, middle = changed_places(0)
    assert reached.tolist() == [place >= middle for place in range(len(reached))]
    reached, middle = changed_places(1)
    assert reached.tolist() == [place <= middle for place in range(len(reached))]
    reached, middle = changed_places(2)
    slices, rest = size[0], len(reached) // size[0]
    rank = [(place % rest) * slices + place // rest for place in range(len(reached))]  # slice index the fastest
    assert reached.tolist() == [rank[place] >= rank[middle] for place in range(len(reached))]


def test_channel_mlp_works_at_every_place_by_itself():
    torch.manual_seed(0)
    mlp, z = ChannelMLP(3), torch.randn(2, 3, 4, 5)
    changed = z.clone()
    changed[:, :, 2, 3] += torch.tensor([0.5, -1, 2])
    difference = (mlp(changed) - mlp(z)).abs().amax((0, 1))
    assert difference[2, 3] > 0
    difference[2, 3] = 0
    assert not difference.any()


def test_skip_connections_have_the_sizes_of_the_stages():
    network = SegMamba(2, 3, 3, **SMALL)
    shapes = []
    for skip in network.skips:
        skip.register_forward_hook(lambda module, args, result: shapes.append((args[0].shape[1:], result.shape[1:])))
    assert network(torch.randn(1, 2, 16, 32, 48)).shape == (1, 3, 16, 32, 48)
    assert shapes == [
        ((2, 16, 32, 48), (4, 16, 32, 48)),
        ((4, 8, 16, 24), (6, 8, 16, 24)),
        ((6, 4, 8, 12), (8, 4, 8, 12)),
        ((8, 2, 4, 6), (10, 2, 4, 6)),
        ((10, 1, 2, 3), (12, 1, 2, 3)),
    ]
    scans = [sum(isinstance(module, TriOrientatedMamba) for module in stage) for stage in network.stages]
    assert scans == [1, 2, 1, 1]


def test_skips_get_weighted_features(monkeypatch):
    """FUE stands between every stage and its skip connection, and nowhere else."""
    from nnunet_dtc.architectures import segmamba

    network, seen = SegMamba(1, 2, 2, **SMALL), []
    monkeypatch.setattr(segmamba, "uncertainty_weighting", lambda z: seen.append(z) or torch.zeros_like(z))
    inputs = []
    for skip in network.skips[1:]:
        skip.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    network(torch.randn(1, 1, 32, 48))
    assert [z.shape[1] for z in seen] == [4, 6, 8, 10]
    assert not any(skip_input.any() for skip_input in inputs)


def test_a_stage_is_one_graph_under_compile():
    torch.compiler.reset()
    torch.manual_seed(0)
    stage, x = SegMamba(1, 2, 3, **SMALL).stages[1], torch.randn(2, 4, 4, 6, 8)
    compiled = torch.compile(stage, fullgraph=True, backend="aot_eager")
    result = compiled(x)
    torch.testing.assert_close(result, stage(x), rtol=1e-4, atol=1e-5)
    result.square().mean().backward()
    assert all(p.grad is not None for p in stage.parameters())


@pytest.mark.parametrize(
    "settings",
    [{"widths": (4, 6, 8)}, {"depths": (1, 1, 0, 1)}, {"widths": (4, 6, 8, 10, 12)}, {"bottleneck": 0}],
    ids=str,
)
def test_errors(settings):
    with pytest.raises(ValueError, match="four stages, with positive widths and depths, got widths="):
        SegMamba(1, 2, 2, **settings)
