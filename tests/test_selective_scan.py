import math
import os
import re
import subprocess
import sys
import types
import warnings
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from nnunet_dtc.architectures import selective_scan as scan_module
from nnunet_dtc.architectures.mamba import ORDERS, Mamba
from nnunet_dtc.architectures.scan import check, reference
from nnunet_dtc.architectures.selective_scan import (
    BACKEND_VARIABLE,
    scan_backend,
    scan_note,
    selective_scan,
    why_missing,
    why_not,
)
from nnunet_dtc.ops import self_check
from nnunet_dtc.study.complexity import count_macs

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
        monkeypatch.setitem(reference.BLOCK_ELEMENTS, "cpu", 1)


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
    monkeypatch.setitem(reference.BLOCK_ELEMENTS, "cpu", 1)
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
    result, expected = selective_scan(u, delta, A, B, C), sequential_scan(u, delta, A, B, C)
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
def test_what_is_kept_for_the_backward_pass_is_linear_in_length(length, monkeypatch):
    """The arguments, and one state for each block."""
    budget, channels, states = 2**12, 2, 16
    monkeypatch.setitem(reference.BLOCK_ELEMENTS, "cpu", budget)
    kept, inputs = [], arguments(1, channels, states, length, torch.float32)[:5]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        selective_scan(*inputs)
    blocks = length * channels * states // budget
    assert sum(kept) == sum(t.numel() for t in inputs) + blocks * channels * states


