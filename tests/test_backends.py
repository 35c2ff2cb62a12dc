"""Every backend against the literal loops in float64, and what a backend must be besides fast.

Triton computes on a GPU where there is one; elsewhere its interpreter computes the same tests in a process of its own,
since it must be chosen before Triton is imported.
"""

import copy
import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from oracle import deformable_upsample_loops
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_dtc import DTC3d, deformable_upsample
from nnunet_dtc.ops import backends
from nnunet_dtc.ops.backends import BACKENDS, backend_for, use_backend
from nnunet_dtc.ops.deformation import Deformation
from nnunet_dtc.ops.dtc import dtc_class

INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETS:
    os.environ.setdefault("NNUNET_DTC_SELF_CHECK", "0")  # it takes the interpreter two minutes
USABLE = [name for name, backend in BACKENDS.items() if backend.why_not() is None]
NAMES = [name for name in USABLE if name == "triton"] if INTERPRETS else USABLE
FAST = [name for name in NAMES if name != "reference"]
CASES = [  # size, stride
    ((3, 5), (1, 2)),
    ((5, 1), (2, 3)),
    ((2, 3, 4 if INTERPRETS else 5), (1, 2, 2)),
    ((3, 1, 4), (2, 1, 3)),
]
# several blocks, tiles and threads; the interpreter takes seconds for what is small
WIDE = [((6, 7), (1, 2))] if INTERPRETS else [((7, 40), (3, 1)), ((9, 14, 21), (1, 2, 2))]
SMALL, SMALL_STRIDE = ((2, 3), (1, 2)) if INTERPRETS else ((2, 3, 4), (1, 2, 2))
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}

needs_triton = pytest.mark.skipif("triton" not in NAMES, reason="needs a GPU or Triton's interpreter")
needs_numba = pytest.mark.skipif("numba" not in NAMES, reason="numba is not installed")


def device_of(name):
    return "cuda" if name == "triton" and not INTERPRETS else "cpu"


def inputs(size, stride, *, name="reference", channels=5, dtype=torch.float32, weight="sigmoid", batch=2, seed=0):
    """Base, value and coords that need gradients, and a gradient from above; exact in every dtype they are cast to."""
    generator = torch.Generator().manual_seed(seed)
    out = [extent * step for extent, step in zip(size, stride, strict=True)]
    heads = len(size) * (1 if weight == "none" else 2)
    shapes = [(batch, channels, *out), (batch, channels, *size), (batch, heads, *out), (batch, channels, *out)]
    base, value, coords, upstream = (
        torch.randn(shape, generator=generator).to(device_of(name), dtype) for shape in shapes
    )
    return [base.requires_grad_(), value.requires_grad_(), coords.requires_grad_()], upstream


def computed(name, leaves, upstream, stride, receptive_field, **variant):
    """The result and the three gradients."""
    base, value, coords = leaves
    with use_backend(name):
        result = deformable_upsample(value, coords, stride, receptive_field, base=base, **variant)
    return [result.detach(), *torch.autograd.grad(result, leaves, upstream)]


def expected(leaves, upstream, stride, receptive_field, **variant):
    base, value, coords = (leaf.detach().double().cpu().requires_grad_() for leaf in leaves)
    result = base + deformable_upsample_loops(value, coords, stride, receptive_field, **variant)
    return [result.detach(), *torch.autograd.grad(result, [base, value, coords], upstream.double().cpu())]


def assert_agree(got, wanted, dtype):
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double().cpu(), theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("receptive_field", [0, 2, 5, math.inf])
@pytest.mark.parametrize(("size", "stride"), CASES)
def test_agrees_with_loops_forward_and_gradients(name, size, stride, receptive_field):
    leaves, upstream = inputs(size, stride, name=name)
    wanted = expected(leaves, upstream, stride, receptive_field)
    assert_agree(computed(name, leaves, upstream, stride, receptive_field), wanted, torch.float32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("size", "stride"), [CASES[0], CASES[2]])
