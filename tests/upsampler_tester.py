"""Tests that every upsampler must pass; a subclass names the upsampler, its oracle and small settings."""

import copy

import pytest
import torch
from torch import nn

from nnunet_dtc import DTC2d, DTC3d
from nnunet_dtc.torch_internals import FakeTensorMode
from nnunet_dtc.upsamplers import UPSAMPLERS

STRIDES = [(2, 2), (1, 2), (2, 2, 2), (1, 2, 2), (2, 1, 2), (4, 4, 1)]
CASES = [((3, 2), (2, 2)), ((1, 3), (1, 3)), ((2, 1, 3), (1, 2, 2)), ((1, 2, 2), (2, 1, 3))]
IN, OUT = 6, 4
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


class UpsamplerTests:
    name: str
    small: dict = {}  # noqa: RUF012 (settings that make loops fast; set per class, never changed)
    variants: tuple[dict, ...] = ({},)
    needs_skip = False

    @staticmethod
    def oracle(module, x, skip):
        raise NotImplementedError

    def make(self, stride, in_channels=IN, out_channels=OUT, seed=0, **settings):
        """A module with random parameters: those of a new module are often almost zero."""
        module = UPSAMPLERS[self.name][len(stride)](in_channels, out_channels, stride, **{**self.small, **settings})
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        return module

    def inputs(self, module, size, batch=2, dtype=torch.float32, seed=1):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(batch, module.in_channels, *size, generator=generator, dtype=torch.float64).to(dtype)
        if not self.needs_skip:
            return (x,)
        fine = [n * s for n, s in zip(size, module.stride, strict=True)]
        skip = torch.randn(batch, module.skip_channels, *fine, generator=generator, dtype=torch.float64).to(dtype)
        return x, skip

    @pytest.mark.parametrize("stride", STRIDES, ids=str)
    def test_shape_and_interface(self, stride):
        """With default settings, on sizes that differ between axes."""
        size = (3, 2, 5)[: len(stride)]
        module = UPSAMPLERS[self.name][len(stride)](16, 8, stride)
        assert (module.in_channels, module.out_channels, module.stride) == (16, 8, stride)
        assert module.needs_skip is self.needs_skip
        result = module(*self.inputs(module, size, batch=1))
        assert result.shape == (1, 8, *(n * s for n, s in zip(size, stride, strict=True)))
        assert result.dtype == torch.float32

    @pytest.mark.parametrize(("size", "stride"), CASES, ids=str)
    def test_values_agree_with_loops(self, size, stride):
        for variant in self.variants:
            module = self.make(stride, **variant).double()
            inputs = self.inputs(module, size, dtype=torch.float64)
            result = module(*inputs)
            expected = self.oracle(module, *(each.numpy() for each in inputs))
            torch.testing.assert_close(result.detach(), torch.from_numpy(expected), rtol=0, atol=1e-11)

    def test_values_without_projection(self):
        module = self.make((1, 2), 4, 4, projection=False).double()
        assert module.project is None
        inputs = self.inputs(module, (2, 3), dtype=torch.float64)
        expected = self.oracle(module, *(each.numpy() for each in inputs))
        torch.testing.assert_close(module(*inputs).detach(), torch.from_numpy(expected), rtol=0, atol=1e-11)
        with pytest.raises(ValueError, match="without projection the channels stay, got in_channels=6"):
            self.make((1, 2), 6, 4, projection=False)

    @pytest.mark.parametrize(("size", "stride"), [((3, 2), (2, 1)), ((2, 1, 2), (1, 2, 2))], ids=str)
    def test_gradients(self, size, stride):
        for variant in self.variants:
            module = self.make(stride, 4, 2, **variant).double()
            inputs = self.inputs(module, size, batch=1, dtype=torch.float64)
            names = [name for name, _ in module.named_parameters()]
            count = len(inputs)

            def run(*tensors, module=module, names=names, count=count):
                parameters = dict(zip(names, tensors[count:], strict=True))
                return torch.func.functional_call(module, parameters, tensors[:count])

            leaves = [each.detach().clone().requires_grad_() for each in (*inputs, *module.parameters())]
            assert torch.autograd.gradcheck(run, leaves, fast_mode=True)

    def test_cases_of_a_batch_are_independent(self):
        module = self.make((2, 1, 2))
        inputs = self.inputs(module, (2, 3, 1), batch=3)
        together = module(*inputs)
        alone = torch.cat([module(*(each[n : n + 1] for each in inputs)) for n in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)

    def test_an_empty_batch(self):
        module = self.make((2, 1))
        result = module(*self.inputs(module, (3, 2), batch=0))
        assert result.shape == (0, OUT, 6, 2)
        result.sum().backward()

    @pytest.mark.parametrize("stride", [(2, 1), (1, 2, 2)], ids=str)
    def test_a_constant_map_stays_constant(self, stride):
        """Also at the borders, and whatever the encoder's features: the weights sum to one."""
        for variant in self.variants:
            if variant.get("padding") == "zeros":
                continue
            module = self.make(
                stride, 4, 4, projection=False, **{k: v for k, v in variant.items() if k != "skip_channels"}
            )
            inputs = list(self.inputs(module, (3, 4, 2)[: len(stride)]))
            levels = torch.tensor([0.5, -2.0, 3.0, 7.0]).view(1, 4, *[1] * len(stride))
            inputs[0] = levels.expand_as(inputs[0])
            inputs[1:] = [levels.expand_as(skip) for skip in inputs[1:]]
            result = module(*inputs)
            torch.testing.assert_close(result, levels.expand_as(result), rtol=0, atol=1e-5)

    def test_compiles_to_one_graph(self):
        size, stride = CASES[2]
        torch.compiler.reset()
        eager = self.make(stride)
        compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend="aot_eager")
        results, gradients = [], []
        for module in (eager, compiled):
            inputs = [each.requires_grad_() for each in self.inputs(eager, size)]
            result = module(*inputs)
            result.square().sum().backward()
            results.append(result.detach())
            gradients.append([each.grad for each in (*inputs, *module.parameters())])
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize(("size", "stride"), [CASES[0], CASES[2]], ids=str)
    def test_autocast(self, size, stride):
        module = self.make(stride)
        inputs = self.inputs(module, size)
        exact = module(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = module(*inputs)
        assert result.dtype == torch.bfloat16
        # positions and weights are float32, but computed from bfloat16, which has 8 bits of precision
        torch.testing.assert_close(result.float(), exact, rtol=0.1, atol=0.1 * exact.abs().max().item())
        result.float().sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in module.parameters())

    @pytest.mark.parametrize(("size", "stride"), [CASES[0], CASES[2]], ids=str)
    def test_autocast_of_cuda(self, size, stride):
        """Autocast on CUDA has other lists than on the CPU: interpolation is float32. Fake tensors need no GPU."""
        module = self.make(stride)
        before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", True)  # torch.autocast disables itself without a GPU
        torch.set_autocast_dtype("cuda", torch.float16)
        try:
            with FakeTensorMode():
                parameters = {
                    name: torch.empty(parameter.shape, device="cuda") for name, parameter in module.named_parameters()
                }
                inputs = [
                    torch.empty(each.shape, device="cuda", dtype=torch.float16) for each in self.inputs(module, size)
                ]
                result = torch.func.functional_call(module, parameters, tuple(inputs))
        finally:
            torch.set_autocast_enabled("cuda", before[0])
            torch.set_autocast_dtype("cuda", before[1])
        assert (result.device.type, result.dtype) == ("cuda", torch.float16)
        assert result.shape[2:] == tuple(n * s for n, s in zip(size, stride, strict=True))

    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_every_float_dtype(self, dtype):
        """Against the loops in float64 with the same parameters and inputs, relative to the largest value."""
        module = self.make((1, 2, 2)).to(dtype)
        inputs = self.inputs(module, (2, 1, 3), dtype=dtype)
        result = module(*inputs)
        assert result.dtype == dtype
        expected = torch.from_numpy(self.oracle(module, *(each.double().numpy() for each in inputs)))
        assert (result.double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()

    def test_the_state_dict_does_not_depend_on_modes(self):
        module = self.make((2, 2))
        names = list(module.state_dict())
        assert names == [name for name, _ in module.named_parameters()]  # no buffers
        module.eval()
        module(*self.inputs(module, (3, 2)))
        assert list(module.state_dict()) == names
        other = self.make((2, 2), seed=5)
        other.load_state_dict(module.state_dict())
        inputs = self.inputs(module, (3, 2))
        assert torch.equal(module(*inputs), other.train()(*inputs))

    def test_every_parameter_of_a_new_module_has_a_gradient(self):
        torch.manual_seed(0)
        module = UPSAMPLERS[self.name][3](8, 4, (1, 2, 2))
        module(*self.inputs(module, (2, 3, 2))).square().sum().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name

    @pytest.mark.parametrize(("size", "stride"), CASES, ids=str)
    def test_feature_map_size_counts_the_results_that_hooks_see(self, size, stride):
        for variant in self.variants:
            module = self.make(stride, **variant)
            inputs = self.inputs(module, size, batch=1)
            assert module.compute_conv_feature_map_size(size) == self.count_feature_maps(module, inputs)

    def count_feature_maps(self, module, inputs):
        """Elements of the results of all convolutions; a subclass adds those that hooks do not see."""
        seen = []
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Conv3d | nn.Linear):
                part.register_forward_hook(lambda module, args, result: seen.append(result.numel()))
        module(*inputs)
        return sum(seen)

    def test_is_a_base_of_dtc(self):
        for block, stride in ((DTC2d, (1, 2)), (DTC3d, (2, 1, 2))):
            base = self.make(stride)
            dtc = block(IN, OUT, stride, base=base)
            inputs = self.inputs(base, (3, 2, 1)[: len(stride)])
            result = dtc(inputs[0], skip=inputs[1]) if self.needs_skip else dtc(inputs[0])
            with torch.no_grad():
                dtc.value.weight.zero_()
                dtc.value.bias.zero_()
                again = dtc(inputs[0], skip=inputs[1]) if self.needs_skip else dtc(inputs[0])
            assert torch.equal(again, base(*inputs))
            assert not torch.equal(result, again)

    def test_bad_arguments(self):
        upsampler = UPSAMPLERS[self.name][3]
        for arguments, message in (
            ((0, 4, 2), "in_channels must be a positive integer, got in_channels=0"),
            ((4, 2.0, 2), "out_channels must be a positive integer"),
            ((4, 4, (2, 0, 2)), "stride must be positive on every axis"),
            ((4, 4, (2, 2)), r"one entry per spatial axis \(3\)"),
        ):
            with pytest.raises(ValueError, match=message):
                upsampler(*arguments)

    def test_bad_input(self):
        module = self.make((1, 2, 2))
        inputs = list(self.inputs(module, (2, 3, 4)))
        for x, error, message in (
            (inputs[0][:, 1:], ValueError, r"takes \(N, 6, D, H, W\), got \(2, 5, 2, 3, 4\)"),
            (inputs[0][:, :, 0], ValueError, r"takes \(N, 6, D, H, W\), got \(2, 6, 3, 4\)"),
            (inputs[0].to(torch.uint8), TypeError, "floating tensor, got torch.uint8"),
        ):
            with pytest.raises(error, match=message):
                module(x, *inputs[1:])
        if self.needs_skip:
            with pytest.raises(ValueError, match=r"a skip of \(2, 4, 2, 6, 8\) .* got \(2, 4, 2, 6, 7\)"):
                module(inputs[0], inputs[1][..., :7])
