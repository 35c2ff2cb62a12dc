import pytest
import torch

from nnunet_dtc.architectures.nnmamba import MICCSS, ChannelScale, NnMamba, Stage


@pytest.mark.parametrize("size", [(2, 3, 4), (5, 3)])
def test_miccss_is_the_mean_of_four_reversals(size):
    torch.manual_seed(0)
    miccss = MICCSS(4, len(size)).eval().double()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    entered = miccss.enter(x)
    mean = torch.zeros_like(entered)
    for reverse_steps in (False, True):
        for reverse_channels in (False, True):
            for n in range(2):  # one case at a time, as a list of steps
                steps = list(entered[n].flatten(1).t())
                steps = steps[::-1] if reverse_steps else steps
                steps = [step.flip(0) for step in steps] if reverse_channels else steps
                out = list(miccss.mamba(torch.stack(steps)[None])[0])
                out = [step.flip(0) for step in out] if reverse_channels else out
                out = out[::-1] if reverse_steps else out
                mean[n] += torch.stack(out).t().reshape(mean[n].shape) / 4
    torch.testing.assert_close(miccss(x), miccss.leave(entered + mean))


def test_miccss_sees_everywhere():
    torch.manual_seed(0)
    miccss = MICCSS(4, 2).eval()
    x = torch.randn(1, 4, 3, 4)
    changed = x.clone()
    changed[..., 1, 2] += 1
    inner = []
    miccss.leave.register_forward_pre_hook(lambda module, args: inner.append(args[0]))
    miccss(x), miccss(changed)
    assert ((inner[0] - inner[1]).abs().amax(1) > 0).all()


def test_a_stage_shares_one_miccss_after_its_first_block():
    torch.manual_seed(0)
    stage = Stage(3, 4, 2, blocks=3).eval()
    seen = []
    stage.miccss.register_forward_hook(lambda module, args, result: seen.append((args[0], result)))
    x = torch.randn(1, 3, 6, 8)
    result = stage(x)
    assert result.shape == (1, 4, 3, 4)
    first = stage.first(x)
    second = torch.relu(stage.others[0].convs(first) + first + stage.miccss(first))
    third = torch.relu(stage.others[1].convs(second) + second + stage.miccss(second))
    torch.testing.assert_close(result, third)
    assert torch.equal(seen[0][0], first)
    assert torch.equal(seen[1][0], second)


def test_channel_scale_by_hand():
    torch.manual_seed(0)
    scale, x = ChannelScale(5), torch.randn(2, 5, 3, 4)
    squeeze, expand = scale.factors[0], scale.factors[2]
    assert squeeze.out_features == 1
    for n in range(2):
        means = torch.stack([x[n, c].mean() for c in range(5)])
        hidden = torch.clamp(squeeze.weight @ means + squeeze.bias, min=0)
        factors = torch.sigmoid(expand.weight @ hidden + expand.bias)
        for c in range(5):
            torch.testing.assert_close(scale(x)[n, c], x[n, c] * factors[c])


def test_logits_can_be_negative_and_sizes_are_halved_four_times():
    torch.manual_seed(0)
    network, shapes = NnMamba(2, 3, 3, width=4).eval(), []
    for part in (network.stem, *network.stages):
        part.register_forward_hook(lambda module, args, result: shapes.append(tuple(result.shape[1:])))
    logits = network(torch.randn(1, 2, 16, 32, 48))
    assert logits.shape == (1, 3, 16, 32, 48)
    assert shapes == [(4, 8, 16, 24), (8, 4, 8, 12), (16, 2, 4, 6), (32, 1, 2, 3)]
    assert logits.min() < 0 < logits.max()


@pytest.mark.parametrize("settings", [{"width": 0}, {"blocks": 1}], ids=str)
def test_errors(settings):
    with pytest.raises(ValueError, match="nnMamba needs width >= 1 and at least two blocks per stage, got width="):
        NnMamba(1, 2, 2, **settings)
