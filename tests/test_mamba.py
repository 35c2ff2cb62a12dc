import math

import pytest
import torch
from test_selective_scan import literal_scan
from torch import nn

from nnunet_dtc.architectures.mamba import ORDERS, Mamba, SelectiveSSM, reorder, restore


def literal_ssm(ssm, x):
    """A causal depthwise convolution, SiLU, the coefficients and the scan, from the module's weights."""
    cases, channels, length = x.shape
    width = ssm.conv.weight.shape[2]
    convolved = torch.zeros_like(x)
    for n in range(cases):
        for e in range(channels):
            for t in range(length):
                total = ssm.conv.bias[e]
                for k in range(width):
                    if t - (width - 1 - k) >= 0:
                        total = total + ssm.conv.weight[e, 0, k] * x[n, e, t - (width - 1 - k)]
                convolved[n, e, t] = total * torch.sigmoid(total)
    coefficients = torch.einsum("fe,net->nft", ssm.coefficients.weight, convolved)
    step, B, C = (
        coefficients[:, : ssm.rank],
        coefficients[:, ssm.rank : ssm.rank + ssm.state],
        coefficients[:, -ssm.state :],
    )
    raw = torch.einsum("er,nrt->net", ssm.step.weight, step) + ssm.step.bias[:, None]
    delta = torch.log1p(torch.exp(raw))
    return literal_scan(convolved, delta, -torch.exp(ssm.A_log), B, C, ssm.D)


def literal_mamba(mamba, x, orders):
    """``orders``: for each of the block's scans the steps in the order in which it takes them."""
    projected = torch.einsum("fc,nlc->nfl", mamba.project_in.weight, x)
    inner = projected.shape[1] // 2
    total = torch.zeros_like(projected[:, :inner])
    for ssm, order in zip(mamba.scans, orders, strict=True):
        scanned = literal_ssm(ssm, projected[:, :inner][..., order])
        for place, step in enumerate(order):
            total[..., step] += scanned[..., place]
    gate = projected[:, inner:]
    return torch.einsum("ce,nel->nlc", mamba.project_out.weight, total * gate * torch.sigmoid(gate))


@pytest.mark.parametrize("orders", [("forward",), ("backward",), ("slices",), ORDERS], ids=str)
def test_block_against_literal_loops(orders):
    torch.manual_seed(0)
    slices, rows = 3, 5
    steps = range(slices * rows)
    taken = {
        "forward": list(steps),
        "backward": list(steps)[::-1],
        "slices": [slice_ * rows + row for row in range(rows) for slice_ in range(slices)],
    }
    mamba = Mamba(4, orders, state=3).double()
    x = torch.randn(2, slices * rows, 4, dtype=torch.float64, requires_grad=True)
    result, expected = mamba(x, slices=slices), literal_mamba(mamba, x, [taken[order] for order in orders])
    torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-12)
    wanted = [x, *mamba.parameters()]
    for grad, true in zip(
        torch.autograd.grad(result.square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(grad, true, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("order", ORDERS)
def test_restore_undoes_reorder(order):
    x = torch.arange(2.0 * 3 * 15).reshape(2, 3, 15)
    assert torch.equal(restore(reorder(x, order, 5), order, 5), x)


def test_slices_go_across_the_first_axis():
    volume = torch.arange(2.0 * 3 * 4).reshape(1, 1, 2, 3, 4)
    sequence = reorder(volume.flatten(2), "slices", slices=2)[0, 0]
    assert sequence.tolist() == [volume[0, 0, d, h, w].item() for h in range(3) for w in range(4) for d in range(2)]


def test_forward_is_causal_backward_the_reverse_and_all_orders_see_everything():
    torch.manual_seed(0)
    x = torch.randn(1, 12, 4)
    changed = x.clone()
    changed[:, 6] += 1
    for orders, same in ((("forward",), slice(0, 6)), (("backward",), slice(7, 12))):
        mamba = Mamba(4, orders)
        before, after = mamba(x, 3), mamba(changed, 3)
        assert torch.equal(before[:, same], after[:, same])
        assert not torch.equal(before[:, 6], after[:, 6])
    mamba = Mamba(4, ORDERS)
    assert ((mamba(x, 3) - mamba(changed, 3)).abs().amax(-1) > 0).all()


@pytest.mark.parametrize(("channels", "orders"), [(48, 1), (7, 3)])
def test_parameters_are_those_of_the_paper(channels, orders):
    inner, rank, state, width = 2 * channels, math.ceil(channels / 16), 16, 4
    scan = (
        inner * width
        + inner  # convolution
        + inner * (rank + 2 * state)  # coefficients
        + rank * inner
        + inner  # steps
        + inner * state
        + inner  # A and D
    )
    mamba = Mamba(channels, ORDERS[:orders])
    assert sum(p.numel() for p in mamba.parameters()) == 3 * channels * inner + orders * scan


def test_starts_of_the_coefficients():
    torch.manual_seed(0)
    ssm = SelectiveSSM(512, 16)
    steps = nn.functional.softplus(ssm.step.bias)
    assert 0.00099 < steps.min() < 0.0015
    assert 0.07 < steps.max() < 0.101
    assert 0.006 < steps.log().mean().exp() < 0.016  # log-uniform: the geometric middle of 0.001 and 0.1
    torch.testing.assert_close(-torch.exp(ssm.A_log[5]), -torch.arange(1.0, 17))
    assert torch.equal(ssm.D, torch.ones(512))


@pytest.mark.parametrize("orders", [(), ("forward", "sideways")])
def test_orders_are_checked(orders):
    with pytest.raises(ValueError, match="orders must be some of forward, backward, slices, got"):
        Mamba(4, orders)


def test_bfloat16_autocast_is_near_float32():
    torch.manual_seed(0)
    mamba = Mamba(16, ORDERS)
    x = torch.randn(2, 60, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = mamba(x, slices=5)
    assert low.dtype == torch.bfloat16
    full = mamba(x, slices=5)
    assert (low.float() - full).abs().max() < 0.03 * full.abs().max()
    low.float().square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in mamba.parameters())
