"""The heads of a block compute the same as torch's convolutions."""

import copy

import pytest
import torch
from torch import nn

from nnunet_dtc.ops.deformation import Deformation
from nnunet_dtc.ops.heads import CoordinateHead2d, CoordinateHead3d, ValueHead2d, ValueHead3d
from nnunet_dtc.torch_internals import FakeTensorMode, TorchDispatchMode

CASES = [((5, 3), (2, 1)), ((1, 7), (1, 3)), ((2, 3, 5), (1, 2, 2)), ((3, 1, 4), (2, 1, 3))]


def heads(stride):
    """Both heads for 4 channels, each with torch's convolution with the same weights."""
    axes = len(stride)
    value, coords = {2: (ValueHead2d, CoordinateHead2d), 3: (ValueHead3d, CoordinateHead3d)}[axes]
    plain = {2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}[axes]
    ours = value(4, 3, 1).double(), coords(4, 2 * axes, stride, stride).double()
    theirs = plain[0](4, 3, 1).double(), plain[1](4, 2 * axes, stride, stride).double()
    for head, convolution in zip(ours, theirs, strict=True):
        convolution.load_state_dict(head.state_dict())
    return list(zip(ours, theirs, strict=True))


@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize(("size", "stride"), CASES)
def test_agree_with_convolutions_forward_and_gradients(size, stride, batch):
    torch.manual_seed(0)
    x = torch.randn(batch, 4, *size, dtype=torch.float64)
    for pair in heads(stride):
        results = []
        for module in pair:
            leaf = x.clone().requires_grad_()
            result = module(leaf)
            (result * torch.arange(result.numel()).view(result.shape)).sum().backward()
            results.append([result, leaf.grad, *(p.grad for p in module.parameters())])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-9)


def test_hooks_see_the_result_of_a_convolution():
    torch.manual_seed(0)
    for head, convolution in heads((1, 2, 2)):
        seen = []
        head.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
        x = torch.randn(1, 4, 2, 3, 5, dtype=torch.float64)
        head(x)
        torch.testing.assert_close(seen[0], convolution(x), rtol=1e-12, atol=1e-12)


def test_autocast_agrees_with_that_of_a_convolution():
    x = torch.randn(2, 4, 2, 3, 5)
    for head, convolution in heads((1, 2, 2)):
        head, convolution = copy.deepcopy(head).float(), copy.deepcopy(convolution).float()
        with torch.autocast("cpu", torch.bfloat16):
            assert head(x).dtype == convolution(x).dtype == torch.bfloat16
            torch.testing.assert_close(head(x), convolution(x), rtol=2e-2, atol=2e-2)


def test_the_value_has_its_channels_last_in_memory():
    """The CPU backend then reads it without a copy."""
    value = heads((1, 2, 2))[0][0](torch.randn(2, 4, 2, 3, 5, dtype=torch.float64))
    assert value.movedim(1, -1).is_contiguous()


def test_on_cuda_the_value_has_its_channels_last_unless_torch_refuses_matrix_products():
    """On a GPU that is not there: ``FakeTensorMode`` knows shapes and strides alone."""
    with FakeTensorMode():
        head, x = ValueHead3d(4, 3, 1, device="cuda"), torch.empty(2, 4, 2, 3, 5, device="cuda")
        assert head(x).movedim(1, -1).is_contiguous()
        torch.use_deterministic_algorithms(True)
        try:
            assert head(x).is_contiguous()
        finally:
            torch.use_deterministic_algorithms(False)


class _Copies(TorchDispatchMode):
    """Collects the sizes of what is copied."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in ("clone", "copy_", "_to_copy", "constant_pad_nd"):
            self.sizes.append(result.numel())
        return result


class _NoKernels:
    """Kernels that are launched and do nothing."""

    def __getattr__(self, name):
        return self

    def __getitem__(self, grid):
        return lambda *arguments, **constants: None


def test_the_cuda_backend_copies_neither_the_value_nor_its_gradient(monkeypatch):
    cuda = pytest.importorskip("nnunet_dtc.ops.backends.cuda")
    monkeypatch.setattr(cuda, "triton_kernels", _NoKernels())
    head, x = ValueHead3d(4, 32, 1), torch.randn(2, 4, 2, 3, 5, requires_grad=True)
    variant, out = ((1, 2, 2), Deformation(2.0)), (2, 6, 10)
    coords, base = torch.randn(2, 6, *out), torch.randn(2, 32, *out)
    with _Copies() as copies:
        value = head(x)
        cuda.launch_forward(base, value.detach(), coords, *variant)
        gradient, _ = cuda.launch_backward(base, value.detach(), coords, *variant, True, True, True)
        assert gradient.stride() == value.stride()
        value.backward(gradient)
    assert value.numel() not in copies.sizes
    assert base.numel() not in copies.sizes
    with _Copies() as copies:  # a value whose channels are not the last is copied
        cuda.launch_forward(base, value.detach().contiguous(), coords, *variant)
    assert value.numel() in copies.sizes


@pytest.mark.parametrize("transposed", [False, True])
def test_a_wrong_input_is_an_error(transposed):
    head = heads((1, 2, 2))[transposed][0]
    with pytest.raises(RuntimeError):
        head(torch.randn(1, 5, 2, 3, 5, dtype=torch.float64))