class LiveStorage(TorchDispatchMode):
    """Bytes that are made inside and not freed yet, and the most that there were; ``before``: tensors of before."""

    def __init__(self, *before):
        super().__init__()
        self.now, self.peak, self.known = 0, 0, {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        return result

    def freed(self, key, size):
        self.known.discard(key)
        self.now -= size


def test_live_storage_counts_what_is_alive():
    before = torch.zeros(2000)
    with LiveStorage(before) as live:
        first = before[:1000].clone()
        second = first.view(10, 100)
        del first
        third = second + 1
        del second
        third.add_(1)
        fourth = third * 2
    assert live.peak == 2 * 4000
    assert live.now == third.nbytes + fourth.nbytes
    del third
    assert live.now == 4000


@pytest.mark.parametrize("blocks", [1, 3])
def test_buffers_of_states_that_are_alive_at_once(blocks, monkeypatch):
    """Two in the forward pass, three in the backward pass, and less than one of all that has no states."""
    cases, channels, states, length = 1, 64, 16, 4096
    block = cases * channels * states * length // blocks
    monkeypatch.setitem(reference.BLOCK_ELEMENTS, "cpu", block)
    inputs = [t.detach() for t in arguments(cases, channels, states, length, torch.float32)[:5]]
    with LiveStorage(*inputs) as live:
        y, starts = reference.forward(*inputs)
    results = y.nbytes + starts.nbytes
    assert 2 * 4 * block < live.peak < 2.5 * 4 * block + results
    grad_y = torch.ones_like(y)
    with LiveStorage(*inputs, grad_y, starts) as live:
        grads = reference.backward(grad_y, *inputs, starts)
    results = sum(grad.nbytes for grad in grads)
    assert 3 * 4 * block < live.peak < 3.6 * 4 * block + results


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_block_of_states_is_small_beside_a_gpu_of_8_gb(device):
    assert 4 * reference.BLOCK_ELEMENTS[device] <= 128 * 2**20
    u = torch.empty(2, 96, 10**6, device="meta")  # of no backend of its own: as on CUDA
    assert reference.block_steps(u, torch.empty(96, 16)) * 2 * 96 * 16 <= 2**25


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


@pytest.mark.parametrize("blocks", [1, 4])
def test_products_are_counted(blocks, monkeypatch):
    cases, channels, states, length = 2, 3, 5, 256
    monkeypatch.setitem(reference.BLOCK_ELEMENTS, "cpu", cases * channels * states * length // blocks)
    inputs = arguments(cases, channels, states, length)[:5]
    with FlopCounterMode(display=False) as forward:
        y = selective_scan(*inputs)
    products = 0
    for _ in range(cases * channels * states * length):
        products += 1  # exp(delta A) * h
        products += 1  # (delta u) * B
        products += 1  # C * h
    assert forward.get_total_flops() == 2 * products
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    # the states anew (2), G (2); for C: dy h, B: G delta u, delta u: G B, delta A: G (exp() h), and that times A, delta
    assert backward.get_total_flops() == 2 * (2 + 2 + 6) * cases * channels * states * length


def test_macs_of_a_block_leave_nothing_out():
    channels, orders, (height, width) = 8, 2, (3, 5)
    inner, rank, state, conv, steps = 2 * channels, 1, 16, 4, height * width

    class Sequences(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mamba = Mamba(channels, ORDERS[:orders])

        def forward(self, x):
            return self.mamba(x.flatten(2).transpose(1, 2))  # (N, L, C)

    counted = count_macs(Sequences(), channels, (height, width))
    one_order = (
        inner * conv * (steps + conv - 1)  # convolution, padded on both sides
        + steps * inner * (rank + 2 * state)  # coefficients
        + steps * rank * inner  # step sizes
        + 3 * steps * inner * state  # scan
    )
    assert counted.uncounted == ()
    assert counted.total == steps * channels * 2 * inner + orders * one_order + steps * inner * channels


def forget():
    why_missing.cache_clear()
    check.forget()


@pytest.fixture(autouse=True)
def no_check_before(monkeypatch):
    """Kernels are checked only where a test asks for it, and what was found is forgotten."""
    monkeypatch.setenv(self_check.VARIABLE, "0")
    yield
    forget()


@pytest.fixture
def no_kernel(monkeypatch):
    """Without mamba-ssm, wherever the tests run."""
    forget()
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    monkeypatch.delitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", raising=False)
    yield
    forget()


@pytest.fixture
def kernel(monkeypatch):
    """A stand-in with the signature, the rules and the kind (an autograd function) of mamba-ssm's; the kernel itself
    needs a GPU. Gives the list of its calls."""
    calls = []

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u, delta, A, B, C):
            calls.append(("forward", u.shape))
            y, starts = reference.forward(u, delta, A, B, C)
            ctx.save_for_backward(u, delta, A, B, C, starts)
            return y

        @staticmethod
        def backward(ctx, grad_y):
            assert grad_y.stride(-1) == 1
            calls.append(("backward", grad_y.shape))
            return reference.backward(grad_y, *ctx.saved_tensors)

    def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        assert all(t.stride(-1) == 1 for t in (u, delta, A, B, C))
        assert all(t.dtype == torch.float32 for t in (u, delta, A, B, C))
        assert (D, z, delta_bias, delta_softplus) == (None, None, None, False)
        return Kernel.apply(u, delta, A, B, C)

    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    forget()
    yield calls
    forget()


@pytest.mark.usefixtures("no_kernel")
def test_without_mamba_ssm(monkeypatch):
    inputs = arguments(1, 2, 3, 5, torch.float32)
    message = r'pip install "nnunet-dtc\[mamba\]"; another one .*NNUNET_DTC_SELECTIVE_SCAN=torch'
    with pytest.raises(ImportError, match=message):
        selective_scan(*inputs, backend="mamba_ssm")
    assert scan_note("cpu") == "The selective scan is computed by PyTorch."
    monkeypatch.setenv(BACKEND_VARIABLE, "mamba_ssm")
    with pytest.raises(ImportError, match=message):
        selective_scan(*inputs)
    assert torch.equal(selective_scan(*inputs, backend="torch"), selective_scan(*inputs, backend="auto"))


@pytest.mark.usefixtures("no_kernel")
def test_without_any_kernel(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert scan_backend("cuda") == "torch"
    assert scan_note("cuda") == (
        "The selective scan is computed by PyTorch, which is slow on CUDA. mamba-ssm's kernel: mamba_ssm is not "
        'installed: pip install "nnunet-dtc[mamba]"; Triton: torch sees no CUDA device.'
    )
    monkeypatch.setenv(BACKEND_VARIABLE, "torch")
    assert scan_note("cuda") == "The selective scan is computed by PyTorch."
    with pytest.raises(ImportError, match="'triton' cannot be used: torch sees no CUDA device; another one is"):
        selective_scan(*arguments(1, 2, 3, 5, torch.float32), backend="triton")


def test_a_mamba_ssm_that_does_not_load(monkeypatch, kernel):
    def broken(name):
        raise OSError("undefined symbol")

    monkeypatch.setattr(scan_module.importlib, "import_module", broken)
    assert why_not("mamba_ssm") == "mamba-ssm cannot be used: undefined symbol"
    assert scan_backend("cuda") == "torch"


def test_mamba_ssms_function_gets_what_it_takes(kernel):
    u, *others = arguments(2, 3, 4, 9, torch.float32)
    low = u.detach().transpose(1, 2).contiguous().transpose(1, 2).bfloat16().requires_grad_()
    others[2] = others[2].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    result = selective_scan(low, *others, backend="mamba_ssm")
    expected = selective_scan(low, *others, backend="torch")
    assert torch.equal(result, expected)
    assert kernel == [("forward", u.shape)]
    wanted = (low, *others)
    grads = torch.autograd.grad(result.float().square().sum(), wanted)
    for grad, true in zip(grads, torch.autograd.grad(expected.float().square().sum(), wanted), strict=True):
        torch.testing.assert_close(grad, true)
    assert kernel == [("forward", u.shape), ("forward", u.shape), ("backward", u.shape)]
    with torch.no_grad():
        assert torch.equal(selective_scan(low, *others, backend="mamba_ssm"), expected)
    selective_scan(u, *others)  # "auto" on the CPU: not the kernel
    assert len(kernel) == 4


def test_the_kernels_operator_is_checked_and_counted(kernel):
    inputs = arguments(2, 3, 4, 70, torch.float32)[:5]
    torch.library.opcheck(torch.ops.nnunet_dtc.selective_scan_mamba_ssm, tuple(inputs))
    with FlopCounterMode(display=False) as counter:
        y = selective_scan(*inputs, backend="mamba_ssm")
    assert counter.get_total_flops() == 2 * 3 * 2 * 3 * 4 * 70
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * 10 * 2 * 3 * 4 * 70


def test_auto_takes_the_kernel_on_cuda_in_float32_alone(kernel, monkeypatch):
    assert scan_backend("cuda") == "mamba_ssm"
    assert scan_note("cuda") == "The selective scan is computed by mamba-ssm's kernel."
    assert scan_backend("cuda", torch.float64) == scan_backend("cpu") == scan_backend("mps") == "torch"
    monkeypatch.setattr(scan_module, "KERNEL_DEVICE", "cpu")  # from here on the CPU is what CUDA is
    inputs = arguments(1, 2, 3, 5, torch.float32)
    selective_scan(*(t.bfloat16() for t in inputs))
    assert len(kernel) == 1
    selective_scan(inputs[0], *(t.double() for t in inputs[1:]))  # float64 is the widest
    selective_scan(*inputs, backend="torch")
    assert len(kernel) == 1
    monkeypatch.setenv(BACKEND_VARIABLE, "torch")
    assert scan_backend("cuda") == "torch"
    assert scan_note("cuda") == "The selective scan is computed by PyTorch."
    with pytest.raises(TypeError, match=r"'mamba_ssm' computes in torch.float32, got torch.float64"):
        selective_scan(*(t.double() for t in inputs), backend="mamba_ssm")


def broken(kind, forward, backward):
    """The two functions of a kernel, broken in some way."""

    def wrong_forward(*inputs):
        y, starts = forward(*inputs)
        if kind == "swapped cases":
            y = y.flip(0)
        if kind == "a store is missing":
            y[:, -1] = 0
        return y, starts

    def wrong_backward(*inputs):
        if kind == "it does not compile":
            raise RuntimeError("out of resource: shared memory\nRequired: 1, Hardware limit: 0")
        u, delta, A, B, C, D = backward(*inputs)
        return u, -delta if kind == "a wrong sign" else delta, A, B, C, D

    return wrong_forward, wrong_backward


@pytest.fixture
def stand_in(monkeypatch):
    """PyTorch's scan in place of Triton's kernels, the CPU in place of CUDA, and the check before the first use."""
    cuda = pytest.importorskip("nnunet_dtc.architectures.scan.cuda", exc_type=ImportError)

    def forward(u, delta, A, B, C, D):
        y, _ = reference.forward(*(t.float() for t in (u, delta, A, B, C)))
        y = y + D[:, None] * u.float()
        result, starts = cuda.empty_outputs(u, delta, A, B, C, D)
        return result.copy_(y), starts

    def backward(grad_y, u, delta, A, B, C, D, starts):
        inputs = [t.float() for t in (u, delta, A, B, C)]
        grads = reference.backward(grad_y.float(), *inputs, reference.forward(*inputs)[1])
        by_u = grads[0] + D[:, None] * grad_y.float()
        results = cuda.empty_gradients(grad_y, u, delta, A, B, C, D, starts)
        by_D = (grad_y.float() * u.float()).sum((0, 2))
        return tuple(to.copy_(true) for to, true in zip(results, (by_u, *grads[1:], by_D), strict=True))

    def use(kind=None):
        for name, function in zip(("launch_forward", "launch_backward"), broken(kind, forward, backward), strict=True):
            monkeypatch.setattr(cuda, name, function)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(scan_module, "KERNEL_DEVICE", "cpu")
    monkeypatch.delenv(self_check.VARIABLE)
    use()
    forget()
    return use


@pytest.mark.usefixtures("no_kernel")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "swapped cases",
            "2 x 21 channels x 16 states x 300 steps in float32\\): y has an error of .*, the tolerance",
        ),
        ("a store is missing", "in float32\\): y has an error of"),
        ("a wrong sign", "in float32\\): the gradient of delta has an error of"),
        ("it does not compile", "in float32\\): .*out of resource: shared memory"),
    ],
)
def test_a_kernel_that_is_broken_is_not_used(kind, message, stand_in, monkeypatch):
    """One warning, and then a training computes what PyTorch computes."""
    torch.manual_seed(0)
    mamba, x = Mamba(4, ORDERS), torch.randn(2, 15, 4)
    monkeypatch.setenv(BACKEND_VARIABLE, "torch")
    expected = [mamba(x, 3), *torch.autograd.grad(mamba(x, 3).square().sum(), list(mamba.parameters()))]
    monkeypatch.delenv(BACKEND_VARIABLE)
    stand_in(kind)
    versions = rf"torch {re.escape(torch.__version__)}, Triton \d"
    with pytest.warns(UserWarning, match=f"backend 'triton' is not used: .*{message}.*{versions}") as caught:
        got = [mamba(x, 3), *torch.autograd.grad(mamba(x, 3).square().sum(), list(mamba.parameters()))]
    assert len(caught) == 1
    for ours, true in zip(got, expected, strict=True):
        assert torch.equal(ours, true)
    assert re.search(message, scan_note("cpu"))
    with pytest.raises(ImportError, match=r"'triton' cannot be used: its self-check fails \(2 x 21 channels"):
        scan_backend("cpu", backend="triton")
    monkeypatch.setenv(self_check.VARIABLE, "0")
    assert scan_backend("cpu") == "triton"