def test_agrees_with_loops_in_every_dtype(name, size, stride, dtype):
    leaves, upstream = inputs(size, stride, name=name, dtype=dtype)
    assert_agree(computed(name, leaves, upstream, stride, 4), expected(leaves, upstream, stride, 4), dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "stride"), [CASES[1], CASES[2]])
def test_agrees_with_loops_without_weight(name, size, stride):
    leaves, upstream = inputs(size, stride, name=name, weight="none")
    wanted = expected(leaves, upstream, stride, 4, weight="none")
    assert_agree(computed(name, leaves, upstream, stride, 4, weight="none"), wanted, torch.float32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "stride"), [((3, 5), (1, 2)), ((3, 2), (3, 1)), ((2, 3, 4), (1, 2, 1))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_a_kink_the_gradient_is_that_of_the_higher_index(name, size, stride, dtype):
    """Without a shift, axes with an odd stride are sampled on the centres of voxels."""
    (base, value, coords), upstream = inputs(size, stride, name=name, dtype=dtype)
    leaves = [base, value, (0 * coords).detach().requires_grad_()]
    assert_agree(computed(name, leaves, upstream, stride, 3), expected(leaves, upstream, stride, 3), dtype)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("receptive_field", [0, 1, 2, 10, math.inf])
@pytest.mark.parametrize(("size", "stride"), WIDE)
def test_agrees_with_the_reference_on_larger_maps(name, size, stride, receptive_field, monkeypatch):
    if INTERPRETS and receptive_field == 10:
        pytest.skip("takes the interpreter too long")
    monkeypatch.setattr("nnunet_dtc.ops.backends.threads.WORTH_A_PART", 1)  # threads also for so little
    leaves, upstream = inputs(size, stride, name=name, channels=37)
    got = computed(name, leaves, upstream, stride, receptive_field)
    for ours, theirs in zip(got, computed("reference", leaves, upstream, stride, receptive_field), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(5, 130), (2, 3, 70)])
