import copy

import pytest
import torch
from torch import nn

from nnunet_dtc.architectures.padding import PaddedNetwork, pad_to, padded_size, padding_note


class Downsampled(nn.Module):
    """Needs sizes divisible by 4: a strided convolution and its transpose."""

    def __init__(self, axes):
        super().__init__()
        conv, transposed = {2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}[axes]
        self.down, self.up = conv(2, 3, 4, 4), transposed(3, 5, 4, 4)

    def forward(self, x):
        assert all(size % 4 == 0 for size in x.shape[2:])
        return self.up(torch.tanh(self.down(x)))


@pytest.mark.parametrize(
    ("size", "multiple", "expected"),
    [((28, 112, 96), 16, (32, 112, 96)), ((48, 160, 160), 32, (64, 160, 160)), ((1, 33), 32, (32, 64))],
)
def test_padded_size(size, multiple, expected):
    assert padded_size(size, multiple) == expected


@pytest.mark.parametrize(("size", "target"), [((3, 5, 4), (4, 8, 4)), ((1, 6), (5, 7)), ((7, 7, 7), (8, 8, 8))])
def test_padding_against_literal_loops(size, target):
    x = torch.randn(2, 3, *size)
    padded, place = pad_to(x, target)
    assert padded.shape == (2, 3, *target)
    assert torch.equal(padded[place], x)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in target)).tolist():
        inside = [i - (whole - part) // 2 for i, part, whole in zip(index, size, target, strict=True)]
        if all(0 <= i < part for i, part in zip(inside, size, strict=True)):
            assert torch.equal(padded[(..., *index)], x[(..., *inside)])
        else:
            assert not padded[(..., *index)].any()


@pytest.mark.parametrize("size", [(3, 5, 7), (1, 4, 9), (5, 6), (4, 1)])
def test_network_sees_the_padded_input_and_the_result_is_cut(size):
    torch.manual_seed(0)
    network = Downsampled(len(size)).double()
    padded = PaddedNetwork(network, 4, size)
    x = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)
    around, place = pad_to(x, padded_size(size, 4))
    expected = network(around)[place]
    result = padded(x)
    assert result.shape == (2, 5, *size)
    assert torch.equal(result, expected)
    assert torch.autograd.gradcheck(padded, x)


def test_sizes_that_fit_are_not_touched():
    padded = PaddedNetwork(nn.Identity(), 4, (4, 8))
    x = torch.randn(1, 2, 4, 8)
    assert padded(x).data_ptr() == x.data_ptr()
    assert pad_to(x, (4, 8))[0] is x
    assert padding_note((4, 8), 4) is None


def test_other_sizes_than_the_patch_are_padded_for_themselves():
    padded = PaddedNetwork(Downsampled(2), 4, (8, 8))
    assert padded(torch.randn(1, 2, 3, 21)).shape == (1, 5, 3, 21)


def test_a_network_of_one_size_pads_smaller_inputs_and_refuses_larger_ones():
    seen = []

    class Fixed(nn.Module):
        def forward(self, x):
            seen.append(tuple(x.shape[2:]))
            return x

    padded = PaddedNetwork(Fixed(), 4, (7, 9), one_size=True)
    x = torch.randn(1, 2, 3, 9)
    assert torch.equal(padded(x), x)
    assert torch.equal(padded(torch.ones(1, 2, 8, 12)), torch.ones(1, 2, 8, 12))
    assert seen == [(8, 12), (8, 12)]
    with pytest.raises(ValueError, match=r"at most \(8, 12\) voxels can be padded to that size, got \(9, 9\)"):
        padded(torch.ones(1, 2, 9, 9))
    with pytest.raises(ValueError, match=r"at most \(8, 12\) .* got \(4, 4, 4\)"):
        padded(torch.ones(1, 2, 4, 4, 4))


def test_note_says_both_sizes():
    assert padding_note([28, 112, 96], 16) == (
        "This network takes sizes divisible by 16: patches of (28, 112, 96) voxels are padded with zeros to "
        "(32, 112, 96), and the logits are cropped to the patch"
    )


def test_names_do_not_depend_on_the_patch_and_deep_supervision_can_be_set():
    one, other = (PaddedNetwork(Downsampled(2), 4, size) for size in ((8, 8), (7, 9)))
    assert list(one.state_dict()) == list(other.state_dict())
    x = torch.randn(1, 2, 7, 9)
    before = one(x)
    one.decoder.deep_supervision = True  # as nnU-Net sets it after the validation
    assert torch.equal(one(x), before)
    assert torch.equal(copy.deepcopy(one)(x), before)


def test_one_graph_under_compile():
    torch.compiler.reset()
    padded = PaddedNetwork(Downsampled(3), 4, (3, 5, 7))
    compiled = torch.compile(padded, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 2, 3, 5, 7)
    torch.testing.assert_close(compiled(x), padded(x))
