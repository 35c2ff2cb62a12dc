import math
import sys
import types

import pytest
import torch

from nnunet_dtc.architectures import selective_scan as scan_module
from nnunet_dtc.architectures.selective_scan import BACKEND_VARIABLE, selective_scan, torch_selective_scan

# cases, channels, states, length
SIZES = [(1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 3, 64), (3, 1, 2, 65), (2, 3, 1, 131)]


def literal_scan(u, delta, A, B, C, D=None):
    """Equations 2a and 2b with algorithm 2's discretisation: one case, channel, step and state after the other."""
    cases, channels, length = u.shape
    rows = []
    for n in range(cases):
        for e in range(channels):
            state = [torch.zeros((), dtype=u.dtype) for _ in range(A.shape[1])]
            for t in range(length):
                y = torch.zeros((), dtype=u.dtype) if D is None else D[e] * u[n, e, t]
                for s in range(A.shape[1]):
                    state[s] = torch.exp(delta[n, e, t] * A[e, s]) * state[s] + delta[n, e, t] * B[n, s, t] * u[n, e, t]
                    y = y + C[n, s, t] * state[s]
                rows.append(y)
    return torch.stack(rows).reshape(cases, channels, length)


def sequential_scan(u, delta, A, B, C):
    """The same, all cases, channels and states of a step at once: for long sequences."""
    state, steps = torch.zeros(u.shape[0], *A.shape, dtype=u.dtype), []
    for t in range(u.shape[2]):
        state = torch.exp(delta[:, :, t, None] * A) * state + (delta * u)[:, :, t, None] * B[:, None, :, t]
        steps.append((state * C[:, None, :, t]).sum(-1))
    return torch.stack(steps, dim=-1)


def arguments(cases, channels, states, length, dtype=torch.float64, seed=0, largest_step=2.0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    u, B, C = normal(cases, channels, length), normal(cases, states, length), normal(cases, states, length)
    delta = torch.rand(cases, channels, length, generator=generator, dtype=dtype) * largest_step
    A = -3 * torch.rand(channels, states, generator=generator, dtype=dtype)
    return [t.requires_grad_() for t in (u, delta, A, B, C, normal(channels))]


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request, monkeypatch):
    """A sequence in one block, or in blocks of 64 steps (the least)."""
    if request.param == "many blocks":
        monkeypatch.setitem(scan_module._BLOCK_ELEMENTS, "cpu", 1)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_literal_oracle_forward_and_gradients(sizes):
    inputs = arguments(*sizes)
    result, expected = selective_scan(*inputs), literal_scan(*inputs)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    into = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = torch.autograd.grad((result * into).sum(), inputs)
    for grad, true in zip(grads, torch.autograd.grad((expected * into).sum(), inputs), strict=True):
        torch.testing.assert_close(grad, true, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("with_D", [True, False])
def test_gradcheck(with_D, monkeypatch):
    monkeypatch.setitem(scan_module._BLOCK_ELEMENTS, "cpu", 1)
    inputs = arguments(2, 2, 3, 66)
    assert torch.autograd.gradcheck(selective_scan, inputs if with_D else inputs[:5], fast_mode=True)


@pytest.mark.usefixtures("blocks")
def test_fast_and_frozen_states_are_exact():
    """Steps so long that a state is forgotten at once, steps of zero that keep it: no overflow and no 0 / 0."""
    u, delta, A, B, C, _ = arguments(1, 2, 3, 150)
    with torch.no_grad():
        delta[..., 20:90] = 0
        delta[..., 100:110] = 1e4
        A[0] = 0
    result, expected = torch_selective_scan(u, delta, A, B, C), sequential_scan(u, delta, A, B, C)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-9)
    grads = torch.autograd.grad(result.sum(), (u, delta, A, B, C))
    for grad, true in zip(grads, torch.autograd.grad(expected.sum(), (u, delta, A, B, C)), strict=True):
        torch.testing.assert_close(grad, true, rtol=1e-9, atol=1e-9)


