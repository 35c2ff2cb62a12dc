"""The selective scan's Triton kernels against literal loops in float64.

Triton computes on a GPU where there is one; elsewhere its interpreter computes the same tests, with small chunks, in a
process of its own, since it must be chosen before Triton is imported.
"""

import os
import re
import subprocess
import sys
import warnings

import pytest
import torch
from test_selective_scan import arguments, literal_scan, sequential_scan
from torch.utils.flop_counter import FlopCounterMode

from nnunet_dtc.architectures.scan import operators
from nnunet_dtc.architectures.selective_scan import selective_scan

INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETS else "cpu"
CHUNK = 4 if INTERPRETS else 128
TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
# cases, channels, states, length; below, at and above the ends of chunks
SIZES = [(1, 1, 1, 1), (2, 3, 5, CHUNK + 1), (1, 5, 3, CHUNK), (1, 2, 16, 3 * CHUNK - 1)]
if not INTERPRETS:
    SIZES += [(2, 70, 16, 20 * CHUNK + 77), (1, 3, 200, 65)]
GRADIENTS = ("u", "delta", "A", "B", "C", "D")

needs_triton = pytest.mark.skipif(not INTERPRETS and DEVICE == "cpu", reason="needs a GPU or Triton's interpreter")


@pytest.fixture(autouse=INTERPRETS)
def small_blocks(monkeypatch):
    """Blocks so small that what the interpreter can compute in seconds has several of each kind."""
    from nnunet_dtc.architectures.scan import cuda

    for name, value in {
        "CHUNK": CHUNK, "TILE": 2, "CHANNELS": 2, "PROGRAMS": 3, "CHUNKS": 2, "ELEMENTS": 8,
    }.items():  # fmt: skip
        monkeypatch.setattr(cuda, name, value)


def scanned(inputs, into, scan=selective_scan, **options):
    """y and all gradients, where ``into`` is the gradient of y."""
    inputs = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = scan(*inputs, **options)
    return [y.detach(), *torch.autograd.grad(y, [t for t in inputs if t is not None], into)]


def assert_agrees(inputs, into, oracle=literal_scan):
    """With the dtypes of the arguments, each up to its round-off."""
    got = scanned([None if t is None else t.to(DEVICE) for t in inputs], into.to(DEVICE), backend="triton")
    wanted = scanned([None if t is None else t.double() for t in inputs], into.double(), oracle)
    dtypes = [inputs[0].dtype, *(t.dtype for t in inputs if t is not None)]
    for name, ours, true, dtype in zip(("y", *GRADIENTS), got, wanted, dtypes, strict=False):
        assert ours.dtype == dtype, name
        bound = TOLERANCE[dtype] * max(1, true.abs().max().item())
        assert (ours.double().cpu() - true).abs().max() <= bound, name


def random_arguments(*sizes, dtype=torch.float32):
    *inputs, D = (t.detach() for t in arguments(*sizes, torch.float32))
    into = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))
    u, delta, A, B, C = inputs
    return [u.to(dtype), delta, A, B.to(dtype), C.to(dtype), D], into.to(dtype)


@needs_triton
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_agrees_with_loops_forward_and_gradients(sizes):
    oracle = literal_scan if sizes[3] <= 3 * CHUNK and sizes[2] < 20 else sequential_scan_with_D
    assert_agrees(*random_arguments(*sizes), oracle)


def sequential_scan_with_D(u, delta, A, B, C, D):
    return sequential_scan(u, delta, A, B, C) + D[:, None] * u