def test_the_identity_on_a_long_axis(name, size):
    """Every sample on a voxel's centre: the gradient of the value is what comes from above, at a kink everywhere."""
    if INTERPRETS:
        size = tuple(extent // 10 + 1 for extent in size)
    (_, value, coords), upstream = inputs(size, (1,) * len(size), name=name)
    with use_backend(name):
        result = deformable_upsample(value, 0 * coords, 1, 2)
    (gradient,) = torch.autograd.grad(result, value, upstream)
    torch.testing.assert_close(result, value, rtol=0, atol=1e-4)
    torch.testing.assert_close(gradient, upstream, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [3, 16])
def test_any_layout_of_the_memory(name, channels):
    (base, value, coords), upstream = inputs((3, 5), (1, 2), name=name, channels=channels)
    wanted = computed(name, [base, value, coords], upstream, (1, 2), 2)
    for order in ((0, 3, 1, 2), (3, 2, 1, 0), (0, 2, 1, 3)):
        back = [order.index(axis) for axis in range(4)]
        leaves = [t.detach().permute(order).contiguous().permute(back).requires_grad_() for t in (base, value, coords)]
        assert not any(leaf.is_contiguous() for leaf in leaves)
        got = computed(name, leaves, upstream.permute(order).contiguous().permute(back), (1, 2), 2)
        for ours, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_float64_base_keeps_its_digits(name):
    (base, value, coords), upstream = inputs(SMALL, SMALL_STRIDE, name=name)
    base = (base.detach().double() + 1e-12).requires_grad_()
    result, by_base, *_ = computed(name, [base, 0 * value, coords], upstream.double(), SMALL_STRIDE, 2)
    assert torch.equal(result, base)
    assert torch.equal(by_base, upstream.double())


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_wanted_is_computed(name):
    (base, value, coords), upstream = inputs(SMALL, SMALL_STRIDE, name=name)
    for wanted in ([value], [coords], [base], [value, coords]):
        leaves = [t.detach().requires_grad_(any(t is w for w in wanted)) for t in (base, value, coords)]
        with use_backend(name):
            result = deformable_upsample(leaves[1], leaves[2], SMALL_STRIDE, 3, base=leaves[0])
        result.backward(upstream)
        full = computed(name, [base, value, coords], upstream, SMALL_STRIDE, 3)[1:]
        for leaf, gradient in zip(leaves, full, strict=True):
            assert (leaf.grad is not None) == leaf.requires_grad
            if leaf.requires_grad:
                torch.testing.assert_close(leaf.grad, gradient)


@pytest.mark.parametrize("name", NAMES)
def test_saved_for_backward_are_value_and_coords_alone(name):
    (base, value, coords), _ = inputs((2, 3, 4), (1, 2, 2), name=name)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t), use_backend(name):
        deformable_upsample(value, coords, (1, 2, 2), base=base)
    assert sorted(t.data_ptr() for t in saved) == sorted([value.data_ptr(), coords.data_ptr()])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_opcheck(name, with_base, last):
    if INTERPRETS and with_base != last:
        pytest.skip("takes the interpreter too long")
    (base, value, coords), _ = inputs(SMALL, SMALL_STRIDE, name=name)
    if last:  # channels
        base, value = (t.detach().movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_() for t in (base, value))
    base = base if with_base else None
    for receptive_field in (2.0, math.inf):
        arguments = (base, value, coords, SMALL_STRIDE, receptive_field, "tanh", "sigmoid")
        done = torch.library.opcheck(BACKENDS[name].operator, arguments)
        assert set(done.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("dynamic", "layout"),
    [(False, torch.contiguous_format), (False, torch.channels_last_3d), (True, torch.contiguous_format)],
)
def test_compiles_to_one_graph(name, dynamic, layout):
    if INTERPRETS:
        pytest.skip("the interpreter cannot be compiled")
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = DTC3d(4, 3, (1, 2, 2), 3).to(device_of(name))
    nn.init.normal_(eager.coords.weight)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, dynamic=dynamic)
    results = []
    for module in (eager, compiled):
        with use_backend(name):
            x = torch.randn(2, 4, 2, 3, 5, generator=torch.Generator().manual_seed(1)).to(device_of(name))
            x = x.to(memory_format=layout).requires_grad_()
            result = module(x)
            result.square().sum().backward()
        results.append([result, x.grad, *(p.grad for p in module.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_batch_of_zero_and_single_voxels(name):
    for size, batch in (((2, 3, 4), 0), ((1, 1), 1), ((1, 1, 1), 2)):
        leaves, upstream = inputs(size, (2,) * len(size), name=name, batch=batch)
        got = computed(name, leaves, upstream, (2,) * len(size), 2)
        for ours, theirs in zip(got, computed("reference", leaves, upstream, (2,) * len(size), 2), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_without_channels_there_is_no_gradient_of_coordinates(name):
    leaves, upstream = inputs((2, 3), (1, 2), name=name, channels=0)
    result, _, _, by_coords = computed(name, leaves, upstream, (1, 2), 2)
    assert result.shape == (2, 0, 2, 6)
    assert not by_coords.any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_coordinates_that_are_no_numbers_harm_nothing_else(name, bad):
    """A training that diverges must end in nnU-Net's own way, not in memory that is not ours."""
    leaves, upstream = inputs((2, 3), (2, 2), name=name)
    with torch.no_grad():
        leaves[2][0] = bad
    result, *_ = computed(name, leaves, upstream, (2, 2), 2)
    with torch.no_grad():
        leaves[2][0] = 0
    good, *_ = computed(name, leaves, upstream, (2, 2), 2)
    assert torch.equal(result[1], good[1])
    assert result.shape == good.shape


NOT_FINITE = [(math.nan, 0), (math.nan, 1), (math.inf, 0), (-math.inf, 0)]  # a value, and whether it is a weight's


def spoil(coords, bad, of_weights, axes):
    """Every third position of one axis of the last case, and one position of all axes of the first."""
    with torch.no_grad():
        coords[-1, axes - 1 + of_weights * axes].view(-1)[::3] = bad
        first = coords[0, axes : 2 * axes] if of_weights else coords[0, :axes]
        first.flatten(1)[:, 1] = bad


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("bad", "of_weights"), NOT_FINITE)
@pytest.mark.parametrize(("size", "stride"), [((3, 5), (2, 2)), ((2, 1, 3), (1, 2, 2))])
def test_positions_that_are_not_finite_agree_with_loops(name, size, stride, bad, of_weights):
    """Those that are NaN are not shifted, infinite ones reach the end, and none has a gradient, on every backend."""
    leaves, upstream = inputs(size, stride, name=name)
    spoil(leaves[2], bad, of_weights, len(size))
    wanted = expected(leaves, upstream, stride, 5)
    assert all(part.isfinite().all() for part in wanted)
    assert_agree(computed(name, leaves, upstream, stride, 5), wanted, torch.float32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("bad", "of_weights"), [(math.nan, 1), (math.inf, 0)] if INTERPRETS else [*NOT_FINITE, (1e38, 0)]
)
@pytest.mark.parametrize("variant", [{"offset": "linear"}, {"offset": "linear", "weight": "linear"}])
@pytest.mark.parametrize(("size", "stride"), [((3, 5), (2, 2)), ((2, 1, 3), (1, 2, 2))])
def test_unbounded_positions_that_are_not_finite_agree_with_loops(name, size, stride, variant, bad, of_weights):
    if INTERPRETS and len(size) == 3:
        pytest.skip("takes the interpreter too long")
    leaves, upstream = inputs(size, stride, name=name)
    spoil(leaves[2], bad, of_weights, len(size))
    for receptive_field in (0, 3):
        wanted = expected(leaves, upstream, stride, receptive_field, **variant)
        assert_agree(computed(name, leaves, upstream, stride, receptive_field, **variant), wanted, torch.float32)


@pytest.mark.parametrize("size", [(5, 6), (16, 16), (3, 5, 6)])
@pytest.mark.parametrize("variant", [{}, {"offset": "linear"}, {"weight": "linear"}, {"weight": "none"}])
@pytest.mark.parametrize("name", [name for name in NAMES if not INTERPRETS])
def test_a_diverged_block_has_no_loss_and_no_crash(name, size, variant):
    """As in a training that diverges: a weight of the coordinate head is NaN, and everything is differentiated."""
    block = dtc_class(len(size))(4, 3, 2, **variant).to(device_of(name))
    block.coords.weight.data.view(-1)[0] = math.nan
    x = torch.randn(2, 4, *size, device=device_of(name), requires_grad=True)
    with use_backend(name):
        result = block(x)
    assert result.isfinite().all()
    result.sum().backward()
    assert block.value.weight.grad.isfinite().all()
    assert x.grad.isnan().any()  # through the head's weight: the training is seen to have diverged


UNBOUNDED = [
    {"offset": "linear"}, {"weight": "linear"}, {"offset": "linear", "weight": "none"},
    {"offset": "linear", "weight": "linear"},
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", UNBOUNDED)
@pytest.mark.parametrize(("size", "stride"), [CASES[0], CASES[2]])
def test_gradients_of_shifts_without_a_bound_agree_with_loops(name, size, stride, variant):
    if INTERPRETS and len(size) == 3 and "weight" not in variant:
        pytest.skip("takes the interpreter too long")
    leaves, upstream = inputs(size, stride, name=name, weight=variant.get("weight", "sigmoid"))
    wanted = expected(leaves, upstream, stride, 2.5, **variant)
    assert wanted[3].abs().sum() > 0
    assert_agree(computed(name, leaves, upstream, stride, 2.5, **variant), wanted, torch.float32)


@needs_numba
@pytest.mark.parametrize("variant", UNBOUNDED, ids=str)
def test_numba_with_several_blocks_and_shifts_without_a_bound(variant, monkeypatch):
    """Short shifts leave many blocks, long ones a single one: both agree with the reference, with the same bits."""
    monkeypatch.setattr("nnunet_dtc.ops.backends.threads.WORTH_A_PART", 1)
    before = torch.get_num_threads()
    for factor in (0.1, 30):
        leaves, upstream = inputs((21, 6), (2, 1), channels=9, weight=variant.get("weight", "sigmoid"))
        with torch.no_grad():
            leaves[2].mul_(factor)
        results = []
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                results.append(computed("numba", leaves, upstream, (2, 1), 4, **variant))
        finally:
            torch.set_num_threads(before)
        wanted = computed("reference", leaves, upstream, (2, 1), 4, **variant)
        for one, several, reference in zip(*results, wanted, strict=True):
            assert torch.equal(one, several)
            torch.testing.assert_close(one, reference, rtol=1e-4, atol=2e-4 * max(factor, 1))


@pytest.mark.parametrize("name", FAST)
def test_the_same_bits_every_time(name, monkeypatch):
    monkeypatch.setattr("nnunet_dtc.ops.backends.threads.WORTH_A_PART", 1)
    leaves, upstream = inputs((6, 7), (2, 1), name=name, channels=9)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3, 3):
            torch.set_num_threads(threads)
            results.append(computed(name, leaves, upstream, (2, 1), 2))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("receptive_field", [0, 1, 2.5, 10, math.inf])
@pytest.mark.parametrize(("size", "stride"), [((4, 7), (2, 3)), ((1, 2, 9), (3, 1, 2))])
def test_no_sample_touches_a_voxel_beyond_its_reach(size, stride, receptive_field):
    cuda = pytest.importorskip("nnunet_dtc.ops.backends.cuda", exc_type=ImportError)
    geometry = cuda.Geometry(torch.zeros(1, 1, *size), stride, Deformation(receptive_field))
    in_reach = 1
    for extent, step, reach in zip(size, stride, geometry.reaches[-len(size) :], strict=True):
        bound = extent / 2 if math.isinf(receptive_field) else receptive_field / 4
        seen = set()  # how far the voxels that a sample touches lie from its own
        for sample in range(extent * step):
            regular = (sample + 0.5) / step - 0.5
            for part in range(-100, 101):
                position = min(max(regular + bound * part / 100, 0), extent - 1)
                below = math.floor(position)
                touched = {below, below + 1} if position > below else {below}
                seen |= {abs(sample // step - voxel) for voxel in touched}
        assert max(seen) <= reach <= max(seen) + 1
        in_reach *= min(2 * reach + 1, extent) * step
    assert geometry.samples_in_reach == in_reach


@needs_triton
def test_more_cases_than_cudas_grids_have(monkeypatch):
    from nnunet_dtc.ops.backends import cuda

    for base in (True, False):
        (above, value, coords), upstream = inputs((2, 3), (1, 2), name="triton", batch=3)
        above = above if base else torch.zeros_like(above, requires_grad=True)
        whole = computed("triton", [above, value, coords], upstream, (1, 2), 2)
        with monkeypatch.context() as patch:
            patch.setattr(cuda, "MOST_CASES", 2)
            parts = computed("triton", [above, value, coords], upstream, (1, 2), 2)
        for ours, theirs in zip(parts, whole, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.skipif(INTERPRETS, reason="in a process of its own")
@pytest.mark.parametrize(
    ("capability", "reason"),
    [
        ((6, 1), "the GPU has compute capability 6.1, and Triton needs 7.0 or later"),
        ((8, 0), "Triton's kernels are not used: its self-check fails"),
    ],
)
def test_a_gpu_that_triton_cannot_use(capability, reason):
    """The reference computes there, and one warning says why it is slow."""
    pytest.importorskip("triton")
    printed = python(f"""
        import os, warnings
        os.environ["TRITON_INTERPRET"] = "1"
        import torch
        from nnunet_dtc.ops import self_check
        from nnunet_dtc.ops.backends import BACKENDS, backend_for, cuda
        def fails(*_, **__):
            raise RuntimeError("Failed to find C compiler.\\nPlease specify it")
        cuda.launch_forward = fails
        torch.cuda.is_available = lambda: True
        torch.cuda.current_device = lambda: 0
        torch.cuda.synchronize = lambda *_: None
        torch.cuda.is_current_stream_capturing = lambda: False
        torch.cuda.get_device_capability = lambda *_: {capability}
        torch.cuda.get_device_name = lambda *_: "a card"
        torch.cuda.device = lambda device: warnings.catch_warnings()  # any context manager
        torch.Tensor.to = lambda self, *_: self
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            names = [backend_for("cuda").name for _ in range(2)]
        print(names, len(caught), caught[0].message)
    """)
    assert printed.startswith(
        "['reference', 'reference'] 1 DTC is computed by torch's grid_sample, which is slow in 3D"
    )
    assert reason in printed
    if capability == (8, 0):
        assert "RuntimeError: Failed to find C compiler. a card (compute capability 8.0), driver" in printed


@needs_triton
def test_triton_gathers_where_deterministic_algorithms_are_wanted(monkeypatch):
    from nnunet_dtc.ops.backends import cuda

    monkeypatch.setattr(cuda, "MOST_GATHERED", 30)
    monkeypatch.setattr(cuda, "MOST_GATHERED_SLOWLY", 50)
    leaves, upstream = inputs((4, 5), (2, 2), name="triton")
    geometry = cuda.Geometry(leaves[1], (2, 2), Deformation(2))
    assert geometry.samples_in_reach == 36
    assert not cuda.gathers_gradient(geometry, Deformation(2))
    scattered = computed("triton", leaves, upstream, (2, 2), 2)
    torch.use_deterministic_algorithms(True)
    try:
        assert cuda.gathers_gradient(geometry, Deformation(2))
        gathered = computed("triton", leaves, upstream, (2, 2), 2)
        again = computed("triton", leaves, upstream, (2, 2), 2)
        with pytest.raises(RuntimeError, match="no deterministic gradient"):
            computed("triton", leaves, upstream, (2, 2), math.inf)
    finally:
        torch.use_deterministic_algorithms(False)
    for ours, theirs, bits in zip(gathered, scattered, again, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert torch.equal(ours, bits)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_refused(name):
    (base, value, coords), _ = inputs((3, 4), (2, 2), name=name)
    with use_backend(name):
        result = deformable_upsample(value, coords, (2, 2), base=base)
    (gradient,) = torch.autograd.grad(result.sum(), [coords], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_products_are_counted(name):
    (base, value, coords), upstream = inputs((2, 3, 4), (1, 2, 2), name=name, channels=3)
    counter = FlopCounterMode(display=False)
    with counter:
        computed(name, [base, value, coords], upstream, (1, 2, 2), 2)
    samples = 2 * 3 * (2 * 6 * 8)
    assert counter.get_total_flops() == 2 * 8 * samples * 3  # forward, and both gradients


@pytest.mark.skipif(INTERPRETS, reason="not Triton's")
class TestChoice:
    def test_the_fastest_that_is_there(self):
        assert backend_for("cpu").name == ("numba" if "numba" in USABLE else "reference")
        assert backend_for("mps").name == "reference"
        if "triton" in USABLE:
            assert backend_for("cuda").name == "triton"

    def test_forced(self, monkeypatch):
        monkeypatch.setenv(backends.VARIABLE, "reference")
        assert backend_for("cpu").name == "reference"
        if "numba" in USABLE:
            with use_backend("numba"):
                assert backend_for("cpu").name == "numba"
            assert backend_for("cpu").name == "reference"
            monkeypatch.setenv(backends.VARIABLE, "numba")
            with pytest.raises(
                RuntimeError, match=r"forces the backend 'numba', which computes on cpu, got .* on cuda"
            ):
                backend_for("cuda")

    def test_unknown_names(self, monkeypatch):
        says = "takes one of reference, numba, triton, got 'fast'"
        with pytest.raises(ValueError, match=f"use_backend {says}"), use_backend("fast"):
            pass
        monkeypatch.setenv(backends.VARIABLE, "fast")
        with pytest.raises(ValueError, match=f"NNUNET_DTC_BACKEND {says}"):
            backend_for("cpu")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_one_that_cannot_be_used_says_why(self):
        says = "forces the backend 'triton', but torch sees no CUDA device"
        with pytest.raises(RuntimeError, match=says), use_backend("triton"):
            pass

    def test_without_numba_the_reference_computes(self):
        """As for who installed without the extra: the module is missing."""
        done = python("""
            import sys
            sys.modules["numba"] = None
            import torch
            from nnunet_dtc import DTC2d
            from nnunet_dtc.ops.backends import BACKENDS, backend_for
            assert backend_for("cpu").name == "reference"
            DTC2d(3, 2, 2)(torch.randn(1, 3, 4, 5)).sum().backward()
            print(BACKENDS["numba"].why_not())
        """)
        assert "pip install nnunet-dtc[cpu]" in done

    def test_importing_the_operator_imports_no_backend(self):
        python("""
            import sys
            import nnunet_dtc
            assert not {"numba", "nnunet_dtc.ops.backends.cpu", "nnunet_dtc.ops.backends.cuda"} & set(sys.modules)
        """)


@needs_numba
def test_numba_after_a_fork():
    """nnU-Net forks workers from a process that has computed; both go on computing, in threads."""
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    python("""
        import os, torch
        torch.set_num_threads(2)
        from nnunet_dtc import deformable_upsample
        from nnunet_dtc.ops.backends import threads
        threads.WORTH_A_PART = 1
        value, coords = torch.randn(2, 8, 6, 9), torch.randn(2, 4, 12, 18)
        before = deformable_upsample(value, coords, 2)
        assert threads._pool is not None
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(deformable_upsample(value, coords, 2), before) else 7)
        assert torch.equal(deformable_upsample(value, coords, 2), before)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """)


@needs_numba
def test_numba_from_several_threads(monkeypatch):
    monkeypatch.setattr("nnunet_dtc.ops.backends.threads.WORTH_A_PART", 1)
    cases = [inputs((5, 6, 7), (1, 2, 2), seed=seed) for seed in range(4)]
    wanted = [computed("numba", *case, (1, 2, 2), 3) for case in cases]
    got = [None] * len(cases)

    def work(number):
        base, value, coords = cases[number][0]
        result = deformable_upsample(value, coords, (1, 2, 2), 3, base=base)
        got[number] = [result.detach(), *torch.autograd.grad(result, [base, value, coords], cases[number][1])]

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(cases))]
    with use_backend("numba"):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for ours, theirs in zip(got, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@needs_numba
def test_files_that_numba_cannot_read_or_write_do_not_end_a_training(monkeypatch):
    """Such as on a full disk; numba passes the error on."""
    from numba.core import caching

    from nnunet_dtc.ops.backends import cpu_kernels

    tried = []

    def full(*_):
        tried.append(1)
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(caching.IndexDataCacheFile, "load", full)
    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    assert cpu_kernels.compiled(_double)(3.5) == 7
    assert len(tried) == 2


def _double(number):
    return 2 * number


@needs_numba
def test_numba_without_a_folder_for_its_cache():
    from nnunet_dtc.ops.backends.cpu_kernels import compiled

    names = {}
    exec("def twice(x):\n    return 2 * x", names)  # a function without a file has no place beside it
    assert compiled(names["twice"])(21) == 42


@needs_numba
@pytest.mark.parametrize("receptive_field", [0, 1, 2, 10, 31, math.inf])
@pytest.mark.parametrize(("size", "stride"), [((64, 5, 4), (1, 2, 2)), ((3, 41), (3, 2)), ((200, 3, 3), (1, 1, 1))])
def test_numba_blocks_that_are_computed_together_never_meet(size, stride, receptive_field):
    from nnunet_dtc.ops.backends.cpu import Geometry

    assert_blocks_never_meet(Geometry(torch.empty(2, 1, *size), stride, Deformation(receptive_field)))


@needs_numba
@pytest.mark.parametrize("variant", UNBOUNDED, ids=str)
@pytest.mark.parametrize("largest", [0, 0.3, 2.5, 7, 1e30, math.inf, math.nan])
def test_numba_blocks_never_meet_where_shifts_have_no_bound(variant, largest):
    """They are as thick as the longest shift that the coordinates contain."""
    from nnunet_dtc.ops.backends.cpu import Geometry

    deformation, value, stride = Deformation(4, **variant), torch.empty(2, 1, 5, 40, 3), (1, 2, 2)
    coords = torch.full((2, deformation.channels(3), 5, 80, 6), 0.01)
    coords[1, :, 4, 7, 5] = -largest
    offset = largest if deformation.offset == "linear" else 1
    weight = largest if deformation.weight == "linear" else 1
    geometry = Geometry(value, stride, deformation, coords)
    expected = [size if math.isnan(largest) else min(max(offset * weight, 1e-4), size) for size in (5, 40, 3)]
    if largest > 0 or math.isnan(largest):
        assert geometry.longest == pytest.approx(expected)
    assert_blocks_never_meet(geometry)
    assert Geometry(value, stride, deformation).longest == [5, 40, 3]  # any shift is expected


def assert_blocks_never_meet(geometry):
    rows = [torch.zeros(geometry.rows[:2], dtype=torch.int) for _ in range(2)]
    for together in geometry.blocks(2):
        touched = [torch.zeros(geometry.extents[:2], dtype=torch.int) for _ in range(2)]
        for case, z0, z1, y0, y1 in together.tolist():
            rows[case][z0:z1, y0:y1] += 1
            reach = []
            for axis, (first, last) in enumerate(((z0, z1), (y0, y1))):
                step, bound, extent = geometry.stride[axis], geometry.longest[axis], geometry.extents[axis]
                low = (first + 0.5) / step - 0.5 - bound
                high = (last - 1 + 0.5) / step - 0.5 + bound
                reach.append(slice(max(math.floor(low), 0), min(math.floor(high) + 2, extent)))
            touched[case][tuple(reach)] += 1
        assert max(t.max() for t in touched) == 1
    assert all((r == 1).all() for r in rows)  # every row once


@pytest.mark.skipif(INTERPRETS, reason="not Triton's")
def test_in_threads_covers_every_index_once(monkeypatch):
    from nnunet_dtc.ops.backends import threads

    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: 3)
    for count in (1, 2, 7, 1000):
        done, lock = [], threading.Lock()

        def kernel(first, last, lock=lock, done=done):
            with lock:
                done.extend(range(first, last))

        threads.in_threads(kernel, count, 10**9)
        assert sorted(done) == list(range(count))
    with pytest.raises(ZeroDivisionError):
        threads.in_threads(lambda first, last: 1 / 0, 100, 10**9)


@pytest.mark.skipif(INTERPRETS, reason="not Triton's")
def test_traced_networks_need_torch_alone(tmp_path):
    torch.manual_seed(0)
    block = DTC3d(3, 2, (1, 2, 2)).eval()
    x = torch.randn(1, 3, 2, 3, 4)
    torch.jit.trace(block, x).save(str(tmp_path / "traced.pt"))
    python(f"""
        import sys, torch
        block = torch.jit.load({str(tmp_path / "traced.pt")!r})
        print(block(torch.zeros(1, 3, 2, 3, 4)).shape)
        assert "nnunet_dtc" not in sys.modules
    """)
    torch.testing.assert_close(torch.jit.load(str(tmp_path / "traced.pt"))(x), block(x))


@pytest.mark.skipif(INTERPRETS, reason="not Triton's")
def test_subclasses_of_tensors():
    MetaTensor = pytest.importorskip("monai.data").MetaTensor

    value, coords = torch.randn(1, 2, 3, 4), torch.randn(1, 4, 6, 8)
    result = deformable_upsample(MetaTensor(value), MetaTensor(coords), 2)
    assert torch.equal(torch.Tensor(result), deformable_upsample(value, coords, 2))


@pytest.mark.skipif(INTERPRETS or "triton" in USABLE, reason="computed here")
def test_triton_in_its_interpreter():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 50, done.stdout[-4000:]


def python(code):
    """Run code in a fresh process; returns what it printed."""
    lines = code.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line[indent:] for line in lines)],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