def test_trains_on_a_length_of_32768_with_16_states():
    u, delta, A, B, C, D = arguments(1, 4, 16, 32768, torch.float32, largest_step=0.1)
    result = selective_scan(u, delta, A, B, C, D)
    with torch.no_grad():
        wide = [t.double() for t in (u, delta, A, B, C, D)]
        whole = selective_scan(*wide)
        begin = [t[..., :1500] if t.ndim == 3 else t for t in wide[:5]]
        oracle = sequential_scan(*begin) + wide[5][:, None] * begin[0]
    torch.testing.assert_close(whole[..., :1500], oracle, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.double(), whole, rtol=1e-4, atol=1e-4)
    result.square().mean().backward()
    for tensor in (u, delta, A, B, C, D):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()


@pytest.mark.parametrize("length", [4096, 8192])
def test_memory_is_linear_in_length(length, monkeypatch):
    """No more than a block's states at once, and nothing with states per step is kept for the backward pass."""
    budget, states = 2**12, 16
    monkeypatch.setitem(scan_module._BLOCK_ELEMENTS, "cpu", budget)
    held, kept, block_states = [], [], scan_module._block_states

    def watched(*args, **kwargs):
        results = block_states(*args, **kwargs)
        held.append(max(t.numel() for t in results))
        return results

    monkeypatch.setattr(scan_module, "_block_states", watched)
    inputs = arguments(1, 2, states, length, torch.float32)[:5]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        result = torch_selective_scan(*inputs)
    result.sum().backward()
    blocks = length * 2 * states // budget
    assert len(held) == 3 * blocks  # once forward, twice backward
    assert max(held) <= 1.2 * budget
    assert sum(kept) == sum(t.numel() for t in inputs) + blocks * 2 * states


def test_cases_and_channels_do_not_see_each_other():
    u, delta, A, B, C, D = arguments(3, 4, 2, 9)
    whole = selective_scan(u, delta, A, B, C, D)
    one = selective_scan(u[1:2, 2:3], delta[1:2, 2:3], A[2:3], B[1:2], C[1:2], D[2:3])
    torch.testing.assert_close(whole[1:2, 2:3], one, rtol=0, atol=1e-14)


def test_a_step_never_sees_later_ones():
    u, delta, A, B, C, D = arguments(1, 2, 3, 70)
    before = selective_scan(u, delta, A, B, C, D)
    with torch.no_grad():
        for tensor in (u, delta, B, C):
            tensor[..., 41:] += 1
    after = selective_scan(u, delta, A, B, C, D)
    assert torch.equal(before[..., :41], after[..., :41])
    assert not torch.isclose(before[..., 41:], after[..., 41:]).any()


@pytest.mark.parametrize("sizes", [(0, 2, 3, 5), (2, 2, 3, 0)], ids=["no case", "no step"])
def test_nothing_to_scan(sizes):
    inputs = arguments(*sizes)
    result = selective_scan(*inputs)
    assert result.shape == inputs[0].shape
    result.sum().backward()
    assert not inputs[2].grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scanned_in_float32(dtype):
    inputs = [t.detach() for t in arguments(2, 3, 4, 90, torch.float32)]
    low = [t.to(dtype) for t in inputs]
    expected = selective_scan(*(t.float() for t in low))
    result = selective_scan(*low)
    assert result.dtype == dtype
    assert torch.equal(result, expected.to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(selective_scan(*inputs), selective_scan(*inputs, backend="torch"))
        assert selective_scan(*inputs).dtype == torch.float32


def test_tensors_that_are_not_contiguous():
    u, delta, A, B, C, D = (t.detach() for t in arguments(2, 3, 4, 9))
    expected = selective_scan(u, delta, A, B, C, D)
    odd = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (u, delta, B, C)]
    odd = [t.requires_grad_() for t in odd]
    result = selective_scan(odd[0], odd[1], A.t().contiguous().t(), odd[2], odd[3], D)
    assert torch.equal(result, expected)
    result.sum().backward()
    assert all(t.grad.shape == t.shape for t in odd)


def test_operator_checks_and_one_graph_under_compile():
    inputs = arguments(2, 3, 4, 70, torch.float32)
    torch.library.opcheck(torch.ops.nnunet_dtc.selective_scan, tuple(inputs[:5]))
    torch._dynamo.reset()
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    result = compiled(*inputs)
    torch.testing.assert_close(result, selective_scan(*inputs))
    grads = torch.autograd.grad(result.sum(), inputs)
    for grad, true in zip(grads, torch.autograd.grad(selective_scan(*inputs).sum(), inputs), strict=True):
        torch.testing.assert_close(grad, true)


