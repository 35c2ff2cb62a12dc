"""``convert_dtc``: put DTC beside every upsampling of a network that somebody else wrote."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nnunet_dtc.ops.deformation import Deformation, Offset, Weight
from nnunet_dtc.ops.dtc import dtc_class, is_dtc

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LINEAR_MODES = {"bilinear": 2, "trilinear": 3}


def convert_dtc(
    module: nn.Module,
    receptive_field: float = 2.0,
    example_input: Any = None,
    *,
    offset: Offset = "tanh",
    weight: Weight = "sigmoid",
) -> nn.Module:
    """Wrap every upsampling in ``module`` in a DTC block that keeps it, weights and all, as its base.

    As torch's ``convert_sync_batchnorm`` it changes ``module`` in place and returns it (or its replacement, where
    ``module`` is an upsampling itself). Converted are

    - every 2D and 3D transposed convolution whose kernel is its stride, without padding;
    - every bilinear and trilinear ``nn.Upsample`` by a whole ``scale_factor``. It does not know its channels, so
      these need ``example_input``, with which the network is run once (in eval mode, without gradients).

    Everything else stays as it is; transposed convolutions, ``nn.Upsample`` and pixel shuffles that cannot be wrapped
    are named, with the reason, in one warning. What is already inside a DTC block is left alone, so a second call
    changes nothing. Calls of ``F.interpolate`` in a ``forward`` are no modules and cannot be seen.

    The new value convolutions start as torch initialises convolutions; a host network with an initialisation of its
    own should apply that to them (``block.value``), and must not apply it to ``block.coords``.

    Args:
        module: a network of any origin.
        receptive_field: RF of section 3.2 for every block, 0 to ``float("inf")``.
        example_input: a tensor, or a tuple of the arguments of ``module.forward``; any size that the network takes.
        offset, weight: table 4's variants, see :func:`nnunet_dtc.deformable_upsample`.

    Raises:
        ValueError: a linear ``nn.Upsample`` was found without ``example_input`` (they are named), or an argument is
            out of range. The module is then unchanged.
    """
    deformation = Deformation(receptive_field, offset, weight)
    found = {id(site.module): site for site in _sites(module)}

    unknown = [site for site in found.values() if site.refusal is None and site.in_channels is None]
    if unknown and example_input is None:
        names = ", ".join(repr(site.name) if site.name else "the module itself" for site in unknown)
        raise ValueError(f"an nn.Upsample does not know its channels: pass example_input=... to convert {names}")
    if unknown:
        _see_channels(module, unknown, example_input)

    if not found and not any(is_dtc(mod) for mod in module.modules()):
        warnings.warn("convert_dtc found no upsampling that it knows, nothing is converted", stacklevel=2)
    refused = [f"{site.name or 'the module itself'} ({site.refusal})" for site in found.values() if site.refusal]
    if refused:
        warnings.warn("convert_dtc left these upsamplings as they are: " + "; ".join(refused), stacklevel=2)

    blocks = {key: _wrap(site, deformation) for key, site in found.items() if site.refusal is None}
    if id(module) in blocks:
        return blocks[id(module)]
    for parent in [parent for _, parent in _outside_blocks(module)]:
        for name, child in parent._modules.items():  # not named_children(): it hides the second name of a module
            if id(child) in blocks:
                setattr(parent, name, blocks[id(child)])
    return module


@dataclass
class _Site:
    """An upsampling in the network, and what is known of it."""

    name: str
    module: nn.Module
    stride: tuple[int, ...] = ()
    in_channels: int | None = None
    out_channels: int | None = None
    like: Tensor | None = None  # a tensor of the device and dtype that the block is to have
    refusal: str | None = None
    seen: set[int] = field(default_factory=set)


def _outside_blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """As ``named_modules``, without going into DTC blocks."""
    visited: set[int] = set()
    stack = [(prefix, module)]
    while stack:
        name, current = stack.pop()
        if id(current) in visited or is_dtc(current):
            continue
        visited.add(id(current))
        yield name, current
        children = [(f"{name}.{child}" if name else child, mod) for child, mod in current.named_children()]
        stack.extend(reversed(children))


def _sites(module: nn.Module) -> Iterator[_Site]:
    for name, mod in _outside_blocks(module):
        if isinstance(mod, _TRANSPOSED):
            yield _transposed_site(name, mod)
        elif isinstance(mod, nn.Upsample):
            yield _upsample_site(name, mod)
        elif isinstance(mod, nn.PixelShuffle):
            yield _Site(name, mod, refusal="a pixel shuffle is no upsampling by itself, the convolution before it is")


def _transposed_site(name: str, conv: nn.Module) -> _Site:
    site = _Site(name, conv, tuple(conv.stride), conv.in_channels, conv.out_channels, conv.weight)
    kernel = tuple(conv.kernel_size)
    if isinstance(conv, nn.ConvTranspose1d):
        site.refusal = "DTC is for 2D and 3D, this is ConvTranspose1d"
    elif is_lazy(conv.weight):
        site.refusal = "it is lazy: run the network once before converting it"
    elif kernel != site.stride or any(conv.padding) or any(conv.output_padding) or set(conv.dilation) != {1}:
        site.refusal = (
            f"the kernel must be the stride, without padding; got kernel_size={kernel}, stride={site.stride}, "
            f"padding={tuple(conv.padding)}, output_padding={tuple(conv.output_padding)}, "
            f"dilation={tuple(conv.dilation)}"
        )
    elif set(site.stride) == {1}:
        site.refusal = "it does not upsample: its stride is 1 on every axis"
    return site


def _upsample_site(name: str, upsample: nn.Upsample) -> _Site:
    site = _Site(name, upsample)
    axes = _LINEAR_MODES.get(upsample.mode)
    factors = upsample.scale_factor
    if axes is None:
        site.refusal = f"only bilinear and trilinear interpolation can be wrapped, got mode={upsample.mode!r}"
    elif factors is None:
        site.refusal = f"it has a fixed size and no scale_factor, got size={upsample.size}"
    else:
        factors = tuple(factors) if isinstance(factors, Sequence) else (factors,) * axes
        if len(factors) != axes or any(factor != int(factor) or factor < 1 for factor in factors):
            site.refusal = f"scale_factor must be whole numbers >= 1, one per axis, got {upsample.scale_factor}"
        site.stride = tuple(int(factor) for factor in factors)
        if site.refusal is None and set(site.stride) == {1}:
            site.refusal = "it does not upsample: its scale_factor is 1 on every axis"
    return site


def _see_channels(module: nn.Module, sites: list[_Site], example_input: Any) -> None:
    """Run the network once and note what reaches each ``nn.Upsample``."""

    def look(site: _Site):
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            site.seen.add(x.shape[1])
            site.in_channels = site.out_channels = x.shape[1]
            site.like = x

        return site.module.register_forward_pre_hook(hook, with_kwargs=True)

    modes = {mod: mod.training for mod in module.modules()}
    hooks = [look(site) for site in sites]
    try:
        module.eval()
        with torch.no_grad():
            module(*example_input) if isinstance(example_input, tuple | list) else module(example_input)
    finally:
        for hook in hooks:
            hook.remove()
        for mod, training in modes.items():
            mod.training = training
    for site in sites:
        if not site.seen:
            site.refusal = "the example input does not reach it"
        elif len(site.seen) > 1:
            site.refusal = f"it is used with different channels, {sorted(site.seen)}"


def _wrap(site: _Site, deformation: Deformation) -> nn.Module:
    block = dtc_class(len(site.stride))(
        site.in_channels,
        site.out_channels,
        site.stride,
        base=site.module,
        **asdict(deformation),
        device=site.like.device,
        dtype=site.like.dtype,
    )
    return block.train(site.module.training)