@pytest.mark.usefixtures("no_kernel")
def test_a_kernel_that_passes_its_check_is_used(stand_in):
    inputs = arguments(1, 2, 3, 5, torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():  # neither reaches the check
        selective_scan(*inputs)
    assert list(counter.get_flop_counts()["Global"]) == [torch.ops.nnunet_dtc.selective_scan_triton]
    assert counter.get_total_flops() == 2 * 3 * 1 * 2 * 3 * 5
    assert why_not("triton") is None
    assert scan_note("cpu") == "The selective scan is computed by Triton."


@pytest.mark.usefixtures("no_kernel")
def test_too_little_memory_for_the_check_is_not_a_failure(stand_in, monkeypatch):
    cuda = sys.modules["nnunet_dtc.architectures.scan.cuda"]
    working = cuda.launch_forward

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cuda, "launch_forward", full)
    monkeypatch.setattr(self_check, "REPEAT_AFTER_S", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scan_backend("cpu") == "torch"
        assert "too little free memory" in why_not("triton")
        monkeypatch.setattr(cuda, "launch_forward", working)
        assert scan_backend("cpu") == "triton"


def test_a_mamba_ssm_whose_backward_raises_is_not_used(kernel, stand_in, monkeypatch):
    """As one does that computes anything after its autograd function, which torch does not record in an operator."""
    interface = sys.modules["mamba_ssm.ops.selective_scan_interface"]
    scan = interface.selective_scan_fn
    assert scan_backend("cpu") == "mamba_ssm"
    forget()
    monkeypatch.setattr(interface, "selective_scan_fn", lambda *inputs: 1 * scan(*inputs))
    with pytest.warns(UserWarning, match="'mamba_ssm' is not used: .* does not require grad"):
        assert scan_backend("cpu") == "triton"


def test_ranks_take_the_same_backend(tmp_path):
    """One rank of two computes wrongly, so neither uses the kernel."""
    code = f"""
        import sys, warnings, torch
        from nnunet_dtc.architectures import selective_scan
        from nnunet_dtc.architectures.scan import check
        rank = int(sys.argv[1])
        class Case:
            tolerance = 0.5
            def errors(self, device):
                return {{"y": float(rank)}}
        torch.distributed.init_process_group("gloo", init_method="file://{tmp_path}/ranks", rank=rank, world_size=2)
        check.cases = lambda kernel: [Case()]
        selective_scan.KERNEL_DEVICE = "cpu"
        selective_scan.why_missing = lambda kernel: None
        warnings.simplefilter("ignore")
        selective_scan.agree_across_ranks(torch.device("cpu"))
        print(selective_scan.scan_backend("cpu"), selective_scan.why_not("triton"))
        torch.distributed.destroy_process_group()
    """
    lines = code.strip("\n").splitlines()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", "\n".join(line[8:] for line in lines), str(rank)],
            env=os.environ | {self_check.VARIABLE: "1"}, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    printed = [process.communicate(timeout=300)[0].strip() for process in ranks]
    assert printed[0] == "torch another rank of this training cannot use them"
    assert printed[1].startswith("torch its self-check fails")


def compiled_mamba(monkeypatch):
    """What torch.compile makes of a Mamba block in three orders where CUDA would be, beside what eager PyTorch does."""
    torch.manual_seed(0)
    mamba, x = Mamba(4, ORDERS), torch.randn(2, 15, 4)
    expected = mamba(x, slices=3)
    true = torch.autograd.grad(expected.square().sum(), list(mamba.parameters()))
    monkeypatch.setattr(scan_module, "KERNEL_DEVICE", "cpu")
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if "selective_scan" in str(node.target)])
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    result = torch.compile(mamba, fullgraph=True, backend=backend)(x, slices=3)
    torch.testing.assert_close(result, expected)
    grads = torch.autograd.grad(result.square().sum(), list(mamba.parameters()))
    for grad, wanted in zip(grads, true, strict=True):
        torch.testing.assert_close(grad, wanted)
    [scans] = graphs
    return scans


@pytest.mark.usefixtures("no_kernel")
def test_one_graph_on_cuda_without_the_kernel(monkeypatch):
    scans = compiled_mamba(monkeypatch)
    assert len(scans) == 3
    assert not any("mamba_ssm" in scan for scan in scans)


def test_one_graph_on_cuda_with_the_kernel(monkeypatch, kernel):
    scans = compiled_mamba(monkeypatch)
    assert len(scans) == 3
    assert all("mamba_ssm" in scan for scan in scans)
    assert [name for name, _ in kernel] == 3 * ["forward"] + 3 * ["forward", "backward"]


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
    with pytest.raises(ValueError, match="one of auto, torch, triton, mamba_ssm, got backend='cuda'"):
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