@pytest.fixture
def no_kernel(monkeypatch):
    """Without mamba-ssm, wherever the tests run."""
    scan_module._mamba_kernel.cache_clear()
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", None)
    yield
    scan_module._mamba_kernel.cache_clear()


@pytest.mark.usefixtures("no_kernel")
def test_without_mamba_ssm(monkeypatch):
    inputs = arguments(1, 2, 3, 5)
    with pytest.raises(ImportError, match=r"pip install mamba-ssm; without it .*NNUNET_DTC_SELECTIVE_SCAN=torch"):
        selective_scan(*inputs, backend="mamba_ssm")
    monkeypatch.setenv(BACKEND_VARIABLE, "mamba_ssm")
    with pytest.raises(ImportError, match="pip install mamba-ssm"):
        selective_scan(*inputs)
    assert torch.equal(selective_scan(*inputs, backend="torch"), selective_scan(*inputs, backend="auto"))


def test_mamba_ssms_function_gets_what_it_takes(monkeypatch):
    """A stand-in with the signature and the rules of mamba-ssm's function; the kernel itself needs a GPU."""
    calls = []

    def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        assert all(t.stride(-1) == 1 for t in (u, delta, A, B, C))
        assert all(t.dtype == torch.float32 for t in (u, delta, A, B, C))
        assert (D, z, delta_bias, delta_softplus) == (None, None, None, False)
        calls.append(u.shape)
        return torch_selective_scan(u, delta, A, B, C)

    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    scan_module._mamba_kernel.cache_clear()
    try:
        u, *others = arguments(2, 3, 4, 9, torch.float32)
        u = u.transpose(1, 2).contiguous().transpose(1, 2).bfloat16()
        result = selective_scan(u, *others, backend="mamba_ssm")
        assert torch.equal(result, selective_scan(u, *others, backend="torch"))
        assert calls == [u.shape]
        selective_scan(u, *others)  # "auto" on the CPU: not the kernel
        assert len(calls) == 1
    finally:
        scan_module._mamba_kernel.cache_clear()


def test_errors(monkeypatch):
    u, delta, A, B, C, D = arguments(2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"delta must be \(2, 3, 5\), got \(2, 3, 4\)"):
        selective_scan(u, delta[..., :4], A, B, C, D)
    with pytest.raises(ValueError, match=r"C must be \(2, 4, 5\), got \(2, 3, 5\)"):
        selective_scan(u, delta, A, B, C[:, :3], D)
    with pytest.raises(ValueError, match=r"D must be \(3,\), got \(2,\)"):
        selective_scan(u, delta, A, B, C, D[:2])
    with pytest.raises(ValueError, match=r"A must be \(3, 4\), got \(2, 4\)"):
        selective_scan(u, delta, A[:2], B, C, D)
    with pytest.raises(ValueError, match=r"u must be \(N, E, L\) and A \(E, S\), got u \(3, 5\)"):
        selective_scan(u[0], delta, A, B, C)
    with pytest.raises(TypeError, match=r"floating tensors, got B of torch.int64"):
        selective_scan(u, delta, A, B.long(), C)
    with pytest.raises(ValueError, match="one of auto, torch, mamba_ssm, got backend='cuda'"):
        selective_scan(u, delta, A, B, C, backend="cuda")
    monkeypatch.setenv(BACKEND_VARIABLE, "fast")
    with pytest.raises(ValueError, match="got NNUNET_DTC_SELECTIVE_SCAN='fast'"):
        selective_scan(u, delta, A, B, C)


def test_a_decaying_state_by_hand():
    """One state that starts with 1 and halves with each step: y is its geometric series."""
    u, delta = torch.zeros(1, 1, 6), torch.ones(1, 1, 6)
    u[..., 0] = 1
    ones = torch.ones(1, 1, 6)
    result = selective_scan(u, delta, torch.full((1, 1), -math.log(2)), ones, ones)
    torch.testing.assert_close(result, torch.tensor([[[1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32]]]))
