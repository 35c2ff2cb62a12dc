"""Linear, DySample, CARAFE, FADE and SAPA: the common tests, and the published 2D forms against hand-made numbers."""

import math

import pytest
import torch
import torch.nn.functional as F
import upsampler_oracles as oracles
from upsampler_tester import UpsamplerTests

from nnunet_dtc import DTC3d
from nnunet_dtc.ops.backends import BACKENDS, use_backend
from nnunet_dtc.ops.layout import merge_subpositions, pixel_shuffle, split_subpositions
from nnunet_dtc.torch_internals import TorchDispatchMode
from nnunet_dtc.upsamplers import (
    UPSAMPLERS,
    CARAFE2d,
    CARAFE3d,
    DySample2d,
    DySample3d,
    FADE2d,
    FADE3d,
    Linear2d,
    SAPA2d,
    SAPA3d,
    carafe,
    dysample,
    fade,
    linear_upsample,
    reassemble,
    sapa,
    upsampler_class,
)

BACKENDS_ON_CPU = [name for name in ("reference", "numba") if BACKENDS[name].why_not() is None]
needs_numba = pytest.mark.skipif("numba" not in BACKENDS_ON_CPU, reason="numba is not installed")


class OperatorNames(TorchDispatchMode):
    """The names of the operators that torch calls."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operator, kinds, arguments=(), settings=None):
        self.seen.append(str(operator))
        return operator(*arguments, **(settings or {}))


def zero_(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module


class TestLinear(UpsamplerTests):
    name = "Linear"
    oracle = staticmethod(oracles.linear)

    def test_by_hand(self):
        """Two samples per element between 0 and 4 lie at a quarter and at three quarters; the ends are repeated."""
        module = Linear2d(1, 1, (1, 2), projection=False)
        result = module(torch.tensor([[[[0.0, 4.0]]]]))
        assert result.flatten().tolist() == [0, 1, 3, 4]

    def test_the_projection_may_come_after_the_interpolation(self):
        module = self.make((2, 3))
        (x,) = self.inputs(module, (3, 2))
        behind = module.project(F.interpolate(x, size=(6, 6), mode="bilinear", align_corners=False))
        torch.testing.assert_close(module(x), behind, rtol=1e-5, atol=1e-5)


class TestDySample(UpsamplerTests):
    name = "DySample"
    oracle = staticmethod(oracles.dysample)
    small = {"groups": 2}  # noqa: RUF012
    variants = ({}, {"dynamic_scope": True}, {"groups": 1})

    @pytest.mark.parametrize("backend", BACKENDS_ON_CPU)
    @pytest.mark.parametrize(("size", "stride"), [((3, 2), (2, 1)), ((2, 1, 3), (1, 2, 2))], ids=str)
    def test_every_backend_agrees_with_loops(self, backend, size, stride):
        """Values by the loops, gradients by differences; the offsets are up to several elements."""
        module = self.make(stride, 4, 4).double()
        (x,) = self.inputs(module, size, dtype=torch.float64)
        with torch.no_grad():
            module.offset.weight.mul_(4)
        with use_backend(backend):
            result = module(x)
            assert module.offsets(x).abs().max() > 2
            assert torch.autograd.gradcheck(module, x.requires_grad_(), fast_mode=True)
        expected = torch.from_numpy(oracles.dysample(module, x.detach().numpy()))
        torch.testing.assert_close(result.detach(), expected, rtol=0, atol=1e-11)

    @pytest.mark.parametrize("backend", BACKENDS_ON_CPU)
    def test_at_the_centre_of_an_element_the_gradient_is_that_of_the_higher_index(self, backend):
        value = torch.tensor([[0.0, 1, 4], [0, 10, 40]]).view(1, 2, 1, 3)
        offsets = torch.zeros(1, 4, 1, 3, requires_grad=True)
        with use_backend(backend):
            result = dysample(value, offsets, 1, groups=2)
        result.sum().backward()
        # axis H has a single element, along which nothing changes
        expected = torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 3, 0], [10, 30, 0]])
        torch.testing.assert_close(offsets.grad[0, :, 0], expected, rtol=0, atol=1e-4)

    @needs_numba
    def test_with_numba_no_grid_sample_is_left(self):
        """Alone and as the base of DTC, forward and backward."""
        module = DTC3d(8, 8, (1, 2, 2), base=self.make((1, 2, 2), 8, 8, groups=4))
        x = torch.randn(2, 8, 3, 5, 4, requires_grad=True)
        with use_backend("numba"), OperatorNames() as names:
            module(x).sum().backward()
        assert sum("upsample_numba" in name for name in names.seen) == 4
        assert not [name for name in names.seen if "grid_sampler" in name]

    @needs_numba
    def test_numba_gives_the_same_bits_with_any_number_of_threads(self, monkeypatch):
        monkeypatch.setattr("nnunet_dtc.ops.backends.threads.WORTH_A_PART", 1)
        value, offsets = torch.randn(1, 8, 2, 19, 3), torch.randn(1, 12, 2, 38, 6)
        upstream = torch.randn(1, 8, 2, 38, 6)
        before, results = torch.get_num_threads(), []
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                leaves = value.clone().requires_grad_(), offsets.clone().requires_grad_()
                with use_backend("numba"):
                    result = dysample(*leaves, (1, 2, 2))
                results.append([result, *torch.autograd.grad(result, leaves, upstream)])
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(one, several) for one, several in zip(*results, strict=True))

    @pytest.mark.parametrize("dynamic_scope", [False, True])
    def test_style_pl_agrees_with_loops(self, dynamic_scope):
        module = self.make((2, 3), 12, 4, style="pl", dynamic_scope=dynamic_scope).double()
        assert module.offset.in_channels == 2
        (x,) = self.inputs(module, (2, 1), dtype=torch.float64)
        expected = torch.from_numpy(oracles.dysample(module, x.numpy()))
        torch.testing.assert_close(module(x).detach(), expected, rtol=0, atol=1e-11)
        assert module.compute_conv_feature_map_size((2, 1)) == self.count_feature_maps(module, (x[:1],))

    def test_published_form_by_hand(self):
        """Offsets of one voxel along W, times the static scope 0.25, in the second of two groups."""
        module = zero_(DySample2d(2, 2, 2, groups=2, projection=False))
        with torch.no_grad():
            # (axis, group, row, column of the sub-position): W is axis 1
            module.offset.bias.view(2, 2, 2, 2)[1, 1] = 1
        row = torch.tensor([0.0, 1, 2, 3])
        x = torch.stack([row, row]).view(1, 2, 1, 4)
        first, second = module(x)[0]
        assert first[0].tolist() == first[1].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
        assert second[0].tolist() == second[1].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]

    def test_published_order_of_the_sub_positions_by_hand(self):
        """Only the upper right of the four samples of an element is shifted, half a voxel to the left."""
        module = zero_(DySample2d(1, 1, 2, groups=1, projection=False))
        with torch.no_grad():
            module.offset.bias.view(2, 1, 2, 2)[1, 0, 0, 1] = -2
        x = torch.tensor([0.0, 8.0]).view(1, 1, 1, 2)
        assert module(x)[0, 0].tolist() == [[0, 0, 6, 6], [0, 2, 6, 8]]

    def test_the_dynamic_scope_starts_as_the_static_one(self):
        torch.manual_seed(0)
        static = DySample2d(8, 8, 2, projection=False)
        dynamic = DySample2d(8, 8, 2, dynamic_scope=True, projection=False)
        dynamic.offset.load_state_dict(static.offset.state_dict())
        x = torch.randn(1, 8, 3, 2)
        torch.testing.assert_close(dynamic(x), static(x))

    def test_starts_near_linear_interpolation_but_not_at_it(self):
        torch.manual_seed(0)
        module = DySample3d(64, 64, (1, 2, 2), projection=False)
        assert 0.0009 < module.offset.weight.std() < 0.0011
        assert not module.offset.bias.any()
        x = torch.randn(1, 64, 3, 4, 2)
        expected = F.interpolate(x, scale_factor=(1, 2, 2), mode="trilinear")
        assert 0 < (module(x) - expected).abs().max() < 0.05

    @pytest.mark.parametrize(("bad", "same_as"), [(math.nan, 0), (math.inf, 1e4), (-math.inf, -1e4)])
    @pytest.mark.parametrize("size", [(16, 17), (2, 3, 5)])
    def test_offsets_that_are_not_finite(self, size, bad, same_as):
        """They sample as large finite ones and have a gradient of zero; torch's grid_sample alone would crash."""
        generator = torch.Generator().manual_seed(0)
        axes, fine = len(size), [2 * extent for extent in size]
        value = torch.randn(2, 4, *size, generator=generator)
        finite = torch.randn(2, 2 * axes, *fine, generator=generator)
        at = torch.rand(finite.shape, generator=generator) < 0.3
        upstream = torch.randn(2, 4, *fine, generator=generator)
        results = []
        for replaced in (bad, same_as):
            leaves = value.clone().requires_grad_(), torch.where(at, replaced, finite).requires_grad_()
            result = dysample(*leaves, 2, groups=2)
            results.append([result.detach(), *torch.autograd.grad(result, leaves, upstream)])
        got, wanted = results
        wanted[2][at] = 0
        for ours, theirs in zip(got, wanted, strict=True):
            assert theirs.isfinite().all()
            assert torch.equal(ours, theirs)

    def test_parameters(self):
        assert sum(p.numel() for p in DySample2d(64, 64, 2, projection=False).parameters()) == 64 * 32 + 32
        assert DySample3d(8, 4, (2, 1, 3)).offset.out_channels == 3 * 4 * 6
        assert DySample3d(12, 4, (2, 1, 3), style="pl").offset.weight.shape[:2] == (3 * 4, 2)

    def test_its_own_bad_arguments(self):
        with pytest.raises(ValueError, match="groups must divide out_channels, got groups=4 and out_channels=6"):
            DySample2d(4, 6, 2)
        with pytest.raises(ValueError, match=r"into 4 sub-positions .* got in_channels=6"):
            DySample2d(6, 4, 2, style="pl")
        with pytest.raises(ValueError, match="style must be 'lp' or 'pl', got style='p'"):
            DySample2d(4, 4, 2, style="p")
        with pytest.raises(ValueError, match=r"offsets must be .* = \(1, 4, 4, 6\), got \(1, 2, 4, 6\)"):
            dysample(torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 4, 6), 2, 2)
        with pytest.raises(ValueError, match="groups must divide the channels"):
            dysample(torch.zeros(1, 3, 2, 3), torch.zeros(1, 4, 4, 6), 2, 2)
        with pytest.raises(ValueError, match="value must have at least one voxel on every axis"):
            dysample(torch.zeros(1, 4, 0, 3), torch.zeros(1, 4, 0, 6), 2, 2)

    def test_second_derivatives_are_refused(self):
        value, offsets = torch.randn(1, 2, 2, 3, requires_grad=True), torch.randn(1, 4, 4, 6)
        (gradient,) = torch.autograd.grad(dysample(value, offsets, 2, 2).square().sum(), value, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivatives"):
            gradient.sum().backward()


class TestCARAFE(UpsamplerTests):
    name = "CARAFE"
    oracle = staticmethod(oracles.carafe)
    small = {"compressed_channels": 3, "kernel_size": 3}  # noqa: RUF012
    variants = ({}, {"padding": "zeros"})

    def test_a_different_window_per_axis_agrees_with_loops(self):
        module = self.make((2, 1, 2), kernel_size=(1, 3, 5), encoder_kernel_size=1).double()
        (x,) = self.inputs(module, (2, 1, 3), dtype=torch.float64)
        expected = torch.from_numpy(oracles.carafe(module, x.numpy()))
        torch.testing.assert_close(module(x).detach(), expected, rtol=0, atol=1e-11)

    def test_published_form_by_hand(self):
        """Equal weights give the mean of 5x5 elements, of which 9 are inside the map at a corner and 15 at an edge."""
        module = zero_(CARAFE2d(1, 1, 2, padding="zeros", projection=False))
        result = module(torch.ones(1, 1, 6, 5))[0, 0]
        assert result.shape == (12, 10)
        for row, column, inside in ((0, 0, 9), (1, 1, 9), (2, 0, 12), (4, 0, 15), (5, 3, 20), (4, 4, 25), (7, 5, 25)):
            assert result[row, column].item() == pytest.approx(inside / 25)
        torch.testing.assert_close(result, result.flip(0, 1))

    def test_published_order_of_window_and_sub_positions_by_hand(self):
        """The lower left of an element's four sub-positions reads the element two rows up and one to the right."""
        module = zero_(CARAFE2d(1, 1, 2, padding="zeros", projection=False))
        with torch.no_grad():
            module.encode.bias.view(5, 5, 2, 2)[2, 2] = 100  # all others read the element itself
            module.encode.bias.view(5, 5, 2, 2)[:, :, 1, 0] = 0
            module.encode.bias.view(5, 5, 2, 2)[0, 3, 1, 0] = 100
        x = torch.arange(12.0).view(1, 1, 3, 4)
        result = module(x)[0, 0]
        assert result[4].tolist() == pytest.approx([8, 8, 9, 9, 10, 10, 11, 11])
        assert result[5].tolist() == pytest.approx([1, 8, 2, 9, 3, 10, 0, 11])
        assert result[1].tolist() == pytest.approx([0, 0, 0, 1, 0, 2, 0, 3])

    def test_defaults(self):
        flat, solid = CARAFE2d(8, 4, 2), CARAFE3d(8, 4, (1, 2, 2))
        assert (flat.kernel_size, solid.kernel_size) == ((5, 5), (3, 3, 3))
        assert flat.encode.weight.shape == (25 * 4, 64, 3, 3)
        assert solid.encode.weight.shape == (27 * 4, 64, 3, 3, 3)
        assert 0.0009 < solid.encode.weight.std() < 0.0011

    def test_its_own_bad_arguments(self):
        for kernel_size in (2, (3, 3), 0, 3.0, -1):
            with pytest.raises(ValueError, match="kernel_size must be an odd number, or one per axis"):
                CARAFE3d(4, 4, 2, kernel_size=kernel_size)
        with pytest.raises(ValueError, match="padding must be 'border' or 'zeros', got padding='reflect'"):
            CARAFE2d(4, 4, 2, padding="reflect")
        with pytest.raises(ValueError, match=r"weights must be .* = \(1, 9, 4, 6\), got \(1, 25, 4, 6\)"):
            reassemble(torch.zeros(1, 2, 2, 3), torch.zeros(1, 25, 4, 6), 2, 3)


class TestFADE(UpsamplerTests):
    name = "FADE"
    oracle = staticmethod(oracles.fade)
    small = {"embedding_channels": 3, "kernel_size": 3}  # noqa: RUF012
    variants = ({}, {"padding": "zeros"}, {"skip_channels": 5})
    needs_skip = True

    def count_feature_maps(self, module, inputs):
        """The convolution for both features runs a second time as a function, which hooks do not see."""
        again = inputs[0].shape[2:].numel() * module.encode.out_channels
        return super().count_feature_maps(module, inputs) + again

    def test_published_form_by_hand(self):
        """Equal weights give the mean; a gate of log 3 gives the skip a weight of 3/4."""
        module = zero_(FADE2d(1, 1, 2, padding="zeros", projection=False))
        with torch.no_grad():
            module.gate.bias.fill_(math.log(3))
        result = module(torch.ones(1, 1, 5, 5), torch.full((1, 1, 10, 10), 8.0))[0, 0]
        assert result[4, 4].item() == pytest.approx(0.75 * 8 + 0.25)
        assert result[0, 0].item() == pytest.approx(0.75 * 8 + 0.25 * 9 / 25)

    def test_kernels_depend_on_encoder_and_decoder_by_hand(self):
        """Window (1, 3). Where the skip is 1, the right neighbour has log 2 more; where x is 1, the left one.

        x = 0 1 0 0 at low resolution: its element 1 has kernels (2, 1, 1) / 4 where the skip is 0, and (2, 1, 2) / 5
        where it is 1; elsewhere (1, 1, 1) / 3 and (1, 1, 2) / 4.
        """
        module = zero_(
            FADE2d(1, 1, (1, 2), kernel_size=(1, 3), embedding_channels=2, padding="zeros", projection=False)
        )
        with torch.no_grad():
            module.compress_skip.weight.view(2)[0] = 1  # the skip is channel 0, x is channel 1 of the embedding
            module.compress.weight.view(2)[1] = 1
            module.encode.weight[2, 0, 1, 1] = math.log(2)
            module.encode.weight[0, 1, 1, 1] = math.log(2)
            module.gate.bias.fill_(-100)  # the weight of the skip is 0
        x = torch.tensor([0.0, 1, 0, 0]).view(1, 1, 1, 4)
        skip = torch.tensor([0.0, 1, 0, 1, 0, 0, 1, 1]).view(1, 1, 1, 8)
        expected = [1 / 3, 2 / 4, 1 / 4, 1 / 5, 1 / 3, 1 / 3, 0, 0]
        assert module(x, skip).flatten().tolist() == pytest.approx(expected)

    def test_the_bias_counts_once(self):
        module = zero_(FADE2d(2, 2, 2, kernel_size=(1, 3), projection=False))
        with torch.no_grad():
            module.encode.bias[2] = math.log(2)
            module.gate.bias.fill_(-100)
        x = torch.tensor([[0.0, 4, 8], [1, 1, 1]]).view(1, 2, 1, 3)
        result = module(x, torch.zeros(1, 2, 2, 6))
        assert result[0, 0, 0, 2].item() == pytest.approx((0 + 4 + 2 * 8) / 4)

    def test_parameters(self):
        """As in table 7: two compressions to 64 with one bias, one 3x3 convolution to 25, and the gate."""
        module = FADE2d(128, 128, 2, projection=False)
        assert sum(p.numel() for p in module.parameters()) == 2 * 128 * 64 + 64 + 64 * 25 * 9 + 25 + 128 + 1
        assert FADE3d(8, 4, (1, 2, 2)).encode.weight.shape == (27, 64, 3, 3, 3)

    def test_the_function_is_the_module(self):
        module = self.make((2, 1))
        x, skip = self.inputs(module, (3, 2))
        coarse = F.conv2d(module.compress(x), module.encode.weight, padding=1)
        fine = module.encode(module.compress_skip(skip))
        result = fade(module.value(x), skip, fine, coarse, module.gate(x), (2, 1), 3)
        assert torch.equal(result, module(x, skip))


class TestSAPA(UpsamplerTests):
    name = "SAPA"
    oracle = staticmethod(oracles.sapa)
    small = {"embedding_channels": 3, "kernel_size": 3}  # noqa: RUF012
    variants = ({}, {"padding": "zeros"}, {"skip_channels": 5})
    needs_skip = True

    def count_feature_maps(self, module, inputs):
        """The similarities are not the result of a module."""
        similarities = inputs[1].shape[2:].numel() * math.prod(module.kernel_size)
        return super().count_feature_maps(module, inputs) + similarities

    def test_published_form_by_hand(self):
        """Window (1, 3), one embedding channel: q = log 2 prefers, q = -log 2 avoids the neighbours whose key is 1."""
        keys = torch.tensor([0.0, 0, 1, 0]).view(1, 1, 1, 4)
        value = torch.tensor([1.0, 2, 4, 8]).view(1, 1, 1, 4)
        queries = math.log(2) * torch.tensor([1.0, -1, 1, -1, 1, -1, 1, 0]).view(1, 1, 1, 8)
        expected = [
            (0 + 1 + 2) / 3,
            (0 + 1 + 2) / 3,
            (1 + 2 + 2 * 4) / 4,
            (1 + 2 + 4 / 2) / 2.5,
            (2 + 2 * 4 + 8) / 4,
            (2 + 4 / 2 + 8) / 2.5,
            (2 * 4 + 8 + 0) / 4,
            (4 + 8 + 0) / 3,
        ]
        result = sapa(value, queries, keys, (1, 2), (1, 3), padding="zeros")
        assert result.flatten().tolist() == pytest.approx(expected)
        # with the border repeated, the first element has itself as its left neighbour, the last one as its right
        result = sapa(value, queries, keys, (1, 2), (1, 3)).flatten().tolist()
        assert result[0] == pytest.approx((1 + 1 + 2) / 3)
        assert result[6] == pytest.approx((2 * 4 + 8 + 8) / 4)
        assert result[1:6] == pytest.approx([4 / 3, *expected[2:6]])

    def test_defaults(self):
        torch.manual_seed(0)
        module = SAPA2d(256, 128, 2)
        assert (module.kernel_size, SAPA3d(8, 4, 2).kernel_size) == ((5, 5), (3, 3, 3))
        assert module.query.weight.shape == (64, 128)
        assert module.key.weight.shape == (64, 256)
        assert module.key.weight.std().item() == pytest.approx(0.02, rel=0.05)


N, C, E, SIZE, STRIDE = 2, 4, 3, (3, 2), (2, 1)
FINE, WINDOW = (6, 2), 9
FUNCTIONS = {
    "linear_upsample": (linear_upsample, {}, {}),
    "dysample": (dysample, {"offsets": (N, 4, *FINE)}, {"groups": 2}),
    "carafe": (carafe, {"logits": (N, WINDOW, *FINE)}, {"kernel_size": 3}),
    "fade": (
        fade,
        {
            "skip": (N, C, *FINE),
            "fine_logits": (N, WINDOW, *FINE),
            "coarse_logits": (N, WINDOW, *SIZE),
            "gate": (N, 1, *SIZE),
        },
        {"kernel_size": 3},
    ),
    "sapa": (sapa, {"queries": (N, E, *FINE), "keys": (N, E, *SIZE)}, {"kernel_size": 3}),
    "reassemble": (reassemble, {"weights": (N, WINDOW, *FINE)}, {"kernel_size": 3}),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_refuse_tensors_that_do_not_fit(name):
    """Another batch, other channels, another size, an axis too few or too many, integers, a bad stride."""
    function, others, settings = FUNCTIONS[name]
    tensors = {"value": torch.zeros(N, C, *SIZE), **{key: torch.zeros(shape) for key, shape in others.items()}}
    assert function(**tensors, stride=STRIDE, **settings).shape == (N, C, *FINE)
    for key, shape in others.items():
        for index in range(4):
            for size in (shape[index] + 1, shape[index] * 2, shape[index] - 1):
                misfit = torch.zeros(*shape[:index], size, *shape[index + 1 :])
                # the queries determine the number of channels of queries and keys
                with pytest.raises(ValueError, match=f"{'keys' if index == 1 and key == 'queries' else key} must be"):
                    function(**{**tensors, key: misfit}, stride=STRIDE, **settings)
        for misfit in (torch.zeros(shape[:3]), torch.zeros(shape[:1]), torch.zeros(*shape, 1)):
            with pytest.raises(ValueError, match=rf"{key} must be .* got \({shape[0]},"):
                function(**{**tensors, key: misfit}, stride=STRIDE, **settings)
    for key, tensor in tensors.items():
        with pytest.raises(TypeError, match=f"{key} must be a floating tensor, got torch.int64"):
            function(**{**tensors, key: tensor.long()}, stride=STRIDE, **settings)
    for axes in (0, 1, 4):
        with pytest.raises(ValueError, match=r"value must be \(N, C, S_1, .., S_g\) with 2 or 3 axes, got \(2, 4"):
            function(**{**tensors, "value": torch.zeros(2, 4, *[3] * axes)}, stride=2, **settings)
    for stride, message in (((2, 0), "positive on every axis"), ((2, 1, 2), r"one entry per spatial axis \(2\)")):
        with pytest.raises(ValueError, match=message):
            function(**tensors, stride=stride, **settings)


def test_the_table_of_upsamplers():
    for name, by_axes in UPSAMPLERS.items():
        assert {axes: kind.__name__ for axes, kind in by_axes.items()} == {2: f"{name}2d", 3: f"{name}3d"}
        assert upsampler_class(name, 3) is by_axes[3]
    with pytest.raises(ValueError, match="one of Linear, DySample, CARAFE, FADE, SAPA, got 'Bicubic'"):
        upsampler_class("Bicubic", 2)
    with pytest.raises(ValueError, match="2 and 3 spatial axes, got axes=1"):
        upsampler_class("Linear", 1)


def test_pixel_shuffle_agrees_with_torch_and_with_loops():
    x = torch.randn(2, 18, 4, 5)
    assert torch.equal(pixel_shuffle(x, (3, 3)), F.pixel_shuffle(x, 3))
    x = torch.randn(2, 12, 2, 1, 3)
    assert torch.equal(
        pixel_shuffle(x, (2, 1, 3)).double(), torch.from_numpy(oracles.shuffle_loops(x.numpy(), (2, 1, 3)))
    )
    assert torch.equal(merge_subpositions(split_subpositions(x, (1, 1, 3))), x)