@needs_triton
def test_agrees_with_loops_without_D():
    inputs, into = random_arguments(1, 3, 2, CHUNK + 2)
    assert_agrees([*inputs[:5], None], into)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    """u, B and C as autocast makes them, delta, A and D in float32."""
    inputs, into = random_arguments(1, 2, 3, CHUNK + 1, dtype=dtype)
    assert_agrees(inputs, into)
    low = [t.to(DEVICE) for t in inputs]
    with torch.no_grad(), torch.autocast(DEVICE, dtype=torch.bfloat16):
        y = selective_scan(*low, backend="triton")
        wide = selective_scan(*(t.float() for t in low), backend="triton")
        torch.testing.assert_close(y.float(), wide, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@needs_triton
def test_fast_and_frozen_states():
    """Steps so long that a state is forgotten at once, and steps of zero that keep it: no overflow and no 0 / 0."""
    (u, delta, A, B, C, D), into = random_arguments(1, 2, 3, 2 * CHUNK + 1)
    delta[..., 1:CHUNK] = 0
    delta[..., CHUNK + 1] = 1e4
    A[0] = 0
    assert_agrees([u, delta, A, B, C, D], into)


@needs_triton
@pytest.mark.parametrize("sizes", [(0, 2, 3, 5), (2, 2, 3, 0), (1, 2, 0, 3)], ids=["no case", "no step", "no state"])
def test_nothing_to_scan(sizes):
    inputs = [t.detach().float().to(DEVICE).requires_grad_() for t in arguments(*sizes)]
    result = selective_scan(*inputs, backend="triton")
    assert result.shape == inputs[0].shape
    result.sum().backward()
    for tensor in inputs:
        assert tensor.grad.shape == tensor.shape
    assert torch.equal(inputs[2].grad, torch.zeros_like(inputs[2]))


@needs_triton
def test_the_same_bits_in_every_run_and_for_every_layout():
    inputs, into = random_arguments(1, 3, 2, CHUNK + 1)
    inputs, into = [t.to(DEVICE) for t in inputs], into.to(DEVICE)
    expected = scanned(inputs, into, backend="triton")
    transposed = [t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.ndim > 1 else t for t in inputs]
    for ours, others in ((inputs, into), (transposed, into.transpose(1, 2).contiguous().transpose(1, 2))):
        for got, true in zip(scanned(ours, others, backend="triton"), expected, strict=True):
            assert torch.equal(got, true)


@needs_triton
def test_little_is_kept_for_the_backward_pass():
    """The arguments, in their dtypes, and one state for each chunk."""
    sizes = cases, channels, states, length = 2, 3, 5, 3 * CHUNK
    inputs = [t.to(DEVICE).requires_grad_() for t in random_arguments(*sizes, dtype=torch.bfloat16)[0]]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        selective_scan(*inputs, backend="triton")
    assert sum(kept) == sum(t.nbytes for t in inputs) + 4 * cases * channels * states * length // CHUNK


@needs_triton
def test_the_operator_is_checked_and_counted():
    sizes = cases, channels, states, length = 1, 2, 3, 2
    inputs = [t.to(DEVICE).requires_grad_() for t in random_arguments(*sizes)[0]]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    done = torch.library.opcheck(
        operators.triton, tuple(inputs), test_utils=tests if INTERPRETS else "ALL_TEST_UTILS"
    )  # fmt: skip
    assert set(done.values()) == {"SUCCESS"}
    with FlopCounterMode(display=False) as counter:
        y = selective_scan(*inputs, backend="triton")
    assert counter.get_total_flops() == 2 * 3 * cases * channels * states * length
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * 10 * cases * channels * states * length


@needs_triton
def test_one_node_under_compile():
    """Shapes, dtypes and strides of the results are those that torch.compile expects."""
    if INTERPRETS:
        pytest.skip("the interpreter cannot be compiled")
    inputs, into = random_arguments(2, 3, 4, CHUNK + 1, dtype=torch.bfloat16)
    inputs, into = [t.to(DEVICE) for t in inputs], into.to(DEVICE)
    torch._dynamo.reset()
    compiled = torch.compile(selective_scan, fullgraph=True)
    for got, true in zip(
        scanned(inputs, into, compiled, backend="triton"), scanned(inputs, into, backend="triton"), strict=True
    ):
        torch.testing.assert_close(got, true, rtol=2e-2, atol=2e-2)


@needs_triton
def test_float64_is_refused():
    inputs = [t.to(DEVICE) for t in arguments(1, 2, 3, 5)]
    with pytest.raises(TypeError, match=r"backend 'triton' computes in torch.float32, got torch.float64"):
        selective_scan(*inputs, backend="triton")


class Uncompilable:
    """A kernel that Triton refuses to compile."""

    def __getitem__(self, grid):
        def launch(*_, **__):
            raise RuntimeError("PassManager::run failed")

        return launch


@needs_triton
@pytest.mark.parametrize("kernel", ["outputs_kernel", "gradients_kernel"])
@pytest.mark.parametrize(("dtype", "has_D"), [(torch.float32, False), (torch.float16, True)], ids=str)
def test_a_variant_that_does_not_compile_later_is_pytorch_s(kernel, dtype, has_D, monkeypatch):
    """In either direction, with one warning; the dtypes and strides are those of the kernels."""
    from nnunet_dtc.architectures.scan import triton_kernels
    from nnunet_dtc.ops import compiled_variants

    inputs, into = random_arguments(2, 3, 4, CHUNK + 1, dtype=dtype)
    inputs = inputs if has_D else [*inputs[:5], None]
    on_device = [None if t is None else t.to(DEVICE) for t in inputs]
    sound = operators.triton(*on_device)
    monkeypatch.setattr(triton_kernels, kernel, Uncompilable())
    try:
        with pytest.warns(UserWarning, match="cannot compile a kernel of the selective scan.*PassManager") as caught:
            assert_agrees(inputs, into)
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_agrees(inputs, into)
        for got, true in zip(operators.triton(*on_device), sound, strict=True):
            assert (got.dtype, got.shape, got.stride()) == (true.dtype, true.shape, true.stride())
    finally:
        compiled_variants.forget()


@needs_triton
def test_a_variant_that_does_not_compile_fails_the_check(monkeypatch):
    """There PyTorch's scan does not take its place."""
    from nnunet_dtc.architectures.scan import check, triton_kernels

    monkeypatch.setattr(triton_kernels, "gradients_kernel", Uncompilable())
    with pytest.raises(RuntimeError, match="PassManager"):
        check.ScanCase("triton", 1, 2, 3, CHUNK + 1, torch.float32, 1e-3).errors(torch.device(DEVICE))


@pytest.mark.skipif(INTERPRETS or DEVICE == "cuda", reason="computes the same tests here")
def test_in_tritons_interpreter():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 15, done.stdout[-4000:]
